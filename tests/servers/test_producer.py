"""Our own publisher of push requests, against a real broker and a stand-in for the bridge."""

from __future__ import annotations

import asyncio
import json

import aio_pika
import pytest

from bridge.adapters.amqp.producer import NotTaken, Producer, PushMessage, expected_receipts, outcomes
from bridge.core.errors import BrokerUnavailable
from bridge.devservers import Servers
from tests.support.amqp import RecordingIntake, consumer, declare
from tests.support.broker_settings import delete_queue, heard_queues
from tests.support.loops import nothing_left_behind
from tests.support.proxies import AmqpProxy
from tests.support.queues import drained
from tests.support.scripted_receipts import KEPT, PARKED, PENDING, RECEIVED, scripted_receipts
from tests.support.waiting import until

__all__ = ["nothing_left_behind"]


async def test_a_published_request_is_in_the_queue_when_publish_returns(vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        await producer.publish(
            b"{}",
            headers={"x-push-user": "u1"},
            push_id="m1",
            reply_to="answers",
            correlation_id="c1",
            app_id="shop",
            expiration=60.0,
            timestamp=1_800_000_000,
            routing_key="user.u1",
        )
    (message,) = await drained(vhost, "push.requests")
    assert (message.body, message.routing_key) == (b"{}", "user.u1")
    assert (message.reply_to, message.correlation_id, message.app_id) == ("answers", "c1", "shop")
    assert message.headers == {"x-push-user": "u1", "x-push-id": "m1"}
    assert (message.content_type, message.delivery_mode) == ("application/json", 2)


async def test_many_requests_leave_in_one_write_and_keep_their_order(vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        await producer.publish_all([PushMessage(b"%d" % n) for n in range(500)])
    assert [m.body for m in await drained(vhost, "push.requests")] == [b"%d" % n for n in range(500)]


async def test_a_request_that_no_queue_takes_is_an_error(vhost: str) -> None:
    await declare(vhost)
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        await channel.queue_delete("push.requests")
    async with Producer.connect(vhost) as producer:
        for _ in range(2):
            with pytest.raises(NotTaken, match="NO_ROUTE"):
                await producer.publish(b"{}")


@pytest.mark.parametrize("push_id", ["p1", "😀" * 128], ids=["short", "longer than a property"])
async def test_every_request_that_no_queue_takes_is_told_whatever_its_id(vhost: str, push_id: str) -> None:
    await declare(vhost)
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        queue = await channel.get_queue("push.requests")
        await queue.unbind("push", "#")
        await queue.bind("push", "user.u1")
    async with Producer.connect(vhost) as producer:
        taken, lost = (PushMessage(b"{}", push_id=push_id, routing_key=key) for key in ("user.u1", "user.u2"))
        for requests in ([lost], [taken, lost], [lost, taken], [lost, lost]):
            with pytest.raises(NotTaken, match="NO_ROUTE"):
                await producer.publish_all(requests)
        await producer.publish_all([taken, taken])
    messages = await drained(vhost, "push.requests")
    assert [message.headers["x-push-id"] for message in messages] == [push_id] * 4
    assert len({message.message_id for message in messages}) == 4


async def test_what_is_too_long_for_a_property_is_an_error_and_not_cut(vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        for name in ("reply_to", "correlation_id"):
            with pytest.raises(ValueError, match=f"{name} has over 255 bytes"):
                await producer.publish_all([PushMessage(b"{}", **{name: "ü" * 128})])  # type: ignore[arg-type]
    assert not await drained(vhost, "push.requests")


async def test_a_broker_without_the_exchange_is_an_error_that_names_it(vhost: str) -> None:
    async with Producer.connect(vhost) as producer:
        with pytest.raises(BrokerUnavailable, match="no exchange 'push'"):
            await producer.publish(b"{}")
        with pytest.raises(BrokerUnavailable):
            await producer.publish(b"{}")


async def test_no_broker_is_an_error() -> None:
    with pytest.raises(BrokerUnavailable, match="connect"):
        async with Producer.connect("amqp://guest:guest@127.0.0.1:1/"):
            raise AssertionError("connected to nothing")


async def test_headers_that_amqp_cannot_express_are_an_error(vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        with pytest.raises(ValueError, match="big"):
            await producer.publish(b"{}", headers={"big": 1 << 80})


async def test_a_lost_connection_is_an_error_for_whoever_waits(vhost: str) -> None:
    await declare(vhost)
    async with AmqpProxy(vhost) as proxy, Producer.connect(proxy.url) as producer:
        waiting = asyncio.create_task(producer.request(b'{"id":"p1","to":{"user":"u1"}}', 30))
        async with consumer(vhost).taking(intake := RecordingIntake()):
            await intake.has(1)
        proxy.reset()
        with pytest.raises(BrokerUnavailable):
            await waiting
        with pytest.raises(BrokerUnavailable):
            await producer.publish(b"{}")


async def test_a_request_returns_with_the_final_receipt_of_each_user(vhost: str) -> None:
    async with scripted_receipts(vhost), Producer.connect(vhost) as producer:
        one = await producer.request(b'{"id":"p1","to":{"user":"u7"}}', 10)
        assert [(r["user_id"], r["outcome"]) for r in one] == [("u7", "pending"), ("u7", "received")]
        two = await producer.request(b'{"id":"p2","to":{"users":["u1","u2","u1"]}}', 10)
        assert {r["user_id"] for r in two if r["final"]} == {"u1", "u2"}


async def test_a_request_does_not_wait_for_a_user_who_is_away(vhost: str) -> None:
    async with asyncio.timeout(20), scripted_receipts(vhost) as bridge, Producer.connect(vhost) as producer:
        bridge.answers = {"away": (KEPT,), "late": (PARKED, KEPT), "odd": (RECEIVED, KEPT)}
        got = await producer.request(b'{"id":"p1","to":{"users":["away","late","odd","u1"]},"ttl":60}', 60)
        assert len(got) == 7
        bridge.answers = {"here": (PARKED, RECEIVED), "back": (KEPT, RECEIVED)}
        got = await producer.request(b'{"id":"p2","to":{"user":"here"},"ttl":60}', 60)
        assert [r["outcome"] for r in got] == ["stored", "received"]
        got = await producer.request(b'{"id":"p3","to":{"users":["back","here"]},"ttl":60}', 60, expect=2)
        assert {r["user_id"] for r in got if r["final"]} >= {"here"}


async def test_requests_at_the_same_time_get_their_own_receipts(vhost: str) -> None:
    async with scripted_receipts(vhost), Producer.connect(vhost) as producer:
        bodies = [json.dumps({"id": f"p{n}", "to": {"user": f"u{n}"}}).encode() for n in range(10)]
        answers = await asyncio.gather(*(producer.request(body, 10) for body in bodies))
    assert [{r["push_id"] for r in answer} for answer in answers] == [{f"p{n}"} for n in range(10)]


async def test_without_an_answer_a_request_returns_what_there_is_when_the_time_is_over(vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        assert await producer.request(b'{"id":"p1","to":{"user":"u1"}}', 0.2) == []


async def test_for_everyone_the_whole_time_is_waited(vhost: str) -> None:
    async with scripted_receipts(vhost) as bridge, Producer.connect(vhost) as producer:
        bridge.answers = {"u1": (RECEIVED, PENDING, RECEIVED)}
        receipts = await producer.request(b'{"id":"p1","to":{"all":true}}', 2.0)
    assert [r["outcome"] for r in receipts] == ["received", "pending", "received"]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b'{"to":{"user":"a"}}', 1),
        (b'{"to":{"users":["a","b","a"]}}', 2),
        (b'{"to":{"users":[]}}', 1),
        (b'{"to":{"users":[{},1]}}', 1),
        (b'{"to":{"session":"s"}}', 1),
        (b'{"to":{"all":true}}', None),
        (b'[{"to":{"user":"a"}},{"to":{"users":["a","b"]}},17]', 4),
        (b"[]", 1),
        (b"not json", 1),
        (b"\xff", 1),
        (b"7", 1),
    ],
)
def test_the_number_of_receipts_is_read_from_the_body(body: bytes, count: int | None) -> None:
    assert expected_receipts(body) == count


async def test_outcomes_are_heard_by_their_routing_key(vhost: str) -> None:
    async with scripted_receipts(vhost), Producer.connect(vhost) as producer:
        heard: list[tuple[str, str]] = []
        listening = asyncio.Event()

        async def listen() -> None:
            stream = outcomes(vhost, "received.#")
            try:
                listening.set()
                async for receipt in stream:
                    heard.append((receipt["push_id"], receipt["outcome"]))
            finally:
                await stream.aclose()  # type: ignore[attr-defined]

        task = asyncio.create_task(listen())
        await listening.wait()
        number = 0
        while not heard:  # the first ones may be published before the queue is bound
            number += 1
            await producer.request(b'{"id":"p%d","to":{"user":"u1"}}' % number, 10)
        assert heard[0] == (f"p{number}", "received") or heard[0][1] == "received"
        task.cancel()
        await asyncio.wait([task])


async def test_listening_ends_with_an_error_when_the_broker_goes_away(vhost: str) -> None:
    await declare(vhost)
    async with AmqpProxy(vhost) as proxy:
        stream = outcomes(proxy.url)
        hearing = asyncio.ensure_future(anext(stream))
        await until(lambda: proxy.connections == 1)
        proxy.reset()
        with pytest.raises(BrokerUnavailable):
            await hearing


async def heard_queue(servers: Servers, vhost: str) -> str:
    """The only queue that somebody hears receipts on, once there is one."""
    async with asyncio.timeout(20):
        while not (names := await asyncio.to_thread(heard_queues, servers, vhost)):
            await asyncio.sleep(0.05)
    (name,) = names
    return name


async def test_a_deleted_queue_ends_a_wait_for_receipts_with_an_error(servers: Servers, vhost: str) -> None:
    await declare(vhost)
    async with Producer.connect(vhost) as producer:
        # Nobody answers it.
        asking = asyncio.create_task(producer.request(b'{"id":"p1","to":{"user":"u1"}}', 60))
        queue = await heard_queue(servers, vhost)
        await asyncio.to_thread(delete_queue, servers, vhost, queue)
        with pytest.raises(BrokerUnavailable, match="the queue is gone"):
            await asyncio.wait_for(asking, 20)
        assert not producer.ended, "the connection goes on"
        stream = outcomes(vhost)
        hearing = asyncio.ensure_future(anext(stream))
        queue = await heard_queue(servers, vhost)
        await asyncio.to_thread(delete_queue, servers, vhost, queue)
        with pytest.raises(BrokerUnavailable, match="the queue is gone"):
            await asyncio.wait_for(hearing, 20)


async def test_listening_without_the_exchange_is_an_error(vhost: str) -> None:
    with pytest.raises(BrokerUnavailable, match=r"no exchange 'push\.outcomes'"):
        await anext(outcomes(vhost))
