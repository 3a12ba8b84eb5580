"""Counts and durations for Prometheus; docs/reference/metrics.md lists them, and a test compares it with the code.

The bridge counts in plain numbers on the event loop's thread, which costs a push about a microsecond and a half. No
metric ever holds a user, session or push id.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.registry import Collector

from bridge.adapters.counting import Counter, HistogramFamily
from bridge.adapters.gauges import GAUGES, Gauges
from bridge.core.model.outcomes import ENDINGS, Outcome
from bridge.core.model.rows import Row
from bridge.core.model.sessions import CloseReason
from bridge.core.talking.publishing import INBOUND_RESULTS

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

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
HOOK_RESULTS: Final = ("allowed", "refused", "wrong", "failed", "given_up")
ROWS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

MetricSource: TypeAlias = Callable[[], Iterable[Metric]]
"""Asked at each scrape for families of its own."""

STAGES: Final[Mapping[str, str]] = {
    "queued": "published → taken (across two machines' clocks)",
    "handed": "taken → handed to a socket",
    "proven": "handed to a socket → proven",
    "finished": "taken → final",
    "end_to_end": "published → proven (across two machines' clocks)",
}


class Totals(NamedTuple):
    """What was counted since the start; two of them make a rate. The lists have a count for each of `SECONDS`, and one
    for what is above."""

    outcomes: Mapping[str, int]
    """Rows committed, by outcome."""
    end_to_end: Sequence[int]
    """published → proven."""
    queued: Sequence[int]
    """published → taken."""
    commits: Sequence[int]
    """The time to commit one batch of rows."""


class _Taken:
    """What is counted of messages and requests as they are taken."""

    def __init__(self) -> None:
        self.messages = Counter("bridge_taken_messages", "Messages taken from the broker.")
        self.requests = Counter(
            "bridge_taken_requests", "Push requests in those messages, including rejected ones."
        )
        self.batch = HistogramFamily("bridge_taken_batch_messages", "Messages taken in one batch.", ROWS)
        self.looked_up = Counter(
            "bridge_looked_up_rows",
            "Keys that were looked up in the log before their pushes were sent, since they may have come before.",
        )
        self.repeats = Counter(
            "bridge_repeats",
            "Requests that came again, by the outcome that their row had.",
            ("outcome",),
            [(outcome.value,) for outcome in Outcome],
        )
        self.differing = Counter(
            "bridge_repeats_differing",
            "Requests with a known id and other content, counted once for each user: each is answered from its row and "
            "sent to nobody.",
        )


class _Sessions:
    """What is counted of handshakes and sockets."""

    def __init__(self) -> None:
        self.handshakes = Counter(
            "bridge_handshakes",
            "WebSocket handshakes, by result: `opened`, or a word that says why they were refused.",
            ("result",),
            [("opened",)],
        )
        self.handshake_seconds = HistogramFamily(
            "bridge_handshake_seconds", "Time to decide on a WebSocket handshake.", SECONDS
        )
        self.handed = Counter(
            "bridge_handed_frames", "Pushes handed to sockets, counted once for each session."
        )
        self.hook = Counter(
            "bridge_connect_hook_requests",
            "How often the connect hook was asked who a client is, by result: `allowed`, `refused` (401 or 403), "
            "`wrong` (any other answer), `failed` (no answer in time, 429 or 5xx), `given_up` (the client has left).",
            ("result",),
            [(result,) for result in HOOK_RESULTS],
        )
        self.hook_seconds = HistogramFamily(
            "bridge_connect_hook_seconds",
            "Time until the connect hook had answered, or was given up.",
            SECONDS,
        )
        self.closed = Counter(
            "bridge_sessions_closed",
            "Sessions that ended, by our reason, or `client` where the peer left by itself.",
            ("reason",),
            [(word,) for word in ("client", *(reason.word for reason in CloseReason))],
        )


class _Settled:
    """What is counted of rows and receipts."""

    def __init__(self) -> None:
        self.outcomes = Counter(
            "bridge_outcomes",
            "Rows committed, by outcome and reason; a push may have a pending one before its final one.",
            ("outcome", "reason"),
            [(ending.outcome.value, ending.reason.value) for ending in ENDINGS],
        )
        self.push = HistogramFamily(
            "bridge_push_seconds",
            "How long the stages of a push took, observed when its final row is committed.",
            SECONDS,
            "stage",
            STAGES,
        )
        self.late_proofs = Counter("bridge_late_proofs", "Pushes whose proof came after their end.")
        self.rows = HistogramFamily("bridge_record_rows", "Rows committed in one batch.", ROWS)
        self.seconds = HistogramFamily(
            "bridge_record_seconds", "Time to commit one batch of rows, including retries.", SECONDS
        )
        self.receipts = Counter(
            "bridge_receipts",
            "Receipts, by result: `owed` ones are tried again; `refused` are outcome events that the broker does "
            "not let this user publish, and that were given up (their receipts count as `sent`, too).",
            ("result",),
            [("sent",), ("owed",), ("refused",)],
        )
        self.fallbacks = Counter(
            "bridge_fallbacks",
            "Fallbacks of pushes that nobody has proven, by result: `published`, or `unroutable` where no queue is "
            "bound for its routing key; `owed` ones are tried again.",
            ("result",),
            [("published",), ("unroutable",), ("owed",)],
        )
        self.receipt_seconds = HistogramFamily(
            "bridge_receipts_seconds", "Time to publish one batch of receipts and have it confirmed.", SECONDS
        )


class _Others:
    """What is counted of other nodes."""

    def __init__(self) -> None:
        self.asked = HistogramFamily(
            "bridge_holders_asked_pushes", "Pushes whose users' nodes were asked for in one statement.", ROWS
        )
        self.letters = HistogramFamily(
            "bridge_letter_items", "Pushes, reports and rings in one letter to another node.", ROWS
        )


class PrometheusMetrics(Collector):
    """Fills the Metrics port. Not thread-safe: everything, including scrapes, runs in the event loop."""

    def __init__(self, *, process: bool = True) -> None:
        """With `process`, a page also holds memory, CPU, descriptors and GC of this process."""
        self._taken = _Taken()
        self._sessions = _Sessions()
        self._settled = _Settled()
        self._others = _Others()
        self._loop_lag = HistogramFamily(
            "bridge_loop_lag_seconds", "How late the event loop was for what was due.", SECONDS
        )
        self.loop_held = 0.0
        """The longest time, in seconds, that the event loop's thread has worked while something else was due."""
        self._sources: tuple[MetricSource, ...] = ()
        # Bound once: `outcomes` runs for every push.
        self._outcomes = self._settled.outcomes
        self._stages = tuple(self._settled.push.histograms[stage] for stage in STAGES)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        if process:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            GCCollector(registry=self._registry)

    # --- the Metrics port -------------------------------------------------------------------------------

    def taken(self, messages: int, requests: int) -> None:
        """Messages were taken from the broker in one batch, holding so many requests."""
        self._taken.messages.counts[()] += messages
        self._taken.requests.counts[()] += requests
        self._taken.batch.histograms[""].observe(messages)

    def outcomes(self, rows: Sequence[Row]) -> None:
        """These rows were committed."""
        for ended, count in collections.Counter([(row.outcome, row.reason) for row in rows]).items():
            self._outcomes.counts[ended] += count
        queued, handed, proven, finished, end_to_end = self._stages
        ends = [(row, row.finished_at) for row in rows if row.finished_at is not None]
        queued.observe_all([row.taken_at - row.published_at for row, _ in ends])
        finished.observe_all([finished_at - row.taken_at for row, finished_at in ends])
        sent = [(row, row.written_at) for row, _ in ends if row.written_at is not None]
        handed.observe_all([written_at - row.taken_at for row, written_at in sent])
        proofs = [(row.published_at, at, row.proven_at) for row, at in sent if row.proven_at is not None]
        proven.observe_all([proven_at - written_at for _, written_at, proven_at in proofs])
        end_to_end.observe_all([proven_at - published_at for published_at, _, proven_at in proofs])

    def repeat(self, outcome: Outcome) -> None:
        """A request came again whose row was already there."""
        self._taken.repeats.counts[(outcome,)] += 1

    def repeat_differs(self) -> None:
        """A request came with the id of a push and other content."""
        self._taken.differing.counts[()] += 1

    def looked_up(self, rows: int) -> None:
        """So many keys were looked up before their pushes were sent."""
        self._taken.looked_up.counts[()] += rows

    def loop_lag(self, seconds: float, held: float) -> None:
        """The event loop was `seconds` late for what was due, and was busy for `held` of them."""
        self._loop_lag.histograms[""].observe(seconds)
        self.loop_held = max(self.loop_held, held)

    def holders_asked(self, pushes: int) -> None:
        """It was asked which other nodes have the users of so many pushes."""
        self._others.asked.histograms[""].observe(pushes)

    def letter(self, items: int) -> None:
        """A letter with so many items was sent to another node."""
        self._others.letters.histograms[""].observe(items)

    def proof_late(self, count: int) -> None:
        """So many pushes were proven after their end."""
        self._settled.late_proofs.counts[()] += count

    def recorded(self, rows: int, seconds: float) -> None:
        """One batch of rows was committed."""
        self._settled.rows.histograms[""].observe(rows)
        self._settled.seconds.histograms[""].observe(seconds)

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """One batch of receipts was published; so many became debts."""
        self._settled.receipts.counts[("sent",)] += sent
        self._settled.receipts.counts[("owed",)] += owed
        self._settled.receipt_seconds.histograms[""].observe(seconds)

    def fallbacks(self, published: int, unroutable: int, unsent: int) -> None:
        """So many fallbacks were published, some of them to no queue; `unsent` others stay owed."""
        counts = self._settled.fallbacks.counts
        counts[("published",)] += published - unroutable
        counts[("unroutable",)] += unroutable
        counts[("owed",)] += unsent

    def events_given_up(self, events: int) -> None:
        """So many outcome events were given up, since the broker refuses them. The port lacks this: only the publisher
        knows."""
        self._settled.receipts.counts[("refused",)] += events

    def handed(self, pushes: int) -> None:
        """So many pushes were handed to a socket, each counted once for each session."""
        self._sessions.handed.counts[()] += pushes

    def handshake(self, result: str, seconds: float) -> None:
        """A WebSocket handshake ended: `opened`, or the word for why it was refused."""
        self._sessions.handshakes.word(result)
        self._sessions.handshake_seconds.histograms[""].observe(seconds)

    def hook_asked(self, result: str, seconds: float) -> None:
        """The connect hook was asked; `result` is one of `HOOK_RESULTS`."""
        self._sessions.hook.counts[(result,)] += 1
        self._sessions.hook_seconds.histograms[""].observe(seconds)

    def closed(self, reason: str) -> None:
        """A session ended; `reason` is a CloseReason's word, or `client`."""
        self._sessions.closed.word(reason)

    # --- for the history --------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """What was counted so far."""
        outcomes: dict[str, int] = {}
        for (outcome, _), count in self._outcomes.counts.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
        stages = self._settled.push.histograms
        return Totals(
            outcomes,
            tuple(stages["end_to_end"].counts),
            tuple(stages["queued"].counts),
            tuple(self._settled.seconds.histograms[""].counts),
        )

    # --- for the scrape ---------------------------------------------------------------------------------

    def add_source(self, source: MetricSource) -> None:
        """Call this at each scrape; its families follow those that are on the page already."""
        self._sources = (*self._sources, source)

    def page(self) -> bytes:
        """The page in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every family; called by the registry."""
        for group in (self._taken, self._sessions, self._settled, self._others):
            for family in vars(group).values():
                yield family.family()
        yield self._loop_lag.family()
        yield GaugeMetricFamily(
            "bridge_loop_held_seconds",
            "The longest time, in seconds of CPU, for which one thing has kept the event loop from everything else.",
            value=self.loop_held,
        )
        for source in self._sources:
            yield from source()


def gauge_families(gauges: Gauges) -> Iterator[Metric]:
    """One family for each gauge that is known."""
    for name, value in gauges.known().items():
        yield GaugeMetricFamily(f"bridge_{name}", GAUGES[name], value=float(value))


def audit_families(drift: Mapping[str, int], audited_at: float) -> Iterator[Metric]:
    """The families of an audit: what does not add up, by check, and when all checks were last made (seconds since the
    epoch; 0: never)."""
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


def key_families(fetches: Mapping[str, int], age: float | None) -> Iterator[Metric]:
    """The families of the keys that an address publishes: fetches by result, and the age of the keys in seconds."""
    family = CounterMetricFamily(
        "bridge_jwks_fetches",
        "How often the address BRIDGE_JWT_JWKS_URL was asked for keys, by result: `ok` or `failed`. Absent without it.",
        labels=("result",),
    )
    for result, count in fetches.items():
        family.add_metric((result,), float(count))
    yield family
    if age is not None:
        yield GaugeMetricFamily(
            "bridge_jwks_age_seconds",
            "Seconds since that address last answered with keys. Absent until it has.",
            value=age,
        )


def session_event_families(sent: int, dropped: int) -> Iterator[Metric]:
    """The family of the events on push.sessions."""
    family = CounterMetricFamily(
        "bridge_session_events",
        "Events on push.sessions, by result: `sent`, or `dropped` since the broker has taken none for long.",
        labels=("result",),
    )
    family.add_metric(("sent",), float(sent))
    family.add_metric(("dropped",), float(dropped))
    yield family


def inbound_families(results: Mapping[str, int], waiting: int) -> Iterator[Metric]:
    """The families of what users publish."""
    family = CounterMetricFamily(
        "bridge_inbound",
        "Publish frames of clients, by result: `ok`, or a word that says why not (docs/clients.md).",
        labels=("result",),
    )
    for result in INBOUND_RESULTS:
        family.add_metric((result,), float(results.get(result, 0)))
    yield family
    yield GaugeMetricFamily(
        "bridge_inbound_waiting",
        "Messages of users that were sent to the exchange push.inbound and are not confirmed.",
        float(waiting),
    )


def partition_families(taken: Sequence[int], other_keys: int | None) -> Iterator[Metric]:
    """The families of the partitions of the requests. `other_keys`: None where keys do not matter."""
    family = GaugeMetricFamily(
        "bridge_partition_taken",
        "1 for each partition of the requests that this node takes; 0 is the queue push.requests.",
        labels=("partition",),
    )
    for partition in taken:
        family.add_metric((str(partition),), 1.0)
    yield family
    if other_keys is not None:
        yield CounterMetricFamily(
            "bridge_requests_other_key",
            "Requests to one user with another routing key than `user.<id>`, where partitions do not keep their order.",
            value=float(other_keys),
        )


class NullMetrics:
    """Fills the Metrics port with nothing."""

    def looked_up(self, rows: int) -> None:
        """Counts nothing."""

    def holders_asked(self, pushes: int) -> None:
        """Counts nothing."""

    def letter(self, items: int) -> None:
        """Counts nothing."""

    def taken(self, messages: int, requests: int) -> None:
        """Counts nothing."""

    def outcomes(self, rows: Sequence[Row]) -> None:
        """Counts nothing."""

    def repeat(self, outcome: Outcome) -> None:
        """Counts nothing."""

    def repeat_differs(self) -> None:
        """Counts nothing."""

    def proof_late(self, count: int) -> None:
        """Counts nothing."""

    def recorded(self, rows: int, seconds: float) -> None:
        """Counts nothing."""

    def fallbacks(self, published: int, unroutable: int, unsent: int) -> None:
        """Counts nothing."""

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """Counts nothing."""

    def handed(self, pushes: int) -> None:
        """Counts nothing."""

    def handshake(self, result: str, seconds: float) -> None:
        """Counts nothing."""

    def hook_asked(self, result: str, seconds: float) -> None:
        """Counts nothing."""

    def closed(self, reason: str) -> None:
        """Counts nothing."""
