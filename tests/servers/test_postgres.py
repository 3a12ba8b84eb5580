"""What only Postgres can show: midnight as a race, cut connections, deadlocks, partitions, plans."""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from psycopg import conninfo, sql
from psycopg import errors as pg

from benchmarks.listening import listening
from bridge.adapters.postgres import migrate
from bridge.adapters.postgres import pool as postgres_pool
from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.rows import (
    RECORD_PARAMS,
    key_params,
    lock_order,
    nullable_texts,
    numbers,
    record_params,
)
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import MARK, Upkeep, UpkeepDone
from bridge.core.contract.receipts import receipt_body
from bridge.core.errors import NodeNameTaken, RowsRefused, StatementFailed, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import LateProof, Reply, Row, RowKey
from bridge.core.ports.store import Collapse, RecallPlace
from bridge.devservers import Servers
from tests.support.other_sessions import ask, eventually, transaction
from tests.support.rows import EVER, LATER, NOON, kept_row, recalled, row, trimmed, undated

RECORD = f"select * from record_rows({', '.join(['%s'] * RECORD_PARAMS)})".encode()
PARTITION = datetime.timedelta(days=1)


async def waiting(dsn: str, query: str, kind: str) -> None:
    """Return when some backend of this database waits for a lock of this kind in such a query."""
    await eventually(
        dsn,
        "select exists (select from pg_stat_activity where datname = current_database() and query like %s"
        " and wait_event_type = 'Lock' and wait_event = %s)",
        f"%{query}%",
        kind,
    )


async def execute(dsn: str, *statements: LiteralString) -> None:
    """Run these, each in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            await conn.execute(statement)


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(database)
    yield made
    await made.close()


# --- Midnight --------------------------------------------------------------------------------------------


async def test_a_writer_of_the_old_day_holds_the_new_one_back_and_the_key_gets_one_row(
    database: str, store: PostgresStore
) -> None:
    # Its wait ends with `old`, not with a limit.
    await execute(database, "alter function roll_day(date) set lock_timeout to '30s'")
    async with transaction(database) as old:
        await old.execute(RECORD, record_params([row(boot="old")]))
        rolling = asyncio.create_task(ask(database, "select roll_day(log_today() + 1)"))
        await waiting(database, "roll_day", "advisory")
        # It comes after the roll-over in the queue for the lock, and so writes on the new day.
        writing = asyncio.create_task(store.record([row(boot="new"), row("other")]))
        await waiting(database, "record_rows", "advisory")
        assert not rolling.done()
        await old.commit()
    [(day,)] = await rolling
    same, other = await writing
    assert (same.applied, same.row.boot, other.applied) == (False, "old", True)
    days = dict(await ask(database, "select push_id, day from delivery_log"))
    assert days == {"p": day - PARTITION, "other": day}


async def test_a_key_that_comes_with_the_roll_over_gets_one_row_whoever_is_first(database: str) -> None:
    stores = [PostgresStore(database) for _ in range(3)]
    answers = []
    for i in range(15):
        results = await asyncio.gather(
            ask(database, "select roll_day((select day from log_day) + 1)"),
            *(s.record([row(f"{i}-{n}", boot=str(b)) for n in range(5)]) for b, s in enumerate(stores)),
        )
        answers += results[1:]
    for s in stores:
        await s.close()
    counts = await ask(database, "select push_id, count(*) from delivery_log group by 1 having count(*) <> 1")
    assert counts == []
    assert sum(w.applied for answer in answers for w in answer) == 15 * 5


async def test_the_first_writer_of_a_day_rolls_the_log_itself(database: str, store: PostgresStore) -> None:
    await ask(database, "select make_partition(log_today() - 1)")
    await ask(database, "update log_day set day = log_today() - 1, since = log_today() - 2")
    await store.record([row()])
    assert await ask(
        database, "select l.day = log_today(), d.day = log_today(), d.since = log_today() - 1"
        " from delivery_log l, log_day d"
    ) == [(True, True, True)]  # fmt: skip


async def test_the_log_never_goes_back_a_day(database: str, store: PostgresStore) -> None:
    today = await store.roll_day()
    assert await ask(database, "select roll_day(log_today() - 3)") == [(today,)]
    [(ahead,)] = await ask(database, "select roll_day(log_today() + 2)")
    assert ahead == today + 2 * PARTITION
    assert await store.roll_day() == ahead
    await store.record([row()])
    assert await ask(database, "select day from delivery_log") == [(ahead,)]


async def test_several_nodes_roll_at_once(database: str) -> None:
    for _ in range(5):
        rolled = await asyncio.gather(
            *(ask(database, "select roll_day(%s)", datetime.date(2090, 1, 1)) for _ in range(4))
        )
        assert rolled == [[(datetime.date(2090, 1, 1),)]] * 4


async def test_a_roll_over_gives_up_soon_rather_than_hold_writers_back(database: str) -> None:
    async with transaction(database) as slow:
        await slow.execute(RECORD, record_params([row()]))
        with pytest.raises(pg.LockNotAvailable):
            await ask(database, "select roll_day(log_today() + 1)")


# --- Refused, retried ------------------------------------------------------------------------------------


@pytest.mark.parametrize("meta", [b"{", b'{"a": "\\u0000"}', b"\xff", b"nonsense"])
async def test_meta_that_is_refused_leaves_nothing_and_its_neighbours_can_be_written(
    store: PostgresStore, database: str, meta: bytes
) -> None:
    with pytest.raises(RowsRefused):
        await store.record([row("a"), row("b", meta=meta), row("c")])
    assert await ask(database, "select * from delivery_log") == []
    assert all(w.applied for w in await store.record([row("a"), row("c")]))


async def test_writers_in_any_order_never_deadlock(database: str) -> None:
    stores = [PostgresStore(database) for _ in range(4)]
    ids = [f"p{i}" for i in range(60)]
    rounds = 12

    async def write(one: PostgresStore, boot: int) -> None:
        order = random.Random(boot)
        for n in range(rounds):
            batch = [row(i, outcome=Outcome.PENDING, boot=str(boot), sessions=n) for i in ids]
            batch += [row(f"fresh {n} {i}", user=str(i % 7)) for i in range(60)]
            order.shuffle(batch)
            await one.record(batch)
            await one.owe({r.key: (Reply("q", str(boot)),) for r in batch[:60]})
            await one.settle({r.key: r.owed or () for r in batch[60:]})
        mixed = order.sample(ids, len(ids))
        await one.record([row(i, outcome=Outcome.UNKNOWN, proven_at=None) for i in mixed])
        await one.prove_late([LateProof(row(i).key, 1e9) for i in mixed])

    await asyncio.gather(*(write(s, i) for i, s in enumerate(stores)))
    for s in stores:
        await s.close()
    await eventually(database, "select count(*) = 1 from pg_stat_activity where datname = current_database()")
    assert await ask(
        database, "select deadlocks from pg_stat_database where datname = current_database()"
    ) == [(0,)]
    assert await ask(database, "select count(*), count(proven_at) from delivery_log where final") == [
        (60 * (rounds + 1),) * 2
    ]


async def test_what_ends_kept_rows_and_what_writes_them_never_deadlock(database: str) -> None:
    stores = [PostgresStore(database) for _ in range(4)]
    over = time.time() - 1
    users = [f"u{i}" for i in range(5)]
    batch = [
        kept_row(
            f"p{i:02}",
            user=users[i % 5],
            position=i + 1,
            collapse_key="k",
            expires_at=over if i % 2 else LATER,
        )
        for i in range(60)
    ]
    ended: list[Row] = []

    async def write(store: PostgresStore, boot: str) -> None:
        order = random.Random(boot)
        for n in range(8):
            rows = [msgspec.structs.replace(r, boot=boot, sessions=n) for r in order.sample(batch, 40)]
            rows[:5] = [row(r.key.push_id, r.key.user, boot=boot) for r in rows[:5]]
            ended.extend(w.row for w in await store.record(rows) if w.applied and w.row.final)
            await store.owe({r.key: (Reply("q", boot),) for r in order.sample(batch, 20)})

    async def end(store: PostgresStore) -> None:
        for n in range(8):
            ended.extend(await store.expire(5))
            ended.extend(await store.trim(await store.overfull(users, 11 - n, 10**6), 100))
            newer = [Collapse("", user, "k", n * 6) for user in users]
            ended.extend((await store.supersede([*newer, *reversed(newer)], 100)).ended)
            written = await recalled(store, Recall(push_id=f"p{n}7"), 3)
            ended.extend(w.row for w in written if w.applied)

    await stores[0].record(batch)
    await asyncio.gather(
        write(stores[0], "a"), write(stores[1], "b"), end(stores[2]), end(stores[3]), end(stores[3])
    )
    final = {r.key: r for r in await stores[0].find([r.key for r in batch]) if r.final}
    for s in stores:
        await s.close()
    # Each has one end, and it is the one that was told to whoever made it.
    assert len(ended) == len(final)
    assert {r.key: (r.outcome, r.reason) for r in ended} == {
        k: (r.outcome, r.reason) for k, r in final.items()
    }
    assert {r.outcome for r in ended} > {Outcome.RECEIVED, Outcome.EXPIRED}
    await eventually(database, "select count(*) = 1 from pg_stat_activity where datname = current_database()")
    assert await ask(
        database, "select deadlocks from pg_stat_database where datname = current_database()"
    ) == [(0,)]


async def test_a_row_that_somebody_else_holds_is_left_or_told_and_never_waited_for(
    database: str, store: PostgresStore
) -> None:
    over = time.time() - 1
    await store.record(
        [kept_row("a", expires_at=over, collapse_key="k"), kept_row("b", position=2, expires_at=over)]
    )
    await store.record([row("c", outcome=Outcome.UNKNOWN, proven_at=None)])
    a, b, c = row("a").key, row("b").key, row("c").key
    paid = {a: (Reply("q"),), b: (Reply("q"),)}
    await store.owe(paid)
    async with transaction(database) as other:
        await other.execute("select from delivery_log where push_id <> 'b' for update")
        # The sweeps come by again; who must know how it ends is told that it has not.
        assert [r.key for r in await store.expire(10)] == [b]
        assert await trimmed(store, ["u"], 0, 0) == []
        ended, held = await store.supersede([Collapse("", "u", "k", EVER)], 9)
        assert (list(ended), [r.key for r in held]) == ([], [a])
        for recall in (Recall(push_id="a"), Recall(user="u", collapse_key="k")):
            assert [
                (w.applied, w.row.key) for w in (await store.recall(recall, RecallPlace(), 9)).written
            ] == [(None, a)]
        assert await store.owe({a: (Reply("r"),), b: (Reply("r"),)}) == {a}
        assert await store.settle(paid) == {a}
        assert await store.prove_late([LateProof(b, NOON), LateProof(c, NOON)]) == {c}
        assert [r.key for r in await store.owing(9)] == [b]
    assert await store.settle(paid) == await store.prove_late([LateProof(c, NOON)]) == set()
    [found] = await store.find([a])
    assert found.owed is None
    [written] = await recalled(store, Recall(push_id="a"))
    assert (written.applied, written.row.outcome) == (True, Outcome.RECALLED)


async def test_delivered_data_that_a_recall_can_not_forget_yet_is_told(
    database: str, store: PostgresStore
) -> None:
    await store.record([kept_row("a", collapse_key="k")])
    await store.record(
        [
            kept_row(
                "a",
                collapse_key="k",
                outcome=Outcome.ACKED,
                reason=Reason.ACK_FRAME,
                proven_at=NOON,
                finished_at=NOON,
            )
        ]
    )
    by_key = Recall(user="u", collapse_key="k")
    async with transaction(database) as other:
        await other.execute("select from delivery_log for update")
        for recall, place in ((Recall(push_id="a"), RecallPlace()), (by_key, RecallPlace(position=0))):
            assert [w.applied for w in (await store.recall(recall, place, 9)).written] == [None]
    assert [w.applied for w in (await store.recall(by_key, RecallPlace(position=0), 9)).written] == [False]
    await store.record([kept_row("b", outcome=Outcome.ACKED, reason=Reason.ACK_FRAME, finished_at=NOON)])
    keys = [RowKey("", push_id, "u") for push_id in "ab"]
    async with transaction(database) as other:
        await other.execute("select from delivery_log where push_id = 'b' for update")
        assert [w.applied for w in await store.forget_data(keys)] == [True, None]
    assert [w.applied for w in await store.forget_data(keys)] == [True, True]
    assert await ask(database, "select payload, content from delivery_log") == [(None, None)] * 2


async def test_a_recall_by_an_older_bridge_forgets_data_that_rows_share(
    database: str, store: PostgresStore
) -> None:
    data = b'"' + b"x" * 1000 + b'"'
    rows = [kept_row("p", user=f"u{n}", payload=data, collapse_key="k") for n in range(5)]
    await store.record(rows)
    taken = [
        msgspec.structs.replace(r, outcome=Outcome.RECEIVED, reason=Reason.PONG, finished_at=NOON)
        for r in rows[:2]
    ]
    await store.record(taken)
    shared = "select count(*) from delivery_log where content is not null"
    assert await ask(database, shared) == [(5,)]
    assert len(await ask(database, "select * from recall_rows('', 'p', '', '')")) == 5
    assert await ask(database, f"{shared} and outcome = 'received'") == [(0,)]


async def test_a_lost_race_is_run_again(
    database: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr(postgres_pool, "TRIES", 1000)
    lost = asyncio.Event()

    def pause(*_: float) -> float:
        lost.set()
        return 0.001

    monkeypatch.setattr("random.uniform", pause)
    async with transaction(database) as other:
        await other.execute(RECORD, record_params([row(outcome=Outcome.PENDING)]))
        writing = asyncio.create_task(store.record([row()]))
        async with asyncio.timeout(10):
            await lost.wait()
    [written] = await writing
    assert written.applied


async def test_a_lock_that_is_never_given_back_is_the_statements_fault_and_a_held_row_is_told_at_once(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "LOCK_TIMEOUT", 0.05)
    store = PostgresStore(database)
    await store.record([row(outcome=Outcome.PENDING)])
    async with transaction(database) as other:
        await other.execute("select from delivery_log for update")
        await other.execute(RECORD, record_params([row("just inserted", boot="other")]))
        with pytest.raises(StatementFailed, match="55P03"):
            await store.record([row("just inserted")])
        held, new = await store.record([row(), row("new")])
        assert (held.applied, held.row.outcome, new.applied) == (None, Outcome.PENDING, True)
    [written] = await store.record([row()])
    assert written.applied
    await store.close()


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("22001", RowsRefused), ("22021", RowsRefused), ("22P05", RowsRefused), ("23505", RowsRefused),
        ("54000", RowsRefused), ("54001", RowsRefused),
        ("08006", StoreUnavailable), ("25006", StoreUnavailable), ("28P01", StoreUnavailable),
        ("3D000", StoreUnavailable), ("40001", StoreUnavailable), ("40P01", StoreUnavailable),
        ("42P01", StoreUnavailable), ("53100", StoreUnavailable), ("53300", StoreUnavailable),
        ("57P01", StoreUnavailable), ("57P03", StoreUnavailable), ("58030", StoreUnavailable),
        ("0A000", StatementFailed), ("2F003", StatementFailed), ("38000", StatementFailed),
        ("39000", StatementFailed), ("42501", StatementFailed), ("42804", StatementFailed),
        ("55P03", StatementFailed), ("57014", StatementFailed), ("P0001", StatementFailed),
        ("XX000", StatementFailed), ("XX002", StatementFailed),
    ],
)  # fmt: skip
def test_every_sqlstate_means_one_thing(sqlstate: str, expected: type[Exception]) -> None:
    assert type(translated(pg.lookup(sqlstate)("why\nHINT: how"))) is expected


async def test_a_partition_that_is_missing_is_not_the_rows_fault(database: str, store: PostgresStore) -> None:
    await ask(database, "update log_day set day = date '2091-01-01'")
    with pytest.raises(StoreUnavailable, match="partition"):
        await store.record([row()])


async def test_a_database_that_only_reads_is_away(database: str) -> None:
    [(name,)] = await ask(database, "select current_database()")
    await ask(database, f"alter database {name} set default_transaction_read_only = on")
    store = PostgresStore(database)
    with pytest.raises(StoreUnavailable, match="25006"):
        await store.record([row()])
    await store.close()


# --- Cut connections -------------------------------------------------------------------------------------


async def test_a_database_that_was_never_there_is_away_and_the_store_makes_no_fuss() -> None:
    store = PostgresStore("host=127.0.0.1 port=1 dbname=none user=none")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.record([row()])
    await store.close()


async def test_connections_that_were_killed_while_idle_are_replaced_within_the_call(
    database: str, store: PostgresStore
) -> None:
    await asyncio.gather(*(store.last_position() for _ in range(4)))
    await kill_backends(database)
    [written] = await store.record([row()])
    assert written.applied


async def kill_backends(dsn: str) -> None:
    await ask(
        dsn,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and application_name like 'bridge%'",
    )


async def test_a_backend_that_is_killed_in_mid_call_costs_nothing(
    database: str, store: PostgresStore
) -> None:
    await store.record([row("first")])
    async with transaction(database) as other:
        await other.execute(RECORD, record_params([row("x", outcome=Outcome.PENDING)]))
        writing = asyncio.create_task(store.record([row("x")]))
        await waiting(database, "record_rows", "transactionid")
        await kill_backends(database)
    [written] = await writing
    assert written.applied


async def test_an_answer_that_was_lost_after_the_commit_makes_no_second_row(database: str) -> None:
    lost = row("the-lost-one")
    async with Wire(database) as wire:
        store = PostgresStore(wire.dsn)
        await store.record([row("first")])
        wire.swallow_answer_to = b"the-lost-one"
        [written] = await store.record([lost])
        assert wire.swallowed > 0
        # It ran again on a new connection, and found what it had written.
        assert (written.applied, undated(written.row)) == (True, lost)
        assert await ask(database, "select count(*) from delivery_log where push_id = 'the-lost-one'") == [
            (1,)
        ]
        await store.close()


async def test_an_answer_that_is_lost_on_a_new_connection_is_reported_and_the_row_is_there(
    database: str,
) -> None:
    async with Wire(database) as wire:
        store = PostgresStore(wire.dsn)
        wire.swallow_answer_to = b"the-lost-one"
        with pytest.raises(StoreUnavailable):
            await store.record([row("the-lost-one")])
        await eventually(database, "select count(*) = 1 from delivery_log")
        [again] = await store.record([row("the-lost-one")])
        assert not again.applied
        await store.close()


class Wire:
    """A TCP proxy in front of the database that can lose an answer and cut the connection."""

    def __init__(self, dsn: str) -> None:
        self._params: dict[str, Any] = dict(conninfo.conninfo_to_dict(dsn))
        self._swallow_next = False
        self.swallow_answer_to: bytes | None = None
        self.swallowed = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Wire:
        port = await self._stack.enter_async_context(listening(self._serve))
        self.dsn = conninfo.make_conninfo(**self._params | {"host": "127.0.0.1", "port": port})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(str(self._params["host"]), int(str(self._params["port"])))
        both = (back, writer)
        try:
            await asyncio.gather(self._pump(reader, back, False, both), self._pump(there, writer, True, both))
        finally:
            back.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        answers: bool,
        both: Sequence[asyncio.StreamWriter],
    ) -> None:
        while data := await source.read(65536):
            if not answers and self.swallow_answer_to is not None and self.swallow_answer_to in data:
                self.swallow_answer_to = None
                self._swallow_next = True
            elif answers and self._swallow_next:
                self._swallow_next = False
                self.swallowed += len(data)
                break
            sink.write(data)
        for writer in both:
            writer.close()


async def test_a_cancelled_call_leaves_the_store_usable(database: str, store: PostgresStore) -> None:
    async with transaction(database) as other:
        await other.execute(RECORD, record_params([row(outcome=Outcome.PENDING)]))
        calls = [asyncio.create_task(store.record([row()])) for _ in range(6)]
        await waiting(database, "record_rows", "transactionid")
        for call in calls:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results)
    assert [w.applied for w in await store.record([row()])] == [True]
    await asyncio.gather(*(store.last_position() for _ in range(8)))


async def test_many_calls_share_a_few_connections(database: str, store: PostgresStore) -> None:
    await asyncio.gather(*(store.record([row(f"p{i}")]) for i in range(50)))
    [(count,)] = await ask(
        database,
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()",
    )
    assert 1 <= count <= 4


async def test_a_closed_store_says_so(store: PostgresStore) -> None:
    await store.last_position()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.last_position()


# --- The server itself goes away -------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_server_that_goes_away_in_mid_call_is_away_and_works_when_it_is_back(
    own_servers: Servers, end: str
) -> None:
    dsn = own_servers.postgres_dsn
    store = PostgresStore(dsn)
    await store.record([row("x", outcome=Outcome.PENDING), row("kept")])
    # Not behind somebody's lock: a server that stops may end the holder first, and the call is done.
    await execute(
        dsn,
        "create function linger() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(60); return new; end $$",
        "create trigger linger before insert on delivery_log for each row when (new.push_id = 'y')"
        " execute function linger()",
    )
    writing = asyncio.create_task(store.record([row("x"), row("y")]))
    await eventually(
        dsn,
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep')",
    )
    await asyncio.to_thread(getattr(own_servers.postgres, end))
    with pytest.raises(StoreUnavailable):
        await writing
    with pytest.raises(StoreUnavailable):
        await store.last_position()
    await asyncio.to_thread(own_servers.postgres.start)
    await execute(dsn, "drop trigger linger on delivery_log")
    assert [w.applied for w in await store.record([row("x"), row("y"), row("kept")])] == [True, True, False]
    await store.close()


async def test_the_times_of_a_row_are_those_of_its_receipt(database: str, store: PostgresStore) -> None:
    chance = random.Random(5)
    rows = [
        row(f"p{n}", taken_at=NOON + chance.random(), finished_at=NOON + 1 + chance.random())
        for n in range(500)
    ]
    await store.record(rows)
    query: LiteralString = """
        select push_id, to_char(taken_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
            to_char(finished_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        from delivery_log
        """
    async with await psycopg.AsyncConnection.connect(database) as conn:
        found = {
            name: (taken, finished) for name, taken, finished in await (await conn.execute(query)).fetchall()
        }
    said = {r.key.push_id: json.loads(receipt_body(r)) for r in rows}
    assert found == {name: (one["taken_at"], one["finished_at"]) for name, one in said.items()}


async def test_a_server_that_does_not_answer_is_away_in_time(
    own_servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(own_servers.postgres_dsn)
    await store.last_position()
    # What the limits add up to, in production: 7 s for the call and 2 s for the new connection.
    assert postgres_pool.CALL_TIMEOUT + postgres_pool.CONNECT_TIMEOUT < 10
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.5)
    await asyncio.to_thread(own_servers.postgres.pause)
    with pytest.raises(StoreUnavailable):
        await store.record([row()])
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 7.0)
    await asyncio.to_thread(own_servers.postgres.resume)
    [written] = await store.record([row()])
    assert written.row == row()
    await store.close()


# --- Leases ----------------------------------------------------------------------------------------------


async def test_a_lease_survives_its_connection_and_keeps_its_boot(database: str) -> None:
    lease = PostgresLease(database, "n1", "b1")
    await lease.claim()
    await kill_backends(database)
    await lease.renew()
    assert await ask(database, "select boot from node") == [("b1",)]
    [(locks,)] = await ask(database, "select count(*) from pg_locks where locktype = 'advisory' and granted")
    assert locks == 1
    await lease.release()
    assert await ask(database, "select * from node") == []


async def test_a_process_whose_connection_hangs_is_followed_when_its_lease_has_run_out(database: str) -> None:
    hanging = PostgresLease(database, "n1", "b1")
    await hanging.claim()
    await ask(database, "update node set seen_at = seen_at - interval '6 s'")
    second, third = PostgresLease(database, "n1", "b2"), PostgresLease(database, "n1", "b3")
    await second.claim()
    # It has the name without the lock, gets that when the server notices, and is followed in any case.
    await second.renew()
    with pytest.raises(NodeNameTaken):
        await hanging.renew()
    await kill_backends(database)
    await third.claim()
    await third.renew()
    with pytest.raises(NodeNameTaken):
        await second.renew()
    await third.release()


async def test_a_restart_of_the_server_does_not_give_a_live_name_away(own_servers: Servers) -> None:
    dsn = own_servers.postgres_dsn
    live, thief = PostgresLease(dsn, "n1", "b1"), PostgresLease(dsn, "n1", "b2")
    await live.claim()
    await live.renew()
    await asyncio.to_thread(own_servers.postgres.stop)
    await asyncio.to_thread(own_servers.postgres.start)
    # The lock is free and the lease is still good: the server took the lock, not the end of the process.
    claiming = asyncio.create_task(thief.claim())
    await eventually(dsn, "select count(*) > 0 from pg_locks where locktype = 'advisory' and granted")
    await live.renew()
    await live.renew()
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    await live.renew()
    await live.release()


async def test_of_two_boots_that_claim_a_name_at_once_one_gets_it(database: str) -> None:
    await ask(
        database,
        "insert into node values ('n1', 'b0', now(), now() - interval '1 min', now() - interval '1 h')",
    )
    # Both have seen the same dead predecessor; the second is told that the first was quicker.
    async with transaction(database) as undone:
        for boot, claimed in (("x", True), ("y", False)):
            cursor = await undone.execute("select claim_node('n1', %s, 'b0')", (boot,))
            assert await cursor.fetchone() == (claimed,)
        await undone.rollback()
    leases = [PostgresLease(database, "n1", f"b{i}") for i in (1, 2)]
    claims = [asyncio.create_task(lease.claim()) for lease in leases]
    done, rest = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    for claim in rest:
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
    winner = leases[claims.index(done.pop())]
    await winner.renew()
    await winner.release()


# --- Partitions ------------------------------------------------------------------------------------------


async def partitions(dsn: str) -> list[str]:
    found = await ask(
        dsn, "select right(inhrelid::regclass::text, 8) from pg_inherits"
        " where inhparent = 'delivery_log'::regclass order by 1"
    )  # fmt: skip
    return [name for (name,) in found]


def names(days: Sequence[datetime.date]) -> list[str]:
    return [f"{day:%Y%m%d}" for day in days]


async def aged(dsn: str, days: int) -> datetime.date:
    """A log that is so many days old, with a final row in each; returns its day."""
    store = PostgresStore(dsn)
    for _ in range(days):
        await store.record([row(f"p{random.random()}")])
        [(day,)] = await ask(dsn, "select roll_day((select day from log_day) + 1)")
    await store.close()
    assert isinstance(day, datetime.date)
    return day


async def test_upkeep_makes_partitions_ahead_once(database: str) -> None:
    [(today,)] = await ask(database, "select day from log_day")
    done = await Upkeep(database).run_once(30)
    assert [n[-8:] for n in done.made] == names([today + i * PARTITION for i in (1, 2, 3)])
    assert await partitions(database) == names([today + i * PARTITION for i in range(4)])
    assert await Upkeep(database).run_once(30) == UpkeepDone([], [], [], [])


async def test_upkeep_drops_what_is_past_its_retention(database: str) -> None:
    day = await aged(database, 6)
    done = await Upkeep(database).run_once(3)
    assert [n[-8:] for n in done.dropped] == names([day - i * PARTITION for i in (6, 5, 4)])
    assert await partitions(database) == names([day + i * PARTITION for i in range(-3, 4)])
    assert await ask(database, "select count(*) from delivery_log") == [(3,)]


async def test_upkeep_keeps_days_whose_keys_must_be_known(database: str) -> None:
    day = await aged(database, 3)
    await Upkeep(database).run_once(0)
    assert (await partitions(database))[0] == f"{day - PARTITION:%Y%m%d}"


@pytest.mark.parametrize("open_row", [row("open", outcome=Outcome.PENDING), kept_row("open")])
async def test_upkeep_keeps_a_partition_until_its_rows_have_ended_and_owe_nothing(
    database: str, store: PostgresStore, open_row: Row
) -> None:
    await store.record([open_row])
    day = await aged(database, 5)
    # The day before still has the oldest unfinished row among the known: end it, roll, and it may go.
    first = f"delivery_log_{day - 5 * PARTITION:%Y%m%d}"
    assert first not in (await Upkeep(database).run_once(2)).dropped
    await ask(database, "update log_day set since = day - 1")
    assert (await Upkeep(database).run_once(2)).kept == [first]
    await ask(database, "update delivery_log set outcome = 'unknown', final = true where not final")
    assert (await Upkeep(database).run_once(2)).kept == [first]
    await store.settle({open_row.key: open_row.owed or ()})
    assert (await Upkeep(database).run_once(2)).dropped == [first]


async def test_a_days_roll_moves_the_bounds_past_what_has_ended(database: str, store: PostgresStore) -> None:
    bounds = "select day - since, day - kept_since from log_day"
    roll = "select roll_day((select day from log_day) + 1)"
    assert await ask(database, bounds) == [(1, 1)]
    await store.record([kept_row("stored"), row("plain")])
    for days in range(1, 4):
        await ask(database, roll)
        assert await ask(database, bounds) == [(1, days)]
    await store.record([row("pending", outcome=Outcome.PENDING)])
    await ask(database, roll)
    await ask(database, roll)
    assert await ask(database, bounds) == [(2, 5)]
    [stored] = await store.find([RowKey("", "stored", "u")])
    await store.record([row("stored", day=stored.day)])
    await ask(database, roll)
    assert await ask(database, bounds) == [(3, 3)]
    await store.record([row("pending")])
    await ask(database, roll)
    assert await ask(database, bounds) == [(1, 1)]


async def test_a_reader_delays_the_drop_and_stops_no_writer(database: str, store: PostgresStore) -> None:
    day = await aged(database, 4)
    old = f"delivery_log_{day - 4 * PARTITION:%Y%m%d}"
    async with (
        transaction(database) as reader,
        await psycopg.AsyncConnection.connect(database, autocommit=True) as watcher,
    ):
        await reader.execute("select count(*) from delivery_log")
        upkeep = asyncio.create_task(Upkeep(database).run_once(3))
        held_back = looks = 0
        written = 0
        while not upkeep.done():
            writing = asyncio.create_task(store.record([row(f"w{written}")]))
            while not writing.done():
                # A plain DETACH waits for the reader, and every writer queues for its lock behind it. A writer may wait
                # for somebody who does not wait: a new partition is visible a moment before its lock is released.
                cursor = await watcher.execute(
                    "select count(*) from pg_locks l join pg_stat_activity a using (pid)"
                    " where not l.granted and l.locktype = 'relation' and a.query like '%record_rows%'"
                    " and a.pid <> pg_backend_pid()"
                    " and exists (select from pg_locks b where not b.granted and b.pid = any(pg_blocking_pids(a.pid)))"
                )
                [(waiting,)] = await cursor.fetchall()
                held_back += waiting
                looks += 1
            await writing
            written += 1
        assert (await upkeep).kept == [old]
        assert min(written, looks) >= 2
        assert held_back == 0
    assert (await Upkeep(database).run_once(3)).dropped == [old]
    assert await ask(database, "select to_regclass(%s)", old) == [(None,)]


async def test_a_reader_of_several_days_keeps_them_all_until_it_is_done(database: str) -> None:
    day = await aged(database, 5)
    old = [f"delivery_log_{day - i * PARTITION:%Y%m%d}" for i in (5, 4)]
    async with transaction(database) as reader:
        await reader.execute("select count(*) from delivery_log")
        # Only one partition can be in the middle of being detached, so the second is not even begun.
        assert (await Upkeep(database).run_once(3)).kept == old
        assert (await Upkeep(database).run_once(3)).kept == old
    assert (await Upkeep(database).run_once(3)).dropped == old


async def test_upkeep_on_two_nodes_at_once_is_done_by_one(database: str) -> None:
    await aged(database, 4)
    results = await asyncio.gather(*(Upkeep(database).run_once(2) for _ in range(4)))
    assert sum(len(done.dropped) for done in results) == 2
    assert sum(len(done.made) for done in results) == 3


async def is_there(dsn: str, table: str) -> bool:
    return await ask(dsn, "select to_regclass(%s) is not null", table) == [(True,)]


async def mark_of(dsn: str, table: str) -> object:
    [(mark,)] = await ask(dsn, "select obj_description(to_regclass(%s), 'pg_class')", table)
    return mark


async def test_upkeep_leaves_alone_what_somebody_has_detached_to_keep(database: str) -> None:
    day = await aged(database, 6)
    archive, old = f"delivery_log_{day - 6 * PARTITION:%Y%m%d}", f"delivery_log_{day - 5 * PARTITION:%Y%m%d}"
    await ask(database, f"alter table delivery_log detach partition {archive}")
    for _ in range(2):
        done = await Upkeep(database).run_once(4)
        assert archive not in done.dropped + done.kept
        assert not done.trouble
        assert await is_there(database, archive)
    assert not await is_there(database, old)
    assert await ask(database, "select count(*) from tally where day = %s", day - 6 * PARTITION) == [(0,)]


async def test_upkeep_finishes_a_detach_of_its_own_that_was_cut_off(database: str) -> None:
    day = await aged(database, 5)
    old = f"delivery_log_{day - 5 * PARTITION:%Y%m%d}"
    await ask(database, f"comment on table {old} is '{MARK}'")
    await ask(database, f"alter table delivery_log detach partition {old}")
    assert (await Upkeep(database).run_once(4)).dropped == [old]
    assert not await is_there(database, old)


async def test_a_detach_that_upkeep_gave_up_leaves_no_mark(database: str) -> None:
    day = await aged(database, 5)
    old, older = (f"delivery_log_{day - i * PARTITION:%Y%m%d}" for i in (4, 5))
    async with transaction(database) as reader:
        await reader.execute("select count(*) from delivery_log")
        # Only one partition can be in the middle of being detached: the second is not even begun.
        assert (await Upkeep(database).run_once(3)).kept == [older, old]
    assert await mark_of(database, older) == MARK
    assert await mark_of(database, old) is None
    await ask(database, f"alter table delivery_log detach partition {older} finalize")
    await ask(database, f"alter table delivery_log detach partition {old}")
    assert (await Upkeep(database).run_once(3)).dropped == [older]
    assert await is_there(database, old)


async def test_a_mark_of_upkeep_that_was_killed_before_it_detached_is_taken_off(database: str) -> None:
    day = await aged(database, 2)
    kept = f"delivery_log_{day - 2 * PARTITION:%Y%m%d}"
    await ask(database, f"comment on table {kept} is '{MARK}'")
    await Upkeep(database).run_once(30)
    assert await mark_of(database, kept) is None
    await ask(database, f"alter table delivery_log detach partition {kept}")
    await Upkeep(database).run_once(1)
    assert await is_there(database, kept)


async def test_a_detach_that_somebody_else_has_begun_is_theirs_to_finish(database: str) -> None:
    day = await aged(database, 5)
    theirs = f"delivery_log_{day - 5 * PARTITION:%Y%m%d}"
    async with transaction(database) as reader:
        await reader.execute("select count(*) from delivery_log")
        impatient = f"{database}?options=-clock_timeout%3D100ms"
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await ask(impatient, f"alter table delivery_log detach partition {theirs} concurrently")
    done = await Upkeep(database).run_once(4)
    assert [trouble.what for trouble in done.trouble] == [theirs]
    assert f"detach partition {theirs} finalize" in str(done.trouble[0])
    assert await is_there(database, theirs)


async def test_what_somebody_put_into_the_schema_is_told_and_the_rest_is_done(database: str) -> None:
    day = await aged(database, 5)
    old, older = (f"delivery_log_{day - i * PARTITION:%Y%m%d}" for i in (4, 5))
    in_the_way = f"delivery_log_{day + 2 * PARTITION:%Y%m%d}"
    await ask(database, "create table delivery_log_20269999 (n int)")
    await ask(
        database, "create table delivery_log_00000101 partition of delivery_log for values in ('2099-01-01')"
    )
    await ask(database, f"create table {in_the_way} (n int)")
    await ask(database, f"create view depends as select push_id from {older}")
    for made in ([1, 3], []):
        done = await Upkeep(database).run_once(3)
        assert {trouble.what for trouble in done.trouble} == {
            "delivery_log_00000101", "delivery_log_20269999", in_the_way, older
        }  # fmt: skip
        assert [n[-8:] for n in done.made] == names([day + i * PARTITION for i in made])
    assert not await is_there(database, old)
    assert await is_there(database, "delivery_log_20269999")
    await ask(database, "drop view depends")
    assert (await Upkeep(database).run_once(3)).dropped == [older]


async def test_upkeep_of_a_database_that_only_reads_says_that_it_is_away(database: str) -> None:
    name = database.rpartition("/")[2]
    await ask(database, f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="25006"):
        await Upkeep(database).run_once(30)


async def content_partitions(dsn: str) -> list[str]:
    """The partitions of what rows share, by name."""
    rows = await ask(
        dsn,
        "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
        " where i.inhparent = 'push_content'::regclass order by 1",
    )
    return [name for (name,) in rows]


async def test_what_rows_share_has_a_partition_for_each_of_their_days_and_goes_with_them(
    database: str,
) -> None:
    day = await aged(database, 5)
    await Upkeep(database).run_once(30)
    days = [f"push_content_{day + n * PARTITION:%Y%m%d}" for n in range(-5, 4)]
    assert await content_partitions(database) == days
    assert f"delivery_log_{day - 5 * PARTITION:%Y%m%d}" in (await Upkeep(database).run_once(2)).dropped
    assert await content_partitions(database) == days[3:]


async def test_what_archived_rows_share_is_left_with_them_and_told_of(database: str) -> None:
    day = await aged(database, 5)
    await Upkeep(database).run_once(30)
    old = f"{day - 5 * PARTITION:%Y%m%d}"
    await execute(database, f"alter table delivery_log detach partition delivery_log_{old} concurrently")
    await execute(database, f"alter table delivery_log_{old} rename to archive_{old}")
    done = await Upkeep(database).run_once(2)
    assert [trouble.what for trouble in done.trouble] == [f"push_content_{old}"]
    assert f"push_content_{old}" in await content_partitions(database)
    await execute(database, f"alter table push_content detach partition push_content_{old} concurrently")
    assert (await Upkeep(database).run_once(2)).trouble == []
    assert await ask(database, f"select count(*) from push_content_{old}") == [(0,)]


async def test_upkeep_of_a_database_that_is_away_says_so() -> None:
    with pytest.raises(StoreUnavailable):
        await Upkeep("host=127.0.0.1 port=1 dbname=none user=none").run_once(30)


# --- Plans -----------------------------------------------------------------------------------------------


async def scans(dsn: str) -> dict[str, tuple[int, int]]:
    """Sequential and index scans of each partition so far, once every other backend has reported its own."""
    await eventually(dsn, "select count(*) = 1 from pg_stat_activity where datname = current_database()")
    rows = await ask(
        dsn,
        "select relname, seq_scan, coalesce(idx_scan, 0) from pg_stat_user_tables"
        " where relname like 'delivery_log\\_2%' order by 1",
    )
    return {name: (seq, idx) for name, seq, idx in rows}


async def test_keys_are_looked_up_by_index_in_the_days_that_matter(database: str) -> None:
    await aged(database, 5)
    filler = PostgresStore(database)
    for _ in range(5):
        await filler.record([row(f"f{random.random()}", user=f"u{i}") for i in range(1000)])
    await filler.close()
    before = await scans(database)
    others = "select sum(idx_scan) from pg_stat_user_indexes where indexrelname ~ '^delivery_log_2.*(node|owed|nullif)'"
    rolled = await ask(database, others)

    store = PostgresStore(database)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.record([row(f"n{i}", outcome=Outcome.PENDING) for i in range(100)]),
        lambda: store.record([row(f"n{i}", owed=()) for i in range(100)]),
        lambda: store.record([row(f"n{i}") for i in range(100)]),
        lambda: store.find([row(f"n{i}").key for i in range(100)]),
        lambda: store.owe({row("n1").key: (Reply("q"),)}),
        lambda: store.settle({row(f"n{i}").key: () for i in range(100)}),
        lambda: store.prove_late([LateProof(row("n1").key, 1.0)]),
    ]
    for call in calls:
        await call()
    await store.close()
    after = await scans(database)
    async with asyncio.timeout(10):
        while after == before:  # Postgres 14 has a process for these numbers, which is a moment behind
            after = await scans(database)
    days = sorted(after)
    assert [after[day][0] - before[day][0] for day in days] == [0] * len(days)
    # Today and the day before; a debt that is not found there is not looked for further back either, here.
    touched = [day for day in days if after[day] != before[day]]
    assert touched == days[-2:]
    # By key, not by reading all the rows that are open: there may be many.
    assert await ask(database, others) == rolled


async def test_the_sweeps_of_every_second_read_indexes_only(database: str) -> None:
    await aged(database, 3)
    filler = PostgresStore(database)
    await filler.record([row(f"f{i}") for i in range(1000)])
    await filler.close()
    await ask(database, "analyze delivery_log")
    before = await scans(database)
    store, lease = PostgresStore(database), PostgresLease(database, "n1", "b1")
    await lease.claim()
    await store.owing(10)
    await store.last_position()
    await store.roll_day()
    await lease.end_dead(10)
    await store.claim_fallbacks("n1", "b1", 10, 1000)
    await lease.release()
    await store.close()
    after = await scans(database)
    big = max(after)
    assert after[big][0] == before[big][0]


PARKED = 1_000_000
"""Rows of the test below: most in the four days before, the rest on a day that was empty when plans were made."""
_FILL = """
    insert into {} (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, node, boot, event, app_id, detail, traceparent, payload, owed,
        position, expires_at, encoding, collapse_key)
    select {}, '', {} || i, 'u' || i % 20000, 'stored', 'no_session', false, 2, 0, 0,
        t, t, 'n1', 'b0', 'chat', 'shop', '', '', 'some data', '[]',
        (extract(epoch from t) * 1000000)::bigint, now() + interval '3 days', 'json', 'k' || i % 7
    from (select i, {}::timestamptz + i * interval '0.3 s' as t from generate_series(1, {}) i) as g
    """


def fill(conn: psycopg.Connection, into: str, day: datetime.date, rows: int) -> None:
    values = map(sql.Literal, (day, f"{day} ", day, rows))
    conn.execute(sql.SQL(_FILL).format(sql.Identifier(into), *values))


class Plans:
    """A connection that tells the plan of each statement that it runs, of those in functions as well."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn
        self._told: list[str] = []
        conn.add_notice_handler(lambda d: self._told.append(d.message_primary or ""))
        conn.execute("set search_path to public")
        conn.execute("load 'auto_explain'")
        for name, value in (
            ("log_nested_statements", "on"), ("log_analyze", "on"), ("log_buffers", "on"), ("log_timing", "off"),
            ("log_format", "json"), ("log_min_duration", "0"),
        ):  # fmt: skip
            conn.execute(f"set auto_explain.{name} = {value}".encode())
        conn.execute("set client_min_messages = log")

    def run(self, query: str, params: Sequence[object] = ()) -> tuple[int, int, list[str]]:
        """Rows of the answer, pages touched, and the relations that were read as a whole."""
        self._told.clear()
        rows = self._conn.execute(query.encode(), params).fetchall()
        plans = [
            json.loads(told.partition("plan:")[2])["Plan"]
            for told in self._told
            if told.startswith("duration:")
        ]
        # That of the call itself includes those of the statements within.
        pages = max(p["Shared Hit Blocks"] + p["Shared Read Blocks"] for p in plans)
        return len(rows), pages, [name for plan in plans for name in whole(plan)]


def whole(plan: dict[str, Any]) -> list[str]:
    """The partitions of the log that a plan reads without an index."""
    name = plan.get("Relation Name", "")
    own = [name] if plan["Node Type"] == "Seq Scan" and name.startswith("delivery_log") else []
    return own + [name for child in plan.get("Plans", ()) for name in whole(child)]


def test_a_million_parked_rows_are_in_nobodys_way(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        [today] = conn.execute("select day from log_day").fetchone() or []
        conn.execute("set maintenance_work_mem = '256MB'")
        for back in range(4, 0, -1):
            day = today - back * PARTITION
            name = f"delivery_log_{day:%Y%m%d}"
            # Its indexes are made when it is attached: that is quicker than row by row.
            conn.execute(
                f"create unlogged table {name} (like delivery_log including defaults including constraints)".encode()
            )
            # An autovacuum in the middle makes the server plan anew, and the pages of its catalog count, too.
            conn.execute(f"alter table {name} set (autovacuum_enabled = off)".encode())
            fill(conn, name, day, PARKED // 5 + 40_000)
            conn.execute(f"alter table delivery_log attach partition {name} for values in ('{day}')".encode())
        newest = f"delivery_log_{today:%Y%m%d}"
        conn.execute(f"alter table {newest} set (autovacuum_enabled = off)".encode())
        conn.execute("update log_day set kept_since = day - 4")
        conn.execute("select claim_node('n1', 'b1', null)")
        conn.execute("update node set steady_since = steady_since - interval '10 s'")

        plans = Plans(conn)
        old = today - 3 * PARTITION
        record = f"select * from record_rows({', '.join(['%s'] * RECORD_PARAMS)})"

        def page(user: str, seen: int | None = None) -> tuple[object, ...]:
            last = "NULL" if seen is None else seen
            return f"{{{user}}}", "{s}", "{0}", f"{{{EVER}}}", f"{{{last}}}", "{20}", "{99999}"

        mailbox = "select * from mailbox_pages(%s, %s, %s, %s, %s, %s, %s)"
        hundred = [row(f"new{i:03}", user=f"u{i}") for i in range(100)]
        parked = [row(f"{old} {i}", user=f"u{i}", day=old, boot="b1") for i in range(100, 200)]
        empty = ("{}",) * RECORD_PARAMS
        calls: dict[str, tuple[str, Sequence[object], int, int]] = {
            # What is asked, its parameters, the rows that come back, and the most pages that it may touch.
            "first page": (mailbox, page("u77"), 20, 240),
            "first page of who resumes": (mailbox, page("u78", 5), 20, 360),
            "empty mailbox": (mailbox, page("nobody"), 0, 60),
            "expire": ("select * from expire_rows(500)", (), 0, 60),
            "end dead": ("select * from end_dead_rows('n1', 'b1', 500)", (), 0, 60),
            "owing": ("select * from owing_rows(500, 1000000)", (), 1, 90),
            "claim fallbacks": ("select * from claim_fallbacks('n1', 'b1', 500, 1000000)", (), 0, 60),
            "note a fallback": (
                "select * from note_fallbacks('b1', %s, '{\"\"}', %s, '{u85}')",
                (f"{{{old}}}", f"{{{old} 85}}"),
                0,
                60,
            ),
            "measure": ("select * from overfull('{u79}', 1000, 1000000)", (), 0, 150),
            "measure what is over": ("select * from overfull('{u79}', 10, 1000000)", (), 1, 90),
            "trim": ("select * from trim_stored('{u79}', '{9}', 500)", (), 0, 60),
            "next mailboxes": ("select * from users_with_mail('u5', 3)", (), 3, 180),
            "supersede": ("select * from supersede_rows('{\"\"}', '{u80}', '{none}', '{9}', 500)", (), 0, 60),
            "recall": ("select * from recall_push('', %s, '', 500)", (f"{old} 81",), 2, 130),
            "recall by key": ("select * from recall_stored('', 'u81', 'none', 500)", (), 0, 60),
            "recall what was delivered": (
                "select * from recall_delivered('', 'u81', 'none', 0, 500)",
                (),
                0,
                60,
            ),
            "last position": (
                "select l.position from delivery_log l where l.position is not null"
                " order by l.position desc limit 1",
                (),
                1,
                60,
            ),
            "ids": ("select * from ids_of_day(%s, '', 100)", (old,), 1, 60),
            "resume": ("select * from resume_points('{u82}', %s)", (f"{{{old} 82}}",), 1, 140),
            "gap": ("select * from dropped_since('{u82}', '{0}')", (), 1, 140),
            "find": (
                "select * from find_rows('{\"\",\"\"}', %s, '{u83,u1}')",
                (f"{{{old} 83,nothing}}",),
                1,
                80,
            ),
            "find the rows of a push": ("select * from rows_of_push('', %s, '', 500)", (f"{old} 84",), 1, 80),
            "try writing": ("select try_writing()", (), 1, 150),
            "record a hundred": (record, empty, 0, 3000),
            "the same again": (record, empty, 100, 4500),
            "end a hundred by their day": (record, empty, 100, 6000),
        }
        batches = {
            "record a hundred": hundred,
            "the same again": hundred,
            "end a hundred by their day": parked,
        }
        for query, params, _, _ in calls.values():
            plans.run(query, params)
        fill(conn, newest, today, PARKED // 25)
        for what, (query, params, rows, most) in calls.items():
            if what in batches:
                params = record_params(sorted(batches[what], key=lambda r: lock_order(r.key)))
            came, pages, seq_scans = plans.run(query, params)
            assert (what, came, seq_scans) == (what, rows, [])
            assert pages <= most, f"{what}: {pages} pages"
            print(f"| {what} | {came} | {pages} | {most} |")
        conn.execute("select make_partition(log_today() + 1)")
        _, pages, seq_scans = plans.run("select roll_day((select day from log_day) + 1)")
        # Nearly all are of the catalog, and newer releases read more of it: 423 in Postgres 15, 566 in 18.
        assert (seq_scans, pages < 800) == ([], True)
        assert conn.execute("select day - since, day - kept_since from log_day").fetchone() == (1, 5)


def test_plans_that_were_made_for_an_empty_log_are_right_when_it_has_grown(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        [today] = conn.execute("select day from log_day").fetchone() or []
        newest = f"delivery_log_{today:%Y%m%d}"
        conn.execute(f"alter table {newest} set (autovacuum_enabled = off)".encode())
        plans = Plans(conn)
        record = f"select * from record_rows({', '.join(['%s'] * RECORD_PARAMS)})"

        def calls(rows: Sequence[Row]) -> list[tuple[str, Sequence[object]]]:
            rows = sorted(rows, key=lambda r: lock_order(r.key))
            keys = key_params(r.key for r in rows)
            return [
                ("select * from find_rows(%s, %s, %s)", keys),
                (record, record_params(rows)),
                (record, record_params(rows)),
                ("select note_debts(%s, %s, %s, %s)", (*keys, nullable_texts(["[]"] * len(rows)))),
                (
                    "select settle_debts(%s, %s, %s, %s)",
                    (*keys, nullable_texts(["[]"] * len(rows))),
                ),
                ("select note_late_proofs(%s, %s, %s, %s)", (*keys, numbers([1.0] * len(rows)))),
            ]

        plans.run(record, record_params([kept_row("first")]))
        for query, params in calls([row("first")]):
            plans.run(query, params)
        fill(conn, newest, today, 20_000)
        for query, params in calls([row(f"{today} {i}", user=f"u{i}", proven_at=None) for i in range(100)]):
            _, pages, seq_scans = plans.run(query, params)
            assert (query, seq_scans) == (query, [])
            assert pages < 5000, f"{query}: {pages} pages"


async def test_upkeep_looks_for_open_rows_by_index(database: str) -> None:
    store = PostgresStore(database)
    await store.record([kept_row("p")])
    await store.close()
    day = await aged(database, 4)
    await ask(database, "update log_day set since = day - 1")
    before = await scans(database)
    first = day - 4 * PARTITION
    assert (await Upkeep(database).run_once(2)).kept == [f"delivery_log_{first:%Y%m%d}"]
    after = await scans(database)
    assert {name: after[name][0] - before[name][0] for name in before if name in after} == dict.fromkeys(
        before.keys() & after.keys(), 0
    )


@pytest.mark.parametrize(
    "query",
    [
        "select * from delivery where push_id = 'f7'",
        "select * from delivery where user_id = 'u7' order by taken_at desc limit 10",
        "select * from user_timeline where user_id = 'u7'",
        "select * from delivery where taken_at > now() + interval '100 years'",
    ],
)
async def test_what_people_ask_reads_an_index(database: str, query: str) -> None:
    store = PostgresStore(database)
    for n in range(5):
        await store.record([row(f"f{n}{i}", user=f"u{i}") for i in range(1000)])
    await store.close()
    await ask(database, "analyze delivery_log")
    plan = "\n".join(line for (line,) in await ask(database, f"explain {query}"))
    assert "Index" in plan
    # The words for each end are a page of 45 rows: once autovacuum has counted them, they are read whole.
    assert set(re.findall(r"Seq Scan on (\S+)", plan)) <= {"ending"}


async def test_late_proof_is_noted_of_the_newest_push_with_its_id(
    database: str, store: PostgresStore
) -> None:
    await store.record([row("a")])
    for _ in range(3):
        await ask(database, "select roll_day(day + 1) from log_day")
    await ask(database, "update log_day set kept_since = log_today() - 1")
    await store.record([row("a", outcome=Outcome.UNKNOWN, proven_at=None)])
    for _ in range(2):
        await store.prove_late([LateProof(row("a").key, NOON + 99)])
    late = await ask(
        database, "select late_at is not null from delivery_log where push_id = 'a' order by day"
    )
    assert late == [(False,), (True,)]


async def test_the_views_say_what_happened(database: str, store: PostgresStore) -> None:
    await store.record([row("a"), row("b", user="", outcome=Outcome.REJECTED, proven_at=None)])
    assert await ask(database, "select user_id from delivery order by push_id") == [("u",), (None,)]
    steps = await ask(database, "select step, push_id from user_timeline where user_id = 'u'")
    assert steps == [(s, "a") for s in ("published", "taken", "written", "proven", "finished")]
    await store.record([row("c", user="v", outcome=Outcome.UNKNOWN, proven_at=None)])
    await store.prove_late([LateProof(row("c", user="v").key, NOON + 99)])
    steps = await ask(database, "select step from user_timeline where user_id = 'v'")
    assert [step for (step,) in steps] == ["published", "taken", "written", "finished", "late"]


def test_a_url_and_a_list_of_words_are_both_fine(database: str) -> None:
    params = conninfo.conninfo_to_dict(database)
    user, host, port, name = (params[k] for k in ("user", "host", "port", "dbname"))
    url = f"postgresql://{user}:{params.get('password', '')}@{host}:{port}/{name}"
    for dsn in (url, conninfo.make_conninfo(url)):
        assert all(s.applied_at for s in migrate.status(dsn))
