"""Read a structured CloudEvent (CloudEvents 1.0.2, JSON format): its data is pushed, to whom extension attributes say.

| what | where it is from |
|---|---|
| to whom, and how | the headers of payload-only mode, else attributes named like them without `x-` and hyphens |
| event | `pushevent`, else `type` |
| id | the header `x-push-id`, else `pushid`, else `<source>#<id>`, or its hash: see `event_id` |
| data | `data` as it is; `data_base64` decoded, as bytes; neither: null |
| meta | `x-push-meta`, else `ce-source`, `ce-id`, `ce-type`, `ce-subject`, `ce-time`, where they are short |

A batch of events (`application/cloudevents-batch+json`) is rejected: each event is a message.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from bridge.core.contract import fields, jsonparts, jsontext
from bridge.core.contract.jsontext import BAD_JSON, SPACE, ObjectText, decode_str
from bridge.core.contract.requests.careful import check_size
from bridge.core.contract.requests.headers import FIELD_OF, HEADER_OF, kind_of, read_headers, widened
from bridge.core.contract.requests.terms import Limits
from bridge.core.contract.requests.wrong import Wrong
from bridge.core.contract.stepping import Steps
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import META_VALUE_CHARS, Encoding, PushRequest
from bridge.core.ports.broker import Arrival

_TYPE: Final = "application/cloudevents"
_BATCH: Final = "application/cloudevents-batch"
FIELD_OF_ATTRIBUTE: Final[Mapping[str, str]] = {
    header.removeprefix("x-").replace("-", ""): field for header, field in FIELD_OF.items() if field != "meta"
}
"""The extension attributes. CloudEvents 3.1: names are lower-case letters and digits."""
_NAMES: Final[Mapping[str, str]] = {
    **HEADER_OF,
    **{field: name for name, field in FIELD_OF_ATTRIBUTE.items()},
    "to": "attributes pushuser, pushusers, pushsession, pushtopic, pushall",
}
"""What a rejection calls a field, unless it came as a header."""
_REQUIRED: Final = ("specversion", "id", "source", "type")
_META: Final = ("source", "id", "type", "subject", "time")
_ATTRIBUTE_BYTES: Final = 65_536
"""No attribute of ours may be longer; a list of 10,000 users belongs into the header."""

_LONG: Final = 4_096
_ATTRIBUTES_MAX: Final = 1_000

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode


def is_cloud_event(content_type: str) -> bool:
    """Whether a message with this content type is a structured CloudEvent, or a batch of them."""
    return content_type[: len(_TYPE)].lower() == _TYPE


def event_id(values: Mapping[str, object]) -> str:
    """The push id for an event with these attributes; empty where it has none. No two events have the same one: an id
    is unique for its source only (CloudEvents 3.1.1)."""
    source, own = values.get("source"), values.get("id")
    if not isinstance(source, str) or not isinstance(own, str) or not source or not own:
        return ""
    both = f"{source}#{own}"
    if "#" not in source and fields.is_id(both):
        return both
    pair = f"{len(source)}:{both}".encode("utf-8", "surrogatepass")
    return f"sha256-{hashlib.sha256(pair).hexdigest()}"


def cloud_event_values(members: Mapping[str, bytes | Raw], given: str) -> dict[str, object]:
    """The values that a rejected event keeps, as far as they can be read. `given`: the id that its header says."""
    found: dict[str, object] = {}
    for name in ("id", "source", "type", "pushid", "pushtenant", "pushevent"):
        if name in members:
            try:
                found[name] = decode_str(members[name])
            except BAD_JSON:
                pass
    return {
        "id": given or found.get("pushid") or event_id(found),
        "tenant": found.get("pushtenant"),
        "event": found.get("pushevent") or found.get("type"),
    }


def cloud_event(
    arrival: Arrival, fallback_id: str, limits: Limits, published_at: float
) -> Steps[PushRequest]:
    """Read a message that is an event; raises InvalidRequest."""
    properties = arrival.properties
    if properties.content_type[: len(_BATCH)].lower() == _BATCH:
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            "property content_type",
            "expected one event (application/cloudevents+json), got a batch: publish a message for each",
        )
    if kind_of(properties.content_type) != "json":
        raise InvalidRequest(
            Reason.UNSUPPORTED,
            "property content_type",
            "expected application/cloudevents+json: of events only the JSON format is read",
        )
    body = arrival.body
    yield
    yield from jsontext.check(body)
    members = yield from _members(body)
    wrong = Wrong()
    values: dict[str, object] = {}
    names = dict(_NAMES)
    attributes = yield from _attributes(members, values, wrong)
    yield from read_headers(properties.headers, values, wrong)
    for field in values:
        if HEADER_OF.get(field, "").removeprefix("header ") in properties.headers:
            names[field] = HEADER_OF[field]
    if "x-push-id" in properties.headers:
        values["id"] = fallback_id
    elif "id" not in values and (known_by := event_id(attributes)):
        values["id"] = known_by
    if "event" not in values and "type" in attributes:
        values["event"], names["event"] = attributes["type"], "type"
    if "meta" not in values:
        short = {name: text for name, text in attributes.items() if len(text) <= META_VALUE_CHARS}
        meta = {f"ce-{name}": short[name] for name in _META if name in short and "\0" not in short[name]}
        values["meta"] = ObjectText(jsontext.encode(meta))
    data, encoding = _data(members, limits, wrong)
    shallow = encoding is not Encoding.JSON or jsontext.has_few_brackets(data)
    if not shallow and (yield from jsontext.too_deep(data)):
        wrong.add(InvalidRequest(Reason.INVALID, "data", jsontext.TOO_DEEP))
    return (
        yield from wrong.built(
            values,
            lambda field: names.get(field, field),
            data,
            encoding,
            fallback_id,
            published_at,
            limits.max_ttl,
        )
    )


def _members(body: bytes) -> Steps[Mapping[str, bytes | Raw]]:
    """The members of checked JSON that is an object."""
    if body.lstrip(SPACE)[:1] != b"{":
        got = fields.kind(jsontext.shallow_value(body.strip(SPACE)))
        raise InvalidRequest(Reason.INVALID, "", f"expected an event, which is an object, got {got}")
    if jsonparts.is_small(body, b","):
        return _decode_members(body)
    found: dict[str, bytes | Raw] = {}
    for member in jsonparts.members(body):
        if member is None:
            yield
            continue
        found[member[0]] = member[1]
        if len(found) > _ATTRIBUTES_MAX:
            problem = f"expected at most {_ATTRIBUTES_MAX} attributes, got more"
            raise InvalidRequest(Reason.INVALID, "", problem)
    return found


def _attributes(
    members: Mapping[str, bytes | Raw], values: dict[str, object], wrong: Wrong
) -> Steps[dict[str, str]]:
    """Read our attributes into `values`. Returns the event's own that are used."""
    own: dict[str, str] = {}
    for name, raw in members.items():
        text = bytes(raw).strip(SPACE)
        field = FIELD_OF_ATTRIBUTE.get(name)
        if field is not None:
            if len(text) > _ATTRIBUTE_BYTES:
                problem = f"expected at most {_ATTRIBUTE_BYTES} bytes: say it in the header"
                wrong.add(InvalidRequest(Reason.TOO_LARGE, name, problem))
                continue
            value = widened(field, jsontext.shallow_value(text))
            if len(text) > _LONG:
                yield
            if value is None or (value is False and field == "to.all"):
                continue
            values[field] = value
        elif name.startswith("push"):
            wrong.no_such(str, name, "no such extension attribute")
        elif name in _META or name == "specversion":
            value = jsontext.shallow_value(text)
            if isinstance(value, str):
                own[name] = value
            elif name in _REQUIRED:
                wrong.add(
                    InvalidRequest(Reason.INVALID, name, f"expected a string, got {fields.kind(value)}")
                )
    for name in _REQUIRED:
        if name not in members or own.get(name) == "":
            wrong.add(InvalidRequest(Reason.INVALID, name, "an event needs this attribute"))
    if not own.get("specversion", "1.").startswith("1."):
        wrong.add(InvalidRequest(Reason.UNSUPPORTED, "specversion", "expected 1.0"))
    return own


def _data(members: Mapping[str, bytes | Raw], limits: Limits, wrong: Wrong) -> tuple[bytes, Encoding]:
    """What is pushed, and how it is encoded."""
    # Not by `get`: to mypyc its result would be bytes, which a Raw is for type checkers only.
    data = bytes(members["data"]) if "data" in members else None
    encoded = bytes(members["data_base64"]) if "data_base64" in members else b"null"
    if encoded.strip(SPACE) == b"null":
        text = b"null" if data is None else data
        _check_size(text, "data", limits, wrong)
        return text, Encoding.JSON
    if data is not None and data.strip(SPACE) != b"null":
        wrong.add(InvalidRequest(Reason.INVALID, "data_base64", "expected only one of data and data_base64"))
    try:
        content = binascii.a2b_base64(msgspec.json.decode(encoded, type=str), strict_mode=True)
    except (*BAD_JSON, ValueError):
        wrong.add(InvalidRequest(Reason.INVALID, "data_base64", "expected a string of base64"))
        return b"", Encoding.BYTES
    _check_size(content, "data_base64", limits, wrong)
    return content, Encoding.BYTES


def _check_size(content: bytes, path: str, limits: Limits, wrong: Wrong) -> None:
    try:
        check_size(content, path, limits)
    except InvalidRequest as error:
        wrong.add(error)
