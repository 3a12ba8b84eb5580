"""The ActionLog port on Postgres: rows of table `ops_action`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import LiteralString

import msgspec

from bridge.adapters.actions import Action
from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections

# Each may run again on a new connection, after one that was lost.
_BEGIN: LiteralString = """
    insert into ops_action (id, actor, action, target, node) values (%s, %s, %s, %s, %s) on conflict do nothing
    """
_END: LiteralString = """
    update ops_action set result = %s, facts = %s, ended_at = clock_timestamp() where id = %s and result = 'begun'
    """


class PostgresActions:
    """Actions in Postgres. Opens its connection when it is needed; needs no start."""

    def __init__(self, dsn: str, node: str) -> None:
        self._connections = Connections(dsn, f"bridge {node} actions", CONNECTIONS["actions"])

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._connections.close()

    async def begin(self, action_id: str, action: Action, node: str) -> None:
        """See the port."""
        await self._run(_BEGIN, (action_id, action.actor, action.name, _json(action.target), node))

    async def end(self, action_id: str, result: str, facts: Mapping[str, object]) -> None:
        """See the port."""
        await self._run(_END, (result, _json(facts), action_id))

    async def _run(self, query: LiteralString, params: Sequence[object]) -> None:
        async def work(conn: Connection) -> None:
            await conn.execute(query, params)

        await self._connections.run(work)


def _json(values: Mapping[str, object]) -> str:
    return msgspec.json.encode(values).decode()
