"""What Retained must do, run against each implementation: in memory, and a real database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest

from bridge.adapters.memory import MemoryStore
from bridge.adapters.memory.retained import MemoryRetained
from bridge.adapters.postgres.retained import PostgresRetained
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding, PushKey, PushRequest, ToTopic
from bridge.core.model.retained import LastValue, LastValuesAsk
from bridge.core.ports.retained import Retained
from bridge.core.ports.store import Store
from tests.support.amqp import CLOCK
from tests.support.rows import row


class Subject(NamedTuple):
    retained: Retained
    store: Store


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        memory = MemoryStore(CLOCK)
        yield Subject(MemoryRetained(memory, CLOCK), memory)
        return
    dsn = request.getfixturevalue("database")
    store = PostgresStore(dsn)
    retained = PostgresRetained(dsn, "n1")
    try:
        yield Subject(retained, store)
    finally:
        await retained.close()
        await store.close()


def value(push_id: str = "p", position: int = 1, *, until: float | None = None, **more: object) -> LastValue:
    topic = more.pop("topic", "t")
    assert isinstance(topic, str)
    asked = PushRequest(push_id, ToTopic(topic), more.pop("data", b"1"), retain=True)  # type: ignore[arg-type]
    asked = msgspec.structs.replace(asked, **more)
    return LastValue(asked, position, 1e9, time.time() + 60 if until is None else until, 7)


async def found(subject: Subject, topic: str = "t", user: str = "u") -> list[tuple[str, bool]]:
    """The ids of all last values, page by page, and whether the user has a row of each."""
    every: list[tuple[str, bool]] = []
    after = 0
    while True:
        [page] = await subject.retained.find([LastValuesAsk(topic, user, after)])
        every += [(one.value.request.id, one.known) for one in page.values]
        if not page.more:
            return every
        after = page.values[-1].value.position


async def test_a_value_comes_back_as_it_was_kept(subject: Subject) -> None:
    whole = LastValue(
        PushRequest(
            "p", ToTopic("a.b"), b"\x00\xff", "é", Encoding.BYTES, Proof.ACKED, frozenset(("s1", 's"2')), "shop",
            b'{"a": "b"}', False, 60.5, "", 1.5, True, True,
        ),
        2**53 + 1, 1e9 + 0.25, time.time() + 60, 9, "app", "00-trace",
    )  # fmt: skip
    whole = msgspec.structs.replace(whole, until=round(whole.until))
    await subject.retained.keep(whole)
    [page] = await subject.retained.find([LastValuesAsk("a.b", "u")])
    assert [one.value for one in page.values] == [whole]
    assert not page.more


async def test_for_each_event_the_one_of_the_highest_position_stays(subject: Subject) -> None:
    for push_id, position, event in (
        ("a2", 5, "a"), ("a1", 3, "a"), ("b1", 4, "b"), ("a3", 6, "a"), ("a3", 6, "a"),
    ):  # fmt: skip
        await subject.retained.keep(value(push_id, position, event=event))
    await subject.retained.keep(value("other", 9, topic="t.2"))
    assert await found(subject) == [("b1", False), ("a3", False)]
    assert await found(subject, "nothing") == []


async def test_pages_follow_one_another_for_many_asks_at_once(subject: Subject) -> None:
    for n in range(1, 251):
        await subject.retained.keep(value(f"p{n}", n, event=f"e{n}", data=b"x" * 1000))
    assert [name for name, _ in await found(subject)] == [f"p{n}" for n in range(1, 251)]
    pages = await subject.retained.find(
        [LastValuesAsk("t", "u", 249), LastValuesAsk("none", "u"), LastValuesAsk("t", "v")]
    )
    assert [len(page.values) for page in pages[:2]] == [1, 0]
    assert pages[2].more
    assert pages[2].values[0].value.position == 1


async def test_a_value_larger_than_a_page_is_a_page_of_its_own(subject: Subject) -> None:
    for n in (1, 2):
        await subject.retained.keep(value(f"p{n}", n, event=f"e{n}", data=b"x" * 300_000))
    assert await found(subject) == [("p1", False), ("p2", False)]


async def test_it_says_who_has_a_row_of_the_push(subject: Subject) -> None:
    await subject.retained.keep(value("p1", 1, event="a"))
    await subject.retained.keep(value("p1", 2, event="b", tenant="shop"))
    await subject.store.record([row("p1", "u")])
    assert await found(subject) == [("p1", True), ("p1", False)]
    assert await found(subject, user="v") == [("p1", False), ("p1", False)]


async def test_what_is_over_or_recalled_is_none_any_more(subject: Subject) -> None:
    await subject.retained.keep(value("over", 1, event="a", until=time.time() - 1))
    await subject.retained.keep(value("p1", 2, event="b"))
    await subject.retained.keep(value("p1", 3, event="c", tenant="shop"))
    assert await found(subject) == [("p1", False), ("p1", False)]
    assert await subject.retained.forget(PushKey("", "p1")) is True
    assert await subject.retained.forget(PushKey("", "p1")) is False
    [page] = await subject.retained.find([LastValuesAsk("t", "u")])
    assert [one.value.request.tenant for one in page.values] == ["shop"]


async def test_it_says_what_its_first_device_has_acked(subject: Subject) -> None:
    await subject.retained.keep(value("p1", 1, event="a", first_device=True))
    await subject.retained.keep(value("p2", 2, event="b", first_device=True))
    acked = row("p1", "u", outcome=Outcome.ACKED, reason=Reason.ACK_FRAME)
    await subject.store.record([msgspec.structs.replace(acked, first_device=True), row("p2", "u")])
    [page] = await subject.retained.find([LastValuesAsk("t", "u")])
    assert [(one.known, one.taken_back) for one in page.values] == [(True, True), (True, False)]
