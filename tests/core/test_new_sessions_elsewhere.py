"""A session opens at another node than the taker's, while kept pushes of its user are in flight without a row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from bridge.core.delivery.routing import LINGER
from bridge.core.mailbox.others import ENDED_FOR, ENDED_OF_USER, OTHERS_EVERY, OTHERS_FOR
from bridge.core.mailbox.rounds import UNSHOWN_MAX
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.core.ports.nodes import Letter, Sent
from bridge.core.ports.store import MailboxAsk, MailboxPage
from tests.core.test_nodes import LIMITS, forwarded, ids, online, ticks
from tests.support.house import House, Peer, kept
from tests.support.town import Town, town
from tests.support.waiting import turns, until

LEFT: Final = (
    pytest.param(True, id="the one before has left"),
    pytest.param(False, id="the one before is there"),
)
"""What has become of the session that had the push at that node."""


async def seconds(count: int, *houses: House, answering: tuple[Peer, ...] = ()) -> None:
    """Let so many seconds pass."""
    for _ in range(count * 4):
        await ticks(*houses, seconds=0.25)
        for house in houses:
            house.core.freshness.heard(house.clock.boottime())
            await house.core.cluster.neighbours.look()
        for peer in answering:
            peer.answer()


@pytest.mark.parametrize("left", LEFT)
async def test_older_kept_pushes_come_first(left: bool) -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        here, first = await online(a, "u1"), await online(b, "u1")
        await a.push(kept("u1", "p1", 60))
        await until(lambda: (ids(here), ids(first)) == (["p1"], ["p1"]))
        if left:
            first.leave()
        second = b.connect("u1")
        await turns(100)
        await a.push(kept("u1", "p2", 60))
        await seconds(8, a, b, answering=(second,))
        assert ids(second) == ["p1", "p2"]


@pytest.mark.parametrize("left", LEFT)
async def test_who_resumes_and_is_told_that_it_is_complete_gets_them(left: bool) -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        here, first = await online(a, "u1"), await online(b, "u1")
        await a.push(kept("u1", "p0", 60))
        await until(lambda: (ids(here), ids(first)) == (["p0"], ["p0"]))
        here.answer()
        first.answer()
        await a.ends("p0", Outcome.RECEIVED, Reason.PONG)
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p0", "p1"])
        if left:
            first.leave()
        second = b.connect("u1", last="p0")
        await until(lambda: second.socket.frames)
        assert b'"complete":true' in second.socket.frames[0].payload
        here.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await seconds(8, a, b, answering=(second,))
        assert "p1" in ids(second)


def slow_rows(made: Town) -> asyncio.Event:
    """From now on no row is written until this is set."""
    gate = asyncio.Event()
    record = made.store.record

    async def late(*given: Any) -> Any:
        await gate.wait()
        return await record(*given)

    made.store.record = late  # type: ignore[method-assign,assignment]
    return gate


async def proven_without_a_row(made: Town, taker: House, other: House) -> asyncio.Event:
    """A session at the other node has proven p0, which has its row, and p1, which gets one when this is set."""
    first = await online(other, "u1")
    await taker.push(kept("u1", "p0", 60))
    await until(lambda: ids(first) == ["p0"])
    first.answer()
    await taker.ends("p0", Outcome.RECEIVED, Reason.PONG)
    gate = slow_rows(made)
    await taker.push(kept("u1", "p1", 60))
    await until(lambda: ids(first) == ["p0", "p1"])
    first.answer()
    await turns(100)
    return gate


async def test_who_resumes_gets_what_another_session_has_proven_whose_row_is_not_written_yet() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        gate = await proven_without_a_row(made, a, b)
        second = b.connect("u1", last="p0")
        await until(lambda: second.socket.frames)
        assert b'"complete":true' in second.socket.frames[0].payload
        await turns(100)
        await a.push(kept("u1", "p2", 60))
        await turns(100)
        gate.set()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await seconds(8, a, b, answering=(second,))
        assert ids(second) == ["p0", "p1", "p2"]
        assert sum(b'"welcome"' in frame.payload for frame in second.socket.frames) == 1


async def test_who_resumes_is_told_that_something_may_be_missing_if_its_row_is_not_written_for_long() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        gate = await proven_without_a_row(made, a, b)
        second = b.connect("u1", last="p0")
        for _ in range(round(OTHERS_FOR / OTHERS_EVERY) + 2):
            await ticks(a, b)
        welcomes = [frame.payload for frame in second.socket.frames if b'"welcome"' in frame.payload]
        assert [b'"complete":true' in welcome for welcome in welcomes] == [True, False]
        gate.set()


async def test_who_opens_where_the_one_before_has_just_left_gets_what_that_had_before_what_is_newer() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p1"])
        made.fate = lambda letter: Sent.UNREACHABLE if made.houses[letter.queue] is a else None
        first.leave()
        await turns(100)
        second = b.connect("u1")
        await turns(100)
        await a.push(kept("u1", "p2", 60))
        await turns(100)
        assert ids(second) == []
        made.fate = lambda letter: None
        await seconds(8, a, b, answering=(second,))
        assert list(dict.fromkeys(ids(second))) == ["p1", "p2"], "one may come twice"


async def test_many_pushes_that_others_have_proven_are_read_in_pages_by_who_has_resumed() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here = await online(a, "u1")
        await a.push(kept("u1", "p0", 60))
        await until(lambda: ids(here) == ["p0"])
        here.answer()
        await a.ends("p0", Outcome.RECEIVED, Reason.PONG)
        second = b.connect("u1", last="p0")
        await until(lambda: ids(second) == ["p0"] and second.client.session.replay is None)
        names = [f"p{n}" for n in range(1, 3 * UNSHOWN_MAX)]
        made.fate = lambda letter: Sent.UNREACHABLE
        for name in names:
            await a.push(kept("u1", name, 60))
        await until(lambda: ids(here)[1:] == names)
        here.answer()
        await a.ends(names[-1], Outcome.RECEIVED, Reason.PONG)
        asked = 0
        mailbox = made.store.mailbox

        async def counted(asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
            nonlocal asked
            asked += len(asks)
            return await mailbox(asks)

        made.store.mailbox = counted  # type: ignore[method-assign]
        made.fate = lambda letter: None
        await seconds(8, a, b, answering=(second, here))
        assert set(ids(second)) >= set(names)
        assert asked < UNSHOWN_MAX


async def test_what_sessions_have_done_with_is_forgotten_after_a_while() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        peers = [await online(b, user) for user in ("u1", "u2")]
        others = b.core.pages.others
        for user in ("u1", "u2", "u1"):
            await a.push(kept(user, f"p{user}", 60))
        await ticks(a, b)
        for peer in peers:
            peer.answer()
        await ticks(a, b)
        assert {len(others.proven(user)) for user in ("u1", "u2")} == {1}
        await seconds(round(ENDED_FOR) + 1, a, b)
        b.core.every_second()
        assert others.proven("u1") == others.proven("u2") == set()
        assert not others._ended
        assert not others._line


async def test_few_pushes_of_one_user_are_remembered() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [_, b]):
        others = b.core.pages.others
        for number in range(ENDED_OF_USER + 10):
            others.ended(RowKey("", f"p{number}", "u1"), number, proven=True)
        others.ended(RowKey("", "p1", "u2"), 1, proven=True)
        assert len(others.proven("u1")) == ENDED_OF_USER
        assert RowKey("", "p9", "u1") not in others.proven("u1")
        others.forget_old(1)
        assert (others.proven("u1"), others.proven("u2")) == (set(), {RowKey("", "p1", "u2")})


async def test_who_opens_waits_no_longer_than_until_the_one_before_has_proven_them() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        first = await online(b, "u1")
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p1"])
        second = b.connect("u1")
        await turns(100)
        assert second.client.session.replay is not None, "p1 may be kept"
        first.answer()
        await ticks(a, b, seconds=OTHERS_EVERY)
        await until(lambda: second.client.session.replay is None)
        assert ids(second) == []


async def test_who_opens_waits_for_seconds_only_where_the_owner_says_nothing() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p1"])
        gate = slow_rows(made)
        second = b.connect("u1")
        for _ in range(19):
            await ticks(a, b)
        assert second.client.session.replay is not None
        for _ in range(3):
            await ticks(a, b)
        await until(lambda: second.client.session.replay is None)
        gate.set()


async def test_none_is_kept_before_the_older_ones_have_their_rows() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p1"])
        made.fate = lambda letter: Sent.UNREACHABLE
        await a.push(kept("u1", "p2", 60))
        await ticks(a, seconds=LINGER)
        await a.ends("p2", Outcome.STORED, Reason.NODE_UNREACHABLE)
        made.fate = lambda letter: None
        second = await online(b, "u1")
        await seconds(8, a, b, answering=(second,))
        assert ids(second) == ["p1", "p2"]


async def test_none_is_kept_for_who_is_away_before_the_older_ones_have_their_rows() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        first = await online(c, "u1")
        late: list[Letter] = []

        def slowly(letter: Letter) -> Sent | None:
            to_c = made.houses[letter.queue] is c
            late.extend([letter] if to_c else [])
            return Sent.DELIVERED if to_c else None

        made.fate = slowly
        await a.push(kept("u1", "p1", 60))
        await until(lambda: late)
        first.leave()
        await until(lambda: made.sessions.closed)
        a.core.cluster.lately.forget("u1")
        await a.push(kept("u1", "p2", 60))
        await a.ends("p2", Outcome.STORED, Reason.NO_SESSION)
        second = await online(b, "u1")
        made.fate = lambda letter: None
        for letter in late:
            made.deliver(letter)
        await seconds(8, a, b, c, answering=(second,))
        assert list(dict.fromkeys(ids(second))) == ["p1", "p2"], "one may come twice"


async def test_what_is_held_comes_before_what_is_read_after_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE
        await a.push(kept("u1", "p1", 60))
        await a.ends("p1", Outcome.STORED, Reason.NODE_UNREACHABLE)
        made.fate = lambda letter: None
        await ticks(a, b)
        a.core.every_second()
        await until(lambda: ids(peer) == ["p1"])
        await a.push(kept("u1", "p2", 60))
        await until(lambda: forwarded(made) == 2)
        assert ids(peer) == ["p1"], "p2 is held until p1 is proven"
        made.fate = lambda letter: Sent.UNREACHABLE
        await a.push(kept("u1", "p3", 60))
        await ticks(a, seconds=LINGER)
        await a.ends("p3", Outcome.STORED, Reason.NODE_UNREACHABLE)
        made.fate = lambda letter: None
        await seconds(8, a, b, answering=(peer,))
        assert ids(peer) == ["p1", "p2", "p3"]


async def test_a_push_that_found_nobody_comes_before_a_newer_one_that_found_the_session() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        await a.push(kept("u1", "p0", 60))
        await until(lambda: ids(first) == ["p0"])
        first.answer()
        await ticks(a, b)
        await ticks(a, b)
        first.leave()
        await until(lambda: made.sessions.closed)
        late: list[Letter] = []

        def slowly(letter: Letter) -> Sent:
            late.append(letter)
            return Sent.DELIVERED

        made.fate = slowly
        for push_id in ("p1", "p2"):
            await a.push(kept("u1", push_id, 60))
            await turns(100)
        before, after = late
        late.clear()
        b.core.from_nodes.came(before.body)
        await turns(100)
        second = b.connect("u1")
        await turns(100)
        b.core.from_nodes.came(after.body)
        await turns(100)
        made.fate = lambda letter: None
        for letter in late:
            made.deliver(letter)
        await seconds(8, a, b, answering=(second,))
        assert list(dict.fromkeys(ids(second))) == ["p1", "p2"], "one may come twice"


async def test_the_loop_gets_its_turn_between_sessions_that_wait_for_rows() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        slow_rows(made)
        await a.push(kept("u1", "p1", 60))
        await until(lambda: ids(first) == ["p1"])
        opened = [b.connect("u1").client.session for _ in range(20)]
        await turns(100)
        looking = asyncio.ensure_future(b.core.pages.others.look(opened))
        had = 0
        while not looking.done():
            await asyncio.sleep(0)
            had += 1
        assert had >= 2 * len(opened)
