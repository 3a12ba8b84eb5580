"""SIGTERM and Ctrl-C: the first starts a drain, the second ends that at once, the third kills."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

log = logging.getLogger("bridge")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """The signals that came so far; made by `stop_signals`."""

    def __init__(self, third: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        self.asked = asyncio.Event()
        """The first has come: drain."""
        self.hurried = asyncio.Event()
        """The second has come: wait for nothing more."""
        self.exit_code = 0
        """What the process should exit with: 0 after a whole drain, 128 and the signal's number after a hurried one."""
        self._loop = asyncio.get_running_loop()
        self._third = third
        self.count = 0
        """How many have come."""

    def came(self, number: int, frame: FrameType | None) -> None:
        """A handler of Python's `signal` module: it runs even while something blocks the event loop."""
        self.count += 1
        if self.count == 1:
            self._loop.call_soon_threadsafe(self._first)
        else:
            self.exit_code = 128 + number
            for each in SIGNALS:
                signal.signal(each, self._third)
            self._loop.call_soon_threadsafe(self._second)

    def _first(self) -> None:
        log.info("stopping: settling what is under way (signal again to stop at once)")
        self.asked.set()

    def _second(self) -> None:
        log.info("stopping at once: what is not settled goes back to the queue (signal again to kill)")
        self.hurried.set()


@contextmanager
def stop_signals(last: Callable[[], None] | None = None) -> Iterator[StopSignals]:
    """Listen for the length of the block, in the main thread. `last` is called before the third signal kills."""

    def third(number: int, frame: FrameType | None) -> None:
        assert last is not None
        last()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signals = StopSignals(signal.SIG_DFL if last is None else third)
    before = {number: signal.signal(number, signals.came) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: a handler that was not set from Python
                signal.signal(number, handler)
