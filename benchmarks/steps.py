"""What each step made cheaper: a push before and after single commits, `python -m benchmarks.steps`.

Each commit and its parent are unpacked, and `benchmarks.core` runs in all of those trees in turn: the least CPU of many
drains counts, since other programs only add to it. Then it runs in each under valgrind, which counts instructions. Only
a drain after the warm-up is counted: the start would take most of the time. It takes about ten minutes, and prints the
table that docs/performance.md shows. Exit codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.guard import PROOFS, ROOT, CannotMeasure, file_of, resolve, unpack

DIRECTORY: Final = ROOT / ".dev" / "bench" / "steps"
STEPS: Final[Mapping[str, str]] = {
    "b5405a4": "An ordinary message is taken without a wait; what its row and receipt share is made once",
    "6206a25": "A wait before each write of rows; pongs are read without the library's parser",
    "9d65893": "What the receipts of a batch share is written once; the clock is read once for a flush",
    "e5063b7": "The hot parts of the adapters are modules of plain functions",
    "4562757": "The rows of an ordinary request are counted without its resolver",
    "d2d6fe9": "The hot parts of the adapters can be compiled",
    "fffe232..034ca1e": "All from the first to the last, with what was added meanwhile",
}
"""Commits, or ranges of them, and what each did."""
AS_IT_IS: Final = "this tree, interpreted and compiled"
COMPILED: Final = ROOT / "build" / "compiled"
"""What `make compiled` made of this tree."""
TURNS: Final = 5
PUSHES: Final = 1_500
"""Of one drain. Under valgrind a drain must not take so long that pushes expire."""
FIRST_CORE: Final = "b5405a4"
"""The first commit with a benchmarks/core.py. Older trees run that one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and print a line for each commit; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="[those that docs/performance.md names]")
    parser.add_argument("--confirm", choices=PROOFS, default=PROOFS[0], help=f"the proof [{PROOFS[0]}]")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"of each tree [{TURNS}]")
    parser.add_argument("--no-count", action="store_true", help="CPU only, no instructions")
    chosen = parser.parse_args(arguments)
    if not chosen.no_count and shutil.which("valgrind") is None:
        print("not measured: valgrind is not installed, use --no-count", file=sys.stderr)
        return 2
    try:
        for line in table(
            chosen.commits or list(STEPS), chosen.confirm, chosen.turns, count=not chosen.no_count
        ):
            print(line, flush=True)
    except CannotMeasure as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    return 0


def table(commits: Sequence[str], proof: str, turns: int, *, count: bool) -> Iterator[str]:
    """The lines of the table."""
    pairs = {commit: _trees(commit) for commit in commits}
    if COMPILED.is_dir():
        pairs[AS_IT_IS] = (ROOT, COMPILED)
    trees = list(dict.fromkeys(tree for pair in pairs.values() for tree in pair))
    spent = cpu(trees, proof, turns)
    counted: dict[Path, float] = {}
    yield "| step | commit | CPU, µs | ratio | instructions | ratio |"
    yield "|---|---|---:|---:|---:|---:|"
    for commit, pair in pairs.items():
        for tree in pair:
            if count and tree not in counted:
                counted[tree] = instructions(tree, proof)
        cells = [STEPS.get(commit, commit), f"`{commit}`", *_before_after(spent, pair, 1)]
        yield f"| {' | '.join(cells + (_before_after(counted, pair, 0) if count else ['', '']))} |"


def _before_after(figures: Mapping[Path, float], pair: tuple[Path, Path], digits: int) -> list[str]:
    before, after = (figures[tree] for tree in pair)
    return [f"{before:,.{digits}f} to {after:,.{digits}f}", f"{after / before:.2f}"]


def _trees(commit: str) -> tuple[Path, Path]:
    """The files before and after a step."""
    first, _, last = commit.rpartition("..")
    before, after = (_tree(resolve(name)) for name in (first or f"{last}^", last))
    return before, after


def _tree(commit: str) -> Path:
    tree = DIRECTORY / commit
    if not tree.is_dir():
        core = unpack(commit, tree) / "benchmarks" / "core.py"
        if not core.is_file():
            core.write_bytes(file_of(FIRST_CORE, "benchmarks/core.py"))
    return tree


def cpu(trees: Sequence[Path], proof: str, turns: int) -> dict[Path, float]:
    """Microseconds for each push, the least of many drains in each of these trees, which are run in turn."""
    least = dict.fromkeys(trees, math.inf)
    command = (sys.executable, "-m", "benchmarks.core", "--pushes", "4000", "--runs", "5", "--confirm", proof)
    for _ in range(turns):
        for tree in trees:
            found = json.loads(_run(tree, command).stdout)
            least[tree] = min(least[tree], found[proof]["lowest"])
    return least


def _run(tree: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # A fixed seed for hashes: a dictionary's order, and so its cost, is the same in every tree.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CannotMeasure(f"benchmarks.core of {tree.name}: {done.stderr.strip()[-1000:]}")
    return done


def instructions(tree: Path, proof: str) -> float:
    """Instructions for each push of the second drain in this tree."""
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no")
    core = ("--pushes", str(PUSHES), "--runs", "1", "--confirm", proof)
    done = _run(tree, (*valgrind, sys.executable, "-c", _RUN, *core))
    found = re.search(r"Collected : (\d+)", done.stderr)
    if found is None or not int(found[1]):
        raise CannotMeasure(f"valgrind says nothing of instructions: {done.stderr.strip()[-300:]}")
    return int(found[1]) / PUSHES


_RUN: Final = """
import os, subprocess, sys, time
from benchmarks import core

looked = 0
process_time = time.process_time

def watched():
    # A drain looks at this clock when it begins and when it ends. The first is the warm-up.
    global looked
    looked += 1
    if looked in (3, 4):
        told = subprocess.Popen(
            ("callgrind_control", "--instr=" + ("on" if looked == 3 else "off"), str(os.getpid())),
            stdout=subprocess.DEVNULL,
        )
        # Not wait(): the command reaches only a process that does something now and then.
        while told.poll() is None:
            time.sleep(0.005)
    return process_time()

time.process_time = watched
sys.exit(core.main(sys.argv[1:]))
"""


if __name__ == "__main__":
    sys.exit(main())
