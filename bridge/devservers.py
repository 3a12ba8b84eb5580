"""Private RabbitMQ and Postgres for one command: found or installed, started on loopback, stopped with it.

`bridge dev`, `bridge demo`, the tests and the benchmarks share this module. It takes, in this order, the
addresses it is given (`find_or_start` only), server binaries of this machine, Debian's packages, a running
docker engine with compose.yaml, and else says in one sentence what to install.

What it starts is nobody else's: own directories below `root`, own ports, node name, EPMD and passwords,
127.0.0.1 only. It ends with its owner however the owner ends:

- leaving the `with` block stops everything in order;
- a guard, one small process of its own session, waits for the owner's death and then does the same, so
  SIGTERM, a crash and `kill -9` leave nothing behind;
- each server writes its pid and start time down before it becomes the server, so that the next start finds
  what outlived even the guard, and never mistakes a stranger with the same pid for it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import resource
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol, Self

from bridge.errors import BridgeError

HOST = "127.0.0.1"
USUAL_AMQP_PORT = 5672
USUAL_POSTGRES_PORT = 5432
START_TIMEOUT = 90.0
"""Seconds a server may take until it answers; a cold RabbitMQ on a busy small machine needs 20."""
STOP_TIMEOUT = 30.0
"""Seconds a server may take to stop in order before it is killed."""
INSTALL_TIMEOUT = 900.0
OPEN_FILES = 65536
"""The file descriptors a server may open: enough for any test, and Erlang sizes its tables by it."""


class ServersUnavailable(BridgeError):
    """RabbitMQ or Postgres can't be had on this machine, or one of them did not start."""


class ServersInUse(ServersUnavailable):
    """Another living process owns the private servers below this root; `owner` is its pid, if it is known."""

    def __init__(self, root: Path, owner: int | None) -> None:
        self.root = root
        self.owner = owner
        super().__init__(f"the servers in {root} belong to the running process {owner or '(unknown)'}")


# --- what the callers hold -------------------------------------------------------------------------------


class Server(Protocol):
    """One server under our control. Its data and its port survive `stop` and `kill`; calls block."""

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int:
        """The main process; raises ServersUnavailable while it is down."""

    def start(self) -> None:
        """Return when it takes connections; nothing when it already does. Raises ServersUnavailable."""

    def stop(self) -> None:
        """End it in order; nothing when it is down."""

    def kill(self) -> None:
        """End it as a power cut would, together with its children; nothing when it is down."""

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""

    def resume(self) -> None: ...


class Broker(Server, Protocol):
    """RabbitMQ. `url` is the default vhost's."""

    @property
    def url(self) -> str: ...

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it printed; boots an Erlang VM, so it takes a second or two."""

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang expressions on the node (`rabbit_vhost:list_names().`) and return the result's text.

        Takes milliseconds with a private broker, whose shell stays open, and a second in docker.
        """

    def create_vhost(self, name: str) -> str:
        """Make a vhost in which our user may do everything and return its url."""

    def delete_vhost(self, name: str) -> None: ...


class Database(Server, Protocol):
    """Postgres. `dsn` is the database `bridge`, owned by the superuser of the same name."""

    @property
    def dsn(self) -> str: ...

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """`immediate` skips the checkpoint: the next start goes through recovery."""


@dataclass(frozen=True)
class Addresses:
    """Where the two servers are."""

    amqp_url: str
    postgres_dsn: str


@dataclass(frozen=True)
class Servers(Addresses):
    """Private servers, and the handles to stop, kill and start them."""

    rabbit: Broker
    postgres: Database


@contextmanager
def private_servers(
    root: Path,
    *,
    say: Callable[[str], None],
    reuse: bool = True,
    usual_ports: bool = True,
    machine: Machine | None = None,
) -> Iterator[Servers]:
    """Both servers, private, for the length of the block.

    `root` holds everything they write and belongs to one process at a time (else ServersInUse). With
    `reuse` false what an earlier run left there is thrown away. `usual_ports` tries 5672 and 5432 first;
    ports that were used before and are free come before both. `say` gets a line for each slow step, also
    from other threads.
    """
    with _started(root, ("rabbitmq", "postgres"), say, reuse, usual_ports, machine or Machine()) as running:
        rabbit, postgres = running.rabbit, running.postgres
        assert rabbit is not None
        assert postgres is not None
        yield Servers(rabbit.url, postgres.dsn, rabbit, postgres)


@contextmanager
def find_or_start(
    root: Path,
    *,
    amqp_url: str | None,
    postgres_dsn: str | None,
    say: Callable[[str], None],
    machine: Machine | None = None,
) -> Iterator[Addresses]:
    """The addresses given, and a private server for each one that is not."""
    wanted = [name for name, given in (("rabbitmq", amqp_url), ("postgres", postgres_dsn)) if given is None]
    if not wanted:
        assert amqp_url is not None
        assert postgres_dsn is not None
        yield Addresses(amqp_url, postgres_dsn)
        return
    with _started(root, wanted, say, True, True, machine or Machine()) as running:
        url = amqp_url if running.rabbit is None else running.rabbit.url
        dsn = postgres_dsn if running.postgres is None else running.postgres.dsn
        assert url is not None
        assert dsn is not None
        yield Addresses(url, dsn)


# --- what this machine offers ----------------------------------------------------------------------------


@dataclass(frozen=True)
class RabbitFiles:
    """RabbitMQ's own scripts (not a distribution's wrappers around them) and the Erlang they run on."""

    scripts: Path
    erl: Path
    epmd: Path

    @property
    def version(self) -> str:
        """`3.10`, or empty when the directory's name does not tell; data of another version may not load."""
        found = re.search(r"rabbitmq_server-(\d+\.\d+)", str((self.scripts / "rabbitmq-server").resolve()))
        return found[1] if found else ""


@dataclass(frozen=True)
class PostgresFiles:
    """The directory that holds `postgres` and `initdb`."""

    bin: Path

    @property
    def version(self) -> str:
        """`15`: the major version, which decides whether data can be reused."""
        told = subprocess.run(
            [self.bin / "postgres", "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"(\d+)(?:\.\d+|devel|beta|rc)", told.stdout)
        return found[1] if found else ""


class Needed(NamedTuple):
    """What people call it, Debian's package of it, and the setting that can stand in for it."""

    title: str
    package: str
    variable: str = ""


NEEDED = {
    "rabbitmq": Needed("RabbitMQ", "rabbitmq-server", "BRIDGE_AMQP_URL"),
    "postgres": Needed("Postgres", "postgresql", "BRIDGE_POSTGRES_DSN"),
    "chromium": Needed("Chromium", "chromium"),
    "venv": Needed("Python's venv", "python3-venv"),
}

INSTALL_SCRIPT = r"""
set -u
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
kept=$policy.kept-by-bridge
no_cluster=/etc/postgresql-common/createcluster.d/bridge.conf
mark='Written by bridge while it installs packages'
ours=

undo() {
    rm -f "$no_cluster"
    [ -z "$ours" ] || rm -f "$policy"
    [ ! -e "$kept" ] || mv -f "$kept" "$policy"
}
trap undo EXIT
trap 'exit 1' HUP INT TERM

# Packages ask this file whether their service may start. Ours says no only while this shell lives, so a
# machine that loses power here does not keep its services down for good.
denies() { [ -x "$policy" ] && { "$policy" rabbitmq-server start >/dev/null 2>&1; [ $? -eq 101 ]; }; }
if ! denies; then
    if [ -e "$policy" ] && ! grep -q "$mark" "$policy"; then mv -f "$policy" "$kept"; fi
    ours=yes
    cat >"$policy" <<END
#!/bin/sh
# $mark: no service starts meanwhile.
[ -d /proc/$$ ] && exit 101
[ ! -x $kept ] || exec $kept "\$@"
END
    chmod 755 "$policy"
fi
mkdir -p "${no_cluster%/*}"
echo 'create_main_cluster = false' >"$no_cluster"

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
new=
for unit in rabbitmq-server erlang-base; do installed "$unit" || new="$new $unit"; done

get() {
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@"
}
get install --no-install-recommends "$@" || { get update && get install --no-install-recommends "$@"; }
code=$?

# Nor may they start with the machine: nobody asked for a system-wide broker.
if command -v systemctl >/dev/null; then
    for package in $new; do
        case $package in
            rabbitmq-server) units=rabbitmq-server.service ;;
            erlang-base) units='epmd.socket epmd.service' ;;
        esac
        ! installed "$package" || systemctl disable $units
    done
fi
exit $code
"""


class Machine:
    """What this machine has, and how something gets onto it. The tests hand in machines that have less."""

    def rabbitmq(self) -> RabbitFiles | None:
        """RabbitMQ and Erlang, where both are here."""
        erl, epmd = _on_path("erl"), _on_path("epmd")
        if erl is not None and epmd is None:
            # Debian keeps epmd on the PATH; other builds of Erlang have it next to the real `erl` only.
            epmd = next(iter(sorted(erl.resolve().parent.parent.glob("erts-*/bin/epmd"))), None)
        if erl is None or epmd is None:
            return None
        places = [Path("/usr/lib/rabbitmq/bin"), *_newest("/usr/lib/rabbitmq/lib", "*/sbin")]
        on_path = _on_path("rabbitmq-server")
        if on_path is not None:
            places.append(on_path.resolve().parent)
        for place in places:
            # Debian's wrapper on the PATH insists on the user `rabbitmq`; only the real scripts have this file.
            if all((place / name).exists() for name in ("rabbitmq-server", "rabbitmqctl", "rabbitmq-env")):
                return RabbitFiles(place, erl, epmd)
        return None

    def postgres(self) -> PostgresFiles | None:
        """Postgres, the newest where there are several."""
        places = _newest("/usr/lib/postgresql", "*/bin")
        on_path = _on_path("postgres")
        if on_path is not None:
            places.insert(0, on_path.resolve().parent)
        for place in places:
            if (place / "postgres").exists() and (place / "initdb").exists():
                return PostgresFiles(place)
        return None

    def chromium(self) -> Path | None:
        """A browser for the demo page's test."""
        return _on_path("chromium") or _on_path("chromium-browser") or _on_path("google-chrome")

    def venv(self) -> object | None:
        """What `python -m venv` needs; Debian leaves it out of python3."""
        importlib.invalidate_caches()
        return importlib.util.find_spec("ensurepip")

    def find(self, wanted: Sequence[str]) -> dict[str, Any]:
        """What of `wanted` is here, by name."""
        looks: dict[str, Callable[[], object]] = {
            "rabbitmq": self.rabbitmq,
            "postgres": self.postgres,
            "chromium": self.chromium,
            "venv": self.venv,
        }
        return {name: found for name in wanted if (found := looks[name]()) is not None}

    def root_command(self) -> list[str] | None:
        """What runs a command as root without asking: nothing for root, `sudo -n`, or None when none can."""
        if os.geteuid() == 0:
            return []
        sudo = _on_path("sudo")
        if sudo is None or not _succeeds([str(sudo), "-n", "true"]):
            return None
        return [str(sudo), "-n"]

    def can_install(self) -> bool:
        """Whether `install` has a chance."""
        return _on_path("apt-get") is not None and self.root_command() is not None

    def install(self, packages: Sequence[str], log: Path) -> None:
        """Install Debian packages without starting any service; raises ServersUnavailable."""
        as_root = self.root_command()
        assert as_root is not None
        command = [*as_root, "sh", "-c", INSTALL_SCRIPT, "sh", *packages]
        with log.open("wb") as out:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    check=False,
                    timeout=INSTALL_TIMEOUT,
                )
            except subprocess.TimeoutExpired as exc:
                raise ServersUnavailable(
                    f"apt-get did not end in {INSTALL_TIMEOUT:.0f} s, see {log}"
                ) from exc
        if done.returncode:
            raise ServersUnavailable(f"apt-get could not install {' '.join(packages)}:\n{_tail(log)}")

    def compose(self) -> ComposeFile | None:
        """A docker engine that answers, and our compose.yaml."""
        docker = _on_path("docker")
        file = Path(__file__).resolve().parent.parent / "compose.yaml"
        if docker is None or not file.exists():
            return None
        # `docker info` alone succeeds without an engine; asking it for the engine's version does not.
        engine = [str(docker), "info", "--format", "{{.ServerVersion}}"]
        if not _succeeds(engine) or not _succeeds([str(docker), "compose", "version"]):
            return None
        return ComposeFile(docker, file)


@dataclass(frozen=True)
class ComposeFile:
    """The docker client and the file it is to follow."""

    docker: Path
    file: Path


@dataclass(frozen=True)
class Ways:
    """How each server that was asked for will be run."""

    rabbitmq: RabbitFiles | ComposeFile | None = None
    postgres: PostgresFiles | ComposeFile | None = None


def choose(machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]) -> Ways:
    """How to run the servers named in `wanted`: found here, installed now, or in docker.

    Raises ServersUnavailable with everything that is missing in one sentence.
    """
    found, trouble = _find_or_install(machine, wanted, log, say)
    missing = [name for name in wanted if name not in found]
    if missing and (compose := machine.compose()) is not None:
        found |= dict.fromkeys(missing, compose)
        missing = []
    if missing:
        raise ServersUnavailable(_advice(missing, trouble))
    return Ways(**found)


def ensure(machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]) -> None:
    """Have all of this on the machine, installed if need be; raises ServersUnavailable."""
    found, trouble = _find_or_install(machine, wanted, log, say)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ServersUnavailable(_advice(missing, trouble))


def _find_or_install(
    machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """What there is now, and what went wrong on the way."""
    found = machine.find(wanted)
    missing = [name for name in wanted if name not in found]
    if not missing or not machine.can_install():
        return found, ""
    packages = [NEEDED[name].package for name in missing]
    say(f"installing {_titles(missing)}: apt-get install {' '.join(packages)} (once; a minute or two)")
    try:
        machine.install(packages, log)
    except ServersUnavailable as exc:
        return machine.find(wanted), str(exc)
    return machine.find(wanted), ""


def _advice(missing: Sequence[str], trouble: str) -> str:
    packages = " ".join(NEEDED[name].package for name in missing)
    advice = f"{_titles(missing)} not found: run `sudo apt-get install {packages}`"
    variables = [NEEDED[name].variable for name in missing if NEEDED[name].variable]
    if variables:
        advice += f", or start docker, or (not for tests) point {' and '.join(variables)} at a running server"
    return f"{advice}\n{trouble}" if trouble else advice


def _titles(names: Sequence[str]) -> str:
    return " and ".join(NEEDED[name].title for name in names)


def _on_path(name: str) -> Path | None:
    # A plain user's PATH on Debian lacks the sbin directories.
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")
    return Path(found) if found else None


def _newest(base: str, pattern: str) -> list[Path]:
    def version(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", str(path))]

    return sorted(Path(base).glob(pattern), key=version, reverse=True)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


# --- processes: who they are, and how they end -----------------------------------------------------------


@dataclass(frozen=True)
class _Stat:
    """What /proc tells of a process."""

    pid: int
    state: str
    parent: int
    started: str

    @classmethod
    def parse(cls, line: str) -> Self:
        # The second field is the name in parentheses and may hold anything, so count from its end.
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
class _Identity:
    """One process of all that ever had this pid: pid, start in clock ticks since the boot, and the boot."""

    pid: int
    started: str
    boot: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        stat = _Stat.of(pid)
        return None if stat is None else cls(pid, stat.started, _boot_id())

    @classmethod
    def read(cls, record: Path) -> Self | None:
        """The process that wrote itself down in `record`, which may be long gone."""
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
            and self.boot == _boot_id()
        )


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _family(pid: int) -> list[_Identity]:
    """The descendants of a process as of now."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _Stat.of(int(entry))) is not None:
            children.setdefault(stat.parent, []).append(stat.pid)
    found, look = [], [pid]
    while look:
        for child in children.get(look.pop(), ()):
            look.append(child)
            if (identity := _Identity.of(child)) is not None:
                found.append(identity)
    return found


def _signal(who: _Identity, number: int) -> bool:
    """Signal exactly this process; false when it is gone. A pidfd can't be recycled between look and signal."""
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


def _wait(who: _Identity, seconds: float) -> bool:
    """Whether the process was gone in time, whoever its parent is."""
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


def _end(who: _Identity, number: int, patience: float) -> None:
    """Ask with a signal, wait, kill; and see to it that its children go as well."""
    family = _family(who.pid) if who.alive() else []
    if _signal(who, number):
        for process in (who, *family):
            _signal(process, signal.SIGCONT)  # one that was frozen hears nothing else
        if not _wait(who, patience):
            _signal(who, signal.SIGKILL)
            _wait(who, STOP_TIMEOUT)
    for child in family:
        if not _wait(child, 5.0):
            _signal(child, signal.SIGKILL)
            _wait(child, STOP_TIMEOUT)


def _kill(who: _Identity) -> None:
    """A power cut: the process and all its children at once."""
    everyone = [who, *_family(who.pid)] if who.alive() else []
    for process in everyone:
        _signal(process, signal.SIGKILL)
    for process in everyone:
        _wait(process, STOP_TIMEOUT)


@dataclass(frozen=True)
class _User:
    """The user a server runs as where that is not us."""

    name: str
    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


# The shell writes itself down as /proc shows it and then becomes the server: same pid, same start time. So
# there is no moment in which a server runs that nobody has recorded.
_BECOME = (
    'ulimit -n "$1" 2>/dev/null; shift; '
    '{ cat /proc/sys/kernel/random/boot_id; read -r stat </proc/$$/stat; echo "$stat"; } >&0; '
    'exec "$@" </dev/null'
)


class _Process:
    """One process that we start, in a session of its own: Ctrl-C in the terminal is for us, not for it."""

    def __init__(self, title: str, record: Path, log: Path) -> None:
        self.title = title
        self.log = log
        self._record = record
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._closed = False

    def spawn(
        self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, user: _User | None = None
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
        """Never spawn again: called before the last stop, while another thread may still be starting us."""
        with self._lock:
            self._closed = True

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def identity(self) -> _Identity:
        identity = _Identity.of(self._popen.pid) if self._popen is not None and self.running else None
        if identity is None:
            raise ServersUnavailable(f"{self.title} is not running")
        return identity

    def end(self, number: int) -> None:
        if self.running:
            _end(self.identity, number, STOP_TIMEOUT)
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
        """Wait until it answers; raises ServersUnavailable with the end of its log when it never will."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            alive = self.running
            with suppress(OSError):
                if alive and ready() and self.running:
                    return
            if not alive:
                raise ServersUnavailable(
                    f"{self.title} did not start; the end of {self.log}:\n{_tail(self.log)}"
                )
            if time.monotonic() > deadline:
                raise ServersUnavailable(
                    f"{self.title} did not answer in {START_TIMEOUT:.0f} s; the end of {self.log}:\n{_tail(self.log)}"
                )
            time.sleep(0.05)

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
        self._record.unlink(missing_ok=True)


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


# --- the directory of a run ------------------------------------------------------------------------------


class _Settings:
    """What a server must find again at its next start: ports, passwords, names; a file only we may read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            self._values = json.loads(file.read_text())

    def get(self, name: str, make: Callable[[], str]) -> str:
        """The value kept under `name`, made now if there is none."""
        if name not in self._values:
            self.put(name, make())
        return str(self._values[name])

    def port(self, name: str, usual: int | None) -> int:
        """The port kept under `name` if it is free, else the usual one, else another."""
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
        # Connections that linger in TIME_WAIT don't hinder a server, so they shall not hinder the probe.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_port(except_for: set[int]) -> int:
    """A free port below the range that outgoing connections use.

    Inside that range a client that dials a stopped server again and again can be given the very port it
    dials as its own, connects to itself, and keeps the server from coming back.
    """
    while True:
        port = 15000 + secrets.randbelow(15000)
        if port not in except_for and _port_is_free(port):
            return port


def _home(base: Path, name: str) -> tuple[Path, _Settings]:
    """A server's directory below `base` and its settings; what never came up once is thrown away."""
    home = base / name
    settings = _Settings(home / "settings.json")
    if not settings.flag("ready"):
        shutil.rmtree(home, ignore_errors=True)
        settings = _Settings(home / "settings.json")
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    return home, settings


class _Run:
    """The directory of a run: who owns it, which processes belong to it.

    The lock is held by the owner and its guard together, so a next owner waits until the guard is done.
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
            cwd=Path(__file__).resolve().parent.parent,
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
                owner = _Identity.read(self.record("owner"))
                if owner is None or owner.alive() or time.monotonic() > deadline:
                    raise ServersInUse(self.root, owner.pid if owner else None) from None
                time.sleep(0.1)  # the owner is dead and its guard at work
        stat = Path("/proc/self/stat").read_text()
        self.record("owner").write_text(f"{_boot_id()}\n{stat}")

    def leave(self) -> None:
        """Give the directory back; everything must have been stopped."""
        if self._lock is None:
            return
        if self._guard is not None:
            self._guard.kill()
            self._guard.wait()
        self.record("owner").unlink(missing_ok=True)
        self._lock.close()


def end_recorded(root: Path) -> None:
    """End every server that is recorded below `root`; for the guard, and for the start after a crash."""
    records = root / "run"
    for name, number in (("rabbitmq", signal.SIGTERM), ("postgres", signal.SIGINT), ("epmd", signal.SIGTERM)):
        record = records / f"{name}.process"
        who = _Identity.read(record)
        if who is not None:
            _end(who, number, STOP_TIMEOUT)
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
    """Wait for the owner's death and end what it leaves. The owner kills us when there is nothing left."""
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        end_recorded(root)
        return
    if os.getppid() == owner:  # else it died before we looked, and the pid may be anybody's
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
    end_recorded(root)


@dataclass
class _Running:
    """What `_started` has brought up."""

    rabbit: Broker | None = None
    postgres: Database | None = None


@contextmanager
def _started(
    root: Path,
    wanted: Sequence[str],
    say: Callable[[str], None],
    reuse: bool,
    usual_ports: bool,
    machine: Machine,
) -> Iterator[_Running]:
    if not Path("/proc/self/stat").exists() or not hasattr(os, "pidfd_open"):
        raise ServersUnavailable("private servers need Linux 5.3 or later with /proc")
    run = _Run(root)
    with ExitStack() as stack:
        stack.callback(run.leave)
        run.take()
        ways = choose(machine, wanted, run.root / "install.log", say)
        base = run.root
        if not reuse:
            _forget(base)
        running = _Running()
        servers: list[PrivateRabbit | PrivatePostgres | _ComposeServer] = []
        compose = next((w for w in (ways.rabbitmq, ways.postgres) if isinstance(w, ComposeFile)), None)
        project = None
        if compose is not None:
            project = _Project(compose, run, usual_ports)
            stack.callback(project.down)
        if isinstance(ways.rabbitmq, RabbitFiles):
            rabbit = PrivateRabbit(ways.rabbitmq, run, usual_ports)
            running.rabbit = rabbit
            servers.append(rabbit)
        elif project is not None and ways.rabbitmq is not None:
            running.rabbit = ComposeRabbit(project)
            servers.append(running.rabbit)
        if isinstance(ways.postgres, PostgresFiles):
            postgres = PrivatePostgres(ways.postgres, run, usual_ports)
            running.postgres = postgres
            servers.append(postgres)
        elif project is not None and ways.postgres is not None:
            running.postgres = ComposePostgres(project)
            servers.append(running.postgres)

        stack.enter_context(_together(servers, say))
        yield running


def _forget(base: Path) -> None:
    for place in (base, _fallback_base(base)):
        for home in (*place.glob("rabbitmq*"), *place.glob("postgres*")):
            if home.is_dir() and not home.is_symlink():
                shutil.rmtree(home)


@contextmanager
def _together(servers: Sequence[Any], say: Callable[[str], None]) -> Iterator[None]:
    """Start all at once, stop all at once; an interrupt during the start stops what has come up so far."""

    def start(server: Any) -> None:
        began = time.monotonic()
        say(f"starting {server.title} on {HOST}:{server.port}")
        server.start()
        say(f"{server.title} is up after {time.monotonic() - began:.1f} s")

    def close(server: Any) -> None:
        server.close()

    with ThreadPoolExecutor(max(1, len(servers)), "devservers") as starters:
        try:
            jobs = [starters.submit(start, server) for server in servers]
            for job in jobs:
                job.result()
            yield
        finally:
            with ThreadPoolExecutor(max(1, len(servers)), "devservers") as stoppers:
                for done in [stoppers.submit(close, server) for server in servers]:
                    done.result()


# --- RabbitMQ --------------------------------------------------------------------------------------------

_RABBIT_CONF = """\
listeners.tcp.1 = {host}:{port}
default_user = bridge
default_pass = {password}
log.console = false
log.file.rotation.size = 10485760
log.file.rotation.count = 2
# A developer's machine: alarms come early enough to be seen, and the write-ahead log stays small.
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 200MB
raft.wal_max_size_bytes = 67108864
"""

# Reads one expression a line, evaluates it on the node, answers with one line. Ends with its input, and so
# with us.
_SHELL = (
    'Node = list_to_atom(os:getenv("BRIDGE_NODE")), '
    'Loop = fun(Again) -> case io:get_line("") of eof -> halt(0); Line -> '
    "Answer = try {ok, Tokens, _} = erl_scan:string(Line), {ok, Exprs} = erl_parse:parse_exprs(Tokens), "
    "case rpc:call(Node, erl_eval, exprs, [Exprs, []], 60000) of "
    "{value, Value, _} -> {ok, Value}; Bad -> {error, Bad} end catch _:Why -> {error, Why} end, "
    'io:format("~0tp~n", [Answer]), Again(Again) end end, Loop(Loop).'
)


class PrivateRabbit:
    """RabbitMQ as a process of ours: the broker, its port mapper, and a shell into it."""

    def __init__(self, files: RabbitFiles, run: _Run, usual_ports: bool) -> None:
        self.title = f"RabbitMQ {files.version}".strip()
        self._files = files
        self._home, self._settings = _home(run.root, f"rabbitmq-{files.version}".rstrip("-"))
        kept = self._settings
        self._node = kept.get("node", lambda: f"bridge-{secrets.token_hex(4)}@localhost")
        self._password = kept.get("password", lambda: secrets.token_urlsafe(24))
        self._cookie = kept.get("cookie", lambda: secrets.token_hex(20).upper())
        self._port = kept.port("port", USUAL_AMQP_PORT if usual_ports else None)
        self._dist_port = kept.port("dist_port", None)
        self._epmd_port = kept.port("epmd_port", None)
        self._broker = _Process(self.title, run.record("rabbitmq"), self._home / "console.log")
        self._epmd = _Process("epmd", run.record("epmd"), self._home / "epmd.log")
        self._shell: subprocess.Popen[str] | None = None
        self._shell_lock = threading.Lock()

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        return self._broker.identity.pid

    @property
    def url(self) -> str:
        return self._url("")

    def start(self) -> None:
        if self._broker.running:
            return
        self._configure()
        if not self._epmd.running:
            self._epmd.spawn(
                [self._files.epmd, "-port", str(self._epmd_port), "-address", HOST], self._env(), self._home
            )
            self._epmd.wait_ready(lambda: _answers(self._epmd_port))
        self._broker.spawn([self._files.scripts / "rabbitmq-server"], self._env(), self._home)
        self._broker.wait_ready(self._ready)
        if not self._settings.flag("ready"):
            self._settings.put("ready", True)

    def stop(self) -> None:
        self._broker.end(signal.SIGTERM)

    def kill(self) -> None:
        self._broker.kill()

    def pause(self) -> None:
        self._broker.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._broker.signal_all(signal.SIGCONT)

    def close(self) -> None:
        """The last stop: broker, shell and port mapper."""
        self._broker.close()
        self._epmd.close()
        self._close_shell()
        self.stop()
        self._epmd.end(signal.SIGTERM)

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._files.scripts / "rabbitmqctl", "--quiet", *arguments],
            env=self._env(),
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise ServersUnavailable(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def evaluate(self, expression: str) -> str:
        with self._shell_lock:
            if self._shell is None or self._shell.poll() is not None:
                self._shell = self._open_shell()
            assert self._shell.stdin is not None
            assert self._shell.stdout is not None
            self._shell.stdin.write(" ".join(expression.split()).rstrip(".") + ".\n")
            self._shell.stdin.flush()
            answer = self._shell.stdout.readline().strip()
        if not answer.startswith("{ok,"):
            raise ServersUnavailable(f"RabbitMQ could not evaluate {expression}: {answer or 'no answer'}")
        return answer.removeprefix("{ok,").removesuffix("}").strip()

    def create_vhost(self, name: str) -> str:
        self.evaluate(
            f'ok = rabbit_vhost:add(<<"{name}">>, <<"bridge">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"bridge">>, <<"{name}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"bridge">>)'
        )
        return self._url(name)

    def delete_vhost(self, name: str) -> None:
        self.evaluate(f'rabbit_vhost:delete(<<"{name}">>, <<"bridge">>)')

    def _url(self, vhost: str) -> str:
        return f"amqp://bridge:{self._password}@{HOST}:{self._port}/{vhost}"

    def _ready(self) -> bool:
        """The broker greets, and it is ours: its greeting names the cluster, which is called after the node."""
        with socket.create_connection((HOST, self._port), timeout=2) as peer:
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            greeting = b""
            while len(greeting) < 7 or len(greeting) < 8 + int.from_bytes(greeting[3:7], "big"):
                more = peer.recv(4096)
                if not more:
                    return False
                greeting += more
        return greeting[7:11] == b"\x00\x0a\x00\x0a" and self._node.partition("@")[0].encode() in greeting

    def _configure(self) -> None:
        cookie = self._home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(0o600)
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        conf = self._home / "rabbitmq.conf"
        conf.touch(0o600)
        conf.write_text(_RABBIT_CONF.format(host=HOST, port=self._port, password=self._password))
        (self._home / "enabled_plugins").write_text("[].\n")
        # Present and empty, so that nothing of a broker installed for the whole machine reaches this one.
        (self._home / "rabbitmq-env.conf").touch()
        (self._home / "advanced.config").write_text("[].\n")

    def _env(self) -> dict[str, str]:
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": f"{self._files.erl.parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_CRASH_DUMP": str(self._home / "erl_crash.dump"),
            "BRIDGE_NODE": self._node,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self._home / "data"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_PID_FILE": str(self._home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._home / "config"),
            # The port mapper is ours and runs already; without this Erlang would leave a daemon behind.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} -start_epmd false",
            "RABBITMQ_CTL_ERL_ARGS": f"{loopback} -start_epmd false",
            # Makes the script become the Erlang VM rather than its parent, so our pid is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _open_shell(self) -> subprocess.Popen[str]:
        name = f"shell-{secrets.token_hex(4)}@localhost"
        return subprocess.Popen(
            [
                *(self._files.erl, "-noshell", "-hidden", "-sname", name, "-setcookie", self._cookie),
                *("-dist_listen", "false", "-start_epmd", "false", "+S", "1", "-eval", _SHELL),
            ],
            env=self._env(),
            cwd=self._home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _close_shell(self) -> None:
        with self._shell_lock:
            shell, self._shell = self._shell, None
        if shell is not None:
            with suppress(subprocess.TimeoutExpired):
                shell.communicate(timeout=5)
            shell.kill()
            shell.wait()


def _answers(port: int) -> bool:
    with socket.create_connection((HOST, port), timeout=2):
        return True


# --- Postgres --------------------------------------------------------------------------------------------


class PrivatePostgres:
    """Postgres as a process of ours, under another user where we are root."""

    def __init__(self, files: PostgresFiles, run: _Run, usual_ports: bool) -> None:
        self.title = f"Postgres {files.version}".strip()
        self._files = files
        self._user = _postgres_user()
        name = f"postgres-{files.version}".rstrip("-")
        base = run.root if self._user is None else _base_in_reach(run.root, self._user)
        self._home, self._settings = _home(base, name)
        self._data = self._home / "data"
        self._password = self._settings.get("password", lambda: secrets.token_urlsafe(24))
        self._port = self._settings.port("port", USUAL_POSTGRES_PORT if usual_ports else None)
        self._process = _Process(self.title, run.record("postgres"), self._home / "postgres.log")

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        return self._process.identity.pid

    @property
    def dsn(self) -> str:
        return f"postgresql://bridge:{self._password}@{HOST}:{self._port}/bridge"

    def start(self) -> None:
        if self._process.running:
            return
        if not self._data.exists():
            self._initialise()
        options = {
            "listen_addresses": HOST,
            "port": str(self._port),
            # TCP only: a socket's path may have 107 bytes at most, and a clone may lie deeper.
            "unix_socket_directories": "",
            "max_connections": "100",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process.spawn(
            [self._files.bin / "postgres", "-D", self._data, *settings], _plain_env(), self._home, self._user
        )
        self._process.wait_ready(self._ready)
        if not self._settings.flag("ready"):
            self._settings.put("ready", True)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._process.end(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def kill(self) -> None:
        self._process.kill()

    def pause(self) -> None:
        self._process.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.signal_all(signal.SIGCONT)

    def close(self) -> None:
        """The last stop."""
        self._process.close()
        self.stop()

    def _initialise(self) -> None:
        # Under another name until it is whole, so that an interrupted start leaves nothing half-made.
        new, password = self._home / "data.new", self._home / "password"
        shutil.rmtree(new, ignore_errors=True)
        for path in (new, password):
            if path is new:
                path.mkdir(mode=0o700)
            else:
                path.touch(0o600)
                path.write_text(self._password)
            if self._user is not None:
                os.chown(path, self._user.uid, self._user.gid)
        self._run(
            *("initdb", "--pgdata", new, "--username", "bridge", "--pwfile", password, "--no-sync"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"),
        )
        password.unlink()
        self._run("postgres", "--single", "-D", new, "postgres", text="CREATE DATABASE bridge\n")
        new.rename(self._data)

    def _run(self, program: str, *arguments: str | Path, text: str = "") -> None:
        try:
            with self._process.log.open("ab") as log:
                subprocess.run(
                    [self._files.bin / program, *arguments],
                    input=text.encode(),
                    stdout=log,
                    stderr=log,
                    env=_plain_env(),
                    cwd=self._home,
                    check=True,
                    timeout=START_TIMEOUT,
                    **(self._user.popen() if self._user else {}),
                )
        except (OSError, subprocess.SubprocessError) as exc:
            log_end = f"the end of {self._process.log}:\n{_tail(self._process.log)}"
            raise ServersUnavailable(f"{program} failed ({exc}); {log_end}") from exc

    def _ready(self) -> bool:
        """It asks for our password (R). While it starts or recovers it answers with an error instead (E)."""
        names = b"user\0bridge\0database\0bridge\0\0"
        with socket.create_connection((HOST, self._port), timeout=2) as peer:
            peer.sendall(struct.pack("!ii", 8 + len(names), 3 << 16) + names)
            return peer.recv(1) == b"R"


def _plain_env() -> dict[str, str]:
    """Without the PG* variables of the caller, which would lead the server's programs elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def _postgres_user() -> _User | None:
    """Postgres refuses to run as root, so root lends it a name."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(name, entry.pw_uid, entry.pw_gid)
    raise ServersUnavailable("Postgres does not run as root, and there is no user `postgres` or `nobody`")


def _base_in_reach(root: Path, user: _User) -> Path:
    """`root`, or a stable directory elsewhere when that user can't get there (a clone under a 0700 folder)."""
    root.chmod(root.stat().st_mode | 0o011)
    if _succeeds_as(user, ["/usr/bin/test", "-x", str(root)]):
        return root
    base = _fallback_base(root)
    with suppress(FileExistsError):
        base.mkdir(mode=0o711)
    base.chmod(0o711)
    found = base.lstat()
    if base.is_symlink() or found.st_uid != os.geteuid():
        raise ServersUnavailable(f"{base} belongs to somebody else; remove it")
    (base / "belongs-to").write_text(f"{root}\n")  # for whoever wonders; `make clean` removes both
    return base


def _fallback_base(root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(f"/var/tmp/bridge-{os.geteuid()}-{digest}")


def _succeeds_as(user: _User, command: Sequence[str]) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, cwd="/", **user.popen())
    return done.returncode == 0


# --- docker ----------------------------------------------------------------------------------------------


class _Project:
    """Our compose project: named after the directory, with its own ports, taken down with its owner."""

    def __init__(self, compose: ComposeFile, run: _Run, usual_ports: bool) -> None:
        home, kept = _home(run.root, "compose")
        kept.put("ready", True)  # the volumes live in docker, and the password must stay the one they know
        name = f"bridge-{hashlib.sha256(os.fsencode(run.root)).hexdigest()[:8]}"
        self.password = kept.get("password", lambda: secrets.token_urlsafe(24))
        self.amqp_port = kept.port("amqp_port", USUAL_AMQP_PORT if usual_ports else None)
        self.postgres_port = kept.port("postgres_port", USUAL_POSTGRES_PORT if usual_ports else None)
        self.log = home / "compose.log"
        self._docker = compose.docker
        self._command = [str(compose.docker), "compose", "-p", name, "-f", str(compose.file)]
        self._env = dict(os.environ) | {
            "BRIDGE_COMPOSE_PASSWORD": self.password,
            "BRIDGE_COMPOSE_AMQP_PORT": str(self.amqp_port),
            "BRIDGE_COMPOSE_POSTGRES_PORT": str(self.postgres_port),
        }
        self._record = run.records / "compose.json"
        self._record.touch(0o600)
        self._record.write_text(json.dumps({"down": [*self._command, "down"], "env": self._env}))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT,
        )
        with self.log.open("a") as log:
            log.write(f"$ docker compose {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise ServersUnavailable(f"docker compose {' '.join(arguments)}:\n{done.stderr.strip()}")
        return done.stdout

    def pid_of(self, service: str) -> int:
        """The container's first process as the machine sees it."""
        container = self.run("ps", "-q", service).strip()
        asked = [str(self._docker), "inspect", "--format", "{{.State.Pid}}", container]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        if not container or told.returncode or told.stdout.strip() in ("", "0"):
            raise ServersUnavailable(f"the container of {service} is not running")
        return int(told.stdout)

    def down(self) -> None:
        """Containers and network go, volumes stay."""
        self.run("down")
        self._record.unlink(missing_ok=True)


class _ComposeServer:
    """One service of the compose file."""

    def __init__(self, project: _Project, service: str, title: str) -> None:
        self.title = title
        self._project = project
        self._service = service

    @property
    def pid(self) -> int:
        return self._project.pid_of(self._service)

    def start(self) -> None:
        self._project.run("up", "-d", "--wait", self._service)

    def kill(self) -> None:
        self._project.run("kill", self._service)

    def pause(self) -> None:
        self._project.run("pause", self._service)

    def resume(self) -> None:
        self._project.run("unpause", self._service)

    def close(self) -> None:
        """Nothing: the project is taken down as a whole."""


class ComposeRabbit(_ComposeServer):
    """RabbitMQ in docker."""

    def __init__(self, project: _Project) -> None:
        super().__init__(project, "rabbitmq", "RabbitMQ in docker")

    @property
    def port(self) -> int:
        return self._project.amqp_port

    @property
    def url(self) -> str:
        return self._url("")

    def stop(self) -> None:
        self._project.run("stop", self._service)

    def ctl(self, *arguments: str) -> str:
        return self._project.run("exec", "-T", self._service, "rabbitmqctl", "--quiet", *arguments)

    def evaluate(self, expression: str) -> str:
        return self.ctl("eval", " ".join(expression.split()).rstrip(".") + ".").strip()

    def create_vhost(self, name: str) -> str:
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "bridge", ".*", ".*", ".*")
        return self._url(name)

    def delete_vhost(self, name: str) -> None:
        self.ctl("delete_vhost", name)

    def _url(self, vhost: str) -> str:
        return f"amqp://bridge:{self._project.password}@{HOST}:{self.port}/{vhost}"


class ComposePostgres(_ComposeServer):
    """Postgres in docker."""

    def __init__(self, project: _Project) -> None:
        super().__init__(project, "postgres", "Postgres in docker")

    @property
    def port(self) -> int:
        return self._project.postgres_port

    @property
    def dsn(self) -> str:
        return f"postgresql://bridge:{self._project.password}@{HOST}:{self.port}/bridge"

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._project.run("kill", "-s", "SIGINT" if mode == "fast" else "SIGQUIT", self._service)


# --- from the Makefile, and for the guard ----------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 done, 1 not possible, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bridge.devservers")
    commands = parser.add_subparsers(dest="command", required=True)
    hold = commands.add_parser("hold", help="run both servers until SIGINT or SIGTERM")
    hold.add_argument("root", type=Path)
    hold.add_argument("--any-ports", action="store_true", help="leave 5672 and 5432 to others")
    have = commands.add_parser("ensure", help="have these on the machine, installed if need be")
    have.add_argument("names", nargs="+", choices=sorted(NEEDED))
    forget = commands.add_parser("forget", help="remove a directory with all data of its servers")
    forget.add_argument("root", type=Path)
    watch = commands.add_parser("guard", help="for this module's own use")
    watch.add_argument("root", type=Path)
    watch.add_argument("owner", type=int)
    chosen = parser.parse_args(arguments)
    try:
        match chosen.command:
            case "hold":
                _hold(chosen.root, not chosen.any_ports)
            case "ensure":
                with tempfile.TemporaryDirectory() as logs:
                    ensure(Machine(), chosen.names, Path(logs) / "install.log", _print)
            case "forget":
                _forget_all(chosen.root)
            case _:
                guard(chosen.root, chosen.owner)
    except ServersUnavailable as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _hold(root: Path, usual_ports: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_servers(root, say=_print, usual_ports=usual_ports) as servers, suppress(KeyboardInterrupt):
        print(servers.amqp_url, servers.postgres_dsn, sep="\n", flush=True)
        while True:
            time.sleep(1)


def _forget_all(top: Path) -> None:
    """Remove `top` and what the runs below it keep elsewhere; raises ServersInUse while one of them runs."""
    for lock in list(top.absolute().glob("**/lock")):
        run = _Run(lock.parent)
        run.take()
        try:
            _forget(run.root)
            shutil.rmtree(_fallback_base(run.root), ignore_errors=True)
        finally:
            run.leave()
    shutil.rmtree(top, ignore_errors=True)


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
