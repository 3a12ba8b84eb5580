"""The transition tables: what may follow what, for a row of the log and for a session."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bridge.core.errors import IllegalTransition
from bridge.core.model.outcomes import FINAL, Outcome

ROW_TRANSITIONS: Mapping[Outcome | None, frozenset[Outcome]] = {
    None: frozenset(Outcome),
    Outcome.PENDING: frozenset(o for o in Outcome if FINAL[o]),
    Outcome.STORED: frozenset((*(o for o in Outcome if FINAL[o]), Outcome.STORED)),
    **{o: frozenset() for o in Outcome if FINAL[o]},
}
"""From the outcome that a row has (None: there is no row) to those it may get. A final row has no next."""


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


def row_may_become(have: Outcome | None, want: Outcome) -> bool:
    """Whether a row may go from `have` (None: no row) to `want`: the rule of every compare-and-set."""
    return want in ROW_TRANSITIONS[have]
