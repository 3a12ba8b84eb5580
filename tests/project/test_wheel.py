"""Wheels hold a compiled core where there is a C compiler, and an interpreted one otherwise. The core here is tiny."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.wheel.hook import why_pure

ROOT = Path(__file__).parent.parent.parent
NO_COMPILER = "no-such-compiler"
BROKEN = "false"
"""A compiler that fails."""
HALF = "def half(number: int) -> int:\n    return number // 2\n\n\nFIVE = half(10)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The build of this project, with a package of one function in the place of its own."""
    for name in ("pyproject.toml", "constraints.txt", "compose.yaml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    core = tmp_path / "bridge" / "core"
    core.mkdir(parents=True)
    for package in (core.parent, core):
        (package / "__init__.py").write_text('"""A package."""\n')
    (core / "half.py").write_text(HALF)
    return tmp_path


def wheel(
    project: Path, *arguments: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Build a wheel; what it said, and the wheel. The build fails where it says so."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "made", *arguments],
        cwd=project,
        env={**{name: value for name, value in os.environ.items() if name != "CC"}, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done, next((project / "made").glob("*.whl"), Path())


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"BRIDGE_PURE": "1"}, "BRIDGE_PURE is 1"),
        ({"CC": NO_COMPILER}, f"there is no C compiler ({NO_COMPILER})"),
        ({"CC": BROKEN}, "compiling it failed"),
    ],
)
def test_a_wheel_is_for_every_machine_where_nothing_is_compiled_and_says_why(
    project: Path, environment: dict[str, str], why: str
) -> None:
    done, made = wheel(project, **environment)
    assert done.returncode == 0, done.stdout
    assert f"bridge: the core is interpreted: {why}" in done.stdout
    assert made.name.endswith("-py3-none-any.whl")
    assert [name for name in zipfile.ZipFile(made).namelist() if name.endswith(".so")] == []


def test_a_build_that_must_compile_fails_where_that_fails(project: Path) -> None:
    done, made = wheel(project, CC=BROKEN, BRIDGE_PURE="0")
    assert done.returncode != 0
    assert "the core cannot be compiled, and BRIDGE_PURE is 0" in done.stdout
    assert made == Path()


def test_a_wrong_value_is_refused(project: Path) -> None:
    done, _ = wheel(project, BRIDGE_PURE="yes")
    assert done.returncode != 0
    assert "BRIDGE_PURE is 'yes'; it may be 0 or 1" in done.stdout


def test_a_wheel_is_compiled_where_that_can_be_done_and_tells_how_long_it_took(project: Path) -> None:
    done, made = wheel(project)
    assert done.returncode == 0, done.stdout
    why_not = why_pure()
    if why_not is not None:  # this machine has no C compiler
        assert f"bridge: the core is interpreted: {why_not}" in done.stdout
        return
    assert re.search(r"bridge: modules compiled: 1, in \d+ s\n", done.stdout)
    assert not made.name.endswith("-none-any.whl")
    unpacked = project / "unpacked"
    zipfile.ZipFile(made).extractall(unpacked)
    code = "import bridge.core.half as half; print(half.FIVE, half.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    assert said.startswith(f"5 {unpacked}/bridge/core/half.")
    assert said.endswith(".so\n")
    assert (unpacked / "bridge" / "core" / "half.py").exists()


def test_an_editable_install_is_interpreted(project: Path) -> None:
    code = "import hatchling.build; print(hatchling.build.build_editable('made'))"
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env={name: value for name, value in os.environ.items() if name != "BRIDGE_PURE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout
    assert "bridge: the core is interpreted: this install is editable" in said
    assert list(project.rglob("*.so")) == []
