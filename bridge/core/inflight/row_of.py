"""Make the row of a flight, and measure what that row carries."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import ID_MAX, Encoding
from bridge.core.model.rows import Reply, Row, merged

OWED_MAX = 100
"""Replies that a row owes at most. Later messages are told at once how the push stands, and not again at its end."""


def row_of(flight: Flight, node: str, boot: str) -> Row:
    """The row for the flight as it stands now: final once the flight has ended, `pending` or `stored` before."""
    kept = flight.kept
    if kept is None:
        awaited = Outcome.PENDING, Reason.AWAITING_PROOF
    else:
        awaited = Outcome.STORED, kept.reason or Reason.AWAITING_PROOF
    fallback = flight.fallback
    due = None if fallback is None or flight.cared_for else fallback.due
    payload = flight.payload if kept is None else kept.data
    if kept is None and fallback is not None and due is None:
        payload = None
    return Row(
        key=flight.key,
        outcome=flight.outcome or awaited[0],
        reason=flight.reason or awaited[1],
        node=node,
        boot=boot,
        published_at=flight.published_at,
        taken_at=flight.taken_at,
        detail=flight.detail,
        event=flight.event,
        app_id=flight.app_id,
        meta=flight.meta,
        confirm=flight.confirm,
        written_at=flight.written_at,
        proven_at=flight.proven_at,
        finished_at=flight.finished_at,
        sessions=flight.sessions,
        attempts=flight.attempts,
        payload=payload,
        traceparent=flight.traceparent,
        owed=_owed(flight) if flight.outcome is None or flight.alone else None,
        day=None if kept is None else flight.day,
        expires_at=None if kept is None else kept.expires_at,
        position=flight.position if kept is not None or flight.collapse_key else 0,
        encoding=_encoding(flight),
        excluded=_NOBODY if kept is None else kept.excluded,
        collapse_key=flight.collapse_key,
        ack_within=0.0 if kept is None else flight.ack_within,
        fingerprint=flight.fingerprint,
        topic=flight.topic,
        session=flight.prover,
        holder=flight.holder,
        first_device=flight.first_device,
        fallback_due=due,
        fallback_key="" if fallback is None else fallback.routing_key,
        batch_id=flight.batch[0],
        batch_position=flight.batch[1],
        data_bytes=flight.data_bytes,
    )


_NOBODY: frozenset[str] = frozenset()


def _encoding(flight: Flight) -> Encoding:
    if flight.kept is not None:
        return flight.kept.encoding
    return Encoding.JSON if flight.fallback is None else flight.fallback.encoding


def _owed(flight: Flight) -> tuple[Reply, ...]:
    """The replies to the messages that wait, up to `OWED_MAX`: the row owes them."""
    if not flight.messages:
        return ()
    return merged(*(flight.replies_to(m) for m in flight.messages))[: max(0, OWED_MAX - flight.owes)]


def is_light(flight: Flight) -> bool:
    """Whether its row carries nothing that may be large."""
    return flight.kept is None and flight.payload is None and not flight.meta


def carried_by(flight: Flight) -> Sequence[tuple[object, int]]:
    """The parts of its row that may be large, each with its approximate bytes: data, except list, meta, body."""
    kept = flight.kept
    if kept is None:
        return (flight.meta, len(flight.meta)), (flight.payload, len(flight.payload or b""))
    return (
        (flight.meta, len(flight.meta)),
        (kept.data, len(kept.data or b"")),
        (kept.excluded, len(kept.excluded) * ID_MAX),
    )
