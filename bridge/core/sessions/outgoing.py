"""Hand over to the socket what was offered to a session, and report it to the pushes."""

from __future__ import annotations

from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Outgoing:
    """Flushes sessions. Pushes that were just taken and pushes that were read from the log are treated alike."""

    def __init__(self, *, hub: Hub, metrics: Metrics, clock: Clock) -> None:
        self._hub = hub
        self._metrics = metrics
        self._clock = clock

    def flush(self, session: Session) -> None:
        """Hand over all that the socket takes now, in one write."""
        handed = session.flush(self._clock.monotonic())
        if session.waiting:
            self._hub.backlogged.add(session)
        else:
            self._hub.backlogged.discard(session)
        if handed:
            now = self._clock.time()
            self._metrics.handed(len(handed))
            for push in handed:
                push.handed(now)
        if session.forgotten:
            forgotten, session.forgotten = session.forgotten, []
            now = self._clock.time()
            for push in forgotten:
                push.lost(now, handed=True)
