"""Ask the log again before a repeat of a push to a session ends as `offline`: another bridge may have the session.

This is for a push that came before, whose session is not here, and that has no row. The other bridge has lost its
channel and kept its sessions. It writes the row, with the session's user, within `park_after` seconds. So nothing is
decided before the log was asked again.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from bridge.core.delivery.lookups import Lookups, Stopped
from bridge.core.delivery.remembered import Recollection
from bridge.core.delivery.repeats import Repeats
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushKey
from bridge.core.ports.clock import Clock
from bridge.core.settlement.worklist import Worklist


class _Undecided(NamedTuple):
    look_at: float
    """Monotonic seconds at which the log is asked again."""
    flight: Flight
    key: PushKey
    outcome: Outcome
    """The outcome, if the log has no row then; `reason` likewise."""
    reason: Reason


class Elsewhere:
    """Pushes that end here, unless another bridge has them."""

    def __init__(
        self,
        *,
        inflight: InFlight,
        worklist: Worklist,
        lookups: Lookups,
        repeats: Repeats,
        recollection: Recollection,
        clock: Clock,
        park_after: float,
    ) -> None:
        self._inflight = inflight
        self._worklist = worklist
        self._lookups = lookups
        self._repeats = repeats
        self._recollection = recollection
        self._clock = clock
        self._undecided: deque[_Undecided] = deque()
        self._seconds = 2 * park_after
        """Wait before the log is asked again: by then another bridge with the session has parked the push."""

    @property
    def wait(self) -> float:
        """Seconds until the log has the rows of all that another bridge has taken. It takes nothing once this one gets
        requests, so the wait is over soon after the first request of a channel."""
        return max(0.0, self._recollection.began_at + self._seconds - self._clock.monotonic())

    def add(self, flight: Flight, key: PushKey, outcome: Outcome, reason: Reason) -> None:
        """Ask the log again for a push that is in flight; if it has no row then, end it with this outcome."""
        self._undecided.append(
            _Undecided(self._clock.monotonic() + self._seconds, flight, key, outcome, reason)
        )

    def due(self, now: float) -> bool:
        """Whether the log must be asked for one now; `now` is monotonic seconds."""
        return bool(self._undecided) and self._undecided[0].look_at <= now

    async def look_again(self) -> None:
        """Ask the log for those whose time has come. Returns early when taking ends."""
        try:
            while self.due(self._clock.monotonic()):
                one = self._undecided[0]
                reached = await self._lookups.has_rows(one.key)
                self._undecided.popleft()
                await self._decide(one, reached)
        except Stopped:
            # Messages that were not acked go back to the queue with the channel.
            return

    async def _decide(self, one: _Undecided, reached: bool) -> None:
        flight = one.flight
        if flight.ended:
            # A recall has ended it: it has a row of its own, with which its messages are settled.
            return
        if not reached:
            flight.decided(one.outcome, one.reason, self._clock.time())
            return
        self._inflight.forget(flight)
        for message in flight.messages:
            await self._repeats.join_earlier(one.key, message, flight.fingerprint_of(message))
            self._worklist.release(message)

    def drop(self) -> None:
        """Taking ends: forget them all; their messages go back to the queue."""
        for one in self._undecided:
            if not one.flight.ended:
                self._inflight.forget(one.flight)
        self._undecided.clear()
