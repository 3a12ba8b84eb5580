"""How much a node that stops slows down the users of the others: `python -m benchmarks.stopped`.

Two bridges; one takes all pushes and has 70 % of the users, its neighbour has the others and is stopped (SIGSTOP) in
every second measurement, for seconds that are too few for it to be dead. Each figure is that of the users at the node
that works, a median of all turns. Exit codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.guard import ROOT
from benchmarks.nodes import pair
from benchmarks.processes import BenchmarkFailed, raise_file_limit
from benchmarks.scene import RECEIVED, Scene
from bridge.devservers import private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "stopped"
HERE: Final = 350
"""Users at the node that works,"""
THERE: Final = 150
"""and at the one that stops: 30 %."""
BACKLOG: Final = 10_000
RATE: Final = 300.0
SECONDS: Final = 2.5
FIGURES: Final = ("pushes/s to them", f"p50 at {RATE:.0f}/s, ms", f"p99 at {RATE:.0f}/s, ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopped", description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="of each [7]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
            pair(servers, RECEIVED, Path(logs) / "pair", here=HERE, elsewhere=THERE) as made,
        ):
            print(table(measure(made, chosen.turns)))
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


def measure(made: Scene, turns: int) -> dict[bool, list[tuple[float, ...]]]:
    """The figures of each turn, by whether the neighbour was stopped."""
    found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    only = made.crowds[:1]
    for turn in range(turns + 1):
        for stops in (False, True):
            stopped = made.neighbours if stops else ()
            drained = made.drain(BACKLOG, only=only, stopped=stopped)
            latency = made.latency(int(RATE * SECONDS), RATE, only=only, stopped=stopped)
            if turn:  # the first is a warm-up
                found[stops].append((drained.rate, latency.p50, latency.p99))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def table(found: Mapping[bool, Sequence[tuple[float, ...]]]) -> str:
    """The medians, as docs/performance.md shows them, and those beside the stopped node as a ratio of the others."""
    lines = [
        "| users of the node that works | both work | the other is stopped | ratio |",
        "|---|---:|---:|---:|",
    ]
    for place, figure in enumerate(FIGURES):
        free, stopped = (median(turn[place] for turn in found[stops]) for stops in (False, True))
        lines.append(f"| {figure} | {free:,.1f} | {stopped:,.1f} | {stopped / free:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
