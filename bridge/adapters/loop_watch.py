"""Measures how late the event loop is for a timer, and how much of that time its thread was busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

EVERY = 0.02
"""Seconds between measurements."""


async def watch(observe: Callable[[float, float], None], every: float = EVERY) -> None:
    """Until cancelled, call `observe` with how late each measurement is, and how long the thread was busy (seconds).

    Lateness may be the machine's fault: other programs run, or the process is stopped. The second figure counts CPU
    time of the thread only, less `every`. So it is short of the true length of a step by `every` at most, and never
    too long.
    """
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every
        worked = time.thread_time()
        await asyncio.sleep(every)
        late = max(0.0, loop.time() - due)
        observe(late, min(late, max(0.0, time.thread_time() - worked - every)))
