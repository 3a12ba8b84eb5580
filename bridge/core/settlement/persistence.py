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
from bridge.core.bounds import StatementBounds
from bridge.core.errors import RowsRefused, StatementFailed, StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import Store
from bridge.core.settlement.gate import Gate

I = TypeVar("I")  # noqa: E741 -- what goes in
T = TypeVar("T")


def back_off(clock: Clock, bounds: StatementBounds) -> BackOff:
    """How long whoever must write to a log waits between tries while that fails."""
    return BackOff(clock, bounds.retry_first, bounds.retry_most)


class Persistence:
    """Repeats one caller's calls until they are done. `name` is the gate's cause while the database is down."""

    def __init__(self, store: Store, gate: Gate, clock: Clock, name: str, bounds: StatementBounds) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock
        self._name = name
        self._bounds = bounds
        self._suspect_after = bounds.suspect_after
        self._parts = bounds.parts
        self._give_up = bounds.give_up
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
                if not down or failed >= self._suspect_after:
                    raise
            except StoreUnavailable as unavailable:
                self.unsure = True
                self._gate.shut(self._name, str(unavailable), database=True)
                await self._until_written()
                failed += 1
                if failed >= self._suspect_after:
                    raise StatementFailed(unavailable.cause) from unavailable
            else:
                self._gate.clear(self._name)
                return result

    async def _until_written(self) -> bool:
        """Return when a row can be written; the gate is shut until then. The result: whether it had to be shut."""
        tries = back_off(self._clock, self._bounds)
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
        `give_up` failures in a row, so do all items that are left."""
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
                elif failures < self._give_up:
                    waiting += reversed(parts_of(some, self._parts))
                if failures >= self._give_up:
                    left = [] if len(some) == 1 else [some]
                    for item in chain.from_iterable((*left, *reversed(waiting))):
                        results += await alone(item, failed)
                    return results
            else:
                failures = 0
        return results


def parts_of(items: Sequence[I], parts: int) -> list[Sequence[I]]:
    """Cut these items into at most `parts` parts."""
    step = -(-len(items) // parts)
    return [items[at : at + step] for at in range(0, len(items), step)]
