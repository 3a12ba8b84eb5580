"""What more nodes bring on one machine: `python -m benchmarks.spread`.

One, two and four bridges, each group at a broker's vhost and a database of its own, with the same number of sessions
spread evenly over them, and one queue of requests or four partitions. A publisher publishes at full speed while they
work; each group in turn, started anew. Each figure is a median of all turns. Exit codes: 0 measured, 2 it could not be
measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.guard import ROOT
from benchmarks.ports import reserved_port
from benchmarks.processes import BenchmarkFailed, raise_file_limit, running, wait_until
from benchmarks.scene import RECEIVED, START_TIMEOUT, Flood, Scene, is_ready, scene
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "spread"
SESSIONS: Final = 400
PUSHES: Final = 10_000


class Group(NamedTuple):
    """Nodes that share sessions and requests."""

    nodes: int
    partitions: int


GROUPS: Final = (Group(1, 1), Group(2, 1), Group(2, 4), Group(4, 1), Group(4, 4))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spread", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="of each [5]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
        ):
            print(table(measure(servers, Path(logs), chosen.turns)))
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def together(
    servers: Servers,
    group: Group,
    directory: Path,
    *,
    sessions: int = SESSIONS,
    clients: str = "benchmarks.clients",
    settings: Mapping[str, str] | None = None,
) -> Iterator[Scene]:
    """These nodes, each with its share of the sessions, and `clients` as the module of a process for each of them."""
    directory.mkdir(parents=True, exist_ok=True)
    partitions = {"BRIDGE_PARTITIONS": str(group.partitions)}
    one = RECEIVED._replace(environment={**partitions, **(settings or {})})
    crowds = [0] * group.nodes
    with (
        scene(servers, one, directory=directory, sessions=crowds, clients=[clients]) as made,
        ExitStack() as stack,
    ):
        ports, others, ops_ports = [made.port], [], []
        for number in range(1, group.nodes):
            name, port, ops_port = f"node-{number}", reserved_port(), reserved_port()
            environment = {
                **made.environment,
                "BRIDGE_NODE": name,
                "BRIDGE_WS_PORT": str(port),
                "BRIDGE_OPS_PORT": str(ops_port),
            }
            other = stack.enter_context(
                running(name, one.command, directory=directory, environment=environment)
            )
            wait_until(
                partial(is_ready, other, port), seconds=START_TIMEOUT, every=0.05, what=f"{name} is ready"
            )
            ports.append(port)
            ops_ports.append(ops_port)
            others.append(other)
        made.watch_neighbours(others, ops_ports)
        made.connect([sessions // group.nodes] * group.nodes, ports=ports)
        yield made


def measure(servers: Servers, logs: Path, turns: int) -> dict[Group, list[Flood]]:
    """The floods of all turns, by group. Each group starts anew for its turn: idle bridges use CPU as well."""
    found: dict[Group, list[Flood]] = {group: [] for group in GROUPS}
    for turn in range(turns):
        for group in GROUPS:
            with together(servers, group, logs / f"{turn}-{group.nodes}-{group.partitions}") as one:
                one.flood(PUSHES)  # a warm-up
                found[group].append(one.flood(PUSHES))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def table(found: Mapping[Group, Sequence[Flood]]) -> str:
    """The medians, as docs/performance.md shows them."""
    lines = [
        "| nodes | partitions | pushes/s, `received` | | CPU of all nodes, µs a push |",
        "|---:|---:|---:|---:|---:|",
    ]
    first = median(flood.rate for flood in next(iter(found.values())))
    for group, floods in found.items():
        rate = median(flood.rate for flood in floods)
        cpu = median((flood.cpu["bridge"] + flood.cpu["neighbours"]) * 1e6 / flood.rate for flood in floods)
        lines.append(
            f"| {group.nodes} | {group.partitions} | {rate:,.0f} | {rate / first:.2f} | {cpu:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
