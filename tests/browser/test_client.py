"""The browser's client library in a real browser: against a bridge that the test plays, and against the real one."""

from __future__ import annotations

import asyncio
import base64
import http
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aio_pika
import playwright
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from bridge.app import build as app
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.clients import client
from tests.support.proxies import silent_proxy
from tests.support.queues import listening

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB = Path(__file__).parent.parent.parent / "bridge" / "web"
LIBRARY = {f"/{file.name}": file.read_text() for file in WEB.glob("bridge-client*.js")}
"""The library, and what it loads, by path."""
NODE = Path(playwright.__file__).parent / "driver" / "node"
KEPT = 4096
"""Ids of pushes that are done, which the library remembers."""
USERS = 8
"""Users whose memories a page keeps, where its tokens are not always of the same user."""
SAVED_EVERY = 64
"""Pushes after which it stores where it is, while more wait."""

# What the library tells is noted in `told`. Its one timer runs out when the test says so, or, if `impatient`,
# whenever the next try waits for it.
HARNESS = """<!doctype html><title>client</title><link rel="icon" href="data:,"><script type="module">
import { connect } from "./bridge-client.js";
const holds = new Map();
Object.assign(window, {
  told: [], pushes: {}, failing: [], holding: [], tokens: [], timers: [], clock: 0,
  tell(...what) { told.push(what); },
  release(id) { holds.get(id)(); },
  elapse() {
    const timer = timers.findLast((timer) => timer.live);
    timer.live = false;
    timer.then();
    return timer.seconds;
  },
  begin({ impatient = true, quiet = true, tokens, storage, chance, ...options }) {
    if (tokens) window.tokens = tokens;
    window.client = connect({
      ...options,
      ...(tokens && { token: async () => {
        const token = window.tokens.shift();
        tell("token", token ?? null);
        if (token === "broken") throw new Error("no token today");
        return token === "got" ? got : token;
      } }),
      ...(storage && { storage: window[storage] }),
      ...(chance !== undefined && { random: () => chance }),
      async onPush(push) {
        pushes[push.id] = push;
        tell("push", push.id);
        if (holding.includes(push.id)) await new Promise((done) => holds.set(push.id, done));
        if (failing.includes(push.id)) throw new Error(`can't take ${push.id}`);
        if (!quiet) tell("through", push.id);
      },
      async onWithdraw({ id, tenant }) { tell("withdraw", id, ...(tenant ? [tenant] : [])); },
      async onGap() {
        tell("gap");
        if (holding.includes("gap")) await new Promise((done) => holds.set("gap", done));
      },
      onState(state) {
        if (!quiet || state.phase === "closed") tell(state.phase, state.code ?? null, state.reason ?? null);
        if (impatient && state.phase === "waiting") setTimeout(elapse);
      },
      onError(error) { tell("error", error.message); },
      now: () => clock,
      after(seconds, then) {
        const timer = { seconds, then, live: true };
        timers.push(timer);
        return () => { timer.live = false; };
      },
    });
  },
});
</script>"""


def acked(push_id: str, tenant: str | None = None) -> dict[str, str | None]:
    """The library's ack of a push."""
    return {"type": "ack", "id": push_id, "tenant": tenant}


class Peer:
    """One connection of the library, as the test's bridge sees it."""

    def __init__(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.socket = socket
        address = urlsplit(socket.request.path)
        self.path = address.path
        self.query = parse_qs(address.query)
        header = socket.request.headers["Sec-WebSocket-Protocol"]
        self.offered = [entry.strip() for entry in header.split(",")]

    @property
    def last(self) -> str | None:
        return self.query.get("last", [None])[0]

    @property
    def token(self) -> str:
        (entry,) = [entry for entry in self.offered if entry.startswith("bridge.token.")]
        return entry.removeprefix("bridge.token.")

    async def send(self, **frame: object) -> None:
        await self.socket.send(json.dumps(frame))

    async def welcome(self, complete: bool = True, user: str = "alice") -> Peer:
        await self.send(type="welcome", session="s1", user=user, complete=complete)
        return self

    async def push(self, *ids: str, event: str = "message", **more: object) -> None:
        for push_id in ids:
            await self.send(type="push", id=push_id, event=event, data={"n": push_id}, **more)

    async def bye(self, code: int, reason: str, retry_after: float = 0) -> None:
        await self.send(type="bye", code=code, reason=reason, retry_after=retry_after)
        await self.close(code, reason)

    async def close(self, code: int = 1012, reason: str = "restart") -> None:
        await self.socket.close(code, reason)

    async def all_read(self, page: Page) -> None:
        """Wait until the library has read all that was sent: an error is told at once, past what waits. (A pong
        says less: a browser answers pings by itself, before the page has a turn.)"""
        await self.send(type="error", code="mark", message="read")
        await page.wait_for_function(
            """() => {
                const at = told.findIndex(([what, why]) => what === "error" && why.endsWith("(mark)"));
                return at >= 0 && told.splice(at, 1);
            }"""
        )

    async def frame(self) -> object:
        """The next frame of the library, without the `ref` if it is an ack."""
        frame = await self.whole_frame()
        if frame["type"] == "ack":
            frame.pop("ref", None)
        return frame

    async def whole_frame(self) -> dict[str, object]:
        async with asyncio.timeout(bridges.SECONDS):
            frame = json.loads(await self.socket.recv())
        assert isinstance(frame, dict)
        return frame

    async def closed(self) -> int | None:
        """Wait until the library has closed; the code."""
        async with asyncio.timeout(bridges.SECONDS):
            await self.socket.wait_closed()
        return self.socket.close_code


class Script:
    """A bridge that does what the test does with its peers."""

    def __init__(self) -> None:
        self.url = ""
        self.refusing = 0
        """Handshakes to refuse with 401."""
        self.tokens: list[tuple[int, str, str]] = []
        """What /push-token answers, one after the other: status, content type, body."""
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        path = urlsplit(request.path).path
        if path == "/ws":
            if not self.refusing:
                return None
            self.refusing -= 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no\n")
        if path == "/push-token":
            status, content_type, body = self.tokens.pop(0)
            response = connection.respond(http.HTTPStatus(status), body)
            response.headers["Content-Type"] = content_type
            return response
        if path == "/socket":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "nothing here\n")
        script = path in LIBRARY
        response = connection.respond(http.HTTPStatus.OK, LIBRARY.get(path, HARNESS))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = f"text/{'javascript' if script else 'html'}; charset=utf-8"
        return response

    async def session(self, socket: ServerConnection) -> None:
        self._peers.put_nowait(Peer(socket))
        await socket.wait_closed()

    async def peer(self) -> Peer:
        """The next connection."""
        async with asyncio.timeout(bridges.SECONDS):
            return await self._peers.get()

    @property
    def nobody(self) -> bool:
        """Whether no connection came beyond those that the test has met."""
        return self._peers.empty()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@asynccontextmanager
async def scripted(script: Script | None = None) -> AsyncIterator[Script]:
    script = script or Script()
    async with serve(
        script.session,
        "127.0.0.1",
        0,
        process_request=script.answer,
        subprotocols=["bridge.v1.json"],  # type: ignore[list-item]
        close_timeout=1,
    ) as server:
        script.url = f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        yield script


@pytest_asyncio.fixture(loop_scope="module")
async def script() -> AsyncIterator[Script]:
    async with scripted() as script:
        yield script


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, script: Script) -> AsyncIterator[Page]:
    async with opened(browser, f"http://{script.url}/") as page:
        yield page


def jwt(user: object, n: int = 0, claim: str = "sub") -> str:
    """A token whose user can be read; nobody checks it here."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({claim: user, 'n': n})}.x"


async def begin(page: Page, url: str, **options: object) -> None:
    """Start the library in the page."""
    token = {} if "tokens" in options or options.get("tokenBy") == "cookie" else {"token": jwt("alice")}
    await page.evaluate("begin", {"url": url, **token, **options})


async def met(
    page: Page, script: Script, complete: bool = True, user: str = "alice", **options: object
) -> Peer:
    """Start the library and welcome it."""
    await begin(page, f"ws://{script.url}/ws", **options)
    return await (await script.peer()).welcome(complete, user)


async def told(page: Page, *expected: Sequence[object]) -> None:
    """Wait until the library has told exactly this, and forget it."""
    want = json.dumps([list(item) for item in expected], separators=(",", ":"), ensure_ascii=False)
    try:
        await page.wait_for_function("want => JSON.stringify(told) === want", arg=want, timeout=10_000)
    except playwright.async_api.TimeoutError:
        assert await page.evaluate("told") == [list(item) for item in expected]
        raise
    await page.evaluate("told.length = 0")


async def phase(page: Page, name: str) -> dict[str, object]:
    """Wait until the library is in this phase; its state."""
    await page.wait_for_function("name => client.state.phase === name", arg=name)
    state: dict[str, object] = await page.evaluate("client.state")
    return state


async def ended(page: Page, code: int | None, reason: str, *before: Sequence[object]) -> str:
    """Wait until the library has told, after what it told `before`, that it is the end; why, as `onError` was told
    and as the state says."""
    await page.wait_for_function("client.state.phase === 'closed' && told.at(-1)[0] === 'error'")
    why = await page.evaluate("client.state.error.message")
    await told(page, *before, ("closed", code, reason), ("error", why))
    assert isinstance(why, str)
    return why


def pushes(*ids: str) -> list[tuple[str, str]]:
    return [("push", push_id) for push_id in ids]


# --- publishing ------------------------------------------------------------------------------------------

SAY = """([event, data, more]) => {
    window.said ??= [];
    const place = said.push(null) - 1;
    client.publish(event, data, more)
        .then(() => { said[place] = "ok"; }, ({ code, ref, message }) => { said[place] = [code, ref, message]; });
}"""


async def said(page: Page, place: int) -> Any:
    """How the publish at this place ended, once it has: "ok", or code, ref and message of the error."""
    await page.wait_for_function("place => window.said?.[place]", arg=place)
    return await page.evaluate("place => said[place]", place)


async def test_a_promise_of_publish_is_kept_when_the_bridge_says_ok_to_its_ref(
    page: Page, script: Script
) -> None:
    peer = await met(page, script)
    await phase(page, "open")
    await page.evaluate(SAY, ["chat.said", {"text": "hi"}, {"topic": "room.7"}])
    await page.evaluate(SAY, ["typing", None, {"ref": "mine"}])
    first, second = await peer.frame(), await peer.frame()
    assert isinstance(first, dict)
    ref = first.pop("ref")
    assert first == {"type": "publish", "event": "chat.said", "data": {"text": "hi"}, "topic": "room.7"}
    assert second == {"type": "publish", "event": "typing", "data": None, "ref": "mine"}
    await page.evaluate(SAY, ["typing", None, {"ref": "mine"}])
    assert (await said(page, 2))[0] == "busy", "it is under way"
    await peer.send(type="error", code="forbidden", message="event: no", ref="mine")
    await peer.send(type="ok", ref="of nobody")
    assert await said(page, 1) == ["forbidden", "mine", "not published: event: no (forbidden)"]
    assert await page.evaluate("said[0]") is None
    await peer.send(type="ok", ref=ref)
    assert await said(page, 0) == "ok"
    await page.evaluate(SAY, ["typing", None, {"ref": "mine"}])
    assert await peer.frame() == second, "it may be published again"
    await peer.all_read(page)
    await told(page)


async def test_what_has_no_answer_when_the_connection_breaks_is_unknown_and_without_one_nothing_is_sent(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, impatient=False)
    await phase(page, "open")
    await page.evaluate(SAY, ["chat.said", 1, {"ref": "a"}])
    assert await peer.frame()
    await peer.bye(1012, "restart")
    assert (await said(page, 0))[:2] == ["unknown", "a"]
    await page.evaluate(SAY, ["chat.said", 1, {"ref": "a"}])
    assert (await said(page, 1))[:2] == ["unavailable", "a"]
    await page.evaluate("elapse()")
    again = await (await script.peer()).welcome()
    await phase(page, "open")
    await page.evaluate(SAY, ["chat.said", 1, {"ref": "a"}])
    assert await again.frame() == {"type": "publish", "event": "chat.said", "data": 1, "ref": "a"}
    await page.evaluate("client.close()")
    assert (await said(page, 2))[:2] == ["unknown", "a"]


# --- topics ----------------------------------------------------------------------------------------------

ASK = """([word, topic]) => {
    window.asked ??= [];
    const place = asked.push(null) - 1;
    client[word](topic)
        .then(() => { asked[place] = "ok"; }, ({ code, message }) => { asked[place] = [code, message]; });
    return place;
}"""


async def ask(page: Page, word: str, topic: str) -> int:
    """Call `subscribe` or `unsubscribe`; its place for `asked`."""
    place = await page.evaluate(ASK, [word, topic])
    assert isinstance(place, int)
    return place


async def asked(page: Page, place: int) -> Any:
    """How the promise at this place ended, once it has: "ok", or code and message of the error."""
    await page.wait_for_function("place => asked[place]", arg=place)
    return await page.evaluate("place => asked[place]", place)


async def heard(peer: Peer, word: str, topic: str) -> object:
    """The next frame is about this topic; its ref."""
    frame = await peer.frame()
    assert isinstance(frame, dict)
    ref: object = frame.pop("ref")
    assert frame == {"type": word, "topic": topic}
    return ref


async def agreed(peer: Peer, word: str, topic: str) -> None:
    """The next frame is about this topic, and is answered with ok."""
    await peer.send(type="ok", ref=await heard(peer, word, topic))


async def test_a_promise_of_subscribe_is_kept_when_the_bridge_says_ok_and_pushes_name_their_topic(
    page: Page, script: Script
) -> None:
    peer = await met(page, script)
    await phase(page, "open")
    first, second = await ask(page, "subscribe", "room.7"), await ask(page, "subscribe", "room.8")
    one, two = await heard(peer, "subscribe", "room.7"), await heard(peer, "subscribe", "room.8")
    await peer.send(type="error", code="forbidden", message="topic: no", ref=two)
    assert await asked(page, second) == ["forbidden", "not subscribed to room.8: topic: no (forbidden)"]
    assert await page.evaluate("asked[0]") is None
    await peer.send(type="ok", ref=one)
    assert await asked(page, first) == "ok"
    await peer.push("p1", topic="room.7")
    await told(page, ("push", "p1"))
    assert await page.evaluate("pushes.p1.topic") == "room.7"


async def test_what_was_subscribed_is_subscribed_again_before_anything_else_and_what_was_refused_is_not(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, impatient=False)
    await phase(page, "open")
    for topic in "abc":
        await ask(page, "subscribe", topic)
    await agreed(peer, "subscribe", "a")
    await peer.send(type="error", code="over_limit", message="no", ref=await heard(peer, "subscribe", "b"))
    await agreed(peer, "subscribe", "c")
    assert [await asked(page, n) for n in range(3)][0::2] == ["ok", "ok"]
    late = await ask(page, "unsubscribe", "c")
    await agreed(peer, "unsubscribe", "c")
    assert await asked(page, late) == "ok"
    waits = await ask(page, "subscribe", "d")
    assert await heard(peer, "subscribe", "d")
    await peer.bye(1012, "restart")
    await phase(page, "waiting")
    offline = await ask(page, "subscribe", "e")
    await ask(page, "subscribe", "f")
    gone = await ask(page, "unsubscribe", "f")
    await page.evaluate("elapse()")
    again = await (await script.peer()).welcome()
    for topic in "ade":
        await agreed(again, "subscribe", topic)
    await agreed(again, "unsubscribe", "f")
    assert [await asked(page, place) for place in (waits, offline, gone)] == ["ok"] * 3
    await told(page)


async def test_the_topics_come_before_what_the_page_sends_when_it_is_told_of_the_connection(
    page: Page, script: Script
) -> None:
    await page.evaluate(
        """([url, token]) => import("./bridge-client.js").then(({ connect }) => {
            const bridge = connect({ url, token, onPush() {},
                onState: ({ phase }) => { if (phase === "open") bridge.publish("hello").catch(() => {}); } });
            bridge.subscribe("a").catch(() => {});
        })""",
        [f"ws://{script.url}/ws", jwt("alice")],
    )
    peer = await (await script.peer()).welcome()
    await agreed(peer, "subscribe", "a")
    assert (await peer.frame())["type"] == "publish"  # type: ignore[index]


async def test_what_is_refused_after_a_reconnect_is_told_and_forgotten_or_tried_again(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, impatient=False, chance=0)
    await phase(page, "open")
    for topic in "ab":
        await ask(page, "subscribe", topic)
        await agreed(peer, "subscribe", topic)
    assert [await asked(page, n) for n in range(2)] == ["ok", "ok"]
    await peer.bye(1012, "restart")
    await phase(page, "waiting")
    await page.evaluate("elapse()")
    again = await (await script.peer()).welcome()
    one, two = await heard(again, "subscribe", "a"), await heard(again, "subscribe", "b")
    await again.send(type="error", code="forbidden", message="no", ref=one)
    await again.send(type="error", code="try_later", message="soon", ref=two)
    await told(
        page,
        ("error", "not subscribed to a: no (forbidden)"),
        ("error", "not subscribed to b: soon (try_later)"),
    )
    assert await page.evaluate("elapse()") == 5
    await agreed(again, "subscribe", "b")
    await again.all_read(page)
    await again.bye(1012, "restart")
    await phase(page, "waiting")
    await page.evaluate("elapse()")
    await agreed(await (await script.peer()).welcome(), "subscribe", "b")
    await told(page)


async def test_a_promise_of_subscribe_that_nobody_will_keep_is_broken(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False)
    await phase(page, "open")
    later = await ask(page, "subscribe", "a")
    await peer.send(type="error", code="try_later", message="soon", ref=await heard(peer, "subscribe", "a"))
    assert (await asked(page, later))[0] == "try_later"
    await peer.bye(1012, "restart")
    await phase(page, "waiting")
    replaced = await ask(page, "subscribe", "b")
    waits = await ask(page, "unsubscribe", "b")
    assert (await asked(page, replaced))[0] == "replaced"
    await page.evaluate("elapse()")
    again = await (await script.peer()).welcome()
    assert await heard(again, "unsubscribe", "b"), "a was refused, nothing is left of it"
    await page.evaluate("client.close()")
    assert (await asked(page, waits))[0] == "unavailable"
    assert (await asked(page, await ask(page, "subscribe", "c")))[0] == "unavailable"


# --- the handshake ---------------------------------------------------------------------------------------


async def test_the_token_goes_beside_the_subprotocol_and_never_into_the_address(
    page: Page, script: Script
) -> None:
    await begin(page, f"ws://{script.url}/ws?region=eu", quiet=False)
    peer = await script.peer()
    assert peer.offered == ["bridge.v1.json", f"bridge.token.{jwt('alice')}"]
    assert (peer.path, peer.query) == ("/ws", {"region": ["eu"]})
    await told(page, ("connecting", None, None))
    await peer.welcome()
    await told(page, ("open", None, None))
    assert await phase(page, "open") == {"phase": "open", "user": "alice", "session": "s1"}


async def test_the_token_can_go_as_the_first_message_and_a_refused_one_is_renewed(
    page: Page, script: Script
) -> None:
    tokens = [jwt("alice"), jwt("alice", n=2)]
    await begin(page, f"ws://{script.url}/ws", tokens=tokens, tokenBy="frame")
    for token in tokens:
        peer = await script.peer()
        assert peer.offered == ["bridge.v1.json"]
        assert await peer.frame() == {"type": "auth", "token": token}
        if token == tokens[0]:
            await peer.bye(4401, "token_refused")
    await peer.welcome()
    await phase(page, "open")


async def test_a_page_without_a_token_goes_by_its_cookie_and_resumes_as_whoever_the_bridge_names(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, tokenBy="cookie", storage="localStorage")
    assert peer.offered == ["bridge.v1.json"]
    await peer.send(type="refresh")
    await peer.push("p1", "p2")
    await told(page, *pushes("p1", "p2"))
    await peer.close()
    again = await (await script.peer()).welcome()
    assert again.last == "p2"
    await phase(page, "open")
    await page.reload()
    await begin(page, f"ws://{script.url}/ws", tokenBy="cookie", storage="localStorage")
    # It does not know who it is: the welcome says so, and what that user has seen last is asked about.
    unknown = await (await script.peer()).welcome()
    assert (unknown.last, await unknown.closed()) == (None, 1000)
    known = await (await script.peer()).welcome()
    await known.push("p2", "p3")
    assert known.last == "p2"
    await told(page, *pushes("p3"))
    assert script.nobody


async def test_a_page_whose_cookie_is_not_good_any_more_is_told_to_sign_in(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, tokenBy="cookie")
    # Nobody has said no: whoever knows the cookie could not be asked in time.
    await peer.bye(4401, "token_expired")
    again = await (await script.peer()).welcome()
    await again.bye(4401, "token_refused")
    assert "sign in again" in str((await phase(page, "closed"))["error"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tokenBy": "cookie", "token": "a.b.c"}, "token: leave it out"),
        ({"tokenBy": "header", "token": "a.b.c"}, "tokenBy: "),
    ],
)
async def test_a_token_and_a_cookie_or_another_way_are_refused_at_once(
    page: Page, options: dict[str, str], problem: str
) -> None:
    with pytest.raises(playwright.async_api.Error, match=problem):
        await page.evaluate("begin", {"url": "ws://x/ws", **options})


async def test_an_address_that_cannot_be_used_is_the_end(page: Page, script: Script) -> None:
    await begin(page, "ftp://nowhere")
    why = await ended(page, None, "unusable")
    assert why.startswith("ftp://nowhere can't be used: ")


async def test_a_bridge_that_says_nothing_is_left(page: Page, script: Script) -> None:
    await begin(page, f"ws://{script.url}/ws")
    silent = await script.peer()
    await silent.all_read(page)  # from a socket that is not open yet in the page nobody says good-bye
    assert await page.evaluate("elapse()") == 15
    await (await script.peer()).welcome()
    await phase(page, "open")
    assert await silent.closed() == 1000


# --- pushes ----------------------------------------------------------------------------------------------


async def test_the_next_push_waits_until_the_one_before_is_done_with(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p1')")
    peer = await met(page, script, quiet=False)
    await peer.push("p1", "p2")
    await peer.send(type="withdraw", id="p1")
    await peer.push("p3")
    await peer.all_read(page)
    await told(page, ("connecting", None, None), ("open", None, None), ("push", "p1"))
    await page.evaluate("release('p1')")
    await told(
        page,
        ("through", "p1"),
        ("push", "p2"),
        ("through", "p2"),
        ("withdraw", "p1"),
        ("push", "p3"),
        ("through", "p3"),
    )
    got = await page.evaluate("(({ id, event, data }) => ({ id, event, data }))(pushes.p2)")
    assert got == {"id": "p2", "event": "message", "data": {"n": "p2"}}


async def test_a_duplicate_is_left_out_and_counted(page: Page, script: Script) -> None:
    peer = await met(page, script)
    await peer.push("p1", "p1", "p2")
    await told(page, *pushes("p1", "p2"))
    await peer.close()
    again = await (await script.peer()).welcome()
    await again.push("p1", "p2", "p3")
    await told(page, *pushes("p3"))
    assert await page.evaluate("client.duplicates") == 3
    assert await page.evaluate("client.doubles") == 3, "the old name is an alias until 1.0"


async def test_only_so_many_ids_are_remembered(page: Page, script: Script) -> None:
    peer = await met(page, script)
    ids = [f"p{n}" for n in range(KEPT + 1)]
    await peer.push(*ids)
    await told(page, *pushes(*ids))
    await peer.push("p1", "p0", "end")
    await told(page, *pushes("p0", "end"))


async def test_what_waits_is_not_forgotten_however_much_it_is(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p0')")
    peer = await met(page, script)
    ids = [f"p{n}" for n in range(5_000)]
    await peer.push(*ids)
    await peer.all_read(page)
    await peer.close()
    again = await (await script.peer()).welcome()
    assert again.last is None
    await again.push(*ids)
    await again.all_read(page)
    await page.evaluate("release('p0')")
    await again.push("end")
    await told(page, *pushes(*ids, "end"))
    assert await page.evaluate("client.duplicates") == len(ids)


async def test_what_waited_at_the_break_may_come_again_when_it_is_done(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p0')")
    peer = await met(page, script)
    ids = [f"p{n}" for n in range(5_000)]
    await peer.push(*ids)
    await peer.all_read(page)
    await peer.close()
    again = await (await script.peer()).welcome()
    await phase(page, "open")
    await page.evaluate("release('p0')")
    await told(page, *pushes(*ids))
    await again.push(*ids, "end")
    await told(page, *pushes("end"))
    # At the next break nothing waits, and what is done is bounded again.
    await again.close()
    once_more = await (await script.peer()).welcome()
    assert once_more.last == "end"
    await once_more.push("new")
    await once_more.push("p906", "p905")  # 4,096 are remembered: p906 to p4999, end and new
    await told(page, *pushes("new", "p905"))


async def test_done_ids_are_forgotten_oldest_first_also_after_many_have_waited(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('p0')")
    peer = await met(page, script)
    ids = [f"p{n}" for n in range(5_000)]
    await peer.push(*ids)
    await peer.all_read(page)
    await page.evaluate("release('p0')")
    await told(page, *pushes(*ids))
    await peer.push("p904", "p903", "end")
    await told(page, *pushes("p903", "end"))


async def test_a_push_that_failed_but_was_acknowledged_is_forgotten_as_others_are(
    page: Page, script: Script
) -> None:
    await page.evaluate("failing.push('odd'); holding.push('odd')")
    peer = await met(page, script)
    await peer.push("odd")
    await told(page, *pushes("odd"))
    await page.evaluate("() => { pushes.odd.ack(); release('odd'); }")
    await told(page, ("error", "can't take odd"))
    assert await peer.frame() == acked("odd")
    await peer.push("odd")
    assert await peer.frame() == acked("odd"), "the application has it"
    await page.evaluate("failing.length = holding.length = 0")
    ids = [f"p{n}" for n in range(KEPT)]
    await peer.push(*ids, "odd")
    await told(page, *pushes(*ids, "odd"))


async def test_a_push_that_waits_and_is_withdrawn_is_handed_over_once_and_then_withdrawn(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('p0')")
    peer = await met(page, script)
    ids = [f"p{n}" for n in range(KEPT + 10)]
    await peer.push(*ids)
    await peer.send(type="withdraw", id="p1")
    await peer.push("p1")
    await peer.all_read(page)
    await page.evaluate("release('p0')")
    await told(page, *pushes(*ids), ("withdraw", "p1"))


async def test_what_fails_behind_many_that_waited_is_handed_over_again(page: Page, script: Script) -> None:
    ids = [f"p{n}" for n in range(KEPT + 10)]
    await page.evaluate("(last) => { holding.push('p0'); failing.push(last); }", ids[-1])
    peer = await met(page, script)
    await peer.push(*ids)
    await peer.all_read(page)
    await page.evaluate("release('p0')")
    await told(page, *pushes(*ids), ("error", f"can't take {ids[-1]}"))
    await page.evaluate("failing.length = 0")
    await peer.push(ids[-1], ids[-2], "end")
    await told(page, *pushes(ids[-1], "end"))


async def test_a_hundred_thousand_may_wait_through_a_break_and_each_costs_little(page: Page) -> None:
    seconds, handed_over, in_order = await page.evaluate(
        """async (count) => {
          const { connect } = await import("./bridge-client.js");
          const frames = Array.from({ length: count }, (_, n) => ({ type: "push", id: `p${n}`, data: n }));
          const sockets = [], ids = [];
          let release, timer, client;
          class Socket {
            readyState = 1;
            constructor() { sockets.push(this); setTimeout(() => this.play()); }
            send() {}
            close() {}
            says(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
            play() {
              this.says({ type: "welcome", user: "alice", session: "s", complete: true });
              for (const frame of frames) this.says(frame);
              if (sockets.length === 1) this.onclose({ code: 1006, reason: "" });
              else release();
            }
          }
          const begun = performance.now();
          await new Promise((done) => {
            client = connect({ url: "ws://nowhere/", token: "t.t.t", WebSocket: Socket, sse: false,
              storage: localStorage,
              after(seconds, then) { timer = then; return () => {}; },
              onState({ phase }) { if (phase === "waiting") setTimeout(() => timer()); },
              async onPush({ id }) {
                ids.push(id);
                if (id === "p0") await new Promise((go) => { release = go; });
                if (ids.length === count) setTimeout(done);
              } });
          });
          client.close();
          return [(performance.now() - begun) / 1000, ids.length, ids.every((id, n) => id === `p${n}`)];
        }""",
        100_000,
    )
    assert (handed_over, in_order) == (100_000, True)
    assert seconds < 10


async def test_frames_of_a_later_version_pass_by_and_errors_are_passed_on(page: Page, script: Script) -> None:
    peer = await met(page, script)
    await peer.send(type="novelty", id="p1")
    await peer.send(type="error", code="bad_frame", message="what?")
    await peer.push("p1")
    await told(page, ("error", "the bridge says: what? (bad_frame)"), ("push", "p1"))


# --- resuming --------------------------------------------------------------------------------------------


async def test_it_resumes_after_the_last_push_that_the_application_was_through_with(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('ü&2')")
    peer = await met(page, script)
    assert peer.last is None
    await peer.push("p1", "ü&2", "p3")
    await told(page, *pushes("p1", "ü&2"))
    await peer.close()
    again = await (await script.peer()).welcome()
    assert again.last == "p1"
    await again.push("ü&2", "p3", "p4")
    await again.all_read(page)
    await page.evaluate("release('ü&2')")
    await told(page, *pushes("p3", "p4"))
    await again.close()
    assert (await script.peer()).last == "p4"


async def test_what_the_application_failed_to_take_counts_as_not_seen(page: Page, script: Script) -> None:
    await page.evaluate("failing.push('p2')")
    peer = await met(page, script, autoAck=True)
    await peer.push("p1", "p2")
    await told(page, *pushes("p1", "p2"), ("error", "can't take p2"))
    assert await peer.frame() == acked("p1")
    await peer.close()
    again = await (await script.peer()).welcome()
    assert again.last == "p1"
    await page.evaluate("failing.length = 0")
    await again.push("p2", "p3")
    await told(page, *pushes("p2", "p3"))
    assert [await again.frame(), await again.frame()] == [acked("p2"), acked("p3")]


LISTEN = """([event, name, ...failing]) => {
    window.listeners ??= {};
    listeners[name] = ({ id }) => {
        tell(name, id);
        const at = failing.indexOf(id);
        if (at >= 0) { failing.splice(at, 1); throw new Error(`${name} can't take ${id}`); }
    };
    window.offs ??= {};
    offs[name] = client.on(event, listeners[name]);
}"""
"""Listen for an event: tells the name and the id, and throws once for each of the failing ones."""


async def test_listeners_get_the_pushes_of_their_event_beside_on_push_until_they_are_taken_off(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, autoAck=True)
    for event, name in (("order.created", "first"), ("order.created", "second"), ("__proto__", "odd")):
        await page.evaluate(LISTEN, [event, name])
    await peer.push("p1", event="order.created")
    await peer.push("p2", event="order.deleted")
    await peer.push("p3", event="__proto__")
    await told(page, ("push", "p1"), ("first", "p1"), ("second", "p1"), *pushes("p2", "p3"), ("odd", "p3"))
    await page.evaluate("offs.first(); client.off('order.created', () => {}); client.off('none', () => {})")
    await peer.push("p4", event="order.created")
    await told(page, ("push", "p4"), ("second", "p4"))
    await page.evaluate("client.off('order.created', listeners.second)")
    await peer.push("p5", event="order.created")
    await told(page, ("push", "p5"))
    assert [await peer.frame() for _ in range(5)] == [acked(f"p{n}") for n in range(1, 6)]
    said = await page.evaluate(
        "() => { try { client.on('a', 'b'); } catch (error) { return error.message; } }"
    )
    assert said == 'on("a"): a function is needed'


async def test_a_listener_that_throws_stops_nobody_and_only_it_gets_the_push_again(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, autoAck=True)
    await page.evaluate(LISTEN, ["order.created", "weak", "p1"])
    await page.evaluate(LISTEN, ["order.created", "strong"])
    await peer.push("p1", event="order.created")
    await told(page, ("push", "p1"), ("weak", "p1"), ("strong", "p1"), ("error", "weak can't take p1"))
    await peer.push("p2", event="order.created")
    await told(page, ("push", "p2"), ("weak", "p2"), ("strong", "p2"))
    assert await peer.frame() == acked("p2"), "p1 is not finished"
    await peer.push("p1", event="order.created")
    await told(page, ("weak", "p1"))
    assert await peer.frame() == acked("p1")
    await peer.push("p1", event="order.created")
    assert await peer.frame() == acked("p1"), "a duplicate"
    await told(page)


async def test_a_push_is_acknowledged_when_its_slowest_listener_has_finished(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, autoAck=True)
    slow = "client.on('order.created', () => new Promise((done) => { window.finish = done; }))"
    await page.evaluate(f"() => {{ {slow}; }}")
    await peer.push("p1", "p2", event="order.created")
    await peer.all_read(page)
    await told(page, ("push", "p1"))
    await page.evaluate("() => { client.publish('mark').catch(() => {}); }")
    frame = await peer.frame()
    assert isinstance(frame, dict)
    assert frame["type"] == "publish", "nothing is acknowledged yet"
    await page.evaluate("finish()")
    assert await peer.frame() == acked("p1")
    await told(page, ("push", "p2"))


async def test_a_gap_is_told_before_the_pushes_behind_it_and_they_wait(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('gap')")
    peer = await met(page, script)
    await peer.push("p1")
    await told(page, *pushes("p1"))
    await peer.close()
    again = await (await script.peer()).welcome(complete=False)
    await again.push("p2")
    await again.all_read(page)
    await told(page, ("gap",))
    await page.evaluate("release('gap')")
    await told(page, *pushes("p2"))


async def test_a_promise_that_turns_out_wrong_is_a_gap_at_its_place(page: Page, script: Script) -> None:
    peer = await met(page, script, quiet=False)
    await peer.push("p1")
    await peer.welcome(complete=False)
    await peer.push("p2")
    told_so = [("push", "p1"), ("through", "p1"), ("gap",), ("push", "p2"), ("through", "p2")]
    await told(page, ("connecting", None, None), ("open", None, None), *told_so)


# --- tenants ---------------------------------------------------------------------------------------------


async def test_pushes_of_two_tenants_with_one_id_are_two_pushes(page: Page, script: Script) -> None:
    peer = await met(page, script, autoAck=True)
    await peer.push("p1")
    await peer.push("p1", tenant="acme")
    await told(page, *pushes("p1", "p1"))
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p1", "acme")]
    await peer.push("p1", tenant="acme")
    assert await peer.frame() == acked("p1", "acme"), "a duplicate, and acknowledged before"
    await peer.send(type="withdraw", id="p1", tenant="acme")
    await told(page, ("withdraw", "p1", "acme"))
    await page.evaluate("() => { client.ack('p1', 'acme'); }")
    assert await peer.frame() == acked("p1", "acme")


# --- acks ------------------------------------------------------------------------------------------------


async def test_an_ack_is_sent_when_the_application_says_so(page: Page, script: Script) -> None:
    peer = await met(page, script)
    await peer.push("p1", "p2")
    await told(page, *pushes("p1", "p2"))
    await page.evaluate("() => { pushes.p2.ack(); }")
    await page.evaluate("() => { client.ack('p1'); }")
    assert [await peer.frame(), await peer.frame()] == [acked("p2"), acked("p1")]


async def test_by_itself_it_acknowledges_what_the_application_is_through_with(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('p1')")
    peer = await met(page, script, autoAck=True)
    await peer.push("p1", "p2")
    await told(page, *pushes("p1"))
    await page.evaluate("() => { client.ack('p2'); release('p1'); }")
    await told(page, *pushes("p2"))
    frames = [await peer.frame(), await peer.frame()]
    await peer.push("p3")
    assert [*frames, await peer.frame()] == [acked(push_id) for push_id in ("p2", "p1", "p3")]


async def test_an_ack_for_a_connection_that_is_gone_is_sent_when_the_push_comes_again(
    page: Page, script: Script
) -> None:
    peer = await met(page, script)
    await peer.push("p1", "p2", "p3")
    await told(page, *pushes("p1", "p2", "p3"))
    await peer.close()
    again = await (await script.peer()).welcome()
    await phase(page, "open")
    await page.evaluate("() => { pushes.p1.ack(); }")
    await again.push("p3", "p1", "p2")
    assert await again.frame() == acked("p1")
    await again.push("p4")
    await told(page, *pushes("p4"))
    await page.evaluate("() => { pushes.p2.ack(); }")
    assert await again.frame() == acked("p2")


# --- coming back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1009, 1011, 1012, 1013, 4408])
async def test_it_comes_back_after(page: Page, script: Script, code: int) -> None:
    peer = await met(page, script)
    await peer.close(code, "why")
    await (await script.peer()).welcome()
    await phase(page, "open")


@pytest.mark.parametrize("code", [4400, 4401, 4403, 4409, 4429, 4499])
async def test_it_does_not_come_back_after(page: Page, script: Script, code: int) -> None:
    peer = await met(page, script)
    await peer.close(code, "why")
    why = await ended(page, code, "why")
    assert "connect() again" in why or "give a function as `token`" in why
    assert script.nobody
    assert await page.evaluate("timers.filter((timer) => timer.live).length") == 0


async def test_the_bye_counts_where_the_close_frame_is_lost(page: Page, script: Script) -> None:
    peer = await met(page, script)
    await peer.send(type="bye", code=4403, reason="revoked", retry_after=0)
    await peer.all_read(page)
    peer.socket.transport.abort()
    assert "was revoked" in await ended(page, 4403, "revoked")


@pytest.mark.parametrize(
    ("chance", "waits"), [(0.0, [1, 2, 4, 5, 5]), (1.0, [2, 4, 8, 10, 10]), (0.5, [1.5, 3, 6, 7.5, 7.5])]
)
async def test_it_waits_twice_as_long_each_time_with_a_bound_and_by_chance(
    page: Page, script: Script, chance: float, waits: list[float]
) -> None:
    timing = {"min": 2, "max": 10, "steady": 60}
    peer = await met(page, script, impatient=False, chance=chance, timing=timing)
    for seconds in waits:
        await peer.close()
        state = await phase(page, "waiting")
        assert state == {"phase": "waiting", "seconds": seconds, "code": 1012, "reason": "restart"}
        assert await page.evaluate("elapse()") == seconds
        peer = await (await script.peer()).welcome()
        await phase(page, "open")
    assert await page.evaluate("elapse()") == 60  # open for so long: it starts over
    await peer.close()
    assert (await phase(page, "waiting"))["seconds"] == waits[0]


async def test_it_waits_at_least_as_long_as_the_bridge_says(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False, chance=1.0, timing={"min": 2})
    await peer.bye(1012, "restart", retry_after=7)
    assert (await phase(page, "waiting"))["seconds"] == 9
    for event in ("online", "visibilitychange"):
        await page.evaluate(
            f"({'window' if event == 'online' else 'document'}).dispatchEvent(new Event('{event}'))"
        )
    assert (await phase(page, "waiting"))["seconds"] == 9
    await page.evaluate("elapse()")
    peer = await (await script.peer()).welcome()
    await peer.close()
    assert (await phase(page, "waiting"))["seconds"] == 4


async def test_with_the_network_back_it_tries_at_once(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False)
    await peer.push("p1")
    await told(page, *pushes("p1"))
    await page.context.set_offline(True)
    await peer.close()
    await phase(page, "waiting")
    await page.context.set_offline(False)
    again = await (await script.peer()).welcome()
    assert again.last == "p1"
    # Open or not: the old connection may be dead without knowing.
    await phase(page, "open")
    await page.context.set_offline(True)
    await page.context.set_offline(False)
    once_more = await (await script.peer()).welcome()
    assert await again.closed() == 1000
    await once_more.push("p2")
    await told(page, *pushes("p2"))


async def test_a_page_that_is_looked_at_again_tries_at_once(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False)
    await peer.close()
    await phase(page, "waiting")
    show = (
        "(seen) => { Object.defineProperty(document, 'visibilityState', { value: seen, configurable: true });"
    )
    show += " document.dispatchEvent(new Event('visibilitychange')); }"
    await page.evaluate(show, "hidden")
    assert (await phase(page, "waiting"))["code"] == 1012
    await page.evaluate(show, "visible")
    await (await script.peer()).welcome()
    await phase(page, "open")
    await page.evaluate(show, "visible")
    assert (await phase(page, "open"))["user"] == "alice"
    assert script.nobody


SHOW = "document.dispatchEvent(new Event('visibilitychange'))"


@pytest.mark.parametrize(
    "event",
    [
        SHOW,
        "document.dispatchEvent(new Event('resume'))",
        "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
    ],
)
async def test_a_page_that_goes_on_asks_whether_the_bridge_is_there_and_leaves_a_silent_one_at_once(
    page: Page, script: Script, event: str
) -> None:
    peer = await met(page, script, impatient=False)
    await phase(page, "open")
    await page.evaluate(f"clock = 12; {event}")
    asked = await peer.whole_frame()
    ref = asked.pop("ref")
    assert asked == {"type": "ack", "id": ""}
    await peer.send(type="error", code="bad_frame", message="id: no", ref=ref)
    await peer.all_read(page)
    assert await page.evaluate("elapse()") == 4
    assert (await phase(page, "open"))["user"] == "alice"
    await page.evaluate(f"clock = 24; {event}")
    assert (await peer.whole_frame())["id"] == ""
    assert await page.evaluate("elapse()") == 4
    state = await phase(page, "waiting")
    assert (state["code"], state["reason"], state["seconds"]) == (1006, "silent", 0)
    await told(page)


async def test_nobody_is_asked_who_has_just_been_heard(page: Page, script: Script) -> None:
    await met(page, script, impatient=False)
    await phase(page, "open")
    before = await page.evaluate("timers.length")
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow')); " + SHOW)
    await page.evaluate("clock = 12; dispatchEvent(new PageTransitionEvent('pageshow'))")
    assert await page.evaluate("timers.length") == before


# --- promises --------------------------------------------------------------------------------------------


async def test_ready_is_resolved_when_the_session_is_open_and_rejected_when_it_is_over(
    page: Page, script: Script
) -> None:
    await begin(page, f"ws://{script.url}/ws")
    await page.evaluate("() => { client.ready().then(({ user, session }) => tell('ready', user, session)); }")
    peer = await script.peer()
    await told(page)
    await peer.welcome()
    await told(page, ("ready", "alice", "s1"))
    assert await page.evaluate("client.ready()") == {"user": "alice", "session": "s1"}
    await page.evaluate("client.close()")
    over = "client.ready().catch(({ message }) => message)"
    assert await page.evaluate(over) == "Closed for good: closed"


async def test_a_promise_of_ack_says_whether_the_bridge_has_noted_it(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False)
    await peer.push("p1", "p2", "p3")
    await told(page, *pushes("p1", "p2", "p3"))
    await page.evaluate(
        "() => { for (const id of ['p1', 'p2', 'p3']) pushes[id].ack().then((ok) => tell('acked', id, ok)); }"
    )
    refs = [(await peer.whole_frame())["ref"] for _ in range(3)]
    await peer.send(type="error", code="not_awaited", message="nobody waits", ref=refs[1])
    await told(page, ("acked", "p2", False))
    await peer.send(type="ok", ref=refs[0])
    await told(page, ("acked", "p1", True))
    await peer.close()
    await told(page, ("acked", "p3", False))
    assert await page.evaluate("client.ack('p3')") is False, "it is sent when the push comes again"


# --- tokens ----------------------------------------------------------------------------------------------


async def test_an_expired_token_is_replaced_once_and_at_once(page: Page, script: Script) -> None:
    peer = await met(page, script, impatient=False, tokens=[jwt("alice", n) for n in range(3)])
    assert peer.token == jwt("alice", 0)
    await peer.push("p1")
    await told(page, ("token", jwt("alice", 0)), ("push", "p1"))
    await peer.bye(4401, "token_expired")
    await phase(page, "waiting")
    assert await page.evaluate("elapse()") == 0
    again = await (await script.peer()).welcome()
    assert (again.token, again.last) == (jwt("alice", 1), "p1")
    await told(page, ("token", jwt("alice", 1)))
    # It was not there for long: not at once again.
    await phase(page, "open")
    await again.close(4401, "token_expired")
    assert float(str((await phase(page, "waiting"))["seconds"])) > 0
    await page.evaluate("elapse()")
    assert (await script.peer()).token == jwt("alice", 2)


async def test_a_token_is_renewed_in_good_time_without_a_break(page: Page, script: Script) -> None:
    tokens = [jwt("alice", 0), "broken", jwt("alice", 1), jwt("alice", 2)]
    peer = await met(page, script, tokens=tokens)
    await peer.send(type="refresh")
    await told(page, ("token", tokens[0]), ("token", "broken"), ("error", "no token today"))
    await peer.send(type="refresh")
    assert await peer.frame() == {"type": "refresh", "token": tokens[2]}
    await peer.bye(4401, "token_expired")
    assert (await script.peer()).token == tokens[3], "the one that it sent has expired"


async def test_a_renewal_that_finds_another_user_signed_in_connects_again_as_that_user(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, tokens=[jwt("alice"), jwt("bob")])
    await peer.send(type="refresh")
    assert (await script.peer()).token == jwt("bob")
    assert await peer.closed() == 1000


async def test_the_same_token_again_is_the_end(page: Page, script: Script) -> None:
    peer = await met(page, script, tokens=[jwt("alice"), jwt("alice")])
    await peer.close(4401, "token_expired")
    token = ("token", jwt("alice"))
    assert "returned the same one again" in await ended(page, 4401, "token_expired", token, token)


async def test_a_token_is_kept_over_a_break_and_asked_for_again_where_it_may_be_the_cause(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, tokens=[jwt("alice", n) for n in range(2)])
    script.refusing = 1
    await peer.close()
    await told(page, ("token", jwt("alice", 0)), ("token", jwt("alice", 1)))
    assert (await script.peer()).token == jwt("alice", 1)
    assert script.refusing == 0


async def test_no_token_is_the_end_and_a_failure_to_get_one_is_not(page: Page, script: Script) -> None:
    await begin(page, f"ws://{script.url}/ws", impatient=False, quiet=False, tokens=["broken", None])
    waiting = ("waiting", None, "token"), ("error", "no token today")
    await told(page, ("connecting", None, None), ("token", "broken"), *waiting)
    await page.evaluate("elapse()")
    told_before = ("connecting", None, None), ("token", None)
    assert "nobody is signed in" in await ended(page, None, "no_token", *told_before)


NO_TOKENS = [
    ("", "empty"),
    ("  \n", "empty"),
    ("<!doctype html><title>502 Bad Gateway</title>", "a web page"),
    ("\n<html><form action=login>", "a web page"),
    ('{"token": "a.b.c"}', "JSON"),
    ('"a.b.c"', "in quotes"),
    ("Bad Gateway", "three parts"),
    ("a.b", "three parts"),
    ("a b.c.d", "three parts"),
    ("a/.b==.c", "make it base64url"),
    (None, "undefined"),
    (17, "of type number"),
    ({"token": "a.b.c"}, "of type object"),
]


@pytest.mark.parametrize(("got", "what"), NO_TOKENS)
@pytest.mark.parametrize("when", ["at load", "at a refresh"])
async def test_what_is_no_token_is_told_and_asked_for_again_after_a_while(
    page: Page, script: Script, got: object, what: str, when: str
) -> None:
    await page.evaluate("got => { window.got = got ?? undefined; }", got)
    first = [jwt("alice", 0)] if when == "at a refresh" else []
    tokens = [*first, "got", "got", jwt("alice", 1)]
    options: Any = {"impatient": False, "chance": 1.0, "tokens": tokens}
    if first:
        peer = await met(page, script, **options)
        await peer.close(4401, "token_expired")
        await phase(page, "waiting")
        await page.evaluate("elapse()")
    else:
        await begin(page, f"ws://{script.url}/ws", **options)
    waits = []
    for n in (1, 2):
        await page.wait_for_function(f"told.filter(([what]) => what === 'error').length === {n}")
        state = await phase(page, "waiting")
        waits.append(state["seconds"])
        said = await page.evaluate("client.state.error.message")
        assert said.startswith("The token is ")
        assert what in said
        assert said == (await page.evaluate("told.findLast(([what]) => what === 'error')[1]"))
        await page.evaluate("elapse()")
    assert waits == ([0.5, 1] if when == "at load" else [1, 2])
    again = await (await script.peer()).welcome()
    assert again.token == jwt("alice", 1)
    await phase(page, "open")


async def test_white_space_around_a_token_does_no_harm(page: Page, script: Script) -> None:
    await begin(page, f"ws://{script.url}/ws", tokens=[f" {jwt('alice')}\r\n"])
    assert (await script.peer()).token == jwt("alice")


async def test_a_string_that_is_no_token_is_the_end_since_it_will_not_get_better(
    page: Page, script: Script
) -> None:
    await begin(page, f"ws://{script.url}/ws", token="secret words")
    why = await ended(page, None, "unusable")
    assert why == "The token is not a JWT, which has three parts with dots between them."
    assert script.nobody


async def test_the_sample_of_the_readme_outlives_a_bad_gateway_and_a_page_to_sign_in(
    page: Page, script: Script
) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    (sample,) = re.findall(r"^async function token\(\) \{.*?^\}", readme, re.DOTALL | re.MULTILINE)
    script.tokens = [
        (502, "text/html", "<h1>Bad Gateway</h1>"),
        (200, "text/html", "<form>sign in</form>"),
        (204, "text/plain", ""),
        (200, "application/jwt", jwt("alice")),
    ]
    await page.evaluate(f"url => {{ {sample}; begin({{ url, token }}); }}", f"ws://{script.url}/ws")
    peer = await (await script.peer()).welcome()
    assert peer.token == jwt("alice")
    await phase(page, "open")
    said = [why for what, why in await page.evaluate("told") if what == "error"]
    assert len(said) == 3
    assert "502" in said[0]
    assert "empty" in said[2]


# --- where nothing opens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_without_the_words_for_it_an_error_says_less_and_all_else_is_as_always(
    page: Page, script: Script, how: str
) -> None:
    async def answer(route: Route) -> None:
        if how == "refused":
            await route.abort()

    await page.route("**/bridge-client-words.js", answer)
    await begin(page, f"ws://{script.url}/ws", tokens=["nonsense", jwt("alice")])
    peer = await (await script.peer()).welcome()
    await told(page, ("token", "nonsense"), ("error", "The token is not a JWT."), ("token", jwt("alice")))
    await phase(page, "open")
    await peer.bye(4403, "revoked")
    assert await ended(page, 4403, "revoked") == "Closed for good: revoked"


async def test_while_an_end_waits_for_its_words_nothing_is_handed_over_and_close_counts_more(
    page: Page, script: Script
) -> None:
    asked = asyncio.Event()
    await page.route("**/bridge-client-words.js", lambda route: asked.set())
    peer = await met(page, script)
    await page.evaluate("holding.push('p1')")
    await peer.push("p1", "p2")
    await told(page, *pushes("p1"))
    await peer.bye(4403, "revoked")
    async with asyncio.timeout(bridges.SECONDS):
        await asked.wait()
    assert await peer.closed() == 4403
    await page.evaluate("release('p1')")
    assert await page.evaluate("client.publish('a.b').catch(({ code }) => code)") == "unavailable"
    await page.evaluate("() => { client.subscribe('room.7').catch(({ code }) => tell(code)); }")
    await page.evaluate("client.close()")
    await told(page, ("closed", 1000, "closed"), ("unavailable",))
    await page.unroute_all()
    await page.evaluate(
        "import('./bridge-client-words.js').then(() => new Promise((done) => setTimeout(done)))"
    )
    assert await page.evaluate("[told, client.state.code]") == [[], 1000]
    assert script.nobody


async def test_an_address_where_no_bridge_is_is_told_after_three_tries_and_tried_on(
    page: Page, script: Script
) -> None:
    url = f"ws://{script.url}/socket"
    await begin(page, url, impatient=False, chance=1.0)
    for n in range(1, 6):
        await page.wait_for_function(f"client.state.phase === 'waiting' && timers.length === {2 * n}")
        said = await page.evaluate("client.state.error?.message ?? ''")
        assert said.startswith(f"{n} tries to open {url} failed. Is this a bridge's") == (n >= 3)
        await page.evaluate("elapse()")
    why = f"3 tries to open {url} failed."
    assert [text[: len(why)] for what, text in await page.evaluate("told") if what == "error"] == [why]


async def test_a_server_that_speaks_something_else_is_no_bridge(page: Page, script: Script) -> None:
    await begin(page, f"ws://{script.url}/ws", impatient=False)
    for text in ("hello", "17", "null", "[]", '{"hello": 1}', b"\x00"):
        peer = await script.peer()
        await peer.socket.send(text)
        state = await phase(page, "waiting")
        assert (state["code"], state["reason"]) == (1006, "no bridge")
        await page.evaluate("elapse()")
    why = await page.evaluate("told[0][1]")
    assert "Is this a bridge's port and path" in why


async def test_a_bridge_that_lets_nobody_in_again_is_told_after_eight_tries(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, timing={"min": 0.1, "max": 0.1})
    script.refusing = 8
    await peer.close()
    await (await script.peer()).welcome()
    await phase(page, "open")
    (error,) = await page.evaluate("told")
    assert error[1].startswith(f"8 tries to open ws://{script.url}/ws failed. It was open before")


# --- lines that fall silent ------------------------------------------------------------------------------


async def test_a_line_without_a_frame_for_two_heartbeats_and_a_half_is_left(
    page: Page, script: Script
) -> None:
    await begin(page, f"ws://{script.url}/ws", impatient=False, quiet=False)
    peer = await script.peer()
    await peer.send(type="welcome", session="s1", user="alice", complete=True, heartbeat=10)
    await phase(page, "open")
    assert await page.evaluate("timers.at(-1).seconds") == 25
    await page.evaluate("clock = 20")
    await peer.send(type="heartbeat")
    await peer.all_read(page)
    await page.evaluate("clock = 25; elapse()")  # heard five seconds ago
    assert await page.evaluate("timers.at(-1).seconds") == 20
    await page.evaluate("clock = 45; elapse()")
    assert (await phase(page, "open"))["user"] == "alice", (
        "what came while the page slept is handed over first"
    )
    assert await page.evaluate("elapse()") == 1
    state = await phase(page, "waiting")
    assert (state["code"], state["reason"]) == (1006, "silent")
    assert float(str(state["seconds"])) <= 0.5
    await page.evaluate("elapse()")
    await (await script.peer()).welcome()
    await phase(page, "open")


async def test_what_comes_in_the_grace_saves_the_line(page: Page, script: Script) -> None:
    await begin(page, f"ws://{script.url}/ws", impatient=False)
    peer = await script.peer()
    await peer.send(type="welcome", session="s1", user="alice", complete=True, heartbeat=10)
    await phase(page, "open")
    await page.evaluate("clock = 60; elapse()")
    await peer.push("p1")
    await told(page, *pushes("p1"))
    await page.evaluate("elapse()")
    assert await page.evaluate("timers.at(-1).seconds") == 25
    await phase(page, "open")


@pytest.mark.parametrize("said", [{}, {"heartbeat": 0}, {"heartbeat": None}, {"heartbeat": "often"}])
async def test_a_bridge_without_heartbeats_is_not_watched(
    page: Page, script: Script, said: dict[str, object]
) -> None:
    await begin(page, f"ws://{script.url}/ws", impatient=False)
    peer = await script.peer()
    await peer.send(type="welcome", session="s1", user="alice", complete=True, **said)
    await phase(page, "open")
    assert await page.evaluate("timers.filter((timer) => timer.live).map((timer) => timer.seconds)") == [10]


async def test_a_browser_that_is_offline_says_so_and_comes_back_at_once(page: Page, script: Script) -> None:
    await met(page, script, impatient=False)
    await phase(page, "open")
    await page.context.set_offline(True)
    state = await phase(page, "waiting")
    assert (state["code"], state["reason"]) == (1006, "offline")
    await page.context.set_offline(False)
    await (await script.peer()).welcome()
    await phase(page, "open")
    assert await page.evaluate("told") == []


async def test_what_one_user_has_seen_does_not_count_for_another(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p2')")
    peer = await met(page, script, tokens=[jwt("alice"), jwt(7)])
    await peer.push("p1", "p2", "for alice only")
    await told(page, ("token", jwt("alice")), *pushes("p1", "p2"))
    await peer.close(4401, "token_expired")
    other = await (await script.peer()).welcome(user="7")
    assert other.last is None
    await page.evaluate("release('p2')")
    await other.close()
    other = await (await script.peer()).welcome(user="7")
    assert other.last is None
    await other.push("p1")
    await told(page, ("token", jwt(7)), *pushes("p1"))
    await other.close()
    assert (await script.peer()).last == "p1"


async def test_a_change_of_the_user_and_back_loses_nothing_and_hands_over_nothing_twice(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('a2')")
    peer = await met(page, script, tokens=[jwt("alice"), jwt("bob"), jwt("alice", 1)], autoAck=True)
    await peer.push("a1", "a2", "a3")
    await told(page, ("token", jwt("alice")), *pushes("a1", "a2"))
    assert await peer.frame() == acked("a1")
    await peer.close(4401, "token_expired")
    other = await (await script.peer()).welcome(user="bob")
    await other.push("b1")
    await other.all_read(page)
    await told(page, ("token", jwt("bob")))  # one at a time: a2 is still in hand
    await page.evaluate("release('a2')")
    await told(page, *pushes("b1"))
    assert await other.frame() == acked("b1"), "and no ack of a2 goes out as bob's"
    await other.close(4401, "token_expired")
    back = await (await script.peer()).welcome()
    assert back.last == "a2"
    await back.push("a1", "a2", "a3")
    assert [await back.frame() for _ in range(3)] == [acked("a1"), acked("a2"), acked("a3")]
    await told(page, ("token", jwt("alice", 1)), *pushes("a3"))


async def test_what_is_done_after_a_change_of_the_user_is_stored_for_the_user_before(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('a1', 'a2')")
    peer = await met(page, script, tokens=[jwt("alice"), jwt("alice", 1)], storage="localStorage")
    await peer.push("a1", "a2", "a3")
    await peer.all_read(page)
    await page.evaluate("release('a1')")
    await told(page, ("token", jwt("alice")), *pushes("a1", "a2"))
    # A token that is read as alice's, and the bridge knows that it is bob's.
    await peer.close(4401, "token_expired")
    other = await (await script.peer()).welcome(user="bob")
    await phase(page, "open")
    stored = "JSON.parse(localStorage.getItem(`bridge ws://${location.host}/ws alice`))"
    assert await page.evaluate(stored) == {"last": "a1", "ids": [["a1", 0]]}
    await page.evaluate("() => { pushes.a1.ack(); }")
    assert await page.evaluate(stored) == {"last": "a1", "ids": [["a1", 1]]}
    await other.push("b1")
    await other.all_read(page)
    await page.evaluate("release('a2')")
    await told(page, ("token", jwt("alice", 1)), *pushes("b1"))
    assert await page.evaluate(stored) == {"last": "a2", "ids": [["a1", 1], ["a2", 0]]}
    await page.reload()
    back = await met(page, script, storage="localStorage")
    assert back.last == "a2"
    await back.push("a1", "a2", "a3")
    assert await back.frame() == acked("a1")
    await told(page, *pushes("a3"))


async def test_what_is_late_after_many_other_users_does_not_undo_what_is_stored(
    page: Page, script: Script
) -> None:
    users = ["alice", *(f"u{n}" for n in range(USERS)), "alice"]
    tokens = [jwt(user, n) for n, user in enumerate(users)]
    peer = await met(page, script, tokens=tokens, storage="localStorage")
    await peer.push("a1")
    await told(page, ("token", tokens[0]), *pushes("a1"))
    for user, token in zip(users[1:], tokens[1:], strict=True):
        await peer.close(4401, "token_expired")
        peer = await (await script.peer()).welcome(user=user)
        await told(page, ("token", token))
    assert peer.last == "a1"
    await peer.push("a2")
    await told(page, *pushes("a2"))
    await page.evaluate("() => { pushes.a1.ack(); }")
    await page.reload()
    assert (await met(page, script, storage="localStorage")).last == "a2"


async def test_what_waits_is_held_while_the_token_looks_like_another_users(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('p1')")
    peer = await met(page, script, tokens=[jwt("alice"), jwt("alias"), jwt("bob")])
    await peer.push("p1", "p2", "p3")
    await peer.all_read(page)
    await told(page, ("token", jwt("alice")), *pushes("p1"))
    await peer.close(4401, "token_expired")
    again = await script.peer()
    assert again.last is None
    await page.evaluate("release('p1')")
    await again.all_read(page)
    await told(page, ("token", jwt("alias")))
    # It is the same user after all: nothing that waited is lost, and what it resumes behind is the right push.
    await again.welcome(complete=False)
    resumed = await (await script.peer()).welcome()
    assert (resumed.token, resumed.last) == (jwt("alias"), "p1")
    await resumed.push("p2", "p3", "p4")
    await told(page, *pushes("p2", "p3", "p4"))
    # And now another one.
    await page.evaluate("holding.push('p5')")
    await resumed.push("p5", "p6")
    await told(page, *pushes("p5"))
    await resumed.close(4401, "token_expired")
    other = await script.peer()
    await page.evaluate("release('p5')")
    await other.welcome(user="bob")
    await other.push("b1")
    await told(page, ("token", jwt("bob")), *pushes("b1"))


async def test_it_goes_on_where_the_welcome_names_the_same_user_after_all(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p1'); failing.push('p1')")
    peer = await met(page, script, tokens=[jwt("alice"), jwt("alias")])
    await peer.push("p1", "p2")
    await peer.all_read(page)
    await told(page, ("token", jwt("alice")), *pushes("p1"))
    await peer.close(4401, "token_expired")
    again = await script.peer()
    await page.evaluate("release('p1')")
    await told(page, ("token", jwt("alias")), ("error", "can't take p1"))
    assert again.last is None
    await again.welcome()
    await told(page, *pushes("p2"))
    assert script.nobody


async def test_it_goes_on_where_an_attempt_with_another_users_token_came_to_nothing(
    page: Page, script: Script
) -> None:
    await page.evaluate("holding.push('p1')")
    tokens = [jwt("alice"), jwt("bob"), jwt("alice", 1)]
    peer = await met(page, script, impatient=False, tokens=tokens, storage="localStorage")
    await peer.push("p1", "p2")
    await peer.all_read(page)
    await told(page, ("token", jwt("alice")), *pushes("p1"))
    script.refusing = 1
    await peer.close(4401, "token_expired")
    await phase(page, "waiting")
    await page.evaluate("elapse()")
    await page.wait_for_function("client.state.phase === 'waiting' && client.state.code === 1006")
    await page.evaluate("release('p1')")
    await told(page, ("token", jwt("bob")))
    stored = await page.evaluate("localStorage.getItem(`bridge ws://${location.host}/ws alice`)")
    assert json.loads(stored) == {"last": "p1", "ids": [["p1", 0]]}
    await page.evaluate("elapse()")
    await told(page, ("token", jwt("alice", 1)), *pushes("p2"))
    assert (await script.peer()).last == "p1"


# --- whose pushes they are -------------------------------------------------------------------------------

ODD, EVEN = 2**53 + 1, 2**53
"""Two users that one floating-point number stands for."""

# As in engines that do not show a number as it was written.
ROUNDED = """{
  const parse = JSON.parse;
  JSON.parse = (text, reviver) => parse(text, reviver && ((key, value) => reviver(key, value)));
}"""


@pytest.mark.parametrize("engine", ["", ROUNDED], ids=["exact", "rounded"])
async def test_users_whose_numbers_differ_beyond_2_53_share_nothing(
    page: Page, script: Script, engine: str
) -> None:
    memory: dict[str, Any] = {"storage": "localStorage", "autoAck": True}
    await page.evaluate(engine)
    peer = await met(page, script, user=str(ODD), token=jwt(ODD, claim="uid"), **memory)
    await peer.push("p1")
    assert await peer.frame() == acked("p1")
    await told(page, *pushes("p1"))

    await page.reload()
    await page.evaluate(engine)
    peer = await met(page, script, user=str(EVEN), token=jwt(EVEN, claim="uid"), **memory)
    assert peer.last is None
    await peer.push("p1", "p2")
    await told(page, *pushes("p1", "p2"))
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p2")]

    await page.reload()
    await page.evaluate(engine)
    await begin(page, f"ws://{script.url}/ws", token=jwt(ODD, claim="uid"), quiet=False, **memory)
    peer = await script.peer()
    if engine:
        assert peer.last == "p2"
        await peer.welcome(complete=False, user=str(ODD))
        peer = await script.peer()
    assert peer.last == "p1"
    await peer.welcome(user=str(ODD))
    connecting = ("connecting", None, None)
    await told(page, *[connecting] * (2 if engine else 1), ("open", None, None))
    await peer.push("p1", "p2")
    await told(page, ("push", "p2"), ("through", "p2"))
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p2")]


async def test_such_users_in_one_page_share_nothing_either(page: Page, script: Script) -> None:
    await page.evaluate(ROUNDED)
    odd, even = jwt(ODD, claim="uid"), jwt(EVEN, claim="uid")
    assert odd != even
    peer = await met(page, script, user=str(ODD), tokens=[odd, even, odd + "2"], autoAck=True)
    await peer.push("p1")
    assert await peer.frame() == acked("p1")
    await told(page, ("token", odd), *pushes("p1"))
    await peer.close(4401, "token_expired")
    other = await script.peer()
    assert other.last == "p1"  # a guess, and wrong
    await other.welcome(complete=False, user=str(EVEN))
    await other.push("p1", "p2")
    await told(page, ("token", even), *pushes("p1", "p2"))
    assert [await other.frame(), await other.frame()] == [acked("p1"), acked("p2")]
    await other.close(4401, "token_expired")
    back = await script.peer()
    assert back.last == "p2"
    await back.welcome(complete=False, user=str(ODD))
    back = await script.peer()
    assert back.last == "p1"
    await back.welcome(user=str(ODD))
    await back.push("p1", "p2")
    await told(page, ("token", odd + "2"), *pushes("p2"))


async def seen(page: Page, script: Script, user: str, *ids: str) -> None:
    """Let the page store that this user has these pushes."""
    peer = await met(page, script, user=user, token=jwt(user), storage="localStorage")
    await peer.push(*ids)
    await told(page, *pushes(*ids))
    await page.reload()


@pytest.mark.parametrize(
    ("token", "sent"), [(jwt("alice"), "a1"), ("opaque.to.us", None)], ids=["read wrong", "not read"]
)
async def test_the_welcome_says_whose_memory_counts(
    page: Page, script: Script, token: str, sent: str | None
) -> None:
    await seen(page, script, "alice", "p0", "a1")
    await seen(page, script, "bob", "b1", "b2")
    await begin(page, f"ws://{script.url}/ws", token=token, storage="localStorage", quiet=False)
    wrong = await script.peer()
    assert wrong.last == sent
    # Of this session nothing is told: what it sends comes again behind the push that bob was through with.
    await wrong.welcome(complete=False, user="bob")
    await wrong.push("b3")
    assert await wrong.closed() == 1000
    peer = await script.peer()
    assert (peer.last, peer.token) == ("b2", token)
    await peer.welcome(user="bob")
    await peer.push("p0", "b2", "b3")
    through = [(what, push_id) for push_id in ("p0", "b3") for what in ("push", "through")]
    await told(page, *[("connecting", None, None)] * 2, ("open", None, None), *through)
    assert (await phase(page, "open"))["user"] == "bob"
    # From now on the guess is the right one.
    await peer.close()
    again = await (await script.peer()).welcome(user="bob")
    assert again.last == "b3"
    await phase(page, "open")
    assert script.nobody
    await page.reload()
    alice = await met(page, script, storage="localStorage")
    assert alice.last == "a1"


async def test_a_user_without_a_place_is_not_told_of_a_gap_behind_another_users(
    page: Page, script: Script
) -> None:
    await seen(page, script, "alice", "p0", "a1")
    peer = await met(page, script, user="bob", complete=False, token=jwt("alice"), storage="localStorage")
    assert peer.last == "a1"
    await peer.push("p0", "b1")
    await told(page, *pushes("p0", "b1"))
    assert script.nobody
    # What the bridge says later is about bob.
    await peer.welcome(complete=False, user="bob")
    await told(page, ("gap",))
    await page.reload()
    alice = await met(page, script, storage="localStorage")
    assert alice.last == "a1"
    await page.reload()
    bob = await met(page, script, user="bob", token=jwt("bob"), storage="localStorage")
    assert bob.last == "b1"


async def test_a_bridge_that_names_others_in_turn_makes_no_loop(page: Page, script: Script) -> None:
    await seen(page, script, "bob", "b1")
    await seen(page, script, "carol", "c1")
    peer = await met(page, script, user="bob", token="opaque.to.us", storage="localStorage")
    assert peer.last is None
    again = await script.peer()
    assert again.last == "b1"
    # It stays, and as it did not resume behind c1, pushes may be missing.
    await again.welcome(user="carol")
    await again.push("b1", "c1")
    await told(page, ("gap",), *pushes("b1"))
    assert (await phase(page, "open"))["user"] == "carol"
    assert script.nobody


async def test_a_storage_that_throws_loses_the_memory_and_not_the_pushes(page: Page, script: Script) -> None:
    await page.evaluate(
        """window.barred = {
          getItem(key) { throw new Error(`no ${key.split(" ")[2]}`); },
          setItem(key) { throw new Error(`never ${key.split(" ")[2]}`); },
        }"""
    )
    await begin(page, f"ws://{script.url}/ws", storage="barred")
    peer = await script.peer()
    await told(page, ("error", "no alice"))
    await peer.welcome(complete=False, user="bob")
    await told(page, ("gap",), ("error", "no bob"), ("error", "never bob"))
    await peer.push("p1", "p1")
    await told(page, ("push", "p1"), ("error", "never bob"))
    await peer.close()
    assert (await (await script.peer()).welcome(user="bob")).last == "p1"


async def test_an_ack_from_before_the_welcome_is_of_the_user_that_it_names(
    page: Page, script: Script
) -> None:
    await seen(page, script, "alice", "p1")
    await seen(page, script, "bob", "p1")
    await begin(page, f"ws://{script.url}/ws", storage="localStorage")
    peer = await script.peer()
    await page.evaluate("() => { client.ack('p1'); client.ack('p2'); }")
    await peer.welcome(user="bob")
    await peer.push("p1", "p2", "p3")
    await told(page, *pushes("p3"))
    assert [await peer.frame(), await peer.frame()] == [acked("p1"), acked("p2")]
    await page.reload()
    alice = await met(page, script, storage="localStorage")
    await alice.push("p1", "p2")
    await told(page, *pushes("p2"))


async def test_a_push_before_the_welcome_belongs_to_nobody(page: Page, script: Script) -> None:
    peer = await met(page, script)
    await phase(page, "open")
    await peer.close()
    peer = await script.peer()
    await peer.push("p1")
    await peer.send(type="withdraw", id="p0")
    await peer.welcome(user="bob")
    await peer.push("p1", "p2")
    await told(page, *pushes("p1", "p2"))
    assert await page.evaluate("client.duplicates") == 0


# --- across reloads --------------------------------------------------------------------------------------


async def test_with_storage_it_resumes_after_a_reload_without_duplicates(page: Page, script: Script) -> None:
    peer = await met(page, script, storage="localStorage")
    await peer.push("p1", "p2", "p3")
    await told(page, *pushes("p1", "p2", "p3"))
    await page.evaluate("() => { pushes.p2.ack(); }")
    await page.reload()
    again = await met(page, script, storage="localStorage")
    assert again.last == "p3"
    await again.push("p1", "p2", "p3", "p4")
    await told(page, *pushes("p4"))
    assert await again.frame() == acked("p2")
    await page.evaluate("() => { client.ack('p1'); }")
    assert await again.frame() == acked("p1")


async def test_what_was_not_done_with_at_the_reload_comes_again(page: Page, script: Script) -> None:
    ids = [f"p{n}" for n in range(SAVED_EVERY)]
    await page.evaluate("holding.push('p0', 'under way')")
    peer = await met(page, script, storage="localStorage")
    await peer.push(*ids, "under way", "waiting")
    await peer.all_read(page)
    await page.evaluate("release('p0')")
    await told(page, *pushes(*ids, "under way"))
    await page.reload()
    again = await met(page, script, storage="localStorage")
    assert again.last == ids[-1]
    await again.push(ids[-1], "under way", "waiting")
    await told(page, *pushes("under way", "waiting"))


async def test_each_user_has_a_memory_of_his_own_and_without_storage_none_outlives_the_page(
    page: Page, script: Script
) -> None:
    peer = await met(page, script, storage="localStorage")
    await peer.push("p1")
    await told(page, *pushes("p1"))
    for user, storage, last in (
        ("bob", "localStorage", None),
        ("alice", "sessionStorage", None),
        ("alice", None, None),
        ("alice", "localStorage", "p1"),
        ("bob", "localStorage", "p2"),
    ):
        await page.reload()
        peer = await met(page, script, user=user, token=jwt(user), storage=storage)
        assert peer.last == last
        if last != "p2":
            await peer.push("p2")
            await told(page, *pushes("p2"))


async def test_a_storage_that_does_not_work_is_told_and_does_not_stop_the_pushes(
    page: Page, script: Script
) -> None:
    await page.evaluate(
        """window.full = {
          getItem() { return '{"nothing": "of ours"'; },
          setItem() { throw new Error("the disk is full"); },
        }"""
    )
    peer = await met(page, script, storage="full")
    await peer.push("p1")
    await page.wait_for_function("told.length === 3")
    (bad, push, full) = await page.evaluate("told")
    assert bad[0] == "error"
    assert "JSON" in bad[1]
    assert (push, full) == (["push", "p1"], ["error", "the disk is full"])


# --- the end ---------------------------------------------------------------------------------------------


async def test_after_close_nothing_is_handed_over_and_nobody_comes_back(page: Page, script: Script) -> None:
    await page.evaluate("holding.push('p1')")
    peer = await met(page, script)
    await peer.push("p1", "p2")
    await peer.all_read(page)
    await told(page, *pushes("p1"))
    await page.evaluate("client.close(); client.close(); release('p1')")
    assert await peer.closed() == 1000
    await page.evaluate("window.dispatchEvent(new Event('online'))")
    await told(page, ("closed", 1000, "closed"))
    assert script.nobody


async def test_without_a_place_for_the_pushes_it_does_not_start(page: Page) -> None:
    said = "import('/bridge-client.js').then(({ connect }) => { try { connect({}); } catch (e) { return e.message; } })"
    assert await page.evaluate(said) == "onPush: a function is needed"


async def test_it_runs_in_node_too_and_an_error_handler_that_fails_stops_nothing(
    script: Script, tmp_path: Path
) -> None:
    (tmp_path / "bridge-client.mjs").write_text(LIBRARY["/bridge-client.js"])
    (tmp_path / "main.mjs").write_text(
        """import { connect } from "./bridge-client.mjs";
        const [url, token] = process.argv.slice(2);
        const client = connect({ url, token, autoAck: true, timing: { min: 0.01, steady: 0.01 },
          onPush({ id }) {
            console.log(id);
            if (id === "p0") throw new Error("can't take it");
            if (id === "p2") setTimeout(() => client.close());
          },
          onError(error) { throw error; } });
        process.on("uncaughtException", () => console.log("uncaught"));"""
    )
    process = await asyncio.create_subprocess_exec(
        NODE, tmp_path / "main.mjs", f"ws://{script.url}/ws", jwt("alice"), stdout=asyncio.subprocess.PIPE
    )
    peer = await (await script.peer()).welcome()
    await peer.push("p0", "p1")
    assert await peer.frame() == acked("p1")
    await peer.close()
    again = await (await script.peer()).welcome()
    assert again.last == "p1"
    await again.push("p1", "p2")
    async with asyncio.timeout(bridges.SECONDS):
        printed, _ = await process.communicate()
    assert (printed.split(), process.returncode) == ([b"p0", b"uncaught", b"p1", b"p2"], 0)


# --- with the real bridge --------------------------------------------------------------------------------


def kept(*ids: str, **more: object) -> list[dict[str, object]]:
    """Requests that wait for alice for a minute, and for her ack."""
    return [bridges.request("alice", push_id, ttl=60, confirm="acked", **more) for push_id in ids]


async def test_over_a_restart_and_a_kill_each_push_comes_once_and_in_order(
    page: Page, vhost: str, database: str
) -> None:
    async with bridges.process(vhost, database) as bridge:
        token = bridges.token("alice")
        await begin(page, f"ws://127.0.0.1:{bridge.ws_port}/ws", token=token, autoAck=True, impatient=False)
        await phase(page, "open")
        await bridges.publish(vhost, *kept("p1", "p2"))
        await told(page, *pushes("p1", "p2"))
        await bridges.final_rows(database, 2)

        assert await bridge.stop() == 0
        assert (await phase(page, "waiting"))["reason"] == "restart"
        await bridges.publish(vhost, *kept("p3", "p4"))
        await bridge.start()
        await bridge.ready()
        await page.evaluate("elapse()")
        await told(page, *pushes("p3", "p4"))
        await bridges.final_rows(database, 4)

        await bridge.kill()
        assert (await phase(page, "waiting"))["code"] == 1006
        await bridge.start()
        await bridge.ready()
        await bridges.publish(vhost, *kept("p5"))
        await bridges.rows_when(database, lambda found: found[-1]["outcome"] == "stored")
        await page.evaluate("elapse()")
        await told(page, *pushes("p5"))
        await bridges.publish(vhost, *kept("p6"))
        await told(page, *pushes("p6"))
        ends = bridges.endings(await bridges.final_rows(database, 6))
    assert ends == {(f"p{n}", "alice"): ("acked", "ack_frame") for n in range(1, 7)}


@asynccontextmanager
async def living(page: Page, vhost: str, database: str) -> AsyncIterator[app.Running]:
    """A bridge; the library in the page is closed before it stops, or it would go on trying."""
    async with bridges.bridge(vhost, database) as bridge:
        yield bridge
        await page.evaluate("client.close()")


async def test_after_a_reload_it_gets_what_another_device_took_meanwhile(
    page: Page, vhost: str, database: str
) -> None:
    async with living(page, vhost, database) as bridge:
        options = {"token": bridges.token("alice"), "autoAck": True, "storage": "localStorage"}
        address = f"ws://127.0.0.1:{bridge.ws_port}/ws"
        await begin(page, address, **options)
        await phase(page, "open")
        await bridges.publish(vhost, *kept("p1", "p2"))
        await told(page, *pushes("p1", "p2"))
        await bridges.final_rows(database, 2)
        await page.reload()
        async with client(bridge.ws_port, bridges.token("alice"), subprotocols=["bridge.v1.json"]) as phone:
            await bridges.publish(vhost, *kept("p3"))
            frames = [await phone.read_json() for _ in range(2)]
            assert [frame["type"] for frame in frames] == ["welcome", "push"]
            await phone.send_json({"type": "ack", "id": "p3"})
            await bridges.final_rows(database, 3)
        await begin(page, address, **options)
        await phase(page, "open")
        await bridges.publish(vhost, *kept("p4"))
        await told(page, *pushes("p3", "p4"))
        assert await page.evaluate("client.duplicates") == 2  # p1 and p2: from a little before the last one
        await bridges.final_rows(database, 4)


async def test_what_a_page_publishes_reaches_who_listens(page: Page, vhost: str, database: str) -> None:
    async with living(page, vhost, database) as bridge:
        token = bridges.token("alice", publish=["chat.*"])
        await begin(page, f"ws://127.0.0.1:{bridge.ws_port}/ws", token=token)
        await phase(page, "open")
        await page.evaluate(SAY, ["orders.cancel", 1, {}])
        assert (await said(page, 0))[0] == "forbidden"
        async with listening(vhost, "push.inbound") as seen:
            place = 0
            async with asyncio.timeout(bridges.SECONDS):
                # The bridge's own connection for this may still be under way.
                while place == 0 or (await said(page, place))[0] == "unavailable":
                    await page.evaluate(SAY, ["chat.said", {"text": "hi"}, {"ref": "mine"}])
                    place += 1
                assert await said(page, place) == "ok"
                message = await seen.get()
        assert (message["routing_key"], message["body"]) == ("chat.said", b'{"text":"hi"}')
        headers = message["headers"]
        assert isinstance(headers, dict)
        assert (headers["user"], headers["ref"]) == ("alice", "mine")


async def test_a_page_gets_what_is_pushed_to_its_topics_also_what_was_while_it_was_away(
    page: Page, vhost: str, database: str
) -> None:
    def to(push_id: str, **more: object) -> dict[str, object]:
        return {"id": push_id, "to": {"topic": "room.7"}, "data": 1, **more}

    async with bridges.bridge(vhost, database) as bridge, silent_proxy(bridge.ws_port) as proxy:
        token = bridges.token("alice", subscribe=["room.*"])
        await begin(page, f"ws://127.0.0.1:{proxy.port}/ws", token=token, autoAck=True, impatient=False)
        subscribed, refused = await ask(page, "subscribe", "room.7"), await ask(page, "subscribe", "news")
        assert await asked(page, subscribed) == "ok"
        assert (await asked(page, refused))[0] == "forbidden"
        assert (await asked(page, await ask(page, "subscribe", "room.*")))[0] == "bad_frame"
        await bridges.publish(vhost, to("p1"))
        await told(page, ("push", "p1"))
        assert await page.evaluate("pushes.p1.topic") == "room.7"
        proxy.cut()
        await phase(page, "waiting")
        await bridges.publish(vhost, to("p2", ttl=60))
        await bridges.rows_when(database, lambda found: any(row["push_id"] == "p2" for row in found))
        proxy.mend()
        await page.evaluate("elapse()")
        await told(page, ("push", "p2"))
        assert await page.evaluate("pushes.p2.topic") == "room.7"
        behind = await ask(page, "unsubscribe", "another")
        assert await asked(page, behind) == "ok", "the bridge has read what the library has sent before"
        await bridges.publish(vhost, to("p3"))
        await told(page, ("push", "p3"))
        assert await asked(page, await ask(page, "unsubscribe", "room.7")) == "ok"
        await bridges.publish(vhost, to("p4"), bridges.request("alice", "p5"))
        await told(page, ("push", "p5"))
        await page.evaluate("client.close()")
        await bridges.final_rows(database, 5)


async def test_what_the_bridge_no_longer_knows_is_a_gap(page: Page, vhost: str, database: str) -> None:
    async with living(page, vhost, database) as bridge:
        address = f"ws://127.0.0.1:{bridge.ws_port}/ws"
        stored = json.dumps({"last": "long ago", "ids": []})
        await page.evaluate("(entry) => localStorage.setItem(...entry)", [f"bridge {address} alice", stored])
        await bridges.publish(vhost, *kept("p1"))
        await begin(page, address, token=bridges.token("alice"), autoAck=True, storage="localStorage")
        await told(page, ("gap",), *pushes("p1"))
        await bridges.final_rows(database, 1)


async def test_who_is_named_another_than_read_resumes_all_the_same(
    page: Page, vhost: str, database: str
) -> None:
    async with living(page, vhost, database) as bridge:
        address = f"ws://127.0.0.1:{bridge.ws_port}/ws"
        options = {"storage": "localStorage", "autoAck": True}
        for user in (ODD, EVEN):
            await begin(page, address, token=bridges.token(str(user)), **options)
            await phase(page, "open")
            await bridges.publish(
                vhost, bridges.request(str(user), f"first of {user}", ttl=60, confirm="acked")
            )
            await told(page, *pushes(f"first of {user}"))
            await bridges.final_rows(database, 1 if user == ODD else 2)
            await page.reload()
        async with client(bridge.ws_port, bridges.token(str(ODD)), subprotocols=["bridge.v1.json"]) as phone:
            await bridges.publish(vhost, bridges.request(str(ODD), "p2", ttl=60, confirm="acked"))
            assert [(await phone.read_json())["type"] for _ in range(2)] == ["welcome", "push"]
            await phone.send_json({"type": "ack", "id": "p2"})
            await bridges.final_rows(database, 3)
        await page.evaluate(ROUNDED)
        await begin(page, address, token=bridges.token("", sub=None, uid=ODD), **options)
        await told(page, *pushes("p2"))
        assert (await phase(page, "open"))["user"] == str(ODD)
        await bridges.publish(vhost, bridges.request(str(ODD), "p3", ttl=60, confirm="acked"))
        await told(page, *pushes("p3"))
        ends = bridges.endings(await bridges.final_rows(database, 4))
    assert set(ends.values()) == {("acked", "ack_frame")}


async def test_a_recalled_push_is_withdrawn(page: Page, vhost: str, database: str) -> None:
    async with living(page, vhost, database) as bridge, await aio_pika.connect(vhost) as connection:
        await begin(page, f"ws://127.0.0.1:{bridge.ws_port}/ws", token=bridges.token("alice"))
        await phase(page, "open")
        await bridges.publish(vhost, *kept("p1"))
        await told(page, *pushes("p1"))
        exchange = await (await connection.channel()).get_exchange("push.control")
        await exchange.publish(aio_pika.Message(b'{"type": "recall", "push_id": "p1"}'), "")
        await told(page, ("withdraw", "p1"))
        ends = bridges.endings(await bridges.final_rows(database, 1))
    assert ends == {("p1", "alice"): ("recalled", "withdrawn")}


async def test_a_session_outlives_its_token(page: Page, vhost: str, database: str) -> None:
    async with living(page, vhost, database) as bridge:
        await bridges.publish(vhost, *kept("p1"))
        short, long = bridges.token("alice", 5), bridges.token("alice")
        await begin(page, f"ws://127.0.0.1:{bridge.ws_port}/ws", tokens=[short, long], autoAck=True)
        await told(page, ("token", short), *pushes("p1"), ("token", long))
        await bridges.publish(vhost, *kept("p2"))
        await told(page, *pushes("p2"))
        await bridges.final_rows(database, 2)


async def test_behind_a_proxy_that_falls_silent_the_page_knows_within_thirty_seconds_and_loses_nothing(
    browser: Browser, script: Script, vhost: str, database: str
) -> None:
    async with (
        bridges.bridge(vhost, database) as bridge,
        silent_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        await page.evaluate(
            """([url, token]) => import("./bridge-client.js").then(({ connect }) => {
                window.client = connect({ url, token, autoAck: true, onPush: ({ id }) => tell("push", id),
                    onState: ({ phase, reason }) => tell(phase, reason ?? null) });
            })""",
            [f"ws://127.0.0.1:{proxy.port}/ws", bridges.token("alice")],
        )
        await told(page, ("connecting", None), ("open", None))
        proxy.fall_silent()
        silent_since = asyncio.get_running_loop().time()
        await bridges.publish(vhost, *kept("p1"))
        await page.wait_for_function("told.some(([phase]) => phase === 'waiting')", timeout=30_000)
        assert asyncio.get_running_loop().time() - silent_since < 30
        await told(page, ("waiting", "silent"), ("connecting", None), ("open", None), ("push", "p1"))
        assert proxy.taken == 2
        await page.evaluate("client.close()")
