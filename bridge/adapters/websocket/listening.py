"""Open the WebSocket port: a server, and a connection for each client that connects."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

from bridge.adapters.websocket.connection import WebSocketConnection
from bridge.adapters.websocket.handshake import Readiness
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.server import WebSocketServer
from bridge.core.ports.sockets import SessionHost

USUAL: Final = SocketLimits()
BACKLOG: Final = 4096
"""Connections that the kernel keeps waiting for `accept` (capped by net.core.somaxconn)."""
LEAVING_SECONDS: Final = 0.5
"""Seconds after which a port is left though connections still come: others are to get those."""

QUIET_TURNS: Final = 3
"""Turns of the loop without a new connection before a port is left. What is accepted gets its protocol a turn later,
and only while the port is listened on."""


@asynccontextmanager
async def listen(
    host: str,
    port: int,
    session_host: SessionHost,
    *,
    readiness: Readiness,
    close_grace: float = 2.0,
    limits: SocketLimits = USUAL,
    headers: Collection[str] = (),
    asks_at_once: int = 0,
    shared: bool = False,
    origins: Collection[str] = (),
) -> AsyncIterator[WebSocketServer]:
    """Serve WebSockets at `host:port` (0: any free port, see `WebSocketServer.port`) inside the `async with`.

    `close_grace`: seconds a peer has to take part in closing. `headers`: those that the host gets of each
    handshake, in lower case. `asks_at_once`: handshakes about which the host may ask somebody else; they take no
    place of those that wait for other things. `origins`: those whose pages may open sessions, empty: of all.
    `shared`: others listen on this port, too (SO_REUSEPORT), see `leave_port`.

    At the end of the block, sessions that are still open are closed with 1001, and they are gone within the grace. To
    spread them out, close them before. Raises OSError when the address can't be bound.
    """
    server = WebSocketServer(
        session_host,
        readiness,
        close_grace=close_grace,
        limits=limits,
        headers=headers,
        asks_at_once=asks_at_once,
        origins=origins,
    )
    listener = await server.loop.create_server(
        lambda: WebSocketConnection(server), host, port, backlog=BACKLOG, reuse_port=shared or None
    )
    server.port = listener.sockets[0].getsockname()[1]
    if shared:
        server.leave_port = lambda: leave_port(listener)
    try:
        yield server
    finally:
        listener.close()
        await server.leave()
        await listener.wait_closed()


async def leave_port(listener: asyncio.Server) -> None:
    """Accept what waits already, then listen no more: the kernel gives new connections to the others on this port.

    What it has queued for this process would be reset. A connection that comes between the last look and the close is,
    unless net.ipv4.tcp_migrate_req is 1.
    """
    waiting = select.poll()
    for sock in listener.sockets:
        waiting.register(sock.fileno(), select.POLLIN)
    loop = asyncio.get_running_loop()
    until = loop.time() + LEAVING_SECONDS
    quiet = 0
    while quiet < QUIET_TURNS and loop.time() < until:
        quiet = 0 if waiting.poll(0) else quiet + 1
        await asyncio.sleep(0)
    listener.close()
