"""The real WebSocket server with a host that sends every message back: `python -m tests.support.echo PORT`.

Other implementations' test suites want such a server. It has no tokens, and bounds that are larger than a bridge's.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.server import WebSocketServer
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal, Said
from bridge.core.ports.sockets import Frame, Socket

LIMITS: Final = SocketLimits(
    message_bytes=1 << 25, frames_per_second=1e9, frames_per_minute=1e12, handshake_seconds=30.0
)


class Echo:
    """Fills the SessionHandle port."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def pong(self, payload: bytes) -> None:
        """Nothing was asked."""

    def became_writable(self) -> None:
        """Nothing waits."""

    def message(self, data: str | bytes) -> None:
        """Send it back as it came."""
        binary = isinstance(data, bytes)
        self._socket.write((Frame(data if isinstance(data, bytes) else data.encode(), binary),), None)

    def flooded(self) -> None:
        """Such a rate is not reached."""
        self._socket.close(CloseReason.OVER_LIMIT)

    def closed(self, code: int, reason: str) -> None:
        """Nothing is kept."""


class EchoHost:
    """Fills the SessionHost port: everybody may come in."""

    def handshake(self, request: Handshake) -> Grant:
        """Granted."""
        return Grant(Claims("anybody", 4e9), Mode.BARE, None)

    def refused(self, refusal: Refusal) -> None:
        """Nobody counts."""

    def said(self, said: Said) -> Refusal | None:
        return None

    def opened(self, grant: Grant, socket: Socket) -> Echo:
        """Begin to listen."""
        return Echo(socket)


@asynccontextmanager
async def echoing(port: int = 0) -> AsyncIterator[WebSocketServer]:
    """The server, for the length of the block."""
    async with listen("127.0.0.1", port, EchoHost(), readiness=lambda: (True, ()), limits=LIMITS) as server:
        yield server


async def serve(port: int) -> None:
    """Serve until it is ended."""
    async with echoing(port) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if sys.argv[1:] else 0))
