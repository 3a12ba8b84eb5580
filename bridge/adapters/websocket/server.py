"""The WebSocket server: one asyncio protocol per connection around websockets' sans-I/O ServerProtocol.

The library's parser, handshake and closing rules are used as they are. Its asyncio layer is not: that keeps
a task, a queue and several futures for each connection, where the ports want synchronous calls only. Here a
connection is one object and no task: bytes come in, the session's handle is called, bytes go out. Nothing
is ever queued on the way in, so a client that floods is not read for a while, and TCP slows it down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from bridge.adapters.websocket.answers import CROWDED, FULL, STOPPING, Early
from bridge.adapters.websocket.handshake import Doorway, Readiness
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.line import Line
from bridge.adapters.websocket.parsers import Parsers
from bridge.adapters.websocket.stream import Events
from bridge.adapters.websocket.wire import Wire
from bridge.core.model.sessions import Grant, Refusal
from bridge.core.ports.sockets import SessionHost

READ_CHUNK: Final = 4096
"""Bytes read from a socket at a time: the most that one client is served before the others have their turn."""
UNANSWERED_MAX: Final = 4096
"""Connections whose request is not answered yet. Over it the oldest gets 503: real clients ask within a moment."""
UNANSWERED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes of their requests so far. Over it the oldest gets 503, too."""
HANDSHAKES_AT_ONCE: Final = 100
"""Handshakes that the host may decide on at a time, where it has to wait for something; over it they get 503."""

TOLD_MAX: Final = 32
"""Connections over the bound that get an answer; those have a descriptor until they are closed. More are dropped."""
TELLS_EVERY: Final = 60.0
"""Seconds between two warnings that no more connections are taken."""

log = logging.getLogger("bridge.websocket")


class ServedConnection(Protocol):
    """What the server asks of a connection; `WebSocketConnection` has it, and knows the server."""

    requested: int
    """Bytes of its opening request so far."""

    @property
    def undecided(self) -> bool:
        """The host decides on its handshake at this moment."""
        ...

    def request_came(self, data: bytes) -> None:
        """It is its turn: these bytes of its request have come."""
        ...

    def turn_away(self, early: Early) -> None:
        """Answer a connection that has no answer yet with this one, and end it; also while the host decides on it."""
        ...

    def leave(self) -> None:
        """Close a session with 1001, abort any other connection."""
        ...

    def abort(self) -> None:
        """Drop the connection at once (TCP reset)."""
        ...


class WebSocketServer:
    """A listening port and all its connections."""

    def __init__(
        self,
        host: SessionHost,
        readiness: Readiness,
        *,
        close_grace: float,
        limits: SocketLimits,
        headers: Collection[str] = (),
        asks_at_once: int = 0,
        origins: Collection[str] = (),
    ) -> None:
        """See `listening.listen`."""
        self.port = 0
        self.leave_port: Callable[[], Awaitable[None]] | None = None
        """Where others listen on the port, too: accepts what waits, and leaves new connections to them."""
        self.loop = asyncio.get_running_loop()
        self.session_host = host
        self.doorway = Doorway(host, readiness, limits, headers, origins)
        self.close_grace = close_grace
        self.limits = limits
        # One buffer for all: the loop fills it and the connection empties it within one callback.
        self.inbox = memoryview(bytearray(READ_CHUNK))
        self.wire = Wire()
        self.events = Events()
        self.parsers = Parsers(limits)
        self.line: Line[ServedConnection] = Line(self.loop, lambda one, data: one.request_came(data))
        self.leaving = False
        self._connections: set[ServedConnection] = set()
        self._unanswered: dict[ServedConnection, None] = {}
        """Those whose request has not been answered yet, oldest first."""
        self._unanswered_bytes = 0
        self._asks_at_once = asks_at_once
        self._decisions: set[asyncio.Task[Grant | Refusal]] = set()
        """What the host decides on at this moment."""
        self._tells_again = 0.0
        self._gone = asyncio.Event()
        self._gone.set()

    @property
    def connections(self) -> int:
        """Open TCP connections, in any state."""
        return len(self._connections)

    @property
    def handshakes_in_progress(self) -> int:
        """Connections whose request has not been answered yet."""
        return len(self._unanswered)

    @property
    def unanswered_bytes(self) -> int:
        """Bytes of their requests so far."""
        return self._unanswered_bytes

    def stop_accepting(self) -> None:
        """Answer every opening handshake from now on with 503, also those that are being decided on. Open sessions
        stay. Idempotent."""
        self.doorway.accepting = False
        for connection in tuple(self._unanswered):
            if connection.undecided:
                connection.turn_away(STOPPING)

    def entered(self, connection: ServedConnection) -> None:
        """A connection was made."""
        self._connections.add(connection)
        self._gone.clear()
        self._unanswered[connection] = None
        over = len(self._connections) - self.limits.connections
        if over > 0:
            # Before the process has no descriptor left, for then it could not even answer its operators.
            self._tell_full()
            if over > TOLD_MAX:
                connection.abort()
            else:
                connection.turn_away(FULL)
        elif len(self._unanswered) > UNANSWERED_MAX:
            next(iter(self._unanswered)).turn_away(CROWDED)

    def _tell_full(self) -> None:
        now = self.loop.time()
        if now >= self._tells_again:
            self._tells_again = now + TELLS_EVERY
            log.warning(
                "as many connections are open as may be, more are turned away",
                extra={"connections": self.limits.connections},
            )

    def asked(self, connection: ServedConnection, nbytes: int, data: bytes) -> None:
        """So many bytes of a request have arrived; they wait for their turn."""
        self.line.add(connection, data)
        if connection in self._unanswered:
            connection.requested += nbytes
            self._unanswered_bytes += nbytes
            if self._unanswered_bytes > UNANSWERED_BYTES_MAX:
                next(iter(self._unanswered)).turn_away(CROWDED)
            if connection.requested > self.limits.header_bytes:
                self.line.now(connection)

    @property
    def busy(self) -> bool:
        """The host decides on as many handshakes as it may."""
        return len(self._decisions) >= HANDSHAKES_AT_ONCE + self._asks_at_once

    def decides(self, decision: asyncio.Task[Grant | Refusal]) -> None:
        """The host has begun to decide on a handshake. It counts until it has ended, also where it was cancelled."""
        self._decisions.add(decision)
        decision.add_done_callback(self._decisions.discard)

    def answered(self, connection: ServedConnection) -> bool:
        """Its request has an answer; idempotent. Returns whether this is the first one."""
        if connection not in self._unanswered:
            return False
        del self._unanswered[connection]
        self._unanswered_bytes -= connection.requested
        return True

    def became(self, connection: ServedConnection, stream: ServedConnection) -> None:
        """The request of a connection is granted a stream of events, which takes its place."""
        self.answered(connection)
        self._connections.discard(connection)
        self._connections.add(stream)

    def left(self, connection: ServedConnection) -> None:
        """A connection is gone."""
        self.answered(connection)
        self.line.leave(connection)
        self._connections.discard(connection)
        if not self._connections:
            self._gone.set()

    async def leave(self) -> None:
        """Close all connections and return when none is left, after the grace at the latest.

        When it is cancelled, all connections are aborted.
        """
        self.stop_accepting()
        self.leaving = True
        for connection in tuple(self._connections):
            connection.leave()
        try:
            await self._gone.wait()
            if self._decisions:
                # They were cancelled by `stop_accepting`; a host that takes its time is left behind.
                await asyncio.wait(self._decisions, timeout=self.close_grace)
        except asyncio.CancelledError:
            for connection in tuple(self._connections):
                connection.abort()
            raise
