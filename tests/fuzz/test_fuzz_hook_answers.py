"""Whatever the connect hook answers, as the core reads it: it lets in whom it names, or nobody."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from typing import Any, NamedTuple

import pytest

from bridge.core.errors import ConnectHookFailed
from bridge.core.model.ledger import Device
from bridge.core.model.sessions import Grant, Handshake, Refusal
from bridge.core.ports.connecting import HookAnswer
from bridge.core.sessions import breaker
from tests.support.house import TOKEN_SECONDS, house
from tests.support.random_requests import VALUES
from tests.support.random_tokens import NOW, USERS

ANSWERS = 10_000
SEED = 26
CANARY = "c4nary"
"""In most answers: nothing that is said of them may repeat it."""
STATUSES = (*(401, 403) * 100, *range(100, 600), 0, 999)
NUMBERS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1e-999",
    "-0",
    "00",
    "01",
    "+1",
    ".5",
    "1.",
    "0x1",
    "1_0",
)
DIGITS = (
    "9" * 19,
    "9" * 20,
    "9" * 308,
    "9" * 400,
    "9" * 5_000,
    "1" + "0" * 127,
    "1" + "0" * 128,
    "0." + "9" * 5_000,
)
SPOILT = (
    *(
        b"",
        b" ",
        b"null",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\x00",
        b"<html>",
        b"user=u1",
    ),
    *(
        b"[" * 100_000,
        b'{"user":' * 50_000,
        b"[" * 60 + b"]" * 60,
        b'"' + b"x" * 200_000,
        b"{" + b" " * 200_000,
    ),
    '{"user":"u1","expires_at":1800000100}'.encode("utf-16"),
    '{"user":"u1","expires_at":1800000100}'.encode("utf-32"),
)


class Made(NamedTuple):
    """An answer, and whether it is made to be right."""

    answer: HookAnswer
    right: bool


def _right(chance: random.Random) -> dict[str, Any]:
    at = NOW + chance.choice((0.5, 1, 60, 86_400, TOKEN_SECONDS))
    return {
        "user": chance.choice(USERS),
        "expires_at": at,
        **chance.choice(({}, {"meta": CANARY}, {CANARY: [[]]})),
    }


def _wrong(chance: random.Random) -> Any:
    said: Any = _right(chance)
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(("user", "expires_at", "expires_at", "meta", "User", "expires_at "))
        said[name] = chance.choice((*VALUES, NOW, NOW - 1, NOW * 1000, NOW + TOKEN_SECONDS + 1, CANARY))
        if chance.random() < 0.2:
            del said[name]
    return chance.choice((said, said, said, said, [said], chance.choice(VALUES)))


def _numbers(chance: random.Random) -> bytes:
    """JSON with numbers that no program writes."""
    number = chance.choice(NUMBERS + DIGITS)
    user, at, more = '"u1"', "1800000100", "1"
    match chance.randrange(3):
        case 0:
            user = number
        case 1:
            at = number
        case _:
            more = number
    return f'{{"user":{user},"expires_at":{at},"meta":{more}}}'.encode()


def _doubled(chance: random.Random) -> bytes:
    """JSON with a field twice."""
    fields = [f'"{name}":{json.dumps(value)}' for name, value in _right(chance).items()]
    said = _wrong(chance)
    if isinstance(said, dict):
        fields += [f'"{name}":{json.dumps(value)}' for name, value in said.items()]
    return f"{{{','.join(fields)}}}".encode()


def _deep(chance: random.Random) -> bytes:
    depth = chance.choice((1, 50, 200, 20_000, 100_000))
    begin, end = chance.choice(("[]", ("{" + '"a":', "}")))
    return f'{{"user":"u1","meta":{begin * depth}0{end * depth},"expires_at":1800000100}}'.encode()


def _changed(chance: random.Random) -> bytes:
    body = json.dumps(_right(chance), ensure_ascii=chance.random() < 0.5).encode()
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(body) + 1)
        more = chance.choice(
            (b"", b'"', b"\\", b",", b"}", b"1", b"\xff", b"\\u0000", b"\\ud800", chance.randbytes(3))
        )
        body = body[:at] + more + body[at + chance.choice((0, 1, 1, 9)) :]
    return body


def made(number: int) -> Made:
    """The answer of this number."""
    chance = random.Random(f"{SEED} {number}")
    kind = chance.randrange(12)
    if kind < 3:
        status = 200 if kind < 2 else chance.choice(STATUSES)
        body = json.dumps(_right(chance), ensure_ascii=chance.random() < 0.5).encode()
        return Made(HookAnswer(status, body), status == 200)
    status = 200 if chance.random() < 0.8 else chance.choice(STATUSES)
    if kind < 6:
        return Made(HookAnswer(status, json.dumps(_wrong(chance)).encode()), False)
    if kind == 6:
        spoilt = chance.choice(SPOILT) + chance.choice((b"", b"", json.dumps(_right(chance)).encode()))
        return Made(HookAnswer(status, spoilt), False)
    maker = chance.choice((_numbers, _doubled, _deep, _changed, _changed))
    return Made(HookAnswer(status, maker(chance)), False)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, _ in pairs:
        name.encode()
    return dict(pairs)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def allowed_by(body: bytes) -> str | None:
    """Whom a body lets in, by another reader of JSON that is made as strict."""
    try:
        text = body.decode()
        said = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_pairs)
        # Half a surrogate is no text: no UTF-8 has it.
        json.dumps(said, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    user, at = said.get("user"), said.get("expires_at")
    if isinstance(user, bool) or not isinstance(user, str | int):
        return None
    if not 0 < len(str(user)) <= 128 or re.search("[\x00-\x1f\x7f-\x9f]", str(user)):
        return None
    if isinstance(at, bool) or not isinstance(at, int | float):
        return None
    return str(user) if NOW < at <= NOW + TOKEN_SECONDS else None


class Hook:
    """Fills the ConnectHook port: the answer of the moment."""

    def __init__(self) -> None:
        self.answer = HookAnswer(0, b"")

    async def ask(self, question: bytes) -> HookAnswer:
        """See the port."""
        return self.answer


async def test_of_ten_thousand_answers_those_let_somebody_in_that_say_who_and_until_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "FAILURES", 10**9)  # each answer counts
    hook = Hook()
    asked = Handshake("/ws", {}, None, None, (), None, Device("192.0.2.1"))
    ends: Counter[str] = Counter()
    async with house(hook=hook) as h:
        assert h.clock.now == NOW
        for number in range(ANSWERS):
            one = made(number)
            hook.answer = one.answer
            case = f"made({number}) is {one.answer.status} {one.answer.body[:400]!r}"
            deciding = h.gateway.handshake(asked)
            assert not isinstance(deciding, Grant | Refusal), case
            decision = await deciding
            user = allowed_by(one.answer.body) if one.answer.status == 200 else None
            assert user is not None or not one.right, case
            if isinstance(decision, Refusal):
                assert user is None, (case, decision)
                denied = one.answer.status in (401, 403)
                assert decision.status == (one.answer.status if denied else 503), case
                assert decision.word == ("hook_refused" if denied else "unchecked"), case
                ends[decision.why] += 1
            else:
                assert decision.claims is not None, case
                assert decision.claims.user == user, case
                said = json.loads(one.answer.body)
                assert decision.claims.expires_at == said["expires_at"], case
                ends["right" if one.right else "opened"] += 1
            for error, where in h.errors.seen:
                assert (type(error), where) == (ConnectHookFailed, "connect.hook"), case
                assert CANARY not in str(error), case
            h.errors.seen.clear()
            assert h.core.connecting is not None
            assert h.core.connecting.places.taken == 0, case
    assert min(ends[end] for end in ("right", "opened", "hook_failed", "hook_refused")) >= 100, ends
