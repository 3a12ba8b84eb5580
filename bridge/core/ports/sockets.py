"""What the core asks of a socket, and what the WebSocket server tells the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from bridge.core.model.sessions import CloseReason, Grant, Handshake, Refusal


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One WebSocket data message, ready for its mode (bare or envelope)."""

    payload: bytes
    binary: bool = False
    """False: a text frame, and `payload` is valid UTF-8."""


class Socket(Protocol):
    """The writing side of a session's WebSocket. No method waits or raises; a closed socket ignores calls."""

    @property
    def writable(self) -> bool:
        """False while the transport's buffer is over its high-water mark, and once the socket is closing."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes handed over that the kernel has not taken yet."""
        ...

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        """Hand over all frames, then a ping with this payload unless it is None, in one write.

        Returns False, with nothing handed over, when the connection is closing or closed.
        """
        ...

    def close(self, reason: CloseReason) -> None:
        """Begin the closing handshake (RFC 6455 7); abort soon after if the peer does not answer it."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, with everything that is buffered (TCP reset)."""
        ...


class SessionHandle(Protocol):
    """The core's side of one open socket; the WebSocket adapter calls it from the event loop. Never raises."""

    def pong(self, payload: bytes) -> None:
        """The peer answered a ping with this payload."""
        ...

    def resumed(self) -> None:
        """`Socket.writable` is True again after it was False."""
        ...

    def message(self, data: str | bytes) -> None:
        """The peer sent a data message."""
        ...

    def closed(self, code: int, reason: str) -> None:
        """The connection is closed (1006 if no close frame was received). Called exactly once, last."""
        ...


class SessionHost(Protocol):
    """The core's side of the WebSocket server. Never raises."""

    def handshake(self, request: Handshake) -> Grant | Refusal:
        """Decide on an opening handshake."""
        ...

    def refused(self, refusal: Refusal) -> None:
        """The adapter itself refused an opening handshake: it was malformed, too large or too slow."""
        ...

    def opened(self, grant: Grant, socket: Socket) -> SessionHandle:
        """The handshake is done. The host may write to the socket from now on, even during this call."""
        ...
