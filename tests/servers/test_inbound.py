"""What users publish, on real servers: stamped, confirmed, in order, and bounded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bridge.app.build import Running
from bridge.core.talking.publishing import SESSION_MESSAGES
from bridge.devservers import Servers
from tests.support.bridges import bridge, final_rows, get, publish, request, token
from tests.support.broker_settings import memory_alarm
from tests.support.clients import Client, client
from tests.support.queues import ENVELOPE
from tests.support.schemas import validator

MAY = ["chat.*", "room.#"]


@asynccontextmanager
async def backend(url: str, key: str = "chat.*") -> AsyncIterator[asyncio.Queue[AbstractIncomingMessage]]:
    """A system that listens, as docs/publishing.md shows it."""
    seen: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        exchange = await channel.declare_exchange("push.inbound", "topic", durable=True)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(exchange, key)
        await queue.consume(seen.put, no_ack=True)
        yield seen


async def soon(seen: asyncio.Queue[AbstractIncomingMessage]) -> AbstractIncomingMessage:
    async with asyncio.timeout(20):
        return await seen.get()


@asynccontextmanager
async def user(made: Running, name: str = "u1", may: object = MAY) -> AsyncIterator[Client]:
    async with client(made.ws_port, token(name, publish=may), subprotocols=ENVELOPE) as c:
        assert (await c.read_json())["type"] == "welcome"
        yield c


async def say(c: Client, event: str = "chat.said", **more: Any) -> dict[str, Any]:
    """Publish, and read the answer."""
    await c.send_json({"type": "publish", "event": event, **more})
    answer = await c.read_json()
    assert isinstance(answer, dict)
    return answer


async def heard(c: Client, ref: object) -> None:
    """Publish until it is taken: the connection for it is made beside all others."""
    async with asyncio.timeout(40):
        while (answer := await say(c, ref=ref))["type"] != "ok":
            assert answer["code"] in ("unavailable", "unknown", "nobody_listens"), answer
            await asyncio.sleep(0.05)


async def able(made: Running) -> None:
    """Wait until the bridge can publish what users say."""
    async with asyncio.timeout(40), user(made, "probe", ["probe"]) as c:
        while (await say(c, "probe", ref=1))["code"] != "nobody_listens":
            await asyncio.sleep(0.05)


async def test_what_a_user_says_arrives_with_who_and_when(vhost: str, database: str) -> None:
    async with backend(vhost) as seen, bridge(vhost, database) as made, user(made, "u/7 ä") as c:
        await heard(c, "first")
        await soon(seen)
        before = time.time()
        sent = '{"type":"publish","event":"chat.said","data": {"text": "h\\u00e9", "n": 1.50},"topic":"room.7","ref":3}'
        await c.send(sent)
        assert await c.read_json() == {"type": "ok", "ref": 3}
        message = await soon(seen)
        assert message.body == b'{"text": "h\\u00e9", "n": 1.50}', "byte for byte"
        assert (message.routing_key, message.exchange) == ("chat.said", "push.inbound")
        assert (message.content_type, message.type, message.delivery_mode) == (
            "application/json",
            "push.inbound",
            2,
        )
        assert message.user_id == "bridge", "which the broker has checked"
        headers = dict(message.headers)
        validator("inbound-headers.json").validate(headers)
        assert headers.pop("session")
        at = headers.pop("received_at")
        assert isinstance(at, str)
        assert headers == {"user": "u/7 ä", "node": "n1", "topic": "room.7", "ref": 3}
        assert message.message_id
        assert message.timestamp is not None
        assert abs(message.timestamp.timestamp() - before) < 60
        assert at.startswith(f"{message.timestamp:%Y-%m-%dT%H:%M:%S}.")
        _, page = await get(made.ops_port, "/metrics")
        assert b'bridge_inbound_total{result="ok"} 2.0' in page
        assert b"bridge_inbound_waiting 0.0" in page


async def test_what_is_not_permitted_or_heard_by_nobody_is_an_error(vhost: str, database: str) -> None:
    async with backend(vhost) as seen, bridge(vhost, database) as made:
        async with user(made) as c:
            await heard(c, 1)
            assert (await say(c, "orders.cancel", ref=2))["code"] == "forbidden"
            assert (await say(c, "chat.said", topic="hall.1", ref=3))["code"] == "forbidden"
            assert (await say(c, "room.1", ref=4))["code"] == "nobody_listens"
            assert (await say(c, "", ref=5))["code"] == "bad_frame"
        async with user(made, "u2", None) as silent:
            assert (await say(silent, ref=6))["code"] == "forbidden"
        assert (await soon(seen)).headers["ref"] == 1
        assert seen.empty()


async def test_a_thousand_arrive_in_the_order_in_which_they_were_sent(vhost: str, database: str) -> None:
    async with (
        backend(vhost) as seen,
        bridge(vhost, database) as made,
        user(made) as c,
        user(made, "u2") as other,
    ):
        await heard(c, "first")
        await soon(seen)
        room = asyncio.Semaphore(SESSION_MESSAGES)

        async def send(by: Client) -> None:
            for ref in range(1000):
                if by is c:
                    await room.acquire()
                await by.send_json({"type": "publish", "event": "chat.said", "data": ref, "ref": ref})

        async def read(by: Client) -> list[Any]:
            answers = []
            for _ in range(1000):
                answers.append(await by.read_json())
                if by is c:
                    room.release()
            return answers

        async with asyncio.timeout(60):
            # The other one does not wait for its answers.
            answers, others, *_ = await asyncio.gather(read(c), read(other), send(c), send(other))
        assert [a["ref"] for a in answers if a["type"] == "ok"] == list(range(1000))
        assert {a["ref"] for a in others} == set(range(1000)), "each frame is answered"
        assert {a.get("code", "ok") for a in others} <= {"ok", "busy"}
        taken = sum(a["type"] == "ok" for a in others)
        found: dict[object, list[int]] = {"u1": [], "u2": []}
        for _ in range(1000 + taken):
            message = await soon(seen)
            found[message.headers["user"]].append(json.loads(message.body))
        assert found["u1"] == list(range(1000))
        assert found["u2"] == sorted(a["ref"] for a in others if a["type"] == "ok")


async def test_while_the_broker_is_away_each_frame_is_answered_and_after_it_they_arrive(
    own_servers: Servers,
) -> None:
    s = own_servers
    async with bridge(s.amqp_url, s.postgres_dsn) as made, user(made) as c:
        async with backend(s.amqp_url) as seen:
            await heard(c, "before")
            assert (await soon(seen)).headers["ref"] == "before"
        await asyncio.to_thread(s.rabbit.kill)
        answers = [await say(c, ref=n) for n in range(20)]
        assert [a["ref"] for a in answers] == list(range(20))
        assert {a["code"] for a in answers} <= {"unavailable", "unknown"}
        assert answers[-1]["code"] == "unavailable"
        await asyncio.to_thread(s.rabbit.start)
        async with backend(s.amqp_url) as seen:
            await heard(c, "after")
            assert (await soon(seen)).headers["ref"] == "after"


async def test_a_broker_that_blocks_publishers_holds_up_no_answer(own_servers: Servers) -> None:
    s = own_servers
    async with bridge(s.amqp_url, s.postgres_dsn) as made, user(made) as c, backend(s.amqp_url) as seen:
        await heard(c, "before")
        await soon(seen)
        await asyncio.to_thread(s.rabbit.evaluate, memory_alarm(True))
        try:
            # RabbitMQ says so when the first message comes, which it reads later.
            first = await say(c, ref="first")
            assert first["code"] == "unknown"
            assert (await say(c, ref="second"))["code"] == "unavailable"
        finally:
            await asyncio.to_thread(s.rabbit.evaluate, memory_alarm(False))
        assert (await soon(seen)).headers["ref"] == "first", "it may arrive"
        await heard(c, "after")
        assert (await soon(seen)).headers["ref"] == "after"


async def test_each_node_stamps_its_own_and_pushes_go_on(vhost: str, database: str) -> None:
    async with (
        backend(vhost) as seen,
        bridge(vhost, database, node="a") as a,
        bridge(vhost, database, node="b") as b,
        user(a) as one,
        user(b, "u2") as two,
    ):
        await heard(one, 1)
        await heard(two, 2)
        told = [(m.headers["node"], m.headers["user"]) for m in (await soon(seen), await soon(seen))]
        assert told == [("a", "u1"), ("b", "u2")]
        flood = asyncio.create_task(asyncio.wait_for(_flood(one), 30), name="flood")
        # Pushes to both nodes go on.
        await publish(vhost, *(request(name, f"p{name}{n}") for n in range(20) for name in ("u1", "u2")))
        found = await final_rows(database, 40)
        assert {(row["outcome"], row["reason"]) for row in found} == {("received", "pong")}
        await flood


async def _flood(c: Client) -> None:
    """Publish without waiting, and read everything."""
    for n in range(1000):
        await c.send_json({"type": "publish", "event": "chat.said", "data": n, "ref": n})
    answers = 0
    while answers < 1000:
        answers += (await c.read_json())["type"] in ("ok", "error")
