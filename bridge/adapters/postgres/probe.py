"""Does the delivery log take rows: a row is written as pending, then ended, and the transaction is rolled back.

A trigger or rule on the log may refuse every row, with any SQLSTATE, or drop it silently; a row-level policy may hide
it. So both writes go the way of all others, and then the probe reads whether they are there.
"""

from __future__ import annotations

import time
import uuid
from typing import Final, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg import pq

from bridge.adapters.postgres.errors import sentence
from bridge.adapters.postgres.pool import Connection
from bridge.adapters.postgres.rows import RECORD_PARAMS, record_params
from bridge.core.errors import LogTakesNoRows
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey

EVENT: Final = "message"
"""The most common event, so that a trigger finds nothing special."""

# Each in a subtransaction, or record_rows() would take the first row for one that it has just inserted.
_WRITE: LiteralString = f"""
    savepoint probe;
    select count(*) from record_rows({", ".join(["%s"] * RECORD_PARAMS)});
    release savepoint probe;
    select l.outcome as there from delivery_log l, log_day d
    where l.day >= d.since and l.push_id = %s collate "C" and l.user_id = %s collate "C" and l.tenant = '';
    """
# Deferred constraints are checked now, not at a commit that never comes.
_WRITES: LiteralString = f"{_WRITE} {_WRITE} set constraints all immediate"
_ALONE: LiteralString = f"begin; {_WRITES}; rollback"
# Without the triggers that partitions inherit from the log, and without those of the schema.
_MEDDLERS: LiteralString = """
    select 'trigger ' || quote_ident(t.tgname) || ' on ' || t.tgrelid::regclass,
           format('alter table %s disable trigger %I;', t.tgrelid::regclass, t.tgname)
    from pg_trigger t
    where not t.tgisinternal and t.tgparentid = 0 and t.tgenabled in ('O', 'A') and t.tgname <> 'tally_rows'
      and (t.tgrelid = 'delivery_log'::regclass
           or t.tgrelid in (select i.inhrelid from pg_inherits i where i.inhparent = 'delivery_log'::regclass))
    union all
    select 'rule ' || quote_ident(r.rulename) || ' on ' || r.ev_class::regclass,
           format('drop rule %I on %s;', r.rulename, r.ev_class::regclass)
    from pg_rewrite r
    where r.ev_class = 'delivery_log'::regclass and r.ev_enabled in ('O', 'A')
    union all
    select 'policy ' || quote_ident(p.polname) || ' on ' || p.polrelid::regclass,
           format('drop policy %I on %s;', p.polname, p.polrelid::regclass)
    from pg_policy p
    where p.polrelid = 'delivery_log'::regclass
    order by 1
    """


async def try_writing(conn: Connection, name: str) -> None:
    """Write a row, end it, and roll both back, all in one message to the server: otherwise a process that stops in
    between would leave a transaction open, with its locks on the log.

    Raises LogTakesNoRows where a write was dropped, and psycopg's errors where one was refused.
    """
    try:
        await write_in_vain(conn, name, _ALONE)
    except LogTakesNoRows as error:
        await _roll_back(conn)
        raise LogTakesNoRows(error.cause + await mends(conn)) from error
    except psycopg.Error:
        await _roll_back(conn)
        raise


async def _roll_back(conn: Connection) -> None:
    if conn.pgconn.transaction_status in (pq.TransactionStatus.INERROR, pq.TransactionStatus.INTRANS):
        await conn.execute("rollback")


async def write_in_vain(conn: Connection, name: str, script: LiteralString = _WRITES) -> None:
    """Write a row and end it, in a transaction that is rolled back; `name` is in its columns node and boot.

    Raises LogTakesNoRows where a write was dropped, and psycopg's errors where one was refused.
    """
    now = time.time()
    boot = uuid.uuid4().hex
    # As ordinary as can be, so that the answer holds for the next push.
    pending = Row(
        RowKey("", f"{name} {boot}", name), Outcome.PENDING, Reason.AWAITING_PROOF, name, boot, event=EVENT,
        published_at=now, taken_at=now, written_at=now, sessions=1, attempts=1, owed=(),
    )  # fmt: skip
    ended = Row(
        pending.key, Outcome.RECEIVED, Reason.PONG, name, boot, event=EVENT, published_at=now, taken_at=now,
        written_at=now, proven_at=now, finished_at=now, sessions=1, attempts=1, owed=(),
    )  # fmt: skip
    params = [p for row in (pending, ended) for p in (*record_params([row]), row.key.push_id, row.key.user)]
    cursor = psycopg.AsyncClientCursor(conn)
    try:
        await cursor.execute(script, params)
    except pg.SerializationFailure as error:
        # Nobody else has this key, so there was no race: record_rows() misses what it has written.
        raise LogTakesNoRows(f"{sentence(error)} ({error.sqlstate})") from error
    there = []
    while True:
        if cursor.description and cursor.description[0].name == "there":
            there.append([str(outcome) for (outcome,) in await cursor.fetchall()])
        if not cursor.nextset():
            break
    for row, found in zip((pending, ended), there, strict=True):
        if found != [row.outcome.value]:
            words = f"there as {found[0]!r}" if found else "not there"
            raise LogTakesNoRows(f"a row that was written as {row.outcome.value!r} is {words}")


async def mends(conn: Connection) -> str:
    """Triggers, rules and policies on the log that are not ours and may change, drop or refuse rows, each with the
    statement that ends it; empty if there are none. Raises psycopg's errors."""
    found = await (await conn.execute(_MEDDLERS)).fetchall()
    return f"; there is {', '.join(f'{what}: {ends}' for what, ends in found)}" if found else ""


def refused(error: BaseException | None) -> str | None:
    """What the server said, if it refused a write and keeps the session; None for everything else."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return None
    if error.diag.severity_nonlocalized != "ERROR":
        return None
    return f"{sentence(error)} ({error.sqlstate})"
