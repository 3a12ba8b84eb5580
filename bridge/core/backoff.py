"""How long to wait between the tries of something that must succeed in the end."""

from __future__ import annotations

import random

from bridge.core.ports.clock import Clock


class BackOff:
    """Waits `first` seconds, and twice as long after each try that failed, up to `most` (default: `first`).

    With `jitter` each wait is cut by up to a half at random, so that many who failed together do not return together.
    """

    def __init__(
        self, clock: Clock, first: float, most: float | None = None, *, jitter: bool = False
    ) -> None:
        self._clock = clock
        self._first = first
        self._most = first if most is None else most
        self._jitter = jitter
        self._next = first

    async def wait(self) -> None:
        """Sleep until the next try; may be cancelled."""
        await self._clock.sleep(self.delay())

    def delay(self) -> float:
        """Seconds to wait before the next try. Each call is a wait."""
        delay = self._next
        self._next = min(delay * 2, self._most)
        return delay * random.uniform(0.5, 1.0) if self._jitter else delay

    def reset(self) -> None:
        """Begin at `first` again: a try has succeeded."""
        self._next = self._first
