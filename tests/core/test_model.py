"""The promises under any order of events: a state machine around the real core, see `tests.support.model`."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.model import DeliveryMachine
from tests.support.world import Step, play


def test_the_promises_hold_whatever_happens_in_whatever_order() -> None:
    run_state_machine_as_test(
        DeliveryMachine,
        settings=settings(
            max_examples=200,
            stateful_step_count=50,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_a_lie_is_found() -> None:
    """The model itself can fail: a core that calls everything received is caught."""
    from bridge.core.inflight.flight import Flight
    from bridge.core.model.outcomes import Outcome, Reason

    end = Flight._end

    def lying(self: Flight, outcome: Outcome, reason: Reason, now: float) -> object:
        return end(self, Outcome.RECEIVED, Reason.PONG, now)

    Flight._end = lying  # type: ignore[method-assign,assignment]
    try:
        broken = asyncio.run(play([Step("publish", 1, 1), Step("pass_time", 8)]))
    finally:
        Flight._end = end  # type: ignore[method-assign]
    assert any("received without proof" in line for line in broken)
