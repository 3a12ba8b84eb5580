"""The batched Node bridge: what it needs is installed below .dev, never in the tree."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.processes import BenchmarkFailed
from benchmarks.scene import Contestant

SOURCE: Final = Path(__file__).resolve().parent / "node"
INSTALL_TIMEOUT: Final = 300.0
NAME: Final = "node, batched"


def contestant(directory: Path, say: Callable[[str], None]) -> Contestant:
    """The Node bridge, its packages installed in `directory` if they are not there yet. Raises BenchmarkFailed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise BenchmarkFailed(f"{NAME} needs Node 18 or later with npm")
    directory.mkdir(parents=True, exist_ok=True)
    wanted = (SOURCE / "package.json").read_text()
    installed = directory / "installed.json"
    if not installed.exists() or installed.read_text() != wanted:
        (directory / "package.json").write_text(wanted)
        say("npm install (once)")
        command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT,
        )
        if done.returncode:
            raise BenchmarkFailed(f"npm install failed:\n{done.stdout}{done.stderr}")
        installed.write_text(wanted)
    # Node looks for packages beside the source.
    program = directory / "bridge.js"
    shutil.copyfile(SOURCE / "bridge.js", program)
    return Contestant(NAME, (node, str(program)), "written", "node_log", True)
