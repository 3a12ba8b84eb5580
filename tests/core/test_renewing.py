"""The connect hook is asked again about open sessions, and a session lives as long as it says."""

from __future__ import annotations

import json

import pytest
from msgspec import structs

from bridge.core.delivery.renewing import LONGEST_RETRY
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, CloseReason, Mode
from bridge.core.ports.connecting import HookAnswer
from bridge.core.sessions.breaker import FAILURES
from bridge.core.sessions.renewal import asks_at
from tests.core.test_connecting import LIMITS, Tokens, decided, enter, later, shake, use, why
from tests.support.hooks import NOTHING, ScriptedHook, allowing
from tests.support.house import House, house, session
from tests.support.ports import RecordingSocket
from tests.support.waiting import turns

BEGAN = 1_800_000_000.0
LIFE = 600.0


async def come(h: House, hook: ScriptedHook, mode: Mode = Mode.BARE, user: str = "u1") -> RecordingSocket:
    """A session that the hook lets in for ten minutes."""
    await hook.say(allowing(user, h.clock.now + LIFE))
    spoken = () if mode is Mode.SSE else (mode.value,)
    path = "/sse" if mode is Mode.SSE else "/ws"
    request = shake(subprotocols=spoken, address="203.0.113.9", more={"x-key": "k1"})
    request = structs.replace(request, path=path)
    _, socket = enter(h, await decided(h, request))
    return socket


async def pass_time(h: House, seconds: float, step: float = 0.1) -> None:
    """Let time pass, and everybody react."""
    for _ in range(round(seconds / step)):
        h.clock.advance(step)
        h.core.tick()
        for each in h.hub:
            if each._ping is not None:
                h.core.proofs.pong(each, each._ping)
        await turns(5)
    h.core.every_second()
    await turns()


@pytest.mark.parametrize("mode", Mode)
async def test_the_hook_is_asked_the_same_again_before_the_end_and_the_session_goes_on(mode: Mode) -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook, mode)
        (session,) = h.hub
        before = session.claims
        await pass_time(h, LIFE - 61, step=1)
        assert len(hook.questions) == 1
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        await pass_time(h, 59, step=1)
        assert len(hook.raw) == 2, "once, and well before the end"
        assert hook.raw[1] == hook.raw[0]
        await pass_time(h, 100, step=1)
        assert socket.closed_with is None
        assert session.claims.expires_at == BEGAN + 2 * LIFE
        assert session.claims.token_id == before.token_id
        assert session.claims.asked is before.asked, "the question is kept once"
        assert "refresh" not in [json.loads(text).get("type") for text in socket.texts], (
            "no client is bothered"
        )
        assert len(h.hub) == 1


async def test_a_short_session_is_asked_about_in_time_as_well() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        await hook.say(allowing("u1", BEGAN + 3))
        _, socket = enter(h, await decided(h, shake()))
        for _ in range(100):
            await hook.say(allowing("u1", h.clock.now + 3))
            await pass_time(h, 0.1)
        assert socket.closed_with is None
        assert 3 <= len(hook.questions) <= 20


@pytest.mark.parametrize(
    "answer", [HookAnswer(401, b""), HookAnswer(403, b""), allowing("u2", BEGAN + 2 * LIFE)]
)
async def test_a_no_and_another_user_end_the_session_at_once(answer: HookAnswer) -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook)
        await hook.say(answer)
        await pass_time(h, LIFE - 2, step=1)
        assert socket.closed_with is CloseReason.TOKEN_REFUSED
        assert (socket.closed_with.code, len(hook.questions), len(h.hub)) == (4401, 2, 0)


@pytest.mark.parametrize(
    "answer", [NOTHING, HookAnswer(404, b""), HookAnswer(200, b"{}"), HookAnswer(500, b"")]
)
async def test_a_failure_is_tried_again_ever_less_often_and_at_the_end_the_session_ends(
    answer: HookAnswer,
) -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook)
        await hook.say(answer)
        await pass_time(h, LIFE - 0.5)
        assert len(h.hub) == 1
        assert 4 <= len(hook.questions) - 1 <= 14
        await pass_time(h, 1.0)
        assert socket.closed_with is CloseReason.TOKEN_EXPIRED
        asked = len(hook.questions)
        await pass_time(h, LONGEST_RETRY * 2, step=1)
        assert len(hook.questions) == asked, "nobody asks about a session that is gone"
        assert h.core.renewing is not None
        assert h.core.renewing._due == []


async def test_a_hook_that_comes_back_in_time_saves_the_session() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook)
        await hook.say(NOTHING)
        await pass_time(h, LIFE - 20, step=0.5)
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        await pass_time(h, 40, step=0.5)
        assert socket.closed_with is None


async def test_while_the_hook_is_left_alone_no_session_asks_and_one_of_them_tries() -> None:
    hook = ScriptedHook()
    async with house(hook=hook, hook_limits=LIMITS) as h:
        sockets = [await come(h, hook) for _ in range(30)]
        await hook.say(NOTHING)
        await pass_time(h, LIFE - 25, step=0.5)
        assert len(hook.questions) - 30 < 3 * FAILURES + 10, "thirty sessions, and few questions"
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        await pass_time(h, 30, step=0.5)
        assert [socket.closed_with for socket in sockets] == [None] * 30


async def test_sessions_that_ask_again_share_the_places_with_handshakes() -> None:
    hook = ScriptedHook()
    async with house(hook=hook, hook_limits=LIMITS) as h:
        for _ in range(20):
            await come(h, hook)
        await hook.say(None)
        await pass_time(h, LIFE - 10, step=1)
        assert hook.waiting == 2, "half of the places"
        waiting = [later(h, shake()) for _ in range(2)]
        await turns()
        assert hook.waiting == 4
        assert why(await decided(h, shake())) == "503 hook_busy"
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        assert [why(await each) for each in waiting] == ["u1", "u1"]
        await pass_time(h, 20, step=1)
        assert len(h.hub) == 20
        assert hook.most == 4


async def test_handshakes_leave_places_to_sessions_that_wait_for_one() -> None:
    hook = ScriptedHook()
    async with house(hook=hook, hook_limits=LIMITS) as h:
        socket = await come(h, hook)
        await hook.say(None)
        await pass_time(h, LIFE - 70, step=1)
        waiting = [later(h, shake()) for _ in range(4)]
        await turns()
        assert hook.waiting == 4
        await pass_time(h, 60, step=1)
        waiting.pop().cancel()
        await turns()
        assert hook.waiting == 3
        assert why(await decided(h, shake())) == "503 hook_busy", "the place is kept for the session"
        await pass_time(h, 0.2)
        assert hook.waiting == 4, "and it has it"
        assert why(await decided(h, shake())) == "503 hook_busy"
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        await pass_time(h, 20, step=1)
        assert socket.closed_with is None
        for each in waiting:
            await each


async def test_a_revocation_while_the_hook_is_asked_again_wins() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook)
        await hook.say(None)
        await pass_time(h, LIFE - 10, step=1)
        assert hook.waiting == 1
        await h.core.revoking.revoke(Revocation(user="u1", before=h.clock.now))
        assert socket.closed_with is CloseReason.REVOKED
        await hook.say(allowing("u1", BEGAN + 2 * LIFE))
        await pass_time(h, 30, step=1)
        assert len(h.hub) == 0


async def test_a_client_may_go_on_with_a_token_of_its_own_and_the_hook_is_asked_no_more() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook, Mode.ENVELOPE, "good1")
        (session,) = h.hub
        use(h, verifier=Tokens())
        h.gateway._message(session, json.dumps({"type": "refresh", "token": "good2", "ref": 1}))
        assert json.loads(socket.texts[-1])["code"] == "refused"
        h.gateway._message(session, json.dumps({"type": "refresh", "token": "good1", "ref": 2}))
        assert json.loads(socket.texts[-1]) == {"type": "ok", "ref": 2}
        await pass_time(h, LIFE, step=1)
        assert len(hook.questions) == 1
        assert socket.closed_with is None


async def test_a_token_that_comes_while_the_hook_is_asked_again_is_what_the_session_goes_by() -> None:
    hook = ScriptedHook()
    async with house(hook=hook) as h:
        socket = await come(h, hook, Mode.ENVELOPE, "good1")
        (session,) = h.hub
        use(h, verifier=Tokens())
        await hook.say(None)
        await pass_time(h, LIFE - 10, step=1)
        assert hook.waiting == 1
        h.gateway._message(session, json.dumps({"type": "refresh", "token": "good1", "ref": 1}))
        assert json.loads(socket.texts[-1]) == {"type": "ok", "ref": 1}
        await hook.say(HookAnswer(401, b""))
        await pass_time(h, 30, step=1)
        assert (len(h.hub), session.claims.token_id) == (1, "good1")


async def test_twenty_thousand_sessions_that_opened_together_do_not_ask_together() -> None:
    times = []
    for n in range(2000):
        made, _ = session("u1", session_id=f"s{n}", expires_at=BEGAN + LIFE)
        made.claims = Claims("u1", BEGAN + LIFE, "hook:1", BEGAN, b"{}")
        times.append(BEGAN + LIFE - asks_at(made))
    assert 30 <= min(times) < 33
    assert 57 < max(times) <= 60
    assert len({round(time) for time in times}) >= 28
