"""A few figures of the delivery log for the metrics, from cheap statements that run rarely."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, LiteralString, NamedTuple, cast

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.upkeep import DAYS_HERE, TODAY_AND_DAYS

STORED_MAX = 10_000
"""The most stored rows of one day that are counted, so that a million of them do not cost a million index reads."""
STATEMENT_MS = 2000
"""Milliseconds that one statement may take; a figure that takes longer is left out."""


SCHEDULED_MAX = 100_000
"""The most scheduled pushes that are counted."""


class LogFigures(NamedTuple):
    """What the log says of itself."""

    stored: int
    """Rows with the outcome `stored`, of each day `STORED_MAX` at most."""
    oldest_taken_at: float | None
    """When the oldest of them was taken, seconds since the epoch; None without any. On a day with more of them than are
    counted, only the counted ones are looked at."""
    days_over: int
    """Days with more stored rows than are counted."""
    fallbacks_due: int
    """Fallbacks that are due and not published, `STORED_MAX` at most."""
    partitions_ahead: int
    """Days after today that have a partition, without a gap."""
    scheduled: int = 0
    """Pushes that wait for their time, `SCHEDULED_MAX` at most."""
    overdue: float = 0.0
    """Seconds since the time of the oldest of them; 0 where all are ahead."""


# The order makes the planner use the index of stored rows by the end of their ttl, which is small.
_STORED: LiteralString = f"""
    select coalesce(sum(least(s.rows, {STORED_MAX})), 0)::bigint, extract(epoch from min(s.oldest))::float8,
           count(*) filter (where s.rows > {STORED_MAX})
    from ({DAYS_HERE}) days
    cross join lateral (
        select count(*) as rows, min(one.taken_at) as oldest
        from (select l.taken_at from delivery_log l where l.day = days.day and l.outcome = 'stored'
              order by l.expires_at limit {STORED_MAX} + 1) one
    ) s
    """


_DUE: LiteralString = f"""
    select count(*) from (select from delivery_log where fallback_due <= now() limit {STORED_MAX}) due
    """
_SCHEDULED: LiteralString = f"""
    select (select count(*) from (select from scheduled s order by s.due_at, s.place limit {SCHEDULED_MAX}) a),
           coalesce((select greatest(extract(epoch from clock_timestamp() - s.due_at), 0)
                     from scheduled s order by s.due_at, s.place limit 1), 0)::float8
    """


class PostgresFigures:
    """Reads the figures on its own connection, so that nothing else waits for them."""

    def __init__(self, dsn: str, node: str) -> None:
        self._connections = Connections(dsn, f"bridge {node} figures", CONNECTIONS["figures"])

    async def read(self) -> LogFigures:
        """Ask now. Raises StoreUnavailable."""
        return await self._connections.run(_read)

    async def close(self) -> None:
        """Close the connection; idempotent."""
        await self._connections.close()


async def _read(conn: Connection) -> LogFigures:
    async with conn.transaction():
        await conn.execute(
            "select set_config('transaction_read_only', 'on', true), set_config('enable_seqscan', 'off', true),"
            " set_config('statement_timeout', %s, true)",
            (str(STATEMENT_MS),),
        )
        stored, oldest, over = cast("tuple[int, float | None, int]", await _one(conn, _STORED))
        (due,) = cast("tuple[int]", await _one(conn, _DUE))
        today, days = cast("tuple[date, list[date]]", await _one(conn, TODAY_AND_DAYS))
        scheduled, overdue = cast("tuple[int, float]", await _one(conn, _SCHEDULED))
    there = set(days)
    ahead = 0
    while today + timedelta(days=ahead + 1) in there:
        ahead += 1
    return LogFigures(stored, oldest, over, due, ahead, scheduled, overdue)


async def _one(conn: Connection, query: LiteralString) -> tuple[Any, ...]:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row
