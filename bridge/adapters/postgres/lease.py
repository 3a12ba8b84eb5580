"""The Lease port on Postgres: a row that is renewed every second, and a lock that ends with its holder.

The row (`node.seen_at`, the database's time) is the lease. The session-level advisory lock, on its own connection, only
makes a restart quick: a killed process loses it at once, so the next boot of its name need not wait for the lease to
run out.

| the lock is | the lease is | then |
|---|---|---|
| free | expired, or there is none | claim |
| free | valid, renewed since the server started | the holder's process is gone: claim |
| free | valid, renewed before the server started | the restart took the lock, the process may live: wait |
| held | expired | a half-open connection or a stopped process: claim; if it comes back, its renewal fails |
| held | valid | it lives: wait, then NodeNameTaken |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import errors as pg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections, Watchdog, connect, leave
from bridge.adapters.postgres.pooling import refuse_transaction_pool
from bridge.adapters.postgres.rows import columns, row_of
from bridge.core.errors import NodeNameTaken
from bridge.core.model.rows import Row
from bridge.core.ports.store import LEASE_SECONDS, NO_ACCOUNT, Account

CLAIM_SECONDS = LEASE_SECONDS + 1.0
"""Seconds that a claim waits for a predecessor to end; a lease that is not renewed has expired by then."""
CLAIM_STEP = 0.2
"""Seconds between two looks while a claim waits."""
LOCK_CLASS = int.from_bytes(b"brdg", "big")
"""First half of the advisory lock's key; the second is the hash of the name."""

_LOOK = """
    select pg_try_advisory_lock(%s, hashtext(%s)) as locked,
           n.boot,
           n.seen_at > clock_timestamp() - make_interval(secs => %s) as good,
           n.seen_at > pg_postmaster_start_time() as since_start
    from (values (1)) as always left join node n on n.name = %s
    """
_RENEW: LiteralString = """
    select renew_node(%s, %s, %s, %s, %s),
           exists (select from node n where n.name = %s and n.boot = %s and n.stopping = n.boot)
    """
_STOPPING: LiteralString = """
    update node set stopping = boot, stopping_since = clock_timestamp()
    where name = %s and boot = %s and stopping is distinct from boot
    """
_END_DEAD: LiteralString = f"select {columns('l')} from end_dead_rows(%s, %s, %s) l"


class PostgresLease:
    """One boot's claim on its node name. Call its methods one at a time."""

    def __init__(self, dsn: str, node: str, boot: str) -> None:
        self._dsn = dsn
        self._node = node
        self._boot = boot
        self._application_name = f"bridge {node} lease"
        self._conn: Connection | None = None
        self._locked = False
        self._connections = Connections(dsn, f"bridge {node} sweep", CONNECTIONS["sweep"])

    async def check(self) -> None:
        """See `Lease.check`: a pooler may give the session, with its lock and its settings, to others."""
        await refuse_transaction_pool(self._dsn, self._application_name)

    async def claim(self) -> None:
        """See `Lease.claim`. Takes a free name at once; waits up to six seconds for a predecessor."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CLAIM_SECONDS
        try:
            while not await self._claim_once():
                if loop.time() >= give_up:
                    raise NodeNameTaken(self._node)
                await asyncio.sleep(CLAIM_STEP)
        except BaseException:
            # Refused or cancelled: without the name, the lock must not be kept.
            self._disconnect()
            raise

    async def _claim_once(self) -> bool:
        locked, boot, good, since_start = await self._ask(
            _LOOK, (LOCK_CLASS, self._node, LEASE_SECONDS, self._node)
        )
        # A session lock that is taken twice must be released twice; ours is only released by closing.
        self._locked = self._locked or bool(locked)
        if boot is not None and boot != self._boot and good and not (self._locked and since_start):
            return False
        (claimed,) = await self._ask("select claim_node(%s, %s, %s)", (self._node, self._boot, boot))
        return bool(claimed)

    async def renew(self, account: Account = NO_ACCOUNT) -> bool:
        """See `Lease.renew`. Connects again if the connection was lost, and takes the lock when it can."""
        begun, with_row, on_their_way, _ = account
        ours, stops = await self._ask(
            _RENEW, (self._node, self._boot, begun, with_row, on_their_way, self._node, self._boot)
        )
        if not ours:
            self._disconnect()
            raise NodeNameTaken(self._node)
        if not self._locked:
            (self._locked,) = await self._ask(
                "select pg_try_advisory_lock(%s, hashtext(%s))", (LOCK_CLASS, self._node)
            )
        return bool(stops)

    async def stopping(self) -> None:
        """See `Lease.stopping`."""

        async def work(conn: Connection) -> None:
            await conn.execute(_STOPPING, (self._node, self._boot))

        await self._connections.run(work)

    async def end_dead(self, limit: int) -> Sequence[Row]:
        """See `Lease.end_dead`. Rows of other names only after this node has renewed for as long as a lease lasts.

        This matters after an outage of the database: all leases are old then, and the first node to renew must not
        take the others for dead.
        """

        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(_END_DEAD, (self._node, self._boot, limit), prepare=True)
            return await cursor.fetchall()

        return [row_of(record) for record in await self._connections.run(work)]

    async def release(self) -> None:
        """See `Lease.release`. Always closes; this object can't be used afterwards."""
        try:
            await self._ask(
                "with gone as (delete from node where name = %s and boot = %s returning 1) select count(*) from gone",
                (self._node, self._boot),
            )
        finally:
            try:
                if self._conn is not None:
                    await leave(self._conn)
            finally:
                await self.close()

    async def close(self) -> None:
        """Close the connections and keep the name: the lease runs out by itself. Idempotent."""
        self._disconnect()
        await self._connections.close()

    async def _ask(self, query: LiteralString, params: Sequence[object]) -> tuple[Any, ...]:
        """Run a query that gives one row, on the connection that holds the lock.

        A connection that turns out to be dead is replaced once; the lock must then be taken again.
        """
        while True:
            reused = self._conn is not None
            conn = self._conn or await connect(self._dsn, self._application_name)
            self._conn = conn
            try:
                async with Watchdog(conn):
                    row = await (await conn.execute(query, params)).fetchone()
            except psycopg.Error as error:
                self._disconnect()
                if reused and not isinstance(error, pg.QueryCanceled):
                    continue
                raise translated(error) from error
            except BaseException:
                # Cancelled: the state of the connection is unknown.
                self._disconnect()
                raise
            assert row is not None
            return row

    def _disconnect(self) -> None:
        self._locked = False
        if self._conn is not None:
            self._conn.pgconn.finish()
            self._conn = None
