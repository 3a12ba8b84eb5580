"""Renders docs/reference/metrics.md: `python -m tests.support.reference_metrics` writes it, a test compares."""

from __future__ import annotations

from pathlib import Path

from bridge.adapters.amqp.topology import DEAD, REQUESTS
from bridge.adapters.canary_figures import CanaryFigures
from bridge.adapters.gauges import Gauges
from bridge.adapters.metrics import (
    STAGES,
    PrometheusMetrics,
    audit_families,
    gauge_families,
    inbound_families,
    key_families,
    partition_families,
    session_event_families,
)
from bridge.adapters.postgres.figures import LogFigures
from bridge.operator.auditor import CHECKS
from bridge.operator.canary import Result
from bridge.ops.surroundings import families
from bridge.workers.merging import About, supervisor_families

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "metrics.md"

QUESTIONS = {
    "Pushes per second that provably arrived": (
        '`sum(rate(bridge_outcomes_total{outcome=~"received|acked"}[1m]))`'
    ),
    "Share that ended undelivered": (
        '`sum(rate(bridge_outcomes_total{outcome=~"dropped|unknown|rejected"}[5m]))'
        ' / sum(rate(bridge_outcomes_total{outcome!~"pending|stored"}[5m]))`'
    ),
    "Time from publisher to browser, 99th percentile": (
        '`histogram_quantile(0.99, sum by (le) (rate(bridge_push_seconds_bucket{stage="end_to_end"}[5m])))`'
    ),
    "Is the database the slow part?": (
        "`rate(bridge_record_seconds_sum[1m])` near 1, or `bridge_rows_waiting` growing"
    ),
    "Is a push lost, or something else not as it should be?": (
        "`bridge_audit_drift > 0`, or `time() - bridge_audit_timestamp_seconds > 300`: it could not be looked at"
    ),
    "Does exactly one node take the pushes?": "`sum(bridge_active) == 1`",
    "Do messages pile up?": (
        '`max by (queue) (bridge_queue_ready{queue!="push.dead"})` growing; '
        "`sum by (queue) (bridge_queue_unacked)` are in hand"
    ),
    "Are the keys for tokens out of date?": "`bridge_jwks_age_seconds > 3700`: the address does not answer",
    "Does the connect hook answer?": (
        "`bridge_connect_hook_breaker_open == 0`, and "
        '`sum(rate(bridge_connect_hook_requests_total{result=~"failed|wrong"}[5m]))` near 0'
    ),
    "Must somebody look at dead letters?": "`max(bridge_dead_letters) > 0`, see `bridge dead list`",
    "Will the log have a place for tomorrow's rows?": "`min(bridge_partitions_ahead) < 2`: the upkeep fails",
    "Is a peer not reading?": (
        '`bridge_queued_bytes`, `rate(bridge_sessions_closed_total{reason="too_slow"}[5m])`'
    ),
}


def metrics_page() -> str:
    """The whole page as it must be."""
    metrics = PrometheusMetrics(process=False)
    metrics.add_source(lambda: audit_families(dict.fromkeys(CHECKS, 0), 0.0))
    metrics.add_source(lambda: families({DEAD: 0}, {REQUESTS: 0}, LogFigures(0, 0.0, 0, 0, 0), 0.0))
    metrics.add_source(lambda: partition_families([0], 0))
    metrics.add_source(lambda: session_event_families(0, 0))
    metrics.add_source(lambda: inbound_families({}, 0))
    metrics.add_source(lambda: key_families({"ok": 0, "failed": 0}, 0.0))
    metrics.add_source(lambda: gauge_families(Gauges._make([0] * len(Gauges._fields))))
    lines = [
        "# Metrics",
        "",
        "<!-- Written by `python -m tests.support.reference_metrics` from bridge/adapters/metrics.py. -->",
        "",
        "`GET /metrics` on the ops port (8182 by default) answers in Prometheus' text format. No label ever",
        "holds a user, session or push id. Times are in seconds. Beside these, the page has the usual",
        "`process_*` and `python_*` series. With several processes (`BRIDGE_WORKERS`) every sample has the",
        "label `worker` in addition, and the supervisor adds those whose names begin with `bridge_worker_`.",
        "",
        "| name | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family in metrics.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.samples[0].labels if label != "le")
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    for own in supervisor_families([About(1, "n1-1", 1, 0)]):
        name = own.name + ("_total" if own.type == "counter" else "")
        lines.append(f"| `{name}` | {own.type} | `worker` | {own.documentation} |")
    canary = [
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | "
        f"{'`result`' if family.type == 'counter' else ''} | {family.documentation} |"
        for family in CanaryFigures(list(Result)).registry.collect()
    ]
    lines += [
        "",
        "Outcomes and reasons are those of [outcomes.md](outcomes.md); each is there from the start, at 0.",
        "",
        "## The label `stage` of `bridge_push_seconds`",
        "",
        "| stage | from → to |",
        "|---|---|",
        *(f"| `{stage}` | {meaning} |" for stage, meaning in STAGES.items()),
        "",
        "## The label `check` of `bridge_audit_drift`",
        "",
        "Looked at every minute, see [operating.md](../operating.md); nothing is there before the first time.",
        "",
        "| check | counts |",
        "|---|---|",
        *(f"| `{check}` | {meaning} |" for check, meaning in CHECKS.items()),
        "",
        "## Those of `bridge canary`",
        "",
        "With `--metrics`, [a canary](../operating.md#a-canary) has a page of its own:",
        "",
        "| name | type | labels | meaning |",
        "|---|---|---|---|",
        *canary,
        "",
        "The label `result`: `ok`, or the first step that failed.",
        "",
        "## Questions they answer",
        "",
        *(f"- {question}: {answer}" for question, answer in QUESTIONS.items()),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(metrics_page())
