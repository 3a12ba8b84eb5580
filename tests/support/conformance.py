"""Autobahn's WebSocket cases against the real server: `make conformance`.

The suite is a program for Python 2.7. It is installed into .dev with the pip of the interpreter that `--python` names,
or of the one that is found. Exit codes: 0 every case passed, 1 some did not, 2 it could not be run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.echo import echoing

DIRECTORY: Final = Path(__file__).parent.parent.parent / ".dev" / "conformance"
SUITE: Final = "autobahntestsuite==0.8.2"
CASES: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
PASSED: Final = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
# Its packages share a namespace, which Python 2.7 only finds by a site directory.
_RUN: Final = """
import site, sys
site.addsitedir(sys.argv[1])
sys.argv[1:] = ["-m", "fuzzingclient", "-s", sys.argv[2]]
from autobahntestsuite.wstest import run
run()
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.conformance", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--python", default=shutil.which("python2.7"), help="a Python 2.7 with pip")
    python = parser.parse_args(arguments).python
    if python is None:
        print("not run: there is no python2.7, name one with --python", file=sys.stderr)
        return 2
    try:
        suite = installed(python)
        found = asyncio.run(_measured(python, suite))
    except subprocess.CalledProcessError as failed:
        print(f"not run: {failed}; {(failed.stderr or b'').decode()[-500:]}", file=sys.stderr)
        return 2
    for line in summary(found):
        print(line)
    return 0 if all(behaviour in PASSED for pair in found.values() for behaviour in pair) else 1


def installed(python: str) -> Path:
    """The suite, in a directory of its own."""
    suite = DIRECTORY / "suite"
    if not (suite / "autobahntestsuite").is_dir():
        command = [python, "-m", "pip", "install", "--quiet", "--target", str(suite), SUITE]
        subprocess.run(command, check=True, capture_output=True)
    return suite


async def _measured(python: str, suite: Path) -> Mapping[str, tuple[str, str]]:
    async with echoing() as server:
        return await asyncio.to_thread(results, python, suite, server.port)


def results(python: str, suite: Path, port: int) -> dict[str, tuple[str, str]]:
    """How each case went, and its close."""
    reports = DIRECTORY / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    spec = DIRECTORY / "spec.json"
    server = {"agent": "bridge", "url": f"ws://127.0.0.1:{port}/ws"}
    spec.write_text(
        json.dumps(
            {
                "outdir": str(reports),
                "servers": [server],
                "cases": CASES,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    subprocess.run(
        [python, "-c", _RUN, str(suite), str(spec)], check=True, capture_output=True, cwd=DIRECTORY
    )
    told = json.loads((reports / "index.json").read_text())["bridge"]
    return {case: (one["behavior"], one["behaviorClose"]) for case, one in told.items()}


def summary(found: Mapping[str, tuple[str, str]]) -> list[str]:
    """How many went how, and those that are not simply OK, by name."""
    counts = Counter(behaviour for behaviour, _ in found.values())
    lines = [f"{len(found)} cases: " + ", ".join(f"{count} {name}" for name, count in counts.most_common())]
    odd = {case: pair for case, pair in found.items() if set(pair) - {"OK", "INFORMATIONAL"}}
    return [
        *lines,
        *(f"  {case}: {behaviour}, its close {close}" for case, (behaviour, close) in odd.items()),
    ]


if __name__ == "__main__":
    sys.exit(main())
