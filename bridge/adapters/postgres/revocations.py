"""The RevocationLog port on Postgres: each method is one statement, and one commit where it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.ports.revocations import Marked, RevocationPage

_REVOKE: LiteralString = "select revoke_tokens(%s, %s, %s, %s)"
# The mark is read in the snapshot of the rows: marks rise in the order of commits, so all up to it are among them.
_AFTER: LiteralString = """
    select m.mark, r.mark, r.user_id, extract(epoch from r.before)::float8, r.jti, r.session,
           extract(epoch from r.kept_until)::float8,
           extract(epoch from clock_timestamp() - n.seen_at)::float8, extract(epoch from n.ended_at)::float8
    from revocation_mark m
    left join node n on n.name = %s and n.boot = %s
    left join lateral (
        select * from revocation r where r.mark > %s order by r.mark limit %s) r on true
    order by r.mark
    """
_ENDED: LiteralString = """
    select s.session from session s where s.boot = %s collate "C" and s.close_reason = 'node_died'
    """
_CONFIRM: LiteralString = "select confirm_revocations(%s, %s, %s, %s, %s, %s)"
_ANSWER: LiteralString = "select a.node, a.has_read, a.sessions from revocation_answers(%s) a"
_GONE: LiteralString = "select g from revocation_gone(%s) g"


class PostgresRevocations:
    """Revocations in Postgres. Opens its connection when it is needed; needs no start.

    `boot`: of the node that reads and confirms them; without one they are only made, and asked for. `token_seconds`:
    for how long a token may be good; from its first `confirm` on, revocations are kept for as long.
    """

    def __init__(self, dsn: str, node: str, boot: str = "", token_seconds: float = 0.0) -> None:
        self._node = node
        self._boot = boot
        self._keep = token_seconds
        self._connections = Connections(dsn, f"bridge {node} revocations", CONNECTIONS["revocations"])
        # Whoever reads must not wait for those who ask: a node that has not read sends nothing.
        self._asking = Connections(dsn, f"bridge {node} revoking", CONNECTIONS["revoking"])

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        await self._connections.close()
        await self._asking.close()

    async def revoke(self, revocation: Revocation) -> int:
        """See the port."""
        named = revocation.user or None, revocation.token_id or None, revocation.session or None
        user, token_id, session = named
        before = revocation.before if user else None
        rows = await self._ask(_REVOKE, (user, before, token_id, session))
        return int(rows[0][0])

    async def after(self, mark: int, limit: int) -> RevocationPage:
        """See the port."""
        rows = await self._fetch(_AFTER, (self._node, self._boot, mark, limit))
        found = [
            Marked(row[1], Revocation(row[2] or "", row[3] or 0.0, row[4] or "", row[5] or ""), row[6])
            for row in rows
            if row[1] is not None
        ]
        seen = rows[0][7:]
        if len(found) == limit:
            return RevocationPage(found, found[-1].mark, True, *seen)
        return RevocationPage(found, max(mark, rows[0][0]), False, *seen)

    async def ended(self) -> Sequence[str]:
        """See the port."""
        return [session for (session,) in await self._fetch(_ENDED, (self._boot,))]

    async def confirm(self, mark: int, closed: Mapping[int, int]) -> None:
        """See the port."""
        told = {mark: count for mark, count in closed.items() if count}
        params = self._node, self._boot, self._keep, mark, list(told), list(told.values())
        await self._fetch(_CONFIRM, params)

    async def answer(self, mark: int) -> RevocationAnswer:
        """See the port."""
        rows = await self._ask(_ANSWER, (mark,))
        return RevocationAnswer(
            sum(sessions for _, _, sessions in rows),
            tuple(node for node, has_read, _ in rows if has_read),
            tuple(node for node, has_read, _ in rows if not has_read),
        )

    async def gone(self, mark: int) -> Sequence[str]:
        """See the port."""
        return [node for (node,) in await self._ask(_GONE, (mark,))]

    async def _fetch(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        return await _fetched(self._connections, query, params)

    async def _ask(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        return await _fetched(self._asking, query, params)


async def _fetched(
    connections: Connections, query: LiteralString, params: Sequence[object]
) -> list[tuple[Any, ...]]:
    async def work(conn: Connection) -> list[tuple[Any, ...]]:
        cursor = conn.cursor(binary=True)
        await cursor.execute(query, params, prepare=True)
        return await cursor.fetchall()

    return await connections.run(work)
