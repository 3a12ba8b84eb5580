"""What another node has not heard: a little of it is tried each second, and all follows once the node is reached."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from bridge.core.cluster.hosting import _Said
from bridge.core.cluster.post import ITEMS
from bridge.core.cluster.unheard import AT_ONCE, Unheard
from bridge.core.contract.letters import Report, Ring, Word
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.core.ports.nodes import Letter, Sent
from tests.core.test_nodes import LIMITS, ids, items, online
from tests.support.house import House, kept
from tests.support.town import Town, town
from tests.support.waiting import turns, until

MANY = 3 * AT_ONCE + 100
Say = Callable[[House, int], None]


def report(house: House, number: int) -> None:
    """A proof for the node `a`."""
    key = RowKey("", f"p{number}", "u1")
    said = Report(number, Word.RECEIVED)
    house.core.from_nodes._hosting._report(_Said("boot-a", key, said, house.clock.now))


def ring(house: House, number: int) -> None:
    """A ring at the node `a`."""
    house.core.cluster.ringing.ring(f"u{number}", number, ["boot-a"])


def heard(made: Town) -> list[int]:
    """The numbers of these, in the order in which they were sent."""
    said = [item for item in items(made) if isinstance(item, Report | Ring)]
    return [one.number if isinstance(one, Report) else one.position for one in said]


def unheard(house: House) -> int:
    """How many wait to be said again."""
    return sum(map(len, house.core.cluster.post._unheard))


async def fail(house: House, made: Town, say: Say) -> None:
    """Say many things that do not arrive."""
    made.fate = lambda letter: Sent.UNREACHABLE
    for number in range(1, MANY + 1):
        say(house, number)
    await until(lambda: unheard(house) == MANY)
    made.letters.clear()


@pytest.mark.parametrize("say", [report, ring])
async def test_while_a_node_can_not_be_reached_the_oldest_are_tried_each_second_and_no_others(
    say: Say,
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        await fail(b, made, say)
        for _ in range(3):
            b.core.every_second()
            await turns()
            assert heard(made) == list(range(1, AT_ONCE + 1))
            assert unheard(b) == MANY
            made.letters.clear()


@pytest.mark.parametrize("say", [report, ring])
async def test_once_a_node_is_reached_it_hears_everything_in_order_without_waiting_for_the_next_second(
    say: Say,
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        await fail(b, made, say)
        b.core.every_second()
        await turns()
        made.letters.clear()
        made.fate = lambda letter: None
        b.core.every_second()
        await until(lambda: not unheard(b) and not b.core.cluster.post.busy)
        assert heard(made) == list(range(1, MANY + 1))


async def test_where_a_node_is_lost_again_meanwhile_the_order_stays() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        await fail(b, made, report)
        lost = False

        def fate(letter: Letter) -> Sent | None:
            return Sent.UNREACHABLE if lost else Sent.DELIVERED

        made.fate = fate
        b.core.every_second()
        await until(lambda: len(made.letters) == 2)
        lost = True
        await turns()
        arrived = MANY - unheard(b)
        assert 0 < arrived < MANY
        made.letters.clear()
        lost = False
        b.core.every_second()
        await until(lambda: not unheard(b) and not b.core.cluster.post.busy)
        assert heard(made) == list(range(arrived + 1, MANY + 1))


async def test_where_a_dead_owner_will_never_hear_all_is_noted_without_waiting_for_the_next_second() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        await fail(b, made, report)
        ring(b, 1)
        await turns()
        b.core.cluster.neighbours._others.clear()
        b.core.every_second()
        assert len(b.worklist.late_proofs) == AT_ONCE, "the rest has turns of its own"
        await until(lambda: not unheard(b))
        assert [proof.key.push_id for proof in b.worklist.late_proofs] == [
            f"p{n}" for n in range(1, MANY + 1)
        ]


async def test_each_process_has_turns_of_its_own() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [_, b, _]):
        made.fate = lambda letter: Sent.UNREACHABLE
        for boot in ("boot-a", "boot-c"):
            b.core.cluster.ringing.ring("u1", 1, [boot])
        await until(lambda: unheard(b) == 2)
        made.letters.clear()
        made.fate = lambda letter: None
        b.core.every_second()
        assert unheard(b) == 1
        await until(lambda: not unheard(b))
        await turns()
        assert len(made.letters) == 2


async def test_what_can_not_be_sent_is_told_a_letter_at_a_time() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [_, b]):
        wire = b.core.ports.post
        assert wire is not None

        def down(letters: list[Letter], told: Callable[[int, Sent], None]) -> None:
            for place in range(len(letters)):
                told(place, Sent.UNREACHABLE)

        wire.send = down  # type: ignore[method-assign, assignment]
        for number in range(1, MANY + 1):
            report(b, number)
        told = [0]
        while told[-1] < MANY:
            await asyncio.sleep(0)
            told.append(unheard(b))
        assert max(after - before for before, after in itertools.pairwise(told)) == ITEMS


async def test_a_user_is_rung_for_the_oldest_push_that_nobody_has_heard_of() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE
        for name in ("p1", "p2"):
            await a.push(kept("u1", name, 60))
            await a.ends(name, Outcome.STORED, Reason.NODE_UNREACHABLE)
        oldest = a.row("p1").position
        await turns()
        made.fate = lambda letter: None
        made.letters.clear()
        a.core.cluster.ringing.stored("u1", a.row("p2").position)
        await until(lambda: items(made))
        assert heard(made)[0] == oldest
        await until(lambda: ids(peer) == ["p1", "p2"])


async def test_a_user_is_missed_until_the_last_of_the_rings_is_rung_again() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        ringing = b.core.cluster.ringing
        made.fate = lambda letter: Sent.UNREACHABLE
        ringing.ring("u1", 7, ["boot-a"])
        for number in range(AT_ONCE):
            ring(b, number + 100)
        ringing.ring("u1", 9, ["boot-a"])
        ringing.ring("u1", 3, ["boot-a"], delivered=True)
        await until(lambda: unheard(b) == AT_ONCE + 3)
        assert ringing.due("u1") == 7
        b.core.every_second()
        assert ringing.due("u1") == 7
        made.fate = lambda letter: None
        b.core.every_second()
        await until(lambda: not unheard(b))
        assert (ringing.due("u1"), ringing._missed) == (None, {})


def test_over_the_bound_the_oldest_of_the_same_process_goes() -> None:
    unheard, said, item = Unheard(), list[int](), Ring("u1", 1)
    unheard.add("a", item, said.append, 0)
    unheard.add("b", item, said.append, 0)
    unheard.add("b", item, said.append, 0)
    unheard.drop_oldest("b")
    unheard.drop_oldest("c")
    assert (len(unheard), unheard.boots) == (1, ["b"])
    unheard.say_some("b")
    assert (said, len(unheard), "b" in unheard) == ([3], 0, False)


async def test_reports_over_the_bound_cost_the_oldest() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        b.core.cluster.unheard_reports._most = 3
        made.fate = lambda letter: Sent.UNREACHABLE
        for number in range(1, 6):
            report(b, number)
        await until(lambda: not b.core.cluster.post.busy)
        made.letters.clear()
        made.fate = lambda letter: None
        b.core.every_second()
        await turns()
        assert heard(made) == [3, 4, 5]


async def test_rings_over_the_bound_are_given_up() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        ringing = b.core.cluster.ringing
        ringing._unheard._most = 3
        made.fate = lambda letter: Sent.UNREACHABLE
        for number in range(1, 6):
            ring(b, number)
        await until(lambda: not b.core.cluster.post.busy)
        assert ringing.due("u5") is None
        made.letters.clear()
        made.fate = lambda letter: None
        b.core.every_second()
        await turns()
        assert heard(made) == [1, 2, 3]
