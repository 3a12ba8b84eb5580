"""The Clock port on the machine's clocks."""

from __future__ import annotations

import asyncio
import sys
import time as machine
from functools import partial

if sys.platform == "linux":
    _boottime = partial(machine.clock_gettime, machine.CLOCK_BOOTTIME)
else:
    _boottime = machine.monotonic


class SystemClock:
    """Fills the Clock port."""

    # Not methods around them: every push asks several times.
    time = staticmethod(machine.time)
    """Seconds since the epoch."""
    monotonic = staticmethod(machine.monotonic)
    """Seconds since some moment."""
    # It costs more than the other two together, so it is not `monotonic`.
    boottime = staticmethod(_boottime)
    """As `monotonic`, and goes on while the machine is suspended."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
