"""The careful pass over one JSON request: what exactly is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, UnsetType

from bridge.core.contract import fields, jsonparts, jsontext
from bridge.core.contract.jsontext import BAD_JSON, SPACE, ObjectText
from bridge.core.contract.requests.rejecting import LastResort, strings, usable
from bridge.core.contract.requests.terms import Limits
from bridge.core.contract.requests.wrong import Wrong
from bridge.core.contract.stepping import Steps
from bridge.core.errors import PROBLEMS_MAX, InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding, PushRequest, Rejected


class _Known(msgspec.Struct, gc=False):
    """The members of a request that the contract knows; the decoder skips all others."""

    id: Raw | UnsetType = UNSET
    to: Raw | UnsetType = UNSET
    event: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    ttl: Raw | UnsetType = UNSET
    confirm: Raw | UnsetType = UNSET
    ack_within: Raw | UnsetType = UNSET
    collapse_key: Raw | UnsetType = UNSET
    devices: Raw | UnsetType = UNSET
    deliver_at: Raw | UnsetType = UNSET
    fallback: Raw | UnsetType = UNSET
    retain: Raw | UnsetType = UNSET
    tenant: Raw | UnsetType = UNSET
    meta: Raw | UnsetType = UNSET


class _OnlyKnown(_Known, forbid_unknown_fields=True, gc=False):
    pass


class _Texts(msgspec.Struct, gc=False):
    data: Raw = Raw(b"")
    meta: Raw = Raw(b"")


class _Parts(NamedTuple):
    """A request taken apart."""

    values: dict[str, object]
    """The values of its members; `data` may be left out. If it is not JSON: those that a rejected request keeps."""
    data: bytes | None
    members: Mapping[str, bytes | Raw]
    """If it is not JSON: the texts of the members that could be found."""
    is_json: bool
    more: bool = False
    """There are more unknown members than a rejection names."""


_SMALL = 4096
"""Bytes of text that are decoded in one go. Floats are the slowest values to decode."""

_decode_values = msgspec.json.Decoder(dict[str, object]).decode
_decode_texts = msgspec.json.Decoder(_Texts).decode
_decode_known = msgspec.json.Decoder(_Known).decode
_decode_only_known = msgspec.json.Decoder(_OnlyKnown).decode


def careful(
    body: bytes, index: int | None, fallback_id: str, limits: Limits, published_at: float, ids: LastResort
) -> Steps[PushRequest | Rejected]:
    """Read a request slowly; `index` is its place in a batch.

    Raises InvalidRequest only where an element of a batch condemns the whole batch.
    """
    where = "" if index is None else f"[{index}]"
    parts = _small(body) or (yield from _any(body))
    try:
        if not parts.is_json:
            yield from jsontext.blame(body, parts.members, where)
        return (yield from checked(body, parts, where, fallback_id, limits, published_at))
    except InvalidRequest as error:
        if index is not None and error.reason == Reason.TOO_MANY:
            raise
        reason, detail = Reason(error.reason), error.detail
    values = parts.values
    return Rejected(
        usable(values, "id") or (yield from ids.id(body, index, fallback_id)),
        reason,
        detail,
        body,
        usable(values, "tenant"),
        usable(values, "event"),
    )


def check_body(body: bytes, limits: Limits) -> Steps[None]:
    """Raise InvalidRequest, with the paths of the wrong fields, unless this may be the body of a message."""
    parts = yield from _any(body)
    if not parts.is_json:
        yield from jsontext.blame(body, parts.members, "")
    yield from checked(body, parts, "", "", limits, 0.0)


def checked(
    body: bytes, parts: _Parts, where: str, fallback_id: str, limits: Limits, published_at: float
) -> Steps[PushRequest]:
    """Check and build a request that is JSON. Raises InvalidRequest with the paths of its wrong fields."""

    def path(field: str) -> str:
        return f"{where}.{field}" if where else field

    if not _is_object(body):
        got = fields.kind(jsontext.shallow_value(body.strip(SPACE)))
        raise InvalidRequest(Reason.INVALID, where, f"expected an object, got {got}")
    values, data = parts.values, parts.data
    wrong = Wrong()
    if not fields.FIELDS.issuperset(values):
        for name in values:
            if name not in fields.FIELDS:
                hint = ": it belongs inside `to`" if name in fields.TO_FIELDS else ""
                wrong.no_such(path, name, f"no such field{hint}")
    if parts.more:
        wrong.more()
    knows_target = yield from _read_to(values, path, wrong)
    if "fallback" in values:
        yield from _read_fallback(values, path, wrong)
    if data is None:
        wrong.add(InvalidRequest(Reason.INVALID, path("data"), "this field is required"))
    elif len(data) > limits.max_data_bytes:
        wrong.add(_too_large(data, path("data"), limits))
    elif not jsontext.has_few_brackets(data) and (yield from jsontext.too_deep(data)):
        wrong.add(InvalidRequest(Reason.INVALID, path("data"), jsontext.TOO_DEEP))
    return (
        yield from wrong.built(
            values, path, data or b"", Encoding.JSON, fallback_id, published_at, limits.max_ttl, knows_target
        )
    )


def _read_to(values: dict[str, object], path: Callable[[str], str], wrong: Wrong) -> Steps[bool]:
    """Add the members of `to` to the other values. Returns False if no more is to be said of `to` as a whole."""
    if "to" not in values:
        wrong.add(InvalidRequest(Reason.INVALID, path("to"), "this field is required"))
        return False
    to = yield from _opened(values["to"], fields.TO_FIELDS, wrong)
    if not isinstance(to, dict):
        wrong.add(InvalidRequest(Reason.INVALID, path("to"), f"expected an object, got {fields.kind(to)}"))
        return False
    misnamed = False
    for name, value in to.items():
        if name in fields.TO_FIELDS:
            values[f"to.{name}"] = value
        else:
            misnamed = True
            wrong.no_such(lambda field: path(f"to.{field}"), name)
    # If a name in `to` is misspelt, do not report a missing target as well.
    return not misnamed or any(f"to.{word}" in values for word in fields.TARGETS)


def _read_fallback(values: dict[str, object], path: Callable[[str], str], wrong: Wrong) -> Steps[None]:
    """Add the members of `fallback` to the other values."""
    fallback = yield from _opened(values["fallback"], fields.FALLBACK_FIELDS, wrong)
    if not isinstance(fallback, dict):
        got = fields.kind(fallback)
        wrong.add(InvalidRequest(Reason.INVALID, path("fallback"), f"expected an object, got {got}"))
        del values["fallback"]
        return
    for name, value in fallback.items():
        if name in fields.FALLBACK_FIELDS:
            values[f"fallback.{name}"] = value
        else:
            wrong.no_such(lambda field: path(f"fallback.{field}"), name)


def _opened(value: object, known: frozenset[str], wrong: Wrong) -> Steps[object]:
    """The members of an object that was left as its text, and every other value as it is. `known`: its fields."""
    if not isinstance(value, ObjectText):
        return value
    members = _few_members(value.text)
    if members is None:
        members, more = yield from _named(value.text, known)
        if more:
            wrong.more()
    return _values(members)


def check_size(data: bytes, path: str, limits: Limits) -> None:
    """Raise InvalidRequest if there is too much data."""
    if len(data) > limits.max_data_bytes:
        raise _too_large(data, path, limits)


def _too_large(data: bytes, path: str, limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        Reason.TOO_LARGE, path, f"expected at most {limits.max_data_bytes} bytes, got {len(data)}"
    )


def _is_object(text: bytes) -> bool:
    return (text if text[:1] == b"{" else text.lstrip(SPACE))[:1] == b"{"


def _small(body: bytes) -> _Parts | None:
    """The parts of a request if it is small and JSON, as most wrong requests are; else None."""
    if len(body) > _SMALL or not jsontext.has_few_brackets(body):
        return None
    try:
        values = _decode_values(body)
        texts = _decode_texts(body)
    except BAD_JSON:
        return None
    if "meta" in values:
        values["meta"] = jsontext.shallow_value(bytes(texts.meta))
    return _Parts(values, bytes(texts.data) if "data" in values else None, {}, True)


def _any(body: bytes) -> Steps[_Parts]:
    """The parts of any request, as far as they can be found.

    If there are very many unknown members, only as many are returned as a rejection names.
    """
    members = _few_members(body)
    more = False
    is_json = members is not None and jsontext.is_utf8(body)
    yield
    if members is None:
        is_json = jsontext.is_json(body)
        yield
        if is_json:
            members, more = yield from _many_members(body)
        else:
            members = yield from jsonparts.last_members(body)
        yield
    # Text that is not JSON may still have an id, a tenant and an event.
    values = _values(members) if is_json else strings(members)
    data = members.get("data")
    return _Parts(values, None if data is None else bytes(data), members, is_json, more)


def _values(members: Mapping[str, bytes | Raw]) -> dict[str, object]:
    return {name: jsontext.shallow_value(bytes(part)) for name, part in members.items() if name != "data"}


def _few_members(text: bytes) -> Mapping[str, bytes | Raw] | None:
    """The members of an object. None if there are very many, or if the text is not a JSON object."""
    if _is_object(text) and jsonparts.is_small(text, b":"):
        try:
            return jsonparts.decode_members(text)
        except BAD_JSON:
            pass
    return None


def _many_members(body: bytes) -> Steps[tuple[Mapping[str, bytes | Raw], bool]]:
    """The members of a request that is JSON. `_named` says which unknown ones are included."""
    try:
        known = _decode_known(body)
    except BAD_JSON:
        # Not an object, or too deep for the decoder.
        found = yield from jsonparts.last_members(body)
        return found, len(found) >= jsonparts.PIECES_MAX
    members = {name: part for name, part in msgspec.structs.asdict(known).items() if part is not UNSET}
    yield
    try:
        _decode_only_known(body)
    except msgspec.ValidationError:
        pass
    else:
        return members, False
    yield
    named, more = yield from _named(body, fields.FIELDS)
    return {**dict.fromkeys(named, b"null"), **members}, more


def _named(text: bytes, known: frozenset[str]) -> Steps[tuple[dict[str, bytes], bool]]:
    """The members of an object; reading stops once there are more unknown names than a rejection can list.

    At most `PROBLEMS_MAX` unknown names are included, without their values. Also returns whether there are more.
    """
    found: dict[str, bytes] = {}
    unknown = 0
    for member in jsonparts.members(text):
        if member is None:
            yield
            continue
        name, value = member
        if name in known:
            found[name] = value
        elif name not in found:
            if unknown == PROBLEMS_MAX:
                return found, True
            unknown += 1
            found[name] = b"null"
    return found, False
