"""Look up the rows of pushes that may have come before, in bounded portions, before the pushes are sent.

Only these are looked up: pushes that the broker delivers again, and ids that `Remembered` does not rule out. All others
are sent without a query; the compare-and-set of their row decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TypeVar

from bridge.core.bounds import Bounds
from bridge.core.errors import BridgeError, StatementFailed
from bridge.core.model.pushes import PushKey
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Directory, Holder
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.ports.store import Store
from bridge.core.row_limit import RowLimit
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence

T = TypeVar("T")


class Stopped(BridgeError):
    """Taking ends; messages that were being looked up go back to the queue."""

    def __init__(self) -> None:
        super().__init__("taking has ended")


class Lookups:
    """Asks the log, one call at a time. A call waits while the database is down, until `stop` ends it."""

    def __init__(
        self,
        store: Store,
        directory: Directory | None,
        gate: Gate,
        clock: Clock,
        errors: ErrorHandler,
        metrics: Metrics,
        bounds: Bounds,
    ) -> None:
        self._store = store
        self._directory = directory
        self._clock = clock
        self._errors = errors
        self._metrics = metrics
        self._persistence = Persistence(store, gate, clock, "look-ups", bounds.statements)
        self._rows_most = bounds.taking.lookup_rows
        self._retry = bounds.taking.lookup_retry
        parts = bounds.statements.parts
        self._of_push = RowLimit(self._rows_most, parts)
        """For pages of the rows of a push."""
        self._any_row = RowLimit(1, parts)
        self._asking: asyncio.Task[object] | None = None
        self._stopped = False

    def stop(self) -> None:
        """The current call raises Stopped, and so does every later one."""
        self._stopped = True
        if self._asking is not None:
            self._asking.cancel()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    async def rows(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """The rows that the log has for these keys. Raises Stopped."""
        found: dict[RowKey, Row] = {}
        for at in range(0, len(keys), self._rows_most):
            for row in await self._unless_stopped(self._some(keys[at : at + self._rows_most])):
                found[row.key] = row
        return found

    async def of_push(self, push: PushKey) -> AsyncIterator[Sequence[Row]]:
        """All rows of a push, page by page. Raises Stopped."""
        place: str | None = ""
        while place is not None:
            page = await self._unless_stopped(self._page(push, place, self._of_push))
            yield page[0]
            place = page[1]

    async def has_rows(self, push: PushKey) -> bool:
        """Whether a push has any row. Raises Stopped."""
        rows, _ = await self._unless_stopped(self._page(push, "", self._any_row))
        return bool(rows)

    async def last_position(self) -> int:
        """The highest position that the log has. Raises Stopped."""
        return await self.ask(self._store.last_position, "store.last_position")

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        """Who has or had each of these sessions, where that is known. Raises Stopped."""
        if self._directory is None:
            return {}
        found: dict[str, Holder] = {}
        for at in range(0, len(sessions), self._rows_most):
            some = sessions[at : at + self._rows_most]
            found |= await self.ask(partial(self._directory.session_holders, some), "nodes.session_holders")
        return found

    def is_last(self, page: Sequence[object]) -> bool:
        """Whether a page of users ends before its limit, so that no other follows."""
        return len(page) < self._rows_most

    async def everyone_elsewhere(self, after: str) -> Sequence[tuple[str, Sequence[str]]]:
        """Users with sessions at other processes, and the boots of those; a page, as `Directory.everyone`. Raises
        Stopped."""
        assert self._directory is not None
        return await self.ask(partial(self._directory.everyone, after, self._rows_most), "nodes.everyone")

    async def subscribers_elsewhere(
        self, topic: str, after: str, within: float
    ) -> Sequence[tuple[str, Sequence[str]]]:
        """Subscribers of a topic elsewhere, and those who are away; a page, as `Directory.subscribers`. Empty
        where no other process is known of. Raises Stopped."""
        if self._directory is None:
            return ()
        call = partial(self._directory.subscribers, topic, after, self._rows_most, within)
        return await self.ask(call, "nodes.subscribers")

    async def once(self, call: Callable[[], Awaitable[T]]) -> T:
        """Any other call, repeated only while the database is down. Raises Stopped, and StatementFailed where the
        database is there and does not carry it out."""
        return await self._unless_stopped(self._persistence.call(call))

    async def ask(self, call: Callable[[], Awaitable[T]], where: str) -> T:
        """Any other call, repeated until the database has answered it. Raises Stopped."""
        return await self._unless_stopped(self._repeated(call, where))

    async def _repeated(self, call: Callable[[], Awaitable[T]], where: str) -> T:
        while True:
            try:
                return await self._persistence.call(call)
            except StatementFailed as failed:
                self._errors.handle(failed, where, {})
                await self._clock.sleep(self._retry)

    async def _some(self, keys: Sequence[RowKey]) -> list[Row]:
        async def failed(key: RowKey, error: StatementFailed) -> Sequence[Row]:
            self._errors.handle(error, "store.find", {"push_id": key.push_id})
            await self._clock.sleep(self._retry)
            return await self._some([key])

        self._metrics.looked_up(len(keys))
        return await self._persistence.in_parts(keys, self._store.find, failed)

    async def _page(self, push: PushKey, place: str, limit: RowLimit) -> tuple[Sequence[Row], str | None]:
        while True:
            try:
                page = await self._persistence.call(partial(self._store.find_push, push, place, limit.rows))
            except StatementFailed as failed:
                self._errors.handle(failed, "store.find_push", {"push_id": push.push_id})
                if not limit.shrink():
                    await self._clock.sleep(self._retry)
            else:
                limit.grow()
                return page.rows, page.next_user

    async def _unless_stopped(self, asking: Coroutine[object, object, T]) -> T:
        if self._stopped:
            asking.close()
            raise Stopped
        task = asyncio.create_task(asking, name="look-up")
        self._asking = task
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled() and self.stopped:
                raise Stopped from None
            task.cancel()
            raise
        finally:
            self._asking = None
