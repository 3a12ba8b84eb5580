"""Mixed faults: two of different parts at a time, until each has been made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import psycopg

from benchmarks.chaos.broker import GONE, LONG, channel
from benchmarks.chaos.clients import Manner
from benchmarks.chaos.commits import CommitCutter, Cut
from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_clients import COPIES
from benchmarks.chaos.faults_database import all_connections, fill_up, wal_on_a_small_disk
from benchmarks.chaos.faults_time import STEPS, roll_day
from benchmarks.chaos.serve import POINTS
from benchmarks.chaos.stage import QUORUM_SETTLES, Stage

ROUNDS_OF_TWO_BRIDGES = 10
STORM = 400
"""Clients that connect at once, beside the other fault."""

Piece: TypeAlias = Callable[[Stage], Awaitable[None]]
"""A fault of a few seconds at most that does not need the other parts to work. Raises NotMade."""


class NotMade(Exception):
    """The other fault has made this one impossible: it does not count."""


# --- the bridge ---


async def _kill_bridge(stage: Stage) -> None:
    await stage.bridge.kill()
    await stage.bridge.start()


async def _kill_at_a_point(stage: Stage) -> None:
    await stage.bridge.kill()
    await stage.bridge.start(point=stage.rng.choice(sorted(POINTS)), count=stage.rng.randint(1, 5))
    await stage.sleep_some(1, 6)
    await stage.bridge.kill()
    await stage.bridge.start()


async def _stop_bridge(stage: Stage) -> None:
    await stage.bridge.stop()
    await stage.bridge.start()


async def _step_clock(stage: Stage) -> None:
    for offset in (stage.rng.choice(STEPS), 0.0):
        await stage.bridge.step_clock(offset)
        await stage.sleep_some(0.5, 1.5)


async def _dry_pool(stage: Stage) -> None:
    stage.bridge.pool = 1
    await _kill_bridge(stage)
    await stage.load(3)
    stage.bridge.pool = 0


# --- the broker ---


async def _kill_broker(stage: Stage) -> None:
    await asyncio.sleep(QUORUM_SETTLES)
    await asyncio.to_thread(stage.servers.rabbit.kill)
    await asyncio.to_thread(stage.servers.rabbit.start)


async def _restart_broker(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.rabbit.stop)
    await asyncio.to_thread(stage.servers.rabbit.start)


async def _freeze_broker(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.rabbit.pause)
    try:
        await stage.sleep_some(5, 12)
    finally:
        await asyncio.to_thread(stage.servers.rabbit.resume)


async def _memory_alarm(stage: Stage) -> None:
    await stage.block_publishers()
    try:
        await stage.sleep_some(2, 6)
    finally:
        await stage.unblock_publishers()


async def _close_connections(stage: Stage) -> None:
    await stage.ctl("close_all_connections", "--vhost", stage.name, "chaos")


async def _cancel_consumer(stage: Stage) -> None:
    try:
        async with channel(stage.url) as c:
            await c.queue_delete("push.fallen")
    except GONE as error:
        raise NotMade from error  # the other fault took the broker down


async def _reset_amqp(stage: Stage) -> None:
    stage.amqp.reset()


async def _silence_amqp(stage: Stage) -> None:
    stage.amqp.silence()


async def _cut_amqp(stage: Stage) -> None:
    stage.amqp.cut_after(stage.rng.randint(1, 20_000))
    await stage.sleep_some(0.5, 1.5)
    stage.amqp.cut_after_nothing()


async def _slow_amqp(stage: Stage) -> None:
    stage.amqp.latency = 0.15
    await stage.sleep_some(1, 3)
    stage.amqp.latency = 0.0


async def _unreachable_broker(stage: Stage) -> None:
    stage.amqp.refuse = True
    stage.amqp.reset()
    await stage.sleep_some(1, 4)
    stage.amqp.refuse = False


# --- the database ---


async def _stop_postgres_fast(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.postgres.stop, "fast")
    await stage.sleep_some(0, 3)
    await asyncio.to_thread(stage.servers.postgres.start)


async def _stop_postgres(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.postgres.stop, "immediate")
    await asyncio.to_thread(stage.servers.postgres.start)


async def _freeze_postgres(stage: Stage) -> None:
    await asyncio.to_thread(stage.servers.postgres.pause)
    try:
        await stage.sleep_some(3, 9)
    finally:
        await asyncio.to_thread(stage.servers.postgres.resume)


async def _reset_postgres(stage: Stage) -> None:
    for _ in range(5):
        stage.postgres.reset()
        await stage.sleep_some(0.0, 0.3)


async def _silence_postgres(stage: Stage) -> None:
    stage.postgres.silence()


async def _cut_postgres(stage: Stage) -> None:
    stage.postgres.cut_after(stage.rng.randint(1, 30_000))
    await stage.sleep_some(0.2, 0.8)
    stage.postgres.cut_after_nothing()


async def _cut_at_commit(stage: Stage) -> None:
    cutter = CommitCutter()
    stage.postgres.look = cutter.look
    stage.postgres.reset()
    made = 0
    for how in Cut:
        cutter.arm(how)
        try:
            async with asyncio.timeout(3):
                await cutter.done.wait()
        except TimeoutError:
            continue  # nothing is written at the moment
        made += 1
    stage.postgres.look = None
    if not made:
        raise NotMade


async def _slow_postgres(stage: Stage) -> None:
    stage.postgres.latency = 0.2
    await stage.sleep_some(1, 4)
    stage.postgres.latency = 0.0


async def _lock_rows(stage: Stage) -> None:
    await _locked(stage, "select 1 from delivery_log where not final for update")


async def _lock_log(stage: Stage) -> None:
    await _locked(stage, "lock table delivery_log in access exclusive mode")


async def _locked(stage: Stage, how: str) -> None:
    try:
        async with await psycopg.AsyncConnection.connect(stage.dsn) as locker:
            await locker.execute(how.encode())
            await stage.sleep_some(1, 5)
            await locker.rollback()
    except psycopg.Error as error:
        raise NotMade from error  # the other fault took the database down


async def _exhaust_connections(stage: Stage) -> None:
    try:
        async with all_connections(stage):
            await stage.sleep_some(1, 4)
    except psycopg.Error as error:
        raise NotMade from error  # as above


async def _cancel_statements(stage: Stage) -> None:
    try:
        for _ in range(10):
            await stage.execute(
                "select pg_cancel_backend(pid) from pg_stat_activity where application_name like 'bridge %'"
                " and datname = current_database()"
            )
            await stage.sleep_some(0.0, 0.2)
    except psycopg.Error as error:
        raise NotMade from error  # as above


async def _fill_disk(stage: Stage) -> None:
    try:
        async with wal_on_a_small_disk(stage) as disk:
            await fill_up(stage, disk)
    except NotPossible as error:
        raise NotMade from error  # the table has it in the line of that fault


async def _midnight(stage: Stage) -> None:
    await roll_day(stage)


# --- the clients and the publishers ---


async def _drop_clients(stage: Stage) -> None:
    for client in stage.rng.sample(stage.clients, len(stage.clients) // 2):
        client.drop()


async def _never_read(stage: Stage) -> None:
    users = [f"frozen{i}" for i in range(3)]
    for user in users:
        stage.new_client(user, Manner.NEVER_READS).start()
    makes = stage.requests[0]
    stage.publishers[0].also([makes.to(u, padding=60_000) for u in users for _ in range(50)])
    await stage.load(1)


async def _vanish(stage: Stage) -> None:
    gone = [stage.new_client(f"behind{i}", Manner.READS, lambda: stage.websocket.port) for i in range(4)]
    for client in gone:
        client.start()
    await stage.load(1)
    stage.websocket.silence()
    stage.publishers[0].also([stage.requests[0].to(c.user, confirm="acked") for c in gone for _ in range(5)])
    await stage.sleep_some(2, 6)
    for client in gone:
        client.drop()


async def _reset_before_pong(stage: Stage) -> None:
    users = [f"flaky{i}" for i in range(4)]
    for user in users:
        stage.new_client(user, Manner.RESETS).start()
    for _ in range(5):
        stage.publishers[0].also([stage.requests[0].to(u) for u in users])
        await stage.sleep_some(0.1, 0.4)


async def _storm(stage: Stage) -> None:
    crowd = [stage.new_client(f"crowd{i}", Manner.READS) for i in range(STORM)]
    for client in crowd:
        client.start()
    await stage.load(2)
    for client in crowd:
        client.drop()


async def _same_id(stage: Stage) -> None:
    users = [f"u{i}" for i in range(stage.scale.users)]
    copies = [stage.requests[0].to(stage.rng.choice(users)) for _ in range(5)] * COPIES
    stage.rng.shuffle(copies)
    stage.publishers[1].also(copies)


async def _all_away(stage: Stage) -> None:
    for client in stage.clients:
        client.go_away()
    await stage.sleep_some(1, 3)
    for client in stage.clients:
        client.come_back()


async def _arrive(stage: Stage) -> None:
    for _ in range(20):
        chosen = stage.rng.sample(stage.clients, 5)
        for client in chosen:
            client.drop()
        stage.publishers[0].also([stage.requests[0].to(c.user, ttl=LONG) for c in chosen for _ in range(3)])
        await stage.sleep_some(0.0, 0.15)


async def _expire(stage: Stage) -> None:
    for requests in stage.requests:
        requests.expiration = 0.5
    await stage.sleep_some(1, 3)
    for requests in stage.requests:
        requests.expiration = None


PARTS: Mapping[str, tuple[Piece, ...]] = {
    "bridge": (
        *(_kill_bridge, _kill_bridge, _kill_bridge, _stop_bridge, _stop_bridge),
        *(_kill_at_a_point, _kill_at_a_point, _kill_at_a_point, _step_clock, _dry_pool),
    ),
    "broker": (
        *(_kill_broker, _restart_broker, _freeze_broker, _memory_alarm, _close_connections),
        *(_cancel_consumer, _reset_amqp, _reset_amqp, _silence_amqp, _cut_amqp, _slow_amqp),
        _unreachable_broker,
    ),
    "database": (
        *(_stop_postgres_fast, _stop_postgres, _freeze_postgres, _reset_postgres, _silence_postgres),
        *(_cut_postgres, _cut_at_commit, _slow_postgres, _lock_rows, _lock_log, _exhaust_connections),
        *(_cancel_statements, _fill_disk, _midnight),
    ),
    "clients": (
        *(_drop_clients, _drop_clients, _never_read, _vanish, _reset_before_pong, _storm, _same_id),
        *(_all_away, _arrive, _expire),
    ),
}
"""Each is made once. Midnight comes once in any run: ids are known for a day, and not for two."""


def dealt(stage: Stage) -> list[list[Piece]]:
    """Pairs of different parts, in an order set by the seed, until no two parts are left."""
    left = {part: stage.rng.sample(pieces, len(pieces)) for part, pieces in PARTS.items()}
    rounds = []
    while sum(bool(pieces) for pieces in left.values()) > 1:
        # Parts with the most faults left are more likely, so that few are left over.
        first = stage.rng.choices(list(left), [len(p) for p in left.values()])[0]
        rest = {part: pieces for part, pieces in left.items() if part != first}
        second = stage.rng.choices(list(rest), [len(p) ** 2 for p in rest.values()])[0]
        rounds.append([left[first].pop(), left[second].pop()])
    return rounds + [[piece] for pieces in left.values() for piece in pieces]


@fault("mixed: two of these at a time", proxied=["amqp", "postgres"])
async def mixed(stage: Stage) -> int:
    """Faults of two parts at the same time, chosen by the seed; the bridge may or may not recover between them."""
    stage.bridge.clock = stage.logs / "clock"
    stage.bridge.clock.write_text("0")
    await _kill_bridge(stage)
    made = 0
    for pieces in dealt(stage):
        made += sum(await asyncio.gather(*[_made(stage, piece) for piece in pieces]))
        if stage.rng.random() < 0.5:
            await stage.bridge.ready()
        await stage.sleep_some(0.0, 1.5)
    stage.amqp.heal()
    stage.postgres.heal()
    stage.now_healed()
    await stage.bridge.ready()
    return made


async def _made(stage: Stage, piece: Piece) -> bool:
    try:
        await piece(stage)
    except NotMade:
        return False
    return True


@fault("mixed: two bridges at one queue", proxied=["amqp", "postgres"])
async def two_bridges(stage: Stage) -> int:
    """A second bridge stands by; the queue passes from one to the other as they die, stop, or fall silent."""
    # Sessions of one bridge get what the other takes only when they reconnect.
    stage.evidence.ordered = False
    stage.amqp_proxied = stage.postgres_proxied = False
    first, second = stage.bridge, await stage.start_bridge("n2")
    for i in range(0, stage.scale.users, 3):
        await stage.add_client(f"u{i}", Manner.READS, lambda: second.ws_port)
    stage.come_back_at_last = list(stage.clients)
    made = 0
    for _ in range(ROUNDS_OF_TWO_BRIDGES):
        match stage.rng.choice(["kill", "kill", "stop", "silence", "cancelled", "database"]):
            case "kill":
                bridge = stage.rng.choice([first, second])
                await bridge.kill()
                await stage.sleep_some(0, 2)
                await bridge.start()
            case "stop":
                bridge = stage.rng.choice([first, second])
                await bridge.stop()
                await bridge.start()
            case "silence":
                stage.amqp.silence()
                stage.amqp.refuse = True
                await stage.load(12)
                stage.amqp.heal()
            case "cancelled":
                made -= not await _made(stage, _cancel_consumer)
            case "database":
                await _reset_postgres(stage)
        made += 1
        await stage.sleep_some(0.5, 3)
    stage.now_healed()
    for bridge in (first, second):
        await bridge.ready()
    # The broker notices a silent connection after three heartbeats; its messages come back then.
    await stage.load(20)
    return made
