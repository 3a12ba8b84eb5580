"""AMQP 0-9-1 frames as bytes, without I/O: takes deliveries and confirms out of a stream, encodes publishes.

The library under this adapter makes objects and tasks for each frame, which is most of the price of a
message. So the frames that come by the thousand are read and written here, a whole read of the socket at a
time; all other frames pass through untouched to the library, which keeps the handshake, the channels and
the heartbeats. Grammar: AMQP 0-9-1 section 4.2 and RabbitMQ's errata for the types of table fields.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from pamqp import encode

from bridge.core.errors import BridgeError
from bridge.core.model.pushes import MESSAGE_BYTES_MAX, Properties, Timestamp

CUT_BYTES = 4096
"""What is kept of a body that is larger than the contract allows."""
FRAME_BYTES_MAX = 16 * 1024 * 1024
"""No broker negotiates a frame of this size: a length beyond it is not AMQP."""
TABLE_DEPTH_MAX = 32
"""A header table with tables nested deeper than this counts as unreadable, rather than overflow the stack."""
SHORT_BYTES_MAX = 255
"""Bytes of a short string: a property, a routing key, a header's name (AMQP 0-9-1 4.2.5.3)."""
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 0xCE
_HEAD = struct.Struct(">BHL")
_CODE = struct.Struct(">L")
_SHORT = struct.Struct(">H")
_LONG_LONG = struct.Struct(">Q")
_CONTENT = struct.Struct(">HHQH")
_TAG = struct.Struct(">BHLLQBB")
_DOUBLE = struct.Struct(">d")

_CONNECTION_CLOSE = 10 << 16 | 50
_CONNECTION_BLOCKED = 10 << 16 | 60
_CONNECTION_UNBLOCKED = 10 << 16 | 61
_CHANNEL_CLOSE = 20 << 16 | 40
_BASIC_CANCEL = 60 << 16 | 30
_BASIC_PUBLISH = 60 << 16 | 40
_BASIC_RETURN = 60 << 16 | 50
_BASIC_DELIVER = 60 << 16 | 60
_BASIC_ACK = 60 << 16 | 80
_BASIC_NACK = 60 << 16 | 120
_NOTABLE = frozenset(
    {
        _CONNECTION_CLOSE,
        _CONNECTION_BLOCKED,
        _CONNECTION_UNBLOCKED,
        _CHANNEL_CLOSE,
        _BASIC_CANCEL,
        _BASIC_RETURN,
        _BASIC_ACK,
        _BASIC_NACK,
    }
)


class NotAmqp(BridgeError):
    """The stream broke the grammar of frames; the connection is of no more use."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"not AMQP 0-9-1: {problem}")


# --- What is found in the stream -------------------------------------------------------------------------


class Delivery(NamedTuple):
    """basic.deliver with its content. Of a body over `MESSAGE_BYTES_MAX` only `CUT_BYTES` were kept."""

    channel: int
    consumer: str
    tag: int
    body: bytes
    body_size: int
    properties: Properties
    readable: bool
    """False: the header table could not be read, and `properties.headers` is empty."""


class Confirm(NamedTuple):
    """basic.ack (`ok`) or basic.nack from the broker."""

    channel: int
    tag: int
    multiple: bool
    ok: bool


class Returned(NamedTuple):
    """basic.return: a mandatory message that no queue wanted; its confirm follows."""

    channel: int
    message_id: str
    text: str


class ConsumerCancelled(NamedTuple):
    """basic.cancel from the broker: the queue is gone, or its leader."""

    channel: int
    consumer: str


class Closed(NamedTuple):
    """channel.close, or connection.close where the channel is 0."""

    channel: int
    code: int
    text: str

    def __str__(self) -> str:
        """The broker's own words and its code: `NOT_ALLOWED - vhost x not found (530)`."""
        return f"{self.text} ({self.code})"


class Blocked(NamedTuple):
    """connection.blocked: the broker reads no more publishes until `Unblocked`."""

    why: str


class Unblocked(NamedTuple):
    """connection.unblocked."""


Event: TypeAlias = Delivery | Confirm | Returned | ConsumerCancelled | Closed | Blocked | Unblocked


class _Content:
    """A delivery or a return whose content is not complete yet."""

    __slots__ = (
        "body",
        "consumer",
        "kept",
        "properties",
        "readable",
        "redelivered",
        "size",
        "tag",
        "text",
        "todo",
    )

    def __init__(self, consumer: str, tag: int, redelivered: bool, text: str | None) -> None:
        self.consumer = consumer
        self.tag = tag
        self.redelivered = redelivered
        self.text = text
        """The reply text of a return; None for a delivery."""
        self.properties: Properties | None = None
        self.readable = True
        self.size = 0
        self.todo = 0
        self.kept = 0
        self.body: list[bytes] = []

    def event(self, channel: int) -> Event:
        properties = self.properties
        assert properties is not None
        if self.text is not None:
            return Returned(channel, properties.message_id, self.text)
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        return Delivery(channel, self.consumer, self.tag, body, self.size, properties, self.readable)


class Splitter:
    """Splits the broker's stream: what belongs to tapped channels becomes events, the rest goes on."""

    def __init__(self) -> None:
        self._rest = b""
        self._tapped: dict[int, _Content | None] = {}
        self._begun = False

    def tap(self, channel: int) -> None:
        """From now on take deliveries, returns and confirms of this channel out of the stream."""
        self._tapped[channel] = None

    def untap(self, channel: int) -> None:
        """Leave this channel alone again; idempotent."""
        self._tapped.pop(channel, None)

    def feed(self, data: bytes) -> tuple[list[Event], bytes]:
        """Take one read of the socket; return what happened, in order, and the bytes that go on.

        Frames that only inform (close, cancel, blocked) are both an event and passed on. Raises NotAmqp;
        then the stream is of no more use.
        """
        if self._rest:
            data = self._rest + data
        events: list[Event] = []
        passed: list[bytes] = []
        try:
            self._rest = data[self._walk(data, events, passed) :]
        except (IndexError, struct.error) as short:
            raise NotAmqp("a frame shorter than its method") from short
        return events, b"".join(passed)

    def _walk(self, data: bytes, events: list[Event], passed: list[bytes]) -> int:
        """Go over all complete frames; return where the first incomplete one begins."""
        tapped = self._tapped
        at, end = 0, len(data)
        if not self._begun and end >= 8:
            self._begun = True
            if data.startswith(b"AMQP"):  # a broker of another version names its own and hangs up
                at = 8
                passed.append(data[:8])
        while end - at >= 8:
            kind, channel, size = _HEAD.unpack_from(data, at)
            start = at + 7
            stop = start + size
            if stop >= end:
                if size > FRAME_BYTES_MAX:
                    raise NotAmqp(f"a frame of {size} bytes")
                break
            if data[stop] != _END:
                raise NotAmqp(f"a frame of type {kind} does not end with the end octet")
            if channel not in tapped or not self._tapped_frame(kind, channel, data, start, stop, events):
                if kind == _METHOD:
                    notable = _notable(channel, data, start, stop)
                    if notable is not None:
                        events.append(notable)
                passed.append(data[at : stop + 1])
            at = stop + 1
        return at

    def _tapped_frame(
        self, kind: int, channel: int, data: bytes, start: int, stop: int, events: list[Event]
    ) -> bool:
        """Handle a frame of a tapped channel; False where it goes on to the library."""
        if kind == _METHOD:
            (code,) = _CODE.unpack_from(data, start)
            if code == _BASIC_DELIVER:
                at = start + 5 + data[start + 4]
                consumer = data[start + 5 : at].decode("utf-8", "replace")
                (tag,) = _LONG_LONG.unpack_from(data, at)
                self._tapped[channel] = _Content(consumer, tag, data[at + 8] & 1 == 1, None)
            elif code == _BASIC_ACK:
                (tag,) = _LONG_LONG.unpack_from(data, start + 4)
                events.append(Confirm(channel, tag, data[start + 12] & 1 == 1, True))
            elif code == _BASIC_NACK:
                (tag,) = _LONG_LONG.unpack_from(data, start + 4)
                events.append(Confirm(channel, tag, data[start + 12] & 1 == 1, False))
            elif code == _BASIC_RETURN:
                text = data[start + 7 : start + 7 + data[start + 6]].decode("utf-8", "replace")
                self._tapped[channel] = _Content("", 0, False, text)
            else:
                return False
            return True
        content = self._tapped[channel]
        if content is None:
            return False
        if kind == _HEADER:
            content.size, content.properties, content.readable = decode_content(
                data, start, stop, content.redelivered
            )
            content.todo = content.size
        elif kind == _BODY:
            size = stop - start
            if size > content.todo:
                raise NotAmqp("more bytes of a body than its header announced")
            content.todo -= size
            if content.size <= MESSAGE_BYTES_MAX:
                content.body.append(data[start:stop])
            elif content.kept < CUT_BYTES:
                piece = data[start : min(stop, start + CUT_BYTES - content.kept)]
                content.kept += len(piece)
                content.body.append(piece)
        else:
            return False
        if content.todo == 0:
            self._tapped[channel] = None
            events.append(content.event(channel))
        return True


def _notable(channel: int, data: bytes, start: int, stop: int) -> Event | None:
    """Tell of a method that the library handles, and that we want to know at once."""
    (code,) = _CODE.unpack_from(data, start)
    if code not in _NOTABLE:
        return None
    at = start + 4
    if code == _CONNECTION_UNBLOCKED:
        return Unblocked()
    if code in (_CONNECTION_CLOSE, _CHANNEL_CLOSE):
        (reply,) = _SHORT.unpack_from(data, at)
        return Closed(channel, reply, _short_string(data, at + 2, stop, "replace")[0])
    if code == _CONNECTION_BLOCKED:
        return Blocked(_short_string(data, at, stop, "replace")[0])
    if code == _BASIC_CANCEL:
        return ConsumerCancelled(channel, _short_string(data, at, stop, "replace")[0])
    return None


# --- Decoding a content header ---------------------------------------------------------------------------

_FLAG_HEADERS, _FLAG_DELIVERY_MODE, _FLAG_PRIORITY = 1 << 13, 1 << 12, 1 << 11
_FLAG_CORRELATION_ID, _FLAG_REPLY_TO, _FLAG_EXPIRATION = 1 << 10, 1 << 9, 1 << 8
_FLAG_MESSAGE_ID, _FLAG_TIMESTAMP, _FLAG_TYPE = 1 << 7, 1 << 6, 1 << 5
_FLAG_USER_ID, _FLAG_APP_ID = 1 << 4, 1 << 3
_NO_HEADERS: Mapping[str, object] = {}


def decode_content(data: bytes, start: int, stop: int, redelivered: bool) -> tuple[int, Properties, bool]:
    """Read the payload of a content header frame (AMQP 0-9-1 4.2.6.1) between `start` and `stop`.

    Returns the body's size, the properties, and whether the header table could be read. Bytes that are not
    UTF-8 are lone surrogates in the text (PEP 383), which `octets` turns into the same bytes again; only in
    `app_id`, which every row has and no database could hold so, they are replacement characters. Raises
    NotAmqp only where the frame itself is too short for what its flags announce.
    """
    try:
        _, _, size, flags = _CONTENT.unpack_from(data, start)
        at = start + 14
        more = flags
        while more & 1:  # continued flags: no AMQP 0-9-1 property lives there
            (more,) = _SHORT.unpack_from(data, at)
            at += 2
        content_type = content_encoding = correlation_id = reply_to = expiration = ""
        message_id = user_id = app_id = ""
        timestamp: float | None = None
        headers = _NO_HEADERS
        readable = True
        count = priority = 0
        if flags & (1 << 15):
            content_type, at = _short_string(data, at, stop)
        if flags & (1 << 14):
            content_encoding, at = _short_string(data, at, stop)
        if flags & _FLAG_HEADERS:
            (length,) = _CODE.unpack_from(data, at)
            at += 4
            if at + length > stop:
                raise NotAmqp("a header table longer than its frame")
            try:
                headers = _table(data, at, at + length, 0)
            except (ValueError, IndexError, struct.error, OverflowError):
                readable = False
            else:
                # At its first delivery the header can only be a publisher's: of a message that was moved, say.
                given = headers.get("x-delivery-count") if redelivered else None
                if type(given) is int and given > 0:
                    count = given
            at += length
        if flags & _FLAG_DELIVERY_MODE:
            at += 1
        if flags & _FLAG_PRIORITY:
            priority = data[at]
            at += 1
        if flags & _FLAG_CORRELATION_ID:
            correlation_id, at = _short_string(data, at, stop)
        if flags & _FLAG_REPLY_TO:
            reply_to, at = _short_string(data, at, stop)
        if flags & _FLAG_EXPIRATION:
            expiration, at = _short_string(data, at, stop)
        if flags & _FLAG_MESSAGE_ID:
            message_id, at = _short_string(data, at, stop)
        if flags & _FLAG_TIMESTAMP:
            (seconds,) = _LONG_LONG.unpack_from(data, at)
            timestamp = float(seconds)
            at += 8
        if flags & _FLAG_TYPE:
            _, at = _short_string(data, at, stop)
        if flags & _FLAG_USER_ID:
            user_id, at = _short_string(data, at, stop)
        if flags & _FLAG_APP_ID:
            app_id, at = _short_string(data, at, stop, "replace")
    except (IndexError, struct.error) as short:
        raise NotAmqp("a content header shorter than its flags") from short
    if at > stop:
        raise NotAmqp("a content header shorter than its flags")
    return (
        size,
        Properties(
            message_id,
            correlation_id,
            reply_to,
            app_id,
            user_id,
            content_type,
            content_encoding,
            expiration,
            timestamp,
            headers,
            redelivered,
            count,
            priority,
        ),
        readable,
    )


def _short_string(data: bytes, at: int, stop: int, errors: str = "surrogateescape") -> tuple[str, int]:
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
    """Read one field value. A decimal becomes a float: what Properties promises."""
    kind = data[at]
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        after = at + fixed.size
        _within(after, stop)
        return fixed.unpack_from(data, at)[0], after
    if kind in b"SxFA":
        (length,) = _CODE.unpack_from(data, at)
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
        if kind == 0x53:  # S: a byte string by the grammar, text by everybody's habit
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


# --- Encoding --------------------------------------------------------------------------------------------


def octets(text: str) -> bytes:
    """The bytes that a text of `Properties` was: UTF-8, but for its lone surrogates (see `decode_content`)."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte never came from the wire
        return text.encode("utf-8", "replace")


def legible(text: str) -> str:
    """A text of `Properties` as people and JSON can have it: what is not UTF-8 becomes `\\xff`."""
    return octets(text).decode("utf-8", "backslashreplace")


def fits(text: str) -> bool:
    """Whether this can be a short string as a whole."""
    return 4 * len(text) <= SHORT_BYTES_MAX or len(octets(text)) <= SHORT_BYTES_MAX


def cut(text: str) -> bytes:
    """The bytes of `text`, as many as a short string holds, never ending inside a character.

    For what may lose its end. An id may not: two that begin alike would become one.
    """
    raw = octets(text)
    end = SHORT_BYTES_MAX
    if len(raw) <= end:
        return raw
    while end > SHORT_BYTES_MAX - 4 and raw[end] & 0xC0 == 0x80:
        end -= 1
    return raw[:end]


def short_string(text: str) -> bytes:
    """An AMQP short string, cut where it is too long: see `cut`, and ask `fits` before where that matters."""
    raw = cut(text)
    return bytes((len(raw),)) + raw


def ack(channel: int, tag: int, multiple: bool) -> bytes:
    """basic.ack as a frame."""
    return _TAG.pack(_METHOD, channel, 13, _BASIC_ACK, tag, multiple, _END)


def requeue(channel: int, tag: int) -> bytes:
    """basic.nack with requeue, for one message, as a frame."""
    return _TAG.pack(_METHOD, channel, 13, _BASIC_NACK, tag, 2, _END)


def cancel(channel: int, consumer: str) -> bytes:
    """basic.cancel as a frame; the broker does not answer it (no-wait)."""
    payload = _CODE.pack(_BASIC_CANCEL) + short_string(consumer) + b"\x01"
    return _HEAD.pack(_METHOD, channel, len(payload)) + payload + b"\xce"


@lru_cache(maxsize=4096)
def publish_method(channel: int, exchange: str, routing_key: bytes, mandatory: bool) -> bytes:
    """basic.publish as a frame; the routing key has at most 255 bytes."""
    payload = (
        _CODE.pack(_BASIC_PUBLISH)
        + b"\x00\x00"
        + short_string(exchange)
        + bytes((len(routing_key),))
        + routing_key
        + (b"\x01" if mandatory else b"\x00")
    )
    return _HEAD.pack(_METHOD, channel, len(payload)) + payload + b"\xce"


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
    app_id: str = "",
) -> bytes:
    """Flags and values of a content header, always persistent. `headers`: what `table` returned, or empty."""
    flags = _FLAG_DELIVERY_MODE
    before = b""
    if content_type:
        flags |= 1 << 15
        before = short_string(content_type)
    if content_encoding:
        flags |= 1 << 14
        before += short_string(content_encoding)
    if headers:
        flags |= _FLAG_HEADERS
        before += headers
    parts = [b"", before, b"\x02"]
    for flag, text in (
        (_FLAG_CORRELATION_ID, correlation_id),
        (_FLAG_REPLY_TO, reply_to),
        (_FLAG_EXPIRATION, expiration),
        (_FLAG_MESSAGE_ID, message_id),
    ):
        if text:
            flags |= flag
            parts.append(short_string(text))
    if timestamp is not None:
        flags |= _FLAG_TIMESTAMP
        parts.append(_LONG_LONG.pack(timestamp))
    if type:
        flags |= _FLAG_TYPE
        parts.append(short_string(type))
    if app_id:
        flags |= _FLAG_APP_ID
        parts.append(short_string(app_id))
    parts[0] = _SHORT.pack(flags)
    return b"".join(parts)


def table(values: Mapping[str, object]) -> tuple[bytes, Sequence[str]]:
    """Encode a header table; returns it with its length, and the names of what AMQP can't express.

    Not the library's encoder: that one cuts names, and writes floats with 32 bits.
    """
    fields: list[bytes] = []
    left_out: list[str] = []
    for name, value in values.items():
        try:
            fields.append(_field(name, value))
        except (TypeError, ValueError, OverflowError, RecursionError, struct.error):
            left_out.append(name)
    joined = b"".join(fields)
    return _CODE.pack(len(joined)) + joined, left_out


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
    return _CODE.pack(len(raw)) + raw


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """The content header and body frames of one message. A body larger than a frame is split."""
    size = len(body)
    head = b"".join(
        (
            _HEAD.pack(_HEADER, channel, 12 + len(properties)),
            b"\x00\x3c\x00\x00",
            _LONG_LONG.pack(size),
            properties,
            b"\xce",
        )
    )
    most = frame_max - 8
    if size == 0:
        return head
    if size <= most:
        return b"".join((head, _HEAD.pack(_BODY, channel, size), body, b"\xce"))
    parts = [head]
    for at in range(0, size, most):
        piece = body[at : at + most]
        parts += (_HEAD.pack(_BODY, channel, len(piece)), piece, b"\xce")
    return b"".join(parts)
