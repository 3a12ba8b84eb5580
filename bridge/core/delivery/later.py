"""Schedule pushes: a request whose time is ahead is written down, and only then its message is acked.

    taken ──> entry, in batches ──> ack          at its time: see `releasing`

Entries are not rows of the delivery log: a scheduled push has no outcome yet.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from bridge.core.bounds import ScheduleBounds
from bridge.core.contract.scheduling import body_of, packed, released_as
from bridge.core.delivery.targets import resolver_of
from bridge.core.errors import StatementFailed
from bridge.core.inflight.held import HeldMessage
from bridge.core.model.pushes import PushRequest, Recall, ToUser
from bridge.core.model.scheduled import Scheduled
from bridge.core.ports.broker import Arrival
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.scheduling import Schedule
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist


class _Open:
    """An entry that is not committed yet."""

    __slots__ = ("at", "committed", "entry", "message", "wait")

    def __init__(self, entry: Scheduled, message: HeldMessage) -> None:
        self.entry = entry
        self.message = message
        self.at = 0.0
        """Monotonic seconds of the next try; 0: at once."""
        self.wait = 0.0
        """Seconds of the wait before it."""
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Later:
    """Writes entries for the taker, which never waits for them."""

    def __init__(
        self,
        schedule: Schedule | None,
        *,
        worklist: Worklist,
        persistence: Persistence,
        errors: ErrorHandler,
        clock: Clock,
        bounds: ScheduleBounds,
    ) -> None:
        """`schedule` None: every push is delivered at once."""
        self._schedule = schedule
        self._worklist = worklist
        self._persistence = persistence
        self._errors = errors
        self._clock = clock
        self._bounds = bounds
        self._open: dict[str, _Open] = {}
        """By id, in the order in which they were taken."""
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Entries that are not committed yet."""
        return len(self._open)

    def schedule(self, arrival: Arrival, message: HeldMessage, request: PushRequest) -> bool:
        """Schedule a request whose time is ahead; its message waits until that is committed. False, and nothing done,
        where it is to be delivered now: its time has come, or it was scheduled before.

        What was released is never scheduled again, whatever the clock of this node says.
        """
        if self._schedule is None or request.deliver_at <= self._clock.time():
            return False
        if released_as(arrival.properties.headers):
            return False
        target = request.target
        entry = Scheduled(
            uuid.uuid4().hex,
            request.tenant,
            request.id,
            target.user if isinstance(target, ToUser) else "",
            request.collapse_key,
            len(resolver_of(request).named(target)),
            request.deliver_at,
            message.published_at,
            arrival.key,
            body_of(arrival, request),
            packed(arrival, request, message.published_at),
        )
        message.open += 1
        self._open[entry.id] = _Open(entry, message)
        self._wake.set()
        return True

    async def recall(self, recall: Recall) -> int:
        """Withdraw what is scheduled and has not been released, and was taken here by now; returns how many pushes that
        were, counted once per user. They end when they are taken again. Raises StoreUnavailable."""
        if self._schedule is None:
            return 0
        await self._written(recall)
        users: dict[str, int] = {}
        rows = self._bounds.claim_rows
        while True:
            some = await self._schedule.recall(recall, rows)
            for withdrawn in some:
                users[withdrawn.push_id] = max(withdrawn.users, users.get(withdrawn.push_id, 0))
            if len(some) < rows:
                return sum(users.values())

    async def _written(self, recall: Recall) -> None:
        """Return when every entry that this recall names, and that was taken here by now, is committed."""
        named = [
            one.committed
            for one in self._open.values()
            if one.entry.tenant == recall.tenant
            and (
                one.entry.push_id == recall.push_id
                if recall.push_id
                else one.entry.user == recall.user and one.entry.collapse_key == recall.collapse_key
            )
        ]
        if named:
            await asyncio.wait(named)

    async def run(self) -> None:
        """Write entries until cancelled. What is not written then comes again with its message."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for some in self._batches():
                await self._add(some)

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds."""
        if any(one.wait and one.at <= now for one in self._open.values()):
            self._wake.set()

    def _batches(self) -> list[list[Scheduled]]:
        """What is to be written now, in batches of a limited size."""
        now = self._clock.monotonic()
        batches: list[list[Scheduled]] = []
        size = 0
        for one in self._open.values():
            if one.at > now:
                continue
            entry = one.entry
            size += len(entry.body) + len(entry.properties)
            if not batches or size > self._bounds.add_bytes or len(batches[-1]) == self._bounds.add_rows:
                batches.append([])
                size = len(entry.body) + len(entry.properties)
            batches[-1].append(entry)
        return batches

    async def _add(self, entries: Sequence[Scheduled]) -> None:
        """Write entries and release their messages. What can't be written alone is tried again ever less often."""
        schedule = self._schedule
        assert schedule is not None

        async def add(some: Sequence[Scheduled]) -> Sequence[str]:
            await schedule.add(some)
            return ()

        async def failed(entry: Scheduled, error: StatementFailed) -> Sequence[str]:
            self._errors.handle(error, "schedule.add", {"push_id": entry.push_id})
            return (entry.id,)

        left = set(await self._persistence.in_parts(entries, add, failed))
        for entry in entries:
            if entry.id in left:
                one = self._open[entry.id]
                one.wait = min(2 * one.wait or self._bounds.add_first, self._bounds.add_most)
                one.at = self._clock.monotonic() + one.wait
            else:
                one = self._open.pop(entry.id)
                one.committed.set_result(None)
                self._worklist.release(one.message)
