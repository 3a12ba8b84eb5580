"""Several nodes, step by step: who is asked, what is forwarded, in which order, and what becomes of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import pytest

from bridge.core.cluster.forwards import OWED_FOR, SUSPECT_AFTER
from bridge.core.cluster.post import LINGER
from bridge.core.contract.letters import (
    Forwarded,
    Item,
    Recalled,
    Report,
    Ring,
    Word,
    decode_letter,
    encode_letter,
)
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.errors import StoreUnavailable
from bridge.core.mailbox.heard_recalls import JUST_FOR
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import RowKey
from bridge.core.ports.nodes import Letter, Sent
from bridge.core.sessions.freshness import FRESH_FOR
from tests.support.house import House, Peer, kept, to
from tests.support.town import Town, town
from tests.support.waiting import turns, until

LIMITS = DeliveryLimits(start_grace=0.0, confirm_timeout=5.0)


async def online(house: House, user: str) -> Peer:
    """A session that is welcomed, and in the ledger."""
    peer = house.connect(user)
    await until(lambda: any(b"welcome" in frame.payload for frame in peer.socket.frames))
    await until(lambda: peer.client.session.replay is None)
    return peer


async def ticks(*houses: House, seconds: float = 0.1) -> None:
    """Let time pass, and all that follows from it."""
    for house in houses[:1]:
        house.clock.advance(seconds)
    for house in houses:
        house.core.tick()
    for _ in range(30):
        await asyncio.sleep(0)


def ids(peer: Peer) -> list[object]:
    """The pushes that it was sent, in order."""
    return [push["id"] for push in peer.pushes]


def withdrawn(peer: Peer) -> list[object]:
    """The pushes that it was told to withdraw."""
    frames = [
        json.loads(frame.payload) for frame in peer.socket.frames if b'"type":"withdraw"' in frame.payload
    ]
    return list(dict.fromkeys(frame["id"] for frame in frames))


def items(made: Town) -> list[Item]:
    """All that was sent between nodes."""
    return [item for letter in made.letters for item in decode_letter(letter.body).items]


def held(gate: asyncio.Event, step: str) -> Callable[[str], Awaitable[None]]:
    """Hold this step until the gate is open."""

    async def before(now: str) -> None:
        if now == step:
            await gate.wait()

    return before


def forwarded(made: Town) -> int:
    """How many pushes were in letters so far."""
    return sum(isinstance(item, Forwarded) for item in items(made))


async def test_who_is_alone_asks_nobody_and_sends_nothing() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        peer = await online(a, "u1")
        await a.push(to("u1", "p1"))
        await a.push(to("nobody", "p2"))
        peer.answer()
        await a.settled(2)
        assert (made.asked, made.letters) == (0, [])
        assert a.end("p2", "nobody") == (Outcome.OFFLINE, Reason.NO_SESSION)


async def test_who_was_stopped_for_long_asks_before_it_says_that_nobody_is_there() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        a.clock.advance(FRESH_FOR + 0.1)
        await a.push(to("nobody", "p1"))
        await a.settled(1)
        assert made.asked == 1
        assert a.end("p1", "nobody") == (Outcome.OFFLINE, Reason.NO_SESSION)


async def test_a_push_is_proven_by_the_session_at_another_node() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        assert a.acks.acked == []
        peer.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        words = [item.word for item in items(made) if isinstance(item, Report)]
        assert words == [Word.HANDED, Word.RECEIVED]
        assert (a.row("p1").session, a.row("p1").holder) == (peer.session_id, "b")
        assert len(a.core.cluster.forwards) == 0


def reports(made: Town) -> list[list[Word]]:
    """The words of the reports, by letter."""
    letters = [decode_letter(letter.body).items for letter in made.letters]
    words = [[item.word for item in letter if isinstance(item, Report)] for letter in letters]
    return [some for some in words if some]


async def test_a_first_proof_waits_for_the_better_one_but_only_a_moment() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        peer.answer()
        await a.settled(1)
        assert reports(made) == [[Word.HANDED, Word.RECEIVED]]
        await a.push(to("u1", "p2"))
        now = a.clock.time()
        await until(lambda: ids(peer) == ["p1", "p2"])
        await ticks(b, seconds=0.0)
        assert len(reports(made)) == 1
        b.clock.advance(LINGER)
        await until(lambda: reports(made)[1:] == [[Word.HANDED]])
        assert a.core.inflight.get(RowKey("", "p2", "u1")).written_at == pytest.approx(now, rel=0, abs=0.001)  # type: ignore[union-attr]
        await a.push({**to("u1", "p3"), "confirm": "written"})
        await a.settled(2)
        assert reports(made)[2:] == [[Word.HANDED]], "nothing better is awaited"


async def test_one_statement_and_one_letter_are_for_many_pushes() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peers = [await online(b, f"u{n}") for n in range(5)]
        made.letters.clear()
        made.asked = 0
        await a.push({"id": "p1", "to": {"users": [f"u{n}" for n in range(5)]}, "data": "x" * 100})
        await until(lambda: all(ids(peer) == ["p1"] for peer in peers))
        forwarded = [item for item in items(made) if isinstance(item, Forwarded)]
        assert [list(item.users) for item in forwarded] == [[f"u{n}" for n in range(5)]]
        assert made.asked == 1


async def test_a_node_that_does_not_answer_has_proven_nothing() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await online(b, "u1")
        made.fate = lambda letter: Sent.DELIVERED
        await a.push(to("u1", "p1"))
        await a.push(kept("u1", "p2", 60))
        for _ in range(60):
            await ticks(a)
        assert a.end("p1") == (Outcome.UNKNOWN, Reason.NODE_SILENT)
        assert a.end("p2") == (Outcome.STORED, Reason.NODE_SILENT)


async def test_a_node_that_is_behind_with_its_answers_holds_up_nobody() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        made.fate = lambda letter: Sent.UNSURE
        await a.push(to("u1", "p1"))
        await until(lambda: forwarded(made) == 1)
        await ticks(a, b, seconds=LIMITS.park_after / 2)
        await a.push(to("u1", "p2"))
        await until(lambda: forwarded(made) == 2)
        assert len(a.acks.acked) == 0, "half a second is no reason"
        await ticks(a, b, seconds=LIMITS.park_after / 2)
        await a.push(to("u1", "p3"))
        await until(lambda: forwarded(made) == 3)
        await ticks(a, seconds=LINGER)
        await until(lambda: a.row("p3", "u1").outcome is Outcome.PENDING)
        assert a.core.cluster.forwards.owes("boot-b", LIMITS.park_after)
        # Once it answers, nothing is parked before its time.
        made.fate = lambda letter: None
        await ticks(a, b, seconds=OWED_FOR)
        await a.push(to("u1", "p4"))
        await until(lambda: ids(peer) == ["p4"])
        assert "p4" not in [key.push_id for key in made.store.rows]
        peer.answer()
        await until(lambda: "p4" in [key.push_id for key in made.store.rows])
        assert a.end("p4") == (Outcome.RECEIVED, Reason.PONG)


async def says_what_it_has(a: House, b: House, made: Town) -> None:
    """`b` has told `a` once that it has a push, at once, though no client has it."""
    peer = await online(b, "u0")
    peer.socket.stuffed = True
    await a.push(to("u0", "first"))
    await until(lambda: forwarded(made) == 1)
    await ticks(b, a, seconds=LINGER)
    assert not peer.pushes
    assert not reports(made), "only its node has it"


async def test_a_node_that_does_not_say_at_once_what_it_has_holds_up_nobody() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await says_what_it_has(a, b, made)
        for seconds in (LIMITS.park_after, LINGER):
            await ticks(a, b, seconds=seconds)
            await a.push(to("u0", f"{seconds}"))
            await until(lambda: forwarded(made) > 1)
            assert not a.core.cluster.forwards.owes("boot-b", 1.0), "a client that does not read is no reason"
        await ticks(a, b, seconds=LINGER)
        made.fate = lambda letter: Sent.UNSURE
        await a.push(to("u1", "p1"))
        await online(b, "u1")
        await a.push(to("u1", "p2"))
        await until(lambda: forwarded(made) == 4)
        assert not a.core.cluster.forwards.owes("boot-b", LIMITS.park_after)
        await ticks(a, b, seconds=SUSPECT_AFTER)
        assert a.core.cluster.forwards.owes("boot-b", LIMITS.park_after)
        await until(lambda: a.row("p2", "u1").outcome is Outcome.PENDING)
        await a.push(to("u1", "p3"))
        await ticks(a, seconds=LINGER)
        await until(lambda: a.row("p3", "u1").outcome is Outcome.PENDING)
        made.fate = lambda letter: None
        await a.push(to("u1", "p4"))
        await until(lambda: forwarded(made) == 6)
        await ticks(a, b, seconds=LINGER)
        assert not a.core.cluster.forwards.owes("boot-b", LIMITS.park_after), "it is back"


async def test_a_node_that_is_always_slow_to_say_what_it_has_is_given_longer() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await online(b, "u1")
        waiting: list[Letter] = []

        def slowly(letter: Letter) -> Sent:
            waiting.append(letter)
            return Sent.DELIVERED

        made.fate = slowly
        for n in range(40):
            await a.push(to("u1", f"p{n}"))
            await until(lambda: waiting)
            assert not a.core.cluster.forwards.owes("boot-b", 10.0)
            await ticks(a, b, seconds=SUSPECT_AFTER - 0.01)
            while waiting:
                letter = waiting.pop(0)
                made.houses[letter.queue].core.from_nodes.came(letter.body)
                await ticks(b, seconds=LINGER)
        await a.push(to("u1", "last"))
        await until(lambda: waiting)
        await ticks(a, seconds=SUSPECT_AFTER * 2)
        assert not a.core.cluster.forwards.owes("boot-b", 10.0)
        assert a.core.cluster.forwards.owes("boot-b", SUSPECT_AFTER), (
            "but never longer than one that does not say it"
        )


async def test_a_node_that_can_not_be_reached_has_nothing() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await online(b, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE
        await a.push(to("u1", "p1"))
        await a.push(kept("u1", "p2", 60))
        await a.settled(2)
        assert a.end("p1") == (Outcome.DROPPED, Reason.NODE_UNREACHABLE)
        assert a.end("p2") == (Outcome.STORED, Reason.NODE_UNREACHABLE)


async def test_a_session_here_proves_it_though_the_other_node_says_nothing() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, there = await online(a, "u1"), await online(b, "u1")
        made.fate = lambda letter: Sent.UNSURE
        await a.push(to("u1", "p1"))
        here.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert ids(there) == []


async def test_a_session_that_leaves_before_its_other_node_is_known_does_not_end_the_push() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, there = await online(a, "u1"), await online(b, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p1"))
        assert ids(here) == ["p1"]
        here.leave()
        gate.set()
        await until(lambda: ids(there) == ["p1"])
        there.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_a_session_here_that_reads_nothing_does_not_keep_it_from_one_elsewhere() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        here, there = await online(a, "u1"), await online(b, "u1")
        here.socket.buffered_bytes = 1 << 30
        here.socket.stuffed = True
        await a.push(to("u1", "p1"))
        await until(lambda: ids(there) == ["p1"])
        there.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_who_has_come_to_another_node_during_the_grace_gets_it_there() -> None:
    limits = DeliveryLimits(start_grace=3.0, confirm_timeout=9.0)
    async with town("a", "b", limits=limits) as (_, [a, b]):
        a.core.grace.begin()
        await a.push(to("u1", "p1"))
        await a.push(to("u2", "p2"))
        peer = await online(b, "u1")
        for _ in range(31):
            await ticks(a, b)
            await a.core.cluster.neighbours.look()
            await b.core.cluster.neighbours.look()
            for house in (a, b):
                house.core.freshness.heard(house.clock.boottime())
        await until(lambda: ids(peer) == ["p1"])
        peer.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await a.ends("p2", Outcome.OFFLINE, Reason.NO_SESSION, "u2")


async def test_what_has_expired_is_not_handed_over_at_another_node() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        peer = await online(b, "u1")
        peer.socket.stuffed = True
        await a.push(kept("u1", "p1", 60))
        await until(lambda: peer.client.session.queued == 1)
        a.clock.advance(61)
        peer.socket.stuffed = False
        await b.core.cluster.neighbours.look()
        b.core.freshness.heard(b.clock.boottime())
        peer.client.became_writable()
        assert ids(peer) == []


async def test_who_has_moved_on_is_asked_for_once_more() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        first = await online(b, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "send")
        await a.push(to("u1", "p1"))
        first.leave()
        second = await online(c, "u1")
        await until(lambda: len(made.sessions.closed) == 1)
        gate.set()
        await until(lambda: ids(second) == ["p1"])
        second.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_who_has_moved_to_the_taker_gets_it_there() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        first = await online(b, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "send")
        await a.push(to("u1", "p1"))
        first.leave()
        second = await online(a, "u1")
        await until(lambda: len(made.sessions.closed) == 1)
        gate.set()
        await until(lambda: ids(second) == ["p1"])
        second.answer()
        await a.settled(1)
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_who_has_left_is_offline_after_the_second_look() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        gate = asyncio.Event()
        made.before = held(gate, "send")
        await a.push(to("u1", "p1"))
        peer.leave()
        await until(lambda: len(made.sessions.closed) == 1)
        gate.set()
        await a.settled(1)
        assert a.end("p1")[0] is Outcome.OFFLINE


async def test_pushes_of_a_user_stay_in_order_while_their_holders_are_asked_for() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        gate = asyncio.Event()
        made.before = held(gate, "look")
        await a.push(to("u1", "p1"))
        here = await online(a, "u1")
        await a.push(to("u1", "p2"))
        assert ids(here) == []
        gate.set()
        await until(lambda: len(ids(here)) == 2)
        assert ids(here) == ["p1", "p2"]


async def test_an_older_kept_push_comes_first_where_its_user_has_just_arrived() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        made.store.writing.clear()
        await a.push(kept("u1", "p1", 60))
        peer = await online(b, "u1")
        await a.push(to("u1", "p2"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert ids(peer) == [], "p1 is not written yet, so nobody could read it"
        made.store.writing.set()
        for _ in range(20):
            await ticks(a, b, seconds=0.01)
            peer.answer()
        assert ids(peer) == ["p1", "p2"]
        kinds = [type(item) for item in items(made) if isinstance(item, Ring | Forwarded)]
        assert kinds.index(Ring) < kinds.index(Forwarded)


async def test_a_new_taker_is_told_of_what_a_session_has_already() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (_, [a, b, c]):
        peer = await online(c, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        # The first taker is dead: its message comes again, to the next one.
        await b.push(to("u1", "p1"), redelivered=True)
        for _ in range(50):
            await asyncio.sleep(0)
        assert ids(peer) == ["p1"], "the session has it"
        peer.answer()
        await b.settled(1)
        assert b.end("p1") == (Outcome.RECEIVED, Reason.PONG)


@pytest.mark.parametrize("place", ["here", "elsewhere"])
async def test_what_the_taker_before_has_stored_comes_before_what_the_next_one_takes(place: str) -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        peer = await online(a if place == "here" else c, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE
        await b.push(kept("u1", "p1", 60))
        await until(lambda: b.end("p1") == (Outcome.STORED, Reason.NODE_UNREACHABLE))
        made.fate = lambda letter: None
        # The broker gives what follows to another node; nobody has heard the ring of the first one.
        await a.push(kept("u1", "p2", 60))
        for _ in range(20):
            await ticks(a, b, c, seconds=0.01)
            peer.answer()
        assert ids(peer) == ["p1", "p2"]


async def test_what_was_in_a_queue_that_is_no_more_is_sent_again_before_anything_newer() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        made.fate = lambda letter: Sent.DELIVERED  # into a queue that goes with its connection
        for name in ("p1", "p2"):
            await a.push(kept("u1", name, 60))
        await until(lambda: forwarded(made) == 2)
        made.fate = lambda letter: None
        await made.moves("b")
        await a.push(kept("u1", "p3", 60))
        await until(lambda: ids(peer) == ["p1", "p2", "p3"])
        peer.answer()
        await a.settled(3)
        assert {a.end(name) for name in ("p1", "p2", "p3")} == {(Outcome.RECEIVED, Reason.PONG)}


async def test_what_a_dead_taker_never_hears_is_noted_in_the_row() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        made.fate = lambda letter: Sent.UNREACHABLE
        peer.answer()
        for _ in range(50):
            await asyncio.sleep(0)
        b.core.every_second()
        assert b.worklist.late_proofs == [], "it may still live"
        del made.store.nodes["a"]
        await b.core.cluster.neighbours.look()
        for _ in range(50):
            await asyncio.sleep(0)
        b.core.every_second()
        assert [proof.key.push_id for proof in b.worklist.late_proofs] == ["p1"]


async def test_a_letter_of_another_version_is_told_and_costs_nothing_else() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        for body in (b"", b"\xc1", encode_letter("x", [])[:-1], b"\x93\x63\xa1x\x90"):
            b.core.from_nodes.came(body)
        assert [where for _, where in b.errors.seen] == ["nodes.letter"] * 4
        assert "version is 99" in str(b.errors.seen[-1][0])
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])


async def test_holders_are_asked_for_again_until_the_database_answers() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        failures = 2

        async def failing(step: str) -> None:
            nonlocal failures
            if step == "look" and failures:
                failures -= 1
                raise StoreUnavailable("down")

        made.before = failing
        await a.push(to("u1", "p1"))
        for _ in range(60):
            await ticks(a, b)
        await until(lambda: ids(peer) == ["p1"])


async def test_who_was_promised_everything_gets_what_was_stored_before_it_was_proven_elsewhere() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        there = await online(c, "u1")
        await a.push(kept("u1", "p1", 600))
        await until(lambda: ids(there) == ["p1"])
        there.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        resumed = await b.live("u1", last="p1")
        resumed.answer()
        # Neither the push nor the ring for its row reaches that node, and then another one proves it.
        made.fate = lambda letter: Sent.UNREACHABLE if made.houses.get(letter.queue) is b else None
        await a.push(kept("u1", "p2", 600))
        await until(lambda: ids(there) == ["p1", "p2"])
        await ticks(a, c, seconds=LINGER)
        await ticks(a, c, seconds=LIMITS.park_after)
        await a.ends("p2", Outcome.STORED, Reason.AWAITING_PROOF)
        there.answer()
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        made.fate = lambda letter: None
        a.core.every_second()
        await until(lambda: "p2" in ids(resumed))


async def test_a_ring_that_nobody_has_heard_is_rung_again() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        made.fate = lambda letter: Sent.UNREACHABLE  # its queue has just become another
        await a.push(kept("u1", "p1", 60))
        await a.ends("p1", Outcome.STORED, Reason.NODE_UNREACHABLE)
        for _ in range(50):
            await asyncio.sleep(0)
        made.fate = lambda letter: None
        assert ids(peer) == []
        a.core.every_second()
        await until(lambda: ids(peer) == ["p1"])


async def test_a_recall_that_comes_late_means_only_what_was_taken_before_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        held_back: list[Letter] = []

        def late(letter: Letter) -> Sent | None:
            if any(isinstance(item, Recalled) for item in decode_letter(letter.body).items):
                held_back.append(letter)
                return Sent.DELIVERED
            return None

        made.fate = late
        await a.push(to("u1", "before", collapse_key="k", ttl=60, confirm="acked"))
        await until(lambda: ids(peer) == ["before"])
        await a.core.recalls.recall(Recall(user="u1", collapse_key="k"))
        await until(lambda: bool(held_back))
        await ticks(a, b)
        await a.push(to("u1", "after", collapse_key="k", ttl=60, confirm="acked"))
        peer.answer()
        await until(lambda: ids(peer) == ["before", "after"])
        for letter in held_back:
            b.core.from_nodes.came(letter.body)
        assert withdrawn(peer) == ["before"]
        peer.client.message('{"type": "ack", "id": "after"}')
        await a.ends("after", Outcome.ACKED, Reason.ACK_FRAME)
        assert a.end("before") == (Outcome.RECALLED, Reason.WITHDRAWN)


async def test_a_screen_loses_a_push_that_is_recalled_while_its_proof_is_on_the_way_to_its_owner() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peer = await online(b, "u1")
        await a.push(to("u1", "p1"))
        await until(lambda: ids(peer) == ["p1"])
        proofs: list[Letter] = []

        def hold_back(letter: Letter) -> Sent | None:
            if letter.queue != a_queue:
                return None
            proofs.append(letter)
            return Sent.DELIVERED

        a_queue = next(queue for queue, house in made.houses.items() if house is a)
        made.fate = hold_back
        peer.answer()
        await until(lambda: bool(proofs))
        await a.core.recalls.recall(Recall(push_id="p1"))
        await until(lambda: withdrawn(peer) == ["p1"])
        for letter in proofs:
            a.core.from_nodes.came(letter.body)
        assert a.end("p1") == (Outcome.RECALLED, Reason.WITHDRAWN)


async def test_a_screen_loses_what_another_node_recalled_in_the_log_before_its_letter_comes() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, there = await online(a, "u1"), await online(b, "u1")
        await a.push(to("u1", "p1", ttl=60))
        await until(lambda: ids(here) == ids(there) == ["p1"])
        await ticks(a, b, seconds=LIMITS.confirm_timeout)
        await a.ends("p1", Outcome.STORED, Reason.NO_PROOF)
        made.fate = lambda letter: Sent.UNSURE
        recalling = asyncio.create_task(b.core.recalls.recall(Recall(push_id="p1")))
        await until(lambda: recalling.done() and not b.core.cluster.post.busy)
        made.fate = lambda letter: None
        assert withdrawn(here) == []
        here.answer()
        await until(lambda: withdrawn(here) == withdrawn(there) == ["p1"])
        assert a.end("p1") == (Outcome.RECALLED, Reason.WITHDRAWN)


@pytest.mark.parametrize("recall", [Recall(push_id="before"), Recall(user="u1", collapse_key="k")])
@pytest.mark.parametrize("lost", [Sent.UNREACHABLE, Sent.UNSURE])
async def test_a_recall_that_a_node_has_not_heard_is_said_again_and_takes_the_push_off_its_screens(
    recall: Recall, lost: Sent
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here = await online(a, "u1")
        await a.push(to("u1", "before", collapse_key="k", ttl=60, confirm="acked"))
        await until(lambda: ids(here) == ["before"])
        here.answer()
        await ticks(a, b, seconds=LIMITS.confirm_timeout)
        made.fate = lambda letter: lost  # one of the two is cut off from the broker
        recalling = asyncio.create_task(b.core.recalls.recall(recall))
        await until(lambda: recalling.done() and not b.core.cluster.post.busy)
        assert a.end("before") == (Outcome.RECALLED, Reason.WITHDRAWN)
        assert withdrawn(here) == []
        await ticks(a, b)
        await a.push(to("u1", "after", collapse_key="k", ttl=60, confirm="acked"))
        b.core.every_second()
        await until(lambda: not b.core.cluster.post.busy)
        made.fate = lambda letter: None
        b.core.every_second()
        await until(lambda: withdrawn(here) == ["before"])
        here.client.message('{"type": "ack", "id": "after"}')
        await a.ends("after", Outcome.ACKED, Reason.ACK_FRAME)


async def test_recalls_over_the_bound_are_given_up_and_a_dead_node_is_told_of_none() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [_, b]):
        unheard = b.core.cluster.unheard_recalls
        unheard._most = 3
        made.fate = lambda letter: Sent.UNREACHABLE
        for number in range(5):
            await b.core.recalls.recall(Recall(push_id=f"p{number}"))
        await until(lambda: not b.core.cluster.post.busy)
        said = [item.push_id for item in unheard.of("boot-a") if isinstance(item, Recalled)]
        assert said == ["p0", "p1", "p2"]
        b.core.cluster.neighbours._others.clear()
        b.core.every_second()
        await turns()
        assert len(unheard) == 0


@pytest.mark.parametrize("recall", [Recall(push_id="p1"), Recall(user="u1", collapse_key="k")])
@pytest.mark.parametrize("late", [False, True])
async def test_what_was_proven_when_another_node_recalled_it_loses_its_data_once_it_has_a_row(
    recall: Recall, late: bool
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        phone, tablet = await online(a, "u1"), await online(b, "u1")
        await a.push(to("u1", "p0", ttl=60))
        phone.answer()
        await a.ends("p0", Outcome.RECEIVED, Reason.PONG)
        made.store.writing.clear()
        await a.push(to("u1", "p1", ttl=60, collapse_key="k"))
        await a.push(to("u1", "p2", ttl=60, collapse_key="other"))
        phone.answer()
        await turns()
        letters: list[Letter] = []

        def hold_back(letter: Letter) -> Sent | None:
            letters.append(letter)
            return Sent.DELIVERED if late else None

        made.fate = hold_back
        recalling = asyncio.create_task(b.core.recalls.recall(recall))
        await turns()
        if late:
            # The other node has looked already, and the row comes before its letter.
            await until(recalling.done)
            made.store.writing.set()
            await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
            made.fate = lambda letter: None
            for letter in letters:
                a.core.from_nodes.came(letter.body)
        made.store.writing.set()
        await recalling
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        await until(lambda: made.store.rows[RowKey("", "p1", "u1")].payload is None)
        assert made.store.rows[RowKey("", "p2", "u1")].payload is not None
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG), "the trail stays"
        await until(lambda: withdrawn(phone) == withdrawn(tablet) == ["p1"])
        back = a.connect("u1", last="p0")
        await until(lambda: back.client.session.replay is None)
        assert ids(back) == ["p0", "p2"], "and those around it"


async def test_a_row_that_is_not_written_yet_holds_up_no_other_recall_of_another_node() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        phone = await online(a, "u1")
        await a.push(to("u1", "p1", ttl=60))
        phone.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        made.store.writing.clear()
        await a.push(to("u1", "p2", ttl=60))
        phone.answer()
        await turns()
        heard, now = a.core.heard_recalls, a.inflight.take_position()
        heard.came(Recall(push_id="p2"), now)
        await turns()
        heard.came(Recall(push_id="p1"), now)
        await until(lambda: made.store.rows[RowKey("", "p1", "u1")].payload is None)
        assert RowKey("", "p2", "u1") not in made.store.rows
        made.store.writing.set()
        await a.ends("p2", Outcome.RECEIVED, Reason.PONG)
        await until(lambda: made.store.rows[RowKey("", "p2", "u1")].payload is None)


async def test_what_was_just_proven_is_found_by_what_a_recall_names_and_forgotten_when_it_is_old() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, _]):
        heard = a.core.heard_recalls
        heard._most = 4
        phone = await online(a, "u1")
        for n in range(6):
            await a.push(to("u1", f"p{n}", ttl=60, collapse_key=f"k{n % 5}"))
            phone.answer()
            await a.ends(f"p{n}", Outcome.RECEIVED, Reason.PONG)
        assert {name[-1] for name in heard._just_named} == {"p2", "p3", "p4", "p5", "k2", "k3", "k4", "k0"}
        until_now = a.inflight.take_position()
        heard.came(Recall(user="u1", collapse_key="k0"), until_now)
        heard.came(Recall(user="u1", collapse_key="k1"), until_now)
        heard.came(Recall(push_id="p3"), until_now)
        kept_data = {"p0", "p1", "p2", "p4"}
        await until(lambda: {k.push_id for k, r in made.store.rows.items() if r.payload} == kept_data)
        assert withdrawn(phone) == ["p5", "p3"]
        a.clock.advance(JUST_FOR)
        heard.every_second()
        assert (len(heard._just), heard._just_named) == (0, {})


async def test_a_push_to_a_session_that_has_closed_is_of_its_user_also_where_no_other_node_is_known() -> None:
    """A taker that was frozen, and is nobody by now, writes the row of the same user."""
    async with town("a", limits=LIMITS) as (_, [a]):
        peer = await online(a, "u1")
        peer.leave()
        await until(lambda: not a.core.ledger.ready)
        await a.push({"id": "p1", "to": {"session": peer.session_id}, "data": 1})
        await a.ends("p1", Outcome.OFFLINE, Reason.NO_SESSION)


async def test_pushes_to_sessions_elsewhere_that_come_together_take_one_question() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, *elsewhere = [await online(at, f"u{n}") for n, at in enumerate((a, b, b, b))]
        peers = [here, *elsewhere]
        await a.push([
            *({"id": f"p{n}", "to": {"session": peer.session_id}, "data": 1} for n, peer in enumerate(peers)),
            {"id": "p9", "to": {"session": "never"}, "data": 1},
        ])  # fmt: skip
        await until(lambda: all(ids(peer) for peer in peers))
        assert [ids(peer) for peer in peers] == [["p0"], ["p1"], ["p2"], ["p3"]]
        assert made.sessions_asked == [[*(peer.session_id for peer in elsewhere), "never"]]


async def test_everyone_elsewhere_takes_one_question_where_they_fit_a_page() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        peers = [await online(b, f"u{n}") for n in range(3)]
        await a.push({"id": "p1", "to": {"all": True}, "data": 1})
        await until(lambda: all(ids(peer) == ["p1"] for peer in peers))
        assert made.everyone_asked == 1


async def test_a_recall_takes_a_delivered_push_off_the_screens_of_all_nodes() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (_, [a, b, c]):
        peers = [await online(at, "u1") for at in (a, b, c)]
        stranger = await online(b, "u2")
        await a.push(to("u1", "p1"))
        await until(lambda: all(ids(peer) == ["p1"] for peer in peers))
        for peer in peers:
            peer.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await c.core.recalls.recall(Recall(push_id="p1"))
        await until(lambda: all(b"withdraw" in peer.socket.frames[-1].payload for peer in peers))
        assert b"withdraw" not in stranger.socket.frames[-1].payload
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


# --- no lost wake-up: store, commit, look again, ring -----------------------------------------------------


class Gates:
    """Lets each named step happen when it is let."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}

    def _of(self, step: str) -> asyncio.Event:
        return self._events.setdefault(step, asyncio.Event())

    async def passed(self, step: str) -> None:
        await self._of(step).wait()

    async def let(self, step: str) -> None:
        self._of(step).set()
        for _ in range(40):
            await asyncio.sleep(0)


def orders() -> Iterator[tuple[str, ...]]:
    """Every order in which the steps of the taker and those of the session may come."""
    taker, session = ("look", "commit", "look again", "ring"), ("open", "read")
    for places in itertools.combinations(range(6), len(session)):
        order = []
        rest = {True: iter(session), False: iter(taker)}
        for place in range(6):
            order.append(next(rest[place in places]))
        yield tuple(order)


@pytest.mark.parametrize("order", list(orders()), ids=" ".join)
async def test_a_push_that_is_stored_while_its_user_opens_elsewhere_is_shown_once(
    order: tuple[str, ...],
) -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        gates = Gates()
        looks = itertools.count()

        async def before(step: str) -> None:
            if step == "look":
                await gates.passed("look" if next(looks) == 0 else "look again")
            elif step == "send":
                await gates.passed("ring")

        record, mailbox, note = made.store.record, made.store.mailbox, made.sessions.note

        def gated(step: str, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
            async def later(*given: object) -> object:
                await gates.passed(step)
                return await call(*given)

            return later

        made.before = before
        made.store.record = gated("commit", record)  # type: ignore[method-assign,assignment]
        made.store.mailbox = gated("read", mailbox)  # type: ignore[method-assign,assignment]
        made.sessions.note = gated("open", note)  # type: ignore[method-assign,assignment]
        await a.push(kept("u1", "p1", 60))
        peer = b.connect("u1")
        for step in order:
            await gates.let(step)
        for _ in range(40):
            await ticks(a, b, seconds=0.01)
            peer.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        assert ids(peer) == ["p1"]


async def test_the_same_at_random_two_thousand_times() -> None:
    rng = random.Random(1)
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):

        async def before(step: str) -> None:
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)

        record, mailbox = made.store.record, made.store.mailbox

        def delayed(call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
            async def later(*given: object) -> object:
                await before("")
                result = await call(*given)
                await before("")
                return result

            return later

        made.before = before
        made.store.record = delayed(record)  # type: ignore[method-assign,assignment]
        made.store.mailbox = delayed(mailbox)  # type: ignore[method-assign,assignment]
        for n in range(2_000):
            user, name = f"u{n}", f"p{n}"
            pushed = asyncio.create_task(a.push(kept(user, name, 60)), name="push")
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            peer = b.connect(user)
            await pushed
            for _ in range(2_000):
                peer.answer()
                if peer.pushes:
                    break
                await asyncio.sleep(0)
            assert ids(peer) == [name]
            peer.answer()
            peer.leave()
        assert len(made.store.rows) == 2_000


def test_letters_of_the_version_before_are_read_and_it_reads_ours() -> None:
    """They say less, at the end of each array, and skip what they do not know."""
    report, push = (
        Report(7, Word.HANDED, "", "s1", True, 0.5),
        Forwarded(1, ["u"], "", "", "p1", "e", "json", b"1", 2, [], "", 9, None, "t"),
    )
    whole = msgspec.msgpack.decode(encode_letter("boot", [report, push], 3, 4, 5))
    version, boot, (said, forwarded) = whole[:3]
    letter = decode_letter(msgspec.msgpack.encode([version, boot, [said[:-2], forwarded[:-1]]]))
    assert (letter.had, letter.number, letter.read) == (0, 0, 0)
    assert letter.items == [
        Report(7, Word.HANDED, "", "s1"),
        Forwarded(1, ["u"], "", "", "p1", "e", "json", b"1", 2, [], "", 9, None),
    ]
    more = [
        version,
        boot,
        [[*one, "of a later version"] for one in (said, forwarded)],
        *whole[3:],
        "of a later version",
    ]
    letter = decode_letter(msgspec.msgpack.encode(more))
    assert (letter.items, letter.had, letter.number, letter.read) == ([report, push], 3, 4, 5)


def test_a_letter_that_was_lost_is_not_taken_for_another() -> None:
    letter = Letter("queue", encode_letter("b", [Report(1, Word.HANDED)]))
    assert decode_letter(letter.body).items == [Report(1, Word.HANDED)]
