"""When a client is asked for a new token."""

from __future__ import annotations

from bridge.core.model.sessions import Mode
from bridge.core.sessions.session import Session

LEAD = 60.0
"""Seconds before the end of its token, at most."""


def asks_at(session: Session) -> float:
    """When its client is asked, in unix seconds: a minute before its token expires, or a tenth of the token's life
    where that is shorter. In bare mode nobody is asked: the end of the token."""
    ends = session.claims.expires_at
    if session.mode is Mode.BARE:
        return ends
    began = session.claims.issued_at
    life = ends - (session.opened_at if began is None else began)
    return ends - max(0.0, min(LEAD, life / 10))
