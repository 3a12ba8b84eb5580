"""Whatever stands in a token: it opens a session only if we have signed it, and a wrong one is refused in our words."""

from __future__ import annotations

import random
import re
from collections import Counter

from bridge.adapters.tokens import TOKEN_REFUSALS, JwtVerifier
from bridge.core.errors import TokenRefused
from bridge.core.model.sessions import Claims
from tests.support.ports import ManualClock
from tests.support.random_tokens import NOW, SECRET, any_token, claims_of, good, user_of

TOKENS = 10_000
SEED = 26


def token(number: int) -> tuple[str, bool]:
    """The token of this number, and whether it is made to be right."""
    chance = random.Random(f"{SEED} {number}")
    right = chance.random() < 0.2
    return (good if right else any_token)(chance), right


def verified(by: JwtVerifier, text: str) -> Claims | TokenRefused:
    """What a verifier says to a token; any other error fails."""
    try:
        return by.verify(text)
    except TokenRefused as refused:
        return refused


def test_of_ten_thousand_tokens_those_open_a_session_that_we_have_signed_for_a_user() -> None:
    by = JwtVerifier(SECRET, clock=ManualClock(NOW))
    ends: Counter[str] = Counter()
    for number in range(TOKENS):
        text, right = token(number)
        case = f"token({number}) is {text[:400]!r}"
        claims = verified(by, text)
        if isinstance(claims, TokenRefused):
            assert not right, (case, claims)
            assert claims.why in TOKEN_REFUSALS, case
            assert re.fullmatch(r"[\x20-\x7e]*", claims.detail), case
            assert not any(len(part) > 3 and part in str(claims) for part in text.split(".")), case
            ends[claims.why] += 1
        else:
            said = claims_of(text)
            assert said is not None, case
            assert claims.user == user_of(text), case
            assert (claims.expires_at, claims.issued_at) == (said["exp"], said.get("iat")), case
            assert said.get("jti") in (None, "", claims.token_id), case
            ends["right" if right else "opened"] += 1
    wanted = {"malformed", "algorithm", "signature", "no_expiry", "expired", "not_yet", "no_user", "missing"}
    assert wanted | {"right", "opened"} <= {end for end, count in ends.items() if count >= 10}, ends
