"""Faults of the broker, and of the way to it."""

from __future__ import annotations

import asyncio
import time

import aio_pika

from benchmarks.chaos.broker import channel
from benchmarks.chaos.clients import Manner
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

SETTLES = 1.0
"""Seconds between two faults, which a quorum queue of RabbitMQ 3.10 needs."""
HALF_OPEN = 35.0
"""Seconds in which the broker must notice a silent connection: three heartbeats of ten seconds, and a margin."""


@fault("broker restarted")
async def restart(stage: Stage) -> int:
    """The broker is stopped in order and started again."""
    for _ in range(2):
        await asyncio.to_thread(stage.servers.rabbit.stop)
        await stage.sleep_some(0.5, 3)
        await asyncio.to_thread(stage.servers.rabbit.start)
        stage.now_healed()
        await stage.bridge.ready()
        await stage.load(2 + SETTLES)
    return 2


@fault("broker kill -9")
async def killed(stage: Stage) -> int:
    """The broker is killed as in a power cut, and restarts with what it had confirmed."""
    for _ in range(3):
        await asyncio.to_thread(stage.servers.rabbit.kill)
        await stage.sleep_some(0.0, 1.0)
        await asyncio.to_thread(stage.servers.rabbit.start)
        stage.now_healed()
        await stage.bridge.ready()
        await stage.sleep_some(SETTLES, SETTLES + 2)
    return 3


@fault("broker away for 65 s")
async def away(stage: Stage) -> int:
    """The broker is down for longer than any retry or time limit of the bridge."""
    await asyncio.to_thread(stage.servers.rabbit.kill)
    await asyncio.sleep(65)
    await asyncio.to_thread(stage.servers.rabbit.start)
    stage.now_healed()
    return 1


@fault("broker frozen for 30 s")
async def frozen(stage: Stage) -> int:
    """The broker's process is stopped: connections stay open and nothing answers."""
    await asyncio.to_thread(stage.servers.rabbit.pause)
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.to_thread(stage.servers.rabbit.resume)
    stage.now_healed()
    return 1


@fault("memory alarm: publishing blocked")
async def memory_alarm(stage: Stage) -> int:
    """The broker blocks publishers: rows owe receipts, and queued messages are still taken and acked."""
    for _ in range(2):
        await stage.block_publishers()
        try:
            await asyncio.sleep(8)
        finally:
            await stage.unblock_publishers()
        stage.now_healed()
        await stage.load(2)
    return 2


@fault("AMQP half-open", proxied=["amqp"])
async def half_open(stage: Stage) -> int:
    """The bridge's connections to the broker fall silent and stay open; new ones work."""
    stage.amqp.silence()
    await stage.bridge.unready()
    stage.now_healed()
    await stage.bridge.ready()
    # The messages of the silent connection come back only when the broker has noticed, too.
    await asyncio.sleep(HALF_OPEN)
    return 1


@fault("AMQP reset", proxied=["amqp"], short=True)
async def reset(stage: Stage) -> int:
    """The connections to the broker are reset in the middle of the stream."""
    times = 3 * stage.scale.repeats
    for _ in range(times):
        await stage.sleep_some(0.1, 1.0)
        stage.amqp.reset()
        stage.now_healed()
        await asyncio.sleep(0.05)
        await stage.bridge.ready()
    return times


@fault("AMQP cut after n bytes", proxied=["amqp"])
async def cut(stage: Stage) -> int:
    """The connections to the broker end in the middle of a frame."""
    for _ in range(12):
        stage.amqp.cut_after(stage.rng.randint(1, 20_000))
        await stage.sleep_some(0.5, 1.5)
        stage.amqp.heal()
        await stage.bridge.ready()
    stage.now_healed()
    return 12


@fault("AMQP late and slow", proxied=["amqp"])
async def slow(stage: Stage) -> int:
    """Each chunk to and from the broker is 150 ms late; then the connection carries 60 kB/s."""
    stage.amqp.latency = 0.15
    await stage.load(6)
    stage.amqp.heal()
    stage.amqp.bytes_per_second = 60_000
    await stage.load(6)
    stage.amqp.heal()
    stage.now_healed()
    return 2


@fault("AMQP unreachable for 10 s", proxied=["amqp"])
async def unreachable(stage: Stage) -> int:
    """Connections are reset and new ones refused, while publishers continue."""
    stage.amqp.refuse = True
    stage.amqp.reset()
    await stage.load(10)
    stage.amqp.heal()
    stage.now_healed()
    return 1


@fault("connections closed by an operator")
async def closed_by_operator(stage: Stage) -> int:
    """rabbitmqctl close_all_connections, publishers' included."""
    for _ in range(2):
        await stage.ctl("close_all_connections", "--vhost", stage.name, "chaos")
        stage.now_healed()
        await asyncio.sleep(0.1)
        await stage.bridge.ready()
        await stage.load(2)
    return 2


@fault("queue deleted")
async def queue_deleted(stage: Stage) -> int:
    """push.requests is deleted while the bridge runs: what was in it is lost, what comes later is not."""
    for _ in range(2):
        async with channel(stage.url) as c:
            await c.queue_delete("push.requests")
        for request in stage.evidence.requests.values():
            if request.copies:
                request.excused = "the queue was deleted"
        await asyncio.sleep(0.1)
        await stage.bridge.ready()
        # Confirms that the broker sent just before are on their way here.
        for request in stage.evidence.requests.values():
            if request.copies:
                request.excused = "the queue was deleted"
        stage.now_healed()
        await stage.load(1 + SETTLES)
    return 2


@fault("consumer cancelled from outside")
async def cancelled(stage: Stage) -> int:
    """Deleting push.fallen, which is empty, makes the broker cancel the bridge's consumer of it."""
    for _ in range(3):
        async with channel(stage.url) as c:
            await c.queue_delete("push.fallen")
        stage.now_healed()
        await asyncio.sleep(0.1)
        await stage.bridge.ready()
        await stage.load(1 + SETTLES)
    return 3


@fault("messages expire in the queue")
async def expired(stage: Stage) -> int:
    """Messages with an expiration wait while the bridge is down: they come through push.fallen."""
    await stage.bridge.kill()
    for requests in stage.requests:
        requests.expiration = 1.5
    await stage.load(5)
    for requests in stage.requests:
        requests.expiration = None
    await stage.bridge.start()
    stage.now_healed()
    await stage.bridge.ready()
    return 1


@fault("messages reach the broker's delivery limit")
async def delivery_limit(stage: Stage) -> int:
    """Another consumer takes messages and returns them, until the broker gives them up."""
    stage.evidence.given_back = True
    await stage.bridge.kill()
    await stage.load(1)
    stage.pace = 0.02
    given_back = 0

    async with channel(stage.url) as c:
        await c.set_qos(10)
        queue = await c.get_queue("push.requests", ensure=False)

        async def give_back(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal given_back
            given_back += 1
            await message.nack(requeue=True)

        tag = await queue.consume(give_back)
        await stage.load(25)
        await queue.cancel(tag)
    stage.pace = 1.0
    await stage.bridge.start()
    stage.now_healed()
    await stage.bridge.ready()
    return given_back // 101


@fault("half-open first taker, second bridge takes over", proxied=["amqp"])
async def two_takers(stage: Stage) -> int:
    """The first bridge loses the broker without noticing; its messages are delivered to a second one."""
    stage.amqp_proxied = False
    stage.evidence.ordered = False
    second = await stage.start_bridge("n2")
    for i in range(0, stage.scale.users, 3):
        await stage.add_client(f"u{i}", Manner.READS, lambda: second.ws_port)
    await stage.load(1)
    stage.amqp.silence()
    # The first keeps what it holds, and its sessions; it can't connect again before the broker has noticed.
    stage.amqp.refuse = True
    began = time.monotonic()
    await asyncio.sleep(HALF_OPEN)
    stage.now_healed()
    await stage.a_push_is_read()
    stage.ended_at = began
    ((taken,),) = await stage.execute("select count(*) from delivery_log where node = 'n2'")
    if not taken:
        stage.evidence.troubles.append("the second bridge took nothing: the fault was not made")
    stage.amqp.heal()
    await stage.load(2)
    stage.come_back_at_last = list(stage.clients)
    return 1
