"""Which node takes which partitions of the requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import pytest

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.cluster.sharing import HOLD, PATIENCE, UNABLE, Sharing, plan_of
from bridge.core.model.nodes import Around, Neighbour
from bridge.core.ports.nodes import Holder
from bridge.core.sessions.freshness import FRESH_FOR
from tests.support.ports import ManualClock, RecordingErrors


class Directory:
    """What a node is told of others."""

    def __init__(self) -> None:
        self.others: dict[str, Sequence[int] | None] = {}
        self.dead: set[str] = set()
        self.said: list[Sequence[int] | None] = []

    async def look(self, queue: str, known_until: float | None, taking: Sequence[int] | None) -> Around:
        self.said.append(taking)
        others = [
            Neighbour(node, f"boot of {node}", "q", node not in self.dead, 0.0, its_own)
            for node, its_own in self.others.items()
        ]
        return Around(0.0, others)

    async def holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        raise NotImplementedError

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        raise NotImplementedError

    async def everyone(self, after: str, limit: int) -> Sequence[tuple[str, Sequence[str]]]:
        raise NotImplementedError

    async def subscribers(
        self, topic: str, after: str, limit: int, within: float
    ) -> Sequence[tuple[str, Sequence[str]]]:
        raise NotImplementedError


class Member:
    """A node that decides, and does at once what it has decided."""

    def __init__(self, partitions: int, *others: str) -> None:
        self.clock = ManualClock()
        self.directory = Directory()
        self.directory.others = dict.fromkeys(others, ())
        self.neighbours = Neighbours(self.directory, None, clock=self.clock, errors=RecordingErrors())
        self.sharing = Sharing(partitions, "n1", self.neighbours, self.clock)
        self.taken: frozenset[int] = frozenset()
        self.watched: frozenset[int] = frozenset()

    async def decide(
        self, untaken: Collection[int] = (), *, able: bool = True, leaving: bool = False, look: bool = True
    ) -> frozenset[int]:
        if look:
            await self.neighbours.look()
        since = dict.fromkeys(untaken, self.clock.monotonic() - PATIENCE)
        aim = self.sharing.aim(self.taken, since, able=able, leaving=leaving)
        self.taken, self.watched = aim
        return self.taken


def of(plan: Sequence[str], node: str) -> frozenset[int]:
    return frozenset(k for k, owner in enumerate(plan) if owner == node)


@pytest.mark.parametrize("partitions", [1, 2, 3, 8, 64, 256])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_a_plan_is_even_and_names_two_nodes_for_each_partition(partitions: int, count: int) -> None:
    nodes = [f"n{n}" for n in range(count)]
    plan = plan_of(partitions, nodes)
    assert plan == plan_of(partitions, nodes[::-1]), "all nodes must come to the same plan"
    shares = [Counter(plan.owners)[node] for node in nodes]
    assert sum(shares) == partitions
    assert max(shares) - min(shares) <= 1
    for owner, stand_in in zip(plan.owners, plan.stand_ins, strict=True):
        assert owner in nodes
        assert (stand_in == "") if count == 1 else (stand_in in nodes and stand_in != owner)


def test_a_node_that_leaves_moves_few_partitions() -> None:
    before, after = plan_of(64, ["n1", "n2", "n3", "n4"]), plan_of(64, ["n1", "n2", "n3"])
    moved = sum(old != new for old, new in zip(before.owners, after.owners, strict=True))
    assert 16 <= moved <= 32, "sixteen have lost their owner"


def test_a_node_alone_takes_all() -> None:
    member = Member(4)
    assert asyncio.run(member.decide()) == {0, 1, 2, 3}


async def test_a_node_gives_up_what_is_another_ones_share_once_that_one_takes_part() -> None:
    member = Member(4)
    assert len(await member.decide()) == 4
    member.directory.others = {"n2": None}
    assert len(await member.decide()) == 4, "it is there, and does not take part"
    member.directory.others = {"n2": ()}
    assert await member.decide() == of(plan_of(4, ["n1", "n2"]).owners, "n1")


async def test_a_dead_node_has_no_share() -> None:
    member = Member(4, "n2")
    assert len(await member.decide()) == 2
    member.directory.dead = {"n2"}
    assert len(await member.decide()) == 4


async def test_others_are_told_what_a_node_takes() -> None:
    member = Member(2)
    await member.decide()
    await member.decide()
    await member.decide()
    assert [said if said is None else list(said) for said in member.directory.said] == [None, [], [0, 1]]


async def test_a_stand_in_takes_what_nobody_consumes_and_keeps_it_until_the_owners_lease_must_have_run_out() -> (
    None
):
    plan = plan_of(8, ["n1", "n2", "n3"])
    member = Member(8, "n2", "n3")
    own = await member.decide()
    watched = member.watched
    assert watched == of(plan.stand_ins, "n1") - own
    assert watched
    orphan = min(watched)
    member.clock.advance(1)
    assert await member.decide([orphan]) == own | {orphan}
    member.clock.advance(HOLD / 2)
    assert await member.decide() == own | {orphan}, "the dead owner may look alive"
    member.clock.advance(HOLD)
    assert await member.decide() == own, "the owner takes part, and has it back"


async def test_a_partition_is_not_taken_by_a_stand_in_before_its_patience_is_over() -> None:
    member = Member(8, "n2")
    own = await member.decide()
    orphan = min(member.watched)
    aim = member.sharing.aim(own, {orphan: member.clock.monotonic() - PATIENCE / 2}, able=True)
    assert aim.wanted == own


async def test_only_the_stand_in_takes_what_nobody_consumes() -> None:
    member = Member(8, "n2", "n3")
    own = await member.decide()
    others = set(range(8)) - own - member.watched
    assert others
    assert await member.decide(others) == own


async def test_who_does_not_know_the_others_stays_with_what_it_has() -> None:
    member = Member(4, "n2")
    own = await member.decide()
    member.directory.dead = {"n2"}
    member.clock.advance(FRESH_FOR)
    assert await member.decide(look=False) == own
    assert await member.decide() == {0, 1, 2, 3}


async def test_who_can_not_take_for_a_while_leaves_it_to_others() -> None:
    member = Member(4, "n2")
    own = await member.decide()
    assert await member.decide(able=False) == own, "it may be a moment only"
    member.clock.advance(UNABLE)
    assert await member.decide(able=False) == frozenset()
    await member.neighbours.look()
    assert member.directory.said[-1] is None
    assert await member.decide() == own


async def test_who_can_not_take_keeps_its_share_while_nobody_else_can() -> None:
    member = Member(4)
    await member.decide()
    member.clock.advance(UNABLE)
    assert len(await member.decide(able=False)) == 4


async def test_who_leaves_takes_no_part_from_that_moment_on() -> None:
    member = Member(4, "n2")
    await member.decide()
    assert await member.decide(leaving=True) == frozenset()
    await member.neighbours.look()
    assert member.directory.said[-1] is None


async def test_who_knows_of_fewer_partitions_than_another_one_takes_none_and_says_why() -> None:
    member = Member(2)
    assert len(await member.decide()) == 2
    member.directory.others = {"n2": (0, 3)}
    assert await member.decide() == frozenset()
    assert "node n2 takes partition 3" in member.sharing.problem
    await member.neighbours.look()
    assert member.directory.said[-1] is None
    member.directory.others = {}
    assert len(await member.decide()) == 2
    assert member.sharing.problem == ""
