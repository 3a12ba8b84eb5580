"""The Clock port on the machine's clocks."""

from __future__ import annotations

import asyncio
import time as machine


class SystemClock:
    """Fills the Clock port."""

    # Not methods around them: every push asks several times.
    time = staticmethod(machine.time)
    """Seconds since the epoch."""
    monotonic = staticmethod(machine.monotonic)
    """Seconds since some moment."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
