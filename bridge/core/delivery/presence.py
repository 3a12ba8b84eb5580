"""Open and close sessions: send what waits for a user, and report pushes that a closed session has not proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bridge.core.contract.frames import bye_frame
from bridge.core.delivery.grace import Grace
from bridge.core.mailbox.pages import Pages
from bridge.core.model.outcomes import Reason
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.clock import Clock
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.sessions.states import SessionState

_WHY: Final[Mapping[CloseReason, Reason]] = {
    CloseReason.TOO_SLOW: Reason.SLOW_CONSUMER,
    CloseReason.REVOKED: Reason.REVOKED,
}
"""Why pushes were not handed over, where the end of their session alone does not say it."""


class Presence:
    """Opens and closes sessions."""

    def __init__(self, *, hub: Hub, pages: Pages, grace: Grace, clock: Clock) -> None:
        self._hub = hub
        self._pages = pages
        self._grace = grace
        self._clock = clock

    def opened(self, session: Session, last: str | None = None) -> None:
        """A session opened: kept pushes of its user are sent first, then those that have waited since the start, then
        newer ones. `last` is the push that its client has seen last; None unless it resumes."""
        self._hub.register(session, self._clock.monotonic())
        self._pages.opened(session, last)
        self._grace.came(session)

    def refreshed(self, session: Session) -> None:
        """A session has a new token."""
        self._hub.refreshed(session)

    def close(self, session: Session, reason: CloseReason, retry_after: float | None = None) -> None:
        """Close a session for a reason of ours; `closed` follows when the socket is gone.

        `retry_after`: seconds that the client is told to wait; by default those of the reason. Idempotent; does nothing
        for a session that is closed: a caller that closes many takes a while, and some close before their turn.
        """
        if session.close_reason is not None or session.state is SessionState.CLOSED:
            return
        session.close_reason = reason
        self._hub.unregister(session)
        self._pages.closed(session)
        now = self._clock.time()
        for push in session.drain():
            push.lost(now, handed=False, why=_WHY.get(reason))
        if reason is CloseReason.REVOKED and session.socket.buffered:
            # What the kernel has not taken must not be read any more, and a close frame would wait behind it.
            session.socket.abort()
            return
        if session.mode is Mode.ENVELOPE:
            session.socket.write(
                (bye_frame(reason, reason.retry_after if retry_after is None else retry_after),), None
            )
        session.socket.close(reason)

    def closed(self, session: Session) -> None:
        """A socket is gone, whichever side closed it: pushes that it has not proven by now are lost."""
        self._hub.unregister(session)
        self._pages.closed(session)
        now = self._clock.time()
        queued, unproven = session.close()
        for push in queued:
            push.lost(now, handed=False)
        for push in unproven:
            push.lost(now, handed=True)
