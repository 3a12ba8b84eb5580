"""Is there a pooler in between that gives each transaction to whatever server process is free?

`bridge serve` needs sessions: for its lock, which ends with its process, for settings and prepared statements. See
ADR 17.
"""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Connection, Watchdog, plain_connection
from bridge.core.errors import DatabaseUnsuitable

ROUNDS: Final = 5
"""How often both connections are asked: other users of a busy pool may hide it from one look."""
TRANSACTION_POOLED: Final = (
    "the connection goes through a pooler in transaction mode (its statements ran in other server processes each time):"
    " give BRIDGE_POSTGRES_DSN the address of the server itself, or of a pool in session mode"
)

_WHO: LiteralString = "select pg_backend_pid(), extract(epoch from pg_postmaster_start_time())::text"


async def refuse_transaction_pool(dsn: str, application_name: str) -> None:
    """Raise DatabaseUnsuitable behind a pooler in transaction or statement mode, StoreUnavailable without an answer."""
    if await transaction_pooled(dsn, application_name):
        raise DatabaseUnsuitable(TRANSACTION_POOLED)


async def transaction_pooled(dsn: str, application_name: str) -> bool:
    """Whether two connections that are open at the same time share server processes, or one of them changes its own.

    Neither happens without a pooler, or in session mode. Some pools hand out the process that came back last: then both
    connections share one. Others hand out the one that has waited longest: then each statement runs in another. Nothing
    is set, so nothing is left behind. Raises StoreUnavailable.
    """
    one = await plain_connection(dsn, application_name)
    try:
        two = await plain_connection(dsn, application_name)
        try:
            seen: tuple[set[object], set[object]] = (set(), set())
            for turn in range(ROUNDS):
                for conn, its in ((one, seen[0]), (two, seen[1]))[:: 1 if turn % 2 else -1]:
                    its.add(await _who(conn))
                    its.add(await _who(conn))
                if len(seen[0]) > 1 or len(seen[1]) > 1 or seen[0] & seen[1]:
                    return True
            return False
        finally:
            two.pgconn.finish()
    finally:
        one.pgconn.finish()


async def _who(conn: Connection) -> object:
    try:
        async with Watchdog(conn):
            return await (await conn.execute(_WHO, prepare=False)).fetchone()
    except psycopg.Error as error:
        raise translated(error) from error
