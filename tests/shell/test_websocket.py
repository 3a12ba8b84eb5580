"""The WebSocket server on real sockets: handshakes, frames and their proof, faults, closing, flow control."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket as stdlib_socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.frames import BINARY, PING, TEXT
from websockets.frames import Frame as WireFrame

from bridge.adapters.websocket import connection as socket_connection
from bridge.adapters.websocket import server as websocket
from bridge.adapters.websocket.connection import WRITE_HIGH
from bridge.adapters.websocket.handshake import HANDSHAKE_REFUSALS
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.server import READ_CHUNK, WebSocketServer
from bridge.adapters.websocket.wire import frame_header
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.sockets import Frame, Socket
from tests.support.clients import SECONDS, RawClient, client, masked, opening, problem, raw_client, refusal
from tests.support.loops import on_both_loops
from tests.support.waiting import turns, until
from tests.support.websocket_faults import FAULTS
from tests.support.websocket_host import Host, RecordingSession

MIB = 1 << 20
LINE_BYTES = SocketLimits().line_bytes


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a peer does, nothing is logged: no traceback, no task or future whose error nobody saw."""
    caplog.set_level(logging.WARNING, "websockets.client")
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()
    records = caplog.get_records("call") + caplog.get_records("teardown")
    loud = [r for r in records if r.levelno >= logging.WARNING]
    assert not loud, [r.getMessage() for r in loud]


@asynccontextmanager
async def serving(
    *, close_grace: float = SECONDS, open_timeout: float = SECONDS, **limits: Any
) -> AsyncIterator[tuple[Host, WebSocketServer]]:
    host = Host()
    async with listen(
        "127.0.0.1",
        0,
        host,
        readiness=host.readiness,
        close_grace=close_grace,
        limits=SocketLimits(handshake_seconds=open_timeout, **limits),
    ) as server:
        yield host, server
    assert server.connections == 0
    for seen in host.sessions:
        assert len(seen.endings) == 1


@asynccontextmanager
async def session(
    *, close_grace: float = SECONDS, **limits: Any
) -> AsyncIterator[tuple[Host, RecordingSession, RawClient, WebSocketServer]]:
    """A server and one open session of a peer that says what the test says."""
    async with serving(close_grace=close_grace, **limits) as (host, server), raw_client(server.port) as peer:
        await peer.upgrade()
        yield host, await host.session(), peer, server


def close_frame(code: int, reason: str = "") -> bytes:
    payload = code.to_bytes(2, "big") + reason.encode()
    return bytes((0x88, len(payload))) + payload


async def answer(port: int, request: bytes) -> tuple[int, dict[str, str], str]:
    """The status, headers (names in lower case) and body that a request gets."""
    async with raw_client(port) as peer:
        peer.send(request)
        head, _, body = (await peer.read_all()).decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split(" ")[1]), headers, body


def get(path: str, method: str = "GET", *more: str) -> bytes:
    return ("\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *more]) + "\r\n\r\n").encode()


# --- the opening handshake ---


@on_both_loops
async def test_the_chosen_subprotocol_is_echoed_and_the_token_is_not() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        peer.send(opening("/ws", "Sec-WebSocket-Protocol: bridge.token.se.cr.et, bridge.v1.json"))
        head = (await peer.read_until(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 ")
        assert "Sec-WebSocket-Protocol: bridge.v1.json\r\n" in head
        assert "se.cr.et" not in head
        assert host.handshakes[0].subprotocols == ("bridge.token.se.cr.et", "bridge.v1.json")


@on_both_loops
async def test_no_subprotocol_is_echoed_where_none_is_spoken() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        peer.send(
            opening("/ws", "Sec-WebSocket-Protocol: bridge.token.se.cr.et", "Sec-WebSocket-Protocol: x")
        )
        head = await peer.read_until(b"\r\n\r\n")
        assert b"sec-websocket-protocol" not in head.lower()
        assert host.handshakes[0].subprotocols == ("bridge.token.se.cr.et", "x")


async def test_no_extension_and_no_server_header_is_offered() -> None:
    async with serving() as (_, server), raw_client(server.port) as peer:
        peer.send(opening("/ws", "Sec-WebSocket-Extensions: permessage-deflate"))
        head = (await peer.read_until(b"\r\n\r\n")).lower()
        assert b"extensions" not in head
        assert b"\r\nserver:" not in head


async def test_the_host_sees_query_and_headers_as_they_were_meant() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        path = "/ws?token=a%2Eb&last=p%20%C3%BC+1&last=two&empty=&bad=%ff%zz"
        peer.send(opening(path, "Origin: https://app.example", "Authorization: Bearer x.y.z"))
        await peer.read_until(b"\r\n\r\n")
        request = host.handshakes[0]
        assert request.path == "/ws"
        assert request.query == {
            "token": ["a.b"],
            "last": ["p \u00fc 1", "two"],
            "empty": [""],
            "bad": ["\ufffd%zz"],
        }
        assert request.origin == "https://app.example"
        assert request.authorization == "Bearer x.y.z"
        assert request.subprotocols == ()


@on_both_loops
async def test_a_refusal_is_an_http_answer_before_any_upgrade() -> None:
    async with serving() as (host, server):
        for status in (400, 401, 403, 429, 503):
            async with raw_client(server.port) as peer:
                peer.send(opening(f"/ws?token=refuse-{status}"))
                assert refusal(await peer.read_all()) == (status, "test", f"refused with {status}")
        assert host.sessions == []


async def test_a_client_library_sees_the_refusal() -> None:
    async with serving() as (_, server):
        with pytest.raises(InvalidStatus) as refused:
            async with client(server.port, "refuse-401"):
                pass
        assert refused.value.response.status_code == 401


MALFORMED = {
    "no upgrade": (get("/ws"), 426),
    "post": (get("/ws", "POST"), 405),
    "http/1.0": (opening().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    "old version": (opening().replace(b"Version: 13", b"Version: 8"), 400),
    "short key": (opening().replace(b"AAAAAAAAAAAAAAAAAAAAAA==", b"AAAA"), 400),
    "two origins": (opening("/ws", "Origin: http://a", "Origin: http://b"), 400),
    "two authorizations": (opening("/ws", "Authorization: Bearer a", "Authorization: Bearer b"), 400),
    "bad subprotocol": (opening("/ws", "Sec-WebSocket-Protocol: a b"), 400),
    "quoted subprotocol": (opening("/ws", 'Sec-WebSocket-Protocol: "bridge.v1.json"'), 400),
    "empty subprotocol": (opening("/ws", "Sec-WebSocket-Protocol: "), 400),
    "one subprotocol header empty": (
        opening("/ws", "Sec-WebSocket-Protocol: bridge.bare", "Sec-WebSocket-Protocol:"),
        400,
    ),
    "padded subprotocol": (opening("/ws", "Sec-WebSocket-Protocol: bridge.bare, bridge.token.YQ=="), 400),
    "too many fields": (opening("/ws?" + "&".join(f"f{i}=1" for i in range(100))), 400),
    "long header": (opening("/ws", "X: " + "x" * LINE_BYTES), 431),
    "many headers": (opening("/ws", *(f"X{i}: x" for i in range(200))), 431),
    "long request line": (opening("/ws?token=" + "x" * LINE_BYTES), 414),
    "body": (get("/livez", "POST", "Content-Length: 5") + b"hello", 400),
    "chunked body": (get("/livez", "POST", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "other path": (opening("/other"), 404),
    "encoded path": (opening("/%77s"), 404),
    "path not ascii": (get("/\u00fc"), 400),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_request_that_is_no_handshake_gets_an_answer_that_says_so(name: str) -> None:
    request, status = MALFORMED[name]
    async with serving() as (host, server), raw_client(server.port) as peer:
        peer.send(request)
        got, word, sentence = refusal(await peer.read_all())
        assert host.handshakes == []
        (told,) = host.refusals
        assert (status, told.status, told.why, told.text) == (got, got, word, sentence)
        assert word in HANDSHAKE_REFUSALS


REASONS = {
    "empty subprotocol": "the header Sec-WebSocket-Protocol is empty",
    "one subprotocol header empty": "the header Sec-WebSocket-Protocol is empty",
    "quoted subprotocol": "no spaces, quotes, / or =",
    "padded subprotocol": "a token in standard base64 can't be one",
    "short key": "the header Sec-WebSocket-Key is wrong",
    "old version": "the header Sec-WebSocket-Version is wrong",
    "two origins": "the header Origin occurs more than once",
    "two authorizations": "the header Authorization occurs more than once",
    "long header": f"{LINE_BYTES} bytes are allowed",
    "long request line": f"{LINE_BYTES} bytes are allowed",
    "no upgrade": "a proxy on the way has dropped the headers",
}


@pytest.mark.parametrize("name", REASONS)
async def test_the_answer_says_what_is_wrong(name: str) -> None:
    async with serving() as (_, server):
        _, _, body = await answer(server.port, MALFORMED[name][0])
        assert REASONS[name] in problem(body)[1]


async def bodiless(port: int, *sent: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request that comes in these pieces, which has no body."""
    async with raw_client(port) as peer:
        for piece in sent:
            peer.send(piece)
            await turns()
        head, _, body = (await peer.read_all()).decode().partition("\r\n\r\n")
    assert body == ""
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)


BY_HEAD = {
    "to the WebSocket": (405, get("/ws", "HEAD")),
    "a whole handshake": (405, opening().replace(b"GET", b"HEAD", 1)),
    "another path": (404, get("/other", "HEAD", "Upgrade: websocket")),
    "long request line": (414, get("/" + "x" * LINE_BYTES, "HEAD")),
    "long header": (431, get("/ws", "HEAD", "X: " + "x" * LINE_BYTES)),
    "many headers": (431, get("/ws", "HEAD", *(f"X{i}: x" for i in range(200)))),
    "long request": (431, b"HEAD /ws HTTP/1.1\r\n" + (b"X: " + b"a" * 4000 + b"\r\n") * 12),
    "body": (400, get("/ws", "HEAD", "Content-Length: 5") + b"hello"),
    "no HTTP": (400, b"HEAD /ws\r\n\r\n"),
    "frames": (400, get("/ws", "HEAD") + masked(0x1, b"early")),
    "slow": (408, b"HEAD /ws HTTP/1.1\r\nHost: te"),
    "slow in its first line": (408, b"HEAD /w"),
}


@pytest.mark.parametrize("name", BY_HEAD)
async def test_a_head_request_that_is_refused_gets_the_headers_and_no_body(name: str) -> None:
    status, request = BY_HEAD[name]
    async with serving(open_timeout=0.2 if status == 408 else SECONDS) as (host, server):
        for pieces in ((request,), (request[:2], request[2:])):
            got, headers = await bodiless(server.port, *pieces)
            assert (got, headers["Content-Type"]) == (status, "application/json")
            told = host.refusals[-1]
            said = {"error": told.why, "problem": told.text}
            assert int(headers["Content-Length"]) == len(json.dumps(said, separators=(",", ":"))) + 1
            assert headers.get("Allow") == ("GET" if status == 405 else None)


@pytest.mark.parametrize("size", [8 * 1024, 12 * 1024, 16 * 1024])
@pytest.mark.parametrize("carrier", ["query", "header", "subprotocol"])
async def test_a_token_of_single_sign_on_gets_through_in_each_carrier(carrier: str, size: int) -> None:
    token = "a" * (size - 10) + ".bcd.efghi"
    cookies = "Cookie: " + "c" * (16 * 1024)
    asked = {
        "query": opening(f"/ws?token={token}", cookies),
        "header": opening("/ws", cookies, f"Authorization: Bearer {token}"),
        "subprotocol": opening("/ws", f"Sec-WebSocket-Protocol: bridge.token.{token}, bridge.bare", cookies),
    }[carrier]
    async with serving() as (host, server), raw_client(server.port) as peer:
        peer.send(asked)
        assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        request = host.handshakes[0]
        got = {
            "query": request.query.get("token", [""])[0],
            "header": (request.authorization or "").removeprefix("Bearer "),
            "subprotocol": (request.subprotocols or ("",))[0].removeprefix("bridge.token."),
        }
        assert got[carrier] == token


async def test_subprotocols_may_come_in_several_header_lines() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        lines = [f"Sec-WebSocket-Protocol: {v}" for v in ("bridge.token.a.b.c ,", "chat,bridge.v1.json")]
        peer.send(opening("/ws", *lines))
        assert b"Sec-WebSocket-Protocol: bridge.v1.json\r\n" in await peer.read_until(b"\r\n\r\n")
        assert host.handshakes[0].subprotocols == ("bridge.token.a.b.c", "chat", "bridge.v1.json")


@on_both_loops
async def test_requests_that_are_not_through_are_bounded_in_bytes_together() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "UNANSWERED_BYTES_MAX", 10_000)
        async with (
            serving() as (host, server),
            raw_client(server.port) as one,
            raw_client(server.port) as two,
        ):
            one.send(b"GET /ws HTTP/1.1\r\nX: " + b"a" * 6_000)
            await until(lambda: server.unanswered_bytes >= 6_000)
            two.send(opening()[:-2] + b"X: " + b"a" * 6_000)
            assert refusal(await one.read_until(b"}\n"))[:2] == (503, "crowded")
            two.send(b"\r\n\r\n")
            assert (await two.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert [told.why for told in host.refusals] == ["crowded"]
            assert server.unanswered_bytes == 0


async def test_who_never_says_a_word_has_asked_for_nothing() -> None:
    async with serving(open_timeout=0.05, close_grace=0.05) as (host, server):
        async with raw_client(server.port) as silent, raw_client(server.port) as slow:
            slow.send(b"GET /ws HTTP/1.1\r\n")
            await asyncio.gather(silent.read_all(), slow.read_all())
        async with raw_client(server.port):
            pass
        await until(lambda: server.connections == 0)
        assert [told.why for told in host.refusals] == ["too_late"]


@on_both_loops
async def test_a_request_target_may_be_a_whole_url() -> None:
    async with serving() as (host, server):
        for number, start in enumerate(
            ("http://host", "HTTPS://host:8181", "ws://127.0.0.1", "wss://[::1]:443", "http://u@host"), 1
        ):
            async with raw_client(server.port) as peer:
                peer.send(opening(f"{start}/ws?token=t{number}&last=a/b"))
                assert b" 101 " in await peer.read_until(b"\r\n\r\n")
            assert host.handshakes[-1].path == "/ws"
            assert host.handshakes[-1].query == {"token": [f"t{number}"], "last": ["a/b"]}
            assert (await answer(server.port, get(f"{start}/livez")))[0::2] == (200, "alive\n")
            for other in ("", "/", "/other", "?x=/ws", "//ws"):
                assert (await answer(server.port, get(f"{start}{other}")))[0] == 404
        for other in ("http:///ws", "http:/ws", "ftp://host/ws", "//host/ws", "*"):
            assert (await answer(server.port, get(other)))[0] == 404


@on_both_loops
async def test_liveness_and_readiness_are_pages_on_the_same_port() -> None:
    async with serving() as (host, server):
        assert (await answer(server.port, get("/livez?x=1")))[0::2] == (200, "alive\n")
        status, headers, body = await answer(server.port, get("/readyz"))
        assert (status, json.loads(body)) == (200, {"ready": True, "causes": []})
        assert (headers["content-type"], headers["cache-control"]) == ("application/json", "no-store")
        host.ready = (False, ["the broker is unavailable"])
        status, headers, body = await answer(server.port, get("/readyz"))
        assert (status, json.loads(body)["causes"]) == (503, ["the broker is unavailable"])
        assert "retry-after" in headers
        status, headers, body = await answer(server.port, get("/readyz", "HEAD"))
        assert (status, body) == (503, "")
        assert int(headers["content-length"]) > 0
        status, headers, body = await answer(server.port, get("/livez", "DELETE"))
        assert (status, headers["allow"]) == (405, "GET, HEAD")
        assert problem(body) == ("method", "Only GET and HEAD are possible here.")


async def test_when_it_stops_accepting_open_sessions_stay_and_new_ones_are_sent_away() -> None:
    async with serving() as (host, server), client(server.port, "early") as early:
        server.stop_accepting()
        async with raw_client(server.port) as late:
            late.send(opening())
            assert refusal(await late.read_all())[:2] == (503, "draining")
        status, _, body = await answer(server.port, get("/readyz"))
        assert (status, len(json.loads(body)["causes"])) == (503, 1)
        assert (await answer(server.port, get("/livez")))[0] == 200
        assert len(host.handshakes) == 1
        assert (await host.session()).text("still here")
        assert await early.read() == "still here"


async def test_tokens_appear_in_no_log_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("bridge.websocket").setLevel(logging.DEBUG)
    secret = "SECRET.SECRET.SECRET"
    ways = [f"Authorization: Bearer {secret}", f"Sec-WebSocket-Protocol: bridge.token.{secret}"]
    try:
        async with serving() as (_, server):
            for request in (
                opening(f"/ws?token={secret}", *ways),
                opening(f"/ws?token=refuse-401&t={secret}", *ways),
                opening(f"/nowhere?token={secret}", *ways),
                opening(f"/ws?token={secret}", *ways, "Sec-WebSocket-Protocol: a b " + secret),
                opening(f"/ws?token={secret}", *ways, f"Sec-WebSocket-Key: {secret}"),
                opening(f"/ws?token={secret}", "X: " + "x" * LINE_BYTES),
                get(f"/ws?token={secret}", "GET", f"Upgrade: {secret}", *ways),
                f"GET /ws?token={secret}\r\n\r\n".encode(),
            ):
                async with raw_client(server.port) as peer:
                    peer.send(request)
                    answered = await peer.read_until(b"\r\n\r\n")
                    if not answered.startswith(b"HTTP/1.1 101 "):
                        answered += await peer.read_all()
                    assert secret.encode() not in answered
    finally:
        logging.getLogger("bridge.websocket").setLevel(logging.NOTSET)
    assert secret not in caplog.text


@on_both_loops
async def test_handshakes_in_progress_are_counted_until_they_are_answered_or_gone() -> None:
    async with serving() as (host, server):
        assert server.handshakes_in_progress == 0
        async with raw_client(server.port) as one, raw_client(server.port) as two:
            two.send(b"GET /ws HT")
            await until(lambda: server.handshakes_in_progress == 2)
            await one.upgrade()
            assert server.handshakes_in_progress == 1
            two.reset()
            await until(lambda: server.handshakes_in_progress == 0)
            assert server.connections == 1
            async with raw_client(server.port) as refused:
                refused.send(opening("/ws?token=refuse-401"))
                await refused.read_until(b"}\n")
                assert (server.connections, server.handshakes_in_progress) == (2, 0)
        assert await (await host.session()).end() == (1006, "")


@on_both_loops
async def test_a_peer_that_dawdles_over_its_handshake_is_told_and_dropped() -> None:
    async with serving(open_timeout=0.05, close_grace=0.05) as (host, server):
        async with raw_client(server.port) as silent, raw_client(server.port) as slow:
            slow.send(opening()[:-3])
            for peer in (silent, slow):
                assert refusal(await peer.read_all())[:2] == (408, "too_late")
        await until(lambda: server.connections == 0)
        assert host.handshakes == []


@on_both_loops
async def test_an_opening_request_that_does_not_end_is_refused_at_its_bound() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        peer.send(b"GET /ws HTTP/1.1\r\n" + (b"X: " + b"a" * 4000 + b"\r\n") * 12)
        status, word, sentence = refusal(await peer.read_until(b"}\n"))
        assert (status, word, sentence[-18:]) == (431, "too_long", "bytes are allowed.")
        assert host.handshakes == []


@on_both_loops
async def test_of_too_many_that_do_not_ask_the_oldest_goes_and_who_asks_comes_in() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "UNANSWERED_MAX", 3)
        await crowd()


async def crowd() -> None:
    async with serving() as (host, server), AsyncExitStack() as stack:
        first = await stack.enter_async_context(raw_client(server.port))
        await until(lambda: server.handshakes_in_progress == 1)
        for _ in range(3):
            await stack.enter_async_context(raw_client(server.port))
        assert refusal(await first.read_all())[:2] == (503, "crowded")
        assert server.handshakes_in_progress == 3
        for _ in range(10):
            peer = await stack.enter_async_context(raw_client(server.port))
            await peer.upgrade()
        assert len(host.sessions) == 10
        assert server.handshakes_in_progress == 2


@on_both_loops
async def test_a_session_outlives_the_time_for_its_handshake() -> None:
    async with serving(open_timeout=1.0) as (host, server), client(server.port) as peer:
        async with raw_client(server.port) as later:
            assert (await later.read_all()).startswith(b"HTTP/1.1 408 ")
        assert (await host.session()).text("still here")
        assert await peer.read() == "still here"


@on_both_loops
async def test_a_peer_that_says_more_than_its_handshake_too_early_is_told_and_dropped() -> None:
    early = (masked(0x1, b"early"), masked(0x9, b"ping"), b"\xff\xff\xff\xff", close_frame(1000))
    async with serving(close_grace=0.05) as (host, server):
        for more in early:
            async with raw_client(server.port) as peer:
                peer.send(opening() + more)
                sentence = "Wait for the answer before you go on (RFC 6455 4.1)."
                assert refusal(await peer.read_all()) == (400, "too_early", sentence)
                peer.send(masked(0x1, b"and another thing"))
                await until(lambda: server.connections == 0)
        assert host.sessions == []


@on_both_loops
async def test_a_peer_that_hangs_up_in_its_handshake_leaves_nothing() -> None:
    async with serving() as (host, server):
        for sent in (b"", b"GET /ws HTTP/1.1\r\n", opening()[:-2]):
            async with raw_client(server.port) as peer:
                peer.send(sent)
                peer.writer.write_eof()
                assert refusal(await peer.read_all())[:2] == (400, "not_http")
        await until(lambda: server.connections == 0)
        assert host.handshakes == []


async def test_a_refused_peer_that_stays_is_dropped_after_the_grace() -> None:
    async with serving(close_grace=0.05) as (_, server), raw_client(server.port) as peer:
        peer.send(opening("/ws?token=refuse-401"))
        assert b"401" in await peer.read_until(b"\r\n\r\n")
        peer.send(b"and another thing")
        await until(lambda: server.connections == 0)


@on_both_loops
async def test_many_peers_may_come_at_once() -> None:
    async with serving() as (host, server), AsyncExitStack() as stack:
        peers = await asyncio.gather(
            *(stack.enter_async_context(raw_client(server.port)) for _ in range(400))
        )
        await asyncio.gather(*(peer.upgrade() for peer in peers))
        assert len(host.sessions) == 400


# --- frames out, and their proof ---


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
def test_a_frame_has_the_header_of_the_protocol(size: int) -> None:
    for opcode in (TEXT, BINARY, PING):
        if opcode is PING and size > 125:
            continue
        payload = bytes(size)
        assert frame_header(0x80 | opcode, size) + payload == WireFrame(opcode, payload).serialize(mask=False)


@on_both_loops
async def test_frames_of_any_size_arrive_whole_and_are_proven_by_the_pong_behind_them() -> None:
    async with serving() as (host, server), client(server.port) as peer:
        seen = await host.session()
        texts = ["x" * size for size in (0, 125, 126, 65_535, 65_536, MIB)]
        assert seen.socket.write([Frame(t.encode()) for t in texts], b"ping")
        assert await peer.read_many(len(texts)) == texts
        await host.until(lambda: seen.pongs)
        assert seen.pongs == [b"ping"]
        assert seen.socket.write((Frame(b"\xff", binary=True),), None)
        assert await peer.read() == b"\xff"


@on_both_loops
async def test_the_inside_of_a_frame_proves_nothing_wherever_the_frame_began() -> None:
    answer = b"\x8a\x84" + bytes(4) + b"ping"
    begun = b"\x82\x8a" + bytes(4)
    for count in range(len(begun) + 1):
        async with serving() as (host, server), raw_client(server.port) as peer:
            peer.send(opening() + begun[:count])
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            seen = await host.session()
            assert seen.socket.write((), b"ping")
            assert await peer.read_exactly(6) == b"\x89\x04ping"
            if begun[count:]:
                peer.send(begun[count:])
                await turns()
            peer.send(answer)
            await host.until(lambda seen=seen: seen.messages or seen.pongs)  # type: ignore[misc]
            assert (seen.messages, seen.pongs) == ([answer], [])
            peer.send(answer)
            await host.until(lambda seen=seen: seen.pongs)  # type: ignore[misc]
            assert seen.pongs == [b"ping"]


@on_both_loops
async def test_a_pong_that_nobody_asked_for_is_passed_on_as_it_is() -> None:
    async with session() as (host, seen, peer, _):
        peer.send(masked(0xA, b"") + masked(0xA, b"guess"))
        await host.until(lambda: len(seen.pongs) == 2)
        assert seen.pongs == [b"", b"guess"]


@on_both_loops
async def test_a_ping_of_the_peer_is_answered() -> None:
    async with session() as (_, _, peer, _):
        peer.send(masked(0x9, b"you?"))
        assert await peer.read_exactly(6) == b"\x8a\x04you?"


@on_both_loops
async def test_the_host_may_write_close_or_abort_while_it_opens_the_session() -> None:
    def greet(socket: Socket) -> None:
        assert socket.write((Frame(b"welcome"),), None)

    def turn_away(socket: Socket) -> None:
        socket.close(CloseReason.TRY_LATER)

    def drop(socket: Socket) -> None:
        socket.abort()

    async with serving() as (host, server):
        host.on_open = greet
        async with client(server.port) as peer:
            assert await peer.read() == "welcome"
        host.on_open = turn_away
        async with client(server.port) as peer:
            assert await peer.ended() == (1013, "try_later")
            assert await (await host.session(1)).end() == (1013, "try_later")
        host.on_open = drop
        async with raw_client(server.port) as raw:
            raw.send(opening())
            assert await (await host.session(2)).end() == (1006, "")


# --- messages in ---


@on_both_loops
async def test_messages_come_as_text_or_bytes_whole_or_in_fragments() -> None:
    async with session() as (host, seen, peer, _):
        word = "\u00e4\u20ac".encode()
        peer.send(masked(0x1, word) + masked(0x2, b"\xff") + masked(0x1, b""))
        peer.send(masked(0x1, word[:1], fin=False) + masked(0x9, b"") + masked(0x0, word[1:3], fin=False))
        peer.send(masked(0xA, b"between") + masked(0x0, word[3:]))
        peer.send(masked(0x2, b"\x00", fin=False) + masked(0x0, b"", fin=True))
        await host.until(lambda: len(seen.messages) == 5)
        assert seen.messages == ["\u00e4\u20ac", b"\xff", "", "\u00e4\u20ac", b"\x00"]
        assert seen.pongs == [b"between"]


async def test_a_message_of_the_largest_size_passes() -> None:
    async with serving() as (host, server), client(server.port) as peer:
        seen = await host.session()
        await peer.send("x" * 65_536)
        await host.until(lambda: seen.messages)
        assert seen.messages == ["x" * 65_536]


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_peer_closes_with_its_code(name: str) -> None:
    sent, code = FAULTS[name]
    async with session() as (_, seen, peer, _):
        # What comes behind the fault is ignored, even if it would be a message.
        peer.send(sent + masked(0x1, b"afterwards"))
        rest = await peer.read_all()
        assert rest[0] == 0x88
        assert int.from_bytes(rest[2:4], "big") == code
        assert not seen.text("more")
        peer.writer.write_eof()
        assert (await seen.end())[0] == code
        assert seen.messages == []


@on_both_loops
async def test_random_bytes_end_a_session_and_nothing_else() -> None:
    noise = bytes(range(255, -1, -1)) * 64
    async with session() as (_, seen, peer, server), client(server.port) as other:
        peer.send(noise)
        await peer.read_all()
        peer.writer.write_eof()
        assert (await seen.end())[0] == 1002
        await other.send("I am well")


# --- closing ---


@on_both_loops
async def test_the_peer_closes_and_its_code_and_reason_are_told() -> None:
    async with serving() as (host, server):
        for number, (code, reason) in enumerate([(1000, ""), (1001, "leaving"), (4000, "\u00fcber")]):
            async with client(server.port) as peer:
                await peer.close(code, reason)
                assert await (await host.session(number)).end() == (code, reason)


async def test_a_close_frame_in_the_middle_of_a_message_ends_it_with_its_code() -> None:
    async with session() as (_, seen, peer, _):
        peer.send(masked(0x1, b"half", fin=False) + masked(0x8, b"\x03\xe8"))
        assert (await peer.read_all())[-4:] == b"\x88\x02\x03\xe8"
        peer.writer.write_eof()
        assert await seen.end() == (1000, "")
        assert not seen.messages


@on_both_loops
async def test_a_close_frame_without_a_code_is_1005() -> None:
    async with session() as (_, seen, peer, _):
        peer.send(masked(0x8, b"") + masked(0x1, b"text after close"))
        assert await peer.read_all() == b"\x88\x00"
        peer.writer.write_eof()
        assert await seen.end() == (1005, "")
        assert seen.messages == []


@on_both_loops
async def test_what_comes_right_before_a_close_frame_still_counts() -> None:
    async with session() as (_, seen, peer, _):
        assert seen.text("push", b"ping")
        peer.send(masked(0xA, b"ping") + masked(0x1, b"ack") + masked(0x8, b"\x03\xe8"))
        await peer.read_all()
        peer.writer.write_eof()
        assert await seen.end() == (1000, "")
        assert (seen.pongs, seen.messages) == ([b"ping"], ["ack"])


@on_both_loops
async def test_a_peer_that_goes_without_a_word_is_1006() -> None:
    async with serving() as (host, server):
        async with raw_client(server.port) as polite:
            await polite.upgrade()
            polite.writer.write_eof()
            assert await (await host.session(0)).end() == (1006, "")
        async with client(server.port) as rude:
            seen = await host.session(1)
            rude.reset()
            assert await seen.end() == (1006, "")
            assert not seen.text("too late")


@on_both_loops
async def test_a_write_to_a_peer_that_reset_ends_quietly() -> None:
    async with session() as (_, seen, peer, _):
        seen.text("x" * MIB)
        peer.reset()
        while seen.text("x" * 1000):
            await asyncio.sleep(0)
        assert await seen.end() == (1006, "")


@on_both_loops
async def test_we_close_with_the_code_and_the_word() -> None:
    reasons = [r for r in CloseReason if r.code != 1006]
    async with serving() as (host, server):
        for number, reason in enumerate(reasons):
            async with client(server.port) as peer:
                seen = await host.session(number)
                seen.socket.close(reason)
                assert await peer.ended() == (reason.code, reason.word)
                assert await seen.end() == (reason.code, reason.word)


@on_both_loops
async def test_proof_that_comes_while_we_close_still_counts() -> None:
    async with session() as (host, seen, peer, _):
        seen.text("push", b"ping")
        seen.socket.close(CloseReason.RESTART)
        peer.send(masked(0xA, b"ping") + masked(0x1, b"ack"))
        await host.until(lambda: seen.messages)
        assert seen.pongs == [b"ping"]
        peer.send(masked(0x8, b"\x03\xf4"))
        await peer.read_all()
        peer.writer.write_eof()
        assert await seen.end() == (1012, "")


@on_both_loops
async def test_a_session_may_close_or_abort_while_it_handles_a_message() -> None:
    async with serving() as (host, server):
        async with client(server.port) as peer:
            seen = await host.session(0)
            seen.on_message = lambda _: seen.socket.close(CloseReason.TOKEN_EXPIRED)
            await peer.send("now")
            assert await peer.ended() == (4401, "token_expired")
        async with raw_client(server.port) as raw:
            await raw.upgrade()
            gone = await host.session(1)
            gone.on_message = lambda _: gone.socket.abort()
            raw.send(masked(0x1, b"now") + masked(0x1, b"too late") + masked(0xA, b"too late"))
            assert await gone.end() == (1006, "")
            assert (gone.messages, gone.pongs) == (["now"], [])


@on_both_loops
async def test_what_was_buffered_before_a_close_still_flows() -> None:
    async with serving() as (host, server), client(server.port, receive_buffer=4096) as peer:
        seen = await host.session()
        peer.freeze()
        texts = [str(i) * 100_000 for i in range(80)]
        for text in texts:
            assert seen.text(text)
        assert seen.socket.buffered > 0
        seen.socket.close(CloseReason.RESTART)
        assert not seen.text("no more")
        peer.thaw()
        assert await peer.read_many(len(texts)) == texts
        assert await peer.ended() == (1012, "restart")
        assert await seen.end() == (1012, "restart")


@on_both_loops
async def test_a_peer_that_takes_no_part_in_closing_is_dropped_after_the_grace() -> None:
    async with (
        serving(close_grace=0.05) as (host, server),
        client(server.port, receive_buffer=4096) as frozen,
        raw_client(server.port) as mute,
    ):
        frozen.freeze()
        await mute.upgrade()
        for number in (0, 1):
            seen = await host.session(number)
            seen.text("x" * 8 * MIB)
            seen.socket.close(CloseReason.TOO_SLOW)
            assert await seen.end() == (1006, "")


@on_both_loops
async def test_a_half_closed_peer_that_does_not_read_is_dropped_after_the_grace() -> None:
    async with session(close_grace=0.05) as (_, seen, peer, server):
        seen.text("x" * 16 * MIB)
        peer.writer.write_eof()
        assert await seen.end() == (1006, "")
        assert server.connections == 0


@on_both_loops
async def test_a_vanished_peer_is_aborted_at_once() -> None:
    async with session() as (_, seen, peer, _):
        seen.socket.close(CloseReason.VANISHED)
        assert not seen.socket.writable
        assert await seen.end() == (1006, "")
        with pytest.raises(ConnectionResetError):
            await peer.read_all()


@on_both_loops
async def test_an_abort_takes_back_what_the_peer_has_not_got_yet() -> None:
    async with serving() as (host, server), raw_client(server.port) as peer:
        await peer.upgrade()
        seen = await host.session()
        seen.text("x" * 16 * MIB)
        seen.socket.abort()
        assert await seen.end() == (1006, "")
        with pytest.raises(ConnectionResetError):
            await peer.read_exactly(16 * MIB)


@on_both_loops
async def test_leaving_closes_what_is_open_and_leaves_nothing() -> None:
    host = Host()
    async with AsyncExitStack() as peers:
        async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=2.0) as server:
            polite = await peers.enter_async_context(client(server.port))
            frozen = await peers.enter_async_context(client(server.port))
            frozen.freeze()
            arriving = await peers.enter_async_context(raw_client(server.port))
            await until(lambda: server.connections == 3)
            polite_end = asyncio.create_task(polite.ended(), name="polite-end")
        assert await polite_end == (1001, "going_away")
        assert sorted([await s.end() for s in host.sessions]) == [(1001, "going_away"), (1006, "")]
        assert server.connections == 0
        with pytest.raises(ConnectionResetError):
            await arriving.read_all()
        with pytest.raises(ConnectionRefusedError):
            async with raw_client(server.port):
                pass


@on_both_loops
async def test_leaving_in_a_hurry_aborts_everything() -> None:
    host = Host()
    ready = asyncio.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=SECONDS) as server:
            port = server.port
            ready.set()
            await (await host.session()).end()

    serving_task = asyncio.create_task(serve(), name="serve")
    await ready.wait()
    async with client(port) as peer:
        peer.freeze()
        seen = await host.session()
        serving_task.cancel()
        await until(lambda: not seen.socket.writable)
        serving_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving_task
        assert await seen.end() == (1006, "")


# --- flow control ---


@on_both_loops
async def test_a_peer_that_does_not_read_makes_the_socket_unwritable_until_it_does() -> None:
    async with serving() as (host, server), client(server.port, receive_buffer=4096) as peer:
        seen = await host.session()
        peer.freeze()
        sent = 0
        while seen.socket.writable:
            assert seen.text("x" * 10_000)
            sent += 1
            await asyncio.sleep(0)
        assert seen.socket.buffered > WRITE_HIGH
        assert seen.resumes == 0
        assert seen.text("one more is taken all the same")
        peer.thaw()
        await host.until(lambda: seen.resumes)
        assert seen.text("and so is this")
        assert len(await peer.read_many(sent + 2)) == sent + 2
        await until(lambda: seen.socket.buffered == 0)
        assert seen.resumes == 1


@on_both_loops
async def test_the_host_may_write_again_from_within_became_writable() -> None:
    async with serving() as (host, server), client(server.port, receive_buffer=4096) as peer:
        seen = await host.session()
        peer.freeze()
        seen.text("x" * 16 * MIB)
        await until(lambda: not seen.socket.writable)
        became_writable = seen.became_writable
        seen.became_writable = lambda: (seen.text("again"), became_writable())[1]  # type: ignore[method-assign]
        peer.thaw()
        assert len(await peer.read()) == 16 * MIB
        assert await peer.read() == "again"


async def test_a_client_that_floods_is_read_at_its_rate_and_nobody_else_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket_connection, "BURST_SECONDS", 0.02)
    async with session(frames_per_second=5000.0) as (host, seen, peer, server), client(server.port) as other:
        loop = asyncio.get_running_loop()
        began = loop.time()
        peer.send(masked(0x1, b"") * 3000)
        await host.until(lambda: seen.messages)
        assert len(seen.messages) <= READ_CHUNK // 6 + 1, "no more than one read at a time"
        await other.send("and me?")
        other_seen = await host.session(1)
        await host.until(lambda: other_seen.messages)
        assert len(seen.messages) < 3000
        await host.until(lambda: len(seen.messages) == 3000)
        # The last read is handled at once: it pays for itself only before the next one.
        assert loop.time() - began > (3000 - READ_CHUNK // 6 - 100) / 5000


async def test_pongs_that_answer_our_pings_cost_the_client_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_connection, "BURST_SECONDS", 0.5)
    async with (
        serving(frames_per_second=0.001, frames_per_minute=0.001) as (host, server),
        client(server.port),
    ):
        seen = await host.session()
        sent: list[bytes] = []
        for number in range(50):
            sent.append(bytes([number]))
            assert seen.socket.write((), sent[-1])
            await host.until(lambda: seen.pongs == sent)


@on_both_loops
async def test_a_client_that_is_being_slowed_down_is_still_heard_when_it_closes_in_time() -> None:
    async with session() as (host, seen, peer, _):
        peer.send(masked(0x1, b"") * 2500 + masked(0x8, b"\x03\xe8"))
        await host.until(lambda: len(seen.messages) == 2500)
        await peer.read_all()
        peer.writer.write_eof()
        assert await seen.end() == (1000, "")


async def test_pongs_to_a_peer_that_does_not_read_them_do_not_pile_up() -> None:
    async with session(frames_per_second=1e9, frames_per_minute=1e12) as (_, seen, peer, _):
        pings = masked(0x9, bytes(125)) * 500

        async def flood() -> None:
            for _ in range(1000):
                peer.send(pings)
                await peer.writer.drain()

        flooding = asyncio.create_task(flood(), name="flood")
        await until(lambda: seen.socket.buffered > WRITE_HIGH)
        assert not (await asyncio.wait({flooding}, timeout=0.5))[0], "the flood is held up"
        assert seen.socket.buffered < WRITE_HIGH + 2 * READ_CHUNK
        flooding.cancel()
        # It reads again: everything comes, and it is heard again.
        peer.send(masked(0x1, b"sorry"))
        reading = asyncio.create_task(peer.read_all(), name="reading")
        await until(lambda: seen.messages)
        seen.socket.abort()
        with pytest.raises(ConnectionResetError):
            await reading


async def test_endless_empty_fragments_take_no_memory() -> None:
    async with session() as (host, seen, peer, _):
        peer.send(masked(0x1, b"x", fin=False) + masked(0x0, b"", fin=False) * 1500 + masked(0x0, b"y"))
        await host.until(lambda: seen.messages)
        assert seen.messages == ["xy"]


@on_both_loops
async def test_small_frames_leave_without_delay() -> None:
    options: list[int] = []

    def look(socket: Socket) -> None:
        raw = socket._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        options.append(raw.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY))

    async with serving() as (host, server):
        host.on_open = look
        async with client(server.port):
            await host.session()
    assert options == [1]
