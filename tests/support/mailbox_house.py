"""Kept pushes and the mailbox, for tests of the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.core.delivery.delivery import DeliveryLimits

from bridge.adapters.memory import MemoryStore
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row
from bridge.core.ports.store import MailboxAsk, MailboxPage, Written
from bridge.core.sessions.session import SessionLimits
from tests.support.core import ManualClock, until
from tests.support.core_house import House, to


class GatedStore(MemoryStore):
    """Lets a test stop the writer, or the reader of the mailbox, before it does anything."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.writing = asyncio.Event()
        self.reading = asyncio.Event()
        self.writing.set()
        self.reading.set()
        self.reads = 0

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        await self.writing.wait()
        return await super().record(rows)

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        pages = await super().mailbox(asks)
        self.reads += 1
        await self.reading.wait()
        return pages


@asynccontextmanager
async def house(
    *,
    frames: int = 256,
    total_bytes: int = 1 << 20,
    clock: ManualClock | None = None,
    store: MemoryStore | None = None,
    boot: str = "b1",
    mailbox: MailboxLimits | None = None,
) -> AsyncIterator[House]:
    clock = clock or ManualClock()
    built = House(
        DeliveryLimits(start_grace=0.0),
        SessionLimits(frames, total_bytes),
        clock=clock,
        store=store or GatedStore(clock),
        boot=boot,
        mailbox_limits=mailbox,
    )
    tasks = [
        asyncio.create_task(work, name=name)
        for name, work in (
            ("settlement", built.settlement.run()),
            ("delivery", built.delivery.run()),
            ("mailbox", built.mailbox.run()),
        )
    ]
    built.mailbox.begin(await built.store.last_position())
    try:
        yield built
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results


def kept(user: str, push_id: str = "p1", ttl: float = 3600, **more: object) -> dict[str, object]:
    return to(user, push_id, ttl=ttl, **more)


async def is_(h: House, push_id: str, outcome: Outcome, reason: Reason, user: str = "u1") -> None:
    """Wait until the row says so."""
    try:
        await until(lambda: _says(h, push_id, user) == (outcome, reason))
    except TimeoutError:
        raise AssertionError(f"{push_id} for {user} is {_says(h, push_id, user)}") from None


def _says(h: House, push_id: str, user: str) -> tuple[Outcome, Reason] | None:
    try:
        return h.end(push_id, user)
    except KeyError:
        return None
