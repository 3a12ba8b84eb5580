"""`--compiled`: the same command, run from the copy of the repository whose core is compiled (`make compiled`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COPY: Final = ROOT / "build" / "compiled"
MANIFEST: Final = COPY / "compiled.json"
"""Written when the copy is complete."""
OPTION: Final = "--compiled"
ABOUT: Final = "with a compiled core: runs from build/compiled, which `make compiled` builds"


def run_compiled(module: str, arguments: Sequence[str] | None) -> None:
    """Become `python -m MODULE` in the copy; raises SystemExit where that is missing or stale."""
    if not MANIFEST.exists() or _texts(ROOT) != _texts(COPY):
        sys.exit(f"{COPY} is not there, or bridge/ has changed since it was built: run `make compiled` first")
    given = [word for word in (sys.argv[1:] if arguments is None else arguments) if word != OPTION]
    environment = {**os.environ, "PYTHONPATH": str(COPY)}
    os.chdir(COPY)
    os.execve(sys.executable, [sys.executable, "-m", module, *given], environment)


def _texts(root: Path) -> dict[str, str]:
    """The text of every module of the package."""
    package = root / "bridge"
    return {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
