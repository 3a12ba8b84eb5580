"""Route a push to one user: offer it to the sessions, write it to the log, or hold it until the user comes back."""

from __future__ import annotations

from bridge.core.delivery.dispatch import Dispatcher
from bridge.core.delivery.grace import Grace
from bridge.core.delivery.targets import Resolver, address
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.hub import Hub


class Router:
    """Routes pushes that were just taken."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        dispatcher: Dispatcher,
        grace: Grace,
        clock: Clock,
        pong_after: float,
    ) -> None:
        """`pong_after`: seconds for which a session may owe a pong before a push to it is parked at once."""
        self._hub = hub
        self._inflight = inflight
        self._dispatcher = dispatcher
        self._grace = grace
        self._clock = clock
        self._pong_after = pong_after

    def route(
        self, flight: Flight, request: PushRequest, resolver: Resolver, frames: dict[Mode, Frame]
    ) -> None:
        """Route one push. A message that is handled alone holds up the whole queue: its pushes are parked at once."""
        now = self._clock.monotonic()
        alone = flight.messages[0].alone
        to = address(self._hub, request, resolver, flight.key.user)
        if not to.sessions:
            self._nobody(flight, request, resolver, to.nobody, now, alone)
            return
        self._dispatcher.offer(flight, request, to.sessions, frames)
        if flight.ended:
            return
        self._inflight.limit(flight, now)
        owing = any(s.owes_pong(now, self._pong_after) for s in to.sessions)
        self._wait(flight, parked=alone or owing)

    def _nobody(
        self, flight: Flight, request: PushRequest, resolver: Resolver, why: Reason, now: float, alone: bool
    ) -> None:
        if flight.kept is None and resolver.waits and why is Reason.NO_SESSION and self._grace.lasts(now):
            self._grace.wait(flight, request)
            self._wait(flight, parked=alone)
        else:
            flight.undeliverable(Outcome.OFFLINE, why, self._clock.time())

    def _wait(self, flight: Flight, *, parked: bool) -> None:
        if parked:
            self._inflight.park(flight, at_once=True)
        else:
            self._inflight.wait(flight)
