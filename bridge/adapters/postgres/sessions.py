"""The SessionLog port on Postgres: each method is one statement, and one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import msgspec

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.rows import booleans, nullable_numbers, texts, times
from bridge.core.errors import StoreUnavailable
from bridge.core.model.ledger import Closed, Entries, Noted

_NOTE: LiteralString = """
    select n.its_session, n.word from note_sessions(
        %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) n
    """
# The parts of a union are carried out in this order: sessions are there before what they subscribe to.
_NOTE_ALL: LiteralString = f"""
    {_NOTE}
    union all
    select null, null from note_subscriptions(%s, %s, %s, %s, %s)
    """
_END_DEAD: LiteralString = """
    select s.session, s.user_id, s.node,
           extract(epoch from s.opened_at)::float8, extract(epoch from s.closed_at)::float8, s.close_reason
    from end_dead_sessions(%s, %s, %s) s
    """


class PostgresSessions:
    """The ledger in Postgres. Opens its connection when it is needed; needs no start.

    `most`: sessions that a user may have on all nodes, 0: any number. Of more the oldest are not wanted any more, or,
    with `refuse`, the newest are refused.
    """

    def __init__(self, dsn: str, node: str, boot: str, most: int = 0, *, refuse: bool = False) -> None:
        self._most = most
        self._refuse = refuse
        self._node = node
        self._boot = boot
        self._connections = Connections(dsn, f"bridge {node} sessions", CONNECTIONS["sessions"])

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._connections.close()

    async def note(self, entries: Entries) -> Noted:
        """See the port."""
        opened, refreshed, subscribed, closed = entries
        params = (
            self._node,
            self._boot,
            texts([o.session for o in opened]),
            texts([o.user for o in opened]),
            times([o.opened_at for o in opened]),
            texts([o.mode for o in opened]),
            texts([o.device.address for o in opened]),
            texts([o.device.agent for o in opened]),
            texts([o.token_id for o in opened]),
            times([o.issued_at for o in opened]),
            times([o.expires_at for o in opened]),
            texts([f.session for f in refreshed]),
            texts([f.token_id for f in refreshed]),
            times([f.expires_at for f in refreshed]),
            texts([msgspec.json.encode(list(f.former)).decode() for f in refreshed]),
            texts([c.session for c in closed]),
            times([c.closed_at for c in closed]),
            nullable_numbers([c.code for c in closed]),
            texts([c.reason for c in closed]),
            self._most,
            self._refuse,
        )
        if subscribed or closed:
            rows = await self._fetch(_NOTE_ALL, (*params, *_topic_params(entries)))
            rows.remove((None, None))
        else:
            rows = await self._fetch(_NOTE, params)
        if any(word == "ended" and not session for session, word in rows):
            raise StoreUnavailable("another process has the name of this node")
        return Noted(
            [session for session, word in rows if word == "revoked"],
            [session for session, word in rows if word == "over"],
            [(session, word) for session, word in rows if word not in ("revoked", "over")],
        )

    async def end_dead(self, limit: int) -> Sequence[Closed]:
        """See the port."""
        rows = await self._fetch(_END_DEAD, (self._node, self._boot, limit))
        return [
            Closed(session, user, node, opened_at, closed_at, None, reason)
            for session, user, node, opened_at, closed_at, reason in rows
        ]

    async def _fetch(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self._connections.run(work)


def _topic_params(entries: Entries) -> tuple[str, ...]:
    """The parameters of note_subscriptions()."""
    subscribed = entries.subscribed
    return (
        texts([s.session for s in subscribed]),
        texts([s.user for s in subscribed]),
        texts([s.topic for s in subscribed]),
        booleans([s.on for s in subscribed]),
        texts([c.session for c in entries.closed]),
    )
