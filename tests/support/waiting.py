"""Waiting in tests, without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Let the loop run until the condition holds; a failure after `seconds` of real time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    """Let everything that waits for nothing else go on."""
    for _ in range(count):
        await asyncio.sleep(0)
