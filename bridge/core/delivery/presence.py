"""Open and close sessions: send what waits for a user, and report pushes that a closed session has not proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bridge.core.contract.frames import bye_frame
from bridge.core.delivery.grace import Grace
from bridge.core.mailbox.pages import Pages
from bridge.core.model.ledger import NO_DEVICE, Device
from bridge.core.model.outcomes import Reason
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.clock import Clock
from bridge.core.sessions.admission import Admission
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.ledger import Ledger
from bridge.core.sessions.session import Session
from bridge.core.sessions.states import SessionState
from bridge.core.sessions.subscriptions import Subscriptions

_WHY: Final[Mapping[CloseReason, Reason]] = {
    CloseReason.TOO_SLOW: Reason.SLOW_CONSUMER,
    CloseReason.REVOKED: Reason.REVOKED,
}
"""Why pushes were not handed over, where the end of their session alone does not say it."""


class Presence:
    """Opens and closes sessions."""

    def __init__(
        self,
        *,
        hub: Hub,
        pages: Pages,
        grace: Grace,
        ledger: Ledger,
        subscriptions: Subscriptions,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._hub = hub
        self._pages = pages
        self._grace = grace
        self._ledger = ledger
        self._subscriptions = subscriptions
        self._admission = admission
        self._clock = clock

    def opened(self, session: Session, last: str | None = None, device: Device = NO_DEVICE) -> None:
        """A session opened. From now on pushes to its user are addressed to it; it holds them until `recorded`.

        `last` is the push that its client has seen last; None unless it resumes.
        """
        self._hub.register(session, self._clock.monotonic())
        self._admission.came(session.id, device.address)
        self._pages.opened(session, last)
        self._grace.came(session)
        if self._ledger.kept:
            self._ledger.opened(session, device, self._clock.monotonic())
            self._subscriptions.opened(session)
        else:
            self._subscriptions.opened(session)
            self.recorded(session)
            self._replace_oldest(session.user)

    def _replace_oldest(self, user: str) -> None:
        """Where there is a ledger, it says whose sessions are too many, on all nodes."""
        most = self._admission.limits.of_user
        if most:
            for oldest in tuple(self._hub.of_user(user))[:-most]:
                self.close(oldest, CloseReason.REPLACED)

    def recorded(self, session: Session) -> None:
        """The ledger has the open of a session: it is welcomed. Kept pushes of its user are sent first, then those that
        have waited since the start, then newer ones."""
        if session.takes_pushes:
            self._pages.recorded(session)

    def refreshed(self, session: Session) -> None:
        """A session has a new token."""
        self._hub.refreshed(session)
        self._ledger.refreshed(session)
        self._subscriptions.refreshed(session)

    def close(self, session: Session, reason: CloseReason, retry_after: float | None = None) -> None:
        """Close a session for a reason of ours; `closed` follows when the socket is gone.

        `retry_after`: seconds that the client is told to wait; by default those of the reason. Idempotent; does nothing
        for a session that is closed: a caller that closes many takes a while, and some close before their turn.
        """
        if session.close_reason is not None or session.state is SessionState.CLOSED:
            return
        session.close_reason = reason
        now = self._clock.time()
        self._gone(session, reason.code, reason.word, now)
        for push in session.drain():
            push.lost(now, handed=False, why=_WHY.get(reason))
        if reason is CloseReason.CUT_OFF or (reason is CloseReason.REVOKED and session.socket.buffered):
            # What the kernel has not taken must not be read any more, and a close frame would wait behind it.
            session.socket.abort()
            return
        if session.mode is not Mode.BARE:
            session.socket.write(
                (bye_frame(reason, reason.retry_after if retry_after is None else retry_after),), None
            )
        session.socket.close(reason)

    def closed(self, session: Session, code: int = 1006) -> None:
        """A socket is gone, whichever side closed it: pushes that it has not proven by now are lost."""
        now = self._clock.time()
        self._gone(session, code, "client", now)
        queued, unproven = session.close()
        for push in queued:
            push.lost(now, handed=False)
        for push in unproven:
            push.lost(now, handed=True)

    def _gone(self, session: Session, code: int, reason: str, now: float) -> None:
        """It gets no more pushes."""
        if self._hub.unregister(session):
            written = self._ledger.closed(session, code, reason, now)
            self._subscriptions.closed(session, remember=written)
            self._admission.left(session.id)
        self._pages.closed(session)
