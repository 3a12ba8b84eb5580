"""Make the row of a flight, and measure what that row carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import ID_MAX, Encoding
from bridge.core.model.rows import Reply, Row, merged

OWED_MAX = 100
"""Replies that a row owes at most. Later messages are told at once how the push stands, and not again at its end."""


def row_of(flight: Flight, node: str, boot: str) -> Row:
    """The row for the flight as it stands now: final once the flight has ended, `pending` or `stored` before."""
    kept = flight.kept
    outcome, reason = flight.outcome, flight.reason
    if outcome is None or reason is None:
        outcome = Outcome.PENDING if kept is None else Outcome.STORED
        reason = (None if kept is None else kept.reason) or Reason.AWAITING_PROOF
    fallback = flight.fallback
    due = None if fallback is None or flight.cared_for else fallback.due
    payload = flight.payload if kept is None else kept.data
    if kept is None and fallback is not None and due is None:
        payload = None
    # In the order of its fields: to find each by its name takes longer than all the rest.
    return Row(
        flight.key, outcome, reason, node, boot,
        flight.published_at, flight.taken_at, flight.detail, flight.event, flight.app_id, flight.meta,
        flight.confirm, flight.written_at, flight.proven_at, flight.finished_at,
        flight.sessions, flight.attempts, payload, flight.traceparent,
        _owed(flight) if flight.outcome is None or flight.alone else None,
        None if kept is None else flight.day,
        None if kept is None else kept.expires_at,
        flight.position if kept is not None or flight.collapse_key else 0,
        _encoding(flight),
        _NOBODY if kept is None else kept.excluded,
        flight.collapse_key,
        0.0 if kept is None else flight.ack_within,
        None,  # late_at: `Store.note_late` fills it
        flight.fingerprint, flight.topic, flight.prover, flight.holder, flight.first_device,
        due, "" if fallback is None else fallback.routing_key,
        flight.batch[0], flight.batch[1], flight.data_bytes,
    )  # fmt: skip


_NOBODY: Final[frozenset[str]] = frozenset()
_JSON: Final = Encoding.JSON


def _encoding(flight: Flight) -> Encoding:
    if flight.kept is not None:
        return flight.kept.encoding
    return _JSON if flight.fallback is None else flight.fallback.encoding


def _owed(flight: Flight) -> tuple[Reply, ...]:
    """The replies to the messages that wait, up to `OWED_MAX`: the row owes them."""
    if not flight.messages:
        return ()
    return merged(*(flight.replies_to(m) for m in flight.messages))[: max(0, OWED_MAX - flight.owes)]


def is_light(flight: Flight) -> bool:
    """Whether its row carries nothing that may be large."""
    return flight.kept is None and flight.payload is None and not flight.meta


def is_for_crowd(flight: Flight) -> bool:
    """Whether its push is for everyone or for a topic, and has not had a row yet."""
    messages = flight.messages
    return bool(messages) and messages[0].crowd


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
