"""Once a second: publish the fallbacks that are due, each claimed in its row first and noted there afterwards.

A process that dies between the two leaves its claim behind. Another one takes that over and publishes the fallback
again, with the same message id.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bridge.core.bounds import Bounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.rows import DueFallback, Row, RowKey
from bridge.core.ports.broker import Fallbacks
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.ports.store import Store
from bridge.core.row_limit import RowLimit
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist


class FallbackSweep:
    """Pays the fallbacks of all rows, whichever node has written them."""

    def __init__(
        self,
        store: Store,
        fallbacks: Fallbacks,
        worklist: Worklist,
        inflight: InFlight,
        gate: Gate,
        metrics: Metrics,
        errors: ErrorHandler,
        clock: Clock,
        bounds: Bounds,
        owner: tuple[str, str],
    ) -> None:
        """`owner`: the name of this node, and the boot of this process."""
        self._store = store
        self._fallbacks = fallbacks
        self._worklist = worklist
        self._inflight = inflight
        self._metrics = metrics
        self._errors = errors
        self._node, self._boot = owner
        statements = bounds.statements
        self._persistence = Persistence(store, gate, clock, "fallbacks", statements)
        self._limit = RowLimit(statements.sweep_rows, statements.parts)
        self._most = statements.sweep_rows
        self._statements = bounds.mailbox.sweep_statements
        self._bytes = bounds.settlement.batch_bytes
        self._wait = bounds.settlement.fallback_wait
        self._unnoted: dict[RowKey, Row] = {}
        """Rows whose fallbacks are published, which could not be noted yet."""

    async def sweep(self) -> None:
        """Called every second. While the broker takes no publishes nothing is claimed; while the database is down this
        waits."""
        if self._unnoted:
            await self._note(list(self._unnoted.values()))
        for _ in range(self._statements):
            # What could not be noted is claimed again with each statement.
            if self._fallbacks.blocked or len(self._unnoted) >= self._most:
                return
            if not await self._some():
                return

    async def _some(self) -> bool:
        """Publish what one statement claims. Returns whether there may be more to publish now."""
        rows = self._limit.rows
        try:
            claimed = await self._persistence.call(
                lambda: self._store.claim_fallbacks(self._node, self._boot, rows, self._bytes)
            )
        except StatementFailed as failed:
            self._errors.handle(failed, "store.claim_fallbacks", {"rows": rows})
            return self._limit.shrink()
        self._limit.grow()
        late = {proof.key for proof in self._worklist.late_proofs}
        due: list[DueFallback] = []
        others: list[DueFallback] = []
        for one in claimed:
            if one.row.key in self._unnoted:
                continue
            # Its proof is here, and its row does not say so yet.
            (others if self._is_cared_for(one.row.key, late) else due).append(one)
        if due:
            unsent, unroutable = await self._fallbacks.publish(due)
            self._metrics.fallbacks(len(due) - len(unsent), unroutable, len(unsent))
            left = {id(one) for one in unsent}
            await self._note([_light(one.row) for one in due if id(one) not in left])
            others += unsent
        await self._release([_light(one.row) for one in others])
        return bool(due) and not others

    def _is_cared_for(self, key: RowKey, late: set[RowKey]) -> bool:
        flight = self._inflight.get(key)
        return key in late or (flight is not None and flight.cared_for)

    async def _note(self, rows: Sequence[Row]) -> None:
        async def note(some: Sequence[Row]) -> Sequence[RowKey]:
            return list(await self._store.note_fallbacks(self._boot, some))

        async def failed(row: Row, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.note_fallbacks", {"push_id": row.key.push_id})
            return (row.key,)

        # Before the wait: a cancelled call must not forget what is published.
        self._unnoted.update((row.key, row) for row in rows)
        unnoted = set(await self._persistence.in_parts(rows, note, failed))
        for row in rows:
            if row.key not in unnoted:
                self._unnoted.pop(row.key, None)

    async def _release(self, rows: Sequence[Row]) -> None:
        """Give claims up. One that can't be given up now is claimed again by this process."""

        async def release(some: Sequence[Row]) -> Sequence[RowKey]:
            return list(await self._store.release_fallbacks(self._boot, some, self._wait))

        async def failed(row: Row, error: StatementFailed) -> Sequence[RowKey]:
            self._errors.handle(error, "store.release_fallbacks", {"push_id": row.key.push_id})
            return ()

        await self._persistence.in_parts(rows, release, failed)


def _light(row: Row) -> Row:
    return msgspec.structs.replace(row, payload=None, meta=b"")
