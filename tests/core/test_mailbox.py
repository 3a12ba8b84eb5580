"""Kept pushes, on the real core with its ports in memory: stored, replayed, sent again, resumed, ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bridge.core.errors import StoreUnavailable
from bridge.core.inflight.inflight import MICRO, RESENDS
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.mailbox.pages import WELCOMES
from bridge.core.mailbox.recalls import SLICE, Recalled
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import Reply, Row, RowKey
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.broker import Source
from bridge.core.ports.store import Written
from tests.support.house import BOUNDS, House, Peer, house, kept, to
from tests.support.ports import GatedStore, ManualClock, arrival
from tests.support.rows import kept_row
from tests.support.waiting import turns, until

DAY = 86400.0


def ids(peer: Peer) -> list[str]:
    return [str(p["id"]) for p in peer.pushes]


def frames(peer: Peer, kind: str) -> list[dict[str, object]]:
    return [f for f in (json.loads(t) for t in peer.socket.texts) if f["type"] == kind]


async def answering(peer: Peer) -> None:
    """Let the peer answer whatever comes, until all that is kept was sent."""
    async with asyncio.timeout(10):
        while peer.client.session.replay is not None:
            peer.answer()
            await turns(5)


# --- stored, and sent when a session opens ---------------------------------------------------------------


async def test_a_push_for_a_user_who_is_away_is_acked_and_waits_for_the_session_that_opens() -> None:
    async with house() as h:
        await h.push(kept("u1"))
        await h.settled(1)
        assert h.end("p1") == (Outcome.STORED, Reason.NO_SESSION)
        assert h.inflight.busy == 0, "nothing of it is in memory"
        peer = await h.live("u1")
        assert peer.pushes == [{"type": "push", "id": "p1", "event": "message", "data": {"n": 1}}]
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        assert len(h.store.rows) == 1
        assert (h.row("p1").sessions, h.row("p1").attempts) == (1, 1)


async def test_the_stored_are_sent_in_order_and_before_anything_newer() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        for n in range(700):
            await h.push(kept("u1", f"k{n:03}"))
        await h.settled(700)
        store.reading.clear()
        peer = h.connect("u1")
        await h.push(to("u1", "live"), reply_to="r")
        await h.push(kept("u1", "newer"))
        assert ids(peer) == []
        store.reading.set()
        await turns()
        assert 0 < len(ids(peer)) < 300, "the next page waits for the proof of the last"
        while peer.client.session.replay is not None or not peer.client.session.idle:
            peer.answer()
            await turns(3)
        assert ids(peer) == [*(f"k{n:03}" for n in range(700)), "live", "newer"]
        await h.ends("newer", Outcome.RECEIVED, Reason.PONG)
        assert all(row.outcome is Outcome.RECEIVED for row in h.store.rows.values())


async def test_a_push_without_proof_in_time_is_kept_and_a_late_pong_still_ends_it() -> None:
    async with house() as h:
        peer = await h.live("u1")
        message = await h.push(kept("u1"))
        h.advance(1.2)
        await h.settled(1)
        assert h.acks.acked == [message.token]
        assert h.end("p1") == (Outcome.STORED, Reason.AWAITING_PROOF)
        h.advance(5)
        await h.ends("p1", Outcome.STORED, Reason.NO_PROOF)
        assert h.inflight.busy == 0
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_what_a_lost_connection_left_unproven_is_sent_to_the_next() -> None:
    async with house() as h:
        peer = await h.live("u1")
        for n in range(3):
            await h.push(kept("u1", f"p{n}"))
        peer.leave()
        for n in range(3):
            await h.ends(f"p{n}", Outcome.STORED, Reason.CONNECTION_LOST)
        second = await h.live("u1", Mode.BARE)
        assert len(second.socket.texts) == 3
        second.answer()
        for n in range(3):
            await h.ends(f"p{n}", Outcome.RECEIVED, Reason.PONG)
            assert h.row(f"p{n}").attempts == 2


async def test_a_push_stored_in_the_very_moment_its_user_arrives_reaches_that_session() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        store.writing.clear()
        await h.push(kept("u1", "before"))
        peer = h.connect("u1")
        await turns()
        assert store.reads == 0, "a page that was read now would miss the row"
        await h.push(kept("u1", "after"))
        store.writing.set()
        await until(lambda: ids(peer) == ["before", "after"])


async def test_a_push_in_the_air_to_one_device_is_not_missed_by_another_that_opens() -> None:
    async with house() as h:
        frozen = await h.live("u1")
        await h.push(kept("u1", "a"))
        second = await h.live("u1")
        assert ids(second) == ["a"]
        second.answer()
        await h.ends("a", Outcome.RECEIVED, Reason.PONG)
        assert ids(frozen) == ["a"]


async def test_two_devices_that_open_at_once_share_the_mailbox_and_each_push_ends_once() -> None:
    async with house() as h:
        for n in range(50):
            await h.push(kept("u1", f"p{n:02}"))
        await h.settled(50)
        first, second = h.connect("u1"), h.connect("u1")
        await until(lambda: len(ids(first)) == 50 and len(ids(second)) == 50)
        first.answer()
        second.answer()
        for n in range(50):
            await h.ends(f"p{n:02}", Outcome.RECEIVED, Reason.PONG)
            assert h.row(f"p{n:02}").sessions == 2
        await h.worklist.idle()
        assert h.publisher.final_receipts() == 50


async def test_what_cannot_be_held_while_older_pushes_are_sent_follows_from_the_mailbox() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(frames=8, total_bytes=600, clock=clock, store=store) as h:
        for n in range(20):
            await h.push(kept("u1", f"a{n:02}"))
        await h.settled(20)
        other = await h.live("u2")
        store.reading.clear()
        peer = h.connect("u1")
        for n in range(30):
            await h.push(kept("u1", f"b{n:02}"))
        await h.push(to("u1", "now or never"))
        await h.push(to("u2", "neighbour"))
        assert ids(other) == ["neighbour"]
        store.reading.set()
        for _ in range(400):
            peer.answer()
            await turns(3)
        assert peer.socket.closed_with is None, "replay never closes a session as too slow"
        assert ids(peer) == [*(f"a{n:02}" for n in range(20)), *(f"b{n:02}" for n in range(30))]
        assert h.end("now or never") == (Outcome.DROPPED, Reason.OVERFLOW)
        assert all(h.row(f"b{n:02}").outcome is Outcome.RECEIVED for n in range(30))


async def test_a_burst_that_comes_while_a_session_opens_is_held_whatever_number_of_pushes_it_is() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(frames=8, clock=clock, store=store) as h:
        store.reading.clear()
        peer = h.connect("u1")
        for n in range(300):
            await h.push(to("u1", f"p{n:03}"))
        store.reading.set()
        for _ in range(100):
            peer.answer()
            await turns(3)
        await h.settled(300)
        assert ids(peer) == [f"p{n:03}" for n in range(300)]
        assert {h.end(f"p{n:03}") for n in range(300)} == {(Outcome.RECEIVED, Reason.PONG)}


async def test_what_a_node_has_stored_whose_clock_is_ahead_reaches_every_session_that_opens_here() -> None:
    async with house() as h:
        await h.push(kept("u1", "ours"))
        await h.settled(1)
        ahead = h.clock.time() + 30
        theirs = kept_row("theirs", "u1", int(ahead * MICRO), expires_at=ahead + 3600, boot="b2")
        await h.store.record([theirs])
        first = await h.live("u1")
        assert ids(first) == ["ours", "theirs"]
        first.leave()
        await h.ends("theirs", Outcome.STORED, Reason.CONNECTION_LOST)
        await h.push(kept("u1", "later"))
        await h.settled(2)
        second = await h.live("u1")
        assert ids(second) == ["ours", "theirs", "later"], "what is taken after it was seen comes behind it"
        second.answer()
        await h.ends("theirs", Outcome.RECEIVED, Reason.PONG)


async def test_a_push_meant_for_all_but_one_session_waits_for_another() -> None:
    async with house() as h:
        sender = await h.live("u1")
        await h.push({"id": "p1", "to": {"user": "u1", "except": [sender.session_id]}, "data": 1, "ttl": 60})
        await h.ends("p1", Outcome.STORED, Reason.EXCLUDED)
        other = await h.live("u1")
        assert (ids(sender), ids(other)) == ([], ["p1"])


async def test_pushes_survive_the_process_and_go_on_in_order_behind_it() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        for n in range(5):
            await h.push(kept("u1", f"p{n}"))
        await h.settled(5)
    clock.now -= 3600  # a clock that steps back must not turn the order around
    async with house(clock=clock, store=store, boot="b2") as h:
        await h.push(kept("u1", "p5"))
        await h.settled(1)
        peer = await h.live("u1")
        assert ids(peer) == [f"p{n}" for n in range(6)]
        peer.answer()
        await h.ends("p5", Outcome.RECEIVED, Reason.PONG)
        assert h.row("p0").attempts == 1


async def test_a_repeat_of_a_stored_push_is_acked_and_makes_no_second_row() -> None:
    async with house() as h:
        await h.push(kept("u1"), reply_to="q1")
        await h.settled(1)
        await h.push(kept("u1"), reply_to="q2")
        await h.settled(2)
        assert len(h.store.rows) == 1
        peer = await h.live("u1")
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        h.worklist.sweep()
        await h.worklist.idle()
        assert {reply.queue for reply in h.publisher.replies_of("p1", Outcome.RECEIVED)} == {"q1", "q2"}
        assert {reply.queue for reply in h.publisher.replies_of("p1", Outcome.STORED)} == {"q1"}
        assert h.row("p1").owed is None


# --- sent again ------------------------------------------------------------------------------------------


async def test_what_is_not_acked_is_sent_again_a_few_times_and_then_waits_for_the_next_session() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(kept("u1", confirm="acked"))
        for _ in range(100):
            peer.answer()
            h.advance(0.5)
            await turns()
        assert ids(peer) == ["p1"] * (1 + RESENDS)
        assert h.end("p1") == (Outcome.STORED, Reason.NOT_ACKED)
        second = await h.live("u1")
        assert ids(second) == ["p1"]
        second.client.message('{"type":"ack","id":"p1"}')
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        assert h.row("p1").attempts == 2 + RESENDS


async def test_an_ack_of_any_sending_ends_it() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(kept("u1", confirm="acked"))
        for _ in range(14):
            peer.answer()
            h.advance(0.5)
            await turns()
        assert ids(peer) == ["p1", "p1"]
        peer.client.message('{"type":"ack","id":"p1"}')
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        for _ in range(40):
            peer.answer()
            h.advance(0.5)
            await turns(5)
        assert ids(peer) == ["p1", "p1"]


async def test_a_peer_that_owes_a_pong_is_not_sent_the_same_again() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(kept("u1"))
        for _ in range(60):
            h.advance(0.5)
            await turns(5)
        assert ids(peer) == ["p1"]


async def test_the_wait_for_an_ack_is_as_long_as_the_push_says() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(to("u1", "short", confirm="acked", ack_within=2))
        await h.push(to("u1", "long", confirm="acked", ack_within=30))
        peer.answer()
        h.advance(2.2)
        await h.ends("short", Outcome.RECEIVED, Reason.NOT_ACKED)
        h.advance(20)
        await turns()
        assert h.end("long") == (Outcome.PENDING, Reason.AWAITING_PROOF)
        peer.client.message('{"type":"ack","id":"long"}')
        peer.client.message('{"type":"ack","id":"short"}')
        await h.ends("long", Outcome.ACKED, Reason.ACK_FRAME)
        assert h.end("short") == (Outcome.RECEIVED, Reason.NOT_ACKED), "an end never changes"
        assert h.metrics.late == 1


async def test_an_ack_after_the_end_fills_a_time_and_changes_nothing() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(to("u1", confirm="acked", ack_within=1))
        h.advance(1.3)
        await h.ends("p1", Outcome.UNKNOWN, Reason.NO_PROOF)
        peer.client.message('{"type":"ack","id":"p1"}')
        h.worklist.sweep()
        await until(lambda: h.row("p1").proven_at is not None)
        assert h.end("p1") == (Outcome.UNKNOWN, Reason.NO_PROOF)


# --- ends without a proof --------------------------------------------------------------------------------


async def test_a_push_ends_at_its_ttl_though_nobody_looks() -> None:
    async with house() as h:
        await h.push(kept("u1", ttl=30), reply_to="q")
        await h.settled(1)
        h.clock.advance(29)
        await h.core.mailbox_sweep.sweep()
        assert h.end("p1") == (Outcome.STORED, Reason.NO_SESSION)
        h.clock.advance(1.5)
        await h.core.mailbox_sweep.sweep()
        assert h.end("p1") == (Outcome.EXPIRED, Reason.TTL)
        h.worklist.sweep()
        await h.worklist.idle()
        assert [r.queue for r in h.publisher.replies_of("p1", Outcome.EXPIRED)] == ["q"]
        assert h.row("p1").owed is None
        assert ids(await h.live("u1")) == []


async def test_a_push_taken_after_its_ttl_is_expired_at_once_and_a_long_ttl_outlives_max_age() -> None:
    async with house() as h:
        peer = await h.live("u1")
        late = {"x-push-published-ms": int((h.clock.now - 100) * 1000)}
        await h.push(kept("u1", "short", ttl=50), headers=late)
        await h.push(kept("u1", "long", ttl=500), headers=late)
        await h.ends("short", Outcome.EXPIRED, Reason.TTL)
        assert ids(peer) == ["long"]


async def test_what_expires_while_it_is_queued_is_not_sent_any_more() -> None:
    async with house() as h:
        peer = await h.live("u1")
        peer.socket.stuffed = True
        await h.push(kept("u1", "dies", ttl=3))
        await h.push(kept("u1", "lives", ttl=300))
        h.advance(1.2)
        await h.settled(2)
        h.clock.advance(2)
        await h.core.mailbox_sweep.sweep()
        peer.socket.stuffed = False
        peer.client.became_writable()
        assert ids(peer) == ["lives"]
        assert h.end("dies") == (Outcome.EXPIRED, Reason.TTL)


async def test_a_newer_push_with_its_collapse_key_replaces_a_stored_one() -> None:
    async with house() as h:
        for n in range(3):
            await h.push(kept("u1", f"p{n}", collapse_key="score"))
        await h.push(kept("u1", "other", collapse_key="weather"))
        await h.push(kept("u2", "p3", collapse_key="score"))
        await h.settled(5)
        for n in range(2):
            await h.ends(f"p{n}", Outcome.SUPERSEDED, Reason.COLLAPSED)
        peer = await h.live("u1")
        assert ids(peer) == ["p2", "other"]
        h.worklist.sweep()
        await h.worklist.idle()
        assert h.row("p0").owed is None


async def test_a_push_that_the_broker_gave_up_replaces_nothing() -> None:
    async with house() as h:
        await h.push(kept("u1", "newer", collapse_key="score"))
        await h.settled(1)
        body = json.dumps(kept("u1", "older", collapse_key="score")).encode()
        fallen = {"x-first-death-reason": "expired"}
        await h.take(arrival(body, source=Source.FALLEN, arrived_at=h.clock.now, headers=fallen))
        await h.settled(2)
        assert h.end("older") == (Outcome.EXPIRED, Reason.QUEUE_EXPIRATION)
        assert h.end("newer") == (Outcome.STORED, Reason.NO_SESSION)


async def test_a_newer_push_replaces_one_that_is_queued_for_a_slow_session() -> None:
    async with house() as h:
        peer = await h.live("u1")
        peer.socket.stuffed = True
        await h.push(to("u1", "now or never", collapse_key="k"))
        await h.push(kept("u1", "old", collapse_key="k"))
        await h.push(kept("u1", "new", collapse_key="k"))
        await h.ends("now or never", Outcome.SUPERSEDED, Reason.COLLAPSED)
        await h.ends("old", Outcome.SUPERSEDED, Reason.COLLAPSED)
        peer.socket.stuffed = False
        peer.client.became_writable()
        assert ids(peer) == ["new"]


async def test_a_push_that_was_handed_over_before_a_newer_one_came_ends_by_its_proof() -> None:
    async with house() as h:
        proven, silent = await h.live("u1"), await h.live("u2")
        for user in ("u1", "u2"):
            await h.push(kept(user, f"old-{user}", collapse_key="k"))
            await h.push(kept(user, f"new-{user}", collapse_key="k"))
        proven.answer()
        await h.ends("old-u1", Outcome.RECEIVED, Reason.PONG)
        silent.leave()
        await h.ends("old-u2", Outcome.SUPERSEDED, Reason.COLLAPSED, "u2")
        await h.ends("new-u2", Outcome.STORED, Reason.CONNECTION_LOST, "u2")


async def test_what_waits_behind_a_replay_counts_among_what_all_sessions_may_hold() -> None:
    async with house(all_bytes=5000) as h:
        h.store.reading.clear()  # type: ignore[attr-defined]
        peer = h.connect("u1")
        for n in range(5):
            assert peer.socket.closed_with is None
            await h.push(kept("u1", f"p{n}", data="x" * 1000))
            assert h.hub.queued_bytes > n * 1000
            h.core.tick()
        assert peer.socket.closed_with is CloseReason.TOO_SLOW
        assert h.hub.queued_bytes == 0
        for n in range(5):
            await h.ends(f"p{n}", Outcome.STORED, Reason.SLOW_CONSUMER)
        h.store.reading.set()  # type: ignore[attr-defined]
        again = await h.live("u1")
        assert len(ids(again)) == 5


async def test_over_its_bounds_a_mailbox_drops_its_oldest_and_says_so_to_who_resumes() -> None:
    async with house(mailbox=MailboxLimits(pushes=3)) as h:
        first = await h.live("u1")
        await h.push(kept("u1", "seen"))
        first.answer()
        await h.ends("seen", Outcome.RECEIVED, Reason.PONG)
        first.leave()
        for n in range(5):
            await h.push(kept("u1", f"p{n}"))
        await h.settled(6)
        await h.core.mailbox_sweep.sweep()
        for n in range(2):
            assert h.end(f"p{n}") == (Outcome.DROPPED, Reason.MAILBOX_FULL)
        peer = await h.live("u1", last="seen")
        assert frames(peer, "welcome")[0]["complete"] is False
        assert [i for i in ids(peer) if i != "seen"] == ["p2", "p3", "p4"]


async def test_who_was_promised_everything_is_told_when_something_is_dropped_before_its_turn() -> None:
    async with house(frames=2) as h:
        first = await h.live("u1")
        await h.push(kept("u1", "seen"))
        first.answer()
        await h.ends("seen", Outcome.RECEIVED, Reason.PONG)
        first.leave()
        await h.push([kept("u1", f"p{n}") for n in range(8)])
        await h.settled(2)
        h.clock.advance(60)
        back, new = h.connect("u1", last="p0"), h.connect("u1")
        await until(lambda: len(ids(back)) == len(ids(new)) == 2)
        assert [w["complete"] for w in frames(back, "welcome")] == [True]
        await h.store.trim(await h.store.overfull(["u1"], 2, 9999), 99)  # by a sweep of whatever node
        for peer in (back, new):
            await answering(peer)
        for peer in (back, new):
            assert {"p6", "p7"} <= set(ids(peer))
            assert not {"p3", "p4", "p5"} & set(ids(peer))
        at = [(f["type"], f.get("id", f.get("complete"))) for f in map(json.loads, back.socket.texts)]
        assert at.index(("welcome", False)) < at.index(("push", "p6")), "before what follows the gap"
        assert [w["complete"] for w in frames(back, "welcome")] == [True, False]
        assert [w["complete"] for w in frames(new, "welcome")] == [True], "it asked for nothing"


async def test_a_mailbox_is_measured_when_it_has_grown_by_a_share_of_its_bounds_or_for_some_time() -> None:
    share = BOUNDS.mailbox.measured_share
    bounds = MailboxLimits(pushes=3 * share, total_bytes=1000 * share)
    async with house(mailbox=bounds) as h:
        measured: list[list[str]] = []
        overfull = h.store.overfull

        async def noted(users: Sequence[str], pushes: int, payload_bytes: int) -> Sequence[tuple[str, int]]:
            measured.append(sorted(users))
            return await overfull(users, pushes, payload_bytes)

        async def nobody(after: str, limit: int) -> Sequence[str]:
            return ()

        h.store.overfull = noted  # type: ignore[method-assign]
        h.store.users_with_mail = nobody  # type: ignore[method-assign]
        await h.push([kept("often", f"p{n}") for n in range(3)])
        await h.push([kept("big", "p4", data="x" * 1000), kept("seldom", "p5")])
        await h.settled(2)
        await h.core.mailbox_sweep.sweep()
        await h.core.mailbox_sweep.sweep()
        assert measured == [["big", "often"]]
        h.advance(BOUNDS.mailbox.measured_after)
        await h.core.mailbox_sweep.sweep()
        await h.core.mailbox_sweep.sweep()
        assert measured == [["big", "often"], ["seldom"]]


async def test_a_sweep_waits_for_the_database_and_goes_on_where_it_was() -> None:
    async with house(mailbox=MailboxLimits(pushes=1)) as h:
        await h.push([kept("u1", "p1"), kept("u1", "p2")])
        await h.settled(1)
        h.store.fail_with = StoreUnavailable("away")
        sweeping = asyncio.create_task(h.core.mailbox_sweep.sweep())
        await turns()
        assert h.gate.causes
        h.store.fail_with = None
        h.advance(3)
        await sweeping
        assert not h.gate.causes
        await h.ends("p1", Outcome.DROPPED, Reason.MAILBOX_FULL)


async def test_a_page_for_a_peer_that_takes_nothing_is_not_read_over_and_over() -> None:
    async with house(total_bytes=60_000) as h:
        # Nothing of it waits for a pong, so that the session has nothing to wait for but its socket.
        await h.push([kept("u1", f"p{n}", data="x" * 50_000, confirm="written") for n in range(4)])
        await h.settled(1)
        peer = h.connect("u1")
        peer.socket.buffered_bytes, peer.socket.stuffed = 59_000, True
        store = h.store
        assert isinstance(store, GatedStore)
        for _ in range(100):
            h.core.proofs.became_writable(peer.client.session)
            await turns(3)
        assert store.reads <= 2
        assert ids(peer) == []
        peer.socket.buffered_bytes, peer.socket.stuffed = 0, False
        h.core.proofs.became_writable(peer.client.session)
        await until(lambda: len(ids(peer)) == 4)


# --- a replay comes to its end ----


@pytest.mark.parametrize(("count", "size"), [(230, 10), (8, 50_000)], ids=["many", "large"])
async def test_a_replay_ends_though_pages_of_newer_pushes_were_stored_meanwhile(
    count: int, size: int
) -> None:
    async with house() as h:
        for n in range(300):
            await h.push(kept("u1", f"a{n:03}"))
        await h.settled(300)
        peer = h.connect("u1")
        await until(lambda: len(ids(peer)) == 200)
        newer = [f"b{n:03}" for n in range(count)]
        for push_id in newer:
            await h.push(kept("u1", push_id, data="x" * size))
        h.advance(1.5)  # the peer takes its time to answer, and their rows are written
        await h.settled(300 + count)
        await answering(peer)
        assert [i for i in ids(peer) if i in newer] == newer


async def test_what_is_held_follows_the_replay_within_the_bounds_of_the_queue() -> None:
    async with house(frames=20) as h:
        for n in range(15):
            await h.push(kept("u1", f"a{n:02}", data="x" * 1000))
        await h.settled(15)
        h.store.reading.clear()  # type: ignore[attr-defined]
        peer = h.connect("u1")
        await turns()
        for n in range(18):
            await h.push(to("u1", f"b{n:02}", data="x" * 1000))
        peer.socket.stuffed = True
        h.store.reading.set()  # type: ignore[attr-defined]
        await turns()
        assert peer.client.session.queued == 20, "as much as there is room for"
        await h.push(to("u1", "newer"))
        assert peer.socket.closed_with is None, "it is not slow: it was given more at once than it may have"
        peer.socket.stuffed = False
        peer.client.became_writable()
        await answering(peer)
        assert ids(peer) == [*(f"a{n:02}" for n in range(15)), *(f"b{n:02}" for n in range(18)), "newer"]


# --- rows that are days old, or refused, or named twice ----


class DayStore(GatedStore):
    """Writes as the database does: it finds a row that is older than it need know only by its day."""

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        for new in rows:
            have = self.rows.get(new.key)
            old = have is not None and have.day is not None and have.day < self._since
            assert not old or new.day is not None, "there would be a second row"
        return await super().record(rows)


@pytest.mark.parametrize("acks", [True, False], ids=["acked", "left"])
async def test_a_push_that_a_session_has_for_days_keeps_its_one_row(acks: bool) -> None:
    clock = ManualClock()
    store = DayStore(clock)
    async with house(clock=clock, store=store) as h:
        peer = await h.live("u1")
        await h.push(kept("u1", ttl=7 * DAY, confirm="acked"))
        peer.answer()
        h.advance(1.5)
        await h.settled(1)
        for _ in range(3):
            clock.advance(DAY)
            await store.last_position()  # the log's day rolls over
        if acks:
            peer.client.message('{"type":"ack","id":"p1"}')
            await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)
        else:
            peer.leave()
            await h.ends("p1", Outcome.STORED, Reason.NOT_ACKED)
        assert len(store.rows) == 1


async def test_a_kept_push_with_text_that_the_database_refuses_keeps_its_data_and_what_it_owes() -> None:
    async with house() as h:
        await h.push(kept("u1"), app_id="shop\0", reply_to="answers")
        await h.settled(1)
        assert (h.row("p1").owed, h.row("p1").app_id) == ((Reply("answers", ""),), "")
        peer = await h.live("u1")
        assert peer.pushes[0]["data"] == {"n": 1}
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await h.worklist.idle()
        for outcome in (Outcome.STORED, Outcome.RECEIVED):
            assert h.publisher.replies_of("p1", outcome) == [Reply("answers", "")]


async def test_an_end_that_is_being_written_is_written_once_whoever_waits_for_its_row() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        peer = await h.live("u1")
        await h.push(kept("u1"))
        store.writing.clear()
        written: list[list[Outcome]] = []
        record = store.record

        async def noted(rows: Sequence[Row]) -> Sequence[Written]:
            written.append([new.outcome for new in rows])
            if len(written) == 2:
                raise StoreUnavailable("cut: tried again, it finds its own end")
            return await record(rows)

        store.record = noted  # type: ignore[method-assign]
        peer.answer()
        await turns()
        h.connect("u1")  # it waits for the rows of all that is in the air
        store.writing.set()
        await h.settled(1)
        h.advance(1.0)
        await turns()
        assert written == [[Outcome.RECEIVED]]
        assert h.publisher.final_receipts() == 1


async def test_a_push_that_comes_too_late_to_be_shown_replaces_nothing() -> None:
    async with house() as h:
        await h.push(kept("u1", "old", collapse_key="k"))
        await h.settled(1)
        late = {"x-push-published-ms": int((h.clock.now - 10) * 1000)}
        await h.push(kept("u1", "new", ttl=5, collapse_key="k"), headers=late)
        await h.settled(2)
        assert h.end("new") == (Outcome.EXPIRED, Reason.TTL)
        assert ids(await h.live("u1")) == ["old"]


# --- resume ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flying", [False, True], ids=["from the log", "from the air"])
async def test_where_two_tenants_have_the_push_last_seen_nothing_since_the_first_is_missing(
    flying: bool,
) -> None:
    async with house() as h:
        phone, laptop = await h.live("u1"), await h.live("u1")
        # What is not kept has no row before it is proven, or parked.
        confirm = {"confirm": "acked"} if flying else {}
        for push in (
            to("u1", "same", **confirm), kept("u1", "between"), to("u1", "same", tenant="t", **confirm),
        ):  # fmt: skip
            await h.push(push)
            phone.answer()
            laptop.answer()
            h.clock.advance(60)
        await h.settled(1 if flying else 3)
        assert len(h.store.rows) == (1 if flying else 3)
        laptop.leave()
        back = await h.live("u1", last="same")
        assert [w["complete"] for w in frames(back, "welcome")] == [True]
        assert "between" in ids(back)


async def test_a_client_that_resumes_gets_what_another_device_took_meanwhile() -> None:
    async with house() as h:
        phone, laptop = await h.live("u1"), await h.live("u1")
        await h.push(kept("u1", "p0"))
        phone.answer()
        await h.ends("p0", Outcome.RECEIVED, Reason.PONG)
        laptop.leave()
        h.clock.advance(60)
        for n in range(1, 4):
            await h.push(kept("u1", f"p{n}"))
            phone.answer()
            await h.ends(f"p{n}", Outcome.RECEIVED, Reason.PONG)
        back = await h.live("u1", last="p0")
        assert frames(back, "welcome")[0]["complete"] is True
        assert [i for i in ids(back) if i != "p0"] == ["p1", "p2", "p3"]
        assert ids(await h.live("u1")) == [], "who does not resume gets what nobody took"


async def test_who_resumes_gets_what_another_device_took_while_the_page_was_read() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        phone = await h.live("u1")
        await h.push(kept("u1", "p0"))
        phone.answer()
        await h.ends("p0", Outcome.RECEIVED, Reason.PONG)
        phone.leave()
        await h.push(kept("u1", "p1"))
        await h.settled(2)
        laptop = await h.live("u1")
        assert ids(laptop) == ["p1"]
        store.reading.clear()
        read = store.reads
        back, new = h.connect("u1", last="p0"), h.connect("u1")
        await until(lambda: store.reads > read)
        laptop.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        store.reading.set()
        await until(lambda: back.client.session.replay is None and new.client.session.replay is None)
        assert frames(back, "welcome")[0]["complete"] is True
        assert "p1" in ids(back)
        assert ids(new) == []


async def test_a_resume_from_a_push_whose_row_is_not_written_yet_is_complete() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        peer = await h.live("u1")
        store.writing.clear()
        await h.push(to("u1", "seen"))
        await h.push(kept("u1", "next"))
        peer.leave()
        back = h.connect("u1", last="seen")
        await turns()
        store.writing.set()
        await until(lambda: ids(back) == ["next"])
        assert frames(back, "welcome")[0]["complete"] is True


@pytest.mark.parametrize("last", ["", "\0", "x" * 200, "\ud800", "\x1b[2J"])
async def test_a_resume_from_what_can_be_no_id_is_not_complete_and_hurts_nobody(last: str) -> None:
    async with house() as h:
        await h.push(kept("u1"))
        await h.settled(1)
        peer = await h.live("u1", last=last)
        assert frames(peer, "welcome")[0]["complete"] is False
        assert ids(peer) == ["p1"]


async def test_the_welcome_of_who_resumes_comes_before_any_push() -> None:
    async with house() as h:
        await h.push(kept("u1"))
        await h.settled(1)
        peer = await h.live("u1", last="never heard of")
        assert [f["type"] for f in map(json.loads, peer.socket.texts)] == ["welcome", "push"]
        assert frames(peer, "welcome")[0]["complete"] is False


async def test_while_the_database_is_away_a_session_is_welcomed_late_and_gets_its_pushes_later() -> None:
    async with house() as h:
        await h.push(kept("u1"))
        await h.settled(1)
        h.store.fail_with = StoreUnavailable("stopped")
        peer = h.connect("u1", last="p0")
        await turns()
        assert peer.socket.texts == []
        assert not h.gate.is_open
        h.advance(6)
        await turns()
        assert frames(peer, "welcome")[0]["complete"] is False
        h.store.fail_with = None
        await _passing(h, lambda: ids(peer) == ["p1"])


async def test_a_proof_is_not_undone_by_the_flight_that_an_earlier_session_lost() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        peer = await h.live("u1")
        await h.push(kept("u1", "p1", confirm="acked"))
        peer.leave()
        await h.ends("p1", Outcome.STORED, Reason.CONNECTION_LOST)
        peer = await h.live("u1")
        assert ids(peer) == ["p1"]
        # The writer is busy with another push when the ack comes, and when the first flight would have been parked.
        store.writing.clear()
        await h.push(kept("u2", "p2"))
        await turns()
        peer.answer()
        peer.client.message(json.dumps({"type": "ack", "id": "p1"}))
        h.advance(2)
        store.writing.set()
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME)


# --- recall ----------------------------------------------------------------------------------------------


async def test_a_recall_is_over_when_what_it_ended_in_the_air_is_committed() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        await h.live("u1")
        await h.push(kept("u1", "p1"))
        store.writing.clear()
        recalling = asyncio.create_task(h.core.recalls.recall(Recall(push_id="p1")))
        await turns()
        assert not recalling.done(), "a process that died now would find the push in the queue again"
        store.writing.set()
        assert await recalling == Recalled(ended=1, sessions=1)
        assert h.end("p1") == (Outcome.RECALLED, Reason.WITHDRAWN)
        assert await h.core.recalls.recall(Recall(push_id="p1")) == Recalled(ended=0, sessions=1)


class HaltingClock(ManualClock):
    """Lets a test hold one task in each sleep until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.task: asyncio.Task[Any] | None = None
        self.goes_on = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if asyncio.current_task() is self.task:
            await self.goes_on.wait()
        await super().sleep(seconds)


@pytest.mark.parametrize("has_a_row", [False, True])
async def test_a_recall_of_thousands_gives_others_turns_and_one_may_be_proven_then(has_a_row: bool) -> None:
    clock = HaltingClock()
    store = GatedStore(clock)
    users = [f"u{number}" for number in range(SLICE + 1)]
    *recalled, last = [RowKey("", "p1", user) for user in users]
    async with house(clock=clock, store=store) as h:
        peers = [await h.live(user) for user in users]
        await h.push({"id": "p1", "to": {"users": users}, "ttl": 60, "data": 1})
        await until(lambda: ids(peers[-1]) == ["p1"])
        clock.task = recalling = asyncio.create_task(h.core.recalls.recall(Recall(push_id="p1")))
        await turns()
        assert h.end("p1", users[0]) == (Outcome.RECALLED, Reason.WITHDRAWN)
        if not has_a_row:
            store.writing.clear()
        peers[-1].answer()
        await turns()
        assert (last in store.rows) is has_a_row
        clock.goes_on.set()
        await turns()
        store.writing.set()
        assert await recalling == Recalled(ended=SLICE, sessions=len(users))
        assert {store.rows[key].outcome for key in recalled} == {Outcome.RECALLED}
        assert (store.rows[last].outcome, store.rows[last].payload) == (Outcome.RECEIVED, None)
        for peer in peers:
            assert frames(peer, "withdraw")


async def test_a_recall_does_not_wait_for_what_another_has_ended_and_written_meanwhile() -> None:
    clock = HaltingClock()
    users = [f"u{number}" for number in range(SLICE + 1)]
    async with house(clock=clock) as h:
        peers = [await h.live(user) for user in users]
        await h.push({"id": "p1", "to": {"users": users}, "data": 1})
        await until(lambda: ids(peers[-1]) == ["p1"])
        clock.task = slow = asyncio.create_task(h.core.recalls.recall(Recall(push_id="p1")))
        await turns()
        assert await h.core.recalls.recall(Recall(push_id="p1")) == Recalled(2, len(users))
        clock.goes_on.set()
        async with asyncio.timeout(10):
            assert (await slow).ended == SLICE - 1


async def test_a_recall_finds_room_and_its_place_in_every_session() -> None:
    async with house(frames=2) as h:
        stuffed, new = await h.live("u1"), h.connect("u1")
        await until(lambda: new.client.session.replay is None)
        new.leave()
        stuffed.socket.stuffed = True
        await h.push([kept("u1", "p1"), kept("u1", "p2")])
        assert stuffed.client.session.queued == 2, "it is full"
        h.store.reading.clear()  # type: ignore[attr-defined]
        replaying = h.connect("u1")
        await turns()
        assert await h.core.recalls.recall(Recall(push_id="p1")) == Recalled(ended=1, sessions=2)
        h.store.reading.set()  # type: ignore[attr-defined]
        stuffed.socket.stuffed = False
        stuffed.client.became_writable()
        await until(lambda: replaying.client.session.replay is None)
        for peer in (stuffed, replaying):
            assert frames(peer, "withdraw") == [{"type": "withdraw", "id": "p1"}]
            last = json.loads(peer.socket.texts[-1])
            assert last["type"] == "withdraw", "behind all that may show the push"


async def test_who_resumes_is_not_shown_what_was_recalled_meanwhile() -> None:
    async with house() as h:
        phone, laptop = await h.live("u1"), await h.live("u1")
        for push_id in ("p0", "p1", "p2"):
            await h.push(kept("u1", push_id))
            phone.answer()
            await h.ends(push_id, Outcome.RECEIVED, Reason.PONG)
            laptop.leave() if push_id == "p0" else None
        assert await h.core.recalls.recall(Recall(push_id="p1")) == Recalled(ended=0, sessions=1)
        back = await h.live("u1", last="p0")
        assert "p2" in ids(back)
        assert "p1" not in ids(back)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG), "the trail stays"


@pytest.mark.parametrize("recall", [Recall(push_id="p1"), Recall(user="u1", collapse_key="k")])
async def test_who_resumes_is_not_shown_what_was_recalled_when_its_proof_had_no_row_yet(
    recall: Recall,
) -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        phone = await h.live("u1")
        await h.push(kept("u1", "p0"))
        phone.answer()
        await h.ends("p0", Outcome.RECEIVED, Reason.PONG)
        await h.push(kept("u1", "p1", collapse_key="k"))
        store.writing.clear()
        phone.answer()
        recalling = asyncio.create_task(h.core.recalls.recall(recall))
        await turns()
        store.writing.set()
        assert await recalling == Recalled(ended=0, sessions=1)
        assert frames(phone, "withdraw") == [{"type": "withdraw", "id": "p1"}]
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG), "the trail stays"
        assert "p1" not in ids(await h.live("u1", last="p0"))


async def test_a_recall_by_collapse_key_withdraws_what_a_screen_shows_as_well() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(kept("u1", "p1", collapse_key="k", tenant="t"))
        peer.answer()
        await until(lambda: all(row.final for row in h.store.rows.values()) and h.store.rows)
        recall = Recall(tenant="t", user="u1", collapse_key="k")
        assert await h.core.recalls.recall(recall) == Recalled(ended=0, sessions=1)
        assert frames(peer, "withdraw") == [{"type": "withdraw", "id": "p1", "tenant": "t"}]


async def test_a_recall_that_is_repeated_waits_for_what_the_first_try_has_ended() -> None:
    clock = ManualClock()
    store = GatedStore(clock)
    async with house(clock=clock, store=store) as h:
        await h.live("u1")
        await h.push(kept("u1", "p1"))
        store.writing.clear()
        store.fail_with = StoreUnavailable("stopped")
        with pytest.raises(StoreUnavailable):
            await h.core.recalls.recall(Recall(push_id="p1"))
        store.fail_with = None
        again = asyncio.create_task(h.core.recalls.recall(Recall(push_id="p1")))
        await turns()
        assert not again.done()
        store.writing.set()
        await again
        assert h.end("p1") == (Outcome.RECALLED, Reason.WITHDRAWN)


async def _passing(h: House, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            h.clock.advance(0.05)
            await asyncio.sleep(0)


async def test_while_the_database_is_down_those_who_resume_are_welcomed_so_many_at_a_time() -> None:
    h = House()
    for number in range(WELCOMES + 1):
        h.connect(f"u{number}", last="p1")
    h.clock.advance(60.0)
    assert len(h.core.pages._unwelcomed) == WELCOMES + 1
    h.core.pages.tick(h.clock.monotonic())
    assert len(h.core.pages._unwelcomed) == 1
    h.core.pages.tick(h.clock.monotonic())
    assert not h.core.pages._unwelcomed
