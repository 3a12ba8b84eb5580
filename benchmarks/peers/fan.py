"""One push to everyone, or to a topic: the bridge, with a row for each session, beside nchan, which writes none."""

from __future__ import annotations

import http.client
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from benchmarks import load
from benchmarks.peers.stage import server
from benchmarks.ports import reserved_port
from benchmarks.processes import BenchmarkFailed, Child, cpu_seconds, running
from benchmarks.scene import (
    DRAIN_TIMEOUT,
    RECEIVED,
    SLOWEST_OPENING,
    START_TIMEOUT,
    TO_TOPIC,
    WRITTEN,
    Contestant,
    Scene,
    scene,
)
from bridge.devservers import Servers
from bridge.devservers.machine import NCHAN_MODULE, Machine, ensure

NCHAN: Final = "nchan"
CLIENTS: Final = ("benchmarks.peers.clients", "everyone")

_NGINX: Final = """\
load_module {module};
worker_processes auto;
worker_rlimit_nofile 65536;
pid {home}/nginx.pid;
error_log stderr error;
daemon off;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    nchan_shared_memory_size 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /sub {{
            nchan_subscriber websocket;
            nchan_channel_id everyone;
            nchan_subscriber_first_message newest;
            nchan_websocket_ping_interval 20;
        }}
        location = /pub {{ nchan_publisher http; nchan_channel_id everyone; }}
    }}
}}
"""


class Fanned(NamedTuple):
    """One push to all sessions."""

    sessions: int
    frames_seconds: float
    """From just before it was published until the last client had read it."""
    seconds: float
    """Until all rows and the ack were complete as well; the same for a peer without rows."""
    cpu: float
    """Seconds of CPU time of all its servers."""


class Fan(NamedTuple):
    """What was measured of one; by repetition."""

    name: str
    pushes: list[Fanned]

    @property
    def rate(self) -> float:
        """Frames per second until the last client had its own, the median."""
        return median(one.sessions / one.frames_seconds for one in self.pushes)

    @property
    def complete_rate(self) -> float:
        """Frames per second until rows and ack were complete, the median."""
        return median(one.sessions / one.seconds for one in self.pushes)


class Nchan:
    """nginx with nchan, its clients, and a publisher over HTTP."""

    def __init__(self, nginx: Child, crowd: Child, port: int) -> None:
        self._nginx = nginx
        self._crowd = crowd
        self._port = port
        self._sessions = 0

    def connect(self, sessions: int) -> None:
        """Open the sessions."""
        told = self._crowd.ask(
            "connect_peer",
            within=START_TIMEOUT + sessions / SLOWEST_OPENING,
            dialect="nchan",
            options={},
            port=self._port,
            first=0,
            count=sessions,
            secret="",
        )
        if told["connected"] != sessions:
            raise BenchmarkFailed(f"{NCHAN}: {told['connected']} of {sessions} sessions are open")
        self._sessions = sessions

    def push(self) -> Fanned:
        """One push to all; verified."""
        self._crowd.ask("expect_everywhere", total=1)
        self._crowd.tell("complete", seconds=DRAIN_TIMEOUT)
        before = cpu_seconds(self._nginx.pid)
        began = time.monotonic_ns()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request("POST", "/pub", load.data(0, 0, began))
        status = connection.getresponse().status
        connection.close()
        told = self._crowd.answer(DRAIN_TIMEOUT + 5, needs=self._nginx)
        used = cpu_seconds(self._nginx.pid) - before
        if status not in (201, 202) or told["distinct"] != self._sessions or told["duplicates"]:
            raise BenchmarkFailed(f"{NCHAN}: status {status}, the clients say {told}")
        seconds = (told["last_at"] - began) / 1e9
        return Fanned(self._sessions, seconds, seconds, used)


class Bridge:
    """A bridge that pushes to everyone."""

    def __init__(self, on: Scene) -> None:
        self._on = on

    def connect(self, sessions: int) -> None:
        """Open the sessions."""
        self._on.connect([sessions])

    def push(self) -> Fanned:
        """One push to all; verified."""
        flood = self._on.everyone()
        used = sum(used for name, used in flood.cpu.items() if name in ("bridge", "rabbitmq", "postgres"))
        return Fanned(flood.pushes, flood.frames_seconds, flood.seconds, used * flood.seconds)


def measure(
    servers: Servers,
    *,
    directory: Path,
    sessions: int,
    repetitions: int,
    say: Callable[[str], None],
) -> list[Fan]:
    """Measure pushes in turn, each time starting with another; all have their sessions open all the time."""
    ensure(Machine(), ("nchan",), directory / "install.log", say)
    with ExitStack() as stack:
        on: dict[str, Bridge | Nchan] = {
            one.name: stack.enter_context(_bridge(servers, one, directory))
            for one in (RECEIVED, WRITTEN, TO_TOPIC)
        }
        on[NCHAN] = stack.enter_context(_nchan(directory))
        for name, one in on.items():
            one.connect(sessions)
            say(f"{name}: {sessions:,} sessions are open")
            one.push()
        made = {name: Fan(name, []) for name in on}
        names = list(on)
        for repetition in range(repetitions):
            turn = repetition % len(names)
            for name in names[turn:] + names[:turn]:
                made[name].pushes.append(on[name].push())
    for fan in made.values():
        say(f"{fan.name}: {fan.rate:,.0f} frames/s, {fan.complete_rate:,.0f}/s with rows and ack")
    return list(made.values())


@contextmanager
def _bridge(servers: Servers, contestant: Contestant, directory: Path) -> Iterator[Bridge]:
    own = directory / f"fan-{contestant.confirm}{'-topic' * bool(contestant.topic)}"
    own.mkdir(exist_ok=True)
    with scene(servers, contestant, directory=own, sessions=[0], clients=CLIENTS) as on:
        yield Bridge(on)


@contextmanager
def _nchan(directory: Path) -> Iterator[Nchan]:
    nginx = Machine().nchan()
    if nginx is None:
        raise BenchmarkFailed("nginx with nchan is not on this machine")
    home = directory / "nchan"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    port = reserved_port()
    conf = home / "nginx.conf"
    conf.write_text(_NGINX.format(module=NCHAN_MODULE, home=home, port=port))
    command = (str(nginx), "-e", "stderr", "-p", str(home), "-c", str(conf))
    with server("nginx", command, directory=home, port=port) as child:
        clients = (sys.executable, "-m", *CLIENTS)
        with running("clients 0", clients, directory=home, environment={}) as crowd:
            yield Nchan(child, crowd, port)


def table(fans: Sequence[Fan]) -> Iterator[str]:
    """The figures, in Markdown."""
    sessions = fans[0].pushes[0].sessions
    yield (
        f"| one push to {sessions:,} sessions | frames/s | lowest .. highest | with rows and ack, frames/s"
        " | servers' CPU per frame, µs | rows |"
    )
    yield "|---|" + "---:|" * 5
    for fan in fans:
        rates = sorted(one.sessions / one.frames_seconds for one in fan.pushes)
        cells: list[Any] = [
            fan.name,
            f"{fan.rate:,.0f}",
            f"{rates[0]:,.0f} .. {rates[-1]:,.0f}",
            "" if fan.name == NCHAN else f"{fan.complete_rate:,.0f}",
            f"{median(one.cpu / one.sessions for one in fan.pushes) * 1e6:.0f}",
            "" if fan.name == NCHAN else f"{sessions:,}",
        ]
        yield f"| {' | '.join(cells)} |"
