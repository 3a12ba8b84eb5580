"""The console in a real browser, on a whole bridge: one for all tests of this file."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from bridge.devservers import Servers
from bridge.operator.auditor import CHECKS
from bridge.ops.surroundings import QUEUES_EVERY
from tests.conftest import TEMPLATE, Databases, _fresh_vhost
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.console_pictures import SIZES, VIEWS
from tests.support.console_scene import CROWD, MARKUP, TRACE, Scene, scene
from tests.support.console_words import WORDS, words
from tests.support.npm import axe
from tests.support.ops import FakeDesk, Parts, ops
from tests.support.rows import timed_row

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Deadlines, not waits: nothing takes that long unless it never comes.
expect.set_options(timeout=15_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(servers: Servers, databases: Databases) -> AsyncIterator[Scene]:
    with _fresh_vhost(servers) as vhost, databases.fresh(TEMPLATE) as dsn:
        async with scene(vhost, dsn) as played:
            yield played


async def rests(page: Page, name: str) -> None:
    """Wait until a view shows what it has asked for."""
    await expect(page.locator("main h1")).to_have_count(1)
    await expect(page.get_by_text(re.compile("^(Asking|Looking into|Searching|Connecting)"))).to_have_count(0)
    if name == "overview":
        await expect(page.locator(".plot canvas").first).to_be_visible()
        await expect(page.get_by_role("cell", name="alive")).to_be_visible()


# --- each view, for everybody ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "size"), [("light", "wide"), ("dark", "wide"), ("light", "phone")])
async def test_axe_finds_nothing_in_any_view(browser: Browser, at: Scene, scheme: str, size: str) -> None:
    source = axe()
    async with opened(browser, at.url, viewport=SIZES[size], color_scheme=scheme) as page:
        await page.evaluate(source)
        for name, address in VIEWS.items():
            await page.evaluate("(hash) => { location.hash = hash; }", address)
            await rests(page, name)
            assert await violations(page) == [], name
        await page.goto(at.url + VIEWS["push"])
        await rests(page, "push")
        await page.get_by_role("button", name="Recall").click()
        await page.evaluate(source)
        assert await violations(page) == [], "a dialog"


async def violations(page: Page) -> list[Any]:
    """What axe has to say: rule, and the elements."""
    found: list[Any] = await page.evaluate(
        """async () => (await axe.run(document, {
        runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] })).violations
        .map((v) => [v.id, v.nodes.map((n) => n.html + " " + n.failureSummary)])"""
    )
    return found


@pytest.mark.parametrize("size", SIZES)
async def test_nothing_is_wider_than_the_screen(browser: Browser, at: Scene, size: str) -> None:
    async with opened(browser, at.url, viewport=SIZES[size]) as page:
        for name, address in VIEWS.items():
            await page.evaluate("(hash) => { location.hash = hash; }", address)
            await rests(page, name)
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= SIZES[size]["width"], name


async def test_the_keyboard_is_enough(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/search") as page:
        await rests(page, "search")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.get_by_label("Exactly this").focus()
        await page.keyboard.type("order-7-shipped")
        await page.keyboard.press("Enter")
        link = page.get_by_role("link", name="order-7-shipped")
        await expect(link).to_have_count(1)
        await link.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".timeline")).to_be_visible()
        await page.get_by_role("button", name="Recall").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.get_by_role("button", name="Recall")).to_be_focused()


async def test_a_definition_is_one_click_away_and_is_that_of_the_glossary(
    browser: Browser, at: Scene
) -> None:
    assert WORDS.read_text() == words(), "python -m tests.support.console_words"
    known = json.loads(words())
    async with opened(browser, at.url) as page:
        await rests(page, "overview")
        asked = await page.get_by_role("button", name=re.compile("^What does")).evaluate_all(
            "(all) => all.map((b) => b.getAttribute('aria-label').match(/“(.*)”/)[1])"
        )
        assert len(asked) >= 15
        assert set(asked) <= set(known)
        await page.get_by_role("button", name="What does “time to proof” mean?").first.click()
        await expect(page.get_by_role("dialog")).to_contain_text(known["time to proof"])


async def test_every_question_of_every_view_has_an_answer() -> None:
    known = json.loads(words())
    folder = WORDS.parent
    terms: set[str] = set()
    for file in folder.glob("*.js"):
        terms |= set(re.findall(r'ask\("([^"]+)"\)', file.read_text()))
    assert terms
    assert terms <= set(known)


# --- what the views show -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        ([5, 0, 3, 4], "≤ 35.0 s"),
        ([3, 4], "not known"),
        ([5, None, 0, None], "–"),
        ([3, 0], "–"),
    ],
)
async def test_the_overview_says_how_old_what_waits_may_be(
    browser: Browser, at: Scene, queue: list[int | None], said: str
) -> None:
    nothing = {"seconds": 10, "outcomes": {}, "end_to_end": [0], "queued": [0], "commits": [0], "gauges": {}}
    end = int(time.time()) // 10 * 10
    samples = [{**nothing, "at": end - 10 * n, "queue": one} for n, one in enumerate(reversed(queue))]

    async def answer(route: Route) -> None:
        await route.fulfill(json={"bounds": [1.0], "samples": samples[::-1]})

    assert f"const READ_EVERY = {QUEUES_EVERY:.0f};" in (WORDS.parent / "overview.js").read_text()
    async with opened(browser, f"{at.url}#/topics") as page:
        await page.route("**/v1/history*", answer)
        await page.evaluate("location.hash = '#/'")
        tile = page.locator(".tile").filter(has_text="Oldest of them")
        await expect(tile.locator("dd")).to_have_text(said)


async def test_the_overview_says_how_it_is_and_draws_the_last_hour(browser: Browser, at: Scene) -> None:
    async with opened(browser, at.url) as page:
        await rests(page, "overview")
        await expect(page.locator("#ready")).to_have_text("healthy")
        await expect(page.locator(".health")).to_have_text(re.compile("^Healthy: pushes are taken. Up for "))
        await expect(page.locator(".tile").first).to_contain_text("4")
        await expect(page.get_by_role("row", name=re.compile("^n1 alive"))).to_contain_text("100 %")
        plots = page.get_by_role("img", name=re.compile("over the last hour"))
        assert await plots.count() >= 5
        await expect(plots.first).to_have_attribute("aria-label", re.compile("received [0-9]"))


async def test_what_holds_the_bridge_back_is_the_first_sentence(browser: Browser) -> None:
    parts = Parts()
    parts.causes.append("database: the database is unavailable")
    async with ops(parts) as running, opened(browser, running.url) as page:
        await expect(page.locator(".health")).to_have_text(
            "Not healthy, so no pushes are taken: database: the database is unavailable."
        )
        await expect(page.locator("#ready")).to_have_text("not ready")


async def test_the_last_audit_names_each_check_and_what_it_found(browser: Browser) -> None:
    parts = Parts(desk=FakeDesk())
    parts.drift, parts.audited_at = dict.fromkeys(CHECKS, 0), parts.clock.time()
    async with ops(parts) as running:
        async with opened(browser, f"{running.url}/#/record") as page:
            await expect(page.get_by_text("Everything adds up.")).to_be_visible()
            await expect(page.get_by_role("region", name="Checks").locator("tbody tr")).to_have_count(
                len(CHECKS)
            )
            await expect(page.get_by_text("Nobody has done anything by hand.")).to_be_visible()
            await page.evaluate(axe())
            assert await violations(page) == []
        parts.drift["receipts"] = 3
        async with opened(browser, f"{running.url}/#/record") as page:
            await expect(page.get_by_text(f"1 of {len(CHECKS)} checks found something.")).to_be_visible()
            await expect(page.get_by_role("row", name=re.compile("^receipts 3"))).to_be_visible()


async def test_the_page_asks_for_the_same_at_most_every_two_seconds(browser: Browser) -> None:
    async with ops(Parts()) as running, opened(browser, running.url) as page:
        asked: dict[str, list[float]] = {}
        clock = asyncio.get_running_loop().time
        page.on("request", lambda r: asked.setdefault(r.url.partition("?")[0], []).append(clock()))
        async with asyncio.timeout(30):
            while len(asked.get(f"{running.url}/status", [])) < 3:
                await asyncio.sleep(0.1)
        gaps = [b - a for times in asked.values() for a, b in itertools.pairwise(times)]
        assert min(gaps) > 2.0


@pytest.mark.parametrize(
    ("field", "text", "found"),
    [
        ("Anything", "offline-1", ["offline-1"]),
        ("Push id", "kept-1", ["kept-1"]),
        ("User", "u9", ["kept-1", "offline-1"]),
        ("Event", MARKUP, ["marked"]),
        ("Topic", "news.local", ["score", "score"]),
        ("Tenant", "shop", ["offline-1"]),
        ("Trace id", TRACE, ["traced"]),
        ("Anything", TRACE, ["traced"]),
    ],
)
async def test_a_push_is_found_by(
    browser: Browser, at: Scene, field: str, text: str, found: list[str]
) -> None:
    async with opened(browser, f"{at.url}#/search") as page:
        await page.get_by_label("Search for").select_option(field)
        await page.get_by_label("Exactly this").fill(text)
        await page.get_by_role("button", name="Search").click()
        await expect(page.get_by_text(f"{len(found)} found")).to_be_visible()
        links = page.locator(".rows .row .cell:nth-child(2) a")
        assert sorted(await links.all_inner_texts()) == found


async def test_an_event_that_is_markup_is_shown_as_text(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/search?field=push_id&q=marked") as page:
        await expect(page.get_by_role("cell", name=MARKUP)).to_be_visible()
        await page.goto(f"{at.url}#/user/u1")
        await expect(page.get_by_role("cell", name=MARKUP)).to_be_visible()
        await page.goto(f"{at.url}#/push/marked")
        await expect(page.locator(".timeline")).to_contain_text(MARKUP)
        assert await page.locator("main img").count() == 0


async def test_the_story_of_a_push_has_its_steps_and_says_who_was_responsible(
    browser: Browser, at: Scene
) -> None:
    async with opened(browser, f"{at.url}#/push/order-7-shipped") as page:
        steps = page.locator(".timeline li > b")
        await expect(steps).to_have_text(["published", "taken", "written", "proven", "finished"])
        await expect(page.locator(".verdict")).to_have_text(
            "the application acknowledged the push with an ack frame."
        )
        moment = await page.locator(".timeline time").first.get_attribute("title")
        assert moment is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", moment)
        await page.goto(f"{at.url}#/push/offline-1?user=u9")
        await expect(page.locator(".verdict")).to_contain_text("the user had no session")
        await expect(page.get_by_text("Responsible: the user’s client")).to_be_visible()
        await page.goto(f"{at.url}#/push/never-published")
        await expect(page.get_by_text("The delivery log has no row of this push.")).to_be_visible()


async def test_a_push_to_many_has_a_funnel_and_everyone_it_was_for(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/push/to-many") as page:
        await expect(page.locator(".funnel dd")).to_have_text([str(CROWD), "2", "2", "0"])
        await expect(page.locator(".scroller")).to_have_attribute("aria-rowcount", str(CROWD + 1))
        await page.locator(".scroller").evaluate("(box) => { box.scrollTop = box.scrollHeight; }")
        await page.locator(".rows .row").last.get_by_role("link", name="to-many").click()
        await expect(page.locator(".timeline")).to_be_visible()
        await expect(page.get_by_text(f"All {CROWD} users of this push")).to_be_visible()


async def test_the_page_of_a_user_has_sessions_what_is_kept_and_last_outcomes(
    browser: Browser, at: Scene
) -> None:
    async with opened(browser, f"{at.url}#/user/u1") as page:
        sessions = page.get_by_role("region", name="Sessions").locator("tbody tr")
        await expect(sessions).to_have_count(2)
        await expect(sessions.first).to_contain_text("Firefox on Linux")
        await expect(page.get_by_role("link", name="order-7-shipped")).to_be_visible()
        await page.goto(f"{at.url}#/user/u9")
        await expect(page.get_by_text("1 push, the oldest since")).to_be_visible()
        await expect(page.get_by_text("u9 has no open session.")).to_be_visible()


async def test_topics_have_their_subscribers_and_last_values(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/topics") as page:
        await page.get_by_role("link", name="news.local").click()
        await expect(page.get_by_text("2 users in 2 sessions are subscribed.")).to_be_visible()
        await expect(page.get_by_role("cell", name='{"home": 2}')).to_be_visible()


@pytest.mark.parametrize(
    ("address", "words_"),
    [
        ("#/search?q=nothing-is-called-so", "No push fits “nothing-is-called-so”."),
        ("#/live?user=nobody", "Waiting for outcomes."),
        ("#/send", "Nothing sent yet."),
        ("#/replay", "No dry run yet."),
        ("#/user/nobody", "The log has no push for them."),
        ("#/topics/nothing.here", "This topic has no last value."),
    ],
)
async def test_where_there_is_nothing_it_says_what_to_do(
    browser: Browser, at: Scene, address: str, words_: str
) -> None:
    async with opened(browser, at.url + address) as page:
        empty = page.locator(".empty", has_text=words_)
        await expect(empty).to_be_visible()
        assert await empty.locator("p").count() >= 2


# --- what it does ------------------------------------------------------------------------------------------


async def test_a_test_push_is_asked_about_once_and_its_outcome_comes_live_too(
    browser: Browser, at: Scene
) -> None:
    async with (
        opened(browser, f"{at.url}#/live?user=u3&reason=pong&event=%23") as tail,
        opened(browser, f"{at.url}#/send?user=u3") as page,
    ):
        await expect(tail.get_by_text("Live.", exact=True)).to_be_visible()
        await page.get_by_role("button", name="Send…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("It goes to user u3")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.locator("main .pill", has_text="received")).to_be_visible()
        await expect(tail.get_by_role("cell", name="received")).to_be_visible()
        await expect(tail.get_by_role("cell", name="u3")).to_be_visible()


async def test_a_dead_letter_is_shown_replayed_and_deleted_and_all_of_it_is_on_record(
    browser: Browser, at: Scene
) -> None:
    async with opened(browser, f"{at.url}#/dead") as page:
        await page.get_by_role("button", name="not-whole").click()
        await expect(page.get_by_role("dialog")).to_contain_text('"id": "not-whole"')
        await page.get_by_role("button", name="Close").click()
        await page.get_by_label("Choose not-whole").check()
        await page.get_by_role("button", name="Replay 1…").click()
        await expect(page.get_by_role("dialog")).to_contain_text("1 letter would be published again")
        await page.get_by_role("button", name="Replay 1", exact=True).click()
        await expect(page.locator("#said")).to_have_text("1 letter published again, 0 kept.")
        await page.get_by_role("button", name="Look again").click()
        await page.get_by_label("Choose not-whole").check()
        await page.get_by_role("button", name="Delete 1…").click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.locator("#said")).to_have_text("1 letter deleted.")
        await page.goto(f"{at.url}#/record")
        done = page.get_by_role("region", name="What people did").locator("tbody tr")
        await expect(done.nth(0)).to_contain_text("dead purge")
        await expect(done.nth(1)).to_contain_text("dead replay")
        await expect(done.nth(1)).to_contain_text("local")


async def test_a_replay_is_a_dry_run_first(browser: Browser, at: Scene) -> None:
    await bridges.publish(at.vhost, bridges.request("u2", "again-1", ttl=3600))
    await bridges.counted(at.database, "push_id = 'again-1' and final", 1)
    async with opened(browser, f"{at.url}#/replay?push=again-1") as page:
        await page.get_by_label("Mark").fill("test")
        await page.get_by_role("button", name="Dry run").click()
        await expect(page.get_by_role("cell", name="can be replayed")).to_be_visible()
        await bridges.counted(at.database, "push_id like 'again-1/%'", 0)
        await page.get_by_role("button", name="Replay 1 push…").click()
        await page.get_by_role("button", name="Replay 1", exact=True).click()
        await expect(page.locator("#said")).to_have_text("1 push replayed.")
        await bridges.counted(at.database, "push_id = 'again-1/replay-test' and outcome = 'received'", 1)


async def test_a_recall_is_of_the_tenants_that_the_push_has(browser: Browser, at: Scene) -> None:
    await bridges.publish(at.vhost, bridges.request("u9", "tenants-1", ttl=3600, tenant="shop"))
    await bridges.counted(at.database, "push_id = 'tenants-1' and outcome = 'stored'", 1)
    async with opened(browser, f"{at.url}#/push/tenants-1") as page:
        await page.get_by_role("button", name="Recall").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Tenants: shop.")
        await page.get_by_role("dialog").get_by_role("button", name="Recall").click()
        await expect(page.locator("#said")).to_have_text("Recalled: 1 row ended, 0 sessions told.")
        await expect(page.locator(".pill", has_text="recalled").first).to_be_visible()


async def test_a_session_is_disconnected_and_a_user_logged_out(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/user/u1") as page:
        await page.get_by_role("row", name=re.compile("news.local")).get_by_role("button").click()
        await page.get_by_role("dialog").get_by_role("button", name="Disconnect").click()
        await expect(page.locator("#said")).to_have_text("1 session closed.")
        sessions = page.get_by_role("region", name="Sessions", exact=True).locator("tbody tr")
        await expect(sessions).to_have_count(1)
        await page.get_by_role("button", name="Revoke tokens…").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(page.locator("#said")).to_have_text("Revoked; 1 session closed.")
        await expect(page.get_by_text("u1 has no open session.")).to_be_visible()


# --- who may, and how much ---------------------------------------------------------------------------------


async def test_it_asks_for_a_credential_and_says_what_that_may_not_do(
    browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    secrets = {scope: f"{scope}-0123456789-abcdefghijklmnopqrst" for scope in ("read", "push")}
    file.write_text("".join(f"may-{scope} {scope} {secret}\n" for scope, secret in secrets.items()))
    async with (
        ops(Parts(desk=FakeDesk()), path=str(file)) as running,
        opened(browser, f"{running.url}/#/dead") as page,
    ):
        secret = page.get_by_label("Secret")
        await expect(secret).to_be_focused()
        await secret.fill("wrong")
        await secret.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("No credential has this secret.")
        await secret.fill(secrets["push"])
        await secret.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("lacks the scope “read”")
        await secret.fill(secrets["read"])
        await secret.press("Enter")
        await expect(page.get_by_text("No dead letters.")).to_be_visible()
        await expect(page.locator("#who")).to_contain_text("may-read")
        await page.goto(f"{running.url}/#/send")
        await expect(page.get_by_text("This needs the scope push.")).to_be_visible()
        await expect(page.get_by_role("button", name="Send…")).to_be_disabled()
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Secret")).to_be_visible()


async def test_ten_thousand_outcomes_are_shown_without_a_long_task(browser: Browser) -> None:
    parts = Parts(desk=FakeDesk())
    async with ops(parts) as running, opened(browser, f"{running.url}/#/live") as page:
        await expect(page.get_by_text("Live.", exact=True)).to_be_visible()
        await page.evaluate(
            """() => { window.long = []; new PerformanceObserver((list) => window.long.push(
            ...list.getEntries().map((e) => e.duration))).observe({ type: 'longtask' }); }"""
        )
        for portion in range(20):
            for n in range(500):
                parts.feed.on_outcome(timed_row(f"p{portion * 500 + n}"))
            await asyncio.sleep(0.05)
        await expect(page.locator(".scroller")).to_have_attribute("aria-rowcount", "10001")
        assert await page.locator(".rows .row").count() < 60
        await page.locator(".scroller").evaluate(
            """async (box) => { for (let y = 0; y < box.scrollHeight; y += 9000) {
            box.scrollTop = y; await new Promise(requestAnimationFrame); } box.scrollTop = box.scrollHeight; }"""
        )
        await expect(page.get_by_role("link", name="p0", exact=True)).to_be_visible()
        longest = max(await page.evaluate("window.long"), default=0.0)
        # A frame is 16 ms, and a person notices 100; this machine is shared.
        assert longest < 400, longest


async def test_pages_of_a_search_follow_one_another(browser: Browser, at: Scene) -> None:
    async with opened(browser, f"{at.url}#/search") as page:
        await expect(page.locator(".scroller")).to_have_attribute("aria-rowcount", "51")
        await page.get_by_role("button", name="Show more").click()
        every = len(await bridges.rows(at.database))
        await expect(page.locator(".scroller")).to_have_attribute("aria-rowcount", str(every + 1))
        await expect(page.get_by_role("button", name="Show more")).to_have_count(0)
