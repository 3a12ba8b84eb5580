"""One push on its way to one user: what is known of it, and the rules by which it ends.

A flight is made when a push is taken and is gone when its final row is committed. Nothing here does I/O;
times are wall-clock seconds that the caller read once for a whole batch.
"""

from __future__ import annotations

import asyncio
import datetime
import enum
from collections.abc import Iterable, Sequence

from bridge.core.model.fingerprint import NOT_KNOWN, differ, fingerprint_of
from bridge.core.model.outcomes import DELIVERED, Outcome, Proof, Reason
from bridge.core.model.pushes import ID_MAX, NO_USER, Encoding, Properties, PushRequest, Rejected
from bridge.core.model.rows import DeadLetter, Receipt, Reply, Row, RowKey
from bridge.core.ports.broker import AckToken

PAYLOAD_KEPT = 4096
"""Bytes of a rejected body that its row keeps."""
OWED_MAX = 100
"""Replies that a row owes; who asks after that is told at once how the push stands, and not again at its end."""

_NO_TOKEN = AckToken(-1, 0)

_WITHDRAWN = frozenset((Outcome.EXPIRED, Outcome.SUPERSEDED, Outcome.RECALLED))


class Message:
    """One AMQP message that is held until every row it names is settled."""

    __slots__ = (
        "answers",
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
        self.answers: list[Receipt] = []
        """What its publisher is told before the ack, since no row will tell it."""

    def replies_where(self, differs: bool) -> tuple[Reply, ...]:
        """What it asked for, of a row that holds other content, or does not."""
        if not differs:
            return self.replies
        return tuple(Reply(r.queue, r.correlation_id, differs=True) for r in self.replies)


class Effect(enum.Enum):
    """What an event did to a flight."""

    NOTHING = 0
    ENDED = 1
    """The event ended it: its final row must be written."""
    LATE = 2
    """Better proof than the flight has ended with: only `late_at` and `proven_at` may still be filled."""
    KEPT = 3
    """It came to nothing for now, and its ttl has not ended: its row is `stored`, and waits for the user."""


class Kept:
    """What only the flight of a push with a ttl has."""

    __slots__ = (
        "collapsed",
        "data",
        "encoding",
        "excluded",
        "expires_at",
        "look_at",
        "reason",
        "resent",
        "size",
        "told",
    )

    def __init__(
        self,
        expires_at: float,
        data: bytes | None,
        encoding: Encoding,
        excluded: frozenset[str],
    ) -> None:
        self.expires_at = expires_at
        self.data = data
        """None once the row has it."""
        self.encoding = encoding
        self.excluded = excluded
        self.size = len(data or b"")
        """Bytes of the data."""
        self.reason: Reason | None = None
        """Why it was kept, once it was; before that it is on its way."""
        self.collapsed = False
        """A newer push with its collapse key is there: without proof it ends as superseded."""
        self.resent = 0
        """How often it was sent again to a session that had it and did not prove it."""
        self.look_at = 0.0
        """Monotonic seconds of the next look at it."""
        self.told = False
        """The `stored` receipt was sent."""


class Flight:
    """The state of one push for one user, over all of the user's sessions that it was addressed to."""

    __slots__ = (
        "ack_within",
        "app_id",
        "attempts",
        "collapse_key",
        "confirm",
        "day",
        "detail",
        "differing",
        "event",
        "fingerprint",
        "finished_at",
        "kept",
        "key",
        "messages",
        "meta",
        "open",
        "outcome",
        "owes",
        "parked",
        "payload",
        "position",
        "proof",
        "proven_at",
        "published_at",
        "reason",
        "sessions",
        "taken_at",
        "taken_mono",
        "traceparent",
        "unsendable",
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
        ack_within: float = 0.0,
        position: int = 0,
        collapse_key: str = "",
        fingerprint: int = NOT_KNOWN,
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
        self.position = position
        """Its place among all pushes that this node has taken; see `Row.position`."""
        self.collapse_key = collapse_key
        self.ack_within = ack_within
        """Seconds; 0: as long as every other push waits for its proof."""
        self.kept: Kept | None = None
        """None for a push with ttl 0."""
        self.day: datetime.date | None = None
        """The log's day of its row, or one before it, once there is a row."""
        self.detail = ""
        self.payload: bytes | None = None
        """The body of a rejected request, for its row."""
        self.messages = [message]
        """The messages that wait for this flight's row; empty once it is parked."""
        self.fingerprint = fingerprint
        self.differing: dict[Message, int] | None = None
        """Of messages that joined with other content the fingerprints; None while there is none."""
        self.owes = 0
        """How many replies its row owed when it was last written."""
        self.proof = Proof.NONE
        self.sessions = 0
        self.open = 0
        """Sessions that may still prove it."""
        self.attempts = 0
        self.unsendable: Reason | None = None
        """Why the queue of a session was of no use: that one has never handed this push to its socket."""
        self.parked = False
        """Its row is there; while that is not final its messages need not wait."""
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.written_at: float | None = None
        self.proven_at: float | None = None
        self.finished_at: float | None = None

    @classmethod
    def of(
        cls,
        request: PushRequest,
        user: str,
        message: Message,
        taken_mono: float,
        position: int = 0,
        fingerprint: int = NOT_KNOWN,
    ) -> Flight:
        """The flight of a request to one of its users. What reaches nobody by name is never kept."""
        flight = cls(
            RowKey(request.tenant, request.id, user),
            message,
            event=request.event,
            meta=request.meta,
            confirm=request.confirm,
            taken_mono=taken_mono,
            ack_within=request.ack_within,
            position=position,
            collapse_key=request.collapse_key,
            fingerprint=fingerprint,
        )
        if request.ttl > 0 and user != NO_USER:
            flight.kept = Kept(
                message.published_at + request.ttl,
                request.data,
                request.encoding,
                request.excluded,
            )
        return flight

    @classmethod
    def stored(cls, row: Row, boot: str, now_mono: float) -> Flight:
        """The flight of a stored row that goes out again; no message waits for it."""
        properties = Properties(app_id=row.app_id)
        flight = cls(
            row.key,
            Message(_NO_TOKEN, properties, published_at=row.published_at, taken_at=row.taken_at),
            event=row.event,
            meta=row.meta,
            confirm=row.confirm,
            taken_mono=now_mono,
            ack_within=row.ack_within,
            position=row.position,
            collapse_key=row.collapse_key,
            fingerprint=row.fingerprint,
        )
        assert row.expires_at is not None
        flight.messages = []
        flight.traceparent = row.traceparent
        flight.day = row.day
        flight.sessions = row.sessions
        flight.parked = True
        # The log adds up what different boots have handed over, and takes the most that one says.
        flight.attempts = row.attempts if row.boot == boot else 0
        flight.written_at = row.written_at
        flight.proven_at = row.proven_at
        if row.proven_at is not None:
            flight.proof = Proof.RECEIVED
        flight.owes = len(row.owed or ())
        flight.kept = Kept(row.expires_at, None, row.encoding, frozenset())
        flight.kept.size = len(row.payload or b"")
        flight.kept.reason = row.reason
        flight.kept.told = True
        return flight

    @classmethod
    def rejected(cls, rejected: Rejected, message: Message, now: float) -> Flight:
        """A flight that ends before it begins: no user is known, the body is kept (cut) for people."""
        flight = cls(
            RowKey(rejected.tenant, rejected.id, NO_USER),
            message,
            event=rejected.event,
            fingerprint=fingerprint_of(rejected),
        )
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
        outcome = self.outcome
        return outcome is not None and (self.proof is Proof.NONE or outcome in _WITHDRAWN)

    @property
    def withdrawable(self) -> bool:
        """Whether it was not handed to any socket yet, and may still end otherwise."""
        return self.outcome is None and self.attempts == 0

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
            claims = self.outcome in DELIVERED and self.reason is not Reason.NOT_ACKED
            if claims or proof <= self.proof:
                return Effect.NOTHING
            self.proof = proof
            return Effect.LATE
        if proof > self.proof:
            self.proof = proof
            self.proven_at = now
        if proof >= self.confirm:
            return self.end(outcome, reason, now)
        return Effect.NOTHING

    def lost(self, now: float, *, handed: bool, why: Reason | None = None) -> Effect:
        """A session that it was addressed to is gone, `handed` tells whether it had been handed over there; if not,
        `why` says what was wrong with the session's queue, where it was to blame."""
        self.open -= 1
        if why is not None and not handed:
            self.unsendable = why
        if self.outcome is not None or self.open > 0:
            return Effect.NOTHING
        if self.proof is Proof.NONE:
            if self.unsendable is not None:
                return self.failed(Outcome.DROPPED, self.unsendable, now)
            return self.failed(Outcome.OFFLINE, Reason.LEFT_BEFORE_SEND, now)
        if self.proof is Proof.WRITTEN:
            return self.failed(Outcome.UNKNOWN, Reason.CONNECTION_LOST, now)
        return self.failed(Outcome.RECEIVED, Reason.NOT_ACKED, now)

    def timed_out(self, now: float) -> Effect:
        """The time for a proof is over: the best proof that is held decides."""
        if self.outcome is not None:
            return Effect.NOTHING
        if self.proof is Proof.NONE:
            if self.sessions == 0:
                return self.failed(Outcome.OFFLINE, Reason.NO_SESSION, now)
            return self.failed(Outcome.DROPPED, Reason.SLOW_CONSUMER, now)
        if self.proof is Proof.WRITTEN:
            return self.failed(Outcome.UNKNOWN, Reason.NO_PROOF, now)
        return self.failed(Outcome.RECEIVED, Reason.NOT_ACKED, now)

    def failed(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """The proof that was wanted has not come: with ttl 0 that is this end, else the push is kept."""
        kept = self.kept
        if self.outcome is not None:
            return Effect.NOTHING
        if kept is None:
            return self.end(outcome, reason, now)
        if kept.collapsed:
            return self.end(Outcome.SUPERSEDED, Reason.COLLAPSED, now)
        if now >= kept.expires_at:
            if self.proof >= Proof.RECEIVED:
                return self.end(Outcome.RECEIVED, Reason.NOT_ACKED, now)
            return self.end(Outcome.EXPIRED, Reason.TTL, now)
        kept.reason = reason
        return Effect.KEPT

    def end(self, outcome: Outcome, reason: Reason, now: float) -> Effect:
        """Decide the outcome, once; a later call changes nothing."""
        if self.outcome is not None:
            return Effect.NOTHING
        self.outcome = outcome
        self.reason = reason
        self.finished_at = now
        return Effect.ENDED

    def row(self, node: str, boot: str) -> Row:
        """The row that says what is known now: final once the flight has ended, `pending` or `stored` before."""
        open_ = self.outcome is None
        if self.kept is not None:
            return self._kept_row(self.kept, node, boot)
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
            owed=self._owed() if open_ else None,
            position=self.position if self.collapse_key else 0,
            collapse_key=self.collapse_key,
            fingerprint=self.fingerprint,
        )

    def joined(self, message: Message, fingerprint: int) -> bool:
        """A repeat came while it is on its way. Returns whether its content differs."""
        self.messages.append(message)
        if not differ(fingerprint, self.fingerprint):
            return False
        if self.differing is None:
            self.differing = {}
        self.differing[message] = fingerprint
        return True

    def fingerprint_of(self, message: Message) -> int:
        """The fingerprint of what this message asked for, which one that joined may have another of."""
        return self.fingerprint if self.differing is None else self.differing.get(message, self.fingerprint)

    def replies_to(self, message: Message, fingerprint: int | None = None) -> tuple[Reply, ...]:
        """What to answer to this message, where its row holds content of this fingerprint; None: its own."""
        if self.differing is None and (fingerprint is None or fingerprint == self.fingerprint):
            return message.replies
        row = self.fingerprint if fingerprint is None else fingerprint
        return message.replies_where(differ(self.fingerprint_of(message), row))

    def _owed(self) -> tuple[Reply, ...]:
        """What its row is to owe on behalf of the messages that wait: there is an end to what it takes."""
        if not self.messages:
            return ()
        return merged(*(self.replies_to(m) for m in self.messages))[: max(0, OWED_MAX - self.owes)]

    @property
    def light(self) -> bool:
        """Whether its row carries nothing that may be large."""
        return self.kept is None and self.payload is None and not self.meta

    def carries(self) -> Sequence[tuple[object, int]]:
        """What its row carries that may be large, each with about its bytes: data, except list, meta, body."""
        kept = self.kept
        if kept is None:
            return (self.meta, len(self.meta)), (self.payload, len(self.payload or b""))
        return (
            (self.meta, len(self.meta)),
            (kept.data, len(kept.data or b"")),
            (kept.excluded, len(kept.excluded) * ID_MAX),
        )

    def _kept_row(self, kept: Kept, node: str, boot: str) -> Row:
        open_ = self.outcome is None
        return Row(
            key=self.key,
            outcome=self.outcome or Outcome.STORED,
            reason=self.reason or kept.reason or Reason.AWAITING_PROOF,
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
            payload=kept.data,
            traceparent=self.traceparent,
            owed=self._owed() if open_ else None,
            day=self.day,
            expires_at=kept.expires_at,
            position=self.position,
            encoding=kept.encoding,
            excluded=kept.excluded,
            collapse_key=self.collapse_key,
            ack_within=self.ack_within,
            fingerprint=self.fingerprint,
        )


def merged(*lists: Iterable[Reply]) -> tuple[Reply, ...]:
    """These replies in order, each once."""
    return tuple(dict.fromkeys(reply for replies in lists for reply in replies))
