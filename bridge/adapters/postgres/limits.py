"""Can `bridge serve` have all its connections to Postgres at once? Role, database, server and pooler have limits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg

from bridge.adapters.finding import Finding
from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import (
    CALL_TIMEOUT,
    CONNECTIONS_NEEDED,
    Connection,
    Watchdog,
    plain_connection,
)
from bridge.core.errors import StoreRefused, StoreUnavailable

CLOSING: Final = 3.0
"""Seconds in which a refusal may be due to a session that was just closed, which the server still counts."""
_STEP: Final = 0.1

PASSING: Final = (
    "bridge upkeep", "bridge counting", "bridge erasing", "bridge audit", "bridge why", "bridge who",
)  # fmt: skip
"""Short-lived connections, which do not name their node. They count as those of this node, and so make the check milder
by a few while they are open."""
_HAVE: LiteralString = """
    select count(*) from pg_stat_activity
    where datname = current_database() and usename = session_user
      and (application_name in (
               select left('bridge ' || node || kind, 63)
               from unnest(%s::text[]) node,
                   unnest(array['', ' mailbox', ' lease', ' sweep', ' revocations', ' revoking', ' sessions', ' nodes',
                       ' actions', ' figures', ' topics and times']) kind)
           or application_name = any(%s))
    """
# Sessions of other roles are counted too: whose they are is visible, only what they do is hidden.
_LIMITS: LiteralString = """
    select quote_ident(r.rolname), case when r.rolsuper then -1 else r.rolconnlimit end,
           (select count(*) from pg_stat_activity a where a.usesysid = r.oid),
           quote_ident(d.datname), case when r.rolsuper then -1 else d.datconnlimit end,
           (select count(*) from pg_stat_activity a where a.datid = d.oid and a.usesysid is not null),
           current_setting('max_connections')::int, current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           (select count(*) from pg_stat_activity a where a.usesysid is not null)
    from pg_roles r, pg_database d where r.rolname = session_user and d.datname = current_database()
    """


async def connections(dsn: str, application_name: str, nodes: Sequence[str]) -> Finding:
    """Open as many connections as these nodes may have at once, minus those that they have already.

    Takes at most about ten seconds and closes them all. Raises StoreUnavailable if not even one can be had.
    """
    held = [await patient_connection(dsn, application_name)]
    needed = CONNECTIONS_NEEDED * len(nodes)
    try:
        have = await _have(held[0], nodes)
        wanted = needed - have - 1
        opening = (_opened(dsn, application_name) for _ in range(wanted))
        refusals = []
        for result in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(result, StoreUnavailable):
                refusals.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                held.append(result)
        if refusals:
            # A running bridge may have opened one in the meantime.
            have = await _have(held[0], nodes)
        if not refusals or have + len(held) >= needed:
            words = f"{needed} at once, as many as `bridge serve` may open"
            return Finding("ok", "sessions", words)
        words = f"`bridge serve` may open {needed} connections at once, and could have"
        words += f" {have + len(held)}: {await _why(held, refusals, needed)}"
        return Finding("fail", "sessions", words)
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        for conn in held:
            conn.pgconn.finish()


async def patient_connection(dsn: str, application_name: str) -> Connection:
    """As `plain_connection`, but try again for `CLOSING` seconds when refused: our last session may not be gone yet."""
    give_up = asyncio.get_running_loop().time() + CLOSING
    while True:
        try:
            return await plain_connection(dsn, application_name)
        except StoreRefused:
            if asyncio.get_running_loop().time() > give_up:
                raise
            await asyncio.sleep(_STEP)


class _NoAnswer(StoreUnavailable):
    """A connection was accepted and got no answer."""


async def _opened(dsn: str, application_name: str) -> Connection:
    """Open a connection that works: a pooler accepts everybody, and lets clients wait for a session of the server."""
    conn = await patient_connection(dsn, application_name)
    began = asyncio.get_running_loop().time()
    try:
        async with Watchdog(conn, CALL_TIMEOUT):
            await conn.execute("select 1", prepare=False)
    except BaseException as error:
        conn.pgconn.finish()
        if not isinstance(error, psycopg.Error):
            raise
        if asyncio.get_running_loop().time() - began >= CALL_TIMEOUT:
            raise _NoAnswer(f"no answer within {CALL_TIMEOUT:g} s") from error
        raise translated(error) from error
    return conn


async def _have(conn: Connection, nodes: Sequence[str]) -> int:
    """How many connections these nodes have now; 0 unless they run."""
    async with Watchdog(conn):
        row = await (await conn.execute(_HAVE, (list(nodes), list(PASSING)), prepare=False)).fetchone()
    return min(int(str(row[0])), CONNECTIONS_NEEDED * len(nodes) - 1) if row else 0


async def _why(held: list[Connection], refusals: list[StoreUnavailable], needed: int) -> str:
    async with Watchdog(held[0]):
        row = await (await held[0].execute(_LIMITS, prepare=False)).fetchone()
    assert row is not None
    said = next((r.cause for r in refusals if not isinstance(r, _NoAnswer)), refusals[0].cause)
    reached = _reached(row, len(refusals))
    if reached:
        return f"{'; '.join(reached)} ({said})"
    if any(isinstance(r, _NoAnswer) for r in refusals):
        return (
            f"the others were let in and got no answer within {CALL_TIMEOUT:g} s, as from a pooler whose pool is too"
            f" small: its pool size (of PgBouncer default_pool_size, max_db_connections, max_user_connections) must be"
            f" {needed} or more"
        )
    return said


def _reached(row: tuple[Any, ...], more: int) -> list[str]:
    """Each limit that is reached, and the statement that makes room for `more` connections."""
    role, of_role, by_role, database, of_database, in_database, of_server, reserved, in_server = row
    found = []
    if 0 <= of_role <= by_role:
        mend = f"alter role {role} connection limit {by_role + more};"
        found.append(f"role {role} may have {of_role} at once: {mend}")
    if 0 <= of_database <= in_database:
        mend = f"alter database {database} connection limit {in_database + more};"
        found.append(f"database {database} may have {of_database} at once: {mend}")
    if of_server - reserved <= in_server:
        mend = f"alter system set max_connections = {in_server + more + reserved}; and restart the server"
        found.append(f"the server may have {of_server} at once, {reserved} of them reserved: {mend}")
    return found


def room_for(cause: str) -> str:
    """The statement that raises the limit of a role or database; empty if the cause is another."""
    found = re.match(r'too many connections for (role|database) ("[^"]+")', cause)
    return f": alter {found[1]} {found[2]} connection limit {CONNECTIONS_NEEDED}; or more" if found else ""
