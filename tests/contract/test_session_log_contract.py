"""What every SessionLog must do: one suite for the one in memory and the one in Postgres."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import psycopg
import pytest

from bridge.adapters.memory import MemorySessions
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.adapters.postgres.sessions import PostgresSessions
from bridge.core.errors import StoreUnavailable
from bridge.core.model.ledger import Closed, Device, Entries, Noted, Opened, Refreshed
from bridge.core.model.revocations import Revocation
from bridge.core.ports.session_log import SessionLog
from tests.support.ports import ManualClock

NOW = 1_700_000_000.25
NOTHING = Noted([], [], [])


class Subject(NamedTuple):
    log: SessionLog
    rows: Callable[[], Awaitable[dict[str, tuple[Any, ...]]]]
    """Of each session: user, node, when its token expires, and code and reason of its end; None while it is open."""
    revoke: Callable[[str], Awaitable[None]]
    unwant: Callable[[str], Awaitable[None]]
    lose_name: Callable[[], Awaitable[None]]
    die: Callable[[str], Awaitable[None]]
    """The process that has this session is dead."""


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield in_memory()
        return
    dsn: str = request.getfixturevalue("database")
    lease, log = PostgresLease(dsn, "n1", "b1"), PostgresSessions(dsn, "n1", "b1")
    revocations = PostgresRevocations(dsn, "n1")
    await lease.claim()

    async def run(query: str, *params: object) -> list[tuple[Any, ...]]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            cursor = await conn.execute(query.encode(), params)
            return await cursor.fetchall() if cursor.description else []

    async def rows() -> dict[str, tuple[Any, ...]]:
        query = (
            "select session, user_id, node, extract(epoch from expires_at)::float8, closed_at, close_code, close_reason"
            " from session"
        )
        return {
            name: (user, node, expires, None if closed is None else (code, reason))
            for name, user, node, expires, closed, code, reason in await run(query)
        }

    async def revoke(token_id: str) -> None:
        await revocations.revoke(Revocation(token_id=token_id))

    async def unwant(name: str) -> None:
        await run("select unwant_sessions(null, %s, 'disconnected')", name)

    async def lose_name() -> None:
        await run("update node set boot = 'b2'")

    async def die(name: str) -> None:
        await run("update session set boot = 'b0' where session = %s", name)

    try:
        yield Subject(log, rows, revoke, unwant, lose_name, die)
    finally:
        await log.close()
        await revocations.close()
        await lease.release()


def in_memory() -> Subject:
    log = MemorySessions(ManualClock())

    async def rows() -> dict[str, tuple[Any, ...]]:
        closed = {name: (one.code, one.reason) for name, one in log.closed.items()}
        return {name: (o.user, o.node, o.expires_at, closed.get(name)) for name, o in log.opened.items()}

    async def revoke(token_id: str) -> None:
        log.revoked.add(token_id)

    async def unwant(name: str) -> None:
        log.unwanted[name] = "disconnected"

    async def lose_name() -> None:
        log.ended = True

    async def die(name: str) -> None:
        log.dead.append(name)

    return Subject(log, rows, revoke, unwant, lose_name, die)


def opened(name: str, user: str = "u1", token_id: str = "", agent: str = "") -> Opened:
    device = Device("2001:db8::7", agent)
    return Opened(name, user, "n1", NOW, "bridge.v1.json", device, token_id or f"t-{name}", NOW - 5, NOW + 60)


def closed(name: str, code: int | None = 1000, reason: str = "client") -> Closed:
    return Closed(name, "u1", "n1", NOW, NOW + 9, code, reason)


async def test_a_session_opens_and_closes_once(subject: Subject) -> None:
    both = Entries([opened("s1"), opened("s2", 'a "user", {with} \\ all')], (), (), [closed("s1")])
    assert await subject.log.note(both) == NOTHING
    expected = {
        "s1": ("u1", "n1", NOW + 60, (1000, "client")),
        "s2": ('a "user", {with} \\ all', "n1", NOW + 60, None),
    }
    assert await subject.rows() == expected
    await subject.log.note(both)
    await subject.log.note(Entries((), (), (), [closed("s1", 4408, "too_slow"), closed("never opened")]))
    assert await subject.rows() == expected


async def test_a_refresh_changes_when_the_token_expires(subject: Subject) -> None:
    await subject.log.note(Entries([opened("s1")]))
    await subject.log.note(
        Entries((), [Refreshed("s1", "t9", NOW + 600), Refreshed("unknown", "t", NOW)], ())
    )
    assert (await subject.rows())["s1"] == ("u1", "n1", NOW + 600, None)


async def test_an_open_with_a_revoked_token_is_named(subject: Subject) -> None:
    await subject.revoke("t-s2")
    noted = await subject.log.note(Entries([opened("s1"), opened("s2")]))
    assert noted == Noted(["s2"], [], [])


async def test_a_session_that_is_not_wanted_is_named_until_it_is_closed(subject: Subject) -> None:
    await subject.log.note(Entries([opened("s1"), opened("s2")]))
    await subject.unwant("s1")
    for _ in range(2):
        assert await subject.log.note(Entries()) == Noted([], [], [("s1", "disconnected")])
    assert await subject.log.note(Entries((), (), (), [closed("s1", 1001, "disconnected")])) == NOTHING
    assert await subject.log.note(Entries()) == NOTHING


async def test_a_process_without_its_name_writes_nothing(subject: Subject) -> None:
    await subject.log.note(Entries([opened("s1")]))
    await subject.lose_name()
    with pytest.raises(StoreUnavailable):
        await subject.log.note(Entries([opened("s2")], (), (), [closed("s1")]))
    assert list(await subject.rows()) == ["s1"]


async def test_the_sessions_of_a_dead_process_are_closed_some_at_a_time_and_told_once(
    subject: Subject,
) -> None:
    await subject.log.note(Entries([opened(f"s{n}") for n in range(5)]))
    for n in range(4):
        await subject.die(f"s{n}")
    ended = [*await subject.log.end_dead(3), *await subject.log.end_dead(3)]
    assert sorted(one.session for one in ended) == ["s0", "s1", "s2", "s3"]
    assert {(one.user, one.node, one.opened_at, one.code, one.reason) for one in ended} == {
        ("u1", "n1", NOW, None, "node_died")
    }
    assert await subject.log.end_dead(3) == []
    rows = await subject.rows()
    assert [rows[f"s{n}"][3] for n in range(5)] == [(None, "node_died")] * 4 + [None]
