"""What every RevocationLog must do: one suite for the one in memory and the one in Postgres."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import psycopg
import pytest

from bridge.adapters.memory import MemoryRevocations
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.core.contract.control import TOKEN_ID_MAX, decode_revocation
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.ports.revocations import RevocationLog
from tests.support.ports import ManualClock

DAY = 86400.0


class Subject(NamedTuple):
    log: RevocationLog
    now: Callable[[], float]
    pass_days: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "postgres"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        clock = ManualClock()

        async def advance(days: float) -> None:
            clock.advance(days * DAY)

        yield Subject(MemoryRevocations(clock, "n1", 10 * DAY), clock.time, advance)
        return
    dsn: str = request.getfixturevalue("database")

    async def age(days: float) -> None:
        # The database's clock can't be moved, so what it has seen is moved back.
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(
                "update revocation set kept_until = kept_until - make_interval(secs => %s)", (days * DAY,)
            )

    lease, log = PostgresLease(dsn, "n1", "b1"), PostgresRevocations(dsn, "n1", "b1", 10 * DAY)
    await lease.claim()
    try:
        # A node confirms once it has read what was there at its start; from then on its own setting counts.
        await log.confirm(0, {})
        yield Subject(log, time.time, age)
    finally:
        await log.close()
        await lease.release()


async def test_what_is_committed_is_read_in_the_order_of_its_marks(subject: Subject) -> None:
    made = [Revocation(user="u1", before=100.25), Revocation(token_id="t1"), Revocation(session="s1")]
    marks = [await subject.log.revoke(one) for one in made]
    assert marks == sorted(marks)
    page = await subject.log.after(0, 10)
    assert [(r.mark, r.revocation) for r in page.revocations] == list(zip(marks, made, strict=True))
    assert (page.mark, page.more) == (marks[-1], False)
    assert all(abs(r.kept_until - subject.now() - 10 * DAY) < 60 for r in page.revocations)


async def test_a_page_ends_at_its_limit_and_the_next_goes_on(subject: Subject) -> None:
    marks = [await subject.log.revoke(Revocation(token_id=f"t{n}")) for n in range(5)]
    first = await subject.log.after(0, 3)
    assert ([r.mark for r in first.revocations], first.mark, first.more) == (marks[:3], marks[2], True)
    rest = await subject.log.after(first.mark, 3)
    assert ([r.mark for r in rest.revocations], rest.mark, rest.more) == (marks[3:], marks[-1], False)
    assert (await subject.log.after(rest.mark, 3)).mark == rest.mark


async def test_one_that_says_no_more_than_a_newer_one_is_dropped_and_the_reader_goes_past_it(
    subject: Subject,
) -> None:
    for one in (
        Revocation(user="u1", before=100.0),
        Revocation(user="u2", before=100.0),
        Revocation(token_id="t1"),
        Revocation(session="s1"),
        Revocation(session="s1", token_id="t1"),
        Revocation(user="u1", before=200.0),
        Revocation(user="u2", before=50.0),
        Revocation(token_id="t1"),
        Revocation(session="s1"),
    ):
        last = await subject.log.revoke(one)
    page = await subject.log.after(0, 100)
    assert [r.revocation for r in page.revocations] == [
        Revocation(user="u2", before=100.0),
        Revocation(session="s1", token_id="t1"),
        Revocation(user="u1", before=200.0),
        Revocation(user="u2", before=50.0),
        Revocation(token_id="t1"),
        Revocation(session="s1"),
    ]
    assert page.mark == last


async def test_one_is_kept_as_long_as_a_token_that_it_means_may_live(subject: Subject) -> None:
    later = subject.now() + 5 * DAY
    await subject.log.revoke(Revocation(user="u1", before=later))
    await subject.log.revoke(Revocation(token_id="t1"))
    await subject.pass_days(9.9)
    assert len((await subject.log.after(0, 10)).revocations) == 2
    await subject.pass_days(0.2)
    await subject.log.revoke(Revocation(token_id="t2"))
    names = [r.revocation.user or r.revocation.token_id for r in (await subject.log.after(0, 10)).revocations]
    if isinstance(subject.log, PostgresRevocations):
        # Rows stay until upkeep deletes them; they refuse nobody who could come.
        names.remove("t1")
    assert names == ["u1", "t2"]


async def test_the_answer_names_who_has_confirmed_and_what_was_closed(subject: Subject) -> None:
    mark = await subject.log.revoke(Revocation(user="u1", before=100.0))
    assert await subject.log.answer(mark) == RevocationAnswer(0, (), ("n1",))
    await subject.log.confirm(mark, {mark: 3})
    assert await subject.log.answer(mark) == RevocationAnswer(3, ("n1",), ())
    await subject.log.confirm(mark, {mark: 3})
    assert await subject.log.answer(mark) == RevocationAnswer(3, ("n1",), ()), "a repeat counts once"
    newer = await subject.log.revoke(Revocation(token_id="t1"))
    assert (await subject.log.answer(newer)).silent == ("n1",)
    await subject.log.confirm(mark, {})
    assert (await subject.log.answer(newer)).silent == ("n1",), "it had confirmed less"


async def test_many_at_a_time_get_marks_of_their_own_and_none_is_missed(subject: Subject) -> None:
    seen: list[int] = []
    done = asyncio.Event()

    async def read() -> None:
        mark = 0
        while True:
            finished = done.is_set()
            page = await subject.log.after(mark, 7)
            seen.extend(r.mark for r in page.revocations)
            mark = page.mark
            if finished and not page.more:
                return
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    marks = await asyncio.gather(*(subject.log.revoke(Revocation(token_id=f"t{n}")) for n in range(40)))
    done.set()
    await reader
    assert seen == sorted(marks)
    assert len(set(marks)) == 40


@pytest.mark.parametrize(("first", "many"), [(0x21, 90), (0x4E00, 20_000), (0x10000, 60_000)])
async def test_the_longest_token_id_is_revoked_whatever_its_characters(
    subject: Subject, first: int, many: int
) -> None:
    # Random, since Postgres compresses what repeats itself.
    characters = random.Random(1)
    longest = "".join(chr(first + characters.randrange(many)) for _ in range(TOKEN_ID_MAX))
    asked = decode_revocation(json.dumps({"jti": longest}).encode())
    assert asked == Revocation(token_id=longest)
    for _ in range(2):
        await subject.log.revoke(asked)
    assert [r.revocation for r in (await subject.log.after(0, 10)).revocations] == [asked]


async def test_whoever_is_gone_and_had_such_a_session_is_named(database: str) -> None:
    log = PostgresRevocations(database, "n1", "b1", 10 * DAY)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
        for node, seconds in (("alive", 0), ("cut-off", 6), ("long-dead", 600), ("other", 6)):
            await conn.execute(
                "insert into node values (%s, %s, now(), now() - make_interval(secs => %s), now())",
                (node, f"b-{node}", seconds),
            )
        sessions = (
            ("s1", "u1", "alive", "t1", None),
            ("s2", "u1", "cut-off", "t2", None),
            ("s3", "u1", "long-dead", "t3", 600),
            ("s4", "u2", "other", "t4", 30),
        )
        for session, user, node, jti, died in sessions:
            await conn.execute(
                """
                insert into session (session, user_id, node, boot, opened_at, closed_at, close_reason, mode, jti,
                    expires_at)
                values (%s, %s, %s, %s, now() - interval '1 hour', now() - make_interval(secs => %s),
                        case when %s::float8 is not null then 'node_died' end, 'bridge.bare', %s, now())
                """,
                (session, user, node, f"b-{node}", died, died, jti),
            )
    try:
        for revocation, gone in (
            (Revocation(user="u1", before=2e9), ["cut-off"]),
            (Revocation(token_id="t1"), []),
            (Revocation(token_id="t3"), []),
            (Revocation(token_id="t4"), ["other"]),
            (Revocation(session="s2"), ["cut-off"]),
            (Revocation(session="s9"), []),
        ):
            assert await log.gone(await log.revoke(revocation)) == gone
    finally:
        await log.close()
