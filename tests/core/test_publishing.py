"""What users publish: who may, how each frame ends, and what is bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.adapters.memory import MemorySessions
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, Grant, Mode
from bridge.core.ports.inbound import InboundEnd
from bridge.core.sessions.freshness import FRESH_FOR
from bridge.core.talking.publishing import (
    CONFIRM_SECONDS,
    EACH_BYTES,
    INBOUND_RESULTS,
    NODE_BYTES,
    SESSION_MESSAGES,
)
from tests.support.house import House, Peer, house
from tests.support.ports import ManualClock
from tests.support.waiting import until

MAY = ("chat.*", "room.#", "{user}.note")


async def come(h: House, user: str = "u1", may: tuple[str, ...] = MAY) -> Peer:
    peer = h.open(Grant(Claims(user, 4e9, publish=may), Mode.ENVELOPE, Mode.ENVELOPE.value))
    await until(lambda: peer.client.session.replay is None)
    return peer


def say(peer: Peer, event: str = "chat.said", **more: Any) -> None:
    peer.client.message(json.dumps({"type": "publish", "event": event, **more}))


def answers(peer: Peer) -> list[tuple[Any, ...]]:
    """The answers so far: the word or code, and the ref."""
    frames = map(json.loads, peer.socket.texts)
    return [(f.get("code", "ok"), f.get("ref")) for f in frames if f["type"] in ("ok", "error")]


async def test_what_is_published_is_stamped_and_ok_once_the_broker_has_it() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer, data={"text": "hi"}, topic="room.7", ref="r1")
        (message,) = h.inbound.given
        assert (message.event, message.body, message.topic) == ("chat.said", b'{"text": "hi"}', "room.7")
        assert (message.user, message.session, message.ref) == ("u1", peer.session_id, "r1")
        assert message.at == h.clock.now
        assert answers(peer) == []
        assert h.publishing.waiting == 1
        h.inbound.end(InboundEnd.TAKEN)
        assert answers(peer) == [("ok", "r1")]
        assert h.publishing.waiting == 0
        h.inbound.end(InboundEnd.TAKEN)
        assert answers(peer) == [("ok", "r1")], "told once"
        assert h.publishing.results == {"ok": 1}


async def test_without_a_ref_only_errors_are_answered() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer)
        h.inbound.end(InboundEnd.TAKEN)
        assert answers(peer) == []
        say(peer, "secret")
        assert answers(peer) == [("forbidden", None)]


@pytest.mark.parametrize(
    ("user", "may", "event", "topic", "field"),
    [
        ("u1", (), "chat.said", None, "event"),
        ("u1", MAY, "chat", None, "event"),
        ("u1", MAY, "u2.note", None, "event"),
        ("u1", MAY, "chat.said", "hall.1", "topic"),
        # A topic does not let in an event that the claim does not permit, or the other way round.
        ("u1", MAY, "orders.cancel", "room.7", "event"),
        ("#", ("{user}",), "chat.said", None, "event"),
        ("a.note", ("a.{user}",), "a.a.note", None, "event"),
    ],
)
async def test_what_the_claim_does_not_permit_is_forbidden(
    user: str, may: tuple[str, ...], event: str, topic: str | None, field: str
) -> None:
    async with house() as h:
        peer = await come(h, user, may)
        say(peer, event, topic=topic, ref=1)
        assert h.inbound.given == []
        answer = json.loads(peer.socket.texts[-1])
        assert (answer["code"], answer["ref"]) == ("forbidden", 1)
        assert answer["message"].startswith(f"{field}: the claim publish")


@pytest.mark.parametrize(
    ("end", "code", "result"),
    [
        (InboundEnd.NOBODY, "nobody_listens", "nobody_listens"),
        (InboundEnd.FULL, "unavailable", "full"),
        (InboundEnd.REFUSED, "unavailable", "refused"),
        (InboundEnd.UNSENT, "unavailable", "unavailable"),
        (InboundEnd.UNSURE, "unknown", "unknown"),
    ],
)
async def test_every_end_is_told_with_a_code(end: InboundEnd, code: str, result: str) -> None:
    assert result in INBOUND_RESULTS
    async with house() as h:
        peer = await come(h)
        say(peer, ref=7)
        h.inbound.end(end)
        assert answers(peer) == [(code, 7)]
        assert h.publishing.results == {result: 1}
        assert h.publishing.waiting == 0


async def test_what_is_not_confirmed_in_time_is_unknown_and_forgotten() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer, ref=1)
        h.clock.advance(CONFIRM_SECONDS / 2)
        say(peer, ref=2)
        h.clock.advance(CONFIRM_SECONDS / 2)
        h.publishing.tick()
        assert answers(peer) == [("unknown", 1)]
        assert h.inbound.forgotten == [h.inbound.given[0].id]
        assert h.publishing.waiting == 1
        h.inbound.end(InboundEnd.TAKEN)
        assert answers(peer) == [("unknown", 1), ("ok", 2)]


async def test_while_the_broker_takes_nothing_it_is_unavailable_at_once() -> None:
    async with house() as h:
        peer = await come(h)
        h.inbound.cause = "connecting"
        say(peer, ref=1)
        assert answers(peer) == [("unavailable", 1)]
        assert h.inbound.given == []


async def test_a_node_that_is_cut_off_passes_nothing_on() -> None:
    """It might have missed that the session is revoked."""
    async with house() as h:
        peer = await come(h)
        h.core.freshness.heard(h.clock.boottime())
        h.clock.advance(FRESH_FOR)
        say(peer, ref=1)
        assert answers(peer) == [("unavailable", 1)]
        assert h.inbound.given == []


async def test_a_revoked_session_publishes_nothing_more_and_is_told_nothing() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer, ref=1)
        await h.core.revoking.revoke(Revocation(user="u1", before=h.clock.now + 1))
        say(peer, ref=2)
        assert [message.ref for message in h.inbound.given] == [1]
        h.inbound.end(InboundEnd.TAKEN)
        assert answers(peer) == []
        assert h.publishing.waiting == 0


async def test_an_answer_waits_for_a_client_that_does_not_read_at_the_moment() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer, ref=1)
        peer.socket.stuffed = True
        h.inbound.end(InboundEnd.TAKEN)
        say(peer, "secret", ref=2)
        assert answers(peer) == []
        assert h.hub.backlogged == {peer.client.session}, "it is closed if it takes too long"
        peer.socket.stuffed = False
        peer.client.became_writable()
        assert answers(peer) == [("ok", 1), ("forbidden", 2)]


async def test_a_session_has_so_many_unconfirmed_and_others_are_not_kept_from_theirs() -> None:
    async with house() as h:
        peer, other = await come(h), await come(h, "u2")
        for ref in range(SESSION_MESSAGES + 1):
            say(peer, ref=ref)
        assert answers(peer) == [("busy", SESSION_MESSAGES)]
        say(other, ref=1)
        assert answers(other) == []
        h.inbound.end(InboundEnd.TAKEN, h.inbound.given[0])
        say(peer, ref="again")
        assert [message.ref for message in h.inbound.given[-2:]] == [1, "again"]


async def test_the_node_has_so_many_bytes_unconfirmed() -> None:
    async with house() as h:
        peers = [await come(h, f"u{n}") for n in range(3)]
        half = "x" * (NODE_BYTES // 2 - EACH_BYTES - 2)
        for ref, peer in enumerate(peers):
            say(peer, data=half, ref=ref)
        assert [answers(peer) for peer in peers] == [[], [], [("busy", 2)]]
        h.inbound.end(InboundEnd.NOBODY)
        say(peers[2], data=half, ref=3)
        assert len(h.inbound.given) == 3


async def test_nothing_is_kept_of_sessions_that_have_left() -> None:
    async with house() as h:
        peer = await come(h)
        say(peer, ref=1)
        peer.leave()
        assert h.publishing.waiting == 1, "it goes on"
        h.inbound.end(InboundEnd.TAKEN)
        assert h.publishing._of_session == {}
        assert h.publishing._bytes == 0


async def test_who_is_not_welcomed_yet_is_told_to_wait() -> None:
    """What was revoked elsewhere is only known once the ledger has the session."""
    clock = ManualClock()
    h = House(clock=clock, sessions=MemorySessions(clock))
    peer = h.open(Grant(Claims("u1", 4e9, publish=MAY), Mode.ENVELOPE, Mode.ENVELOPE.value))
    say(peer, ref=1)
    assert answers(peer) == [("unavailable", 1)]
    assert h.inbound.given == []


async def test_in_bare_mode_nothing_is_heard() -> None:
    async with house() as h:
        peer = h.open(Grant(Claims("u1", 4e9, publish=("#",)), Mode.BARE, None))
        say(peer, ref=1)
        assert h.inbound.given == []
