"""A private Postgres."""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bridge.devservers.directory import Run, home_of
from bridge.devservers.machine import PostgresFiles
from bridge.devservers.processes import Process, SystemUser, end_of_log
from bridge.devservers.servers import HOST, START_TIMEOUT, USUAL_POSTGRES_PORT, ServersUnavailable


class PrivatePostgres:
    """Postgres as a child process; under another user if we are root."""

    def __init__(self, files: PostgresFiles, run: Run, usual_ports: bool) -> None:
        self.title = f"Postgres {files.version}".strip()
        self._files = files
        self._user = _postgres_user()
        name = f"postgres-{files.version}".rstrip("-")
        base = run.root if self._user is None else _base_in_reach(run.root, self._user)
        self._home, self._saved = home_of(base, name)
        self._data = self._home / "data"
        self._password = self._saved.get("password", lambda: secrets.token_urlsafe(24))
        self._port = self._saved.port("port", USUAL_POSTGRES_PORT if usual_ports else None)
        self._process = Process(self.title, run.record("postgres"), self._home / "postgres.log")

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
            # TCP only: the path of a socket may have 107 bytes at most, and the directory's may be longer.
            "unix_socket_directories": "",
            "max_connections": "100",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process.spawn(
            [self._files.bin / "postgres", "-D", self._data, *settings], _plain_env(), self._home, self._user
        )
        self._process.wait_ready(self._ready)
        if not self._saved.flag("ready"):
            self._saved.put("ready", True)

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
        # Under another name until it is complete, so that an interrupted start leaves no half of a database.
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
            log_end = f"the end of {self._process.log}:\n{end_of_log(self._process.log)}"
            raise ServersUnavailable(f"{program} failed ({exc}); {log_end}") from exc

    def _ready(self) -> bool:
        """Whether it asks for our password (R). While it starts or recovers it answers with an error (E)."""
        names = b"user\0bridge\0database\0bridge\0\0"
        with socket.create_connection((HOST, self._port), timeout=2) as peer:
            peer.sendall(struct.pack("!ii", 8 + len(names), 3 << 16) + names)
            return peer.recv(1) == b"R"


def _plain_env() -> dict[str, str]:
    """An environment without the caller's PG* variables: they would send the server's programs elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def _postgres_user() -> SystemUser | None:
    """The user that Postgres runs as if we are root: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return SystemUser(name, entry.pw_uid, entry.pw_gid)
    raise ServersUnavailable("Postgres does not run as root, and there is no user `postgres` or `nobody`")


def _base_in_reach(root: Path, user: SystemUser) -> Path:
    """`root`, or a fixed directory elsewhere if that user can't reach it (for example below a 0700 folder)."""
    root.chmod(root.stat().st_mode | 0o011)
    if _succeeds_as(user, ["/usr/bin/test", "-x", str(root)]):
        return root
    base = fallback_base(root)
    with suppress(FileExistsError):
        base.mkdir(mode=0o711)
    base.chmod(0o711)
    found = base.lstat()
    if base.is_symlink() or found.st_uid != os.geteuid():
        raise ServersUnavailable(f"{base} belongs to somebody else; remove it")
    (base / "belongs-to").write_text(f"{root}\n")  # for people; `make clean` removes both
    return base


def fallback_base(root: Path) -> Path:
    """The directory for the data of a root that Postgres' own user can't reach."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(f"/var/tmp/bridge-{os.geteuid()}-{digest}")


def _succeeds_as(user: SystemUser, command: Sequence[str]) -> bool:
    done = subprocess.run(command, capture_output=True, check=False, cwd="/", **user.popen())
    return done.returncode == 0
