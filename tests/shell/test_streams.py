"""Streams of events on a real socket: their requests, messages and end, with a session host of the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.server import WebSocketServer
from bridge.adapters.websocket.stream import event_of
from bridge.core.contract.frames import bye_frame
from bridge.core.model.sessions import CloseReason, Mode, Said
from bridge.core.ports.sockets import Frame
from tests.support.streams import Stream, asked
from tests.support.waiting import until
from tests.support.websocket_host import Host

APP = "https://app.example"


@asynccontextmanager
async def serving(host: Host, *origins: str) -> AsyncIterator[WebSocketServer]:
    async with listen(
        "127.0.0.1", 0, host, readiness=host.readiness, close_grace=0.2, origins=origins
    ) as server:
        yield server


@asynccontextmanager
async def asking(
    port: int, method: str, target: str, *lines: str, version: str = "1.1"
) -> AsyncIterator[Stream]:
    answer = await asked(port, method, target, *lines, version=version)
    try:
        yield answer
    finally:
        await answer.leave()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_each_frame_is_a_message_and_a_ping_is_one_too(version: str) -> None:
    host = Host()
    async with serving(host) as server, asking(server.port, "GET", "/sse?token=u1", version=version) as one:
        assert one.status == 200
        assert one.headers["content-type"] == "text/event-stream"
        assert (one.headers["cache-control"], one.headers["x-accel-buffering"]) == ("no-store", "no")
        assert not {"content-length", "transfer-encoding", "content-encoding"} & one.headers.keys()
        session = await host.session()
        assert session.grant.mode is Mode.SSE
        data = b'{"type":"push","data":{\r\n "a":\r1,\n"b": "\xc3\xbc"}}'
        assert session.socket.write((Frame(data, False, "  p 1 "), Frame(b'{"type":"ok"}')), b"\x00\xff12")
        first, second, ping = [await one.message() for _ in range(3)]
        assert first
        assert second
        assert ping
        assert first.id == "  p 1 "
        assert json.loads(first.data) == json.loads(data)
        assert (second.data, second.id) == ('{"type":"ok"}', None)
        assert json.loads(ping.data) == {"type": "ping", "payload": "00ff3132"}
        assert session.socket.write((bye_frame(CloseReason.RESTART, 2.5),), None)
        session.socket.close(CloseReason.RESTART)
        assert not session.socket.write((Frame(b"late"),), None)
        bye = await one.message()
        assert bye
        assert bye.retry == 2500
        assert json.loads(bye.data)["code"] == 1012
        assert await one.message() is None
        await one.leave()
        assert await session.end() == (1006, "")
        await until(lambda: server.connections == 0)


def test_an_empty_frame_is_a_message_and_the_line_ends_of_all_systems_are_kept_apart() -> None:
    assert event_of(Frame(b"")) == b"data: \n\n"
    assert event_of(Frame(b"a\r\nb\nc\rd", id="x")) == b"id: x\ndata: a\ndata: b\ndata: c\ndata: d\n\n"


async def test_the_last_event_counts_before_the_query_and_may_be_any_text() -> None:
    host = Host()
    async with serving(host) as server:
        last = "p\u00fc 7".encode().decode("latin-1")
        for lines, query, expected in (
            ((f"Last-Event-ID: {last}",), "?last=p1", ["p\u00fc 7"]),
            ((), "?last=p1", ["p1"]),
            (("Last-Event-ID:",), "?last=p1", ["p1"]),
        ):
            async with asking(server.port, "GET", f"/sse{query}", *lines):
                assert host.handshakes[-1].query["last"] == expected


async def test_who_may_not_in_is_answered_and_other_methods_are_not_possible() -> None:
    host = Host()
    async with serving(host, APP) as server:
        async with asking(server.port, "GET", "/sse?token=refuse-401", f"Origin: {APP}") as one:
            assert one.status == 401
            assert one.headers["www-authenticate"] == "Bearer"
            assert one.headers["access-control-allow-origin"] == APP
            assert json.loads(await one.body())["error"] == "test"
        for method in ("HEAD", "POST", "PUT"):
            async with asking(server.port, method, "/sse?token=u1") as one:
                assert (one.status, one.headers["allow"]) == (405, "GET, OPTIONS")
                assert (await one.body() == b"") is (method == "HEAD")
        server.stop_accepting()
        async with asking(server.port, "GET", "/sse?token=u1") as one:
            assert (one.status, "retry-after" in one.headers) == (503, True)
        assert host.sessions == []


async def test_only_pages_of_allowed_origins_may_read_answers_and_are_told_before_they_ask() -> None:
    host = Host()
    async with serving(host, APP) as server:
        for path, methods in (("/sse", "GET, OPTIONS"), ("/v1/ack", "POST, OPTIONS")):
            async with asking(server.port, "OPTIONS", path, f"Origin: {APP}") as one:
                assert (one.status, await one.body()) == (204, b"")
                assert one.headers["access-control-allow-methods"] == methods
                assert one.headers["access-control-allow-headers"] == "Authorization, Last-Event-ID"
                assert one.headers["access-control-allow-origin"] == APP
            async with asking(server.port, "OPTIONS", path, "Origin: https://evil.example") as one:
                assert (one.status, one.headers["vary"]) == (204, "Origin")
                assert not [name for name in one.headers if name.startswith("access-control")]
        async with asking(server.port, "GET", "/sse", f"Origin: {APP}") as one:
            assert one.headers["access-control-allow-credentials"] == "true"
    async with serving(host) as server, asking(server.port, "GET", "/sse", f"Origin: {APP}") as one:
        assert one.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in one.headers


async def test_a_page_of_our_own_origin_has_it_though_its_browser_does_not_say_it() -> None:
    host = Host()
    async with serving(host, "http://test", APP) as server:
        for line, expected in (
            ("Sec-Fetch-Site: same-origin", "http://test"),
            ("Sec-Fetch-Site: cross-site", None),
            ("Sec-Fetch-Site: same-site", None),
        ):
            async with asking(server.port, "GET", "/sse", line):
                assert host.handshakes[-1].origin == expected


async def test_what_a_client_posts_comes_to_the_host_with_the_key() -> None:
    host = Host()
    key = "Authorization: Bearer k1"
    async with serving(host) as server:
        for target, lines, status in (
            ("/v1/ack?pong=00ff", (key,), 204),
            ("/v1/ack?id=p+1%20x&tenant=t&pong=", (key, "Content-Length: 0"), 204),
            ("/v1/ack?id=p", ("Authorization: Bearer refused",), 404),
            ("/v1/ack?id=p", (), 401),
            ("/v1/ack?id=p", ("Authorization: Basic k1",), 401),
            ("/v1/ack?id=p", (key, key), 401),
            ("/v1/ack", (key,), 400),
            ("/v1/ack?tenant=t", (key,), 400),
            ("/v1/ack?pong=xyz", (key,), 400),
            ("/v1/ack?id=a&id=b", (key,), 400),
            ("/v1/ack?id=p", (key, "Content-Length: 1"), 400),
        ):
            async with asking(server.port, "POST", target, *lines) as one:
                assert one.status == status, target
        async with asking(server.port, "GET", "/v1/ack?id=p", key) as one:
            assert (one.status, one.headers["allow"]) == (405, "POST, OPTIONS")
    assert host.heard == [
        Said("k1", b"\x00\xff"),
        Said("k1", b"", "p 1 x", "t"),
        Said("refused", None, "p"),
    ]
    assert "k1" not in repr(host.heard)


async def test_a_client_that_leaves_or_says_more_is_gone_and_a_slow_one_is_not_written_to() -> None:
    host = Host()
    async with serving(host) as server:
        async with asking(server.port, "GET", "/sse"):
            session = await host.session(0)
        assert await session.end() == (1006, "")
        async with asking(server.port, "GET", "/sse") as one:
            session = await host.session(1)
            one._writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await session.end() == (1006, "")
        async with asking(server.port, "GET", "/sse") as one:
            session = await host.session(2)
            written = 0
            while session.socket.writable:
                assert session.text("x" * 100_000)
                written += 1
                await asyncio.sleep(0)
            assert session.socket.buffered > 0
            for _ in range(written):
                await one.message()
            await host.until(lambda: session.resumes)
        await until(lambda: server.connections == 0)


async def test_streams_end_when_the_server_leaves() -> None:
    host = Host()
    async with serving(host) as server:
        one = await asked(server.port, "GET", "/sse")
        session = await host.session()
    assert await one.body() == b""
    assert len(session.endings) == 1
    await one.leave()
