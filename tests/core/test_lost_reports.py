"""What the owner of a push makes of reports where an earlier one of the same push has not come yet."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.cluster.post import LINGER, UNREAD_FOR
from bridge.core.contract.letters import Report, decode_letter
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.ports.nodes import Letter, Sent
from tests.core.test_nodes import LIMITS, forwarded, held, ids, online, ticks, withdrawn
from tests.support.house import House, kept, to
from tests.support.town import Town, town
from tests.support.waiting import until


async def handed_is_lost(a: House, b: House, made: Town, sent: Sent) -> None:
    """The letter with the first report of `b` does not come."""

    def fate(letter: Letter) -> Sent | None:
        has_report = any(isinstance(item, Report) for item in decode_letter(letter.body).items)
        return sent if has_report else None

    made.fate = fate
    await ticks(a, b, seconds=LINGER)
    made.fate = lambda letter: None


@pytest.mark.parametrize("sent", [Sent.UNSURE, Sent.UNREACHABLE])
@pytest.mark.parametrize("ttl", [0, 60])
async def test_a_proof_counts_though_the_report_before_it_is_still_to_come(sent: Sent, ttl: int) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(kept("u1", "p1", ttl))
        await until(lambda: ids(peer) == ["p1"])
        await handed_is_lost(a, b, made, sent)
        peer.answer()
        for _ in range(3):
            await ticks(a, b)
        b.core.every_second()
        for _ in range(60):
            await ticks(a, b)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert a.errors.seen == []


async def test_an_ack_counts_though_the_report_before_it_is_still_to_come() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1", confirm="acked"))
        await until(lambda: ids(peer) == ["p1"])
        await handed_is_lost(a, b, made, Sent.UNSURE)
        peer.client.message('{"type":"ack","id":"p1"}')
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        b.core.every_second()
        await ticks(a, b)
        assert a.errors.seen == []


async def test_what_was_handed_over_is_unknown_though_that_report_is_still_to_come() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        await handed_is_lost(a, b, made, Sent.UNSURE)
        peer.leave()
        await a.ends("p1", Outcome.UNKNOWN, Reason.CONNECTION_LOST)
        assert a.row("p1").written_at is not None


async def test_who_has_it_is_not_forwarded_it_again_where_another_node_has_nobody_any_more() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        gone, there = await online(b, "u1"), await online(c, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "send")
        await a.push(to("u1", "p1"))
        gone.leave()
        await until(lambda: made.sessions.closed)
        gate.set()
        await until(lambda: ids(there) == ["p1"])
        for _ in range(3):
            await ticks(a, b, c)
        there.leave()
        await a.ends("p1", Outcome.UNKNOWN, Reason.CONNECTION_LOST)
        assert forwarded(made) == 2
        assert len(a.core.cluster.forwards) == 0


async def test_a_proof_in_a_queue_that_is_no_more_is_reported_again() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        made.fate = lambda letter: Sent.DELIVERED  # into a queue that goes with its connection
        peer.answer()
        await ticks(a, b)
        made.fate = lambda letter: None
        await made.moves("a")
        for _ in range(60):
            await ticks(a, b)
            b.core.every_second()
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_a_proof_in_a_queue_that_is_no_more_is_reported_again_though_a_later_letter_was_read() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        made.fate = lambda letter: Sent.DELIVERED  # into a queue that goes with its connection
        peer.answer()
        await ticks(a, b)
        made.fate = lambda letter: None
        await made.moves("a")
        await a.push(to("u1", "p2"))
        await until(lambda: "p2" in ids(peer))
        peer.answer()
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        a.core.every_second()  # it says what it has read
        await ticks(a, b)
        await ticks(a, b)
        b.core.every_second()
        for _ in range(60):
            await ticks(a, b)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_what_was_proven_here_is_not_shown_again_while_its_owner_has_not_heard_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(kept("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        await ticks(a, b)
        a_queue = next(queue for queue, house in made.houses.items() if house is a)
        made.fate = lambda letter: Sent.UNSURE if letter.queue == a_queue else None
        peer.answer()
        await ticks(a, b, seconds=LIMITS.confirm_timeout)
        await a.ends("p1", Outcome.STORED, Reason.NO_PROOF)
        for _ in range(3):
            await ticks(a, b)
        assert ids(peer) == ["p1"]
        made.fate = lambda letter: None
        b.core.every_second()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_what_was_recalled_before_it_was_handed_over_elsewhere_is_forgotten() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        peer = await online(b, "u1")
        peer.socket.stuffed = True
        await a.push(to("u1", "p1"))
        await until(lambda: peer.client.session.queued)
        await a.core.recalls.recall(Recall(push_id="p1"))
        peer.socket.stuffed = False
        peer.client.became_writable()
        peer.leave()
        for _ in range(60):
            await ticks(a, b)
        assert a.end("p1") == (Outcome.RECALLED, Reason.WITHDRAWN)
        assert len(a.core.cluster.forwards) == 0


async def reported(a: House, b: House, made: Town, push_id: str) -> None:
    """`b` has told `a` of a proof, in a letter that was confirmed and will not be read."""
    peer = await online(b, push_id)
    await a.push(to(push_id, push_id))
    await until(lambda: ids(peer) == [push_id])
    made.fate = lambda letter: Sent.DELIVERED
    peer.answer()
    await ticks(a, b)
    made.fate = lambda letter: None


def unread(house: House) -> int:
    """Letters that are kept until they are read."""
    return sum(len(peer.unread) for peer in house.core.cluster.post._peers.values())


async def test_reports_are_kept_until_they_are_read_and_no_longer() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        peer.answer()
        await a.settled(1)
        letters = len(made.letters)
        assert unread(b) == 1, "nothing was said meanwhile that could say that it was read"
        a.core.every_second()
        await ticks(a, b)
        assert (unread(b), len(made.letters) - letters) == (0, 1)
        for _ in range(3):
            a.core.every_second()
            b.core.every_second()
            await ticks(a, b)
        assert len(made.letters) - letters == 1, "it is said once"


async def test_a_proof_that_counted_in_time_is_not_noted_as_late_where_its_owner_leaves_then() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        peer.answer()
        await a.settled(1)
        assert unread(b), "it has not said that it has read the proof"
        b.core.cluster.neighbours._others.clear()
        b.core.every_second()
        assert (unread(b), b.worklist.late_proofs) == (0, [])


async def test_for_a_node_that_never_says_what_it_has_read_reports_are_kept_for_seconds_only() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await reported(a, b, made, "p1")
        await ticks(b, seconds=UNREAD_FOR - 1.0)
        b.core.every_second()
        assert unread(b)
        await ticks(b, seconds=1.0)
        b.core.every_second()
        assert not unread(b)


@pytest.mark.parametrize("proven", [False, True])
async def test_a_recall_that_is_lost_with_a_queue_is_said_again(proven: bool) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(a, "u1")
        await a.push(to("u1", "p1", ttl=60))
        await until(lambda: ids(peer) == ["p1"])
        if proven:
            peer.answer()
            await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        else:
            await ticks(a, b, seconds=LIMITS.confirm_timeout)
            await a.ends("p1", Outcome.STORED, Reason.NO_PROOF)
        made.fate = lambda letter: Sent.DELIVERED  # it was confirmed, and will not be read
        recalling = asyncio.create_task(b.core.recalls.recall(Recall(push_id="p1")))
        await until(lambda: recalling.done() and not b.core.cluster.post.busy)
        made.fate = lambda letter: None
        assert withdrawn(peer) == []
        await made.moves("a")
        b.core.every_second()
        await until(lambda: withdrawn(peer) == ["p1"])
        a.core.every_second()
        await until(lambda: not unread(b))
