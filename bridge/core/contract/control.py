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

_RECALL_FORMS = (frozenset(("push_id",)), frozenset(("user", "collapse_key")))
_RECALL_FIELDS = frozenset(("tenant",)).union(*_RECALL_FORMS)
CONTROL_BYTES_MAX = 8 * 1024
"""Bytes of a control message. The longest names, with every character escaped, need half of it."""


class BadControl(NamedTuple):
    """A message on `push.control` that can't be carried out."""

    problem: str
    """The path of the wrong field, if it is one, and what was expected. For people."""


def decode_control(body: bytes, size: int = 0) -> Recall | BadControl:
    """Read a control message; `size` is that of the published body, where `body` was cut. Never raises.

    A recall names a push id, or a user and a collapse key, never both. Unknown and repeated members are refused: a
    recall must not do less than its sender meant.
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


def _control(body: bytes, size: int) -> Steps[Recall]:
    asked = yield from _members(body, size)
    what = asked.pop("type", None)
    if not isinstance(what, str):
        raise InvalidRequest(Reason.INVALID, "type", f"expected a string, got {kind(what)}")
    if what == "revoke":
        raise InvalidRequest(Reason.UNSUPPORTED, "type", "this version does not have revocations")
    if what != "recall":
        raise InvalidRequest(Reason.INVALID, "type", f"{jsontext.shown(what)} is not known, expected recall")
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


def control_reply(what: str, node: str, sessions: int, took_ms: float, ended: int) -> bytes:
    """What one node answers to a control message of type `what` that it carried out.

    `sessions`: open sessions that were told, `ended`: rows that ended by it.
    """
    return encode({"type": what, "node": node, "sessions": sessions, "took_ms": took_ms, "ended": ended})


def control_error(node: str, problem: str) -> bytes:
    """What one node answers to a control message that it did not carry out."""
    return encode({"type": "error", "node": node, "problem": problem})
