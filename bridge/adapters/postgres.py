"""The Store port on Postgres: each method is one statement, and one commit where it writes.

What the statements do is in the functions of `sql/`; rows and their literals are in `postgres_rows`,
connections and errors in `postgres_pool`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, LiteralString

from bridge.adapters.postgres_pool import Connection, Connections
from bridge.adapters.postgres_rows import (
    RECORD_PARAMS,
    columns,
    key_params,
    lock_order,
    nullable_numbers,
    nullable_texts,
    numbers,
    owed_text,
    record_params,
    row_of,
    texts,
)
from bridge.errors import StoreUnavailable
from bridge.model import LateProof, PushKey, Recall, Reply, Row, RowKey
from bridge.ports import Collapse, MailboxAsk, ResumeAsk, ResumePoint, Written

NEWEST = 10_000
"""Among how many of the newest rows the last position is looked for: a restart needs no more than that."""
RECENT_STEP = 4
"""How much further each look back for recent ids goes than the one before: one push may have many rows."""

_RECORD: LiteralString = (
    f"select r.ord, r.applied, {columns('(r.log)')} from record_rows({', '.join(['%s'] * RECORD_PARAMS)}) r"
)
_FIND: LiteralString = f"select {columns('l')} from find_rows(%s, %s) l"
_OWING: LiteralString = f"select {columns('l')} from owing_rows(%s) l"
_RECENT = """
    select l.tenant, l.push_id from delivery_log l
    where l.day >= (select d.since from log_day d)
    order by l.taken_at desc limit %s
    """
_MAILBOX: LiteralString = f"select m.ord, {columns('(m.log)')} from mailbox_rows(%s, %s, %s, %s, %s, %s) m"
_EXPIRE: LiteralString = f"select {columns('l')} from expire_rows(%s) l"
_TRIM: LiteralString = f"select {columns('l')} from trim_rows(%s, %s, %s) l"
_SUPERSEDE: LiteralString = f"select {columns('l')} from supersede_rows(%s, %s, %s, %s) l"
_RECALL: LiteralString = f"select r.applied, {columns('(r.log)')} from recall_rows(%s, %s, %s, %s) r"
_LAST_POSITION = """
    select coalesce(max(newest.position), 0) from (
        select l.position from delivery_log l
        where l.day >= (select d.since from log_day d)
        order by l.taken_at desc limit %s) as newest
    """


class PostgresStore:
    """The rows in Postgres. Opens its connections when they are needed; needs no start."""

    def __init__(self, dsn: str, *, application_name: str = "bridge", connections: int = 4) -> None:
        self._connections = Connections(dsn, application_name, connections)

    async def close(self) -> None:
        """Close the connections; those in use close when their calls end. Idempotent."""
        self._connections.close()

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """See `Store.record`: one round trip and one commit, whatever was there before.

        Where the answer was lost on a connection that had been idle, it runs again by itself: what the first
        try has written then counts as applied.
        """
        if not rows:
            return []
        places = sorted(range(len(rows)), key=lambda i: lock_order(rows[i].key))
        tries = 0

        def again() -> None:
            nonlocal tries
            tries += 1

        records = await self._fetch(_RECORD, record_params([rows[i] for i in places]), again)
        # record_rows() fails unless every row was inserted or is among those it returned.
        written = [Written(row, applied=True) for row in rows]
        for record in records:
            place, stored = places[record[0] - 1], row_of(record[2:])
            written[place] = Written(stored, record[1] or (tries > 1 and stored.ended_by(rows[place])))
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

    async def settle(self, paid: Mapping[RowKey, tuple[Reply, ...]]) -> None:
        """See `Store.settle`."""
        if paid:
            order = sorted(paid, key=lock_order)
            replies = nullable_texts([owed_text(paid[key]) for key in order])
            await self._fetch("select settle_rows(%s, %s, %s, %s)", (*key_params(order), replies))

    async def owing(self, limit: int) -> Sequence[Row]:
        """See `Store.owing`."""
        return [row_of(r) for r in await self._fetch(_OWING, (limit,))]

    async def prove_late(self, proofs: Sequence[LateProof]) -> None:
        """See `Store.prove_late`; of two proofs for one row the earlier counts."""
        if proofs:
            earliest: dict[RowKey, float] = {}
            for proof in proofs:
                earliest[proof.key] = min(proof.at, earliest.get(proof.key, proof.at))
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

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[Sequence[Row]]:
        """See `Store.mailbox`: one statement for all asks."""
        pages: list[list[Row]] = [[] for _ in asks]
        if asks:
            params = (
                texts([ask.user for ask in asks]),
                numbers([ask.after for ask in asks]),
                numbers([ask.until for ask in asks]),
                nullable_numbers([ask.seen for ask in asks]),
                numbers([ask.rows for ask in asks]),
                numbers([ask.payload_bytes for ask in asks]),
            )
            for record in await self._fetch(_MAILBOX, params):
                pages[record[0] - 1].append(row_of(record[1:]))
        return pages

    async def resume_points(self, asks: Sequence[ResumeAsk]) -> Sequence[ResumePoint | None]:
        """See `Store.resume_points`."""
        points: list[ResumePoint | None] = [None] * len(asks)
        if asks:
            params = texts([ask.user for ask in asks]), texts([ask.push_id for ask in asks])
            for place, seen, cut in await self._fetch(
                "select p.ord, p.seen, p.cut from resume_points(%s, %s) p", params
            ):
                points[place - 1] = ResumePoint(seen, cut)
        return points

    async def dropped_since(self, places: Sequence[tuple[str, int]]) -> Sequence[bool]:
        """See `Store.dropped_since`."""
        if not places:
            return []
        params = texts([user for user, _ in places]), numbers([position for _, position in places])
        found = await self._fetch(
            "select d.ord, d.dropped from dropped_since(%s, %s) d order by d.ord", params
        )
        return [dropped for _, dropped in found]

    async def expire(self, limit: int) -> Sequence[Row]:
        """See `Store.expire`; a row that another transaction holds is left to it and to the next call."""
        return [row_of(r) for r in await self._fetch(_EXPIRE, (limit,))]

    async def trim(self, users: Sequence[str], pushes: int, payload_bytes: int) -> Sequence[Row]:
        """See `Store.trim`."""
        if not users:
            return []
        params = (texts(list(dict.fromkeys(users))), pushes, payload_bytes)
        return [row_of(r) for r in await self._fetch(_TRIM, params)]

    async def supersede(self, newer: Sequence[Collapse]) -> Sequence[Row]:
        """See `Store.supersede`."""
        if not newer:
            return []
        params = (
            texts([new.tenant for new in newer]),
            texts([new.user for new in newer]),
            texts([new.collapse_key for new in newer]),
            numbers([new.position for new in newer]),
        )
        return [row_of(r) for r in await self._fetch(_SUPERSEDE, params)]

    async def recall(self, recall: Recall) -> Sequence[Written]:
        """See `Store.recall`."""
        records = await self._fetch(
            _RECALL, (recall.tenant, recall.push_id, recall.user, recall.collapse_key)
        )
        return [Written(row_of(r[1:]), r[0]) for r in records]

    async def last_position(self) -> int:
        """See `Store.last_position`."""
        [(position,)] = await self._fetch(_LAST_POSITION, (NEWEST,))
        assert isinstance(position, int)
        return position

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

    async def _fetch(
        self, query: LiteralString, params: Sequence[object], trying: Callable[[], None] = lambda: None
    ) -> list[tuple[Any, ...]]:
        """Run a statement; `trying` is called before each try."""

        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            trying()
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await self._connections.run(work)
