"""Whether the event loop comes to everything in time: how late it is for a timer, and how much of that it worked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

EVERY = 0.02
"""Seconds between two looks."""


async def watch(observe: Callable[[float, float], None], every: float = EVERY) -> None:
    """Tell how late each look comes (seconds), and for how long the loop's thread was held, until cancelled.

    Being late may be the machine's fault: others run, or the process is stopped. Held counts CPU time of the thread
    only, less the time that was slept through; so a step of the loop is told to within `every`, and never too long.
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        worked = time.thread_time()
        await asyncio.sleep(every)
        late = max(0.0, loop.time() - due)
        observe(late, min(late, max(0.0, time.thread_time() - worked - every)))
