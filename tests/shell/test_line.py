"""Opening requests wait in line: a storm of them leaves everybody else their turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bridge.adapters.websocket import line
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.line import Line
from bridge.adapters.websocket.listening import listen
from bridge.core.model.sessions import Grant, Handshake, Refusal
from tests.support.clients import opening, raw_client
from tests.support.loops import on_both_loops
from tests.support.waiting import turns, until
from tests.support.websocket_host import Host


class Turns:
    """Counts the turns of the loop."""

    def __init__(self) -> None:
        self.now = 0
        self.going = True
        self._next()

    def _next(self) -> None:
        self.now += 1
        if self.going:
            asyncio.get_running_loop().call_soon(self._next)


class Counting(Host):
    """Notes in which turn it decides on each handshake."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns
        self.decided_in: list[int] = []

    def handshake(self, request: Handshake) -> Grant | Refusal | Coroutine[Any, Any, Grant | Refusal]:
        self.decided_in.append(self._turns.now)
        return super().handshake(request)


@pytest.fixture(autouse=True)
def slices_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "SLICE", 0.0)


@on_both_loops
async def test_handshakes_that_come_together_leave_turns_of_the_loop_to_others() -> None:
    counted = Turns()
    host = Counting(counted)
    async with listen("127.0.0.1", 0, host, readiness=host.readiness) as server, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_client(server.port)) for _ in range(20)]
        await until(lambda: server.connections == 20)
        for peer in peers:
            peer.send(opening())
        for peer in peers:
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert len(set(host.decided_in)) == 20
        counted.going = False


@on_both_loops
async def test_a_request_that_is_followed_by_its_end_while_it_waits_is_answered_before_it() -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness) as server, AsyncExitStack() as stack:
        *before, last = [await stack.enter_async_context(raw_client(server.port)) for _ in range(20)]
        await until(lambda: server.connections == 20)
        for peer in before:
            peer.send(opening())
        last.send(opening("/livez"))
        last.writer.write_eof()
        assert (await last.read_all()).startswith(b"HTTP/1.1 200 ")


async def test_who_leaves_while_a_request_waits_is_not_decided_on_any_more() -> None:
    host = Host()
    host.held = asyncio.get_running_loop().create_future()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness) as server, AsyncExitStack() as stack:
        *before, last = [await stack.enter_async_context(raw_client(server.port)) for _ in range(20)]
        await until(lambda: server.connections == 20)
        for peer in before:
            peer.send(opening())
        last.send(opening("/ws?token=refuse-400"))
        last.writer.write_eof()
        assert await last.read_all() == b""
        assert [refusal.word for refusal in host.refusals] == ["gone"]
        host.held.set_result(None)
        for peer in before:
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_what_comes_while_a_request_waits_is_served_with_it_and_what_is_too_long_at_once() -> None:
    host = Host()
    limits = SocketLimits(header_bytes=4096)
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, limits=limits) as server:
        async with raw_client(server.port) as peer:
            request = opening("/ws", *("X-Long: " + "x" * 700 for _ in range(4)))
            for at in range(0, len(request), 500):
                peer.send(request[at : at + 500])
                await turns(3)
            assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        async with raw_client(server.port) as peer:
            peer.send(opening("/ws", *("X-Long: " + "x" * 1000 for _ in range(10))))
            assert (await peer.read_all()).startswith(b"HTTP/1.1 431 ")


async def test_those_who_wait_are_served_in_their_order_and_who_has_left_is_not() -> None:
    served: list[tuple[str, bytes]] = []
    made: Line[str] = Line(asyncio.get_running_loop(), lambda one, data: served.append((one, data)))
    made.add("a", b"1")
    made.add("b", b"2")
    made.add("a", b"3")
    made.add("c", b"4")
    made.add("d", b"5")
    made.leave("c")
    made.leave("nobody")
    made.now("d")
    assert served == [("d", b"5")]
    await turns(5)
    assert served == [("d", b"5"), ("a", b"13"), ("b", b"2")]
    assert len(made) == 0


async def test_one_whose_turn_fails_is_reported_and_costs_the_others_nothing() -> None:
    served: list[str] = []
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context))

    def serve(one: str, data: bytes) -> None:
        if one == "a":
            raise ValueError(one)
        served.append(one)

    made: Line[str] = Line(loop, serve)
    for one in "abc":
        made.add(one, b"")
    await turns(5)
    assert served == ["b", "c"]
    assert [str(one["exception"]) for one in reported] == ["a"]
