"""The partitions of the delivery log: made ahead of time, dropped when their retention is over.

Nothing here may make writers wait for a reader: a partition is attached rather than created in place,
detached concurrently, and every wait for a lock is cut at a second and tried again.
https://www.postgresql.org/docs/15/ddl-partitioning.html#DDL-PARTITIONING-DECLARATIVE-MAINTENANCE
"""

from __future__ import annotations

import asyncio
import datetime
from typing import NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg import sql

from bridge.adapters.postgres_pool import Connection, Watchdog, connect, translated

DAYS_AHEAD = 3
"""Partitions after today's that are there before they are needed."""
TRIES = 3
"""Tries to detach or drop a partition before it is left for the next time."""
HELD_WAIT = 0.2
"""Seconds between them."""
UPKEEP_LOCK = int.from_bytes(b"bridge\0\4", "big")
"""Advisory lock: one node at a time does the upkeep, the others skip it."""
UPKEEP_TIMEOUT = 120.0
"""Seconds for all of it."""

_PARTITIONS = """
    select c.relname, to_date(right(c.relname, 8), 'YYYYMMDD'),
           i.inhparent is not null, coalesce(i.inhdetachpending, false)
    from pg_class c
    left join pg_inherits i on i.inhrelid = c.oid and i.inhparent = 'delivery_log'::regclass
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname ~ '^delivery_log_[0-9]{8}$'
    order by c.relname
    """


# Each is a look into a partial index; none is worth reading a day of rows.
_HAS_WORK = """
    (select from {0} where outcome = 'pending' limit 1) union all
    (select from {0} where outcome = 'stored' limit 1) union all
    (select from {0} where final and owed is not null limit 1)
    """


class UpkeepDone(NamedTuple):
    """What one round of upkeep did: partitions by name."""

    made: list[str]
    dropped: list[str]
    kept: list[str]
    """Past their retention, and still there: rows that are not final or owe a receipt, or a reader held them."""


class Upkeep:
    """Looks after the partitions. Safe to run on several nodes and at any time."""

    def __init__(self, dsn: str, *, application_name: str = "bridge upkeep") -> None:
        self._dsn = dsn
        self._application_name = application_name

    async def run_once(self, retention_days: int) -> UpkeepDone:
        """Make the partitions of today and the next days; drop those more than `retention_days` before today.

        A partition is kept as long as it has rows that are not final or owe a receipt, or keys that must still
        be known.
        Idempotent, and safe to be cancelled. Raises StoreUnavailable and SchemaBehind.
        """
        done = UpkeepDone([], [], [])
        conn = await connect(self._dsn, self._application_name)
        try:
            async with Watchdog(conn, UPKEEP_TIMEOUT):
                await self._run(conn, retention_days, done)
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            # Closing it gives the advisory lock back.
            conn.pgconn.finish()
        return done

    async def _run(self, conn: Connection, retention_days: int, done: UpkeepDone) -> None:
        cursor = await conn.execute(
            "select pg_try_advisory_lock(%s), set_config('lock_timeout', '1s', false),"
            " set_config('statement_timeout', '30s', false), set_config('enable_seqscan', 'off', false)",
            (UPKEEP_LOCK,),
        )
        mine = await cursor.fetchone()
        if mine is None or not mine[0]:
            return
        today = await self._day(conn, "select roll_day()")
        since = await self._day(conn, "select since from log_day")
        for ahead in range(DAYS_AHEAD + 1):
            day = today + datetime.timedelta(days=ahead)
            made = await (await conn.execute("select make_partition(%s)", (day,))).fetchone()
            if made is not None and made[0]:
                done.made.append(f"delivery_log_{day:%Y%m%d}")
        first_kept = min(today - datetime.timedelta(days=retention_days), since)
        for name, its_day, attached, detaching in await (await conn.execute(_PARTITIONS)).fetchall():
            assert isinstance(name, str)
            assert isinstance(its_day, datetime.date)
            if its_day < first_kept:
                gone = await self._drop(conn, sql.Identifier(name), bool(attached), bool(detaching))
                (done.dropped if gone else done.kept).append(name)
        # What a day's rows were counted as goes with them.
        left = [name for name, *_ in await (await conn.execute(_PARTITIONS)).fetchall()]
        await conn.execute(
            "delete from tally where not 'delivery_log_' || to_char(day, 'YYYYMMDD') = any(%s)", (left,)
        )
        await conn.execute("delete from past_boot where seen_at < %s", (first_kept,))

    async def _drop(self, conn: Connection, name: sql.Identifier, attached: bool, detaching: bool) -> bool:
        """Detach and drop; False where it has to stay for now. Goes on where an earlier try was stopped."""
        for attempt in range(TRIES):
            try:
                if attached and not detaching:
                    query = sql.SQL(_HAS_WORK).format(name)
                    if await (await conn.execute(query)).fetchone() is not None:
                        return False
                    detaching = True
                    await conn.execute(
                        sql.SQL("alter table delivery_log detach partition {} concurrently").format(name)
                    )
                    attached = False
                if attached:
                    # An earlier try waited too long for its readers: new ones don't see the partition any more,
                    # but a plan that a writer has kept may, and would queue behind our wait for its lock.
                    if await self._held(conn, name):
                        if attempt + 1 < TRIES:
                            await asyncio.sleep(HELD_WAIT)
                        continue
                    await conn.execute(
                        sql.SQL("alter table delivery_log detach partition {} finalize").format(name)
                    )
                    attached = False
                await conn.execute(sql.SQL("drop table {}").format(name))
            except (pg.LockNotAvailable, pg.QueryCanceled, pg.ObjectNotInPrerequisiteState):
                # The last where another partition is still being detached: Postgres detaches one at a time.
                if attempt + 1 < TRIES:
                    await asyncio.sleep(HELD_WAIT)
                attached, detaching = await self._state(conn, name)
            else:
                return True
        return False

    async def _held(self, conn: Connection, name: sql.Identifier) -> bool:
        """Whether anybody has a lock on the partition."""
        query = sql.SQL(
            "select from pg_locks where locktype = 'relation' and relation = {}::regclass and granted"
            " and database = (select oid from pg_database where datname = current_database())"
            " and pid <> pg_backend_pid() limit 1"
        ).format(sql.Literal(name.as_string(conn)))
        return await (await conn.execute(query)).fetchone() is not None

    async def _state(self, conn: Connection, name: sql.Identifier) -> tuple[bool, bool]:
        query = sql.SQL("select inhdetachpending from pg_inherits where inhrelid = {}::regclass").format(
            sql.Literal(name.as_string(conn))
        )
        row = await (await conn.execute(query)).fetchone()
        return row is not None, row is not None and bool(row[0])

    async def _day(self, conn: Connection, query: str) -> datetime.date:
        row = await (await conn.execute(sql.SQL(query))).fetchone()
        assert row is not None
        assert isinstance(row[0], datetime.date)
        return row[0]
