"""One push on its way to one user: what is known of it, and the rules by which it ends.

A flight is made when a push is taken and is gone when its final row is committed. Nothing here does I/O;
times are wall-clock seconds that the caller read once for a whole batch.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable

from bridge.model import (
    NO_USER,
    DeadLetter,
    Outcome,
    Proof,
    Properties,
    PushRequest,
    Reason,
    Rejected,
    Reply,
    Row,
    RowKey,
)
from bridge.ports import AckToken

PAYLOAD_KEPT = 4096
"""Bytes of a rejected body that its row keeps."""


class Message:
    """One AMQP message that is held until every row it names is settled."""

    __slots__ = (
        "done",
        "letters",
        "open",
        "properties",
        "published_at",
        "redelivered",
        "replies",
        "taken_at",
        "token",
        "traceparent",
    )

    def __init__(
        self,
        token: AckToken,
        properties: Properties,
        *,
        published_at: float,
        taken_at: float,
        traceparent: str = "",
    ) -> None:
        self.token: AckToken | None = token
        """None once it was acked or given back."""
        self.properties = properties
        self.published_at = published_at
        self.taken_at = taken_at
        self.traceparent = traceparent
        self.redelivered = properties.redelivered or properties.delivery_count > 0
        self.replies: tuple[Reply, ...] = (
            (Reply(properties.reply_to, properties.correlation_id),) if properties.reply_to else ()
        )
        self.open = 0
        """Rows that must still be settled before the message may be acked."""
        self.done: asyncio.Event | None = None
        """Set when the message is acked or given back, for whoever waits for just this one."""
        self.letters: list[DeadLetter] = []
        """What goes to `push.dead` after the rows and before the ack."""


class Effect(enum.Enum):
    """What an event did to a flight."""

    NOTHING = 0
    ENDED = 1
    """The event ended it: its final row must be written."""
    LATE = 2
    """Proof of a flight that had ended without: only `proven_at` may still be filled."""


class Flight:
    """The state of one push for one user, over all of the user's sessions that it was addressed to."""

    __slots__ = (
        "app_id",
        "attempts",
        "confirm",
        "detail",
        "event",
        "finished_at",
        "key",
        "messages",
        "meta",
        "open",
        "outcome",
        "parked",
        "payload",
        "proof",
        "proven_at",
        "published_at",
        "reason",
        "sessions",
        "slow",
        "taken_at",
        "taken_mono",
        "traceparent",
        "written_at",
    )

    def __init__(
        self,
        key: RowKey,
        message: Message,
        *,
        event: str = "",
        meta: bytes = b"",
        confirm: Proof = Proof.RECEIVED,
        taken_mono: float = 0.0,
    ) -> None:
        self.key = key
        self.event = event
        self.meta = meta
        self.confirm = confirm
        self.app_id = message.properties.app_id
        self.traceparent = message.traceparent
        self.published_at = message.published_at
        self.taken_at = message.taken_at
        self.taken_mono = taken_mono
        """Monotonic seconds, for the deadlines."""
        self.detail = ""
        self.payload: bytes | None = None
        self.messages = [message]
        """The messages that wait for this flight's row; empty once it is parked."""
        self.proof = Proof.NONE
        self.sessions = 0
        self.open = 0
        """Sessions that may still prove it."""
        self.attempts = 0
        self.slow = False
        """A session was closed for being too slow before this push was handed to its socket."""
        self.parked = False
        """A row that is not final stands for it, and its messages need not wait."""
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.written_at: float | None = None
        self.proven_at: float | None = None
        self.finished_at: float | None = None

    @classmethod
    def of(cls, request: PushRequest, user: str, message: Message, taken_mono: float) -> Flight:
        """The flight of a request to one of its users."""
        return cls(
            RowKey(request.tenant, request.id, user),
            message,
            event=request.event,
            meta=request.meta,
            confirm=request.confirm,
            taken_mono=taken_mono,
        )

    @classmethod
    def rejected(cls, rejected: Rejected, message: Message, now: float) -> Flight:
        """A flight that ends before it begins: no user is known, the body is kept (cut) for people."""
        flight = cls(RowKey(rejected.tenant, rejected.id, NO_USER), message, event=rejected.event)
        flight.detail = rejected.detail
        flight.payload = rejected.body[:PAYLOAD_KEPT]
        if len(rejected.body) > PAYLOAD_KEPT:
            flight.detail += f" (payload cut at {PAYLOAD_KEPT} of {len(rejected.body)} bytes)"
        flight.end(Outcome.REJECTED, rejected.reason, now)
        return flight

    @property
    def ended(self) -> bool:
        """Whether the outcome is decided; it never changes after that."""
        return self.outcome is not None

    @property
    def withdrawn(self) -> bool:
        """Whether it ended with an outcome that says it was not delivered: then it must not be sent any more."""
        return self.outcome is not None and self.proof is Proof.NONE

    def addressed(self, sessions: int) -> None:
        """It has been offered to so many more sessions."""
        self.sessions += sessions
        self.open += sessions

    def handed(self, now: float) -> Effect:
        """A session has handed it to its socket."""
        self.attempts += 1
        if self.proof is Proof.NONE:
            self.proof = Proof.WRITTEN
            self.written_at = now
        if self.outcome is None and self.confirm <= Proof.WRITTEN:
            return self.end(Outcome.WRITTEN, Reason.HANDED_OVER, now)
        return Effect.NOTHING

    def received(self, now: float) -> Effect:
        """A peer answered a ping that was sent after it (RFC 6455 5.5.3)."""
        return self._proven(Proof.RECEIVED, Outcome.RECEIVED, Reason.PONG, now)

    def acked(self, now: float) -> Effect:
        """An application sent the ack frame for it."""
        return self._proven(Proof.ACKED, Outcome.ACKED, Reason.ACK_FRAME, now)

    def _proven(self, proof: Proof, outcome: Outcome, reason: Reason, now: float) -> Effect:
        if self.outcome is not None:
            if self.outcome is Outcome.UNKNOWN and self.proven_at is None:
                self.proven_at = now
                return Effect.LATE
            return Effect.NOTHING
        if proof > self.proof:
            self.proof = proof
            self.proven_at = now
        if proof >= self.confirm:
            return self.end(outcome, reason, now)
        return Effect.NOTHING

    def lost(self, now: float, *, handed: bool, slow: bool) -> Effect:
        """A session that it was addressed to is gone, `handed` tells whether it had been handed over there."""
        self.open -= 1
        if slow and not handed:
            self.slow = True
        if self.outcome is not None or self.open > 0:
            return Effect.NOTHING
        if self.proof is Proof.NONE:
            if self.slow:
                return self.end(Outcome.DROPPED, Reason.SLOW_CONSUMER, now)
            return self.end(Outcome.OFFLINE, Reason.LEFT_BEFORE_SEND, now)
        if self.proof is Proof.WRITTEN:
            return self.end(Outcome.UNKNOWN, Reason.CONNECTION_LOST, now)
        return self.end(Outcome.RECEIVED, Reason.NOT_ACKED, now)

    def timed_out(self, now: float) -> Effect:
        """The time for a proof is over: the best proof that is held decides."""
        if self.outcome is not None:
            return Effect.NOTHING
        if self.proof is Proof.NONE:
            if self.sessions == 0:
                return self.end(Outcome.OFFLINE, Reason.NO_SESSION, now)
            return self.end(Outcome.DROPPED, Reason.SLOW_CONSUMER, now)
        if self.proof is Proof.WRITTEN:
            return self.end(Outcome.UNKNOWN, Reason.NO_PROOF, now)
        return self.end(Outcome.RECEIVED, Reason.NOT_ACKED, now)

    def end(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """Decide the outcome, once; a later call changes nothing."""
        if self.outcome is not None:
            return Effect.NOTHING
        self.outcome = outcome
        self.reason = reason
        self.finished_at = now
        return Effect.ENDED

    def row(self, node: str, boot: str) -> Row:
        """The row that says what is known now: final once the flight has ended, `pending` before."""
        pending = self.outcome is None
        return Row(
            key=self.key,
            outcome=self.outcome or Outcome.PENDING,
            reason=self.reason or Reason.AWAITING_PROOF,
            node=node,
            boot=boot,
            published_at=self.published_at,
            taken_at=self.taken_at,
            detail=self.detail,
            event=self.event,
            app_id=self.app_id,
            meta=self.meta,
            confirm=self.confirm,
            written_at=self.written_at,
            proven_at=self.proven_at,
            finished_at=self.finished_at,
            sessions=self.sessions,
            attempts=self.attempts,
            payload=self.payload,
            traceparent=self.traceparent,
            owed=merged(*(m.replies for m in self.messages)) if pending else None,
        )


def merged(*lists: Iterable[Reply]) -> tuple[Reply, ...]:
    """These replies in order, each once."""
    return tuple(dict.fromkeys(reply for replies in lists for reply in replies))
