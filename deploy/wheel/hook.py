"""The build hook of the wheel: adds compose.yaml, and compiles the core where it can.

docs/adr/0021-wheels-are-compiled.md says why.

BRIDGE_PURE in the environment of the build decides. Not set: the core is compiled where there is a C compiler, and
stays interpreted otherwise. 1: it stays interpreted. 0: it is compiled, or the build fails. An editable install is
interpreted, so that what is edited runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PURE: Final = "BRIDGE_PURE"
NEEDED: Final = ("mypy", "setuptools")
"""What compiling needs besides: the compiler, and what calls the C compiler."""
_COMPILE: Final = Path("deploy", "wheel", "compiling.py")
_LINES_SHOWN: Final = 30
_COMPOSE: Final = "compose.yaml"
_COMPOSE_INSTALLED: Final = f"bridge/devservers/{_COMPOSE}"
"""Where `bridge dev` of an installed wheel looks for it."""


class CompiledCore(BuildHookInterface[BuilderConfig]):
    """Compiles a copy of the core, and puts the extensions into the wheel beside their modules."""

    _made: tempfile.TemporaryDirectory[str] | None = None

    def dependencies(self) -> list[str]:
        """What pip installs for the build; nothing where nothing will be compiled.

        What the bridge itself needs is among it: the compiler reads its types.
        """
        if why_pure():
            return []
        pins = (Path(self.root) / "constraints.txt").read_text().splitlines()
        return [*(pin for pin in pins if pin.partition("==")[0] in NEEDED), *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say which form the core has."""
        if version != "editable":
            build_data["force_include"][str(Path(self.root) / _COMPOSE)] = _COMPOSE_INSTALLED
        why = "this install is editable" if version == "editable" else why_pure()
        if why is None:
            why = self._compile(build_data)
        if why is not None:
            self.app.display_info(f"bridge: the core is interpreted: {why}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy: what the wheel takes of it is in the wheel."""
        if self._made is not None:
            self._made.cleanup()

    def _compile(self, build_data: dict[str, Any]) -> str | None:
        """Compile, and tell the wheel of it; why not, where that failed and may fail."""
        self.app.display_info("bridge: compiling the core, which takes a minute or two")
        self._made = tempfile.TemporaryDirectory(prefix="bridge-")
        tree = Path(self._made.name)
        shutil.copytree(
            Path(self.root) / "bridge", tree / "bridge", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        done = subprocess.run(
            [sys.executable, str(Path(self.root) / _COMPILE), str(tree)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said = done.stdout.strip().splitlines()
        if done.returncode != 0:
            for line in said[-_LINES_SHOWN:]:
                self.app.display_info(line)
            if os.environ.get(PURE) == "0":
                raise SystemExit(f"bridge: the core cannot be compiled, and {PURE} is 0")
            return f"compiling it failed, as told above; {PURE}=0 makes that an error"
        found = [path for path in tree.rglob("*.so") if not path.is_relative_to(tree / "build")]
        build_data["force_include"].update({str(path): str(path.relative_to(tree)) for path in found})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        self.app.display_info(f"bridge: {said[-1]}")
        return None


def why_pure() -> str | None:
    """Why this build compiles nothing; None where it compiles."""
    asked = os.environ.get(PURE, "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"bridge: {PURE} is {asked!r}; it may be 0 or 1")
    if asked:
        return f"{PURE} is 1" if asked == "1" else None
    if sys.implementation.name != "cpython":
        return f"mypyc compiles for CPython, and this is {sys.implementation.name}"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are not there (on Debian: python3-dev)"
    return None
