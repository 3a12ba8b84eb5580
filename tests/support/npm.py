"""Packages of npm for tests: installed once below .dev, never in the tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

import bridge
from tests.conftest import DEV

TYPESCRIPT: Final = "7.0.2"
AXE: Final = "4.14.1"
BUNDLED: Final = {
    "esbuild": "0.25.12",
    "react": "19.2.0",
    "react-dom": "19.2.0",
    "vue": "3.5.22",
    "ws": "8.18.3",
}
"""What programs that use the browser's library are bundled with, and by."""
VITE: Final = "7.3.8"
LIBRARY: Final = Path(bridge.__file__).parent / "web" / "bridge-client.js"
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
    return _installed("npm", {"typescript": TYPESCRIPT}) / ".bin" / "tsc"


def modules() -> Path:
    """The folder `node_modules` with the packages of BUNDLED."""
    return _installed("npm-bundled", BUNDLED)


def bundle(directory: Path, *arguments: str) -> str:
    """What esbuild makes of the files there; it finds the packages, and the library as `bridge-client`."""
    done = subprocess.run(
        [modules() / ".bin" / "esbuild", "--bundle", f"--alias:bridge-client={LIBRARY}", *arguments],
        cwd=directory, env={**os.environ, "NODE_PATH": str(modules())}, capture_output=True, text=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(directory: Path) -> Path:
    """The folder of what Vite makes of the site there, whose programs may import `bridge-client`."""
    package = directory / "node_modules" / "bridge-client"
    package.mkdir(parents=True)
    for name in ("package.json", *json.loads((LIBRARY.parent / "package.json").read_text())["files"]):
        shutil.copy(LIBRARY.parent / name, package)
    vite = _installed("npm-vite", {"vite": VITE}) / ".bin" / "vite"
    done = subprocess.run(
        [vite, "build", "--logLevel", "warn"], cwd=directory, capture_output=True, text=True, timeout=SECONDS
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return directory / "dist"


def axe() -> str:
    """The source of axe-core, which finds what keeps people with disabilities from using a page."""
    return (_installed("npm-axe", {"axe-core": AXE}) / "axe-core" / "axe.min.js").read_text()


def _installed(folder: str, packages: Mapping[str, str]) -> Path:
    """A folder of modules below .dev that has these packages, by version."""
    home = DEV / folder
    home.mkdir(parents=True, exist_ok=True)
    wanted = json.dumps({"private": True, "dependencies": dict(packages)})
    done = home / "installed.json"
    if not done.exists() or done.read_text() != wanted:
        (home / "package.json").write_text(wanted)
        npm(home, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
        done.write_text(wanted)
    return home / "node_modules"
