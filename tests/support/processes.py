"""Processes that a test has started."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def processes_of(root: Path) -> dict[int, str]:
    """Every process that was started for `root`: its command line or its environment names the directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if bytes(root) in command + (entry / "environ").read_bytes():
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode()
    return found
