"""Push requests in: one AMQP message to checked requests and rejections. Pure, and it never raises.

What the contract (schemas/) leaves to the decoder is settled here:

- **Two modes.** The body is a push request, or a JSON array of them (a batch). Payload-only mode, where the
  body is the data itself, starts with any `x-push-` header but these: `x-push-id` and `x-push-published-ms`
  are welcome in both modes; `x-push-reason`, `x-push-detail` and `x-push-buried-at` are what `push.dead` adds,
  and `x-push-replayed-at` what `bridge dead replay` adds, so that a dead letter can be published again as it
  is; `x-push-replay-of` is what `bridge replay` adds. Header names count exactly as written, in lower case.
- **Ids.** A request's own `id`, else the header `x-push-id`, else the AMQP `message_id`, else a UUIDv7. In a
  batch an element without an id takes `<that id>/<its index>`. A rejected request without a usable id gets
  `sha256-<hex>` of its bytes, its place and its properties, leaving out what changes when it comes again.
- **JSON** is RFC 8259 in UTF-8: no NaN, no lone surrogates. Of a key that occurs twice the last one counts,
  and none of them may be wrong. `data` nests at most 128 levels. An array whose brackets pair is a batch:
  what is not JSON inside one element costs that element only. Where they do not, it costs all of them.
- **Payload-only bodies** by content type: `application/json` and `+json` must be JSON; `text/*` must be
  UTF-8; none given: JSON where it is JSON, else text where it is UTF-8, else bytes (say `text/plain` for
  text such as `123`); anything else: bytes. `x-push-users` and `x-push-except` are an AMQP array, or a
  string with commas. `x-push-all` is true or "true", numbers may be strings (`60`, `0.5`): many tools can
  set no other type.
- **published_at** that is not after 1970, or more than `CLOCK_SKEW_MAX` ahead of the arrival, is no time:
  the next source counts (the header, the AMQP timestamp, the arrival).
- **Size.** A message over `MESSAGE_BYTES_MAX`, or naming more than `USERS_MAX` (request, user) pairs, is
  rejected as a whole; an accepted request to one session or to everyone counts as one pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from bridge import fields, jsontext
from bridge.errors import InvalidRequest
from bridge.fields import has_no_controls, is_id
from bridge.jsontext import BAD_JSON, SPACE
from bridge.model import (
    BATCH_MAX,
    CONFIRM,
    ID_MAX,
    MESSAGE_BYTES_MAX,
    USERS_MAX,
    Encoding,
    Proof,
    PushRequest,
    Reason,
    Rejected,
    Target,
    ToAll,
    ToSession,
    ToUser,
    ToUsers,
)
from bridge.ports import Arrival

CLOCK_SKEW_MAX = 60.0
"""Seconds that a producer's clock may be ahead of ours."""


class Limits(NamedTuple):
    """What an operator may change about the contract."""

    max_data_bytes: int = 65536
    """Bytes of `data` as it came: the JSON text, or the body in payload-only mode."""
    max_ttl: float = 30 * 86400.0
    """Seconds that a push may be kept: as long as its row. 0: nothing is kept here, every other ttl is refused."""


class Decoded(NamedTuple):
    """What one message holds: never empty, in the message's order."""

    requests: Sequence[PushRequest | Rejected]
    published_at: float
    """Wall-clock seconds."""
    traceparent: str
    """W3C Trace Context, or empty: a malformed one is ignored, as that standard asks (section 3.2)."""


DEFAULT_LIMITS: Final = Limits()


def decode(arrival: Arrival, limits: Limits) -> Decoded:
    """Read a message. Never raises, and answers the same for the same message but for made-up UUIDs.

    Of a batch only the wrong elements are rejected; `Rejected.body` is then that element's bytes.
    """
    properties = arrival.properties
    headers = properties.headers
    body = arrival.body
    published_at = arrived_at = arrival.arrived_at
    if properties.timestamp is not None and 0 < properties.timestamp <= arrived_at + CLOCK_SKEW_MAX:
        published_at = properties.timestamp
    traceparent = ""
    fallback_id = properties.message_id
    requests: Sequence[PushRequest | Rejected]
    try:
        payload_only = False
        if headers:
            traceparent = _traceparent(headers)
            fallback_id = _id_header(headers, fallback_id)
            published_at = _published_header(headers, published_at, arrived_at)
            payload_only = is_payload_only(headers)
        if arrival.body_size > len(body) or len(body) > MESSAGE_BYTES_MAX:
            raise InvalidRequest(
                Reason.TOO_LARGE,
                "",
                f"the message has {arrival.body_size} bytes, {MESSAGE_BYTES_MAX} are allowed",
            )
        if properties.content_encoding and properties.content_encoding.lower() not in _ENCODINGS:
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                "property content_encoding",
                f"expected none, utf-8 or identity, got {jsontext.shown(properties.content_encoding)}",
            )
        if payload_only:
            requests = (_payload_only(arrival, fallback_id, limits),)
        elif body[:1] != b"{" and body.lstrip(SPACE)[:1] == b"[":
            requests = _batch(arrival, fallback_id, limits)
        else:
            requests = (_one(arrival, body, None, fallback_id, limits),)
    except InvalidRequest as wrong:
        requests = (_rejected_whole(arrival, wrong, fallback_id),)
    return Decoded(requests, published_at, traceparent)


def request_body(
    data: object,
    *,
    user: str | None = None,
    users: Sequence[str] | None = None,
    session: str | None = None,
    everyone: bool = False,
    excluded: Sequence[str] = (),
    push_id: str | None = None,
    event: str | None = None,
    confirm: str | None = None,
    tenant: str | None = None,
    meta: Mapping[str, str] | None = None,
    ttl: float | None = None,
    collapse_key: str | None = None,
    ack_within: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """Build the body of a push request; a `msgspec.Raw` as `data` is JSON text that goes in as it is.

    Raises InvalidRequest where `decode` would reject it; `limits` are those of the bridge that takes it.
    """
    to = {
        "user": user,
        "users": users,
        "session": session,
        "all": True if everyone else None,
        "except": excluded or None,
    }
    optional = {
        "id": push_id,
        "event": event,
        "confirm": confirm,
        "tenant": tenant,
        "meta": meta,
        "ttl": ttl,
        "collapse_key": collapse_key,
        "ack_within": ack_within,
    }
    try:
        body = jsontext.encode(
            {
                **{name: value for name, value in optional.items() if value is not None},
                "to": {name: value for name, value in to.items() if value is not None},
                "data": data,
            }
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(Reason.INVALID, "", f"this cannot be said in JSON: {error}") from error
    _careful(body, jsontext.members(body), "", "", limits, 0.0)
    return body


# --- The fast pass: right in every point, or None --------------------------------------------------------

_Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)]
_Users: TypeAlias = Annotated[list[_Id], msgspec.Meta(min_length=1, max_length=USERS_MAX)]
_Sessions: TypeAlias = Annotated[list[_Id], msgspec.Meta(max_length=USERS_MAX)]
_Ttl: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_AckWithin: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=fields.ACK_WITHIN_MAX)]


class _To(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    user: _Id = ""
    session: _Id = ""
    users: _Users | UnsetType = UNSET
    all: bool | UnsetType = UNSET
    excluded: _Sessions | UnsetType = msgspec.field(default=UNSET, name="except")


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What nearly every request fits into; an empty string, or a zero, stands for an absent field."""

    to: _To
    data: Raw
    id: _Id = ""
    event: _Id = "message"
    confirm: str = "received"
    tenant: _Id = ""
    meta: Raw | UnsetType = UNSET
    ttl: _Ttl = 0.0
    collapse_key: _Id = ""
    ack_within: _AckWithin = 0.0


_decode_request = msgspec.json.Decoder(_Request).decode
_SHALLOW = 2 * jsontext.DEPTH_MAX
_decode_array = msgspec.json.Decoder(list[Raw]).decode


def _fast(raw: bytes | Raw, fallback_id: str, limits: Limits, taken_at: float) -> PushRequest | None:
    """Read a request in one pass; None says that the careful pass must look at it."""
    try:
        request = _decode_request(raw)
    except BAD_JSON:
        return None
    to = request.to
    user, session, users, everyone = to.user, to.session, to.users, to.all
    target: Target
    if user:
        if session or users is not UNSET or everyone is not UNSET or not has_no_controls(user):
            return None
        target = ToUser(user)
    elif users is not UNSET:
        if session or everyone is not UNSET or not has_no_controls("".join(users)):
            return None
        target = ToUsers(tuple(dict.fromkeys(users)))
    elif session:
        if everyone is not UNSET or not has_no_controls(session):
            return None
        target = ToSession(session)
    elif everyone is True:
        target = ToAll()
    else:
        return None
    excluded: frozenset[str] = frozenset()
    if to.excluded is not UNSET:
        if not has_no_controls("".join(to.excluded)):
            return None
        excluded = frozenset(to.excluded)
    data = bytes(request.data)
    confirm = CONFIRM.get(request.confirm)
    if confirm is None or request.ttl > limits.max_ttl or len(data) > limits.max_data_bytes:
        return None
    if request.ack_within and confirm is not Proof.ACKED:
        return None
    if not (data.isascii() or jsontext.is_utf8(data)) or (len(data) > _SHALLOW and jsontext.too_deep(data)):
        return None
    push_id = request.id or fallback_id
    event, tenant = request.event, request.tenant
    if not has_no_controls(event) or (push_id and not is_id(push_id)) or (tenant and not is_id(tenant)):
        return None
    if request.collapse_key and not has_no_controls(request.collapse_key):
        return None
    meta = b""
    if request.meta is not UNSET:
        meta = bytes(request.meta)
        if not _is_meta(meta):
            return None
    return PushRequest(
        push_id or fields.uuid7(taken_at),
        target,
        data,
        event,
        Encoding.JSON,
        confirm,
        excluded,
        tenant,
        meta,
        not push_id,
        request.ttl,
        request.collapse_key,
        request.ack_within,
    )


def _is_meta(text: bytes) -> bool:
    try:
        fields.check_meta(jsontext.decode_any(text), "meta")
    except (InvalidRequest, *BAD_JSON):
        return False
    return True


# --- The careful pass: what exactly is wrong -------------------------------------------------------------


def _careful(
    body: bytes,
    members: Mapping[str, bytes],
    where: str,
    fallback_id: str,
    limits: Limits,
    taken_at: float,
) -> PushRequest:
    """Read a request slowly; raises InvalidRequest with the path of the first wrong field."""

    def path(field: str) -> str:
        return f"{where}.{field}" if where else field

    jsontext.check(body, members, where)
    if body.lstrip(SPACE)[:1] != b"{":
        got = fields.kind(jsontext.value(body, where))
        raise InvalidRequest(Reason.INVALID, where, f"expected an object, got {got}")
    for name in members:
        if name not in fields.FIELDS:
            hint = ": it belongs inside `to`" if name in fields.TO_FIELDS else ""
            raise InvalidRequest(Reason.INVALID, path(jsontext.shown(name)), f"no such field{hint}")
    values = {
        name: jsontext.value(part, path(name)) for name, part in members.items() if name not in ("to", "data")
    }
    for needed in ("to", "data"):
        if needed not in members:
            raise InvalidRequest(Reason.INVALID, path(needed), "this field is required")
    to = jsontext.value(members["to"], path("to"))
    if not isinstance(to, dict):
        raise InvalidRequest(Reason.INVALID, path("to"), f"expected an object, got {fields.kind(to)}")
    for name, value in to.items():
        if name not in fields.TO_FIELDS:
            raise InvalidRequest(Reason.INVALID, path(f"to.{jsontext.shown(name)}"), "no such field")
        values[f"to.{name}"] = value
    data = members["data"]
    _check_size(data, path("data"), limits)
    if jsontext.too_deep(data):
        raise InvalidRequest(Reason.INVALID, path("data"), jsontext.TOO_DEEP)
    meta = members.get("meta", b"")
    return fields.build(values, path, data, Encoding.JSON, meta, fallback_id, taken_at, limits.max_ttl)


def _check_size(data: bytes, path: str, limits: Limits) -> None:
    if len(data) > limits.max_data_bytes:
        raise InvalidRequest(
            Reason.TOO_LARGE, path, f"expected at most {limits.max_data_bytes} bytes, got {len(data)}"
        )


# --- One request, a batch, or nothing at all -------------------------------------------------------------


def _one(
    arrival: Arrival, raw: bytes | Raw, index: int | None, fallback_id: str, limits: Limits
) -> PushRequest | Rejected:
    """Read one request. Raises InvalidRequest only where an element of a batch condemns the whole batch."""
    request = _fast(raw, fallback_id, limits, arrival.arrived_at)
    if request is not None:
        return request
    body = bytes(raw)
    members = jsontext.members(body)
    where = "" if index is None else f"[{index}]"
    try:
        return _careful(body, members, where, fallback_id, limits, arrival.arrived_at)
    except InvalidRequest as wrong:
        if wrong.reason == Reason.TOO_MANY and index is not None:
            raise
        return Rejected(
            _usable(members, "id") or _last_resort_id(arrival, body, index, fallback_id),
            Reason(wrong.reason),
            wrong.detail,
            body,
            _usable(members, "tenant"),
            _usable(members, "event"),
        )


def _batch(arrival: Arrival, fallback_id: str, limits: Limits) -> Sequence[PushRequest | Rejected]:
    elements: Sequence[bytes | Raw]
    try:
        elements = _decode_array(arrival.body)
    except BAD_JSON as error:
        # One element may be to blame. They are told apart by brackets alone, and each is judged by itself.
        pieces, whole = jsontext.split(arrival.body)
        elements = [piece.strip(SPACE) for piece in pieces]
        if not whole or not all(elements):
            jsontext.check(arrival.body, {}, "")
            raise InvalidRequest(Reason.NOT_JSON, "", "not JSON: the array is broken") from error
    if not elements:
        raise InvalidRequest(Reason.INVALID, "", "a batch holds at least one request, this one is empty")
    if len(elements) > BATCH_MAX:
        raise InvalidRequest(
            Reason.TOO_MANY, "", f"a batch holds at most {BATCH_MAX} requests, this one has {len(elements)}"
        )
    requests = []
    pairs = 0
    for index, element in enumerate(elements):
        request = _one(arrival, element, index, f"{fallback_id}/{index}" if fallback_id else "", limits)
        if isinstance(request, PushRequest):
            pairs += len(request.target.users) if isinstance(request.target, ToUsers) else 1
        requests.append(request)
    if pairs > USERS_MAX:
        raise InvalidRequest(
            Reason.TOO_MANY, "", f"a message names at most {USERS_MAX} users, this one names {pairs}"
        )
    return requests


def _rejected_whole(arrival: Arrival, wrong: InvalidRequest, fallback_id: str) -> Rejected:
    """Reject a message as a whole, under the best id that can be found in what there is of it."""
    members = jsontext.members(arrival.body)
    headers = arrival.properties.headers
    return Rejected(
        _usable(members, "id") or _last_resort_id(arrival, arrival.body, None, fallback_id),
        Reason(wrong.reason),
        wrong.detail,
        arrival.body,
        _usable_header(headers, "x-push-tenant") or _usable(members, "tenant"),
        _usable_header(headers, "x-push-event") or _usable(members, "event"),
    )


def _usable(members: Mapping[str, bytes], name: str) -> str:
    """The member of this name where it is usable as an id, else an empty string."""
    try:
        text = jsontext.decode_str(members.get(name, b""))
    except BAD_JSON:
        return ""
    return text if is_id(text) else ""


def _usable_header(headers: Mapping[str, object], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) and is_id(value) else ""


# What a broker adds, takes away or changes when a message comes again or is dead-lettered. It removes the
# property `expiration`, too.
_BROKER_HEADERS = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
)
_ROUTING_HEADERS = frozenset(("CC", "BCC"))


def _last_resort_id(arrival: Arrival, body: bytes, index: int | None, fallback_id: str) -> str:
    """The fallback id where it is usable, else one that is the same whenever this message comes again."""
    if is_id(fallback_id):
        return fallback_id
    p = arrival.properties
    headers = sorted(
        (name, _headline(value))
        for name, value in p.headers.items()
        if not name.startswith(_BROKER_HEADERS) and name not in _ROUTING_HEADERS
    )
    facts = (
        index,
        arrival.body_size,
        p.message_id,
        p.correlation_id,
        p.reply_to,
        p.app_id,
        p.user_id,
        p.content_type,
        p.content_encoding,
        p.timestamp,
        headers,
    )
    digest = hashlib.sha256(repr(facts).encode())
    digest.update(body)
    return f"sha256-{digest.hexdigest()}"


def _headline(value: object) -> str:
    """A header's value as text that is the same each time, whatever it is."""
    try:
        return repr(value)
    except (RecursionError, ValueError):
        return type(value).__name__


# --- Headers and properties ------------------------------------------------------------------------------

_ENCODINGS = frozenset(("utf-8", "utf8", "identity"))
_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii"))
_CHARSET = re.compile(r'charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")

_PREFIX = "x-push-"
_BOTH_MODES = frozenset(
    (
        "x-push-id",
        "x-push-published-ms",
        "x-push-reason",
        "x-push-detail",
        "x-push-buried-at",
        "x-push-replayed-at",
        "x-push-replay-of",
    )
)
_FIELD_OF: Mapping[str, str] = {
    "x-push-id": "id",
    "x-push-user": "to.user",
    "x-push-users": "to.users",
    "x-push-session": "to.session",
    "x-push-topic": "to.topic",
    "x-push-all": "to.all",
    "x-push-except": "to.except",
    "x-push-event": "event",
    "x-push-confirm": "confirm",
    "x-push-tenant": "tenant",
    "x-push-meta": "meta",
    "x-push-ttl": "ttl",
    "x-push-ack-within": "ack_within",
    "x-push-collapse-key": "collapse_key",
    "x-push-fallback": "fallback",
}
_HEADER_OF: Mapping[str, str] = {
    **{field: f"header {header}" for header, field in _FIELD_OF.items()},
    "to": "headers x-push-user, -users, -session, -all",
}


def is_payload_only(headers: Mapping[str, object]) -> bool:
    """Whether these headers make the body the data itself."""
    return any(name.startswith(_PREFIX) and name not in _BOTH_MODES for name in headers)


def _payload_only(arrival: Arrival, fallback_id: str, limits: Limits) -> PushRequest:
    """Read a message whose body is the data; raises InvalidRequest."""
    values: dict[str, object] = {}
    for name, value in arrival.properties.headers.items():
        field = _FIELD_OF.get(name)
        if field is not None:
            values[field] = _widened(field, value)
        elif name.startswith(_PREFIX) and name not in _BOTH_MODES:
            raise InvalidRequest(Reason.INVALID, f"header {jsontext.shown(name)}", "no such header")
    _check_size(arrival.body, "", limits)
    data, encoding = _payload(arrival.body, arrival.properties.content_type)
    meta = b""
    if "meta" in values:
        fields.check_meta(values["meta"], _HEADER_OF["meta"])
        meta = jsontext.encode(values["meta"])
    return fields.build(
        values,
        _HEADER_OF.__getitem__,
        data,
        encoding,
        meta,
        fallback_id,
        arrival.arrived_at,
        limits.max_ttl,
    )


def _widened(field: str, value: object) -> object:
    """What a header means: more than its type says, for the sake of tools that can only set strings."""
    if isinstance(value, str):
        if field in ("to.users", "to.except"):
            return [part.strip() for part in value.split(",")]
        if field == "to.all" and value == "true":
            return True
        if field in ("ttl", "ack_within") and _DECIMAL.fullmatch(value):
            return float(value)
    return value


def _payload(body: bytes, content_type: str) -> tuple[bytes, Encoding]:
    """Tell by its content type what a body is in payload-only mode; raises InvalidRequest."""
    kind, _, parameters = content_type.partition(";")
    kind = kind.strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    charset = _CHARSET.search(parameters)
    if charset and (is_json or kind.startswith("text/")) and charset[1].lower() not in _CHARSETS:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            "property content_type",
            f"expected the charset utf-8, got {jsontext.shown(charset[1])}",
        )
    if is_json:
        return _json_payload(body), Encoding.JSON
    if kind.startswith("text/"):
        if not jsontext.is_utf8(body):
            raise InvalidRequest(Reason.INVALID, "", "the content type says text, but it is not UTF-8")
        return body, Encoding.TEXT
    if kind or not jsontext.is_utf8(body):
        return body, Encoding.BYTES
    try:
        return _json_payload(body), Encoding.JSON
    except InvalidRequest:
        return body, Encoding.TEXT


def _json_payload(body: bytes) -> bytes:
    jsontext.check(body, {}, "")
    if jsontext.too_deep(body):
        raise InvalidRequest(Reason.INVALID, "", jsontext.TOO_DEEP)
    return body.strip(SPACE)


def _published_header(headers: Mapping[str, object], otherwise: float, arrived_at: float) -> float:
    if "x-push-published-ms" not in headers:
        return otherwise
    ms = headers["x-push-published-ms"]
    if isinstance(ms, str) and ms.isascii() and ms.isdecimal() and len(ms) < 20:
        ms = int(ms)
    if isinstance(ms, bool) or not isinstance(ms, int):
        # No floats: some libraries write them with 32 bits, which is off by a minute.
        raise InvalidRequest(
            Reason.INVALID,
            "header x-push-published-ms",
            f"expected milliseconds since 1970 as an integer, got {fields.kind(ms)}",
        )
    # Compared before it is divided: an integer may be too large for a float.
    return ms / 1000 if 0 < ms <= (arrived_at + CLOCK_SKEW_MAX) * 1000 else otherwise


def _id_header(headers: Mapping[str, object], otherwise: str) -> str:
    if "x-push-id" not in headers:
        return otherwise
    return fields.checked_id(headers["x-push-id"], "header x-push-id")


def _traceparent(headers: Mapping[str, object]) -> str:
    value = headers.get("traceparent")
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""
