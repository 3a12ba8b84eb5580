"""A reconnect storm, and those who were there before it: `python -m benchmarks.storm`.

Two nodes with their default limits, and 500 sessions that get 300 pushes a second, confirmed as received. Then 20,000
users connect in one moment, to either node by chance, and try again as browsers do where they are turned away. How long
until all are in, and how old were the pushes of those who were there: before, meanwhile and afterwards? Exit codes:
0 measured, and no push was lost; 1 one was; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.guard import ROOT
from benchmarks.processes import (
    BenchmarkFailed,
    Child,
    cpu_seconds,
    file_limit,
    raise_file_limit,
    running,
    wait_until,
)
from benchmarks.publisher import Broker, requests
from benchmarks.roaming import peak
from benchmarks.scene import Scene, percentiles
from benchmarks.spread import Group, together
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "storm"
NODES: Final = 2
HERE: Final = 500
RATE: Final = 300.0
QUIET: Final = 8.0
"""Seconds before the storm and after it."""
WITHIN: Final = 240.0
"""Seconds that the storm may take,"""
END_WITHIN: Final = 30.0
"""and then the last pushes."""
FILES_SPARED: Final = 1_000
"""Open files of a client process that are no sessions."""
PUSHES_MAX: Final = 1_000_000


class Storm(NamedTuple):
    """How the users came in."""

    began: int
    """When the first one connected, in ns of the monotonic clock."""
    welcomes: Sequence[int]
    """When each was welcomed for the first time, in order."""


class Steady:
    """A thread that publishes at a rate, to each user in turn."""

    def __init__(self, url: str, run: str, users: int) -> None:
        self.published = 0
        self.late = 0.0
        """Seconds by which a push was published late, at most."""
        self._outlet = Broker(url)
        self._make = requests(run, "received").message
        self._users = users
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher")

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._outlet.close()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._stopped.wait(max(0.0, self._due(began) - time.monotonic())):
            self.late = max(self.late, time.monotonic() - self._due(began))
            self._outlet.publish([self._make(self.published, self.published % self._users)])
            self.published += 1
            self._outlet.take_confirms(wait=False)
        while self._outlet.on_their_way:
            self._outlet.take_confirms(wait=True)

    def _due(self, began: float) -> float:
        return began + self.published / RATE


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000, metavar="N", help="who storm [20000]")
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
    """Storm once, print what happened, and return the exit code."""
    with (
        together(
            servers, Group(NODES, 1), logs / "nodes", sessions=HERE, clients="benchmarks.storming"
        ) as scene,
        stormers(scene, logs, users) as crowds,
    ):
        for crowd in scene.crowds:
            crowd.ask("watch", users=HERE, most=PUSHES_MAX)
        run = f"storm{time.time_ns():020d}"
        with Steady(scene.environment["BRIDGE_AMQP_URL"], run, HERE) as steady:
            time.sleep(QUIET)
            before = cpu(scene, crowds)
            storm = storm_of(scene, crowds)
            seconds = time.monotonic() - before[0]
            used = {name: spent - before[1][name] for name, spent in cpu(scene, crowds)[1].items()}
            time.sleep(QUIET)
        outcomes = ended(scene, run, steady.published)
        seen = [crowd.ask("watched") for crowd in scene.crowds]
        delivered = [
            (made, ns) for told in seen for made, ns in zip(told["made"], told["latencies"], strict=True)
        ]
        lost = steady.published - min(len(delivered), outcomes.get("received", 0))
        print(table(storm, delivered, {name: spent / seconds for name, spent in used.items()}))
        print(
            f"{steady.published:,} pushes to those who were there: {lost} lost; published at most "
            f"{steady.late * 1e3:,.0f} ms late"
        )
        print(f"Handshakes of all who came, by result: {counted(scene, 'bridge_handshakes_total')}")
        print(f"Sessions that ended, by reason: {counted(scene, 'bridge_sessions_closed_total')}")
        now = [crowd.ask("here") for crowd in crowds]
        here, failed, again = (sum(one[name] for one in now) for name in ("here", "failed", "again"))
        print(
            f"{failed:,} tries of those who stormed failed; {here:,} of them are here, {again:,} came twice"
        )
        return 1 if lost else 0


@contextmanager
def stormers(scene: Scene, logs: Path, users: int) -> Iterator[Sequence[Child]]:
    """Processes with so many users, who wait for their turn."""
    processes = max(NODES, -(-users // (file_limit() - FILES_SPARED)))
    with ExitStack() as stack:
        crowds = []
        for number in range(processes):
            command = (sys.executable, "-m", "benchmarks.storming")
            crowd = stack.enter_context(running(f"storm {number}", command, directory=logs, environment={}))
            first, last = (HERE + users * n // processes for n in (number, number + 1))
            secret = scene.environment["BRIDGE_JWT_SECRET"]
            crowd.ask("prepare", first=first, count=last - first, secret=secret)
            crowds.append(crowd)
        yield crowds


def cpu(scene: Scene, crowds: Sequence[Child]) -> tuple[float, dict[str, float]]:
    """Monotonic seconds, and the CPU seconds of each by then."""
    used = scene.cpu()
    used["storm"] = sum(cpu_seconds(crowd.pid) for crowd in crowds)
    used["others"] -= used["storm"]
    return time.monotonic(), used


def storm_of(scene: Scene, crowds: Sequence[Child]) -> Storm:
    """Let all of them come; returns when they are in. Raises BenchmarkFailed if some never are."""
    for crowd in crowds:
        crowd.tell("storm", ports=list(scene.ports), seconds=WITHIN)
    told = [crowd.answer(WITHIN + 10, needs=scene.bridge) for crowd in crowds]
    users = sum(one["users"] for one in told)
    welcomes = sorted(at for one in told for at in one["welcomes"])
    if len(welcomes) < users:
        raise BenchmarkFailed(f"of {users} users {len(welcomes)} were welcomed in {WITHIN:g} s")
    return Storm(min(one["began"] for one in told), welcomes)


def counted(scene: Scene, metric: str) -> str:
    """What a metric of all nodes has counted, by its label."""
    counts: Counter[str] = Counter()
    for port in scene.ops_ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            text = page.read().decode()
        for word, count in re.findall(rf'^{metric}{{\w+="(\w+)"}} (\S+)$', text, re.MULTILINE):
            counts[word] += int(float(count))
    return ", ".join(f"{word} {count:,}" for word, count in counts.most_common() if count) or "none"


def ended(scene: Scene, run: str, published: int) -> Mapping[str, int]:
    """The outcomes of all pushes, once all have one."""
    wait_until(
        lambda: sum(scene.outcomes(run).values()) >= published,
        seconds=END_WITHIN,
        every=0.1,
        what=f"{published} pushes have ended",
    )
    return scene.outcomes(run)


def table(storm: Storm, delivered: Sequence[tuple[int, int]], cores: Mapping[str, float]) -> str:
    """What happened, as docs/performance.md shows it. `delivered`: when each push was made, and how old it became, in
    ns; `cores`: how many each kept busy during the storm."""
    users, seconds = len(storm.welcomes), (storm.welcomes[-1] - storm.began) / 1e9
    waits = percentiles([(at - storm.began) // 1_000_000 for at in storm.welcomes], 50, 99)
    lines = [
        f"{users:,} users were in after {seconds:.1f} s: {users / seconds:,.0f} handshakes a second, at most "
        f"{peak([at / 1e9 for at in storm.welcomes]):,} in one; half of them within {waits[0] / 1e3:.1f} s, 99 % "
        f"within {waits[1] / 1e3:.1f} s.",
        "Cores: " + ", ".join(f"{name} {share:.2f}" for name, share in cores.items()),
        "",
        f"| pushes at {RATE:g}/s to {HERE} who were there | pushes | p50, ms | p99, ms | longest, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    last = storm.welcomes[-1]
    for name, begin, end in (
        ("before the storm", 0, storm.began),
        ("during the storm", storm.began, last),
        ("after it", last, sys.maxsize),
    ):
        ages = [ns for made, ns in delivered if begin <= made < end]
        p50, p99 = percentiles(ages, 50, 99)
        lines.append(
            f"| {name} | {len(ages):,} | {p50 / 1e6:,.1f} | {p99 / 1e6:,.1f} | {max(ages) / 1e6:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
