"""Read AMQP headers: those of any message, and those of payload-only mode, where the body is the data."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.core.contract import fields, jsontext
from bridge.core.contract.jsontext import SPACE
from bridge.core.contract.lists import CommaText
from bridge.core.contract.requests.careful import check_size
from bridge.core.contract.requests.terms import Limits
from bridge.core.contract.requests.wrong import Wrong
from bridge.core.contract.stepping import PARTS_AT_ONCE, Steps
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding, PushRequest, Timestamp
from bridge.core.ports.broker import Arrival

CLOCK_SKEW_MAX = 60.0
"""Seconds that a producer's clock may be ahead of ours."""
MS_LEAST = 978_307_200_000
"""The beginning of 2001. A time in seconds is less than this until the year 32,971."""

_CHARSETS = frozenset(("utf-8", "utf8", "us-ascii"))
_CHARSET = re.compile(r'charset\s*=\s*"?([^\s";]+)', re.IGNORECASE)
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_DECIMAL_CHARS = 1024
"""A longer number is out of range."""

_PREFIX = "x-push-"
_NAME_CHARS = 64
"""No spelling of one of our headers is longer."""
_NO_LETTER = re.compile("[^a-z]+")
RELEASED = "x-push-released"
"""The header of a message that was scheduled: `due`, its time has come; `recalled`, it was withdrawn before."""
BOTH_MODES = frozenset(
    (
        "x-push-id",
        "x-push-published-ms",
        "x-push-reason",
        "x-push-detail",
        "x-push-buried-at",
        "x-push-replayed-at",
        "x-push-replay-of",
        RELEASED,
    )
)
FIELD_OF: Mapping[str, str] = {
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
    "x-push-devices": "devices",
    "x-push-retain": "retain",
    "x-push-fallback-after": "fallback.after",
    "x-push-fallback-key": "fallback.routing_key",
    "x-push-deliver-at": "deliver_at",
}
HEADER_OF: Mapping[str, str] = {
    **{field: f"header {header}" for header, field in FIELD_OF.items()},
    "to": "headers x-push-user, -users, -session, -topic, -all",
}


_YES, _NO = frozenset(("true", "1")), frozenset(("false", "0"))
"""What clients that can only set strings write for true and false, in lower case (Python writes `True`)."""


_KNOWN: Mapping[str, str] = {_NO_LETTER.sub("", name): name for name in (*FIELD_OF, *sorted(BOTH_MODES))}
"""The names of our headers by their letters alone, which are the same in every spelling."""


def meant(name: str) -> str:
    """The header of ours that this name misspells; empty where it is no header of ours, or spelt right."""
    # Every spelling of ours begins with an x.
    if name[:1] not in ("x", "X") or len(name) > _NAME_CHARS:
        return ""
    known = _KNOWN.get(_NO_LETTER.sub("", name.lower()), "")
    return known if known != name else ""


def misspelt_headers(headers: Mapping[str, object]) -> str:
    """A sentence about headers that misspell ours; empty where there are none."""
    names = [(name, known) for name in headers if (known := meant(name))]
    if not names:
        return ""
    name, known = names[0]
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"header {jsontext.shown(name)}{more}: {WRITE_SO.format(known)}"


WRITE_SO = "no such header: write {} so, in lower case and with hyphens"


def without_nulls(headers: Mapping[str, object]) -> Mapping[str, object]:
    """The headers without nulls: many clients send a null for what is not set."""
    return {name: value for name, value in headers.items() if value is not None}


def is_payload_only(headers: Mapping[str, object]) -> bool:
    """Whether these headers make the body the data itself."""
    return any(name.startswith(_PREFIX) and name not in BOTH_MODES for name in headers)


def payload_only(
    arrival: Arrival, fallback_id: str, limits: Limits, published_at: float
) -> Steps[PushRequest]:
    """Read a message whose body is the data; raises InvalidRequest."""
    body = arrival.body
    values: dict[str, object] = {}
    wrong = Wrong()
    yield from read_headers(arrival.properties.headers, values, wrong)
    check_size(body, "", limits)
    kind = kind_of(arrival.properties.content_type)
    encoding = _encoding(body, kind)
    if encoding is Encoding.JSON:
        if kind and not jsontext.is_json(body):
            yield
            yield from jsontext.check(body)
        if not jsontext.has_few_brackets(body) and (yield from jsontext.too_deep(body)):
            if kind:
                raise InvalidRequest(Reason.INVALID, "", jsontext.TOO_DEEP)
            encoding = Encoding.TEXT
        else:
            body = body.strip(SPACE)
    return (
        yield from wrong.built(
            values,
            HEADER_OF.__getitem__,
            body,
            encoding,
            fallback_id,
            published_at,
            limits.max_ttl,
            not wrong or any(f"to.{word}" in values for word in fields.TARGETS),
        )
    )


def read_headers(headers: Mapping[str, object], values: dict[str, object], wrong: Wrong) -> Steps[None]:
    """Read those of our headers that stand for a field into `values`."""
    for count, (name, value) in enumerate(headers.items(), 1):
        field = FIELD_OF.get(name)
        if field is not None:
            if field == "deliver_at" and isinstance(value, float):
                # Some libraries write floats with 32 bits, which makes this one wrong by minutes.
                problem = "expected seconds since 1970 as an integer, a timestamp or a string, got a float"
                wrong.add(InvalidRequest(Reason.INVALID, f"header {name}", problem))
                continue
            wide = widened(field, value)
            if wide is not False or field != "to.all":  # false means the same as no header
                values[field] = wide
        elif name not in BOTH_MODES:
            if known := meant(name):
                wrong.no_such("header {}".format, name, WRITE_SO.format(known))
            elif name.startswith(_PREFIX):
                wrong.no_such("header {}".format, name, "no such header")
        if count % PARTS_AT_ONCE == 0:
            yield


def widened(field: str, value: object) -> object:
    """The value that a header stands for: some tools can only set strings."""
    if isinstance(value, str):
        if field in ("to.users", "to.except"):
            return CommaText(value)
        if field in ("to.all", "retain") and value.lower() in _YES | _NO:
            return value.lower() in _YES
        if (
            field in ("ttl", "ack_within", "deliver_at", "fallback.after")
            and len(value) <= _DECIMAL_CHARS
            and _DECIMAL.fullmatch(value)
        ):
            return float(value)
    elif field in ("to.all", "retain") and type(value) in (int, float) and value in (0, 1):
        return value == 1
    return value


def kind_of(content_type: str) -> str:
    """The kind of body that a content type names: `json`, `text`, `bytes`, or empty; raises InvalidRequest."""
    said, _, parameters = content_type.partition(";")
    said = said.strip().lower()
    kind = "bytes" if said else ""
    if said == "application/json" or said.endswith("+json"):
        kind = "json"
    elif said.startswith("text/"):
        kind = "text"
    charset = _CHARSET.search(parameters)
    if charset and kind in ("json", "text") and charset[1].lower() not in _CHARSETS:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            "property content_type",
            f"expected the charset utf-8, got {jsontext.shown(charset[1])}",
        )
    return kind


def _encoding(body: bytes, kind: str) -> Encoding:
    """The encoding of a body in payload-only mode; raises InvalidRequest."""
    if kind == "json" or (not kind and jsontext.is_json(body)):
        return Encoding.JSON
    if kind == "bytes":
        return Encoding.BYTES
    if jsontext.is_utf8(body):
        return Encoding.TEXT
    if kind:
        raise InvalidRequest(Reason.INVALID, "", "the content type says text, but it is not UTF-8")
    return Encoding.BYTES


def published_at(headers: Mapping[str, object], otherwise: float, arrived_at: float) -> float:
    """When a message was published: by its header, else `otherwise`; raises InvalidRequest."""
    if "x-push-published-ms" not in headers:
        return otherwise
    ms = headers["x-push-published-ms"]
    if isinstance(ms, Timestamp):  # AMQP 0-9-1 4.2.5.4: in seconds
        return float(ms) if 0 < ms <= arrived_at + CLOCK_SKEW_MAX else otherwise
    if isinstance(ms, str) and len(ms) < 20 and ms.isascii() and ms.isdecimal():
        ms = int(ms)
    if isinstance(ms, bool) or not isinstance(ms, int):
        # No floats: some libraries write them with 32 bits, which makes them wrong by a minute.
        raise InvalidRequest(
            Reason.INVALID,
            "header x-push-published-ms",
            "expected milliseconds since 1970 as an integer, or a timestamp,"
            f" got {fields.kind(ms)}{' that is no integer' * isinstance(ms, float)}",
        )
    if 0 < ms < MS_LEAST:
        raise InvalidRequest(
            Reason.INVALID,
            "header x-push-published-ms",
            "expected milliseconds since 1970, got a time before 2001: this looks like seconds",
        )
    # Compare before dividing: an integer may be too large for a float.
    return ms / 1000 if 0 < ms <= (arrived_at + CLOCK_SKEW_MAX) * 1000 else otherwise


def push_id(headers: Mapping[str, object], otherwise: str) -> str:
    """The id for a request that has none of its own; raises InvalidRequest."""
    if "x-push-id" not in headers:
        return otherwise
    return fields.checked_id(headers["x-push-id"], "header x-push-id")


def traceparent(headers: Mapping[str, object]) -> str:
    """The W3C trace context of a message, or empty."""
    value = headers.get("traceparent")
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""
