"""`make bench-guard`: did a change make a push more expensive? Compares this tree with its parent in a few minutes.

Both trees run `benchmarks.core` in turn, so that a busy machine slows down both. Where valgrind is installed, it counts
the instructions of each push as well, and those are judged: two runs of one tree differ by two percent or so, and in
CPU on a busy machine by more than the limit. Exit codes: 0 within the limit, 1 above it, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PARENT: Final = ROOT / ".dev" / "bench" / "parent"
PROOFS: Final = ("written", "received")
LIMIT: Final = 1.05
"""More than this times the parent's figure fails."""
TURNS: Final = 5
COUNTED: Final = 2_000
"""Pushes whose instructions are counted: a run with twice as many is compared with one of so many, so that the start
does not count."""


class CannotMeasure(Exception):
    """There is nothing to compare with, or a run failed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare with this commit [HEAD, or its parent if clean]"
    )
    parser.add_argument("--turns", type=int, default=TURNS, help=f"of each tree [{TURNS}]")
    parser.add_argument("--no-count", action="store_true", help="do not count instructions")
    chosen = parser.parse_args(arguments)
    try:
        commit = chosen.against or (
            "HEAD" if _git("status", "--porcelain", "--untracked-files=no") else "HEAD^"
        )
        with tree_of(commit) as parent:
            return compare(parent, ROOT, chosen.turns, count=not chosen.no_count)
    except CannotMeasure as problem:
        print(f"not measured: {problem}", file=sys.stderr)
        return 2


def compare(parent: Path, here: Path, turns: int, *, count: bool) -> int:
    """Print a line for each figure; returns 1 if one of them is above the limit."""
    runs: dict[Path, list[Mapping[str, Any]]] = {parent: [], here: []}
    for turn in range(turns):
        for tree in (parent, here) if turn % 2 else (here, parent):
            runs[tree].append(json.loads(_run(tree, _COMMAND)))
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    counted = count and shutil.which("valgrind") is not None
    judged: list[float] = []
    for proof in PROOFS:
        ratio = _say(
            f"{proof}: CPU of a push, µs", *(_least(runs[tree], proof, "lowest") for tree in (parent, here))
        )
        if counted:
            # Then the time is only for information: other programs change it by more than the limit.
            ratio = _say(
                f"{proof}: instructions of a push", *(instructions(tree, proof) for tree in (parent, here))
            )
        blocks = (_least(runs[tree], proof, "blocks_held") for tree in (parent, here))
        judged.append(ratio)
        # For information: how many are under way at once depends on the moment.
        _say(f"{proof}: blocks of a push under way", *blocks)
    worst = max(judged)
    if worst > LIMIT:
        print(f"above the limit: {worst:.2f} times the parent's figure, {LIMIT} are allowed")
        return 1
    return 0


def _least(runs: Sequence[Mapping[str, Any]], proof: str, name: str) -> float:
    return float(min(run[proof][name] for run in runs))


def _say(title: str, before: float, after: float) -> float:
    ratio = after / before if before > 0 else 1.0
    print(f"{title:40} {before:12,.1f} -> {after:12,.1f}   x {ratio:.3f}")
    return ratio


def instructions(tree: Path, proof: str) -> float:
    """Instructions for each push, as valgrind counts them."""
    once, twice = (_counted(tree, proof, COUNTED * times) for times in (1, 2))
    # A run has a warm-up of the same size.
    return (twice - once) / (2 * COUNTED)


def _counted(tree: Path, proof: str, pushes: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *_COMMAND]
    options = ["--pushes", str(pushes), "--runs", "1", "--confirm", proof]
    said = _run(tree, [*command, *options], errors=True)
    found = re.search(r"Collected : (\d+)", said)
    if found is None:
        raise CannotMeasure(f"valgrind says nothing of instructions: {said[-300:]}")
    return int(found[1])


_COMMAND: Final = (sys.executable, "-m", "benchmarks.core")


def _run(tree: Path, command: Sequence[str], *, errors: bool = False) -> str:
    # A fixed seed for hashes: a dictionary's order, and so its cost, is the same in every run.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotMeasure(f"{' '.join(command)} in {tree}: {done.stderr.strip()[-1000:]}")
    return done.stderr if errors else done.stdout


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of a commit, in a directory of their own."""
    try:
        tree = unpack(commit, PARENT)
        if not (tree / "benchmarks" / "core.py").is_file():
            raise CannotMeasure(f"{commit} has no benchmarks/core.py to run")
        yield tree
    finally:
        shutil.rmtree(PARENT, ignore_errors=True)


def unpack(commit: str, directory: Path) -> Path:
    """Put the files of a commit into this directory and nothing else; returns it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
    if archive.returncode != 0:
        raise CannotMeasure(f"{commit}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory


def resolve(commit: str) -> str:
    """The whole name of a commit."""
    return _git("rev-parse", "--verify", f"{commit}^{{commit}}")


def file_of(commit: str, path: str) -> bytes:
    """One file as it is in a commit."""
    return _git("show", f"{commit}:{path}").encode() + b"\n"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotMeasure(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
