"""What a query gives, now or when it is as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg


async def asked(dsn: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        return await _rows(conn, query, *params)


async def until_asked(
    dsn: str, query: str, wanted: list[tuple[Any, ...]] | Callable[[list[tuple[Any, ...]]], bool]
) -> list[tuple[Any, ...]]:
    """The rows of a query, once they are as wanted."""
    found: list[tuple[Any, ...]] = []
    try:
        async with asyncio.timeout(20), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            while True:
                found = await _rows(conn, query)
                if wanted(found) if callable(wanted) else found == wanted:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{query} gives {found}") from None


async def _rows(conn: psycopg.AsyncConnection, query: str, *params: object) -> list[tuple[Any, ...]]:
    cursor = await conn.execute(query.encode(), params)
    return await cursor.fetchall() if cursor.description else []
