"""Pushes of other nodes are found by what a recall names, without a look at any other."""

from __future__ import annotations

import random
from typing import Never

import pytest

from bridge.core.cluster.guests import Guest, Guests
from bridge.core.contract.letters import Forwarded, Recalled, Word
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import RowKey
from tests.core.test_nodes import LIMITS, ids, online
from tests.support.house import to
from tests.support.ports import ManualClock
from tests.support.town import town
from tests.support.waiting import until


def nobody(word: Word, why: str, session: str, unprovable: bool) -> None:
    """Nobody hears what becomes of it."""


def guest(tenant: str = "", push_id: str = "p1", user: str = "u1", collapse_key: str = "") -> Guest:
    """A push of another node."""
    forwarded = Forwarded(1, [user], "", tenant, push_id, "", "json", b"1", 2, [], collapse_key, 1, None)
    return Guest(RowKey(tenant, push_id, user), forwarded, ManualClock(), nobody)


def is_named(one: Guest, recall: Recall) -> bool:
    """What a recall means."""
    if one.key.tenant != recall.tenant:
        return False
    if recall.push_id:
        return one.key.push_id == recall.push_id
    return one.key.user == recall.user and one.collapse_key == recall.collapse_key


@pytest.mark.parametrize("seed", range(20))
def test_a_recall_finds_in_order_what_a_look_at_all_would_find(seed: int) -> None:
    chance, guests, here = random.Random(seed), Guests(), list[Guest]()
    for _ in range(400):
        new = guest(
            chance.choice(("", "t")),
            chance.choice("pqr"),
            chance.choice("uvwx"),
            chance.choice(("", "k", "l")),
        )
        if guests.get(new.key) is None:
            guests.add(new)
            here.append(new)
        if here and chance.random() < 0.5:
            gone = chance.choice(here)
            guests.remove(gone)
            guests.remove(gone)
            here.remove(gone)
        recalls = [Recall(new.key.tenant, new.key.push_id)]
        if new.collapse_key:
            recalls.append(Recall(new.key.tenant, "", new.key.user, new.collapse_key))
        for recall in recalls:
            assert list(guests.named(recall)) == [one for one in here if is_named(one, recall)]
    assert len(guests) == len(here)
    for one in here:
        guests.remove(one)
    assert (guests._of_key, guests._of_push, guests._of_place) == ({}, {}, {})


def test_one_that_has_replaced_another_stays_when_that_one_ends() -> None:
    guests, first, second = Guests(), guest(), guest()
    guests.add(first)
    guests.remove(first)
    guests.add(second)
    guests.remove(first)
    assert guests.get(second.key) is second


def test_over_the_bound_the_oldest_is_forgotten() -> None:
    guests = Guests(3)
    for number in range(5):
        guests.add(guest(push_id=f"p{number}", collapse_key="k"))
    assert [key.push_id for key in guests._of_key] == ["p2", "p3", "p4"]
    assert [one.key.push_id for one in guests.named(Recall("", "", "u1", "k"))] == ["p2", "p3", "p4"]
    assert not guests.named(Recall("", "p1"))


class Unwalked(dict[RowKey, Guest]):
    """Fails whoever looks at all that is in it."""

    def __iter__(self) -> Never:
        raise AssertionError

    def values(self) -> Never:
        raise AssertionError

    def items(self) -> Never:
        raise AssertionError


@pytest.mark.parametrize("named", [("p1", "", ""), ("", "u1", "k")])
async def test_a_recall_of_another_node_looks_only_for_what_it_names(
    named: tuple[str, str, str],
) -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        peer = await online(b, "u1")
        peer.socket.stuffed = True
        await a.push(to("u1", "p1", ttl=60, collapse_key="k"))
        guests = b.core.from_nodes._hosting._guests
        await until(lambda: len(guests) == 1)
        (recalled,) = guests._of_key.values()
        guests._of_key = Unwalked(guests._of_key)
        b.core.from_nodes._recall(Recalled(a.inflight.take_position(), "", *named))
        assert recalled.withdrawn
        assert ids(peer) == []
