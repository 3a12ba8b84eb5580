"""`make compiled`: builds a copy of the repository whose core is compiled, and runs the core's tests on it.

The source tree stays interpreted. The copy is build/compiled; `PYTHONPATH=build/compiled` runs a bridge from it. What a
module has that mypyc cannot compile, or would compile into something else, is in `why_interpreted`: such a module stays
interpreted, in the copy too. Any other error of mypyc ends the build.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

ROOT: Final = Path(__file__).resolve().parent.parent.parent
COPY: Final = ROOT / "build" / "compiled"
MANIFEST: Final = "compiled.json"
"""In the copy: the names of the modules that are compiled."""
CORE: Final = "bridge/core"
DATA: Final = "bridge/core/model"
"""Holds data, hardly any code. mypyc fails at some uses of enums whose module is compiled too."""
TESTS: Final = ("tests/core", "tests/contract")
SETTINGS: Final = "pyproject.toml"
_NOT_COPIED: Final = ("build", "dist", "__pycache__", "*.egg-info", ".*")

_NAMED: Final = {
    "bridge/core/contract/requests/headers.py": "compares integers of any size with floats: mypyc converts them first",
}
"""Modules that stay interpreted for what cannot be told from their text, and why."""
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


def why_interpreted(source: str) -> str | None:
    """Why a module with this text stays interpreted; None where it can be compiled."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            if "Struct" in bases:
                # A compiled class has `type` in the place of unions and Annotated: msgspec would check nothing.
                return (
                    f"class {node.name}: msgspec reads its annotations, and mypyc keeps only the plain ones"
                )
            if any(_is_plain_builtin(base) for base in bases):
                return f"class {node.name}: mypyc has no subclasses of built-in types"
            if any(
                isinstance(line, ast.Assign) and not isinstance(line.targets[0], ast.Name)
                for line in node.body
            ):
                return f"class {node.name}: mypyc takes one name in an assignment of a class"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_utf_8(node.value):
            return f"line {node.lineno}: mypyc takes no surrogates in a literal"
        elif isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).rpartition(".")[2] == "Raw":
            # `bytes | Raw` becomes bytes for mypyc, and a Raw is then refused with a TypeError.
            return f"line {node.lineno}: msgspec declares Raw as a subclass of bytes, and it is none"
        elif isinstance(node, ast.AsyncFunctionDef) and any(_own_yields(node)):
            return f"{node.name}: mypyc has no async generators"
        elif isinstance(node, ast.GeneratorExp) and not isinstance(parents[node], ast.Call | ast.Starred):
            # Compiled, it is a list that is made at once: what reads it step by step would no longer.
            return f"line {node.lineno}: mypyc makes a list of a generator expression"
        elif (
            isinstance(node, ast.AugAssign)
            and isinstance(node.value, ast.Await)
            and "." in _holder(node.target)
        ):
            return f"line {node.lineno}: mypyc fails at `a.b.c += await d`"
    return None


def _holder(target: ast.expr) -> str:
    """What the attribute that is assigned to belongs to."""
    return ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""


def _is_plain_builtin(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and found is not object and not issubclass(found, BaseException)


def _is_utf_8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _own_yields(function: ast.AsyncFunctionDef) -> Iterator[ast.Yield]:
    """The yields of a function, without those of functions inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Yield):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            todo.extend(ast.iter_child_nodes(node))


def build() -> None:
    """Make the copy, and compile its core."""
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT, COPY, ignore=shutil.ignore_patterns(*_NOT_COPIED, SETTINGS))
    chosen: list[str] = []
    for path in sorted((COPY / CORE).rglob("*.py")):
        name = str(path.relative_to(COPY))
        if path.is_relative_to(COPY / DATA):
            continue
        text = path.read_text()
        why = _NAMED.get(name) or why_interpreted(text)
        if why is not None:
            print(f"stays interpreted: {name}: {why}")
        elif len(ast.parse(text).body) > 1:  # not the packages' own files that hold a docstring only
            chosen.append(name)
    began = time.monotonic()
    log = COPY / "mypyc.log"
    # The copy gets its own pyproject.toml afterwards: setuptools would build what that says.
    command = [sys.executable, "-m", "mypyc", f"--config-file={ROOT / SETTINGS}", *chosen]
    with log.open("w") as out:
        done = subprocess.run(command, cwd=COPY, stdout=out, stderr=out)
    if done.returncode != 0:
        said = [line for line in log.read_text().splitlines() if ": warning: " not in line]
        sys.exit("\n".join([*said[-30:], f"mypyc failed; all that it said is in {log}"]))
    shutil.copy(ROOT / SETTINGS, COPY)
    (COPY / MANIFEST).write_text(json.dumps([module_name(name) for name in chosen]))
    print(f"compiled {len(chosen)} modules of the core in {time.monotonic() - began:.0f} s")


def module_name(path: str) -> str:
    """`bridge.core.gateway` for bridge/core/gateway.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test() -> int:
    """Run the tests of the core, and those of its contracts that need no server, on the copy."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", __spec__.name, *TESTS]
    done = subprocess.run(command, cwd=COPY, env={**os.environ, "PYTHONPATH": str(COPY)})
    print(f"tests on the compiled core: {time.monotonic() - began:.0f} s")
    return done.returncode


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
    build()
    sys.exit(test())
