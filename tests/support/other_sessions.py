"""Other sessions of the database, as operators and other programs have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg


async def ask(dsn: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(query.encode(), params or None)
        return await cursor.fetchall() if cursor.description else []


async def eventually(dsn: str, query: str, *params: object) -> None:
    """Return when the query gives true."""
    async with asyncio.timeout(10), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while True:
            found = await (await conn.execute(query.encode(), params or None)).fetchone()
            if found is not None and found[0]:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def transaction(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A transaction of somebody else, committed at the end of the block."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("set search_path to public")
        yield conn
