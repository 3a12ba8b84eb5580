"""What is kept from being compiled, and what it is kept for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import compiled
from deploy.wheel.compiling import _NAMED, PACKAGES, SETTINGS, module_name, why_interpreted


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("class A(msgspec.Struct, frozen=True):\n    a: int | None = None", "msgspec reads its annotations"),
        ("class A(Struct):\n    a: int", "msgspec reads its annotations"),
        ("class A(int):\n    pass", "no subclasses of built-in types"),
        ("class A:\n    a, b = 1, 2", "one name in an assignment of a class"),
        (r"A = '[\ud800-\udfff]'", "no surrogates"),
        ("def a(b: bytes | Raw):\n    return b", "declares Raw as a subclass"),
        ("async def a():\n    for b in c:\n        yield b", "no async generators"),
        ("def a():\n    return (b for b in c)", "a list of a generator expression"),
        ("async def a(b):\n    b.c.d += await e()", "fails at"),
        ("def a(b):\n    return vars(b).values()", "have no dictionary"),
    ],
)
def test_what_mypyc_cannot_compile_or_would_change_stays_interpreted(source: str, why: str) -> None:
    said = why_interpreted(source)
    assert said is not None
    assert why in said


@pytest.mark.parametrize(
    "source",
    [
        "class A(NamedTuple):\n    a: int | None = None",
        "class A(enum.Enum):\n    A = 1",
        "class A(Exception):\n    pass",
        "class A(object):\n    a = 1",
        "async def a():\n    def b():\n        yield 1\n    return list(b())",
        "a = tuple(b for b in c)",
        "async def a(b):\n    b.c += await d()",
        r"A = r'[\ud800-\udfff]'",
    ],
)
def test_what_means_the_same_is_compiled(source: str) -> None:
    assert why_interpreted(source) is None


def test_a_module_has_the_name_that_an_import_gives_it() -> None:
    assert module_name("bridge/core/gateway.py") == "bridge.core.gateway"
    assert module_name("bridge/core/contract/requests/__init__.py") == "bridge.core.contract.requests"


def test_the_modules_that_are_kept_by_name_are_there() -> None:
    assert [name for name in _NAMED if not (SETTINGS.parent / name).is_file()] == []


def test_a_benchmark_runs_compiled_only_from_a_copy_that_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[list[str]] = []
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    monkeypatch.setattr(compiled, "COPY", tmp_path / "copy")
    monkeypatch.setattr(compiled, "MANIFEST", tmp_path / "copy" / "compiled.json")
    monkeypatch.setattr(os, "execve", lambda program, words, environment: began.append(words[1:]))
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, tmp_path / "copy"):
        (root / "bridge").mkdir(parents=True)
        (root / "bridge" / "a.py").write_text("A = 1\n")
    with pytest.raises(SystemExit, match="run `make compiled` first"):
        compiled.run_compiled("benchmarks", ["--compiled"])
    (tmp_path / "copy" / "compiled.json").write_text("[]")
    compiled.run_compiled("benchmarks", ["--quick", "--compiled", "--only", "idle"])
    assert began == [["-m", "benchmarks", "--quick", "--only", "idle"]]
    (tmp_path / "bridge" / "a.py").write_text("A = 2\n")
    with pytest.raises(SystemExit, match="bridge/ has changed"):
        compiled.run_compiled("benchmarks", ["--compiled"])


def test_everything_that_is_to_be_compiled_is_there_and_can_be() -> None:
    root = SETTINGS.parent
    modules = [root / f"{name}.py" for name in PACKAGES if not (root / name).is_dir()]
    assert {path.name: why_interpreted(path.read_text()) for path in modules} == {
        path.name: None for path in modules
    }
