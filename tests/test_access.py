"""Who may open a session: every line of the table in `bridge.access`."""

from __future__ import annotations

import pytest

from bridge.access import Access
from bridge.errors import TokenRefused
from bridge.model import Claims, Grant, Handshake, Mode, Refusal


class OneToken:
    """Fills the TokenVerifier port: only "good" opens a session."""

    def verify(self, token: str) -> Claims:
        if token != "good":
            raise TokenRefused("signature")
        return Claims("u1", 100.0)


def shake(
    *,
    token: str | None = None,
    authorization: str | None = None,
    subprotocols: tuple[str, ...] = (),
    origin: str | None = None,
    last: str | None = None,
) -> Handshake:
    query: dict[str, list[str]] = {}
    if token is not None:
        query["token"] = [token]
    if last is not None:
        query["last"] = [last]
    return Handshake("/ws", query, origin, authorization, subprotocols)


def access(*origins: str) -> Access:
    return Access(OneToken(), origins)


@pytest.mark.parametrize(
    "request_",
    [
        shake(token="good"),
        shake(authorization="Bearer good"),
        shake(authorization="bearer  good "),
        shake(subprotocols=("bridge.token.good",)),
        shake(token="good", authorization="Bearer good"),
    ],
)
def test_a_good_token_opens_a_session_wherever_it_is_given(request_: Handshake) -> None:
    answer = access().decide(request_)
    assert isinstance(answer, Grant)
    assert answer.claims.user == "u1"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (shake(), "missing"),
        (shake(token=""), "missing"),
        (shake(authorization="Basic Z29vZA=="), "missing"),
        (shake(token="bad"), "signature"),
        (shake(token="good", authorization="Bearer bad"), "many"),
    ],
)
def test_no_stranger_gets_in(request_: Handshake, why: str) -> None:
    answer = access().decide(request_)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.why) == (401, why)


def test_the_token_is_never_echoed_as_a_subprotocol() -> None:
    answer = access().decide(shake(subprotocols=("bridge.token.good", "bridge.v1.json")))
    assert isinstance(answer, Grant)
    assert (answer.mode, answer.subprotocol) == (Mode.ENVELOPE, "bridge.v1.json")
    answer = access().decide(shake(subprotocols=("bridge.token.good",)))
    assert isinstance(answer, Grant)
    assert (answer.mode, answer.subprotocol) == (Mode.BARE, None)


def test_the_first_subprotocol_that_we_speak_is_taken() -> None:
    answer = access().decide(shake(token="good", subprotocols=("chat", "bridge.bare", "bridge.v1.json")))
    assert isinstance(answer, Grant)
    assert (answer.mode, answer.subprotocol) == (Mode.BARE, "bridge.bare")


def test_only_listed_origins_open_sessions_and_clients_without_one_do() -> None:
    guarded = access("https://app.example")
    assert isinstance(guarded.decide(shake(token="good", origin="https://app.example")), Grant)
    assert isinstance(guarded.decide(shake(token="good")), Grant)
    refused = guarded.decide(shake(token="good", origin="https://evil.example"))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.why) == (403, "origin")


def test_a_draining_bridge_refuses_everyone() -> None:
    gate = access()
    gate.draining = True
    refused = gate.decide(shake(token="good"))
    assert isinstance(refused, Refusal)
    assert refused.status == 503
