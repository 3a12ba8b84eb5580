"""Decode the content header of an AMQP message: its properties and its table of headers.

Bytes that are not UTF-8 become lone surrogates in the text (PEP 383), which `encoding.octets` turns into the same
bytes again. Only in `app_id` they become replacement characters: every row has it, and no database takes surrogates.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from bridge.adapters.amqp.grammar import (
    FLAG_APP_ID,
    FLAG_CONTENT_ENCODING,
    FLAG_CONTENT_TYPE,
    FLAG_CORRELATION_ID,
    FLAG_DELIVERY_MODE,
    FLAG_EXPIRATION,
    FLAG_HEADERS,
    FLAG_MESSAGE_ID,
    FLAG_PRIORITY,
    FLAG_REPLY_TO,
    FLAG_TIMESTAMP,
    FLAG_TYPE,
    FLAG_USER_ID,
    NotAmqp,
)
from bridge.core.model.pushes import Properties, Timestamp

TABLE_DEPTH_MAX: Final = 32
"""A header table that nests deeper counts as unreadable: the stack must not overflow."""

_LONG: Final = struct.Struct(">L")
_LONG_LONG: Final = struct.Struct(">Q")
_SHORT: Final = struct.Struct(">H")
_CONTENT: Final = struct.Struct(">HHQH")
_NO_HEADERS: Mapping[str, object] = {}


def decode_content(data: bytes, start: int, stop: int, redelivered: bool) -> tuple[int, Properties, bool]:
    """Read the payload of a content header frame (AMQP 0-9-1 4.2.6.1) between `start` and `stop`.

    Returns the body's size, the properties, and whether the header table could be read. Raises NotAmqp only
    where the frame itself is too short for what its flags announce.
    """
    try:
        _, _, size, flags = _CONTENT.unpack_from(data, start)
        at = _after_flags(data, start + 14) if flags & 1 else start + 14
        content_type = content_encoding = correlation_id = reply_to = expiration = ""
        message_id = user_id = app_id = ""
        timestamp: float | None = None
        headers = _NO_HEADERS
        readable = True
        priority: int | None = None
        if flags & FLAG_CONTENT_TYPE:
            content_type, at = read_short_string(data, at, stop)
        if flags & FLAG_CONTENT_ENCODING:
            content_encoding, at = read_short_string(data, at, stop)
        if flags & FLAG_HEADERS:
            (length,) = _LONG.unpack_from(data, at)
            at += 4
            if at + length > stop:
                raise NotAmqp("a header table longer than its frame")
            try:
                headers = _table(data, at, at + length, 0)
            except (ValueError, IndexError, struct.error, OverflowError):
                readable = False
            at += length
        if flags & FLAG_DELIVERY_MODE:
            at += 1
        if flags & FLAG_PRIORITY:
            priority = data[at]
            at += 1
        if flags & FLAG_CORRELATION_ID:
            correlation_id, at = read_short_string(data, at, stop)
        if flags & FLAG_REPLY_TO:
            reply_to, at = read_short_string(data, at, stop)
        if flags & FLAG_EXPIRATION:
            expiration, at = read_short_string(data, at, stop)
        if flags & FLAG_MESSAGE_ID:
            message_id, at = read_short_string(data, at, stop)
        if flags & FLAG_TIMESTAMP:
            timestamp = float(_LONG_LONG.unpack_from(data, at)[0])
            at += 8
        if flags & FLAG_TYPE:
            _, at = read_short_string(data, at, stop)
        if flags & FLAG_USER_ID:
            user_id, at = read_short_string(data, at, stop)
        if flags & FLAG_APP_ID:
            app_id, at = read_short_string(data, at, stop, "replace")
    except (IndexError, struct.error) as short:
        raise NotAmqp("a content header shorter than its flags") from short
    if at > stop:
        raise NotAmqp("a content header shorter than its flags")
    properties = Properties(
        message_id, correlation_id, reply_to, app_id, user_id, content_type, content_encoding, expiration,
        timestamp, headers, redelivered, _delivery_count(headers) if redelivered else 0, priority,
    )  # fmt: skip
    return size, properties, readable


def _after_flags(data: bytes, at: int) -> int:
    """Where the values begin after continued flags, which AMQP 0-9-1 has no properties for."""
    more = 1
    while more & 1:
        (more,) = _SHORT.unpack_from(data, at)
        at += 2
    return at


def _delivery_count(headers: Mapping[str, object]) -> int:
    """The queue's count of a redelivered message.

    Ask only for those: at a first delivery the header can only be from a publisher that moved the message.
    """
    given = headers.get("x-delivery-count")
    return given if type(given) is int and given > 0 else 0


def read_short_string(data: bytes, at: int, stop: int, errors: str = "surrogateescape") -> tuple[str, int]:
    """A short string at `at`, and where what follows begins. Raises NotAmqp, IndexError."""
    after = at + 1 + data[at]
    if after > stop:
        raise NotAmqp("a short string longer than its frame")
    return data[at + 1 : after].decode("utf-8", errors), after


def _table(data: bytes, at: int, stop: int, depth: int) -> dict[str, object]:
    if depth > TABLE_DEPTH_MAX:
        raise ValueError("tables nested too deep")
    table: dict[str, object] = {}
    while at < stop:
        after = at + 1 + data[at]
        key = data[at + 1 : after].decode("utf-8", "surrogateescape")
        table[key], at = _value(data, after, stop, depth)
    return table


_FIXED: Mapping[int, struct.Struct] = {
    ord("b"): struct.Struct(">b"),
    ord("B"): struct.Struct(">B"),
    ord("s"): struct.Struct(">h"),
    ord("U"): struct.Struct(">h"),
    ord("u"): struct.Struct(">H"),
    ord("I"): struct.Struct(">i"),
    ord("i"): struct.Struct(">I"),
    ord("l"): struct.Struct(">q"),
    ord("L"): struct.Struct(">q"),
    ord("f"): struct.Struct(">f"),
    ord("d"): struct.Struct(">d"),
}


def _value(data: bytes, at: int, stop: int, depth: int) -> tuple[object, int]:
    """Read one field value. A decimal becomes a float, as `Properties` promises."""
    kind = data[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        after = at + fixed.size
        _within(after, stop)
        return fixed.unpack_from(data, at)[0], after
    if kind in b"SxFA":
        (length,) = _LONG.unpack_from(data, at)
        at += 4
        after = at + length
        _within(after, stop)
        if kind == 0x46:  # F
            return _table(data, at, after, depth + 1), after
        if kind == 0x41:  # A
            if depth >= TABLE_DEPTH_MAX:
                raise ValueError("arrays nested too deep")
            array: list[object] = []
            while at < after:
                item, at = _value(data, at, after, depth + 1)
                array.append(item)
            return array, after
        raw = data[at:after]
        if kind == 0x53:  # S: a byte string by the grammar, text by habit
            try:
                return raw.decode("utf-8"), after
            except UnicodeDecodeError:
                return raw, after
        return raw, after
    if kind == 0x54:  # T
        _within(at + 8, stop)
        return Timestamp(_LONG_LONG.unpack_from(data, at)[0]), at + 8
    if kind == 0x74:  # t
        _within(at + 1, stop)
        return data[at] != 0, at + 1
    if kind == 0x56:  # V
        return None, at
    if kind == 0x44:  # D: scale octet, then a signed long
        _within(at + 5, stop)
        scale = data[at]
        (number,) = struct.unpack_from(">i", data, at + 1)
        return number / 10**scale, at + 5
    raise ValueError(f"unknown type of field: {kind}")


def _within(after: int, stop: int) -> None:
    if after > stop:
        raise ValueError("a field longer than its table")
