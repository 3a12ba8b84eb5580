"""Give the event loop its turns while much is taken at once: a message may name 10,000 users."""

from __future__ import annotations

from collections.abc import Callable

from bridge.core.bounds import TakingBounds
from bridge.core.ports.clock import Clock


class Turns:
    """Counts work since the last turn. Before each turn, pushes that were offered to sessions are handed over."""

    def __init__(self, clock: Clock, flush: Callable[[], None], bounds: TakingBounds) -> None:
        self._clock = clock
        self._flush = flush
        self._yield_every = bounds.yield_every
        self._slice = bounds.slice_seconds
        self._since = 0
        self._began = 0.0

    def begin(self) -> None:
        """Work begins, or continues after a wait: start the time slice."""
        self._began = self._clock.monotonic()

    def begin_count(self) -> None:
        """Start the count of `is_due`."""
        self._since = 0

    def is_due(self, pieces: int = 1) -> bool:
        """Count one more piece of work, or so many. Returns whether the event loop should get a turn."""
        self._since += pieces
        return self._since >= self._yield_every or self.is_late

    @property
    def is_late(self) -> bool:
        """Whether the time slice is over, however many pieces were done."""
        return self._clock.monotonic() - self._began >= self._slice

    async def give(self) -> None:
        """Give the event loop a turn."""
        self._flush()
        await self._clock.sleep(0)
        self._since = 0
        self._began = self._clock.monotonic()
