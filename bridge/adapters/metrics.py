"""Counts and durations for Prometheus; docs/reference/metrics.md lists them, and a test holds it equal.

The bridge counts in plain numbers on the event loop's thread, a push costs about a microsecond and a half,
and Prometheus' own objects are made only while a page is scraped: its labelled children cost a lock each.
Nothing here ever holds a user, session or push id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.registry import Collector

from bridge.core.model.outcomes import ENDINGS, Outcome
from bridge.core.model.rows import Row
from bridge.core.model.sessions import CloseReason

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
WORDS_MAX: Final = 64
"""Different words that one label may take before the rest is counted as `other`: a series costs memory here
and in every Prometheus that scrapes us."""

SECONDS: Final = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.125,
    0.25,
    0.5,
    1,
    2,
    4,
    8,
    16,
    32,
    64,
)
ROWS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Gauges(NamedTuple):
    """How much of everything there is at this moment; the help text of each is in `GAUGES`."""

    sessions: int
    users: int
    handshakes_in_progress: int
    inbox: int
    in_flight: int
    parked: int
    resting: int
    replaying: int
    ids_remembered: int
    ids_whole: bool
    rows_set_aside: int
    unproven: int
    queued_frames: int
    queued_bytes: int
    rows_waiting: int
    receipts_waiting: int
    ready: bool
    active: bool | None
    """None: it is not known."""
    broker_up: bool
    database_up: bool | None
    """None: there is none."""

    def known(self) -> dict[str, float]:
        """What is known of them, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


Sampler: TypeAlias = Callable[[], Gauges]
Audit: TypeAlias = Callable[[], tuple[Mapping[str, int], float]]
"""What does not add up, by check, and when that was last looked at (seconds since the epoch; 0: never)."""

GAUGES: Final[Mapping[str, str]] = {
    "sessions": "Open WebSocket sessions.",
    "users": "Users with at least one open session.",
    "handshakes_in_progress": "WebSocket handshakes begun and not answered yet.",
    "inbox": "Messages delivered by the broker and not taken yet.",
    "in_flight": "Pushes on their way, each counted once for each user; those parked are among them.",
    "parked": "Pushes whose proof is overdue: their message is acked, their row is there. Those that have ended since "
    "are among them for some seconds.",
    "resting": "Kept pushes that open sessions have and have not proven: their row is stored.",
    "replaying": "Sessions that are being sent what is kept for their user.",
    "ids_remembered": "Ids that were added to the memory of the last day, or two, by which repeats are told.",
    "ids_whole": "1 while all ids of the last day are in that memory; 0: every id is looked up before it is sent.",
    "rows_set_aside": "Rows that could not be written with the others and are tried alone, again and again.",
    "unproven": "Frames handed to sockets whose proof is awaited.",
    "queued_frames": "Frames that wait because their socket does not take them, or behind what is kept for their user.",
    "queued_bytes": "Bytes of those frames.",
    "rows_waiting": "Rows that wait for the writer or are being written.",
    "receipts_waiting": "Batches of receipts that wait to be published.",
    "ready": "1 while nothing holds the bridge back (the same as /readyz), 0 otherwise.",
    "active": "1 while this node takes the pushes; 0 while it stands by, or has no connection to the broker. Not there "
    "while that is unknown, which is only where the queue push.taker can't be declared.",
    "broker_up": "1 while there is the connection to the broker that takes, or stands by to; 0 otherwise.",
    "database_up": "1 while the database answers and can be written to (asked every second), 0 otherwise; not there "
    "without the log in Postgres.",
}

STAGES: Final[Mapping[str, str]] = {
    "queued": "published → taken (across two machines' clocks)",
    "handed": "taken → handed to a socket",
    "proven": "handed to a socket → proven",
    "finished": "taken → final",
    "end_to_end": "published → proven (across two machines' clocks)",
}


class Counter:
    """A count for each value of its labels, in plain numbers."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        if not labels:
            self.counts[()] = 0

    def start(self, values: Iterable[tuple[str, ...]]) -> None:
        """Have a series at 0 for each of these, so that a rate can be taken from the first count on."""
        for labels in values:
            self.counts[labels] = 0

    def word(self, word: str) -> None:
        """Count by the only label, as `other` once there are too many words."""
        key = (word,)
        if key not in self.counts and len(self.counts) >= WORDS_MAX:
            key = ("other",)
        self.counts[key] += 1

    def family(self) -> Metric:
        """What a scrape gets."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, count in self.counts.items():
            family.add_metric(labels, count)
        return family


class Histogram:
    """Observations by their size; `bounds` are inclusive upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a negative one (clocks of two machines) counts as 0."""
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as Prometheus wants them."""
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
        """What a scrape gets."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for value, histogram in self.histograms.items():
            family.add_metric((value,) if self.labels else (), histogram.buckets(), histogram.sum)
        return family


class PrometheusMetrics(Collector):
    """Fills the Metrics port. Not thread-safe: everything, scrapes included, runs in the event loop."""

    def __init__(self, *, process: bool = True) -> None:
        """With `process`, a page also holds memory, CPU, descriptors and GC of this process."""
        self._taken_messages = Counter("bridge_taken_messages", "Messages taken from the broker.")
        self._taken_requests = Counter(
            "bridge_taken_requests", "Push requests in those messages, rejected ones included."
        )
        self._taken_batch = HistogramFamily("bridge_taken_batch_messages", "Messages taken in one go.", ROWS)
        self._outcomes = Counter(
            "bridge_outcomes",
            "Rows committed, by outcome and reason; a push may have a pending one before its final one.",
            ("outcome", "reason"),
        )
        self._outcomes.start((e.outcome.value, e.reason.value) for e in ENDINGS)
        self._push = HistogramFamily(
            "bridge_push_seconds",
            "How long the stages of a push took, observed when its final row is committed.",
            SECONDS,
            "stage",
            STAGES,
        )
        self._repeats = Counter(
            "bridge_repeats", "Requests that came again, by the outcome their row had.", ("outcome",)
        )
        self._repeats.start((o.value,) for o in Outcome)
        self._differing = Counter(
            "bridge_repeats_differing",
            "Requests with a known id and other content, once for each user: answered from its row, sent to nobody.",
        )
        self._looked_up = Counter(
            "bridge_looked_up_rows",
            "Keys that were looked for in the log before their pushes were sent, since they may have come before.",
        )
        self._loop_lag = HistogramFamily(
            "bridge_loop_lag_seconds", "How late the event loop was for what was due.", SECONDS
        )
        self.loop_held = 0.0
        """Seconds that the event loop's thread has worked at most while something else was due."""
        self._late = Counter("bridge_late_proofs", "Pushes whose proof came after their end.")
        self._handed = Counter(
            "bridge_handed_frames", "Pushes handed to sockets, each counted once for each session."
        )
        self._record_rows = HistogramFamily("bridge_record_rows", "Rows committed in one batch.", ROWS)
        self._record_seconds = HistogramFamily(
            "bridge_record_seconds", "Time to commit one batch of rows, tries included.", SECONDS
        )
        self._receipts = Counter(
            "bridge_receipts",
            "Receipts, by how it went: `owed` ones are tried again; `refused` are outcome events that the broker does "
            "not let this user publish, and that were given up (their receipts count as `sent`, too).",
            ("result",),
        )
        self._receipts.start((("sent",), ("owed",), ("refused",)))
        self._receipt_seconds = HistogramFamily(
            "bridge_receipts_seconds", "Time to publish one batch of receipts and have it confirmed.", SECONDS
        )
        self._handshakes = Counter(
            "bridge_handshakes",
            "WebSocket handshakes, by `granted`, `opened` or the word for why they were refused.",
            ("result",),
        )
        self._handshakes.start((("granted",),))
        self._handshake_seconds = HistogramFamily(
            "bridge_handshake_seconds", "Time to decide on a WebSocket handshake.", SECONDS
        )
        self._closed = Counter(
            "bridge_sessions_closed",
            "Sessions that ended, by our reason, or `client` where the peer left by itself.",
            ("reason",),
        )
        self._closed.start((word,) for word in ("client", *(c.word for c in CloseReason)))
        self._families: tuple[Counter | HistogramFamily, ...] = (
            self._taken_messages,
            self._taken_requests,
            self._taken_batch,
            self._outcomes,
            self._push,
            self._repeats,
            self._differing,
            self._looked_up,
            self._loop_lag,
            self._late,
            self._handed,
            self._record_rows,
            self._record_seconds,
            self._receipts,
            self._receipt_seconds,
            self._handshakes,
            self._handshake_seconds,
            self._closed,
        )
        self.sampler: Sampler | None = None
        """Asked for the gauges at each scrape; None while the service is not put together yet."""
        self.audit: Audit | None = None
        """Asked at each scrape for what the last audit found; None while there is none."""
        self.around: Callable[[], Iterable[Metric]] | None = None
        """Asked at each scrape for what was seen of queues and log; None while nobody looks."""
        # Bound once: `outcome` runs for every push.
        self._stages = tuple(self._push.histograms[stage] for stage in STAGES)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        if process:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            GCCollector(registry=self._registry)

    # --- the Metrics port -------------------------------------------------------------------------------

    def taken(self, messages: int, requests: int) -> None:
        """Messages were taken from the broker in one batch, holding so many requests."""
        self._taken_messages.counts[()] += messages
        self._taken_requests.counts[()] += requests
        self._taken_batch.histograms[""].observe(messages)

    def outcome(self, row: Row) -> None:
        """A row was committed."""
        self._outcomes.counts[row.outcome, row.reason] += 1
        finished_at = row.finished_at
        if finished_at is None:
            return
        queued, handed, proven, finished, end_to_end = self._stages
        taken_at = row.taken_at
        written_at = row.written_at
        queued.observe(taken_at - row.published_at)
        finished.observe(finished_at - taken_at)
        if written_at is not None:
            handed.observe(written_at - taken_at)
            proven_at = row.proven_at
            if proven_at is not None:
                proven.observe(proven_at - written_at)
                end_to_end.observe(proven_at - row.published_at)

    def repeat(self, outcome: Outcome) -> None:
        """A request came again whose row was already there."""
        self._repeats.counts[(outcome,)] += 1

    def repeat_differs(self) -> None:
        """A request came with the id of a push and other content."""
        self._differing.counts[()] += 1

    def looked_up(self, rows: int) -> None:
        """So many keys were looked for before their pushes were sent."""
        self._looked_up.counts[()] += rows

    def loop_lag(self, seconds: float, held: float) -> None:
        """The event loop was so late for what was due, and so much of that it worked."""
        self._loop_lag.histograms[""].observe(seconds)
        self.loop_held = max(self.loop_held, held)

    def proof_late(self, count: int) -> None:
        """Proof came after the end of so many pushes."""
        self._late.counts[()] += count

    def recorded(self, rows: int, seconds: float) -> None:
        """One batch of rows was committed."""
        self._record_rows.histograms[""].observe(rows)
        self._record_seconds.histograms[""].observe(seconds)

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """One batch of receipts was published; so many became debts."""
        self._receipts.counts[("sent",)] += sent
        self._receipts.counts[("owed",)] += owed
        self._receipt_seconds.histograms[""].observe(seconds)

    def events_given_up(self, events: int) -> None:
        """The broker refuses so many more outcome events. Not of the port: only the publisher knows."""
        self._receipts.counts[("refused",)] += events

    def handed(self, pushes: int) -> None:
        """So many pushes were handed to a socket, each counted once for each session."""
        self._handed.counts[()] += pushes

    def handshake(self, result: str, seconds: float) -> None:
        """A WebSocket handshake ended: `opened`, or the word for why it was refused."""
        self._handshakes.word(result)
        self._handshake_seconds.histograms[""].observe(seconds)

    def closed(self, reason: str) -> None:
        """A session ended; `reason` is a CloseReason's word, or `client`."""
        self._closed.word(reason)

    # --- for the scrape ---------------------------------------------------------------------------------

    def page(self) -> bytes:
        """The page in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every family; called by the registry."""
        for family in self._families:
            yield family.family()
        yield GaugeMetricFamily(
            "bridge_loop_held_seconds",
            "Seconds of CPU for which one thing has kept the event loop from everything else, at most so far.",
            value=self.loop_held,
        )
        if self.audit is not None:
            yield from _audited(*self.audit())
        if self.around is not None:
            yield from self.around()
        if self.sampler is None:
            return
        for name, value in self.sampler().known().items():
            gauge = GaugeMetricFamily(f"bridge_{name}", GAUGES[name])
            gauge.add_metric((), float(value))
            yield gauge


def _audited(drift: Mapping[str, int], audited_at: float) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "bridge_audit_drift",
        "What does not add up: pushes or rows, by check; 0 everywhere.",
        labels=("check",),
    )
    for check, count in drift.items():
        family.add_metric((check,), float(count))
    yield family
    yield GaugeMetricFamily(
        "bridge_audit_timestamp_seconds",
        "When all checks were last made, since the epoch; 0: never.",
        value=audited_at,
    )


class NullMetrics:
    """Fills the Metrics port with nothing."""

    def looked_up(self, rows: int) -> None:
        """Counts nothing."""

    def taken(self, messages: int, requests: int) -> None:
        """Counts nothing."""

    def outcome(self, row: Row) -> None:
        """Counts nothing."""

    def repeat(self, outcome: Outcome) -> None:
        """Counts nothing."""

    def repeat_differs(self) -> None:
        """Counts nothing."""

    def proof_late(self, count: int) -> None:
        """Counts nothing."""

    def recorded(self, rows: int, seconds: float) -> None:
        """Counts nothing."""

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """Counts nothing."""

    def handed(self, pushes: int) -> None:
        """Counts nothing."""

    def handshake(self, result: str, seconds: float) -> None:
        """Counts nothing."""

    def closed(self, reason: str) -> None:
        """Counts nothing."""
