"""The memory of ids: what it has not, has not come; and until it is whole, everything may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import given
from hypothesis import strategies as st

from bridge.adapters.memory import MemoryStore
from bridge.core.delivery.remembered import GENERATION, Filter, Remembered
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.ports.store import IdPage, IdPlace, OthersRows
from tests.support.house import BOUNDS, House
from tests.support.ports import ManualClock
from tests.support.rows import row
from tests.support.waiting import turns, until


@given(st.lists(st.text(min_size=1, max_size=40)), st.sampled_from([8, 64, 4096]))
def test_what_was_added_is_always_found_however_small_the_filter(texts: list[str], size: int) -> None:
    made = Filter(size)
    for text in texts:
        made.add(text)
    assert all(text in made for text in texts)


def test_few_others_are_taken_for_known() -> None:
    made = Filter(10_000 * 2)  # 16 bits each
    for n in range(10_000):
        made.add(f"order-{n}")
    assert sum(f"invoice-{n}" in made for n in range(10_000)) < 200


def whole(now: float = 0.0) -> Remembered:
    made = Remembered(1 << 16, now)
    made.complete = True
    return made


def test_an_id_is_known_for_a_day_at_least_and_forgotten_after_two() -> None:
    memory = whole()
    memory.every_second(GENERATION - 1)
    memory.add("p1")
    memory.every_second(GENERATION)
    memory.add("p2")
    memory.every_second(2 * GENERATION - 1)
    assert "p1" in memory
    assert "p2" in memory
    memory.every_second(2 * GENERATION)
    assert "p1" not in memory
    assert "p2" in memory


def test_until_it_is_whole_every_id_may_have_come() -> None:
    assert "p1" in Remembered(1 << 16, 0.0)
    assert "p1" not in whole()


CHANNEL = 1


class Log(MemoryStore):
    """A store whose readings can be held, and fail."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.pages: list[int] = []
        self.counts = 0
        self.reading = asyncio.Event()
        self.reading.set()
        self.too_slow_above = BOUNDS.taking.ids_rows

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        self.pages.append(limit)
        if limit > self.too_slow_above:
            raise StatementFailed("canceling statement due to statement timeout")
        page = await super().ids(after, limit)
        await self.reading.wait()
        return page

    async def rows_of_others(self, boot: str) -> OthersRows:
        self.counts += 1
        return await super().rows_of_others(boot)


@asynccontextmanager
async def recollecting(*ids: str) -> AsyncIterator[tuple[House, Log]]:
    """A house that reads the ids of a log in which another process has written these."""
    clock = ManualClock()
    log = Log(clock)
    await log.record([row(i, boot="b0") for i in ids])
    h = House(clock=clock, store=log)
    async with h.running(h.recollection):
        yield h, log


async def test_what_the_log_knows_is_read_at_the_start_and_trusted_once_messages_come() -> None:
    async with recollecting("p1", "p2") as (h, log):
        await until(lambda: log.pages)
        await turns()
        assert not h.remembered.complete, "another process may be taking"
        h.recollection.began(CHANNEL)
        await until(lambda: h.remembered.complete)
        assert "p1" in h.remembered
        assert "p3" not in h.remembered
        assert len(log.pages) == 1, "nobody has written meanwhile"


async def test_who_stood_by_reads_what_the_other_has_taken_before_it_trusts_its_memory() -> None:
    async with recollecting("p1") as (h, log):
        await until(lambda: log.counts == 1)
        await turns()
        await log.record([row("p2", boot="other")])
        h.recollection.began(CHANNEL)
        await until(lambda: h.remembered.complete)
        assert "p2" in h.remembered


async def test_after_a_lost_channel_nothing_is_trusted_before_the_next_message() -> None:
    async with recollecting("p1") as (h, log):
        h.recollection.began(CHANNEL)
        await until(lambda: h.remembered.complete)
        h.recollection.doubt(CHANNEL)
        assert "p9" in h.remembered
        await turns()
        assert not h.remembered.complete
        await log.record([row("p2", boot="other"), row("mine", boot="b1")])
        h.recollection.began(CHANNEL)
        await until(lambda: h.remembered.complete)
        assert "p2" in h.remembered


async def test_a_channel_that_is_lost_while_the_log_is_read_is_doubted() -> None:
    async with recollecting("p1") as (h, log):
        log.reading.clear()
        h.recollection.began(CHANNEL)
        await until(lambda: log.pages)
        h.recollection.doubt(CHANNEL)
        await log.record([row("p2", boot="other")])
        log.reading.set()
        await turns()
        assert not h.remembered.complete
        h.recollection.began(CHANNEL)
        await until(lambda: h.remembered.complete)
        assert "p2" in h.remembered


async def test_a_page_that_takes_too_long_is_read_in_smaller_ones() -> None:
    async with recollecting(*(f"p{n}" for n in range(3000))) as (h, log):
        log.too_slow_above = BOUNDS.taking.ids_rows // 16
        h.recollection.began(CHANNEL)
        for _ in range(20):
            await turns()
            h.clock.advance(1)
        assert h.remembered.complete
        assert all(f"p{n}" in h.remembered for n in range(3000))
        assert h.errors.seen == []


async def test_a_log_that_can_not_be_read_is_asked_again_and_everything_is_looked_up_meanwhile() -> None:
    async with recollecting("p1") as (h, log):
        log.fail_with = StoreUnavailable("stopped")
        h.recollection.began(CHANNEL)
        await until(lambda: h.errors.seen)
        assert "p9" in h.remembered
        log.fail_with = None
        h.clock.advance(2)
        await until(lambda: h.remembered.complete)
