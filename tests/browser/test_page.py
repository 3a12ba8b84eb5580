"""The demo page in a real browser, against an ops port and a WebSocket port that the test plays itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from bridge.adapters.amqp.producer import Producer
from bridge.core.errors import BrokerUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.ports.plugins import SessionInfo
from bridge.ops.outcome_feed import BACKLOG_ROWS
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.ops import FakePublisher, Parts, ops, receipt
from tests.support.rows import timed_row
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Deadlines, not waits: nothing takes that long unless it never comes.
expect.set_options(timeout=15_000)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


class Stage(FakePublisher):
    """A bridge of a few lines: what is pushed goes to the sockets of its user, and comes to a good end."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.sockets: dict[ServerConnection, SessionInfo] = {}
        self.offered: list[Sequence[str]] = []
        self.acks: list[str] = []
        self.copies = 1
        self.complete = True

    async def publish(
        self, body: bytes, *, push_id: str, headers: Mapping[str, object], app_id: str = ""
    ) -> None:
        await super().publish(body, push_id=push_id, headers=headers, app_id=app_id)
        await self.push(json.loads(body))

    async def push(self, request: dict[str, object]) -> None:
        push_id = str(request["id"])
        to = request["to"]
        assert isinstance(to, dict)
        reached = [(s, i.user) for s, i in self.sockets.items() if to.get("all") or i.user == to["user"]]
        for socket, user in reached:
            for _ in range(self.copies):
                await socket.send(json.dumps({"type": "push", **request}))
            self.parts.feed.on_outcome(timed_row(push_id, user, Outcome.PENDING, Reason.AWAITING_PROOF))
            if request["confirm"] != "acked":
                self.parts.feed.on_outcome(timed_row(push_id, user))
        if not reached:
            user = str(to.get("user", ""))
            self.parts.feed.on_outcome(timed_row(push_id, user, Outcome.OFFLINE, Reason.NO_SESSION))

    async def session(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        offered = [p.strip() for p in socket.request.headers["Sec-WebSocket-Protocol"].split(",")]
        self.offered.append(offered)
        user = offered[1].removeprefix("bridge.token.token-of.").removesuffix(".x")
        session = f"s{len(self.offered)}"
        self.sockets[socket] = SessionInfo(session, user, "bridge.v1.json", self.parts.clock.time())
        self.parts.sessions[:] = self.sockets.values()
        welcome = {"type": "welcome", "session": session, "user": user, "complete": self.complete}
        await socket.send(json.dumps(welcome))
        try:
            async for message in socket:
                frame = json.loads(message)
                assert frame["type"] == "ack"
                self.acks.append(frame["id"])
                self.parts.feed.on_outcome(timed_row(frame["id"], user, Outcome.ACKED, Reason.ACK_FRAME))
        except ConnectionClosed:
            pass
        finally:
            del self.sockets[socket]
            self.parts.sessions[:] = self.sockets.values()


@dataclass
class Played:
    """A stage that is set."""

    parts: Parts
    stage: Stage
    url: str
    token: str = ""

    @property
    def page(self) -> str:
        """Where the demo page is."""
        return f"{self.url}/demo"


@asynccontextmanager
async def played(token: str = "", *, path: str = "", dev: bool = True) -> AsyncIterator[Played]:
    parts = Parts(dev=dev)
    parts.publisher = stage = Stage(parts)
    async with (
        serve(stage.session, "127.0.0.1", 0, subprotocols=["bridge.v1.json"]) as server,  # type: ignore[list-item]
        ops(parts, token=token, path=path) as running,
    ):
        parts.ws_port = next(iter(server.sockets)).getsockname()[1]
        yield Played(parts, stage, running.url, token)


@pytest_asyncio.fixture(loop_scope="module")
async def play() -> AsyncIterator[Played]:
    async with played() as play:
        yield play


async def connect(page: Page, user: str) -> None:
    await page.get_by_label("User", exact=True).fill(user)
    await page.get_by_role("button", name="Connect").click()
    await expect(page.locator("#connection")).to_have_text(f"Connected as {user}.")


async def push(page: Page, to: str, data: str, confirm: str = "received") -> None:
    await page.get_by_label("Which user").fill(to)
    await page.get_by_label("Data").fill(data)
    await page.get_by_label("Proof wanted").select_option(confirm)
    await page.get_by_role("button", name="Push", exact=True).click()


async def test_a_push_appears_with_its_data_and_the_proof_that_it_came(
    browser: Browser, play: Played
) -> None:
    async with opened(browser, play.page) as page:
        await expect(page.locator("#ready")).to_have_text("ready")
        await expect(page.locator("#who")).to_have_text("n1, version 1.2.3")
        await connect(page, "alice")
        assert play.stage.offered == [["bridge.v1.json", "bridge.token.token-of.alice.x"]]
        await push(page, "alice", '{"text": "Hello!"}')
        entry = page.locator("#pushes > li")
        await expect(entry).to_have_count(1)
        await expect(entry.locator(".data")).to_have_text('{"text":"Hello!"}')
        await expect(entry.locator(".outcome")).to_have_text("received")
        await expect(entry.locator(".meaning")).to_contain_text("the peer answered a ping")
        await expect(entry.locator(".facts")).to_contain_text("4.0 ms from publisher to proof")
        await expect(entry.locator(".facts")).to_contain_text("to this screen")
        await expect(entry.locator(".track li.done")).to_have_count(2)


async def test_it_acknowledges_what_it_has_shown_unless_told_not_to(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await push(page, "alice", "1", "acked")
        entry = page.locator("#pushes > li").first
        await expect(entry.locator(".outcome")).to_have_text("acked")
        await expect(entry.locator(".track li.done")).to_have_count(3)
        await page.get_by_label("Acknowledge").uncheck()
        await push(page, "alice", "2", "acked")
        await expect(entry.locator(".outcome")).to_have_text("pending")
        assert len(play.stage.acks) == 1


async def test_a_push_to_somebody_who_is_not_there_says_so(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await push(page, "nobody", "1")
        entry = page.locator("#pushes > li")
        await expect(entry.locator(".outcome")).to_have_text("offline")
        await expect(entry.locator(".meaning")).to_contain_text("no_session: the user had no session")


async def test_a_push_to_everyone_becomes_one_entry_for_each_user(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as one, opened(browser, play.page) as two:
        await connect(one, "alice")
        await connect(two, "bob")
        await one.get_by_label("To", exact=True).select_option("all")
        await one.get_by_role("button", name="Push", exact=True).click()
        await expect(one.locator("#pushes .to")).to_have_text(["to bob", "to alice"])
        await expect(two.locator("#pushes .data:visible")).to_have_count(1)
        await expect(one.locator("#sessions .user")).to_have_text(["alice (this page)", "bob"])


async def test_a_wrong_push_shows_what_is_wrong_with_it(browser: Browser, play: Played) -> None:
    async def refuse(body: bytes, **_: object) -> Sequence[Mapping[str, object]]:
        wrong = timed_row(
            json.loads(body)["id"],
            "",
            Outcome.REJECTED,
            Reason.INVALID,
            detail="to.user: 1 to 128 characters",
        )
        play.parts.feed.on_outcome(wrong)
        return [receipt(wrong)]

    play.stage.request = refuse  # type: ignore[method-assign]
    async with opened(browser, play.page) as page:
        await push(page, "", "1")
        entry = page.locator("#pushes > li")
        await expect(entry).to_have_count(1)
        await expect(entry.locator(".outcome")).to_have_text("rejected")
        await expect(entry.locator(".meaning")).to_contain_text("to.user: 1 to 128 characters")


async def test_markup_in_a_push_is_shown_as_text(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await push(page, "alice", "<img src=x onerror=alert(1)><b>bold</b>")
        data = page.locator("#pushes .data")
        await expect(data).to_have_text("<img src=x onerror=alert(1)><b>bold</b>")
        assert await data.locator("b, img").count() == 0


async def test_a_push_that_comes_twice_is_one_entry_and_the_copy_is_counted(
    browser: Browser, play: Played
) -> None:
    play.stage.copies = 2
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await push(page, "alice", "1")
        await expect(page.locator("#pushes > li")).to_have_count(1)
        await expect(page.locator("#connection")).to_have_text("Connected as alice; 1 duplicate left out.")


async def test_a_push_that_is_withdrawn_is_marked(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await push(page, "alice", "1")
        await push(page, "alice", "2")
        entry = page.locator("#pushes > li")
        await expect(entry).to_have_count(2)
        recalled = await entry.last.get_attribute("data-id")
        (socket,) = play.stage.sockets
        await socket.send(json.dumps({"type": "withdraw", "id": recalled}))
        await expect(entry.last.get_by_text("withdrawn")).to_be_visible()
        await expect(entry.first.get_by_text("withdrawn")).to_be_hidden()


async def test_it_says_when_something_may_be_missing(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await expect(page.get_by_text("Something may be missing")).to_be_hidden()
        play.stage.complete = False
        (socket,) = play.stage.sockets
        await socket.close(1012, "restart")
        await expect(page.get_by_text("Something may be missing")).to_be_visible()
        await page.get_by_role("button", name="Understood").click()
        await expect(page.get_by_text("Something may be missing")).to_be_hidden()


async def test_a_broker_that_is_away_is_said_where_the_button_is(browser: Browser, play: Played) -> None:
    play.stage.error = BrokerUnavailable("connection refused")
    async with opened(browser, play.page) as page:
        await push(page, "alice", "1")
        await expect(page.locator("#send-problem")).to_have_text(
            "the broker is unavailable: connection refused"
        )
        await expect(page.locator("#pushes .outcome")).to_have_text("failed")


async def test_what_holds_the_bridge_back_is_on_top_of_the_page(browser: Browser, play: Played) -> None:
    play.parts.causes.append("database: the database is unavailable")
    async with opened(browser, play.page) as page:
        await expect(page.locator("#ready")).to_have_text("not ready")
        await expect(page.locator("#causes")).to_have_text("database: the database is unavailable")
        play.parts.causes.clear()
        await expect(page.locator("#ready")).to_have_text("ready")
        await expect(page.locator("#causes")).to_be_hidden()


async def test_a_flood_is_cut_to_what_a_person_can_read_and_the_page_says_what_is_missing(
    browser: Browser, play: Played
) -> None:
    async with opened(browser, play.page) as page:
        await expect(page.locator("#stream")).to_have_text("Outcomes of everyone, live.")
        for i in range(BACKLOG_ROWS + 7):
            play.parts.feed.on_outcome(timed_row(f"p{i}"))
        await expect(page.locator("#stream")).to_have_text("This page is behind: 7 outcomes left out.")
        await expect(page.locator("#pushes > li")).to_have_count(200)
        await expect(page.locator("#pushes .id").first).to_have_text(f"p{BACKLOG_ROWS - 1}")


async def test_it_comes_back_by_itself_after_a_restart(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        (socket,) = play.stage.sockets
        bye = {"type": "bye", "code": 1012, "reason": "restart", "retry_after": 3}
        await socket.send(json.dumps(bye))
        await socket.close(1012, "restart")
        await expect(page.locator("#connection")).to_contain_text("closed with 1012 restart")
        await expect(page.locator("#connection")).to_have_text("Connected as alice.")
        assert len(play.stage.offered) == 2


async def test_a_session_that_was_revoked_does_not_come_back(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        (socket,) = play.stage.sockets
        await socket.close(4403, "revoked")
        await expect(page.locator("#connection")).to_contain_text("ended this session")
        await expect(page.get_by_role("button", name="Connect")).to_be_visible()


async def test_disconnecting_ends_the_session(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await page.get_by_role("button", name="Disconnect").click()
        await until(lambda: not play.stage.sockets)
        await expect(page.locator("#connection")).to_have_text("Not connected.")


async def test_the_page_asks_for_the_ops_token_and_then_works(browser: Browser) -> None:
    async with played("s3cret") as play, opened(browser, play.page) as page:
        await expect(page.locator("#ready")).to_have_text("locked")
        await page.get_by_label("ops token").fill("wrong")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#login-problem")).to_have_text("That is not the token.")
        await page.get_by_label("ops token").fill("s3cret")
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#login")).to_be_hidden()
        await connect(page, "alice")
        await push(page, "alice", "1")
        await expect(page.locator("#pushes .outcome")).to_have_text("received")
        await page.reload()
        await expect(page.locator("#ready")).to_have_text("ready")


async def test_the_page_says_what_a_token_may_not_do(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    secrets = {scope: f"{scope}-0123456789-abcdefghijklmnopqrst" for scope in ("read", "push")}
    file.write_text("".join(f"may-{scope} {scope} {secret}\n" for scope, secret in secrets.items()))
    async with played(path=str(file), dev=False) as play, opened(browser, play.page) as page:
        await page.get_by_label("ops token").fill(secrets["push"])
        await page.get_by_role("button", name="Use it").click()
        lacks = "This token may not do that: it lacks the scope “{}”."
        await expect(page.locator("#login-problem")).to_have_text(lacks.format("read"))
        await page.get_by_label("ops token").fill(secrets["read"])
        await page.get_by_role("button", name="Use it").click()
        await expect(page.locator("#login")).to_be_hidden()
        await push(page, "alice", "1")
        await expect(page.locator("#send-problem")).to_have_text(lacks.format("push"))


async def test_outside_of_development_a_token_is_pasted(browser: Browser) -> None:
    async with played(dev=False) as play, opened(browser, play.page) as page:
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#connection")).to_contain_text("A token is needed")
        await page.locator("#token").fill("token-of.carol.x")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#connection")).to_have_text("Connected as carol.")
        await expect(page.locator("#scope")).to_have_value("mine")


async def test_of_one_user_only_that_users_pushes_are_shown_and_those_sent_from_here(
    browser: Browser, play: Played
) -> None:
    async def wait(body: bytes, **_: object) -> Sequence[Mapping[str, object]]:
        return [receipt(timed_row(json.loads(body)["id"], "bob", Outcome.OFFLINE, Reason.NO_SESSION))]

    play.stage.request = wait  # type: ignore[method-assign]
    async with opened(browser, play.page) as page:
        await connect(page, "alice")
        await page.locator("#scope").select_option("mine")
        await expect(page.locator("#stream")).to_have_text("Outcomes of alice, live.")
        play.parts.feed.on_outcome(timed_row("p1", "carol"))
        await push(page, "alice", "1")
        await expect(page.locator("#pushes .to")).to_have_text(["to alice"])
        await push(page, "bob", "1")
        await expect(page.locator("#pushes .to")).to_have_text(["to bob", "to alice"])
        await expect(page.locator("#pushes .outcome").first).to_have_text("offline")


async def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page, viewport={"width": 320, "height": 640}) as page:
        await connect(page, "a" * 128)
        await push(page, "a" * 128, "x" * 3000)
        await expect(page.locator("#pushes .outcome")).to_have_text("received")
        await page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 320


async def test_every_field_has_a_name_and_the_keyboard_is_enough(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await expect(page.locator("#ready")).to_have_text("ready")
        unnamed = await page.evaluate(
            "[...document.querySelectorAll('input, select, textarea')].filter((f) => !f.labels.length).length"
        )
        assert unnamed == 0
        await page.get_by_label("User", exact=True).press("Enter")
        await expect(page.locator("#connection")).to_have_text("Connected as alice.")
        await page.get_by_label("Which user").press("Enter")
        await expect(page.locator("#pushes .outcome")).to_have_text("received")


async def test_the_line_for_the_terminal_is_what_the_form_says(browser: Browser, play: Played) -> None:
    async with opened(browser, play.page) as page:
        await page.get_by_label("Data").fill("it's")
        await page.get_by_label("Kept for").select_option("a minute")
        await page.get_by_text("The same from a terminal").click()
        line = await page.locator("#curl").inner_text()
        command, *arguments = shlex.split(line.replace("\\\n", ""))
        assert command == "curl"
        assert arguments[-1] == f"{play.url}/v1/push?wait=5"
        assert arguments[:3:2] == ["-H", "-d"]
        assert arguments[1] == "Content-Type: application/json"
        assert json.loads(arguments[3]) == {
            "to": {"user": "alice"},
            "event": "message",
            "data": "it's",
            "confirm": "received",
            "ttl": 60,
        }


# --- the whole way: the page, the bridge, RabbitMQ, Postgres --------------------------------------------------


async def test_from_the_page_through_the_broker_to_the_page_and_the_delivery_log(
    browser: Browser, vhost: str, database: str, tmp_path: Path
) -> None:
    began = datetime.now(UTC)
    async with (
        bridges.bridge(vhost, database, dev=True) as bridge,
        opened(browser, f"http://127.0.0.1:{bridge.ops_port}/demo") as page,
    ):
        await expect(page.locator("#ready")).to_have_text("ready")
        await connect(page, "alice")
        newest = page.locator("#pushes > li").first

        await push(page, "alice", '{"text":"Hello!"}')
        await expect(newest.locator(".outcome")).to_have_text("received")
        await expect(newest.locator(".data")).to_have_text('{"text":"Hello!"}')
        await expect(newest.locator(".facts")).to_contain_text("ms from publisher to proof")

        await push(page, "alice", "seen by a person", "acked")
        await expect(newest.locator(".outcome")).to_have_text("acked")

        await push(page, "nobody", "1")
        await expect(newest.locator(".outcome")).to_have_text("offline")

        await push(page, "", "1")
        await expect(newest.locator(".outcome")).to_have_text("rejected")
        await expect(newest.locator(".meaning")).to_contain_text("to.user")

        async with Producer.connect(vhost) as producer:
            await producer.publish(json.dumps(bridges.request("alice", "from-a-backend")).encode())
        await expect(newest.locator(".id")).to_have_text("from-a-backend")
        await expect(newest.locator(".outcome")).to_have_text("received")

        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.locator("#session-count")).to_have_text("0")

        shown = [
            (await entry.get_attribute("data-id"), await entry.get_attribute("data-outcome"))
            for entry in await page.locator("#pushes > li").all()
        ]
        await page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(shown) == 5
    logged = [row for row in await bridges.rows(database) if row["final"]]
    assert all(began <= row["published_at"] <= row["taken_at"] for row in logged)
    assert sorted(shown) == sorted((row["push_id"], row["outcome"]) for row in logged)


async def test_receipts_come_back_over_http_for_each_user_of_a_push(vhost: str, database: str) -> None:
    async with (
        bridges.bridge(vhost, database, dev=True) as bridge,
        aiohttp.ClientSession(f"http://127.0.0.1:{bridge.ops_port}") as client,
    ):
        body = {"id": "p1", "to": {"users": ["a", "b"]}, "data": 1}
        async with client.post("/v1/push?wait=10", json=body) as answer:
            assert answer.status == 200
            said = await answer.json()
        assert said["complete"] is True
        assert sorted(r["user_id"] for r in said["receipts"]) == ["a", "b"]
        assert {r["outcome"] for r in said["receipts"]} == {"offline"}
        async with client.post("/v1/push", data=b"{", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 422
            (rejected,) = (await answer.json())["receipts"]
        assert (rejected["outcome"], rejected["reason"]) == ("rejected", "not_json")
        async with client.get("/metrics") as answer:
            page = await answer.text()
        assert 'bridge_outcomes_total{outcome="offline",reason="no_session"} 2.0' in page
        assert 'bridge_outcomes_total{outcome="rejected",reason="not_json"} 1.0' in page
        assert "bridge_ready 1.0" in page
