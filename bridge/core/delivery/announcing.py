"""Tell others that sessions open and close. The ledger is the truth: what can't be told for long is dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from bridge.core.backoff import BackOff
from bridge.core.model.ledger import Closed, Opened
from bridge.core.ports.clock import Clock
from bridge.core.ports.session_log import SessionEvents

WAITING_MAX: Final = 20_000
"""Events that wait while the broker takes none; of more the oldest are dropped."""
AT_ONCE: Final = 200
"""Events in one write."""
TRY_AGAIN: Final = 1.0
"""Seconds until the first try after one that failed."""
TRY_AGAIN_MAX: Final = 5.0


class Announcing:
    """Publishes events in the order in which the ledger has committed them."""

    def __init__(self, events: SessionEvents | None, clock: Clock) -> None:
        """`events`: None where nobody is to be told."""
        self._events = events
        self._back_off = BackOff(clock, TRY_AGAIN, TRY_AGAIN_MAX)
        self._waiting: deque[Opened | Closed] = deque(maxlen=WAITING_MAX)
        self._wake = asyncio.Event()
        self.sent = 0
        """Events that the broker has confirmed."""
        self.dropped = 0
        """Events that were dropped since too many waited."""

    def tell(self, events: Sequence[Opened | Closed]) -> None:
        """These are committed."""
        if self._events is not None and events:
            self.dropped += max(0, len(self._waiting) + len(events) - WAITING_MAX)
            self._waiting.extend(events)
            self._wake.set()

    async def run(self) -> None:
        """Publish events as they come, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await self._back_off.wait()
                self._wake.set()

    async def flush(self) -> bool:
        """Publish what waits. Returns whether the broker has confirmed all of it."""
        while self._events is not None and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
            unsent = await self._events.announce(batch)
            self.sent += len(batch) - len(unsent)
            if unsent:
                # They are older than whatever has come meanwhile.
                room = WAITING_MAX - len(self._waiting)
                self.dropped += max(0, len(unsent) - room)
                self._waiting.extendleft(reversed(unsent[-room:] if room else ()))
                return False
            self._back_off.reset()
        return True
