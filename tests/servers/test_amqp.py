"""Taking from a real broker: order, acks, what is not acked comes again, and every way to lose the broker."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pamqp.frame
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pamqp import commands

from benchmarks.listening import listening
from bridge.adapters.amqp import connection as amqp_connection
from bridge.adapters.amqp import consume, encoding
from bridge.adapters.amqp import link as amqp_link
from bridge.adapters.amqp.connection import border, opened
from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.link import LinkState
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.amqp.topology import (
    CONTROL,
    DEAD,
    FALLEN,
    ONE,
    OUTCOMES,
    PUSH,
    REQUESTS,
    DeclareMode,
    TopologyError,
    ensure,
)
from bridge.adapters.amqp.turn import Role
from bridge.core.delivery.given_up import given_up
from bridge.core.errors import BrokerUnavailable, IllegalTransition
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.model.rows import Receipt, Reply
from bridge.core.ports.broker import AckToken, Arrival, Source
from bridge.devservers import Servers
from tests.support.amqp import CLOCK, RecordingIntake, consumer, declare, outbox, publish
from tests.support.ports import RecordingErrors
from tests.support.proxies import AmqpProxy
from tests.support.queues import at_rest, drained
from tests.support.rows import row
from tests.support.waiting import until


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % n for n in range(start, start + count)]


# --- Taking and acking ---


async def test_messages_come_in_queue_order_a_batch_at_a_time(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(500))
    intake = RecordingIntake()
    taker = consumer(vhost)
    intake.acks = taker
    async with taker.taking(intake):
        await intake.has(500)
        assert intake.bodies == numbered(500)
        assert len(intake.batches) < 100
        assert {a.source for a in intake.arrivals} == {Source.REQUESTS}
        assert taker.held == taker.held_bytes == 0
        await until(lambda: taker.state is LinkState.OPEN)
        await taker.stop_consuming()
    assert await at_rest(vhost)


@pytest.mark.parametrize(
    "order",
    [
        [range(10)],
        [range(5, 10), range(5)],
        [[9, 3, 1], [0, 2], [4, 5, 6, 8], [7]],
        [[n] for n in reversed(range(10))],
        [[0, 2, 4, 6, 8], [1], [9], [3, 5], [7]],
    ],
    ids=["all", "second half first", "scattered", "backwards", "holes"],
)
async def test_acks_in_any_order_leave_nothing_ready_and_nothing_unacked(
    vhost: str, order: Sequence[Iterable[int]]
) -> None:
    await declare(vhost)
    await publish(vhost, numbered(10))
    intake, errors = RecordingIntake(), RecordingErrors()
    taker = consumer(vhost, errors)
    async with taker.taking(intake):
        await intake.has(10)
        for part in order:
            taker.ack([intake.tokens[n] for n in part])
            await asyncio.sleep(0)
        assert taker.held == 0
        await taker.stop_consuming()
    assert await at_rest(vhost)
    assert intake.lost == [1]
    assert errors.seen == []


async def test_only_what_was_acked_is_gone_and_the_rest_comes_again_oldest_first(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(10))
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with taker.taking(intake):
        await intake.has(10)
        taker.ack([intake.tokens[n] for n in (0, 1, 4, 7)])
        await taker.stop_consuming()
    assert [m.body for m in await drained(vhost, REQUESTS)] == [b"2", b"3", b"5", b"6", b"8", b"9"]


async def test_a_message_given_back_comes_again_with_its_count_raised(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(3))
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with taker.taking(intake):
        await intake.has(3)
        taker.requeue([intake.tokens[1]])
        taker.ack([intake.tokens[0], intake.tokens[2]])
        await intake.has(4)
        again = intake.arrivals[3]
        assert again.body == b"1"
        assert again.properties.redelivered
        assert again.properties.delivery_count == 1
        taker.ack([again.token])
        await taker.stop_consuming()
    assert await at_rest(vhost)


async def test_a_token_answered_twice_or_never_given_out_is_thrown_away(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(2))
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with taker.taking(intake):
        await intake.has(2)
        first, second = intake.tokens
        taker.ack([first, first, AckToken(first.incarnation, 99)])
        await asyncio.sleep(0)
        taker.ack([first])
        taker.requeue([first])
        taker.ack([second])
        await taker.stop_consuming()
        assert taker.stale == 4
        assert taker.incarnation == 1
    assert await at_rest(vhost)


async def test_prefetch_bounds_what_is_handed_over(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(50))
    intake = RecordingIntake()
    taker = consumer(vhost, prefetch=7)
    async with taker.taking(intake):
        await intake.has(7)
        taker.ack(intake.tokens[:3])
        await intake.has(10)
        assert taker.held == 7
        assert len(intake.arrivals) == 10


async def test_reading_ahead_goes_on_with_one_consumer_after_the_other(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consume, "PREFETCH_MOST", 5)
    await declare(vhost)
    await publish(vhost, numbered(23))
    intake = RecordingIntake()
    taker = consumer(vhost, prefetch=1, ahead=True)
    async with taker.taking(intake):
        await intake.has(23)
        assert intake.bodies == numbered(23)
        assert taker.held == 23
        taker.ack(intake.tokens[10:12])
        await publish(vhost, numbered(10, start=23))
        await intake.has(33)
        taker.ack(intake.tokens[1::2])
        await publish(vhost, numbered(20, start=33))
        await intake.has(53)
        assert intake.bodies == numbered(53)
    again = RecordingIntake()
    taker = consumer(vhost, prefetch=1, ahead=True)
    async with taker.taking(again):
        acked = {10, 11, *range(1, 33, 2)}
        left = [b"%d" % n for n in range(53) if n not in acked]
        await again.has(len(left))
        assert again.bodies == left, "what several consumers had comes again in the order of the queue"
        taker.ack(again.tokens)
        await taker.stop_consuming()
    assert await at_rest(vhost)


async def test_reading_ahead_ends_where_too_much_is_held(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, [b"x" * 100] * 300)
    intake = RecordingIntake()
    taker = consumer(vhost, prefetch=1, ahead=True, held_bytes=20 * 1124)
    async with taker.taking(intake):
        await intake.has(21)
        await asyncio.sleep(0.3)
        assert taker.held_bytes == 1124 * taker.held, "each counts what it needs besides its body"
        taker.ack(intake.tokens)
        await until(lambda: taker.held_bytes > 0 or len(intake.arrivals) == 300)


async def test_requests_come_one_by_one_until_what_came_is_known_to_be_harmless(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(9))
    intake = RecordingIntake()
    taker = consumer(vhost, kind=Consumer)
    async with taker.taking(intake):
        for count in (1, 2, 3):
            await intake.has(count)
            assert taker.held == 1
            taker.ack(intake.tokens[-1:])
        taker.widen({taker.incarnation})
        await intake.has(4)
        assert taker.held == 1, "it was asked to when it held nothing: then the next decides"
        taker.widen({taker.incarnation})
        await intake.has(9)
        assert intake.bodies == numbered(9)
        taker.ack(intake.tokens[3:])
        await taker.stop_consuming()
    assert await at_rest(vhost)


async def test_what_ends_the_process_again_and_again_is_counted_alone(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(5))
    for _ in range(6):
        intake = RecordingIntake()
        async with consumer(vhost, kind=Consumer).taking(intake):
            await intake.has(1)
    assert [a.properties.delivery_count for a in intake.arrivals] == [5]
    left = await drained(vhost, REQUESTS)
    assert [m.body for m in left] == numbered(5)
    assert [m.headers.get("x-delivery-count", 0) for m in left] == [6, 0, 0, 0, 0]


async def test_what_is_held_of_both_consumers_comes_again_oldest_first(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(5))
    intake = RecordingIntake()
    async with consumer(vhost).taking(intake):
        await intake.has(5)
    assert [m.body for m in await drained(vhost, REQUESTS)] == numbered(5)


async def test_bytes_in_hand_are_bounded_and_reading_goes_on_after_acks(vhost: str) -> None:
    size, count, limit = 20_000, 200, 200_000
    await declare(vhost)
    await publish(vhost, [b"x" * size] * count)
    intake = RecordingIntake()
    taker = consumer(vhost, held_bytes=limit)
    most = 0
    async with taker.taking(intake):
        while len(intake.arrivals) < count:
            seen = len(intake.arrivals)
            await intake.has(min(count, seen + 1))
            await until(lambda: taker.held_bytes > limit or len(intake.arrivals) == count)
            most = max(most, taker.held_bytes)
            taker.ack(intake.tokens)
            await asyncio.sleep(0)
        await taker.stop_consuming()
    assert most <= limit + 300_000  # one read of the socket more
    assert await at_rest(vhost)


async def test_a_paused_reader_still_notices_that_the_broker_is_gone(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "SIP", 0.1)
    await declare(vhost)
    await publish(vhost, [b"x" * 20_000] * 100)
    async with AmqpProxy(vhost) as proxy:
        intake = RecordingIntake()
        taker = consumer(proxy.url, held_bytes=50_000)
        async with taker.taking(intake):
            await until(lambda: taker.held_bytes > 50_000)
            proxy.reset()
            await until(lambda: intake.lost == [1], 3)  # before a heartbeat could notice it


async def test_a_body_over_the_limit_arrives_cut_with_its_size(vhost: str) -> None:
    await declare(vhost)
    huge = b"0123456789abcdef" * (10 * 65536 + 1)
    most = b"y" * MESSAGE_BYTES_MAX
    await publish(vhost, [b"before", huge, most, b""])
    intake = RecordingIntake()
    taker = consumer(vhost)
    intake.acks = taker
    async with taker.taking(intake):
        await intake.has(4)
        await taker.stop_consuming()
    assert intake.bodies == [b"before", huge[:4096], most, b""]
    assert [a.body_size for a in intake.arrivals] == [6, len(huge), len(most), 0]
    assert await at_rest(vhost)


async def test_properties_and_headers_of_all_types_arrive(vhost: str) -> None:
    await declare(vhost)
    table, left_out = encoding.table(
        {"text": "ü", "number": -5, "list": [1, "two", {"three": 3.5}], "none": None, "yes": True}
    )
    assert not left_out
    odd = (
        b"\x03binx\x00\x00\x00\x02\x00\xff"
        + b"\x05stampT\x00\x00\x00\x00\x6b\x49\xd2\x00"
        + b"\x03decD\x01\x00\x00\x00\x7d"
    )
    table = (len(table) - 4 + len(odd)).to_bytes(4, "big") + table[4:] + odd
    await publish(
        vhost,
        [b"{}"],
        encoding.properties(
            content_type="application/json",
            content_encoding="identity",
            headers=table,
            correlation_id="c1",
            reply_to="answers",
            expiration="60000",
            message_id="m1",
            timestamp=1_800_000_000,
            app_id="shop",
        ),
    )
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with taker.taking(intake):
        await intake.has(1)
    properties = intake.arrivals[0].properties
    assert properties.headers == {
        "text": "ü",
        "number": -5,
        "list": [1, "two", {"three": 3.5}],
        "none": None,
        "yes": True,
        "bin": b"\x00\xff",
        "stamp": 1_800_000_000,
        "dec": 12.5,
    }
    assert (properties.message_id, properties.correlation_id, properties.reply_to) == ("m1", "c1", "answers")
    assert (properties.app_id, properties.timestamp, properties.expiration) == (
        "shop",
        1_800_000_000.0,
        "60000",
    )
    assert (properties.content_type, properties.content_encoding) == ("application/json", "identity")
    assert not properties.redelivered
    assert properties.delivery_count == 0


async def test_what_expires_in_the_queue_comes_through_the_fallen_queue(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, [b"too late"], encoding.properties(expiration="1", message_id="m1"))
    intake = RecordingIntake()
    taker = consumer(vhost)
    intake.acks = taker
    await fallen(vhost)
    async with taker.taking(intake):
        await intake.has(1)
        await taker.stop_consuming()
    (arrival,) = intake.arrivals
    assert arrival.source is Source.FALLEN
    assert arrival.body == b"too late"
    (death,) = death_list(arrival)
    assert (death["reason"], death["queue"]) == ("expired", REQUESTS)
    assert await at_rest(vhost)


async def test_a_message_that_died_before_it_was_published_falls_with_its_newest_death_first(
    vhost: str,
) -> None:
    await declare(vhost)
    dead: dict[str, Any] = {
        "x-death": [
            {"queue": "elsewhere", "reason": "rejected", "exchange": "", "count": 1, "routing-keys": ["k"]}
        ],
        "x-first-death-queue": "elsewhere",
        "x-first-death-reason": "rejected",
    }
    table, _ = encoding.table(dead)
    await publish(vhost, [b"late"], encoding.properties(expiration="1", headers=table))
    await fallen(vhost)
    intake = RecordingIntake()
    async with consumer(vhost).taking(intake):
        await intake.has(1)
    found = given_up(intake.arrivals[0], 20)
    assert found is not None
    assert found.reason is Reason.QUEUE_EXPIRATION


async def fallen(url: str) -> None:
    """Return when something is in push.fallen."""
    async with (
        await aio_pika.connect(url) as connection,
        connection.channel() as channel,
        asyncio.timeout(20),
    ):
        while not (await channel.declare_queue(FALLEN, passive=True)).declaration_result.message_count:
            await asyncio.sleep(0.05)


def death_list(arrival: Arrival) -> list[dict[str, object]]:
    deaths = arrival.properties.headers["x-death"]
    assert isinstance(deaths, list)
    return deaths


async def test_an_intake_that_raises_costs_the_channel_and_no_message(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(1))

    class Failing(RecordingIntake):
        def arrived(self, batch: Sequence[Arrival]) -> None:
            super().arrived(batch)
            if len(self.arrivals) == 1:
                raise RuntimeError("bug")
            assert self.acks is not None
            self.acks.ack([a.token for a in batch])

    intake, errors = Failing(), RecordingErrors()
    taker = consumer(vhost, errors)
    intake.acks = taker
    intake.acks = taker
    async with taker.taking(intake):
        await intake.has(2)
        await taker.stop_consuming()
    assert intake.lost[0] == 1
    assert "RuntimeError('bug')" in str(errors.seen[0][0])
    assert await at_rest(vhost)


# --- Losing the broker ---


async def test_tokens_of_a_lost_connection_are_stale_and_its_messages_come_again(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(3))
    intake, errors = RecordingIntake(), RecordingErrors()
    async with AmqpProxy(vhost) as proxy:
        told: list[tuple[bool, str]] = []
        taker = consumer(proxy.url, errors, on_state=lambda ok, cause: told.append((ok, cause)))
        async with taker.taking(intake):
            await intake.has(3)
            proxy.reset()
            await until(lambda: intake.lost == [1])
            taker.ack(intake.tokens)
            assert taker.stale == 3
            await intake.has(6)
            again = intake.arrivals[3:]
            assert [a.body for a in again] == numbered(3)
            assert {a.token.incarnation for a in again} == {2}
            assert all(a.properties.redelivered for a in again)
            taker.ack(intake.tokens[:3])  # would ack strangers, were it not for the incarnation
            await asyncio.sleep(0)
            assert taker.held == 3
            taker.ack([a.token for a in again])
            await taker.stop_consuming()
        assert [ok for ok, _ in told] == [True, False, True]
        assert "lost" in told[1][1]
    assert await at_rest(vhost)
    assert [type(e) for e, _ in errors.seen] == [BrokerUnavailable]


async def test_a_broker_that_closes_the_connection_is_come_back_to(servers: Servers, vhost: str) -> None:
    intake, errors = RecordingIntake(), RecordingErrors()
    taker = consumer(vhost, errors)
    async with taker.taking(intake):
        await until(lambda: taker.state is LinkState.OPEN)
        servers.rabbit.evaluate(
            '[rabbit_networking:close_connection(P, "maintenance") || P <- rabbit_networking:connections()].'
        )
        await until(lambda: taker.incarnation == 2 and taker.state is LinkState.OPEN)
    assert "320" in str(errors.seen[0][0])
    assert "maintenance" in str(errors.seen[0][0])


async def test_a_broker_killed_and_started_again_is_come_back_to(own_servers: Servers) -> None:
    url, rabbit = own_servers.amqp_url, own_servers.rabbit
    await declare(url)
    await publish(url, numbered(20))
    await asyncio.sleep(1)  # RabbitMQ 3.10 may lose a quorum queue that is killed right after its declare
    intake = RecordingIntake()
    taker = consumer(url)
    async with taker.taking(intake):
        await intake.has(20)
        taker.ack(intake.tokens[:5])
        await asyncio.to_thread(rabbit.kill)
        await until(lambda: intake.lost == [1])
        await until(lambda: taker.state is LinkState.LOST)
        assert taker.cause
        await asyncio.to_thread(rabbit.start)
        await until(lambda: taker.state is LinkState.OPEN, 60)
        await until(lambda: b"19" in intake.bodies[20:], 30)
        again = intake.arrivals[20:]
        assert set(numbered(15, 5)) <= {a.body for a in again}  # of the acks, some may have died with it
        taker.ack([a.token for a in again])
        await taker.stop_consuming()
    assert await at_rest(url)


async def test_a_broker_that_is_away_at_the_start_is_waited_for(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy:
        proxy.refuse()
        intake, errors = RecordingIntake(), RecordingErrors()
        told: list[tuple[bool, str]] = []
        taker = consumer(proxy.url, errors, on_state=lambda ok, cause: told.append((ok, cause)))
        async with taker.taking(intake):
            await until(lambda: len(told) >= 2)
            assert not any(ok for ok, _ in told)
            assert "connect" in told[0][1]
            proxy.accept()
            await until(lambda: taker.state is LinkState.OPEN)
        assert intake.lost == [1]


async def test_nobody_listening_is_a_cause_in_words() -> None:
    errors = RecordingErrors()
    taker = consumer("amqp://guest:guest@127.0.0.1:1/", errors)
    async with taker.taking(RecordingIntake()):
        await until(lambda: errors.seen)
        assert "refused" in str(errors.seen[0][0]).lower() or "connect" in str(errors.seen[0][0]).lower()
        assert "guest:guest" not in str(errors.seen[0][0])


async def test_a_wrong_password_is_a_cause_in_words(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy:
        errors = RecordingErrors()
        right = urlsplit(proxy.url).password or ""
        taker = consumer(proxy.url.replace(right, "wrong"), errors)
        async with taker.taking(RecordingIntake()):
            await until(lambda: errors.seen)
        assert "ACCESS_REFUSED" in str(errors.seen[0][0])


async def test_a_silent_broker_is_given_up_within_the_time_limits(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "CONNECT_TIMEOUT", 0.3)
    async with AmqpProxy(vhost) as proxy:
        proxy.freeze()
        errors = RecordingErrors()
        taker = consumer(proxy.url, errors)
        async with taker.taking(RecordingIntake()):
            await until(lambda: errors.seen)
            assert "no answer within 0.3 s" in str(errors.seen[0][0])
            monkeypatch.setattr(amqp_connection, "CONNECT_TIMEOUT", 10.0)
            proxy.thaw()
            await until(lambda: taker.state is LinkState.OPEN)


async def test_a_peer_that_does_not_speak_amqp_is_a_cause_in_words() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with listening(answer) as port:
        errors = RecordingErrors()
        async with consumer(f"amqp://guest:guest@127.0.0.1:{port}/", errors).taking(RecordingIntake()):
            await until(lambda: errors.seen)
        assert isinstance(errors.seen[0][0], BrokerUnavailable)


@pytest.mark.parametrize("queue", [REQUESTS, FALLEN])
async def test_a_deleted_queue_is_declared_and_consumed_again(vhost: str, queue: str) -> None:
    intake, errors = RecordingIntake(), RecordingErrors()
    taker = consumer(vhost, errors)
    intake.acks = taker
    async with taker.taking(intake):
        await until(lambda: taker.state is LinkState.OPEN)
        async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
            await channel.queue_delete(queue)
        await until(lambda: taker.incarnation == 2 and taker.state is LinkState.OPEN, 30)
        await publish(vhost, numbered(1))
        await intake.has(1)
        await taker.stop_consuming()
    assert intake.lost == [1, 2]
    assert f"cancelled the consumer of {queue}" in str(errors.seen[0][0])
    assert await at_rest(vhost)


async def test_a_consumer_that_the_broker_cancels_is_made_anew(vhost: str) -> None:
    await declare(vhost)
    intake = RecordingIntake()
    async with AmqpProxy(vhost) as proxy:
        taker = consumer(proxy.url)
        async with taker.taking(intake):
            await until(lambda: taker.state is LinkState.OPEN)
            proxy.say(pamqp.frame.marshal(commands.Basic.Cancel(REQUESTS, True), taker._number))
            await until(lambda: taker.incarnation == 2 and taker.state is LinkState.OPEN)
    assert intake.lost == [1, 2]


async def test_a_channel_that_the_broker_closes_is_opened_anew(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(1))
    intake, errors = RecordingIntake(), RecordingErrors()
    async with AmqpProxy(vhost) as proxy:
        taker = consumer(proxy.url, errors)
        async with taker.taking(intake):
            await intake.has(1)
            proxy.say(pamqp.frame.marshal(commands.Channel.Close(406, "timeout", 60, 80), taker._number))
            await until(lambda: taker.incarnation == 2)
            await intake.has(2)
            taker.ack(intake.tokens)
            await taker.stop_consuming()
    assert taker.stale == 1
    assert "timeout (406)" in str(errors.seen[0][0])
    assert await at_rest(vhost)


async def test_bytes_that_break_the_grammar_cost_the_connection_and_no_message(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(1))
    intake, errors = RecordingIntake(), RecordingErrors()
    async with AmqpProxy(vhost) as proxy:
        taker = consumer(proxy.url, errors)
        async with taker.taking(intake):
            await intake.has(1)
            proxy.say(b"\x01\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00")
            await intake.has(2)
            taker.ack(intake.tokens)
            await taker.stop_consuming()
    assert "not AMQP" in str(errors.seen[0][0])
    assert await at_rest(vhost)


async def test_a_stream_that_comes_a_few_bytes_at_a_time_is_put_together(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(20), encoding.properties(headers=encoding.table({"k": "v"})[0]))
    intake, errors = RecordingIntake(), RecordingErrors()
    async with AmqpProxy(vhost) as proxy:
        proxy.most = 5
        taker = consumer(proxy.url, errors)
        intake.acks = taker
        async with taker.taking(intake):
            await intake.has(20)
            await taker.stop_consuming()
    assert intake.bodies == numbered(20)
    assert len(intake.batches) > 10
    assert errors.seen == []
    assert await at_rest(vhost)


async def test_a_connection_that_falls_silent_is_given_up_by_its_heartbeats(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connection, "HEARTBEAT_SECONDS", 1)
    async with AmqpProxy(vhost) as proxy:
        taker = consumer(proxy.url)
        async with taker.taking(RecordingIntake()):
            await until(lambda: taker.state is LinkState.OPEN)
            proxy.freeze()  # the connection stays open, and nothing comes any more
            await until(lambda: taker.state is LinkState.LOST, 20)
            proxy.thaw()
            await until(lambda: taker.state is LinkState.OPEN, 20)


async def test_a_broker_that_sends_nothing_but_deliveries_is_not_taken_for_dead(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker sends no heartbeats while it sends deliveries, and the library sees none of those."""
    monkeypatch.setattr(amqp_connection, "HEARTBEAT_SECONDS", 1)
    intake, errors = RecordingIntake(), RecordingErrors()
    taker = consumer(vhost, errors)
    intake.acks = taker
    async with taker.taking(intake), ReceiptPublisher(vhost, clock=CLOCK, errors=errors) as out:
        await until(lambda: taker.state is LinkState.OPEN and not out.blocked)
        began = time.monotonic()
        sent = 0
        while time.monotonic() - began < 9:  # the library's patience is (1 + 1) * 3 seconds
            sent += 1
            reply = Receipt(row(), (Reply(REQUESTS),), announce=False)
            assert not await out.send([reply])
            await intake.has(sent)
    assert taker.incarnation == 1
    assert errors.seen == []


async def test_taking_acking_publishing_and_recovery_over_tls(vhost: str, tmp_path: Path) -> None:
    await declare(vhost)
    context = certified(tmp_path / "ca.pem")
    async with AmqpProxy(vhost, tls=context) as proxy:
        url = f"{proxy.url}?cafile={tmp_path / 'ca.pem'}"
        await the_whole_story(url, proxy)
        errors = RecordingErrors()
        async with consumer(proxy.url, errors).taking(RecordingIntake()):  # its certificate is not trusted
            await until(lambda: errors.seen)
        assert "signed by nobody who is trusted here" in str(errors.seen[0][0])
    assert await at_rest(vhost)


async def the_whole_story(url: str, proxy: AmqpProxy) -> None:
    """Publish, take, pause, lose the connection, take again, ack."""
    big = [b"%d" % n + b"x" * 50_000 for n in range(40)]
    intake = RecordingIntake()
    taker = consumer(url, held_bytes=200_000)
    async with taker.taking(intake), ReceiptPublisher(url, clock=CLOCK, errors=RecordingErrors()) as out:
        await publish(url, big)
        await until(lambda: taker.held_bytes > 200_000 and not out.blocked)
        assert not await out.send([Receipt(row())])
        proxy.reset()
        await until(lambda: intake.lost == [1])
        intake.arrivals.clear()
        intake.acks = taker
        await intake.has(40)
        assert intake.bodies == big
        await until(lambda: not out.blocked)
        assert not await out.send([Receipt(row())])
        await taker.stop_consuming()


def test_the_whole_story_on_uvloop(vhost: str) -> None:
    async def story() -> None:
        async with AmqpProxy(vhost) as proxy:
            await declare(vhost)
            await the_whole_story(proxy.url, proxy)
            assert await at_rest(vhost)
            told.extend(task for task in asyncio.all_tasks() if task.get_name().startswith("broker link"))

    told: list[object] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: told.append(context))
        runner.run(story())
    assert told == []


def certified(trusted: Path) -> ssl.SSLContext:
    """A server's context for 127.0.0.1, and the file that makes clients trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both = trusted.with_name("server.pem")
    both.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + trusted.read_bytes()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


# --- Stopping ---


async def test_stopping_writes_the_acks_first_and_hands_nothing_over_afterwards(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(100))
    intake = RecordingIntake()
    taker = consumer(vhost, prefetch=10)
    async with taker.taking(intake):
        await intake.has(11)  # the first came by itself, before the others could
        taker.ack(intake.tokens)
        await taker.stop_consuming()
        seen = len(intake.arrivals)
        await taker.stop_consuming()
        taker.ack(intake.tokens)
        assert taker.held == 0
        assert len(intake.arrivals) == seen == 11
    left = [m.body for m in await drained(vhost, REQUESTS)]
    assert left == numbered(89, 11)


async def test_stopping_while_the_broker_is_away_returns(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy:
        taker = consumer(proxy.url)
        async with taker.taking(RecordingIntake()):
            await until(lambda: taker.state is LinkState.OPEN)
            proxy.refuse()
            proxy.reset()
            await until(lambda: taker.state is not LinkState.OPEN)
            await taker.stop_consuming()
            proxy.accept()
            await until(lambda: taker.state is LinkState.OPEN)
            assert taker.incarnation == 1


async def test_a_cancelled_bridge_leaves_its_messages_to_the_queue(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(5))
    intake = RecordingIntake()

    async def run() -> None:
        async with consumer(vhost).taking(intake):
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await intake.has(5)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert len(await drained(vhost, REQUESTS)) == 5


async def test_being_cancelled_while_connecting_leaves_nothing_behind(vhost: str) -> None:
    for turns in range(0, 120, 3):

        async def run() -> None:
            async with consumer(vhost).taking(RecordingIntake()):
                await asyncio.Event().wait()

        task = asyncio.create_task(run())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


# --- Topology ---


async def check(url: str, mode: DeclareMode) -> None:
    async with opened(url, "test", lambda events: None, lambda cause: None) as (connection, _):
        await ensure(connection, mode)


async def test_the_topology_is_what_the_contract_says(vhost: str) -> None:
    await check(vhost, DeclareMode.ACTIVE)
    await check(vhost, DeclareMode.ACTIVE)
    await check(vhost, DeclareMode.PASSIVE)
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        for name in (PUSH, DEAD, OUTCOMES):
            await channel.declare_exchange(name, "topic", durable=True)
        await channel.declare_exchange(CONTROL, "fanout", durable=True)
        for queue in ONE.queues:
            await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))


async def test_passive_mode_names_everything_that_is_missing_and_makes_nothing(vhost: str) -> None:
    for _ in range(2):
        with pytest.raises(TopologyError) as caught:
            await check(vhost, DeclareMode.PASSIVE)
        assert caught.value.problems == (
            "queue push.fallen is missing",
            "queue push.requests is missing",
            "queue push.dead is missing",
            "queue push.control is missing",
            "exchange push is missing",
            "exchange push.dead is missing",
            "exchange push.outcomes is missing",
            "exchange push.sessions is missing",
            "exchange push.fallback is missing",
            "exchange push.control is missing",
        )


async def test_passive_mode_consumes_as_soon_as_somebody_has_made_the_topology(vhost: str) -> None:
    errors = RecordingErrors()
    taker = consumer(vhost, errors, declare=DeclareMode.PASSIVE)
    async with taker.taking(RecordingIntake()):
        await until(lambda: taker.state is LinkState.LOST)
        assert "queue push.requests is missing" in taker.cause
        await declare(vhost)
        await until(lambda: taker.state is LinkState.OPEN)


async def test_a_queue_that_is_different_is_named_with_what_differs(vhost: str) -> None:
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.declare_queue(REQUESTS, durable=True)
    with pytest.raises(TopologyError) as caught:
        await check(vhost, DeclareMode.ACTIVE)
    (problem,) = caught.value.problems
    assert problem.startswith("queue push.requests exists with another x-")
    assert "the bridge needs the value 'quorum'" in problem or "the bridge needs" in problem
    assert "the broker has none" in problem


async def test_an_exchange_of_another_type_is_named(vhost: str) -> None:
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.declare_exchange(PUSH, "fanout", durable=True)
    with pytest.raises(TopologyError) as caught:
        await check(vhost, DeclareMode.ACTIVE)
    (problem,) = caught.value.problems
    assert problem.startswith("exchange push exists with another type")
    assert "'fanout'" in problem


async def test_a_user_who_may_not_declare_is_told_so(servers: Servers, vhost: str) -> None:
    address = urlsplit(vhost)
    servers.rabbit.ctl("set_permissions", "-p", address.path[1:], address.username or "", "^$", ".*", ".*")
    with pytest.raises(TopologyError) as caught:
        await check(vhost, DeclareMode.ACTIVE)
    assert "queue push.fallen: access refused" in caught.value.problems[0]


async def test_two_bridges_take_turns_and_the_second_gets_what_the_first_left(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, numbered(10))
    first_intake, second_intake = RecordingIntake(), RecordingIntake()
    first, second = consumer(vhost), consumer(vhost)
    async with first.taking(first_intake):
        await first_intake.has(10)
        async with second.taking(second_intake):
            await until(lambda: second.role is Role.STANDBY)
            assert second_intake.arrivals == []
            first.ack(first_intake.tokens[:4])
            await first.stop_consuming()
            await second_intake.has(6)
            assert second_intake.bodies == numbered(6, 4)
            assert second.role is Role.ACTIVE
            second.ack(second_intake.tokens)
            await second.stop_consuming()
    assert await at_rest(vhost)


# --- The border to the library ---


async def test_our_own_cancellation_passes_the_border() -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with border("step", 5.0):
            started.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancellation_that_the_library_swallows_is_raised_again() -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with border("step", 5.0):
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancellation_that_the_library_raises_is_a_lost_connection() -> None:
    with pytest.raises(BrokerUnavailable, match="step: the connection was lost"):
        async with border("step", 5.0):
            raise asyncio.CancelledError


def test_a_link_makes_no_step_that_its_table_does_not_list() -> None:
    with pytest.raises(IllegalTransition):
        amqp_link.next_link_state(LinkState.CONNECTING, amqp_link.LinkEvent.SET_UP)
    for state in LinkState:
        assert amqp_link.next_link_state(state, amqp_link.LinkEvent.CLOSE) is LinkState.CLOSED


async def test_an_outbox_that_ended_confirms_nothing(vhost: str) -> None:
    await declare(vhost)
    async with outbox(vhost) as box:
        box.end("gone")
        failures = await box.publish([Message(PUSH, b"k", encoding.properties(), b"{}")], 10.0)
    assert [failure.why for failure in failures.values()] == ["gone"]
