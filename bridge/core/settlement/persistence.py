"""Store calls that must succeed: repeated while the database is down, cut into parts where a statement fails.

This is the only place that tells the two cases apart. The database is down when no row can be written, even if it
answers and refuses every row. Then the gate is shut, under a name that only the same caller opens again, and the call
waits. When a row can be written and this call still fails, the call is to blame: it is cut into parts, and the caller
sets aside what fails alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from bridge.core.backoff import BackOff
from bridge.core.errors import RowsRefused, StatementFailed, StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import Store
from bridge.core.settlement.gate import Gate

LOG_RETRY_FIRST, LOG_RETRY_MOST = 0.1, 2.0
"""Seconds between tries while a log can't be written: doubled from the first to the most."""
SUSPECT_AFTER = 3
"""Failures of one call after which it is to blame, if a row could be written after each of them."""
PARTS = 8
"""How many parts a failed call is cut into. With two, finding one bad row among 500 would cost nine time limits."""
SWEEP_ROWS = 500
"""Rows that one statement of a sweep reads, ends or notes anything in; fewer if that takes too long."""
GIVE_UP = 8
"""Parts that may fail in a row. Then the rest is not tried, since each part may cost a time limit."""

I = TypeVar("I")  # noqa: E741 -- what goes in
T = TypeVar("T")


def back_off(clock: Clock) -> BackOff:
    """How long whoever must write to a log waits between tries while that fails."""
    return BackOff(clock, LOG_RETRY_FIRST, LOG_RETRY_MOST)


class Persistence:
    """Repeats one caller's calls until they are done. `name` is the gate's cause while the database is down."""

    def __init__(self, store: Store, gate: Gate, clock: Clock, name: str) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock
        self._name = name
        self.unsure = False
        """Whether a try got no answer, and may have been carried out. The caller resets it."""

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the database has answered it. Raises StatementFailed when the call is to blame, and its
        subclass RowsRefused when the data is: in both cases a row could be written."""
        failed = 0
        while True:
            try:
                result = await call()
            except StatementFailed as error:
                # Refused rows were not written: that is certain.
                self.unsure = self.unsure or not isinstance(error, RowsRefused)
                down = await self._until_written()
                failed += 1
                # If every row was refused meanwhile, this call was refused for the same cause: try it again unchanged.
                if not down or failed >= SUSPECT_AFTER:
                    raise
            except StoreUnavailable as unavailable:
                self.unsure = True
                self._gate.shut(self._name, str(unavailable), database=True)
                await self._until_written()
                failed += 1
                if failed >= SUSPECT_AFTER:
                    raise StatementFailed(unavailable.cause) from unavailable
            else:
                self._gate.clear(self._name)
                return result

    async def _until_written(self) -> bool:
        """Return when a row can be written; the gate is shut until then. The result: whether it had to be shut."""
        tries = back_off(self._clock)
        down = False
        while True:
            try:
                await self._store.try_writing()
            except StoreUnavailable as unavailable:
                down = True
                self._gate.shut(self._name, str(unavailable), database=True)
                await tries.wait()
            else:
                self._gate.clear(self._name)
                return down

    async def in_parts(
        self,
        items: Sequence[I],
        call: Callable[[Sequence[I]], Awaitable[Sequence[T]]],
        alone: Callable[[I, StatementFailed], Awaitable[Sequence[T]]],
    ) -> list[T]:
        """Make a call for all items; where it fails, for parts of them. An item that fails alone goes to `alone`. After
        `GIVE_UP` failures in a row, so do all items that are left."""
        results: list[T] = []
        failures = 0
        waiting = [items] if items else []
        while waiting:
            some = waiting.pop()
            try:
                results += await self.call(partial(call, some))
            except StatementFailed as failed:
                failures += 1
                if len(some) == 1:
                    results += await alone(some[0], failed)
                elif failures < GIVE_UP:
                    waiting += reversed(parts_of(some))
                if failures >= GIVE_UP:
                    left = [] if len(some) == 1 else [some]
                    for item in chain.from_iterable((*left, *reversed(waiting))):
                        results += await alone(item, failed)
                    return results
            else:
                failures = 0
        return results


def parts_of(items: Sequence[I]) -> list[Sequence[I]]:
    """Cut these items into at most `PARTS` parts."""
    step = -(-len(items) // PARTS)
    return [items[at : at + step] for at in range(0, len(items), step)]
