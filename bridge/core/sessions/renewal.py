"""When a client is asked for a new token, or the connect hook is asked about it again."""

from __future__ import annotations

from typing import Final

from bridge.core.model.sessions import Mode
from bridge.core.sessions.session import Session

LEAD = 60.0
"""Seconds before the end of its token, at most."""
HOOK_LEAD: Final = 5.0
"""Seconds before the end in which the hook is asked again even about a short session, or half of its life: the answer
takes a moment."""


def asks_at(session: Session) -> float:
    """When its client is asked, in unix seconds: a minute before its token expires, or a tenth of the token's life
    where that is shorter. In bare mode nobody is asked: the end of the token.

    The hook is asked in either mode. What many sessions have in common is spread over the second half of that time, so
    that those which opened together do not all ask together.
    """
    claims = session.claims
    ends = claims.expires_at
    if session.mode is Mode.BARE and claims.asked is None:
        return ends
    began = claims.issued_at
    life = max(0.0, ends - (session.opened_at if began is None else began))
    lead = min(LEAD, life / 10)
    if claims.asked is not None:
        lead = max(lead, min(HOOK_LEAD, life / 2)) * (1 - hash(session.id) % 1000 / 2000)
    return ends - lead
