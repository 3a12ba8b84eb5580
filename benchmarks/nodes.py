"""What a push to a user at another node takes, beside one to a user at the node that takes it: `python -m
benchmarks.nodes`.

Two pairs of bridges, each at a broker's vhost and a database of its own. In one pair the sessions are at the node that
takes the pushes, in the other they are at its neighbour; measured in turn. Each figure is a median of all turns. Exit
codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.guard import ROOT
from benchmarks.ports import reserved_port
from benchmarks.processes import BenchmarkFailed, raise_file_limit, running, wait_until
from benchmarks.scene import RECEIVED, START_TIMEOUT, WRITTEN, Contestant, Scene, is_ready, scene
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "nodes"
SESSIONS: Final = 500
BACKLOG: Final = 5_000
RATE: Final = 500.0
SECONDS: Final = 4.0
FIGURES: Final = (
    "pushes/s, end to end",
    "CPU of the node that takes, µs a push",
    "CPU of the other one, µs a push",
    "p50 at 500/s, ms",
    "p99 at 500/s, ms",
    "p50 to its proof, ms",
    "p99 to its proof, ms",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="of each [5]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
            ExitStack() as stack,
        ):
            scenes = {
                (where, one.name): stack.enter_context(
                    pair(servers, one, Path(logs) / f"{where} {one.confirm}", **{where: SESSIONS})
                )
                for one in (WRITTEN, RECEIVED)
                for where in ("here", "elsewhere")
            }
            print(table(measure(scenes, chosen.turns)))
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def pair(
    servers: Servers, one: Contestant, directory: Path, *, here: int = 0, elsewhere: int = 0
) -> Iterator[Scene]:
    """Two bridges; so many sessions are at the one that takes, and at the other. A client process for each of the two
    that has any."""
    directory.mkdir()
    counts = [count for count in (here, elsewhere) if count]
    with scene(servers, one, directory=directory, sessions=[0 for _ in counts]) as made:
        port, ops_port = reserved_port(), reserved_port()
        environment = {
            **made.environment,
            "BRIDGE_NODE": "neighbour",
            "BRIDGE_WS_PORT": str(port),
            "BRIDGE_OPS_PORT": str(ops_port),
        }
        with running("neighbour", one.command, directory=directory, environment=environment) as neighbour:
            wait_until(
                lambda: is_ready(neighbour, port),
                seconds=START_TIMEOUT,
                every=0.05,
                what="the neighbour is ready",
            )
            made.watch_neighbours([neighbour], [ops_port])
            ports = [at for at, count in ((made.port, here), (port, elsewhere)) if count]
            made.connect(counts, ports=ports)
            yield made


def measure(
    scenes: Mapping[tuple[str, str], Scene], turns: int
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """These figures of all turns, by scene."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {
        key: {name: [] for name in FIGURES} for key in scenes
    }
    for turn in range(turns + 1):
        for key, one in scenes.items():
            drained = one.drain(BACKLOG)
            latency = one.latency(int(RATE * SECONDS), RATE)
            if turn:  # the first is a warm-up
                cpu = [drained.cpu[name] * 1e6 / drained.rate for name in ("bridge", "neighbours")]
                values = (drained.rate, *cpu, latency.p50, latency.p99, *latency.proof)
                for name, value in zip(FIGURES, values, strict=True):
                    found[key][name].append(value)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def table(found: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> str:
    """The medians, as docs/performance.md shows them; those of the other node with their ratio."""
    names = list(dict.fromkeys(name for _, name in found))
    lines = [
        "| | " + " | ".join(f"{name}, here | at another node" for name in names) + " |",
        "|---|" + "---:|" * (2 * len(names)),
    ]
    for figure in FIGURES:
        cells = []
        for name in names:
            here, there = (median(found[where, name][figure]) for where in ("here", "elsewhere"))
            if not there:
                cells += ["", ""]
                continue
            ratio = "" if figure == FIGURES[2] else f" ({there / here:.2f})"
            cells += [f"{here:,.1f}", f"{there:,.1f}{ratio}"]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
