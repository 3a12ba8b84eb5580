"""Handshakes that the host takes its time to decide on, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from bridge.adapters.websocket import server as websocket
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.server import WebSocketServer
from bridge.core.ports.sockets import Frame, Socket
from tests.support.clients import SECONDS, masked, opening, raw_client, refusal
from tests.support.loops import on_both_loops
from tests.support.waiting import until
from tests.support.websocket_host import Host


@asynccontextmanager
async def holding(
    *, open_timeout: float = SECONDS
) -> AsyncIterator[tuple[Host, WebSocketServer, asyncio.Future[None]]]:
    """A server whose host decides on nothing before the future is resolved."""
    host = Host()
    held = host.hold()
    async with listen(
        "127.0.0.1",
        0,
        host,
        readiness=host.readiness,
        close_grace=SECONDS,
        limits=SocketLimits(handshake_seconds=open_timeout),
    ) as server:
        yield host, server, held
    assert (server.connections, server.handshakes_in_progress, server.unanswered_bytes) == (0, 0, 0)
    assert not server.busy
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "handshake"]
    for seen in host.sessions:
        assert len(seen.endings) == 1


def welcome(socket: Socket) -> None:
    socket.write((Frame(b"welcome"),), None)


@on_both_loops
async def test_nothing_is_said_before_the_decision_and_the_welcome_comes_after_it() -> None:
    async with holding() as (host, server, held), raw_client(server.port) as peer:
        host.on_open = welcome
        peer.send(opening())
        await host.until(lambda: host.begun)
        assert server.handshakes_in_progress == 1
        assert host.sessions == []
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.reader.read(1), 0.05)
        held.set_result(None)
        assert (await peer.read_until(b"welcome")).startswith(b"HTTP/1.1 101 ")
        peer.send(masked(0x1, b"hello"))
        seen = await host.session()
        await host.until(lambda: seen.messages)
        assert seen.messages == ["hello"]
        assert server.handshakes_in_progress == 0
        assert host.refusals == []


@on_both_loops
async def test_a_refusal_after_a_wait_is_an_answer_like_any_other() -> None:
    async with holding() as (host, server, held), raw_client(server.port) as peer:
        peer.send(opening("/ws?token=refuse-401"))
        await host.until(lambda: host.begun)
        held.set_result(None)
        assert refusal(await peer.read_all()) == (401, "test", "refused with 401")
        assert host.sessions == []


@on_both_loops
async def test_a_peer_that_leaves_meanwhile_is_dropped_and_its_decision_given_up() -> None:
    for how in ("half", "whole", "reset"):
        async with holding() as (host, server, _):
            async with raw_client(server.port) as peer:
                peer.send(opening())
                await host.until(lambda: host.begun)
                if how == "half":
                    peer.writer.write_eof()
                    assert await peer.read_all() == b""
                elif how == "reset":
                    peer.reset()
            await host.until(lambda: host.cancelled)
            await until(lambda: server.connections == 0)
            assert [told.why for told in host.refusals] == ["gone"]
            assert host.sessions == []


@on_both_loops
async def test_a_peer_that_goes_on_meanwhile_is_turned_away_and_nothing_of_it_is_processed() -> None:
    for more in (masked(0x1, b"early"), masked(0x9, b"ping"), masked(0x8, b""), b"\xff\xff\xff\xff"):
        async with holding() as (host, server, _), raw_client(server.port) as peer:
            peer.send(opening())
            await host.until(lambda: host.begun)
            peer.send(more)
            sentence = "Wait for the answer before you go on (RFC 6455 4.1)."
            assert refusal(await peer.read_all()) == (400, "too_early", sentence)
            await host.until(lambda: host.cancelled)
            assert [told.why for told in host.refusals] == ["too_early"]
            assert host.sessions == []


@on_both_loops
async def test_what_comes_with_the_request_is_too_early_and_the_host_is_not_asked() -> None:
    async with holding() as (host, server, _), raw_client(server.port) as peer:
        peer.send(opening() + masked(0x1, b"early"))
        assert (await peer.read_all()).startswith(b"HTTP/1.1 400 ")
        assert host.handshakes == []


@on_both_loops
async def test_only_so_many_are_decided_on_at_once_and_who_comes_over_it_is_told_to_come_back() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "HANDSHAKES_AT_ONCE", 2)
        async with holding() as (host, server, held), AsyncExitStack() as stack:
            waiting = [await stack.enter_async_context(raw_client(server.port)) for _ in range(2)]
            for peer in waiting:
                peer.send(opening())
            await host.until(lambda: host.begun == 2)
            async with raw_client(server.port) as over:
                over.send(opening())
                answer = await over.read_all()
            assert refusal(answer)[:2] == (503, "busy")
            assert [told.why for told in host.refusals] == ["busy"]
            host.held = None  # whoever need not wait is decided on all the same
            async with raw_client(server.port) as quick:
                quick.send(opening())
                assert (await quick.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            host.held = held
            waiting.pop().writer.transport.abort()
            await until(lambda: not server.busy)
            waiting.append(await stack.enter_async_context(raw_client(server.port)))
            waiting[-1].send(opening())
            await host.until(lambda: host.begun == 3)
            held.set_result(None)
            for peer in waiting:
                assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@on_both_loops
async def test_decisions_that_wait_for_nothing_have_no_bound_and_take_no_task() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "HANDSHAKES_AT_ONCE", 1)
        patch.setattr(WebSocketServer, "decides", lambda *_: pytest.fail("a task was made"))
        async with holding() as (host, server, _), AsyncExitStack() as stack:
            host.held = None
            peers = [await stack.enter_async_context(raw_client(server.port)) for _ in range(20)]
            for peer in peers:
                peer.send(opening())
            for peer in peers:
                assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@on_both_loops
async def test_a_drain_meanwhile_sends_them_away_at_once() -> None:
    async with holding() as (host, server, _), raw_client(server.port) as peer:
        peer.send(opening())
        await host.until(lambda: host.begun)
        server.stop_accepting()
        assert refusal(await peer.read_all())[:2] == (503, "draining")
        assert [told.why for told in host.refusals] == ["draining"]
        await host.until(lambda: host.cancelled)


@on_both_loops
async def test_a_decision_is_given_up_before_its_task_had_a_turn() -> None:
    async with holding() as (host, server, _), raw_client(server.port) as peer:
        loop = asyncio.get_running_loop()

        def drain() -> None:
            loop.call_soon(server.stop_accepting)

        host.on_hold = drain
        peer.send(opening())
        assert (await peer.read_all()).startswith(b"HTTP/1.1 503 ")
        assert (host.begun, host.sessions) == (0, [])


@on_both_loops
async def test_leaving_ends_what_is_being_decided_on() -> None:
    async with AsyncExitStack() as stack:
        async with holding() as (host, server, _):
            peer = await stack.enter_async_context(raw_client(server.port))
            peer.send(opening())
            await host.until(lambda: host.begun)
        assert host.cancelled == 1
        assert host.sessions == []


@on_both_loops
async def test_a_decision_that_is_not_there_in_time_is_a_503() -> None:
    async with holding(open_timeout=0.2) as (host, server, _), raw_client(server.port) as peer:
        peer.send(opening())
        assert refusal(await peer.read_all())[:2] == (503, "undecided")
        assert [told.why for told in host.refusals] == ["undecided"]
        await host.until(lambda: host.cancelled)


@on_both_loops
async def test_a_host_that_fails_in_its_decision_costs_that_connection_and_is_told() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    async with holding() as (host, server, held), raw_client(server.port) as peer:
        peer.send(opening("/ws?token=opaque-secret"))
        await host.until(lambda: host.begun)
        held.set_exception(ZeroDivisionError())
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await peer.reader.readexactly(1)
        await until(lambda: server.connections == 0)
        assert host.sessions == []
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
    assert "opaque-secret" not in repr(told), "what the loop logs shows no token"
