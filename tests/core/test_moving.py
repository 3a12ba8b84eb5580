"""Sessions that are asked to move on: at a stop all of them, at a rate; otherwise each when its lifetime is over."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from bridge.core.contract.letters import Forwarded, encode_letter
from bridge.core.delivery.moving import PATIENCE
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.sessions import CloseReason
from bridge.core.sessions.departures import AT_ANY_RATE, BURST, DITHER, LONGEST, Pace, waits
from bridge.core.sessions.lifetimes import SHARE_LEAST, SPARED, Lifetimes
from tests.support.house import House, Peer, house, to


def bye(peer: Peer) -> tuple[str, float] | None:
    """The reason that it was told, and the seconds to wait; None while it is open."""
    last = json.loads(peer.socket.frames[-1].payload) if peer.socket.frames else {}
    return (last["reason"], last["retry_after"]) if last.get("type") == "bye" else None


def closed(peers: Sequence[Peer]) -> list[bool]:
    return [bye(peer) is not None for peer in peers]


async def crowd(h: House, count: int) -> list[Peer]:
    return [await h.live(f"u{n}") for n in range(count)]


# --- a stop ------------------------------------------------------------------------------------------------


async def test_a_stop_closes_sessions_at_the_rate() -> None:
    async with house(drain_rate=10.0) as h:
        peers = await crowd(h, 30)
        h.gate.shut("draining", "")
        h.advance(5)
        assert not any(closed(peers))
        h.core.moving.everybody(patient=True)
        gone = []
        for _ in range(3):
            h.advance(1)
            gone.append(sum(closed(peers)))
        assert 10 <= gone[0] <= 13
        assert 20 <= gone[1] <= 23
        assert gone[2] == 30
        assert (len(h.core.moving), h.core.moving.closed) == (0, 30)
        told = [bye(peer) for peer in peers]
        assert {one[0] for one in told if one} == {"restart"}
        assert all(one and 1.0 <= one[1] <= 1.0 + DITHER for one in told)


async def test_a_session_gets_pushes_until_its_turn_and_its_turn_waits_for_the_proof() -> None:
    async with house(drain_rate=1.0) as h:
        peers = await crowd(h, 2)
        h.core.moving.everybody(patient=True)
        await h.push(to("u0", "p1"))
        h.advance(3)
        assert closed(peers) == [False, True]
        peers[0].answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG, "u0")
        h.advance(1)
        assert closed(peers) == [True, True]


async def test_its_turn_waits_for_an_ack_as_well() -> None:
    async with house(drain_rate=100.0) as h:
        (peer,) = await crowd(h, 1)
        await h.push(to("u0", "p1", confirm="acked", ack_within=60))
        h.core.moving.everybody(patient=True)
        peer.answer()
        h.advance(3)
        assert closed([peer]) == [False]
        peer.client.message(json.dumps({"type": "ack", "id": "p1"}))
        await h.ends("p1", Outcome.ACKED, Reason.ACK_FRAME, "u0")
        h.advance(0.1)
        assert closed([peer]) == [True]


async def test_its_turn_waits_for_the_proof_of_what_another_node_forwarded() -> None:
    async with house(drain_rate=100.0) as h:
        (peer,) = await crowd(h, 1)
        h.core.moving.everybody(patient=True)
        here = Forwarded(1, ["u0"], "", "", "p1", "", "json", b"1", int(Proof.RECEIVED), [], "", 5, None)
        h.core.from_nodes.came(encode_letter("another boot", [here]))
        assert [push["id"] for push in peer.pushes] == ["p1"]
        h.advance(3)
        assert closed([peer]) == [False]
        peer.answer()
        h.advance(0.1)
        assert closed([peer]) == [True]


async def test_a_session_that_is_silent_for_too_long_is_not_waited_for() -> None:
    async with house(drain_rate=1.0, confirm_timeout=5.0) as h:
        (peer,) = await crowd(h, 1)
        await h.push(to("u0", "p1"))
        h.core.moving.everybody(patient=True)
        h.advance(4.5)
        assert closed([peer]) == [False]
        h.advance(1)
        await h.ends("p1", Outcome.UNKNOWN, Reason.NO_PROOF, "u0")
        h.advance(1)
        assert closed([peer]) == [True]


async def test_nobody_is_waited_for_where_nothing_can_be_settled() -> None:
    async with house() as h:
        peers = await crowd(h, 1)
        await h.push(to("u0", "p1"))
        h.core.moving.everybody(patient=False)
        h.advance(0.1)
        assert closed(peers) == [True]


async def test_a_session_that_leaves_by_itself_is_nobody_to_wait_for() -> None:
    async with house(drain_rate=0.01) as h:
        peers = await crowd(h, 3)
        h.core.moving.everybody(patient=True)
        h.advance(0.1)
        assert sum(closed(peers)) == 1
        for peer in peers:
            peer.leave()
        h.advance(0.1)
        assert (len(h.core.moving), h.core.moving.closed) == (0, 1)


async def test_those_that_are_left_at_the_end_come_back_one_after_the_other() -> None:
    async with house(drain_rate=10.0) as h:
        peers = await crowd(h, 30)
        h.core.moving.everybody(patient=True)
        h.advance(0.1)
        before = sum(closed(peers))
        left = list(h.core.moving.the_rest())
        assert len(left) == 30 - before
        assert all(closed(peers))
        told = sorted(one[1] - 1.0 for one in map(bye, peers[before:]) if one)
        assert [int(wait * 10) for wait in told] == list(range(len(left)))


async def test_without_a_rate_all_are_closed_at_once() -> None:
    async with house(drain_rate=0.0) as h:
        peers = await crowd(h, 20)
        h.core.moving.everybody(patient=True)
        h.advance(0.1)
        assert all(closed(peers))


@pytest.mark.parametrize(
    ("sessions", "rate", "spread"), [(100, 50.0, 2.0), (100, 0.0, AT_ANY_RATE), (100, 0.1, LONGEST)]
)
def test_waits_are_spread_by_the_rate_and_bounded(sessions: int, rate: float, spread: float) -> None:
    made = list(waits(sessions, rate))
    slot = spread / sessions
    assert all(n * slot <= wait <= (n + 1) * slot for n, wait in enumerate(made))
    assert list(waits(0, rate)) == []


def test_a_pace_does_not_make_up_for_what_it_was_not_asked() -> None:
    pace = Pace(100.0, 0.0)
    assert pace.room(10.0, 1000) == 100 * BURST
    pace.closed(25)
    assert pace.room(10.125, 1000) == 12


def test_a_slow_pace_is_kept_over_many_looks() -> None:
    pace, gone = Pace(0.5, 0.0), 0
    for look in range(101):
        room = pace.room(look / 10, 5)
        pace.closed(room)
        gone += room
    assert gone == 1 + 5


# --- a lifetime --------------------------------------------------------------------------------------------


async def test_each_session_moves_on_at_a_time_of_its_own_around_the_lifetime() -> None:
    async with house(session_lifetime=100.0) as h:
        peers = await crowd(h, 200)
        gone = []
        for _ in range(14):
            h.advance(10)
            for peer, left in zip(peers, closed(peers), strict=True):
                if not left:
                    peer.answer()
            gone.append(sum(closed(peers)))
        assert gone[int(100 * SHARE_LEAST / 10) - 1] == 0
        assert gone[-1] == 200
        assert 60 < gone[9] < 140, "about half of them by the lifetime itself"
        told = [bye(peer) for peer in peers]
        assert {one[0] for one in told if one} == {"move_on"}
        assert all(one and 0.0 <= one[1] <= DITHER for one in told)
        assert {peer.socket.closed_with for peer in peers} == {CloseReason.MOVE_ON}
        assert len({one[1] for one in told if one}) > 100, "they do not come back in step"


def test_without_a_lifetime_nobody_is_moved_and_nothing_is_kept() -> None:
    lifetimes = Lifetimes(0.0)
    lifetimes.opened("s1", 0.0, ["s1"])
    assert len(lifetimes) == 0
    assert lifetimes.over(1e9) == []


async def test_a_session_waits_for_a_proof_before_it_moves_on_but_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda least, most: (least + most) / 2)
    async with house(session_lifetime=100.0, confirm_timeout=60.0) as h:
        quick, mute = await crowd(h, 2)
        for _ in range(9):
            h.advance(11)
            quick.answer()
            mute.answer()
        await h.push(to("u0", "p1"))
        await h.push(to("u1", "p2"))
        h.advance(5)
        assert closed([quick, mute]) == [False, False]
        quick.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG, "u0")
        h.advance(0.1)
        assert closed([quick, mute]) == [True, False]
        h.advance(PATIENCE - 5)
        assert closed([mute]) == [False]
        h.advance(2)
        assert closed([mute]) == [True]


async def test_nobody_moves_on_while_the_node_is_not_ready_and_then_all_at_the_rate() -> None:
    async with house(session_lifetime=10.0, drain_rate=10.0) as h:
        peers = await crowd(h, 30)
        h.gate.shut("database", "it is down")
        h.advance(15)
        assert not any(closed(peers))
        assert len(h.core.moving) == 30
        for peer in peers[20:]:
            peer.leave()
        h.advance(0.1)
        assert len(h.core.moving) == 20, "who has left is forgotten"
        h.gate.clear("database")
        h.advance(1)
        assert 10 <= sum(closed(peers)) <= 13


def test_entries_of_sessions_that_left_do_not_pile_up() -> None:
    lifetimes = Lifetimes(1000.0)
    for n in range(10 * SPARED):
        lifetimes.opened(f"s{n}", float(n) / 100, [f"s{n}"])
    assert len(lifetimes) <= SPARED + 3
