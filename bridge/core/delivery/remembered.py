"""Ids of the last day, in bounded memory: one that it does not know has not come; one that it knows may have.

The memory is a filter in the manner of Bloom (doi:10.1145/362686.362692) with one machine word for each id: three
bits of it are set. More ids than it was made for cost look-ups, never a wrong answer. It is two generations of a day
each, so an id is known for 24 hours at least and for 48 at most.

What this process has not taken itself comes from the log, in pages, while it works. Until all of that is there, and
whenever another process may have taken since, every id may have come.
"""

from __future__ import annotations

import asyncio
import random

from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import IdPlace, OthersRows, Store

GENERATION = 86_400.0
"""Seconds for which ids go into one generation."""
BITS = 3
"""Bits that an id sets."""
PAGE_ROWS, PAGE_ROWS_LEAST = 20_000, 100
"""Rows of the log that one page looks at; halved where that takes too long."""
SLICE = 2_000
"""Ids that are added before others get their turn."""
RETRY = 1.0
"""Seconds between tries while the log can't be read."""

_WORD = (1 << 64) - 1
_MASK_BITS = 13


def _masks() -> list[int]:
    chosen = random.Random(3).sample  # any will do, as long as they differ
    return [sum(1 << bit for bit in chosen(range(64), BITS)) for _ in range(1 << _MASK_BITS)]


_MASKS = _masks()


class Filter:
    """A set of texts without false negatives, in a fixed number of bytes."""

    __slots__ = ("_words", "added")

    def __init__(self, size_bytes: int) -> None:
        # Zeroed pages that nobody has written to cost the machine nothing.
        self._words = memoryview(bytearray(max(1, size_bytes // 8) * 8)).cast("Q")
        self.added = 0

    def add(self, text: str) -> None:
        """From now on this text is in it; idempotent."""
        value = hash(text) & _WORD
        place = (value >> _MASK_BITS) % len(self._words)
        self._words[place] |= _MASKS[value & ((1 << _MASK_BITS) - 1)]
        self.added += 1

    def __contains__(self, text: str) -> bool:
        value = hash(text) & _WORD
        mask = _MASKS[value & ((1 << _MASK_BITS) - 1)]
        return self._words[(value >> _MASK_BITS) % len(self._words)] & mask == mask


class Remembered:
    """Whether a push id may have come before. Ids of all tenants together: that costs a look-up at most."""

    def __init__(self, size_bytes: int, now: float) -> None:
        self._size = size_bytes // 2
        self._new = Filter(self._size)
        self._old = Filter(0)
        self._since = now
        self.complete = False
        """Whether all that the log knows of the last day is in it."""

    def __contains__(self, push_id: str) -> bool:
        if not self.complete or push_id in self._new:
            return True
        return self._old.added > 0 and push_id in self._old

    @property
    def added(self) -> int:
        """Ids that were added in the generations that are there, repeats counted again."""
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

    A process that stands by learns nothing of what another takes. What the other had acknowledged when the broker
    gave its requests to this one was in the log by then, and what it had not comes again: so a look at the log after
    the first request of a channel sees all. `Store.rows_of_others` tells whether there is anything to be read.
    """

    def __init__(
        self, remembered: Remembered, *, store: Store, errors: ErrorHandler, clock: Clock, boot: str
    ) -> None:
        self._remembered = remembered
        self._store = store
        self._errors = errors
        self._clock = clock
        self._boot = boot
        self.taking = False
        """A request has come since the last channel began."""
        self._others: OthersRows | None = None
        """The count of others' rows up to which all is in memory."""
        self._doubts = 0
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.page_rows = PAGE_ROWS

    def began(self) -> None:
        """The first request of a channel is here: from now on no other process takes any."""
        self.taking = True
        self._wanted.set()

    def doubt(self) -> None:
        """The channel is gone: until the next one gives out messages another process may take."""
        self.taking = False
        self._doubts += 1
        self._remembered.complete = False

    async def run(self) -> None:
        """Look whenever there is reason to, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            doubts, taking = self._doubts, self.taking
            try:
                # Counted first: what is written while the pages are read may be on none of them.
                others = await self._store.rows_of_others(self._boot)
                if others != self._others:
                    await self._read()
                    self._others = others
            except StoreUnavailable as away:
                self._errors.handle(away, "remembered.read", {})
                await self._clock.sleep(RETRY)
                self._wanted.set()
                continue
            if taking and doubts == self._doubts:
                self._remembered.complete = True

    async def _read(self) -> None:
        place: IdPlace | None = None
        while True:
            began = self._clock.monotonic()
            try:
                page = await self._store.ids(place, self.page_rows)
            except StatementFailed:
                if self.page_rows <= PAGE_ROWS_LEAST:
                    raise
                self.page_rows = max(PAGE_ROWS_LEAST, self.page_rows // 2)
                continue
            took = self._clock.monotonic() - began
            for at in range(0, len(page.ids), SLICE):
                for push_id in page.ids[at : at + SLICE]:
                    self._remembered.add(push_id)
                await self._clock.sleep(0)
            if page.next is None:
                return
            place = page.next
            # Half of the database's time is for those who work meanwhile.
            await self._clock.sleep(took)
