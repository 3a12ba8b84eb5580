"""Child processes: they end with us, answer JSON lines, and are measured by /proc."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

STOP_TIMEOUT: Final = 15.0
"""Seconds a child has to end by itself after SIGTERM."""
LOOK_EVERY: Final = 1.0
"""Seconds between checks whether a process that another waits for is still running."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
# Becomes the command, with the same pid, and gets a SIGTERM if we die: prctl(PR_SET_PDEATHSIG).
_LEASH: Final = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class BenchmarkFailed(Exception):
    """A measurement can't be made, or its counts do not agree: none of its figures can be used."""


def raise_file_limit() -> None:
    """Raise the limit of open files as far as allowed, for this process and its children: thousands of sockets each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):
        # Only with CAP_SYS_RESOURCE, which not even root has in many containers.
        most = int(Path("/proc/sys/fs/nr_open").read_text())
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """The files and sockets that a process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Child:
    """A running process of ours; what it prints to stderr goes to `log`."""

    def __init__(self, title: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.title = title
        self.log = log
        self._process = process
        self.workers: Sequence[int] = ()
        """Processes of its own, which are frozen with it."""
        self._frozen = False
        self._received = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, do: str, **arguments: object) -> None:
        """Send one command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as gone:
            raise self._failure(f"ended before it was told to {do}") from gone

    def answer(self, seconds: float, *, needs: Child | None = None) -> dict[str, Any]:
        """The answer to the oldest command that has none yet.

        If it depends on another process, give that as `needs`: when that process ends, so does the wait.
        """
        made: dict[str, Any] = json.loads(self.line(seconds, needs=needs))
        return made

    def ask(self, do: str, *, within: float = 60.0, **arguments: object) -> dict[str, Any]:
        """One command and its answer, which may take `within` seconds."""
        self.tell(do, **arguments)
        return self.answer(within)

    def line(self, seconds: float, *, needs: Child | None = None) -> bytes:
        """The next line that it prints."""
        assert self._process.stdout is not None
        stdout = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left < 0:
                raise self._failure(f"said nothing for {seconds:g} s")
            if not select.select([stdout], [], [], min(left, LOOK_EVERY))[0]:
                if needs is not None:
                    needs.check_alive()
                continue
            more = os.read(stdout, 1 << 20)
            if not more:
                raise self._failure("ended")
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return line

    def freeze(self) -> None:
        """SIGSTOP: it stops working, and its connections stay open. Returns when it has stopped."""
        self._frozen = True
        for pid in (*self.workers, self.pid):
            os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        wait_until(
            lambda: all(map(_is_stopped, self.workers)),
            seconds=5.0,
            every=0.001,
            what="the workers are frozen",
        )

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in (self.pid, *self.workers):
            os.kill(pid, signal.SIGCONT)
        self._frozen = False

    def interrupt(self) -> None:
        """SIGINT, and wait until it has ended."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired as late:
            raise self._failure("did not end at SIGINT") from late

    def check_alive(self) -> None:
        """Raise when it has ended."""
        if self._process.poll() is not None:
            raise self._failure(f"ended with {self._process.returncode}")

    def stop(self) -> None:
        """End it: SIGTERM, then after a while SIGKILL; does nothing if it has ended."""
        if self._process.poll() is None:
            if self._frozen:
                self.thaw()
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _failure(self, what: str) -> BenchmarkFailed:
        end = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return BenchmarkFailed(f"{self.title} {what}; the end of {self.log}:\n{end}")


@contextmanager
def running(
    title: str, command: Sequence[str], *, directory: Path, environment: Mapping[str, str]
) -> Iterator[Child]:
    """A child for the length of the block, in a session of its own: Ctrl-C reaches only us, and we end it."""
    log = directory / f"{title.replace(' ', '-')}.log"
    root = str(Path(__file__).resolve().parent.parent)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _LEASH, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            cwd=directory,
            env={**plain, "PYTHONPATH": root, **environment},
            start_new_session=True,
        )
    child = Child(title, process, log)
    try:
        yield child
    finally:
        child.stop()


def wait_until(condition: Callable[[], bool], *, seconds: float, every: float, what: str) -> None:
    """Return when the condition holds, checked at intervals; raises BenchmarkFailed after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"not within {seconds:g} s: {what}")
        time.sleep(every)


# --- /proc -----------------------------------------------------------------------------------------------


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has stopped it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class _Stat(NamedTuple):
    parent: int
    own: float
    reaped: float


def _stat(pid: int) -> _Stat | None:
    """Parent, CPU seconds of its own, and of its children that it has waited for (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    own, reaped = (int(fields[i]) + int(fields[i + 1]) for i in (11, 13))
    return _Stat(int(fields[1]), own / _TICKS, reaped / _TICKS)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its descendants, the dead ones included."""
    stats = {int(name): stat for name in os.listdir("/proc") if name.isdigit() and (stat := _stat(int(name)))}
    total, look = 0.0, [pid]
    while look:
        one = look.pop()
        if one in stats:
            total += stats[one].own + stats[one].reaped
        look.extend(child for child, stat in stats.items() if stat.parent == one)
    return total


def resident_bytes(pid: int) -> int:
    """VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkFailed(f"process {pid} has no resident memory: it has ended")


def busy_seconds() -> tuple[float, float]:
    """CPU seconds that this machine was busy, and that its host took (steal), since its boot."""
    fields = [int(n) / _TICKS for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, steal = fields
    return user + nice + system + irq + softirq, steal
