"""Does what this process took add up with what it wrote, and with what the log has? Counts for the drift metric.

The log alone can't show a push that was lost on its way, since nobody counts what the broker handed out. The process
can: it counts each push when it begins to handle it, and each row when it is committed. So:

    begun = with a row (final, pending or stored) + on their way                     (this process, at this moment)
    final rows that the store confirmed <= final rows of this boot in the log        (a minute or two later)

    rows that were written to the log (table tally) = rows that it has               (the same)

The first finds a push that was dropped without a row. The second finds a commit that was confirmed and is gone (after a
failover to a standby that was behind, or a restored backup). The third finds rows that were deleted or added by hand.
None of them shows messages that the broker itself lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import Account
from bridge.operator.books import Irregular, Stretch

SLICE: Final = 60.0
"""Seconds: rows of pushes that were taken in the same slice are counted together."""
SETTLE: Final = 60.0
"""Seconds after the end of a slice before it is compared: nearly all of its pushes have ended by then."""
OVERDUE: Final = 600.0
"""Seconds after which a push without a row is stuck: it normally gets one within about a second."""

CHECKS: Final[Mapping[str, str]] = {
    "taken": "pushes this process took that have no row and are not on their way",
    "stuck": f"pushes on their way for over {OVERDUE:g} s without a row, though nothing holds the bridge back",
    "missing_rows": "final rows this process committed that the log did not have a minute or two later",
    "log_rows": "rows of past minutes that were written to the log and are gone, or exist but were never written",
    "wrong_rows": "rows of the last minutes that contradict themselves (their proof, times, outcome, reason)",
    "dead_nodes": "pending rows that a dead process left, and no sweep has ended",
    "stuck_rows": "pending rows older than any deadline, though their process lives",
    "kept": "stored rows whose ttl ended over a minute ago",
    "scheduled": "pushes that still wait for their deliver_at over a minute after it",
    "receipts": "final rows that owe a receipt for over a minute",
    "fallbacks": "fallbacks that have been due for over a minute",
    "partitions": "days from today on without a partition",
}
"""Every check and what it counts. Checks of rows add up from the start of the process."""

Look = Callable[[float, float], Awaitable[tuple[Stretch, Irregular]]]
"""Counts rows of this boot in the log that were taken from one moment to another (seconds since the epoch)."""


class Auditor:
    """Counts every committed row (as a hook), and compares at each `run`.

    A push that ends more than a minute or two after it was taken is only part of the first comparison.
    """

    def __init__(self, boot: str, clock: Clock, look: Look | None) -> None:
        """Without `look` (there is no log that can be asked) only the counts of the process are compared."""
        self._boot = boot
        self._clock = clock
        self._look = look
        self._looked_until = clock.time() // SLICE * SLICE
        self._committed: defaultdict[float, int] = defaultdict(int)
        self._was_open = False
        self.drift: dict[str, int] = {}
        """By check: what its last run found; empty before the first."""
        self.audited_at = 0.0
        """When all checks were last made, seconds since the epoch; 0: never."""

    def on_outcome(self, row: Row) -> None:
        """A row was committed."""
        # Earlier slices have been compared; rows of theirs that end now were kept.
        if row.final and row.boot == self._boot and row.taken_at >= self._looked_until:
            self._committed[row.taken_at // SLICE * SLICE] += 1

    async def run(self, account: Account, *, gate_open: bool) -> None:
        """Make all checks once. Raises what `look` raises; its slices are then compared the next time."""
        drift = self.drift
        drift["taken"] = abs(account.begun - account.with_row - account.on_their_way)
        # Pushes that waited for the database are written right after the gate opens, so it must have been open before.
        overdue = sum(1 for age in account.ages if age > OVERDUE)
        drift["stuck"] = overdue if gate_open and self._was_open else 0
        self._was_open = gate_open
        if self._look is not None:
            since = self._looked_until
            until = max(since, (self._clock.time() - SETTLE) // SLICE * SLICE)
            # Counted before the log is asked, so that a row that is committed in between is never missing.
            confirmed = sum(count for start, count in self._committed.items() if start < until)
            stretch, found = await self._look(since, until)
            drift["missing_rows"] = drift.get("missing_rows", 0) + max(0, confirmed - stretch.of_boot)
            drift["log_rows"] = drift.get("log_rows", 0) + stretch.unbalanced
            drift["wrong_rows"] = drift.get("wrong_rows", 0) + stretch.wrong
            drift["dead_nodes"] = found.orphans
            drift["stuck_rows"] = found.stuck
            drift["kept"] = found.unexpired
            drift["scheduled"] = found.late
            drift["receipts"] = found.overdue
            drift["fallbacks"] = found.unpublished
            drift["partitions"] = len(found.missing_days)
            self._looked_until = until
            for start in [start for start in self._committed if start < until]:
                del self._committed[start]
        self.audited_at = self._clock.time()
