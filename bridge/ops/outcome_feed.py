"""Outcomes as they happen: every committed row goes to every reader, through a bounded backlog for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from bridge.core.model.rows import Row
from bridge.core.ports.plugins import SessionInfo
from bridge.operator.watching import EVERYTHING, Filter, told_by_row

BACKLOG_ROWS: Final = 1_000
"""Rows kept for a reader that falls behind; beyond that, new ones are left out and counted."""


class Missed(NamedTuple):
    """So many rows were left out, since the reader was behind."""

    rows: int


class Subscription:
    """One reader's view of the outcomes, bounded."""

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._rows: deque[Row] = deque()
        self._missed = 0
        self._closed = False
        self._wake = asyncio.Event()

    def offer(self, row: Row) -> None:
        """Keep this row if the reader wants it and there is room."""
        if self._wanted is not EVERYTHING and not self._wanted.fits(told_by_row(row)):
            return
        if len(self._rows) >= BACKLOG_ROWS:
            self._missed += 1
        else:
            self._rows.append(row)
        self._wake.set()

    def close(self) -> None:
        """There will be no more rows."""
        self._closed = True
        self._wake.set()

    async def next(self) -> Sequence[Row | Missed]:
        """Wait for rows; returns all since the last call, oldest first. Empty once there will be no more."""
        await self._wake.wait()
        batch: list[Row | Missed] = [*self._rows]
        self._rows.clear()
        if self._missed:
            batch.append(Missed(self._missed))
            self._missed = 0
        if not self._closed:
            self._wake.clear()
        return batch


class OutcomeFeed:
    """Implements the Hooks port: passes every committed row on to the readers."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._closed = False

    @property
    def readers(self) -> int:
        """How many readers there are now."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self, wanted: Filter = EVERYTHING) -> Iterator[Subscription]:
        """Read the rows that are wanted, from now on."""
        subscription = Subscription(wanted)
        if self._closed:
            subscription.close()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every stream, so that a stop need not wait for the readers."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()

    def on_open(self, session: SessionInfo) -> None:
        """Of no interest here."""

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        """Of no interest here."""

    def on_outcome(self, row: Row) -> None:
        """A row was committed."""
        for subscription in self._subscriptions:
            subscription.offer(row)

    def on_error(self, error: BaseException, where: str) -> None:
        """Of no interest here."""
