"""What the core asks of a socket, and what a socket tells the core."""

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
    """One WebSocket of a session, writing side. No method waits or raises; a closed one ignores calls."""

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
        """Begin the closing handshake (RFC 6455 7); abort soon after if the peer does not take part."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, with whatever is buffered (TCP reset)."""
        ...


class SessionHandle(Protocol):
    """The core's side of one open socket; the WebSocket adapter calls it from the event loop. Never raises."""

    def pong(self, payload: bytes) -> None:
        """The peer answered a ping with this payload."""
        ...

    def writable(self) -> None:
        """`Socket.writable` is True again after it was False."""
        ...

    def message(self, data: str | bytes) -> None:
        """The peer sent a data message."""
        ...

    def closed(self, code: int, reason: str) -> None:
        """The connection is gone (1006 where no close frame was seen). Called exactly once, last."""
        ...


class SessionHost(Protocol):
    """The core's side of the WebSocket server. Never raises."""

    async def handshake(self, request: Handshake) -> Grant | Refusal:
        """Decide on an opening handshake; nothing is answered before. Cancelled when the client leaves, the time for
        its handshake is over, or the server stops.

        The adapter takes the first step outside of any task, so that a decision that waits for nothing costs none.
        So what needs a task, such as `asyncio.timeout`, must come after a first wait (`await asyncio.sleep(0)`).
        """
        ...

    def refused(self, refusal: Refusal) -> None:
        """The adapter refused an opening handshake by itself, for its form, its size or its time."""
        ...

    def opened(self, grant: Grant, socket: Socket) -> SessionHandle:
        """The handshake is done. The host may write to the socket from now on, also within this call."""
        ...
