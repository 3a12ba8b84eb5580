"""When a push is due for its row, and when its time for a proof is over, whatever was parked before it."""

from __future__ import annotations

from bridge.core.inflight.deadlines import Deadlines
from tests.support.house import flight


def test_what_is_parked_early_is_over_in_its_time_whatever_else_was_parked() -> None:
    deadlines = Deadlines(park_after=1.0, confirm_timeout=5.0)
    old, middle, young, at_once = (
        flight(name, taken_mono=at)
        for name, at in (("old", 9.0), ("middle", 9.5), ("young", 9.9), ("at once", 9.95))
    )
    for one in (old, middle, young):
        deadlines.wait(one)
    deadlines.park(at_once, at_once=True)
    assert deadlines.park_early(lambda one: one is middle) == [middle]
    assert deadlines.park_early(lambda one: one is not young) == [old]
    assert deadlines.parked == 3
    assert list(deadlines.over(13.9)) == []
    assert list(deadlines.over(14.0)) == [old]
    assert list(deadlines.over(14.5)) == [middle]
    assert list(deadlines.over(14.95)) == [at_once]
    assert list(deadlines.rows_due(10.9)) == [young]
