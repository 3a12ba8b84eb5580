"""What every Store and Lease must do, run against each implementation: the one in memory and Postgres."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any, Protocol

import msgspec
import psycopg
import pytest

from bridge.adapters.memory import MemoryLease, MemoryStore
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.rows import columns, row_of
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.errors import NodeNameTaken, RowsRefused
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding, PushKey, Recall
from bridge.core.model.rows import Difference, LateProof, Reply, Row, RowKey
from bridge.core.ports.store import (
    Collapse,
    Lease,
    MailboxAsk,
    ResumeAsk,
    ResumePoint,
    Store,
    Superseded,
)
from tests.support.ports import ManualClock
from tests.support.rows import EVER, LATER, NOON, ids, kept_row, light, recalled, row, trimmed, undated


def undateds(written: Iterable[Row]) -> list[Row]:
    return [undated(r) for r in written]


class Subject(Protocol):
    """One implementation, and what a test must be able to do to its world."""

    @property
    def store(self) -> Store:
        """The store of this process."""

    def lease(self, node: str, boot: str) -> Lease:
        """A lease of its own process."""

    async def pass_time(self, seconds: float) -> None:
        """Let this time pass for leases."""

    async def pass_midnight(self) -> None:
        """The next day begins."""

    @property
    def now(self) -> float:
        """The store's clock."""

    async def all_rows(self) -> list[Row]:
        """What the log holds, data and all."""

    async def forget_boot(self, lease: Lease) -> None:
        """The process of this lease is killed."""


async def of_push(subject: Subject, push_id: str, tenant: str = "") -> list[Row]:
    """The rows of a push, data and all: the newest where a key has several."""
    rows = [r for r in await subject.all_rows() if (r.key.tenant, r.key.push_id) == (tenant, push_id)]
    newest: dict[RowKey, Row] = {}
    for found in sorted(rows, key=lambda r: r.day or datetime.date.min):
        newest[found.key] = found
    return list(newest.values())


async def known_ids(store: Store, limit: int = 100) -> list[str]:
    """Every id that the log knows, page by page, each once."""
    page = await store.ids(None, limit)
    found = list(page.ids)
    while page.next is not None:
        page = await store.ids(page.next, limit)
        found += page.ids
    return sorted(set(found))


class InMemory:
    def __init__(self) -> None:
        self.clock = ManualClock(NOON)
        self.store = MemoryStore(self.clock)

    def lease(self, node: str, boot: str) -> Lease:
        return MemoryLease(self.store, self.clock, node, boot)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def pass_midnight(self) -> None:
        self.clock.advance(86400)
        # The day is looked at by calls.
        await self.store.try_writing()

    @property
    def now(self) -> float:
        return self.clock.time()

    async def all_rows(self) -> list[Row]:
        return list(self.store.rows.values())

    async def forget_boot(self, lease: Lease) -> None:
        self.store.nodes.clear()


class InPostgres:
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.store = PostgresStore(dsn)
        self.leases: list[PostgresLease] = []

    def lease(self, node: str, boot: str) -> Lease:
        lease = PostgresLease(self.dsn, node, boot)
        self.leases.append(lease)
        return lease

    async def pass_time(self, seconds: float) -> None:
        # The database's clock can't be moved, so everything it has seen is moved back.
        await self._execute(
            "update node set seen_at = seen_at - make_interval(secs => %(s)s),"
            " steady_since = steady_since - make_interval(secs => %(s)s)",
            {"s": seconds},
        )

    async def pass_midnight(self) -> None:
        await self._execute("select roll_day((select day from log_day) + 1)", {})

    @property
    def now(self) -> float:
        return time.time()

    async def all_rows(self) -> list[Row]:
        query = f"select {columns('w', data=True, excluded=True)} from delivery_log l cross join lateral whole(l) w"
        async with await psycopg.AsyncConnection.connect(self.dsn) as conn:
            cursor = conn.cursor(binary=True)
            return [row_of(record) for record in await (await cursor.execute(query.encode())).fetchall()]

    async def forget_boot(self, lease: Lease) -> None:
        assert isinstance(lease, PostgresLease)
        lease._disconnect()

    async def _execute(self, query: str, params: dict[str, object]) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            await conn.execute(query.encode(), params)

    async def close(self) -> None:
        await self.store.close()
        for lease in self.leases:
            await lease.release()


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield InMemory()
        return
    postgres = InPostgres(request.getfixturevalue("database"))
    yield postgres
    await postgres.close()


@pytest.fixture
def store(subject: Subject) -> Store:
    return subject.store


# --- record ----------------------------------------------------------------------------------------------


async def test_a_new_row_is_applied_and_found_as_it_was_written(store: Store, subject: Subject) -> None:
    full = row(
        meta=b'{"campaign": "spring"}',
        confirm=Proof.ACKED,
        detail="to.user: wrong",
        payload=b'\x00\xff "{}',
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        owed=(Reply("replies", "c1"), Reply("more", "")),
        sessions=2,
        attempts=3,
    )
    [written] = await store.record([full])
    assert written.applied
    assert written.row == full
    [found] = await of_push(subject, "p")
    assert found.day is not None
    assert undated(found) == full


async def test_the_answer_has_one_entry_per_row_in_the_order_of_the_batch(store: Store) -> None:
    await store.record([row("b"), row("d", outcome=Outcome.PENDING)])
    batch = [row(i, detail="new") for i in ("d", "c", "b", "a")]
    batch.insert(1, row("e", detail="new", outcome=Outcome.PENDING))
    answer = await store.record(batch)
    assert [w.row.key for w in answer] == [r.key for r in batch]
    assert [(w.applied, w.row.detail) for w in answer] == [
        (True, "new"), (True, "new"), (True, "new"), (False, ""), (True, "new"),
    ]  # fmt: skip


async def test_an_empty_batch_is_nothing_to_do(store: Store) -> None:
    assert await store.record([]) == []
    assert await store.find([]) == []
    await store.owe({})
    await store.settle({})
    await store.prove_late([])
    assert await store.owing(10) == []
    assert (await store.ids(None, 10)).ids == []


async def test_a_final_row_never_changes(store: Store, subject: Subject) -> None:
    first = row(outcome=Outcome.RECEIVED)
    await store.record([first])
    for other in (Outcome.UNKNOWN, Outcome.ACKED, Outcome.PENDING):
        [written] = await store.record([row(outcome=other, boot="b2", detail="later", attempts=9)])
        assert not written.applied
        assert undated(written.row) == first
    assert undateds(await of_push(subject, "p")) == [first]


async def test_a_row_says_who_gave_the_best_proof_and_its_topic(store: Store, subject: Subject) -> None:
    await store.record(
        [row(outcome=Outcome.PENDING, topic="t", session="s1", proven_at=None), row("q"), row("r", topic="")]
    )
    assert [(one.topic, one.session, one.holder) for one in await of_push(subject, "p")] == [("t", "s1", "")]
    steps: list[tuple[dict[str, Any], tuple[str, str]]] = [
        ({"session": "s2", "holder": "n2", "proven_at": None}, ("s1", "")),  # no better than that of s1
        ({"session": "s2", "holder": "n2", "proven_at": NOON + 1}, ("s2", "n2")),
        ({"session": "", "proven_at": None}, ("s2", "n2")),
        ({"session": "s3", "proven_at": NOON + 2}, ("s3", "")),
        ({"session": "", "node": "n9", "proven_at": None}, ("s3", "n1")),  # another node has the row now
        ({"session": "", "node": "n8", "proven_at": None}, ("s3", "n1")),
        ({"session": "", "node": "n1", "proven_at": None}, ("s3", "")),
    ]
    for more, expected in steps:
        [written] = await store.record([row(outcome=Outcome.PENDING, **more)])
        assert (written.row.topic, written.row.session, written.row.holder) == ("t", *expected)


async def test_a_pending_row_becomes_final_and_keeps_what_was_known_first(
    store: Store, subject: Subject
) -> None:
    pending = row(outcome=Outcome.PENDING, owed=(Reply("q", "1"),), sessions=3, meta=b'{"a": "b"}')
    await store.record([pending])
    later = row(
        published_at=NOON + 50, taken_at=NOON + 60, written_at=NOON + 61, proven_at=NOON + 62,
        finished_at=NOON + 63, attempts=4, sessions=1, detail="late", meta=b"",
    )  # fmt: skip
    [written] = await store.record([later])
    assert written.applied
    now = written.row
    assert (now.outcome, now.reason, now.final, now.detail) == (Outcome.RECEIVED, Reason.PONG, True, "late")
    assert (now.published_at, now.taken_at, now.written_at) == (NOON - 1, NOON, NOON + 0.25)
    assert (now.proven_at, now.finished_at) == (NOON + 62, NOON + 63)
    assert (now.owed, now.attempts, now.sessions) == ((Reply("q", "1"),), 4, 3)
    assert now.meta == b'{"a": "b"}'
    assert await of_push(subject, "p") == [now]


async def test_attempts_of_another_boot_are_added(store: Store) -> None:
    await store.record([row(outcome=Outcome.PENDING, attempts=2)])
    [written] = await store.record([row(outcome=Outcome.PENDING, attempts=3, boot="b2")])
    assert (written.row.attempts, written.row.boot) == (5, "b2")
    [again] = await store.record([row(attempts=4, boot="b2")])
    assert again.row.attempts == 5


async def test_an_update_adds_the_replies_that_are_new(store: Store) -> None:
    a, b, c = Reply("q", "a"), Reply("q", "b"), Reply("r", "a")
    await store.record([row(outcome=Outcome.PENDING, owed=(a, b))])
    [written] = await store.record([row(outcome=Outcome.PENDING, owed=(b, c))])
    assert written.applied
    assert written.row.owed == (a, b, c)
    [final] = await store.record([row(owed=None)])
    assert final.row.owed == (a, b, c)


async def test_a_row_that_owes_nothing_begins_to_owe_by_an_update(store: Store) -> None:
    await store.record([row(outcome=Outcome.PENDING, owed=None)])
    [written] = await store.record([row(outcome=Outcome.PENDING, owed=())])
    assert written.row.owed == ()


async def test_the_same_write_again_changes_nothing(store: Store) -> None:
    batch = [row("a"), row("b", outcome=Outcome.PENDING, owed=(Reply("q", "1"),)), row("c", user="")]
    before = [w.row for w in await store.record(batch)]
    again = await store.record(batch)
    assert undateds(w.row for w in again) == before
    assert [w.applied for w in again] == [False, True, False]


async def test_tenants_and_users_have_rows_of_their_own(store: Store, subject: Subject) -> None:
    keys = [RowKey(t, p, u) for t in ("", "t") for p in ("", "p") for u in ("", "u")]
    answer = await store.record([row(key=key) for key in keys])
    assert all(w.applied for w in answer)
    assert {r.key for r in await subject.all_rows()} == set(keys)
    assert {r.key.user for r in await of_push(subject, "p", "t")} == {"", "u"}


async def test_two_writers_of_the_same_keys_agree_on_one_row_each(store: Store, subject: Subject) -> None:
    rounds = 20
    for i in range(rounds):
        ids = [f"{i}-{n}" for n in range(20)]
        one, two = await asyncio.gather(
            store.record([row(p, boot="one") for p in ids]),
            store.record([row(p, boot="two", outcome=Outcome.UNKNOWN) for p in reversed(ids)]),
        )
        for a, b in zip(one, reversed(two), strict=True):
            assert a.applied != b.applied
            assert undated(a.row) == undated(b.row)
    assert len(await subject.all_rows()) == rounds * 20


async def test_a_thousand_rows_at_once(store: Store, subject: Subject) -> None:
    batch = [row(f"p{i % 10}", user=f"u{i}", attempts=i) for i in range(1000)]
    assert all(w.applied for w in await store.record(batch))
    found = await subject.all_rows()
    assert {r.key: undated(r) for r in found} == {r.key: r for r in batch}
    assert not any(w.applied for w in await store.record(batch))


AWKWARD = [
    "NULL", "null", '"', '""', "\\", "\\\\", '\\"', "{}", "{,}", ",", "'", "'; drop table node; --", "%s", "%",
    " ", " x ", "(a,b)", "\\x00", "\\N", "naïve", "日本語", "😀", "👩‍👩‍👧", "\U0010ffff",
    "e\u0301", "\ufeff", "\t\r\n", "a" * 128,
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
async def test_awkward_text_comes_back_as_it_went_in(store: Store, subject: Subject, text: str) -> None:
    odd = row(
        key=RowKey(text, text, text), node=text, boot=text, event=text, app_id=text, detail=text,
        traceparent=text, payload=text.encode(), owed=(Reply(text, text),), outcome=Outcome.PENDING,
    )  # fmt: skip
    plain = row("plain")
    assert [w.applied for w in await store.record([plain, odd])] == [True, True]
    assert undateds(await of_push(subject, text, text)) == [odd]
    [done] = await store.record([row(key=odd.key, detail=text, node=text, boot=text)])
    assert done.row.owed == (Reply(text, text),)
    await store.owe({odd.key: (Reply(text, "2"),)})
    await store.settle({plain.key: ()})
    [owing] = await store.owing(10)
    assert owing.owed == (Reply(text, text), Reply(text, "2"))
    await store.settle({odd.key: owing.owed})
    assert await store.owing(10) == []


async def test_replies_with_text_that_no_json_of_the_database_holds_are_kept(store: Store) -> None:
    odd = (Reply("q\0", "\ud800"), Reply("\udcff", "\0"))
    await store.record([row(outcome=Outcome.PENDING, owed=odd[:1])])
    [done] = await store.record([row()])
    await store.owe({done.row.key: odd})
    [owing] = await store.owing(1)
    assert owing.owed == odd


@pytest.mark.parametrize("field", ["event", "app_id", "detail", "traceparent", "key"])
@pytest.mark.parametrize("bad", ["a\0b", "\0", "\ud800", "x\udfff"])
async def test_text_that_can_not_be_stored_is_refused_with_nothing_written(
    store: Store, subject: Subject, field: str, bad: str
) -> None:
    changed: dict[str, object] = {field: RowKey("", "p1", bad) if field == "key" else bad}
    broken = msgspec.structs.replace(row("p1"), **changed)
    with pytest.raises(RowsRefused) as refused:
        await store.record([row("p0"), broken, row("p2")])
    assert refused.value.sqlstate.startswith("22")
    assert await subject.all_rows() == []
    assert all(w.applied for w in await store.record([row("p0"), row("p2")]))


@pytest.mark.parametrize("wrong", [float("nan"), 1e20, -1e20])
async def test_a_time_that_is_none_is_refused(store: Store, subject: Subject, wrong: float) -> None:
    with pytest.raises(RowsRefused):
        await store.record([row("p0"), row("p1", published_at=wrong)])
    assert await subject.all_rows() == []


# --- Days ------------------------------------------------------------------------------------------------


async def test_a_key_of_yesterday_is_not_inserted_again(store: Store, subject: Subject) -> None:
    before = row()
    await store.record([before])
    await subject.pass_midnight()
    [written] = await store.record([row(outcome=Outcome.UNKNOWN, boot="b2")])
    assert (written.applied, undated(written.row)) == (False, before)
    assert undateds(await subject.all_rows()) == [before]


async def test_a_row_that_was_pending_at_midnight_ends_where_it_is(store: Store, subject: Subject) -> None:
    await store.record([row(outcome=Outcome.PENDING), row("q", outcome=Outcome.PENDING)])
    await subject.pass_midnight()
    answer = await store.record([row(), row("new"), row("q", outcome=Outcome.UNKNOWN, proven_at=None)])
    assert [w.applied for w in answer] == [True, True, True]
    ends = {r.key.push_id: r.outcome for r in await subject.all_rows()}
    assert ends == {"p": Outcome.RECEIVED, "new": Outcome.RECEIVED, "q": Outcome.UNKNOWN}
    assert [w.applied for w in await store.record([row(), row("new")])] == [False, False]


async def test_a_row_that_stayed_pending_for_days_still_has_no_double(store: Store, subject: Subject) -> None:
    await store.record([row(outcome=Outcome.PENDING)])
    for _ in range(4):
        await subject.pass_midnight()
    [written] = await store.record([row()])
    assert written.applied
    assert (written.row.outcome, written.row.owed) == (Outcome.RECEIVED, ())
    assert len(await subject.all_rows()) == 1


async def test_an_id_may_come_again_when_two_midnights_have_passed(store: Store, subject: Subject) -> None:
    await store.record([row()])
    await subject.pass_midnight()
    await subject.pass_midnight()
    [written] = await store.record([row(boot="b2")])
    assert written.applied
    assert [r.boot for r in await of_push(subject, "p")] == ["b2"]


async def test_everything_reaches_rows_of_yesterday(store: Store, subject: Subject) -> None:
    await store.record([row(proven_at=None, outcome=Outcome.UNKNOWN)])
    await subject.pass_midnight()
    await store.record([row("today")])
    await store.prove_late([LateProof(RowKey("", "p", "u"), NOON + 9)])
    await store.owe({RowKey("", "p", "u"): (Reply("q", "1"),)})
    [found] = await of_push(subject, "p")
    assert (found.proven_at, found.owed) == (NOON + 9, (Reply("q", "1"),))
    assert await known_ids(store) == ["p", "today"]
    await subject.pass_midnight()
    await subject.pass_midnight()
    assert [r.key.push_id for r in await store.owing(5)] == ["p"]
    await store.settle({found.key: found.owed or ()})
    assert await store.owing(5) == []


# --- Debts -----------------------------------------------------------------------------------------------


async def test_debts_are_noted_added_to_and_settled(store: Store) -> None:
    a, b = Reply("q", "a"), Reply("q", "b")
    await store.record([row("x"), row("y"), row("z")])
    assert await store.owing(10) == []
    await store.owe({row("x").key: (), row("y").key: (a,)})
    await store.owe({row("y").key: (b, a)})
    await store.owe({row("y").key: (b,), RowKey("", "nobody", "knows"): (a,)})
    assert {r.key.push_id: r.owed for r in await store.owing(10)} == {"x": (), "y": (a, b)}
    await store.settle({row("y").key: (a, b), row("z").key: (), RowKey("", "nobody", "knows"): ()})
    assert [r.key.push_id for r in await store.owing(10)] == ["x"]
    await store.settle({row("y").key: (), row("x").key: ()})
    assert await store.owing(10) == []


async def test_a_reply_that_is_noted_while_others_are_paid_stays_owed(store: Store) -> None:
    a, b = Reply("q", "a"), Reply("q", "b")
    await store.record([row("x"), row("y")])
    await store.owe({row("x").key: (a, b), row("y").key: (b,)})
    await store.settle({row("x").key: (a,), row("y").key: (a,)})
    assert {r.key.push_id: r.owed for r in await store.owing(10)} == {"x": (b,), "y": (b,)}
    await store.settle({row("x").key: (b,), row("y").key: (b,)})
    assert await store.owing(10) == []


async def test_owing_gives_final_rows_only_the_oldest_first_and_no_more_than_asked(store: Store) -> None:
    await store.record(
        [row(f"p{i}", taken_at=NOON + (7 * i) % 10, owed=()) for i in range(10)]
        + [row("pending", outcome=Outcome.PENDING, taken_at=NOON - 5)]
    )
    assert [r.taken_at for r in await store.owing(4)] == [NOON, NOON + 1, NOON + 2, NOON + 3]
    assert len(await store.owing(100)) == 10


# --- Late proof, recent ids ------------------------------------------------------------------------------


async def test_late_proof_fills_empty_times_of_a_final_row_and_nothing_else(
    store: Store, subject: Subject
) -> None:
    unknown = row("late", outcome=Outcome.UNKNOWN, reason=Reason.NO_PROOF, proven_at=None)
    proven, pending = row("proven"), row("pending", outcome=Outcome.PENDING)
    await store.record([unknown, proven, pending])
    for at in (NOON + 7, NOON + 8):
        await store.prove_late(
            [LateProof(r.key, at) for r in (unknown, proven, pending)] + [LateProof(RowKey("", "?", ""), at)]
        )
    found = {r.key.push_id: r for r in await subject.all_rows()}
    assert (found["late"].proven_at, found["late"].late_at) == (NOON + 7, NOON + 7)
    assert (found["late"].outcome, found["late"].reason) == (Outcome.UNKNOWN, Reason.NO_PROOF)
    assert undated(found["proven"]) == msgspec.structs.replace(proven, late_at=NOON + 7)
    assert undated(found["pending"]) == pending


async def test_of_two_late_proofs_in_one_call_the_earlier_counts(store: Store, subject: Subject) -> None:
    await store.record([row(outcome=Outcome.UNKNOWN, proven_at=None)])
    key = row().key
    await store.prove_late([LateProof(key, NOON + 9), LateProof(key, NOON + 8)])
    [found] = await of_push(subject, "p")
    assert found.proven_at == NOON + 8


async def test_a_difference_is_noted_once_in_any_row_and_changes_nothing_else(
    store: Store, subject: Subject
) -> None:
    final, pending = row("final", fingerprint=7), row("pending", outcome=Outcome.PENDING, fingerprint=8)
    await store.record([final, pending])
    assert not await store.differing([])
    for at in (NOON + 9, NOON + 10):
        noted = [Difference(key, at) for key in (final.key, pending.key, RowKey("", "?", ""))]
        assert not await store.differing([*noted, Difference(final.key, at - 1)])
    found = {r.key.push_id: undated(r) for r in await subject.all_rows()}
    assert found == {
        "final": msgspec.structs.replace(final, differed_at=NOON + 8),
        "pending": msgspec.structs.replace(pending, differed_at=NOON + 9),
    }


async def test_a_row_keeps_the_fingerprint_that_it_began_with(store: Store) -> None:
    await store.record([row(outcome=Outcome.PENDING, fingerprint=7)])
    [written] = await store.record([row(fingerprint=8)])
    assert (written.applied, written.row.fingerprint) == (True, 7)


async def test_what_a_row_owes_keeps_that_the_content_differs(store: Store, subject: Subject) -> None:
    await store.record([row(owed=(Reply("q", "c"),), outcome=Outcome.PENDING)])
    differs = Reply("q", "c", differs=True)
    await store.owe({row().key: (differs,)})
    [found] = await of_push(subject, "p")
    assert found.owed == (Reply("q", "c"), differs)
    await store.settle({row().key: (Reply("q", "c"),)})
    [found] = await of_push(subject, "p")
    assert found.owed == (differs,)


async def test_ids_of_two_days_come_in_pages_that_look_at_so_many_rows(
    store: Store, subject: Subject
) -> None:
    await store.record([row("gone")])
    await subject.pass_midnight()
    await store.record([row("before", user=f"u{u}") for u in range(30)] + [row("p0")])
    await subject.pass_midnight()
    await store.record(
        [row(f"p{i}", user=f"u{u}") for i in range(7) for u in range(5)]
        + [
            row("q", outcome=Outcome.PENDING),
            kept_row("r"),
            row("s", user=""),
            row(key=RowKey("t", "p1", "u")),
        ]
    )
    everything = ["before", "p0", "p1", "p2", "p3", "p4", "p5", "p6", "q", "r", "s"]
    for limit in (1, 3, 5, 1000):
        assert await known_ids(store, limit) == everything
    first = await store.ids(None, 10)
    assert len(first.ids) <= 10


async def test_the_count_of_others_tells_whether_another_process_has_written(store: Store) -> None:
    assert (await store.rows_of_others("b1")).rows == 0
    await store.record([row("a"), row("b", outcome=Outcome.PENDING)])
    assert (await store.rows_of_others("b1")).rows == 0
    await store.record([row("c", boot="b2"), row("a", boot="b2")])
    assert (await store.rows_of_others("b1")).rows == 1
    assert (await store.rows_of_others("b2")).rows == 2


async def test_as_many_rows_of_others_on_a_later_day_are_not_the_same_rows(
    store: Store, subject: Subject
) -> None:
    await store.record([row("a", boot="b2")])
    before = await store.rows_of_others("b1")
    for _ in range(2):
        await subject.pass_midnight()
    await store.record([row("b", boot="b2")])
    assert await store.rows_of_others("b1") != before


async def test_rows_are_found_by_their_keys_and_carry_no_data(store: Store, subject: Subject) -> None:
    await store.record([kept_row("p", user=u, meta=b'{"a":"b"}', excluded=frozenset("s")) for u in "abc"])
    await store.record([row("q"), row(key=RowKey("t", "p", "a"))])
    keys = [RowKey("", "p", "a"), RowKey("", "p", "c"), RowKey("", "q", "u"), RowKey("", "q", "nobody")]
    found = {r.key: r for r in await store.find([*keys, keys[0]])}
    assert set(found) == set(keys[:3])
    assert all((r.payload, r.excluded, r.meta) == (None, frozenset(), b"") for r in found.values())
    assert found[keys[0]].position == 1
    await subject.pass_midnight()
    await subject.pass_midnight()
    assert {r.key for r in await store.find(keys)} == {*keys[:3]}, "as far back as anything is stored"


async def test_the_rows_of_a_push_come_in_pages_by_user(store: Store) -> None:
    users = sorted([f"u{i:02}" for i in range(23)] + ["", "ü", "\U0010ffff"], key=str.encode)
    await store.record([row("p", user=user) for user in users] + [row("q"), row(key=RowKey("t", "p", "x"))])
    for limit in (1, 5, 26, 27):
        got: list[str] = []
        place: str | None = ""
        while place is not None:
            page = await store.find_push(PushKey("", "p"), place, limit)
            assert len(page.rows) <= limit
            got += [r.key.user for r in page.rows]
            place = page.next_user
        assert got == users


async def test_a_row_that_is_tried_leaves_nothing_behind(store: Store, subject: Subject) -> None:
    await store.try_writing()
    assert await subject.all_rows() == []
    assert (await store.rows_of_others("b1")).rows == 0


@pytest.mark.parametrize("confirm", [Proof.RECEIVED, Proof.ACKED])
async def test_what_many_rows_have_in_common_is_the_same_for_each(
    store: Store, subject: Subject, confirm: Proof
) -> None:
    data, excluded = b"x" * 5000, frozenset(f"s{i}" for i in range(500))
    meta = b'{"campaign": "%s"}' % (b"y" * 250)
    shared = [
        kept_row("p", user=f"u{i}", payload=data, excluded=excluded, meta=meta, confirm=confirm)
        for i in range(40)
    ]
    others = [kept_row("q", payload=data), kept_row("r", payload=data, meta=meta), row("s", meta=meta)]
    await store.record([*shared, *others])
    found = {r.key: undated(r) for r in await subject.all_rows()}
    assert found == {r.key: r for r in (*shared, *others)}
    [page, none] = await store.mailbox(
        [MailboxAsk("u7", 0, EVER, session="x"), MailboxAsk("u8", 0, EVER, session="s8")]
    )
    assert [undated(r) for r in page.rows] == [msgspec.structs.replace(shared[7], excluded=frozenset())]
    assert list(none.rows) == []
    await subject.pass_midnight()
    [again] = await store.record([msgspec.structs.replace(shared[7], reason=Reason.NO_PROOF)])
    assert again.row.reason is Reason.NO_PROOF
    assert again.row.meta == meta
    [page] = await store.mailbox([MailboxAsk("u7", 0, EVER)])
    assert page.rows[0].payload == data


# --- Kept pushes -----------------------------------------------------------------------------------------


async def ask(
    store: Store, user: str = "u", after: int = 0, until: int = EVER, **more: int | None
) -> list[str]:
    """The ids on one page."""
    [page] = await store.mailbox([MailboxAsk(user, after, until, **more)])  # type: ignore[arg-type]
    return ids(page.rows)


async def test_a_kept_row_comes_back_as_it_was_written(store: Store, subject: Subject) -> None:
    full = kept_row(
        position=2**53 + 1, encoding=Encoding.BYTES, payload=b"\x00\xff", excluded=frozenset(("s1", 's"2')),
        collapse_key="score", ack_within=7.5, confirm=Proof.ACKED, meta=b'{"a": "b"}', owed=(Reply("q", "1"),),
        first_device=True,
    )  # fmt: skip
    text = kept_row("t", encoding=Encoding.TEXT, payload=b"")
    [written, _] = await store.record([full, text])
    assert (written.applied, undated(written.row)) == (True, full)
    assert undateds([*await of_push(subject, "p"), *await of_push(subject, "t")]) == [full, text]
    [page] = await store.mailbox([MailboxAsk("u", 0, EVER)])
    assert undateds(page.rows) == [text, msgspec.structs.replace(full, excluded=frozenset())]
    assert {r.day for r in page.rows} == {r.day for r in await of_push(subject, "p")}


async def test_an_update_keeps_what_only_a_kept_push_has(store: Store, subject: Subject) -> None:
    first = kept_row(
        excluded=frozenset(("s",)), collapse_key="k", ack_within=2.0, encoding=Encoding.TEXT,
        owed=(Reply("q", "1"),), taken_at=NOON - 9,
    )  # fmt: skip
    await store.record([first])
    bare = row(outcome=Outcome.STORED, reason=Reason.NO_PROOF, proven_at=None, finished_at=None, owed=None)
    other = kept_row(
        position=9, excluded=frozenset(("t",)), collapse_key="l", ack_within=3.0, expires_at=LATER + 1,
        payload=b"other", owed=(Reply("q", "2"),), reason=Reason.AWAITING_PROOF, published_at=NOON + 3,
    )  # fmt: skip
    for new in (bare, other, row(outcome=Outcome.RECEIVED, payload=b"body")):
        [written] = await store.record([new])
        assert written.applied
        now = written.row
        assert (now.outcome, now.reason, now.finished_at) == (new.outcome, new.reason, new.finished_at)
        [whole] = await of_push(subject, "p")
        assert light(whole) == now
        for name in (
            "payload", "position", "expires_at", "encoding", "excluded", "collapse_key", "ack_within",
            "published_at", "taken_at",
        ):  # fmt: skip
            assert getattr(whole, name) == getattr(first, name), name
    assert now.owed == (Reply("q", "1"), Reply("q", "2"))
    assert [light(r) for r in await of_push(subject, "p")] == [now]


async def test_a_pending_row_may_become_a_kept_one(store: Store, subject: Subject) -> None:
    await store.record([row(outcome=Outcome.PENDING)])
    [written] = await store.record([kept_row(position=5, collapse_key="k")])
    assert (written.row.position, written.row.collapse_key) == (5, "k")
    assert [r.payload for r in await of_push(subject, "p")] == [b'{"n": 1}']
    assert await ask(store) == ["p"]


async def test_the_mailbox_gives_stored_rows_in_the_order_of_their_positions(store: Store) -> None:
    await store.record([kept_row(f"p{i}", position=10 + (i * 7) % 10) for i in range(10)])
    await store.record([kept_row("other", user="v"), kept_row("other tenant", position=15)])
    await store.record([row("plain", outcome=Outcome.PENDING), row("ended")])
    expected = sorted(range(10), key=lambda i: (i * 7) % 10)
    assert [i for i in await ask(store) if i != "other tenant"] == [f"p{i}" for i in expected]


async def test_a_page_is_cut_by_positions_rows_and_bytes_and_the_next_goes_on(store: Store) -> None:
    await store.record([kept_row(f"p{i}", position=i, payload=b"x" * 10 * i) for i in range(1, 9)])
    assert await ask(store, after=3, until=6) == ["p4", "p5", "p6"]
    assert await ask(store, after=2, rows=3) == ["p3", "p4", "p5"]
    # 10 + 20 + 30: the row that reaches the bound is the last, and one that is larger comes alone.
    assert await ask(store, payload_bytes=31) == ["p1", "p2", "p3"]
    assert await ask(store, payload_bytes=30) == ["p1", "p2"]
    assert await ask(store, after=7, payload_bytes=5) == ["p8"]
    assert await ask(store, after=8) == []
    assert await ask(store, until=0) == []


async def test_a_page_never_ends_between_two_rows_of_one_position(store: Store) -> None:
    await store.record([kept_row(f"p{i}", position=5 + i // 3) for i in range(7)])
    whole = [f"p{i}" for i in range(6)]
    assert sorted(await ask(store, rows=4)) == whole
    assert sorted(await ask(store, payload_bytes=4 * 8)) == whole
    assert await ask(store, after=6, rows=4) == ["p6"]


async def test_pages_come_in_the_order_of_the_asks(store: Store, subject: Subject) -> None:
    await store.record(
        [kept_row(f"{u}{i}", user=f"u{u}", position=i) for u in range(50) for i in range(1, 4)]
    )
    await subject.pass_midnight()
    await store.record([kept_row(f"{u}4", user=f"u{u}", position=4) for u in range(50)])
    asks = [MailboxAsk(f"u{u}", u % 4, EVER, rows=3) for u in reversed(range(50))] + [
        MailboxAsk("nobody", 0, 9)
    ]
    pages = await store.mailbox([*asks, asks[0]])
    assert [ids(page.rows) for page in pages] == [
        *([f"{u}{i}" for i in range(u % 4 + 1, 5)][:3] for u in reversed(range(50))), [],
        [f"49{i}" for i in (2, 3, 4)],
    ]  # fmt: skip
    assert await store.mailbox([]) == []


async def test_a_mailbox_goes_over_all_days_by_position(store: Store, subject: Subject) -> None:
    for day in range(4):
        await store.record([kept_row(f"d{day}", position=10 - day), kept_row(f"e{day}", position=20 + day)])
        await subject.pass_midnight()
    assert await ask(store) == ["d3", "d2", "d1", "d0", "e0", "e1", "e2", "e3"]
    assert await ask(store, after=8, rows=4) == ["d1", "d0", "e0", "e1"]


async def test_a_row_whose_ttl_has_ended_is_in_no_mailbox(store: Store, subject: Subject) -> None:
    await store.record(
        [
            kept_row("over", expires_at=subject.now - 1),
            kept_row("there"),
            kept_row("seen", expires_at=subject.now - 1),
        ]
    )
    await store.record([row("seen")])
    assert await ask(store) == ["there"]
    assert await ask(store, seen=0) == ["there"]


async def test_who_resumes_gets_what_was_delivered_since_as_well(store: Store) -> None:
    delivered = [Outcome.ACKED, Outcome.RECEIVED, Outcome.WRITTEN]
    others = [Outcome.EXPIRED, Outcome.SUPERSEDED, Outcome.DROPPED, Outcome.RECALLED, Outcome.REJECTED]
    await store.record([kept_row(o, position=10 + i, outcome=o) for i, o in enumerate([*delivered, *others])])
    await store.record(
        [
            kept_row("before", position=2),
            kept_row("seen", position=9, outcome=Outcome.ACKED),
            kept_row("bare", position=30, outcome=Outcome.ACKED, payload=None),
            kept_row("after", position=40),
            row("plain"),
        ]
    )
    assert await ask(store) == ["before", "after"]
    assert await ask(store, seen=9) == ["before", *delivered, "after"]
    assert await ask(store, seen=11) == ["before", Outcome.WRITTEN, "after"]
    assert await ask(store, seen=9, after=10, until=40, rows=2) == [Outcome.RECEIVED, Outcome.WRITTEN]


async def test_a_resume_begins_at_the_position_of_the_push_last_seen(store: Store, subject: Subject) -> None:
    await store.record(
        [
            kept_row("a", position=5),
            kept_row("a", user="v", position=7),
            kept_row("a", position=6, key=RowKey("t", "a", "u")),
            kept_row("ended", position=8, outcome=Outcome.EXPIRED),
            row("plain", taken_at=NOON + 0.000001),
        ]
    )
    asks = [ResumeAsk("u", p) for p in ("plain", "a", "ended", "unknown")] + [ResumeAsk("v", "a")]
    for _ in range(4):
        assert list(await store.resume_points(asks)) == [
            ResumePoint(int(NOON) * 1_000_000 + 1, False), ResumePoint(5, False), ResumePoint(8, False), None,
            ResumePoint(7, False),
        ]  # fmt: skip
        await subject.pass_midnight()
    assert await store.resume_points([]) == []


async def test_a_resume_knows_whether_something_newer_was_dropped(store: Store) -> None:
    await store.record([kept_row(f"p{i}", position=i) for i in range(1, 6)])
    assert await store.dropped_since([("u", 0)]) == [False]
    assert sorted(ids(await trimmed(store, ["u"], 2, 999))) == ["p1", "p2", "p3"]
    places = [("u", 2), ("u", 3), ("v", 0), ("u", 0)]
    assert await store.dropped_since(places) == [True, False, False, True]
    assert await store.dropped_since([]) == []
    points = await store.resume_points([ResumeAsk("u", f"p{i}") for i in range(1, 6)])
    assert points == [ResumePoint(i, cut=i < 3) for i in range(1, 6)]
    await store.record([kept_row("other", user="v", position=1), row("slow", outcome=Outcome.DROPPED)])
    assert await store.resume_points([ResumeAsk("v", "other")]) == [ResumePoint(1, False)]


async def test_what_is_over_its_ttl_ends_the_earliest_first_and_no_more_than_asked(
    store: Store, subject: Subject
) -> None:
    now = subject.now
    due = [
        kept_row(f"p{i}", position=i, expires_at=now - 10 + i, owed=(Reply("q", str(i)),)) for i in range(5)
    ]
    await store.record([*due, kept_row("later"), row("pending", outcome=Outcome.PENDING), row("plain")])
    await subject.pass_midnight()
    await store.record(
        [kept_row("young", expires_at=now - 30), kept_row("proven", expires_at=now - 20, proven_at=NOON)]
    )
    first = await store.expire(4)
    assert sorted(ids(first)) == ["p0", "p1", "proven", "young"]
    rest = await store.expire(100)
    assert sorted(ids(rest)) == ["p2", "p3", "p4"]
    assert await store.expire(100) == []
    for ended in (*first, *rest):
        # The best proof that is held counts.
        proven = ended.key.push_id == "proven"
        end = (Outcome.RECEIVED, Reason.NOT_ACKED) if proven else (Outcome.EXPIRED, Reason.TTL)
        assert (ended.outcome, ended.reason, ended.final) == (*end, True)
        assert ended.finished_at is not None
        assert ended.finished_at >= now
        assert [light(r) for r in await of_push(subject, ended.key.push_id)] == [ended]
    assert {r.key.push_id: r.owed for r in rest} == {f"p{i}": (Reply("q", str(i)),) for i in (2, 3, 4)}
    assert sorted(ids(await store.owing(100))) == ["p0", "p1", "p2", "p3", "p4", "proven", "young"]
    assert await ask(store) == ["later"]


async def test_a_mailbox_is_trimmed_by_count_the_oldest_first(store: Store, subject: Subject) -> None:
    await store.record([kept_row(f"{u}{i}", user=u, position=i) for u in "abc" for i in range(1, 4)])
    await subject.pass_midnight()
    await store.record([kept_row(f"{u}{i}", user=u, position=i) for u in "abc" for i in range(4, 7)])
    await store.record([row("a6", user="a")])
    ended = await trimmed(store, ["c", "a", "nobody", "a"], 4, 10**6)
    assert sorted(ids(ended)) == ["a1", "c1", "c2"]
    for r in ended:
        assert (r.outcome, r.reason, r.final) == (Outcome.DROPPED, Reason.MAILBOX_FULL, True)
        assert (r.finished_at is not None, r.owed, r.payload) == (True, (), None)
        assert [light(found) for found in await of_push(subject, r.key.push_id)] == [r]
    assert await ask(store, user="a") == ["a2", "a3", "a4", "a5"]
    assert await ask(store, user="b") == [f"b{i}" for i in range(1, 7)]
    assert await trimmed(store, ["a", "c"], 4, 10**6) == []
    assert await trimmed(store, [], 0, 0) == []


async def test_a_mailbox_is_trimmed_by_the_bytes_of_its_payloads(store: Store) -> None:
    await store.record([kept_row(f"p{i}", position=i, payload=b"x" * 10) for i in range(1, 6)])
    assert sorted(ids(await trimmed(store, ["u"], 99, 39))) == ["p1", "p2"]
    assert await trimmed(store, ["u"], 99, 30) == []
    assert sorted(ids(await trimmed(store, ["u"], 99, 9))) == ["p3", "p4", "p5"]


async def test_a_newer_push_supersedes_the_older_ones_with_its_key(store: Store, subject: Subject) -> None:
    await store.record([kept_row(f"p{i}", position=i, collapse_key="k") for i in range(1, 5)])
    await subject.pass_midnight()
    await store.record(
        [
            kept_row("x", key=RowKey("t", "x", "u"), collapse_key="k"),
            kept_row("y", user="v", collapse_key="k"),
            kept_row("z", collapse_key="l"),
            kept_row("done", outcome=Outcome.RECEIVED, reason=Reason.PONG, collapse_key="k"),
            kept_row("q", user="w", position=5, collapse_key="k"),
            kept_row("plain"),
        ]
    )
    newer = [Collapse("", "u", "k", 3), Collapse("", "w", "k", 5), Collapse("", "u", "k", 2)]
    ended = (await store.supersede(newer, 100)).ended
    assert sorted(ids(ended)) == ["p1", "p2"]
    for r in ended:
        assert (r.outcome, r.reason, r.final, r.owed) == (Outcome.SUPERSEDED, Reason.COLLAPSED, True, ())
        assert r.finished_at is not None
        assert [light(found) for found in await of_push(subject, r.key.push_id)] == [r]
    assert await store.supersede(newer, 100) == Superseded([], [])
    assert await ask(store, until=4, after=2) == ["p3", "p4"]
    assert await store.supersede([], 100) == Superseded([], [])


async def test_a_recall_by_id_ends_what_is_stored_and_tells_of_the_others(
    store: Store, subject: Subject
) -> None:
    mine = [
        kept_row("p", user="a"),
        kept_row("p", user="b", owed=(Reply("q", "1"),)),
        kept_row("p", user="c", outcome=Outcome.ACKED, reason=Reason.ACK_FRAME),
        row("p", user="d", outcome=Outcome.PENDING),
    ]
    await store.record([*mine, kept_row("p", key=RowKey("t", "p", "a")), kept_row("other", user="a")])
    for _ in range(3):
        await subject.pass_midnight()
    answer = {w.row.key.user: w for w in await recalled(store, Recall(push_id="p"))}
    assert {u: w.applied for u, w in answer.items()} == {"a": True, "b": True, "c": False, "d": False}
    for user in "ab":
        ended = answer[user].row
        assert (ended.outcome, ended.reason, ended.final) == (Outcome.RECALLED, Reason.WITHDRAWN, True)
        assert ended.finished_at is not None
    assert answer["b"].row.owed == (Reply("q", "1"),)
    forgotten = msgspec.structs.replace(mine[2], payload=None)
    assert [undated(answer[u].row) for u in "cd"] == [forgotten, mine[3]]
    assert {r.key.user: light(r) for r in await of_push(subject, "p")} == {
        u: w.row for u, w in answer.items()
    }
    assert sorted(ids(await store.owing(9))) == ["p", "p", "p"]
    again = await recalled(store, Recall(push_id="p"))
    assert {w.row.key.user: w.applied for w in again} == dict.fromkeys("abcd", False)
    assert sorted(await ask(store, user="a")) == ["other", "p"]
    assert await recalled(store, Recall(push_id="unknown")) == []


async def test_a_recall_by_collapse_key_ends_what_is_stored_for_that_user(store: Store) -> None:
    await store.record(
        [
            kept_row("a", position=1, collapse_key="k"),
            kept_row("b", position=2, collapse_key="k"),
            kept_row("c", position=3, collapse_key="l"),
            kept_row("d", position=4, collapse_key="k", outcome=Outcome.ACKED, reason=Reason.ACK_FRAME),
            kept_row("e", user="v", collapse_key="k"),
            kept_row("f", position=5, collapse_key="k", key=RowKey("t", "f", "u")),
        ]
    )
    answer = await recalled(store, Recall(user="u", collapse_key="k"))
    assert sorted((w.row.key.push_id, w.applied, w.row.outcome) for w in answer) == [
        ("a", True, Outcome.RECALLED), ("b", True, Outcome.RECALLED), ("d", False, Outcome.ACKED),
    ]  # fmt: skip
    again = await recalled(store, Recall(user="u", collapse_key="k"))
    assert [(w.row.key.push_id, w.applied) for w in again] == [("d", False)], "what a screen may still show"
    assert await ask(store, seen=0) == ["c", "f"], "no client that resumes is shown what was recalled"
    assert await ask(store) == ["c", "f"]


async def test_the_data_of_delivered_rows_is_forgotten_by_their_keys(store: Store, subject: Subject) -> None:
    acked = partial(kept_row, outcome=Outcome.ACKED, reason=Reason.ACK_FRAME, finished_at=NOON)
    rows = [
        kept_row("open"),
        acked("mine", position=2),
        acked("mine", position=3, user="v"),
        acked("others", position=4),
        row("plain"),
    ]
    await store.record(rows)
    await subject.pass_midnight()
    keys = [rows[n].key for n in (0, 1, 4)]
    assert [(w.row.key, w.applied) for w in await store.forget_data(keys)] == [(rows[1].key, True)]
    assert await ask(store, seen=0) == ["open", "others"]
    assert await ask(store, user="v", seen=0) == ["mine"]
    found = {r.key: r for r in await store.find(keys)}
    assert [found[key].outcome for key in keys] == [Outcome.STORED, Outcome.ACKED, rows[4].outcome]
    assert [w.applied for w in await store.forget_data(keys)] == [True], "it may be asked again"
    assert list(await store.forget_data([RowKey("", "unknown", "u")])) == []


async def test_the_last_position_is_that_of_the_newest_kept_push(store: Store, subject: Subject) -> None:
    assert await store.last_position() == 0
    await store.record([row("plain"), row("open", outcome=Outcome.PENDING)])
    assert await store.last_position() == 0
    await store.record([kept_row("a", position=2**53 + 1), kept_row("b", user="v", position=7)])
    await store.record([kept_row("a", outcome=Outcome.EXPIRED), row("later", taken_at=NOON + 60)])
    assert await store.last_position() == 2**53 + 1
    await subject.pass_midnight()
    await store.record([kept_row("c", position=2**53), row("plain2")])
    assert await store.last_position() == 2**53 + 1


async def test_a_row_stored_days_ago_is_found_and_finished_by_its_day(store: Store, subject: Subject) -> None:
    await store.record([kept_row(owed=(Reply("q", "1"),)), kept_row("q", position=2)])
    for _ in range(5):
        await subject.pass_midnight()
    [page] = await store.mailbox([MailboxAsk("u", 0, EVER)])
    first, second = page.rows
    assert undateds(await of_push(subject, "p")) == undateds([first])
    end = row(day=first.day, boot="b2")
    [written, fresh, again] = await store.record(
        [end, row("fresh"), kept_row("q", day=second.day, boot="b3")]
    )
    assert (written.applied, written.row.day, written.row.final) == (True, first.day, True)
    assert written.row.owed == (Reply("q", "1"),)
    assert [r.payload for r in await of_push(subject, "p")] == [b'{"n": 1}']
    assert (fresh.applied, again.applied, again.row.day) == (True, True, second.day)
    for repeat in (end, kept_row(day=first.day)):
        [known] = await store.record([repeat])
        assert (known.applied, known.row) == (False, written.row)
    assert sorted(ids(await subject.all_rows())) == ["fresh", "p", "q"]
    key = first.key
    await store.owe({key: (Reply("q", "2"),)})
    [found] = await of_push(subject, "p")
    assert found.owed == (Reply("q", "1"), Reply("q", "2"))
    await store.record([row("q", day=second.day, outcome=Outcome.UNKNOWN, proven_at=None)])
    await store.prove_late([LateProof(RowKey("", "q", "u"), NOON + 9)])
    [late] = await of_push(subject, "q")
    assert (late.outcome, late.proven_at) == (Outcome.UNKNOWN, NOON + 9)


async def test_a_day_of_a_row_that_is_gone_makes_a_row_of_today_once(store: Store, subject: Subject) -> None:
    await store.record([row("q")])
    [found] = await of_push(subject, "q")
    for _ in range(3):
        await subject.pass_midnight()
    assert found.day is not None
    end = row(day=found.day)
    assert [w.applied for w in await store.record([end])] == [True]
    assert [w.applied for w in await store.record([end])] == [False]
    [now] = await of_push(subject, "p")
    assert now.day == found.day + datetime.timedelta(days=3)


# --- Leases ----------------------------------------------------------------------------------------------


async def test_a_name_is_claimed_renewed_released_and_claimed_by_the_next(subject: Subject) -> None:
    first, second = subject.lease("n1", "b1"), subject.lease("n1", "b2")
    await first.claim()
    await first.claim()
    await first.renew()
    await first.release()
    await second.claim()
    await second.renew()


async def test_a_process_hears_with_its_renewal_that_it_stops_and_the_next_of_its_name_does_not(
    subject: Subject,
) -> None:
    first, second, other = subject.lease("n1", "b1"), subject.lease("n1", "b2"), subject.lease("n2", "b3")
    await first.claim()
    await other.claim()
    assert not await first.renew()
    await first.stopping()
    await first.stopping()
    assert await first.renew()
    assert not await other.renew()
    await second.stopping()
    await first.release()
    await second.claim()
    assert not await second.renew()


async def test_a_second_live_boot_of_a_name_is_refused_and_other_names_are_free(subject: Subject) -> None:
    first = subject.lease("n1", "b1")
    await first.claim()
    await subject.lease("n2", "b1").claim()

    async def live() -> None:
        while True:
            await first.renew()
            await asyncio.sleep(0.5)

    alive = asyncio.create_task(live())
    try:
        with pytest.raises(NodeNameTaken):
            await subject.lease("n1", "b2").claim()
    finally:
        alive.cancel()
    await first.renew()


async def test_a_lease_that_ran_out_is_taken_over_and_its_holder_told(subject: Subject) -> None:
    first, second = subject.lease("n1", "b1"), subject.lease("n1", "b2")
    await first.claim()
    await subject.pass_time(5.5)
    await second.claim()
    with pytest.raises(NodeNameTaken):
        await first.renew()
    await second.renew()


async def test_rows_of_an_earlier_boot_of_this_name_end_at_once(subject: Subject) -> None:
    await subject.store.record(
        [
            row("a", outcome=Outcome.PENDING, boot="b1", owed=(Reply("q", "1"),)),
            row("b", outcome=Outcome.PENDING, boot="b2"),
            row("c", boot="b1"),
        ]
    )
    lease = subject.lease("n1", "b2")
    await lease.claim()
    [ended] = await lease.end_dead(100)
    assert (ended.key.push_id, ended.outcome, ended.reason) == ("a", Outcome.UNKNOWN, Reason.NODE_DIED)
    assert ended.final
    assert ended.finished_at is not None
    assert (ended.boot, ended.owed) == ("b1", (Reply("q", "1"),))
    assert await lease.end_dead(100) == []
    assert await of_push(subject, "a") == [ended]
    [written] = await subject.store.record([row("a", boot="b1")])
    assert (written.applied, written.row) == (False, ended)
    assert [r.key.push_id for r in await subject.store.owing(10)] == ["a"]


async def test_a_stored_row_of_a_dead_boot_waits_for_its_user(subject: Subject) -> None:
    await subject.store.record(
        [kept_row(boot="b1"), kept_row("q", node="n2"), row("r", outcome=Outcome.PENDING)]
    )
    lease = subject.lease("n1", "b2")
    await lease.claim()
    for _ in range(4):
        await subject.pass_time(2)
        await lease.renew()
    assert ids(await lease.end_dead(10)) == ["r"]
    assert await lease.end_dead(10) == []
    assert await ask(subject.store) == ["p", "q"]


async def test_a_row_of_a_dead_boot_that_holds_a_proof_ends_as_received(subject: Subject) -> None:
    await subject.store.record([row("a", outcome=Outcome.PENDING, boot="b1", proven_at=NOON + 0.5)])
    lease = subject.lease("n1", "b2")
    await lease.claim()
    [ended] = await lease.end_dead(100)
    assert (ended.outcome, ended.reason, ended.final) == (Outcome.RECEIVED, Reason.NOT_ACKED, True)


async def test_rows_of_a_live_node_are_left_alone_and_end_when_its_lease_has_run_out(
    subject: Subject,
) -> None:
    reaper, other = subject.lease("n1", "b1"), subject.lease("n2", "x")
    await reaper.claim()
    await other.claim()
    await subject.store.record([row("a", outcome=Outcome.PENDING, node="n2", boot="x")])
    for _ in range(4):
        await subject.pass_time(2)
        await reaper.renew()
        await other.renew()
        assert await reaper.end_dead(10) == []
    for _ in range(3):
        await subject.pass_time(2)
        await reaper.renew()
    assert [r.key.push_id for r in await reaper.end_dead(10)] == ["a"]


async def test_after_an_outage_the_first_to_come_back_gives_the_others_time(subject: Subject) -> None:
    reaper, other = subject.lease("n1", "b1"), subject.lease("n2", "x")
    await reaper.claim()
    await other.claim()
    await subject.store.record([row("a", outcome=Outcome.PENDING, node="n2", boot="x")])
    await subject.pass_time(300)
    await reaper.renew()
    assert await reaper.end_dead(10) == []
    await subject.pass_time(2)
    await reaper.renew()
    assert await reaper.end_dead(10) == []
    await other.renew()
    for _ in range(3):
        await subject.pass_time(2)
        await reaper.renew()
        await other.renew()
        assert await reaper.end_dead(10) == []


async def test_who_does_not_hold_its_own_name_ends_nothing(subject: Subject) -> None:
    await subject.store.record([row(outcome=Outcome.PENDING, boot="b0")])
    first, second = subject.lease("n1", "b1"), subject.lease("n1", "b2")
    assert await first.end_dead(10) == []
    await first.claim()
    await subject.pass_time(6)
    await second.claim()
    assert await first.end_dead(10) == []
    assert len(await second.end_dead(10)) == 1


async def test_end_dead_ends_no_more_than_asked_and_goes_on_the_next_time(subject: Subject) -> None:
    await subject.store.record([row(f"p{i}", outcome=Outcome.PENDING, boot="b0") for i in range(5)])
    lease = subject.lease("n1", "b1")
    await lease.claim()
    assert [len(await lease.end_dead(2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_an_orphan_of_a_node_that_nobody_knows_ends(subject: Subject) -> None:
    await subject.store.record([row(outcome=Outcome.PENDING, node="gone", boot="x")])
    lease = subject.lease("n1", "b1")
    await lease.claim()
    assert await lease.end_dead(10) == []
    for _ in range(3):
        await subject.pass_time(2)
        await lease.renew()
    assert len(await lease.end_dead(10)) == 1


async def test_a_killed_boot_is_followed_at_once(subject: Subject) -> None:
    first = subject.lease("n1", "b1")
    await first.claim()
    await first.renew()
    await subject.forget_boot(first)
    # Time enough that the lease cannot run out meanwhile: it is not what is waited for.
    await subject.pass_time(-60)
    second = subject.lease("n1", "b2")
    async with asyncio.timeout(10):
        await second.claim()


def test_noon_is_exact() -> None:
    assert datetime.datetime.fromtimestamp(NOON, datetime.UTC).microsecond == 0


# --- Fallbacks -------------------------------------------------------------------------------------------


def owing(push_id: str = "p", user: str = "u", *, due: float, **fields: object) -> Row:
    """An `offline` row of a push without a ttl that has a fallback."""
    made: dict[str, object] = {
        "outcome": Outcome.OFFLINE,
        "reason": Reason.NO_SESSION,
        "written_at": None,
        "proven_at": None,
        "finished_at": NOON,
        "payload": b'{"n": 1}',
        "fallback_due": due,
        "fallback_key": f"mail.{push_id}",
    }
    return row(push_id, user, **(made | fields))  # type: ignore[arg-type]


async def steady(subject: Subject, node: str = "n1", boot: str = "b1") -> Lease:
    """A process that has lived for longer than a lease."""
    lease = subject.lease(node, boot)
    await lease.claim()
    await live_on(subject, lease)
    return lease


async def live_on(subject: Subject, *leases: Lease) -> None:
    """Let the time of a lease pass, in which these processes live."""
    for _ in range(4):
        await subject.pass_time(2)
        for lease in leases:
            await lease.renew()


async def claimed(subject: Subject, boot: str = "b1", node: str = "n1", **more: int) -> list[str]:
    """The ids of what this boot can claim."""
    bounds = {"limit": 100, "payload_bytes": 1 << 20} | more
    found = await subject.store.claim_fallbacks(node, boot, bounds["limit"], bounds["payload_bytes"])
    return [one.row.key.push_id for one in found]


async def test_fallbacks_are_claimed_when_they_are_due_the_earliest_first_and_noted_once(
    subject: Subject,
) -> None:
    await steady(subject)
    now = subject.now
    await subject.store.record(
        [
            owing("b", due=now - 20, meta=b'{"k": "v"}', encoding=Encoding.TEXT, payload=b"hello"),
            owing("a", due=now - 30),
            owing("c", due=now + 30),
            owing("d", due=now - 0.2),
        ]
    )
    found = await subject.store.claim_fallbacks("n1", "b1", 100, 1 << 20)
    assert [(one.row.key.push_id, one.routing_key) for one in found] == [("a", "mail.a"), ("b", "mail.b")]
    text = found[1].row
    assert (text.payload, text.encoding, text.meta) == (b"hello", Encoding.TEXT, b'{"k": "v"}')
    assert not await subject.store.note_fallbacks("b1", [one.row for one in found])
    assert await claimed(subject) == []
    left = {r.key.push_id: r.payload for r in await subject.all_rows()}
    assert (left["a"], left["b"], left["c"]) == (None, None, b'{"n": 1}')


async def test_who_wrote_a_row_and_lives_has_ten_seconds_for_its_fallback(subject: Subject) -> None:
    first, second = await steady(subject), await steady(subject, "n2", "b2")
    await live_on(subject, first, second)
    await subject.store.record(
        [owing(name, due=subject.now - age) for name, age in (("new", 8), ("old", 11))]
    )
    assert await claimed(subject, "b2", "n2") == ["old"]
    assert await claimed(subject) == ["new"]
    await live_on(subject, second)  # the first one is dead now
    await subject.store.record([owing("newest", due=subject.now - 8)])
    assert "newest" in await claimed(subject, "b2", "n2")


async def test_claims_are_bounded_in_rows_and_bytes_and_the_first_always_goes(subject: Subject) -> None:
    await steady(subject)
    await subject.store.record(
        [owing(f"p{n}", due=subject.now - 100 + n, payload=b"x" * 1000) for n in range(5)]
    )
    assert await claimed(subject, limit=2) == ["p0", "p1"]
    assert await claimed(subject, payload_bytes=1) == ["p0"], "its own claims are among them"
    assert await claimed(subject, payload_bytes=1001) == ["p0", "p1"]
    assert await claimed(subject) == ["p0", "p1", "p2", "p3", "p4"]


async def test_a_claim_stands_while_its_process_lives(subject: Subject) -> None:
    mine, other = subject.lease("n1", "b1"), subject.lease("n2", "b2")
    await mine.claim()
    await other.claim()
    await subject.store.record([owing("p1", due=subject.now - 30)])
    assert await claimed(subject) == [], "the database may have been away until now"
    await live_on(subject, mine, other)
    assert await claimed(subject, "nobody") == []
    assert await claimed(subject) == ["p1"]
    await live_on(subject, mine, other)
    assert await claimed(subject, "b2", "n2") == []
    await subject.forget_boot(mine)
    await live_on(subject, other)
    assert await claimed(subject, "b2", "n2") == ["p1"]


async def test_a_claim_that_is_given_up_is_due_later(subject: Subject) -> None:
    mine, other = subject.lease("n1", "b1"), subject.lease("n2", "b2")
    await mine.claim()
    await other.claim()
    await live_on(subject, mine, other)
    await subject.store.record([owing("p1", due=subject.now - 30), owing("p2", due=subject.now - 30)])
    found = await subject.store.claim_fallbacks("n1", "b1", 100, 1 << 20)
    rows = [one.row for one in found]
    assert not await subject.store.note_fallbacks("b2", rows), "it has not claimed them"
    assert not await subject.store.release_fallbacks("b1", rows[:1], 60)
    assert not await subject.store.release_fallbacks("b1", rows[1:], 0)
    assert await claimed(subject, "b2", "n2") == []
    await asyncio.sleep(0 if isinstance(subject, InMemory) else 1.1)
    if isinstance(subject, InMemory):
        await subject.pass_time(1.1)
    assert await claimed(subject) == [rows[1].key.push_id]


async def test_what_proves_a_push_or_takes_it_back_cancels_its_fallback(subject: Subject) -> None:
    await steady(subject)
    due = subject.now - 30
    pending: dict[str, Any] = {"outcome": Outcome.PENDING, "finished_at": None, "owed": ()}
    unknown: dict[str, Any] = {"outcome": Outcome.UNKNOWN, "reason": Reason.NO_PROOF}
    await subject.store.record(
        [
            owing("proven", due=due, **pending),
            owing("half", due=due, confirm=Proof.ACKED, **pending),
            owing("written", due=due, confirm=Proof.WRITTEN, **pending),
            owing("unproven", due=due, **pending),
            owing("late", due=due, **unknown),
            owing("recalled", due=due),
            owing("key", due=due, collapse_key="k1", position=7),
            owing("older", due=due, collapse_key="k2", position=7),
            owing("newer", due=due, collapse_key="k2", position=9),
            kept_row("stored", fallback_due=due, fallback_key="k"),
            kept_row("over", fallback_due=due, fallback_key="k", collapse_key="k3"),
        ]
    )
    await subject.store.record(
        [
            row("proven"),
            row("half", outcome=Outcome.PENDING, confirm=Proof.ACKED, proven_at=NOON + 1),
            row("written", outcome=Outcome.WRITTEN, reason=Reason.HANDED_OVER, proven_at=None),
            row("unproven", outcome=Outcome.UNKNOWN, reason=Reason.NO_PROOF, proven_at=None),
        ]
    )
    await subject.store.prove_late([LateProof(RowKey("", "late", "u"), NOON + 5)])
    await recalled(subject.store, Recall(push_id="recalled"))
    await recalled(subject.store, Recall(push_id="stored"))
    await recalled(subject.store, Recall(user="u", collapse_key="k1"))
    await subject.store.supersede([Collapse("", "u", "k2", 8), Collapse("", "u", "k3", 8)], 100)
    assert sorted(await claimed(subject)) == ["newer", "unproven"]
    data = {r.key.push_id: r.payload for r in await subject.all_rows()}
    assert {name for name, payload in data.items() if payload is not None} == {
        *("newer", "unproven", "stored", "over"),
    }


async def test_a_recall_tells_of_final_rows_whose_fallbacks_it_cancels(subject: Subject) -> None:
    await subject.store.record([owing("p1", user, due=subject.now + 60) for user in ("u1", "u2")])
    for _ in range(2):
        written = await recalled(subject.store, Recall(push_id="p1"))
        assert sorted((w.row.key.user, w.applied) for w in written) == [("u1", False), ("u2", False)]


async def test_a_fallback_is_of_a_push_and_not_of_its_repeats(subject: Subject) -> None:
    await steady(subject)
    await subject.store.record([kept_row("p1", fallback_due=subject.now - 30, fallback_key="k")])
    found = await subject.store.claim_fallbacks("n1", "b1", 100, 1 << 20)
    assert not await subject.store.note_fallbacks("b1", [one.row for one in found])
    await subject.store.record([kept_row("p1", fallback_due=subject.now - 30, fallback_key="k")])
    assert await claimed(subject) == []
    (left,) = await of_push(subject, "p1")
    assert left.payload is not None


async def test_shared_data_is_claimed_with_each_row(subject: Subject) -> None:
    await steady(subject)
    data, meta = b'"' + b"x" * 1000 + b'"', b'{"k": "v"}'
    rows = [owing("p1", f"u{n}", due=subject.now - 30, payload=data, meta=meta) for n in range(3)]
    await subject.store.record(rows)
    found = await subject.store.claim_fallbacks("n1", "b1", 100, 1 << 20)
    assert {(one.row.payload, one.row.meta) for one in found} == {(data, meta)}
    assert not await subject.store.note_fallbacks("b1", [one.row for one in found])
    assert await claimed(subject) == []
