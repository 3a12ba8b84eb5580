"""Private RabbitMQ and Postgres for one command: found or installed, started on loopback, stopped with it.

`bridge dev`, `bridge demo`, the tests and the benchmarks use it. It tries, in this order: the addresses that
it is given (`find_or_start` only), server binaries on this machine, Debian's packages, and a running docker
engine with compose.yaml. Where nothing helps, it says in one sentence what to install.

The servers that it starts are private: they have their own directories below `root`, their own ports, node
name, EPMD and passwords, and listen on 127.0.0.1 only. They stop with their owner, however the owner ends:

- leaving the `with` block stops everything in order;
- a guard, a small process in a session of its own, waits for the owner's death and then does the same, so
  SIGTERM, a crash and `kill -9` leave nothing behind;
- each server's process records its pid and start time before it becomes the server, so the next start finds
  what outlived even the guard, and never mistakes a stranger with the same pid for it.

May import the standard library and the core's errors only: it also runs before anything is installed.
"""

from __future__ import annotations

from bridge.devservers.servers import (
    Addresses,
    Broker,
    Database,
    Server,
    Servers,
    ServersInUse,
    ServersUnavailable,
)
from bridge.devservers.starting import find_or_start, private_servers

__all__ = [
    "Addresses",
    "Broker",
    "Database",
    "Server",
    "Servers",
    "ServersInUse",
    "ServersUnavailable",
    "find_or_start",
    "private_servers",
]
