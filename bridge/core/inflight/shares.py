"""Count what each tenant has in hand, where tenants share the bridge: messages, and pushes on their way.

There are only shares of tenants that have something waiting or in hand, so their number is bounded by what is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.index import Index
from bridge.core.ports.broker import Arrival

DEBT_MAX = 20_000
"""A tenant that has just been given more than its share waits no longer for it than for twice the most users of one
message."""


class Share:
    """What one tenant has here."""

    __slots__ = ("credit", "flights", "messages", "tenant", "waiting")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.waiting: deque[Arrival] = deque()
        """Its messages that are not taken yet, in the order of the queue."""
        self.credit = 0
        """What it may still take in this round; below zero after a message that was worth more than its share."""
        self.messages = 0
        """Messages taken and not answered."""
        self.flights = 0
        """Its pushes on their way to users, each counted once per user; see `InFlight.busy`."""

    @property
    def idle(self) -> bool:
        """Whether nothing of it is here."""
        return not (self.waiting or self.messages or self.flights)


class Shares:
    """The shares of all tenants that have something here."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}
        self.on_less: Callable[[], None] = lambda: None
        """Called when a tenant that has something waiting has less in hand."""

    def of(self, tenant: str) -> Share:
        """The share of this tenant."""
        share = self._shares.get(tenant)
        if share is None:
            share = self._shares[tenant] = Share(tenant)
        return share

    def begun(self, tenant: str) -> None:
        """One more push is on its way to one user."""
        share = self.of(tenant)
        share.flights += 1
        if share.credit > -DEBT_MAX:
            share.credit -= 1

    def ended(self, tenant: str) -> None:
        """One push that was on its way to one user is not any more."""
        share = self.of(tenant)
        share.flights -= 1
        self.left(share)

    def answered(self, share: Share) -> None:
        """One message that was taken has been answered, or its channel was lost."""
        share.messages -= 1
        self.left(share)

    def left(self, share: Share) -> None:
        """Something of this share has gone."""
        if share.waiting:
            self.on_less()
        elif share.idle:
            self._shares.pop(share.tenant, None)

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def flights(self) -> int:
        """Those of all tenants."""
        return sum(share.flights for share in self._shares.values())


class CountedIndex(Index):
    """An index that counts the busy flights of each tenant."""

    def __init__(self, shares: Shares) -> None:
        super().__init__()
        self._shares = shares

    def add(self, flight: Flight, *, roams: bool = False) -> Flight | None:
        """See `Index`."""
        before = len(self._busy)
        older = super().add(flight, roams=roams)
        if len(self._busy) > before:
            self._shares.begun(flight.key.tenant)
        return older

    def rest(self, flight: Flight) -> None:
        """See `Index`."""
        before = len(self._busy)
        super().rest(flight)
        if len(self._busy) < before:
            self._shares.ended(flight.key.tenant)

    def remove(self, flight: Flight) -> None:
        """See `Index`."""
        before = len(self._busy)
        super().remove(flight)
        if len(self._busy) < before:
            self._shares.ended(flight.key.tenant)
