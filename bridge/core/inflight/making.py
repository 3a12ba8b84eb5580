"""Make the flight of a request, of a rejected request, and of a stored row."""

from __future__ import annotations

from bridge.core.inflight.flight import Flight, Owner
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.kept import Kept
from bridge.core.inflight.owed import Owed
from bridge.core.inflight.transitions import State
from bridge.core.model.fingerprint import NOT_KNOWN, fingerprint_of
from bridge.core.model.outcomes import Outcome, Proof
from bridge.core.model.pushes import NO_USER, Properties, PushRequest, Rejected, ToTopic
from bridge.core.model.retained import LastValue
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.tuples import new_tuple
from bridge.core.ports.broker import AckToken

PAYLOAD_KEPT = 4096
"""Bytes of a rejected body that its row keeps."""

_NO_TOKEN = AckToken(-1, 0)


def flight_of(
    request: PushRequest,
    user: str,
    message: HeldMessage,
    owner: Owner,
    taken_mono: float,
    position: int = 0,
    fingerprint: int = NOT_KNOWN,
) -> Flight:
    """The flight of a request to one of its users. A push without a user (`NO_USER`) is never kept, and has
    no fallback."""
    flight = Flight(
        new_tuple(RowKey, (request.tenant, request.id, user)),
        message,
        owner,
        event=request.event,
        meta=request.meta,
        confirm=request.confirm,
        taken_mono=taken_mono,
        ack_within=request.ack_within,
        position=position,
        collapse_key=request.collapse_key,
        fingerprint=fingerprint,
    )
    flight.data_bytes = len(request.data)
    if message.batch_id:
        flight.batch = message.batch_id, message.place_of(request)
    if request.deliver_at:
        # Latencies, and the ttl, count from its time.
        flight.published_at = max(flight.published_at, min(request.deliver_at, message.taken_at))
    if isinstance(request.target, ToTopic):
        flight.topic = request.target.topic
    flight.first_device = request.first_device
    if request.ttl > 0 and user != NO_USER:
        flight.kept = Kept(
            flight.published_at + request.ttl,
            request.data,
            request.encoding,
            request.excluded,
        )
    fallback = request.fallback
    if fallback is not None and user != NO_USER:
        due = flight.published_at + fallback.after
        flight.fallback = Owed(due, fallback.routing_key, request.encoding)
        if flight.kept is None:
            flight.payload = request.data
    return flight


def flight_of_last_value(value: LastValue, user: str, owner: Owner, now: float, now_mono: float) -> Flight:
    """The flight of a last value to a user who has subscribed. No message waits for it."""
    properties = Properties(app_id=value.app_id)
    message = HeldMessage(
        _NO_TOKEN,
        properties,
        published_at=value.published_at,
        taken_at=now,
        traceparent=value.traceparent,
    )
    flight = flight_of(value.request, user, message, owner, now_mono, value.position, value.fingerprint)
    flight.messages = []
    # It is older than others with its collapse key, and must not replace them.
    flight.collapse_key = ""
    return flight


def flight_of_stored(row: Row, boot: str, owner: Owner, now_mono: float) -> Flight:
    """The flight of a stored row that is sent again. No message waits for it."""
    properties = Properties(app_id=row.app_id)
    flight = Flight(
        row.key,
        HeldMessage(_NO_TOKEN, properties, published_at=row.published_at, taken_at=row.taken_at),
        owner,
        event=row.event,
        meta=row.meta,
        confirm=row.confirm,
        taken_mono=now_mono,
        ack_within=row.ack_within,
        position=row.position,
        collapse_key=row.collapse_key,
        fingerprint=row.fingerprint,
    )
    flight.topic = row.topic
    flight.first_device = row.first_device
    assert row.expires_at is not None
    flight.messages = []
    flight.traceparent = row.traceparent
    flight.day = row.day
    flight.sessions = row.sessions
    flight.parked = True
    # The log adds up the attempts of different boots, and keeps the highest number of each boot.
    flight.attempts = row.attempts if row.boot == boot else 0
    flight.written_at = row.written_at
    flight.proven_at = row.proven_at
    if row.proven_at is not None:
        flight.proof = Proof.RECEIVED
        flight.state = State.RECEIVED
    flight.owes = len(row.owed or ())
    flight.kept = Kept(row.expires_at, None, row.encoding, frozenset())
    flight.kept.size = len(row.payload or b"")
    flight.kept.reason = row.reason
    flight.kept.from_log = True
    flight.kept.stored_announced = True
    return flight


def flight_of_rejected(
    rejected: Rejected, message: HeldMessage, owner: Owner, now: float, *, keep_body: bool = True
) -> Flight:
    """The flight of a rejected request: its user is not known, and its row keeps the body (cut) for people to read,
    unless nothing is to be kept."""
    flight = Flight(
        RowKey(rejected.tenant, rejected.id, NO_USER),
        message,
        owner,
        event=rejected.event,
        fingerprint=fingerprint_of(rejected),
    )
    if message.batch_id:
        flight.batch = message.batch_id, message.place_of(rejected)
    flight.detail = rejected.detail
    if keep_body:
        flight.payload = rejected.body[:PAYLOAD_KEPT]
    if keep_body and len(rejected.body) > PAYLOAD_KEPT:
        flight.detail += f" (payload cut at {PAYLOAD_KEPT} of {len(rejected.body)} bytes)"
    flight.born_ended(Outcome.REJECTED, rejected.reason, now)
    return flight
