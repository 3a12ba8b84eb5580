"""Private RabbitMQ and Postgres for one command: found or installed, started on loopback, stopped with it.

`bridge dev`, `bridge demo`, the tests and the benchmarks share it. It takes, in this order, the
addresses it is given (`find_or_start` only), server binaries of this machine, Debian's packages, a running
docker engine with compose.yaml, and else says in one sentence what to install.

What it starts is nobody else's: own directories below `root`, own ports, node name, EPMD and passwords,
127.0.0.1 only. It ends with its owner however the owner ends:

- leaving the `with` block stops everything in order;
- a guard, one small process of its own session, waits for the owner's death and then does the same, so
  SIGTERM, a crash and `kill -9` leave nothing behind;
- each server writes its pid and start time down before it becomes the server, so that the next start finds
  what outlived even the guard, and never mistakes a stranger with the same pid for it.

Only the standard library is needed: it also runs before anything is installed.
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
