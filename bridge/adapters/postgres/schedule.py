"""The Schedule port on Postgres: each method is one statement, and one commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, LiteralString

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.rows import binaries, numbers, texts, times
from bridge.core.model.pushes import Recall
from bridge.core.model.scheduled import Due, Scheduled, Withdrawn

_ADD: LiteralString = "select schedule_pushes(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
_CLAIM: LiteralString = """
    select c.its_id, c.its_tenant, c.its_push, c.its_user, c.its_key, c.its_users, c.delivers, c.published,
           c.its_routing, c.its_body, c.its_properties, c.was_recalled, c.next_in
    from claim_scheduled(%s, %s, %s) c
    """


class PostgresSchedule:
    """Scheduled pushes in Postgres. Opens its connection when it is needed; needs no start."""

    def __init__(self, dsn: str, node: str) -> None:
        own = f"bridge {node} topics and times", CONNECTIONS["topics and times"]
        self.connections = Connections(dsn, *own)
        """The last values of topics use them, too."""

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self.connections.close()

    async def add(self, entries: Sequence[Scheduled]) -> None:
        """See the port."""
        if not entries:
            return
        params = (
            texts([e.id for e in entries]),
            texts([e.tenant for e in entries]),
            texts([e.push_id for e in entries]),
            texts([e.user for e in entries]),
            texts([e.collapse_key for e in entries]),
            numbers([e.users for e in entries]),
            times([e.deliver_at for e in entries]),
            times([e.published_at for e in entries]),
            binaries([e.key for e in entries]),
            binaries([e.body for e in entries]),
            binaries([e.properties for e in entries]),
        )
        await self._fetch(_ADD, params)

    async def claim(self, boot: str, limit: int, most_bytes: int) -> Due:
        """See the port."""
        rows = await self._fetch(_CLAIM, (boot, limit, most_bytes))
        entries = [Scheduled(*row[:12]) for row in rows if row[0] is not None]
        return Due(entries, rows[-1][12] if rows else None)

    async def done(self, ids: Collection[str]) -> None:
        """See the port."""
        if ids:
            await self._fetch("select forget_scheduled(%s)", (texts(list(ids)),))

    async def give_back(self, boot: str, ids: Collection[str]) -> None:
        """See the port."""
        if ids:
            await self._fetch("select give_back_scheduled(%s, %s)", (boot, texts(list(ids))))

    async def recall(self, recall: Recall, limit: int) -> Sequence[Withdrawn]:
        """See the port."""
        params = (recall.tenant, recall.push_id, recall.user, recall.collapse_key, limit)
        found = await self._fetch(
            "select r.its_push, r.its_users from recall_scheduled(%s, %s, %s, %s, %s) r", params
        )
        return [Withdrawn(push_id, users) for push_id, users in found]

    async def _fetch(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self.connections.run(work)
