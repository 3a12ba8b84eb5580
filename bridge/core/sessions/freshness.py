"""How fresh what this node knows of revocations and of its own lease is. While it is stale nothing is sent.

A node that is cut off from the log, or was frozen, may have missed that a session is revoked. It stops sending a second
before its lease runs out, so whoever finds no lease of it knows that it sends nothing any more.
"""

from __future__ import annotations

import math
from typing import Final

from bridge.core.ports.clock import Clock
from bridge.core.ports.store import LEASE_SECONDS

FRESH_FOR: Final = LEASE_SECONDS - 1.0
"""Seconds after a renewal of the lease that all revocations were asked for after."""


class Freshness:
    """Its seconds are those of the clock's `boottime`, which goes on while the process or the machine is stopped."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until = math.inf
        """Before all have been read for the first time no session is open."""
        self.was_stale = False
        """Whether something was not sent, or was looked at in vain, since this was last set to False."""

    def heard(self, alive: float) -> None:
        """The lease was renewed at `alive`; revocations and ends of sessions that were committed by then are carried
        out."""
        self._until = alive + FRESH_FOR

    def lasts(self) -> bool:
        """Whether it is fresh. Ask right before sending: a process may be stopped between any two lines."""
        if self._clock.boottime() < self._until:
            return True
        self.was_stale = True
        return False
