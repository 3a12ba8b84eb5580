"""Report proof to pushes: a pong proves every push that was handed over before its ping, an ack frame one push."""

from __future__ import annotations

from bridge.core.mailbox.pages import Pages
from bridge.core.ports.clock import Clock
from bridge.core.sessions.session import Session


class Proofs:
    """Reports proof to pushes, and hands over more where that made room."""

    def __init__(self, *, pages: Pages, clock: Clock) -> None:
        self._pages = pages
        self._clock = clock

    def pong(self, session: Session, payload: bytes) -> None:
        """A peer answered a ping: everything that was sent before the ping is received (RFC 6455 section 5.5.3)."""
        now = self._clock.time()
        for push in session.pong(payload, self._clock.monotonic()):
            push.received(now, session.id)
        if session.queued or session.replay is not None:
            self._pages.flush(session)

    def acked(self, session: Session, push_id: str, tenant: str | None = None) -> bool:
        """An application acknowledged a push; False where no such push waits for an ack from this session.

        Raises AmbiguousAck: see `Session.ack`.
        """
        push = session.ack(push_id, tenant)
        if push is None:
            return False
        push.acked(self._clock.time(), session.id)
        return True

    def became_writable(self, session: Session) -> None:
        """A socket takes bytes again."""
        self._pages.flush(session)
