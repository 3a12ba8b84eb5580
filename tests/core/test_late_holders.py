"""Pushes that are routed while the answer who has their user is late, or while a dead node is forgotten."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from bridge.core.cluster.lately import USERS_MAX
from bridge.core.delivery.behind import AT_ONCE
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.index import Index
from bridge.core.inflight.kept import Kept
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Encoding
from bridge.core.ports.nodes import Sent
from bridge.core.settlement.worklist import Worklist
from tests.core.test_nodes import LIMITS, held, ids, online, ticks
from tests.support.house import House, flight, kept, to
from tests.support.town import Town, town
from tests.support.waiting import turns, until


async def test_pushes_of_a_user_stay_in_order_when_the_dead_node_that_had_them_is_forgotten() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        there = await online(b, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE
        made.store.writing.clear()
        await a.push(kept("u1", "p0", 60))
        await turns(20)
        await a.push(kept("u1", "p1", 60))
        await turns(20)
        here = a.connect("u1")
        await turns(20)
        await a.push(kept("u1", "p2", 60))
        await turns(20)
        there.leave()
        await until(lambda: made.sessions.closed)
        await a.push(kept("u1", "p3", 60))
        await turns(20)
        made.store.writing.set()
        for _ in range(20):
            await ticks(a, seconds=0.01)
            here.answer()
        assert ids(here) == ["p0", "p1", "p2", "p3"]


async def test_pushes_of_a_user_stay_in_order_when_the_last_other_node_is_forgotten() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p1"))
        here = await online(a, "u1")
        await a.push(to("u1", "p2"))
        made.clock.advance(100.0)
        await a.core.cluster.neighbours.look()
        assert not a.core.cluster.neighbours.any
        await a.push(to("u1", "p3"))
        gate.set()
        await until(lambda: len(ids(here)) == 3)
        assert ids(here) == ["p1", "p2", "p3"]


async def test_who_reads_a_push_and_leaves_while_its_holders_are_asked_for_has_it_kept() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(kept("u1", "p1", 60, confirm="acked"))
        here = a.connect("u1")
        await until(lambda: ids(here) == ["p1"])
        here.leave()
        gate.set()
        await a.ends("p1", Outcome.STORED, Reason.CONNECTION_LOST)
        again = await online(a, "u1")
        assert ids(again) == ["p1"]


async def test_a_push_to_a_user_at_another_node_does_not_wait_for_the_answer_who_has_them() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        there = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(there) == ["p1"])
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p2"))
        await until(lambda: ids(there) == ["p1", "p2"])
        there.answer()
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        gate.set()
        await until(lambda: not a.core.router._unguessed)
        assert ids(there) == ["p1", "p2"]


async def test_who_has_moved_since_the_last_push_gets_the_next_one_there_and_in_order() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        before = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(before) == ["p1"])
        before.leave()
        now = await online(c, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p2"))
        await a.push(to("u1", "p3"))
        await turns(50)
        gate.set()
        await until(lambda: ids(now) == ["p2", "p3"])
        now.answer()
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        await a.ends("p3", Outcome.RECEIVED, Reason.PONG)


async def test_nothing_is_guessed_that_would_overtake_an_older_push() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, there = await online(a, "u1"), await online(b, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(here) == ["p1"])
        a.core.cluster.lately.found("u1", ["boot-b"])
        await a.push(to("u1", "p2"))
        await turns(50)
        assert ids(there) == []
        gate.set()
        await until(lambda: ids(there) == ["p1", "p2"])


@pytest.mark.parametrize("away", [False, True])
async def test_what_many_kept_pushes_of_one_user_cost_does_not_grow_with_their_square(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        here = None if away else await online(a, "u1")
        made.store.writing.clear()
        looked = 0
        is_due = Worklist.is_due

        def counted(self: Worklist, flight: Flight) -> bool:
            nonlocal looked
            looked += 1
            return is_due(self, flight)

        monkeypatch.setattr(Worklist, "is_due", counted)
        many = 300
        for n in range(many):
            await a.push(kept("u1", f"p{n}", 60))
        if here is not None:
            await until(lambda: len(here.pushes) == many)
            while here.unanswered:
                here.answer()
        made.store.writing.set()
        await until(lambda: len(made.store.rows) == many)
        assert looked <= 3 * many


async def test_rows_are_asked_for_in_the_order_of_positions_however_the_pushes_came() -> None:
    index = Index()
    for position in (5, 9, 7, 3):
        one = flight(f"p{position}")
        one.position = position
        one.kept = Kept(1e9, b"1", Encoding.JSON, frozenset())
        index.add(one)
    assert [one.position for one in index.ask_for("u1", 7)] == [3, 5, 7]
    assert [one.position for one in index.ask_for("u1", 100)] == [9], "each is named once"
    assert [one.position for one in index._unwritten["u1"].flights.values()] == [3, 5, 7, 9], (
        "and has no row for that"
    )
    assert index.has_unwritten("u1", 3)
    assert not index.has_unwritten("u1", 2)


async def test_who_was_there_last_is_remembered_of_a_bounded_number_of_users() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, _]):
        lately = a.core.cluster.lately
        for n in range(USERS_MAX + 3):
            lately.found(f"u{n}", ["boot-b", "boot-of-the-dead"])
        assert [lately.guess(user) for user in ("u2", "u3")] == [None, ["boot-b"]]
        lately.forget("u3")
        assert lately.guess("u3") is None


async def many_behind_a_row(made: Town, a: House, count: int) -> None:
    """So many pushes of the user u1 wait for the row of the one before them, which has not reached the node b."""
    made.store.writing.clear()
    made.fate = lambda letter: Sent.UNREACHABLE
    await a.push(kept("u1", "p0", 60))
    await turns(50)
    made.fate = lambda letter: None
    for number in range(1, count):
        await a.push(kept("u1", f"p{number}", 60))
    await until(lambda: len(a.core.router.behind._lines.get("u1", ())) == count - 1)


async def test_many_pushes_that_wait_for_one_row_go_on_in_many_turns_of_the_loop() -> None:
    count = 3 * AT_ONCE
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        there = await online(b, "u1")
        await many_behind_a_row(made, a, count)
        made.store.writing.set()
        left = [count - 1]
        while left[-1]:
            await asyncio.sleep(0)
            there.answer()
            left.append(len(a.core.router.behind._lines.get("u1", ())))
        assert max(before - after for before, after in pairwise(left)) == AT_ONCE
        while len(ids(there)) < count:
            there.answer()
            await asyncio.sleep(0)
        assert ids(there) == [f"p{number}" for number in range(count)]


async def test_what_waits_behind_pushes_that_come_back_has_them_written_at_once() -> None:
    count = 3 * AT_ONCE
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        there = await online(b, "u1")
        await many_behind_a_row(made, a, count)
        there.leave()
        made.store.writing.set()
        await until(lambda: not a.core.router.behind)
        second = b.connect("u1")
        for _ in range(30):
            await ticks(a, b)
            second.answer()
        assert ids(second) == [f"p{number}" for number in range(count)]
