"""Faults of the peers: slow, vanished, reset, all at once; and publishers that repeat everything a hundred times."""

from __future__ import annotations

import asyncio

from benchmarks.chaos.clients import Manner
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

STORM = 2000
"""Clients that reconnect at once."""
COPIES = 100
"""How often the same id is published."""


@fault("clients that never read")
async def never_read(stage: Stage) -> int:
    """Some clients open a session and read nothing; they are sent more than all buffers on the way hold."""
    slow = [f"frozen{i}" for i in range(5)]
    for user in slow:
        await stage.add_client(user, Manner.NEVER_READS)
    await stage.publish_now([stage.requests[0].to(user, padding=60_000) for user in slow for _ in range(150)])
    await stage.load(10)
    stage.now_healed()
    return len(slow)


@fault("clients that vanish without a FIN")
async def vanish(stage: Stage) -> int:
    """The clients are behind a proxy that discards everything: no close, no reset, no answer."""
    users = [f"behind{i}" for i in range(8)]
    gone = [await stage.add_client(user, Manner.READS, lambda: stage.websocket.port) for user in users]
    await stage.publish_now([stage.requests[0].to(u) for u in users])
    stage.websocket.silence()
    await stage.publish_now([stage.requests[0].to(u, confirm="acked") for u in users for _ in range(5)])
    await stage.load(5 if stage.scale.repeats > 1 else 1)
    for client in gone:
        client.drop()
    stage.now_healed()
    return len(users)


@fault("clients that reset between send and pong", short=True)
async def reset_before_pong(stage: Stage) -> int:
    """Each client reads a push, resets its connection instead of sending the pong, and reconnects."""
    users = [f"flaky{i}" for i in range(8)]
    for user in users:
        await stage.add_client(user, Manner.RESETS)
    times = 10 * stage.scale.repeats
    for _ in range(times):
        await stage.publish_now([stage.requests[0].to(u) for u in users])
        await stage.sleep_some(0.0, 0.3)
    stage.now_healed()
    return times * len(users)


@fault("clients that come and go")
async def come_and_go(stage: Stage) -> int:
    """A third of all clients is reset at random moments, and reconnects."""
    times = 15 * stage.scale.repeats
    for _ in range(times):
        for client in stage.rng.sample(stage.clients, len(stage.clients) // 3):
            client.drop()
        await stage.sleep_some(0.05, 0.4)
    stage.now_healed()
    return times


@fault("2,000 reconnects at once")
async def storm(stage: Stage) -> int:
    """2,000 more clients are reset at once and reconnect at once, under load."""
    crowd = [stage.new_client(f"crowd{i}", Manner.READS) for i in range(STORM)]
    for client in crowd:
        client.start()
    await stage.connected(crowd)
    for client in crowd:
        client.drop()
    stage.now_healed()
    await asyncio.sleep(0.05)
    await stage.connected(crowd)
    await stage.publish_now([stage.requests[0].to(c.user) for c in crowd[:200]])
    return STORM


@fault("the same id a hundred times")
async def same_id(stage: Stage) -> int:
    """Requests that are published a hundred times each, in random order, some after they have ended."""
    users = [f"u{i}" for i in range(stage.scale.users)]
    envelopes = [stage.requests[0].to(stage.rng.choice(users)) for _ in range(10)]
    envelopes += [stage.requests[0].to(*stage.rng.sample(users, 3)) for _ in range(5)]
    copies = envelopes * COPIES
    stage.rng.shuffle(copies)
    await stage.publish_now(copies)
    stage.now_healed()
    return len(envelopes)
