"""Counters and histograms in plain numbers, from which Prometheus' own objects are made at each scrape.

A count costs about as much as a dictionary item. Prometheus' labelled children cost a lock each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

WORDS_MAX: Final = 64
"""Different values of one label. Further ones count as `other`: a series costs memory here and in every Prometheus
that scrapes us."""


class Counter:
    """A count for each value of its labels."""

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), start: Iterable[tuple[str, ...]] = ()
    ) -> None:
        """The series in `start` are on the page from the beginning, at 0, so that a rate includes their first count."""
        self.name = name
        self.help = help
        self.labels = labels
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for values in start if labels else ((),):
            self.counts[values] = 0

    def word(self, word: str) -> None:
        """Count one by the value of the only label; as `other` once there are too many values."""
        key = (word,)
        if key not in self.counts and len(self.counts) >= WORDS_MAX:
            key = ("other",)
        self.counts[key] += 1

    def family(self) -> Metric:
        """The family for one scrape."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        return family


class Histogram:
    """Counts observations by size; `bounds` are inclusive upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._last = 0.0
        self._place = bisect_left(bounds, 0.0)

    def observe(self, value: float) -> None:
        """Count one observation. A negative one, from the clocks of two machines, counts as 0."""
        if value < 0:
            value = 0.0
        if value != self._last:
            # What a batch has in common is observed again and again.
            self._last = value
            self._place = bisect_left(self.bounds, value)
        self.counts[self._place] += 1
        self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count each of these; see `observe`."""
        for value in values:
            self.observe(value)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, in the form that Prometheus expects."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self.bounds, inf), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == inf else str(float(bound)), total))
        return buckets


class HistogramFamily:
    """A histogram, or one for each value of a label."""

    def __init__(
        self, name: str, help: str, bounds: Sequence[float], label: str = "", values: Iterable[str] = ()
    ) -> None:
        self.name = name
        self.help = help
        self.labels = (label,) if label else ()
        self.histograms = {v: Histogram(bounds) for v in (values if label else ("",))}

    def family(self) -> Metric:
        """The family for one scrape."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for value, histogram in self.histograms.items():
            family.add_metric((value,) if self.labels else (), histogram.buckets(), histogram.sum)
        return family
