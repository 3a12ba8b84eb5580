"""The rolling restart that is measured: what it counts, and where its clients go."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, cast

import pytest

from benchmarks.chaos.bridges import Bridge
from benchmarks.roaming import Balancer, People, Person, peak
from benchmarks.rolling import Load, Outcomes


class Node:
    """A bridge as the load balancer sees it."""

    def __init__(self, node: str, status: int) -> None:
        self.node = node
        self.answer = status

    async def status(self) -> tuple[int, str]:
        return self.answer, ""


def balancer(*nodes: Node) -> Balancer:
    return Balancer(cast(list[Bridge], list(nodes)))


@pytest.mark.parametrize(
    ("times", "most"),
    [([], 0), ([5.0], 1), ([0.0, 0.5, 0.99, 1.0, 3.0], 3), ([3.0, 1.0, 2.0], 1), ([1.0, 1.0, 1.9, 2.1], 3)],
)
def test_the_most_within_one_second_are_counted(times: list[float], most: int) -> None:
    assert peak(times) == most


async def test_clients_are_sent_to_nodes_that_are_ready() -> None:
    a, b = Node("a", 200), Node("b", 503)
    made = balancer(a, b)
    assert made.choose() is None
    await made.look()
    assert {cast(Any, made.choose()).node for _ in range(20)} == {"a"}
    a.answer, b.answer = 503, 200
    await made.look()
    assert {cast(Any, made.choose()).node for _ in range(20)} == {"b"}


def test_a_push_that_comes_again_is_a_repeat_and_the_cursor_is_the_last_one() -> None:
    welcomed: list[Person] = []
    person = Person(1, welcomed.append)
    person.came({"type": "welcome"})
    for name in ("p1", "p2", "p1"):
        person.came({"type": "push", "id": name})
    assert (person.seen, person.repeats, person.last, welcomed) == (["p1", "p2"], 1, "p1", [person])


async def test_what_a_user_has_not_seen_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.rolling.SEEN_WITHIN", 0.0)
    people = People(1, balancer())
    load = Load(people, "x")
    sent = [json.loads(load._next(kept=kept).body)["id"] for kept in (True, True, False)]
    assert sent == ["x-k1", "x-k2", "x-l1"]
    assert await load.seen() == 2
    people.all[0].came({"type": "push", "id": "x-k1"})
    assert await load.seen() == 1
    people.all[0].came({"type": "push", "id": "x-k2"})
    assert await load.seen() == 0


def test_a_push_with_a_ttl_is_lost_however_it_ended_unless_it_was_received() -> None:
    kept = Counter({"received/pong": 10, "unknown/node_died": 1, "expired/ttl": 2})
    assert Outcomes(kept, Counter()).lost == 3
