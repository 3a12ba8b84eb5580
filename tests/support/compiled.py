"""`make compiled`: builds a copy of the repository whose core is compiled, and runs the core's tests on it.

The source tree stays interpreted. The copy is build/compiled; `PYTHONPATH=build/compiled` runs a bridge from it. It is
compiled as wheels are (`deploy/wheel/compiling.py`). Where nothing has changed since the last time nothing is compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import pytest

from deploy.wheel.compiling import MANIFEST

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COPY: Final = ROOT / "build" / "compiled"
COMPILER: Final = ROOT / "deploy" / "wheel" / "compiling.py"
TESTS: Final = ("tests/core", "tests/contract", "tests/shell")
_NOT_COPIED: Final = ("build", "dist", "__pycache__", "*.egg-info", ".*")

_SERVERS: Final = frozenset(("servers", "own_servers", "databases", "database", "empty_database", "vhost"))
"""Fixtures of tests that need real servers: those run in `make test`."""
_ON_SERVERS: Final = frozenset(("postgres", "rabbitmq"))
"""Parameters that ask for them."""
_LEFT_OUT: Final = {
    "test_a_lie_is_found": "replaces a method of Flight",
    "test_a_defect_in_decoding_costs_one_message": "replaces a function of the contract",
    "test_every_type_of_message_that_can_be_read_has_a_handler": "reads the annotations of a function",
    "test_a_message_whose_handling_fails_goes_back_and_its_neighbours_are_unharmed": "replaces a method of Hub",
}
"""Tests that a compiled core cannot pass, and why. Its calls go straight to what they name."""


def build() -> None:
    """Make the copy, and compile its core; raises SystemExit where that fails."""
    _copy()
    log = COPY / "mypyc.log"
    command = [sys.executable, str(COMPILER), str(COPY)]
    with log.open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=out)
    said = [line for line in log.read_text().splitlines() if ": warning: " not in line]
    if done.returncode != 0:
        sys.exit("\n".join([*said[-30:], f"mypyc failed; all that it said is in {log}"]))
    print("\n".join(said), flush=True)


def _copy() -> None:
    """Copy the repository; what was compiled before stays, and files keep their times."""
    COPY.mkdir(parents=True, exist_ok=True)
    (COPY / MANIFEST).unlink(missing_ok=True)
    for path in COPY.iterdir():
        if path.name == "bridge":
            for file in path.rglob("*.py"):
                file.unlink()
        elif path.is_dir() and path.name != "build":
            shutil.rmtree(path)
    shutil.copytree(ROOT, COPY, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)


def test() -> int:
    """Run the tests of the core, and those of its contracts that need no server, on the copy."""
    began = time.monotonic()
    spread = ("-n", "2", "--dist", "loadfile")
    command = [sys.executable, "-m", "pytest", "-q", *spread, "-p", __spec__.name, *TESTS]
    done = subprocess.run(command, cwd=COPY, env={**os.environ, "PYTHONPATH": str(COPY)})
    print(f"tests on the compiled core: {time.monotonic() - began:.0f} s")
    return done.returncode


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile a copy of the core, and run its tests on that.")
    parser.add_argument("--only", choices=("build", "test"), help="one of the two")
    only = parser.parse_args().only
    if only != "test":
        build()
    return test() if only != "build" else 0


# --- in the tests' process: this file is a plug-in of pytest ---


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check that the compiled core is tested; leave out tests that need servers, and those of `_LEFT_OUT`."""
    _check_that_all_is_compiled()
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (left if _needs_servers(item) or _plain_name(item) in _LEFT_OUT else kept).append(item)
    missing = _LEFT_OUT.keys() - {_plain_name(item) for item in left}
    if missing:
        raise pytest.UsageError(f"no longer there, so not to be left out: {', '.join(sorted(missing))}")
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _check_that_all_is_compiled() -> None:
    """Raise where a module that was compiled is used in another form, or holds what was to stay interpreted."""
    wrong = []
    for name in json.loads((ROOT / MANIFEST).read_text()):
        module = importlib.import_module(name)
        if not (module.__file__ or "").endswith(".so") or not Path(str(module.__file__)).is_relative_to(ROOT):
            wrong.append(f"{name} is {module.__file__}")
        own = [kind for kind in vars(module).values() if getattr(kind, "__module__", "") == name]
        if any(isinstance(kind, type) and issubclass(kind, msgspec.Struct) for kind in own):
            wrong.append(f"{name} holds a compiled msgspec.Struct")
    if wrong:
        raise pytest.UsageError(f"not what is to be tested: {', '.join(wrong)}")


def _plain_name(item: pytest.Item) -> str:
    return item.name.partition("[")[0]


def _needs_servers(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    callspec = getattr(item, "callspec", None)
    given = callspec.params.values() if callspec is not None else ()
    return not _SERVERS.isdisjoint(item.fixturenames) or any(
        isinstance(value, str) and value in _ON_SERVERS for value in given
    )


if __name__ == "__main__":
    sys.exit(main())
