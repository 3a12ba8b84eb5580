"""The fixed limits of the service: how often its tasks run, and how it starts and stops.

No setting changes them. The composition root hands them to everything that needs them, so that a setting could do
so. Those of the core are in `bridge.core.bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ServiceLimits:
    """All times are in seconds."""

    tick: float = 0.1
    """Between looks at deadlines."""
    renew_every: float = 1.0
    """Between renewals of the lease, which is good for `LEASE_SECONDS`."""
    sweep_every: float = 1.0
    """Between sweeps of the rows."""
    upkeep_every: float = 3600.0
    """Between looks at the partitions."""
    upkeep_retry: float = 5.0
    """Until the next look at the partitions after one that failed."""
    count_every: float = 60.0
    """Between looks for hours of the log that have changed since they were counted."""
    count_rest: float = 19.0
    """Times that the last look took, if that is longer: an hour with many rows takes long, and changes all the time."""
    count_all_every: float = 3600.0
    """Between looks for them in all days, not only the newest two."""
    erase_every: float = 60.0
    """Between looks for data that no push needs any more, where it is to be erased."""
    audit_every: float = 60.0
    """Between audits."""
    look_up_seconds: float = 5.0
    """How long a statement may take by which the ops port or the audit reads the log."""
    start_retry: float = 0.5
    """Between tries while the database is down at the start."""
    look_around: float = 0.2
    """Between looks at the start whether all other nodes know this one."""
    share_every: float = 0.5
    """Between looks at which partitions of the requests are this node's share."""
    saying_seconds: float = 0.5
    """How long a stop may take to say in the database that it has begun."""
    recording_seconds: float = 2.0
    """How long a stop may take to write in the ledger that its sessions have closed."""
    new_objects: int = 10_000
    """New objects after which the garbage collector looks at the youngest. The interpreter's own 700 costs latency."""
    young_looks: int = 2
    """Such looks after which it looks at those that outlived one, too. With the interpreter's own ten that takes
    longer than anybody should wait where a push goes to 10,000 sessions."""
    old_looks: int = 50
    """And looks at those after which it looks at all: as seldom as with the interpreter's own numbers."""
    settling_look: float = 0.05
    """Between looks, at a stop, whether everything is settled."""
    closed_at_once: int = 50
    """Sessions that are closed at the end of a stop before other work gets a turn."""


LIMITS: Final = ServiceLimits()
