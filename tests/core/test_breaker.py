"""The circuit breaker: its table, and when it lets somebody try."""

from __future__ import annotations

import pytest

from bridge.core.errors import IllegalTransition
from bridge.core.sessions.breaker import (
    BREAKER_TRANSITIONS,
    FAILURES,
    FIRST_WAIT,
    LONGEST_WAIT,
    Breaker,
    BreakerEvent,
    BreakerState,
    next_breaker_state,
)
from tests.support.ports import ManualClock


def opened() -> tuple[Breaker, ManualClock]:
    """A breaker that has just opened."""
    clock = ManualClock()
    breaker = Breaker(clock)
    assert [breaker.failed(breaker.begin()) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert not breaker.allows
    return breaker, clock


def state_of(breaker: Breaker) -> BreakerState:
    return breaker.state


@pytest.mark.parametrize("state", BreakerState)
@pytest.mark.parametrize("event", BreakerEvent)
def test_what_the_table_does_not_list_is_an_error(state: BreakerState, event: BreakerEvent) -> None:
    if (state, event) in BREAKER_TRANSITIONS:
        assert next_breaker_state(state, event) is BREAKER_TRANSITIONS[state, event]
    else:
        with pytest.raises(IllegalTransition, match="breaker"):
            next_breaker_state(state, event)


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker(ManualClock())
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(breaker.begin())
        breaker.answered()
    assert state_of(breaker) is BreakerState.CLOSED


def test_while_it_is_open_one_tries_at_a_time_and_ever_less_often() -> None:
    breaker, clock = opened()
    wait = FIRST_WAIT
    for _ in range(6):
        seen = []
        for seconds in (wait - 0.01, 0.01):
            clock.advance(seconds)
            seen.append(breaker.allows)
        number = breaker.begin()
        assert [*seen, breaker.allows] == [False, True, False], "one at a time"
        assert not breaker.failed(number)
        wait = min(wait * 2, LONGEST_WAIT)
    clock.advance(wait)
    breaker.begin()
    breaker.answered()
    assert breaker.allows
    assert state_of(breaker) is BreakerState.CLOSED
    assert [breaker.failed(breaker.begin()) for _ in range(FAILURES)][-1], "it begins to count anew"
    clock.advance(FIRST_WAIT)
    assert breaker.allows, "and to wait"


def test_a_try_that_is_given_up_leaves_the_next_one_to_try_at_once() -> None:
    breaker, clock = opened()
    clock.advance(FIRST_WAIT)
    number = breaker.begin()
    breaker.given_up(number)
    assert breaker.allows
    later = breaker.begin()
    breaker.given_up(number)
    assert not breaker.failed(number), "the one before says nothing about this one"
    assert state_of(breaker) is BreakerState.TRYING
    breaker.failed(later)
    assert state_of(breaker) is BreakerState.OPEN


def test_what_was_asked_before_it_opened_does_not_make_it_wait_longer_and_closes_it_if_it_is_answered() -> (
    None
):
    breaker, clock = opened()
    for _ in range(20):
        assert not breaker.failed(0)
    clock.advance(FIRST_WAIT)
    assert breaker.allows
    breaker.begin()
    breaker.failed(0)
    assert state_of(breaker) is BreakerState.TRYING
    breaker.answered()
    assert state_of(breaker) is BreakerState.CLOSED
