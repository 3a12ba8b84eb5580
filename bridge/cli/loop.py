"""The event loop that a command runs on."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine
from typing import Any


def run_loop(story: Coroutine[Any, Any, int], *, uvloop: bool = True) -> int:
    """Run a coroutine on uvloop if wanted and installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop and importlib.util.find_spec("uvloop"):
        import uvloop as library

        factory = library.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(story)
