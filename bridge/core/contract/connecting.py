"""The question to the connect hook, and its answer (docs/connect-hook.md).

The answer decides who may read whose pushes, so it is read strictly. An error names the field and says what was
expected; it quotes nothing. Fields that are not listed here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from bridge.core.contract.fields import is_id, kind
from bridge.core.contract.patterns import NOTHING_CLAIMED, Claimed, claimed
from bridge.core.errors import ConnectHookFailed, InvalidClaim
from bridge.core.model.pushes import ID_MAX
from bridge.core.model.sessions import Handshake

MILLISECONDS: Final = 1e11
"""A larger number of seconds since 1970 is one of milliseconds."""
_INTEGER_MAX: Final = 10**ID_MAX
"""An integer below it has no more digits than a user id may have."""
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Allowed(NamedTuple):
    """Whom the hook lets in, until when (unix seconds), and to what."""

    user: str
    expires_at: float
    claimed: Claimed = NOTHING_CLAIMED


def question(request: Handshake, node: str) -> bytes:
    """What the hook is asked about a handshake."""
    return _encode(
        {
            "headers": request.headers,
            "query": request.query,
            "address": request.device.address,
            "node": node,
        }
    )


def allowed(body: bytes, now: float, latest: float) -> Allowed:
    """Read the body of an answer with status 200 that came at `now`; raises ConnectHookFailed. `latest`: the last
    moment for which it may let somebody in. Both are unix seconds."""
    try:
        said = _decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise ConnectHookFailed("the answer is not JSON") from None
    if not isinstance(said, dict):
        raise ConnectHookFailed(f"the answer: expected an object, got {kind(said)}")
    try:
        return Allowed(_user(said), _expires_at(said, now, latest), claimed(said))
    except InvalidClaim as error:
        raise ConnectHookFailed(str(error)) from None


def _user(said: Mapping[str, object]) -> str:
    user = said.get("user")
    if isinstance(user, int) and not isinstance(user, bool) and abs(user) < _INTEGER_MAX:
        # As in a token: many backends have numbers.
        user = str(user)
    if isinstance(user, str) and is_id(user):
        return user
    got = "nothing" if "user" not in said else "another string" if isinstance(user, str) else kind(user)
    raise ConnectHookFailed(
        f"user: expected a string of 1 to {ID_MAX} characters without controls, or an integer, got {got}"
    )


def _expires_at(said: Mapping[str, object], now: float, latest: float) -> float:
    moment = said.get("expires_at")
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        got = kind(moment) if "expires_at" in said else "nothing"
        raise ConnectHookFailed(f"expires_at: expected a number of seconds since 1970, got {got}")
    if moment <= now:
        raise ConnectHookFailed("expires_at: expected a time to come, got one that is past")
    if moment > MILLISECONDS:
        raise ConnectHookFailed("expires_at: expected seconds since 1970, got what looks like milliseconds")
    if moment > latest:
        raise ConnectHookFailed("expires_at: expected a time within BRIDGE_TOKEN_DAYS, got a later one")
    return float(moment)
