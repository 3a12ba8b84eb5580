"""The state table of a push to one user. `Flight` executes it: an event without a line raises and changes nothing.

A state is the best proof so far; a proof that is good enough, and everything that fails, decides the outcome.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple

from bridge.core.errors import IllegalTransition
from bridge.core.model.outcomes import Outcome, Reason


class State(enum.IntEnum):
    """How far a push has come on its way to one user."""

    TAKEN = 0
    """No socket has it."""
    WRITTEN = 1
    """A socket has it, and no peer has proven it."""
    RECEIVED = 2
    """A peer has received it, and the ack that was asked for has not come yet."""
    ENDED = 3
    """Its outcome is decided, and never changes again."""

    __hash__ = int.__hash__


class Event(enum.IntEnum):
    """What happens to a push in flight."""

    ADDRESSED = 0
    """It was offered to further sessions."""
    HANDED = 1
    """A session has handed it to its socket."""
    RECEIVED = 2
    """A peer has answered a ping that was sent after it (RFC 6455 section 5.5.3)."""
    ACKED = 3
    """An application has sent the ack frame for it."""
    LOST = 4
    """A session that it was offered to is gone, or had no room for it."""
    TIMED_OUT = 5
    """The time for a proof is over."""
    UNDELIVERABLE = 6
    """No session takes it now."""
    SUPERSEDED = 7
    """A newer push with its collapse key was taken."""
    RECALLED = 8
    """A recall names it."""
    DECIDED = 9
    """Its outcome is known without sending it: it is rejected, expired, or its user is absent."""
    LOGGED = 10
    """The log has a final row for it, whether this process wrote it or another did."""
    UNPROVABLE = 11
    """Its time is over, or nobody waits any more, and no session that has it can prove anything."""

    __hash__ = int.__hash__


class Step(NamedTuple):
    """What an event does in a state."""

    to: State
    """The next state, where the event does not decide the outcome."""
    outcome: Outcome | None = None
    """The outcome, if the event decides it. A proof decides when no better one was asked for. A failure decides when
    no other session may still prove the push, and only if its ttl is over. None: the caller names the outcome."""
    reason: Reason | None = None


_S, _E, _O, _R = State, Event, Outcome, Reason

STEPS: Mapping[tuple[State, Event], Step] = {
    (_S.TAKEN, _E.ADDRESSED): Step(_S.TAKEN),
    (_S.TAKEN, _E.HANDED): Step(_S.WRITTEN, _O.WRITTEN, _R.HANDED_OVER),
    (_S.TAKEN, _E.LOST): Step(_S.TAKEN, _O.OFFLINE, _R.LEFT_BEFORE_SEND),
    (_S.TAKEN, _E.TIMED_OUT): Step(_S.TAKEN, _O.DROPPED, _R.SLOW_CONSUMER),
    (_S.TAKEN, _E.UNDELIVERABLE): Step(_S.TAKEN),
    (_S.TAKEN, _E.SUPERSEDED): Step(_S.TAKEN, _O.SUPERSEDED, _R.COLLAPSED),
    (_S.TAKEN, _E.RECALLED): Step(_S.ENDED, _O.RECALLED, _R.WITHDRAWN),
    (_S.TAKEN, _E.DECIDED): Step(_S.ENDED),
    (_S.TAKEN, _E.LOGGED): Step(_S.ENDED),
    (_S.WRITTEN, _E.ADDRESSED): Step(_S.WRITTEN),
    (_S.WRITTEN, _E.HANDED): Step(_S.WRITTEN),
    (_S.WRITTEN, _E.RECEIVED): Step(_S.RECEIVED, _O.RECEIVED, _R.PONG),
    (_S.WRITTEN, _E.ACKED): Step(_S.ENDED, _O.ACKED, _R.ACK_FRAME),
    (_S.WRITTEN, _E.LOST): Step(_S.WRITTEN, _O.UNKNOWN, _R.CONNECTION_LOST),
    (_S.WRITTEN, _E.TIMED_OUT): Step(_S.WRITTEN, _O.UNKNOWN, _R.NO_PROOF),
    (_S.WRITTEN, _E.SUPERSEDED): Step(_S.WRITTEN),
    (_S.WRITTEN, _E.RECALLED): Step(_S.ENDED, _O.RECALLED, _R.WITHDRAWN),
    (_S.WRITTEN, _E.LOGGED): Step(_S.ENDED),
    (_S.WRITTEN, _E.UNPROVABLE): Step(_S.WRITTEN, _O.WRITTEN, _R.NO_PROOF_POSSIBLE),
    (_S.RECEIVED, _E.ADDRESSED): Step(_S.RECEIVED),
    (_S.RECEIVED, _E.HANDED): Step(_S.RECEIVED, _O.WRITTEN, _R.HANDED_OVER),
    (_S.RECEIVED, _E.RECEIVED): Step(_S.RECEIVED, _O.RECEIVED, _R.PONG),
    (_S.RECEIVED, _E.ACKED): Step(_S.ENDED, _O.ACKED, _R.ACK_FRAME),
    (_S.RECEIVED, _E.LOST): Step(_S.RECEIVED, _O.RECEIVED, _R.NOT_ACKED),
    (_S.RECEIVED, _E.TIMED_OUT): Step(_S.RECEIVED, _O.RECEIVED, _R.NOT_ACKED),
    (_S.RECEIVED, _E.SUPERSEDED): Step(_S.RECEIVED, _O.SUPERSEDED, _R.COLLAPSED),
    (_S.RECEIVED, _E.RECALLED): Step(_S.ENDED, _O.RECALLED, _R.WITHDRAWN),
    (_S.RECEIVED, _E.LOGGED): Step(_S.ENDED),
    (_S.ENDED, _E.ADDRESSED): Step(_S.ENDED),
    (_S.ENDED, _E.HANDED): Step(_S.ENDED),
    (_S.ENDED, _E.RECEIVED): Step(_S.ENDED),
    (_S.ENDED, _E.ACKED): Step(_S.ENDED),
    (_S.ENDED, _E.LOST): Step(_S.ENDED),
    (_S.ENDED, _E.TIMED_OUT): Step(_S.ENDED),
    (_S.ENDED, _E.SUPERSEDED): Step(_S.ENDED),
    (_S.ENDED, _E.RECALLED): Step(_S.ENDED),
    (_S.ENDED, _E.LOGGED): Step(_S.ENDED),
}
"""From a state and an event to what the event does. A pair that is missing can't happen."""


_LINES: Final = [[STEPS.get((state, event)) for event in Event] for state in State]


def step(state: State, event: Event) -> Step:
    """The line of the table; raises IllegalTransition where there is none."""
    found = _LINES[state][event]
    if found is None:
        raise IllegalTransition("push", State(state).name.lower(), Event(event).name.lower())
    return found
