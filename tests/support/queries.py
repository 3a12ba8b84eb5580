"""What a query gives, now or when it is as a test wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg


async def asked(dsn: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    """The rows of a query."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(query.encode(), params)
        return await cursor.fetchall() if cursor.description else []


async def until_asked(
    dsn: str, query: str, wanted: list[tuple[Any, ...]] | Callable[[list[tuple[Any, ...]]], bool]
) -> list[tuple[Any, ...]]:
    """The rows of a query, once they are as wanted."""
    found: list[tuple[Any, ...]] = []
    try:
        async with asyncio.timeout(20):
            while not (
                wanted(found := await asked(dsn, query))
                if callable(wanted)
                else (found := await asked(dsn, query)) == wanted
            ):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{query} gives {found}") from None
    return found
