"""Find the outcome of a message that is not sent: the broker or this bridge has given it up, or it is too old."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bridge.core.contract.scheduling import RECALLED, released_as
from bridge.core.inflight.held import HeldMessage
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.model.rows import DeadLetter
from bridge.core.ports.broker import Arrival, Source


class GivenUp(NamedTuple):
    """The outcome of every push that the message names."""

    outcome: Outcome
    reason: Reason
    detail: str


def given_up(arrival: Arrival, max_attempts: int) -> GivenUp | None:
    """Its outcome; None for a message that must be handled. `max_attempts`: how often the broker may deliver it."""
    if arrival.source is Source.REQUESTS:
        count = arrival.properties.delivery_count
        if count < max_attempts:
            return None
        return GivenUp(Outcome.REJECTED, Reason.POISON, f"given out {count} times and never settled")
    why = _why_dead(arrival.properties.headers)
    if why == "expired":
        return GivenUp(Outcome.EXPIRED, Reason.QUEUE_EXPIRATION, "its AMQP expiration ran out in the queue")
    if why == "delivery_limit":
        return GivenUp(Outcome.REJECTED, Reason.DELIVERY_LIMIT, "the broker's delivery limit was reached")
    return GivenUp(Outcome.REJECTED, Reason.GIVEN_UP, f"the broker gave it up: {why}")


def _why_dead(headers: Mapping[str, object]) -> str:
    """Why the broker took a message out of the queue of requests.

    The newest death comes first in `x-death` (RabbitMQ's guide "Dead Letter Exchanges", section "Effects"). Not the
    first death: a message that its publisher took from elsewhere has died before, and RabbitMQ 3.x leaves that reason.
    """
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    if isinstance(newest, dict) and "reason" in newest:
        return str(newest["reason"])
    return str(headers.get("x-last-death-reason", headers.get("x-first-death-reason", "unknown")))


def recalled(arrival: Arrival) -> GivenUp | None:
    """The outcome of a scheduled push that was recalled before its time; None for any other."""
    if released_as(arrival.properties.headers) != RECALLED:
        return None
    return GivenUp(Outcome.RECALLED, Reason.WITHDRAWN, "")


def too_old_of(message: HeldMessage, request: PushRequest, max_age: float) -> tuple[Outcome, Reason] | None:
    """The outcome of a push whose time was over when it was taken; None for any other push. `max_age`: seconds that a
    push without a ttl may be old. A scheduled push ages from its `deliver_at`."""
    age = message.taken_at - max(message.published_at, request.deliver_at)
    if request.ttl == 0:
        return (Outcome.EXPIRED, Reason.MAX_AGE) if age > max_age else None
    return (Outcome.EXPIRED, Reason.TTL) if age >= request.ttl else None


def letter_of(arrival: Arrival, push_id: str, reason: Reason, detail: str, body: bytes) -> DeadLetter:
    """The message in `push.dead` for a request that ends so."""
    return DeadLetter(push_id, reason, detail, body, arrival.properties)
