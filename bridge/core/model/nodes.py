"""Other bridge processes on the same broker and database, as a node sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Neighbour(NamedTuple):
    """Another process."""

    node: str
    boot: str
    queue: str
    """The queue at the broker on which it listens to other nodes; empty while it has none."""
    alive: bool
    """Whether its lease is good."""
    known_until: float | None
    """It knows every process that had its name by then, by the database's clock in unix seconds. None: it does not look
    for others, since it is of an older version."""
    taking: Sequence[int] | None = None
    """The partitions of the requests that it takes. None: it can't take any now, or is of an older version."""


class Around(NamedTuple):
    """What there is besides a process."""

    now: float
    """The database's clock, in unix seconds: every process that had its name by then is among `others`."""
    others: Sequence[Neighbour]
    """Those that live, or that have sessions in the ledger which nobody has ended yet."""
