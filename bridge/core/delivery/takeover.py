"""Begin to take from a queue that another process may have taken from until a moment ago.

What that process has stored for a user may not have reached their sessions yet: its ring is on the way, or was lost.
So before the first push is taken all sessions look into their mailboxes, here and at other nodes, and hold what is
newer meanwhile. And its clock may have been ahead: later positions are higher than all that the log has.
"""

from __future__ import annotations

from typing import Final

from bridge.core.cluster.cluster import Cluster
from bridge.core.contract.letters import EVERYBODY
from bridge.core.delivery.lookups import Lookups, Stopped
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.pages import Pages
from bridge.core.ports.clock import Clock
from bridge.core.sessions.hub import Hub

AT_ONCE: Final = 500
"""Users whose sessions are told before other work gets a turn."""


class Takeover:
    """What is due before the first push of a channel is taken."""

    def __init__(
        self, inflight: InFlight, lookups: Lookups, hub: Hub, pages: Pages, cluster: Cluster, clock: Clock
    ) -> None:
        self._inflight = inflight
        self._lookups = lookups
        self._hub = hub
        self._pages = pages
        self._cluster = cluster
        self._clock = clock
        self.due = False
        """Whether a channel has begun since the last time."""

    async def begin(self) -> bool:
        """Do it. False where taking ends meanwhile."""
        self.due = False
        try:
            self._inflight.above(await self._lookups.last_position())
        except Stopped:
            return False
        others = self._cluster.neighbours.others
        if others:
            # In the stream of each, before anything that is forwarded from now on.
            self._cluster.ringing.ring(EVERYBODY, 1, [other.boot for other in others])
            for number, user in enumerate(self._hub.everyone(), 1):
                self._pages.rounds.rung(user, 1)
                if number % AT_ONCE == 0:
                    await self._clock.sleep(0)
        return True
