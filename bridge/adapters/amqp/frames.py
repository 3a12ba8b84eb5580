"""Read AMQP 0-9-1 frames from the broker's stream, without I/O: deliveries, confirms and urgent news.

The library makes objects and tasks for each frame, which is most of the cost of a message. So the frames that come by
the thousand are read here, a whole read of the socket at a time. All other frames pass through to the library, which
handles the handshake, the channels and the heartbeats.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from bridge.adapters.amqp.decoding import decode_content, read_short_string
from bridge.adapters.amqp.grammar import (
    BASIC_ACK,
    BASIC_CANCEL,
    BASIC_DELIVER,
    BASIC_NACK,
    BASIC_RETURN,
    BODY,
    CHANNEL_CLOSE,
    CONNECTION_BLOCKED,
    CONNECTION_CLOSE,
    CONNECTION_UNBLOCKED,
    END,
    FLAG_CORRELATION_ID,
    FLAG_HEADERS,
    FLAG_MESSAGE_ID,
    FLAG_REPLY_TO,
    FLAG_TIMESTAMP,
    HEADER,
    METHOD,
    NotAmqp,
)
from bridge.core.model.pushes import MESSAGE_BYTES_MAX, Properties
from bridge.core.model.tuples import new_tuple

CUT_BYTES: Final = 4096
"""Bytes that are kept of a body that is larger than the contract allows."""
PLAIN_MAX, PLAIN_BYTES_MAX = 256, 256
"""Properties that are kept with their bytes, and the most bytes of each: most publishers send the same ones again."""
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
"""No broker negotiates a larger frame: a length beyond it is not AMQP."""

_HEAD: Final = struct.Struct(">BHL")
_LONG: Final = struct.Struct(">L")
_LONG_LONG: Final = struct.Struct(">Q")
_SHORT: Final = struct.Struct(">H")
_TAG: Final = struct.Struct(">QB")
"""A delivery tag, and whether it is redelivered."""
_CONTENT_HEAD: Final = struct.Struct(">BHL4xQ")
"""The head of a content header frame, and the size of the body."""
_NEXT: Final = struct.Struct(">BBHL")
"""The end octet of a frame and the head of the next."""
_DELIVER: Final = BASIC_DELIVER.to_bytes(4, "big")
_VARYING: Final = FLAG_HEADERS | FLAG_CORRELATION_ID | FLAG_REPLY_TO | FLAG_MESSAGE_ID | FLAG_TIMESTAMP
_VARYING_HIGH: Final = _VARYING >> 8
_VARYING_LOW: Final = _VARYING & 0xFF
_NOTABLE: Final = frozenset(
    {
        CONNECTION_CLOSE,
        CONNECTION_BLOCKED,
        CONNECTION_UNBLOCKED,
        CHANNEL_CLOSE,
        BASIC_CANCEL,
    }
)


class Delivered(NamedTuple):
    """basic.deliver with its content. Of a body over `MESSAGE_BYTES_MAX` only `CUT_BYTES` are kept, unless those of its
    channel are kept whole."""

    channel: int
    consumer: str
    tag: int
    body: bytes
    body_size: int
    properties: Properties
    readable: bool
    """False: the header table could not be read, and `properties.headers` is empty."""
    key: bytes
    """The routing key with which it was published."""


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


Event: TypeAlias = Delivered | Confirm | Returned | ConsumerCancelled | Closed | Blocked | Unblocked


class _Content:
    """A delivery or a return whose content is incomplete."""

    __slots__ = (
        "body",
        "consumer",
        "kept",
        "key",
        "properties",
        "readable",
        "redelivered",
        "size",
        "tag",
        "text",
        "todo",
    )

    def __init__(
        self, consumer: str, tag: int, redelivered: bool, text: str | None, key: bytes = b""
    ) -> None:
        self.consumer = consumer
        self.key = key
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
        return Delivered(
            channel, self.consumer, self.tag, body, self.size, properties, self.readable, self.key
        )


class Splitter:
    """Splits the broker's stream: frames of watched channels become events, the rest is passed on."""

    def __init__(self) -> None:
        self._rest = b""
        self._watched: dict[int, _Content | None] = {}
        self._uncut: set[int] = set()
        """Those of them whose bodies are kept whole."""
        self._begun = False
        self._plain: dict[bytes, Properties] = {}
        """Properties by their bytes, where they name nothing that is another for every message."""

    def watch(self, channel: int, *, uncut: bool = False) -> None:
        """Take deliveries, returns and confirms of this channel out of the stream from now on. `uncut`: bodies are kept
        whole, however large they are."""
        self._watched[channel] = None
        if uncut:
            self._uncut.add(channel)

    def unwatch(self, channel: int) -> None:
        """Pass all frames of this channel on again; idempotent."""
        self._watched.pop(channel, None)
        self._uncut.discard(channel)

    def feed(self, data: bytes) -> tuple[list[Event], bytes]:
        """Take one read of the socket; return the events in order, and the bytes to pass on.

        Frames that only inform (close, cancel, blocked) become an event and are passed on, too. After NotAmqp the
        stream is unusable.
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
        """Read all complete frames; return where the first incomplete one begins."""
        watched = self._watched
        at, end = 0, len(data)
        if not self._begun and end >= 8:
            self._begun = True
            if data.startswith(b"AMQP"):  # a broker of another version sends its own and hangs up
                at = 8
                passed.append(data[:8])
        kind: int
        channel: int
        size: int
        while end - at >= 8:
            kind, channel, size = _HEAD.unpack_from(data, at)
            start = at + 7
            stop = start + size
            if stop >= end:
                if size > FRAME_BYTES_MAX:
                    raise NotAmqp(f"a frame of {size} bytes")
                break
            if data[stop] != END:
                raise NotAmqp(f"a frame of type {kind} does not end with the end octet")
            if kind == METHOD and channel in watched:
                after = self._whole(channel, data, start, stop, end, events)
                if after:
                    at = after
                    continue
            if channel not in watched or not self._watched_frame(kind, channel, data, start, stop, events):
                if kind == METHOD:
                    notable = _notable(channel, data, start, stop)
                    if notable is not None:
                        events.append(notable)
                passed.append(data[at : stop + 1])
            at = stop + 1
        return at

    def _whole(self, channel: int, data: bytes, start: int, stop: int, end: int, events: list[Event]) -> int:
        """Read a delivery whose three frames are all here, as those of nearly every message are. Returns where the
        next frame begins; 0 where it is anything else, and nothing was read."""
        if data[start : start + 4] != _DELIVER or end - stop < 32:
            return 0
        kind: int
        its_channel: int
        size: int
        body_size: int
        head_end: int
        tag: int
        flags: int
        kind, its_channel, size, body_size = _CONTENT_HEAD.unpack_from(data, stop + 1)
        head = stop + 8
        head_stop = head + size
        if kind != HEADER or its_channel != channel or size < 14 or head_stop + 8 >= end:
            return 0
        head_end, kind, its_channel, size = _NEXT.unpack_from(data, head_stop)
        body = head_stop + 8
        body_stop = body + body_size
        if kind != BODY or its_channel != channel or size != body_size or body_size > MESSAGE_BYTES_MAX:
            return 0
        if body_stop >= end or head_end != END or data[body_stop] != END:
            return 0
        at = start + 5 + data[start + 4]
        consumer = data[start + 5 : at].decode("utf-8", "replace")
        tag, flags = _TAG.unpack_from(data, at)
        properties, readable = self._properties(data, head, head_stop, flags & 1 == 1)
        text = data[body:body_stop]
        key = _routing_key(data, at + 9)
        events.append(
            new_tuple(Delivered, (channel, consumer, tag, text, body_size, properties, readable, key))
        )
        return body_stop + 1

    def _properties(self, data: bytes, head: int, stop: int, redelivered: bool) -> tuple[Properties, bool]:
        """What `decode_content` says of a content header, but for the size of the body."""
        if redelivered or data[head + 12] & _VARYING_HIGH or data[head + 13] & _VARYING_LOW:
            _, properties, readable = decode_content(data, head, stop, redelivered)
            return properties, readable
        text = data[head + 12 : stop]
        known = self._plain.get(text)
        if known is not None:
            return known, True
        _, properties, readable = decode_content(data, head, stop, redelivered)
        if readable and len(text) <= PLAIN_BYTES_MAX:
            if len(self._plain) >= PLAIN_MAX:
                self._plain.clear()
            self._plain[text] = properties
        return properties, readable

    def _watched_frame(
        self, kind: int, channel: int, data: bytes, start: int, stop: int, events: list[Event]
    ) -> bool:
        """Handle a frame of a watched channel; False where it is to be passed on to the library."""
        if kind == METHOD:
            (code,) = _LONG.unpack_from(data, start)
            if code == BASIC_DELIVER:
                at = start + 5 + data[start + 4]
                consumer = data[start + 5 : at].decode("utf-8", "replace")
                (tag,) = _LONG_LONG.unpack_from(data, at)
                redelivered = data[at + 8] & 1 == 1
                self._watched[channel] = _Content(
                    consumer, tag, redelivered, None, _routing_key(data, at + 9)
                )
            elif code == BASIC_ACK:
                (tag,) = _LONG_LONG.unpack_from(data, start + 4)
                events.append(Confirm(channel, tag, data[start + 12] & 1 == 1, True))
            elif code == BASIC_NACK:
                (tag,) = _LONG_LONG.unpack_from(data, start + 4)
                events.append(Confirm(channel, tag, data[start + 12] & 1 == 1, False))
            elif code == BASIC_RETURN:
                text = data[start + 7 : start + 7 + data[start + 6]].decode("utf-8", "replace")
                self._watched[channel] = _Content("", 0, False, text)
            else:
                return False
            return True
        content = self._watched[channel]
        if content is None:
            return False
        if kind == HEADER:
            content.size, content.properties, content.readable = decode_content(
                data, start, stop, content.redelivered
            )
            content.todo = content.size
        elif kind == BODY:
            size = stop - start
            if size > content.todo:
                raise NotAmqp("more bytes of a body than its header announced")
            content.todo -= size
            if content.size <= MESSAGE_BYTES_MAX or channel in self._uncut:
                content.body.append(data[start:stop])
            elif content.kept < CUT_BYTES:
                piece = data[start : min(stop, start + CUT_BYTES - content.kept)]
                content.kept += len(piece)
                content.body.append(piece)
        else:
            return False
        if content.todo == 0:
            self._watched[channel] = None
            events.append(content.event(channel))
        return True


def _routing_key(data: bytes, at: int) -> bytes:
    """Of a delivery whose exchange begins there: two short strings follow one another."""
    at += 1 + data[at]
    return data[at + 1 : at + 1 + data[at]]


def _notable(channel: int, data: bytes, start: int, stop: int) -> Event | None:
    """The event of a method that the library handles, and that we need to know at once."""
    (code,) = _LONG.unpack_from(data, start)
    if code not in _NOTABLE:
        return None
    at = start + 4
    if code == CONNECTION_UNBLOCKED:
        return Unblocked()
    if code in (CONNECTION_CLOSE, CHANNEL_CLOSE):
        (reply,) = _SHORT.unpack_from(data, at)
        return Closed(channel, reply, read_short_string(data, at + 2, stop, "replace")[0])
    if code == CONNECTION_BLOCKED:
        return Blocked(read_short_string(data, at, stop, "replace")[0])
    return ConsumerCancelled(channel, read_short_string(data, at, stop, "replace")[0])
