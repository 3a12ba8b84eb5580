"""Whether other nodes were forwarded all older kept pushes of a user that have no row yet."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bridge.core.inflight.flight import Effect, Flight, Owner
from bridge.core.inflight.index import GONE_MAX, Index
from bridge.core.inflight.kept import Kept
from bridge.core.model.pushes import Encoding
from bridge.core.model.rows import RowKey
from tests.support.house import flight


def kept_flight(position: int, owner: Owner) -> Flight:
    """A kept push of the user u1 without a row."""
    one = flight(f"p{position}")
    one.owner = owner
    one.position = position
    one.kept = Kept(1e9, b"1", Encoding.JSON, frozenset())
    return one


class Keeper:
    """Owns flights as InFlight does, where it comes to what a process lacks."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def carry_on(self, flight: Flight, effect: Effect, now: float) -> None:
        if effect is Effect.LACKED:
            self.index.lacked(flight)


@pytest.mark.parametrize("seed", range(30))
def test_an_older_push_that_a_process_lacks_is_found_whatever_has_happened_to_it(seed: int) -> None:
    chance, index, here = random.Random(seed), Index(), list[Flight]()
    keeper = Keeper(index)
    for step in range(1, 400):
        position = 10 * step - chance.choice((0, 0, 0, 25))
        if all(one.position != position for one in here):
            new = kept_flight(position, keeper)
            index.add(new)
            here.append(new)
        for _ in range(min(chance.randrange(3), len(here))):
            one = chance.choice(here)
            boot = chance.choice(("b", "c"))
            what = chance.randrange(8)
            if what == 0:
                one.recalled(1.0)
            elif what == 1:
                index.written(one)
                here.remove(one)
            elif what == 2 or one.ended or boot in one.holders:
                one.unreached(boot, 1.0)
            else:
                one.forwarded(boot)
        boots = chance.choice((("b",), ("b",), ("b", "c"), ("c",), ()))
        before = chance.choice((position, position + 1, position - 100))
        lacking = [
            one
            for one in here
            if one.position < before and not one.ended and not set(boots) <= set(one.holders)
        ]
        assert index.is_lacked("u1", before, frozenset(boots)) is bool(lacking)
    for one in here:
        index.written(one)
    assert not index._unwritten


def test_a_push_that_did_not_get_to_its_node_is_found_though_it_was_looked_at_before() -> None:
    index, boots = Index(), frozenset(("b",))
    keeper = Keeper(index)
    for position in (1, 2, 3):
        one = kept_flight(position, keeper)
        index.add(one)
        one.forwarded("b")
    assert not index.is_lacked("u1", 4, boots)
    back = index.get(RowKey("", "p2", "u1"))
    assert back is not None
    back.unreached("b", 1.0)
    assert index.is_lacked("u1", 4, boots)
    assert not index.is_lacked("u1", 2, boots)


class Counted(tuple[str, ...]):
    """The processes that a push was forwarded to; counts how often somebody looks."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        Counted.looks += 1
        return super().__iter__()


def test_no_push_looks_at_all_older_ones_of_its_user_that_other_nodes_have() -> None:
    index, many, boots = Index(), 300, frozenset(("b",))
    keeper = Keeper(index)
    Counted.looks = 0
    for position in range(1, many + 1):
        one = kept_flight(position, keeper)
        index.add(one)
        assert not index.is_lacked("u1", position, boots)
        one.forwarded("b")
        one.holders = Counted(one.holders)
    assert Counted.looks <= 2 * many


def test_what_has_a_row_is_not_remembered_as_without_one_for_long() -> None:
    index, boots = Index(), frozenset(("b",))
    keeper = Keeper(index)
    first = kept_flight(1, keeper)
    index.add(first)
    assert index.is_lacked("u1", 2, boots)
    for position in range(2, 10 * GONE_MAX):
        one = kept_flight(position, keeper)
        index.add(one)
        index.written(one)
    assert len(index._unwritten["u1"].unsure) <= GONE_MAX + 4
    assert index.is_lacked("u1", 2, boots)
