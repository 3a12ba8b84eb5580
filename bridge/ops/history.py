"""The last hour in figures, for the console: a sample every ten seconds, in memory.

Samples are at whole multiples of `EVERY`, so that those of several workers can be added up. Durations are counts by
size and not quantiles, for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from bridge.adapters.amqp.topology import REQUESTS
from bridge.adapters.metrics import Totals
from bridge.core.ports.clock import Clock

EVERY: Final = 10.0
"""Seconds between two samples."""
KEPT: Final = 360
"""Samples that are kept: an hour."""
GAUGES_KEPT: Final = (
    "sessions",
    "users",
    "inbox",
    "in_flight",
    "parked",
    "rows_waiting",
    "receipts_waiting",
)
"""Gauges that a sample has, as they were at its moment."""


class Sample(msgspec.Struct, frozen=True, gc=False):
    """What happened since the sample before, and how much there was of everything at the end of it."""

    at: float
    """Seconds since the epoch, a multiple of `EVERY`."""
    seconds: float
    """How long it lasted."""
    outcomes: Mapping[str, int]
    """Rows committed, by outcome; without outcomes that did not occur."""
    end_to_end: Sequence[int]
    """published → proven: pushes by size, one count for each bound and one for what is above."""
    queued: Sequence[int]
    """published → taken."""
    commits: Sequence[int]
    """The time to commit one batch of rows."""
    gauges: Mapping[str, float]
    queue: int | None
    """Messages that wait at the broker to be taken; None: not known."""


class History:
    """Takes the samples. `run` runs until cancelled."""

    def __init__(
        self,
        totals: Callable[[], Totals],
        gauges: Callable[[], Mapping[str, float]],
        ready: Callable[[], Mapping[str, int]],
        clock: Clock,
    ) -> None:
        """`ready`: messages that wait, by queue, without queues that could not be read."""
        self._totals = totals
        self._gauges = gauges
        self._ready = ready
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._before = totals()
        self._looked_at = clock.monotonic()

    async def run(self) -> None:
        """Take a sample at each multiple of `EVERY`."""
        while True:
            await self._clock.sleep(EVERY - self._clock.time() % EVERY)
            self.look()

    def look(self) -> None:
        """Take a sample now."""
        now, totals, gauges = self._clock.monotonic(), self._totals(), self._gauges()
        before, self._before = self._before, totals
        seconds, self._looked_at = now - self._looked_at, now
        waiting = [count for name, count in self._ready().items() if name.startswith(REQUESTS)]
        self._samples.append(
            Sample(
                round(self._clock.time() / EVERY) * EVERY,
                round(seconds, 3),
                {
                    outcome: count - before.outcomes.get(outcome, 0)
                    for outcome, count in totals.outcomes.items()
                    if count != before.outcomes.get(outcome, 0)
                },
                _since(totals.end_to_end, before.end_to_end),
                _since(totals.queued, before.queued),
                _since(totals.commits, before.commits),
                {name: gauges[name] for name in GAUGES_KEPT if name in gauges},
                sum(waiting) if waiting else None,
            )
        )

    def after(self, moment: float) -> Sequence[Sample]:
        """The samples after this moment, seconds since the epoch, oldest first."""
        return [sample for sample in self._samples if sample.at > moment]


def _since(now: Sequence[int], before: Sequence[int]) -> Sequence[int]:
    return tuple(a - b for a, b in zip(now, before, strict=True))
