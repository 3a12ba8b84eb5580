"""The ledger on real servers: who was connected, from when to when, and how each session ended."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from tests.servers.test_kept import session
from tests.support.bridges import bridge
from tests.support.queues import listening


async def asked(dsn: str, query: str, *params: object) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        return await (await conn.execute(query.encode(), params)).fetchall()


async def until_asked(dsn: str, query: str, wanted: list[tuple[Any, ...]], *params: object) -> None:
    found: list[tuple[Any, ...]] = []
    try:
        async with asyncio.timeout(20):
            while (found := await asked(dsn, query, *params)) != wanted:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {wanted}") from None


async def test_who_is_welcomed_is_in_the_ledger_and_who_has_left_is_no_longer_online(
    vhost: str, database: str
) -> None:
    async with listening(vhost) as _, bridge(vhost, database) as made:
        async with session(made.ws_port, "ledger-1") as (client, welcome):
            assert await asked(
                database, "select session, user_id, address, user_agent from who_is_online"
            ) == [(welcome["session"], "ledger-1", "127.0.0.1", "x")]
            await client.close()
        await until_asked(
            database,
            "select close_code, close_reason, seconds > 0 from session_history where user_id = 'ledger-1'",
            [(1000, "client", True)],
        )
        assert await asked(database, "select count(*) from who_is_online") == [(0,)]
