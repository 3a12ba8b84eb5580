"""Traces: the spans of a push say what its row says, in the trace of whoever published it, on one node or two."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from bridge.adapters.amqp.producer import Producer
from bridge.adapters.plugins import load_delivery_log
from bridge.adapters.traces import TracesLog
from bridge.core.contract.requests import request_body
from bridge.core.errors import SettingsError
from bridge.core.model.outcomes import Outcome, Reason
from tests.support.bridges import bridge, final_rows, token
from tests.support.clients import client
from tests.support.queues import ENVELOPE
from tests.support.rows import row

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
SENT = f"00-{TRACE:032x}-{PARENT:016x}-01"
UNSAMPLED = f"00-{TRACE:032x}-{PARENT:016x}-00"


class Collector(InMemorySpanExporter):
    """One for all bridges of a test: it outlives each."""

    def shutdown(self) -> None:
        pass


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What bridges of this test export."""
    exporter = Collector()
    monkeypatch.setattr("bridge.adapters.traces.make", lambda: TracesLog(exporter))
    return exporter


def by_name(spans: Sequence[ReadableSpan]) -> Mapping[str, ReadableSpan]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans), [span.name for span in spans]
    return found


async def push(url: str, headers: Mapping[str, object]) -> None:
    async with Producer.connect(url) as producer:
        await producer.publish(
            request_body("x", user="u1", push_id="p1", event="order.paid"), headers=headers
        )


async def test_one_trace_goes_from_the_publisher_over_two_nodes_to_the_proof(
    vhost: str, database: str, exported: InMemorySpanExporter
) -> None:
    async with (
        bridge(vhost, database, delivery_log="postgres,traces"),
        bridge(vhost, database, node="n2", delivery_log="postgres,traces") as holder,
        client(holder.ws_port, token("u1"), subprotocols=ENVELOPE) as here,
    ):
        assert (await here.read_json())["type"] == "welcome"
        await push(vhost, {"traceparent": SENT})
        (found,) = await final_rows(database, 1)
        assert (found["outcome"], found["holder"]) == ("received", "n2")
    spans = by_name(exported.get_finished_spans())
    assert spans.keys() == {"push order.paid", "queued", "hand over", "proof"}
    whole = spans["push order.paid"]
    assert whole.parent is not None
    assert (whole.context.trace_id, whole.parent.span_id) == (TRACE, PARENT)
    for name in ("queued", "hand over", "proof"):
        step = spans[name]
        assert step.parent is not None
        assert (step.context.trace_id, step.parent.span_id) == (TRACE, whole.context.span_id)
    assert spans["queued"].end_time == spans["hand over"].start_time == whole.start_time
    assert spans["hand over"].end_time == spans["proof"].start_time
    assert whole.attributes is not None
    said = {name.removeprefix("bridge."): whole.attributes[name] for name in whole.attributes}
    assert (said["outcome"], said["reason"], said["node"], said["holder"]) == ("received", "pong", "n1", "n2")
    assert "u1" not in str(said), "a trace is no place for who it was"


async def test_who_sends_no_trace_gets_one_and_who_samples_it_not_gets_none(
    vhost: str, database: str, exported: InMemorySpanExporter
) -> None:
    async with bridge(vhost, database, delivery_log="postgres,traces"):
        await push(vhost, {})
        await final_rows(database, 1)
        async with Producer.connect(vhost) as producer:
            body = request_body("x", user="u1", push_id="p2")
            await producer.publish(body, headers={"traceparent": UNSAMPLED})
        await final_rows(database, 2)
    spans = by_name(exported.get_finished_spans())
    assert spans["push order.paid"].parent is None
    assert spans.keys() == {"push order.paid", "queued"}, "nobody was there, so nothing was handed over"


async def test_a_row_that_is_recorded_again_makes_the_same_spans_and_one_that_is_not_final_none() -> None:
    exporter = InMemorySpanExporter()
    async with TracesLog(exporter) as log:
        done = row("p1", published_at=10.0, taken_at=11.0, finished_at=12.0)
        kept = row("p2", outcome=Outcome.STORED, reason=Reason.NO_SESSION, finished_at=None)
        await log.record([done, kept])
        await log.record([done])
    ids = [(span.name, span.context.trace_id, span.context.span_id) for span in exporter.get_finished_spans()]
    assert len(ids) == 2 * len(set(ids)) > 0


async def test_what_failed_is_an_error_and_clocks_that_disagree_make_no_negative_span() -> None:
    exporter = InMemorySpanExporter()
    async with TracesLog(exporter) as log:
        await log.record(
            [
                row(
                    "p1",
                    outcome=Outcome.UNKNOWN,
                    reason=Reason.NO_PROOF,
                    published_at=20.0,
                    taken_at=11.0,
                    written_at=11.5,
                    finished_at=12.0,
                )
            ]
        )
    spans = by_name(exporter.get_finished_spans())
    assert all((span.start_time or 0) <= (span.end_time or 0) for span in spans.values())
    assert spans["push order.paid"].status.status_code is StatusCode.ERROR
    assert spans["push order.paid"].status.description == "unknown: no_proof"


async def test_a_collector_that_is_away_holds_nothing_up(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    async with asyncio.timeout(20), bridge(vhost, database, delivery_log="postgres,traces"):
        await push(vhost, {})
        await final_rows(database, 1)


async def test_without_its_libraries_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bridge.adapters.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'bridge\[traces\]'"):
        load_delivery_log("traces")
