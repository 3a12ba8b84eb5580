"""A worker: a bridge that tells its supervisor how it is, and stops when that has ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from bridge.app.build import Running, begin_process, running
from bridge.app.clock import SystemClock
from bridge.app.signals import SIGNALS, StopSignals, stop_signals
from bridge.config import Settings
from bridge.core.ports.clock import Clock
from bridge.workers.link import Link, State

LOOK_SECONDS: Final = 0.1
"""Between looks whether the state has changed."""
TELL_SECONDS: Final = 1.0
"""How often it is told at least: who is frozen tells nothing."""

log = logging.getLogger("bridge")


async def work(settings: Settings, link: Link, ops_path: str) -> int:
    """Serve until SIGTERM, SIGINT or the end of the supervisor, then drain; returns the exit code."""
    begin_process()
    with stop_signals() as signals:
        # The supervisor has blocked them before it started this process: none is lost, and none kills it before.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        async with (
            _beside(_end_with(link, signals, ops_path), "supervisor"),
            running(settings, hurry=signals.hurried, ops_path=ops_path) as bridge,
            _beside(_report(bridge, link, SystemClock()), "report"),
        ):
            log.info("node %s: WebSockets on port %d, for the supervisor", settings.node, bridge.ws_port)
            await signals.asked.wait()
            link.tell(State())
        return signals.exit_code


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run it until the end of the block. Its error ends the block, and is raised as itself."""
    task = asyncio.create_task(work, name=name)
    owner = asyncio.current_task()
    assert owner is not None
    task.add_done_callback(lambda done: None if done.cancelled() or not done.exception() else owner.cancel())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
        if not task.cancelled():
            task.result()


async def _end_with(link: Link, signals: StopSignals, ops_path: str) -> None:
    """Stop when the supervisor says so, and as at SIGTERM once it has ended. Then take away what it can't any more."""
    async for stop in link.stops():
        if signals.count == 0 or (stop.hurry and signals.count == 1):
            signal.raise_signal(stop.number)
    # Nobody asks there any more.
    with suppress(FileNotFoundError):
        os.unlink(ops_path)
    with suppress(OSError):
        # The last of the workers succeeds.
        os.rmdir(os.path.dirname(ops_path))
    if signals.count == 0:
        log.warning("the supervisor has ended, so this worker stops")
        signal.raise_signal(signal.SIGTERM)


async def _report(bridge: Running, link: Link, clock: Clock) -> None:
    told, told_at = None, 0.0
    while True:
        state, now = State(*bridge.state), clock.monotonic()
        if state != told or now - told_at >= TELL_SECONDS:
            link.tell(state)
            told, told_at = state, now
        await clock.sleep(LOOK_SECONDS)
