"""A scheduled request while it waits, and the message that it becomes at its time.

A message with one request is published again as it came. The element of a batch becomes a message of its own. Either
way these headers are set:

| header | value |
|---|---|
| `x-push-id` | the id of the request, also where it was generated: copies of it are known by it |
| `x-push-published-ms` | when it was published first |
| `x-push-released` | `due`, or `recalled` where it was withdrawn before its time |

The AMQP message id is the entry's own, so that a returned message is known. What the broker would act on is left out:
`user_id`, `expiration`, priority, `CC` and `BCC`, and what it added itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from bridge.core.contract import jsontext
from bridge.core.contract.jsontext import SPACE
from bridge.core.contract.requests.headers import MS_LEAST, RELEASED, is_payload_only, without_nulls
from bridge.core.contract.requests.rejecting import BROKER_HEADERS, ROUTING_HEADERS
from bridge.core.model.outcomes import CONFIRM
from bridge.core.model.pushes import (
    Properties,
    PushRequest,
    Timestamp,
    ToAll,
    ToSession,
    ToTopic,
    ToUser,
    ToUsers,
)
from bridge.core.model.scheduled import Scheduled
from bridge.core.ports.broker import Arrival
from bridge.core.ports.scheduling import Release

DUE: Final = "due"
RECALLED: Final = "recalled"
_TIMESTAMP, _TEXT = 1, 2
"""Types of MessagePack extensions: an AMQP timestamp, and a text that UTF-8 can't hold."""
_TEXTS: Final = ("content_type", "content_encoding", "correlation_id", "reply_to", "app_id")
_WORD = {proof: word for word, proof in CONFIRM.items()}

_encode = msgspec.msgpack.Encoder().encode
_CANNOT_ENCODE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def released_as(headers: Mapping[str, object]) -> str:
    """Empty for a message that was not scheduled, else why it was released: `due` or `recalled`."""
    word = headers.get(RELEASED)
    return "" if word is None else RECALLED if word == RECALLED else DUE


def body_of(arrival: Arrival, request: PushRequest) -> bytes:
    """The body of the message that this request becomes."""
    body = arrival.body
    if body.lstrip(SPACE)[:1] != b"[" or is_payload_only(without_nulls(arrival.properties.headers)):
        return body
    return _element(request)


def packed(arrival: Arrival, request: PushRequest, published_at: float) -> bytes:
    """The properties that this request is published again with, as bytes. Headers that can't be kept are left out."""
    properties = arrival.properties
    headers: dict[str, object] = {}
    for name, value in without_nulls(properties.headers).items():
        if name.startswith(BROKER_HEADERS) or name in ROUTING_HEADERS:
            continue
        try:
            kept = _kept(value)
            _encode((name, kept))
        except _CANNOT_ENCODE:
            continue
        headers[name] = kept
    headers["x-push-id"] = request.id
    published_ms = int(published_at * 1000)
    if published_ms >= MS_LEAST:
        headers["x-push-published-ms"] = published_ms
    values: dict[str, object] = {"headers": headers}
    for name in _TEXTS:
        text = getattr(properties, name)
        if text:
            values[name] = text.encode("utf-8", "surrogatepass")
    return _encode(values)


def release_of(entry: Scheduled) -> Release:
    """The message that an entry becomes at its time, or when it was recalled."""
    values = msgspec.msgpack.decode(entry.properties, ext_hook=_extension)
    headers: dict[str, object] = values.pop("headers")
    headers[RELEASED] = RECALLED if entry.recalled else DUE
    texts = {name: value.decode("utf-8", "surrogatepass") for name, value in values.items()}
    properties = Properties(message_id=entry.id, headers=headers, **texts)
    return Release(entry.id, entry.key, entry.body, properties)


def _kept(value: object) -> object:
    """The value of a header as MessagePack can hold it. Raises TypeError, ValueError or RecursionError."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return msgspec.msgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
        return value
    if isinstance(value, Timestamp):
        return msgspec.msgpack.Ext(_TIMESTAMP, str(int(value)).encode())
    if isinstance(value, Mapping):
        return {name: _kept(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(inner) for inner in value]
    return value


def _extension(code: int, data: memoryview) -> object:
    raw = bytes(data)
    return Timestamp(int(raw)) if code == _TIMESTAMP else raw.decode("utf-8", "surrogatepass")


def _element(request: PushRequest) -> bytes:
    """An element of a batch as a request of its own; its id is in a header. Its data is JSON, exactly as it came."""
    target = request.target
    to: dict[str, object]
    match target:
        case ToUser():
            to = {"user": target.user}
        case ToUsers():
            to = {"users": target.users}
        case ToSession():
            to = {"session": target.session}
        case ToTopic():
            to = {"topic": target.topic}
        case ToAll():
            to = {"all": True}
    if request.excluded:
        to["except"] = sorted(request.excluded)
    members: dict[str, object] = {
        "to": to,
        "data": Raw(request.data),
        "event": request.event,
        "confirm": _WORD[request.confirm],
        "deliver_at": request.deliver_at,
    }
    fallback = request.fallback
    optional = {
        "tenant": request.tenant,
        "meta": Raw(request.meta) if request.meta else None,
        "ttl": request.ttl,
        "collapse_key": request.collapse_key,
        "ack_within": request.ack_within,
        "devices": "first" if request.first_device else None,
        "retain": request.retain,
        "fallback": None
        if fallback is None
        else {"after": fallback.after, "routing_key": fallback.routing_key},
    }
    members.update((name, value) for name, value in optional.items() if value)
    return jsontext.encode(members)
