"""Tabs of one site that share a connection: each has each push once, whichever of them has the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route

from tests.browser.test_client import Peer, Script, acked, jwt, kept, phase, scripted, told
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.proxies import plain_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = """([url, token, more]) => import("./bridge-client.js").then(({ connect }) => {
    window.got = [];
    window.hold = null;
    window.client = connect({ url, token: () => token, tabs: "shared", autoAck: true, ...more,
        async onPush(push) {
            pushes[push.id] = push;
            got.push(push.id);
            await hold;
        },
        onGap: () => tell("gap"),
        onState: ({ phase, code, reason }) => tell(phase, ...(phase === "closed" ? [code, reason] : [])),
        onError: ({ message }) => tell("error", message) });
})"""

# In tabs opened from now on: what the leader says of its state comes half a second late.
LATE = """Object.defineProperty(BroadcastChannel.prototype, "onmessage", {
    set(hear) {
        this.addEventListener("message", (event) => {
            if (event.data.kind === "state") setTimeout(hear, 500, event);
            else hear(event);
        });
    },
});"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def script() -> AsyncIterator[Script]:
    async with scripted() as script:
        yield script


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, script: Script) -> AsyncIterator[Page]:
    async with opened(browser, f"http://{script.url}/") as page:
        yield page


async def another(page: Page, script: Script) -> Page:
    """A second tab of the same site."""
    tab = await page.context.new_page()
    await tab.goto(f"http://{script.url}/")
    return tab


async def start(tab: Page, url: str, token: str | None = None, **more: object) -> None:
    await tab.evaluate(START, [url, token or jwt("alice"), more])


async def is_open(tab: Page) -> None:
    await phase(tab, "open")
    await tab.evaluate("told.length = 0")


async def two(page: Page, script: Script, heartbeat: float = 10) -> tuple[Peer, Page]:
    """The page leads, and another tab follows it; the connection, and that tab."""
    await start(page, f"ws://{script.url}/ws")
    peer = await script.peer()
    await peer.send(type="welcome", session="s1", user="alice", complete=True, heartbeat=heartbeat)
    await is_open(page)
    tab = await another(page, script)
    await start(tab, f"ws://{script.url}/ws")
    await is_open(tab)
    assert script.nobody
    return peer, tab


async def got(tab: Page, *ids: str) -> None:
    """Wait until the tab has got so many pushes; they must be these, each once, in this order."""
    await tab.wait_for_function("count => got.length >= count", arg=len(ids))
    assert await tab.evaluate("got") == list(ids)


async def nothing_else(peer: Peer, page: Page) -> None:
    """The library has said nothing that the test has not read: it publishes, and that comes next."""
    await page.evaluate("() => { client.publish('mark').catch(() => {}); }")
    assert (await peer.whole_frame())["type"] == "publish"


async def test_each_tab_gets_each_push_and_the_first_that_has_finished_acknowledges_it_once(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await page.evaluate("() => { hold = new Promise((done) => { window.release = done; }); }")
    await peer.push("p1", "p2")
    await got(tab, "p1", "p2")
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p2")], "the other tab has them"
    await page.evaluate("release()")
    await got(page, "p1", "p2")
    await nothing_else(peer, page)
    await peer.push("p2", "p3")
    assert await peer.frame() == acked("p2"), "the bridge asks for its proof again"
    await got(page, "p1", "p2", "p3")
    await got(tab, "p1", "p2", "p3")
    assert await page.evaluate("client.duplicates") == await tab.evaluate("client.duplicates") == 1


async def test_nothing_is_acknowledged_while_no_tab_has_finished(page: Page, script: Script) -> None:
    peer, tab = await two(page, script)
    for one in (page, tab):
        await one.evaluate("() => { hold = new Promise((done) => { window.release = done; }); }")
    await peer.push("p1")
    await got(page, "p1")
    await got(tab, "p1")
    await nothing_else(peer, tab)
    await tab.evaluate("release()")
    assert await peer.frame() == acked("p1")


async def test_a_tab_takes_over_where_it_is_and_leaves_out_what_it_has_had(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await peer.push("p1", "p2")
    await got(tab, "p1", "p2")
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p2")]
    third = await another(page, script)
    await start(third, f"ws://{script.url}/ws")
    await is_open(third)
    await page.close()
    again = await script.peer()
    assert again.last == "p2"
    await again.send(type="welcome", session="s2", user="alice", complete=True)
    await again.push("p2", "p3")
    await got(tab, "p1", "p2", "p3")
    await got(third, "p3")
    for one in (tab, third):
        assert (await phase(one, "open"))["session"] == "s2"
        assert await one.evaluate("told") == [["connecting"], ["open"]]
        assert await one.evaluate("client.duplicates") == 1, "a new tab begins where the others are"


async def test_close_gives_the_connection_to_another_tab_and_an_end_by_the_bridge_is_one_for_all(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await page.evaluate("client.close()")
    await told(page, ("closed", 1000, "closed"))
    assert await peer.closed() == 1000
    again = await (await script.peer()).welcome()
    await is_open(tab)
    await start(page, f"ws://{script.url}/ws")
    await is_open(page)
    await again.close(4403, "revoked")
    for one in (page, tab):
        await one.wait_for_function("told.length === 2")
        ((what, code, reason), (error, why)) = await one.evaluate("told")
        assert (what, code, reason, error) == ("closed", 4403, "revoked", "error")
        assert why.startswith("The session was revoked (4403)")
    assert script.nobody


async def test_an_end_for_all_tabs_is_one_even_where_a_tab_hears_of_it_late(
    page: Page, script: Script
) -> None:
    await page.context.add_init_script(LATE)
    peer, tab = await two(page, script)
    await peer.close(4403, "revoked")
    await tab.wait_for_function("told.length")
    assert (await tab.evaluate("told"))[0] == ["closed", 4403, "revoked"], "it did not take over first"
    assert script.nobody
    await start(page, f"ws://{script.url}/ws", jwt("alice"))
    await (await script.peer()).welcome()
    await is_open(page)


async def test_a_break_and_a_gap_are_those_of_all_tabs(page: Page, script: Script) -> None:
    peer, tab = await two(page, script)
    await peer.close()
    again = await script.peer()
    await again.welcome(complete=False)
    expected = (("waiting",), ("connecting",), ("open",), ("gap",))
    await told(page, *expected)
    await told(tab, *expected)
    await again.welcome(complete=False)
    await told(page, ("gap",))
    await told(tab, ("gap",))
    assert script.nobody


async def test_answers_come_to_the_tab_that_asked_and_a_topic_ends_with_its_last_tab(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await tab.evaluate(
        "() => { client.publish('typing', 1, { ref: 'mine' }).then(() => tell('published')); }"
    )
    assert await peer.whole_frame() == {"type": "publish", "event": "typing", "data": 1, "ref": "mine"}
    code = "client.publish('typing', 1, { ref: 'mine' }).catch(({ code }) => code)"
    assert await page.evaluate(code) == "busy"
    await peer.send(type="ok", ref="mine")
    await told(tab, ("published",))
    for one in (page, tab):
        await one.evaluate("() => { client.subscribe('room.7').then(() => tell('subscribed')); }")
        frame = await peer.whole_frame()
        assert frame["type"] == "subscribe"
        await peer.send(type="ok", ref=frame["ref"])
        await told(one, ("subscribed",))
    await page.evaluate("client.unsubscribe('room.7')")
    await tab.evaluate("() => { client.unsubscribe('room.7').then(() => tell('over')); }")
    frame = await peer.whole_frame()
    assert frame["type"] == "unsubscribe", "the tab is the last one"
    await peer.send(type="ok", ref=frame["ref"])
    await told(tab, ("over",))
    await peer.push("p1")
    await got(tab, "p1")
    await tab.evaluate("() => { pushes.p1.ack().then((noted) => tell(noted)); }")
    assert await peer.frame() == acked("p1")
    await peer.send(type="ok", ref=(await peer.whole_frame())["ref"])
    await told(tab, (True,))


async def test_tabs_of_different_users_share_nothing(page: Page, script: Script) -> None:
    await two(page, script)
    tab = await another(page, script)
    await start(tab, f"ws://{script.url}/ws", jwt("bob"))
    peer = await (await script.peer()).welcome(user="bob")
    await is_open(tab)
    await peer.push("b1")
    await got(tab, "b1")
    assert await page.evaluate("got") == []


@pytest.mark.parametrize("missing", ["locks", "BroadcastChannel"])
async def test_without_the_means_each_tab_has_a_connection_of_its_own(
    page: Page, script: Script, missing: str
) -> None:
    hide = "Object.defineProperty(navigator, 'locks', { value: undefined })"
    await page.evaluate(hide if missing == "locks" else "delete window.BroadcastChannel")
    tab = await another(page, script)
    for one in (tab, page):
        await start(one, f"ws://{script.url}/ws")
        await (await script.peer()).welcome()
        await is_open(one)


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_without_the_file_for_it_each_tab_has_a_connection_of_its_own(
    page: Page, script: Script, how: str
) -> None:
    asked = 0

    async def answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        if how == "refused":
            await route.abort()

    await page.context.route("**/bridge-client-tabs.js", answer)
    tab = await another(page, script)
    for one in (page, tab):
        await start(one, f"ws://{script.url}/ws", timing={"welcome": 0.5})
        peer = await (await script.peer()).welcome()
        await is_open(one)
        await peer.push("p1")
        await got(one, "p1")
        assert await peer.frame() == acked("p1")
        assert await one.evaluate("told") == [], "nobody is told"
    assert asked == 2
    await page.context.unroute_all()  # which lets those go on that wait
    if how == "silent":
        await page.wait_for_function(
            "performance.getEntriesByName(`${location.origin}/bridge-client-tabs.js`).length"
        )
        await peer.push("p2")
        await got(tab, "p1", "p2")
        assert await page.evaluate("got") == ["p1"], "a file that comes late shares nothing"


@pytest.mark.parametrize("noticed_by", ["a look", "silence"])
async def test_a_tab_that_has_the_connection_and_answers_nobody_loses_it(
    page: Page, script: Script, noticed_by: str
) -> None:
    peer, tab = await two(page, script, heartbeat=10 if noticed_by == "a look" else 3)
    await peer.push("p1")
    await got(tab, "p1")
    # It is busy for longer than a tab waits for an answer, or for a frame.
    stuck = asyncio.create_task(
        page.evaluate("() => { const until = Date.now() + 12_000; while (Date.now() < until); }")
    )
    await asyncio.sleep(0.2)
    if noticed_by == "a look":
        await tab.evaluate("() => { document.dispatchEvent(new Event('resume')); }")
    again = await script.peer()
    assert again.last == "p1"
    await again.send(type="welcome", session="s2", user="alice", complete=True)
    await again.push("p2")
    await got(tab, "p1", "p2")
    assert not stuck.done()
    await stuck
    await page.wait_for_function("told.some(([what]) => what === 'gap')")
    assert (await phase(page, "open"))["session"] == "s2"
    assert await peer.closed() == 1000
    await again.push("p3")
    await got(tab, "p1", "p2", "p3")
    await page.wait_for_function("got.at(-1) === 'p3'")
    assert await page.evaluate("got.length === new Set(got).size")


async def test_tabs_that_start_together_are_one_connection(page: Page, script: Script) -> None:
    tabs = [page, *[await another(page, script) for _ in range(3)]]
    await asyncio.gather(*[start(tab, f"ws://{script.url}/ws") for tab in tabs])
    peer = await (await script.peer()).welcome()
    for tab in tabs:
        await is_open(tab)
    await peer.push("p1")
    for tab in tabs:
        await got(tab, "p1")
    assert script.nobody


async def test_a_tab_that_comes_in_an_outage_is_told_of_it_and_open_with_the_others(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await peer.bye(1012, "restart", retry_after=4)
    for one in (page, tab):
        await told(one, ("waiting",))
    late = await another(page, script)
    await start(late, f"ws://{script.url}/ws")
    await told(late, ("connecting",), ("waiting",))
    assert script.nobody, "the bridge has asked for a wait"
    again = await script.peer()
    await again.welcome()
    await again.push("p1")
    for one in (page, tab, late):
        await told(one, ("connecting",), ("open",))
        await got(one, "p1")


async def test_offline_is_offline_in_all_tabs_and_online_brings_all_back(page: Page, script: Script) -> None:
    peer, tab = await two(page, script)
    await page.context.set_offline(True)
    for one in (page, tab):
        assert (await phase(one, "waiting"))["reason"] == "offline"
    await page.context.set_offline(False)
    again = await (await script.peer()).welcome()
    await again.push("p1")
    for one in (page, tab):
        await got(one, "p1")
        await phase(one, "open")
    assert await peer.closed() is not None


async def test_with_storage_the_leader_stores_for_all_and_a_reloaded_tab_begins_where_it_is(
    page: Page, script: Script
) -> None:
    await start(page, f"ws://{script.url}/ws")
    await (await script.peer()).welcome()
    await is_open(page)
    tab = await another(page, script)
    stores = """(args) => {
        window.stored = 0;
        const storage = { getItem: (key) => localStorage.getItem(key),
            setItem: (...entry) => { stored += 1; localStorage.setItem(...entry); } };
        args[2] = { storage };
        return (%s)(args);
    }"""
    await tab.evaluate(stores % START, [f"ws://{script.url}/ws", jwt("alice"), {}])
    await is_open(tab)
    await page.evaluate("client.close()")
    peer = await script.peer()
    await peer.send(type="welcome", session="s1", user="alice", complete=True, heartbeat=10)
    await is_open(tab)
    await page.reload()
    await page.evaluate(stores % START, [f"ws://{script.url}/ws", jwt("alice"), {}])
    await is_open(page)
    await peer.push("p1", "p2")
    await got(page, "p1", "p2")
    await got(tab, "p1", "p2")
    assert await page.evaluate("stored") == 0
    await tab.wait_for_function("stored > 0")
    await page.reload()
    await page.evaluate(stores % START, [f"ws://{script.url}/ws", jwt("alice"), {}])
    await is_open(page)
    await peer.push("p1", "p2", "p3")
    await got(page, "p3")


async def test_tabs_that_go_by_the_cookie_share_a_connection_too(page: Page, script: Script) -> None:
    cookie = START.replace("token: () => token", "tokenBy: 'cookie'")
    await page.evaluate(cookie, [f"ws://{script.url}/ws", None, {}])
    peer = await (await script.peer()).welcome()
    await is_open(page)
    tab = await another(page, script)
    await tab.evaluate(cookie, [f"ws://{script.url}/ws", None, {}])
    await is_open(tab)
    await peer.push("p1")
    await got(page, "p1")
    await got(tab, "p1")
    assert script.nobody


async def test_a_tab_that_takes_over_with_another_users_token_leaves_the_others(
    page: Page, script: Script
) -> None:
    peer, tab = await two(page, script)
    await page.evaluate("client.close()")
    again = await (await script.peer()).welcome()
    await is_open(tab)
    await page.evaluate(
        START.replace("token: () => token", "token: () => tokens.shift()").replace(
            "window.got = []", "window.got = []; window.tokens = token"
        ),
        [f"ws://{script.url}/ws", [jwt("alice"), jwt("bob"), jwt("bob")], {}],
    )
    await is_open(page)
    await tab.evaluate("client.close()")
    bob = await script.peer()
    assert bob.token == jwt("bob"), "who takes over asks for a token"
    await bob.welcome(user="bob")
    await is_open(page)
    await bob.push("b1")
    await got(page, "b1")
    await start(tab, f"ws://{script.url}/ws")
    alice = await (await script.peer()).welcome()
    await is_open(tab)
    await alice.push("a1")
    await got(tab, "a1")
    assert await again.closed() == await peer.closed() == 1000


async def test_only_the_one_way_to_share_is_possible(page: Page) -> None:
    said = """import('/bridge-client.js').then(({ connect }) => {
        try { connect({ onPush() {}, tabs: true }); } catch (error) { return error.message; }
    })"""
    assert await page.evaluate(said) == 'tabs: only "shared" is possible'


# --- with the real bridge --------------------------------------------------------------------------------


async def sessions(database: str, opened: int, closed: int) -> None:
    """Wait until the ledger has so many sessions, and so many of them are closed."""
    async with (
        asyncio.timeout(bridges.SECONDS),
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
    ):
        question = "select count(*), count(closed_at) from session"
        while await (await connection.execute(question)).fetchall() != [(opened, closed)]:
            await asyncio.sleep(0.05)


async def test_four_tabs_are_one_connection_and_when_the_leader_goes_nothing_is_lost_or_doubled(
    page: Page, script: Script, vhost: str, database: str
) -> None:
    async with bridges.bridge(vhost, database) as bridge:
        address, token = f"ws://127.0.0.1:{bridge.ws_port}/ws", bridges.token("alice")
        tabs = [page, *[await another(page, script) for _ in range(3)]]
        for tab in tabs:
            await start(tab, address, token)
            await is_open(tab)
        early = [f"p{n:03}" for n in range(100)]
        await bridges.publish(vhost, *kept(*early))
        for tab in tabs:
            await got(tab, *early)
        await bridges.final_rows(database, 100)
        await sessions(database, 1, 0)

        late = [f"p{n:03}" for n in range(100, 400)]
        publishing = asyncio.create_task(bridges.publish(vhost, *kept(*late)))
        await tabs[1].wait_for_function("got.length > 110")
        await page.close()
        await publishing
        for tab in tabs[1:]:
            await got(tab, *early, *late)
        ends = bridges.endings(await bridges.final_rows(database, 400))
        assert ends == {(push_id, "alice"): ("acked", "ack_frame") for push_id in early + late}
        await sessions(database, 2, 1)
        for tab in tabs[1:]:
            await got(tab, *early, *late)
            assert ["gap"] not in await tab.evaluate("told")
            await tab.evaluate("client.close()")


async def test_leader_after_leader_goes_one_by_a_crash_and_the_last_tab_has_everything_once(
    page: Page, script: Script, vhost: str, database: str
) -> None:
    async with bridges.bridge(vhost, database) as bridge:
        address, token = f"ws://127.0.0.1:{bridge.ws_port}/ws", bridges.token("alice")
        tabs = [await another(page, script) for _ in range(4)] + [page]
        for tab in tabs:
            await start(tab, address, token)
            await is_open(tab)
        ids = [f"p{n:04}" for n in range(1000)]
        publishing = asyncio.create_task(bridges.publish(vhost, *kept(*ids)))
        for n, tab in enumerate(tabs[:-1]):
            await page.wait_for_function("count => got.length > count", arg=150 * (n + 1))
            if n == 1:
                chrome = await tab.context.new_cdp_session(tab)
                crash = asyncio.create_task(chrome.send("Page.crash"))
                await tab.wait_for_event("crash")
                crash.cancel()
            else:
                await tab.close()
        await publishing
        await got(page, *ids)
        ends = bridges.endings(await bridges.final_rows(database, len(ids)))
        assert ends == {(push_id, "alice"): ("acked", "ack_frame") for push_id in ids}
        await got(page, *ids)
        assert ["gap"] not in await page.evaluate("told")
        await page.evaluate("client.close()")


async def test_where_websockets_are_blocked_the_tabs_share_a_stream(
    page: Page, script: Script, vhost: str, database: str
) -> None:
    async with bridges.bridge(vhost, database) as bridge, plain_proxy(bridge.ws_port) as proxy:
        address, token = f"ws://127.0.0.1:{proxy.port}/ws", bridges.token("alice")
        await start(page, address, token)
        await is_open(page)
        tab = await another(page, script)
        await start(tab, address, token)
        await is_open(tab)
        await page.evaluate("() => { hold = new Promise(() => {}); }")
        await bridges.publish(vhost, *kept("p1"), bridges.request("alice", "p2"))
        await got(tab, "p1", "p2")
        await got(page, "p1")
        ends = bridges.endings(await bridges.final_rows(database, 2))
        assert ends == {("p1", "alice"): ("acked", "ack_frame"), ("p2", "alice"): ("received", "pong")}
        assert await tab.evaluate("client.publish('a.b').catch(({ code }) => code)") == "one_way"
        await sessions(database, 1, 0)
        for one in (tab, page):
            await one.evaluate("client.close()")
