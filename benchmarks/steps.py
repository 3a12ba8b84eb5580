"""What each step made cheaper: instructions of a push before and after single commits, `python -m benchmarks.steps`.

Each commit and its parent are unpacked, and `benchmarks.core` runs in both under valgrind. Instructions hardly depend
on what else the machine does, so that the steps can be counted months later. It takes about two minutes for each tree,
and prints the table that docs/performance.md shows. Exit codes: 0 measured, 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from benchmarks.guard import PROOFS, ROOT, CannotMeasure, file_of, instructions, unpack

DIRECTORY: Final = ROOT / ".dev" / "bench" / "steps"
STEPS: Final[Mapping[str, str]] = {
    "b5405a4": "An ordinary message without a wait; what its row and receipt share is made once",
    "6206a25": "A wait before each write of rows; pongs without the library's parser",
    "9d65893": "What the receipts of a batch share is written once; one look at the clock for a flush",
    "e5063b7": "The hot parts of the adapters as modules of plain functions",
    "4562757": "The rows of an ordinary request are counted without its resolver",
    "9dc47bf": "A push to everyone sends its frames first",
    "d2d6fe9": "The hot parts of the adapters can be compiled",
}
"""Commits, and what each of them did."""
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
    """The lines of the table, each as soon as it is measured; the last one has the product of all ratios."""
    counted: dict[str, float] = {}
    product = 1.0
    yield "| step | commit | before | after | ratio |"
    yield "|---|---|---:|---:|---:|"
    for commit in commits:
        before, after = (_instructions(name, proof, counted) for name in (f"{commit}^", commit))
        product *= after / before
        yield f"| {STEPS.get(commit, '')} | `{commit}` | {before:,.0f} | {after:,.0f} | {after / before:.2f} |"
    yield f"| all of them | | | | {product:.2f} |"


def _instructions(commit: str, proof: str, counted: dict[str, float]) -> float:
    if commit not in counted:
        tree = unpack(commit, DIRECTORY)
        core = tree / "benchmarks" / "core.py"
        if not core.is_file():
            core.write_bytes(file_of(FIRST_CORE, "benchmarks/core.py"))
        counted[commit] = instructions(tree, proof)
    return counted[commit]


if __name__ == "__main__":
    sys.exit(main())
