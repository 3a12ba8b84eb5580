"""Would the bridge run on this database for a week? Does what `serve` does, in a transaction that is rolled back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, LiteralString

import psycopg
from psycopg import errors as pg

from bridge.adapters.finding import Finding
from bridge.adapters.postgres.conninfo import NEWEST
from bridge.adapters.postgres.errors import sentence, translated
from bridge.adapters.postgres.limits import connections, patient_connection
from bridge.adapters.postgres.migrate import WANTED_VERSION
from bridge.adapters.postgres.pool import Connection, Watchdog
from bridge.adapters.postgres.pooling import TRANSACTION_POOLED, transaction_pooled
from bridge.adapters.postgres.probe import mends, write_in_vain
from bridge.adapters.postgres.rights import missing
from bridge.adapters.postgres.rows import RECORD_PARAMS, SHARE_BYTES, record_params
from bridge.adapters.postgres.upkeep import DAYS_AHEAD, DAYS_HERE, owns_log
from bridge.core.errors import LogTakesNoRows, SchemaBehind, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.store import LEASE_SECONDS

CHECK_TIMEOUT: Final = 20.0
"""Seconds for everything."""
CLOCK_WARN, CLOCK_FAIL = 1.0, 30.0
"""Seconds between this machine's clock and the server's: when to warn, and what is too much for leases and ttls."""
WEEK: Final = 7
LONG_AGO: Final = 3999
"""Days before today: nobody has a partition of that day, so it is made and dropped to show that both work."""
NAME: Final = "bridge check"


async def findings(dsn: str, nodes: Sequence[str] = ("",)) -> list[Finding]:
    """Everything about the database that is worth a line. It leaves nothing behind.

    It locks the log for a moment, as upkeep does for a role that does not own it. `nodes`: those of `bridge serve`;
    connections that they have open count as available. Raises StoreUnavailable if the server can't be reached,
    DatabaseUnsuitable for another encoding or a version that is too old.
    """
    found = await _pooler(dsn)
    conn = await patient_connection(dsn, NAME)
    found += about_version(conn.info.server_version)
    try:
        conn.prepare_threshold = None
        async with Watchdog(conn, CHECK_TIMEOUT), conn.transaction(force_rollback=True):
            await conn.execute(
                "set local search_path to public; set local statement_timeout to '5s'; set local datestyle to iso;"
                " set local lock_timeout to '500ms'; set local array_nulls to on; set local extra_float_digits to 1"
            )
            found += await _look(conn)
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        conn.pgconn.finish()
    return [*found, await connections(dsn, NAME, nodes)]


def about_version(number: int) -> list[Finding]:
    """A warning where the server is of a major version that nobody has tried; `number` as libpq has it."""
    major = number // 10_000
    if major <= NEWEST:
        return []
    return [
        Finding("warn", "database", f"Postgres {major} is newer than all that this version knows ({NEWEST})")
    ]


async def _pooler(dsn: str) -> list[Finding]:
    try:
        pooled = await transaction_pooled(dsn, NAME)
    except StoreUnavailable:
        # This needs two connections. If only one can be had, `connections` says what keeps the second away.
        return []
    if pooled:
        return [Finding("fail", "pooler", TRANSACTION_POOLED)]
    return [Finding("ok", "pooler", "none, or one in session mode")]


async def _look(conn: Connection) -> list[Finding]:
    """In a transaction: first what can be asked, then what must be tried."""
    found = [await _clock(conn)]
    if only_reads := await _only_reads(conn):
        return [*found, only_reads]
    if not await _value(conn, "select to_regclass('public.schema_version') is not null"):
        return [*found, Finding("fail", "schema", "there is none: run `bridge db upgrade` as its owner")]
    rights = await missing(conn)
    if rights:
        return [*found, *(Finding("fail", "rights", f"no {what}: {mends}") for what, mends in rights)]
    found.append(Finding("ok", "rights", "all that serving needs"))
    schema = await _value(conn, "select coalesce(max(version), 0) from schema_version")
    if int(str(schema)) < WANTED_VERSION:
        return [*found, Finding("fail", "schema", str(SchemaBehind(int(str(schema)), WANTED_VERSION)))]
    ahead = int(str(await _value(conn, _AHEAD)))
    serving = await _value(conn, _SERVING)
    words = f"of {ahead} days ahead"
    if ahead >= DAYS_AHEAD - 1:
        found.append(Finding("ok", "partitions", words))
    elif serving:
        words += f", though a bridge runs, which makes {DAYS_AHEAD} each hour: see its log"
        found.append(Finding("warn", "partitions", words))
    else:
        found.append(Finding("ok", "partitions", f"{words}: `bridge serve` makes {DAYS_AHEAD}"))
    return [*found, *await _tries(conn)]


_SERVING: LiteralString = f"""
    select exists (select from node where seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS})
                   and claimed_at < clock_timestamp() - interval '1 min')
    """
_AHEAD: LiteralString = f"select count(*) from ({DAYS_HERE}) d where d.day > log_today()"


async def _clock(conn: Connection) -> Finding:
    before = time.time()
    server = float(str(await _value(conn, "select extract(epoch from clock_timestamp())::float8")))
    # The server looked at some moment in between.
    apart = max(0.0, before - server, server - time.time())
    words = f"the server's clock and this machine's differ by {apart:.1f} s"
    if apart > CLOCK_FAIL:
        return Finding("fail", "clock", f"{words}: let both follow NTP")
    if apart > CLOCK_WARN:
        return Finding("warn", "clock", f"{words}: let both follow NTP")
    return Finding("ok", "clock", f"differs by less than {CLOCK_WARN:g} s")


async def _only_reads(conn: Connection) -> Finding | None:
    if await _value(conn, "select pg_is_in_recovery()"):
        words = "this server is a standby and only reads: give BRIDGE_POSTGRES_DSN the primary's address"
        return Finding("fail", "database", f"{words} (or several, and target_session_attrs=read-write)")
    if await _value(conn, "select current_setting('transaction_read_only')::boolean"):
        row = await (
            await conn.execute("select quote_ident(current_user), quote_ident(current_database())")
        ).fetchone()
        assert row is not None
        source = await _value(
            conn, "select source from pg_settings where name = 'default_transaction_read_only'"
        )
        mends = {
            "user": f"alter role {row[0]} reset default_transaction_read_only;",
            "database": f"alter database {row[1]} reset default_transaction_read_only;",
            "database user": f"alter role {row[0]} in database {row[1]} reset default_transaction_read_only;",
            "client": "take default_transaction_read_only out of the DSN or PGOPTIONS",
        }.get(str(source), "alter system reset default_transaction_read_only; select pg_reload_conf();")
        return Finding(
            "fail", "database", f"transactions only read here (default_transaction_read_only): {mends}"
        )
    return None


async def _tries(conn: Connection) -> list[Finding]:
    """Do what a week of serving does."""
    found = []
    for what, tried in _TRIES.items():
        try:
            async with conn.transaction():
                await tried(conn)
        except LogTakesNoRows as error:
            found.append(Finding("fail", what, f"{error}{await mends(conn)}"))
        except _Dropped as error:
            found.append(Finding("fail", what, str(error)))
        except psycopg.Error as error:
            if conn.closed:
                raise
            said = f"{sentence(error)} ({error.sqlstate})"
            if _could_not_wait(error):
                # Somebody else holds a lock; whether it works remains unknown.
                found.append(Finding("warn", what, f"could not be tried now: {said}"))
            else:
                found.append(Finding("fail", what, said + (await mends(conn) if tried is _rows else "")))
    if not found:
        words = f"rows, leases and partitions of {WEEK} days were written and rolled back"
        return [Finding("ok", "week", words)]
    return found


def _could_not_wait(error: psycopg.Error) -> bool:
    """Whether a time limit ended the statement, rather than a function that raises the same error."""
    raised = (error.diag.source_function or "").startswith("exec_stmt_")
    return isinstance(error, pg.LockNotAvailable | pg.QueryCanceled | pg.DeadlockDetected) and not raised


class _Dropped(Exception):
    """Something was written and is not there."""


async def _rows(conn: Connection) -> None:
    await write_in_vain(conn, NAME)
    await _kept(conn)
    await conn.execute("delete from delivery_log where node = %s and push_id like %s", (NAME, f"{NAME}%"))


async def _kept(conn: Connection) -> None:
    """Write two kept rows that share their data, which is then in push_content."""
    now = time.time()
    key, data = f"{NAME} {uuid.uuid4()}", b"1" * SHARE_BYTES
    kept = [
        Row(
            RowKey("", key, user), Outcome.STORED, Reason.NO_SESSION, NAME, NAME, published_at=now, taken_at=now,
            payload=data, expires_at=now + 60, position=int(now * 1e6) + place,
        )
        for place, user in enumerate((f"{NAME} 1", f"{NAME} 2"))
    ]  # fmt: skip
    await conn.execute(_RECORD, record_params(kept))
    await conn.execute("set constraints all immediate")
    if await _value(conn, "select count(*) from push_content where payload = %s", data) != 1:
        raise _Dropped("what several pushes share was written to push_content, and is not there")


_RECORD: LiteralString = f"select count(*) from record_rows({', '.join(['%s'] * RECORD_PARAMS)})"


async def _lease(conn: Connection) -> None:
    boot = str(uuid.uuid4())
    name = f"{NAME} {boot}"
    for what, query in (
        ("claimed", "select claim_node(%s, %s, null)"),
        ("renewed", "select renew_node(%s, %s)"),
    ):
        if not await _value(conn, query, name, boot):
            raise _Dropped(f"a lease was {what} in table node, and is not there")
    await conn.execute("delete from node where name = %s", (name,))
    await conn.execute("delete from past_boot where boot = %s", (boot,))
    await conn.execute("select roll_day()")
    await conn.execute("delete from tally where false")


async def _days(conn: Connection) -> None:
    for ahead in range(WEEK + 1):
        await conn.execute("select make_partition(log_today() + %s)", (ahead,))


async def _drop(conn: Connection) -> None:
    day = await _value(conn, "select log_today() - %s::integer", LONG_AGO)
    await conn.execute("select make_partition(%s)", (day,))
    if await owns_log(conn):
        # Upkeep detaches it concurrently, which is impossible in a transaction. Whoever may drop it may do that, too.
        await conn.execute(f"drop table delivery_log_{day:%Y%m%d}".encode())
    else:
        await conn.execute("select drop_partition(%s, 1)", (day,))


_TRIES: Final[dict[str, Callable[[Connection], Awaitable[None]]]] = {
    "rows": _rows,
    "lease": _lease,
    "days": _days,
    "retention": _drop,
}


async def _value(conn: Connection, query: LiteralString, *params: object) -> object:
    row = await (await conn.execute(query, params)).fetchone()
    assert row is not None
    return row[0]
