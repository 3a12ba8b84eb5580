"""Nothing that a publisher can send keeps the event loop of a running bridge from everything else."""

from __future__ import annotations

import asyncio
import json
import random
from itertools import islice

from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.loop_watch import watch
from tests.support import costly_messages as costly
from tests.support.bridges import counted, get, process, publish, request, token
from tests.support.clients import client

HELD_MAX = 0.25
"""Seconds of CPU: the bound of the chaos run. One of these messages taken in one go is ten times above it."""


async def metric(port: int, name: str) -> float:
    _, page = await get(port, "/metrics")
    (value,) = [line.split()[1] for line in page.decode().splitlines() if line.startswith(f"{name} ")]
    return float(value)


async def test_costly_messages_are_taken_in_turns_and_everybody_else_is_served(
    vhost: str, database: str
) -> None:
    chance = random.Random(1)
    sent = [
        message
        for messages, step in (
            (costly.requests(), 16),
            (costly.batches(), 61),
            (costly.damaged(), 131),
        )
        for message in islice(messages, 0, None, step)
    ]
    chance.shuffle(sent)
    async with process(vhost, database) as b, client(b.ws_port, token("watcher")):
        before = await metric(b.ops_port, "bridge_loop_held_seconds")
        async with Producer.connect(vhost) as producer:
            for message in sent:
                await producer.publish_all([PushMessage(message.body())])
            await publish(vhost, request("watcher", "after all of them"))
        await counted(database, "push_id = 'after all of them' and outcome = 'received'", 1)
        held = await metric(b.ops_port, "bridge_loop_held_seconds")
        assert before <= held <= HELD_MAX


async def test_the_watch_tells_a_loop_that_is_held_and_one_that_only_waits() -> None:
    seen: list[tuple[float, float]] = []
    watching = asyncio.create_task(watch(lambda late, held: seen.append((late, held)), every=0.002))
    await asyncio.sleep(0.05)
    idle = max(held for _, held in seen)
    seen.clear()
    text = json.dumps([0] * 100_000)
    for _ in range(20):
        json.loads(text)
    await asyncio.sleep(0.05)
    watching.cancel()
    assert max(held for _, held in seen) > 10 * idle
    assert all(0 <= held <= late for late, held in seen)
