"""`python -m benchmarks.scale`: what a number of sessions and pushes a second would take.

It simulates for less than a second how pushes are routed, and prices what happens with what was measured. With several
numbers of nodes or partitions, each with each. With `--measure`, instead, it measures those prices on this machine.
Exit codes: 0 done, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.guard import ROOT
from benchmarks.processes import BenchmarkFailed, raise_file_limit
from benchmarks.scale.capacity import Wanted, found, table
from benchmarks.scale.measured import measure, told
from bridge.devservers import private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "scale"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked for; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.measure:
        return _measured(chosen.turns)
    wanted = [
        Wanted(
            chosen.sessions,
            chosen.devices,
            chosen.rate,
            nodes,
            partitions,
            chosen.busy,
            chosen.pong / 1e3,
            chosen.life,
            chosen.drain_rate,
            chosen.drain_timeout,
        )
        for nodes in chosen.nodes
        for partitions in chosen.partitions
    ]
    print(table([found(one) for one in wanted]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sessions", type=_whole, default=1_000_000, metavar="N", help="[1000000]")
    add("--devices", type=_whole, default=1, metavar="N", help="sessions of each user [1]")
    add("--rate", type=_positive, default=100_000, metavar="N", help="pushes a second [100000]")
    add("--nodes", type=_whole, nargs="+", default=[32, 64], metavar="N", help="[32 64]")
    add("--partitions", type=_whole, nargs="+", default=[16], metavar="N", help="at most 64 [16]")
    add("--busy", type=_positive, default=0.7, help="the share of a core that a node may use [0.7]")
    add("--pong", type=_positive, default=50, metavar="MS", help="until a client has answered [50]")
    add("--life", type=_positive, default=3600, metavar="S", help="of a session [3600]")
    add("--drain-rate", type=float, default=500, metavar="N", help="BRIDGE_DRAIN_RATE [500]")
    add("--drain-timeout", type=float, default=60, metavar="S", help="BRIDGE_DRAIN_TIMEOUT [60]")
    add("--measure", action="store_true", help="measure what things cost, in two minutes")
    add("--turns", type=_whole, default=3, help="of each, with --measure [3]")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number over 0")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number over 0")
    return value


def _measured(turns: int) -> int:
    raise_file_limit()
    try:
        with (
            tempfile.TemporaryDirectory() as logs,
            private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers,
        ):
            print(told(measure(servers, Path(logs), turns)))
    except BenchmarkFailed as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
