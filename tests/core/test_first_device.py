"""Pushes for the first device that acks: the others lose it, queued or shown, here, at other nodes, and on a resume."""

from __future__ import annotations

import json

import pytest

from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.sessions import Mode
from bridge.core.ports.nodes import Sent
from tests.support.house import House, Peer, house, to
from tests.support.town import town
from tests.support.waiting import until

LIMITS = DeliveryLimits(start_grace=0.0, confirm_timeout=5.0)
FIRST = {"confirm": "acked", "devices": "first"}


async def online(h: House, user: str = "u1", last: str | None = None) -> Peer:
    """A session that is welcomed and has read its mailbox."""
    peer = h.connect(user, last=last)
    await until(lambda: peer.client.session.replay is None)
    await until(lambda: any(b"welcome" in frame.payload for frame in peer.socket.frames))
    return peer


def ids(peer: Peer) -> list[object]:
    return [push["id"] for push in peer.pushes]


def withdrawn(peer: Peer) -> list[object]:
    frames = [json.loads(text) for text in peer.socket.texts]
    return [(one["id"], one.get("tenant", "")) for one in frames if one["type"] == "withdraw"]


def ack(peer: Peer, push_id: str) -> None:
    peer.client.message(json.dumps({"type": "ack", "id": push_id}))


@pytest.mark.parametrize("ttl", [0, 60])
async def test_the_first_ack_ends_it_and_takes_it_back_from_the_others(ttl: int) -> None:
    async with house() as h:
        one, two, three = [await online(h) for _ in range(3)]
        bare = h.connect("u1", mode=Mode.BARE)
        await h.push(to("u1", "p1", **FIRST, ttl=ttl))
        assert [ids(peer) for peer in (one, two, three)] == [["p1"]] * 3
        ack(two, "p1")
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME, "u1")
        assert [withdrawn(peer) for peer in (one, two, three)] == [[("p1", "")], [], [("p1", "")]]
        assert len(bare.socket.texts) == 1
        assert h.row("p1").session == two.session_id
        # Who acks too late changes nothing.
        ack(one, "p1")
        await h.push(to("u1", "p2"))
        one.answer()
        await h.ends("p2", Outcome.RECEIVED, Reason.PONG)
        assert h.row("p1").session == two.session_id
        assert withdrawn(two) == []


async def test_what_waits_in_a_queue_is_not_sent_any_more() -> None:
    async with house() as h:
        quick, slow = await online(h), await online(h)
        slow.socket.stuffed = True
        await h.push(to("u1", "p1", **FIRST))
        ack(quick, "p1")
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        slow.socket.stuffed = False
        slow.client.became_writable()
        await h.push(to("u1", "p2"))
        assert ids(slow) == ["p2"]


async def test_without_it_every_session_keeps_the_push() -> None:
    async with house() as h:
        one, two = await online(h), await online(h)
        await h.push(to("u1", "p1", confirm="acked"))
        await h.push(to("u1", "p2", confirm="acked", devices="all"))
        for name in ("p1", "p2"):
            ack(one, name)
            await h.ends(name, Outcome.ACKED, Reason.ACK_FRAME)
        assert withdrawn(two) == []


async def test_a_session_that_resumes_is_not_shown_what_another_has_acked() -> None:
    async with house() as h:
        one = await online(h)
        await h.push(to("u1", "p0", ttl=60, confirm="acked"))
        await h.push(to("u1", "p1", ttl=60, **FIRST))
        await h.push(to("u1", "p2", ttl=60, confirm="acked"))
        for name in ("p0", "p1", "p2"):
            ack(one, name)
            await h.ends(name, Outcome.ACKED, Reason.ACK_FRAME)
        two = await online(h, last="p0")
        await until(lambda: "p2" in ids(two))
        assert "p1" not in ids(two)


async def test_a_stored_push_is_for_the_first_device_too() -> None:
    async with house() as h:
        await h.push(to("u1", "p1", ttl=60, **FIRST))
        await h.ends("p1", Outcome.STORED, Reason.NO_SESSION)
        one, two = await online(h), await online(h)
        await until(lambda: ids(one) == ids(two) == ["p1"])
        ack(one, "p1")
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        assert (withdrawn(one), withdrawn(two)) == ([], [("p1", "")])


@pytest.mark.parametrize("ttl", [0, 60])
@pytest.mark.parametrize("number", range(4))
async def test_sessions_at_other_nodes_lose_it_whoever_was_first(number: int, ttl: int) -> None:
    async with town("a", "b", "c", limits=LIMITS) as (_, [a, b, c]):
        peers = [await online(at) for at in (a, b, b, c)]
        await a.push(to("u1", "p1", **FIRST, ttl=ttl))
        await until(lambda: all(ids(peer) == ["p1"] for peer in peers))
        first = peers.pop(number)
        ack(first, "p1")
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        await until(lambda: all(withdrawn(peer) == [("p1", "")] for peer in peers))
        assert withdrawn(first) == []
        assert a.row("p1").session == first.session_id


async def test_what_waits_in_a_queue_at_another_node_is_not_sent_any_more() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        here, slow = await online(a), await online(b)
        slow.socket.stuffed = True
        await a.push(to("u1", "p1", **FIRST, ttl=60))
        await until(lambda: slow.client.session.queued == 1)
        ack(here, "p1")
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        await until(lambda: slow.client.session.queued == 2)
        slow.socket.stuffed = False
        slow.client.became_writable()
        assert ids(slow) == []


async def test_what_another_node_has_read_from_the_mailbox_ends_there_too() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        await a.push(to("u1", "p1", ttl=60, **FIRST))
        await a.ends("p1", Outcome.STORED, Reason.NO_SESSION)
        here, there = await online(a), await online(b)
        await until(lambda: ids(here) == ids(there) == ["p1"])
        ack(there, "p1")
        await until(lambda: withdrawn(here) == [("p1", "")])
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        assert len(list(a.core.inflight.of_push("p1"))) == 0


async def test_who_did_not_hear_it_is_told_again() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        here, there = await online(a), await online(b)
        await a.push(to("u1", "p1", **FIRST))
        await until(lambda: ids(there) == ["p1"])
        made.fate = lambda letter: Sent.UNREACHABLE
        ack(here, "p1")
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        made.fate = lambda letter: None
        assert withdrawn(there) == []
        a.core.every_second()
        await until(lambda: withdrawn(there) == [("p1", "")])
