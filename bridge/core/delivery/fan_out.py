"""Send a push to everyone, or to a topic: to each session that takes it at once, the frames first and the rows after.

The bytes are the same for all, so nearly nothing is done for each user until all frames are sent. A push that asks for
no more than `written` needs no flight until then: its sessions have nothing to prove. Whoever looks for those flights
earlier gets them made, and so does whatever goes wrong meanwhile: what was sent has its row. See `InFlight.sending`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.delivery.dispatch import Dispatcher
from bridge.core.delivery.taking import Taking
from bridge.core.delivery.turns import Turns
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.making import flight_of
from bridge.core.model.outcomes import Proof
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.settlement.worklist import Worklist

_AT_ONCE = 15
"""Users for whom the clocks are read once, before the loop may get a turn."""
_PING_BYTES = 4


class FanOut:
    """Takes pushes to a crowd that have not come before, one at a time."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        worklist: Worklist,
        dispatcher: Dispatcher,
        turns: Turns,
        freshness: Freshness,
        metrics: Metrics,
        clock: Clock,
        pong_after: float,
        frames_first: float,
    ) -> None:
        """`pong_after`: see `Router`. `frames_first`: seconds for which rows wait while frames are sent."""
        self._hub = hub
        self._inflight = inflight
        self._worklist = worklist
        self._dispatcher = dispatcher
        self._turns = turns
        self._freshness = freshness
        self._metrics = metrics
        self._clock = clock
        self._pong_after = pong_after
        self._frames_first = frames_first

    async def take(
        self,
        taking: Taking,
        position: int,
        frames: dict[Mode, Frame],
        take_one: Callable[[str, dict[RowKey, Row]], None],
        *,
        alone: bool,
    ) -> None:
        """Take a push for a crowd: at once where all sessions of a user take it at once, and with `take_one` for every
        other user. `frames` caches the frames of the request. `alone`: nobody elsewhere gets it."""
        users = taking.resolver.audience(self._hub, taking.request)
        if not users or taking.message.alone or self._inflight.of_push(taking.request.id):
            for user in [user for user, _ in users] or ([NO_USER] if alone else []):
                take_one(user, {})
                if self._turns.is_due():
                    await self._turns.give()
            return
        # What was taken before goes out before.
        self._dispatcher.flush()
        sending = _Sending(self._inflight, taking, position, self._pong_after, frames)
        hold_until = self._clock.monotonic() + self._frames_first
        with self._inflight.sending(taking.request.id, sending.make_all), self._worklist.holding(hold_until):
            for at in range(0, len(users), _AT_ONCE):
                if not self._freshness.lasts():
                    # They are offered it, and have it when revocations are read again.
                    sending.others.extend(user for user, _ in users[at:])
                    break
                handed = sending.send(users[at : at + _AT_ONCE], self._clock.monotonic(), self._clock.time())
                if handed:
                    self._metrics.handed(handed)
                if self._turns.is_due(_AT_ONCE):
                    await self._turns.give()
            for user in sending.others:
                take_one(user, {})
                if self._turns.is_due():
                    await self._turns.give()
            await self._turns.give()
            self._worklist.hold(0.0)
            while sending.make(_AT_ONCE):
                if self._turns.is_due(_AT_ONCE):
                    await self._turns.give()


class _Sending:
    """One push on its way to everyone."""

    def __init__(
        self,
        inflight: InFlight,
        taking: Taking,
        position: int,
        pong_after: float,
        frames: dict[Mode, Frame],
    ) -> None:
        self._inflight = inflight
        self._taking = taking
        self._position = position
        self._pong_after = pong_after
        request = taking.request
        self._frames = frames
        frames[Mode.BARE] = bare_frame(request)
        frames[Mode.ENVELOPE] = frames[Mode.SSE] = push_frame(request)
        self._size = max(len(frame.payload) for frame in frames.values())
        self._proven = request.confirm > Proof.WRITTEN
        self._flights_first = self._proven or request.ttl > 0 or bool(request.collapse_key)
        self._sent: list[tuple[str, int, float, float, str]] = []
        """Users without a flight, the number of their sessions, when those were handed the push (monotonic and
        wall-clock seconds), and the id of the first."""
        self.others: list[str] = []
        """Users for whom nothing was done."""

    def send(self, users: Sequence[tuple[str, Sequence[Session]]], mono: float, now: float) -> int:
        """Send it to the sessions of these users. Returns how many have it."""
        request = self._taking.request
        pings = os.urandom(_PING_BYTES * len(users)) if self._proven else b""
        at = handed = 0
        for user, sessions in users:
            if request.retain and self._inflight.get(RowKey(request.tenant, request.id, user)) is not None:
                # It is the last value of a session of the user that has subscribed meanwhile.
                self.others.append(user)
                continue
            if not sessions or not self._all_free(sessions, mono):
                self.others.append(user)
                continue
            ping = pings[at : at + _PING_BYTES]
            at += _PING_BYTES
            if self._flights_first:
                flight = self._begin(user, len(sessions), mono)
                if self._proven:
                    self._inflight.limit(flight, mono)
                    self._inflight.wait(flight)
                handed += self._hand(flight, sessions, ping, mono, now)
                continue
            have = 0
            for session in sessions:
                have += session.hand(self._frames[session.mode], None, mono, ping)
            handed += have
            if have == len(sessions):
                self._sent.append((user, have, mono, now, sessions[0].id))
            else:
                self._made(user, len(sessions), have, mono, now, sessions[0].id)
        return handed

    def _all_free(self, sessions: Sequence[Session], mono: float) -> bool:
        excluded = self._taking.request.excluded
        for session in sessions:
            if not session.free(self._size):
                return False
            if self._proven and (not session.proves or session.owes_pong(mono, self._pong_after)):
                return False
            if excluded and session.id in excluded:
                return False
        return True

    def _begin(self, user: str, sessions: int, mono: float) -> Flight:
        taking = self._taking
        flight = flight_of(
            taking.request, user, taking.message, self._inflight, mono, self._position, taking.fingerprint
        )
        taking.message.open += 1
        self._inflight.add(flight, roams=True)
        flight.addressed(sessions)
        return flight

    def _hand(self, flight: Flight, sessions: Sequence[Session], ping: bytes, mono: float, now: float) -> int:
        push = flight if self._proven else None
        have = 0
        for session in sessions:
            if session.hand(self._frames[session.mode], push, mono, ping):
                have += 1
                flight.handed(now, session.id)
            else:
                flight.lost(now, handed=False)
        return have

    def make(self, most: int) -> bool:
        """Make the flights of so many users that have none yet. Returns whether there are more."""
        some = self._sent[-most:]
        del self._sent[-most:]
        for user, sessions, mono, now, first in some:
            self._made(user, sessions, sessions, mono, now, first)
        return bool(self._sent)

    def make_all(self) -> None:
        """Make the flights of all users that have none yet."""
        while self.make(_AT_ONCE):
            pass

    def _made(self, user: str, sessions: int, have: int, mono: float, now: float, first: str) -> None:
        """The flight for a user with so many sessions, of which so many have the push; the first one's id."""
        flight = self._begin(user, sessions, mono)
        for place in range(sessions):
            if place < have:
                flight.handed(now, first)
            else:
                flight.lost(now, handed=False)
