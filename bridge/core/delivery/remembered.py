"""Remember the push ids of the last day in bounded memory. An id that is not in it is new; others may have come before.

The memory is a Bloom filter (doi:10.1145/362686.362692) in which each id sets three bits of one machine word. More ids
than it was made for cost look-ups, never a wrong answer. It has two generations of a day each, so an id is known for 24
hours at least and for 48 at most.

Ids that this process has not taken itself are read from the log, in pages, while it works. Until all of them are read,
and whenever another process may have taken messages since, every id may have come before.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from bridge.core.bounds import Bounds
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import IdPlace, OthersRows, Store
from bridge.core.row_limit import RowLimit

GENERATION: Final = 86_400.0
"""Seconds for which ids are added to one generation."""
BITS: Final = 3
"""Bits that an id sets."""

_HASH_BITS: Final = (1 << 61) - 1
"""Of a text's hash, as many as a compiled module computes with without an object."""
_MASK_BITS: Final = 13


def _masks() -> list[int]:
    chosen = random.Random(3).sample  # any seed will do
    return [sum(1 << bit for bit in chosen(range(64), BITS)) for _ in range(1 << _MASK_BITS)]


_MASKS: Final = _masks()


class Filter:
    """A set of texts without false negatives, in a fixed number of bytes."""

    __slots__ = ("_words", "added")

    def __init__(self, size_bytes: int) -> None:
        # Zeroed pages take no memory before they are written to.
        self._words = memoryview(bytearray(max(1, size_bytes // 8) * 8)).cast("Q")
        self.added = 0

    def add(self, text: str) -> None:
        """Add a text; idempotent."""
        value = hash(text) & _HASH_BITS
        place = (value >> _MASK_BITS) % len(self._words)
        self._words[place] |= _MASKS[value & ((1 << _MASK_BITS) - 1)]
        self.added += 1

    def __contains__(self, text: str) -> bool:
        value = hash(text) & _HASH_BITS
        mask = _MASKS[value & ((1 << _MASK_BITS) - 1)]
        return self._words[(value >> _MASK_BITS) % len(self._words)] & mask == mask


class Remembered:
    """Tells whether a push id may have come before. It holds ids of all tenants together: a clash costs a look-up."""

    def __init__(self, size_bytes: int, now: float) -> None:
        self._size = size_bytes // 2
        self._new = Filter(self._size)
        self._old = Filter(0)
        self._since = now
        self.complete = False
        """Whether it has all ids of the last day that the log has."""

    def __contains__(self, push_id: str) -> bool:
        if not self.complete or push_id in self._new:
            return True
        return self._old.added > 0 and push_id in self._old

    @property
    def added(self) -> int:
        """Ids that were added to both generations; repeats are counted again."""
        return self._new.added + self._old.added

    def add(self, push_id: str) -> None:
        """Remember an id; idempotent."""
        self._new.add(push_id)

    def every_second(self, now: float) -> None:
        """Begin a new generation when the last is a day old; `now` is monotonic seconds."""
        if now - self._since >= GENERATION:
            self._old, self._new = self._new, Filter(self._size)
            self._since = now


class Recollection:
    """Fills the memory from the log: at the start, and when this process begins to take, if others have written since.

    A process that stands by does not learn what the active one takes. When the broker gives requests to this process,
    messages that the other has acked have their rows in the log, and messages that it has not acked come again. So a
    read of the log after the first request of a channel finds all. `Store.rows_of_others` says whether to read.
    """

    def __init__(
        self,
        remembered: Remembered,
        *,
        store: Store,
        errors: ErrorHandler,
        clock: Clock,
        boot: str,
        bounds: Bounds,
    ) -> None:
        self._remembered = remembered
        self._store = store
        self._errors = errors
        self._clock = clock
        self._boot = boot
        self._channels: set[int] = set()
        """Those on which a request has come."""
        self.began_at = clock.monotonic()
        """Monotonic seconds at which the first one came on the newest of them."""
        self._others: OthersRows | None = None
        """The count of other processes' rows when they were last read."""
        self._doubts = 0
        self._wanted = asyncio.Event()
        self._wanted.set()
        taking = bounds.taking
        self._limit = RowLimit(taking.ids_rows, bounds.statements.parts, taking.ids_rows_least)
        self._at_once = taking.ids_at_once
        self._retry = taking.ids_retry

    @property
    def taking(self) -> bool:
        """Whether a request has come on a present channel."""
        return bool(self._channels)

    def began(self, incarnation: int) -> bool:
        """A request of this channel has come: from now on no other process takes from its queue. Idempotent; returns
        whether it is the first one."""
        if incarnation in self._channels:
            return False
        self._channels.add(incarnation)
        self.began_at = self._clock.monotonic()
        self._doubt()
        return True

    def doubt(self, incarnation: int) -> None:
        """The channel is lost: until a request comes on the next one, another process may take. Idempotent."""
        self._channels.discard(incarnation)
        self._doubt()

    def _doubt(self) -> None:
        self._doubts += 1
        self._remembered.complete = False
        if self._channels:
            self._wanted.set()

    async def run(self) -> None:
        """Read the log whenever `began` was called, and at the start, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            doubts, taking = self._doubts, self.taking
            try:
                # Counted first: rows that are written while the pages are read may be on none of them.
                others = await self._store.rows_of_others(self._boot)
                if others != self._others:
                    await self._read()
                    self._others = others
            except StoreUnavailable as unavailable:
                self._errors.handle(unavailable, "remembered.read", {})
                await self._clock.sleep(self._retry)
                self._wanted.set()
                continue
            if taking and doubts == self._doubts:
                self._remembered.complete = True

    async def _read(self) -> None:
        place: IdPlace | None = None
        while True:
            began = self._clock.monotonic()
            try:
                page = await self._store.ids(place, self._limit.rows)
            except StatementFailed:
                if not self._limit.shrink():
                    raise
                continue
            self._limit.grow()
            took = self._clock.monotonic() - began
            for at in range(0, len(page.ids), self._at_once):
                for push_id in page.ids[at : at + self._at_once]:
                    self._remembered.add(push_id)
                await self._clock.sleep(0)
            if page.next is None:
                return
            place = page.next
            # Leave half of the database's time to other work.
            await self._clock.sleep(took)
