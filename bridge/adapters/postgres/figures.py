"""A few figures of the delivery log for the metrics, by small statements that are asked rarely."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, LiteralString, NamedTuple, cast

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.upkeep import DAYS_HERE

STORED_MAX = 10_000
"""Stored rows of one day that are counted at most: a million of them must not cost a million index entries."""
STATEMENT_MS = 2000
"""Milliseconds that one statement may take; what takes longer is not known."""


class LogFigures(NamedTuple):
    """What the log says of itself."""

    stored: int
    """Rows with the outcome `stored`, of each day `STORED_MAX` at most."""
    oldest_taken_at: float | None
    """When the oldest of them was taken, seconds since the epoch; None without any. Of a day that has more of them than
    are counted, that of one of those."""
    days_over: int
    """Days that have more of them than are counted."""
    partitions_ahead: int
    """Days after today that have a partition, without a gap."""


# The index of what is stored by the end of its ttl is small, and the order makes it the one that is used.
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
_DAYS: LiteralString = f"""
    select log_today(), coalesce(array_agg(days.day), '{{}}') from ({DAYS_HERE}) days
    """


class PostgresFigures:
    """Reads the figures on a connection of its own, so that nobody else waits for it."""

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
        today, days = cast("tuple[date, list[date]]", await _one(conn, _DAYS))
    there = set(days)
    ahead = 0
    while today + timedelta(days=ahead + 1) in there:
        ahead += 1
    return LogFigures(stored, oldest, over, ahead)


async def _one(conn: Connection, query: LiteralString) -> tuple[Any, ...]:
    row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row
