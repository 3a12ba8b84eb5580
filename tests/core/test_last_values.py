"""The last values of topics: who subscribes gets them, before anything newer, and each user has a row of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest

from bridge.core.contract.frames import push_frame
from bridge.core.contract.letters import Forwarded, decode_letter
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.errors import StatementFailed
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import NO_USER, Recall
from bridge.core.model.sessions import Claims, Grant, Mode
from bridge.core.ports.nodes import Letter, Sent
from bridge.core.ports.sockets import Frame
from tests.support.house import House, Peer, to
from tests.support.town import AskedValues, open_gate, town
from tests.support.waiting import until

LIMITS = DeliveryLimits(start_grace=0.0, confirm_timeout=5.0)


def come(h: House, user: str = "u1", *topics: str, mode: Mode = Mode.ENVELOPE) -> Peer:
    """A session that may subscribe to anything, and is subscribed to these topics."""
    return h.open(Grant(Claims(user, 4e9, topics=topics, subscribe=("#",)), mode, mode.value))


async def online(h: House, user: str = "u1", *topics: str) -> Peer:
    peer = come(h, user, *topics)
    await until(lambda: peer.client.session.spoken_at is not None and peer.client.session.replay is None)
    return peer


def says(peer: Peer, word: str, topic: str = "t") -> None:
    peer.client.message(json.dumps({"type": word, "topic": topic, "ref": word}))


async def subscribed(h: House, user: str = "u1", topic: str = "t") -> Peer:
    peer = await online(h, user)
    says(peer, "subscribe", topic)
    await until(lambda: b"subscribe" in b"".join(peer.socket.texts) and peer.client.session.replay is None)
    return peer


def ids(peer: Peer) -> list[object]:
    return [push["id"] for push in peer.pushes]


def value(push_id: str, topic: str = "t", **more: object) -> dict[str, object]:
    return {"id": push_id, "to": {"topic": topic}, "data": push_id, "retain": True, **more}


def held(gate: asyncio.Event, step: str) -> Callable[[str], Awaitable[None]]:
    async def before(now: str) -> None:
        if now == step:
            await gate.wait()

    return before


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("proven", [False, True])
@pytest.mark.parametrize("step", ["before", "meanwhile"])
async def test_sessions_get_it_though_another_of_their_user_subscribes_while_it_is_sent(
    step: str, proven: bool
) -> None:
    async with town("a", limits=LIMITS) as (t, [a]):
        a.recollection.began(1)
        a.remembered.complete = True
        first = await subscribed(a, "u0")
        old = await subscribed(a, "u1")
        new = await online(a, "u1")
        write = first.socket.write

        def subscribe() -> None:
            assert isinstance(a.core.ports.retained, AskedValues)
            kept = a.core.ports.retained.kept
            assert a.core.last_values._take(new.client.session, kept, push_frame(kept.request))
            a.core.pages.flush(new.client.session)
            if proven:
                new.answer()

        def meanwhile(frames: Sequence[Frame], ping: bytes | None) -> bool:
            first.socket.write = write  # type: ignore[method-assign]
            subscribe()
            return write(frames, ping)

        async def before(now: str) -> None:
            if now == "kept":
                subscribe()

        if step == "meanwhile":
            first.socket.write = meanwhile  # type: ignore[method-assign]
        else:
            t.before = before
        await a.push(value("p1"))
        for peer in (first, old, new):
            assert ids(peer) == ["p1"], "once each"
            peer.answer()
        await a.settled(1)
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u0")
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u1")


async def test_who_subscribes_later_gets_it_and_has_a_row_with_its_proof() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1", meta={"k": "v"}), app_id="scores")
        await a.ends("p1", Outcome.OFFLINE, Reason.NOBODY, NO_USER)
        peer = await subscribed(a)
        assert ids(peer) == ["p1"]
        assert peer.pushes[0]["topic"] == "t"
        peer.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        row = a.row("p1")
        assert (row.topic, row.session, row.app_id, row.meta) == (
            "t",
            peer.session_id,
            "scores",
            b'{"k":"v"}',
        )
        assert await subscribed(a, "u2", "other") is not None
        assert a.errors.seen == []


async def test_a_token_that_names_the_topic_brings_it_behind_the_welcome_in_every_mode() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1"))
        peer = await online(a, "u1", "t")
        await until(lambda: ids(peer) == ["p1"])
        assert json.loads(peer.socket.texts[0])["type"] == "welcome"
        bare = come(a, "u2", "t", mode=Mode.BARE)
        await until(lambda: bare.socket.texts == [b"p1"])
        bare.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u2")


async def test_only_the_newest_of_each_event_in_the_order_of_their_taking() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        for push_id, event in (("a1", "a"), ("b1", "b"), ("c1", "c"), ("a2", "a"), ("d1", "d"), ("e1", "e")):
            await a.push(value(push_id, event=event))
        await a.push({"id": "no", "to": {"topic": "t"}, "data": 1, "event": "b"})
        peer = await subscribed(a)
        assert ids(peer) == ["b1", "c1", "a2", "d1", "e1"]


async def test_a_repeat_of_an_old_one_replaces_nothing() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1"))
        await a.push(value("p2"))
        await a.settled(2)
        await a.push(value("p1"), redelivered=True)
        await a.settled(3)
        assert ids(await subscribed(a)) == ["p2"]


async def test_newer_pushes_wait_for_it() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        await a.push(value("p1"))
        gate = asyncio.Event()
        made.before = held(gate, "have read")
        peer = await online(a)
        says(peer, "subscribe")
        await turns()
        await a.push({"id": "p2", "to": {"topic": "t"}, "data": 2})
        await a.push(to("u1", "p3"))
        await a.push(value("p4"))
        assert ids(peer) == []
        gate.set()
        await until(lambda: ids(peer) == ["p1", "p2", "p3", "p4"])
        peer.answer()
        for name in ("p1", "p2", "p3", "p4"):
            await a.ends(name, Outcome.RECEIVED, Reason.PONG)


async def test_one_that_was_sent_to_it_meanwhile_is_sent_once() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        await a.push(value("p1"))
        gate = asyncio.Event()
        made.before = held(gate, "read")
        peer = await online(a)
        says(peer, "subscribe")
        await turns()
        await a.push(value("p2"))
        gate.set()
        await until(lambda: ids(peer) == ["p2"])
        await turns()
        assert ids(peer) == ["p2"]


async def test_another_device_of_its_user_gets_it_too_and_the_row_stays() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        await a.push(value("p1"))
        one = await subscribed(a)
        one.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        two, three = await subscribed(a), await subscribed(b)
        assert ids(two) == ids(three) == ["p1"]
        two.leave()
        three.leave()
        await turns()
        assert a.row("p1").session == one.session_id
        assert a.end("p1") == (Outcome.RECEIVED, Reason.PONG)


async def test_to_subscribe_again_sends_nothing_again() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1"))
        peer = await subscribed(a)
        for _ in range(3):
            says(peer, "subscribe")
            await turns()
        assert ids(peer) == ["p1"]


async def test_who_ends_it_at_once_gets_the_pushes_that_were_held() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        await a.push(value("p1"))
        gate = asyncio.Event()
        made.before = held(gate, "have read")
        peer = await online(a)
        says(peer, "subscribe")
        says(peer, "unsubscribe")
        await a.push(to("u1", "p2"))
        await until(lambda: ids(peer) == ["p2"])
        says(peer, "subscribe")
        await turns()
        says(peer, "unsubscribe")
        await a.push(to("u1", "p3"))
        await turns()
        gate.set()
        await until(lambda: ids(peer) == ["p2", "p3"])
        assert peer.client.session.replay is None


async def test_a_session_that_leaves_meanwhile_leaves_nothing_behind() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        await a.push(value("p1"))
        gate = asyncio.Event()
        made.before = held(gate, "have read")
        peer = await online(a)
        says(peer, "subscribe")
        await turns()
        peer.leave()
        gate.set()
        await turns()
        assert a.inflight.busy == 0
        assert a.errors.seen == []


async def test_what_was_recalled_is_sent_to_nobody_and_taken_back_from_those_who_have_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await a.push(value("p1"))
        has = await subscribed(b)
        gate = asyncio.Event()
        made.before = held(gate, "have read")
        late = await online(b, "u2")
        says(late, "subscribe")
        await turns()
        await a.core.recalls.recall(Recall(push_id="p1"))
        gate.set()
        await until(lambda: late.client.session.replay is None)
        assert ids(late) == []
        await until(lambda: b"withdraw" in b"".join(has.socket.texts))
        assert ids(await subscribed(a, "u3")) == []


async def test_it_is_kept_for_its_ttl_and_for_a_user_who_does_not_prove_it() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1", ttl=60))
        mute = await subscribed(a)
        mute.leave()
        await a.ends("p1", Outcome.STORED, Reason.CONNECTION_LOST)
        again = await online(a)
        await until(lambda: ids(again) == ["p1"])
        a.clock.advance(61)
        assert ids(await subscribed(a, "u2")) == []


async def test_sessions_that_are_left_out_do_not_get_it() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        peer = await online(a)
        await a.push({**value("p1"), "to": {"topic": "t", "except": [peer.session_id]}})
        says(peer, "subscribe")
        await turns()
        assert peer.client.session.replay is None
        assert ids(peer) == []


async def test_who_reads_slowly_gets_all_of_them() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        for n in range(600):
            await a.push(value(f"p{n}", event=f"e{n}"))
        peer = await online(a)
        peer.socket.stuffed = True
        says(peer, "subscribe")
        await turns(2000)
        assert ids(peer) == []
        peer.socket.stuffed = False
        for _ in range(20):
            peer.client.became_writable()
            peer.answer()
            a.clock.advance(0.1)
            a.core.tick()
            await turns(500)
        assert ids(peer) == [f"p{n}" for n in range(600)]


async def test_one_taken_elsewhere_is_read_or_forwarded_whatever_comes_first() -> None:
    for step in ("read", "have read", "nothing"):
        async with town("a", "b", limits=LIMITS) as (made, [a, b]):
            await a.push(value("p1"))
            gate = asyncio.Event()
            made.before = held(gate, step)
            peer = await online(b)
            says(peer, "subscribe")
            await turns()
            await a.push(value("p2"))
            gate.set()
            await until(lambda peer=peer: "p2" in ids(peer) and peer.client.session.replay is None)  # type: ignore[misc]
            assert ids(peer) == (["p2"] if step == "read" else ["p1", "p2"]), step


async def test_two_sessions_of_a_user_at_two_nodes_make_one_row() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        await a.push(value("p1"))
        one, two = await online(a), await online(b)
        says(one, "subscribe")
        says(two, "subscribe")
        await until(lambda: ids(one) == ids(two) == ["p1"])
        one.answer()
        two.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await until(lambda: a.inflight.busy == b.inflight.busy == 0)
        assert a.errors.seen == b.errors.seen == []


def forwarded(letters: Sequence[Letter]) -> list[str]:
    return [i.push_id for one in letters for i in decode_letter(one.body).items if isinstance(i, Forwarded)]


async def test_it_is_kept_before_anybody_is_sent_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        await subscribed(b)
        made.fate = lambda letter: Sent.DELIVERED if forwarded([letter]) else None
        await a.push(value("p1"))
        await until(lambda: forwarded(made.letters) == ["p1"])
        made.fate = lambda letter: None
        assert ids(await subscribed(b, "u2")) == ["p1"]


async def test_a_row_that_no_message_waits_for_owes_its_outcome_event() -> None:
    """Whoever dies before it is confirmed gets no message again that would bring it."""
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1", confirm="written"))
        await a.settled(1)
        a.publisher.refusing = True
        await subscribed(a)
        await a.ends("p1", Outcome.WRITTEN, Reason.HANDED_OVER)
        assert a.row("p1").owed == ()
        a.publisher.refusing = False
        a.core.every_second()
        await until(lambda: a.row("p1").owed is None)
        told = [one for one in a.publisher.sent if one.row.key.user == "u1"]
        assert [(one.announce, one.replies) for one in told] == [(True, ())]


async def test_what_its_first_device_has_acked_rings_on_no_other_one() -> None:
    async with town("a", limits=LIMITS) as (_, [a]):
        await a.push(value("p1", confirm="acked", devices="first"))
        one = await subscribed(a)
        one.client.message('{"type": "ack", "id": "p1"}')
        await a.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        assert ids(await subscribed(a)) == []
        assert ids(await subscribed(a, "u2")) == ["p1"]


async def test_what_can_not_be_kept_is_sent_and_holds_up_nobody() -> None:
    async with town("a", limits=LIMITS) as (made, [a]):
        peer = await subscribed(a)

        async def failing(step: str) -> None:
            if step == "keep":
                raise StatementFailed("somebody has locked its row")

        made.before = failing
        await a.push(value("p1"))
        await a.push(to("u1", "p2"))
        await until(lambda: ids(peer) == ["p1", "p2"])
        made.before = lambda step: open_gate()
        assert {where for _, where in a.errors.seen} == {"retained.keep"}
        assert ids(await subscribed(a, "u2")) == []
