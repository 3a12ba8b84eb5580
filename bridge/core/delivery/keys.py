"""Count the requests whose routing key is not their user's. With several partitions the key is what keeps an order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bridge.core.contract.routing_keys import key_of
from bridge.core.errors import BridgeError
from bridge.core.model.pushes import PushRequest, Rejected, ToUser
from bridge.core.ports.broker import Arrival, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

TELL_EVERY: Final = 60.0
"""Seconds between two reports."""


class OtherKey(BridgeError):
    """Requests came with routing keys that are not their user's: pushes to that user may overtake one another."""

    def __init__(self, count: int, app_id: str, key: bytes) -> None:
        self.count = count
        self.app_id = app_id
        by = f" by {app_id!r}" if app_id else ""
        super().__init__(
            f"{count} requests were published{by} with another routing key than their user's, the last with "
            f"{key[:100].decode('utf-8', 'replace')!r}: their order is not kept; the key for a user is user.<id>"
        )


class Keys:
    """Looks at requests to one user."""

    def __init__(self, errors: ErrorHandler, clock: Clock) -> None:
        self._errors = errors
        self._clock = clock
        self._untold = 0
        self._tell_at = clock.monotonic()
        self.others = 0
        """Requests so far whose key was not their user's."""

    def look(self, arrival: Arrival, requests: Sequence[PushRequest | Rejected]) -> None:
        """Look at the requests of a message. One that is to be published again by the broker has lost its key."""
        if arrival.source is not Source.REQUESTS:
            return
        found = sum(
            isinstance(request, PushRequest)
            and isinstance(request.target, ToUser)
            and arrival.key != key_of(request.target.user)
            for request in requests
        )
        if not found:
            return
        self.others += found
        self._untold += found
        now = self._clock.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY
            error = OtherKey(self._untold, arrival.properties.app_id, arrival.key)
            self._untold = 0
            self._errors.handle(error, "take.routing_key", {})
