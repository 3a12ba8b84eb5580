"""The fixed bounds that the core is handed are those that it keeps to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bridge.core.errors import StatementFailed
from bridge.core.model.rows import Row
from bridge.core.ports.store import Written
from tests.support.house import BOUNDS, house, settlement_house, to
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("push", "expected"),
    [
        ([to("absent", f"p{n}") for n in range(7)], [3, 3, 1]),
        # One row is due at first. Then six are: while more than four wait, others get their turns sooner.
        ({"id": "p", "to": {"all": True}, "data": 1, "confirm": "written"}, [1, 2, 3, 1]),
    ],
    ids=("to users", "to a crowd"),
)
async def test_rows_are_written_in_batches_as_large_as_the_core_is_told(
    push: dict[str, object] | list[object], expected: list[int]
) -> None:
    settlement = BOUNDS.settlement._replace(batch_rows=3, many_rows=4, batch_of_crowd=2)
    async with house(bounds=BOUNDS._replace(settlement=settlement)) as h:
        for n in range(7):
            h.connect(f"u{n}")
        batches: list[int] = []
        record = h.store.record

        async def noted(rows: Sequence[Row]) -> Sequence[Written]:
            batches.append(len(rows))
            return await record(rows)

        h.store.record = noted  # type: ignore[method-assign]
        await h.push(push)
        await h.settled(1)
        assert batches == expected


async def test_a_row_waits_a_moment_for_others_to_be_written_with_it_and_many_do_not_wait() -> None:
    bounds = BOUNDS._replace(settlement=BOUNDS.settlement._replace(linger=0.01, linger_rows=4))
    async with house(bounds=bounds) as h:
        batches: list[int] = []
        record = h.store.record

        async def noted(rows: Sequence[Row]) -> Sequence[Written]:
            batches.append(len(rows))
            return await record(rows)

        h.store.record = noted  # type: ignore[method-assign]
        await h.push(to("absent", "p1"))
        await h.push(to("absent", "p2"))
        assert batches == []
        h.clock.advance(0.01)
        await h.settled(2)
        assert batches == [2]
        await h.push([to("absent", f"p{n}") for n in range(3, 7)])
        await h.settled(3)
        assert batches == [2, 4]


async def test_a_sweep_asks_for_as_many_rows_as_the_core_is_told_and_for_fewer_after_a_failure() -> None:
    bounds = BOUNDS._replace(statements=BOUNDS.statements._replace(sweep_rows=40, parts=4))
    async with settlement_house(bounds=bounds) as h:
        asked: list[int] = []

        async def owing(limit: int) -> Sequence[Row]:
            asked.append(limit)
            if limit > 10:
                raise StatementFailed("canceling statement due to statement timeout")
            return ()

        h.store.owing = owing  # type: ignore[method-assign]
        for sweeps in range(1, 6):
            h.worklist.sweep()
            await until(lambda count=sweeps: len(asked) == count)  # type: ignore[misc]
            await h.worklist.idle()
        assert asked == [40, 10, 20, 5, 10]
