"""A DeliveryLog of OpenTelemetry spans: what a push did, in the trace of whoever published it.

    publisher's span (traceparent) ──> push <event>, taken → finished
                                         ├── queued     published → taken
                                         ├── hand over  taken → handed to a socket
                                         └── proof      handed to a socket → proven

Spans are made from rows that are final, so they say what the log says, whichever nodes took, held and proved the push.
Exporting never holds the log up: what the exporter's queue has no room for is dropped (OpenTelemetry's specification,
"Batching processor").
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from bridge import __version__
from bridge.core.model.outcomes import Outcome
from bridge.core.model.parties import PARTIES
from bridge.core.model.rows import Row

FAILED: Final = frozenset({Outcome.DROPPED, Outcome.REJECTED, Outcome.UNKNOWN})
"""Outcomes whose span is an error. Nobody there, or too late, is none."""
_SECOND: Final = 1_000_000_000
_PARENT: Final = TraceContextTextMapPropagator()


class _Ids(IdGenerator):
    """Ids that follow from the row, so that a row that is recorded again makes the same spans again."""

    def __init__(self) -> None:
        self.row = b""
        self.step = b""
        self.push = b""

    def generate_trace_id(self) -> int:
        """One trace for a push whose publisher sent none, whoever it is for."""
        return _number(self.push, 16)

    def generate_span_id(self) -> int:
        """Of this step of this row."""
        return _number(self.row + self.step, 8)


class TracesLog:
    """Makes spans of final rows. An async context manager, whose end sends what waits."""

    def __init__(self, exporter: SpanExporter | None = None, resource: Resource | None = None) -> None:
        """Without an exporter: OTLP over HTTP, where and how the variables OTEL_EXPORTER_OTLP_* say. The variables
        OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and OTEL_BSP_* count, too."""
        self._ids = _Ids()
        named = Resource.create() if resource is None else resource
        if str(named.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            named = named.merge(Resource({SERVICE_NAME: "bridge"}))
        named = named.merge(Resource({SERVICE_VERSION: __version__}))
        self._provider = TracerProvider(resource=named, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("bridge", __version__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._provider.shutdown)

    async def record(self, rows: Sequence[Row]) -> None:
        """See `DeliveryLog.record`."""
        for row in rows:
            if row.final and row.finished_at is not None:
                self._trace(row, row.finished_at)

    def _trace(self, row: Row, finished_at: float) -> None:
        ids, key = self._ids, row.key
        ids.push = _joined(key.tenant, key.push_id)
        ids.row, ids.step = _joined(key.tenant, key.push_id, key.user), b""
        parent = _PARENT.extract({"traceparent": row.traceparent}) if row.traceparent else None
        party = PARTIES.get(row.reason)
        # Clocks of two machines: a span can't begin after it ends.
        began = min(row.taken_at, finished_at)
        span = self._tracer.start_span(
            f"push {row.event}" if row.event else "push",
            context=parent,
            kind=SpanKind.CONSUMER,
            start_time=_nanoseconds(began),
            attributes={
                "messaging.system": "rabbitmq",
                "messaging.operation.type": "process",
                "messaging.message.id": key.push_id,
                "bridge.outcome": row.outcome.value,
                "bridge.reason": row.reason.value,
                "bridge.party": "" if party is None else party.value,
                "bridge.event": row.event,
                "bridge.tenant": key.tenant,
                "bridge.node": row.node,
                "bridge.holder": row.holder or row.node,
                "bridge.sessions": row.sessions,
                "bridge.attempts": row.attempts,
                "bridge.batch_id": row.batch_id,
            },
        )
        if row.outcome in FAILED:
            span.set_status(Status(StatusCode.ERROR, f"{row.outcome.value}: {row.reason.value}"))
        context = set_span_in_context(span)
        steps = (
            ("queued", row.published_at, row.taken_at),
            ("hand over", row.taken_at, row.written_at),
            ("proof", row.written_at, row.proven_at),
        )
        for name, since, until in steps:
            if since is not None and until is not None:
                ids.step = name.encode()
                step = self._tracer.start_span(name, context, start_time=_nanoseconds(min(since, until)))
                step.end(_nanoseconds(until))
        span.end(_nanoseconds(finished_at))


def make() -> TracesLog:
    """Called once, at the start."""
    return TracesLog()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * _SECOND)


def _joined(*parts: str) -> bytes:
    return b"".join(
        len(part := text.encode("utf-8", "surrogatepass")).to_bytes(4, "big") + part for text in parts
    )


def _number(of: bytes, size: int) -> int:
    # An id of zeros is invalid (W3C Trace Context, section 3.2.2).
    return int.from_bytes(blake2b(of, digest_size=size).digest(), "big") or 1
