"""Who is asked about a client without a token: every line of the tables of `access` and `connecting`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from bridge.core.errors import ConnectHookFailed, KeysUnavailable, TokenRefused
from bridge.core.gateway import Client
from bridge.core.model.ledger import Device
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal
from bridge.core.ports.connecting import HookAnswer
from bridge.core.sessions.access import Access
from bridge.core.sessions.breaker import FAILURES, FIRST_WAIT
from bridge.core.sessions.connecting import HookLimits, Places
from tests.support.hooks import NOTHING, ScriptedHook, allowing
from tests.support.house import House, house
from tests.support.ports import RecordingSocket
from tests.support.waiting import turns

APP = "https://app.example"
LIMITS = HookLimits(4, frozenset(("cookie", "authorization", "origin")), lambda origin: origin == APP)


class Tokens:
    """Fills the TokenVerifier port: a token says what becomes of it. `later ...` waits for keys first."""

    def verify(self, token: str) -> Claims | asyncio.Future[Claims]:
        if token.startswith("later-"):
            done: asyncio.Future[Claims] = asyncio.get_running_loop().create_future()
            try:
                found = self.verify(token[6:])
                assert isinstance(found, Claims)
                done.set_result(found)
            except TokenRefused as refused:
                done.set_exception(refused)
            return done
        if token == "keyless":
            raise KeysUnavailable("none yet")
        if not token.startswith("good"):
            raise TokenRefused(token)
        return Claims(token, 1_800_003_600.0, token, 1_800_000_000.0)


def shake(
    *,
    token: str = "",
    authorization: str | None = None,
    cookie: str | None = None,
    origin: str | None = None,
    subprotocols: tuple[str, ...] = (),
    address: str = "",
    more: dict[str, str] | None = None,
) -> Handshake:
    """A handshake as the adapter reads it."""
    headers = {"authorization": authorization, "cookie": cookie, "origin": origin, **(more or {})}
    return Handshake(
        "/ws",
        {"token": [token]} if token else {},
        origin,
        authorization,
        subprotocols,
        cookie,
        Device(address),
        {name: value for name, value in headers.items() if value is not None},
    )


def use(h: House, *, verifier: Tokens | None = None, origins: tuple[str, ...] = (), **more: Any) -> None:
    """Let the house decide with this verifier."""
    connecting = h.core.connecting
    access = Access(
        verifier,
        origins,
        revoked=h.core.revoked,
        ledger=h.core.ledger,
        admission=h.core.admission,
        clock=h.clock,
        connecting=connecting,
        **more,
    )
    h.gateway._access = h.gateway._hearing.refreshing._access = access


async def decided(h: House, request: Handshake) -> Grant | Refusal:
    """The decision, however long it takes."""
    answer = h.gateway.handshake(request)
    return answer if isinstance(answer, Grant | Refusal) else await answer


def later(h: House, request: Handshake) -> asyncio.Task[Grant | Refusal]:
    """A decision that waits."""
    answer = h.gateway.handshake(request)
    assert isinstance(answer, Coroutine)
    return asyncio.create_task(answer)


def enter(h: House, grant: Grant | Refusal) -> tuple[Client, RecordingSocket]:
    """Open the session that was granted."""
    assert isinstance(grant, Grant)
    socket = RecordingSocket()
    opened = h.gateway.opened(grant, socket)
    assert isinstance(opened, Client)
    return opened, socket


def is_open(h: House) -> bool:
    """Whether the breaker is."""
    assert h.core.connecting is not None
    return h.core.connecting.open


def why(answer: Grant | Refusal) -> str:
    if isinstance(answer, Refusal):
        return f"{answer.status} {answer.why}"
    assert answer.claims is not None
    return answer.claims.user


# --- who goes to the hook --------------------------------------------------------------------------------

BOTH = ("query", "subprotocol", "authorization", "cookie")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        # A token of ours decides alone, wherever it is.
        (shake(token="good1"), "good1"),
        (shake(authorization="Bearer good1"), "good1"),
        (shake(subprotocols=("bridge.token.good1", "bridge.bare")), "good1"),
        (shake(cookie="jar=good1", origin=APP), "good1"),
        (shake(authorization="Bearer signature", cookie="jar=good1; s=1", origin=APP), "good1"),
        (shake(authorization="Bearer later-good1"), "good1"),
        (shake(authorization="Bearer good1", cookie="jar=good2; s=1"), "good1"),
        # The query and the subprotocol are nobody else's: what is wrong there is wrong.
        (shake(token="signature"), "401 signature"),
        (shake(token="malformed"), "401 malformed"),
        (shake(subprotocols=("bridge.token.malformed", "bridge.bare")), "401 malformed"),
        (shake(token="good1", subprotocols=("bridge.token.good2", "bridge.bare")), "401 many"),
        (shake(token="good1", authorization="Bearer good2"), "good1"),
        # Nothing of ours.
        (shake(), "hook"),
        (shake(authorization="Basic dTpw"), "hook"),
        (shake(authorization="Bearer "), "hook"),
        (shake(authorization="Digest x, y"), "hook"),
        (shake(cookie="s=1", origin=APP), "hook"),
        # What somebody else has signed, or what is for somebody else.
        *(
            (shake(authorization=f"Bearer {why}"), "hook")
            for why in ("malformed", "algorithm", "unknown_key", "signature", "issuer", "audience")
        ),
        (shake(authorization="Bearer later-unknown_key"), "hook"),
        (shake(authorization="Bearer later-unknown_key", cookie="jar=good1", origin=APP), "good1"),
        (shake(cookie="jar=signature; s=1", origin=APP), "hook"),
        # What we have signed, and is good no more, or never was.
        *(
            (shake(authorization=f"Bearer {why}"), f"401 {why}")
            for why in ("expired", "not_yet", "no_expiry", "no_user", "claims")
        ),
        (shake(authorization="Bearer later-expired"), "401 expired"),
        (shake(cookie="jar=expired", origin=APP), "401 expired"),
        (shake(authorization="Bearer good-revoked"), "401 revoked"),
        (shake(authorization="Bearer keyless"), "503 no_keys"),
        # As without a hook.
        (shake(cookie="jar=good1"), "403 origin"),
        (shake(origin="https://evil.example"), "403 origin"),
        (shake(subprotocols=("chat",)), "400 subprotocol"),
    ],
)
async def test_a_token_of_ours_decides_alone_and_the_hook_gets_everybody_else(
    request_: Handshake, expected: str
) -> None:
    hook = ScriptedHook()
    await hook.say(allowing("hook"))
    async with house(hook=hook, hook_limits=LIMITS) as h:
        use(h, verifier=Tokens(), origins=(APP,), token_from=BOTH, cookie="jar")
        await h.core.revoking.revoke(Revocation(token_id="good-revoked"))
        assert why(await decided(h, request_)) == expected
        assert len(hook.questions) == (expected == "hook")


async def test_with_a_carrier_that_is_off_an_authorization_is_the_hooks_alone() -> None:
    hook = ScriptedHook()
    await hook.say(allowing("hook"))
    async with house(hook=hook, hook_limits=LIMITS) as h:
        use(h, verifier=Tokens(), token_from=("query",))
        assert why(await decided(h, shake(authorization="Bearer good1"))) == "hook"
        assert (
            why(await decided(h, shake(subprotocols=("bridge.token.good1", "bridge.bare")))) == "401 carrier"
        )


@pytest.mark.parametrize(
    "request_",
    [
        shake(token="good1"),
        shake(authorization="Bearer good1"),
        shake(subprotocols=("bridge.token.good1", "bridge.bare")),
        shake(),
    ],
)
async def test_without_a_secret_and_without_keys_the_hook_gets_everybody(request_: Handshake) -> None:
    hook = ScriptedHook()
    await hook.say(allowing("hook"))
    async with house(hook=hook, hook_limits=LIMITS) as h:
        use(h)
        assert why(await decided(h, request_)) == "hook"
        grant = await decided(h, shake(subprotocols=("bridge.v1.json",)))
        client, socket = enter(h, grant)
        client.message(json.dumps({"type": "refresh", "token": "good1"}))
        assert "takes no tokens" in json.loads(socket.texts[-1])["message"]


@pytest.mark.parametrize(
    ("request_", "headers", "expected"),
    [
        (shake(cookie="s=1", origin=APP), ("cookie",), "hook"),
        (shake(cookie="s=1"), ("cookie",), "403 origin"),
        (shake(cookie="s=1", origin="https://evil.example"), ("cookie",), "403 origin"),
        (shake(cookie="s=1", origin="null"), ("cookie",), "403 origin"),
        (shake(cookie="", origin="https://evil.example"), ("cookie",), "403 origin"),
        (shake(cookie="s=1", origin="https://evil.example"), ("origin",), "hook"),
        (shake(origin="https://evil.example"), ("cookie",), "hook"),
        # Browsers add Basic and the like by themselves, too; a page can't set the header.
        (shake(authorization="Basic dTpw", origin=APP), ("authorization",), "hook"),
        (shake(authorization="Basic dTpw", origin="https://evil.example"), ("authorization",), "403 origin"),
        (shake(authorization="", origin="https://evil.example"), ("authorization",), "403 origin"),
        (shake(authorization="Basic dTpw"), ("authorization",), "hook"),
        (shake(authorization="bearer opaque", origin="https://evil.example"), ("authorization",), "hook"),
        (shake(authorization="Basic dTpw", origin="https://evil.example"), ("cookie",), "hook"),
    ],
)
async def test_what_browsers_send_by_themselves_reaches_the_hook_only_from_listed_origins(
    request_: Handshake, headers: tuple[str, ...], expected: str
) -> None:
    hook = ScriptedHook()
    await hook.say(allowing("hook"))
    async with house(hook=hook, hook_limits=LIMITS._replace(headers=frozenset(headers))) as h:
        use(h)
        answer = await decided(h, request_)
        assert why(answer) == expected
        assert hook.questions == [] or expected == "hook"


# --- what it is asked ------------------------------------------------------------------------------------


async def test_the_question_holds_headers_query_address_and_node_and_nothing_else() -> None:
    hook = ScriptedHook()
    await hook.say(allowing())
    async with house(hook=hook, hook_limits=LIMITS) as h:
        request = Handshake(
            "/ws",
            {"room": ["7", "8"], "empty": [""]},
            APP,
            None,
            ("bridge.v1.json",),
            "s=1",
            Device("203.0.113.9"),
            {"cookie": "s=1", "origin": APP},
        )
        await decided(h, request)
        assert hook.questions == [
            {
                "headers": {"cookie": "s=1", "origin": APP},
                "query": {"room": ["7", "8"], "empty": [""]},
                "address": "203.0.113.9",
                "node": "n1",
            }
        ]


# --- what it answers -------------------------------------------------------------------------------------


async def test_its_user_gets_a_session_like_any_other() -> None:
    hook = ScriptedHook()
    await hook.say(allowing(42, 1_800_000_600, topic=7, meta="ignored"))
    async with house(hook=hook) as h:
        client, socket = enter(h, await decided(h, shake(subprotocols=("bridge.v1.json",))))
        await h.push({"id": "p1", "to": {"user": "42"}, "data": 1})
        assert [json.loads(text)["type"] for text in socket.texts] == ["welcome", "push"]
        claims = client.session.claims
        assert (claims.user, claims.expires_at, claims.issued_at) == ("42", 1_800_000_600.0, h.clock.now)
        assert h.metrics.hook == ["allowed"]
        assert h.metrics.handshakes == ["opened"]


async def test_its_session_may_do_what_the_answer_says() -> None:
    hook = ScriptedHook()
    may = {"topics": ["a", "b.c"], "subscribe": ["room.*"], "publish": ["chat.#", "user.{user}"]}
    await hook.say(allowing("u1", 1_800_000_600, **may))
    async with house(hook=hook) as h:
        client, _ = enter(h, await decided(h, shake()))
        claims = client.session.claims
        assert {claim: list(getattr(claims, claim)) for claim in may} == may


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_the_hook_is_one_with_the_same_status(status: int) -> None:
    hook = ScriptedHook()
    await hook.say(HookAnswer(status, b"secret words"))
    async with house(hook=hook) as h:
        refused = await decided(h, shake())
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.why) == (status, "hook_refused")
        assert "secret" not in refused.text
        assert h.metrics.hook == ["refused"]
        assert h.errors.seen == []


SOON = 1_800_000_100
WRONG = [
    (b"", "the answer is not JSON"),
    (b"<html>", "the answer is not JSON"),
    (b'{"user":"u1","expires_at":1e999}', "the answer is not JSON"),
    (b"[" * 50_000, "the answer is not JSON"),
    (b'{"user":"\xff","expires_at":1800000100}', "the answer is not JSON"),
    (b"[]", "the answer: expected an object, got a list"),
    (b'"u1"', "the answer: expected an object, got a string"),
    (b"{}", "user: expected .* got nothing"),
    *(
        (json.dumps({"user": user, "expires_at": SOON}).encode(), f"user: expected .* got {got}$")
        for user, got in (
            (None, "null"),
            ("", "another string"),
            ("u" * 129, "another string"),
            ("a\nb", "another string"),
            ("a\x9fb", "another string"),
            (True, "true"),
            (1.5, "a number"),
            (["u1"], "a list"),
            ({"id": "u1"}, "an object"),
            (10**128, "a number"),
        )
    ),
    (b'{"user":"u1"}', "expires_at: expected a number of seconds since 1970, got nothing"),
    *(
        (json.dumps({"user": "u1", "expires_at": at}).encode(), f"expires_at: expected .* got {got}")
        for at, got in (
            (None, "null"),
            ("1800000100", "a string"),
            (True, "true"),
            ([], "a list"),
            (1_800_000_000, "one that is past"),
            (-1, "one that is past"),
            (0, "one that is past"),
            (SOON * 1000, "what looks like milliseconds"),
            (1_800_000_001 + 400 * 86_400, "a later one"),
        )
    ),
    *(
        (json.dumps({"user": "u1", "expires_at": SOON, **may}).encode(), problem)
        for may, problem in (
            ({"topics": "c4nary"}, "topics: expected a list of strings, got a string"),
            ({"subscribe": ["a", "c4nary*"]}, r"subscribe\[1\]: expected a pattern of .* got a word with"),
            ({"publish": ["c4nary"] * 101}, "publish: expected at most 100 entries, got 101"),
        )
    ),
]


@pytest.mark.parametrize(("body", "problem"), WRONG)
async def test_an_answer_that_is_wrong_lets_nobody_in_and_the_error_names_the_field(
    body: bytes, problem: str
) -> None:
    hook = ScriptedHook()
    await hook.say(HookAnswer(200, body))
    async with house(hook=hook, hook_limits=LIMITS) as h:
        assert why(await decided(h, shake(cookie="s=c4nary"))) == "403 origin"
        assert why(await decided(h, shake(more={"x-key": "c4nary"}))) == "503 hook_failed"
        ((error, where),) = h.errors.seen
        with pytest.raises(ConnectHookFailed, match=problem):
            raise error
        assert where == "connect.hook"
        assert "c4nary" not in f"{error} {h.errors.facts}"
        assert h.metrics.hook == ["wrong"]


@pytest.mark.parametrize(
    "said",
    [
        {"user": "u1", "expires_at": 1_800_000_000.5},
        {"user": 7, "expires_at": 1_800_000_000 + 400 * 86_400},
        {"user": -7, "expires_at": SOON, "meta": {}, "topics": ["a"], "unknown": 1},
        {"user": "ü" * 128, "expires_at": SOON},
    ],
)
async def test_an_answer_at_the_edge_of_what_is_allowed_is_taken(said: dict[str, object]) -> None:
    hook = ScriptedHook()
    await hook.say(HookAnswer(200, json.dumps(said).encode()))
    async with house(hook=hook) as h:
        assert why(await decided(h, shake())) == str(said["user"])


@pytest.mark.parametrize(
    "status", [100, 201, 204, 301, 302, 307, 400, 402, 404, 405, 429, 500, 502, 503, 504]
)
async def test_any_other_status_is_a_503(status: int) -> None:
    hook = ScriptedHook()
    await hook.say(HookAnswer(status, allowing().body))
    async with house(hook=hook) as h:
        assert why(await decided(h, shake())) == "503 hook_failed"
        assert str(h.errors.seen[0][0]) == f"the connect hook failed: it answered with {status}"
        assert h.metrics.hook == ["failed" if status == 429 or status >= 500 else "wrong"]


async def test_the_same_failure_is_reported_now_and_then_and_another_one_at_once() -> None:
    hook = ScriptedHook()
    await hook.say(HookAnswer(200, b""))
    async with house(hook=hook) as h:
        for _ in range(50):
            await decided(h, shake())
        assert len(h.errors.seen) == 1
        await hook.say(HookAnswer(404, b""))
        await decided(h, shake())
        assert [str(error).rpartition(": ")[2] for error, _ in h.errors.seen] == [
            "the answer is not JSON",
            "it answered with 404",
        ]
        assert h.errors.facts[1] == {"not_reported": 49}
        h.clock.advance(1)
        await decided(h, shake())
        assert len(h.errors.seen) == 3


# --- bounds ----------------------------------------------------------------------------------------------


async def test_only_so_many_ask_at_once_and_who_comes_over_it_is_told_to_come_back() -> None:
    hook = ScriptedHook()
    async with house(hook=hook, hook_limits=LIMITS) as h:
        use(h, verifier=Tokens())
        waiting = [later(h, shake()) for _ in range(20)]  # before any of them has begun
        await turns()
        assert hook.waiting == hook.most == 4
        assert why(await decided(h, shake())) == "503 hook_busy"
        assert why(await decided(h, shake(authorization="Bearer good1"))) == "good1"
        waiting.pop(0).cancel()
        await turns()
        assert hook.waiting == 3, "whoever leaves gives the place back"
        again = later(h, shake())
        await turns()
        assert hook.waiting == 4
        await hook.say(allowing())
        ends = [why(answer) for answer in await asyncio.gather(again, *waiting)]
        assert sorted(ends) == ["503 hook_busy"] * 16 + ["u1"] * 4
        assert h.metrics.hook == ["given_up"] + ["allowed"] * 4
        assert h.core.connecting is not None
        assert h.core.connecting.places.taken == 0


async def test_a_dead_hook_is_left_alone_and_costs_nobody_who_has_a_token() -> None:
    hook = ScriptedHook()
    await hook.say(NOTHING)
    async with house(hook=hook) as h:
        use(h, verifier=Tokens())
        for _ in range(FAILURES):
            assert why(await decided(h, shake())) == "503 hook_failed"
        for _ in range(20):
            refused = h.gateway.handshake(shake())
            assert isinstance(refused, Refusal), "at once"
            assert why(refused) == "503 hook_down"
        assert len(hook.questions) == FAILURES
        assert [fact.get("breaker", "") for fact in h.errors.facts] == [
            "",
            "open: it is left alone for a while",
        ]
        assert why(await decided(h, shake(token="good1"))) == "good1"
        h.clock.advance(FIRST_WAIT)
        assert is_open(h)
        await hook.say(None)
        trying = [later(h, shake()) for _ in range(5)]
        await hook.asked(FAILURES + 1)
        await hook.say(allowing("back"))
        ends = sorted([why(answer) for answer in await asyncio.gather(*trying)])
        assert ends == ["503 hook_down"] * 4 + ["back"], "one tries"
        assert not is_open(h)
        assert why(await decided(h, shake())) == "back"


async def test_a_client_that_tries_a_dead_hook_and_leaves_does_not_keep_the_next_one_from_trying() -> None:
    hook = ScriptedHook()
    await hook.say(NOTHING)
    async with house(hook=hook) as h:
        for _ in range(FAILURES):
            await decided(h, shake())
        await hook.say(None)
        h.clock.advance(FIRST_WAIT)
        tries = later(h, shake())
        await hook.asked(FAILURES + 1)
        assert why(await decided(h, shake())) == "503 hook_down"
        tries.cancel()
        await turns()
        await hook.say(allowing("next"))
        assert why(await decided(h, shake())) == "next"


async def test_answers_that_make_no_sense_do_not_make_the_others_wait() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        for answer in (HookAnswer(200, b"{"), HookAnswer(404, b""), HookAnswer(401, b"")) * 10:
            await hook.say(answer)
            await decided(h, shake())
        await hook.say(allowing())
        assert why(await decided(h, shake())) == "u1"


@pytest.mark.parametrize(
    ("handshakes", "renewals", "wait", "for_handshake", "for_renewal"),
    [
        (0, 0, False, True, True),
        (9, 0, False, True, True),
        (10, 0, False, False, False),
        (5, 5, False, False, False),
        (4, 5, False, True, False),
        (4, 5, True, True, False),
        (5, 4, True, False, True),
        (5, 0, True, False, True),
        (5, 0, False, True, True),
        (10, 0, True, False, False),
    ],
)
def test_neither_handshakes_nor_sessions_that_ask_again_take_all_places(
    handshakes: int, renewals: int, wait: bool, for_handshake: bool, for_renewal: bool
) -> None:
    places = Places(10)
    places.handshakes, places.renewals, places.renewals_wait = handshakes, renewals, wait
    assert (places.free_for_handshake, places.free_for_renewal) == (for_handshake, for_renewal)


# --- revocations -----------------------------------------------------------------------------------------


async def test_before_revocations_are_read_the_hook_is_not_asked() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        h.core.revoked.read = False
        assert why(await decided(h, shake())) == "503 starting"
        assert hook.questions == []


async def test_a_revocation_of_the_user_while_the_hook_answers_wins() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        waits = later(h, shake())
        await hook.asked(1)
        h.clock.advance(1)
        await h.core.revoking.revoke(Revocation(user="u1", before=h.clock.now))
        h.clock.advance(1)
        await hook.say(allowing())
        assert why(await waits) == "401 revoked"
        assert why(await decided(h, shake())) == "u1", "who is asked about later is let in"


async def test_a_revocation_between_the_answer_and_the_session_wins_as_well() -> None:
    hook = ScriptedHook()
    await hook.say(allowing())
    async with house(hook=hook) as h:
        grant = await decided(h, shake())
        await h.core.revoking.revoke(Revocation(user="u1", before=h.clock.now + 1))
        _, socket = enter(h, grant)
        assert socket.closed_with is CloseReason.REVOKED


async def test_a_session_of_the_hook_is_revoked_alone_and_a_user_with_all_of_them() -> None:
    hook = ScriptedHook()
    await hook.say(allowing())
    async with house(hook=hook) as h:
        (one, first), (_, second) = [enter(h, await decided(h, shake())) for _ in range(2)]
        await h.core.revoking.revoke(Revocation(session=one.session.id))
        assert (first.closed_with, second.closed_with) == (CloseReason.REVOKED, None)
        h.clock.advance(1)
        await h.core.revoking.revoke(Revocation(user="u1", before=h.clock.now))
        assert second.closed_with is CloseReason.REVOKED


def test_what_is_kept_of_a_handshake_is_not_shown() -> None:
    claims = Claims("u1", 4e9, "hook:1", 1.0, b"c4nary")
    assert "c4nary" not in f"{claims} {claims!r} {Grant(claims, Mode.BARE, None)!r}"


async def test_a_session_is_as_old_as_its_grant_however_late_it_opens() -> None:
    # Its client has the answer and may open the next one, at another node, while this node is held up.
    async with house() as h:
        use(h, verifier=Tokens())
        asked = h.clock.now
        grant = await decided(h, shake(token="good1"))
        h.clock.advance(3.0)
        opened, _ = enter(h, grant)
        assert opened.session.opened_at == asked
