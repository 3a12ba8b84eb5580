"""A session goes on with a new token of its user, and ends with the last one that was good."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from bridge.core.errors import TokenRefused
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, CloseReason, Grant, Mode
from bridge.core.talking.refreshing import FORMER_MAX, FORMER_SECONDS
from tests.support.house import House, Peer, house
from tests.support.waiting import until

BEGAN = 1_000_000_000.0


class Tokens:
    """Fills the TokenVerifier port: `user until` is a token of that user, with the text as its id."""

    def verify(self, token: str) -> Claims:
        user, _, until_ = token.partition(" ")
        if not until_:
            raise TokenRefused("malformed")
        return Claims(user, BEGAN + float(until_), token, BEGAN)


async def come(h: House, token: str = "u1 600", mode: Mode = Mode.ENVELOPE) -> Peer:
    h.clock.now = BEGAN
    h.gateway._access._verifier = Tokens()
    peer = h.open(Grant(Tokens().verify(token), mode, mode.value))
    await until(lambda: peer.client.session.replay is None)
    return peer


def said(peer: Peer) -> list[dict[str, Any]]:
    return [frame for text in peer.socket.texts if (frame := json.loads(text))["type"] != "heartbeat"]


def at(h: House, seconds: float) -> None:
    h.clock.now = BEGAN + seconds
    h.core.every_second()


def refresh(peer: Peer, token: object, **more: object) -> dict[str, Any]:
    before = len(peer.socket.frames)
    peer.client.message(json.dumps({"type": "refresh", "token": token, **more}))
    (answer,) = [json.loads(text) for text in peer.socket.texts[before:]]
    assert isinstance(answer, dict)
    return answer


async def test_a_client_is_asked_in_good_time_and_goes_on_with_its_new_token() -> None:
    async with house() as h:
        peer = await come(h)
        at(h, 539.0)
        assert [f["type"] for f in said(peer)] == ["welcome"]
        at(h, 541.0)
        at(h, 542.0)
        assert [f["type"] for f in said(peer)] == ["welcome", "refresh"]
        assert refresh(peer, "u1 1200", ref=1) == {"type": "ok", "ref": 1}
        at(h, 601.0)
        assert peer.socket.closed_with is None
        at(h, 1141.0)
        assert [f["type"] for f in said(peer)] == ["welcome", "refresh", "ok", "refresh"]
        at(h, 1200.0)
        assert peer.socket.closed_with is CloseReason.TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("token", "code", "message"),
    [
        ("u2 1200", "refused", "token: it is not of this user"),
        ("u1 600", "refused", "token: it does not expire later than the one before"),
        ("nonsense", "refused", "The token was refused: malformed."),
        (7, "bad_frame", "token: expected a string, got a number"),
        (None, "bad_frame", "token: expected a string, got null"),
    ],
)
async def test_a_token_that_is_not_better_changes_nothing_and_the_session_ends_with_its_own(
    token: object, code: str, message: str
) -> None:
    async with house() as h:
        peer = await come(h)
        assert refresh(peer, token, ref="r") == {
            "type": "error",
            "code": code,
            "message": message,
            "ref": "r",
        }
        assert peer.client.session.user == "u1"
        at(h, 600.0)
        assert peer.socket.closed_with is CloseReason.TOKEN_EXPIRED


async def test_a_revoked_token_refreshes_nothing_and_a_refreshed_session_is_revoked_by_its_new_token() -> (
    None
):
    async with house() as h:
        peer = await come(h)
        await h.core.revoking.revoke(Revocation(token_id="u1 900"))
        assert refresh(peer, "u1 900")["message"] == "The token was refused: revoked."
        refresh(peer, "u1 1200")
        await h.core.revoking.revoke(Revocation(token_id="u1 600"))
        assert peer.socket.closed_with is None
        await h.core.revoking.revoke(Revocation(token_id="u1 1200"))
        assert peer.socket.closed_with is CloseReason.REVOKED


async def test_a_session_that_is_revoked_after_a_refresh_does_not_come_back_with_its_first_token() -> None:
    async with house() as h:
        peer = await come(h)
        refresh(peer, "u1 1200")
        await h.core.revoking.revoke(Revocation(session=peer.session_id))
        assert [h.core.revoked.covers(Tokens().verify(t)) for t in ("u1 600", "u1 1200")] == [True, True]


async def test_in_bare_mode_nobody_is_asked() -> None:
    async with house() as h:
        peer = await come(h, mode=Mode.BARE)
        at(h, 590.0)
        assert peer.socket.frames == []
        at(h, 600.0)
        assert peer.socket.closed_with is CloseReason.TOKEN_EXPIRED


async def test_the_session_may_do_what_the_new_token_says() -> None:
    class Permitting(Tokens):
        def verify(self, token: str) -> Claims:
            return structs.replace(super().verify(token), topics=("t",), subscribe=("s",), publish=("p",))

    async with house() as h:
        peer = await come(h)
        before = peer.client.session.claims
        assert (before.topics, before.subscribe, before.publish) == ((), (), ())
        h.gateway._access._verifier = Permitting()
        assert refresh(peer, "u1 1000")["type"] == "ok"
        after = peer.client.session.claims
        assert (after.topics, after.subscribe, after.publish) == (("t",), ("s",), ("p",))


async def test_a_session_has_only_so_many_tokens_that_are_still_good() -> None:
    async with house() as h:
        peer = await come(h, "u1 1000")
        for n in range(1, FORMER_MAX + 1):
            assert refresh(peer, f"u1 {1000 + 100 * n}")["type"] == "ok"
        answer = refresh(peer, "u1 9000")
        assert (answer["type"], answer["code"]) == ("error", "refused")
        assert "send it later" in answer["message"]
        assert len(peer.client.session.former) == FORMER_MAX
        at(h, 1000.0 + FORMER_SECONDS)
        assert refresh(peer, "u1 9000")["type"] == "ok"
        assert len(peer.client.session.former) == FORMER_MAX
