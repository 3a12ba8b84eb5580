"""Databases of every version that there has been, with rows in them, are upgraded: no row changes, and all goes on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import LiteralString

import psycopg
import pytest
from msgspec.structs import replace

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.migrate import MIGRATIONS
from bridge.adapters.postgres.rows import columns, lock_order, record_params, row_of
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import DAYS_AHEAD, Upkeep
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import LateProof, Reply, Row, RowKey
from bridge.core.ports.store import MailboxAsk
from tests.support.rows import EVER, NOON, ids, kept_row, light, row, undated

NODES, KEPT, SHARED = 2, 4, 7
"""The versions that brought nodes, kept pushes, and content that rows share."""
BIG = b'{"text": "' + b"x" * 1000 + b'"}'
Record = dict[str, object]
OWED = (Reply("answers", "c1"), Reply("answers", "c2"))


class OldProgram:
    """What the program of a version does with its database."""

    def __init__(self, conn: psycopg.Connection, version: int) -> None:
        self._conn = conn
        self._version = version
        found = conn.execute("select pronargs from pg_proc where proname = 'record_rows'").fetchone()
        assert found is not None
        # A parameter is only ever appended, so what each version knew are the first ones.
        self._parameters: int = found[0]

    def claim(self) -> None:
        """It takes its name, where its version had nodes."""
        if self._version >= NODES:
            assert self._conn.execute("select claim_node('n1', 'b1', '')").fetchone() == (True,)

    def record(self, rows: Sequence[Row]) -> list[tuple[str, bool | None]]:
        """Write rows; of those that were there, their ids and whether they were changed."""
        marks = ", ".join(["%s"] * self._parameters)
        query = f"select (log).push_id, applied from record_rows({marks})".encode()
        params = record_params(sorted(rows, key=lambda r: lock_order(r.key)))
        return self._conn.execute(query, params[: self._parameters]).fetchall()

    def rows(self) -> Iterator[Row]:
        """What may stand in the log from yesterday, in this version."""
        yield row("pending", outcome=Outcome.PENDING)
        yield row("left", outcome=Outcome.PENDING)
        yield row("ended", meta=b'{"a": "b"}')
        yield row("late", outcome=Outcome.UNKNOWN, reason=Reason.NO_PROOF, proven_at=None)
        yield row("owing", owed=OWED)
        yield row(
            "rejected", "", outcome=Outcome.REJECTED, reason=Reason.INVALID, detail="to: expected an object",
            payload=b"\0not json", sessions=0, attempts=0, written_at=None, proven_at=None,
        )  # fmt: skip
        if self._version >= KEPT:
            yield kept_row("stored", excluded=frozenset({"s1"}), collapse_key="k", ack_within=2.5)
            yield kept_row("delivered", position=2, outcome=Outcome.RECEIVED, reason=Reason.PONG, owed=None)
        if self._version >= SHARED:
            # One object for both, as it comes from one request.
            for user in ("u", "v"):
                yield kept_row("shared", user, 3, payload=BIG, meta=b'{"to": "all"}')


def snapshot(conn: psycopg.Connection) -> dict[str, list[Record]]:
    """Every table with its rows."""
    found = conn.execute(
        "select relname from pg_class where relkind in ('r', 'p') and not relispartition"
        " and relnamespace = 'public'::regnamespace"
    )
    # As text: the oldest columns come first and tell rows apart, so that new columns leave the order as it was.
    return {
        name: [r for (r,) in conn.execute(f"select to_jsonb(t) from {name} t order by t::text".encode())]
        for (name,) in found.fetchall()
    }


def whole_rows(conn: psycopg.Connection) -> list[Row]:
    """The log as today's program reads it, data and all."""
    query = (
        f"select {columns('w', data=True, excluded=True)} from delivery_log l cross join lateral whole(l) w"
    )
    with conn.cursor(binary=True) as cursor:
        return [undated(row_of(record)) for record in cursor.execute(query.encode()).fetchall()]


def same(one: Sequence[Row], other: Sequence[Row]) -> bool:
    return sorted(one, key=lambda r: r.key) == sorted(other, key=lambda r: r.key)


def unchanged(before: dict[str, list[Record]], after: dict[str, list[Record]]) -> None:
    """Tables that the bridge writes hold what they held; columns that are new say nothing yet."""
    for table in {"delivery_log", "push_content", "node", "tally", "past_boot"} & before.keys():
        for was, now in itertools.zip_longest(before[table], after[table], fillvalue=Record()):
            assert {name: now.get(name) for name in was} == was, table
            assert not any(value for name, value in now.items() if name not in was), table


@pytest.mark.parametrize("version", range(1, migrate.WANTED_VERSION))
async def test_an_upgrade_keeps_every_row_and_the_bridge_goes_on_with_them(
    empty_database: str, version: int
) -> None:
    migrate.upgrade(empty_database, MIGRATIONS[:version])
    with psycopg.connect(empty_database, autocommit=True) as conn:
        old = OldProgram(conn, version)
        old.claim()
        of_yesterday, of_today = list(old.rows()), [row("today", owed=())]
        old.record(of_yesterday)
        conn.execute("select roll_day((select day from log_day) + 1)")
        conn.execute("select make_partition((select day from log_day) + 1)")
        old.record(of_today)
        before = snapshot(conn)

        assert migrate.upgrade(empty_database) == [m.name for m in MIGRATIONS[version:]]

        unchanged(before, snapshot(conn))
        assert same(whole_rows(conn), of_yesterday + of_today)
        assert conn.execute("select sum(rows) from tally").fetchone() == (len(of_yesterday + of_today),)
        assert seen_by_people(conn) == {
            (r.key.push_id, r.key.user or None, r.outcome.value, r.reason.value, r.final)
            for r in of_yesterday + of_today
        }
        # The program of that version may go on for a while, until its bridge is upgraded as well.
        assert old.record([row("of the old program"), row("today")]) == [("today", False)]
        await goes_on(conn, empty_database, of_yesterday + of_today)
        await is_dropped_in_the_end(conn, empty_database)


def seen_by_people(conn: psycopg.Connection) -> set[tuple[str, str | None, str, str, bool]]:
    query: LiteralString = "select push_id, user_id, outcome, reason, final from delivery"
    return set(conn.execute(query).fetchall())


async def goes_on(conn: psycopg.Connection, dsn: str, written: Sequence[Row]) -> None:
    """Today's program finds, pays, sends and ends what the old one has written."""
    store = PostgresStore(dsn)
    found = await store.find([r.key for r in written])
    assert same([undated(r) for r in found], [replace(light(r), meta=b"") for r in written])

    owing = {r.key: r.owed for r in await store.owing(9)}
    assert owing == {RowKey("", "owing", "u"): OWED, RowKey("", "today", "u"): ()}
    assert not await store.settle({key: owed for key, owed in owing.items() if owed is not None})
    assert await store.owing(9) == []

    [page] = await store.mailbox([MailboxAsk("u", 0, EVER, seen=0)])
    assert same(
        [undated(r) for r in page.rows], [replace(r, excluded=frozenset()) for r in written if of_mailbox(r)]
    )
    [page] = await store.mailbox([MailboxAsk("u", 0, EVER, session="s1")])
    assert "stored" not in ids(page.rows), "a session that does not get it"
    assert await store.last_position() == max(r.position for r in written)

    late = LateProof(RowKey("", "late", "u"), NOON + 60)
    assert not await store.prove_late([late])
    assert [r.late_at for r in await store.find([late.key])] == [late.at]

    # A day that has a row which is not final is looked into for as long as it has one.
    conn.execute("select roll_day((select day from log_day) + 1)")
    assert conn.execute("select day - since, day - kept_since from log_day").fetchone() == (2, 2)
    open_rows = [r for r in written if not r.final and r.key.push_id != "left"]
    ends = [replace(r, outcome=Outcome.RECEIVED, reason=Reason.PONG) for r in open_rows]
    answer = await store.record([row("ended"), kept_row("new", position=9), *ends])
    assert [w.applied for w in answer] == [False, True, *([True] * len(ends))]
    assert conn.execute("select claim_node('n1', 'b2', 'b1')").fetchone() == (True,)
    ended = conn.execute("select push_id, outcome, reason from end_dead_rows('n1', 'b2', 9)").fetchall()
    assert ended == [("left", "unknown", "node_died")]
    debts = {r.key: r.owed or () for r in await store.owing(9)}
    assert debts.keys() == {r.key for r in written if not r.final}
    assert not await store.settle(debts)
    await store.close()


def of_mailbox(written: Row) -> bool:
    return written.expires_at is not None and written.key.user == "u"


async def is_dropped_in_the_end(conn: psycopg.Connection, dsn: str) -> None:
    """The days of before the upgrade go as all others do, once nothing is to be done in them."""
    days = [
        f"delivery_log_{day:%Y%m%d}"
        for (day,) in conn.execute("select distinct day from delivery_log order by day")
    ]
    conn.execute("select roll_day((select day from log_day) + 1)")
    done = await Upkeep(dsn).run_once(0)
    assert (done.dropped, done.kept, done.trouble) == (days[:2], [], [])
    assert len(done.made) == DAYS_AHEAD
    assert [r.key.push_id for r in whole_rows(conn)] == ["new"]
    assert conn.execute("select sum(rows) from tally").fetchone() == (1,)
