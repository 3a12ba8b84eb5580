"""The Clock port on the machine's clocks."""

from __future__ import annotations

import asyncio
import time


class SystemClock:
    """Fills the Clock port."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
