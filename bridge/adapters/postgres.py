"""The Store port on Postgres: each method is one statement, and one commit where it writes.

What the statements do is in the functions of `sql/`; rows and their literals are in `postgres_rows`,
connections and errors in `postgres_pool`.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from bridge.adapters.postgres_pool import Connection, Connections
from bridge.adapters.postgres_rows import (
    columns,
    key_params,
    lock_order,
    nullable_texts,
    numbers,
    owed_text,
    record_params,
    row_of,
    texts,
)
from bridge.errors import StoreUnavailable
from bridge.model import LateProof, PushKey, Reply, Row, RowKey
from bridge.ports import Written

RECENT_STEP = 4
"""How much further each look back for recent ids goes than the one before: one push may have many rows."""

_RECORD: LiteralString = (
    f"select r.ord, r.applied, {columns('(r.log)')} from record_rows({', '.join(['%s'] * 23)}) r"
)
_FIND: LiteralString = f"select {columns('l')} from find_rows(%s, %s) l"
_OWING: LiteralString = (
    f"select {columns('l')} from delivery_log l where final and owed is not null order by taken_at limit %s"
)
_RECENT = """
    select l.tenant, l.push_id from delivery_log l
    where l.final and l.day >= (select d.since from log_day d)
    order by l.taken_at desc limit %s
    """


class PostgresStore:
    """The rows in Postgres. Opens its connections when they are needed; needs no start."""

    def __init__(self, dsn: str, *, application_name: str = "bridge", connections: int = 4) -> None:
        self._connections = Connections(dsn, application_name, connections)

    async def close(self) -> None:
        """Close the connections; those in use close when their calls end. Idempotent."""
        self._connections.close()

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """See `Store.record`: one round trip and one commit, whatever was there before."""
        if not rows:
            return []
        places = sorted(range(len(rows)), key=lambda i: lock_order(rows[i].key))
        records = await self._fetch(_RECORD, record_params([rows[i] for i in places]))
        # record_rows() fails unless every row was inserted or is among those it returned.
        written = [Written(row, applied=True) for row in rows]
        for record in records:
            written[places[record[0] - 1]] = Written(row_of(record[2:]), record[1])
        return written

    async def find(self, keys: Sequence[PushKey]) -> Sequence[Row]:
        """See `Store.find`."""
        if not keys:
            return []
        tenants, push_ids = zip(*dict.fromkeys(keys), strict=True)
        return [row_of(r) for r in await self._fetch(_FIND, (texts(tenants), texts(push_ids)))]

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> None:
        """See `Store.owe`."""
        if debts:
            order = sorted(debts, key=lock_order)
            owed = nullable_texts([owed_text(debts[key]) for key in order])
            await self._fetch("select owe_rows(%s, %s, %s, %s)", (*key_params(order), owed))

    async def settle(self, keys: Sequence[RowKey]) -> None:
        """See `Store.settle`."""
        if keys:
            await self._fetch("select settle_rows(%s, %s, %s)", key_params(sorted(set(keys), key=lock_order)))

    async def owing(self, limit: int) -> Sequence[Row]:
        """See `Store.owing`."""
        return [row_of(r) for r in await self._fetch(_OWING, (limit,))]

    async def prove_late(self, proofs: Sequence[LateProof]) -> None:
        """See `Store.prove_late`; of two proofs for one row the earlier counts."""
        if proofs:
            earliest: dict[RowKey, float] = {}
            for proof in proofs:
                earliest[proof.key] = min(proof.proven_at, earliest.get(proof.key, proof.proven_at))
            order = sorted(earliest, key=lock_order)
            times = numbers([earliest[key] for key in order])
            await self._fetch("select prove_rows(%s, %s, %s, %s)", (*key_params(order), times))

    async def recent(self, limit: int) -> Sequence[PushKey]:
        """See `Store.recent`."""
        rows = limit
        while True:
            found = await self._fetch(_RECENT, (rows,))
            newest = list(dict.fromkeys(PushKey(*r) for r in found))[:limit]
            if len(newest) == limit or len(found) < rows:
                return newest[::-1]
            rows *= RECENT_STEP

    async def roll_day(self) -> datetime.date:
        """Move the log on to the day of the database's clock and return the log's day.

        Cheap where there is nothing to do; writers do the same by themselves, so that this only spares the
        first of a day the wait.
        """
        found = await self._fetch("select roll_day()", ())
        if not found:
            raise StoreUnavailable("roll_day() gave no answer")
        day = found[0][0]
        assert isinstance(day, datetime.date)
        return day

    async def _fetch(self, query: LiteralString, params: Sequence[object]) -> list[tuple[Any, ...]]:
        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self._connections.run(work)
