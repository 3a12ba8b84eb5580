"""Read the frames that a client sends. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, TypeGuard

import msgspec
from msgspec import Raw

from bridge.core.contract import jsontext
from bridge.core.contract.fields import Id, has_no_controls, is_id, kind
from bridge.core.contract.frames import Ref
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.contract.patterns import id_problem, name_problem
from bridge.core.contract.routing_keys import KEY_BYTES_MAX


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


class PublishFrame(NamedTuple):
    """Something for the systems that listen on push.inbound."""

    event: str
    data: bytes
    """JSON, byte for byte as it came; null where there is none."""
    topic: str | None
    ref: Ref


class SubscribeFrame(NamedTuple):
    """The session is to get what is published to a topic."""

    topic: str
    ref: Ref


class UnsubscribeFrame(NamedTuple):
    """Not any more."""

    topic: str
    ref: Ref


class BadFrame(NamedTuple):
    """A message that is not a frame of the contract."""

    problem: str
    ref: Ref


ClientFrame: TypeAlias = AckFrame | RefreshFrame | PublishFrame | SubscribeFrame | UnsubscribeFrame | BadFrame
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
    event: Raw = _NULL
    data: Raw = _NULL
    topic: Raw = _NULL
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
    given = _value(frame.ref)
    ref = given if _is_ref(given) else None
    if given is not None and ref is None:
        return BadFrame(f"ref: expected an id or an integer, got {kind(given)}", None)
    if frame.type is _NULL:
        return BadFrame("type: this field is required", ref)
    what = _value(frame.type)
    if not isinstance(what, str):
        return BadFrame(f"type: expected a string, got {kind(what)}", ref)
    read = _READERS.get(what)
    if read is not None:
        return read(frame, ref)
    return BadFrame(f"type: {jsontext.shown(what)} is not known", ref)


def _value(text: Raw) -> object:
    return jsontext.shallow_value(bytes(text))


def _wrong_ack(frame: _Frame, ref: Ref) -> ClientFrame:
    """An ack that `_ack` could not read."""
    if frame.id is _NULL:
        return BadFrame("id: this field is required", ref)
    problem = id_problem(_value(frame.id), "the id of a push")
    if problem:
        return BadFrame(f"id: {problem}", ref)
    tenant = _value(frame.tenant)
    problem = "" if tenant is None else id_problem(tenant, "that of the push")
    # Of a field that is there twice only the last one was looked at here.
    return BadFrame(f"tenant: {problem}" if problem else "expected each field once, got one twice", ref)


def _late_auth(frame: _Frame, ref: Ref) -> ClientFrame:
    return BadFrame("type: auth can only be the first message, and only if the handshake had no token", ref)


def _refresh(frame: _Frame, ref: Ref) -> ClientFrame:
    if frame.token is _NULL:
        return BadFrame("token: this field is required", ref)
    token = _value(frame.token)
    if isinstance(token, str):
        return RefreshFrame(token.strip(), ref)
    return BadFrame(f"token: expected a string, got {kind(token)}", ref)


def _publish(frame: _Frame, ref: Ref) -> ClientFrame:
    if frame.event is _NULL:
        return BadFrame("event: this field is required", ref)
    event, topic = _value(frame.event), _value(frame.topic)
    problem = name_problem(event)
    if problem:
        return BadFrame(f"event: {problem}", ref)
    assert isinstance(event, str)
    if len(event.encode()) > KEY_BYTES_MAX:
        return BadFrame(f"event: expected at most {KEY_BYTES_MAX} bytes in UTF-8, got more", ref)
    if topic is None:
        return PublishFrame(event, bytes(frame.data), None, ref)
    problem = name_problem(topic)
    if problem:
        return BadFrame(f"topic: {problem}", ref)
    assert isinstance(topic, str)
    return PublishFrame(event, bytes(frame.data), topic, ref)


def _subscribe(frame: _Frame, ref: Ref) -> ClientFrame:
    return _of_topic(frame, ref, SubscribeFrame)


def _unsubscribe(frame: _Frame, ref: Ref) -> ClientFrame:
    return _of_topic(frame, ref, UnsubscribeFrame)


def _of_topic(frame: _Frame, ref: Ref, of: type[SubscribeFrame] | type[UnsubscribeFrame]) -> ClientFrame:
    if frame.topic is _NULL:
        return BadFrame("topic: this field is required", ref)
    topic = _value(frame.topic)
    problem = name_problem(topic)
    if problem or not isinstance(topic, str):
        return BadFrame(f"topic: {problem}", ref)
    return of(topic, ref)


_READERS: Final[Mapping[str, Callable[[_Frame, Ref], ClientFrame]]] = {
    "ack": _wrong_ack,
    "auth": _late_auth,
    "refresh": _refresh,
    "publish": _publish,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
}


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
