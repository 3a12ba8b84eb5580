"""The parts that keep pushes for users and take them back, put together."""

from __future__ import annotations

from bridge.core.bounds import Bounds
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.last_values import LastValues
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.mailbox.pages import Pages
from bridge.core.mailbox.resends import Resends
from bridge.core.mailbox.sweep import MailboxSweep
from bridge.core.mailbox.withdrawing import Withdrawing
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.retained import Retained
from bridge.core.ports.store import Store
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.outgoing import Outgoing
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence


class Mailbox:
    """What is kept, and what is done with it."""

    def __init__(
        self,
        *,
        store: Store,
        retained: Retained | None,
        errors: ErrorHandler,
        clock: Clock,
        limits: MailboxLimits,
        bounds: Bounds,
        confirm_timeout: float,
        park_after: float,
        hub: Hub,
        inflight: InFlight,
        outgoing: Outgoing,
        gate: Gate,
        boot: str,
    ) -> None:
        """Seconds as in `DeliveryLimits`."""
        self.pages = Pages(
            store=store,
            hub=hub,
            inflight=inflight,
            outgoing=outgoing,
            clock=clock,
            gate=gate,
            errors=errors,
            boot=boot,
            patience=confirm_timeout,
            bounds=bounds,
        )
        self.resends = Resends(hub=hub, inflight=inflight, pages=self.pages, pong_after=park_after)
        self.sweep = MailboxSweep(
            store=store,
            inflight=inflight,
            clock=clock,
            gate=gate,
            errors=errors,
            limits=limits,
            bounds=bounds,
        )
        self.withdrawing = Withdrawing(hub, self.pages)
        writes = Persistence(store, gate, clock, "last values", bounds.statements)
        self.last_values = LastValues(
            retained, persistence=writes, inflight=inflight, pages=self.pages, clock=clock, errors=errors
        )
