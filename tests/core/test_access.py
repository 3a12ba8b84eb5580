"""Who may open a session: every line of the table in `bridge.core.sessions.access`."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.errors import KeysUnavailable, TokenRefused
from bridge.core.model.sessions import Claims, Grant, Handshake, Mode, Refusal
from bridge.core.sessions.access import Access, Undecided
from tests.support.ports import ManualClock
from tests.support.ports import access as access_of


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
    cookie: str | None = None,
) -> Handshake:
    query: dict[str, list[str]] = {}
    if token is not None:
        query["token"] = [token]
    if last is not None:
        query["last"] = [last]
    return Handshake("/ws", query, origin, authorization, subprotocols, cookie)


def access(*origins: str) -> Access:
    return access_of(OneToken(), origins)


@pytest.mark.parametrize(
    "request_",
    [
        shake(token="good"),
        shake(authorization="Bearer good"),
        shake(authorization="bearer  good "),
        shake(authorization="BEARER\tgood"),
        shake(subprotocols=("bridge.token.good", "bridge.v1.json")),
        shake(subprotocols=("bridge.bare", "bridge.token.good")),
        shake(token="good", authorization="Bearer good"),
        shake(token="good", authorization="Bearer good", subprotocols=("bridge.bare", "bridge.token.good")),
        shake(token="good\n"),
    ],
)
def test_a_good_token_opens_a_session_wherever_it_is_given(request_: Handshake) -> None:
    answer = access().decide(request_)
    assert isinstance(answer, Grant)
    assert answer.claims is not None
    assert answer.claims.user == "u1"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (shake(token=""), "missing"),
        (shake(authorization="Basic Z29vZA=="), "missing"),
        (shake(authorization="good"), "missing"),
        (shake(authorization="Bearer "), "missing"),
        (shake(authorization=""), "missing"),
        (shake(authorization="Bearer good good"), "signature"),
        (shake(token="bad"), "signature"),
        (shake(token="good", authorization="Bearer bad"), "many"),
    ],
)
def test_no_stranger_gets_in(request_: Handshake, why: str) -> None:
    answer = access().decide(request_)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.why) == (401, why)


def test_without_a_token_nobody_is_let_in_yet_where_the_first_message_may_bring_it() -> None:
    assert access().decide(shake()) == Grant(None, Mode.BARE, None)
    asked = shake(subprotocols=("bridge.v1.json",), last="p1")
    assert access().decide(asked) == Grant(None, Mode.ENVELOPE, "bridge.v1.json", "p1")
    no_frame = access_of(OneToken(), (), token_from=("authorization", "query"))
    refused = no_frame.decide(shake())
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.why) == (401, "missing")
    assert "in the header Authorization with the scheme Bearer, or in the query" in refused.text


CARRIED = {
    "authorization": shake(authorization="Bearer good"),
    "subprotocol": shake(subprotocols=("bridge.token.good", "bridge.v1.json")),
    "query": shake(token="good"),
    "cookie": shake(origin="https://app.example", cookie="a=b; jar=good"),
}


@pytest.mark.parametrize("carrier", CARRIED)
def test_each_carrier_can_be_switched_off(carrier: str) -> None:
    app = ("https://app.example",)
    for others in ((), ("frame",)):
        allowed = [each for each in CARRIED if each != carrier]
        off = access_of(OneToken(), app, token_from=(*allowed, *others), cookie="jar")
        refused = off.decide(CARRIED[carrier])
        if carrier == "cookie" and others:
            assert refused == Grant(None, Mode.BARE, None), "browsers send cookies by themselves"
            continue
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.why) == (401, "missing" if carrier == "cookie" else "carrier")
        assert "good" not in refused.text
    on = access_of(OneToken(), app, token_from=(carrier,), cookie="jar")
    granted = on.decide(CARRIED[carrier])
    assert isinstance(granted, Grant)
    assert granted.claims == Claims("u1", 100.0)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (shake(origin="https://app.example", cookie='jar="good"'), "granted"),
        (shake(origin="https://app.example", cookie="jar=good; jar=good"), "granted"),
        (shake(origin="https://app.example", cookie="jar=good; jar=bad"), "many"),
        (shake(origin="https://app.example", cookie="jar=bad"), "signature"),
        (shake(origin="https://evil.example", cookie="jar=good"), "origin"),
        (shake(cookie="jar=good"), "origin"),
        (shake(origin="https://app.example", cookie="Jar=good; jars=good; xjar=good; jar"), "missing"),
        (shake(origin="https://app.example", cookie="jar=other", token="good"), "granted"),
        (shake(cookie="jar=other", token="good"), "granted"),
    ],
)
def test_a_cookie_counts_only_from_listed_origins_and_only_without_another_token(
    request_: Handshake, expected: str
) -> None:
    jar = access_of(OneToken(), ("https://app.example",), token_from=("query", "cookie"), cookie="jar")
    answer = jar.decide(request_)
    if expected == "granted":
        assert isinstance(answer, Grant)
    else:
        assert isinstance(answer, Refusal)
        assert (answer.status, answer.why) == (403 if expected == "origin" else 401, expected)


def test_the_token_is_never_echoed_as_a_subprotocol() -> None:
    answer = access().decide(shake(subprotocols=("bridge.token.good", "bridge.v1.json")))
    assert isinstance(answer, Grant)
    assert (answer.mode, answer.subprotocol) == (Mode.ENVELOPE, "bridge.v1.json")


@pytest.mark.parametrize(
    "offered",
    [("bridge.token.good",), ("chat",), ("bridge.v2.json", "bridge.token.good"), ("BRIDGE.V1.JSON",)],
)
def test_a_browser_that_offers_nothing_we_speak_is_told_what_to_offer(offered: tuple[str, ...]) -> None:
    refused = access().decide(shake(token="good", subprotocols=offered))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.why) == (400, "subprotocol")
    assert "offer bridge.v1.json or bridge.bare too" in refused.text


def test_who_offers_no_subprotocol_gets_the_bare_data() -> None:
    answer = access().decide(shake(token="good"))
    assert isinstance(answer, Grant)
    assert (answer.mode, answer.subprotocol) == (Mode.BARE, None)


def test_one_token_in_two_spellings_of_base64_is_one_token() -> None:
    seen: list[str] = []

    class Noting(OneToken):
        def verify(self, token: str) -> Claims:
            seen.append(token)
            return Claims("u1", 100.0)

    answer = access_of(Noting(), ()).decide(shake(token="a =.b/.c", authorization="Bearer a-.b_.c"))
    assert isinstance(answer, Grant)
    assert seen in (["a+=.b/.c"], ["a-.b_.c"])


def test_the_reason_of_the_verifier_is_told_with_its_words() -> None:
    class Explaining:
        def verify(self, token: str) -> Claims:
            raise TokenRefused("malformed", "exp is no number")

    refused = access_of(Explaining(), ()).decide(shake(token="t"))
    assert refused == Refusal(401, "malformed", "The token was refused: malformed (exp is no number).")


def test_while_there_are_no_keys_whoever_needs_one_is_told_to_come_back() -> None:
    class Keyless:
        def verify(self, token: str) -> Claims:
            raise KeysUnavailable("no keys yet from an address of ours")

    refused = access_of(Keyless(), ()).decide(shake(token="t"))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.why) == (503, "no_keys")
    assert "address" not in refused.text


@pytest.mark.parametrize("end", ["granted", "refused", "no keys"])
async def test_a_verifier_that_waits_decides_later_by_the_same_rules(end: str) -> None:
    class Slow:
        def verify(self, token: str) -> asyncio.Future[Claims]:
            done = asyncio.get_running_loop().create_future()
            if end == "granted":
                done.set_result(Claims("u1", 100.0))
            else:
                done.set_exception(
                    TokenRefused("unknown_key", "no key has its kid")
                    if end == "refused"
                    else KeysUnavailable("x")
                )
            return done

    slow = access_of(Slow(), ())
    waits = slow.decide(shake(token="t", subprotocols=("bridge.v1.json",), last="p1"))
    assert isinstance(waits, Undecided)
    answer = await slow.decided(waits)
    if end == "granted":
        assert answer == Grant(
            Claims("u1", 100.0), Mode.ENVELOPE, "bridge.v1.json", "p1", granted_at=ManualClock().now
        )
    else:
        assert isinstance(answer, Refusal)
        expected = (401, "unknown_key") if end == "refused" else (503, "no_keys")
        assert (answer.status, answer.why) == expected


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
    gate.begin_drain()
    refused = gate.decide(shake(token="good"))
    assert isinstance(refused, Refusal)
    assert refused.status == 503
