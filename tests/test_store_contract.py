"""What every Store and Lease must do, run against each implementation: the one in memory and Postgres."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import psycopg
import pytest

from bridge.adapters.memory import MemoryLease, MemoryStore
from bridge.adapters.postgres import PostgresStore
from bridge.adapters.postgres_lease import PostgresLease
from bridge.errors import NodeNameTaken, RowsRefused
from bridge.model import LateProof, Outcome, Proof, PushKey, Reason, Reply, Row, RowKey
from bridge.ports import Lease, Store
from tests.core import ManualClock

NOON = 1_800_014_400.0
"""A taken_at with no fraction: what Postgres keeps is what it was given."""


def row(push_id: str = "p", user: str = "u", outcome: Outcome = Outcome.RECEIVED, **fields: object) -> Row:
    """A row as the core writes it: `pending`, or ended."""
    pending = outcome is Outcome.PENDING
    made: dict[str, object] = {
        "key": RowKey("", push_id, user),
        "outcome": outcome,
        "reason": Reason.AWAITING_PROOF if pending else Reason.PONG,
        "node": "n1",
        "boot": "b1",
        "published_at": NOON - 1,
        "taken_at": NOON,
        "event": "order.paid",
        "app_id": "shop",
        "written_at": NOON + 0.25,
        "proven_at": None if pending else NOON + 0.5,
        "finished_at": None if pending else NOON + 0.5,
        "sessions": 1,
        "attempts": 1,
        "owed": () if pending else None,
    }
    return Row(**(made | fields))  # type: ignore[arg-type]


class House(Protocol):
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

    async def all_rows(self) -> list[Row]:
        """What the log holds."""

    async def forget_boot(self, lease: Lease) -> None:
        """The process of this lease is killed."""


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
        await self.store.find([])

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

    async def all_rows(self) -> list[Row]:
        async with await psycopg.AsyncConnection.connect(self.dsn) as conn:
            pushes = await (await conn.execute("select tenant, push_id from delivery_log")).fetchall()
        found = await self.store.find([PushKey(*p) for p in pushes])
        assert len(found) == len(pushes)
        return list(found)

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
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    if request.param == "memory":
        yield InMemory()
        return
    postgres = InPostgres(request.getfixturevalue("database"))
    yield postgres
    await postgres.close()


@pytest.fixture
def store(house: House) -> Store:
    return house.store


# --- record ----------------------------------------------------------------------------------------------


async def test_a_new_row_is_applied_and_found_as_it_was_written(store: Store) -> None:
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
    assert await store.find([PushKey("", "p")]) == [full]


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
    await store.settle([])
    await store.prove_late([])
    assert await store.owing(10) == []
    assert await store.recent(10) == []


async def test_a_final_row_never_changes(store: Store) -> None:
    first = row(outcome=Outcome.RECEIVED)
    await store.record([first])
    for other in (Outcome.UNKNOWN, Outcome.ACKED, Outcome.PENDING):
        [written] = await store.record([row(outcome=other, boot="b2", detail="later", attempts=9)])
        assert not written.applied
        assert written.row == first
    assert await store.find([PushKey("", "p")]) == [first]


async def test_a_pending_row_becomes_final_and_keeps_what_was_known_first(store: Store) -> None:
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
    assert await store.find([PushKey("", "p")]) == [now]


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
    assert [w.row for w in again] == before
    assert [w.applied for w in again] == [False, True, False]


async def test_tenants_and_users_have_rows_of_their_own(store: Store, house: House) -> None:
    keys = [RowKey(t, p, u) for t in ("", "t") for p in ("", "p") for u in ("", "u")]
    answer = await store.record([row(key=key) for key in keys])
    assert all(w.applied for w in answer)
    assert {r.key for r in await house.all_rows()} == set(keys)
    assert {r.key.user for r in await store.find([PushKey("t", "p")])} == {"", "u"}


async def test_two_writers_of_the_same_keys_agree_on_one_row_each(store: Store, house: House) -> None:
    rounds = 20
    for i in range(rounds):
        ids = [f"{i}-{n}" for n in range(20)]
        one, two = await asyncio.gather(
            store.record([row(p, boot="one") for p in ids]),
            store.record([row(p, boot="two", outcome=Outcome.UNKNOWN) for p in reversed(ids)]),
        )
        for a, b in zip(one, reversed(two), strict=True):
            assert a.applied != b.applied
            assert a.row == b.row
    assert len(await house.all_rows()) == rounds * 20


async def test_a_thousand_rows_at_once(store: Store) -> None:
    batch = [row(f"p{i % 10}", user=f"u{i}", attempts=i) for i in range(1000)]
    assert all(w.applied for w in await store.record(batch))
    found = await store.find([PushKey("", f"p{i}") for i in range(10)])
    assert {r.key: r for r in found} == {r.key: r for r in batch}
    assert not any(w.applied for w in await store.record(batch))


AWKWARD = [
    "NULL", "null", '"', '""', "\\", "\\\\", '\\"', "{}", "{,}", ",", "'", "'; drop table node; --", "%s", "%",
    " ", " x ", "(a,b)", "\\x00", "\\N", "naïve", "日本語", "😀", "👩‍👩‍👧", "\U0010ffff",
    "e\u0301", "\ufeff", "\t\r\n", "a" * 128,
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
async def test_awkward_text_comes_back_as_it_went_in(store: Store, text: str) -> None:
    odd = row(
        key=RowKey(text, text, text), node=text, boot=text, event=text, app_id=text, detail=text,
        traceparent=text, payload=text.encode(), owed=(Reply(text, text),), outcome=Outcome.PENDING,
    )  # fmt: skip
    plain = row("plain")
    assert [w.applied for w in await store.record([plain, odd])] == [True, True]
    assert await store.find([PushKey(text, text)]) == [odd]
    [done] = await store.record([row(key=odd.key, detail=text, node=text, boot=text)])
    assert done.row.owed == (Reply(text, text),)
    await store.owe({odd.key: (Reply(text, "2"),)})
    await store.settle([plain.key])
    [owing] = await store.owing(10)
    assert owing.owed == (Reply(text, text), Reply(text, "2"))
    await store.settle([odd.key])
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
    store: Store, house: House, field: str, bad: str
) -> None:
    changed: dict[str, object] = {field: RowKey("", "p1", bad) if field == "key" else bad}
    broken = msgspec.structs.replace(row("p1"), **changed)
    with pytest.raises(RowsRefused) as refused:
        await store.record([row("p0"), broken, row("p2")])
    assert refused.value.sqlstate.startswith("22")
    assert await house.all_rows() == []
    assert all(w.applied for w in await store.record([row("p0"), row("p2")]))


@pytest.mark.parametrize("time", [float("nan"), 1e20, -1e20])
async def test_a_time_that_is_none_is_refused(store: Store, house: House, time: float) -> None:
    with pytest.raises(RowsRefused):
        await store.record([row("p0"), row("p1", published_at=time)])
    assert await house.all_rows() == []


# --- Days ------------------------------------------------------------------------------------------------


async def test_a_key_of_yesterday_is_not_inserted_again(store: Store, house: House) -> None:
    before = row()
    await store.record([before])
    await house.pass_midnight()
    [written] = await store.record([row(outcome=Outcome.UNKNOWN, boot="b2")])
    assert (written.applied, written.row) == (False, before)
    assert await house.all_rows() == [before]


async def test_a_row_that_was_pending_at_midnight_ends_where_it_is(store: Store, house: House) -> None:
    await store.record([row(outcome=Outcome.PENDING), row("q", outcome=Outcome.PENDING)])
    await house.pass_midnight()
    answer = await store.record([row(), row("new"), row("q", outcome=Outcome.UNKNOWN, proven_at=None)])
    assert [w.applied for w in answer] == [True, True, True]
    ends = {r.key.push_id: r.outcome for r in await house.all_rows()}
    assert ends == {"p": Outcome.RECEIVED, "new": Outcome.RECEIVED, "q": Outcome.UNKNOWN}
    assert [w.applied for w in await store.record([row(), row("new")])] == [False, False]


async def test_a_row_that_stayed_pending_for_days_still_has_no_double(store: Store, house: House) -> None:
    await store.record([row(outcome=Outcome.PENDING)])
    for _ in range(4):
        await house.pass_midnight()
    [written] = await store.record([row()])
    assert written.applied
    assert (written.row.outcome, written.row.owed) == (Outcome.RECEIVED, ())
    assert len(await house.all_rows()) == 1


async def test_an_id_may_come_again_when_two_midnights_have_passed(store: Store, house: House) -> None:
    await store.record([row()])
    await house.pass_midnight()
    await house.pass_midnight()
    [written] = await store.record([row(boot="b2")])
    assert written.applied
    assert [r.boot for r in await store.find([PushKey("", "p")])] == ["b2"]


async def test_everything_reaches_rows_of_yesterday(store: Store, house: House) -> None:
    await store.record([row(proven_at=None, outcome=Outcome.UNKNOWN)])
    await house.pass_midnight()
    await store.record([row("today")])
    await store.prove_late([LateProof(RowKey("", "p", "u"), NOON + 9)])
    await store.owe({RowKey("", "p", "u"): (Reply("q", "1"),)})
    [found] = await store.find([PushKey("", "p")])
    assert (found.proven_at, found.owed) == (NOON + 9, (Reply("q", "1"),))
    assert set(await store.recent(5)) == {PushKey("", "p"), PushKey("", "today")}
    await house.pass_midnight()
    await house.pass_midnight()
    assert [r.key.push_id for r in await store.owing(5)] == ["p"]
    await store.settle([found.key])
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
    await store.settle([row("y").key, row("z").key, RowKey("", "nobody", "knows")])
    assert [r.key.push_id for r in await store.owing(10)] == ["x"]
    await store.settle([row("y").key, row("x").key, row("x").key])
    assert await store.owing(10) == []


async def test_owing_gives_final_rows_only_the_oldest_first_and_no_more_than_asked(store: Store) -> None:
    await store.record(
        [row(f"p{i}", taken_at=NOON + (7 * i) % 10, owed=()) for i in range(10)]
        + [row("pending", outcome=Outcome.PENDING, taken_at=NOON - 5)]
    )
    assert [r.taken_at for r in await store.owing(4)] == [NOON, NOON + 1, NOON + 2, NOON + 3]
    assert len(await store.owing(100)) == 10


# --- Late proof, recent ids ------------------------------------------------------------------------------


async def test_late_proof_fills_an_empty_time_of_a_final_row_and_nothing_else(store: Store) -> None:
    unknown = row("late", outcome=Outcome.UNKNOWN, reason=Reason.NO_PROOF, proven_at=None)
    proven, pending = row("proven"), row("pending", outcome=Outcome.PENDING)
    await store.record([unknown, proven, pending])
    for at in (NOON + 7, NOON + 8):
        await store.prove_late(
            [LateProof(r.key, at) for r in (unknown, proven, pending)] + [LateProof(RowKey("", "?", ""), at)]
        )
    found = {
        r.key.push_id: r for r in await store.find([PushKey("", p) for p in ("late", "proven", "pending")])
    }
    assert found["late"].proven_at == NOON + 7
    assert (found["late"].outcome, found["late"].reason) == (Outcome.UNKNOWN, Reason.NO_PROOF)
    assert found["proven"] == proven
    assert found["pending"] == pending


async def test_of_two_late_proofs_in_one_call_the_earlier_counts(store: Store) -> None:
    await store.record([row(outcome=Outcome.UNKNOWN, proven_at=None)])
    key = row().key
    await store.prove_late([LateProof(key, NOON + 9), LateProof(key, NOON + 8)])
    [found] = await store.find([PushKey("", "p")])
    assert found.proven_at == NOON + 8


async def test_recent_gives_the_newest_ids_each_once_the_oldest_first(store: Store) -> None:
    await store.record(
        [row(f"p{i}", user=f"u{u}", taken_at=NOON + i) for i in range(20) for u in range(5)]
        + [row("pending", outcome=Outcome.PENDING, taken_at=NOON + 99)]
    )
    assert await store.recent(3) == [PushKey("", f"p{i}") for i in (17, 18, 19)]
    assert await store.recent(100) == [PushKey("", f"p{i}") for i in range(20)]


# --- Leases ----------------------------------------------------------------------------------------------


async def test_a_name_is_claimed_renewed_released_and_claimed_by_the_next(house: House) -> None:
    first, second = house.lease("n1", "b1"), house.lease("n1", "b2")
    await first.claim()
    await first.claim()
    await first.renew()
    await first.release()
    await second.claim()
    await second.renew()


async def test_a_second_live_boot_of_a_name_is_refused_and_other_names_are_free(house: House) -> None:
    first = house.lease("n1", "b1")
    await first.claim()
    await house.lease("n2", "b1").claim()

    async def live() -> None:
        while True:
            await first.renew()
            await asyncio.sleep(0.5)

    alive = asyncio.create_task(live())
    try:
        with pytest.raises(NodeNameTaken):
            await house.lease("n1", "b2").claim()
    finally:
        alive.cancel()
    await first.renew()


async def test_a_lease_that_ran_out_is_taken_over_and_its_holder_told(house: House) -> None:
    first, second = house.lease("n1", "b1"), house.lease("n1", "b2")
    await first.claim()
    await house.pass_time(5.5)
    await second.claim()
    with pytest.raises(NodeNameTaken):
        await first.renew()
    await second.renew()


async def test_rows_of_an_earlier_boot_of_this_name_end_at_once(house: House) -> None:
    await house.store.record(
        [
            row("a", outcome=Outcome.PENDING, boot="b1", owed=(Reply("q", "1"),)),
            row("b", outcome=Outcome.PENDING, boot="b2"),
            row("c", boot="b1"),
        ]
    )
    lease = house.lease("n1", "b2")
    await lease.claim()
    [ended] = await lease.end_dead(100)
    assert (ended.key.push_id, ended.outcome, ended.reason) == ("a", Outcome.UNKNOWN, Reason.NODE_DIED)
    assert ended.final
    assert ended.finished_at is not None
    assert (ended.boot, ended.owed) == ("b1", (Reply("q", "1"),))
    assert await lease.end_dead(100) == []
    assert await house.store.find([PushKey("", "a")]) == [ended]
    [written] = await house.store.record([row("a", boot="b1")])
    assert (written.applied, written.row) == (False, ended)
    assert [r.key.push_id for r in await house.store.owing(10)] == ["a"]


async def test_a_row_of_a_dead_boot_that_holds_a_proof_ends_as_received(house: House) -> None:
    await house.store.record([row("a", outcome=Outcome.PENDING, boot="b1", proven_at=NOON + 0.5)])
    lease = house.lease("n1", "b2")
    await lease.claim()
    [ended] = await lease.end_dead(100)
    assert (ended.outcome, ended.reason, ended.final) == (Outcome.RECEIVED, Reason.NOT_ACKED, True)


async def test_rows_of_a_live_node_are_left_alone_and_end_when_its_lease_has_run_out(house: House) -> None:
    reaper, other = house.lease("n1", "b1"), house.lease("n2", "x")
    await reaper.claim()
    await other.claim()
    await house.store.record([row("a", outcome=Outcome.PENDING, node="n2", boot="x")])
    for _ in range(4):
        await house.pass_time(2)
        await reaper.renew()
        await other.renew()
        assert await reaper.end_dead(10) == []
    for _ in range(3):
        await house.pass_time(2)
        await reaper.renew()
    assert [r.key.push_id for r in await reaper.end_dead(10)] == ["a"]


async def test_after_an_outage_the_first_to_come_back_gives_the_others_time(house: House) -> None:
    reaper, other = house.lease("n1", "b1"), house.lease("n2", "x")
    await reaper.claim()
    await other.claim()
    await house.store.record([row("a", outcome=Outcome.PENDING, node="n2", boot="x")])
    await house.pass_time(300)
    await reaper.renew()
    assert await reaper.end_dead(10) == []
    await house.pass_time(2)
    await reaper.renew()
    assert await reaper.end_dead(10) == []
    await other.renew()
    for _ in range(3):
        await house.pass_time(2)
        await reaper.renew()
        await other.renew()
        assert await reaper.end_dead(10) == []


async def test_who_does_not_hold_its_own_name_ends_nothing(house: House) -> None:
    await house.store.record([row(outcome=Outcome.PENDING, boot="b0")])
    first, second = house.lease("n1", "b1"), house.lease("n1", "b2")
    assert await first.end_dead(10) == []
    await first.claim()
    await house.pass_time(6)
    await second.claim()
    assert await first.end_dead(10) == []
    assert len(await second.end_dead(10)) == 1


async def test_end_dead_ends_no_more_than_asked_and_goes_on_the_next_time(house: House) -> None:
    await house.store.record([row(f"p{i}", outcome=Outcome.PENDING, boot="b0") for i in range(5)])
    lease = house.lease("n1", "b1")
    await lease.claim()
    assert [len(await lease.end_dead(2)) for _ in range(4)] == [2, 2, 1, 0]


async def test_an_orphan_of_a_node_that_nobody_knows_ends(house: House) -> None:
    await house.store.record([row(outcome=Outcome.PENDING, node="gone", boot="x")])
    lease = house.lease("n1", "b1")
    await lease.claim()
    assert await lease.end_dead(10) == []
    for _ in range(3):
        await house.pass_time(2)
        await lease.renew()
    assert len(await lease.end_dead(10)) == 1


async def test_a_killed_boot_is_followed_at_once(house: House) -> None:
    first = house.lease("n1", "b1")
    await first.claim()
    await first.renew()
    await house.forget_boot(first)
    second = house.lease("n1", "b2")
    async with asyncio.timeout(2):
        await second.claim()


def test_noon_is_exact() -> None:
    assert datetime.datetime.fromtimestamp(NOON, datetime.UTC).microsecond == 0
