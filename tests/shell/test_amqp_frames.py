"""The frames that the adapter reads and writes itself, compared with the library's own parser."""

from __future__ import annotations

import datetime
import decimal
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from bridge.adapters.amqp import encoding, frames
from bridge.adapters.amqp.decoding import decode_content
from bridge.adapters.amqp.frames import (
    Blocked,
    Closed,
    Confirm,
    ConsumerCancelled,
    Delivered,
    Event,
    Returned,
    Splitter,
    Unblocked,
)
from bridge.adapters.amqp.grammar import NotAmqp
from bridge.core.model.pushes import MESSAGE_BYTES_MAX, Properties

PROPERTIES = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "type",
    "app_id",
)
SHORT_STRINGS = tuple(name for name in PROPERTIES if name not in ("type", "app_id"))
CHANNEL = 3
OTHER = 4

letters = "aZ09-. \x00\x7fü☃😀"
short = st.text(letters, max_size=60)
keys = st.text(letters, min_size=1, max_size=30)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(letters, max_size=100),
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=6
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[int, bool, bytes, commands.Basic.Properties]:
    properties = commands.Basic.Properties(
        content_type=draw(st.none() | short),
        content_encoding=draw(st.none() | short),
        headers=draw(st.none() | st.dictionaries(keys, values, max_size=4)),  # type: ignore[arg-type]
        delivery_mode=draw(st.none() | st.sampled_from([1, 2])),
        priority=draw(st.none() | st.integers(0, 9)),
        correlation_id=draw(st.none() | short),
        reply_to=draw(st.none() | short),
        expiration=draw(st.none() | short),
        message_id=draw(st.none() | short),
        timestamp=draw(
            st.none()
            | st.integers(0, 4_000_000_000).map(lambda s: datetime.datetime.fromtimestamp(s, datetime.UTC))
        ),
        message_type=draw(st.none() | short),
        user_id=draw(st.none() | short),
        app_id=draw(st.none() | short),
    )
    tag = draw(st.integers(1, 2**63 - 1))
    return tag, draw(st.booleans()), draw(st.binary(max_size=300)), properties


def delivered(tag: int, redelivered: bool, body: bytes, properties: Any, most: int = 100) -> Iterator[bytes]:
    """The frames of one delivery as the library's own encoder writes them."""
    method = commands.Basic.Deliver("push.requests", tag, redelivered, "push", "user.u1")
    yield pamqp.frame.marshal(method, CHANNEL)
    yield pamqp.frame.marshal(ContentHeader(0, len(body), properties), CHANNEL)
    for at in range(0, len(body), most):
        yield pamqp.frame.marshal(ContentBody(body[at : at + most]), CHANNEL)


def split(data: bytes, cuts: list[int], splitter: Splitter | None = None) -> tuple[list[Event], bytes]:
    """Feed the stream in pieces, as TCP might."""
    if splitter is None:
        splitter = Splitter()
        splitter.watch(CHANNEL)
    events: list[Event] = []
    passed = b""
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        some, on = splitter.feed(data[start:stop])
        events += some
        passed += on
    return events, passed


def read_back(header: ContentHeader, redelivered: bool) -> Properties:
    """The properties as the library reads them, in the words of the model."""
    given = header.properties
    return Properties(
        message_id=given.message_id or "",
        correlation_id=given.correlation_id or "",
        reply_to=given.reply_to or "",
        app_id=given.app_id or "",
        user_id=given.user_id or "",
        content_type=given.content_type or "",
        content_encoding=given.content_encoding or "",
        expiration=given.expiration or "",
        timestamp=given.timestamp.timestamp() if given.timestamp else None,
        headers=given.headers or {},
        redelivered=redelivered,
        priority=given.priority,
    )


@settings(max_examples=200)
@given(st.lists(messages(), min_size=1, max_size=4), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_deliveries_are_read_as_the_library_reads_them_however_tcp_cuts_the_stream(
    sent: list[tuple[int, bool, bytes, commands.Basic.Properties]], cuts: list[int]
) -> None:
    stream = b""
    passing = b""
    for n, message in enumerate(sent):
        for frame in delivered(*message):
            stream += frame
            between = pamqp.frame.marshal(Heartbeat(), 0) if n % 2 else b""
            other = b"".join(
                encoding.content(OTHER, encoding.properties(message_id="x"), b"other", 4096) for _ in (0,)
            )
            stream += between + other
            passing += between + other
    events, passed = split(stream, cuts)
    assert passed == passing
    assert len(events) == len(sent)
    for event, (tag, redelivered, body, properties) in zip(events, sent, strict=True):
        assert isinstance(event, Delivered)
        _, _, header = pamqp.frame.unmarshal(
            pamqp.frame.marshal(ContentHeader(0, len(body), properties), CHANNEL)
        )
        assert isinstance(header, ContentHeader)
        assert event.readable
        assert event._replace(properties=Properties()) == Delivered(
            CHANNEL, "push.requests", tag, body, len(body), Properties(), True, b"user.u1"
        )
        assert event.properties == read_back(header, redelivered)


@settings(max_examples=200)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_garbage_is_refused_by_our_error_and_no_other(data: bytes, cuts: list[int]) -> None:
    try:
        split(data, cuts)
    except NotAmqp:
        pass


@settings(max_examples=200)
@given(messages(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_delivery_is_an_event_or_our_error_and_never_another(
    sent: tuple[int, bool, bytes, commands.Basic.Properties], damage: list[tuple[int, int]]
) -> None:
    stream = bytearray(b"".join(delivered(*sent)))
    for at, value in damage:
        stream[at % len(stream)] = value
    try:
        split(bytes(stream), [])
    except NotAmqp:
        pass


def long(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def written(table: bytes, short_strings: dict[str, Any]) -> bytes:
    return encoding.properties(headers=table, **short_strings)


def one(properties: Any = None, body: bytes = b"{}", redelivered: bool = False) -> Delivered:
    sent = delivered(7, redelivered, body, properties or commands.Basic.Properties())
    events, _ = split(b"".join(sent), [])
    (event,) = events
    assert isinstance(event, Delivered)
    return event


def with_table(table: bytes, redelivered: bool = False) -> Delivered:
    """A delivery whose header table is just these bytes."""
    raw = encoding.properties(headers=len(table).to_bytes(4, "big") + table, message_id="after")
    stream = next(delivered(1, redelivered, b"", commands.Basic.Properties())) + encoding.content(
        CHANNEL, raw, b"", 4096
    )
    events, _ = split(stream, [])
    (event,) = events
    assert isinstance(event, Delivered)
    return event


def test_types_that_json_does_not_have_become_those_that_the_model_promises() -> None:
    headers = one(
        commands.Basic.Properties(
            headers={
                "decimal": decimal.Decimal("12.5"),
                "time": datetime.datetime.fromtimestamp(1_800_000_000, datetime.UTC),
                "bytes": bytearray(b"\x00\xff"),
                "nested": {"list": [1, {"deep": None}]},
                "x-delivery-count": 4,
            }
        )
    ).properties
    assert headers.headers == {
        "decimal": 12.5,
        "time": 1_800_000_000,
        "bytes": b"\x00\xff",
        "nested": {"list": [1, {"deep": None}]},
        "x-delivery-count": 4,
    }


def test_a_delivery_count_counts_where_the_broker_says_that_it_is_not_the_first() -> None:
    # At the first the header is a publisher's: of a message that was moved from another queue, say.
    counted = commands.Basic.Properties(headers={"x-delivery-count": 4})
    assert one(counted, redelivered=True).properties.delivery_count == 4
    assert one(counted).properties.delivery_count == 0


@pytest.mark.parametrize("count", [b"t\x01", b"S\x00\x00\x00\x011", b"l" + b"\xff" * 8, b"V"])
def test_a_delivery_count_that_is_no_count_counts_as_none(count: bytes) -> None:
    assert with_table(b"\x10x-delivery-count" + count, redelivered=True).properties.delivery_count == 0


def test_bytes_that_are_not_utf8_are_the_same_bytes_when_they_are_written_again() -> None:
    table = b"\x01kx\x00\x00\x00\x02\xff\xfe" + b"\x02\xff\xfet\x01" + b"\x01mF\x00\x00\x00\x03\x01\xffV"
    raw = written(long(table), dict.fromkeys(SHORT_STRINGS, "~" * 255))
    sent = raw.replace(b"~" * 255, b"a\x80\xff" * 85)
    _, read, readable = decode_content(bytes(12) + sent, 0, 12 + len(sent), False)
    assert readable
    assert read.headers["k"] == b"\xff\xfe"
    assert {getattr(read, name) for name in SHORT_STRINGS} == {"a\udc80\udcff" * 85}
    again, left_out = encoding.table(read.headers)
    assert not left_out
    assert written(again, {name: getattr(read, name) for name in SHORT_STRINGS}) == sent


def test_a_header_string_that_is_not_utf8_stays_bytes() -> None:
    event = with_table(b"\x01kS\x00\x00\x00\x02\xff\xfe")
    assert event.properties.headers == {"k": b"\xff\xfe"}


def test_an_app_id_is_text_that_a_database_takes() -> None:
    raw = encoding.properties(app_id="~" * 255).replace(b"~" * 255, b"\xff" * 255)
    _, read, _ = decode_content(bytes(12) + raw, 0, 12 + len(raw), False)
    assert read.app_id == "�" * 255
    assert encoding.properties(app_id=read.app_id) == encoding.properties(app_id="�" * 85)


@pytest.mark.parametrize(
    "table",
    [
        b"\x01kz",
        b"\x01kS\xff\xff\xff\xff",
        b"\x01kl\x00",
        b"\x09k",
        b"\x01kD\x01\x00",
        b"\x01kF\x00\x00\x00\x40\x01k",
    ],
    ids=["unknown type", "longer than the table", "cut integer", "cut key", "cut decimal", "nested too long"],
)
def test_an_unreadable_header_table_loses_the_headers_and_nothing_else(table: bytes) -> None:
    event = with_table(table)
    assert not event.readable
    assert event.properties == Properties(message_id="after")


def test_tables_nested_without_end_do_not_overflow_the_stack() -> None:
    table = b""
    for _ in range(5000):
        table = b"\x01kF" + len(table).to_bytes(4, "big") + table
    assert not with_table(table).readable
    array = b""
    for _ in range(5000):
        array = b"A" + len(array).to_bytes(4, "big") + array
    assert not with_table(b"\x01k" + array).readable


@pytest.mark.parametrize("size", [MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX + 1, 10 * MESSAGE_BYTES_MAX])
def test_a_body_over_the_limit_is_cut_as_it_comes_in(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    splitter = Splitter()
    splitter.watch(CHANNEL)
    events: list[Event] = []
    for frame in delivered(1, False, body, commands.Basic.Properties(), 131_064):
        some, _ = splitter.feed(frame)
        events += some
    (event,) = events
    assert isinstance(event, Delivered)
    assert event.body_size == size
    assert event.body == (body if size <= MESSAGE_BYTES_MAX else body[: frames.CUT_BYTES])


@pytest.mark.parametrize("size", [1, MESSAGE_BYTES_MAX + 1, 3 * MESSAGE_BYTES_MAX])
def test_where_bodies_are_kept_whole_no_limit_cuts_them(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    splitter = Splitter()
    splitter.watch(CHANNEL, uncut=True)
    stream = b"".join(delivered(1, False, body, commands.Basic.Properties(), 131_064))
    ([event], passed) = split(stream, [size // 2], splitter)
    assert isinstance(event, Delivered)
    assert (event.body == body, event.body_size, passed) == (True, size, b"")
    splitter.unwatch(CHANNEL)
    splitter.watch(CHANNEL)
    ([event], _) = split(stream, [], splitter)
    assert isinstance(event, Delivered)
    assert len(event.body) == (size if size <= MESSAGE_BYTES_MAX else frames.CUT_BYTES)


def test_frames_that_only_inform_are_told_and_passed_on() -> None:
    told: list[tuple[Any, int, Event]] = [
        (commands.Connection.Blocked("low on memory"), 0, Blocked("low on memory")),
        (commands.Connection.Unblocked(), 0, Unblocked()),
        (commands.Connection.Close(320, "bye", 0, 0), 0, Closed(0, 320, "bye")),
        (commands.Channel.Close(406, "no", 60, 80), CHANNEL, Closed(CHANNEL, 406, "no")),
        (commands.Basic.Cancel("push.requests", True), CHANNEL, ConsumerCancelled(CHANNEL, "push.requests")),
    ]
    for frame, channel, event in told:
        raw = pamqp.frame.marshal(frame, channel)
        assert split(raw, []) == ([event], raw)


def test_confirms_and_returns_of_a_watched_channel_are_taken_out() -> None:
    stream = (
        pamqp.frame.marshal(commands.Basic.Ack(9, True), CHANNEL)
        + pamqp.frame.marshal(commands.Basic.Nack(10, False), CHANNEL)
        + pamqp.frame.marshal(commands.Basic.Return(312, "NO_ROUTE", "push", "k"), CHANNEL)
        + encoding.content(CHANNEL, encoding.properties(message_id="m1"), b"body", 4096)
    )
    assert split(stream, []) == (
        [
            Confirm(CHANNEL, 9, True, True),
            Confirm(CHANNEL, 10, False, False),
            Returned(CHANNEL, "m1", "NO_ROUTE"),
        ],
        b"",
    )


def test_deliveries_of_a_channel_that_is_not_watched_pass_untouched() -> None:
    stream = b"".join(delivered(1, False, b"{}", commands.Basic.Properties(message_id="m")))
    assert split(stream, [], Splitter()) == ([], stream)


def test_a_broker_of_another_version_is_left_to_the_library() -> None:
    assert split(b"AMQP\x00\x00\x09\x01", [3]) == ([], b"AMQP\x00\x00\x09\x01")


@pytest.mark.parametrize(
    "stream",
    [
        pamqp.frame.marshal(Heartbeat(), 0)[:-1] + b"\x00",
        b"\x01\x00\x00\xff\xff\xff\xff\x00\x00\x00",
        pamqp.frame.marshal(commands.Basic.Deliver("c", 1, False, "", ""), CHANNEL)
        + pamqp.frame.marshal(ContentHeader(0, 1, commands.Basic.Properties()), CHANNEL)
        + pamqp.frame.marshal(ContentBody(b"two"), CHANNEL),
    ],
    ids=["end octet", "absurd size", "more body than announced"],
)
def test_a_stream_that_breaks_the_grammar_is_refused(stream: bytes) -> None:
    with pytest.raises(NotAmqp):
        split(stream, [])


# --- Encoding ---


def unmarshalled(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        found.append((channel, frame))
        data = data[size:]
    return found


def test_answers_are_written_as_the_library_writes_them() -> None:
    for multiple in (False, True):
        expected = pamqp.frame.marshal(commands.Basic.Ack(1 << 40, multiple), 5)
        assert encoding.ack(5, 1 << 40, multiple) == expected
    assert encoding.requeue(5, 77) == pamqp.frame.marshal(commands.Basic.Reject(77, True), 5)
    assert encoding.cancel(5, "q") == pamqp.frame.marshal(commands.Basic.Cancel("q", True), 5)


def test_a_publish_is_written_as_the_library_writes_it() -> None:
    for mandatory in (False, True):
        expected = pamqp.frame.marshal(commands.Basic.Publish(0, "push", "user.ü", mandatory, False), 5)
        assert encoding.publish_method(5, "push", "user.ü".encode(), mandatory) == expected


@settings(max_examples=200)
@given(
    given=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(PROPERTIES, short),
    ),
    headers=st.dictionaries(keys, values, max_size=4),
    body=st.binary(max_size=300),
    timestamp=st.none() | st.integers(0, 4_000_000_000),
)
def test_content_that_we_write_is_read_by_the_library(
    given: dict[str, str], headers: dict[str, object], body: bytes, timestamp: int | None
) -> None:
    table, left_out = encoding.table(headers)
    assert not left_out
    raw = encoding.content(
        CHANNEL,
        encoding.properties(**given, headers=table if headers else b"", timestamp=timestamp),
        body,
        100,
    )
    (_, header), *bodies = unmarshalled(raw)
    assert b"".join(frame.value for _, frame in bodies) == body
    assert header.body_size == len(body)
    read = header.properties
    for name, value in given.items():
        assert (getattr(read, "message_type" if name == "type" else name) or "") == value
    assert (read.headers or {}) == headers
    assert read.delivery_mode == 2
    assert (read.timestamp.timestamp() if read.timestamp else None) == timestamp


def test_headers_that_amqp_cannot_express_are_named() -> None:
    odd = {"big": 1 << 70, "odd": object(), "k" * 256: 1, "sur\ud800": "x", "sur": "\ud800", "inf": math.inf}
    table, left_out = encoding.table({"good": 1, **odd, "in": {"a": [math.nan]}})
    assert left_out == [*odd, "in"]
    assert table == encoding.table({"good": 1})[0]


@pytest.mark.parametrize("name", ["k" * 255, "ü" * 127, "😀" * 63], ids=["1", "2", "4"])
def test_a_name_is_whole_or_left_out(name: str) -> None:
    table, left_out = encoding.table({name: {name: 0.1}})
    assert not left_out
    assert with_table(table[4:]).properties.headers == {name: {name: 0.1}}
    assert encoding.table({name + "😀": 1})[1] == [name + "😀"]
    assert encoding.table({"in": {name + "😀": 1}})[1] == ["in"]


def test_bytes_in_a_header_are_written_as_bytes_however_deep() -> None:
    table, left_out = encoding.table({"k": b"\xff", "deep": {"list": [b"\x00", "text"]}})
    assert not left_out
    assert with_table(table[4:]).properties.headers == {"k": b"\xff", "deep": {"list": [b"\x00", "text"]}}


@given(st.text(max_size=300))
def test_a_cut_text_is_valid_utf8_of_at_most_255_bytes(text: str) -> None:
    raw = encoding.cut(text)
    assert len(raw) <= 255
    assert text.encode().startswith(raw)
    raw.decode()
    assert encoding.fits(text) == (raw == text.encode())
    assert len(text.encode()) - len(raw) < 4 or len(raw) > 251
