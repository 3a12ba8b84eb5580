"""Carry out `refresh` frames: a client brings a new token for its session."""

from __future__ import annotations

from typing import Final

from bridge.core.contract.client_frames import RefreshFrame
from bridge.core.contract.frames import error_frame, ok_frame
from bridge.core.delivery.presence import Presence
from bridge.core.model.sessions import Grant, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.access import Access, Undecided
from bridge.core.sessions.session import Session

FORMER_MAX: Final = 20
"""Tokens before the present one that a session may have while they are still good: each is revoked with the session,
and written with each refresh. Who refreshes when it is asked has one."""
FORMER_SECONDS: Final = 60.0
"""For so long after it has expired, a token that was refreshed is remembered: clocks differ."""


class Refreshing:
    """Gives sessions the tokens that their clients bring."""

    def __init__(self, access: Access, presence: Presence, clock: Clock) -> None:
        self._access = access
        self._presence = presence
        self._clock = clock

    def heard(self, session: Session, refresh: RefreshFrame) -> Frame:
        """A new token for an open session: of the same user, or the session ends with the one that it has. What the
        session may do is what the new token says."""
        answer = self._access.check(refresh.token, Grant(None, session.mode, None))
        if isinstance(answer, Undecided):
            problem = "token: the keys that check it are being read, send it again in a moment"
            return error_frame("try_later", problem, refresh.ref)
        if isinstance(answer, Refusal):
            code = "try_later" if answer.status == 503 else "refused"
            return error_frame(code, answer.text, refresh.ref)
        if answer.claims is None or answer.claims.user != session.user:
            return error_frame("refused", "token: it is not of this user", refresh.ref)
        if answer.claims.expires_at <= session.claims.expires_at:
            problem = "token: it does not expire later than the one before"
            return error_frame("refused", problem, refresh.ref)
        # Whoever revokes the session means them too: its client must not come back with one.
        good = self._clock.time() - FORMER_SECONDS
        former = tuple(c for c in (*session.former, session.claims) if c.expires_at > good)
        if len(former) > FORMER_MAX:
            problem = f"token: the session has had {FORMER_MAX} others that are still good, send it later"
            return error_frame("refused", problem, refresh.ref)
        session.former = former
        session.claims = answer.claims
        self._presence.refreshed(session)
        return ok_frame(refresh.ref)
