"""The directory of a run: its ports and passwords, its owner, and the processes that end with the owner."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bridge.devservers.processes import Identity, end_process, machine_boot, patience
from bridge.devservers.servers import HOST, STOP_TIMEOUT, ServersInUse


class SavedValues:
    """The ports, passwords and names that a server uses again at its next start, in a file that only we may read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._values = json.loads(file.read_text())

    def get(self, name: str, make: Callable[[], str]) -> str:
        """The value saved under `name`, made now if there is none."""
        if name not in self._values:
            self.put(name, make())
        return str(self._values[name])

    def port(self, name: str, usual: int | None) -> int:
        """The port saved under `name` if it is free, else the usual one, else another."""
        kept = self._values.get(name)
        port = next((p for p in (kept, usual) if p is not None and _port_is_free(p)), None)
        if port is None:
            port = _free_port(except_for={v for v in self._values.values() if isinstance(v, int)})
        if port != kept:
            self.put(name, port)
        return port

    def flag(self, name: str) -> bool:
        return bool(self._values.get(name))

    def put(self, name: str, value: object) -> None:
        self._values[name] = value
        new = self._file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(json.dumps(self._values, indent=2) + "\n")
        new.replace(self._file)


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections in TIME_WAIT do not stop a server from binding, so they must not stop the probe.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port(except_for: set[int]) -> int:
    """A free port below the range that outgoing connections use.

    Inside that range, a client that connects to a stopped server again and again can be given that same port as
    its own. It then connects to itself, and the server can't start again.
    """
    while True:
        port = 15000 + secrets.randbelow(15000)
        if port not in except_for and _port_is_free(port):
            return port


def home_of(base: Path, name: str) -> tuple[Path, SavedValues]:
    """A server's directory below `base` and its saved values. What never started once is thrown away."""
    home = base / name
    settings = SavedValues(home / "settings.json")
    if not settings.flag("ready"):
        shutil.rmtree(home, ignore_errors=True)
        settings = SavedValues(home / "settings.json")
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    return home, settings


class Run:
    """The directory of a run, with its owner and the processes that belong to it.

    The owner and its guard hold the lock together, so the next owner waits until the guard is done.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.records = self.root / "run"
        self.records.mkdir(parents=True, exist_ok=True)
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def record(self, name: str) -> Path:
        return self.records / f"{name}.process"

    def take(self) -> None:
        """Become the owner, end what an earlier owner left behind, and start the guard."""
        lock = (self.root / "lock").open("a+")
        try:
            self._take(lock)
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        end_recorded(self.root)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "bridge.devservers", "guard", str(self.root), str(os.getpid())],
            cwd=Path(__file__).resolve().parent.parent.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )

    def _take(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + 2 * STOP_TIMEOUT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = Identity.read(self.record("owner"))
                if owner is None or owner.alive() or time.monotonic() > deadline:
                    raise ServersInUse(self.root, owner.pid if owner else None) from None
                time.sleep(0.1)  # the owner is dead, and its guard is at work
        stat = Path("/proc/self/stat").read_text()
        self.record("owner").write_text(f"{machine_boot()}\n{stat}")

    def leave(self) -> None:
        """Give the directory back. If the stop was interrupted and a server still runs, the guard lives on and stops it
        when this process ends; until then the directory is not free."""
        if self._lock is None:
            return
        if not self._left_running():
            if self._guard is not None:
                self._guard.kill()
                self._guard.wait()
            self.record("owner").unlink(missing_ok=True)
        self._lock.close()

    def _left_running(self) -> bool:
        """Whether a server still has a record: it is removed when the server has ended."""
        owner = self.record("owner")
        return any(record != owner for record in self.records.iterdir())


def end_recorded(root: Path) -> None:
    """End every server that is recorded below `root`: for the guard, and for the first start after a crash."""
    records = root / "run"
    for name, number in (("rabbitmq", signal.SIGTERM), ("postgres", signal.SIGINT), ("epmd", signal.SIGTERM)):
        record = records / f"{name}.process"
        who = Identity.read(record)
        if who is not None:
            end_process(who, number, patience(record))
        record.unlink(missing_ok=True)
    project = records / "compose.json"
    if project.exists():
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(project.read_text())
            subprocess.run(
                known["down"], env=known["env"], capture_output=True, check=False, timeout=2 * STOP_TIMEOUT
            )
        project.unlink(missing_ok=True)


def guard(root: Path, owner: int) -> None:
    """Wait for the owner's death and end what it leaves behind. The owner kills this process when nothing is left."""
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        end_recorded(root)
        return
    if os.getppid() == owner:  # otherwise it died before we looked, and another process may have its pid
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
    end_recorded(root)
