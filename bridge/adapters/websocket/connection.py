"""One connection of the WebSocket port: its request, then the session behind it, then its end.

The life of a connection, by the library's state of it:

| state      | what happens                                              | it ends by                            |
|------------|-----------------------------------------------------------|---------------------------------------|
| CONNECTING | the request is read, see `handshake.py`, decided on by    | the answer, in time, else 408, or     |
|            | the host, and answered                                    | 503 where the host has not decided    |
| OPEN       | the socket is the session's                               | a close frame of either side, a fault |
| CLOSING    | what is buffered flows out, then the peer is waited for   | the peer's EOF, or abort after grace  |
| CLOSED     | `handle.closed` has been called, nothing is left          |                                       |
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Sequence
from typing import Final, cast

from websockets.frames import BINARY, CONT, DATA_OPCODES, PONG, CloseCode
from websockets.frames import Frame as IncomingFrame
from websockets.http11 import Request, Response
from websockets.protocol import CONNECTING, OPEN, SEND_EOF

from bridge.adapters.websocket import parsers
from bridge.adapters.websocket.answers import CROWDED, TOO_EARLY, TOO_LATE, UNDECIDED, Early
from bridge.adapters.websocket.handshake import BUSY, GONE, Asked, Protocol
from bridge.adapters.websocket.limits import BURST_SECONDS, MINUTE
from bridge.adapters.websocket.pongs import follow, follow_request, only_pongs
from bridge.adapters.websocket.server import WebSocketServer
from bridge.adapters.websocket.stream import EventStream, half_close, reset
from bridge.core.model.sessions import CloseReason, Grant, Refusal
from bridge.core.ports.sockets import Frame, SessionHandle

WRITE_HIGH: Final = 64 * 1024
"""Bytes in the transport's buffer above which a socket is not writable. It is again below a quarter of it."""


class WebSocketConnection(asyncio.BufferedProtocol):
    """One TCP connection; the Socket port of its session once its handshake is granted."""

    __slots__ = (
        "_asked_to_close",
        "_backed_up",
        "_binary",
        "_closing",
        "_deadline",
        "_decision",
        "_due",
        "_due_long",
        "_handle",
        "_head",
        "_held",
        "_message",
        "_missing",
        "_pings",
        "_protocol",
        "_server",
        "_transport",
        "_unheard",
        "requested",
    )

    _transport: asyncio.Transport

    def __init__(self, server: WebSocketServer) -> None:
        self._server = server
        self._protocol: Protocol | None = server.parsers.new(CONNECTING)
        """None while its session is at rest: OPEN, and between two messages."""
        self._handle: SessionHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        """The timer that turns it away during the handshake, or aborts it while it closes."""
        self.requested = 0
        """Bytes of its opening request so far."""
        self._decision: asyncio.Task[Grant | Refusal] | None = None
        """The decision on its handshake, while the host waits for something."""
        self._closing = False
        """The grace for closing has begun."""
        self._asked_to_close = False
        self._backed_up = False
        """The transport's buffer is over its high-water mark."""
        self._message: bytearray | None = None
        """The fragments so far of an incomplete message."""
        self._binary = False
        # Two reasons for not reading: the client is over its rate, or it does not read our replies.
        self._held: asyncio.TimerHandle | None = None
        self._unheard = False
        self._due = 0.0
        self._due_long = 0.0
        """Loop times at which the frames so far would be within their rates (the theoretical arrival time of GCRA)."""
        self._pings = 0
        """Our pings without an answer; their pongs don't count against the client's rate."""
        self._head = b""
        self._missing = 0
        """Where the library's parser stands, see `follow`."""

    # --- the Socket port ---

    @property
    def writable(self) -> bool:
        """See the port."""
        return not self._backed_up and self._open

    @property
    def buffered(self) -> int:
        """See the port."""
        return self._transport.get_write_buffer_size()

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        """See the port.

        The frames bypass the library's serialiser, which costs five times as much. That is safe: without extensions
        and fragments, sending a frame does not change the protocol's state.
        """
        if not self._open:
            return False
        if ping is not None:
            self._pings += 1
        if data := self._server.wire.bytes_of(frames, ping):
            self._transport.write(data)
        return True

    def close(self, reason: CloseReason) -> None:
        """See the port. There is no frame for 1006 (RFC 6455 7.4.1), so reasons with this code abort."""
        if reason.code == CloseCode.ABNORMAL_CLOSURE:
            self.abort()
        elif self._open:
            self._asked_to_close = True
            self._library().send_close(reason.code, reason.word)
            self._flush()
            self._begin_closing()

    def abort(self) -> None:
        """See the port."""
        reset(self._transport)

    # --- what the server asks ---

    @property
    def undecided(self) -> bool:
        """The host decides on its handshake at this moment."""
        return self._decision is not None

    def leave(self) -> None:
        """The server is leaving: close a session, abort any other connection."""
        if self._protocol is not None and self._protocol.state is CONNECTING:
            self.abort()
        else:
            self.close(CloseReason.GOING_AWAY)

    # --- the library's protocol ---

    @property
    def _open(self) -> bool:
        # A connection without a protocol is OPEN.
        return (self._protocol is None or self._protocol.state is OPEN) and not self._transport.is_closing()

    def _library(self) -> Protocol:
        if self._protocol is None:
            self._protocol = self._server.parsers.take()
        return self._protocol

    def _rest(self) -> None:
        """Let go of the protocol, if it knows nothing that every other one does not."""
        protocol = self._protocol
        if protocol is not None and not self._head and not self._missing and parsers.at_rest(protocol):
            self._protocol = None
            self._server.parsers.give_back(protocol)

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is open; the request comes next."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH)
        self._server.entered(self)
        if self._server.leaving:
            self.abort()
        elif not self._closing:
            loop, seconds = self._server.loop, self._server.limits.handshake_seconds
            self._deadline = loop.call_later(seconds, self._out_of_time)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop puts what it reads."""
        return self._server.inbox

    def buffer_updated(self, nbytes: int) -> None:
        """The loop has read so many bytes."""
        if self._decision is not None:
            # Frames before our answer, as in `_answer`. The protocol must not see them: it would reply.
            self.turn_away(TOO_EARLY)
            return
        data = bytes(self._server.inbox[:nbytes])
        if self._handle is None and self._library().state is CONNECTING:
            self._server.asked(self, nbytes, data)
            return
        if self._handle is not None:
            if self._pings and not self._missing and not self._head and self._prove(self._handle, data):
                return
            self._head, self._missing = follow(self._head, self._missing, data)
        protocol = self._library()
        protocol.receive_data(data)
        self._serve(protocol)
        self._rest()

    def request_came(self, data: bytes) -> None:
        """It is its turn: these bytes of its request have come."""
        self._head, self._missing = follow_request(self._head, data)
        self._library().receive_data(data)
        self._answer()

    def eof_received(self) -> None:
        """The peer will send no more. The transport closes once its buffer is written."""
        self._server.line.now(self)
        if self._protocol is None and self._handle is None:
            return  # its request was granted a stream just now
        if self._decision is not None:
            self._left_undecided()
            return
        self._library().receive_eof()
        if self._handle is None:
            self._refused()
        else:
            self._flush()
        # The transport writes its buffer before it closes, and waits for ever if the peer doesn't read.
        self._begin_closing()

    def pause_writing(self) -> None:
        """The peer reads more slowly than we write."""
        self._backed_up = True

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self._backed_up = False
        if self._unheard:
            self._unheard = False
            self._read_or_not()
        if self._handle is not None and self.writable:
            self._handle.became_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone. A reset is an ordinary end of a WebSocket: `exc` says no more than 1006 does."""
        for timer in (self._deadline, self._held):
            if timer is not None:
                timer.cancel()
        self._deadline = self._held = None
        if self._decision is not None:
            self._left_undecided()
        if self._protocol is not None:
            self._protocol.receive_eof()
            parsers.forget(self._protocol)
        self._server.left(self)
        if self._handle is not None:
            code, reason = parsers.ending(self._protocol, self._asked_to_close)
            # Its session knows this connection: without the circle both are freed at once.
            handle, self._handle = self._handle, None
            handle.closed(code, reason)

    # --- the handshake ---

    def _answer(self) -> None:
        protocol = self._library()
        events = protocol.events_received()
        if not events:
            if protocol.eof_sent:
                self._refused()
            elif self.requested > self._server.limits.header_bytes:
                self.turn_away(self._server.doorway.too_long.request)
            return
        if len(events) > 1 or protocol.eof_sent:
            # Frames before our answer: "the client MUST wait" (RFC 6455 4.1).
            self.turn_away(TOO_EARLY)
            return
        asked = self._server.doorway.read(protocol, cast(Request, events[0]), self._transport)
        if isinstance(asked, Response):
            self._reply(asked, None)
        else:
            self._decide(asked)

    def _decide(self, asked: Asked) -> None:
        decision = self._server.session_host.handshake(asked.handshake)
        if not isinstance(decision, Grant | Refusal) and self._server.busy:
            decision.close()
            decision = BUSY
            self._server.session_host.refused(BUSY)
        if isinstance(decision, Grant | Refusal):
            self._reply(*self._server.doorway.decided(self._library(), asked, decision))
            return
        self._decision = self._server.loop.create_task(decision, name="handshake")
        self._server.decides(self._decision)
        # Not a partial: a loop that reports a failed callback would show the token in its arguments.
        self._decision.add_done_callback(lambda task: self._decided(asked, task))

    def _decided(self, asked: Asked, decision: asyncio.Task[Grant | Refusal]) -> None:
        if self._decision is not decision:
            return  # it was stopped, and the peer was turned away or has left
        self._decision = None
        try:
            answer = self._server.doorway.decided(self._library(), asked, decision.result())
        except BaseException:
            # A bug in the host: the loop's exception handler reports it.
            self.abort()
            raise
        if not self._transport.is_closing():
            self._reply(*answer)

    def _stop_deciding(self) -> None:
        if self._decision is not None:
            decision, self._decision = self._decision, None
            decision.cancel()

    def _left_undecided(self) -> None:
        self._stop_deciding()
        if self._server.answered(self):
            self._server.session_host.refused(GONE)

    def _reply(self, response: Response, grant: Grant | None) -> None:
        if grant is not None and response.status_code == http.HTTPStatus.OK:
            self._stream(response, grant)
            return
        self._library().send_response(response)
        self._server.answered(self)
        self._flush()
        if grant is None:
            self._begin_closing()
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if grant.claims is None:
            self._library().max_message_size = self._server.limits.line_bytes
        self._rest()
        self._handle = self._server.session_host.opened(grant, self)

    def _stream(self, head: Response, grant: Grant) -> None:
        """From now on the connection is a stream of events, and this object has no part in it."""
        if self._deadline is not None:
            self._deadline.cancel()
        parsers.forget(self._library())
        self._protocol = None
        stream = EventStream(self._server, self._transport)
        self._server.became(self, stream)
        self._transport.set_protocol(stream)
        self._transport.write(head.serialize())
        stream.handle = self._server.session_host.opened(grant, stream)

    def _refused(self) -> None:
        # Either the library's parser refuses the request, once, or the peer of a refused connection hangs up.
        protocol = self._library()
        if SEND_EOF in protocol.data_to_send():
            self._say(self._server.doorway.too_long.refused_by_library(protocol))
        self._begin_closing()

    def _say(self, early: Early) -> None:
        # A connection without a byte is no refused handshake: browsers open connections in advance.
        if self._server.answered(self) and (self.requested or early is CROWDED):
            self._server.session_host.refused(early.refusal)
        self._send([early.answer(by_head=self._library().reader.by_head), SEND_EOF])

    def _out_of_time(self) -> None:
        self.turn_away(TOO_LATE if self._decision is None else UNDECIDED)

    def turn_away(self, early: Early) -> None:
        """Answer a connection that has no answer yet with this one, and end it; also while the host decides on it."""
        self._stop_deciding()
        protocol = self._library()
        if not protocol.eof_sent:
            # While it is CONNECTING this sends nothing, and later input is discarded.
            protocol.fail(CloseCode.PROTOCOL_ERROR)
        protocol.data_to_send()
        self._say(early)
        self._begin_closing()

    # --- an open session ---

    def _prove(self, handle: SessionHandle, data: bytes) -> bool:
        """Take a read that holds only answers to our pings. False, and nothing done, where it is any other."""
        if not self._open:
            return False
        payloads = only_pongs(data)
        if not 0 < len(payloads) <= self._pings:
            return False
        self._pings -= len(payloads)
        for payload in payloads:
            handle.pong(payload)
            if self._transport.is_closing():
                break
        return True

    def _serve(self, protocol: Protocol) -> None:
        replied = self._flush()
        frames = cast(list[IncomingFrame], protocol.events_received())
        rated = len(frames)
        handle = self._handle
        for frame in frames:
            opcode = frame.opcode
            if opcode is PONG:
                if self._pings:
                    self._pings -= 1
                    rated -= 1
                if handle is not None:
                    handle.pong(bytes(frame.data))
            elif opcode in DATA_OPCODES and not self._take(frame):
                break
            if self._transport.is_closing():
                return
        if protocol.state is not OPEN:
            self._begin_closing()
        if rated:
            self._limit(rated, replied)

    def _take(self, frame: IncomingFrame) -> bool:
        """Give a data message to the session when it is complete. False: the connection was failed."""
        if frame.opcode is not CONT:
            self._binary = frame.opcode is BINARY
            if frame.fin:
                return self._hand_over(frame.data)
            self._message = bytearray()
        assert self._message is not None, "the protocol refuses a continuation of nothing"
        self._message += frame.data
        if not frame.fin:
            return True
        whole, self._message = self._message, None
        return self._hand_over(whole)

    def _hand_over(self, data: bytes | bytearray | memoryview) -> bool:
        message: str | bytes
        try:
            message = bytes(data) if self._binary else str(data, "utf-8")
        except UnicodeDecodeError:
            self._library().fail(CloseCode.INVALID_DATA, "a text message that is not UTF-8")
            self._flush()
            return False
        self._library().max_message_size = (
            self._server.limits.message_bytes
        )  # the first message may have less
        if self._handle is not None:
            self._handle.message(message)
        return True

    def _limit(self, frames: int, replied: bool) -> None:
        loop, limits = self._server.loop, self._server.limits
        now = loop.time()
        self._due = max(self._due, now) + frames / limits.frames_per_second
        self._due_long = max(self._due_long, now) + frames * MINUTE / limits.frames_per_minute
        if self._due_long - now > MINUTE and self._handle is not None:
            self._handle.flooded()
        excess = self._due - now - BURST_SECONDS
        if excess > 0 and self._held is None and not self._transport.is_closing():
            self._held = loop.call_later(excess, self._release)
        if replied and self._backed_up and not self._closing:
            # The peer sends pings and does not read our pongs: they must not pile up here.
            self._unheard = True
        if self._held is not None or self._unheard:
            self._read_or_not()

    def _release(self) -> None:
        self._held = None
        self._read_or_not()

    def _read_or_not(self) -> None:
        if self._transport.is_closing():
            return
        if self._held is not None or self._unheard:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    # --- the end ---

    def _begin_closing(self) -> None:
        """Give the peer `close_grace` seconds to read what is left and to hang up."""
        if self._closing or self._transport.is_closing():
            return
        self._closing = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._server.loop.call_later(self._server.close_grace, self.abort)

    def _flush(self) -> bool:
        """Write what the protocol sends by itself. Returns whether there was anything."""
        return self._protocol is not None and self._send(self._protocol.data_to_send())

    def _send(self, writes: Sequence[bytes]) -> bool:
        if not writes or self._transport.is_closing():
            return False
        if data := b"".join(writes):
            self._transport.write(data)
        if writes[-1] == SEND_EOF and not self._transport.is_closing():
            self._half_close()
        return bool(data)

    def _half_close(self) -> None:
        half_close(self._transport)
