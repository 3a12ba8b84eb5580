"""Close sessions so that their clients go on at other nodes: all of them at a stop, and those whose lifetime is over.

They are closed at a rate. A session goes on getting pushes until its turn, and its turn waits for the proof of what it
was handed, as long as there is time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.presence import Presence
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.clock import Clock
from bridge.core.sessions.departures import Pace, dither, waits
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.sessions.states import SessionState
from bridge.core.settlement.gate import Gate

PATIENCE: Final = 10.0
"""Seconds for which a session whose lifetime is over waits for proofs."""


class Moving:
    """Asks sessions to move on."""

    def __init__(
        self,
        hub: Hub,
        inflight: InFlight,
        presence: Presence,
        gate: Gate,
        clock: Clock,
        limits: DeliveryLimits,
    ) -> None:
        self._hub = hub
        self._inflight = inflight
        self._presence = presence
        self._gate = gate
        self._clock = clock
        self._rate = limits.drain_rate
        self._patience = limits.confirm_timeout
        self._pace = Pace(limits.drain_rate, clock.monotonic())
        self._reason = CloseReason.MOVE_ON
        self._waiting: dict[Session, float] = {}
        """Sessions that are to be closed, and the monotonic seconds from which on they wait for no proof."""
        self.closed = 0
        """Sessions that a stop has closed by now."""

    def __len__(self) -> int:
        return len(self._waiting)

    def tick(self, now: float) -> None:
        """Called about ten times a second, before and after `everybody`; `now` is monotonic seconds.

        Sessions whose lifetime is over move on while this node is ready: otherwise their clients would find others that
        are no better off.
        """
        stops = self._reason is CloseReason.RESTART
        for session in self._hub.outlived(now):
            if not stops:
                self._waiting[session] = now + PATIENCE
        for session in [one for one in self._waiting if not _is_open(one)]:
            del self._waiting[session]
        if not self._waiting or not (stops or self._gate.is_open):
            return
        room = self._pace.room(now, len(self._waiting))
        for session in list(self._ready(now, room)):
            self._presence.close(session, self._reason, self._reason.retry_after + dither())
            self._pace.closed(1)
            del self._waiting[session]
            self.closed += stops

    def _ready(self, now: float, most: int) -> Iterator[Session]:
        if not most:
            return
        awaited = self._inflight.awaited()
        for session, patient_until in self._waiting.items():
            if now >= patient_until or (self._quiet(session, now) and session.user not in awaited):
                yield session
                most -= 1
                if not most:
                    return

    def _quiet(self, session: Session, now: float) -> bool:
        """Whether it has proven what it was handed, or nobody waits for that any more."""
        return session.replay is None and (session.idle or session.owes_pong(now, self._patience))

    def everybody(self, *, patient: bool) -> None:
        """The node stops: `tick` closes all sessions from now on.

        `patient`: each waits for the proof of what it was handed; until `the_rest`, if need be.
        """
        self._reason = CloseReason.RESTART
        self._waiting = dict.fromkeys(self._hub, math.inf if patient else -math.inf)

    def the_rest(self) -> Iterator[Session]:
        """There is no time left: close the sessions that are left, each when it is asked for. Their clients are told to
        come back one after the other, at the rate."""
        left = [session for session in self._hub if _is_open(session)]
        self._waiting.clear()
        for session, wait in zip(left, waits(len(left), self._rate), strict=True):
            self._presence.close(session, CloseReason.RESTART, CloseReason.RESTART.retry_after + wait)
            self.closed += 1
            yield session


def _is_open(session: Session) -> bool:
    return session.close_reason is None and session.state is not SessionState.CLOSED
