"""Faults of Postgres, and of the way to it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psycopg

from benchmarks.chaos.commits import CommitCutter, Cut
from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

BUSY = "all connections are busy"
"""The cause that the bridge gives when all its own connections are in use."""


@fault("Postgres stopped fast")
async def stopped_fast(stage: Stage) -> int:
    """Sessions of the database are ended with an error, and it is down for some seconds."""
    for _ in range(2):
        await asyncio.to_thread(stage.servers.postgres.stop, "fast")
        await stage.sleep_some(1, 5)
        await asyncio.to_thread(stage.servers.postgres.start)
        stage.now_healed()
        await stage.bridge.ready()
        await stage.load(1)
    return 2


@fault("Postgres stopped immediately")
async def stopped_immediately(stage: Stage) -> int:
    """It stops without a checkpoint and restarts through recovery."""
    for _ in range(3):
        await asyncio.to_thread(stage.servers.postgres.stop, "immediate")
        await stage.sleep_some(0, 2)
        await asyncio.to_thread(stage.servers.postgres.start)
        stage.now_healed()
        await stage.bridge.ready()
        await stage.load(1)
    return 3


@fault("Postgres frozen for 15 s")
async def frozen(stage: Stage) -> int:
    """Its processes are stopped: connections stay open and nothing answers."""
    await asyncio.to_thread(stage.servers.postgres.pause)
    try:
        await asyncio.sleep(15)
    finally:
        await asyncio.to_thread(stage.servers.postgres.resume)
    stage.now_healed()
    return 1


@fault("Postgres half-open", proxied=["postgres"])
async def half_open(stage: Stage) -> int:
    """The bridge's connections to the database fall silent and stay open; new ones work."""
    for _ in range(2):
        stage.postgres.silence()
        stage.now_healed()
        await asyncio.sleep(10)
        await stage.bridge.ready()
    return 2


@fault("Postgres reset", proxied=["postgres"])
async def reset(stage: Stage) -> int:
    """The connections to the database are reset at random moments."""
    times = 4 * stage.scale.repeats
    for _ in range(times):
        await stage.sleep_some(0.05, 0.6)
        stage.postgres.reset()
    stage.now_healed()
    await stage.bridge.ready()
    return times


@fault("Postgres cut after n bytes", proxied=["postgres"])
async def cut(stage: Stage) -> int:
    """The connections to the database end in the middle of a statement or of its answer."""
    for _ in range(20):
        stage.postgres.cut_after(stage.rng.randint(1, 30_000))
        await stage.sleep_some(0.2, 0.8)
        stage.postgres.heal()
    stage.now_healed()
    await stage.bridge.ready()
    return 20


@fault("cut during COMMIT", proxied=["postgres"], short=True)
async def cut_at_commit(stage: Stage) -> int:
    """The connection ends during a write: before it, in the middle, or before its answer arrives."""
    cutter = CommitCutter()
    stage.postgres.look = cutter.look
    # It must see each connection from its beginning, where the statement gets its name.
    stage.postgres.reset()
    times = 0
    for _ in range(2 * stage.scale.repeats):
        for how in Cut:
            await stage.sleep_some(0.05, 0.4)
            cutter.arm(how)
            async with asyncio.timeout(60):
                await cutter.done.wait()
            times += 1
            await stage.bridge.ready()
    stage.postgres.heal()
    stage.now_healed()
    return times


@fault("Postgres late and slow", proxied=["postgres"])
async def slow(stage: Stage) -> int:
    """Each chunk to and from the database is 200 ms late; then the connection carries 100 kB/s."""
    stage.postgres.latency = 0.2
    await stage.load(6)
    stage.postgres.heal()
    stage.postgres.bytes_per_second = 100_000
    await stage.load(6)
    stage.postgres.heal()
    stage.now_healed()
    return 2


@fault("lock wait: the log is locked for 12 s")
async def lock_wait(stage: Stage) -> int:
    """A transaction holds the table in ACCESS EXCLUSIVE mode for longer than any time limit of the bridge."""
    async with await psycopg.AsyncConnection.connect(stage.dsn) as locker:
        await locker.execute("lock table delivery_log in access exclusive mode")
        await stage.load(12)
        await locker.rollback()
    stage.now_healed()
    return 1


@fault("rows locked by somebody else")
async def rows_locked(stage: Stage) -> int:
    """A transaction locks every row that is not final, again and again."""
    times = 2 * stage.scale.repeats
    for _ in range(times):
        async with await psycopg.AsyncConnection.connect(stage.dsn) as locker:
            await locker.execute("select 1 from delivery_log where not final for update")
            await stage.load(2.5)
            await locker.rollback()
        await stage.load(0.3)
    stage.now_healed()
    return times


@fault("connections exhausted")
async def exhausted(stage: Stage) -> int:
    """Others hold every connection that the server allows, and the bridge's own are closed."""
    async with all_connections(stage):
        await stage.load(8)
    stage.now_healed()
    return 1


@asynccontextmanager
async def all_connections(stage: Stage) -> AsyncIterator[None]:
    """Hold every connection that the server allows, those of the bridge as well."""
    async with AsyncExitStack() as stack:

        async def take() -> psycopg.AsyncConnection | None:
            try:
                opened = await psycopg.AsyncConnection.connect(stage.dsn, autocommit=True)
            except psycopg.OperationalError:
                return None
            return await stack.enter_async_context(opened)

        held = await take()
        while (more := await take()) is not None:
            held = more
        if held is not None:
            await held.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'bridge %'"
            )
        # A connection that becomes free is taken as well, by whichever side is first.
        for _ in range(8):
            if await take() is None:
                break
        yield


@fault("the bridge's pool exhausted", proxied=["postgres"])
async def pool_exhausted(stage: Stage) -> int:
    """It has one connection, each answer is late, and callers that wait too long for the connection get none."""
    await stage.bridge.stop()
    stage.bridge.pool = 1
    await stage.bridge.start()
    await stage.bridge.ready()
    stage.postgres.latency = 1.2
    times = 0
    for _ in range(50):
        await stage.load(0.2)
        times += BUSY in (await stage.bridge.status())[1]
    stage.postgres.heal()
    stage.now_healed()
    if not times:
        stage.evidence.troubles.append("no caller failed to get a connection: the fault was not made")
    return 1


@fault("statements cancelled by an administrator")
async def cancelled(stage: Stage) -> int:
    """pg_cancel_backend and pg_terminate_backend on the bridge's connections, at random."""
    times = 10 * stage.scale.repeats
    for _ in range(times):
        what = stage.rng.choice(["pg_cancel_backend", "pg_terminate_backend"])
        await stage.execute(
            f"select {what}(pid) from pg_stat_activity where application_name like 'bridge %'"
            " and datname = current_database()"
        )
        await stage.sleep_some(0.0, 0.2)
    stage.now_healed()
    return times


@fault("disk full for WAL")
async def disk_full(stage: Stage) -> int:
    """The write-ahead log is on a small tmpfs that fills up: Postgres panics and can't restart for a while."""
    async with wal_on_a_small_disk(stage) as disk:
        await stage.bridge.ready()
        await stage.load(1)
        await fill_up(stage, disk)
        stage.now_healed()
        await stage.bridge.ready()
        await stage.load(1)
    return 1


@asynccontextmanager
async def wal_on_a_small_disk(stage: Stage) -> AsyncIterator[Path]:
    """Postgres keeps its write-ahead log on a tmpfs for the length of the block. Raises NotPossible."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        raise NotPossible("needs root and mount")
    ((data,),) = await stage.execute("show data_directory")
    wal = Path(str(data)) / "pg_wal"
    disk = Path(str(data)).parent / "chaos-wal"
    postgres = stage.servers.postgres
    disk.mkdir(exist_ok=True)
    if not await _done("mount", "-t", "tmpfs", "-o", "size=300m,mode=0700", "chaos-wal", disk):
        raise NotPossible("a tmpfs can't be mounted here")
    try:
        await asyncio.to_thread(postgres.stop, "fast")
        owner = wal.stat()
        os.chown(disk, owner.st_uid, owner.st_gid)
        await _must("cp", "-a", f"{wal}/.", disk)
        kept = wal.rename(wal.with_name("pg_wal.kept"))
        wal.symlink_to(disk)
        try:
            await asyncio.to_thread(postgres.start)
            yield disk
        finally:
            await asyncio.to_thread(postgres.stop, "fast")
            wal.unlink()
            shutil.rmtree(kept)
            wal.mkdir(mode=0o700)
            await _must("cp", "-a", f"{disk}/.", wal)
            os.chown(wal, owner.st_uid, owner.st_gid)
            await asyncio.to_thread(postgres.start)
    finally:
        await _must("umount", disk)
        disk.rmdir()


async def fill_up(stage: Stage, disk: Path) -> None:
    """Fill the disk of the write-ahead log for some seconds, and start Postgres again."""
    ballast = disk / "ballast"
    try:
        _fill(ballast)
        await _switch_wal(stage)
        await stage.load(4)
    finally:
        # It has panicked by now; while there is no space it may not start at all.
        ballast.unlink()
    await asyncio.to_thread(stage.servers.postgres.stop, "immediate")
    await asyncio.to_thread(stage.servers.postgres.start)


async def _done(*command: str | Path) -> bool:
    """Run a command; whether it succeeded."""
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait() == 0


async def _must(*command: str | Path) -> None:
    if not await _done(*command):
        raise RuntimeError(f"failed: {' '.join(map(str, command))}")


def _fill(ballast: Path) -> None:
    """Fill all the space that is left."""
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                continue


async def _switch_wal(stage: Stage) -> None:
    """Make Postgres start a new segment, for which there is no space."""
    for _ in range(20):
        try:
            await stage.execute("select pg_switch_wal()")
        except psycopg.Error:
            return
        await asyncio.sleep(0.1)
