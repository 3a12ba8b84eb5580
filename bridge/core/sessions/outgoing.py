"""Hand over to the socket what was offered to a session, and report it to the pushes."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.core.model.outcomes import Reason
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Metrics
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Outgoing:
    """Flushes sessions, unless this node may have missed a revocation. Pushes that were just taken and pushes that were
    read from the log are treated alike."""

    def __init__(self, *, hub: Hub, freshness: Freshness, metrics: Metrics, clock: Clock) -> None:
        self._hub = hub
        self._freshness = freshness
        self._metrics = metrics
        self._clock = clock

    def flush_all(self, sessions: Iterable[Session]) -> None:
        """Hand over all that their sockets take now, in one write each."""
        mono, now, fresh = self._clock.monotonic(), self._clock.time(), self._freshness.lasts()
        handed = 0
        for session in sessions:
            handed += self._flush(session, mono, now, fresh)
        if handed:
            self._metrics.handed(handed)

    def flush(self, session: Session) -> None:
        """Hand over all that the socket takes now, in one write."""
        self.flush_all((session,))

    def _flush(self, session: Session, mono: float, now: float, fresh: bool) -> int:
        """Returns how many pushes were handed over."""
        handed = session.flush(mono) if fresh else ()
        if session.waiting:
            self._hub.backlogged.add(session)
        else:
            self._hub.backlogged.discard(session)
        if handed:
            if not session.proves and isinstance(session, EventSession):
                for push in handed:
                    push.handed(now, session.id, unprovable=session.unprovable(push))
            else:
                for push in handed:
                    push.handed(now, session.id)
        if session.forgotten:
            forgotten, session.forgotten = session.forgotten, []
            why = None if session.proves else Reason.NO_PROOF_POSSIBLE
            for push in forgotten:
                push.lost(now, handed=True, why=why)
        return len(handed)
