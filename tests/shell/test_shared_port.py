"""One WebSocket port for several processes: held by one, listened on by the others, and left without a loss."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest

from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.server import WebSocketServer
from bridge.core.errors import SettingsError
from bridge.workers.port import held_port
from tests.support.clients import SECONDS, client, opening, refusal
from tests.support.loops import on_both_loops
from tests.support.websocket_host import Host

HERE = "127.0.0.1"


@asynccontextmanager
async def sharing(port: int) -> AsyncIterator[WebSocketServer]:
    """A server that shares the port, as a worker has it."""
    host = Host()
    async with listen(HERE, port, host, readiness=host.readiness, close_grace=0.1, shared=True) as server:
        yield server


def test_a_port_is_held_by_one_only_and_chosen_if_any_will_do() -> None:
    with held_port(HERE, 0) as port:
        assert port > 0
        with pytest.raises(SettingsError, match=rf"cannot listen on {HERE}:{port}: Address already in use"):
            with held_port(HERE, port):
                pass
    with held_port(HERE, port) as again:
        assert again == port


async def test_a_port_that_somebody_listens_on_is_not_had_whether_it_is_shared_or_not() -> None:
    host = Host()
    async with listen(HERE, 0, host, readiness=host.readiness) as server:
        with pytest.raises(SettingsError, match="BRIDGE_WS_PORT"), held_port(HERE, server.port):
            pass
    async with sharing(0) as server:
        with pytest.raises(SettingsError, match="BRIDGE_WS_PORT"), held_port(HERE, server.port):
            pass


async def test_who_does_not_share_gets_no_port_that_is_held() -> None:
    host = Host()
    with held_port(HERE, 0) as port:
        with pytest.raises(OSError, match="already in use"):
            async with listen(HERE, port, host, readiness=host.readiness):
                pass
        async with sharing(port) as one, sharing(port) as two:
            assert one.port == two.port == port


async def test_a_port_is_had_again_right_after_connections_were_closed_there() -> None:
    async with sharing(0) as server:
        async with client(server.port, "u"):
            pass
    with held_port(HERE, server.port):
        pass


@on_both_loops
async def test_who_leaves_a_port_answers_what_waits_there_and_the_others_get_the_rest() -> None:
    async with AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(sharing(0))
        staying = await stack.enter_async_context(sharing(leaving.port))
        peers = stack.enter_context(ExitStack())

        def peer() -> socket.socket:
            # The kernel connects it, to one of both; the loop does not turn, so nobody accepts it yet.
            made = peers.enter_context(socket.create_connection((HERE, leaving.port), SECONDS))
            made.sendall(opening("/ws?token=refuse-403"))
            return made

        waiting = [peer() for _ in range(64)]
        leaving.stop_accepting()
        assert leaving.leave_port is not None
        await leaving.leave_port()
        later = [peer() for _ in range(64)]
        answers = [await asyncio.to_thread(whole, made) for made in waiting]
        statuses = [refusal(answer)[0] for answer in answers]
        assert set(statuses) == {403, 503}
        assert {refusal(await asyncio.to_thread(whole, made))[0] for made in later} == {403}
        async with client(staying.port, "u"):
            pass


def whole(sock: socket.socket) -> bytes:
    """All that comes until the end."""
    found = b""
    while more := sock.recv(65536):
        found += more
    return found
