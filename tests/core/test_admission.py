"""How many may come in: each bound is met by the last who may, and missed by the next."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.core.model.ledger import Device
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal
from bridge.core.sessions.admission import AdmissionLimits, SessionsOver
from tests.support.house import House, Peer
from tests.support.waiting import turns


def asked(h: House, address: str = "192.0.2.1") -> str:
    """Why a handshake is refused, or `opened`."""
    request = Handshake("/ws", {"token": ["u1"]}, None, None, (), device=Device(address))
    answer = h.gateway.handshake(request)
    if isinstance(answer, Refusal):
        return f"{answer.status} {answer.why}"
    assert isinstance(answer, Grant)
    return "opened"


def come(h: House, user: str = "u1", address: str = "192.0.2.1") -> Peer:
    return h.open(
        Grant(Claims(user, 4e9, "t", 1.0), Mode.ENVELOPE, Mode.ENVELOPE.value, device=Device(address))
    )


def limited(**limits: Any) -> House:
    made = House(admission=AdmissionLimits(**limits))
    made.core.revoked.token_seconds = 1e10
    return made


async def test_sessions_in_all() -> None:
    h = limited(sessions=2)
    first = come(h, "u1")
    assert asked(h) == "opened"
    come(h, "u2")
    assert asked(h) == "503 full"
    first.leave()
    assert asked(h) == "opened"


async def test_handshakes_a_second_those_of_one_second_at_once() -> None:
    h = limited(handshakes_per_second=10.0)
    assert [asked(h) for _ in range(12)] == ["opened"] * 10 + ["503 rate"] * 2
    h.clock.advance(0.1)
    assert [asked(h) for _ in range(2)] == ["opened", "503 rate"]
    h.clock.advance(60.0)
    assert [asked(h) for _ in range(11)] == ["opened"] * 10 + ["503 rate"]


async def test_sessions_from_one_address_and_of_ipv6_from_one_network() -> None:
    h = limited(of_address=2)
    first = come(h, "u1", "192.0.2.1")
    come(h, "u2", "192.0.2.1")
    assert asked(h, "192.0.2.1") == "429 address_sessions"
    assert asked(h, "192.0.2.2") == "opened"
    first.leave()
    first.leave()
    assert asked(h, "192.0.2.1") == "opened"
    for n in (1, 2):
        come(h, f"v{n}", f"2001:db8:0:1::{n}")
    assert asked(h, "2001:db8:0:1:ffff::9") == "429 address_sessions"
    assert asked(h, "2001:db8:0:2::1") == "opened"


@pytest.mark.parametrize(
    ("limits", "how"), [({"sessions": 2}, CloseReason.TRY_LATER), ({"of_address": 2}, CloseReason.OVER_LIMIT)]
)
async def test_of_those_who_were_let_in_at_the_same_moment_only_so_many_stay(
    limits: dict[str, int], how: CloseReason
) -> None:
    h = limited(**limits)
    assert [asked(h) for _ in range(4)] == ["opened"] * 4  # nobody is here yet
    peers = [come(h, f"u{n}") for n in range(4)]
    assert [peer.socket.closed_with for peer in peers] == [None, None, how, how]
    peers[0].leave()
    assert asked(h) == "opened"


async def test_a_user_s_oldest_session_makes_room_for_the_newest() -> None:
    h = limited(of_user=2)
    peers = [come(h) for _ in range(3)]
    other = come(h, "u2")
    assert [p.socket.closed_with for p in (*peers, other)] == [CloseReason.REPLACED, None, None, None]
    assert asked(h) == "opened"


async def test_or_the_next_one_of_a_user_is_refused() -> None:
    h = limited(of_user=2, over=SessionsOver.REFUSE)
    peers = [come(h) for _ in range(2)]
    assert asked(h) == "429 user_sessions"
    peers[0].leave()
    assert asked(h) == "opened"


async def test_who_sends_too_much_is_told_and_closed() -> None:
    h = House()
    peer = come(h)
    peer.client.flooded()
    peer.client.flooded()
    assert peer.socket.closed_with is CloseReason.OVER_LIMIT
    assert peer.socket.texts[-1] == b'{"type":"bye","code":4429,"reason":"over_limit","retry_after":0.0}'
    await turns()


@pytest.mark.parametrize("address", ["", "192.0.2.1", "::1"])
async def test_nothing_is_counted_where_nothing_is_bounded(address: str) -> None:
    h = House()
    come(h, address=address).leave()
    assert not h.core.admission._from
    assert not h.core.admission._sessions
