"""Bytes and model: push requests in (see `decoding`), frames both ways, receipts out, control messages in and
their replies out. Pure: no I/O.
"""

from __future__ import annotations

import base64
import math
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias, TypeGuard

import msgspec
from msgspec import Raw

from bridge import fields, jsonparts, jsontext
from bridge.decoding import Decoded, Limits, begin, decode, decode_in_steps, request_body
from bridge.errors import InvalidRequest
from bridge.fields import Id, has_no_controls, is_id, kind
from bridge.jsontext import BAD_JSON, ObjectText, encode
from bridge.model import NO_USER, CloseReason, Encoding, PushRequest, Reason, Recall, Row
from bridge.ports import Frame
from bridge.stepping import Steps, finish

__all__ = [
    "CONTROL_BYTES_MAX",
    "HEARTBEAT",
    "HEARTBEAT_EVERY",
    "UNSUPPORTED_FRAMES",
    "AckFrame",
    "BadControl",
    "BadFrame",
    "ClientFrame",
    "Decoded",
    "Limits",
    "Ref",
    "UnsupportedFrame",
    "bare_frame",
    "begin",
    "bye_frame",
    "control_error",
    "control_reply",
    "decode",
    "decode_control",
    "decode_in_steps",
    "decode_recall",
    "error_frame",
    "ok_frame",
    "parse_client",
    "push_frame",
    "receipt_body",
    "request_body",
    "welcome_frame",
    "withdraw_frame",
]

# --- Frames out ------------------------------------------------------------------------------------------

Ref: TypeAlias = str | int | None
"""What a client put into `ref`, given back with the answer; None where it gave none that is usable."""


def push_frame(request: PushRequest) -> Frame:
    """A push in the envelope of `bridge.v1.json`; JSON data goes in byte for byte as it came.

    The tenant is there where the push has one: ids are unique within their tenant.
    """
    of = b',"tenant":%b' % encode(request.tenant) if request.tenant else b""
    head = b'{"type":"push","id":%b%b,"event":%b,"data":' % (encode(request.id), of, encode(request.event))
    if request.encoding is Encoding.JSON:
        return Frame(b"%b%b}" % (head, request.data))
    if request.encoding is Encoding.TEXT:
        return Frame(b"%b%b}" % (head, encode(request.data.decode())))
    return Frame(b'%b"%b","encoding":"base64"}' % (head, base64.b64encode(request.data)))


def bare_frame(request: PushRequest) -> Frame:
    """Just the data: a JSON string as the text that it stands for, other JSON as its text, bytes as bytes."""
    if request.encoding is Encoding.BYTES:
        return Frame(request.data, binary=True)
    if request.encoding is Encoding.JSON and request.data[:1] == b'"':
        return Frame(jsontext.decode_str(request.data).encode())
    return Frame(request.data)


HEARTBEAT_EVERY = 10
"""Seconds in which a session in envelope mode gets a frame: where nothing else is sent, a heartbeat. A browser
hides pings from its page, which could not tell a quiet line from a dead one."""

HEARTBEAT = Frame(b'{"type":"heartbeat"}')
"""Says that the line is alive, and nothing else."""


def welcome_frame(session: str, user: str, complete: bool) -> Frame:
    """The first frame of a session.

    `complete`: nothing that was kept is missing since the push it asked to resume from; true where it asked
    for none. Where that turns out to be wrong while what is kept is sent, a second one says false.
    """
    said = {"type": "welcome", "session": session, "user": user, "complete": complete}
    return Frame(encode({**said, "heartbeat": HEARTBEAT_EVERY}))


def withdraw_frame(push_id: str, tenant: str = "") -> Frame:
    """The push with this id was recalled: whoever shows it should not any longer."""
    of = {"tenant": tenant} if tenant else {}
    return Frame(encode({"type": "withdraw", "id": push_id, **of}))


def error_frame(code: str, message: str, ref: Ref = None) -> Frame:
    """The answer to a frame that was not carried out. `code` is a fixed word, `message` is for people."""
    return Frame(encode({"type": "error", "code": code, "message": message, **_with_ref(ref)}))


def ok_frame(ref: Ref = None) -> Frame:
    """The answer to a frame that was carried out."""
    return Frame(encode({"type": "ok", **_with_ref(ref)}))


def bye_frame(reason: CloseReason, retry_after: float) -> Frame:
    """The last frame before a close. `retry_after`: seconds to wait before coming back."""
    return Frame(
        encode({"type": "bye", "code": reason.code, "reason": reason.word, "retry_after": retry_after})
    )


def _with_ref(ref: Ref) -> dict[str, Ref]:
    return {} if ref is None else {"ref": ref}


# --- Frames in -------------------------------------------------------------------------------------------


class AckFrame(NamedTuple):
    """The application has got the push with this id."""

    id: str
    tenant: str | None = None
    """Of the push; empty for one without a tenant. None where the client does not say."""
    ref: Ref = None


class UnsupportedFrame(NamedTuple):
    """A frame of the contract whose feature this version does not have."""

    type: str
    ref: Ref


class BadFrame(NamedTuple):
    """A message that is no frame of the contract."""

    problem: str
    ref: Ref


ClientFrame: TypeAlias = AckFrame | UnsupportedFrame | BadFrame

UNSUPPORTED_FRAMES = frozenset(("subscribe", "unsubscribe", "refresh", "publish"))
"""Types of frames that a later version takes."""

_REF_INT_MAX = 2**53 - 1
"""The largest integer that every client reads back as it was (RFC 8259 section 6)."""


_NULL = Raw(b"null")


class _Ack(msgspec.Struct, tag_field="type", tag="ack", gc=False):
    id: Id
    tenant: Id | msgspec.UnsetType | None = msgspec.UNSET
    ref: str | int | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


class _Frame(msgspec.Struct, gc=False):
    """What is looked at in a frame; other members are passed over, whatever they hold and however many they are."""

    type: Raw = _NULL
    id: Raw = _NULL
    tenant: Raw = _NULL
    ref: Raw = _NULL


_decode_frame = msgspec.json.Decoder(_Frame).decode


def parse_client(data: str | bytes) -> ClientFrame:
    """Read a client's message, from a text or a binary frame. Never raises; unknown members are ignored.

    Takes no longer than it takes to pass over the text: the size of a message is its bound.
    """
    ack = _ack(data)
    if ack is not None:
        return ack
    try:
        text = data.encode() if isinstance(data, str) else data
        text.decode()
        jsontext.decode_raw(text)
        frame = _decode_frame(text)
    except RecursionError:
        return BadFrame("nested too deep", None)
    except msgspec.ValidationError:
        got = kind(jsontext.plain(text.strip(jsontext.SPACE)))
        return BadFrame(f"expected an object, got {got}", None)
    except BAD_JSON:
        return BadFrame("expected a JSON object in UTF-8", None)
    given = jsontext.plain(bytes(frame.ref))
    ref = given if _is_ref(given) else None
    if given is not None and ref is None:
        return BadFrame(f"ref: expected an id or an integer, got {kind(given)}", None)
    what = jsontext.plain(bytes(frame.type))
    if what == "ack":
        push_id = jsontext.plain(bytes(frame.id))
        if isinstance(push_id, str) and is_id(push_id):
            tenant = jsontext.plain(bytes(frame.tenant))
            return BadFrame(f"tenant: expected that of the push, got {kind(tenant)}", ref)
        return BadFrame(f"id: expected the id of a push, got {kind(push_id)}", ref)
    if not isinstance(what, str):
        return BadFrame(f"type: expected a string, got {kind(what)}", ref)
    if what in UNSUPPORTED_FRAMES:
        return UnsupportedFrame(what, ref)
    return BadFrame(f"type: {jsontext.shown(what)} is not known", ref)


def _ack(data: str | bytes) -> AckFrame | None:
    """The ack frame that nearly every message is, or None for whatever else it is."""
    try:
        ack = _decode_ack(data)
    except BAD_JSON:
        return None
    if not has_no_controls(ack.id):
        return None
    if ack.tenant is msgspec.UNSET and ack.ref is None:
        return AckFrame(ack.id)
    tenant = None if ack.tenant is msgspec.UNSET else ack.tenant or ""
    if (tenant and not has_no_controls(tenant)) or not (ack.ref is None or _is_ref(ack.ref)):
        return None
    return AckFrame(ack.id, tenant, ack.ref)


def _is_ref(value: object) -> TypeGuard[str | int]:
    if isinstance(value, str):
        return is_id(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _REF_INT_MAX


# --- Receipts out ----------------------------------------------------------------------------------------


class _Receipt(msgspec.Struct, omit_defaults=True, gc=False):
    push_id: str
    user_id: str | None
    outcome: str
    reason: str
    final: bool
    event: str | None
    tenant: str | None
    published_at: datetime
    taken_at: datetime
    written_at: datetime | None
    proven_at: datetime | None
    finished_at: datetime | None
    sessions: int
    attempts: int
    node: str
    detail: str = ""
    repeat: str = ""


def receipt_body(row: Row, *, differs: bool = False) -> bytes:
    """A row as the JSON of its receipt: times in RFC 3339, UTC; null for what is not known.

    `differs`: it answers a request with the row's id and other content.
    """
    key = row.key
    return encode(
        _Receipt(
            key.push_id,
            None if key.user == NO_USER else key.user,
            row.outcome,
            row.reason,
            row.final,
            row.event or None,
            key.tenant or None,
            datetime.fromtimestamp(row.published_at, UTC),
            datetime.fromtimestamp(row.taken_at, UTC),
            None if row.written_at is None else datetime.fromtimestamp(row.written_at, UTC),
            None if row.proven_at is None else datetime.fromtimestamp(row.proven_at, UTC),
            None if row.finished_at is None else datetime.fromtimestamp(row.finished_at, UTC),
            row.sessions,
            row.attempts,
            row.node,
            row.detail,
            "differs" if differs else "",
        )
    )


# --- Control ---------------------------------------------------------------------------------------------

_RECALL_FORMS = (frozenset(("push_id",)), frozenset(("user", "collapse_key")))
_RECALL_FIELDS = frozenset(("tenant",)).union(*_RECALL_FORMS)
CONTROL_BYTES_MAX = 8 * 1024
"""Bytes of a control message: the longest names need half of it, with every character escaped."""


class BadControl(NamedTuple):
    """A message on `push.control` that asks for nothing we can do."""

    problem: str
    """The path of the wrong field, where it is one, and what was expected. For people."""


def decode_control(body: bytes, size: int = 0) -> Recall | BadControl:
    """Read a control message; `size` is that of its body as it was published, where less of it came. Never raises.

    A recall names a push id, or a user and a collapse key, never both; no member is ignored and none may be
    given twice, so that nobody believes to have said more than was understood.
    """
    try:
        return finish(_control(body, size))
    except InvalidRequest as wrong:
        return BadControl(wrong.detail)


def decode_recall(body: bytes) -> Recall | BadControl:
    """As `decode_control`, for a recall that leaves out its `type`, since it came where nothing else comes."""
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
    asked = jsontext.plain(body.strip(jsontext.SPACE))
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
        members[name] = jsontext.plain(text)
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
