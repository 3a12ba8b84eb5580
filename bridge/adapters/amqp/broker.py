"""The broker's version, and what follows from it."""

from __future__ import annotations

import re
from typing import Final

import aio_pika

HIGH_PRIORITY: Final = 5
"""The lowest priority that a quorum queue of RabbitMQ 4.0 and newer counts as high. It has two levels, and gives out
messages of the higher one ahead of older ones (RabbitMQ's guide "Quorum Queues", section on message priorities)."""
_REORDERS_FROM = 4
_VERSION = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def version(connection: aio_pika.Connection) -> str:
    """The broker's version, such as `4.1.3`; empty where it names none. The connection must be open."""
    assert connection.transport is not None
    said = connection.transport.connection.server_properties.get("version", b"")
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def reorders_by_priority(version: str) -> bool:
    """Whether a RabbitMQ of this version gives out messages of a quorum queue by their priority."""
    numbers = _VERSION.match(version)
    return numbers is not None and int(numbers[0].partition(".")[0]) >= _REORDERS_FROM
