"""Processes that we start: how to identify them beyond doubt, and how to end them."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bridge.devservers.servers import OPEN_FILES, START_TIMEOUT, STOP_TIMEOUT, ServersUnavailable

HASTE = 3.0
"""Seconds that a server gets to stop which has never answered; then it is killed."""
_READY = "ready"


@dataclass(frozen=True)
class _Stat:
    """What /proc says about a process."""

    pid: int
    state: str
    parent: int
    started: str

    @classmethod
    def parse(cls, line: str) -> Self:
        # The second field is the name in parentheses. It may hold anything, so count from its end.
        head, _, tail = line.rpartition(")")
        fields = tail.split()
        return cls(int(head.split(" ", 1)[0]), fields[0], int(fields[1]), fields[19])

    @classmethod
    def of(cls, pid: int) -> Self | None:
        try:
            return cls.parse(Path(f"/proc/{pid}/stat").read_text())
        except (OSError, ValueError, IndexError):
            return None


@dataclass(frozen=True)
class Identity:
    """One of all processes that ever had this pid: with its start, in clock ticks since the machine's boot, and that
    boot."""

    pid: int
    started: str
    machine_boot: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        stat = _Stat.of(pid)
        return None if stat is None else cls(pid, stat.started, machine_boot())

    @classmethod
    def read(cls, record: Path) -> Self | None:
        """The process that is recorded in `record`; it may have ended long ago."""
        try:
            boot, line = record.read_text().splitlines()[:2]
            stat = _Stat.parse(line)
        except (OSError, ValueError, IndexError):
            return None
        return cls(stat.pid, stat.started, boot)

    def alive(self) -> bool:
        stat = _Stat.of(self.pid)
        return (
            stat is not None
            and stat.state not in "ZX"
            and stat.started == self.started
            and self.machine_boot == machine_boot()
        )


def machine_boot() -> str:
    """The id of the machine's present boot. A pid and a start time identify a process only within one boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _family(pid: int) -> list[Identity]:
    """The present descendants of a process."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _Stat.of(int(entry))) is not None:
            children.setdefault(stat.parent, []).append(stat.pid)
    found, look = [], [pid]
    while look:
        for child in children.get(look.pop(), ()):
            look.append(child)
            if (identity := Identity.of(child)) is not None:
                found.append(identity)
    return found


def _signal(who: Identity, number: int) -> bool:
    """Signal exactly this process; false if it has ended. A pidfd, unlike a pid, can't pass to another process."""
    try:
        handle = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    try:
        if not who.alive():
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def _wait(who: Identity, seconds: float) -> bool:
    """Whether the process ended in time, whoever its parent is."""
    try:
        handle = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return True
    try:
        if not who.alive():
            return True
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(handle)


def patience(record: Path) -> float:
    """Seconds that the process recorded in `record` gets to stop. RabbitMQ hears no signal while it starts."""
    with suppress(OSError):
        if _READY in record.read_text().splitlines():
            return STOP_TIMEOUT
    return HASTE


def end_process(who: Identity, number: int, patience: float) -> None:
    """Signal it, wait, then kill it; and do the same to its children."""
    family = _family(who.pid) if who.alive() else []
    if _signal(who, number):
        for process in (who, *family):
            _signal(process, signal.SIGCONT)  # a frozen process handles no other signal
        if not _wait(who, patience):
            _signal(who, signal.SIGKILL)
            _wait(who, STOP_TIMEOUT)
    for child in family:
        if not _wait(child, 5.0):
            _signal(child, signal.SIGKILL)
            _wait(child, STOP_TIMEOUT)


def _kill(who: Identity) -> None:
    """Kill the process and all its children at once, as a power cut would."""
    everyone = [who, *_family(who.pid)] if who.alive() else []
    for process in everyone:
        _signal(process, signal.SIGKILL)
    for process in everyone:
        _wait(process, STOP_TIMEOUT)


@dataclass(frozen=True)
class SystemUser:
    """The user that a server runs as, if that is not ours."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


# The shell records itself as /proc shows it and then becomes the server, with the same pid and start time. So no
# server ever runs without a record.
_BECOME = (
    'ulimit -n "$1" 2>/dev/null; shift; '
    '{ cat /proc/sys/kernel/random/boot_id; read -r stat </proc/$$/stat; echo "$stat"; } >&0; '
    'exec "$@" </dev/null'
)


class Process:
    """A process that we start in a session of its own, so that Ctrl-C in the terminal does not reach it."""

    def __init__(self, title: str, record: Path, log: Path) -> None:
        self.title = title
        self.log = log
        self._record = record
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False

    def spawn(
        self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, user: SystemUser | None = None
    ) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        with self._lock, self._record.open("wb") as record, self.log.open("ab") as log:
            if self._closed:
                raise ServersUnavailable(f"{self.title} is not started any more: its owner is leaving")
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", _BECOME, "sh", str(files), *map(str, command)],
                stdin=record,
                stdout=log,
                stderr=log,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                **(user.popen() if user else {}),
            )

    def close(self) -> None:
        """Refuse to spawn from now on. Call it before the last stop: another thread may still be starting it."""
        with self._lock:
            self._closed = True

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def identity(self) -> Identity:
        identity = Identity.of(self._popen.pid) if self._popen is not None and self.running else None
        if identity is None:
            raise ServersUnavailable(f"{self.title} is not running")
        return identity

    def end(self, number: int) -> None:
        if self.running:
            end_process(self.identity, number, patience(self._record))
        self._reap()

    def kill(self) -> None:
        if self.running:
            _kill(self.identity)
        self._reap()

    def signal_all(self, number: int) -> None:
        who = self.identity
        for process in (who, *_family(who.pid)):
            _signal(process, number)

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Wait until it answers. Raises ServersUnavailable, with the end of its log, if it ends or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            alive = self.running
            with suppress(OSError):
                if alive and ready() and self.running:
                    with self._record.open("a") as record:
                        print(_READY, file=record)
                    return
            if not alive:
                raise ServersUnavailable(
                    f"{self.title} did not start; the end of {self.log}:\n{end_of_log(self.log)}"
                )
            if time.monotonic() > deadline:
                raise ServersUnavailable(
                    f"{self.title} did not answer in {START_TIMEOUT:.0f} s;"
                    f" the end of {self.log}:\n{end_of_log(self.log)}"
                )
            time.sleep(0.05)

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
        self._record.unlink(missing_ok=True)


def end_of_log(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
