"""A topic with 10,000 subscribers, and everybody else beside it: `python -m benchmarks.crowd`.

One node with its default limits, and 500 sessions that get 300 pushes a second, confirmed as received, while 10,000
others are subscribed to one topic. At first nothing else happens; then a push of 200 bytes goes to the topic every five
seconds. How old were the pushes of the 500? Exit codes: 0 measured, and no push was lost; 1 one was; 2 it could not be
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.guard import ROOT
from benchmarks.processes import BenchmarkFailed, raise_file_limit, running
from benchmarks.scene import SLOWEST_OPENING, START_TIMEOUT, Scene, percentiles
from benchmarks.spread import Group, together
from benchmarks.storm import HERE, PUSHES_MAX, RATE, Steady, ended
from bridge.adapters.amqp.producer import Producer
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "crowd"
TOPIC: Final = "news.now"
SECONDS: Final = 30.0
"""Of each of the two parts."""
EVERY: Final = 5.0
"""Seconds from one push to the topic to the next."""
DATA: Final = "x" * 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000, metavar="N", help="subscribers [10000]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
        ):
            return measure(servers, Path(logs), chosen.users)
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2


def measure(servers: Servers, logs: Path, users: int) -> int:
    """Measure once, print what happened, and return the exit code."""
    with (
        together(servers, Group(1, 1), logs / "node", sessions=HERE, clients="benchmarks.storming") as scene,
        running(
            "subscribers", (sys.executable, "-m", "benchmarks.clients"), directory=logs, environment={}
        ) as crowd,
    ):
        told = crowd.ask(
            "connect",
            within=START_TIMEOUT + users / SLOWEST_OPENING,
            port=scene.port,
            secret=scene.environment["BRIDGE_JWT_SECRET"],
            first=HERE,
            count=users,
            topic=TOPIC,
        )
        if told["connected"] != users:
            raise BenchmarkFailed(f"{told['connected']} of {users} subscribers are connected")
        [others] = scene.crowds
        others.ask("watch", users=HERE, most=PUSHES_MAX)
        run = f"crowd{time.time_ns():020d}"
        with Steady(scene.environment["BRIDGE_AMQP_URL"], run, HERE) as steady:
            time.sleep(SECONDS)
            began = time.monotonic_ns()
            pushes = asyncio.run(to_topic(scene))
            over = time.monotonic_ns()
        outcomes = ended(scene, run, steady.published)
        seen = others.ask("watched")
        delivered = list(zip(seen["made"], seen["latencies"], strict=True))
        lost = steady.published - min(len(delivered), outcomes.get("received", 0))
        print(table(delivered, began, over, users, pushes))
        late = steady.late * 1e3
        print(
            f"{steady.published:,} pushes to the {HERE}: {lost} lost; published at most {late:,.0f} ms late"
        )
        return 1 if lost else 0


async def to_topic(scene: Scene) -> int:
    """Push to the topic again and again; returns how often."""
    pushes = 0
    until = time.monotonic() + SECONDS
    async with Producer.connect(scene.environment["BRIDGE_AMQP_URL"]) as producer:
        while time.monotonic() < until:
            body = {"id": f"topic-{pushes}", "to": {"topic": TOPIC}, "data": DATA}
            await producer.publish(json.dumps(body).encode())
            pushes += 1
            await asyncio.sleep(EVERY)
    return pushes


def table(delivered: Sequence[tuple[int, int]], began: int, over: int, users: int, pushes: int) -> str:
    """What happened, as docs/performance.md shows it. `delivered`: when each push was made, and how old it became, in
    ns; `began` and `over`: between these the topic was pushed to."""
    lines = [
        f"| pushes at {RATE:g}/s to {HERE} others | pushes | p50, ms | p99, ms | longest, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    found = []
    for name, begin, end in (
        ("alone", 0, began),
        (f"beside {pushes} pushes to a topic with {users:,} subscribers", began, over),
    ):
        ages = [ns for made, ns in delivered if begin <= made < end]
        p50, p99 = percentiles(ages, 50, 99)
        found.append(p99)
        lines.append(
            f"| {name} | {len(ages):,} | {p50 / 1e6:,.1f} | {p99 / 1e6:,.1f} | {max(ages) / 1e6:,.0f} |"
        )
    lines += ["", f"p99 beside the topic is x{found[1] / found[0]:.2f} of that alone."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
