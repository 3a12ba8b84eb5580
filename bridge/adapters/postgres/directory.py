"""The Directory port on Postgres: the table of nodes, and the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from bridge import __version__
from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.rows import texts
from bridge.core.errors import StoreUnavailable
from bridge.core.model.nodes import Around, Neighbour
from bridge.core.ports.nodes import Holder

_LOOK: LiteralString = """
    select a.its_name, a.its_boot, a.its_queue, a.lives, a.knows_until, a.its_taking, a.right_now
    from look_around(%s, %s, %s, %s, %s::smallint[], %s) a
    """
_HOLDERS: LiteralString = """
    select distinct s.user_id, s.boot from session s
    where s.user_id = any (%s) and s.closed_at is null and s.boot <> %s collate "C"
    """
_SESSION_HOLDERS: LiteralString = """
    select s.session, s.user_id, case when s.closed_at is null and s.boot <> %s then s.boot else '' end
    from session s where s.session = any (%s)
    """
_EVERYONE: LiteralString = """
    select s.user_id, array_agg(distinct s.boot) from session s
    where s.closed_at is null and s.user_id > %s collate "C" and s.boot <> %s collate "C"
    group by s.user_id order by s.user_id limit %s
    """
_SUBSCRIBERS: LiteralString = "select t.its_user, t.its_boots from topic_subscribers(%s, %s, %s, %s, %s) t"


class PostgresDirectory:
    """Other nodes, by the database. Opens its connections when they are needed; needs no start."""

    def __init__(self, dsn: str, node: str, boot: str) -> None:
        self._node = node
        self._boot = boot
        self._connections = Connections(dsn, f"bridge {node} nodes", CONNECTIONS["nodes"])

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connections.close()

    async def look(self, queue: str, known_until: float | None, taking: Sequence[int] | None) -> Around:
        """See the port."""
        rows = await self._fetch(
            _LOOK, (self._node, self._boot, queue, known_until, _array(taking), __version__)
        )
        if not rows:
            raise StoreUnavailable("another process has the name of this node")
        others = [
            Neighbour(node, boot, its_queue, alive, knows, taking)
            for node, boot, its_queue, alive, knows, taking, _ in rows
            if boot != self._boot
        ]
        return Around(rows[0][6], others)

    async def holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """See the port."""
        found: dict[str, list[str]] = {}
        for user, boot in await self._fetch(_HOLDERS, (texts(list(users)), self._boot)):
            found.setdefault(user, []).append(boot)
        return found

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        """See the port."""
        found = await self._fetch(_SESSION_HOLDERS, (self._boot, texts(list(sessions))))
        return {session: Holder(user, boot) for session, user, boot in found}

    async def everyone(self, after: str, limit: int) -> Sequence[tuple[str, Sequence[str]]]:
        """See the port."""
        return [(user, boots) for user, boots in await self._fetch(_EVERYONE, (after, self._boot, limit))]

    async def subscribers(
        self, topic: str, after: str, limit: int, within: float
    ) -> Sequence[tuple[str, Sequence[str]]]:
        """See the port."""
        params = topic, after, self._boot, within, limit
        return [(user, boots) for user, boots in await self._fetch(_SUBSCRIBERS, params)]

    async def _fetch(
        self, query: LiteralString, params: Sequence[object] | Mapping[str, object]
    ) -> list[tuple[Any, ...]]:
        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self._connections.run(work)


def _array(numbers: Sequence[int] | None) -> str | None:
    """A literal of an array, as Postgres reads it (its page "Arrays")."""
    return None if numbers is None else "{" + ",".join(map(str, numbers)) + "}"
