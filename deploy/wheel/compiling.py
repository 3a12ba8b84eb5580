"""Compiles the core with mypyc, in place: `python deploy/wheel/compiling.py TREE`, where TREE holds `bridge/`.

The build hook of the wheel and `make compiled` both run this, so both compile the same modules in the same way. An
extension `x.*.so` is then beside each module `x.py` that was compiled. Python prefers it; the text stays, for people.
`why_interpreted` tells what mypyc cannot compile, or would compile into something else: a module with that stays
interpreted. Any other error of mypyc ends the build.

Needs mypy, setuptools, what the modules import, a C compiler and Python's headers.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import concurrent.futures
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "bridge/core",
    "bridge/adapters/amqp/announcing",
    "bridge/adapters/amqp/arrivals",
    "bridge/adapters/amqp/decoding",
    "bridge/adapters/amqp/encoding",
    "bridge/adapters/amqp/frames",
    "bridge/adapters/amqp/outbox",
    "bridge/adapters/counting",
    "bridge/adapters/postgres/rows",
    "bridge/adapters/websocket/pongs",
    "bridge/adapters/websocket/wire",
)
"""What is compiled: packages with all that is inside them, and the modules of the adapters that run for every push."""
DATA: Final = ("bridge/core/model", "bridge/core/ports")
"""Hold data and protocols, hardly any code. mypyc fails at some uses of enums whose module is compiled too, and other
people's plug-ins may name a protocol as their base."""
MANIFEST: Final = "compiled.json"
"""In the tree afterwards: the names of the modules that are compiled."""
SETTINGS: Final = Path(__file__).resolve().parent.parent.parent / "pyproject.toml"
"""Has the options of mypy: a module that `make lint` accepts must not be refused here."""
_GROUP: Final = "bridge_core"
"""Names the library with the code of all modules, bridge_core__mypyc. Each module's own extension points there."""

_NAMED: Final = {
    "bridge/core/errors.py": "interpreted classes outside the core have these as bases, and a compiled one forbids it",
    "bridge/core/contract/requests/headers.py": "compares integers of any size with floats: mypyc converts them first",
}
"""Modules that stay interpreted for what cannot be told from their text, and why."""


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
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "vars":
            return f"line {node.lineno}: vars: objects of compiled classes have no dictionary"
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


def choose(tree: Path, also: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """The files to compile, by their path in the tree; and those that stay interpreted, with the reason."""
    chosen: list[str] = []
    kept: dict[str, str] = {}
    for package in (*PACKAGES, *also):
        module = tree / f"{package}.py"
        for path in [module] if module.is_file() else sorted((tree / package).rglob("*.py")):
            name = str(path.relative_to(tree))
            if any(path.is_relative_to(tree / data) for data in DATA):
                continue
            text = path.read_text()
            why = _NAMED.get(name) or why_interpreted(text)
            if why is not None:
                kept[name] = why
            elif len(ast.parse(text).body) > 1:  # not the packages' own files that hold a docstring only
                chosen.append(name)
    return chosen, kept


def module_name(path: str) -> str:
    """`bridge.core.gateway` for bridge/core/gateway.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def compile_in(tree: Path, also: tuple[str, ...] = ()) -> None:
    """Compile the modules of a tree; raises SystemExit where mypyc or the C compiler fails."""
    # They are there only where something is compiled. mypyc uses setuptools where that is imported already.
    import setuptools  # noqa: F401
    from mypyc.build import mypycify

    chosen, kept = choose(tree, also)
    for name, why in kept.items():
        print(f"stays interpreted: {name}: {why}")
    began = time.monotonic()
    made = tree / "build"
    os.chdir(tree)  # mypy names modules by their path from here
    extensions = mypycify(
        [f"--config-file={SETTINGS}", *chosen],
        opt_level="2",
        debug_level="0",
        multi_file=True,  # one C file of all needs a gigabyte to be compiled, and one processor
        target_dir=str(made),
        group_name=_GROUP,
    )
    for extension in extensions:
        # The warnings of whatever C compiler is there are of what mypyc writes, and nobody here can mend them.
        extension.extra_compile_args = [
            *(argument for argument in extension.extra_compile_args if argument != "-Werror"),
            "-w",
        ]
    _remove_others(tree, chosen)
    _run_c_compiler(extensions, made)
    (tree / MANIFEST).write_text(json.dumps([module_name(name) for name in chosen]))
    print(f"modules compiled: {len(chosen)}, in {time.monotonic() - began:.0f} s")


def _remove_others(tree: Path, chosen: list[str]) -> None:
    """Remove what an earlier run has compiled and this one does not: Python would use it."""
    stems = {name.removesuffix(".py") for name in chosen}
    for path in (tree / "bridge").rglob("*.so"):
        if str(path.relative_to(tree)).partition(".")[0] not in stems:
            path.unlink()


def _run_c_compiler(extensions: list[Any], made: Path) -> None:
    """Compile the C files of the extensions, as many at a time as there are processors, and link them in place."""
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    jobs = os.cpu_count() or 1
    command = build_ext(Distribution({"name": _GROUP, "ext_modules": extensions}))
    command.inplace = True
    command.build_temp = str(made)
    command.build_lib = str(made / "lib")
    # Extensions side by side. The files of one are not, and one has nearly all of them: see below.
    command.parallel = jobs
    one_after_the_other: Callable[[], None] = command.build_extensions

    def side_by_side() -> None:
        compile_all: Callable[..., list[str]] = command.compiler.compile

        def compile_each(sources: list[str], *args: Any, **options: Any) -> list[str]:
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                parts = pool.map(lambda source: compile_all([source], *args, **options), sources)
                return [path for part in parts for path in part]

        command.compiler.compile = compile_each
        one_after_the_other()

    command.build_extensions = side_by_side
    command.ensure_finalized()
    command.run()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the core with mypyc, in place.")
    parser.add_argument("tree", type=Path, help="the folder that holds bridge/")
    parser.add_argument("--also", action="append", default=[], help="a further package or module, as a path")
    arguments = parser.parse_args()
    compile_in(arguments.tree.resolve(), tuple(arguments.also))


if __name__ == "__main__":
    main()
