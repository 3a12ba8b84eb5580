"""Faults of time: clocks that step, and midnight."""

from __future__ import annotations

import asyncio

from psycopg import errors

from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

STEPS = (3600.0, -3600.0, 86_400.0 * 2, 0.0, -30.0, 90.0, 0.0)
"""Seconds by which the bridge's clock is off, one after the other: too few to expire pushes that are kept for days."""


@fault("clock steps")
async def clock_steps(stage: Stage) -> int:
    """The bridge's wall clock jumps by hours and back (its injected clock: never the machine's)."""
    stage.bridge.clock = stage.logs / "clock"
    stage.bridge.clock.write_text("0")
    await stage.bridge.stop()
    await stage.bridge.start()
    await stage.bridge.ready()
    for offset in STEPS:
        await stage.bridge.step_clock(offset)
        await stage.load(1.0 if stage.scale.repeats > 1 else 0.4)
    stage.now_healed()
    return len(STEPS)


@fault("midnight")
async def midnight(stage: Stage) -> int:
    """The log's day changes under load, while pushes are repeated that ended the day before."""
    users = [f"u{i}" for i in range(stage.scale.users)]
    known = [stage.requests[0].to(stage.rng.choice(users), confirm="acked") for _ in range(50)]
    await stage.publish_now(known)
    await stage.load(0.5)
    await roll_day(stage)
    await stage.publish_now(known)
    await stage.load(1)
    await stage.publish_now(known)
    stage.now_healed()
    return 1


async def roll_day(stage: Stage) -> None:
    """The work of midnight; it gives up when writers block it for a second, and is called again."""
    while True:
        try:
            await stage.execute("select roll_day(log_today() + 1)")
        except errors.LockNotAvailable:
            await asyncio.sleep(0.1)
        else:
            return
