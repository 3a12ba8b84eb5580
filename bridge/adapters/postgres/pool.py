"""Connections to Postgres.

Every call of the adapters is one statement that may be run again, so a few connections that are made when
they are needed and dropped at the first doubt are enough: nothing runs in the background, and after an
outage the next call works. (psycopg_pool waits longer and longer between its tries, up to minutes.)
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

from bridge.adapters.postgres.conninfo import check_encoding, conninfo_of
from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.migrate import WANTED_VERSION, ahead
from bridge.core.errors import DatabaseUnsuitable, SchemaBehind, StatementFailed, StoreUnavailable

log = logging.getLogger("bridge")

CONNECT_TIMEOUT = 2
"""Seconds for a connection, and for one of ours to become free; libpq rounds less than 2 up to it."""
STATEMENT_TIMEOUT = 5.0
"""Seconds that the server gives a statement (statement_timeout)."""
LOCK_TIMEOUT = 1.5
"""Seconds that a statement may wait for a lock (lock_timeout)."""
CALL_TIMEOUT = 7.0
"""Seconds after which the socket is shut down under a call: the last line, should all else stay silent."""
LEAVE_TIMEOUT = 1.0
"""Seconds to clean up a session before its connection is closed."""
CONNECTIONS: Final[Mapping[str, int]] = {
    "rows": 4,
    "mailbox": 4,
    "lease": 1,
    "sweep": 1,
    "figures": 1,
    "upkeep": 1,
    "audit": 1,
    "look-ups": 2,
}
"""How many connections `bridge serve` has at most, by what they are for; each is opened when it is needed."""
CONNECTIONS_NEEDED: Final = sum(CONNECTIONS.values())
"""All of them: `bridge check` opens as many at once."""
TRIES = 3
"""How often a call is tried that lost against another transaction."""

T = TypeVar("T")
Connection = psycopg.AsyncConnection[tuple[object, ...]]

_BEHIND = (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedColumn, pg.InvalidSchemaName)
_LOST_A_RACE = (pg.DeadlockDetected, pg.SerializationFailure, pg.LockNotAvailable)
_DEFAULTS: dict[str, int] = {
    "connect_timeout": CONNECT_TIMEOUT,
    # A peer that is gone without a word is noticed within 3 + 2 * 2 seconds, with data under way or without.
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
    # Once for each version: every connection finds it again.
    log.warning("%s", ahead(version))


async def plain_connection(dsn: str, application_name: str) -> Connection:
    """Open a connection that speaks UTF8 and commits each statement, with nothing set in its session.

    Raises StoreUnavailable, and DatabaseUnsuitable for another encoding.
    """
    try:
        conn = await psycopg.AsyncConnection.connect(
            conninfo_of(dsn, application_name, **_DEFAULTS), autocommit=True
        )
    except (psycopg.Error, OSError) as error:
        raise translated(error) from error
    try:
        check_encoding(conn)
    except DatabaseUnsuitable:
        conn.pgconn.finish()
        raise
    return conn


async def _set_up(conn: Connection) -> None:
    # A pooler may give out what a session that was killed has left, where it is not told to clean up.
    await conn.execute("deallocate all")
    # By statement rather than by `options`: those may be in use in the DSN, and proxies refuse them.
    await conn.execute(
        """
        select pg_advisory_unlock_all(),
               set_config('search_path', 'public', false),
               set_config('default_transaction_isolation', 'read committed', false),
               set_config('statement_timeout', %s, false),
               set_config('lock_timeout', %s, false),
               -- Compiling a plan over all partitions may take seconds, and running it a millisecond.
               set_config('jit', 'off', false),
               -- A role or a database may have others, and with those times and lists are read and written differently.
               set_config('DateStyle', 'ISO', false),
               set_config('extra_float_digits', '1', false),
               set_config('array_nulls', 'on', false),
               -- A receipt says what a crash of the server does not undo. (Stronger settings stay as they are.)
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

    Cancelling it instead would have psycopg ask the server to cancel, and wait for an answer that a silent
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
    """Shut the socket of a connection down: whoever waits on it reads its end. Never raises."""
    if conn.closed:
        return
    # A duplicate, since closing the descriptor itself is libpq's business.
    with socket.socket(fileno=os.dup(conn.fileno())) as duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Not connected any more: the wait on it ends without our help.
            return


async def leave(conn: Connection) -> None:
    """Close a connection with nothing left in its session. Never raises for a database that is away.

    A pooler may lend the server's side of it to somebody else, with its settings and locks, where it is not told to
    clean up (`server_reset_query` of PgBouncer).
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
    """A few connections, lent to one call each. Opens them when they are needed."""

    def __init__(self, dsn: str, application_name: str, size: int) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work`, which may be run several times, on a connection; raises only errors of the bridge.

        A connection that had been idle may be stale, or know an older schema: then a new one has a try.
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
                # A statement timeout is the server's answer, not a sign of a stale connection.
                if reused and not isinstance(error, pg.QueryCanceled):
                    self._drop_idle()
                    raise _Stale from error
                raise
            except BaseException as error:
                if isinstance(error, psycopg.Error) and isinstance(translated(error), StatementFailed):
                    # The server has answered, and goes on with the connection where it can.
                    self._give_back(conn)
                else:
                    # Interrupted, or an error nobody has thought of: its state is unknown.
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
        """Close what is idle now, and the others when their calls end. Idempotent."""
        self._closed = True
        try:
            while self._idle:
                await leave(self._idle.pop())
        finally:
            # Interrupted: then there is no time for manners.
            self._drop_idle()


class _Stale(Exception):
    """A call failed on a connection that had been idle: worth a try on a new one."""
