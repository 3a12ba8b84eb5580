"""Questions to the log, on connections that only read and leave nothing behind.

Each question is its own transaction, and settings last only as long, since afterwards a pooler may give the server's
side of the connection to somebody else. For the same reason nothing is prepared.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.rows import dict_row

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.migrate import WANTED_VERSION
from bridge.adapters.postgres.pool import Connection, Watchdog, plain_connection
from bridge.core.errors import SchemaBehind

QUERY_TIMEOUT = 60.0
"""Seconds for one question; statements of a running bridge have far less."""

_LOCAL: LiteralString = """
    select set_config('search_path', 'public', true), set_config('statement_timeout', %(ms)s, true),
           set_config('lock_timeout', %(ms)s, true), set_config('jit', 'off', true),
           set_config('DateStyle', 'ISO', true), set_config('extra_float_digits', '1', true)
    """


@asynccontextmanager
async def reading(dsn: str, name: str, seconds: float = QUERY_TIMEOUT) -> AsyncIterator[Connection]:
    """A connection for `ask`, which can't write.

    Raises StoreUnavailable, also for what psycopg raises in the block.
    """
    conn = await plain_connection(dsn, name)
    try:
        conn.prepare_threshold = None
        await conn.set_read_only(True)
        try:
            (found,) = await ask(
                conn, "select coalesce(max(version), 0) as version from schema_version", {}, seconds
            )
        except pg.UndefinedTable:
            found = {"version": 0}
        if found["version"] < WANTED_VERSION:
            raise SchemaBehind(found["version"], WANTED_VERSION)
        yield conn
    except (psycopg.Error, UnicodeError) as error:
        raise translated(error) from error
    finally:
        conn.pgconn.finish()


async def ask(
    conn: Connection, query: LiteralString, params: Mapping[str, object], seconds: float = QUERY_TIMEOUT
) -> list[dict[str, Any]]:
    """Run one statement, for which the server takes at most `seconds`; returns its rows, by column name.

    Raises psycopg's errors.
    """
    # The server enforces its limit first, unless it has fallen silent.
    async with Watchdog(conn, seconds * 1.1 + 2.0), conn.transaction():
        await conn.execute(_LOCAL, {"ms": f"{seconds * 1000:.0f}"})
        cursor = conn.cursor(row_factory=dict_row)
        await cursor.execute(query, params)
        return await cursor.fetchall()
