"""Once a second: end kept pushes whose ttl is over, and the oldest pushes of mailboxes that are too full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from bridge.core.bounds import Bounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.measuring import MailboxLimits, Measuring
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store
from bridge.core.row_limit import RowLimit
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence


class MailboxSweep:
    """Ends stored rows. It measures the mailboxes that grew, and every mailbox in its turn."""

    def __init__(
        self,
        *,
        store: Store,
        inflight: InFlight,
        clock: Clock,
        gate: Gate,
        errors: ErrorHandler,
        limits: MailboxLimits,
        bounds: Bounds,
    ) -> None:
        self._store = store
        self._inflight = inflight
        self._clock = clock
        self._errors = errors
        self._persistence = Persistence(store, gate, clock, "mailbox sweeps", bounds.statements)
        self._limits = limits
        self._measuring = Measuring(limits, bounds.mailbox)
        self._patrol = ""
        """The user whose mailbox the patrol measured last."""
        self._limit = RowLimit(bounds.statements.sweep_rows, bounds.statements.parts)
        self._statements = bounds.mailbox.sweep_statements
        self._trim_users = bounds.mailbox.trim_users
        self._patrol_users = bounds.mailbox.patrol_users

    def stored(self, user: str, payload_bytes: int) -> None:
        """A push of this user was stored, or stored again: the mailbox may have grown."""
        self._measuring.stored(user, payload_bytes, self._clock.monotonic())

    async def sweep(self) -> None:
        """Called every second: end pushes that have expired, and those over the bounds of their mailbox.

        Waits while the database is down. A statement that fails while it is up is tried with less. A mailbox that fails
        alone is measured again when it grows, or by the patrol.
        """
        await self._expire()
        for _ in range(self._statements):
            users = self._measuring.take(self._trim_users, self._clock.monotonic())
            if not users:
                break
            await self._trim(users)
        try:
            patrolled = await self._persistence.call(
                lambda: self._store.users_with_mail(self._patrol, self._patrol_users)
            )
        except StatementFailed as failed:
            self._errors.handle(failed, "mailbox.patrol", {})
            return
        self._patrol = patrolled[-1] if len(patrolled) == self._patrol_users else ""
        await self._trim(patrolled)

    async def _expire(self) -> None:
        for _ in range(self._statements):
            ended = await self._ended_by(self._store.expire)
            if not ended:
                return

    async def _trim(self, users: Sequence[str]) -> None:
        """Measure these mailboxes, and end the pushes over their bounds, the oldest first."""

        async def measure(some: Sequence[str]) -> Sequence[tuple[str, int]]:
            return await self._store.overfull(some, self._limits.pushes, self._limits.total_bytes)

        async def failed(user: str, error: StatementFailed) -> Sequence[tuple[str, int]]:
            self._errors.handle(error, "mailbox.measure", {})
            return ()

        over = await self._persistence.in_parts(users, measure, failed)
        while over and await self._ended_by(lambda limit: self._store.trim(over, limit)):
            await self._clock.sleep(0)

    async def _ended_by(self, statement: Callable[[int], Awaitable[Sequence[Row]]]) -> bool:
        """Run a statement that ends a bounded number of rows. Returns whether there may be more."""
        rows = self._limit.rows
        try:
            ended = await self._persistence.call(lambda: statement(rows))
        except StatementFailed as failed:
            self._errors.handle(failed, "mailbox.sweep", {"rows": rows})
            return self._limit.shrink()
        self._limit.grow()
        self._inflight.ended_in_store(ended)
        return bool(ended)
