"""The promises under any order of events: generated stories on the real core, see `tests.model`."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model import STEPS, Step, play

stories = st.lists(
    st.builds(Step, st.sampled_from(STEPS), st.integers(0, 60), st.integers(0, 60)), min_size=5, max_size=60
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stories)
def test_the_promises_hold_whatever_happens_in_whatever_order(story: list[Step]) -> None:
    broken = asyncio.run(play(story))
    assert broken == []


def test_a_lie_is_found() -> None:
    """The model itself can fail: a core that calls everything received is caught."""
    from bridge.flight import Flight
    from bridge.model import Outcome, Reason

    end = Flight.end

    def lying(self: Flight, outcome: Outcome, reason: Reason, now: float) -> object:
        return end(self, Outcome.RECEIVED, Reason.PONG, now)

    Flight.end = lying  # type: ignore[method-assign,assignment]
    try:
        broken = asyncio.run(play([Step("publish", 1, 1), Step("pass_time", 8)]))
    finally:
        Flight.end = end  # type: ignore[method-assign]
    assert any("received without proof" in line for line in broken)
