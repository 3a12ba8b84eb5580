"""Sessions that are streams of events: what ends a push where nothing can be proven, and what nobody waits for."""

from __future__ import annotations

import json

import pytest

from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.sessions import CloseReason, Mode, Said
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.session import UNPROVEN_MAX
from tests.support.house import House, Peer, house, kept, to
from tests.support.waiting import turns

SILENT = (Outcome.WRITTEN, Reason.NO_PROOF_POSSIBLE)


def key_of(peer: Peer) -> str:
    welcome = json.loads(peer.socket.texts[0])
    return str(welcome["key"])


def says(h: House, peer: Peer, *, pong: bytes | None = None, ack: str | None = None) -> str | None:
    refusal = h.gateway.said(Said(key_of(peer), pong, ack))
    return None if refusal is None else refusal.why


async def test_a_stream_that_answers_nothing_is_kept_and_its_pushes_end_as_written() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        await h.push(to("u1"))
        h.advance(6)
        await h.ends("p1", *SILENT)
        for _ in range(5):
            h.advance(20)
            await turns()
        assert peer.socket.closed_with is None
        assert peer.client.session.unproven == 0, "nothing is remembered of what nobody will prove"
        assert len(peer.socket.pings) > 2, "it is asked again and again"
        await h.push(to("u1", "p2"))
        assert says(h, peer, pong=peer.socket.pings[-1]) is None
        assert says(h, peer, pong=peer.socket.pings[-1]) is None, "the one before was sent before p2"
        await h.ends("p2", Outcome.RECEIVED, Reason.PONG)


async def test_a_stream_that_has_answered_once_must_go_on() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        await h.push(to("u1"))
        assert says(h, peer, pong=b"none") == "stray_pong"
        assert says(h, peer, pong=peer.socket.pings[-1]) is None
        await h.push(to("u1", "p2"))
        h.advance(6)
        await h.ends("p2", Outcome.UNKNOWN, Reason.NO_PROOF)
        h.advance(40)
        assert peer.socket.closed_with is CloseReason.VANISHED


async def test_an_ack_proves_one_and_after_it_an_ack_that_does_not_come_is_no_proof() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        await h.push(to("u1", confirm="acked"))
        assert says(h, peer, ack="other") == "not_awaited"
        assert says(h, peer, ack="p1") is None
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        await h.push(to("u1", "p2", confirm="acked"))
        await h.push(to("u1", "p3"))
        h.advance(6)
        await h.ends("p2", Outcome.UNKNOWN, Reason.NO_PROOF)
        await h.ends("p3", *SILENT)


async def test_another_session_of_the_user_may_prove_it_and_then_no_proof_is_unknown() -> None:
    async with house() as h:
        await h.live("u1", Mode.SSE)
        other = await h.live("u1")
        await h.push(to("u1"))
        other.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await h.push(to("u1", "p2"))
        h.advance(6)
        await h.ends("p2", Outcome.UNKNOWN, Reason.NO_PROOF)


async def test_a_kept_push_stays_kept_is_not_sent_again_to_the_stream_and_leaves_memory() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        await h.push(kept("u1", ttl=600))
        h.advance(6)
        await h.ends("p1", Outcome.STORED, Reason.NO_PROOF_POSSIBLE)
        for _ in range(4):
            h.advance(20)
            await turns(20)
        assert [push["id"] for push in peer.pushes] == ["p1"]
        assert h.end("p1") == (Outcome.STORED, Reason.NO_PROOF_POSSIBLE)
        assert (h.inflight.busy, h.inflight.resting) == (0, 0)
        phone = await h.live("u1")
        phone.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_what_it_was_seen_to_have_does_not_come_again_and_what_follows_does() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        for name in ("p1", "p2"):
            await h.push(kept("u1", name, ttl=600))
            h.advance(1)
        h.advance(6)
        await h.ends("p2", Outcome.STORED, Reason.NO_PROOF_POSSIBLE)
        peer.leave()
        await turns(20)
        again = await h.live("u1", Mode.SSE, last="p1")
        assert [push["id"] for push in again.pushes] == ["p2"]
        again.leave()
        websocket = await h.live("u1", last="p2")
        assert [push["id"] for push in websocket.pushes] == ["p1", "p2"], "which leaves out what it knows"


async def test_all_that_is_kept_comes_though_no_page_is_proven() -> None:
    async with house() as h:
        count = 700
        await h.push([kept("u1", f"p{n}", ttl=600) for n in range(count // 2)])
        await h.push([kept("u1", f"p{n}", ttl=600) for n in range(count // 2, count)])
        await h.settled(2)
        peer = await h.live("u1", Mode.SSE)
        assert [push["id"] for push in peer.pushes] == [f"p{n}" for n in range(count)]


async def test_a_connection_that_breaks_first_leaves_it_unknown() -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.SSE)
        await h.push(to("u1"))
        peer.leave(1006)
        await h.ends("p1", Outcome.UNKNOWN, Reason.CONNECTION_LOST)


async def test_a_push_to_everyone_takes_the_way_of_others_there() -> None:
    async with house() as h:
        await h.live("u1", Mode.SSE)
        other = await h.live("u2")
        await h.push({"id": "p1", "to": {"all": True}, "data": 1})
        other.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG, "u2")
        h.advance(6)
        await h.ends("p1", *SILENT)


async def test_the_key_is_the_sessions_own_and_websockets_have_none() -> None:
    async with house() as h:
        one, other = await h.live("u1", Mode.SSE), await h.live("u1", Mode.SSE)
        assert key_of(one) != key_of(other)
        websocket = await h.live("u1")
        assert "key" not in json.loads(websocket.socket.texts[0])
        forged = key_of(one).rsplit(".", 1)[0]
        ids = [peer.client.session.id for peer in (one, websocket)]
        for key in (
            "",
            "b1",
            forged,
            f"{forged}.",
            f"b1.{ids[1]}.",
            f"b1.{ids[1]}",
            f"b2.{ids[0]}.x",
            "\u0130",
        ):
            refusal = h.gateway.said(Said(key, b"1234"))
            assert refusal is not None
            assert refusal.why == "no_session"


@pytest.mark.parametrize("confirm", ["received", "acked"])
async def test_as_many_as_may_lack_their_proof_do_not_hold_up_what_follows(confirm: str) -> None:
    async with house(frames=2 * UNPROVEN_MAX) as h:
        peer = await h.live("u1", Mode.SSE)
        session = peer.client.session
        assert isinstance(session, EventSession)
        for at in range(0, UNPROVEN_MAX + 300, 200):
            await h.push([to("u1", f"p{n}", confirm=confirm) for n in range(at, at + 200)])
        assert len(peer.pushes) >= UNPROVEN_MAX + 300
        assert session.unproven <= UNPROVEN_MAX
        h.advance(6)
        await h.ends("p1", *SILENT)
