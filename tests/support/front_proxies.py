"""nginx, HAProxy and Caddy before bridges, each with the file in deploy/.

The files are used as they are. Only the ports, the addresses, the places of certificates and logs, the number of
connections, and what a test names are written over.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.ports import reserved_port
from bridge.devservers.machine import Machine, ensure
from tests.support.certificates import Authority

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
FILES = {
    "nginx": DEPLOY / "nginx" / "bridge.conf",
    "haproxy": DEPLOY / "haproxy" / "bridge.cfg",
    "caddy": DEPLOY / "caddy" / "Caddyfile",
}
HOST = "push.example.com"
NODES = ("192.0.2.11:8181", "192.0.2.12:8181")
"""The addresses of the two bridges in the files."""
SECONDS = 20.0

_NGINX_MAIN = """\
daemon off;
pid {root}/pid;
error_log {root}/main-error.log;
worker_processes 2;
worker_shutdown_timeout 1s;
events {{ worker_connections 1000; }}
http {{
    client_body_temp_path {root}/temp;
    proxy_temp_path {root}/temp;
    fastcgi_temp_path {root}/temp;
    uwsgi_temp_path {root}/temp;
    scgi_temp_path {root}/temp;
    include {file};
}}
"""


class FrontProxy:
    """One of the three, as a process of ours."""

    def __init__(self, name: str, root: Path, port: int, command: Sequence[str | Path]) -> None:
        self.name = name
        self.port = port
        self._root = root
        self._command = [str(word) for word in command]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def logged(self) -> str:
        """Everything that it has written to its logs."""
        return "".join(log.read_text() for log in sorted(self._root.glob("*.log")))

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        ours = {"HOME": self._root, "XDG_DATA_HOME": self._root, "XDG_CONFIG_HOME": self._root}
        with (self._root / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **{name: str(place) for name, place in ours.items()}},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(SECONDS):
            while True:
                assert self._process.poll() is None, self.logged
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return

    async def reload(self) -> None:
        """Have it read its file again, as an operator does."""
        assert self._process is not None
        if self.name == "caddy":
            config = self._root / FILES["caddy"].name
            # Without --force Caddy leaves a file alone that has not changed.
            words = ["reload", "--force", "--config", str(config), "--adapter", "caddyfile"]
            asked = await asyncio.create_subprocess_exec(
                self._command[0],
                *words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            async with asyncio.timeout(SECONDS):
                _, told = await asked.communicate()
            assert asked.returncode == 0, told
        else:
            self._process.send_signal(signal.SIGHUP if self.name == "nginx" else signal.SIGUSR2)

    def stop(self) -> None:
        """End it and its workers."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def front_proxy(
    name: str,
    directory: Path,
    authority: Authority,
    bridges: Sequence[int],
    say: Callable[[str], None],
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[FrontProxy]:
    """This proxy before the bridges on these ports (one, or two); `changes` are made in its file."""
    root = directory / name
    root.mkdir()
    ensure(Machine(), [name], root / "install.out", say)
    authority.sign(HOST, HOST, file=f"{name}/{HOST}.pem")
    proxy = _made(name, root, bridges, changes or {})
    try:
        await proxy.start()
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)


def _made(name: str, root: Path, bridges: Sequence[int], changes: Mapping[str, str]) -> FrontProxy:
    text = FILES[name].read_text()
    for old, new in changes.items():
        assert old in text, f"{old} is not in {FILES[name]}"
        text = text.replace(old, new)
    if len(bridges) < len(NODES):
        text = re.sub(rf"^ *server .*{NODES[1]}.*\n| {NODES[1]}", "", text, flags=re.MULTILINE)
    for node, port in zip(NODES, bridges, strict=False):
        text = text.replace(node, f"127.0.0.1:{port}")
    port = reserved_port()
    places = {
        "/etc/ssl/push": str(root),
        "/var/log/nginx": str(root),
        "listen 443": f"listen 127.0.0.1:{port}",
        "bind :443": f"bind 127.0.0.1:{port}",
        f"{HOST}:443": f"{HOST}:{port}",
        "localhost:2019": f"localhost:{reserved_port()}",
        "maxconn 20000": "maxconn 500",  # needs fewer files than this machine may allow
    }
    for old, new in places.items():
        text = text.replace(old, new)
    file = root / FILES[name].name
    file.write_text(text)
    return FrontProxy(name, root, port, _command(name, root, file))


def _command(name: str, root: Path, file: Path) -> list[str | Path]:
    program = getattr(Machine(), name)()
    assert program is not None
    if name == "nginx":
        main = root / "nginx.conf"
        main.write_text(_NGINX_MAIN.format(root=root, file=file))
        return [program, "-p", root, "-e", root / "start.log", "-c", main]
    if name == "haproxy":
        return [program, "-W", "-f", file]
    return [program, "run", "--config", file, "--adapter", "caddyfile"]
