"""Figures of the queues and of the log for the metrics, read now and then, never by a scrape.

A figure that could not be read is left out: an old one would say that all is well while nobody knows.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from bridge import __version__
from bridge.adapters.amqp.partitions import TakesRequests
from bridge.adapters.amqp.topology import DEAD
from bridge.adapters.postgres.figures import SCHEDULED_MAX, STORED_MAX, LogFigures, PostgresFigures
from bridge.core.errors import BrokerUnavailable, StoreUnavailable
from bridge.core.ports.clock import Clock
from bridge.ops.core_form import core_form

QUEUES_EVERY: Final = 15.0
"""Seconds between readings of the queues."""
LOG_EVERY: Final = 60.0
"""Seconds between readings of the log."""
AGAIN: Final = 3.0
"""Seconds until the next reading after one that failed."""


class Surroundings:
    """Reads the figures and keeps them until the next reading. `watch_queues` runs until cancelled, and so does
    `watch_log` where there is a log to read."""

    def __init__(self, consumer: TakesRequests, log: PostgresFigures | None, clock: Clock) -> None:
        self._consumer = consumer
        self._log = log
        self._clock = clock
        self.ready: Mapping[str, int] = {}
        """Messages ready, by queue; without queues that could not be read."""
        self.figures: LogFigures | None = None

    async def watch_queues(self) -> None:
        """Read the queues again and again."""
        while True:
            try:
                found = await self._consumer.depths()
                self.ready = {depth.name: depth.ready for depth in found if depth.there}
            except BrokerUnavailable:
                # The link reports its own loss.
                self.ready = {}
            await self._clock.sleep(QUEUES_EVERY if self.ready else AGAIN)

    async def watch_log(self) -> None:
        """Read the log again and again, if it can be read."""
        while self._log is not None:
            try:
                self.figures = await self._log.read()
            except StoreUnavailable:
                # The lease task decides whether the database is down, and says so.
                self.figures = None
            await self._clock.sleep(LOG_EVERY if self.figures else AGAIN)

    def families(self) -> Iterator[Metric]:
        """The families for one scrape."""
        return families(self.ready, self._consumer.unacked, self.figures, self._clock.time())


def families(
    ready: Mapping[str, int], unacked: Mapping[str, int], figures: LogFigures | None, now: float
) -> Iterator[Metric]:
    """The families of these figures; `now` is seconds since the epoch."""
    info = GaugeMetricFamily(
        "bridge_build_info", "1, with what is running as its labels.", labels=("version", "python", "core")
    )
    info.add_metric((__version__, platform.python_version(), core_form()), 1.0)
    yield info
    waiting = GaugeMetricFamily(
        "bridge_queue_ready",
        f"Messages that wait in a queue and are not delivered to anybody; read every {QUEUES_EVERY:g} s.",
        labels=("queue",),
    )
    for queue, count in ready.items():
        waiting.add_metric((queue,), float(count))
    yield waiting
    out = GaugeMetricFamily(
        "bridge_queue_unacked",
        "Messages that this node has received from a queue and not acknowledged. The sum over all nodes is what all "
        "bridges hold.",
        labels=("queue",),
    )
    for queue, count in unacked.items():
        out.add_metric((queue,), float(count))
    yield out
    if DEAD in ready:
        yield GaugeMetricFamily(
            "bridge_dead_letters",
            f"Messages in {DEAD}, for people to look at; fewer while `bridge dead` reads them.",
            value=float(ready[DEAD]),
        )
    if figures is not None:
        yield from _log_families(figures, now)


def _log_families(figures: LogFigures, now: float) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "bridge_stored_rows",
        f"Pushes that are kept for absent users; read every {LOG_EVERY:g} s. Of each day only the first "
        f"{STORED_MAX:,} are counted; there are more while bridge_stored_days_over is not 0.",
        value=float(figures.stored),
    )
    yield GaugeMetricFamily(
        "bridge_stored_days_over",
        f"Days with more kept pushes than the {STORED_MAX:,} that bridge_stored_rows counts of each.",
        value=float(figures.days_over),
    )
    if figures.oldest_taken_at is not None:
        yield GaugeMetricFamily(
            "bridge_stored_oldest_seconds",
            "How long ago the oldest kept push was taken; absent if there is none.",
            value=max(0.0, now - figures.oldest_taken_at),
        )
    yield from _scheduled(figures)
    yield GaugeMetricFamily(
        "bridge_fallbacks_due",
        f"Fallbacks that are due and not published yet, {STORED_MAX:,} at most; read every {LOG_EVERY:g} s.",
        value=float(figures.fallbacks_due),
    )
    yield GaugeMetricFamily(
        "bridge_partitions_ahead",
        "Days after today for which the log has a partition. It needs one by midnight UTC.",
        value=float(figures.partitions_ahead),
    )


def _scheduled(figures: LogFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "bridge_scheduled_pushes",
        f"Pushes that wait for their deliver_at; read every {LOG_EVERY:g} s. At most {SCHEDULED_MAX:,} are counted.",
        value=float(figures.scheduled),
    )
    yield GaugeMetricFamily(
        "bridge_scheduled_overdue_seconds",
        "How long ago the oldest push that still waits for its deliver_at was due; 0 if none is late. It rises while "
        "the broker takes no publishes.",
        value=figures.overdue,
    )
