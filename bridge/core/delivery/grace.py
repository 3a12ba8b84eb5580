"""For a moment after the start, hold pushes for browsers that are reconnecting."""

from __future__ import annotations

from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.sessions.session import Session


class Grace:
    """Holds pushes whose user is absent until the user opens a session, or the grace is over."""

    def __init__(self, inflight: InFlight, clock: Clock, seconds: float) -> None:
        self._inflight = inflight
        self._clock = clock
        self._seconds = seconds
        self._awaited: dict[str, list[tuple[Flight, PushRequest]]] = {}
        self._until = 0.0
        self.begin()

    def begin(self) -> None:
        """Taking begins: the grace starts now."""
        self._until = self._clock.monotonic() + self._seconds

    def lasts(self, now: float) -> bool:
        """Whether absent users may still be reconnecting; `now` is monotonic seconds."""
        return now < self._until

    def wait(self, flight: Flight, request: PushRequest) -> None:
        """Hold a push until its user opens a session."""
        self._awaited.setdefault(flight.key.user, []).append((flight, request))

    def came(self, session: Session) -> None:
        """A session opened: give it the pushes that waited for its user. It holds them until its replay is over."""
        build = bare_frame if session.mode is Mode.BARE else push_frame
        for flight, request in self._awaited.pop(session.user, ()):
            if flight.ended:
                continue
            if session.id in request.excluded:
                flight.decided(Outcome.OFFLINE, Reason.EXCLUDED, self._clock.time())
                continue
            flight.addressed(1)
            session.hold(build(request), flight)
            self._inflight.limit(flight, self._clock.monotonic())

    def over(self, now: float) -> list[tuple[Flight, PushRequest]]:
        """The pushes whose user has not come, once the grace is over; `now` is monotonic seconds."""
        if not self._awaited or self.lasts(now):
            return []
        awaited, self._awaited = self._awaited, {}
        return [one for waiting in awaited.values() for one in waiting if not one[0].ended]
