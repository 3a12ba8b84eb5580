"""The ports between the core and WebSockets: what the core calls, and what the adapter calls."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from bridge.core.model.sessions import CloseReason, Grant, Handshake, Refusal, Said


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One data message, ready for its mode (bare or envelope)."""

    payload: bytes
    binary: bool = False
    """False: a text frame, and `payload` is valid UTF-8."""
    id: str = ""
    """The id of the push that it brings; empty where it is about something else. Only server-sent events show it."""
    retry: float | None = None
    """Seconds after which a client may come back, where the frame says so. Likewise."""


class Socket(Protocol):
    """The writing side of one WebSocket, or of one stream of events. No method waits or raises; a closed socket ignores
    calls."""

    @property
    def writable(self) -> bool:
        """False while the transport's buffer is over its high-water mark, and once the socket is closing."""
        ...

    @property
    def buffered(self) -> int:
        """Bytes that were written and that the kernel has not accepted yet."""
        ...

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        """Write all frames, then a ping with this payload unless it is None, in one write.

        Returns False, with nothing written, when the connection is closing or closed.
        """
        ...

    def close(self, reason: CloseReason) -> None:
        """Begin the closing handshake (RFC 6455 7); abort soon after if the peer does not answer it."""
        ...

    def abort(self) -> None:
        """Drop the connection at once, and what is buffered with it (TCP reset)."""
        ...


class SessionHandle(Protocol):
    """The core's side of one open socket; the WebSocket adapter calls it from the event loop. Never raises."""

    def pong(self, payload: bytes) -> None:
        """The peer answered a ping with this payload."""
        ...

    def became_writable(self) -> None:
        """`Socket.writable` is True again after it was False."""
        ...

    def message(self, data: str | bytes) -> None:
        """The peer sent a data message."""
        ...

    def flooded(self) -> None:
        """The peer sends more than a client may. May be called again until the socket is closed."""
        ...

    def closed(self, code: int, reason: str) -> None:
        """The connection is closed (1006 if no close frame was received). Called exactly once, last."""
        ...


class SessionHost(Protocol):
    """The core's side of the WebSocket server. Never raises."""

    def said(self, said: Said) -> Refusal | None:
        """A client without a WebSocket answers a ping, or acknowledges a push. Returns why that counts for nothing;
        None where it is noted, or another node was told of it."""
        ...

    def handshake(self, request: Handshake) -> Grant | Refusal | Coroutine[Any, Any, Grant | Refusal]:
        """Decide on an opening handshake. The client gets no answer before that.

        A decision that has to wait for something is a coroutine. The adapter runs it as a task, and cancels it when the
        client leaves, when the time for the handshake is over, or when the server stops. So few may wait at once that
        strangers must not take these places: what can be refused without waiting is refused first.
        """
        ...

    def refused(self, refusal: Refusal) -> None:
        """The adapter refused an opening handshake without a decision, or the client left before it."""
        ...

    def opened(self, grant: Grant, socket: Socket) -> SessionHandle:
        """The handshake is done. The host may write to the socket from now on, even during this call.

        Where the grant has no claims, the first message is to bring the token: the adapter allows it no more bytes than
        a header may have.
        """
        ...
