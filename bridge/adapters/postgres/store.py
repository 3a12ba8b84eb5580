"""The Store port on Postgres: each method is one statement, and one commit where it writes.

The functions of `sql/` say what the statements do. Rows and their literals are in `rows`, connections in `pool`, errors
in `errors`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, LiteralString

from bridge.adapters.postgres.pool import CONNECTIONS, Connection, Connections
from bridge.adapters.postgres.probe import refused, try_writing
from bridge.adapters.postgres.rows import (
    RECORD_PARAMS,
    all_applied,
    columns,
    in_lock_order,
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
from bridge.core.errors import LogTakesNoRows, StoreUnavailable
from bridge.core.model.outcomes import DELIVERED
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Difference, DueFallback, LateProof, Reply, Row, RowKey
from bridge.core.ports.store import (
    Collapse,
    IdPage,
    IdPlace,
    MailboxAsk,
    MailboxPage,
    OthersRows,
    RecallPage,
    RecallPlace,
    ResumeAsk,
    ResumePoint,
    RowPage,
    Superseded,
    Written,
)

OWED_BYTES = 4 * 1024 * 1024
"""Bytes of owed receipts, as the database keeps them, after which a page ends."""

# Short, so that the name of the function is in the part that pg_stat_activity shows, 1,024 bytes.
_RECORD: LiteralString = (
    f"select ord, applied, {columns('(l)')}"
    f" from record_rows({', '.join(['%s'] * RECORD_PARAMS)}) r (ord, applied, l)"
)
_FIND: LiteralString = f"select {columns('l', meta=False)} from find_rows(%s, %s, %s) l"
_OF_PUSH: LiteralString = f"select {columns('l', meta=False)} from rows_of_push(%s, %s, %s, %s) l"
_OWING: LiteralString = f"select {columns('l', meta=False)} from owing_rows(%s, %s) l"
_MAILBOX: LiteralString = f"""
    select m.ord, m.place, m.more, (m.log).push_id is not null, {columns("(m.log)", data=True)}
    from mailbox_pages(%s, %s, %s, %s, %s, %s, %s) m
    """
_EXPIRE: LiteralString = f"select {columns('l')} from expire_rows(%s) l"
_TRIM: LiteralString = f"select {columns('l')} from trim_stored(%s, %s, %s) l"
_SUPERSEDE: LiteralString = f"select s.held, {columns('(s.log)')} from supersede_rows(%s, %s, %s, %s, %s) s"
_RECALL_PUSH: LiteralString = f"""
    select r.reached, r.more, r.applied, {columns("(r.log)")} from recall_push(%s, %s, %s, %s) r
    """
_RECALL_STORED: LiteralString = f"select r.applied, {columns('(r.log)')} from recall_stored(%s, %s, %s, %s) r"
_RECALL_DELIVERED: LiteralString = f"""
    select r.place, r.more, (r.log).push_id is not null, r.held, {columns("(r.log)")}
    from recall_delivered(%s, %s, %s, %s, %s) r
    """
_FORGET_DATA: LiteralString = f"select {columns('f')} from forget_data(%s, %s, %s, %s) f"
_CANCEL_FALLBACKS: LiteralString = "select count(*) from cancel_fallbacks(%s, %s, %s, %s)"
_CLAIM: LiteralString = (
    f"select c.routing_key, {columns('(c.log)', data=True)} from claim_fallbacks(%s, %s, %s, %s) c"
)
_LAST_POSITION = """
    select coalesce((
        select l.position from delivery_log l where l.position is not null order by l.position desc limit 1), 0)
    """
_OF_OTHERS = """
    select d.since, (select coalesce(sum(t.rows), 0)::bigint from tally t where t.boot <> %s and t.day >= d.since)
    from log_day d
    """


class PostgresStore:
    """The rows in Postgres. Opens its connections when they are needed; needs no start."""

    def __init__(self, dsn: str, *, application_name: str = "bridge") -> None:
        self._connections = Connections(dsn, application_name, CONNECTIONS["rows"])
        # Statements for mailboxes may take long, and must not hold up the rows of live pushes.
        self._of_mailboxes = Connections(dsn, f"{application_name} mailbox", CONNECTIONS["mailbox"])

    async def close(self) -> None:
        """Close the connections; those in use close when their calls end. Idempotent."""
        try:
            await self._connections.close()
        finally:
            await self._of_mailboxes.close()

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """See `Store.record`: one round trip and one commit, whatever was there before.

        If the answer is lost on a connection that was idle before, the statement runs again by itself. What the first
        try wrote then counts as applied.
        """
        if not rows:
            return []
        places = in_lock_order(rows)
        tries = 0

        def again() -> None:
            nonlocal tries
            tries += 1

        records = await self._fetch(_RECORD, record_params([rows[i] for i in places]), again)
        # record_rows() fails unless every row was inserted or is among those it returned.
        written = all_applied(rows)
        for record in records:
            place, stored = places[record[0] - 1], row_of(record[2:])
            applied = record[1]
            if applied is False and tries > 1 and stored.ended_by(rows[place]):
                applied = True
            written[place] = Written(stored, applied)
        return written

    async def find(self, keys: Sequence[RowKey]) -> Sequence[Row]:
        """See `Store.find`."""
        if not keys:
            return []
        return [row_of(r) for r in await self._fetch(_FIND, key_params(dict.fromkeys(keys)))]

    async def find_push(self, push: PushKey, from_user: str, limit: int) -> RowPage:
        """See `Store.find_push`."""
        rows = [row_of(r) for r in await self._fetch(_OF_PUSH, (push.tenant, push.push_id, from_user, limit))]
        return RowPage(rows, _behind(rows[-1].key.user) if len(rows) >= limit else None)

    async def try_writing(self) -> None:
        """See `Store.try_writing`: a row is written, ended and rolled back."""

        async def work(conn: Connection) -> None:
            await try_writing(conn, "bridge probe")

        try:
            await self._connections.run(work)
        except LogTakesNoRows:
            raise
        except StoreUnavailable as error:
            if words := refused(error.__cause__):
                raise LogTakesNoRows(words) from error
            raise

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """See `Store.owe`."""
        if debts:
            order = sorted(debts, key=lock_order)
            owed = nullable_texts([owed_text(debts[key]) for key in order])
            return await self._held("select note_debts(%s, %s, %s, %s)", order, owed)
        return ()

    async def settle(self, paid: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """See `Store.settle`."""
        if paid:
            order = sorted(paid, key=lock_order)
            replies = nullable_texts([owed_text(paid[key]) for key in order])
            return await self._held("select settle_debts(%s, %s, %s, %s)", order, replies)
        return ()

    async def owing(self, limit: int) -> Sequence[Row]:
        """See `Store.owing`."""
        return [row_of(r) for r in await self._fetch(_OWING, (limit, OWED_BYTES))]

    async def prove_late(self, proofs: Sequence[LateProof]) -> Collection[RowKey]:
        """See `Store.prove_late`; of two proofs for one row the earlier counts."""
        return await self._first("select note_late_proofs(%s, %s, %s, %s)", proofs)

    async def differing(self, differences: Sequence[Difference]) -> Collection[RowKey]:
        """See `Store.differing`; of two for one row the earlier counts."""
        return await self._first("select note_differences(%s, %s, %s, %s)", differences)

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        """See `Store.ids`."""
        [(since, today)] = await self._fetch("select d.since, d.day from log_day d", ())
        place = IdPlace(since, "") if after is None else after
        [(found, reached, more)] = await self._fetch(
            "select i.ids, i.reached, i.more from ids_of_day(%s, %s, %s) i", (place.day, place.push_id, limit)
        )
        ids = found.split("\n") if found else []
        if more:
            return IdPage(ids, IdPlace(place.day, reached))
        tomorrow = place.day + datetime.timedelta(days=1)
        return IdPage(ids, IdPlace(tomorrow, "") if tomorrow <= today else None)

    async def rows_of_others(self, boot: str) -> OthersRows:
        """See `Store.rows_of_others`."""
        [(since, rows)] = await self._fetch(_OF_OTHERS, (boot,))
        return OthersRows(since, rows)

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        """See `Store.mailbox`: one statement for all asks."""
        if not asks:
            return []
        rows: list[list[Row]] = [[] for _ in asks]
        ends: list[tuple[int, bool]] = [(ask.until, False) for ask in asks]
        params = (
            texts([ask.user for ask in asks]),
            texts([ask.session for ask in asks]),
            numbers([ask.after for ask in asks]),
            numbers([ask.until for ask in asks]),
            nullable_numbers([ask.seen for ask in asks]),
            numbers([ask.rows for ask in asks]),
            numbers([ask.payload_bytes for ask in asks]),
        )
        for ord_, place, more, wanted, *record in await self._fetch(_MAILBOX, params, of=self._of_mailboxes):
            if wanted:
                rows[ord_ - 1].append(row_of(record))
            ends[ord_ - 1] = (place, more)
        return [
            MailboxPage(of_ask, place if more else ask.until, more)
            for ask, of_ask, (place, more) in zip(asks, rows, ends, strict=True)
        ]

    async def resume_points(self, asks: Sequence[ResumeAsk]) -> Sequence[ResumePoint | None]:
        """See `Store.resume_points`."""
        points: list[ResumePoint | None] = [None] * len(asks)
        if asks:
            params = texts([ask.user for ask in asks]), texts([ask.push_id for ask in asks])
            query: LiteralString = "select p.ord, p.seen, p.cut from resume_points(%s, %s) p"
            for place, seen, cut in await self._fetch(query, params, of=self._of_mailboxes):
                points[place - 1] = ResumePoint(seen, cut)
        return points

    async def dropped_since(self, places: Sequence[tuple[str, int]]) -> Sequence[bool]:
        """See `Store.dropped_since`."""
        if not places:
            return []
        params = texts([user for user, _ in places]), numbers([position for _, position in places])
        found = await self._fetch(
            "select d.ord, d.dropped from dropped_since(%s, %s) d order by d.ord",
            params,
            of=self._of_mailboxes,
        )
        return [dropped for _, dropped in found]

    async def expire(self, limit: int) -> Sequence[Row]:
        """See `Store.expire`; a row that another transaction holds is left to it and to the next call."""
        return [row_of(r) for r in await self._fetch(_EXPIRE, (limit,), of=self._of_mailboxes)]

    async def overfull(
        self, users: Sequence[str], pushes: int, payload_bytes: int
    ) -> Sequence[tuple[str, int]]:
        """See `Store.overfull`."""
        if not users:
            return []
        params = (texts(list(dict.fromkeys(users))), pushes, payload_bytes)
        query: LiteralString = "select o.user_id, o.until from overfull(%s, %s, %s) o"
        return [(user, until) for user, until in await self._fetch(query, params, of=self._of_mailboxes)]

    async def trim(self, places: Sequence[tuple[str, int]], limit: int) -> Sequence[Row]:
        """See `Store.trim`."""
        if not places:
            return []
        params = (texts([user for user, _ in places]), numbers([until for _, until in places]), limit)
        return [row_of(r) for r in await self._fetch(_TRIM, params, of=self._of_mailboxes)]

    async def users_with_mail(self, after: str, limit: int) -> Sequence[str]:
        """See `Store.users_with_mail`."""
        query: LiteralString = "select u from users_with_mail(%s, %s) u"
        return [user for (user,) in await self._fetch(query, (after, limit), of=self._of_mailboxes)]

    async def supersede(self, newer: Sequence[Collapse], limit: int) -> Superseded:
        """See `Store.supersede`."""
        if not newer:
            return Superseded([], [])
        params = (
            texts([new.tenant for new in newer]),
            texts([new.user for new in newer]),
            texts([new.collapse_key for new in newer]),
            numbers([new.position for new in newer]),
            limit,
        )
        records = await self._fetch(_SUPERSEDE, params)
        return Superseded(
            [row_of(r[1:]) for r in records if not r[0]], [row_of(r[1:]) for r in records if r[0]]
        )

    async def recall(self, recall: Recall, place: RecallPlace, limit: int) -> RecallPage:
        """See `Store.recall`."""
        if recall.push_id:
            params = (recall.tenant, recall.push_id, place.user, limit)
            records = await self._fetch(_RECALL_PUSH, params, of=self._of_mailboxes)
            written = [Written(row_of(r[3:]), r[2]) for r in records[:-1]]
            more = bool(records) and records[-1][1]
            return RecallPage(written, RecallPlace(_behind(records[-1][0])) if more else None)
        named = (recall.tenant, recall.user, recall.collapse_key)
        if place.position < 0:
            # Until none is left: somebody else may have ended some of this step in the meantime.
            records = await self._fetch(_RECALL_STORED, (*named, limit), of=self._of_mailboxes)
            written = [Written(row_of(r[1:]), r[0]) for r in records]
            more = any(w.applied for w in written)
            return RecallPage(written, RecallPlace(position=-1 if more else 0))
        records = await self._fetch(_RECALL_DELIVERED, (*named, place.position, limit), of=self._of_mailboxes)
        written = [Written(row_of(r[4:]), None if r[3] else False) for r in records if r[2]]
        more = bool(records) and records[0][1]
        return RecallPage(written, RecallPlace(position=records[0][0]) if more else None)

    async def forget_data(self, keys: Sequence[RowKey]) -> Sequence[Written]:
        """See `Store.forget_data`."""
        rows = [
            row for row in await self.find(keys) if row.outcome in DELIVERED and row.expires_at is not None
        ]
        if not rows:
            return ()
        days = texts(["" if row.day is None else row.day.isoformat() for row in rows])
        params = (days, *key_params([row.key for row in rows]))
        await self._fetch(_CANCEL_FALLBACKS, params, of=self._of_mailboxes)
        done = {
            row.key for row in map(row_of, await self._fetch(_FORGET_DATA, params, of=self._of_mailboxes))
        }
        return [Written(row, True if row.key in done else None) for row in rows]

    async def claim_fallbacks(
        self, node: str, boot: str, limit: int, payload_bytes: int
    ) -> Sequence[DueFallback]:
        """See `Store.claim_fallbacks`."""
        found = await self._fetch(_CLAIM, (node, boot, limit, payload_bytes), of=self._of_mailboxes)
        return [DueFallback(row_of(record), key) for key, *record in found]

    async def note_fallbacks(self, boot: str, rows: Sequence[Row]) -> Collection[RowKey]:
        """See `Store.note_fallbacks`."""
        return await self._claimed("select note_fallbacks(%s, %s, %s, %s, %s)", boot, rows)

    async def release_fallbacks(self, boot: str, rows: Sequence[Row], wait: float) -> Collection[RowKey]:
        """See `Store.release_fallbacks`."""
        return await self._claimed("select release_fallbacks(%s, %s, %s, %s, %s, %s)", boot, rows, wait)

    async def _claimed(
        self, query: LiteralString, boot: str, rows: Sequence[Row], *more: object
    ) -> Collection[RowKey]:
        """Change rows that this boot has claimed; returns those that another transaction holds."""
        if not rows:
            return ()
        rows = [rows[place] for place in in_lock_order(rows)]
        days = nullable_texts([None if row.day is None else row.day.isoformat() for row in rows])
        params = (boot, days, *key_params([row.key for row in rows]), *more)
        return {rows[at - 1].key for (at,) in await self._fetch(query, params, of=self._of_mailboxes)}

    async def last_position(self) -> int:
        """See `Store.last_position`."""
        [(position,)] = await self._fetch(_LAST_POSITION, ())
        assert isinstance(position, int)
        return position

    async def roll_day(self) -> datetime.date:
        """Move the log on to the day of the database's clock and return the log's day.

        Cheap if there is nothing to do. Writers do it by themselves; this only spares the first of a day the wait.
        """
        found = await self._fetch("select roll_day()", ())
        if not found:
            raise StoreUnavailable("roll_day() gave no answer")
        day = found[0][0]
        assert isinstance(day, datetime.date)
        return day

    async def _first(
        self, query: LiteralString, noted: Sequence[LateProof] | Sequence[Difference]
    ) -> Collection[RowKey]:
        """Note for each row when this first happened to it; returns the rows that another transaction holds."""
        earliest: dict[RowKey, float] = {}
        for one in noted:
            earliest[one.key] = min(one.at, earliest.get(one.key, one.at))
        if not earliest:
            return ()
        order = sorted(earliest, key=lock_order)
        return await self._held(query, order, numbers([earliest[key] for key in order]))

    async def _held(
        self, query: LiteralString, keys: Sequence[RowKey], values: str | None
    ) -> Collection[RowKey]:
        """Run a statement on rows; returns the rows that another transaction holds."""
        return {keys[ord_ - 1] for (ord_,) in await self._fetch(query, (*key_params(keys), values))}

    async def _fetch(
        self,
        query: LiteralString,
        params: Sequence[object],
        trying: Callable[[], None] = lambda: None,
        *,
        of: Connections | None = None,
    ) -> list[tuple[Any, ...]]:
        """Run a statement on one of the connections `of`; `trying` is called before each try."""

        async def work(conn: Connection) -> list[tuple[Any, ...]]:
            trying()
            cursor = conn.cursor(binary=True)
            await cursor.execute(query, params, prepare=True)
            return await cursor.fetchall()

        return await (of or self._connections).run(work)


def _behind(user: str) -> str:
    """The first text after this one in bytewise order."""
    return user + "\x01"
