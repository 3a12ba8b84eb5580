"""What each step made cheaper: instructions of a push before and after single commits, `python -m benchmarks.steps`.

Each commit and its parent are unpacked, and `benchmarks.core` runs in both under valgrind. Instructions hardly depend
on what else the machine does, so that the steps can be counted months later. Only a drain after the warm-up is counted:
the start would take most of the time. It takes about half a minute for each tree, and prints the table that
docs/performance.md shows. Exit codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
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
COMPILED: Final = ROOT / "build" / "compiled"
"""What `make compiled` made of this tree."""
PUSHES: Final = 1_500
"""Of one drain. Under valgrind a drain must not take so long that pushes expire."""
FIRST_CORE: Final = "b5405a4"
"""The first commit with a benchmarks/core.py. Older trees run that one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and print a line for each commit; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="[those that docs/performance.md names]")
    parser.add_argument("--confirm", choices=PROOFS, default=PROOFS[0], help=f"the proof [{PROOFS[0]}]")
    chosen = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        print("not measured: valgrind is not installed", file=sys.stderr)
        return 2
    try:
        for line in table(chosen.commits or list(STEPS), chosen.confirm):
            print(line, flush=True)
    except CannotMeasure as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(DIRECTORY, ignore_errors=True)
    return 0


def table(commits: Sequence[str], proof: str) -> Iterator[str]:
    """The lines of the table, each as soon as it is measured."""
    counted: dict[str, float] = {}
    yield "| step | commit | before | after | ratio |"
    yield "|---|---|---:|---:|---:|"
    for commit in commits:
        first, _, last = commit.rpartition("..")
        before, after = (_of_commit(name, proof, counted) for name in (first or f"{last}^", last))
        yield _line(STEPS.get(commit, ""), f"`{commit}`", before, after)
    if COMPILED.is_dir():
        before, after = (instructions(tree, proof) for tree in (ROOT, COMPILED))
        yield _line("This tree, interpreted and compiled", "", before, after)


def _line(step: str, commit: str, before: float, after: float) -> str:
    return f"| {step} | {commit} | {before:,.0f} | {after:,.0f} | {after / before:.2f} |"


def _of_commit(name: str, proof: str, counted: dict[str, float]) -> float:
    commit = resolve(name)
    if commit not in counted:
        tree = unpack(commit, DIRECTORY)
        core = tree / "benchmarks" / "core.py"
        if not core.is_file():
            core.write_bytes(file_of(FIRST_CORE, "benchmarks/core.py"))
        counted[commit] = instructions(tree, proof)
    return counted[commit]


def instructions(tree: Path, proof: str) -> float:
    """Instructions for each push of the second drain in this tree."""
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--instr-atstart=no")
    core = ("--pushes", str(PUSHES), "--runs", "1", "--confirm", proof)
    # A fixed seed for hashes: a dictionary's order, and so its cost, is the same in every tree.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*valgrind, sys.executable, "-c", _RUN, *core],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None or not int(found[1]):
        raise CannotMeasure(f"benchmarks.core under valgrind: {done.stderr.strip()[-1000:]}")
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
