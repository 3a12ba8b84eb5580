"""The broker's version, and what follows from it."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from typing import Final

import aio_pika

ONE_LEVEL: Final = frozenset((None, 0, 1, 2, 3, 4))
"""Priorities that a quorum queue of RabbitMQ 4.0 to 4.2 treats alike: it has two levels, and gives out messages of 5
and more ahead of older ones (RabbitMQ's guide "Quorum Queues" of 4.2, section "Priorities"). None: the message has
none."""
USUAL: Final = frozenset((None, 0, 4))
"""Priorities that are taken from 4.3 on, which has 32 levels and counts a message without a priority as 4 (the same
guide of 4.3, section "Message Priorities"). 0 is another level, but Java, Spring and kombu send it unasked: messages
with it keep their order among themselves. See `are_mixed`."""
_AS_NONE: Final = frozenset((None, 4))
MIXED: Final = (
    "%s: some messages have priority 0 and others none or 4: this broker gives out the others first, so pushes to a "
    "user may overtake one another; let all publishers send priority 4, or none"
)
_VERSION = re.compile(r"([0-9]+)(?:\.([0-9]+))?")


def version(connection: aio_pika.Connection) -> str:
    """The broker's version, such as `4.1.3`; empty where it names none. The connection must be open."""
    assert connection.transport is not None
    said = connection.transport.connection.server_properties.get("version", b"")
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def release(version: str) -> tuple[int, int]:
    """Its first two numbers; (0, 0) where it is of another form."""
    numbers = _VERSION.match(version)
    return (int(numbers[1]), int(numbers[2] or 0)) if numbers else (0, 0)


def usual_priorities(version: str) -> AbstractSet[int | None] | None:
    """The priorities whose messages keep their order in a quorum queue of this RabbitMQ; None: any priority does."""
    its = release(version)
    if its < (4, 0):
        return None
    return ONE_LEVEL if its < (4, 3) else USUAL


def are_mixed(usual: AbstractSet[int | None] | None, seen: AbstractSet[int | None]) -> bool:
    """Whether messages of these usual priorities may overtake one another."""
    return usual is USUAL and 0 in seen and not seen.isdisjoint(_AS_NONE)
