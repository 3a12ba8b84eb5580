"""Encode and decode the frames of a session. Pure: no I/O."""

from __future__ import annotations

import base64
from typing import Literal, NamedTuple, TypeAlias, TypeGuard

import msgspec
from msgspec import Raw

from bridge.core.contract import jsontext
from bridge.core.contract.fields import Id, has_no_controls, is_id, kind
from bridge.core.contract.jsontext import BAD_JSON, encode
from bridge.core.model.pushes import Encoding, PushRequest
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.sockets import Frame

Ref: TypeAlias = str | int | None
"""The `ref` of a client's frame, repeated in the answer; None where there is no usable one."""


def push_frame(request: PushRequest) -> Frame:
    """A push in the envelope of `bridge.v1.json`; JSON data is copied byte for byte.

    The tenant is included where the push has one: ids are unique within their tenant.
    """
    of = b',"tenant":%b' % encode(request.tenant) if request.tenant else b""
    head = b'{"type":"push","id":%b%b,"event":%b,"data":' % (encode(request.id), of, encode(request.event))
    if request.encoding is Encoding.JSON:
        return Frame(b"%b%b}" % (head, request.data))
    if request.encoding is Encoding.TEXT:
        return Frame(b"%b%b}" % (head, encode(request.data.decode())))
    return Frame(b'%b"%b","encoding":"base64"}' % (head, base64.b64encode(request.data)))


def bare_frame(request: PushRequest) -> Frame:
    """Only the data: a JSON string as the text it stands for, other JSON as its text, bytes as bytes."""
    if request.encoding is Encoding.BYTES:
        return Frame(request.data, binary=True)
    if request.encoding is Encoding.JSON and request.data[:1] == b'"':
        return Frame(jsontext.decode_str(request.data).encode())
    return Frame(request.data)


HEARTBEAT_EVERY = 10
"""Seconds within which a session in envelope mode gets a frame: a heartbeat if nothing else is sent. Browsers hide
pings from pages, so a page could not tell a quiet connection from a dead one."""
HEARTBEAT = Frame(b'{"type":"heartbeat"}')
"""Only says that the connection is alive."""


def welcome_frame(session: str, user: str, complete: bool) -> Frame:
    """The first frame of a session.

    `complete`: nothing that was kept since the push to resume from is missing; true where the client does not resume.
    If that turns out to be wrong during the replay, a second welcome says false.
    """
    said = {"type": "welcome", "session": session, "user": user, "complete": complete}
    return Frame(encode({**said, "heartbeat": HEARTBEAT_EVERY}))


REFRESH = Frame(b'{"type":"refresh"}')
"""Asks the client for a new token: its own expires soon."""


def withdraw_frame(push_id: str, tenant: str = "") -> Frame:
    """The push with this id was recalled: a client that shows it should remove it."""
    of = {"tenant": tenant} if tenant else {}
    return Frame(encode({"type": "withdraw", "id": push_id, **of}))


def error_frame(code: str, message: str, ref: Ref = None) -> Frame:
    """The answer to a frame that was refused. `code` is a fixed word, `message` is for people."""
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


class AckFrame(NamedTuple):
    """The application has the push with this id."""

    id: str
    tenant: str | None = None
    """The tenant of the push; empty where it has none. None where the client does not say."""
    ref: Ref = None


class RefreshFrame(NamedTuple):
    """A new token for the session."""

    token: str
    ref: Ref


class UnsupportedFrame(NamedTuple):
    """A frame for a feature that this version does not have."""

    type: str
    ref: Ref


class BadFrame(NamedTuple):
    """A message that is not a frame of the contract."""

    problem: str
    ref: Ref


ClientFrame: TypeAlias = AckFrame | RefreshFrame | UnsupportedFrame | BadFrame
UNSUPPORTED_FRAMES = frozenset(("subscribe", "unsubscribe", "publish"))
"""Types of frames for features that this version does not have."""
_REF_INT_MAX = 2**53 - 1
"""The largest integer that every client reads exactly (RFC 8259 section 6)."""
_NULL = Raw(b"null")


class _Ack(msgspec.Struct, gc=False):
    # Not a tag, which may be missing.
    type: Literal["ack"]
    id: Id
    tenant: Id | msgspec.UnsetType | None = msgspec.UNSET
    ref: str | int | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


class _Frame(msgspec.Struct, gc=False):
    """The members of a frame that are read; others are skipped, whatever they hold and however many."""

    type: Raw = _NULL
    id: Raw = _NULL
    tenant: Raw = _NULL
    token: Raw = _NULL
    ref: Raw = _NULL


_decode_frame = msgspec.json.Decoder(_Frame).decode


def parse_client(data: str | bytes) -> ClientFrame:
    """Read a client's message, from a text or a binary frame. Never raises; unknown members are ignored.

    Takes no longer than to skip the text: the size of a message is its bound.
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
        got = kind(jsontext.shallow_value(text.strip(jsontext.SPACE)))
        return BadFrame(f"expected an object, got {got}", None)
    except BAD_JSON:
        return BadFrame("expected a JSON object in UTF-8", None)
    given = jsontext.shallow_value(bytes(frame.ref))
    ref = given if _is_ref(given) else None
    if given is not None and ref is None:
        return BadFrame(f"ref: expected an id or an integer, got {kind(given)}", None)
    what = jsontext.shallow_value(bytes(frame.type))
    if what == "ack":
        push_id = jsontext.shallow_value(bytes(frame.id))
        if isinstance(push_id, str) and is_id(push_id):
            tenant = jsontext.shallow_value(bytes(frame.tenant))
            return BadFrame(f"tenant: expected that of the push, got {kind(tenant)}", ref)
        return BadFrame(f"id: expected the id of a push, got {kind(push_id)}", ref)
    if not isinstance(what, str):
        return BadFrame(f"type: expected a string, got {kind(what)}", ref)
    if what == "auth":
        return BadFrame(
            "type: auth can only be the first message, and only if the handshake had no token", ref
        )
    if what == "refresh":
        token = jsontext.shallow_value(bytes(frame.token))
        if isinstance(token, str):
            return RefreshFrame(token.strip(), ref)
        return BadFrame(f"token: expected a string, got {kind(token)}", ref)
    if what in UNSUPPORTED_FRAMES:
        return UnsupportedFrame(what, ref)
    return BadFrame(f"type: {jsontext.shown(what)} is not known", ref)


def _ack(data: str | bytes) -> AckFrame | None:
    """The ack frame, as nearly every message is one; None for any other message."""
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
