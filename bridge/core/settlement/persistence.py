"""Calls of the store that must succeed: again while the database is down, in smaller parts where a statement fails.

One place tells the two apart. The database is down when nothing can be written, also where it answers and refuses
every row: then the gate is shut, under a name that only the same caller opens again, and the call waits. When something
can be written and this call fails all the same, it is the call's fault: it is made smaller, and what fails alone is the
caller's to set aside.
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
"""Rows that one statement of a sweep reads, ends or notes anything in; halved if that takes too long."""
GIVE_UP = 8
"""Parts that may fail in a row. Then the rest is not tried, since each part may cost a time limit."""

I = TypeVar("I")  # noqa: E741 -- what goes in
T = TypeVar("T")


def back_off(clock: Clock) -> BackOff:
    """How long whoever must write to a log waits between tries while that fails."""
    return BackOff(clock, LOG_RETRY_FIRST, LOG_RETRY_MOST)


class Persistence:
    """Makes one caller's calls until they are done. `name` is the gate's cause while the database is down."""

    def __init__(self, store: Store, gate: Gate, clock: Clock, name: str) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock
        self._name = name
        self.unsure = False
        """A try was not answered, and may have been carried out; for the caller to set back."""

    async def call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until the database has answered it. Raises StatementFailed when the call is to blame, RowsRefused
        (which is one) when its data is: while a row could be written all the same."""
        failed = 0
        while True:
            try:
                result = await call()
            except StatementFailed as error:
                # What was refused was not written: that answer is sure.
                self.unsure = self.unsure or not isinstance(error, RowsRefused)
                down = await self._until_written()
                failed += 1
                # What refused every row refused this one: now it may go in as it is.
                if not down or failed >= SUSPECT_AFTER:
                    raise
            except StoreUnavailable as away:
                self.unsure = True
                self._gate.shut(self._name, str(away), database=True)
                await self._until_written()
                failed += 1
                if failed >= SUSPECT_AFTER:
                    raise StatementFailed(away.cause) from away
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
            except StoreUnavailable as away:
                down = True
                self._gate.shut(self._name, str(away), database=True)
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
        """Make a call for all items; where it fails, for parts of them. What fails alone goes to `alone`, and so does
        what is left when nothing goes through any more."""
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
    """These items in about `PARTS` parts."""
    step = -(-len(items) // PARTS)
    return [items[at : at + step] for at in range(0, len(items), step)]
