"""What is said of whether pushes are taken: to the gate by the broker's link, and in the log, once for each change.

A node that stands by is not ready (`standby`), so that no balancer sends people to it: what is pushed while they are
there is sent by another node, which does not know of them.
"""

from __future__ import annotations

import logging

from bridge.adapters.amqp.turn import Role
from bridge.core.settlement.gate import Gate

log = logging.getLogger("bridge")

STANDBY = "another bridge takes the pushes, and this one when that ends"
UNKNOWN = (
    "it is not known whether this node takes the pushes before the first one comes: its user at the broker may not "
    "declare the queue push.taker"
)


class Standing:
    """Listens to the consumer, see `Consumer`; opens and shuts the gate by it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        gate.shut("broker", "connecting")

    def linked(self, ok: bool, cause: str) -> None:
        """The link is set up, or lost."""
        if ok:
            self._gate.clear("broker")
        else:
            # In this order, or the gate would be open for a moment.
            self._gate.shut("broker", cause)
            self._gate.clear("standby")

    def events_refused(self, cause: str) -> None:
        """Why the broker refuses every outcome event: receipts are owed meanwhile. Empty: it takes them again."""
        if cause:
            self._gate.shut("outcome events", f"{cause}; grant the right, or set BRIDGE_OUTCOME_EVENTS=false")
        else:
            self._gate.clear("outcome events")

    def became(self, role: Role) -> None:
        """This node is connected, and knows what it is to the others."""
        if role is Role.STANDBY:
            self._gate.shut("standby", STANDBY)
            self._gate.clear("broker")
            log.info("standby: %s", STANDBY)
            return
        if role is Role.UNKNOWN:
            log.warning(UNKNOWN)
        elif "standby" in self._gate:
            log.info("active: this node takes the pushes")
        self._gate.clear("standby")


class TakingLog:
    """Says in the log that no pushes are taken, once, and that they are again. Standing by has words of its own."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._yet = " yet"
        self._since: float | None = None
        self._said = False

    def every_second(self, now: float) -> None:
        """`now` is monotonic seconds. What is over within a second is not worth a line."""
        names = set(self._gate.names)
        if not names:
            if self._said and not self._yet and self._since is not None:
                log.info("pushes are taken again, after %.0f s", now - self._since)
            self._since, self._said = None, False
        elif names == {"standby"} or "draining" in names:
            self._since, self._said = None, False
        elif self._since is None:
            self._since = now
        elif not self._said:
            self._said = True
            self._yet = "" if self._gate.was_open else " yet"
            log.warning("no pushes are taken%s: %s", self._yet, "; ".join(self._gate.causes))
