"""A push request that is kept until its time has come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec


class Scheduled(msgspec.Struct, frozen=True, gc=False):
    """One request, as it is published again at its time."""

    id: str
    """Of this entry alone: two messages with one push id are two entries."""
    tenant: str
    push_id: str
    user: str
    """The user that it names, if it names one; a recall by collapse key looks for it."""
    collapse_key: str
    users: int
    """How many users it names; 1 where only the hub knows them."""
    deliver_at: float
    """Wall-clock seconds."""
    published_at: float
    """Wall-clock seconds."""
    key: bytes
    """The routing key with which it came."""
    body: bytes
    properties: bytes
    """What `contract.scheduling.packed` made of the properties of its message."""
    recalled: bool = False
    """It was withdrawn before its time."""


class Due(NamedTuple):
    """What a process has claimed for its release."""

    entries: Sequence[Scheduled]
    """In the order of their times; those of one time in the order in which they were scheduled."""
    next_in: float | None
    """Seconds until the next entry is due, 0 where more are due; None: nothing else is scheduled, or another process is
    releasing."""


class Withdrawn(NamedTuple):
    """A scheduled push that a recall has withdrawn."""

    push_id: str
    users: int
    """See `Scheduled.users`."""
