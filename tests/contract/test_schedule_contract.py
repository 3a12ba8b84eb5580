"""What every Schedule must do: one suite for the one in memory and the one in Postgres."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import psycopg
import pytest

from bridge.adapters.memory import MemoryLease, MemorySchedule, MemoryStore
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.schedule import PostgresSchedule
from bridge.core.model.pushes import Recall
from bridge.core.model.scheduled import Scheduled, Withdrawn
from bridge.core.ports.scheduling import CLAIM_SECONDS, Schedule
from bridge.core.ports.store import LEASE_SECONDS, Lease
from tests.support.ports import ManualClock

MUCH = 1 << 30


class Subject(NamedTuple):
    schedule: Schedule
    now: Callable[[], float]
    lease: Callable[[str, str], Lease]
    """A process with a name and a boot, which has not claimed its name."""
    pass_time: Callable[[float], Awaitable[None]]
    """So long ago, all claims were made and all leases renewed."""


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        clock = ManualClock()
        store = MemoryStore(clock)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)

        yield Subject(
            MemorySchedule(store, clock),
            clock.time,
            lambda name, boot: MemoryLease(store, clock, name, boot),
            advance,
        )
        return
    dsn: str = request.getfixturevalue("database")
    schedule = PostgresSchedule(dsn, "n1")
    leases: list[PostgresLease] = []

    def lease(name: str, boot: str) -> PostgresLease:
        leases.append(PostgresLease(dsn, name, boot))
        return leases[-1]

    async def age(seconds: float) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            ago = {"ago": seconds}
            await connection.execute(
                "update node set seen_at = seen_at - make_interval(secs => %(ago)s)", ago
            )
            await connection.execute(
                "update scheduled set claimed_at = claimed_at - make_interval(secs => %(ago)s)", ago
            )

    yield Subject(schedule, time.time, lease, age)
    await schedule.close()
    for one in leases:
        await one.close()


def entry(subject: Subject, push_id: str, ago: float = 10.0, **more: Any) -> Scheduled:
    """An entry that was due so many seconds ago."""
    values: dict[str, Any] = {
        "id": uuid.uuid4().hex,
        "tenant": "",
        "push_id": push_id,
        "user": "u1",
        "collapse_key": "",
        "users": 1,
        "deliver_at": round(subject.now() - ago, 3),
        "published_at": 1_700_000_000.25,
        "key": b"user.\xff",
        "body": b'{"a": "\\"\\\\"}\x00\xff',
        "properties": b"\x80",
    }
    return Scheduled(**{**values, **more})


async def claimed(subject: Subject, boot: str = "b1", limit: int = 100, most: int = MUCH) -> list[str]:
    return [e.push_id for e in (await subject.schedule.claim(boot, limit, most)).entries]


async def test_an_entry_comes_back_as_it_was_until_it_is_forgotten(subject: Subject) -> None:
    one = entry(subject, "p1", tenant="t", collapse_key="k", users=3, user='a",{}\\')
    await subject.schedule.add([one])
    assert (await subject.schedule.claim("b1", 10, MUCH)).entries == [one]
    assert (await subject.schedule.claim("b1", 10, MUCH)).entries == [one], "an answer may have been lost"
    await subject.schedule.done([one.id])
    await subject.schedule.done([one.id])
    due = await subject.schedule.claim("b1", 10, MUCH)
    assert (list(due.entries), due.next_in) == ([], None)


async def test_adding_an_entry_again_changes_nothing(subject: Subject) -> None:
    one = entry(subject, "p1")
    await subject.schedule.add([one])
    await subject.schedule.add([one, entry(subject, "p2")])
    await subject.schedule.add([])
    assert await claimed(subject) == ["p1", "p2"]


async def test_what_is_due_comes_in_the_order_of_its_time_and_then_of_its_scheduling(
    subject: Subject,
) -> None:
    at = subject.now() - 20
    await subject.schedule.add(
        [entry(subject, "late", 5), entry(subject, "b", deliver_at=at), entry(subject, "a", deliver_at=at)]
    )
    await subject.schedule.add([entry(subject, "c", deliver_at=at), entry(subject, "ahead", -60)])
    assert await claimed(subject) == ["b", "a", "c", "late"]


async def test_it_tells_when_the_next_one_is_due(subject: Subject) -> None:
    assert (await subject.schedule.claim("b1", 10, MUCH)).next_in is None
    await subject.schedule.add([entry(subject, "ahead", -60)])
    due = await subject.schedule.claim("b1", 10, MUCH)
    assert due.next_in is not None
    assert 50 < due.next_in <= 60
    await subject.schedule.add([entry(subject, "a"), entry(subject, "b")])
    due = await subject.schedule.claim("b1", 1, MUCH)
    assert ([e.push_id for e in due.entries], due.next_in) == (["a"], 0)


async def test_a_claim_is_bounded_in_entries_and_in_bytes(subject: Subject) -> None:
    await subject.schedule.add([entry(subject, f"p{n}", 90 - n, body=b"x" * 1000) for n in range(6)])
    assert await claimed(subject, limit=2) == ["p0", "p1"]
    assert await claimed(subject, most=1) == ["p0"], "the first one always comes"
    assert await claimed(subject, most=2500) == ["p0", "p1", "p2"]


async def test_one_living_process_releases_at_a_time(subject: Subject) -> None:
    await subject.lease("n1", "b1").claim()
    await subject.lease("n2", "b2").claim()
    await subject.schedule.add([entry(subject, "a"), entry(subject, "b")])
    assert await claimed(subject, "b1", limit=1) == ["a"]
    due = await subject.schedule.claim("b2", 10, MUCH)
    assert (list(due.entries), due.next_in) == ([], None)
    [a] = (await subject.schedule.claim("b1", 1, MUCH)).entries
    await subject.schedule.done([a.id])
    assert await claimed(subject, "b2") == ["b"]


async def test_the_claim_of_a_dead_process_is_taken_over(subject: Subject) -> None:
    await subject.lease("n1", "b1").claim()
    await subject.lease("n2", "b2").claim()
    await subject.schedule.add([entry(subject, "a")])
    assert await claimed(subject, "b1") == ["a"]
    await subject.pass_time(LEASE_SECONDS + 1)
    assert await claimed(subject, "b2") == ["a"]


async def test_the_claim_of_an_earlier_start_is_taken_over_at_once(subject: Subject) -> None:
    await subject.lease("n1", "b1").claim()
    await subject.schedule.add([entry(subject, "a")])
    assert await claimed(subject, "b1") == ["a"]
    await subject.pass_time(LEASE_SECONDS + 1)
    await subject.lease("n1", "b2").claim()
    assert await claimed(subject, "b2") == ["a"]


async def test_a_claim_of_a_living_process_that_does_not_get_on_ends(subject: Subject) -> None:
    first, second = subject.lease("n1", "b1"), subject.lease("n2", "b2")
    await first.claim()
    await second.claim()
    await subject.schedule.add([entry(subject, "a")])
    assert await claimed(subject, "b1") == ["a"]
    await subject.pass_time(CLAIM_SECONDS + 1)
    await first.renew()
    await second.renew()
    assert await claimed(subject, "b2") == ["a"]


async def test_what_is_given_back_is_due_for_anybody_and_can_not_be_recalled(subject: Subject) -> None:
    await subject.lease("n1", "b1").claim()
    await subject.lease("n2", "b2").claim()
    one = entry(subject, "a")
    await subject.schedule.add([one])
    assert await claimed(subject, "b1") == ["a"]
    await subject.schedule.give_back("b2", [one.id])
    assert await claimed(subject, "b2") == [], "it was not theirs"
    await subject.schedule.give_back("b1", [one.id])
    assert await subject.schedule.recall(Recall(push_id="a"), 10) == [], "it may have arrived"
    assert await claimed(subject, "b2") == ["a"]


async def test_a_recall_by_id_makes_it_due_at_once(subject: Subject) -> None:
    await subject.schedule.add(
        [
            entry(subject, "p1", -600, users=3),
            entry(subject, "p1", -600, tenant="t"),
            entry(subject, "p2", -600),
        ]
    )
    assert await subject.schedule.recall(Recall(push_id="p1"), 10) == [Withdrawn("p1", 3)]
    assert await subject.schedule.recall(Recall(push_id="p1"), 10) == []
    [one] = (await subject.schedule.claim("b1", 10, MUCH)).entries
    assert (one.push_id, one.tenant, one.recalled) == ("p1", "", True)
    assert one.deliver_at > subject.now() + 500


async def test_a_recall_by_collapse_key_means_pushes_to_this_user_alone(subject: Subject) -> None:
    named = {"collapse_key": "k", "tenant": "t"}
    await subject.schedule.add(
        [
            entry(subject, "p1", -600, **named),
            entry(subject, "p2", -600, **named),
            entry(subject, "other", -600, **named, user="u2"),
            entry(subject, "several", -600, **named, user="", users=2),
            entry(subject, "key", -600, **{**named, "collapse_key": "l"}),
            entry(subject, "none", -600, tenant="t"),
        ]
    )
    recall = Recall(tenant="t", user="u1", collapse_key="k")
    assert len(await subject.schedule.recall(recall, 1)) == 1
    assert len(await subject.schedule.recall(recall, 1)) == 1
    assert await subject.schedule.recall(recall, 1) == []
    assert sorted(await claimed(subject)) == ["p1", "p2"]


async def test_what_was_claimed_can_not_be_recalled(subject: Subject) -> None:
    await subject.schedule.add([entry(subject, "p1")])
    assert await claimed(subject) == ["p1"]
    assert await subject.schedule.recall(Recall(push_id="p1"), 10) == []
