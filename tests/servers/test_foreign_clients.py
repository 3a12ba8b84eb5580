"""Messages as other clients write them, byte by byte, through a real broker into the log.

The types that a client gives to a header: pika, kombu (py-amqp), php-amqplib, amqp091-go, amqplib of Node and the Java
client, each as its encoder writes them.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest

from benchmarks.listening import listening
from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.broker import are_mixed, usual_priorities
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.frames import Event
from tests.support import bridges

NOW = int(time.time()) - 1
MS = NOW * 1000


def text(value: str) -> bytes:
    raw = value.encode()
    return b"S" + struct.pack(">L", len(raw)) + raw


def header(name: str, value: bytes) -> bytes:
    return bytes((len(name),)) + name.encode() + value


def properties(
    *headers: bytes,
    content_type: str = "application/json",
    content_encoding: str = "",
    priority: int | None = None,
    timestamp: int | None = None,
) -> bytes:
    """The payload of a content header from its flags on (AMQP 0-9-1 4.2.6.1)."""
    flags, parts = 0, []
    for flag, value in ((15, content_type), (14, content_encoding)):
        if value:
            flags |= 1 << flag
            parts.append(bytes((len(value),)) + value.encode())
    if headers:
        flags |= 1 << 13
        table = b"".join(headers)
        parts.append(struct.pack(">L", len(table)) + table)
    if priority is not None:
        flags |= 1 << 11
        parts.append(bytes((priority,)))
    if timestamp is not None:
        flags |= 1 << 6
        parts.append(struct.pack(">Q", timestamp))
    return struct.pack(">H", flags) + b"".join(parts)


async def publish(url: str, messages: Sequence[tuple[bytes, bytes]]) -> None:
    """Publish bodies with raw properties; returns once the broker has confirmed them."""
    confirmed = asyncio.Event()

    def happened(events: Sequence[Event]) -> None:
        if any(getattr(event, "tag", 0) == len(messages) for event in events):
            confirmed.set()

    async with opened(url, "a foreign client", happened, lambda cause: None) as (connection, tap):
        low = await channel(connection, confirms=True)
        tap.watch(low.number)
        for raw, body in messages:
            method = encoding.publish_method(low.number, "push", b"user.u1", False)
            tap.write(method + encoding.content(low.number, raw, body, 131072))
        async with asyncio.timeout(bridges.SECONDS):
            await confirmed.wait()


def body(push_id: str) -> bytes:
    return json.dumps(bridges.request("u1", push_id)).encode()


TAKEN = {
    # kombu: bytes, strings, datetimes; a priority of 0 beside every message
    "kombu-binary": properties(content_encoding="binary", priority=0),
    "kombu-utf8": properties(content_encoding="utf-8", priority=0),
    "kombu-datetime": properties(header("x-push-published-ms", b"T" + struct.pack(">Q", NOW))),
    # pika: long integers as `l`, None as void, datetime as `T`
    "pika-int": properties(header("x-push-published-ms", b"l" + struct.pack(">q", MS))),
    "pika-none": properties(
        header("x-push-published-ms", b"V"), header("x-push-id", b"V"), header("x-push-user", b"V")
    ),
    # php-amqplib: 64-bit integers as `L` or `l`, null as void, DateTime as `T`
    "php-int": properties(header("x-push-published-ms", b"L" + struct.pack(">q", MS))),
    "php-string": properties(header("x-push-published-ms", text(str(MS)))),
    # amqp091-go: int64 as `l`, time.Time as `T`
    "go-time": properties(header("x-push-published-ms", b"T" + struct.pack(">Q", NOW))),
    # Java: Long as `l`, Date as `T`, the encoding as a charset
    "java-date": properties(
        header("x-push-published-ms", b"T" + struct.pack(">Q", NOW)), content_encoding="UTF-8"
    ),
    # amqplib of Node: integers as `l`, {"!": "timestamp"} as `T`
    "node-int": properties(header("x-push-published-ms", b"l" + struct.pack(">q", MS))),
    "smtp-like": properties(content_encoding="8bit", timestamp=NOW),
    "ascii": properties(content_encoding="US-ASCII", timestamp=NOW),
}


async def test_what_other_clients_write_means_what_they_meant(vhost: str, database: str) -> None:
    # The times were read when this file was: a while before this test in a long run.
    async with bridges.bridge(vhost, database, max_age=3600):
        await publish(vhost, [(raw, body(push_id)) for push_id, raw in TAKEN.items()])
        found = {row["push_id"]: row for row in await bridges.final_rows(database, len(TAKEN))}
    assert {push_id: row["outcome"] for push_id, row in found.items()} == dict.fromkeys(TAKEN, "offline")
    without_time = {"kombu-binary", "kombu-utf8", "pika-none"}
    published = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    assert {i for i, row in found.items() if row["published_at"] != published} == without_time


async def test_truths_are_read_as_clients_without_a_boolean_write_them(vhost: str, database: str) -> None:
    truths = {
        "java-boolean": b"t\x01",
        "python-str": text("True"),
        "shell": text("true"),
        "go-int32": b"I" + struct.pack(">i", 1),
        "node-int8": b"b\x01",
        "digit": text("1"),
    }
    async with bridges.bridge(vhost, database):
        messages = [
            (properties(header("x-push-all", value), header("x-push-id", text(push_id))), b"1")
            for push_id, value in truths.items()
        ]
        await publish(vhost, messages)
        found = await bridges.final_rows(database, len(truths))
    assert {row["push_id"]: row["reason"] for row in found} == dict.fromkeys(truths, "nobody")


REFUSED = {
    "seconds": (
        properties(header("x-push-published-ms", b"l" + struct.pack(">q", NOW))),
        "invalid",
        "header x-push-published-ms: expected milliseconds since 1970, got a time before 2001: "
        "this looks like seconds",
    ),
    "seconds-of-32-bits": (
        properties(header("x-push-published-ms", b"i" + struct.pack(">L", NOW))),
        "invalid",
        "header x-push-published-ms: expected milliseconds since 1970, got a time before 2001: "
        "this looks like seconds",
    ),
    "double": (
        properties(header("x-push-published-ms", b"d" + struct.pack(">d", MS))),
        "invalid",
        "header x-push-published-ms: expected milliseconds since 1970 as an integer, or a timestamp, "
        "got a number that is no integer",
    ),
    "packed": (
        properties(content_encoding="gzip"),
        "unsupported",
        "property content_encoding: the body is compressed (gzip) and the bridge does not decompress: "
        "publish it uncompressed",
    ),
    "kombu-packed": (
        properties(header("compression", text("application/x-bz2")), content_encoding="binary"),
        "unsupported",
        "header compression: the body is compressed (application/x-bz2) and the bridge does not decompress: "
        "publish it uncompressed",
    ),
}


async def test_what_would_be_misread_is_rejected_with_what_to_do(vhost: str, database: str) -> None:
    async with bridges.bridge(vhost, database):
        await publish(vhost, [(raw, body(push_id)) for push_id, (raw, _, _) in REFUSED.items()])
        found = await bridges.final_rows(database, len(REFUSED))
    told = {row["push_id"]: (row["reason"], row["detail"]) for row in found}
    assert told == {push_id: (reason, detail) for push_id, (_, reason, detail) in REFUSED.items()}


# --- priority --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("3.10.8", set()),
        ("3.13.7", set()),
        ("4.0.0", {5, 9, 255}),
        ("4.2.9", {5, 9, 255}),
        ("4.3.0", {1, 3, 5, 9, 255}),
        ("4.10.1", {1, 3, 5, 9, 255}),
        ("10.1", {1, 3, 5, 9, 255}),
        ("", set()),
        ("x", set()),
    ],
)
def test_priorities_by_which_the_broker_would_change_the_order_are_refused(
    version: str, refused: set[int]
) -> None:
    usual = usual_priorities(version)
    assert {p for p in (None, 0, 1, 3, 4, 5, 9, 255) if usual is not None and p not in usual} == refused


@pytest.mark.parametrize(
    ("version", "seen", "mixed"),
    [
        ("4.3.0", {None, 4}, False),
        ("4.3.0", {0}, False),
        ("4.3.0", {0, 4}, True),
        ("4.3.0", {0, None}, True),
        ("4.2.0", {0, None, 4}, False),
        ("3.13.0", {0, None, 4}, False),
    ],
)
def test_zero_beside_none_is_another_level_from_4_3_on(
    version: str, seen: set[int | None], mixed: bool
) -> None:
    assert are_mixed(usual_priorities(version), seen) is mixed


async def test_a_priority_is_nothing_where_the_broker_does_not_reorder_by_it(
    vhost: str, database: str
) -> None:
    async with claiming(vhost, b"3") as url, bridges.bridge(url, database):
        await publish(vhost, [(properties(priority=9), body("p1"))])
        (row,) = await bridges.final_rows(database, 1)
    assert row["outcome"] == "offline"


async def test_a_priority_is_rejected_by_name_where_the_broker_reorders_by_it(
    vhost: str, database: str
) -> None:
    async with claiming(vhost, b"4") as url, bridges.bridge(url, database):
        await publish(vhost, [(properties(priority=p), body(f"p{p}")) for p in (0, 4, 5, 9)])
        found = await bridges.final_rows(database, 4)
    assert {row["push_id"]: row["outcome"] for row in found} == {
        "p0": "offline",
        "p4": "offline",
        "p5": "rejected",
        "p9": "rejected",
    }
    assert {row["detail"].partition(":")[0] for row in found if row["outcome"] == "rejected"} == {
        "property priority"
    }


@asynccontextmanager
async def claiming(url: str, major: bytes) -> AsyncIterator[str]:
    """The broker behind `url`, as long as it lives, claiming to be of this major version."""
    parts = urlsplit(url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bool) -> None:
        while data := await reader.read(65536):
            if first:
                at = data.index(b"versionS") + 12
                data, first = data[:at] + major + data[at + 1 :], False
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port or 5672)
        try:
            await asyncio.gather(copy(reader, back, False), copy(there, writer, True))
        finally:
            back.transport.abort()

    async with listening(serve) as port:
        host = parts.netloc.rpartition("@")[0]
        yield urlunsplit(parts._replace(netloc=f"{host}@127.0.0.1:{port}"))
