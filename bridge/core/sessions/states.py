"""The state table of a session: what may follow what."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bridge.core.errors import IllegalTransition


class SessionState(enum.Enum):
    """Where a session is in its life."""

    REPLAYING = "replaying"
    """Gets what is kept for its user first; what is newer waits in it."""
    LIVE = "live"
    """Takes pushes and gives proofs."""
    DRAINING = "draining"
    """Takes no more pushes; what was handed over may still be proven."""
    CLOSED = "closed"
    """Gone; everything that was unproven has been given back."""


class SessionEvent(enum.Enum):
    """What happens to a session."""

    REPLAY = "replay"
    REPLAYED = "replayed"
    DRAIN = "drain"
    CLOSE = "close"


SESSION_TRANSITIONS: Mapping[tuple[SessionState, SessionEvent], SessionState] = {
    (SessionState.REPLAYING, SessionEvent.REPLAYED): SessionState.LIVE,
    (SessionState.REPLAYING, SessionEvent.DRAIN): SessionState.DRAINING,
    (SessionState.REPLAYING, SessionEvent.CLOSE): SessionState.CLOSED,
    (SessionState.LIVE, SessionEvent.REPLAY): SessionState.REPLAYING,
    (SessionState.LIVE, SessionEvent.DRAIN): SessionState.DRAINING,
    (SessionState.LIVE, SessionEvent.CLOSE): SessionState.CLOSED,
    (SessionState.DRAINING, SessionEvent.DRAIN): SessionState.DRAINING,
    (SessionState.DRAINING, SessionEvent.CLOSE): SessionState.CLOSED,
    (SessionState.CLOSED, SessionEvent.CLOSE): SessionState.CLOSED,
}


def next_session_state(state: SessionState, event: SessionEvent) -> SessionState:
    """Return the state after `event`; raises IllegalTransition where the table has no line for it."""
    try:
        return SESSION_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition("session", state.value, event.value) from None
