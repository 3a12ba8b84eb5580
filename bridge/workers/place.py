"""The place of one worker: whatever process has it now, and the next one when that has ended."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterable
from typing import Final

from bridge.core.backoff import BackOff
from bridge.core.ports.clock import Clock
from bridge.workers.errors import WorkerRefused
from bridge.workers.link import STALE_SECONDS, Orders, State, Stop
from bridge.workers.process import WorkerProcess, started

AGAIN_FIRST: Final = 0.5
"""Seconds until a worker that has ended by itself is started again; twice as long after each further end."""
AGAIN_MOST: Final = 30.0
"""Seconds that it is at most."""
STEADY_SECONDS: Final = 60.0
"""Seconds for which a worker has to be ready to begin with `AGAIN_FIRST` again."""

log = logging.getLogger("bridge")


class Place:
    """Runs one worker."""

    def __init__(self, number: int, node: str, orders: Orders, clock: Clock) -> None:
        self.number = number
        """From 1."""
        self.node = node
        self.ops_path = orders.ops_path
        self.process: WorkerProcess | None = None
        """None while none runs."""
        self.restarts = 0
        """How often it was started again after it had ended by itself."""
        self.exit_code = 0
        """That of the last process."""
        self.was_ready = False
        """One process of this place has been ready."""
        self.ready = asyncio.Event()
        """Set while it is ready."""
        self.ended = asyncio.Event()
        """Set when a process has ended; whoever waits for that clears it first."""
        self._orders = orders
        self._clock = clock
        self._ready_at = self._told_at = 0.0
        self._replacing = False
        self._stopping = asyncio.Event()
        self._again = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """That of the process; None while none runs."""
        return None if self.process is None else self.process.pid

    @property
    def state(self) -> State:
        """How the process is that runs now; one that has told nothing for long is frozen, so it is not ready."""
        stale = self._clock.monotonic() - self._told_at > STALE_SECONDS
        return State() if self.process is None or stale else self.process.state

    async def run(self) -> None:
        """Keep a process there until `stop`. Raises WorkerRefused if it never could serve."""
        back_off = BackOff(self._clock, AGAIN_FIRST, AGAIN_MOST, jitter=True)
        while not self._stopping.is_set():
            why = await self._run_once()
            if self._stopping.is_set():
                return
            if self._replacing:
                self._replacing = False
                continue
            if self._ready_at and self._clock.monotonic() - self._ready_at >= STEADY_SECONDS:
                back_off.reset()
            seconds = back_off.delay()
            log.error("worker %d %s; it is started again in %.1f s", self.number, why, seconds)
            await self._wait(seconds)
            # How this one has ended was told; it is not what the stop comes to.
            self.exit_code = 0
            self.restarts += 1

    async def _run_once(self) -> str:
        """Run one process to its end; returns how it ended, in words. Raises WorkerRefused."""
        try:
            process, self.exit_code = await self._run_process()
        except OSError as error:
            return f"could not be started: {error.strerror}"
        refused = process.refused
        if refused is None:
            return how_it_ended(self.exit_code)
        if not self.was_ready and not self._stopping.is_set():
            raise WorkerRefused(refused.problem, refused.code)
        return f"{how_it_ended(self.exit_code)}: {refused.problem}"

    async def _run_process(self) -> tuple[WorkerProcess, int]:
        self._ready_at = 0.0
        async with started(self.node, self._orders, self._changed) as process:
            self.process = process
            log.info("worker %d runs as process %d", self.number, process.pid)
            if self._stopping.is_set():
                process.stop(Stop(signal.SIGTERM))
            try:
                code = await process.ended()
            finally:
                self.process = None
                self.ready.clear()
                self.ended.set()
        return process, code

    def _changed(self, process: WorkerProcess) -> None:
        if process is not self.process:
            return
        self._told_at = self._clock.monotonic()
        if not process.state.ready:
            self.ready.clear()
        elif not self.ready.is_set():
            self.ready.set()
            self.was_ready = True
            self._ready_at = self._ready_at or self._clock.monotonic()

    async def _wait(self, seconds: float) -> None:
        """Wait, unless it is to stop, or to start now."""
        self._again.clear()
        await _first_of((self._again, self._stopping), seconds)

    def stop(self, stop: Stop) -> None:
        """Tell the process, and start none any more."""
        self._stopping.set()
        if self.process is not None:
            self.process.stop(stop)

    def kill(self) -> None:
        """End the process at once, if one runs."""
        if self.process is not None:
            self.process.kill()

    async def replace(self, *, end_seconds: float, ready_seconds: float) -> bool:
        """Stop the process, start another, and wait until that is ready; returns whether it is.

        A process that takes longer than `end_seconds` for its stop is killed.
        """
        if self.process is not None:
            self.ended.clear()
            self._replacing = True
            self.process.stop(Stop(signal.SIGTERM))
            await _first_of((self.ended,), end_seconds)
            if not self.ended.is_set():
                log.error("worker %d did not end within %.0f s, and is killed", self.number, end_seconds)
                self.kill()
                await self.ended.wait()
        self.ended.clear()
        self._again.set()
        await _first_of((self.ready, self.ended), ready_seconds)
        return self.ready.is_set()


async def _first_of(events: Iterable[asyncio.Event], seconds: float) -> None:
    """Wait for one of them, for at most so many seconds."""
    waits = [asyncio.create_task(event.wait(), name="wait for a worker") for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def how_it_ended(code: int) -> str:
    """In words, of an exit code as `subprocess` has it."""
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
