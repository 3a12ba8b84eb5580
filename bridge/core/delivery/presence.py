"""Sessions come and go: what waits for a user goes out, and what a session had and did not prove is given back."""

from __future__ import annotations

from bridge.core.contract.frames import bye_frame
from bridge.core.delivery.grace import Grace
from bridge.core.mailbox.pages import Pages
from bridge.core.model.outcomes import Reason
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.clock import Clock
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.sessions.states import SessionState


class Presence:
    """Opens and closes sessions."""

    def __init__(self, *, hub: Hub, pages: Pages, grace: Grace, clock: Clock) -> None:
        self._hub = hub
        self._pages = pages
        self._grace = grace
        self._clock = clock

    def opened(self, session: Session, last: str | None = None) -> None:
        """A session opened: what is kept for its user goes out first, then what has waited since the start, then what
        is newer. `last` is the push that its client has seen last, where it resumes."""
        self._hub.register(session, self._clock.monotonic())
        self._pages.opened(session, last)
        self._grace.came(session)

    def close(self, session: Session, reason: CloseReason, retry_after: float | None = None) -> None:
        """Close a session for a reason of ours; `closed` follows when the socket is gone.

        `retry_after` (seconds) is what the client is told to wait; the reason's own by default. Idempotent, and
        nothing for a session that is gone: who closes many takes a while, and some leave before their turn.
        """
        if session.close_reason is not None or session.state is SessionState.CLOSED:
            return
        session.close_reason = reason
        self._hub.unregister(session)
        self._pages.closed(session)
        why = Reason.SLOW_CONSUMER if reason is CloseReason.TOO_SLOW else None
        now = self._clock.time()
        for push in session.drain():
            push.lost(now, handed=False, why=why)
        if session.mode is Mode.ENVELOPE:
            session.socket.write(
                (bye_frame(reason, reason.retry_after if retry_after is None else retry_after),), None
            )
        session.socket.close(reason)

    def closed(self, session: Session) -> None:
        """A socket is gone, whoever closed it: what it had not proven by now it never will."""
        self._hub.unregister(session)
        self._pages.closed(session)
        now = self._clock.time()
        queued, unproven = session.close()
        for push in queued:
            push.lost(now, handed=False)
        for push in unproven:
            push.lost(now, handed=True)
