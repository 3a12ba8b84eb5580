"""What one process and two on one port do with the same pushes: `python -m benchmarks.workers`.

Each with a broker's vhost and a database of its own, measured in turn; with two workers, half of the sessions are at
the one that does not take. Each figure is a median of all turns. Exit codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.guard import ROOT
from benchmarks.nodes import FIGURES, SESSIONS, measure
from benchmarks.processes import BenchmarkFailed, raise_file_limit, wait_until
from benchmarks.scene import RECEIVED, START_TIMEOUT, WRITTEN, Contestant, Scene, scene
from bridge.devservers import Servers, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "workers"
WORKERS: Final = ("1", "2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__.splitlines()[0])
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
                (workers, one.name): stack.enter_context(
                    group(servers, one, Path(logs) / f"{workers} {one.confirm}", workers)
                )
                for one in (WRITTEN, RECEIVED)
                for workers in WORKERS
            }
            print(table(measure(scenes, chosen.turns)))
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def group(servers: Servers, one: Contestant, directory: Path, workers: str) -> Iterator[Scene]:
    """A bridge with so many workers, all ready, and its sessions."""
    directory.mkdir()
    contestant = one._replace(environment={"BRIDGE_WORKERS": workers})
    with scene(servers, contestant, directory=directory, sessions=[0]) as made:
        port = int(made.environment["BRIDGE_OPS_PORT"])

        def states() -> Sequence[Mapping[str, Any]]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=10) as answer:
                found: Sequence[Mapping[str, Any]] = json.load(answer).get("workers", ())
                return found

        wait_until(
            lambda: all(worker["status"] and worker["status"]["ready"] for worker in states()),
            seconds=START_TIMEOUT,
            every=0.05,
            what="all workers are ready",
        )
        made.bridge.workers = [worker["pid"] for worker in states()]
        made.connect([SESSIONS])
        yield made


def table(found: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> str:
    """The medians, as docs/performance.md shows them; those of two workers with their ratio."""
    names = list(dict.fromkeys(name for _, name in found))
    lines = [
        "| | " + " | ".join(f"{name}, 1 worker | 2 workers" for name in names) + " |",
        "|---|" + "---:|" * (2 * len(names)),
    ]
    for figure in FIGURES:
        cells = []
        for name in names:
            one, two = (median(found[workers, name][figure]) for workers in WORKERS)
            cells += [f"{one:,.1f}", f"{two:,.1f} ({two / one:.2f})"]
        lines.append(f"| {figure} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
