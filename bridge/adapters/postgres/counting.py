"""The counts of the delivery log: hours in which something has changed are counted again, in the background.

Functions of the owner do it (`sql/schema.sql`, part 13). Each hour is one transaction: whoever is killed in between has
lost nothing but the work on one hour. Reports read these counts, pushes never do.
"""

from __future__ import annotations

import datetime
from operator import itemgetter
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import errors as pg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Connection, Watchdog, connect, leave

COUNT_LOCK = int.from_bytes(b"bridge\0\5", "big")
"""Advisory lock: one node at a time counts, others skip it. The counts are right without it, but are made twice."""
COUNT_TIMEOUT = 600.0
"""Seconds for one hour of the log."""
AT_ONCE = 6
"""Hours that are counted in one round; the others follow in the next."""
_DUE: LiteralString = "select h.at_day, h.at_hour from hours_to_count(%s) h"


class Counted(NamedTuple):
    """What one round did."""

    hours: int
    """How many hours it counted, each once for each day of the log."""
    left: int
    """How many are still to be counted."""


class Counting:
    """Counts hours. Safe to run on several nodes and at any time."""

    def __init__(self, dsn: str, *, application_name: str = "bridge counting") -> None:
        self._dsn = dsn
        self._application_name = application_name

    async def run_once(self, *, everything: bool = False, most: int = AT_ONCE) -> Counted:
        """Count hours that have changed, the newest first, but not more than `most`.

        `everything`: also look for rows that were added to days before yesterday. Idempotent, and safe to be cancelled.
        Raises StoreUnavailable, also where an hour can't be counted; all others were.
        """
        conn = await connect(self._dsn, self._application_name)
        try:
            return await self._run(conn, everything, most)
        except psycopg.Error as error:
            raise translated(error) from error
        finally:
            # Releases the advisory lock.
            await leave(conn)

    async def _run(self, conn: Connection, everything: bool, most: int) -> Counted:
        async with Watchdog(conn, COUNT_TIMEOUT):
            cursor = await conn.execute(
                "select pg_try_advisory_lock(%s), set_config('statement_timeout', %s, false)",
                (COUNT_LOCK, f"{COUNT_TIMEOUT * 900:.0f}"),
            )
            mine = await cursor.fetchone()
            if mine is None or not mine[0]:
                return Counted(0, 0)
            [(began,)] = await (await conn.execute("select clock_timestamp()")).fetchall()
            found = await (await conn.execute(_DUE, (everything,))).fetchall()
        due = sorted(set(found), key=itemgetter(1, 0), reverse=True)
        hours = due[:most]
        failed: psycopg.Error | None = None
        for day, hour in hours:
            try:
                async with Watchdog(conn, COUNT_TIMEOUT):
                    await conn.execute("select count_hour(%s, %s)", (day, hour))
            except (pg.QueryCanceled, pg.LockNotAvailable, psycopg.DataError) as error:
                # One hour may take too long, or be locked, or have an infinite time. The others do not wait for it.
                failed = error
        if failed is not None:
            raise failed
        if len(hours) == len(due):
            assert isinstance(began, datetime.datetime)
            async with Watchdog(conn, COUNT_TIMEOUT):
                await conn.execute("select note_counted(%s)", (began,))
        return Counted(len(hours), len(due) - len(hours))
