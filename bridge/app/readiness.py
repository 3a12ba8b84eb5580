"""Whether pushes are taken: the broker's adapters tell the gate, and the log gets one line for each change.

A node that stands by takes no pushes from the queue. Where nodes share their sessions, it is ready all the same: the
active node forwards to it what is for them. Without Postgres they do not: then it is not ready (`standby`), so no load
balancer sends people to it.
"""

from __future__ import annotations

import logging

from bridge.adapters.amqp.turn import Role
from bridge.core.settlement.gate import Gate

log = logging.getLogger("bridge")

STANDBY = "another bridge takes the pushes; this one takes over when it stops"
UNKNOWN = (
    "this node knows only with the first push whether it takes them: its user at the broker may not declare the queue "
    "push.taker"
)


class BrokerReadiness:
    """Listens to the consumer and the publisher, and opens and shuts the gate for them."""

    def __init__(self, gate: Gate, *, shares: bool) -> None:
        """`shares`: whether the active node forwards to the others what is for their sessions."""
        self._gate = gate
        self._shares = shares
        self._stands_by = False
        gate.shut("broker", "connecting")

    def linked(self, ok: bool, cause: str) -> None:
        """The consumer's connection is set up, or lost."""
        if ok:
            self._gate.clear("broker")
        else:
            # In this order, or the gate would be open for a moment.
            self._gate.shut("broker", cause)
            self._gate.clear("standby")
            self._stands_by = False

    def events_refused(self, cause: str) -> None:
        """The broker refuses every outcome event, so receipts stay owed. An empty `cause`: it accepts them again."""
        if cause:
            self._gate.shut("outcome events", f"{cause}; grant the right, or set BRIDGE_OUTCOME_EVENTS=false")
        else:
            self._gate.clear("outcome events")

    def became(self, role: Role) -> None:
        """This node is connected, and knows its role among the nodes."""
        if role is Role.STANDBY:
            self._stands_by = True
            if not self._shares:
                self._gate.shut("standby", STANDBY)
            self._gate.clear("broker")
            log.info("standby: %s", STANDBY)
            return
        if role is Role.UNKNOWN:
            log.warning(UNKNOWN)
        elif self._stands_by:
            log.info("active: this node takes the pushes")
        self._stands_by = False
        self._gate.clear("standby")


class TakingLog:
    """Logs once that no pushes are taken, and once that they are taken again. A standby has its own log line."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._yet = " yet"
        self._since: float | None = None
        self._said = False

    def every_second(self, now: float) -> None:
        """`now` is monotonic seconds. A gap that ends within a second is not logged."""
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
