"""A circuit breaker: whoever fails to answer several times in a row is left alone for a while, then tried once.

| state    | answered | failed | failed too often | tried    | try failed | try given up |
|----------|----------|--------|------------------|----------|------------|--------------|
| `closed` | `closed` |`closed`| `open`           |          |            |              |
| `open`   | `closed` | `open` |                  | `trying` |            |              |
| `trying` | `closed` |`trying`|                  |          | `open`     | `open`       |

What was asked before it opened may still be answered, and then it closes: whoever answers works.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from bridge.core.backoff import BackOff
from bridge.core.errors import IllegalTransition
from bridge.core.ports.clock import Clock

FAILURES: Final = 5
"""Failures in a row that open it."""
FIRST_WAIT: Final = 1.0
"""Seconds until the first try; each later one comes after twice as long,"""
LONGEST_WAIT: Final = 8.0
"""and so many seconds at most."""


class BreakerState(enum.Enum):
    """Whether anybody may ask."""

    CLOSED = "closed"
    """Everybody may."""
    OPEN = "open"
    """Nobody may, until it is time for a try."""
    TRYING = "trying"
    """One has asked, and nobody else may."""


class BreakerEvent(enum.Enum):
    """What became of a question."""

    ANSWERED = "answered"
    FAILED = "failed"
    FAILED_TOO_OFTEN = "failed too often"
    TRIED = "tried"
    TRY_FAILED = "try failed"
    TRY_GIVEN_UP = "try given up"


BREAKER_TRANSITIONS: Final[Mapping[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    (BreakerState.CLOSED, BreakerEvent.ANSWERED): BreakerState.CLOSED,
    (BreakerState.CLOSED, BreakerEvent.FAILED): BreakerState.CLOSED,
    (BreakerState.CLOSED, BreakerEvent.FAILED_TOO_OFTEN): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.ANSWERED): BreakerState.CLOSED,
    (BreakerState.OPEN, BreakerEvent.FAILED): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.TRIED): BreakerState.TRYING,
    (BreakerState.TRYING, BreakerEvent.ANSWERED): BreakerState.CLOSED,
    (BreakerState.TRYING, BreakerEvent.FAILED): BreakerState.TRYING,
    (BreakerState.TRYING, BreakerEvent.TRY_FAILED): BreakerState.OPEN,
    (BreakerState.TRYING, BreakerEvent.TRY_GIVEN_UP): BreakerState.OPEN,
}


def next_breaker_state(state: BreakerState, event: BreakerEvent) -> BreakerState:
    """Return the state after `event`; raises IllegalTransition where the table has no line for it."""
    try:
        return BREAKER_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition("breaker", state.value, event.value) from None


class Breaker:
    """The state, and the times of the tries."""

    def __init__(self, clock: Clock) -> None:
        self.state = BreakerState.CLOSED
        self._clock = clock
        self._failures = 0
        """In a row, while it is closed."""
        self._back_off = BackOff(clock, FIRST_WAIT, LONGEST_WAIT)
        self._try_at = 0.0
        """Monotonic seconds."""
        self._tries = 0

    @property
    def allows(self) -> bool:
        """Whether somebody may ask now."""
        if self.state is BreakerState.OPEN:
            return self._clock.monotonic() >= self._try_at
        return self.state is BreakerState.CLOSED

    def begin(self) -> int:
        """Somebody asks, which it allows. Returns a number, to be given back with what becomes of it: 0 is no try."""
        if self.state is BreakerState.CLOSED:
            return 0
        self._happens(BreakerEvent.TRIED)
        self._tries += 1
        return self._tries

    def answered(self) -> None:
        """An answer came."""
        self._failures = 0
        self._back_off.reset()
        self._happens(BreakerEvent.ANSWERED)

    def failed(self, number: int) -> bool:
        """No answer came. Returns whether that has opened it."""
        if self._is_the_try(number):
            self._wait()
            self._happens(BreakerEvent.TRY_FAILED)
            return False
        if self.state is BreakerState.CLOSED:
            self._failures += 1
            if self._failures >= FAILURES:
                self._failures = 0
                self._wait()
                self._happens(BreakerEvent.FAILED_TOO_OFTEN)
                return True
        self._happens(BreakerEvent.FAILED)
        return False

    def given_up(self, number: int) -> None:
        """Whoever asked does not wait for the answer. If it was the try, the next one may try at once."""
        if self._is_the_try(number):
            self._happens(BreakerEvent.TRY_GIVEN_UP)

    def _is_the_try(self, number: int) -> bool:
        return number == self._tries and number > 0 and self.state is BreakerState.TRYING

    def _wait(self) -> None:
        self._try_at = self._clock.monotonic() + self._back_off.delay()

    def _happens(self, event: BreakerEvent) -> None:
        self.state = next_breaker_state(self.state, event)
