"""Faults of several nodes that take, each its share of the partitions of the requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.chaos.bridges import Bridge, BridgeFailed
from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_nodes import several
from benchmarks.chaos.faults_process import KILLING_PACE
from benchmarks.chaos.stage import QUORUM_SETTLES, Stage

PARTITIONS = 4
SHARED_TIMEOUT = 60.0
"""Seconds in which the partitions must be shared evenly: longer than the broker needs to find a connection dead."""


async def shared(bridges: Sequence[Bridge]) -> None:
    """Wait until these take all partitions, each by one of them and evenly. Raises BridgeFailed."""
    deadline = time.monotonic() + SHARED_TIMEOUT
    while True:
        taken = [await bridge.metrics("bridge_partition_taken") or {} for bridge in bridges]
        once = len({label for labels in taken for label in labels}) == sum(map(len, taken)) == PARTITIONS
        shares = [len(labels) for labels in taken]
        if once and max(shares) - min(shares) <= 1:
            return
        if time.monotonic() > deadline:
            raise BridgeFailed(f"the partitions are not shared: {[sorted(labels) for labels in taken]}")
        await asyncio.sleep(0.1)


@fault("partitions: nodes join and leave", settings={"partitions": PARTITIONS})
async def joined(stage: Stage) -> int:
    """Two more nodes start and stop in order, and take and give partitions; all clients stay at the first node, where
    the order of every user is kept."""
    times = 2 * stage.scale.repeats
    # A push that is stored while its user is away may come after a newer one where a session opens in that moment.
    stage.evidence.reopened = False
    first = stage.bridge
    await shared([first])
    others: list[Bridge] = []
    for number in range(times):
        if number < 2:
            others.append(await stage.start_bridge(f"n{number + 2}"))
        else:
            joins = others[number % 2]
            await joins.start()
            await joins.ready()
        await shared([first, *[bridge for bridge in others if bridge.alive]])
        await stage.sleep_some(0.0, 3.0)
        if number:
            await others[(number + 1) % 2].stop()
            await stage.sleep_some(0.0, 3.0)
    for bridge in others:
        if not bridge.alive:
            await bridge.start()
            await bridge.ready()
    stage.now_healed()
    await shared(stage.bridges)
    return times


@fault("partitions: kill -9 at random among three", settings={"partitions": PARTITIONS})
async def killed(stage: Stage) -> int:
    """Any one, or two at the same time, of three nodes are killed at random moments, and start again a little later."""
    times = 2 * stage.scale.repeats
    stage.pace = KILLING_PACE
    async with several(stage, 3) as nodes:
        await shared(nodes.all)
        for number in range(times):
            await stage.sleep_some(0.0, 2.0)
            hit = stage.rng.sample(nodes.all, stage.rng.choice([1, 1, 2]))
            await nodes.kill(*hit)
            await stage.sleep_some(*((0.0, 2.0) if number % 3 else (6.0, 9.0)))
            await nodes.start(*hit)
        await shared(nodes.all)
        stage.pace = 1.0
    return times


@fault("partitions: one of two is frozen", settings={"partitions": PARTITIONS})
async def frozen(stage: Stage) -> int:
    """A node is stopped by SIGSTOP, until the broker has given its partitions to the other, and less."""
    seconds = (6.0, 40.0)
    async with several(stage, 2) as nodes:
        for number, each in enumerate(seconds):
            await shared(nodes.all)
            hit = nodes.all[number % 2]
            await nodes.freeze(hit, each)
            await hit.ready()
            await stage.load(10)
        await shared(nodes.all)
        stage.come_back_at_last = list(stage.clients)
    return len(seconds)


@fault("partitions: broker restarted under two", settings={"partitions": PARTITIONS})
async def broker_restarted(stage: Stage) -> int:
    """The broker is stopped in order, or killed, and started again; the partitions are shared anew."""
    async with several(stage, 2) as nodes:
        for number in range(2):
            await shared(nodes.all)
            server = stage.servers.rabbit
            await asyncio.to_thread(server.kill if number else server.stop)
            await stage.sleep_some(0.5, 3)
            await asyncio.to_thread(server.start)
            stage.now_healed()
            for bridge in nodes.all:
                await bridge.ready()
            await stage.sleep_some(QUORUM_SETTLES + 1, QUORUM_SETTLES + 4)
        await shared(nodes.all)
    return 2
