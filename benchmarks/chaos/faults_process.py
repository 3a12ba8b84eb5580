"""Faults of the bridge's own process: killed, stopped, or just under load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.chaos.broker import GONE, Envelope, channel
from benchmarks.chaos.clients import Manner
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

KILLS = 10
"""Random kills in the short run's unit; the full run makes five times as many."""
KILLING_PACE = 0.4
"""The load while it is killed over and over: a message that comes for the fifth time is handled alone, and at the
full rate that would be almost all of them."""


DEADLY = "deadly"
"""The user whose pushes kill the bridge."""
DEADLY_SECONDS = 180.0
"""Seconds after which the push must have been given up."""


@fault("no fault")
async def nothing(stage: Stage) -> int:
    """The load alone."""
    await stage.load(3)
    return 1


@fault("kill -9 at random times", short=True)
async def kills(stage: Stage) -> int:
    """SIGKILL at a random moment, start again, over and over."""
    times = KILLS * stage.scale.repeats if stage.scale.repeats > 1 else 3
    stage.pace = KILLING_PACE
    for _ in range(times):
        await stage.sleep_some(0.0, 2.0)
        await stage.bridge.kill()
        await stage.bridge.start()
        stage.now_healed()
        await stage.bridge.ready()
    stage.pace = 1.0
    return times


@fault("a push that kills the bridge")
async def deadly(stage: Stage) -> int:
    """The bridge dies whenever it handles one push, and is started again, until it gives that one up."""
    envelope = stage.requests[0].to(DEADLY)
    stage.evidence.deadly.update(request.mark for request in envelope.requests)
    stage.bridge.killer = DEADLY
    stage.pace = KILLING_PACE
    await stage.bridge.kill()
    await stage.bridge.start()
    await stage.publish_now([envelope])
    times = 0
    try:
        async with asyncio.timeout(DEADLY_SECONDS):
            while not await _given_up(stage):
                if not stage.bridge.alive:
                    times += 1
                    await stage.bridge.exited()
                    await stage.bridge.start()
                await asyncio.sleep(0.1)
    except TimeoutError:
        stage.evidence.troubles.append(f"not given up after {times} deaths and {DEADLY_SECONDS:g} s")
    stage.now_healed()
    stage.pace = 1.0
    return times


async def _given_up(stage: Stage) -> bool:
    return bool(await stage.execute("select outcome from delivery where user_id = %s and final", DEADLY))


async def killed_at(stage: Stage, points: Sequence[str], most: int = 15) -> int:
    """Die at each of these points, one of the first `most` times that it is passed; returns how often it happened."""
    times = 0
    stage.pace = KILLING_PACE
    for _ in range(1 if stage.scale.repeats == 1 else 2):
        for point in points:
            await stage.bridge.kill()
            await stage.bridge.start(point=point, count=stage.rng.randint(1, most))
            times += await stage.dies()
            await stage.starts_again()
    stage.pace = 1.0
    return times


@fault("kill -9 before and after a send", short=True)
async def at_send(stage: Stage) -> int:
    """Die before frames are handed to a socket, or just after."""
    return await killed_at(stage, ["before send", "after send"])


@fault("kill -9 before and after a commit", short=True)
async def at_commit(stage: Stage) -> int:
    """Die before rows are written, or after they are committed, before anything else."""
    return await killed_at(stage, ["before commit", "after commit"])


@fault("kill -9 before and after an ack")
async def at_ack(stage: Stage) -> int:
    """Die when only the ack is left to do, or when it has just been written to the broker's socket."""
    return await killed_at(stage, ["before ack", "after ack"])


@fault("kill -9 before and after a receipt")
async def at_receipt(stage: Stage) -> int:
    """Die before receipts are published, or when they are confirmed."""
    return await killed_at(stage, ["before receipt", "after receipt"])


@fault("kill -9 before and after a burial")
async def at_burial(stage: Stage) -> int:
    """Die before a dead letter is published, or when it is confirmed."""
    return await killed_at(stage, ["before burial", "after burial"])


@fault("kill -9 before a debt is noted")
async def at_debt_noted(stage: Stage) -> int:
    """Die while the broker blocks publishers, when a row should have noted that it owes its receipt."""
    times = 0
    for _ in range(3):
        await stage.bridge.kill()
        await stage.bridge.start(point="before debt is noted")
        if await stage.bridge.ready(or_dead=True):
            await stage.block_publishers()
            try:
                times += await stage.dies()
            finally:
                await stage.unblock_publishers()
        else:
            # A push that came twice owes a receipt, too.
            times += 1
        await stage.starts_again()
    return times


@fault("kill -9 before a debt is cleared")
async def at_debt_cleared(stage: Stage) -> int:
    """Die when a receipt that a row owed is confirmed, and the row still says that it owes it."""
    slow = await stage.add_client("slow", Manner.READS)
    feeding = asyncio.create_task(_parked_repeats(stage, slow.user), name="parked repeats")
    try:
        return await killed_at(stage, ["before debt is cleared"])
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _parked_repeats(stage: Stage, user: str) -> None:
    """Pushes that wait for an ack that never comes, each published twice, both asking for a receipt."""
    number = 0
    while True:
        try:
            async with channel(stage.url) as c:
                exchange = await c.get_exchange("push", ensure=False)

                async def publish(envelope: Envelope) -> None:
                    envelope.requests[0].publishing()
                    if await exchange.publish(envelope.message(), "chaos", timeout=10):  # noqa: B023
                        envelope.requests[0].confirmed_now()
                        envelope.requests[0].replies.add(envelope.correlation_id)

                while True:
                    number += 1
                    envelope = stage.requests[0].to(user, confirm="acked")
                    envelope.reply_to = True
                    for time in (1, 2):
                        envelope.correlation_id = f"debt-{number}-{time}"
                        await publish(envelope)
                        await asyncio.sleep(1.5 if time == 1 else 0.1)
        except GONE:
            await asyncio.sleep(0.3)


@fault("kill -9 when rows of a dead boot have ended")
async def at_sweep(stage: Stage) -> int:
    """Die after the sweep has ended what an earlier boot left, before any receipt of it is sent."""
    return await killed_at(stage, ["after dead rows end"])


@fault("SIGTERM under load")
async def sigterm(stage: Stage) -> int:
    """Stop in order and start again: it must exit with 0 and return the messages that it has not settled."""
    times = 2 * stage.scale.repeats
    for _ in range(times):
        await stage.sleep_some(0.3, 1.5)
        code = await stage.bridge.stop()
        if code != 0:
            stage.evidence.troubles.append(f"exited with {code} at SIGTERM; see {stage.bridge.log}")
        await stage.bridge.start()
        stage.now_healed()
        await stage.bridge.ready()
    return times
