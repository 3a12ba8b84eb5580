"""What a caller gets: the two servers, handles to control them, and the errors when there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bridge.core.errors import BridgeError

HOST = "127.0.0.1"
USUAL_AMQP_PORT = 5672
USUAL_POSTGRES_PORT = 5432
START_TIMEOUT = 90.0
"""Seconds that a server may take until it answers; RabbitMQ needs 20 on a small, busy machine."""
STOP_TIMEOUT = 30.0
"""Seconds that a server may take to stop before it is killed."""
INSTALL_TIMEOUT = 900.0
OPEN_FILES = 65536
"""File descriptors that a server may open: enough for any test. Erlang sizes its tables by it."""


class ServersUnavailable(BridgeError):
    """RabbitMQ or Postgres can't be run on this machine, or did not start."""


class ServersInUse(ServersUnavailable):
    """Another living process owns the private servers below this root; `owner` is its pid, if it is known."""

    def __init__(self, root: Path, owner: int | None) -> None:
        self.root = root
        self.owner = owner
        super().__init__(f"the servers in {root} belong to the running process {owner or '(unknown)'}")


class Server(Protocol):
    """One server under our control. Its data and its port survive `stop` and `kill`; calls block."""

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int:
        """The main process; raises ServersUnavailable while it is down."""

    def start(self) -> None:
        """Return when it takes connections; does nothing if it does already. Raises ServersUnavailable."""

    def stop(self) -> None:
        """Stop it cleanly; does nothing if it is down."""

    def kill(self) -> None:
        """Kill it and its children at once, as a power cut would; does nothing if it is down."""

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
        """Make a vhost in which our user may do everything, and return its url."""

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
