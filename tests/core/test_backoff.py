"""How long something waits before it is tried again."""

from __future__ import annotations

from bridge.core.backoff import BackOff
from tests.support.ports import ManualClock


def test_waits_double_up_to_a_most_and_begin_anew_after_a_success() -> None:
    back_off = BackOff(ManualClock(), 0.1, 0.5)
    assert [back_off.delay() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    back_off.reset()
    assert back_off.delay() == 0.1


def test_without_a_most_all_waits_are_equal() -> None:
    back_off = BackOff(ManualClock(), 0.5)
    assert [back_off.delay() for _ in range(3)] == [0.5, 0.5, 0.5]


def test_jitter_cuts_a_wait_by_up_to_a_half_and_leaves_the_doubling_as_it_is() -> None:
    back_off = BackOff(ManualClock(), 0.2, 5.0, jitter=True)
    for n in range(12):
        whole = min(0.2 * 2**n, 5.0)
        assert whole / 2 <= back_off.delay() <= whole
