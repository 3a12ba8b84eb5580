"""Decode control messages and encode their answers."""

from __future__ import annotations

import math
from typing import NamedTuple

from bridge.core.contract import fields, jsonparts, jsontext
from bridge.core.contract.fields import kind
from bridge.core.contract.jsontext import ObjectText, encode
from bridge.core.contract.stepping import Steps, finish
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.revocations import Revocation, RevocationAnswer

_RECALL_FORMS = (frozenset(("push_id",)), frozenset(("user", "collapse_key")))
_RECALL_FIELDS = frozenset(("tenant",)).union(*_RECALL_FORMS)
_REVOKE_FORMS = (frozenset(("user", "before")), frozenset(("jti",)), frozenset(("session",)))
_REVOKE_FIELDS = frozenset[str]().union(*_REVOKE_FORMS)
TOKEN_ID_MAX = 1024
"""Characters of a `jti`."""
BEFORE_MAX = 9_999_999_999
"""Seconds since 1970, in the year 2286. A larger number is in milliseconds."""
CONTROL_BYTES_MAX = 16 * 1024
"""Bytes of a control message. The longest `jti` needs twelve for a character: a pair of escaped surrogates."""


class BadControl(NamedTuple):
    """A message on `push.control` that can't be carried out."""

    problem: str
    """The path of the wrong field, if it is one, and what was expected. For people."""


def decode_control(body: bytes, size: int = 0) -> Recall | Revocation | BadControl:
    """Read a control message; `size` is that of the published body, where `body` was cut. Never raises.

    A recall names a push id, or a user and a collapse key, never both. A revocation names a user and a time, a `jti`
    or a session. Unknown and repeated members are refused: neither must do less than its sender meant.
    """
    try:
        return finish(_control(body, size))
    except InvalidRequest as wrong:
        return BadControl(wrong.detail)


def decode_recall(body: bytes) -> Recall | BadControl:
    """As `decode_control`, for a recall without `type`, from a place where only recalls are sent."""
    try:
        return _recall(finish(_members(body, 0)))
    except InvalidRequest as wrong:
        return BadControl(wrong.detail)


def decode_revocation(body: bytes) -> Revocation | BadControl:
    """As `decode_control`, for a revocation without `type`, from a place where only revocations are sent."""
    try:
        return _revocation(finish(_members(body, 0)))
    except InvalidRequest as wrong:
        return BadControl(wrong.detail)


def _control(body: bytes, size: int) -> Steps[Recall | Revocation]:
    asked = yield from _members(body, size)
    what = asked.pop("type", None)
    if not isinstance(what, str):
        raise InvalidRequest(Reason.INVALID, "type", f"expected a string, got {kind(what)}")
    if what == "revoke":
        return _revocation(asked)
    if what != "recall":
        raise InvalidRequest(
            Reason.INVALID, "type", f"{jsontext.shown(what)} is not known, expected recall or revoke"
        )
    return _recall(asked)


def _members(body: bytes, size: int) -> Steps[dict[str, object]]:
    """The members of a control message; raises InvalidRequest."""
    size = max(size, len(body))
    if size > CONTROL_BYTES_MAX:
        raise InvalidRequest(
            Reason.TOO_LARGE, "", f"the message has {size} bytes, {CONTROL_BYTES_MAX} are allowed"
        )
    yield from jsontext.check(body)
    asked = jsontext.shallow_value(body.strip(jsontext.SPACE))
    if asked == math.inf:
        raise InvalidRequest(Reason.INVALID, "", "a number is out of range")
    if not isinstance(asked, ObjectText):
        raise InvalidRequest(Reason.INVALID, "", f"expected an object, got {kind(asked)}")
    members: dict[str, object] = {}
    for member in jsonparts.members(asked.text):
        if member is None:
            yield
            continue
        name, text = member
        if name in members:
            raise InvalidRequest(Reason.INVALID, jsontext.shown(name), "given twice")
        members[name] = jsontext.shallow_value(text)
    return members


def _recall(asked: dict[str, object]) -> Recall:
    for name in asked:
        if name not in _RECALL_FIELDS:
            raise InvalidRequest(Reason.INVALID, jsontext.shown(name), "no such field")
    given = asked.keys() - {"tenant"}
    if given not in _RECALL_FORMS:
        raise InvalidRequest(
            Reason.INVALID,
            "",
            "expected push_id, or user and collapse_key, got"
            f" {' and '.join(name for name in asked if name in given) or 'none'}",
        )
    return Recall(**{name: fields.checked_id(asked[name], name) for name in asked})


def _revocation(asked: dict[str, object]) -> Revocation:
    for name in asked:
        if name not in _REVOKE_FIELDS:
            raise InvalidRequest(Reason.INVALID, jsontext.shown(name), "no such field")
    if asked.keys() not in _REVOKE_FORMS:
        raise InvalidRequest(
            Reason.INVALID,
            "",
            f"expected user and before, or jti, or session, got {' and '.join(asked) or 'none'}",
        )
    if "user" in asked:
        return Revocation(user=fields.checked_id(asked["user"], "user"), before=_moment(asked["before"]))
    if "session" in asked:
        return Revocation(session=fields.checked_id(asked["session"], "session"))
    return Revocation(token_id=_token_id(asked["jti"]))


def _moment(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(Reason.INVALID, "before", f"expected unix seconds, got {kind(value)}")
    if not 0 < value <= BEFORE_MAX:
        hint = "it looks like milliseconds" if value > BEFORE_MAX else "it must be above 0"
        raise InvalidRequest(Reason.INVALID, "before", f"expected unix seconds: {hint}")
    return float(value)


def _token_id(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(Reason.INVALID, "jti", f"expected a string, got {kind(value)}")
    if not 0 < len(value) <= TOKEN_ID_MAX or "\0" in value or not _encodable(value):
        raise InvalidRequest(
            Reason.INVALID,
            "jti",
            f"expected 1 to {TOKEN_ID_MAX} characters, none of them U+0000 or a lone surrogate",
        )
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def revoke_reply(node: str, answer: RevocationAnswer, took_ms: float) -> bytes:
    """What the node answers that has committed a revocation, when the live nodes have carried it out."""
    return encode(
        {
            "type": "revoke",
            "node": node,
            "sessions": answer.sessions,
            "took_ms": took_ms,
            "nodes": answer.nodes,
            "silent": answer.silent,
            "gone": answer.gone,
        }
    )


def control_reply(what: str, node: str, sessions: int, took_ms: float, ended: int) -> bytes:
    """What one node answers to a control message of type `what` that it carried out.

    `sessions`: open sessions that were told, `ended`: rows that ended by it.
    """
    return encode({"type": what, "node": node, "sessions": sessions, "took_ms": took_ms, "ended": ended})


def control_error(node: str, problem: str) -> bytes:
    """What one node answers to a control message that it did not carry out."""
    return encode({"type": "error", "node": node, "problem": problem})
