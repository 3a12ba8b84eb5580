"""A statement that took too long asks for fewer rows the next time, and for more once it did not."""

from __future__ import annotations

import pytest

from bridge.core.errors import StatementFailed
from bridge.core.model.pushes import PushKey
from bridge.core.ports.store import RowPage
from bridge.core.row_limit import RowLimit
from tests.support.house import house
from tests.support.waiting import turns


async def test_the_next_page_of_a_push_begins_with_what_the_last_one_could_read() -> None:
    async with house() as h:
        asked: list[int] = []
        pages = iter(("", "u1", "u2", None))

        async def find_push(push: PushKey, from_user: str, limit: int) -> RowPage:
            asked.append(limit)
            if limit > 125:
                raise StatementFailed("canceling statement due to statement timeout")
            return RowPage((), next(pages))

        h.store.find_push = find_push  # type: ignore[method-assign]
        await h.push({"id": "p1", "to": {"all": True}, "data": 1}, redelivered=True)
        await turns(200)
        assert asked == [1, 1000, 125, 250, 31, 62], "first whether there is any row, then all"


def test_a_row_limit_shrinks_in_large_steps_and_grows_in_small_ones_within_its_ends() -> None:
    limit = RowLimit(500, 8)
    limit.grow()
    assert limit.rows == 500
    seen = []
    while limit.shrink():
        seen.append(limit.rows)
    assert seen == [62, 7, 1]
    assert not limit.shrink(), "it can't ask for less"
    assert limit.rows == 1
    for _ in range(8):
        limit.grow()
    assert limit.rows == 256
    limit.grow()
    assert limit.rows == 500


@pytest.mark.parametrize(("most", "least", "smallest"), [(500, 100, 100), (50, 100, 50), (1, 1, 1)])
def test_a_row_limit_never_falls_below_the_least_that_makes_sense(
    most: int, least: int, smallest: int
) -> None:
    limit = RowLimit(most, 8, least)
    while limit.shrink():
        pass
    assert limit.rows == smallest
