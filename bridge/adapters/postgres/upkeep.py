"""Upkeep of the delivery log: partitions are made ahead of time, and dropped when their retention is over.

Upkeep marks a partition before it detaches it. A table without the mark was detached by somebody else, to keep it, and
is left alone.

Writers must not wait for a reader because of upkeep. So a partition is attached rather than created in place, it is
detached concurrently, and a wait for a lock ends after a second and is tried again. If the role does not own the log, a
function of the owner drops partitions, and makes writers wait for a fifth of a second at most.
https://www.postgresql.org/docs/15/ddl-partitioning.html#DDL-PARTITIONING-DECLARATIVE-MAINTENANCE
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg import sql

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Connection, Watchdog, connect, leave
from bridge.core.errors import BridgeError

DAYS_AHEAD = 3
"""How many partitions after today's are made ahead."""
TRIES = 3
"""Tries to detach or drop a partition before it is left for the next time."""
HELD_WAIT = 0.2
"""Seconds between them."""
UPKEEP_LOCK = int.from_bytes(b"bridge\0\4", "big")
"""Advisory lock: one node at a time does the upkeep, others skip it."""
UPKEEP_TIMEOUT = 120.0
"""Seconds for all of it."""

SESSIONS_MAX = 20_000
"""Old sessions that are deleted at a time."""
REVOCATIONS_MAX = 100_000
"""Old revocations that are deleted at a time."""
ACTIONS_MAX = 100_000
"""Old actions that are deleted at a time."""

MARK = "bridge upkeep: past its retention, detached to be dropped"
"""The comment on a table that upkeep detaches. A detached table without it is somebody's archive."""

_NOT_BEGUN = pg.ObjectNotInPrerequisiteState
"""Postgres detaches one partition at a time, and says this while one is being detached."""

LOG, CONTENT = "delivery_log", "push_content"
"""The partitioned tables: rows, and what rows share. The content of a day is dropped before its rows."""
_TABLES: LiteralString = """
    select p.name, c.relname, i.inhparent is not null, coalesce(i.inhdetachpending, false),
           coalesce(obj_description(c.oid, 'pg_class') = %s, false)
    from (values ('delivery_log'), ('push_content')) p (name)
    join pg_class c on c.relname ~ ('^' || p.name || '_[0-9]{8}$')
    left join pg_inherits i on i.inhrelid = c.oid and i.inhparent = p.name::regclass
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
    order by p.name, c.relname
    """
# Without to_date(), which raises an error for the name of a day that does not exist.
DAYS_HERE: LiteralString = """
    select d.day
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (
        select case when c.relname ~ '^delivery_log_(?!0000)[0-9]{8}$'
                    then (make_date(substr(c.relname, 14, 4)::int, 1, 1)
                          + make_interval(months => substr(c.relname, 18, 2)::int - 1,
                                          days => substr(c.relname, 20, 2)::int - 1))::date end as day) d
    where i.inhparent = 'delivery_log'::regclass and not i.inhdetachpending
      and c.relname = 'delivery_log_' || to_char(d.day, 'YYYYMMDD')
    """
"""A query with one column `day`: the days for which the log has a partition."""
TODAY_AND_DAYS: LiteralString = f"""
    select log_today() as today, coalesce(array_agg(days.day), '{{}}') as days from ({DAYS_HERE}) as days
    """
"""The log's today, and an array of the days for which it has a partition."""


# Each reads one entry of a partial index. They read the log, not the partition, which only its owner may read.
_HAS_WORK: LiteralString = """
    (select from delivery_log where day = %(day)s and outcome = 'pending' limit 1) union all
    (select from delivery_log where day = %(day)s and outcome = 'stored' limit 1) union all
    (select from delivery_log where day = %(day)s and final and owed is not null limit 1) union all
    (select from delivery_log where day = %(day)s and fallback_due is not null limit 1)
    """

_DROP_ACTIONS: LiteralString = """
    delete from ops_action a
    using (select id from ops_action where begun_at < %s order by begun_at limit %s) old
    where a.id = old.id
    """
_DROP_RETAINED: LiteralString = "delete from retained where until < clock_timestamp()"
_DROP_SUBSCRIPTIONS: LiteralString = """
    delete from subscription where left_at < clock_timestamp() - make_interval(secs => %s)
    """


async def owns_log(conn: Connection) -> bool:
    """Whether this connection's role has the rights of the owner of the log."""
    query: LiteralString = (
        "select pg_has_role(c.relowner, 'usage') from pg_class c where c.oid = 'delivery_log'::regclass"
    )
    row = await (await conn.execute(query)).fetchone()
    return row is not None and bool(row[0])


class UpkeepTrouble(BridgeError):
    """Something in the schema keeps upkeep from a part of its work; the rest is done.

    `what` is a table, `problem` what is wrong with it.
    """

    def __init__(self, what: str, problem: str) -> None:
        self.what = what
        self.problem = problem
        super().__init__(f"upkeep of {what}: {problem}")


class UpkeepDone(NamedTuple):
    """What one round of upkeep did: partitions by name."""

    made: list[str]
    dropped: list[str]
    kept: list[str]
    """Past their retention and still there: some rows are not final, or owe a receipt or a fallback, or a reader held
    them."""
    trouble: list[UpkeepTrouble]


class _Table(NamedTuple):
    """A table with the name of a partition."""

    parent: str
    """LOG or CONTENT, by its name; it need not be attached."""
    name: str
    attached: bool
    detaching: bool
    """Somebody has begun to detach it: new statements no longer see it."""
    ours: bool
    """It has our mark."""

    @property
    def day(self) -> datetime.date | None:
        """The day that it is named after; None if there is no such day."""
        try:
            return datetime.date.fromisoformat(self.name[-8:])
        except ValueError:
            return None


class Upkeep:
    """Makes and drops partitions. Safe to run on several nodes and at any time."""

    def __init__(
        self, dsn: str, topic_linger: float = 3600.0, *, application_name: str = "bridge upkeep"
    ) -> None:
        """`topic_linger`: seconds for which the subscriptions of closed sessions are of use."""
        self._dsn = dsn
        self._topic_linger = topic_linger
        self._application_name = application_name

    async def run_once(self, retention_days: int) -> UpkeepDone:
        """Make the partitions of today and the next days; drop those more than `retention_days` before today.

        A partition is kept as long as it has rows that are not final, or owe a receipt or a fallback, or keys that must
        still be known. A table that somebody else has detached is left alone. What the schema makes impossible is in
        `trouble`; the rest is done all the same.
        Idempotent, and safe to be cancelled. Raises StoreUnavailable.
        """
        done = UpkeepDone([], [], [], [])
        conn = await connect(self._dsn, self._application_name)
        try:
            async with Watchdog(conn, UPKEEP_TIMEOUT):
                await self._run(conn, retention_days, done)
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            # Releases the advisory lock.
            await leave(conn)
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
        with _troubles("the log's day", done):
            await conn.execute("select roll_day()")
        with _troubles("old revocations", done):
            await conn.execute("select drop_old_revocations(%s)", (REVOCATIONS_MAX,))
        bounds = await (await conn.execute("select day, since from log_day")).fetchone()
        if bounds is None:
            return
        today, since = bounds
        assert isinstance(today, datetime.date)
        assert isinstance(since, datetime.date)
        for ahead in range(DAYS_AHEAD + 1):
            day = today + datetime.timedelta(days=ahead)
            name = f"delivery_log_{day:%Y%m%d}"
            with _troubles(name, done):
                made = await (await conn.execute("select make_partition(%s)", (day,))).fetchone()
                if made is not None and made[0]:
                    done.made.append(name)
        first_kept = min(today - datetime.timedelta(days=retention_days), since)
        tables = await self._tables(conn)
        if await owns_log(conn):
            await self._look_after_all(conn, tables, first_kept, done)
        else:
            await self._have_dropped(conn, tables, retention_days, first_kept, done)
        # The counts of a day go with its rows.
        with _troubles("tally", done):
            here = [
                table.name
                for table in await self._tables(conn)
                if table.parent == LOG and table.attached and not table.detaching
            ]
            await conn.execute(
                "delete from tally where not 'delivery_log_' || to_char(day, 'YYYYMMDD') = any(%s)", (here,)
            )
        with _troubles("session", done):
            dropped: object = SESSIONS_MAX
            while dropped == SESSIONS_MAX:
                old = await conn.execute("select drop_old_sessions(%s, %s)", (first_kept, SESSIONS_MAX))
                (dropped,) = await old.fetchone() or (0,)
        with _troubles("subscription", done):
            await conn.execute(_DROP_SUBSCRIPTIONS, (self._topic_linger,))
        with _troubles("retained", done):
            await conn.execute(_DROP_RETAINED)
        with _troubles("past_boot", done):
            await conn.execute("delete from past_boot where seen_at < %s", (first_kept,))
        with _troubles("old actions", done):
            await conn.execute(_DROP_ACTIONS, (first_kept, ACTIONS_MAX))

    async def _have_dropped(
        self,
        conn: Connection,
        tables: list[_Table],
        retention_days: int,
        first_kept: datetime.date,
        done: UpkeepDone,
    ) -> None:
        """Let the owner's function drop what is past its retention, since this role may not.

        A function can't detach concurrently, so it locks the whole log for a moment. It waits for that lock a fifth of
        a second at most.
        """
        for table in tables:
            if table.parent != LOG or not table.attached or table.detaching or table.day is None:
                continue
            if table.day >= first_kept:
                continue
            gone = False
            with _troubles(table.name, done):
                for attempt in range(TRIES):
                    if attempt:
                        await asyncio.sleep(HELD_WAIT)
                    with suppress(pg.LockNotAvailable, pg.DeadlockDetected):
                        query: LiteralString = "select drop_partition(%s, %s)"
                        row = await (await conn.execute(query, (table.day, retention_days))).fetchone()
                        gone = row is not None and bool(row[0])
                        break
                (done.dropped if gone else done.kept).append(table.name)

    async def _look_after_all(
        self, conn: Connection, tables: list[_Table], first_kept: datetime.date, done: UpkeepDone
    ) -> None:
        content = {table.day: table for table in tables if table.parent == CONTENT}
        for table in tables:
            if table.parent == LOG:
                with _troubles(table.name, done):
                    await self._look_after(conn, table, content.pop(table.day, None), first_kept, done)
        for table in content.values():
            with _troubles(table.name, done):
                await self._look_after_alone(conn, table, first_kept, done)

    async def _look_after(
        self,
        conn: Connection,
        table: _Table,
        content: _Table | None,
        first_kept: datetime.date,
        done: UpkeepDone,
    ) -> None:
        """Drop a day of rows, and of what they share, if its time has come."""
        past = table.day is not None and table.day < first_kept and (table.attached or table.ours)
        if not await self._in_the_way(conn, table, done) and past:
            gone = not await self._has_work(conn, table)
            if gone and content is not None and (content.attached or content.ours):
                gone = not await self._in_the_way(conn, content, done) and await self._drop(conn, content)
            gone = gone and await self._drop(conn, table)
            (done.dropped if gone else done.kept).append(table.name)

    async def _look_after_alone(
        self, conn: Connection, content: _Table, first_kept: datetime.date, done: UpkeepDone
    ) -> None:
        """Drop, or report, what the rows of a day shared when those rows are gone."""
        if await self._in_the_way(conn, content, done):
            return
        if content.ours:
            await self._drop(conn, content)
        elif content.attached and content.day is not None and content.day < first_kept:
            problem = (
                f"the rows of its day were detached: keep it with them (alter table push_content detach partition"
                f" {content.name} concurrently), or drop it"
            )
            done.trouble.append(UpkeepTrouble(content.name, problem))

    async def _in_the_way(self, conn: Connection, table: _Table, done: UpkeepDone) -> bool:
        """Whether something about a table keeps upkeep from touching it; if so, it is reported."""
        if table.attached and not table.detaching and table.ours:
            # Left by a try that was killed before it detached. Whoever detaches the table now would lose it.
            with suppress(pg.LockNotAvailable):
                await self._mark(conn, table.name, None)
        if table.day is None:
            done.trouble.append(UpkeepTrouble(table.name, "it is named after a day that does not exist"))
            return True
        if table.detaching and not table.ours:
            done.trouble.append(
                UpkeepTrouble(
                    table.name,
                    f"somebody has begun to detach it, and until that is finished (alter table {table.parent} detach"
                    f" partition {table.name} finalize) no other partition can be detached",
                )
            )
            return True
        return False

    async def _has_work(self, conn: Connection, table: _Table) -> bool:
        """Whether a day has rows that are not final or owe a receipt."""
        if not table.attached or table.detaching:
            return False
        return await (await conn.execute(_HAS_WORK, {"day": table.day})).fetchone() is not None

    async def _drop(self, conn: Connection, table: _Table) -> bool:
        """Detach and drop; False if it has to stay for now. Continues where an earlier try stopped."""
        name = sql.Identifier(table.name)
        attached, detaching = table.attached, table.detaching
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(HELD_WAIT)
            try:
                if attached and not detaching:
                    if table.parent == LOG and await self._has_work(conn, table):
                        return False
                    await self._detach(conn, table)
                elif attached:
                    # An earlier try waited too long for readers. New statements no longer see the partition, but a
                    # cached plan of a writer may, and would queue behind our wait for the lock.
                    if await self._held(conn, name):
                        continue
                    await conn.execute(
                        sql.SQL("alter table {} detach partition {} finalize").format(
                            sql.Identifier(table.parent), name
                        )
                    )
                attached = False
                await conn.execute(sql.SQL("drop table {}").format(name))
            except (pg.LockNotAvailable, pg.QueryCanceled, _NOT_BEGUN):
                now = await self._table(conn, table.name)
                if now is None or (not now.ours and (now.detaching or not now.attached)):
                    return False
                attached, detaching = now.attached, now.detaching
            else:
                return True
        return False

    async def _detach(self, conn: Connection, table: _Table) -> None:
        """Mark the partition as ours and detach it. The mark stays only if that has begun."""
        name = table.name
        await self._mark(conn, name, MARK)
        try:
            await conn.execute(
                sql.SQL("alter table {} detach partition {} concurrently").format(
                    sql.Identifier(table.parent), sql.Identifier(name)
                )
            )
        except psycopg.Error as error:
            if not conn.closed:
                now = await self._table(conn, name)
                # If it is detached, or being detached, all the same, somebody else did it at this moment.
                begun = now is not None and now.detaching and not isinstance(error, _NOT_BEGUN)
                if now is not None and not begun:
                    await self._mark(conn, name, None)
            raise

    async def _mark(self, conn: Connection, name: str, mark: str | None) -> None:
        query = sql.SQL("comment on table {} is {}").format(sql.Identifier(name), sql.Literal(mark))
        await conn.execute(query)

    async def _held(self, conn: Connection, name: sql.Identifier) -> bool:
        """Whether anybody has a lock on the partition."""
        query = sql.SQL(
            "select from pg_locks where locktype = 'relation' and relation = {}::regclass and granted"
            " and database = (select oid from pg_database where datname = current_database())"
            " and pid <> pg_backend_pid() limit 1"
        ).format(sql.Literal(name.as_string(conn)))
        return await (await conn.execute(query)).fetchone() is not None

    async def _tables(self, conn: Connection) -> list[_Table]:
        found = await (await conn.execute(_TABLES, (MARK,))).fetchall()
        return [
            _Table(str(parent), str(name), bool(attached), bool(detaching), bool(ours))
            for parent, name, attached, detaching, ours in found
        ]

    async def _table(self, conn: Connection, name: str) -> _Table | None:
        return next((table for table in await self._tables(conn) if table.name == name), None)


@contextmanager
def _troubles(what: str, done: UpkeepDone) -> Iterator[None]:
    """Note an error that comes from the schema; raise one that means that the database is unavailable.

    The latter are all operational errors (no connection, no memory, a lock that did not come) and class 25, a server
    that only reads.
    """
    try:
        yield
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        if error.sqlstate is None or error.sqlstate.startswith("25"):
            raise
        problem = f"{error.diag.message_primary or error} ({error.sqlstate})"
        done.trouble.append(UpkeepTrouble(what, problem))
