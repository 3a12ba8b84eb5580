"""The way of one push, on the real core with its ports in memory: every path of `bridge.core.delivery`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from bridge.core.bounds import Bounds
from bridge.core.contract import requests
from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.core.contract.requests import Decoded, Limits
from bridge.core.contract.stepping import Steps
from bridge.core.delivery import reading
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Reply, Row, RowKey
from bridge.core.model.sessions import Claims, CloseReason, Grant, Mode
from bridge.core.ports.broker import Arrival, Source
from bridge.core.ports.store import RowPage
from tests.support.house import BOUNDS, House, Peer, house, to
from tests.support.ports import arrival
from tests.support.waiting import turns, until

# --- to the screen -----------------------------------------------------------------------------------


async def test_a_push_reaches_every_session_of_its_user_and_nobody_else() -> None:
    async with house() as h:
        phone, laptop, other = h.connect("u1"), h.connect("u1", Mode.BARE), h.connect("u2")
        message = await h.push(to("u1", event="greeting"))
        assert phone.pushes == [{"type": "push", "id": "p1", "event": "greeting", "data": {"n": 1}}]
        assert laptop.socket.texts == [b'{"n": 1}'] or laptop.socket.texts == [b'{"n":1}']
        assert other.pushes == []
        assert h.acks.acked == [], "nothing is acked before the proof"
        laptop.answer()
        await h.settled(1)
        assert h.acks.acked == [message.token]
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert (h.row("p1").sessions, h.row("p1").attempts) == (2, 2)


async def test_pushes_to_one_user_keep_the_order_of_the_queue() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.take(*(arrival(json.dumps(to("u1", f"p{i}")).encode()) for i in range(1200)))
        while peer.client.session.queued or peer.client.session.unproven:
            peer.answer()
        assert [p["id"] for p in peer.pushes] == [f"p{i}" for i in range(1200)]


async def test_a_row_says_which_batch_its_push_came_in_and_how_large_it_is() -> None:
    async with house() as h:
        one, two, wrong = (
            to("u1", "p1", data="äö"),
            to("", "p2", to={"users": ["u2", "u3"]}),
            to("", "p3", to=1),
        )
        everyone = to("", "p4", to={"all": True}, data=1)
        peer = h.connect("u9", Mode.BARE)
        body = json.dumps([one, two, wrong, everyone], ensure_ascii=False).encode()
        await h.take(arrival(body, message_id="m1"), arrival(json.dumps([to("u4", "alone")]).encode()))
        await h.take(arrival(json.dumps(to("u5", "no batch")).encode()))
        await until(lambda: peer.unanswered > 0)
        peer.answer()
        await until(lambda: len(h.store.rows) == 7)
        found = {
            (key.push_id, key.user): (row.batch_id, row.batch_position, row.data_bytes)
            for key, row in h.store.rows.items()
        }
        [(made_up, *alone)] = [found.pop(("alone", "u4"))]
        assert made_up.startswith("sha256-")
        assert alone == [0, 8]
        assert found == {
            ("p1", "u1"): ("m1", 0, 6),
            ("p2", "u2"): ("m1", 1, 8),
            ("p2", "u3"): ("m1", 1, 8),
            ("p3", ""): ("m1", 2, None),
            ("p4", "u9"): ("m1", 3, 1),
            ("no batch", "u5"): ("", None, 8),
        }


async def test_an_ack_frame_ends_a_push_that_asked_for_it() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1", confirm="acked"))
        peer.answer()
        peer.client.message('{"type":"ack","id":"p1"}')
        await h.settled(1)
        assert h.end("p1") == (Outcome.ACKED, Reason.ACK_FRAME)


async def test_an_ack_for_somebody_elses_push_proves_nothing() -> None:
    async with house() as h:
        peer, thief = h.connect("u1"), h.connect("u2")
        await h.push(to("u1", confirm="acked"))
        thief.client.message('{"type":"ack","id":"p1"}')
        h.advance(6.0)
        await h.settled(1)
        assert h.end("p1") == (Outcome.UNKNOWN, Reason.NO_PROOF)
        assert peer.pushes


async def test_who_asks_is_told_whether_an_ack_counts() -> None:
    async with house() as h:
        peer, thief = h.connect("u1"), h.connect("u2")
        await h.push(to("u1", confirm="acked"))
        thief.client.message('{"type":"ack","id":"p1","ref":1}')
        thief.client.message('{"type":"ack","id":"p1"}')
        peer.client.message('{"type":"ack","id":"p1","ref":"a"}')
        peer.client.message('{"type":"ack","id":"p1","ref":"b"}')
        answers = [json.loads(p.socket.texts[-1]) for p in (thief, peer)]
        problem = "id: no push with this id waits for an ack of this session"
        refused = {"type": "error", "code": "not_awaited", "message": problem}
        assert answers == [refused | {"ref": 1}, refused | {"ref": "b"}]
        assert json.loads(peer.socket.texts[-2]) == {"type": "ok", "ref": "a"}
        assert [json.loads(t)["type"] for t in thief.socket.texts] == ["welcome", "error"], (
            "not asked, not told"
        )


async def test_an_ack_proves_the_push_of_its_tenant_and_no_other() -> None:
    async with house() as h:
        peer = h.connect("u1")
        for tenant in ({}, {"tenant": "a"}, {"tenant": "b"}):
            await h.push(to("u1", confirm="acked", **tenant))
        assert [p.get("tenant") for p in peer.pushes] == [None, "a", "b"]
        peer.answer()
        peer.client.message('{"type":"ack","id":"p1"}')
        problem = "tenant: required, pushes of several tenants with this id wait for their ack"
        refused = {"type": "error", "code": "bad_frame", "message": problem}
        assert json.loads(peer.socket.texts[-1]) == refused
        peer.client.message('{"type":"ack","id":"p1","tenant":"b"}')
        peer.client.message('{"type":"ack","id":"p1","tenant":null}')
        peer.client.message('{"type":"ack","id":"p1","tenant":"c"}')
        h.advance(6.0)
        await h.settled(3)
        ends = {tenant: h.store.rows[RowKey(tenant, "p1", "u1")].outcome for tenant in ("", "a", "b")}
        assert ends == {"": Outcome.ACKED, "a": Outcome.RECEIVED, "b": Outcome.ACKED}
        await h.push(to("u1", "p2", confirm="acked", tenant="a"))
        peer.client.message('{"type":"ack","id":"p2"}')
        await h.settled(4)
        assert h.store.rows[RowKey("a", "p2", "u1")].outcome is Outcome.ACKED, (
            "there is no other it could mean"
        )


async def test_an_ack_that_comes_after_the_end_is_noted_as_late_and_changes_nothing() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1", confirm="acked"))
        peer.answer()
        proven_at = h.clock.now
        h.advance(6.0)
        await h.settled(1)
        peer.client.message('{"type":"ack","id":"p1"}')
        h.worklist.sweep()
        await until(lambda: h.row("p1").late_at is not None)
        row = h.row("p1")
        assert h.end("p1") == (Outcome.RECEIVED, Reason.NOT_ACKED)
        assert (row.proven_at, row.late_at) == (proven_at, h.clock.now)


async def test_a_user_without_a_session_is_offline() -> None:
    async with house() as h:
        await h.push(to("nobody"))
        await h.settled(1)
        assert h.end("p1", "nobody") == (Outcome.OFFLINE, Reason.NO_SESSION)


async def test_users_get_a_row_each_and_the_message_is_acked_once_after_the_last() -> None:
    async with house() as h:
        a, b = h.connect("a"), h.connect("b")
        await h.push({"id": "p1", "to": {"users": ["a", "b", "c", "a"]}, "data": 1})
        a.answer()
        await h.worklist.idle()
        assert h.acks.acked == []
        b.answer()
        await h.settled(1)
        assert [h.end("p1", u)[0] for u in "abc"] == [Outcome.RECEIVED, Outcome.RECEIVED, Outcome.OFFLINE]
        assert (len(a.pushes), len(h.acks.acked)) == (1, 1)


async def test_everyone_is_a_row_for_each_user_and_one_without_a_user_when_nobody_is_here() -> None:
    async with house() as h:
        await h.push({"id": "p0", "to": {"all": True}, "data": 1})
        await h.settled(1)
        assert h.end("p0", "") == (Outcome.OFFLINE, Reason.NOBODY)
        peers = [h.connect(f"u{i}") for i in range(3)]
        await h.push({"id": "p1", "to": {"all": True}, "data": 1})
        for peer in peers:
            peer.answer()
        await h.settled(2)
        assert [h.end("p1", f"u{i}")[0] for i in range(3)] == [Outcome.RECEIVED] * 3


async def test_one_session_is_reached_by_its_id_and_excluded_ones_are_not() -> None:
    async with house() as h:
        first, second = h.connect("u1"), h.connect("u1")
        await h.push({"id": "p1", "to": {"session": second.session_id}, "data": 1})
        await h.push({"id": "p2", "to": {"user": "u1", "except": [second.session_id]}, "data": 2})
        await h.push({"id": "p3", "to": {"session": "gone"}, "data": 3})
        first.answer()
        second.answer()
        h.advance(2.5)
        await h.settled(3)
        assert [p["id"] for p in first.pushes] == ["p2"]
        assert [p["id"] for p in second.pushes] == ["p1"]
        assert h.end("p3", "") == (Outcome.OFFLINE, Reason.NO_SESSION)


# --- slow, dead and late peers -----------------------------------------------------------------------


async def test_a_push_without_proof_is_parked_after_a_second_and_unknown_at_the_deadline() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), reply_to="answers")
        h.advance(1.1)
        await h.settled(1)
        assert h.end("p1") == (Outcome.PENDING, Reason.AWAITING_PROOF)
        assert h.publisher.sent == []
        h.advance(4.5)
        await until(lambda: h.row("p1").final)
        assert h.end("p1") == (Outcome.UNKNOWN, Reason.NO_PROOF)
        await until(lambda: h.publisher.sent)
        assert [r.queue for r in h.publisher.sent[0].replies] == ["answers"]
        peer.answer()
        assert h.metrics.late == 1
        h.worklist.sweep()
        await until(lambda: h.row("p1").proven_at is not None)
        assert h.end("p1")[0] is Outcome.UNKNOWN


async def test_a_parked_push_is_received_when_the_pong_comes_in_time() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"))
        h.advance(1.1)
        await h.settled(1)
        peer.answer()
        await until(lambda: h.row("p1").final)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert len(h.acks.acked) == 1


async def test_pushes_to_a_suspect_session_are_parked_at_once() -> None:
    async with house() as h:
        h.connect("u1")
        await h.push(to("u1", "p1"))
        h.advance(1.2)
        await h.settled(1)
        await h.push(to("u1", "p2"))
        await h.settled(2)
        assert h.end("p2") == (Outcome.PENDING, Reason.AWAITING_PROOF)
        h.advance(6.0)
        await until(lambda: h.row("p2").final)


async def test_a_connection_that_dies_before_the_pong_leaves_the_push_unknown() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"))
        peer.leave(1006)
        await h.settled(1)
        assert h.end("p1") == (Outcome.UNKNOWN, Reason.CONNECTION_LOST)


async def test_a_client_that_does_not_read_is_closed_and_its_pushes_end_as_dropped() -> None:
    async with house(frames=3) as h:
        slow, quick = h.connect("u1"), h.connect("u2")
        await h.push(to("u1", "handed"))
        slow.socket.stuffed = True
        for i in range(5):
            await h.push(to("u1", f"p{i}"))
        assert slow.socket.closed_with is CloseReason.TOO_SLOW
        slow.leave(4408)
        await h.settled(6)
        assert h.end("handed") == (Outcome.UNKNOWN, Reason.CONNECTION_LOST)
        assert [h.end(f"p{i}")[0] for i in range(4)] == [Outcome.DROPPED] * 4
        assert h.end("p4") == (Outcome.OFFLINE, Reason.NO_SESSION)
        await h.push(to("u2", "q"))
        quick.answer()
        await h.settled(7)


async def test_a_session_that_takes_nothing_for_the_deadline_is_closed() -> None:
    async with house() as h:
        peer = h.connect("u1")
        peer.socket.stuffed = True
        await h.push(to("u1"))
        h.advance(5.2)
        assert peer.socket.closed_with is CloseReason.TOO_SLOW
        await until(lambda: RowKey("", "p1", "u1") in h.store.rows and h.row("p1").final)
        assert h.end("p1") == (Outcome.DROPPED, Reason.SLOW_CONSUMER)


async def test_the_fullest_session_goes_when_all_together_hold_too_much() -> None:
    async with house(total_bytes=1 << 20, all_bytes=4000) as h:
        big, small = h.connect("big"), h.connect("small")
        for peer in (big, small):
            peer.socket.stuffed = True
        await h.push({"id": "a", "to": {"user": "small"}, "data": "x" * 1000})
        for i in range(4):
            await h.push({"id": f"b{i}", "to": {"user": "big"}, "data": "x" * 1000})
        h.advance(0.1)
        assert big.socket.closed_with is CloseReason.TOO_SLOW
        assert small.socket.closed_with is None


async def test_a_peer_that_answers_no_ping_at_all_is_dropped_as_vanished() -> None:
    async with house() as h:
        peer = h.connect("u1")
        for _ in range(60):
            h.advance(1.0)
        assert peer.socket.closed_with is CloseReason.VANISHED


async def test_an_idle_peer_that_answers_stays() -> None:
    async with house() as h:
        peer = h.connect("u1")
        for _ in range(100):
            h.advance(1.0)
            peer.answer()
        assert peer.socket.closed_with is None
        assert 4 <= len(peer.socket.pings) <= 6


def beats(peer: Peer) -> int:
    return sum(json.loads(text)["type"] == "heartbeat" for text in peer.socket.texts)


async def test_a_quiet_session_gets_a_heartbeat_every_ten_seconds_and_every_other_with_its_ping() -> None:
    async with house() as h:
        peer = h.connect("u1")
        assert json.loads(peer.socket.texts[0])["heartbeat"] == HEARTBEAT_EVERY == 10
        writes = peer.socket.writes
        for second in range(1, 101):
            h.advance(1.0)
            peer.answer()
            assert abs(beats(peer) - second / HEARTBEAT_EVERY) <= 1
        assert beats(peer) == 10
        assert peer.socket.writes - writes == 10, "one write for a heartbeat and a ping that are due together"


async def test_sessions_that_opened_at_once_are_not_pinged_at_once() -> None:
    async with house() as h:
        peers = [h.connect(f"u{n}") for n in range(1000)]
        written = sum(p.socket.writes for p in peers)
        for _ in range(400):
            h.advance(0.1)
            for peer in peers:
                peer.answer()
            written, before = sum(p.socket.writes for p in peers), written
            assert written - before <= 20, "ten with a ping, ten between two pings"
        assert {beats(p) for p in peers} <= {3, 4}


@pytest.mark.parametrize("between", [1.0, 3.0, 7.0, 9.0, 12.0])
async def test_no_session_is_without_a_frame_for_longer_than_promised(between: float) -> None:
    async with house() as h:
        peer = h.connect("u1")
        spoken = pushed = h.clock.monotonic()
        frames = len(peer.socket.texts)
        for tenth in range(1200):
            h.advance(0.1)
            now = h.clock.monotonic()
            if now - pushed > between - 0.05:
                pushed = now
                await h.push(to("u1", f"p{tenth}"))
            peer.answer()
            if len(peer.socket.texts) > frames:
                frames, spoken = len(peer.socket.texts), now
            assert now - spoken < HEARTBEAT_EVERY + 0.15, "a tick is a tenth of a second"
        assert (beats(peer) == 0) == (between <= HEARTBEAT_EVERY // 2), "who gets pushes needs no heartbeats"


async def test_no_heartbeat_in_bare_mode_nor_for_who_does_not_read() -> None:
    async with house() as h:
        bare, stuffed = h.connect("u1", Mode.BARE), h.connect("u2")
        stuffed.socket.stuffed = True
        for _ in range(40):
            h.advance(1.0)
            bare.answer()
            stuffed.answer()
        assert bare.socket.frames == []
        assert beats(stuffed) == 0
        stuffed.socket.stuffed = False
        h.advance(10.0)
        assert beats(stuffed) == 1


async def test_a_session_closes_when_its_token_expires_and_gets_nothing_after() -> None:
    async with house() as h:
        peer = h.open(Grant(Claims("u1", h.clock.now + 30), Mode.ENVELOPE, None))
        h.clock.advance(31.0)
        h.core.every_second()
        assert peer.socket.closed_with is CloseReason.TOKEN_EXPIRED
        assert json.loads(peer.socket.texts[-1])["type"] == "bye"
        await h.push(to("u1"))
        await h.settled(1)
        assert peer.pushes == []
        assert h.end("p1") == (Outcome.OFFLINE, Reason.NO_SESSION)


# --- repeats -------------------------------------------------------------------------------------------


async def test_the_same_message_twice_in_a_batch_is_sent_once_and_acked_twice() -> None:
    async with house() as h:
        peer = h.connect("u1")
        body = json.dumps(to("u1")).encode()
        await h.take(arrival(body), arrival(body))
        assert len(peer.pushes) == 1
        peer.answer()
        await h.settled(2)
        assert len(h.store.rows) == 1


async def test_a_repeat_after_the_end_is_answered_from_the_row_and_not_sent_again() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"))
        peer.answer()
        await h.settled(1)
        for _ in range(100):
            await h.push(to("u1"), reply_to="answers")
        await h.settled(101)
        assert (len(peer.pushes), len(h.store.rows), h.metrics.repeats) == (1, 1, 100)
        assert len(h.hooks.outcomes) == 1
        assert {r.row.outcome for r in h.publisher.sent} == {Outcome.RECEIVED}


async def test_a_redelivered_message_delivers_only_to_users_without_a_row() -> None:
    async with house() as h:
        a, b = h.connect("a"), h.connect("b")
        request = {"id": "p1", "to": {"users": ["a", "b"]}, "data": 1}
        await h.push(request)
        a.answer()
        await until(lambda: RowKey("", "p1", "a") in h.store.rows)
        await h.worklist.idle()
        # The process dies here: a new one knows only the rows.
        async with house() as h2:
            h2.store.rows.update(h.store.rows)
            a2, b2 = h2.connect("a"), h2.connect("b")
            await h2.push(request, redelivered=True, delivery_count=1)
            b2.answer()
            await h2.settled(1)
            assert (len(a2.pushes), len(b2.pushes)) == (0, 1)
            assert h2.end("p1", "b") == (Outcome.RECEIVED, Reason.PONG)
        assert b.pushes


async def test_a_session_that_left_before_its_turn_to_be_closed_is_left_alone() -> None:
    async with house() as h:
        stays, leaves = h.connect("u1"), h.connect("u2")
        everyone = list(h.hub)
        leaves.leave()
        for session in everyone:
            h.core.presence.close(session, CloseReason.RESTART)
        assert (stays.socket.closed_with, leaves.socket.closed_with) == (CloseReason.RESTART, None)


@pytest.mark.parametrize("target", ["session", "all"])
async def test_a_push_whose_users_only_the_hub_knew_ends_once_though_they_left(target: str) -> None:
    async with house() as h:
        peer = h.connect("u1")
        to_whom = {"session": peer.session_id} if target == "session" else {"all": True}
        body = json.dumps({"id": "p1", "to": to_whom, "data": 1}).encode()
        await h.take(arrival(body, incarnation=1))
        h.intake.channel_lost(1)
        peer.socket.open = False
        h.hub.unregister(peer.client.session)
        # It comes again while the first taking is in the air, and its user is gone.
        await h.take(arrival(body, incarnation=2, redelivered=True, delivery_count=1))
        peer.leave()
        await h.settled(2)
        assert set(h.store.rows) == {RowKey("", "p1", "u1")}
        # And once more to a new process, which knows only the row: its receipt may have been lost.
        async with house() as h2:
            h2.store.rows.update(h.store.rows)
            await h2.take(arrival(body, incarnation=3, redelivered=True, delivery_count=2))
            await h2.settled(1)
            assert set(h2.store.rows) == {RowKey("", "p1", "u1")}
            assert [(r.row.key.user, r.announce) for r in h2.publisher.sent] == [("u1", True)]


@pytest.mark.parametrize(
    "given_out", [1, BOUNDS.taking.suspect_attempts], ids=["once", "so often that it is taken alone"]
)
async def test_a_push_to_a_session_of_another_bridge_whose_row_is_on_its_way_ends_once(
    given_out: int,
) -> None:
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "elsewhere"}, "data": 1}).encode()
        again = arrival(body, redelivered=True, delivery_count=given_out, reply_to="caller")
        await h.take(again)
        h.advance(1.0)
        assert h.store.rows == {}, "the other bridge may be about to write its row"
        async with house() as other:
            peer = other.connect("u1")
            held = {"id": "p1", "to": {"session": peer.session_id}, "data": 1}
            await other.push(held)
            peer.answer()
            await other.settled(1)
            h.store.rows.update(other.store.rows)
        h.advance(1.5)
        await h.settled(1)
        assert set(h.store.rows) == {RowKey("", "p1", "u1")}
        assert [(r.row.key.user, r.row.outcome) for r in h.publisher.sent] == [("u1", Outcome.RECEIVED)]
        account = h.inflight.account()
        assert account.begun == account.with_row + account.on_their_way


async def test_a_push_to_a_session_that_was_nowhere_at_its_first_taking_is_not_sent_at_the_second() -> None:
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "late"}, "data": 1}).encode()
        await h.take(arrival(body))
        h.advance(2.5)
        await h.settled(1)
        async with house() as h2:
            h2.store.rows.update(h.store.rows)
            peer = h2.connect("u1")
            late = json.dumps({"id": "p1", "to": {"session": peer.session_id}, "data": 1}).encode()
            await h2.take(arrival(late, redelivered=True, delivery_count=1, reply_to="caller"))
            await h2.settled(1)
            assert peer.pushes == []
            assert set(h2.store.rows) == {RowKey("", "p1", "")}
            assert [(r.row.key.user, r.row.outcome) for r in h2.publisher.sent] == [("", Outcome.OFFLINE)]


async def test_a_push_to_a_session_that_is_nowhere_ends_when_another_bridge_had_its_time() -> None:
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "gone"}, "data": 1}).encode()
        first, second = (arrival(body, redelivered=True, delivery_count=n) for n in (1, 2))
        await h.take(first, second)
        h.advance(2.5)
        await h.settled(2)
        assert h.end("p1", "") == (Outcome.OFFLINE, Reason.NO_SESSION)
        assert set(h.acks.acked) == {first.token, second.token}


async def test_a_push_taken_alone_to_a_session_that_is_nowhere_ends_when_another_bridge_had_its_time() -> (
    None
):
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "gone"}, "data": 1}).encode()
        await h.take(arrival(body, redelivered=True, delivery_count=BOUNDS.taking.suspect_attempts))
        h.advance(1.0)
        assert h.store.rows == {}
        h.advance(1.5)
        await h.settled(1)
        assert h.end("p1", "") == (Outcome.OFFLINE, Reason.NO_SESSION)


async def test_pushes_taken_alone_to_sessions_that_are_nowhere_wait_once_and_not_each() -> None:
    async with house() as h:
        bodies = [
            json.dumps({"id": f"p{n}", "to": {"session": "gone"}, "data": 1}).encode() for n in range(5)
        ]
        began = h.clock.mono
        h.intake.arrived(
            [arrival(b, redelivered=True, delivery_count=BOUNDS.taking.suspect_attempts) for b in bodies]
        )
        async with asyncio.timeout(10):
            while len(h.acks.acked) < len(bodies):
                h.advance(0.1)
                await turns(20)
        assert 2.0 <= h.clock.mono - began < 4.0


async def test_a_recall_ends_a_push_to_a_session_that_another_bridge_may_have() -> None:
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "elsewhere"}, "data": 1}).encode()
        await h.take(arrival(body, redelivered=True, delivery_count=1))
        await h.core.recalls.recall(Recall(push_id="p1"))
        h.advance(2.5)
        await h.settled(1)
        assert h.end("p1", "") == (Outcome.RECALLED, Reason.WITHDRAWN)
        account = h.inflight.account()
        assert (account.begun, account.with_row, account.on_their_way, h.inflight.busy) == (1, 1, 0, 0)


async def test_a_stop_leaves_a_push_to_a_session_of_another_bridge_to_the_queue() -> None:
    async with house() as h:
        body = json.dumps({"id": "p1", "to": {"session": "elsewhere"}, "data": 1}).encode()
        await h.take(arrival(body, redelivered=True, delivery_count=1))
        await h.intake.stop()
        assert (h.inflight.busy, h.store.rows, h.acks.acked) == (0, {}, [])


async def test_a_repeat_of_a_parked_push_is_acked_at_once_and_its_reply_queue_remembered() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), reply_to="first")
        h.advance(1.1)
        await h.settled(1)
        await h.push(to("u1"), reply_to="second")
        await h.settled(2)
        peer.answer()
        await until(lambda: h.publisher.sent)
        assert {r.queue for r in h.publisher.sent[0].replies} == {"first", "second"}
        assert len(peer.pushes) == 1


def answers(h: House) -> list[tuple[str, bool]]:
    """Each receipt for a reply queue: which one, and whether it says that the content differs."""
    return sorted((r.queue, r.differs) for sent in h.publisher.sent for r in sent.replies)


async def noted(h: House, push_id: str = "p1", user: str = "u1") -> None:
    """Wait until its row tells of a repeat with other content."""
    h.worklist.sweep()
    await until(lambda: h.row(push_id, user).differed_at is not None)


@pytest.mark.parametrize(
    "other",
    [{"data": 2}, {"event": "other"}, {"confirm": "acked"}, {"ttl": 60}, {"collapse_key": "k"}],
    ids=lambda other: next(iter(other)),
)
async def test_a_repeat_with_other_content_is_answered_from_the_row_and_told_so(
    other: dict[str, object],
) -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), reply_to="first")
        peer.answer()
        await h.settled(1)
        await h.push(to("u1"), reply_to="same")
        await h.push(to("u1", meta={"try": 2}), reply_to="same but meta")
        await h.push(to("u1") | other, reply_to="differs")
        await h.settled(4)
        assert answers(h) == [("differs", True), ("first", False), ("same", False), ("same but meta", False)]
        assert (len(peer.pushes), h.metrics.differing) == (1, 1)
        await noted(h)


async def test_of_repeats_in_the_air_only_those_with_other_content_are_told_so() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), reply_to="first")
        await h.push(to("u1", data=2), reply_to="differs")
        h.worklist.sweep()
        await h.worklist.idle()
        assert h.store.rows == {}, "there is no row yet that could be marked"
        await h.push(to("u1"), reply_to="same")
        h.advance(1.1)
        await h.settled(3)
        assert h.row("p1").owed == (Reply("first"), Reply("differs", differs=True), Reply("same"))
        await h.push(to("u1", data=3), reply_to="parked differs")
        await h.settled(4)
        peer.answer()
        await until(lambda: h.publisher.sent)
        assert answers(h) == [
            ("differs", True), ("first", False), ("parked differs", True), ("same", False),
        ]  # fmt: skip
        assert (len(peer.pushes), h.metrics.differing) == (1, 2)
        await noted(h)


async def test_a_correction_of_a_rejected_request_under_its_id_is_told_that_it_differs() -> None:
    async with house() as h:
        h.connect("")
        wrong: dict[str, object] = {"id": "p1", "to": {}, "data": 1}
        await h.push(wrong, reply_to="first")
        await h.push(wrong, reply_to="same")
        await h.push(wrong | {"to": {"usr": "u1"}}, reply_to="differs")
        await h.settled(3)
        assert answers(h) == [("differs", True), ("first", False), ("same", False)]
        await noted(h, user="")


async def test_other_content_for_everyone_is_told_by_every_row_that_the_push_has() -> None:
    async with house() as h:
        a, b = h.connect("a"), h.connect("b")
        await h.push({"id": "p1", "to": {"all": True}, "data": 1})
        a.answer()
        b.answer()
        await h.settled(1)
        b.leave()
        await h.push({"id": "p1", "to": {"all": True}, "data": 2}, reply_to="differs")
        await h.settled(2)
        assert answers(h) == [("differs", True), ("differs", True)]
        await noted(h, user="a")
        await noted(h, user="b")


async def test_other_content_that_a_second_process_ended_first_is_told_at_the_row() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), reply_to="differs")
        ended = Row(
            RowKey("", "p1", "u1"), Outcome.OFFLINE, Reason.NO_SESSION, "n2", "b2",
            h.clock.now, h.clock.now, finished_at=h.clock.now, fingerprint=7,
        )  # fmt: skip
        await h.store.record([ended])
        peer.answer()
        await h.settled(1)
        assert answers(h) == [("differs", True)]
        assert h.end("p1") == (Outcome.OFFLINE, Reason.NO_SESSION)
        await noted(h)


async def test_a_push_whose_id_we_made_has_no_fingerprint() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push({"to": {"user": "u1"}, "data": 1})
        peer.answer()
        await h.settled(1)
        assert [row.fingerprint for row in h.store.rows.values()] == [0]


async def test_messages_of_a_lost_channel_that_were_not_taken_are_forgotten() -> None:
    async with house() as h:
        peer = h.connect("u1")
        h.gate.shut("test", "hold")
        h.intake.arrived([arrival(json.dumps(to("u1")).encode(), incarnation=1)])
        h.intake.channel_lost(1)
        h.intake.arrived([arrival(json.dumps(to("u1")).encode(), incarnation=2, redelivered=True)])
        h.gate.clear("test")
        await until(lambda: peer.pushes)
        peer.answer()
        await h.settled(1)
        assert len(peer.pushes) == 1
        assert [t.incarnation for t in h.acks.acked] == [2]


async def test_a_repeat_whose_row_is_written_while_it_is_looked_up_is_not_sent_again() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"))
        find = h.store.find

        async def slow(keys: Sequence[RowKey]) -> Sequence[Row]:
            found = await find(keys)
            peer.answer()
            await until(lambda: RowKey("", "p1", "u1") in h.store.rows and not h.inflight.busy)
            return found

        h.store.find = slow  # type: ignore[method-assign]
        await h.push(to("u1"))
        await h.settled(2)
        assert len(peer.pushes) == 1


async def test_a_defect_in_decoding_costs_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = requests.begin

    def broken(made: Arrival, limits: Limits) -> Decoded | Steps[Decoded]:
        if b"cursed" in made.body:
            raise RecursionError("a defect")
        return begin(made, limits)

    monkeypatch.setattr(reading, "begin", broken)
    async with house() as h:
        peer = h.connect("u1")
        bodies = [b"cursed", json.dumps(to("u1")).encode(), b"cursed"]
        await h.take(*(arrival(body) for body in bodies))
        peer.answer()
        await h.settled(3)
        ends = sorted((row.outcome, row.reason) for row in h.store.rows.values())
        assert ends == [(Outcome.RECEIVED, Reason.PONG), (Outcome.REJECTED, Reason.POISON)]
        assert len(h.publisher.buried) == 2


async def test_what_a_lost_channel_brought_is_dropped_even_while_it_is_looked_up() -> None:
    async with house() as h:
        peer = h.connect("u1")
        find = h.store.find

        async def losing(keys: Sequence[RowKey]) -> Sequence[Row]:
            h.intake.channel_lost(1)
            return await find(keys)

        h.store.find = losing  # type: ignore[method-assign]
        body = json.dumps({"to": {"user": "u1"}, "data": 1}).encode()
        await h.take(arrival(body, incarnation=1, redelivered=True))
        assert peer.pushes == [], "the broker will bring it again, and without an id it would go out twice"
        h.store.find = find  # type: ignore[method-assign]
        await h.take(arrival(body, incarnation=2, redelivered=True))
        assert len(peer.pushes) == 1


# --- refused, given up, poisonous -------------------------------------------------------------------


async def test_of_a_batch_only_the_wrong_elements_are_rejected() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push([to("u1", "ok1"), {"id": "bad", "to": {}, "data": 1}, to("u1", "ok2")])
        assert [p["id"] for p in peer.pushes] == ["ok1", "ok2"]
        peer.answer()
        await h.settled(1)
        assert h.end("bad", "")[0] is Outcome.REJECTED
        assert [letter.push_id for letter in h.publisher.buried] == ["bad"]
        assert h.row("bad", "").detail.startswith("[1].to") or "to" in h.row("bad", "").detail


async def test_a_push_that_is_too_old_expires_without_being_sent() -> None:
    async with house() as h:
        peer = h.connect("u1")
        published = int((h.clock.now - 61) * 1000)
        await h.push(to("u1"), headers={"x-push-published-ms": published})
        await h.settled(1)
        assert h.end("p1") == (Outcome.EXPIRED, Reason.MAX_AGE)
        assert peer.pushes == []


@pytest.mark.parametrize(
    ("why", "outcome", "reason"),
    [
        ("expired", Outcome.EXPIRED, Reason.QUEUE_EXPIRATION),
        ("delivery_limit", Outcome.REJECTED, Reason.DELIVERY_LIMIT),
        ("maxlen", Outcome.REJECTED, Reason.GIVEN_UP),
    ],
)
async def test_what_the_broker_gave_up_gets_its_row_and_goes_to_the_dead_letters(
    why: str, outcome: Outcome, reason: Reason
) -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), source=Source.FALLEN, headers={"x-first-death-reason": why})
        await h.settled(1)
        assert h.end("p1") == (outcome, reason)
        assert [letter.reason for letter in h.publisher.buried] == [reason]
        assert peer.pushes == []


@pytest.mark.parametrize(
    "headers",
    [
        {
            "x-death": [{"reason": "expired"}, {"reason": "delivery_limit"}],
            "x-first-death-reason": "delivery_limit",
        },
        {"x-last-death-reason": "expired", "x-first-death-reason": "delivery_limit"},
        {"x-death": [], "x-first-death-reason": "expired"},
        {"x-death": ["of a publisher"], "x-first-death-reason": "expired"},
    ],
)
async def test_a_message_that_died_elsewhere_before_ends_by_its_newest_death(
    headers: dict[str, object],
) -> None:
    async with house() as h:
        h.connect("u1")
        await h.push(to("u1"), source=Source.FALLEN, headers=headers)
        await h.settled(1)
        assert h.end("p1") == (Outcome.EXPIRED, Reason.QUEUE_EXPIRATION)


async def test_only_a_request_shows_that_no_other_process_takes() -> None:
    async with house() as h:
        h.intake.channel_lost(0)
        await h.push(to("u1"), source=Source.FALLEN, headers={"x-first-death-reason": "expired"})
        await h.settled(1)
        assert not h.recollection.taking, "push.fallen has no single active consumer"
        await h.push(to("u1", "p2"))
        assert h.recollection.taking


async def test_what_the_broker_gave_up_after_its_end_keeps_its_row() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"))
        peer.answer()
        await h.settled(1)
        await h.push(to("u1"), source=Source.FALLEN, headers={"x-first-death-reason": "delivery_limit"})
        await h.settled(2)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert [r.announce for r in h.publisher.sent] == [True, True], "the first receipt may be lost"


async def test_a_push_to_everyone_that_is_given_up_later_keeps_the_ends_it_had() -> None:
    async with house() as h:
        peer = h.connect("u1")
        body = {"id": "p1", "to": {"all": True}, "data": 1}
        await h.push(body)
        peer.answer()
        await h.settled(1)
        await h.push(body, redelivered=True, delivery_count=20)
        await h.settled(2)
        assert set(h.store.rows) == {RowKey("", "p1", "u1")}
        assert [(r.row.key.user, r.announce) for r in h.publisher.sent] == [("u1", True)] * 2


async def test_a_message_given_out_too_often_is_poison() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1"), redelivered=True, delivery_count=20)
        await h.settled(1)
        assert h.end("p1") == (Outcome.REJECTED, Reason.POISON)
        assert (peer.pushes, len(h.publisher.buried)) == ([], 1)


async def test_a_message_whose_handling_fails_goes_back_and_its_neighbours_are_unharmed() -> None:
    async with house() as h:
        peer = h.connect("u1")
        of_user = h.hub.of_user

        def broken(user: str) -> object:
            if user == "cursed":
                raise ZeroDivisionError("a defect")
            return of_user(user)

        h.hub.of_user = broken  # type: ignore[method-assign,assignment]
        bodies = [to("u1", "p1"), to("cursed", "p2"), to("u1", "p3")]
        arrivals = [arrival(json.dumps(b).encode()) for b in bodies]
        await h.take(*arrivals)
        peer.answer()
        await h.settled(2)
        assert h.acks.requeued == [arrivals[1].token]
        assert sorted(h.acks.acked) == sorted([arrivals[0].token, arrivals[2].token])
        assert isinstance(h.errors.seen[0][0], ZeroDivisionError)


async def test_a_suspect_message_is_handled_alone_and_settled_before_the_next() -> None:
    async with house() as h:
        peer = h.connect("u1")
        first = arrival(
            json.dumps(to("u1", "p1")).encode(),
            redelivered=True,
            delivery_count=BOUNDS.taking.suspect_attempts,
        )
        second = arrival(json.dumps(to("u1", "p2")).encode())
        h.intake.arrived([first, second])
        await until(lambda: peer.pushes)
        assert [p["id"] for p in peer.pushes] == ["p1"]
        peer.answer()
        await until(lambda: len(peer.pushes) == 2)
        peer.answer()
        await h.settled(2)


async def test_a_suspect_message_for_a_user_who_may_come_back_does_not_hold_up_the_queue() -> None:
    async with house(start_grace=2.0) as h:
        suspect = [
            arrival(
                json.dumps(to("u1", p)).encode(),
                redelivered=True,
                delivery_count=BOUNDS.taking.suspect_attempts,
            )
            for p in ("p1", "p2")
        ]
        began = h.clock.monotonic()
        await h.take(*suspect)
        await h.settled(2)
        assert h.clock.monotonic() - began < 1.0, "nobody waited for the grace to end"
        peer = await h.live("u1")
        assert [p["id"] for p in peer.pushes] == ["p1", "p2"]
        peer.answer()
        await until(lambda: {h.end("p1"), h.end("p2")} == {(Outcome.RECEIVED, Reason.PONG)})


async def test_one_message_at_a_time_is_asked_for_until_one_came_that_is_not_suspect() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1", "p1"), redelivered=True, delivery_count=BOUNDS.taking.suspect_attempts)
        peer.answer()
        await h.settled(1)
        await h.push(to("u1", "p2"), source=Source.FALLEN, headers={"x-first-death-reason": "expired"})
        await h.settled(2)
        assert not h.acks.wide
        await h.push(to("u1", "p3"))
        assert h.acks.wide


async def test_where_few_attempts_are_allowed_the_last_of_them_are_alone() -> None:
    async with house(max_attempts=3) as h:
        peer = h.connect("u1")
        for count in (1, 2):
            await h.push(to("u1", f"p{count}"), redelivered=True, delivery_count=count)
            peer.answer()
            await h.settled(count)
        assert not h.acks.wide
        await h.push(to("u1", "p3"))
        assert h.acks.wide


async def test_more_than_one_message_is_not_asked_for_while_nothing_can_be_handled() -> None:
    async with house() as h:
        h.gate.shut("database", "away")
        h.intake.arrived([arrival(json.dumps(to("u1")).encode())])
        for _ in range(50):
            await asyncio.sleep(0)
        assert not h.acks.wide
        h.gate.clear("database")
        await until(lambda: h.acks.wide)


# --- the world is away ------------------------------------------------------------------------------


async def test_nothing_is_taken_while_the_gate_is_shut_and_everything_after() -> None:
    async with house() as h:
        peer = h.connect("u1")
        h.gate.shut("broker", "away")
        h.intake.arrived([arrival(json.dumps(to("u1")).encode())])
        for _ in range(50):
            await asyncio.sleep(0)
        assert (peer.pushes, h.intake.waiting) == ([], 1)
        h.gate.clear("broker")
        await until(lambda: peer.pushes)


async def test_a_lookup_that_fails_loses_nothing_and_keeps_the_order() -> None:
    async with house() as h:
        peer = await h.live("u1")
        h.store.fail_with = StoreUnavailable("stopped")
        bodies = [json.dumps(to("u1", f"p{i}")).encode() for i in range(3)]
        h.intake.arrived([arrival(b, redelivered=True, delivery_count=1) for b in bodies])
        await until(lambda: not h.gate.is_open)
        assert peer.pushes == []
        h.store.fail_with = None
        h.advance(2)
        await until(lambda: len(peer.pushes) == 3)
        assert [p["id"] for p in peer.pushes] == ["p0", "p1", "p2"]


async def test_the_smallest_page_that_fails_is_asked_for_again_after_a_while_only() -> None:
    async with house() as h:
        asked = 0

        async def failing(push: PushKey, from_user: str, limit: int) -> RowPage:
            nonlocal asked
            asked += 1
            raise StatementFailed("canceling statement due to statement timeout")

        h.store.find_push = failing  # type: ignore[method-assign]
        body = json.dumps({"id": "p1", "to": {"session": "gone"}, "data": 1}).encode()
        h.intake.arrived([arrival(body, redelivered=True, delivery_count=1)])
        await turns(200)
        first = asked
        assert 0 < first <= 5
        h.advance(1.1)
        await turns(200)
        assert first < asked <= 2 * first


async def test_after_a_start_a_push_waits_a_moment_for_a_browser_that_is_coming_back() -> None:
    async with house(start_grace=2.0) as h:
        for i in range(3):
            await h.push(to("u1", f"p{i}"))
        await h.push(to("u2", "q"))
        assert h.store.rows == {}
        h.advance(0.5)
        peer = await h.live("u1")
        assert [p["id"] for p in peer.pushes] == ["p0", "p1", "p2"]
        peer.answer()
        await h.settled(3)
        h.advance(1.8)
        await until(lambda: RowKey("", "q", "u2") in h.store.rows and h.row("q", "u2").final)
        assert h.end("q", "u2") == (Outcome.OFFLINE, Reason.NO_SESSION)


async def test_nothing_that_waited_for_a_browser_is_dropped_however_much_it_is() -> None:
    async with house(start_grace=2.0, frames=8, total_bytes=2000) as h:
        await h.take(*(arrival(json.dumps(to("u1", f"p{i}")).encode()) for i in range(400)))
        peer = await h.live("u1")
        for _ in range(100):
            peer.answer()
            await turns()
        assert [p["id"] for p in peer.pushes] == [f"p{i}" for i in range(400)]
        await h.settled(400)
        assert {h.end(f"p{i}") for i in range(400)} == {(Outcome.RECEIVED, Reason.PONG)}


async def test_stop_takes_nothing_more_and_leaves_the_rest_unacked() -> None:
    async with house() as h:
        peer = h.connect("u1")
        await h.push(to("u1", "p1"))
        await h.intake.stop()
        h.intake.arrived([arrival(json.dumps(to("u1", "p2")).encode())])
        peer.answer()
        await h.settled(1)
        await h.worklist.idle()
        assert [p["id"] for p in peer.pushes] == ["p1"]
        assert len(h.acks.acked) == 1


def in_hand(most: int) -> Bounds:
    return BOUNDS._replace(taking=BOUNDS.taking._replace(in_hand=most))


async def test_too_many_pushes_on_their_way_stop_the_taking_until_half_are_done() -> None:
    async with house(bounds=in_hand(4)) as h:
        busy, peer = await h.live("busy"), await h.live("u1")
        for n in range(5):
            await h.push(to("busy", f"p{n}"))
        h.intake.arrived([arrival(json.dumps(to("u1", "last")).encode())])
        await turns()
        assert (peer.pushes, h.intake.waiting) == ([], 1)
        busy.answer()
        await h.settled(5)
        await h.worklist.idle()
        h.core.tick()
        await until(lambda: peer.pushes)


async def test_a_batch_stops_where_too_many_are_on_their_way() -> None:
    async with house(bounds=in_hand(10)) as h:
        peers = [await h.live(f"u{n}") for n in range(8)]
        users = [f"u{n}" for n in range(8)]
        h.intake.arrived(
            [
                arrival(json.dumps({"id": f"p{n}", "to": {"users": users}, "data": 1}).encode())
                for n in range(6)
            ]
        )
        await turns()
        assert (h.inflight.busy, h.intake.waiting) == (16, 4), "the rest waits, in its order"
        while h.intake.waiting or h.inflight.busy:
            for peer in peers:
                peer.answer()
            h.advance(0.1)
            await turns()
        assert all([p["id"] for p in peer.pushes] == [f"p{n}" for n in range(6)] for peer in peers)
        assert h.metrics.takings == 6, "each is counted once"


async def test_kept_pushes_that_leave_memory_for_the_mailbox_make_room_for_others() -> None:
    async with house(bounds=in_hand(10)) as h:
        peer = await h.live("u1")
        away = {"users": [f"away{n}" for n in range(12)]}
        h.intake.arrived([arrival(json.dumps({"id": "kept", "to": away, "data": 1, "ttl": 60}).encode())])
        await h.settled(1)
        h.intake.arrived([arrival(json.dumps(to("u1", "live")).encode())])
        await turns()
        h.core.tick()
        await until(lambda: peer.pushes)


async def test_what_is_offered_to_a_user_who_comes_back_in_the_grace_has_its_own_deadline() -> None:
    async with house(start_grace=2.0) as h:
        await h.push(to("u1", confirm="acked", ack_within=1))
        h.advance(0.5)
        peer = await h.live("u1")
        peer.answer()
        h.advance(1.1)
        await h.settled(1)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.NOT_ACKED)


async def test_pushes_that_were_acked_long_before_their_deadline_leave_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.core.inflight.deadlines.PRUNE_FROM", 50)
    async with house() as h:
        lazy, good = await h.live("lazy"), await h.live("good")
        await h.push(to("lazy", "lazy", confirm="acked", ack_within=3600))
        for n in range(200):
            await h.push(to("good", f"p{n}", confirm="acked", ack_within=3600))
            good.client.message(json.dumps({"type": "ack", "id": f"p{n}"}))
        await h.settled(200)
        assert len(h.inflight._deadlines._own) <= 50
        lazy.answer()
        h.advance(3600.0, step=100.0)
        await h.settled(201)
        assert h.end("lazy", "lazy") == (Outcome.RECEIVED, Reason.NOT_ACKED), "its own is kept"


async def test_a_dead_letter_that_cannot_be_published_holds_up_nobody_else() -> None:
    async with house() as h:
        peer = await h.live("u1")
        h.publisher.refusing = True
        bad = arrival(b'{"id":"bad","to":{},"data":1}', delivery_count=6)
        h.intake.arrived([bad, arrival(json.dumps(to("u1", "live")).encode())])
        await until(lambda: peer.pushes)
        assert bad.token not in h.acks.acked
        h.publisher.refusing = False
        h.worklist.sweep()
        await until(lambda: bad.token in h.acks.acked)
        assert [letter.push_id for letter in h.publisher.buried] == ["bad"]


# --- the client's side ------------------------------------------------------------------------------


async def test_an_envelope_session_is_welcomed_first_and_a_resume_from_what_nobody_knows_is_not_complete() -> (
    None
):
    async with house() as h:
        fresh, resumed = h.connect("u1"), await h.live("u1", last="p0")
        welcome = json.loads(fresh.socket.texts[0])
        assert (welcome["type"], welcome["user"], welcome["session"]) == ("welcome", "u1", fresh.session_id)
        assert welcome["complete"] is True
        assert json.loads(resumed.socket.texts[0])["complete"] is False
        assert [s.session for s in h.hooks.opened] == [fresh.session_id, resumed.session_id]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ('{"type":"subscribe","topic":"t","ref":"r1"}', "forbidden"),
        ('{"type":"nonsense"}', "bad_frame"),
        ("not json", "bad_frame"),
        (b"\x00\xff", "bad_frame"),
        ("[]", "bad_frame"),
    ],
)
async def test_a_frame_that_means_nothing_is_answered_with_an_error(data: str | bytes, code: str) -> None:
    async with house() as h:
        peer = h.connect("u1")
        peer.client.message(data)
        answer = json.loads(peer.socket.texts[-1])
        assert (answer["type"], answer["code"]) == ("error", code)


async def test_hooks_hear_of_a_close_with_its_code() -> None:
    async with house() as h:
        peer = h.connect("u1")
        peer.leave(1001)
        assert [(c.session, code) for c, code, _ in h.hooks.closed] == [(peer.session_id, 1001)]
        assert len(h.hub) == 0


async def test_a_message_that_is_handled_alone_does_not_wait_for_its_proof() -> None:
    async with house() as h:
        peer = h.connect("u1")
        bodies = [json.dumps(to("u1", f"p{i}")).encode() for i in range(3)]
        h.intake.arrived(
            [arrival(b, redelivered=True, delivery_count=BOUNDS.taking.suspect_attempts) for b in bodies]
        )
        await h.settled(3)
        assert [p["id"] for p in peer.pushes] == ["p0", "p1", "p2"]
        assert h.end("p2") == (Outcome.PENDING, Reason.AWAITING_PROOF)
        while peer.client.session.unproven:
            peer.answer()
        await until(lambda: h.row("p2").final)
        assert h.end("p2") == (Outcome.RECEIVED, Reason.PONG)
