"""What every Directory must do: one suite for the one in memory and the one in Postgres."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest

from bridge.adapters.memory import MemoryDirectory, MemoryLease, MemorySessions, MemoryStore
from bridge.adapters.postgres.directory import PostgresDirectory
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.sessions import PostgresSessions
from bridge.core.errors import StoreUnavailable
from bridge.core.model.ledger import Closed, Device, Entries, Opened, Subscribed
from bridge.core.ports.nodes import Directory, Holder
from bridge.core.ports.session_log import SessionLog
from bridge.core.ports.store import Lease
from tests.support.ports import ManualClock

NOW = 1_700_000_000.0


class Node(NamedTuple):
    lease: Lease
    log: SessionLog
    directory: Directory


class Subject(NamedTuple):
    node: Callable[[str, str], Node]
    """A process with a name and a boot, which has not claimed its name."""
    now: Callable[[], float]


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        clock = ManualClock()
        store, sessions = MemoryStore(clock), MemorySessions(clock)

        def in_memory(name: str, boot: str) -> Node:
            return Node(
                MemoryLease(store, clock, name, boot),
                sessions,
                MemoryDirectory(store, sessions, clock, name, boot),
            )

        yield Subject(in_memory, clock.time)
        return
    dsn: str = request.getfixturevalue("database")
    made: list[tuple[PostgresLease, PostgresSessions, PostgresDirectory]] = []

    def in_postgres(name: str, boot: str) -> Node:
        made.append(
            (
                PostgresLease(dsn, name, boot),
                PostgresSessions(dsn, name, boot),
                PostgresDirectory(dsn, name, boot),
            )
        )
        return Node(*made[-1])

    yield Subject(in_postgres, time.time)
    for lease, log, directory in made:
        await lease.close()
        await log.close()
        await directory.close()


def opened(session: str, user: str, node: str) -> Opened:
    return Opened(session, user, node, NOW, "bridge.v1.json", Device(), "", None, 4e9)


async def two(subject: Subject) -> tuple[Node, Node]:
    a, b = subject.node("a", "boot-a"), subject.node("b", "boot-b")
    for one in (a, b):
        await one.lease.claim()
    return a, b


async def test_who_is_alone_sees_nobody(subject: Subject) -> None:
    a = subject.node("a", "boot-a")
    await a.lease.claim()
    assert (await a.directory.look("queue-a", None, None)).others == []


async def test_each_sees_the_other_with_the_queue_and_what_it_knows(subject: Subject) -> None:
    a, b = await two(subject)
    first = await a.directory.look("queue-a", None, None)
    assert [(one.node, one.boot, one.queue, one.alive) for one in first.others] == [("b", "boot-b", "", True)]
    second = await b.directory.look("", None, None)
    [seen] = second.others
    assert (seen.node, seen.queue) == ("a", "queue-a")
    assert seen.known_until is not None
    assert seen.known_until <= first.now <= second.now
    await a.directory.look("queue-2", first.now, None)
    [seen] = (await b.directory.look("", second.now, None)).others
    assert seen.queue == "queue-2"
    assert seen.known_until == pytest.approx(first.now, abs=1e-5)


async def test_who_has_lost_its_name_is_told(subject: Subject) -> None:
    a = subject.node("a", "boot-a")
    with pytest.raises(StoreUnavailable, match="name"):
        await a.directory.look("queue", None, None)


async def test_the_holders_of_users_are_the_others_with_open_sessions(subject: Subject) -> None:
    a, b = await two(subject)
    await a.log.note(Entries([opened("s1", "u1", "a"), opened("s2", "u2", "a")]))
    await b.log.note(Entries([opened("s3", "u1", "b"), opened("s4", "u1", "b"), opened("s5", 'u\\"3', "b")]))
    assert await a.directory.holders(["u1", "u2", 'u\\"3', "nobody"]) == {
        "u1": ["boot-b"],
        'u\\"3': ["boot-b"],
    }
    assert await b.directory.holders(["u1", "u2"]) == {"u1": ["boot-a"], "u2": ["boot-a"]}
    assert await a.directory.holders([]) == {}
    closed = [Closed(name, "u1", "b", NOW, NOW + 1, 1000, "client") for name in ("s3", "s4")]
    await b.log.note(Entries(closed=closed))
    assert await a.directory.holders(["u1"]) == {}


async def test_a_session_is_found_by_its_id_also_when_it_has_closed(subject: Subject) -> None:
    a, b = await two(subject)
    await b.log.note(Entries([opened("s1", "u1", "b")]))
    await b.log.note(Entries([opened("s2", "u2", "b")]))
    both = {"s1": Holder("u1", "boot-b"), "s2": Holder("u2", "boot-b")}
    assert await a.directory.session_holders(["s2", "s1"]) == both
    assert await b.directory.session_holders(["s1"]) == {"s1": Holder("u1", "")}
    await b.log.note(Entries(closed=[Closed("s1", "u1", "b", NOW, NOW + 1, 1000, "client")]))
    assert await a.directory.session_holders(["never", "s1"]) == {"s1": Holder("u1", "")}


async def test_everyone_elsewhere_comes_page_by_page_in_the_order_of_bytes(subject: Subject) -> None:
    a, b = await two(subject)
    users = ["a", "B", "é", "z", "Z", "🚀"]
    await b.log.note(Entries([opened(f"s{n}", user, "b") for n, user in enumerate(users)]))
    await a.log.note(Entries([opened("here", "only here", "a")]))
    found, after = [], ""
    while page := await a.directory.everyone(after, 2):
        assert len(page) <= 2
        assert {tuple(boots) for _, boots in page} == {("boot-b",)}
        found += [user for user, _ in page]
        after = page[-1][0]
    assert found == sorted(users, key=str.encode)


async def of_topic(
    node: Node, within: float = 0.0, *, topic: str = "t", after: str = "", limit: int = 9
) -> list[tuple[str, list[str]]]:
    found = await node.directory.subscribers(topic, after, limit, within)
    return [(user, sorted(boots)) for user, boots in found]


async def test_the_subscribers_of_a_topic_are_those_with_sessions_elsewhere(subject: Subject) -> None:
    a, b = await two(subject)
    c = subject.node("c", "boot-c")
    await c.lease.claim()
    users = {"s1": "u1", "s2": "u2", "s3": "u2", "s4": "u3", "s5": "u4"}
    nodes = {"s1": a, "s2": b, "s3": c, "s4": b, "s5": b}
    topics = {"s5": "other"}
    for name, user in users.items():
        which = "abc"[(a, b, c).index(nodes[name])]
        says = Subscribed(name, user, topics.get(name, "t"), on=True)
        await nodes[name].log.note(Entries([opened(name, user, which)], (), [says]))
    assert await of_topic(a) == [("u2", ["boot-b", "boot-c"]), ("u3", ["boot-b"])]
    assert await of_topic(b) == [("u1", ["boot-a"]), ("u2", ["boot-c"])]
    assert await of_topic(a, limit=1) == [("u2", ["boot-b", "boot-c"])]
    assert await of_topic(a, after="u2") == [("u3", ["boot-b"])]
    await b.log.note(
        Entries((), (), [Subscribed("s4", "u3", "t", on=False), Subscribed("s2", "u2", "x", on=False)])
    )
    assert await of_topic(a) == [("u2", ["boot-b", "boot-c"])]


async def test_who_has_closed_is_a_subscriber_for_a_while_unless_another_session_is(subject: Subject) -> None:
    a, b = await two(subject)
    for name, user in {"s1": "u1", "s2": "u2", "s3": "u3"}.items():
        await b.log.note(Entries([opened(name, user, "b")], (), [Subscribed(name, user, "t", on=True)]))
    left = subject.now() - 10
    gone = [Closed(name, f"u{name[1]}", "b", NOW, left, 1000, "client") for name in ("s1", "s2", "s3")]
    await b.log.note(Entries((), (), (), gone))
    for node in (a, b):
        assert await of_topic(node, 60.0) == [("u1", []), ("u2", []), ("u3", [])]
        assert await of_topic(node, 5.0) == await of_topic(node) == []
    assert await of_topic(a, 60.0, after="u1", limit=1) == [("u2", [])]
    # One is back and subscribed, one is back and wants it no more.
    await b.log.note(Entries([opened("s4", "u1", "b")], (), [Subscribed("s4", "u1", "t", on=True)]))
    await a.log.note(Entries([opened("s5", "u2", "a")], (), [Subscribed("s5", "u2", "t", on=False)]))
    assert await of_topic(a, 60.0) == [("u1", ["boot-b"]), ("u3", [])]
    assert await of_topic(b, 60.0) == [("u3", [])]


async def test_what_a_session_says_of_topics_is_repeated_without_harm(subject: Subject) -> None:
    a, b = await two(subject)
    says = [Subscribed("s1", "u1", "t", on=True), Subscribed("never opened", "u2", "t", on=True)]
    both = Entries([opened("s1", "u1", "b")], (), says, ())
    for _ in range(2):
        await b.log.note(both)
    assert await of_topic(a) == [("u1", ["boot-b"])]
    gone = Closed("s1", "u1", "b", NOW, subject.now(), 1000, "client")
    # Written late: the session has closed by then.
    await b.log.note(Entries((), (), [Subscribed("s1", "u1", "late", on=True)], [gone]))
    assert await of_topic(a, 60.0, topic="late") == [("u1", [])]
