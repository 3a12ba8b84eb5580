"""Pushes that are routed while the answer who has their user is late, or while a dead node is forgotten."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.cluster.lately import USERS_MAX
from bridge.core.inflight.inflight import LOOKED_THROUGH, InFlight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.ports.nodes import Sent
from tests.core.test_nodes import LIMITS, held, ids, online, ticks
from tests.support.house import kept, to
from tests.support.town import town
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


async def test_one_pong_for_many_kept_pushes_does_not_look_through_all_of_them_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        here = await online(a, "u1")
        made.store.writing.clear()
        many = 3 * LOOKED_THROUGH
        for n in range(many):
            await a.push(kept("u1", f"p{n}", 60))
        await until(lambda: len(here.pushes) == many)
        looked: list[str] = []
        monkeypatch.setattr(InFlight, "write_unwritten", lambda _, user, __: looked.append(user))
        while here.unanswered:
            here.answer()
        assert not looked


async def test_who_was_there_last_is_remembered_of_a_bounded_number_of_users() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, _]):
        lately = a.core.cluster.lately
        for n in range(USERS_MAX + 3):
            lately.found(f"u{n}", ["boot-b", "boot-of-the-dead"])
        assert [lately.guess(user) for user in ("u2", "u3")] == [None, ["boot-b"]]
        lately.forget("u3")
        assert lately.guess("u3") is None
