"""What a scrape says of what has happened."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.adapters.amqp.topology import DEAD, REQUESTS
from bridge.adapters.counting import WORDS_MAX
from bridge.adapters.gauges import GAUGES, Gauges
from bridge.adapters.metrics import (
    STAGES,
    NullMetrics,
    PrometheusMetrics,
    audit_families,
    gauge_families,
)
from bridge.adapters.postgres.figures import LogFigures
from bridge.core.model.outcomes import ENDINGS, Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.plugins import Metrics
from bridge.ops.surroundings import families
from tests.support.metrics_page import samples
from tests.support.reference_metrics import PAGE, metrics_page

ROW = Row(
    RowKey("acme", "push-77", "user-4711"),
    Outcome.RECEIVED,
    Reason.PONG,
    node="n1",
    boot="b1",
    published_at=100.0,
    taken_at=100.003,
    written_at=100.004,
    proven_at=100.014,
    finished_at=100.014,
)
GAUGE_VALUES = Gauges(
    3,
    2,
    1,
    22,
    10,
    31,
    11,
    12,
    18,
    19,
    20,
    True,
    23,
    24,
    26,
    27,
    29,
    28,
    21,
    13,
    14,
    15,
    16,
    17,
    True,
    True,
    True,
    True,
    25,
    True,
)


def scraped(metrics: PrometheusMetrics) -> dict[tuple[str, ...], float]:
    """The samples of its page."""
    return samples(metrics.page().decode())


def quiet() -> PrometheusMetrics:
    return PrometheusMetrics(process=False)


def test_both_fill_the_port() -> None:
    ports: list[Metrics] = [quiet(), NullMetrics()]
    for port in ports:
        port.taken(2, 3)
        port.outcomes([ROW])
        port.repeat(Outcome.ACKED)
        port.proof_late(1)
        port.recorded(5, 0.01)
        port.receipts(4, 1, 0.02)
        port.handed(6)
        port.handshake("granted", 0.0001)
        port.closed("client")


def test_everything_told_is_counted() -> None:
    metrics = quiet()
    metrics.taken(2, 3)
    metrics.taken(1, 1)
    metrics.repeat(Outcome.ACKED)
    metrics.proof_late(2)
    metrics.recorded(5, 0.01)
    metrics.receipts(4, 1, 0.02)
    metrics.handed(6)
    metrics.handshake("granted", 0.0001)
    metrics.handshake("signature", 0.0002)
    metrics.closed("too_slow")
    page = scraped(metrics)
    assert page["bridge_taken_messages_total",] == 3
    assert page["bridge_taken_requests_total",] == 4
    assert page["bridge_taken_batch_messages_count",] == 2
    assert page["bridge_repeats_total", "acked"] == 1
    assert page["bridge_late_proofs_total",] == 2
    assert page["bridge_record_rows_sum",] == 5
    assert page["bridge_record_seconds_sum",] == pytest.approx(0.01)
    assert page["bridge_receipts_total", "sent"] == 4
    assert page["bridge_receipts_total", "owed"] == 1
    assert page["bridge_receipts_seconds_count",] == 1
    assert page["bridge_handed_frames_total",] == 6
    assert page["bridge_handshakes_total", "granted"] == 1
    assert page["bridge_handshakes_total", "signature"] == 1
    assert page["bridge_handshake_seconds_count",] == 2
    assert page["bridge_sessions_closed_total", "too_slow"] == 1


def test_every_ending_and_close_reason_has_a_series_from_the_start() -> None:
    page = scraped(quiet())
    for ending in ENDINGS:
        assert page["bridge_outcomes_total", ending.outcome, ending.reason] == 0
    for reason in CloseReason:
        assert page["bridge_sessions_closed_total", reason.word] == 0
    for stage in STAGES:
        assert page["bridge_push_seconds_count", stage] == 0


def test_every_ending_is_counted_in_its_own_series() -> None:
    metrics = quiet()
    for times, ending in enumerate(ENDINGS, 1):
        for _ in range(times):
            metrics.outcomes(
                [Row(ROW.key, ending.outcome, ending.reason, "n1", "b1", published_at=1.0, taken_at=1.0)]
            )
    page = scraped(metrics)
    for times, ending in enumerate(ENDINGS, 1):
        assert page["bridge_outcomes_total", ending.outcome, ending.reason] == times
    assert sum(1 for name in page if name[0] == "bridge_outcomes_total") == len(ENDINGS)


def test_a_final_row_gives_the_time_of_each_stage_it_went_through() -> None:
    metrics = quiet()
    metrics.outcomes([ROW])
    page = scraped(metrics)
    sums = {stage: page["bridge_push_seconds_sum", stage] for stage in STAGES}
    assert sums == pytest.approx(
        {"queued": 0.003, "handed": 0.001, "proven": 0.010, "finished": 0.011, "end_to_end": 0.014}, rel=1e-3
    )
    assert page["bridge_push_seconds_bucket", "0.008", "proven"] == 0
    assert page["bridge_push_seconds_bucket", "0.016", "proven"] == 1
    assert page["bridge_push_seconds_bucket", "+Inf", "proven"] == 1


def test_a_row_that_was_never_sent_has_no_time_of_sending() -> None:
    metrics = quiet()
    metrics.outcomes(
        [Row(ROW.key, Outcome.OFFLINE, Reason.NOBODY, "n", "b", published_at=1, taken_at=2, finished_at=2)]
    )
    page = scraped(metrics)
    assert page["bridge_push_seconds_count", "queued"] == 1
    assert page["bridge_push_seconds_count", "handed"] == 0
    assert page["bridge_push_seconds_count", "proven"] == 0


def test_a_pending_row_is_counted_but_its_times_only_when_it_is_final() -> None:
    metrics = quiet()
    metrics.outcomes(
        [Row(ROW.key, Outcome.PENDING, Reason.AWAITING_PROOF, "n", "b", published_at=1, taken_at=2)]
    )
    page = scraped(metrics)
    assert page["bridge_outcomes_total", "pending", "awaiting_proof"] == 1
    assert page["bridge_push_seconds_count", "queued"] == 0


def test_a_publishers_clock_that_is_ahead_never_makes_a_sum_go_down() -> None:
    metrics = quiet()
    metrics.outcomes(
        [Row(ROW.key, Outcome.OFFLINE, Reason.NOBODY, "n", "b", published_at=50, taken_at=2, finished_at=2)]
    )
    page = scraped(metrics)
    assert page["bridge_push_seconds_sum", "queued"] == 0
    assert page["bridge_push_seconds_bucket", "0.0005", "queued"] == 1


def test_a_value_on_a_bound_belongs_to_its_bucket() -> None:
    metrics = quiet()
    metrics.taken(10, 10)
    page = scraped(metrics)
    assert page["bridge_taken_batch_messages_bucket", "5.0"] == 0
    assert page["bridge_taken_batch_messages_bucket", "10.0"] == 1


def test_no_user_session_or_push_id_is_on_the_page() -> None:
    metrics = quiet()
    metrics.outcomes([ROW])
    page = metrics.page()
    for secret in (b"4711", b"push-77", b"acme"):
        assert secret not in page


def test_endless_different_words_end_in_one_series() -> None:
    metrics = quiet()
    for i in range(WORDS_MAX * 3):
        metrics.handshake(f"word{i}", 0.0)
    series = [name for name in scraped(metrics) if name[0] == "bridge_handshakes_total"]
    assert len(series) <= WORDS_MAX + 1
    assert sum(scraped(metrics)[name] for name in series) == WORDS_MAX * 3


def test_gauges_are_asked_for_at_each_scrape() -> None:
    metrics = quiet()
    assert ("bridge_sessions",) not in scraped(metrics)
    current = GAUGE_VALUES
    metrics.add_source(lambda: gauge_families(current))
    assert scraped(metrics)["bridge_queued_bytes",] == 15
    current = GAUGE_VALUES._replace(sessions=9, ready=False)
    page = scraped(metrics)
    assert page["bridge_sessions",] == 9
    assert page["bridge_ready",] == 0


def test_every_gauge_is_explained() -> None:
    assert set(GAUGES) == set(Gauges._fields)


def test_two_instances_share_nothing_and_both_may_show_the_process() -> None:
    first, second = PrometheusMetrics(), PrometheusMetrics()
    first.handed(5)
    assert scraped(second)["bridge_handed_frames_total",] == 0
    assert scraped(second)["process_open_fds",] > 0


def test_the_reference_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == metrics_page(), "run: python -m tests.support.reference_metrics"


def test_what_the_audit_found_is_on_the_page_once_it_has_looked() -> None:
    metrics = quiet()
    assert b"bridge_audit" not in metrics.page()
    found: dict[str, int] = {}
    audited_at = 0.0
    metrics.add_source(lambda: audit_families(found, audited_at))
    assert scraped(metrics) == scraped(metrics) | {("bridge_audit_timestamp_seconds",): 0.0}
    found["taken"] = 2
    audited_at = 1.5e9
    page = scraped(metrics)
    assert page["bridge_audit_drift", "taken"] == 2
    assert page["bridge_audit_timestamp_seconds",] == 1.5e9


def test_no_label_but_the_documented_is_ever_used() -> None:
    metrics = quiet()
    metrics.add_source(lambda: families({DEAD: 1}, {REQUESTS: 1}, LogFigures(1, 1.0, 0, 0, 3), 2.0))
    metrics.add_source(lambda: audit_families({"taken": 0}, 0.0))
    metrics.add_source(lambda: gauge_families(GAUGE_VALUES))
    for family in text_string_to_metric_families(metrics.page().decode()):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels <= {
            *("check", "outcome", "reason", "result", "stage", "queue", "version", "python", "core")
        }
