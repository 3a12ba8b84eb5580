"""How many connections nodes have to broker and database."""

from __future__ import annotations

from typing import Final

from bridge.adapters.amqp.limits import CHANNELS
from bridge.adapters.postgres.pool import CONNECTIONS_NEEDED

OPS: Final = 1
"""Of CHANNELS, the connection that is opened when the ops port publishes for the first time."""


def broker_connections(nodes: int, partitions: int) -> int:
    """Connections to the broker, before anybody publishes by the ops port. With several partitions each that is taken
    has one, and every node has one more, which watches."""
    each = len(CHANNELS) - OPS
    return nodes * each + (partitions if partitions > 1 else 0)


def database_connections(nodes: int) -> int:
    """Connections to Postgres, at most."""
    return nodes * CONNECTIONS_NEEDED
