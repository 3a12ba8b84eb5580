"""What the owner of all pushes in flight tells those that ask it: `bridge.core.inflight.inflight`."""

from __future__ import annotations

from tests.support.house import House
from tests.support.rows import row


async def test_rows_that_become_final_are_collected_until_the_block_ends() -> None:
    h = House()
    first, second = row("p1"), row("p2")
    with h.inflight.watching({"u"}) as rows:
        h.inflight.ended_in_store([first])
        assert rows == {first.key: first}
    h.inflight.ended_in_store([second])
    assert rows == {first.key: first}
