"""The state table of a session: which event may come in which state, and what follows."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bridge.core.errors import IllegalTransition


class SessionState(enum.Enum):
    """Where a session is in its life."""

    REPLAYING = "replaying"
    """Is sent what is kept for its user first; newer pushes are held until then."""
    LIVE = "live"
    """Takes pushes and gives proofs."""
    DRAINING = "draining"
    """Takes no more pushes; what was handed over may still be proven."""
    CLOSED = "closed"
    """The socket is gone; what was unproven is reported to its pushes as lost."""


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
