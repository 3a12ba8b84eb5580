"""One open WebSocket: its bounded queue, what it has been handed and not yet proven, and its state.

While it is REPLAYING, what is kept for its user goes into the queue, in order. Newer pushes are held until then.

The barrier (proof `received`): one ping at a time is outstanding. It is sent after a frame, so its pong proves every
frame before it (RFC 6455 5.5.3). Frames that are handed over meanwhile are covered by the next ping.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from bridge.core.inflight.offered import Offered
from bridge.core.model.outcomes import Proof
from bridge.core.model.sessions import Claims, CloseReason, Mode
from bridge.core.ports.plugins import SessionInfo
from bridge.core.ports.sockets import Frame, Socket
from bridge.core.sessions.acks import meant_by
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.places import how_many_before, place_for
from bridge.core.sessions.replay import Replay
from bridge.core.sessions.states import SessionEvent, SessionState, next_session_state

WRITE_CHUNK = 64 * 1024
"""Bytes of frames that are given to the socket in one write, before it is asked again whether it is writable."""
_WRITTEN: Final = Proof.WRITTEN
_ACKED: Final = Proof.ACKED
_ROUNDING = 1e-6
"""Seconds: two times a whole number of seconds apart may differ by slightly more, as floats."""
UNPROVEN_MAX = 4096
"""Frames handed over and not yet proven; with so many, the rest waits in the bounded queue."""


class Session:
    """One authenticated WebSocket. All methods are synchronous; `now` is monotonic seconds."""

    __slots__ = (
        "_acks",
        "_covered",
        "_held",
        "_held_bytes",
        "_limits",
        "_ping",
        "_queue",
        "_unproven",
        "claims",
        "close_reason",
        "forgotten",
        "former",
        "id",
        "mode",
        "next_round",
        "opened_at",
        "owing_since",
        "place",
        "proves",
        "queued_bytes",
        "read_to",
        "replay",
        "socket",
        "spoken_at",
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
        self.former: tuple[Claims, ...] = ()  # of the tokens before, which may still be good
        self.user = claims.user
        self.mode = mode
        self.proves = True  # its peer answers pings, as every WebSocket must
        self.socket = socket
        self.opened_at = opened_at
        self.state = SessionState.LIVE
        self.place = 0
        """Its place on the hub's wheel of pings."""
        self.close_reason: CloseReason | None = None
        """Why we closed it; None while it is open and when the peer left by itself."""
        self.owing_since: float | None = None
        """When the outstanding ping was sent; None while there is none."""
        self.stalled_since: float | None = None
        """Since when frames have waited and none could be handed over."""
        self.spoken_at: float | None = None
        """When the last frame was sent, a heartbeat was due. None before the welcome. Not used in bare mode."""
        self.queued_bytes = 0
        self.replay: Replay | None = None
        """None while it is not REPLAYING."""
        self.next_round = 0.0
        """Monotonic seconds before which nothing is resent to it."""
        self.read_to = 0
        """The position of the last push that it was offered from the mailbox."""
        self._limits = limits
        self._queue: list[tuple[Frame, Offered | None]] = []
        self._held: list[tuple[Frame, Offered | None]] = []  # the pushes by position
        self._held_bytes = 0
        # Handed over, awaiting a pong; the first `_covered` of them are covered by the outstanding ping.
        self._unproven: list[Offered] = []
        self._covered = 0
        self._ping: bytes | None = None
        self._acks: dict[str, list[Offered]] | None = None
        self.forgotten: list[Offered] = []
        """Pushes that were withdrawn, or whose proof is not waited for any more. Who calls `flush` empties this."""

    @property
    def info(self) -> SessionInfo:
        """What hooks are told about it."""
        return SessionInfo(self.id, self.user, self.mode.value, self.opened_at)

    @property
    def queued(self) -> int:
        """Frames that wait for the socket."""
        return len(self._queue)

    @property
    def waiting(self) -> int:
        """Frames that wait for the socket, or for the end of the replay."""
        return len(self._queue) + len(self._held)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the frames that `waiting` counts."""
        return self.queued_bytes + self._held_bytes

    @property
    def unproven(self) -> int:
        """Frames handed over whose pong is awaited."""
        return len(self._unproven)

    def owes_pong(self, now: float, after: float) -> bool:
        """Whether the peer owes a pong for longer than `after` seconds."""
        return self.owing_since is not None and now - self.owing_since > after

    @property
    def takes_pushes(self) -> bool:
        """Whether pushes may be offered to it."""
        return self.state is SessionState.LIVE or self.state is SessionState.REPLAYING

    @property
    def idle(self) -> bool:
        """Whether everything was handed over and proven by a pong."""
        return not self._queue and not self._unproven

    # --- what is kept for its user ---

    def begin_replay(self, replay: Replay) -> None:
        """From now on pushes that are offered are held, until `end_replay`."""
        self.state = next_session_state(self.state, SessionEvent.REPLAY)
        self.replay = replay

    @property
    def held_from(self) -> int | None:
        """The lowest position of the pushes that are held."""
        return next((push.position for _, push in self._held if push is not None), None)

    def release_held(self, before: int | None = None) -> bool:
        """Queue the held frames, or those up to the last push before this position. False where there was no room for
        some."""
        last = len(self._held) if before is None else how_many_before(before, self._held)
        released = 0
        for frame, push in self._held[:last]:
            if push is not None and not self.offer_kept(frame, push):
                break
            if push is None:
                self._queue.append((frame, None))
                self.queued_bytes += len(frame.payload)
            self._held_bytes -= len(frame.payload)
            released += 1
        del self._held[:released]
        return released == last

    def end_replay(self, now_position: int) -> bool:
        """Become LIVE: all held frames are queued. False where some push could not be held: then the next round, up
        to `now_position`, has begun."""
        assert self.replay is not None
        assert not self._held
        missed = self.replay.missed
        if missed is not None:
            # `seen`: this session has not had them, even if another has proven them meanwhile.
            resumed = self.replay.resumed
            self.replay = Replay(after=missed - 1, until=now_position, seen=missed - 1)
            self.replay.resumed = resumed
            return False
        self.replay = None
        self.state = next_session_state(self.state, SessionEvent.REPLAYED)
        return True

    def waiting_pushes(self) -> list[Offered]:
        """Pushes that were offered, and not handed to the socket yet."""
        return [f for _, f in (*self._queue, *self._held) if f is not None]

    def handed_pushes(self) -> list[Offered]:
        """Pushes that were handed to the socket, and lack their proof; some of them twice."""
        return [*self._unproven, *(f for pushes in (self._acks or {}).values() for f in pushes)]

    def tell(self, frame: Frame) -> None:
        """Queue a frame that is not a push, after all that was offered before, and after kept pushes. There is always
        room: the frame about a push that was sent must not be lost."""
        size = len(frame.payload)
        if self.replay is None:
            self._queue.append((frame, None))
            self.queued_bytes += size
        else:
            self._held.append((frame, None))
            self._held_bytes += size

    # --- pushes ---

    def offer(self, frame: Frame, push: Offered) -> bool:
        """Queue a push for the next flush, or hold it until the replay is over. False: there is no room, and nothing
        was queued. An empty queue with nothing buffered always has room for one frame."""
        if self.replay is None:
            return self.offer_kept(frame, push)
        if self.replay.missed is not None:
            return False
        # Any number of frames: they wait for the replay, not for a slow peer.
        if self._held and self._held_bytes + len(frame.payload) > self._limits.total_bytes:
            return False
        self.hold(frame, push)
        return True

    def hold(self, frame: Frame, push: Offered) -> None:
        """Hold a push that waited for its user, who has just come back, until the replay is over. There is room: it
        is in memory anyway."""
        assert self.replay is not None
        self._held.insert(place_for(push.position, self._held), (frame, push))
        self._held_bytes += len(frame.payload)

    def offer_kept(self, frame: Frame, push: Offered | None) -> bool:
        """Queue a kept push, or one that was delivered elsewhere (`push` None). False: no room until it is idle."""
        size = len(frame.payload)
        if self._queue:
            if len(self._queue) >= self._limits.frames:
                return False
            if self.queued_bytes + size + self.socket.buffered > self._limits.total_bytes:
                return False
        elif (buffered := self.socket.buffered) and buffered + size > self._limits.total_bytes:
            return False
        self._queue.append((frame, push))
        self.queued_bytes += size
        return True

    def flush(self, now: float) -> list[Offered]:
        """Hand over frames while the socket is writable. Returns the pushes that were handed over, in order."""
        handed: list[Offered] = []
        while self._queue and len(self._unproven) < UNPROVEN_MAX and self.socket.writable:
            frames: list[Frame] = []
            pushes: list[Offered] = []
            taken = size = 0
            for frame, push in self._queue:
                taken += 1
                self.queued_bytes -= len(frame.payload)
                if push is not None:
                    if push.withdrawn:
                        self.forgotten.append(push)
                        continue
                    pushes.append(push)
                frames.append(frame)
                size += len(frame.payload)
                if size >= WRITE_CHUNK:
                    break
            owed = [f for f in pushes if f.confirm > _WRITTEN]
            ping = os.urandom(4) if owed and self._ping is None else None
            if frames and not self.socket.write(frames, ping):
                # It is closing: `close` will return these as never handed over.
                self.queued_bytes += sum(len(frame.payload) for frame, _ in self._queue[:taken])
                return handed
            del self._queue[:taken]
            self._handed(owed, ping, now)
            handed.extend(pushes)
            self.stalled_since = self.spoken_at = now
        if not self._queue:
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = now
        return handed

    def free(self, size: int) -> bool:
        """Whether a frame of this size may be handed over at once: nothing waits before it, and the socket takes it."""
        if self._queue or self.state is not SessionState.LIVE or len(self._unproven) >= UNPROVEN_MAX:
            return False
        buffered = self.socket.buffered
        return self.socket.writable and (not buffered or buffered + size <= self._limits.total_bytes)

    def hand(self, frame: Frame, push: Offered | None, now: float, ping: bytes) -> bool:
        """Hand over a push at once, where it is `free`; None where no proof is asked for. `ping`: its payload,
        if one is due. False: the socket is closing."""
        due = ping if push is not None and self._ping is None else None
        if not self.socket.write((frame,), due):
            return False
        self._handed(() if push is None else (push,), due, now)
        self.spoken_at = now
        return True

    def _handed(self, owed: Sequence[Offered], ping: bytes | None, now: float) -> None:
        """Wait for the proofs that these pushes ask for."""
        self._unproven.extend(owed)
        if ping is not None:
            self._ping = ping
            self._covered = len(self._unproven)
            self.owing_since = now
        for push in owed:
            if push.confirm is _ACKED:
                self._await_ack(push)

    def _await_ack(self, push: Offered) -> None:
        if self._acks is None:
            self._acks = {}
        elif len(self._acks) >= UNPROVEN_MAX:
            # Thousands have been handed over since the oldest; its deadline is long over.
            self.forgotten.extend(self._acks.pop(next(iter(self._acks))))
        pushes = self._acks.setdefault(push.key.push_id, [])
        if push not in pushes:
            pushes.append(push)

    def pong(self, payload: bytes, now: float) -> list[Offered]:
        """The peer answered a ping. Returns the pushes that this proves received; a stray pong proves nothing."""
        if payload != self._ping:
            return []
        proven = self._unproven[: self._covered]
        del self._unproven[: self._covered]
        self._covered = 0
        self._ping = self.owing_since = None
        if self._unproven:
            self.ping(now)
        return proven

    def ping(self, now: float, heartbeat: Frame | None = None, due_at: float = 0.0) -> None:
        """Send a ping unless one is outstanding. It checks that the peer lives, and is a barrier for all unproven
        pushes. A heartbeat that was due at `due_at` is sent in the same write."""
        if self._ping is not None:
            return
        ping = os.urandom(4)
        frames = () if heartbeat is None or not self.socket.writable else (heartbeat,)
        if self.socket.write(frames, ping):
            if frames:
                self.spoken_at = due_at
            self._ping = ping
            self._covered = len(self._unproven)
            self.owing_since = now

    def quiet(self, now: float, seconds: int) -> bool:
        """Whether it was welcomed, and sent no frame for more than this many seconds."""
        return self.spoken_at is not None and now - self.spoken_at > seconds + _ROUNDING

    def beat(self, frame: Frame, due_at: float) -> None:
        """Send a heartbeat, unless it was just sent with a ping, or the peer does not read: it is worth no memory."""
        if self.spoken_at != due_at and self.socket.writable and self.socket.write((frame,), None):
            self.spoken_at = due_at

    def ack(self, push_id: str, tenant: str | None = None) -> Offered | None:
        """The application acknowledged this push. Returns the one that waited for it, if any; see `meant_by`."""
        pushes = self._acks.get(push_id) if self._acks else None
        push = meant_by(tenant, pushes) if pushes else None
        if pushes and push is not None and self._acks:
            pushes.remove(push)
            if not pushes:
                del self._acks[push_id]
        return push

    # --- drained and closed ---

    def drain(self) -> list[Offered]:
        """Take no more pushes; unproven ones may still be proven. Returns those never handed over."""
        self.state = next_session_state(self.state, SessionEvent.DRAIN)
        return self._empty_queue()

    def _empty_queue(self) -> list[Offered]:
        # A push that waits to be resent was handed over once: `close` returns it as such, when the socket is gone. But
        # one that was read from the mailbox may wait a second time, as another node's, and that node hears of it.
        handed = {id(f) for f in self.handed_pushes()}
        queued = [f for f in self.waiting_pushes() if id(f) not in handed]
        self._queue, self._held = [], []
        self.queued_bytes = self._held_bytes = 0
        self.replay = None
        self.stalled_since = None
        return queued

    def close(self) -> tuple[list[Offered], list[Offered]]:
        """The socket is gone. Returns (never handed over, handed over and unproven here); idempotent."""
        self.state = next_session_state(self.state, SessionEvent.CLOSE)
        queued = self._empty_queue()
        # A pong removes a push from `_unproven`; if it still waits for its ack, it is unproven all the same.
        unproven = {id(f): f for f in self.handed_pushes()}
        self._unproven = []
        self._acks = self._ping = self.owing_since = None
        self._covered = 0
        return queued, list(unproven.values())
