"""Open the WebSocket port: a server, and a connection for each client that connects."""

from __future__ import annotations

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
) -> AsyncIterator[WebSocketServer]:
    """Serve WebSockets at `host:port` (0: any free port, see `WebSocketServer.port`) inside the `async with`.

    `close_grace`: seconds a peer has to take part in closing. `headers`: those that the host gets of each handshake, in
    lower case. `asks_at_once`: handshakes about which the host may ask somebody else; they take no place of those that
    wait for other things. At the end of the block, sessions that are still open are closed with 1001, and they are gone
    within the grace. To spread them out, close them before. Raises OSError when the address can't be bound.
    """
    server = WebSocketServer(
        session_host,
        readiness,
        close_grace=close_grace,
        limits=limits,
        headers=headers,
        asks_at_once=asks_at_once,
    )
    listener = await server.loop.create_server(
        lambda: WebSocketConnection(server), host, port, backlog=BACKLOG
    )
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await server.leave()
        await listener.wait_closed()
