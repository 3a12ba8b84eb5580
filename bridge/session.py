"""One open WebSocket: its bounded queue, what it has been handed and not yet proven, and its state.

The barrier (design: proof `received`): one ping at a time is outstanding; it is sent after a frame, so its
pong proves every frame before it (RFC 6455 5.5.3). What is handed over meanwhile is covered by the next one.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from bridge.flight import Flight
from bridge.model import Claims, CloseReason, Mode, Proof
from bridge.ports import Frame, SessionInfo, Socket
from bridge.states import SessionEvent, SessionState, next_session_state

WRITE_CHUNK = 64 * 1024
"""Bytes of frames given to the socket in one write before asking again whether it still takes more."""

UNPROVEN_MAX = 4096
"""Frames handed over and not yet proven; over it the rest waits in the bounded queue."""


class SessionLimits(NamedTuple):
    """The bounds of one session's queue."""

    frames: int
    """Frames that wait for the socket."""
    total_bytes: int
    """Bytes of those frames, and of what the transport still buffers."""


class Session:
    """One authenticated WebSocket. All methods are synchronous; `now` is monotonic seconds."""

    __slots__ = (
        "_acks",
        "_covered",
        "_limits",
        "_ping",
        "_queue",
        "_unproven",
        "bucket",
        "claims",
        "close_reason",
        "id",
        "mode",
        "opened_at",
        "owing_since",
        "queued_bytes",
        "socket",
        "stalled_since",
        "state",
        "user",
    )

    def __init__(
        self,
        session_id: str,
        claims: Claims,
        mode: Mode,
        socket: Socket,
        limits: SessionLimits,
        *,
        opened_at: float,
    ) -> None:
        self.id = session_id
        self.claims = claims
        self.user = claims.user
        self.mode = mode
        self.socket = socket
        self.opened_at = opened_at
        self.state = SessionState.LIVE
        self.bucket = 0
        """Its place on the hub's wheel of pings."""
        self.close_reason: CloseReason | None = None
        """Why we closed it; None while it is open and when the peer left by itself."""
        self.owing_since: float | None = None
        """When the ping was sent that the peer has not answered yet."""
        self.stalled_since: float | None = None
        """Since when frames wait and none could be handed over."""
        self.queued_bytes = 0
        self._limits = limits
        self._queue: list[tuple[Frame, Flight]] = []
        # Handed over, awaiting a pong; the first `_covered` of them are covered by the outstanding ping.
        self._unproven: list[Flight] = []
        self._covered = 0
        self._ping: bytes | None = None
        self._acks: dict[str, list[Flight]] | None = None

    @property
    def info(self) -> SessionInfo:
        """What hooks may know of it."""
        return SessionInfo(self.id, self.user, self.mode.value, self.opened_at)

    @property
    def queued(self) -> int:
        """Frames that wait for the socket."""
        return len(self._queue)

    @property
    def unproven(self) -> int:
        """Frames handed over whose pong is awaited."""
        return len(self._unproven)

    def suspect(self, now: float, after: float) -> bool:
        """Whether the peer owes a pong for longer than `after` seconds."""
        return self.owing_since is not None and now - self.owing_since > after

    # --- pushes ---

    def offer(self, frame: Frame, flight: Flight) -> bool:
        """Queue a frame for the next flush. False when the queue is over its bounds: nothing was queued, and
        the session is too slow. A frame is always taken into an empty queue with nothing buffered."""
        size = len(frame.payload)
        if self._queue:
            if len(self._queue) >= self._limits.frames:
                return False
            if self.queued_bytes + size + self.socket.buffered > self._limits.total_bytes:
                return False
        elif (buffered := self.socket.buffered) and buffered + size > self._limits.total_bytes:
            return False
        self._queue.append((frame, flight))
        self.queued_bytes += size
        return True

    def flush(self, now: float) -> list[Flight]:
        """Hand over what the socket takes; returns the flights that were handed over, in order."""
        handed: list[Flight] = []
        while self._queue and len(self._unproven) < UNPROVEN_MAX and self.socket.writable:
            frames: list[Frame] = []
            flights: list[Flight] = []
            taken = size = 0
            for frame, flight in self._queue:
                taken += 1
                self.queued_bytes -= len(frame.payload)
                if flight.withdrawn:
                    continue
                frames.append(frame)
                flights.append(flight)
                size += len(frame.payload)
                if size >= WRITE_CHUNK:
                    break
            owed = [f for f in flights if f.confirm > Proof.WRITTEN]
            ping = os.urandom(4) if owed and self._ping is None else None
            if frames and not self.socket.write(frames, ping):
                # The connection is closing: `close` will hand these back as never handed over.
                self.queued_bytes += sum(len(frame.payload) for frame, _ in self._queue[:taken])
                return handed
            del self._queue[:taken]
            self._unproven.extend(owed)
            if ping is not None:
                self._ping = ping
                self._covered = len(self._unproven)
                self.owing_since = now
            for flight in owed:
                if flight.confirm is Proof.ACKED:
                    self._await_ack(flight)
            handed.extend(flights)
            self.stalled_since = now
        if not self._queue:
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = now
        return handed

    def _await_ack(self, flight: Flight) -> None:
        if self._acks is None:
            self._acks = {}
        elif len(self._acks) >= UNPROVEN_MAX:
            # The oldest has been waiting through thousands of others; its flight ended by its deadline.
            del self._acks[next(iter(self._acks))]
        self._acks.setdefault(flight.key.push_id, []).append(flight)

    def pong(self, payload: bytes, now: float) -> list[Flight]:
        """The peer answered; returns the flights that this proves received. A stray pong proves nothing."""
        if payload != self._ping:
            return []
        proven = self._unproven[: self._covered]
        del self._unproven[: self._covered]
        self._covered = 0
        self._ping = None
        self.owing_since = None
        if self._unproven:
            self.ping(now)
        return proven

    def ping(self, now: float) -> None:
        """Send a ping unless one is outstanding: a sign of life, and a barrier for all that is unproven."""
        if self._ping is not None:
            return
        ping = os.urandom(4)
        if self.socket.write((), ping):
            self._ping = ping
            self._covered = len(self._unproven)
            self.owing_since = now

    def ack(self, push_id: str) -> Flight | None:
        """The application acknowledged this push; returns the oldest flight that waited for it here."""
        flights = self._acks.get(push_id) if self._acks else None
        if not flights:
            return None
        flight = flights.pop(0)
        if not flights and self._acks is not None:
            del self._acks[push_id]
        return flight

    # --- its life ---

    def drain(self) -> list[Flight]:
        """Take no more pushes; what is unproven may still be proven. Returns those never handed over."""
        self.state = next_session_state(self.state, SessionEvent.DRAIN)
        return self._empty_queue()

    def _empty_queue(self) -> list[Flight]:
        queued = [flight for _, flight in self._queue]
        self._queue = []
        self.queued_bytes = 0
        self.stalled_since = None
        return queued

    def close(self) -> tuple[list[Flight], list[Flight]]:
        """It is gone. Returns (never handed over, handed over and unproven here); idempotent."""
        self.state = next_session_state(self.state, SessionEvent.CLOSE)
        queued = self._empty_queue()
        # A flight that waits for its ack may have left `_unproven` by its pong: it is still owed here.
        unproven = {id(f): f for f in self._unproven}
        for flights in (self._acks or {}).values():
            unproven.update((id(f), f) for f in flights)
        self._unproven = []
        self._acks = None
        self._covered = 0
        self._ping = None
        self.owing_since = None
        return queued, list(unproven.values())
