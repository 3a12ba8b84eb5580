"""The peers: how each is started, and what it promises."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from benchmarks.peers.publisher import NatsOutlet
from benchmarks.peers.stage import Peer, Promises, Running, password, server
from benchmarks.ports import reserved_port
from benchmarks.processes import BenchmarkFailed, running
from benchmarks.scene import START_TIMEOUT, vhost
from bridge.devservers import Servers
from bridge.devservers.machine import Machine, ensure

INSTALL_TIMEOUT: Final = 300.0
SOCKETIO: Final = (
    "python-socketio==5.18.1",
    "python-engineio==4.15.1",
    "bidict==0.24.1",
    "simple-websocket==1.1.0",
    "wsproto==1.3.2",
    "h11==0.16.0",
)
ACKED: Final = "acked by the page"


class Ports:
    """Where the private RabbitMQ serves WebSockets."""

    def __init__(self) -> None:
        self.stomp = reserved_port()
        self.mqtt = reserved_port()

    def plugins(self) -> Mapping[str, Sequence[str]]:
        """The plugins, each with its settings. They listen on loopback, and only for WebSockets."""
        return {
            "rabbitmq_web_stomp": (
                f"web_stomp.tcp.listener = 127.0.0.1:{self.stomp}",
                "stomp.listeners.tcp = none",
            ),
            "rabbitmq_web_mqtt": (
                f"web_mqtt.tcp.listener = 127.0.0.1:{self.mqtt}",
                "mqtt.listeners.tcp = none",
            ),
        }


def peers(servers: Servers, ports: Ports, *, directory: Path, say: Callable[[str], None]) -> list[Peer]:
    """All of them; what they need is installed. Raises BenchmarkFailed and ServersUnavailable."""
    ensure(Machine(), ("nats", "mosquitto", "nchan"), directory / "install.log", say)
    modules = _install_socketio(directory / "socketio", say)
    in_queues = "yes, in a durable queue per user"
    return [
        Peer(
            "RabbitMQ web_stomp, auto ack",
            Promises(durable=in_queues),
            partial(_stomp, servers, ports.stomp, False),
        ),
        Peer(
            "RabbitMQ web_stomp, client ack",
            Promises(durable=in_queues, proven=ACKED),
            partial(_stomp, servers, ports.stomp, True),
        ),
        Peer("RabbitMQ web_mqtt, QoS 0", Promises(), partial(_web_mqtt, servers, ports.mqtt, 0)),
        Peer(
            "RabbitMQ web_mqtt, QoS 1",
            Promises(durable=in_queues, proven=ACKED),
            partial(_web_mqtt, servers, ports.mqtt, 1),
        ),
        Peer(
            "NATS JetStream",
            Promises(durable="in a file, fsynced by a timer", proven=ACKED),
            partial(_nats, directory),
        ),
        Peer(
            "mosquitto, QoS 1",
            Promises(durable="in memory, saved every 30 minutes", proven=ACKED),
            partial(_mosquitto, directory),
        ),
        Peer("python-socketio", Promises(), partial(_socketio, servers, directory, modules)),
    ]


# --- RabbitMQ's plugins ---


@contextmanager
def _stomp(servers: Servers, port: int, acks: bool) -> Iterator[Running]:
    with vhost(servers, f"bench_stomp_{secrets.token_hex(4)}") as url:
        parts = urlsplit(url)
        yield Running(
            servers={"rabbitmq": servers.rabbit.pid},
            dialect="stomp",
            options={
                "login": parts.username,
                "passcode": unquote(parts.password or ""),
                "vhost": parts.path.removeprefix("/"),
                "acks": acks,
            },
            port=port,
            way="queues",
            address={"url": url},
        )


@contextmanager
def _web_mqtt(servers: Servers, port: int, qos: int) -> Iterator[Running]:
    with vhost(servers, f"bench_mqtt_{secrets.token_hex(4)}") as url:
        parts = urlsplit(url)
        yield Running(
            servers={"rabbitmq": servers.rabbit.pid},
            dialect="mqtt",
            options={
                "username": f"{parts.path.removeprefix('/')}:{parts.username}",
                "password": unquote(parts.password or ""),
                "qos": qos,
            },
            port=port,
            way="topics",
            address={"url": url},
        )


# --- brokers of their own ---


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise BenchmarkFailed(f"{name} is not on this machine")
    return found


def versions() -> dict[str, str]:
    """The versions of the peers' programs."""
    asked = {"node": ("node", "-v"), "nats": ("nats-server", "-v"), "mosquitto": ("mosquitto", "-h")}
    asked["nginx"] = ("nginx", "-v")
    found = {}
    for name, (program, *options) in asked.items():
        done = subprocess.run([_program(program), *options], capture_output=True, text=True, check=False)
        number = re.search(r"\d+(?:\.\d+)+", done.stdout + done.stderr)
        found[name] = number[0] if number else ""
    return found | dict(package.split("==") for package in SOCKETIO[:1])


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


_NATS: Final = """\
listen: "127.0.0.1:{port}"
websocket {{ listen: "127.0.0.1:{websocket}", no_tls: true, compression: false }}
jetstream {{ store_dir: "{home}/jetstream" }}
authorization {{ user: bench, password: "{password}" }}
"""


@contextmanager
def _nats(directory: Path) -> Iterator[Running]:
    home = _fresh(directory / "nats")
    port, websocket, secret = reserved_port(), reserved_port(), password()
    conf = home / "nats.conf"
    conf.touch(0o600)
    conf.write_text(_NATS.format(port=port, websocket=websocket, home=home, password=secret))
    with server(
        "nats", (_program("nats-server"), "-c", str(conf)), directory=directory, port=websocket
    ) as child:
        login = {"username": "bench", "password": secret}
        _make_stream(port, **login)
        yield Running(
            servers={"nats": child.pid},
            dialect="nats",
            options={**login, "stream": "PUSH"},
            port=websocket,
            way="nats",
            address={"port": port, **login},
            needs=child,
        )


def _make_stream(port: int, username: str, password: str) -> None:
    outlet = NatsOutlet(port, username, password)
    outlet.publish([NatsOutlet.stream("PUSH")])
    while outlet.on_their_way:
        outlet.take_confirms(wait=True)
    outlet.close()


_MOSQUITTO: Final = """\
user {user}
persistence true
persistence_location {home}/
autosave_interval 1800
password_file {home}/passwords
allow_anonymous false
max_queued_messages 0
log_type error
listener {port} 127.0.0.1
listener {websocket} 127.0.0.1
protocol websockets
"""


@contextmanager
def _mosquitto(directory: Path) -> Iterator[Running]:
    home = _fresh(directory / "mosquitto")
    port, websocket, secret = reserved_port(), reserved_port(), password()
    passwords = home / "passwords"
    passwords.touch(0o600)
    passwords.write_text(f"bench:{secret}\n")
    subprocess.run([_program("mosquitto_passwd"), "-U", str(passwords)], check=True, capture_output=True)
    user = Path("/proc/self").owner()
    (home / "mosquitto.conf").write_text(
        _MOSQUITTO.format(user=user, home=home, port=port, websocket=websocket)
    )
    command = (_program("mosquitto"), "-c", str(home / "mosquitto.conf"))
    with server("mosquitto", command, directory=directory, port=websocket) as child:
        login = {"username": "bench", "password": secret}
        yield Running(
            servers={"mosquitto": child.pid},
            dialect="mqtt",
            options={**login, "qos": 1},
            port=websocket,
            way="mqtt",
            address={"port": port, **login},
            needs=child,
        )


# --- python-socketio ---


def _install_socketio(directory: Path, say: Callable[[str], None]) -> Path:
    mark = directory / "installed"
    if not mark.exists() or mark.read_text() != repr(SOCKETIO):
        say("pip install python-socketio (once)")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--no-input", "--upgrade", "--target", str(directory), *SOCKETIO],
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT,
        )
        if done.returncode:
            raise BenchmarkFailed(f"pip install failed:\n{done.stdout}{done.stderr}")
        mark.write_text(repr(SOCKETIO))
    return directory


@contextmanager
def _socketio(servers: Servers, directory: Path, modules: Path) -> Iterator[Running]:
    port, secret = reserved_port(), secrets.token_urlsafe(48)
    root = Path(__file__).resolve().parent.parent.parent
    with vhost(servers, f"bench_socketio_{secrets.token_hex(4)}") as url:
        environment: dict[str, Any] = {
            "BRIDGE_AMQP_URL": url,
            "BRIDGE_WS_PORT": str(port),
            "BRIDGE_JWT_SECRET": secret,
            "PYTHONPATH": f"{root}:{modules}",
        }
        command = (sys.executable, "-m", "benchmarks.peers.socketio_server")
        with running("socketio", command, directory=directory, environment=environment) as child:
            if child.line(START_TIMEOUT) != b"ready":
                raise BenchmarkFailed(f"python-socketio did not become ready, see {child.log}")
            yield Running(
                servers={"socketio": child.pid, "rabbitmq": servers.rabbit.pid},
                dialect="socketio",
                options={},
                port=port,
                way="socketio",
                address={"url": url},
                secret=secret,
                needs=child,
            )
