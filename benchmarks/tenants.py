"""A tenant that publishes 100,000 pushes, and a small one beside it: `python -m benchmarks.tenants`.

One node with its default limits. The small tenant publishes ten pushes a second to ten users, confirmed as received;
first alone, then while the large one's pushes, published at full speed, are on their way. How old were the pushes of
the small one when their clients had read them, and how old when their outcome came back? A message beside each, through
an empty queue that no bridge reads, says how much of that is the broker's and the machine's. And how many pushes a
second does one tenant get that is alone? With `BRIDGE_TENANT_SHARE=off` and with `fair`, in turns, each started anew.
Exit codes: 0 measured, and no push was lost; 1 one was; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import aio_pika
import msgspec

from benchmarks import load
from benchmarks.guard import ROOT
from benchmarks.processes import (
    BenchmarkFailed,
    Child,
    raise_file_limit,
    resident_bytes,
    running,
    wait_until,
)
from benchmarks.scene import RECEIVED, START_TIMEOUT, Scene, percentiles, scene
from bridge.adapters.amqp.topology import OUTCOMES, PUSH
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "tenants"
MODES: Final = ("off", "fair")
LARGE_USERS: Final = 400
SMALL_USERS: Final = 10
RATE: Final = 10.0
"""Pushes of the small tenant a second."""
ALONE: Final = 30.0
"""Seconds for which it is alone."""
WARM_UP: Final = 5_000
LONE: Final = 30_000
"""Pushes of one tenant alone, whose rate counts."""
WITHIN: Final = 300.0
"""Seconds that the large tenant's pushes may take."""
LEAST: Final = 10
"""Pushes of the small tenant beside the large one, at least."""
SMALL: Final = "small"
ECHO: Final = "benchmark.echo"
"""A queue of the same type as that of requests."""


class Ages(NamedTuple):
    """How old the small tenant's pushes were, in ns."""

    read: Sequence[int]
    """When their clients had read them."""
    told: Sequence[int]
    """When their outcomes had come."""
    echoes: Sequence[int]
    """And messages through a queue of their own, when they had come."""


class Turn(NamedTuple):
    """What one bridge did."""

    alone: Ages
    beside: Ages
    rate: float
    """Pushes a second of one tenant alone."""
    seconds: float
    """How long the large tenant's pushes took."""
    peak: int
    """Bytes of memory that the bridge had at most while they were on their way, besides what it had before."""
    lost: int


class SmallTenant:
    """Publishes at a rate, and listens to its outcomes and to its echoes."""

    def __init__(self, exchange: aio_pika.abc.AbstractExchange, home: aio_pika.abc.AbstractExchange) -> None:
        """`home` is the default exchange: it leads to each queue by its name."""
        self._exchange = exchange
        self._home = home
        self._echoes: list[int] = []
        self._made: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._heard = asyncio.Event()

    async def hear(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """An outcome has come."""
        push_id = msgspec.json.decode(message.body)["push_id"]
        self._told.setdefault(push_id, time.monotonic_ns())
        self._heard.set()

    async def hear_echo(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """A message has come back."""
        await message.ack()
        self._echoes.append(time.monotonic_ns() - int(message.body))
        self._heard.set()

    async def publish(self, run: str, crowd: Child, until: asyncio.Event | asyncio.Task[None]) -> Ages:
        """Publish until this is done, and at least a few; returns how old they became."""
        crowd.ask("watch", users=0, most=1_000_000)
        ids: list[str] = []
        self._echoes = []
        began = time.monotonic()
        while len(ids) < LEAST or not _over(until):
            number, user = len(ids), LARGE_USERS + len(ids) % SMALL_USERS
            made = time.monotonic_ns()
            body = load.request(run, number, user, made, "received", tenant=SMALL)
            ids.append(load.push_id(run, number))
            self._made[ids[-1]] = made
            await self._exchange.publish(_persistent(body), f"user.{load.user_id(user)}")
            await self._home.publish(_persistent(str(time.monotonic_ns()).encode()), ECHO)
            # Not in step with anything that the bridge does at regular times.
            due = began + (len(ids) + random.random() / 2) / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        give_up = time.monotonic() + WITHIN
        for push_id in ids:
            while push_id not in self._told and time.monotonic() < give_up:
                await self._heard.wait()
                self._heard.clear()
        told = [self._told[push_id] - self._made[push_id] for push_id in ids if push_id in self._told]
        seen = await asyncio.to_thread(crowd.ask, "watched")
        if len(told) < len(ids) or seen["distinct"] < len(ids):
            raise BenchmarkFailed(f"of {len(ids)} pushes {seen['distinct']} came and {len(told)} ended")
        while len(self._echoes) < len(ids) and time.monotonic() < give_up:
            await self._heard.wait()
            self._heard.clear()
        return Ages(seen["latencies"], told, self._echoes)


def _persistent(body: bytes) -> aio_pika.Message:
    return aio_pika.Message(
        body, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT
    )


def _over(until: asyncio.Event | asyncio.Task[None]) -> bool:
    return until.is_set() if isinstance(until, asyncio.Event) else until.done()


@asynccontextmanager
async def small_tenant(url: str) -> AsyncIterator[SmallTenant]:
    """The small tenant, connected."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        tenant = SmallTenant(await channel.get_exchange(PUSH), channel.default_exchange)
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(OUTCOMES, f"*.{SMALL}")
        await queue.consume(tenant.hear, no_ack=True)
        echo = await channel.declare_queue(ECHO, durable=True, arguments={"x-queue-type": "quorum"})
        await echo.consume(tenant.hear_echo)
        yield tenant


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="of each [3]")
    parser.add_argument("--pushes", type=int, default=100_000, metavar="N", help="of the large one [100000]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    found: dict[str, list[Turn]] = {mode: [] for mode in MODES}
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
        ):
            for number in range(chosen.turns):
                for mode in MODES:
                    found[mode].append(turn(servers, Path(logs, f"{number}-{mode}"), mode, chosen.pushes))
                    print(".", end="", flush=True, file=sys.stderr)
            print(file=sys.stderr)
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    print(table(found, chosen.pushes))
    lost = sum(one.lost for turns in found.values() for one in turns)
    print(f"{lost} pushes lost")
    return 1 if lost else 0


def turn(servers: Servers, logs: Path, mode: str, pushes: int) -> Turn:
    """Start a bridge and measure all of it once."""
    logs.mkdir()
    one = RECEIVED._replace(environment={"BRIDGE_TENANT_SHARE": mode})
    with (
        scene(servers, one, directory=logs, sessions=[LARGE_USERS]) as made,
        running(
            "small", (sys.executable, "-m", "benchmarks.storming"), directory=logs, environment={}
        ) as crowd,
        running(
            "large", (sys.executable, "-m", "benchmarks.publisher"), directory=logs, environment={}
        ) as publisher,
    ):
        made.flood(WARM_UP)
        rate = made.flood(LONE).rate
        crowd.ask(
            "connect",
            within=START_TIMEOUT,
            port=made.port,
            secret=made.environment["BRIDGE_JWT_SECRET"],
            first=LARGE_USERS,
            count=SMALL_USERS,
        )
        return asyncio.run(side_by_side(made, crowd, publisher, pushes, rate))


async def side_by_side(made: Scene, crowd: Child, publisher: Child, pushes: int, rate: float) -> Turn:
    """The small tenant alone, and then beside the large one."""
    url = made.environment["BRIDGE_AMQP_URL"]
    stamp = time.time_ns()
    async with small_tenant(url) as small:
        quiet = asyncio.Event()
        asyncio.get_running_loop().call_later(ALONE, quiet.set)
        alone = await small.publish(f"alone{stamp:020d}", crowd, quiet)
        [large] = made.crowds
        run = f"large{stamp:020d}"
        large.ask("expect", seed=1, total=pushes, users=LARGE_USERS)
        large.tell("complete", seconds=WITHIN)
        before = peak = resident_bytes(made.bridge.pid)
        began = time.monotonic()
        publisher.tell(
            "backlog", url=url, run=run, confirm="received", seed=1, count=pushes, users=LARGE_USERS,
            tenant="large",
        )  # fmt: skip

        async def all_there() -> None:
            nonlocal peak
            answer = asyncio.create_task(asyncio.to_thread(large.answer, WITHIN + 5), name="large")
            while not answer.done():
                peak = max(peak, resident_bytes(made.bridge.pid))
                await asyncio.wait([answer], timeout=0.1)
            if not (await answer)["complete"]:
                raise BenchmarkFailed(f"the large tenant's pushes did not all come in {WITHIN:g} s")

        beside = asyncio.create_task(all_there(), name="all there")
        # Until the first of them wait.
        await asyncio.sleep(1.0)
        ages = await small.publish(f"besid{stamp:020d}", crowd, beside)
        await beside
        seconds = time.monotonic() - began
        await asyncio.to_thread(publisher.answer, WITHIN)
    wait_until(
        lambda: sum(made.outcomes(run).values()) >= pushes, seconds=WITHIN, every=0.2, what="all have ended"
    )
    lost = pushes - made.outcomes(run).get("received", 0)
    return Turn(alone, ages, rate, seconds, peak - before, lost)


def table(found: Mapping[str, Sequence[Turn]], pushes: int) -> str:
    """What happened, as docs/performance.md shows it."""
    lines = [
        "| the small tenant's pushes | `BRIDGE_TENANT_SHARE` | pushes | read: p50, ms | p99, ms | outcome: p50, ms"
        " | p99, ms |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    p99: dict[tuple[str, bool], tuple[float, float]] = {}
    for mode, turns in found.items():
        for name, ages in (
            ("alone", [one.alone for one in turns]),
            (f"beside {pushes:,} of another", [one.beside for one in turns]),
        ):
            read = percentiles([ns for one in ages for ns in one.read], 50, 99)
            told = percentiles([ns for one in ages for ns in one.told], 50, 99)
            p99[mode, name == "alone"] = read[1], told[1]
            cells = " | ".join(f"{ns / 1e6:,.1f}" for ns in (*read, *told))
            lines.append(f"| {name} | `{mode}` | {sum(len(one.read) for one in ages):,} | {cells} |")
    lines += ["", "| a message through an empty queue | p50, ms | p99, ms |", "|---|---:|---:|"]
    for name, where in (("alone", "alone"), (f"beside {pushes:,} pushes", "beside")):
        echoes = [ns for turns in found.values() for one in turns for ns in getattr(one, where).echoes]
        cells = " | ".join(f"{ns / 1e6:,.1f}" for ns in percentiles(echoes, 50, 99))
        lines.append(f"| {name} | {cells} |")
    lines.append("")
    for mode, turns in found.items():
        times = [p99[mode, False][n] / p99[mode, True][n] for n in (0, 1)]
        lines.append(
            f"`{mode}`: p99 beside the other is x{times[0]:.2f} of that alone, of outcomes x{times[1]:.2f}. The"
            f" {pushes:,} took {median(one.seconds for one in turns):.1f} s, and the bridge"
            f" {median(one.peak for one in turns) / 1e6:,.0f} MB more. One tenant alone:"
            f" {median(one.rate for one in turns):,.0f} pushes/s."
        )
    ratio = median(b.rate / a.rate for a, b in zip(found["off"], found["fair"], strict=True))
    lines.append(
        f"One tenant alone, `fair` beside `off`: x{ratio:.3f} (median of {len(found['off'])} turns)."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
