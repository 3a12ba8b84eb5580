"""Connections to Postgres.

Every call of the adapters is one statement that is safe to run again. So a few connections are enough, which are opened
when they are needed and closed at the first doubt. Nothing runs in the background, and the first call after an outage
works. (psycopg_pool waits longer and longer between its tries, up to minutes.)
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg import pq

from bridge.adapters.postgres.conninfo import check_server, conninfo_of
from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.migrate import WANTED_VERSION, ahead
from bridge.core.errors import DatabaseUnsuitable, SchemaBehind, StatementFailed, StoreUnavailable

log = logging.getLogger("bridge")

CONNECT_TIMEOUT = 2
"""Seconds to connect, and to wait for a free connection; libpq rounds less than 2 up to 2."""
STATEMENT_TIMEOUT = 5.0
"""Seconds that the server gives a statement (statement_timeout)."""
LOCK_TIMEOUT = 1.5
"""Seconds that a statement may wait for a lock (lock_timeout)."""
CALL_TIMEOUT = 7.0
"""Seconds after which the socket of a call is shut down, should every other limit have failed."""
LEAVE_TIMEOUT = 1.0
"""Seconds to clean up a session before its connection is closed."""
CONNECTIONS: Final[Mapping[str, int]] = {
    "rows": 4,
    "mailbox": 3,
    "lease": 1,
    "sweep": 1,
    "revocations": 1,
    "revoking": 1,
    "sessions": 1,
    "nodes": 1,
    "topics and times": 1,
    "actions": 1,
    "figures": 1,
    "upkeep and audit": 1,
    "look-ups": 2,
    "people": 1,
}
"""How many connections `bridge serve` has at most, by what they are for; each is opened when it is needed."""
CONNECTIONS_NEEDED: Final = sum(CONNECTIONS.values())
"""Their sum: `bridge check` opens as many at once."""
TRIES = 3
"""How often a call is tried that loses to another transaction: a deadlock, a lock that did not come."""

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[object, ...]]

_BEHIND = (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedColumn, pg.InvalidSchemaName)
_LOST_A_RACE = (pg.DeadlockDetected, pg.SerializationFailure, pg.LockNotAvailable)
_DEFAULTS: dict[str, int] = {
    "connect_timeout": CONNECT_TIMEOUT,
    # A peer that has vanished is noticed within 3 + 2 * 2 seconds, whether data is on its way or not.
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 6000,
}


async def connect(dsn: str, application_name: str) -> Connection:
    """Open a connection that is set up for the bridge: autocommit, short time limits, schema checked.

    Raises StoreUnavailable.
    """
    conn = await plain_connection(dsn, application_name)
    try:
        async with Watchdog(conn):
            await _set_up(conn)
            version = await _version(conn)
    except BaseException as error:
        # Not `close()`, which may be interrupted: this closes the socket at once.
        conn.pgconn.finish()
        if isinstance(error, psycopg.Error):
            raise translated(error) from error
        raise
    if version < WANTED_VERSION:
        conn.pgconn.finish()
        raise SchemaBehind(version, WANTED_VERSION)
    if version > WANTED_VERSION:
        _tell_ahead(version)
    return conn


@functools.cache
def _tell_ahead(version: int) -> None:
    # Cached, so that it is logged once for each version and not by every connection.
    log.warning("%s", ahead(version))


async def plain_connection(dsn: str, application_name: str) -> Connection:
    """Open a connection that speaks UTF8 and commits each statement. Nothing is set in its session.

    Raises StoreUnavailable, and DatabaseUnsuitable for another encoding or a version that is too old.
    """
    try:
        conn = await psycopg.AsyncConnection.connect(
            conninfo_of(dsn, application_name, **_DEFAULTS), autocommit=True
        )
    except (psycopg.Error, OSError) as error:
        raise translated(error) from error
    try:
        check_server(conn)
    except DatabaseUnsuitable:
        conn.pgconn.finish()
        raise
    return conn


async def _set_up(conn: Connection) -> None:
    # Unless it is told to clean up, a pooler may hand out a session with what its killed client left there.
    await conn.execute("deallocate all")
    # Not by `options`: the DSN may have its own, and proxies refuse them.
    await conn.execute(
        """
        select pg_advisory_unlock_all(),
               set_config('search_path', 'public', false),
               set_config('default_transaction_isolation', 'read committed', false),
               set_config('statement_timeout', %s, false),
               set_config('lock_timeout', %s, false),
               -- To compile a plan over all partitions may take seconds, to run it takes a millisecond.
               set_config('jit', 'off', false),
               -- A role or database may have other values, which change how times and lists are read and written.
               set_config('DateStyle', 'ISO', false),
               set_config('extra_float_digits', '1', false),
               set_config('array_nulls', 'on', false),
               -- A crash of the server must not undo what a receipt has said. (Stronger settings are kept.)
               set_config('synchronous_commit', case current_setting('synchronous_commit') when 'off' then 'on'
                          else current_setting('synchronous_commit') end, false),
               set_config('tcp_keepalives_idle', '3', false),
               set_config('tcp_keepalives_interval', '2', false),
               set_config('tcp_keepalives_count', '2', false)
        """,
        (f"{STATEMENT_TIMEOUT * 1000:.0f}", f"{LOCK_TIMEOUT * 1000:.0f}"),
    )


async def _version(conn: Connection) -> int:
    try:
        cursor = await conn.execute("select coalesce(max(version), 0) from schema_version")
    except pg.UndefinedTable:
        return 0
    row = await cursor.fetchone()
    return int(str(row[0])) if row else 0


class Watchdog:
    """Shuts a connection's socket down when a call takes too long; the call then fails by itself.

    If the call were cancelled instead, psycopg would ask the server to cancel, and wait for an answer that a silent
    server never gives.
    """

    def __init__(self, conn: Connection, seconds: float | None = None) -> None:
        self._conn = conn
        self._seconds = CALL_TIMEOUT if seconds is None else seconds

    async def __aenter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, shut_down, self._conn)

    async def __aexit__(self, *_: object) -> None:
        self._timer.cancel()


def shut_down(conn: Connection) -> None:
    """Shut the socket of a connection down, so that whoever waits on it reads its end. Never raises."""
    if conn.closed:
        return
    # On a duplicate of the descriptor: libpq closes its own.
    with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            # No longer connected: the wait ends by itself.
            return


async def leave(conn: Connection) -> None:
    """Close a connection and leave nothing in its session. Never raises because the database is down.

    Unless it is told to clean up (`server_reset_query` of PgBouncer), a pooler may lend the server's side of it, with
    its settings and locks, to somebody else.
    """
    try:
        if not conn.closed and conn.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            async with Watchdog(conn, LEAVE_TIMEOUT):
                await conn.execute("discard all")
    except psycopg.Error:
        return
    finally:
        conn.pgconn.finish()


class Connections:
    """A few connections, each lent to one call at a time, and opened when it is needed."""

    def __init__(self, dsn: str, application_name: str, size: int) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work` on a connection, several times if need be; raises only errors of the bridge.

        A connection that was idle may be stale, or know an older schema. Then `work` runs again on a new one.
        """
        lost = 0
        while True:
            try:
                return await self._run_once(work)
            except _Stale:
                continue
            except _LOST_A_RACE as error:
                lost += 1
                if lost == TRIES:
                    raise translated(error) from error
                await asyncio.sleep(random.uniform(0.005, 0.05) * lost)
            except (psycopg.Error, UnicodeError) as error:
                raise translated(error) from error

    async def _run_once(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._free.acquire()
        except TimeoutError as error:
            raise StoreUnavailable("all connections are busy") from error
        try:
            if self._closed:
                raise StoreUnavailable("this store is closed")
            reused = bool(self._idle)
            conn = self._idle.pop() if reused else await connect(self._dsn, self._application_name)
            try:
                async with Watchdog(conn):
                    result = await work(conn)
            except (psycopg.DataError, psycopg.IntegrityError, UnicodeError, *_LOST_A_RACE):
                self._give_back(conn)
                raise
            except (
                psycopg.OperationalError,
                psycopg.InterfaceError,
                pg.FeatureNotSupported,
                *_BEHIND,
            ) as error:
                conn.pgconn.finish()
                # A statement timeout is an answer of the server, no sign of a stale connection.
                if reused and not isinstance(error, pg.QueryCanceled):
                    self._drop_idle()
                    raise _Stale from error
                raise
            except BaseException as error:
                if isinstance(error, psycopg.Error) and isinstance(translated(error), StatementFailed):
                    # The server has answered, and keeps the connection if it can.
                    self._give_back(conn)
                else:
                    # Cancelled, or an unforeseen error: the state of the connection is unknown.
                    conn.pgconn.finish()
                raise
            self._give_back(conn)
            return result
        finally:
            self._free.release()

    def _give_back(self, conn: Connection) -> None:
        if self._closed or conn.closed:
            conn.pgconn.finish()
        else:
            self._idle.append(conn)

    def _drop_idle(self) -> None:
        for conn in self._idle:
            conn.pgconn.finish()
        self._idle.clear()

    async def close(self) -> None:
        """Close idle connections now, and the others when their calls end. Idempotent."""
        self._closed = True
        try:
            while self._idle:
                await leave(self._idle.pop())
        finally:
            # After a cancellation there is no time to leave properly.
            self._drop_idle()


class _Stale(Exception):
    """A call failed on a connection that was idle before; a new one may work."""
