"""Packages of npm for tests: installed once below .dev, never in the tree."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import DEV

TYPESCRIPT: Final = "7.0.2"
SECONDS: Final = 300.0


def npm(directory: Path, *arguments: str) -> str:
    """Run npm there; what it says. Skips the test where there is none."""
    program = shutil.which("npm")
    if program is None:
        pytest.skip("there is no npm on this machine")
    done = subprocess.run(
        [program, *arguments], cwd=directory, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tsc() -> Path:
    """The compiler of TypeScript."""
    home = DEV / "npm"
    home.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"private": True, "dependencies": {"typescript": TYPESCRIPT}})
    done = home / "installed.json"
    if not done.exists() or done.read_text() != wanted:
        (home / "package.json").write_text(wanted)
        npm(home, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
        done.write_text(wanted)
    return home / "node_modules" / ".bin" / "tsc"
