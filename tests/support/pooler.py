"""A private PgBouncer in front of one database, as others put it between their programs and Postgres."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg import conninfo

from benchmarks.ports import reserved_port
from bridge.devservers.machine import Machine, ensure

SECONDS = 20.0


@contextmanager
def pgbouncer(dsn: str, mode: str, say: Callable[[str], None], **settings: object) -> Iterator[str]:
    """The DSN of this database through a pool in this mode; its own defaults but for `settings`."""
    server = conninfo.conninfo_to_dict(dsn)
    port = reserved_port()
    with tempfile.TemporaryDirectory(prefix="bridge-pooler-") as made:
        root = Path(made)
        root.chmod(0o755)
        ensure(Machine(), ["pgbouncer"], root / "install.log", say)
        target = " ".join(f"{name}={server[name]}" for name in ("host", "port", "dbname", "user", "password"))
        own = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "logfile": "",
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in own.items()]
        config = root / "pgbouncer.ini"
        config.write_text("\n".join(["[databases]", f"pooled = {target}", "[pgbouncer]", *lines, ""]))
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        command = [str(Machine().pgbouncer()), "-q", *as_user, str(config)]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _wait(process, port, root / "log")
            yield f"postgresql://anybody@127.0.0.1:{port}/pooled"
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
