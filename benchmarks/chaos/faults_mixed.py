"""Everything at once: two faults of different parts at a time, over and over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import psycopg

from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import QUORUM_SETTLES, Stage

ROUNDS = 24


async def _kill_bridge(stage: Stage) -> None:
    await stage.bridge.kill()
    await stage.bridge.start()


async def _stop_bridge(stage: Stage) -> None:
    await stage.bridge.stop()
    await stage.bridge.start()


async def _kill_broker(stage: Stage) -> None:
    await asyncio.sleep(QUORUM_SETTLES)
    await asyncio.to_thread(stage.servers.rabbit.kill)
    await asyncio.to_thread(stage.servers.rabbit.start)


async def _reset_amqp(stage: Stage) -> None:
    stage.amqp.reset()


async def _silence_amqp(stage: Stage) -> None:
    stage.amqp.silence()


async def _stop_postgres(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.postgres.stop, "immediate")
    await asyncio.to_thread(stage.servers.postgres.start)


async def _reset_postgres(stage: Stage) -> None:
    for _ in range(5):
        stage.postgres.reset()
        await stage.sleep_some(0.0, 0.3)


async def _lock_rows(stage: Stage) -> None:
    try:
        async with await psycopg.AsyncConnection.connect(stage.dsn) as locker:
            await locker.execute("select 1 from delivery_log where not final for update")
            await stage.load(2)
            await locker.rollback()
    except psycopg.Error:
        return  # the database was taken away under it


async def _drop_clients(stage: Stage) -> None:
    for client in stage.rng.sample(stage.clients, len(stage.clients) // 2):
        client.drop()


PARTS: Mapping[str, tuple[Callable[[Stage], Awaitable[None]], ...]] = {
    "bridge": (_kill_bridge, _kill_bridge, _stop_bridge),
    "broker": (_kill_broker, _reset_amqp, _reset_amqp, _silence_amqp),
    "database": (_stop_postgres, _reset_postgres, _lock_rows),
    "clients": (_drop_clients,),
}


@fault("mixed: two of these at a time", proxied=["amqp", "postgres"])
async def mixed(stage: Stage) -> int:
    """Faults of two parts at the same time, drawn by the seed; between rounds it may or may not recover."""
    for _ in range(ROUNDS):
        chosen = [stage.rng.choice(PARTS[part]) for part in stage.rng.sample(sorted(PARTS), 2)]
        await asyncio.gather(*[act(stage) for act in chosen])
        if stage.rng.random() < 0.5:
            await stage.bridge.ready()
        await stage.sleep_some(0.0, 1.5)
    stage.now_healed()
    await stage.bridge.ready()
    return ROUNDS * 2
