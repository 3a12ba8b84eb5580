"""Ten thousand garbage messages through a real broker and a running bridge: each ends as a row that says why."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.frames import Delivered
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.topology import DEAD, PUSH, REQUESTS
from bridge.core.contract.requests import Limits, decode
from bridge.core.model.pushes import Rejected, ToUser, ToUsers
from tests.support.amqp import outbox
from tests.support.bridges import bridge, get, publish, request, rows, token
from tests.support.clients import client
from tests.support.ports import arrival
from tests.support.queues import at_rest, raw_deliveries
from tests.support.random_requests import Dice

MESSAGES = 10_000
AGAIN = 400
SEED = 20261122
SECONDS = 60.0
"""How long each step may take before the test fails."""
TOLD = ("FallbacksUnroutable", "the header table of delivery", "were left out of a dead letter")
"""What the log says of header tables that the broker takes and we cannot, and of fallbacks for which nobody listens."""

# A text of the same length as bytes that are no UTF-8: no encoder would write those.
STAND_IN, NOT_UTF8 = "~~~~", b"\xff\xc0\xed\xa0"


def long(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def nested(depth: int) -> bytes:
    """A table in a table in a table."""
    value = b"V"
    for _ in range(depth):
        value = b"F" + long(b"\x01k" + value)
    return value


RAW_VALUES: Sequence[bytes] = (
    *(b"V", b"t\x01", b"t\x02", b"b\x80", b"s\x80\x00", b"I\x80\x00\x00\x00", b"l" + b"\xff" * 8),
    *(b"f\x7f\x7f\xff\xff", b"d\x7f\xef" + b"\xff" * 6, b"d\x80" + b"\x00" * 7),
    *(b"T" + b"\xff" * 8, b"T" + b"\x00" * 8, b"D\x02\x00\x00\x17\x70", b"D\xff\x7f\xff\xff\xff"),
    *(
        b"S" + long(b"u1"),
        b"S" + long(b""),
        b"S" + long(NOT_UTF8),
        b"S" + long(b"\x00"),
        b"S" + long(b"x" * 4096),
    ),
    *(b"x" + long(b"u1"), b"A" + long(b""), b"A" + long(b"S" + long(b"u1") + b"V"), b"A" + long(b"V" * 1000)),
    *(
        b"F" + long(b""),
        b"F" + long(b"\x01kS" + long(b"v")),
        b"F" + long(b"\x00V\x00V"),
        nested(20),
        nested(60),
    ),
)
RAW_NAMES = (
    *(b"x-push-user", b"x-push-users", b"x-push-all", b"x-push-ttl", b"x-push-ack-within", b"x-push-meta"),
    *(b"x-push-id", b"x-push-published-ms", b"x-push-collapse-key", b"x-push-nonsense", b"x-push-reason"),
    *(b"traceparent", b"x-own", NOT_UTF8, b"x-death", b"x-first-death-reason"),
)


def garbage(dice: Dice, chance: random.Random, app_id: str) -> tuple[bytes, bytes]:
    """A body, and the properties of an AMQP message as they stand in its frame."""
    given = dice.properties()
    headers: dict[str, Any] = given.pop("headers")
    if chance.random() < 0.3:
        headers = {"x-push-user": "u1", **headers}
    # Erlang has no NaN and no infinity: the broker closes the connection of whoever sends one.
    table = encoding.table({name: value for name, value in headers.items() if _is_finite(value)})[0][4:]
    for _ in range(chance.choice((0, 0, 0, 1, 3))):
        name = chance.choice(RAW_NAMES)
        table += bytes((len(name),)) + name + chance.choice(RAW_VALUES)
    given.pop("timestamp", None)
    event = chance.random() < 0.15
    if event and chance.random() < 0.9:
        given["content_type"] = "application/cloudevents+json"
    properties = encoding.properties(
        **{name: STAND_IN if chance.random() < 0.05 else value for name, value in given.items()},
        timestamp=chance.choice((None, None, 0, 1, 1_800_000_000, 2**63, 2**64 - 1)),
        headers=long(table) if table else b"",
        app_id=app_id,
        type=chance.choice(("", "", "x", STAND_IN)),
    )
    body = chance.choice(
        (
            lambda: json.dumps(dice.event()).encode(),
            lambda: json.dumps(dice.event()).encode(),
            lambda: dice.damage(json.dumps(dice.event()).encode()),
        )
        if event
        else (
            dice.damaged,
            lambda: json.dumps(dice.request()).encode(),
            lambda: json.dumps({"to": {"user": "away"}, "data": dice.junk(), "ttl": dice.roll(9)}).encode(),
            lambda: dice.words() + chance.randbytes(4),
            lambda: chance.randbytes(chance.choice((0, 1, 20, 70_000))),
        )
    )()
    return body, properties.replace(STAND_IN.encode(), NOT_UTF8)


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class Expected(NamedTuple):
    """The rows that one message must end with."""

    keys: set[tuple[str, str, str | None]]
    """Tenant, push id and user."""
    anyones: set[tuple[str, str]]
    """Tenant and push id of those for which only the bridge knows the users."""
    made_up: int
    """Requests without an id: each has a row under an id that the bridge made."""


def expected(copy: Delivered) -> Expected:
    """What the decoder makes of this message; that it is right is shown elsewhere.

    Of a copy, since RabbitMQ 4 writes a header table in its own way, and the hash in an id is of what it delivers."""
    # Whether a time is too far ahead is a matter of the clock.
    came = msgspec.structs.replace(arrival(copy.body), properties=copy.properties, arrived_at=time.time())
    came = msgspec.structs.replace(came, body_size=copy.body_size)
    requests = decode(came, Limits()).requests
    keys: set[tuple[str, str, str | None]] = set()
    anyones: set[tuple[str, str]] = set()
    made_up = 0
    for one in requests:
        tenant = one.tenant
        if isinstance(one, Rejected):
            keys.add((tenant, one.id, None))
        elif one.generated_id:
            made_up += 1
        elif isinstance(one.target, ToUser):
            keys.add((tenant, one.id, one.target.user))
        elif isinstance(one.target, ToUsers):
            keys.update((tenant, one.id, user) for user in one.target.users)
        else:
            anyones.add((tenant, one.id))
    return Expected(keys, anyones, made_up)


async def test_ten_thousand_garbage_messages_end_each_as_a_row_and_harm_nobody(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    chance = random.Random(SEED)
    sent = [garbage(Dice(chance.randbytes(256)), chance, f"m{n}") for n in range(MESSAGES)]
    async with bridge(vhost, database) as b, client(b.ws_port, token("watcher")) as watcher:
        after_all = request("watcher", "after all of them", tenant="the watcher's")
        async with raw_deliveries(vhost, "copies", bound_to=PUSH) as copies, outbox(vhost) as box:
            failures = await box.publish(
                [Message(PUSH, b"user.u1", properties, body) for body, properties in sent], SECONDS
            )
            assert not failures
            await publish(vhost, after_all)
            sent.append((json.dumps(after_all).encode(), encoding.properties()))
            async with asyncio.timeout(SECONDS):
                wanted = [expected(await copies.get()) for _ in sent]
        assert all(any(one) for one in wanted)
        async with asyncio.timeout(SECONDS):
            # Some of the garbage was for everyone.
            while await watcher.read() != '{"n": "after all of them"}':
                pass
        try:
            async with asyncio.timeout(SECONDS):
                while late := missing(wanted, found := await rows(database)):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            pytest.fail(f"{len(late)} of {len(sent)} messages have not ended, such as {sent[late[0]]!r}")
        async with asyncio.timeout(SECONDS):
            # A push to a session that is not here, whose id came before, is looked for once more.
            while json.loads((await get(b.ops_port, "/status"))[1])["gauges"]["in_flight"]:
                await asyncio.sleep(0.1)

    rejected = [row for row in found if row["outcome"] == "rejected"]
    assert len(rejected) > MESSAGES / 4
    assert {row["reason"] for row in rejected} == {"invalid", "not_json", "unsupported", "too_large"}
    assert all(row["detail"] and row["detail"].isprintable() for row in rejected)
    assert {row["outcome"] for row in found} > {"rejected", "offline", "stored"}
    (after,) = (row for row in found if row["push_id"] == "after all of them")
    assert (after["outcome"], after["reason"]) == ("received", "pong")
    assert await at_rest(vhost)
    unburied = {row["push_id"] for row in rejected}
    async with raw_deliveries(vhost, DEAD) as letters, asyncio.timeout(SECONDS):
        while unburied:
            unburied.discard((await letters.get()).properties.headers["x-push-id"])
    said = [record.getMessage() for record in caplog.records]
    assert [words for words in said if not any(known in words for known in TOLD)] == []


async def test_what_comes_again_without_an_id_gets_the_id_of_the_first_time(
    vhost: str, database: str
) -> None:
    chance = random.Random(SEED)
    async with bridge(vhost, database):
        pass  # it makes the queues
    async with outbox(vhost) as box:
        some = [garbage(Dice(chance.randbytes(256)), chance, f"m{n}") for n in range(AGAIN)]
        failures = await box.publish(
            [Message(PUSH, b"user.u1", properties, body) for body, properties in some], SECONDS
        )
        assert not failures

    async def ids() -> list[list[str]]:
        async with raw_deliveries(vhost, REQUESTS, held=True) as deliveries, asyncio.timeout(SECONDS):
            came = [await deliveries.get() for _ in some]
        arrivals = [
            msgspec.structs.replace(arrival(one.body), properties=one.properties, arrived_at=1.8e9)
            for one in came
        ]
        requests = [decode(one, Limits()).requests for one in arrivals]
        return [[one.id for one in each if isinstance(one, Rejected)] for each in requests]

    first = await ids()
    assert sum(one.startswith("sha256-") for each in first for one in each) > AGAIN / 20
    assert await ids() == first


def missing(wanted: Sequence[Expected], found: Sequence[Mapping[str, Any]]) -> list[int]:
    """Messages, by their number, without one of their rows, or with one that says that it is under way."""
    ended = [row for row in found if row["outcome"] != "pending"]
    keys = {(row["tenant"], row["push_id"], row["user_id"]) for row in ended}
    pushes = {(tenant, push_id) for tenant, push_id, _ in keys}
    rows_of = Counter(row["app_id"] for row in ended)
    return [
        number
        for number, (named, anyones, made_up) in enumerate(wanted)
        if not (named <= keys and anyones <= pushes and made_up <= rows_of[f"m{number}"])
    ]
