"""Publishing to a real broker: what the messages look like, confirms, losses and alarms."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import aio_pika
import pytest

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp import publish as amqp_publish
from bridge.adapters.amqp.announcing import outcome_key
from bridge.adapters.amqp.link import LinkState
from bridge.adapters.amqp.publish import HeadersLeftOut, ReceiptPublisher, ReplyQueueTooLong
from bridge.adapters.amqp.topology import DEAD, OUTCOMES, DeclareMode
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.contract.receipts import receipt_body
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, Receipt, Reply, Row, RowKey
from bridge.devservers import Servers
from tests.support.amqp import CLOCK, RecordingIntake, consumer, declare, publish, publisher
from tests.support.broker_settings import memory_alarm
from tests.support.loops import nothing_left_behind
from tests.support.ports import RecordingErrors
from tests.support.proxies import AmqpProxy
from tests.support.queues import at_rest, drained, listening, raw_deliveries
from tests.support.rows import letter, row
from tests.support.waiting import until

__all__ = ["nothing_left_behind"]


async def test_a_receipt_is_a_persistent_json_message_that_names_its_push(vhost: str) -> None:
    async with publisher(vhost) as out, listening(vhost, OUTCOMES) as seen:
        ended = row(
            "p1",
            key=RowKey("acme", "p1", "u1"),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        assert not await out.send([Receipt(ended)])
        assert await seen.get() == {
            "body": receipt_body(ended),
            "routing_key": "received.order.paid",
            "correlation_id": None,
            "message_id": "p1",
            "content_type": "application/json",
            "persistent": True,
            "type": "push.outcome",
            "app_id": None,
            "headers": {
                "tenant": "acme",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            },
        }


async def test_outcome_events_can_be_switched_off_and_replies_stay(vhost: str) -> None:
    async with (
        publisher(vhost, outcome_events=False) as out,
        listening(vhost, OUTCOMES) as outcomes,
        listening(vhost, name="answers") as replies,
    ):
        assert not await out.send([Receipt(row(), (Reply("answers", "c1"),)), Receipt(row())])
        assert (await replies.get())["correlation_id"] == "c1"
        assert outcomes.empty()


@pytest.mark.parametrize("event", ["a" * 128, "ü" * 128, "😀" * 128, "a.b.c", "#", "*", "white space"])
async def test_any_event_makes_a_routing_key_of_at_most_255_bytes(vhost: str, event: str) -> None:
    key = outcome_key(Outcome.RECEIVED, event)
    assert len(key) <= 255
    assert f"received.{event}".startswith(key.decode())
    async with publisher(vhost) as out, listening(vhost, OUTCOMES, key="received.#") as seen:
        assert not await out.send([Receipt(row(event=event))])
        assert (await seen.get())["routing_key"] == key.decode()


async def test_an_id_too_long_for_a_property_is_in_the_body_alone(vhost: str) -> None:
    push_id = "😀" * 128
    async with publisher(vhost) as out, listening(vhost, OUTCOMES) as seen:
        assert not await out.send([Receipt(row(push_id))])
        message = await seen.get()
    assert message["message_id"] is None
    assert isinstance(message["body"], bytes)
    assert json.loads(message["body"])["push_id"] == push_id


async def test_a_reply_queue_that_cannot_exist_is_reported_and_its_neighbours_are_unharmed(
    vhost: str,
) -> None:
    errors = RecordingErrors()
    async with publisher(vhost, errors) as out, listening(vhost, name="answers") as replies:
        assert not await out.send([Receipt(row(), (Reply("q" * 256, "c0"), Reply("answers", "c1")))])
        assert (await replies.get())["correlation_id"] == "c1"
    assert [type(e) for e, _ in errors.seen] == [ReplyQueueTooLong]


@pytest.mark.parametrize("debt", [False, True], ids=["from memory", "from the row that owed it"])
async def test_a_correlation_id_of_any_bytes_comes_back_as_it_was(
    vhost: str, database: str, debt: bool
) -> None:
    await declare(vhost)
    theirs = b"\x00\xff\xc3\xa9\xed\xa0\x80" + b"\x80" * 248
    properties = encoding.properties(reply_to="answers", correlation_id="~" * 255)
    await publish(vhost, [b"{}"], properties.replace(b"~" * 255, theirs))
    async with publisher(vhost) as out, consumer(vhost).taking(intake := RecordingIntake()):
        await intake.has(1)
        given = intake.arrivals[0].properties
        ended = row("p1", owed=(Reply(given.reply_to, given.correlation_id),))
        if debt:
            store = PostgresStore(database)
            await store.record([ended])
            [ended] = await store.find([ended.key])
            await store.close()
        async with raw_deliveries(vhost, "answers") as seen:
            assert not await out.send([Receipt(ended, ended.owed or ())])
            assert await out.answer((ended.owed or ())[0], b"{}")
            for _ in range(2):
                async with asyncio.timeout(10):
                    delivery = await seen.get()
                assert encoding.octets(delivery.properties.correlation_id) == theirs


async def test_a_dead_letter_keeps_bytes_that_are_no_text(vhost: str) -> None:
    theirs, names = "\udcff\udcfe" * 127, ["n\udcff", "n\udcfe"]
    headers = dict(zip(names, [b"\xff", 2], strict=True))
    original = Properties(theirs, theirs, theirs, content_type=theirs, headers=headers)
    async with publisher(vhost) as out, raw_deliveries(vhost, DEAD) as seen:
        assert not await out.bury([letter("p1", properties=original)])
        async with asyncio.timeout(10):
            kept = (await seen.get()).properties
    assert {kept.message_id, kept.correlation_id, kept.reply_to, kept.content_type} == {theirs}
    assert [kept.headers[name] for name in names] == [b"\xff", 2]


async def test_two_thousand_receipts_are_confirmed_in_one_go(vhost: str) -> None:
    receipts = [Receipt(row(f"p{n}")) for n in range(2000)]
    async with publisher(vhost) as out, listening(vhost, OUTCOMES) as seen:
        assert not await out.send(receipts)
        await until(lambda: seen.qsize() == 2000)


async def test_a_batch_larger_than_one_write_goes_out_in_several(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_publish, "WRITE_BYTES", 300_000)
    async with publisher(vhost) as out, listening(vhost, DEAD) as seen:
        letters = [letter(f"p{n}", body=bytes([n]) * 200_000) for n in range(10)]
        assert not await out.bury(letters)
        for expected in letters:
            assert (await seen.get())["body"] == expected.body


async def test_concurrent_batches_do_not_mix_up_their_confirms(vhost: str) -> None:
    async with publisher(vhost) as out:
        batches = [[Receipt(row(f"p{b}-{n}")) for n in range(200)] for b in range(5)]
        answers = await asyncio.gather(*(out.send(batch) for batch in batches))
    assert [list(a) for a in answers] == [[]] * 5


# --- Dead letters ---


async def test_a_dead_letter_keeps_its_headers_and_properties(vhost: str) -> None:
    original = Properties(
        message_id="m1",
        correlation_id="c1",
        reply_to="answers",
        app_id="shop",
        user_id="bridge",
        content_type="text/plain",
        expiration="1",
        timestamp=1_800_000_000.0,
        headers={
            "x-own": "kept",
            "list": [1, {"two": 2.5}],
            "bytes": b"\x00",
            "CC": ["nowhere"],
            "x-push-id": "forged",
            "huge": 1 << 70,
        },
    )
    errors = RecordingErrors()
    async with publisher(vhost, errors) as out, listening(vhost, DEAD) as seen:
        assert not await out.bury([letter("p1", properties=original, detail="d" * 600)])
        message = await seen.get()
    assert buried_now(message["headers"])
    assert message["headers"] == {
        "x-own": "kept",
        "list": [1, {"two": 2.5}],
        "bytes": b"\x00",
        "x-push-id": "p1",
        "x-push-reason": "invalid",
        "x-push-detail": "d" * 500,
    }
    assert message["routing_key"] == "invalid"
    assert (message["message_id"], message["correlation_id"], message["app_id"]) == ("m1", "c1", "shop")
    assert (message["content_type"], message["persistent"]) == ("text/plain", True)
    (error,) = [e for e, _ in errors.seen]
    assert isinstance(error, HeadersLeftOut)
    assert error.names == ("huge",)
    assert [m.body for m in await drained(vhost, DEAD)] == [b'{"to":{"user":1}}']


def buried_now(headers: object) -> bool:
    """Whether x-push-buried-at is the time of this minute; takes it out of the headers."""
    assert isinstance(headers, dict)
    buried_at = datetime.fromisoformat(headers.pop("x-push-buried-at"))
    return abs((datetime.now(UTC) - buried_at).total_seconds()) < 60


async def test_headers_that_fit_no_frame_are_left_out_and_the_letter_is_buried(vhost: str) -> None:
    errors = RecordingErrors()
    big = Properties(headers={"big": "x" * 131_000, "small": 1}, timestamp=float(2**64))
    async with publisher(vhost, errors) as out, listening(vhost, DEAD) as seen:
        assert not await out.bury([letter("p1", properties=big)])
        headers = (await seen.get())["headers"]
    assert buried_now(headers)
    assert headers == {
        "x-push-id": "p1",
        "x-push-reason": "invalid",
        "x-push-detail": "to.user: expected a string",
    }
    assert [e.names for e, _ in errors.seen if isinstance(e, HeadersLeftOut)] == [("big", "small")]


async def test_what_a_consumer_got_can_be_buried_as_it_is(vhost: str) -> None:
    await declare(vhost)
    await publish(vhost, [b"not json"])
    intake = RecordingIntake()
    taker = consumer(vhost)
    async with publisher(vhost) as out, taker.taking(intake):
        await intake.has(1)
        arrival = intake.arrivals[0]
        buried = DeadLetter("p1", Reason.NOT_JSON, "", arrival.body, arrival.properties)
        assert not await out.bury([buried])
        taker.ack([arrival.token])
        await taker.stop_consuming()
    assert await at_rest(vhost)
    assert [m.body for m in await drained(vhost, DEAD)] == [b"not json"]


# --- Losses ---


async def test_before_it_is_connected_it_is_blocked_and_gives_everything_back_at_once(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy:
        proxy.refuse()
        errors = RecordingErrors()
        async with ReceiptPublisher(proxy.url, clock=CLOCK, errors=errors) as out:
            receipts = [Receipt(row())]
            assert out.blocked
            assert await out.send(receipts) == receipts
            await until(lambda: out.state is LinkState.LOST)
            proxy.accept()
            await until(lambda: not out.blocked)
            assert not await out.send(receipts)
    assert out.blocked


async def test_what_was_in_flight_when_the_connection_went_is_given_back(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy, publisher(proxy.url) as out:
        proxy.freeze()
        receipts = [Receipt(row("p1")), Receipt(row("p2"))]
        sending = asyncio.create_task(out.send(receipts))
        await asyncio.sleep(0)
        proxy.reset()
        assert list(await sending) == receipts
        assert out.blocked
        proxy.thaw()
        await until(lambda: not out.blocked)
        assert not await out.send(receipts)


async def test_a_broker_that_does_not_confirm_is_waited_for_within_a_limit(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_publish, "WRITE_TIMEOUT", 0.2)
    async with AmqpProxy(vhost) as proxy, publisher(proxy.url) as out:
        proxy.freeze()
        receipts = [Receipt(row("p1"))]
        assert list(await out.send(receipts)) == receipts
        monkeypatch.setattr(amqp_publish, "WRITE_TIMEOUT", 10.0)
        proxy.thaw()  # the confirm comes now, and is nobody's any more
        assert not await out.send([Receipt(row("p2"))])


async def test_an_exchange_that_was_deleted_is_declared_again(vhost: str) -> None:
    errors = RecordingErrors()
    async with publisher(vhost, errors) as out:
        async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
            await channel.exchange_delete(OUTCOMES)
        receipts = [Receipt(row())]
        assert list(await out.send(receipts)) == receipts
        await until(lambda: not out.blocked)
        assert not await out.send(receipts)
    assert "no exchange 'push.outcomes'" in str(errors.seen[0][0])


async def test_a_queue_that_refuses_is_an_unconfirmed_receipt(vhost: str) -> None:
    async with publisher(vhost) as out, await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        await channel.declare_queue(
            "full", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        receipts = [Receipt(row(f"p{n}"), (Reply("full"),)) for n in range(3)]
        assert list(await out.send(receipts)) == receipts[1:]


async def test_being_cancelled_while_waiting_for_confirms_leaves_the_publisher_usable(vhost: str) -> None:
    async with AmqpProxy(vhost) as proxy, publisher(proxy.url) as out:
        proxy.freeze()
        sending = asyncio.create_task(out.send([Receipt(row("p1"))]))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        proxy.thaw()
        assert not await out.send([Receipt(row("p2"))])


async def test_under_a_memory_alarm_receipts_come_back_and_taking_and_acking_go_on(
    servers: Servers, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_publish, "WRITE_TIMEOUT", 300.0)  # it is the alarm that ends the wait
    await declare(vhost)
    await publish(vhost, [b"%d" % n for n in range(50)])
    intake = RecordingIntake()
    taker = consumer(vhost, prefetch=5)
    async with publisher(vhost) as out:
        servers.rabbit.evaluate(memory_alarm(True))
        try:
            receipts = [Receipt(row("p1"))]
            async with asyncio.timeout(20):
                # The broker's connections hear of an alarm a moment after it was set.
                while not (back := await out.send(receipts)):
                    pass
            assert list(back) == receipts
            assert out.blocked
            assert out.state is LinkState.BLOCKED
            assert "memory" in out.cause
            intake.acks = taker
            async with taker.taking(intake):
                await intake.has(50)
                await taker.stop_consuming()
        finally:
            servers.rabbit.evaluate(memory_alarm(False))
        await until(lambda: not out.blocked)
        assert not await out.send(receipts)
    assert await at_rest(vhost)


async def test_passive_mode_publishes_once_the_topology_is_there(vhost: str) -> None:
    errors = RecordingErrors()
    async with ReceiptPublisher(vhost, clock=CLOCK, errors=errors, declare=DeclareMode.PASSIVE) as out:
        await until(lambda: out.state is LinkState.LOST)
        assert "exchange push.outcomes is missing" in out.cause
        await declare(vhost)
        await until(lambda: not out.blocked)
        assert not await out.send([Receipt(row())])


def test_a_receipt_without_an_event_has_a_key_all_the_same() -> None:
    made = Row(RowKey("", "p", ""), Outcome.REJECTED, Reason.NOT_JSON, "n", "b", 0.0, 0.0)
    assert outcome_key(made.outcome, made.event) == b"rejected."
