"""What the owner of all pushes in flight tells those that ask it: `bridge.core.inflight.inflight`."""

from __future__ import annotations

import random
from typing import Never

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.index import Index
from bridge.core.model.rows import RowKey
from tests.support.house import House, flight
from tests.support.rows import row
from tests.support.waiting import until


async def test_rows_that_become_final_are_collected_until_the_block_ends() -> None:
    h = House()
    first, second = row("p1"), row("p2")
    with h.inflight.watching({"u"}) as rows:
        h.inflight.ended_in_store([first])
        assert rows == {first.key: first}
    h.inflight.ended_in_store([second])
    assert rows == {first.key: first}


def test_a_push_is_found_for_each_of_its_users_whatever_tenants_have_its_id() -> None:
    chance, index, here = random.Random(1), Index(), dict[RowKey, Flight]()
    for _ in range(2_000):
        key = RowKey(chance.choice("ab"), chance.choice("pq"), chance.choice("uvw"))
        if key in here:
            index.remove(here.pop(key))
        else:
            here[key] = flight()
            here[key].key = key
            index.add(here[key])
        for push_id in "pq":
            of_push = [one for one in here.values() if one.key.push_id == push_id]
            assert {id(one) for one in index.of_push(push_id)} == {id(one) for one in of_push}
            for user in "uvw":
                found = {id(one) for one in index.of_push_to(push_id, user)}
                assert found == {id(one) for one in of_push if one.key.user == user}


class Unwalked(dict[str, Flight]):
    """Fails whoever looks at all that is in it."""

    def __iter__(self) -> Never:
        raise AssertionError

    def values(self) -> Never:
        raise AssertionError

    def items(self) -> Never:
        raise AssertionError


async def test_who_resumes_after_a_push_to_a_crowd_costs_no_look_at_the_others_of_the_crowd() -> None:
    h = House()
    async with h.running(h.core.pages):
        h.core.begin(0)
        for position, user in enumerate(("u1", "u2", "u3"), 1):
            one = flight("p1", user)
            one.position = position
            h.inflight.add(one)
        of_push = h.inflight._index._of_push
        found = of_push["p1"]
        assert isinstance(found, dict)
        of_push["p1"] = {tenant: Unwalked(flights) for tenant, flights in found.items()}
        peer = h.connect("u2", last="p1")
        await until(lambda: peer.client.session.replay is None)
        assert b'"complete":true' in peer.socket.frames[0].payload
        assert not h.errors.seen
