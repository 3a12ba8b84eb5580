"""One stream of events: the answer to `GET /sse`, which lasts as long as its session (HTML 9.2, server-sent events).

Each frame is one message: its data, and the push id as the id of the event. A ping is a message as well, since nothing
below it is answered by the peer. The body ends with the connection, so HTTP/1.0 will do, and nothing is compressed.
"""

from __future__ import annotations

import asyncio
import re
import socket as stdlib_socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from bridge.adapters.websocket.answers import Early
from bridge.core.contract.frames import ping_frame
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.sockets import Frame, SessionHandle

if TYPE_CHECKING:
    from bridge.adapters.websocket.server import WebSocketServer

ABNORMAL: Final = 1006
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_LINE_ENDS: Final = re.compile(rb"\r\n|\n|\r")


def reset(transport: asyncio.Transport) -> None:
    """Drop a connection at once, and what is buffered with it."""
    if transport.is_closing():
        # It is closing, but may still be writing its buffer: abort that, too.
        transport.abort()
        return
    # Without a reset the kernel would still deliver what is in its own buffer.
    sock = transport.get_extra_info("socket")
    # Some systems refuse it once the peer has reset: then nothing is delivered anyway.
    with suppress(OSError):
        sock.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def half_close(transport: asyncio.Transport) -> None:
    """Say that nothing more comes. To close a socket with unread input resets it: the peer may lose our last bytes."""
    try:
        transport.write_eof()
    except (OSError, RuntimeError):
        # The peer has reset the connection (RuntimeError in uvloop): nobody is there to read.
        transport.abort()


def event_of(frame: Frame) -> bytes:
    """The message of a frame. Its JSON may have line ends, as it was published: each line is a field, and the reader
    joins them with line feeds, which are white space as well. An id has none."""
    head = b""
    if frame.id:
        head = b"id: %b\n" % frame.id.encode()
    elif frame.retry is not None:
        head = b"retry: %d\n" % (frame.retry * 1000)
    payload = frame.payload
    if b"\n" in payload or b"\r" in payload:
        payload = _LINE_ENDS.sub(b"\ndata: ", payload)
    return b"%bdata: %b\n\n" % (head, payload)


class Events:
    """Makes those bytes; as `Wire`, it remembers the last frame, which many sessions may get."""

    __slots__ = ("_bytes", "_last")

    def __init__(self) -> None:
        self._last = Frame(b"")
        self._bytes = event_of(self._last)

    def bytes_of(self, frames: Sequence[Frame], ping: bytes | None) -> bytes:
        """The messages of these frames, then of a ping with this payload."""
        if len(frames) == 1:
            if frames[0] is not self._last:
                self._last, self._bytes = frames[0], event_of(frames[0])
            data = self._bytes
        else:
            data = b"".join([event_of(frame) for frame in frames])
        return data if ping is None else data + event_of(ping_frame(ping))


class EventStream(asyncio.BufferedProtocol):
    """A connection from the moment on at which its stream was granted; the Socket port of its session."""

    __slots__ = ("_backed_up", "_deadline", "_done", "_server", "_transport", "handle", "requested")

    undecided: Final = False
    """See `ServedConnection`: the host has decided."""

    def __init__(self, server: WebSocketServer, transport: asyncio.Transport) -> None:
        self._server = server
        self._transport = transport
        self.handle: SessionHandle | None = None
        self.requested = 0
        self._backed_up = False
        self._done = False
        """Nothing more is written."""
        self._deadline: asyncio.TimerHandle | None = None

    # --- the Socket port ---

    @property
    def writable(self) -> bool:
        """See the port."""
        return not self._backed_up and self._open

    @property
    def buffered(self) -> int:
        """See the port."""
        return self._transport.get_write_buffer_size()

    @property
    def _open(self) -> bool:
        return not self._done and not self._transport.is_closing()

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        """See the port."""
        if not self._open:
            return False
        if data := self._server.events.bytes_of(frames, ping):
            self._transport.write(data)
        return True

    def close(self, reason: CloseReason) -> None:
        """See the port. What the reason is stands in the last message; here the stream ends."""
        if reason.code == ABNORMAL:
            self.abort()
        elif self._open:
            self._end()
            half_close(self._transport)

    def _end(self) -> None:
        """Give the peer `close_grace` seconds to read what is left and to hang up."""
        self._done = True
        if self._deadline is None:
            self._deadline = self._server.loop.call_later(self._server.close_grace, self.abort)

    def abort(self) -> None:
        """See the port."""
        self._done = True
        reset(self._transport)

    # --- what the server asks ---

    def request_came(self, data: bytes) -> None:
        """See `ServedConnection`: its request has come."""

    def turn_away(self, early: Early) -> None:
        """See `ServedConnection`: it has its answer."""

    def leave(self) -> None:
        """The server is leaving."""
        self.close(CloseReason.GOING_AWAY)

    # --- asyncio's callbacks ---

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop puts what it reads."""
        return self._server.inbox

    def buffer_updated(self, nbytes: int) -> None:
        """Nothing can come behind the request: its answer does not end."""
        if not self._done:
            self.abort()

    def eof_received(self) -> None:
        """The client has left. The transport closes once its buffer is written."""
        self._end()

    def pause_writing(self) -> None:
        """The peer reads more slowly than we write."""
        self._backed_up = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._backed_up = False
        if self.handle is not None and self.writable:
            self.handle.became_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone. A client of a stream can't say why."""
        self._done = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._server.left(self)
        if self.handle is not None:
            handle, self.handle = self.handle, None
            handle.closed(ABNORMAL, "")
