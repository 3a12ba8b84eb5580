"""What every Directory must do: one suite for the one in memory and the one in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest

from bridge.adapters.memory import MemoryDirectory, MemoryLease, MemorySessions, MemoryStore
from bridge.adapters.postgres.directory import PostgresDirectory
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.sessions import PostgresSessions
from bridge.core.errors import StoreUnavailable
from bridge.core.model.ledger import Closed, Device, Entries, Opened
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

        yield Subject(in_memory)
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

    yield Subject(in_postgres)
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
    assert await a.directory.holder("s1") == Holder("u1", "boot-b")
    assert await b.directory.holder("s1") == Holder("u1", "")
    await b.log.note(Entries(closed=[Closed("s1", "u1", "b", NOW, NOW + 1, 1000, "client")]))
    assert await a.directory.holder("s1") == Holder("u1", "")
    assert await a.directory.holder("never") is None


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
