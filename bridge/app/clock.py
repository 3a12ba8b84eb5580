"""The Clock port on the machine's clocks."""

from __future__ import annotations

import asyncio
import sys
import time as machine
from functools import partial

if sys.platform == "linux":
    # It goes on while the machine is suspended: what was true before may not be by then.
    _monotonic = partial(machine.clock_gettime, machine.CLOCK_BOOTTIME)
else:
    _monotonic = machine.monotonic


class SystemClock:
    """Fills the Clock port."""

    # Not methods around them: every push asks several times.
    time = staticmethod(machine.time)
    """Seconds since the epoch."""
    monotonic = staticmethod(_monotonic)
    """Seconds since some moment."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
