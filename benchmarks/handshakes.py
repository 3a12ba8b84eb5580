"""What a handshake takes, from the first packet to the welcome: `python -m benchmarks.handshakes`.

Measured in turn on this tree and on another commit: a storm of 2,000 arrivals, arrivals one by one, and pushes at a
steady rate beside storms. Each figure is a median of all turns, and the ratio is that of the two medians. Exit codes: 0
measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks.guard import ROOT, CannotMeasure, resolve, unpack
from benchmarks.processes import BenchmarkFailed, Child, raise_file_limit, running
from benchmarks.scene import RECEIVED, Scene, scene
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "handshakes"
STORM: Final = 2_000
AT_ONCE: Final = 500
ONE_BY_ONE: Final = 200
RATE: Final = 500.0
"""Pushes a second beside storms."""
SECONDS: Final = 4.0
WITHIN: Final = 120.0


class Figure(NamedTuple):
    """What is compared."""

    name: str
    unit: str


STORMS: Final = Figure(f"a storm of {STORM:,}, {AT_ONCE} at once", "s")
SINGLE: Final = Figure("one by one, median", "ms")
QUIET: Final = Figure(f"p99 of pushes at {RATE:.0f}/s", "ms")
BESIDE: Final = Figure("the same beside storms", "ms")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handshakes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--against", metavar="COMMIT", default="HEAD^", help="the other one [HEAD^]")
    parser.add_argument("--turns", type=int, default=5, help="of each tree [5]")
    chosen = parser.parse_args(arguments)
    raise_file_limit()
    try:
        other = unpack(resolve(chosen.against), DIRECTORY / "other")
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
            ExitStack() as stack,
        ):
            scenes = {
                name: _scene(stack, servers, Path(logs), name, tree)
                for name, tree in (("other", other), ("this", ROOT))
            }
            print(table(measure(scenes, chosen.turns)))
    except (CannotMeasure, BenchmarkFailed) as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


class Door(NamedTuple):
    """A bridge, and the process whose clients arrive there."""

    scene: Scene
    arrivals: Child

    def begin(self, count: int, at_once: int) -> None:
        """Let so many clients arrive."""
        self.scene.arrive(self.arrivals, count=count, at_once=at_once)

    def end(self) -> Mapping[str, Any]:
        """Wait until all are welcomed and gone."""
        told = self.arrivals.answer(WITHIN, needs=self.scene.bridge)
        if told["refused"]:
            raise BenchmarkFailed(
                f"{self.scene.contestant.name}: {told['refused']} arrivals were not welcomed"
            )
        return told

    def storm(self, count: int, at_once: int) -> Mapping[str, Any]:
        """Both."""
        self.begin(count, at_once)
        return self.end()


def _scene(stack: ExitStack, servers: Servers, logs: Path, name: str, tree: Path) -> Door:
    here = logs / name
    here.mkdir()
    # By its module, so that the path decides which bridge this is.
    command = (sys.executable, "-m", "bridge.cli", "serve")
    one = RECEIVED._replace(name=name, command=command, environment={"PYTHONPATH": str(tree)})
    made = stack.enter_context(scene(servers, one, directory=here, sessions=[200]))
    arriving = (sys.executable, "-m", "benchmarks.arrivals")
    return Door(
        made, stack.enter_context(running(f"arrivals {name}", arriving, directory=here, environment={}))
    )


def measure(doors: Mapping[str, Door], turns: int) -> dict[Figure, dict[str, list[float]]]:
    """All figures of all turns, by tree."""
    found: dict[Figure, dict[str, list[float]]] = {
        figure: {name: [] for name in doors} for figure in (STORMS, SINGLE, QUIET, BESIDE)
    }
    for turn in range(turns + 1):
        for name in sorted(doors, reverse=bool(turn % 2)):
            door = doors[name]
            made = {
                STORMS: door.storm(STORM, AT_ONCE)["seconds"],
                SINGLE: median(door.storm(ONE_BY_ONE, 1)["each"]),
                QUIET: door.scene.latency(int(RATE * SECONDS), RATE).p99,
                BESIDE: _beside(door),
            }
            print(".", end="", flush=True, file=sys.stderr)
            if turn:  # the first is a warm-up
                for figure, value in made.items():
                    found[figure][name].append(value)
    print(file=sys.stderr)
    return found


def _beside(door: Door) -> float:
    """The p99 of pushes while clients arrive."""
    door.begin(STORM, AT_ONCE)
    p99 = door.scene.latency(int(RATE * SECONDS), RATE).p99
    door.end()
    return p99


def table(found: Mapping[Figure, Mapping[str, Sequence[float]]]) -> str:
    """The figures, as docs/performance.md shows them."""
    lines = ["| | other commit | this tree | ratio |", "|---|---:|---:|---:|"]
    for figure, by_tree in found.items():
        before, after = median(by_tree["other"]), median(by_tree["this"])
        lines.append(f"| {figure.name}, {figure.unit} | {before:.2f} | {after:.2f} | {after / before:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
