"""Encode what is written to the broker without the library: acks, publishes, properties, header tables."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from pamqp import encode

from bridge.adapters.amqp.grammar import (
    BASIC_ACK,
    BASIC_CANCEL,
    BASIC_CONSUME,
    BASIC_PUBLISH,
    BASIC_REJECT,
    BODY,
    END,
    FLAG_APP_ID,
    FLAG_CONTENT_ENCODING,
    FLAG_CONTENT_TYPE,
    FLAG_CORRELATION_ID,
    FLAG_DELIVERY_MODE,
    FLAG_EXPIRATION,
    FLAG_HEADERS,
    FLAG_MESSAGE_ID,
    FLAG_REPLY_TO,
    FLAG_TIMESTAMP,
    FLAG_TYPE,
    FLAG_USER_ID,
    HEADER,
    METHOD,
    SHORT_BYTES_MAX,
)
from bridge.core.model.pushes import Timestamp

AMQP_HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
"""The broker's sign of life, not the heartbeat frame of a session."""

_HEAD: Final = struct.Struct(">BHL")
_SHORT: Final = struct.Struct(">H")
_LONG: Final = struct.Struct(">L")
_LONG_LONG: Final = struct.Struct(">Q")
_TAG: Final = struct.Struct(">BHLLQBB")
_CONTENT: Final = struct.Struct(">BHLLQ")
_NEXT: Final = struct.Struct(">BBHL")
"""The end octet of a frame and the head of the next."""
_ONE_BYTE: Final = [bytes((value,)) for value in range(256)]
_BASIC: Final = 60 << 16
"""Class and weight of a content header (4.2.6.1)."""
_DOUBLE: Final = struct.Struct(">d")


def octets(text: str) -> bytes:
    """The bytes that a text of `Properties` was made from: UTF-8 but for lone surrogates (see `decoding.py`)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # such surrogates stand for no byte: they were never received
        return text.encode("utf-8", "replace")


def legible(text: str) -> str:
    """A text of `Properties` for people and JSON: a byte that is not UTF-8 becomes `\\xff`."""
    return octets(text).decode("utf-8", "backslashreplace")


def fits(text: str) -> bool:
    """Whether this fits into a short string."""
    return 4 * len(text) <= SHORT_BYTES_MAX or len(octets(text)) <= SHORT_BYTES_MAX


def cut(text: str) -> bytes:
    """The bytes of `text`, as many as fit into a short string, never ending inside a character.

    Not for ids: two that begin alike would become one.
    """
    raw = octets(text)
    end = SHORT_BYTES_MAX
    if len(raw) <= end:
        return raw
    while end > SHORT_BYTES_MAX - 4 and raw[end] & 0xC0 == 0x80:
        end -= 1
    return raw[:end]


def short_string(text: str) -> bytes:
    """An AMQP short string. One that is too long is cut (see `cut`): check `fits` first where that matters."""
    raw = text.encode() if len(text) <= SHORT_BYTES_MAX and text.isascii() else cut(text)
    return _ONE_BYTE[len(raw)] + raw


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    """basic.ack as a frame."""
    return _TAG.pack(METHOD, channel, 13, BASIC_ACK, tag, multiple, END)


def requeue(channel: int, tag: int) -> bytes:
    """basic.reject with requeue as a frame: the message counts as delivered once more (`x-delivery-count`).

    Not basic.nack: from RabbitMQ 4.3 on a message given back with it is not counted, and could come for ever.
    """
    return _TAG.pack(METHOD, channel, 13, BASIC_REJECT, tag, 1, END)


def cancel(channel: int, consumer: str) -> bytes:
    """basic.cancel as a frame; the broker does not answer it (no-wait)."""
    payload = _LONG.pack(BASIC_CANCEL) + short_string(consumer) + b"\x01"
    return _HEAD.pack(METHOD, channel, len(payload)) + payload + b"\xce"


def consume(channel: int, queue: str, consumer: str) -> bytes:
    """basic.consume as a frame; the broker does not answer it (no-wait)."""
    names = b"\x00\x00" + short_string(queue) + short_string(consumer)
    payload = _LONG.pack(BASIC_CONSUME) + names + b"\x08" + _LONG.pack(0)
    return _HEAD.pack(METHOD, channel, len(payload)) + payload + b"\xce"


@lru_cache(maxsize=4096)
def publish_method(channel: int, exchange: str, routing_key: bytes, mandatory: bool) -> bytes:
    """basic.publish as a frame; the routing key has at most 255 bytes."""
    payload = (
        _LONG.pack(BASIC_PUBLISH)
        + b"\x00\x00"
        + short_string(exchange)
        + bytes((len(routing_key),))
        + routing_key
        + (b"\x01" if mandatory else b"\x00")
    )
    return _HEAD.pack(METHOD, channel, len(payload)) + payload + b"\xce"


def properties(
    *,
    content_type: str = "",
    content_encoding: str = "",
    headers: bytes = b"",
    correlation_id: str = "",
    reply_to: str = "",
    expiration: str = "",
    message_id: str = "",
    timestamp: int | None = None,
    type: str = "",
    user_id: str = "",
    app_id: str = "",
) -> bytes:
    """Flags and values of a content header, always persistent. `headers`: what `table` returned, or empty."""
    flags = FLAG_DELIVERY_MODE
    before = b""
    if content_type:
        flags |= FLAG_CONTENT_TYPE
        before = short_string(content_type)
    if content_encoding:
        flags |= FLAG_CONTENT_ENCODING
        before += short_string(content_encoding)
    if headers:
        flags |= FLAG_HEADERS
        before += headers
    parts = [b"", before, b"\x02"]
    for flag, text in (
        (FLAG_CORRELATION_ID, correlation_id),
        (FLAG_REPLY_TO, reply_to),
        (FLAG_EXPIRATION, expiration),
        (FLAG_MESSAGE_ID, message_id),
    ):
        if text:
            flags |= flag
            parts.append(short_string(text))
    if timestamp is not None:
        flags |= FLAG_TIMESTAMP
        parts.append(_LONG_LONG.pack(timestamp))
    if type:
        flags |= FLAG_TYPE
        parts.append(short_string(type))
    if user_id:
        flags |= FLAG_USER_ID
        parts.append(short_string(user_id))
    if app_id:
        flags |= FLAG_APP_ID
        parts.append(short_string(app_id))
    parts[0] = _SHORT.pack(flags)
    return b"".join(parts)


def table(values: Mapping[str, object]) -> tuple[bytes, Sequence[str]]:
    """Encode a header table; returns it with its length, and the names of headers that AMQP can't express.

    The library's encoder cuts names and writes floats with 32 bits, so it is not used here.
    """
    fields: list[bytes] = []
    left_out: list[str] = []
    for name, value in values.items():
        try:
            fields.append(_field(name, value))
        except (TypeError, ValueError, OverflowError, RecursionError, struct.error):
            left_out.append(name)
    joined = b"".join(fields)
    return _LONG.pack(len(joined)) + joined, left_out


def _field(name: str, value: object) -> bytes:
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > SHORT_BYTES_MAX:
        raise ValueError("a name longer than a short string")
    return bytes((len(raw),)) + raw + _field_value(value)


def _field_value(value: object) -> bytes:
    if isinstance(value, str):
        return b"S" + _long(value.encode())
    if isinstance(value, bytes | bytearray):
        return b"x" + _long(value)
    if isinstance(value, Mapping):
        return b"F" + _long(b"".join(_field(name, inner) for name, inner in value.items()))
    if isinstance(value, list | tuple):
        return b"A" + _long(b"".join(map(_field_value, value)))
    if isinstance(
        value, Timestamp
    ):  # as an integer it would mean something else when the message comes again
        return b"T" + _LONG_LONG.pack(value)
    if isinstance(value, float):
        if not math.isfinite(value):  # the broker would close the connection
            raise ValueError("no finite number")
        return b"d" + _DOUBLE.pack(value)
    return encode.encode_table_value(value)  # type: ignore[arg-type]  # it refuses what it does not know


def _long(raw: bytes | bytearray) -> bytes:
    return _LONG.pack(len(raw)) + raw


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The content header and body frames of one message. A body larger than a frame is split."""
    size = len(body)
    begin = _CONTENT.pack(HEADER, channel, 12 + len(properties), _BASIC, size)
    if size == 0:
        return b"".join((begin, properties, b"\xce"))
    most = frame_max - 8
    if size <= most:
        return b"".join((begin, properties, _NEXT.pack(END, BODY, channel, size), body, b"\xce"))
    parts = [begin, properties, b"\xce"]
    for at in range(0, size, most):
        piece = body[at : at + most]
        parts += (_HEAD.pack(BODY, channel, len(piece)), piece, b"\xce")
    return b"".join(parts)
