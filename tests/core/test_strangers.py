"""A token that comes as the first message: nobody has a session before it, and few may wait, for a short time."""

from __future__ import annotations

import asyncio
import json

import pytest

from bridge.core.errors import KeysUnavailable, TokenRefused
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal
from bridge.core.sessions.strangers import AUTH_SECONDS, STRANGERS_MAX, Stranger
from tests.support.house import House, house
from tests.support.ports import RecordingSocket
from tests.support.ports import access as access_of

ENVELOPE = Handshake("/ws", {}, None, None, ("bridge.v1.json",))
BARE = Handshake("/ws", {}, None, None, ())


class Verifier:
    """Tokens by what becomes of them."""

    def verify(self, token: str) -> Claims | asyncio.Future[Claims]:
        if token == "keyless":
            raise KeysUnavailable("none yet")
        if token == "waits":
            return asyncio.get_running_loop().create_future()
        if token != "good":
            raise TokenRefused("expired")
        return Claims("u1", 4e9)


def use(h: House) -> None:
    h.gateway._access = h.gateway.strangers._access = access_of(Verifier(), ())


def auth(token: str) -> str:
    return json.dumps({"type": "auth", "token": token})


def come(h: House, request: Handshake = ENVELOPE) -> tuple[Stranger, RecordingSocket]:
    grant = h.gateway.handshake(request)
    assert isinstance(grant, Grant)
    assert grant.claims is None
    socket = RecordingSocket()
    stranger = h.gateway.opened(grant, socket)
    assert isinstance(stranger, Stranger)
    return stranger, socket


def results(h: House) -> list[str]:
    return list(h.metrics.handshakes)


def said(socket: RecordingSocket) -> list[dict[str, object]]:
    return [json.loads(frame.payload) for frame in socket.frames]


@pytest.mark.parametrize("request_", [ENVELOPE, BARE])
async def test_before_the_token_there_is_no_session_and_after_it_there_is_one(request_: Handshake) -> None:
    async with house() as h:
        use(h)
        stranger, socket = come(h, request_)
        await h.push({"id": "p1", "to": {"all": True}, "data": 1})
        assert (list(h.hub), socket.frames, socket.pings, h.hooks.opened) == ([], [], [], [])
        assert results(h) == []
        assert h.gateway.strangers.waiting == 1
        stranger.message(auth(" good\n"))
        assert [session.user for session in h.hub] == ["u1"]
        assert [info.user for info in h.hooks.opened] == ["u1"]
        assert results(h) == ["opened"]
        assert h.gateway.strangers.waiting == 0
        await h.push({"id": "p2", "to": {"user": "u1"}, "data": 2})
        if request_ is ENVELOPE:
            assert [frame["type"] for frame in said(socket)] == ["welcome", "push"]
            stranger.message(auth("good"))
            assert said(socket)[-1]["code"] == "bad_frame"
        else:
            assert [frame.payload for frame in socket.frames] == [b"2"]
        stranger.pong(socket.pings[-1])
        stranger.became_writable()
        stranger.closed(1000, "")
        assert list(h.hub) == []
        assert len(h.hooks.closed) == 1
        h.advance(60)
        h.gateway.strangers.tick()
        assert results(h) == ["opened"]


@pytest.mark.parametrize(
    ("message", "reason", "why"),
    [
        (auth("bad"), CloseReason.TOKEN_REFUSED, "expired"),
        (auth(""), CloseReason.TOKEN_REFUSED, "expired"),
        (auth("keyless"), CloseReason.TRY_LATER, "no_keys"),
        (auth("waits"), CloseReason.TRY_LATER, "no_keys"),
        ('{"type": "ack", "id": "p1"}', CloseReason.TOKEN_REFUSED, "auth_frame"),
        ('{"type": "auth", "token": 7}', CloseReason.TOKEN_REFUSED, "auth_frame"),
        ("good", CloseReason.TOKEN_REFUSED, "auth_frame"),
        (b"\xff", CloseReason.TOKEN_REFUSED, "auth_frame"),
    ],
)
@pytest.mark.parametrize("request_", [ENVELOPE, BARE])
async def test_the_first_message_decides_and_nothing_after_it(
    message: str | bytes, reason: CloseReason, why: str, request_: Handshake
) -> None:
    async with house() as h:
        use(h)
        stranger, socket = come(h, request_)
        stranger.message(message)
        stranger.message(auth("good"))
        assert socket.closed_with is reason
        assert list(h.hub) == []
        assert results(h) == [why]
        kinds = [(frame["type"], frame.get("code")) for frame in said(socket)]
        assert kinds == ([("error", "refused"), ("bye", reason.code)] if request_ is ENVELOPE else [])
        stranger.closed(reason.code, "")
        assert (h.hooks.opened, h.hooks.closed, results(h)) == ([], [], [why])


async def test_who_says_nothing_within_five_seconds_is_closed_and_who_leaves_is_forgotten() -> None:
    async with house() as h:
        use(h)
        (_, first), (leaves, gone) = come(h), come(h)
        leaves.pong(b"")
        leaves.became_writable()
        leaves.closed(1006, "")
        h.advance(AUTH_SECONDS / 2)
        _, second = come(h)
        h.advance(AUTH_SECONDS / 2 - 0.1)
        h.gateway.strangers.tick()
        assert [first.closed_with, gone.closed_with] == [None, None]
        h.advance(0.1)
        h.gateway.strangers.tick()
        closed = [socket.closed_with for socket in (first, gone, second)]
        assert closed == [CloseReason.AUTH_TIMEOUT, None, None]
        assert results(h) == ["gone", "auth_timeout"]
        assert h.gateway.strangers.waiting == 1


async def test_only_so_many_may_wait() -> None:
    async with house() as h:
        use(h)
        assert h.gateway.strangers.most == STRANGERS_MAX
        h.gateway.strangers.most = 2
        first, _ = come(h)
        come(h)
        refused = h.gateway.handshake(ENVELOPE)
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.why) == (503, "strangers")
        first.message(auth("good"))
        come(h)


async def test_a_drain_sends_them_away_to_come_back() -> None:
    async with house() as h:
        use(h)
        (speaks, one), (_, other) = come(h), come(h)
        h.gateway._access.begin_drain()
        speaks.message(auth("good"))
        h.gateway.strangers.tick()
        assert (one.closed_with, other.closed_with) == (CloseReason.RESTART, CloseReason.RESTART)
        assert list(h.hub) == []
        assert results(h) == ["draining", "draining"]


async def test_the_mode_and_the_push_to_resume_from_are_those_of_the_handshake() -> None:
    async with house() as h:
        use(h)
        grant = h.gateway.handshake(Handshake("/ws", {"last": ["p9"]}, None, None, ("bridge.v1.json",)))
        assert grant == Grant(None, Mode.ENVELOPE, "bridge.v1.json", "p9")
