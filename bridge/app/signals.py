"""SIGTERM and Ctrl-C: the first asks for a drain, the second ends that at once, the third kills."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NamedTuple

log = logging.getLogger("bridge")

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """What has come so far; made by `stop_signals`."""

    def __init__(self, third: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
        self.asked = asyncio.Event()
        """The first has come: drain."""
        self.hurried = asyncio.Event()
        """The second has come: end the drain as it is."""
        self.exit_code = 0
        """What the process should exit with: 0 after a whole drain, 128 and the signal's number after a hurried one."""
        self._loop = asyncio.get_running_loop()
        self._third = third
        self._count = 0

    def came(self, number: int, frame: FrameType | None) -> None:
        """Python's own handler: it runs also while something keeps the event loop from everything else."""
        self._count += 1
        if self._count == 1:
            self._loop.call_soon_threadsafe(self._first)
        else:
            self.exit_code = 128 + number
            for each in SIGNALS:
                signal.signal(each, self._third)
            self._loop.call_soon_threadsafe(self._second)

    def _first(self) -> None:
        log.info("stopping: settling what is under way (once more to stop at once)")
        self.asked.set()

    def _second(self) -> None:
        log.info("stopping at once: what is not settled goes back to the queue (once more to kill)")
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
            if handler is not None:  # else it was not Python that had set it
                signal.signal(number, handler)


class Left(NamedTuple):
    """What a stop has left behind; `words` for the log."""

    seconds: float
    given_back: int
    """Messages that were taken and are in their queue again."""
    pending: int
    """Rows that await a proof which nobody will note."""
    stored: int
    """Kept pushes that sessions had and had not proven."""
    sessions: int

    @property
    def words(self) -> str:
        """One sentence."""
        parts = [f"{_counted(self.given_back, 'message')} back in the queue" if self.given_back else ""]
        if self.pending:
            parts.append(
                f"{_counted(self.pending, 'row')} pending: the next start of this node, or another node, ends them as "
                "unknown/node_died"
            )
        if self.stored:
            parts.append(f"{_counted(self.stored, 'push', 'pushes')} kept for when their users come back")
        parts.append(f"{_counted(self.sessions, 'session')} closed")
        settled = "" if self.given_back or self.pending else "everything that was taken is settled"
        return f"stopped after {self.seconds:.1f} s: {'; '.join(p for p in (settled, *parts) if p)}"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
