"""Release scheduled pushes at their time: claim, publish to the exchange `push`, confirm, forget.

    scheduled ──> claimed by one node ──> published, confirmed ──> forgotten
                                               └──> push.requests ──> taken like any other: order, ids, outcome

A node that dies between the confirm and the end leaves a claim. Another node publishes such entries once more, and the
copy is answered from the row of the first one. So each has exactly one outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.core.bounds import ScheduleBounds
from bridge.core.contract.scheduling import release_of
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.model.scheduled import Due, Scheduled
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.scheduling import Releases, Schedule
from bridge.core.row_limit import RowLimit
from bridge.core.settlement.gate import Gate


class Releasing:
    """Publishes what is due. One node does so at a time: the store sees to it."""

    def __init__(
        self,
        schedule: Schedule,
        releases: Releases,
        *,
        boot: str,
        gate: Gate,
        errors: ErrorHandler,
        clock: Clock,
        bounds: ScheduleBounds,
        parts: int,
    ) -> None:
        """`parts`: into how many parts a failed statement is cut."""
        self._schedule = schedule
        self._releases = releases
        self._boot = boot
        self._gate = gate
        self._errors = errors
        self._clock = clock
        self._bounds = bounds
        self._limit = RowLimit(bounds.claim_rows, parts)
        self._confirmed: list[str] = []
        """Ids of published entries that are not forgotten yet."""
        self._unconfirmed: list[str] = []
        """Ids of claimed entries that are to be given back."""
        self._wake = asyncio.Event()
        self.released = 0
        """Entries that were published and confirmed so far."""

    def look_now(self) -> None:
        """Something may be due."""
        self._wake.set()

    async def run(self) -> None:
        """Release until cancelled. A claim that is left is taken over by others."""
        while True:
            self._wake.clear()
            wait = await self._look()
            if wait > 0:
                await self._sleep(wait)
            else:
                await self._clock.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        """Sleep so long, or until `look_now`."""
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((sleeping, waking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

    async def _look(self) -> float:
        """Release what is due; returns after how many seconds to look again."""
        bounds = self._bounds
        if "database" in self._gate:
            return bounds.look_most  # the lease task decides when it is there again
        try:
            await self._finish()
            if self._releases.blocked:
                return bounds.look_most
            due = await self._schedule.claim(self._boot, self._limit.rows, bounds.claim_bytes)
        except StatementFailed as failed:
            self._errors.handle(failed, "schedule.claim", {"rows": self._limit.rows})
            self._limit.shrink()
            return bounds.rest
        except StoreUnavailable as down:
            self._errors.handle(down, "schedule.claim", {})
            return bounds.rest
        self._limit.grow()
        if due.entries and not await self._publish(due.entries):
            return bounds.rest
        return self._wait(due)

    def _wait(self, due: Due) -> float:
        if due.next_in is None:
            return self._bounds.look_most
        if due.next_in <= 0 and due.entries:
            return 0.0
        return min(self._bounds.look_most, max(self._bounds.look_least, due.next_in))

    async def _publish(self, entries: Sequence[Scheduled]) -> bool:
        """Publish claimed entries and forget them. False where some were not confirmed: they are given back."""
        unsent = {r.id for r in await self._releases.release([release_of(entry) for entry in entries])}
        self._confirmed += [entry.id for entry in entries if entry.id not in unsent]
        self._unconfirmed += [entry.id for entry in entries if entry.id in unsent]
        self.released += len(entries) - len(unsent)
        try:
            await self._finish()
        except StoreUnavailable as down:
            self._errors.handle(down, "schedule.done", {"entries": len(entries)})
            return False
        return not unsent

    async def _finish(self) -> None:
        """Forget what was published, and give back what was not. Raises StoreUnavailable: then it is tried again before
        anything else is claimed."""
        if self._confirmed:
            await self._schedule.done(self._confirmed)
            self._confirmed = []
        if self._unconfirmed:
            await self._schedule.give_back(self._boot, self._unconfirmed)
            self._unconfirmed = []
