"""One push to everyone: frames first, rows after, and every promise of a push to one user all the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.broker import Arrival
from bridge.core.ports.sockets import Frame
from tests.support.house import House, Peer, house, to
from tests.support.ports import arrival
from tests.support.waiting import turns, until

USERS = 600


def publish(h: House, excluded: Sequence[str] = (), **more: object) -> None:
    body = {"id": "p1", "to": {"all": True, "except": excluded}, "data": 1, **more}
    h.intake.arrived([arrival(json.dumps(body).encode(), arrived_at=h.clock.now)])


@asynccontextmanager
async def opened() -> AsyncIterator[House]:
    """A house that knows all ids of the last day: a push with another id is new, and takes the short way."""
    async with house() as h:
        h.recollection.began(1)
        h.remembered.complete = True
        yield h


async def crowd(h: House, users: int = USERS) -> list[Peer]:
    return [await h.live(f"u{number}") for number in range(users)]


async def sent(peers: list[Peer]) -> None:
    """Let the loop run until all of them have the push, and no further."""
    while not all(peer.pushes for peer in peers):
        await asyncio.sleep(0)


@pytest.mark.parametrize("confirm", ["written", "received"])
async def test_everyone_has_the_frame_before_the_first_row_is_written(confirm: str) -> None:
    async with opened() as h:
        peers = await crowd(h)
        publish(h, confirm=confirm)
        while len(h.store.rows) < USERS:
            assert not h.store.rows or all(peer.pushes for peer in peers)
            for peer in peers:
                peer.answer()
            h.clock.advance(0.001)
            await asyncio.sleep(0)
        await h.settled(1)
        assert all(len(peer.pushes) == 1 for peer in peers)
        expected = (Outcome.WRITTEN, Reason.HANDED_OVER)
        if confirm == "received":
            expected = (Outcome.RECEIVED, Reason.PONG)
        for number in range(USERS):
            row = h.row("p1", f"u{number}")
            assert ((row.outcome, row.reason), row.sessions, row.attempts) == (expected, 1, 1)
        account = h.inflight.account()
        assert (account.begun, account.with_row, account.on_their_way) == (USERS, USERS, 0)
        assert (h.inflight.busy, len(h.acks.acked)) == (0, 1)


async def test_rows_do_not_wait_for_ever_while_a_push_to_everyone_is_sent() -> None:
    async with opened() as h:
        peer = await h.live("u1")
        h.worklist.hold(h.clock.mono + 0.5)
        await h.push(to("u1", "before", confirm="written"))
        h.clock.advance(0.4)
        await turns()
        assert (len(peer.pushes), len(h.store.rows)) == (1, 0)
        h.clock.advance(0.2)
        await h.settled(1)
        assert h.end("before") == (Outcome.WRITTEN, Reason.HANDED_OVER)


async def test_rows_are_not_held_again_before_they_are_written() -> None:
    async with opened() as h:
        await h.live("u1")
        with h.worklist.holding(h.clock.mono + 0.5):
            await h.push(to("u1", "before", confirm="written"))
        began = h.clock.mono
        with h.worklist.holding(began + 0.5):
            await h.settled(1)
        assert h.clock.mono - began < 0.1
        assert h.end("before") == (Outcome.WRITTEN, Reason.HANDED_OVER)


async def test_a_recall_finds_what_was_sent_and_has_no_flight_yet() -> None:
    async with opened() as h:
        peers = await crowd(h)
        publish(h, confirm="written")
        await sent(peers)
        assert h.inflight.busy < USERS
        recalled = await h.core.recalls.recall(Recall(push_id="p1"))
        assert (recalled.ended, recalled.sessions) == (0, USERS)
        assert all(b'"withdraw"' in peer.socket.texts[-1] for peer in peers)
        await h.settled(1)
        for number in range(USERS):
            assert h.end("p1", f"u{number}") == (Outcome.WRITTEN, Reason.HANDED_OVER)


async def test_a_peer_that_leaves_after_the_frame_and_before_the_row_has_its_row() -> None:
    async with opened() as h:
        peers = await crowd(h)
        publish(h, confirm="written")
        await sent(peers)
        peers[-1].leave()
        peers[0].leave()
        await h.settled(1)
        for number in (0, USERS - 1):
            assert h.end("p1", f"u{number}") == (Outcome.WRITTEN, Reason.HANDED_OVER)


@pytest.mark.parametrize("confirm", ["written", "received"])
async def test_who_cannot_take_it_at_once_gets_it_like_any_other_push(confirm: str) -> None:
    async with opened() as h:
        first, second = await h.live("two"), await h.live("two", Mode.BARE)
        left_out, full, gone = await h.live("left out"), await h.live("full"), await h.live("gone")
        full.socket.stuffed = True
        await h.push(to("full", "before"))
        replaying = h.connect("replaying")
        # Its socket is closing, and nobody has been told.
        gone.socket.open = False
        publish(h, [left_out.session_id], confirm=confirm)
        await turns()
        gone.leave()
        full.socket.stuffed = False
        full.client.became_writable()
        await turns()
        for peer in (first, second, replaying, full):
            peer.answer()
        await h.settled(2)
        assert [p["id"] for p in full.pushes] == ["before", "p1"]
        assert (len(first.pushes), len(second.socket.texts), len(replaying.pushes)) == (1, 1, 1)
        assert (left_out.pushes, gone.pushes) == ([], [])
        delivered = Outcome.WRITTEN if confirm == "written" else Outcome.RECEIVED
        assert [h.row("p1", user).outcome for user in ("two", "full", "replaying")] == [delivered] * 3
        assert h.row("p1", "two").sessions == h.row("p1", "two").attempts == 2
        assert h.end("p1", "left out") == (Outcome.OFFLINE, Reason.EXCLUDED)
        assert h.end("p1", "gone") == (Outcome.OFFLINE, Reason.LEFT_BEFORE_SEND)


async def test_what_was_taken_before_goes_out_before() -> None:
    async with opened() as h:
        peers = await crowd(h, 3)
        h.intake.arrived([arrival(json.dumps(to(f"u{n}", "p0")).encode()) for n in range(3)])
        publish(h)
        await turns()
        for _ in range(2):
            for peer in peers:
                peer.answer()
        await h.settled(4)
        assert all([p["id"] for p in peer.pushes] == ["p0", "p1"] for peer in peers)


async def test_what_comes_after_a_push_to_a_crowd_does_not_wait_for_it() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h)
        publish(h, id="p3")
        h.intake.arrived([arrival(json.dumps(to("u499", "p2")).encode())])
        while not peers[499].pushes:
            await asyncio.sleep(0)
        assert [p["id"] for p in peers[499].pushes] == ["p2"]
        assert h.intake.waiting >= 1, "they are taken one at a time"
        await turns()
        assert [p["id"] for p in peers[499].pushes] == ["p2", "p1", "p3"]


async def test_what_has_the_id_of_a_push_to_a_crowd_is_taken_after_it() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h)
        h.intake.arrived([arrival(json.dumps(to("u499", "p1", data=2)).encode())])
        await turns()
        for peer in peers:
            peer.answer()
        await h.settled(2)
        assert [(p["id"], p["data"]) for p in peers[499].pushes] == [("p1", 1)]
        assert len(h.store.rows) == 500
        assert h.end("p1", "u499") == (Outcome.RECEIVED, Reason.PONG)


async def test_what_has_the_id_of_a_batch_that_follows_a_push_to_a_crowd_is_taken_after_that_batch() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h)
        while not h.core.crowds.busy:
            await asyncio.sleep(0)
        batch = [to("u499", "p1", data=2), to("u499", "p2", data=3)]
        last = to("u499", "p2", data=4)
        h.intake.arrived([arrival(json.dumps(body).encode()) for body in (batch, last)])
        await turns()
        assert [(p["id"], p["data"]) for p in peers[499].pushes] == [("p1", 1), ("p2", 3)]


async def test_messages_for_a_crowd_that_wait_go_back_with_their_channel_and_on_demand() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h)
        publish(h, id="p2")
        await sent(peers[:1])
        assert h.intake.waiting == 1
        assert len(h.intake.give_back(1)) == 1
        assert h.intake.waiting == 0
        publish(h, id="p3")
        while not h.intake.waiting:
            await asyncio.sleep(0)
        h.intake.channel_lost(1)
        assert h.intake.waiting == 0
        await turns()
        assert [p["id"] for p in peers[499].pushes] == ["p1"], "what was being taken went on"
        again = {"id": "p3", "to": {"all": True}, "data": 1}
        h.intake.arrived([arrival(json.dumps(again).encode(), incarnation=2, redelivered=True)])
        await turns()
        for _ in range(2):
            for peer in peers:
                peer.answer()
        await until(lambda: len(h.store.rows) == 1_000)
        assert [p["id"] for p in peers[499].pushes] == ["p1", "p3"]


def by_name(user: str, push_id: str, **more: Any) -> Arrival:
    """A push to one user, with these properties of its message; `tenant` is the request's."""
    body = {**to(user, push_id), "tenant": more.pop("tenant", "t")}
    return arrival(json.dumps(body).encode(), **more)


async def test_a_push_that_settles_in_the_lane_is_not_sent_again_though_a_look_up_began_before() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h, confirm="written", tenant="t")
        while not h.store.rows:
            h.clock.advance(0.0001)
            await asyncio.sleep(0)
        user = next(iter(h.store.rows)).user
        asked, going_on = asyncio.Event(), asyncio.Event()
        find = h.store.find

        async def slow(keys: Sequence[RowKey]) -> Sequence[Row]:
            asked.set()
            await going_on.wait()
            return await find(keys)

        h.store.find = slow  # type: ignore[method-assign]
        h.intake.arrived([by_name("nobody", "p0", redelivered=True), by_name(user, "p1")])
        await asked.wait()
        while h.core.crowds.busy:
            h.clock.advance(0.001)
            await asyncio.sleep(0)
        going_on.set()
        await h.settled(3)
        assert [push["id"] for push in peers[int(user[1:])].pushes] == ["p1"]


async def test_another_tenants_id_changes_no_order() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h, id="1", tenant="a")
        h.intake.arrived([by_name("u499", push_id, tenant="b") for push_id in "123"])
        await sent(peers)
        await turns()
        mine = [push["id"] for push in peers[499].pushes if push["tenant"] == "b"]
        assert mine == ["1", "2", "3"]


async def test_a_message_that_may_have_killed_a_process_is_taken_alone_also_beside_crowds() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h, id="c1")
        body = {"id": "c2", "to": {"all": True}, "data": 1}
        suspect = arrival(json.dumps(body).encode(), delivery_count=6, redelivered=True)
        h.intake.arrived([suspect, by_name("u499", "after")])
        while len(peers[499].pushes) < 3:
            await asyncio.sleep(0)
        assert suspect.token in h.acks.acked
        assert [push["id"] for push in peers[499].pushes] == ["c1", "c2", "after"]


@pytest.mark.parametrize("what", ["stop", "channel lost", "given back"])
async def test_a_suspect_that_waits_for_the_lane_holds_up_no_stop_and_goes_back_with_its_channel(
    what: str,
) -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h, id="c1")
        publish(h, id="c2")
        suspect = by_name("u1", "s", delivery_count=6, redelivered=True)
        h.intake.arrived([suspect])
        await sent(peers[:1])
        await turns(2)
        if what == "stop":
            await asyncio.wait_for(h.intake.stop(), 5)
        elif what == "given back":
            assert suspect.token in h.intake.give_back(1)
        else:
            h.intake.channel_lost(1)
        await turns()
        assert "s" not in [push["id"] for push in peers[1].pushes]
        assert suspect.token not in h.acks.acked


async def test_the_channel_is_widened_only_when_the_lane_has_taken_something() -> None:
    async with opened() as h:
        peers = await crowd(h, 3)
        h.acks.wide = False
        publish(h)
        while not h.acks.wide:
            await asyncio.sleep(0)
        assert any(peer.pushes for peer in peers)


async def test_a_recall_in_the_middle_reaches_all_who_got_it_and_all_who_would() -> None:
    async with opened() as h:
        peers = await crowd(h, 500)
        publish(h)
        await sent(peers[:1])
        recalling = asyncio.create_task(h.core.recalls.recall(Recall(push_id="p1")))
        await h.settled(1)
        assert (await recalling).ended == 500
        told = [any(b'"withdraw"' in text for text in peer.socket.texts) for peer in peers]
        assert [bool(peer.pushes) for peer in peers] == told


async def test_kept_pushes_for_everyone_are_kept_for_who_gives_no_proof() -> None:
    async with opened() as h:
        proven, silent = await crowd(h, 2)
        publish(h, ttl=60)
        await turns()
        proven.answer()
        h.advance(6)
        await h.settled(1)
        assert h.end("p1", "u0") == (Outcome.RECEIVED, Reason.PONG)
        assert h.row("p1", "u1").outcome is Outcome.STORED
        silent.leave()
        back = await h.live("u1")
        back.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG, "u1")
        assert [p["id"] for p in back.pushes] == ["p1"]


async def test_a_defect_on_the_way_costs_the_message_and_no_row_of_who_has_the_push() -> None:
    async with opened() as h:
        peers = await crowd(h)
        sound = peers[400].socket.write

        def broken(frames: Sequence[Frame], ping: bytes | None) -> bool:
            peers[400].socket.write = sound  # type: ignore[method-assign]
            raise ZeroDivisionError

        peers[400].socket.write = broken  # type: ignore[method-assign]
        publish(h, confirm="written")
        while len(h.store.rows) < 400:
            h.clock.advance(0.001)
            await asyncio.sleep(0)
        assert len(h.acks.requeued) == 1
        assert [bool(peer.pushes) for peer in peers] == [True] * 400 + [False] * 200
        assert {row.outcome for row in h.store.rows.values()} == {Outcome.WRITTEN}
