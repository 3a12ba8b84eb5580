"""Hands what was offered to a session over to its socket, and carries on with what an event did to a push."""

from __future__ import annotations

from bridge.core.inflight.flight import Effect, Flight
from bridge.core.model.rows import LateProof
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.settlement.worklist import Worklist


class Outgoing:
    """Knows sessions and pushes, and nothing of where the pushes come from: just taken, or read from the log."""

    def __init__(self, *, hub: Hub, worklist: Worklist, metrics: Metrics, clock: Clock) -> None:
        self._hub = hub
        self._worklist = worklist
        self._metrics = metrics
        self._clock = clock
        self._kept: list[Flight] = []

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
            for flight in handed:
                self.note(flight, flight.handed(now))
        if session.forgotten:
            forgotten, session.forgotten = session.forgotten, []
            now = self._clock.time()
            for flight in forgotten:
                self.note(flight, flight.lost(now, handed=True))

    def note(self, flight: Flight, effect: Effect, proven: float = 0.0) -> None:
        """Carry on with what an event did to a flight; of a proof, when it came."""
        if effect is Effect.ENDED:
            self._worklist.due(flight)
        elif effect is Effect.KEPT:
            self._worklist.due(flight)
            if flight.open > 0:
                self._kept.append(flight)
        elif effect is Effect.LATE:
            self._metrics.proof_late(1)
            self._worklist.late(LateProof(flight.key, proven))

    def take_kept(self) -> list[Flight]:
        """Those that came to nothing since the last call though a session has them: they are to be sent again."""
        kept, self._kept = self._kept, []
        return kept
