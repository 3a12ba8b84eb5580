"""The words of the bridge as types: keys, requests, targets, proofs, outcomes, reasons, close codes.

Everything here is frozen. Times are seconds since the epoch (float, UTC) unless a name says otherwise.
"""

from __future__ import annotations

import datetime
import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

# --- Limits of the contract (push request v1) ------------------------------------------------------------

ID_MAX = 128
"""Characters in an id, user, session, topic, tenant, event or collapse key."""
META_KEYS_MAX, META_KEY_CHARS, META_VALUE_CHARS = 16, 64, 256
USERS_MAX = 10_000
"""Users in one `to.users`, and (request, user) pairs that one message may name."""
BATCH_MAX = 1_000
"""Requests in one JSON array."""
MESSAGE_BYTES_MAX = 1024 * 1024
"""Bytes of one AMQP message's body."""
NO_USER = ""
"""The user part of a key when no user was known; the `delivery` view shows it as null."""


# --- Proof -----------------------------------------------------------------------------------------------


class Proof(enum.IntEnum):
    """How far a push provably came; a request's `confirm` names the proof it wants.

    WRITTEN: handed to the socket with the connection still open. RECEIVED: the peer answered a ping sent
    after the frame (RFC 6455 5.5.3), so its WebSocket endpoint has read it. ACKED: the application said so.
    """

    NONE = 0
    WRITTEN = 1
    RECEIVED = 2
    ACKED = 3


CONFIRM: Mapping[str, Proof] = {
    "written": Proof.WRITTEN,
    "received": Proof.RECEIVED,
    "acked": Proof.ACKED,
}


# --- Outcomes and reasons --------------------------------------------------------------------------------


class Outcome(enum.StrEnum):
    """How a push ended for one user; not final: `pending` (proof awaited) and `stored` (kept for the user)."""

    ACKED = "acked"
    RECEIVED = "received"
    WRITTEN = "written"
    OFFLINE = "offline"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    DROPPED = "dropped"
    UNKNOWN = "unknown"
    RECALLED = "recalled"
    REJECTED = "rejected"
    PENDING = "pending"
    STORED = "stored"


class Reason(enum.StrEnum):
    """Why an outcome is what it is: a closed list, each value belongs to the outcomes of `ENDINGS`."""

    ACK_FRAME = "ack_frame"
    PONG = "pong"
    NOT_ACKED = "not_acked"
    HANDED_OVER = "handed_over"
    NO_SESSION = "no_session"
    EXCLUDED = "excluded"
    NOBODY = "nobody"
    LEFT_BEFORE_SEND = "left_before_send"
    MAX_AGE = "max_age"
    TTL = "ttl"
    QUEUE_EXPIRATION = "queue_expiration"
    COLLAPSED = "collapsed"
    MAILBOX_FULL = "mailbox_full"
    WITHDRAWN = "withdrawn"
    SLOW_CONSUMER = "slow_consumer"
    OVERFLOW = "overflow"
    NO_PROOF = "no_proof"
    CONNECTION_LOST = "connection_lost"
    NODE_DIED = "node_died"
    NOT_JSON = "not_json"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    POISON = "poison"
    DELIVERY_LIMIT = "delivery_limit"
    GIVEN_UP = "given_up"
    AWAITING_PROOF = "awaiting_proof"


class Ending(NamedTuple):
    """One line of the table of outcomes: an outcome, a reason that it may have, and what both mean."""

    outcome: Outcome
    reason: Reason
    final: bool
    meaning: str


ENDINGS: tuple[Ending, ...] = (
    Ending(Outcome.ACKED, Reason.ACK_FRAME, True, "the application acknowledged the push with an ack frame"),
    Ending(Outcome.RECEIVED, Reason.PONG, True, "the peer answered a ping sent after the push"),
    Ending(Outcome.RECEIVED, Reason.NOT_ACKED, True, "acked was wanted; at the deadline received was proven"),
    Ending(Outcome.WRITTEN, Reason.HANDED_OVER, True, "handed to an open socket, and no more was asked for"),
    Ending(Outcome.OFFLINE, Reason.NO_SESSION, True, "the user had no session (or the session was not here)"),
    Ending(Outcome.OFFLINE, Reason.EXCLUDED, True, "every session of the user was named in `except`"),
    Ending(Outcome.OFFLINE, Reason.NOBODY, True, "sent to everyone, and nobody was connected"),
    Ending(
        Outcome.OFFLINE,
        Reason.LEFT_BEFORE_SEND,
        True,
        "the user's sessions closed before the push was handed to a socket",
    ),
    Ending(Outcome.EXPIRED, Reason.MAX_AGE, True, "older than BRIDGE_MAX_AGE when it was taken"),
    Ending(Outcome.EXPIRED, Reason.TTL, True, "its ttl ran out before it was proven"),
    Ending(Outcome.EXPIRED, Reason.QUEUE_EXPIRATION, True, "its AMQP expiration ran out in the queue"),
    Ending(
        Outcome.SUPERSEDED,
        Reason.COLLAPSED,
        True,
        "a newer push with its collapse_key came before this one was proven",
    ),
    Ending(
        Outcome.DROPPED,
        Reason.MAILBOX_FULL,
        True,
        "the user's mailbox was over its limit, and this was the oldest push in it",
    ),
    Ending(Outcome.RECALLED, Reason.WITHDRAWN, True, "withdrawn by a recall before it was proven"),
    Ending(
        Outcome.DROPPED,
        Reason.SLOW_CONSUMER,
        True,
        "the peer did not read fast enough: its session was closed with 4408, or the time for a proof was over, "
        "before this push was handed to its socket",
    ),
    Ending(
        Outcome.DROPPED,
        Reason.OVERFLOW,
        True,
        "more came at once than the session could hold while it was being sent what is kept",
    ),
    Ending(Outcome.UNKNOWN, Reason.NO_PROOF, True, "handed over; no proof in BRIDGE_CONFIRM_TIMEOUT"),
    Ending(Outcome.UNKNOWN, Reason.CONNECTION_LOST, True, "handed over; the connection ended before proof"),
    Ending(Outcome.UNKNOWN, Reason.NODE_DIED, True, "the bridge process died while the proof was awaited"),
    Ending(Outcome.REJECTED, Reason.NOT_JSON, True, "the body is not JSON (RFC 8259) in UTF-8"),
    Ending(Outcome.REJECTED, Reason.INVALID, True, "a field or header is wrong; `detail` names it"),
    Ending(Outcome.REJECTED, Reason.UNSUPPORTED, True, "a field whose feature this version does not have"),
    Ending(Outcome.REJECTED, Reason.TOO_LARGE, True, "the message or its data is over the limit in bytes"),
    Ending(Outcome.REJECTED, Reason.TOO_MANY, True, "more requests or users in one message than allowed"),
    Ending(
        Outcome.REJECTED,
        Reason.POISON,
        True,
        "the broker gave it out BRIDGE_MAX_ATTEMPTS times, and it was never settled",
    ),
    Ending(Outcome.REJECTED, Reason.DELIVERY_LIMIT, True, "the broker gave it up at its delivery limit"),
    Ending(Outcome.REJECTED, Reason.GIVEN_UP, True, "the broker gave it up for another reason; see `detail`"),
    Ending(Outcome.PENDING, Reason.AWAITING_PROOF, False, "handed over; the proof is awaited"),
    Ending(Outcome.STORED, Reason.NO_SESSION, False, "kept: the user had no session"),
    Ending(Outcome.STORED, Reason.EXCLUDED, False, "kept: every session of the user was named in `except`"),
    Ending(
        Outcome.STORED,
        Reason.LEFT_BEFORE_SEND,
        False,
        "kept: the user's sessions closed before it was handed to a socket",
    ),
    Ending(Outcome.STORED, Reason.SLOW_CONSUMER, False, "kept: the peer did not read"),
    Ending(
        Outcome.STORED,
        Reason.OVERFLOW,
        False,
        "kept: the session was still being sent what is older and could not hold it; it follows",
    ),
    Ending(
        Outcome.STORED, Reason.AWAITING_PROOF, False, "kept: on its way to the user, the proof is awaited"
    ),
    Ending(Outcome.STORED, Reason.NO_PROOF, False, "kept: handed over; no proof in BRIDGE_CONFIRM_TIMEOUT"),
    Ending(Outcome.STORED, Reason.NOT_ACKED, False, "kept: received, but acked was wanted and has not come"),
    Ending(
        Outcome.STORED, Reason.CONNECTION_LOST, False, "kept: handed over; the connection ended before proof"
    ),
)

FINAL: Mapping[Outcome, bool] = {e.outcome: e.final for e in ENDINGS}

DELIVERED = frozenset((Outcome.WRITTEN, Outcome.RECEIVED, Outcome.ACKED))
"""Outcomes that claim delivery."""


# --- Keys and requests -----------------------------------------------------------------------------------


class PushKey(NamedTuple):
    """The idempotency key of a request."""

    tenant: str
    push_id: str


class RowKey(NamedTuple):
    """What one row of the delivery log stands for. `user` is `NO_USER` where no user was known."""

    tenant: str
    push_id: str
    user: str


class ToUser(msgspec.Struct, frozen=True, gc=False):
    """Every session of one user."""

    user: str


class ToUsers(msgspec.Struct, frozen=True, gc=False):
    """Every session of several users; no user is in it twice."""

    users: tuple[str, ...]


class ToSession(msgspec.Struct, frozen=True, gc=False):
    """One session."""

    session: str


class ToAll(msgspec.Struct, frozen=True, gc=False):
    """Every session that is open when the push is taken."""


Target: TypeAlias = ToUser | ToUsers | ToSession | ToAll


class Encoding(enum.Enum):
    """What `PushRequest.data` is."""

    JSON = "json"
    """UTF-8 JSON text, checked, exactly as it came."""
    TEXT = "text"
    """UTF-8 text, checked: a JSON string in the envelope, itself in bare mode."""
    BYTES = "bytes"
    """Any bytes: base64 with `"encoding": "base64"` in the envelope, a binary frame in bare mode."""


class Timestamp(int):
    """A header of AMQP's type timestamp: whole seconds since 1970. An integer of any other type is a plain int."""


class Properties(msgspec.Struct, frozen=True, gc=False):
    """The AMQP properties of a message that the bridge honours, and its headers as the broker gave them.

    Header values are what AMQP tables hold: str, int, Timestamp, float, bool, bytes, None, lists and dicts of
    these. Text that came as something else than UTF-8 holds its bytes as lone surrogates (PEP 383), so that a
    correlation id goes back as it came; only `app_id`, which rows have, never does.
    """

    message_id: str = ""
    correlation_id: str = ""
    reply_to: str = ""
    app_id: str = ""
    user_id: str = ""
    content_type: str = ""
    content_encoding: str = ""
    expiration: str = ""
    timestamp: float | None = None
    """Seconds; AMQP timestamps have no fraction."""
    headers: Mapping[str, object] = {}
    redelivered: bool = False
    delivery_count: int = 0
    """How often the broker has given this message out before (`x-delivery-count` of a quorum queue)."""
    priority: int = 0


class PushRequest(msgspec.Struct, frozen=True, gc=False):
    """A checked push request v1. Whoever builds one has checked every field against the contract."""

    id: str
    target: Target
    data: bytes
    event: str = "message"
    encoding: Encoding = Encoding.JSON
    confirm: Proof = Proof.RECEIVED
    excluded: frozenset[str] = frozenset()
    """Session ids that do not get it."""
    tenant: str = ""
    meta: bytes = b""
    """The JSON object `meta`, compact and without a key that occurs twice, or empty."""
    generated_id: bool = False
    """The producer gave no id: the push is at-least-once and outside of I1."""
    ttl: float = 0.0
    """Seconds after its publication for which it is kept for a user who is away or does not confirm."""
    collapse_key: str = ""
    """A newer push to the same user with this key replaces it while it is unproven; empty: none."""
    ack_within: float = 0.0
    """Seconds that an `acked` push waits for its ack; 0: BRIDGE_CONFIRM_TIMEOUT."""

    @property
    def key(self) -> PushKey:
        """The idempotency key."""
        return PushKey(self.tenant, self.id)


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A request, or one element of a batch, that ends as a `rejected` row and a message in `push.dead`."""

    id: str
    """The request's own id where it had a usable one, else `sha256-<hex>` of body and properties."""
    reason: Reason
    detail: str
    body: bytes
    """What is published to `push.dead`: the element's or the message's bytes."""
    tenant: str = ""
    event: str = ""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A queue that wants the receipt of a push, and the correlation id that it gave: any bytes, see `Properties`."""

    queue: str
    correlation_id: str = ""
    differs: bool = False
    """What it asked for is not what the push with this id holds: its receipt says so."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of the delivery log: the truth about a push and a user. See `sql/` for the columns.

    `owed` is what the row itself still owes once its message is acked: None nothing, otherwise the outcome
    event on `push.outcomes` and a receipt for each reply.
    """

    key: RowKey
    outcome: Outcome
    reason: Reason
    node: str
    boot: str
    published_at: float
    taken_at: float
    detail: str = ""
    event: str = ""
    app_id: str = ""
    meta: bytes = b""
    confirm: Proof = Proof.RECEIVED
    written_at: float | None = None
    proven_at: float | None = None
    finished_at: float | None = None
    sessions: int = 0
    """Sessions the push was addressed to."""
    attempts: int = 0
    """How often it was handed to sockets, over all takings known to this row."""
    payload: bytes | None = None
    """Of a kept push its data; of a rejected request its body, cut where `detail` says so; else None."""
    traceparent: str = ""
    owed: tuple[Reply, ...] | None = None
    day: datetime.date | None = None
    """The log's day that the row is in; None where that is not known here."""
    expires_at: float | None = None
    """When its ttl ends; None for a push that is not kept (ttl 0), and then so is all that follows."""
    position: int = 0
    """Its place in the mailbox: microseconds since the epoch at its taking, unique and rising in a node."""
    encoding: Encoding = Encoding.JSON
    """What `payload` is."""
    excluded: frozenset[str] = frozenset()
    """Session ids that do not get it."""
    collapse_key: str = ""
    ack_within: float = 0.0
    late_at: float | None = None
    """When better proof came than the outcome claims, after the end."""
    fingerprint: int = 0
    """See `bridge.fingerprint`; 0: not known."""
    differed_at: float | None = None
    """When a request first came with this id and other content. Noted after a write, never by it."""

    @property
    def final(self) -> bool:
        """Whether this row never changes its outcome again."""
        return FINAL[self.outcome]

    def ended_by(self, write: Row) -> bool:
        """Whether this is the end that `write` put there; of an older row a write keeps what it does not end.

        A database keeps times in microseconds.
        """
        if self.finished_at is None or write.finished_at is None:
            return False
        return (
            self.boot == write.boot
            and self.outcome is write.outcome
            and self.reason is write.reason
            and abs(self.finished_at - write.finished_at) < 1e-5
        )


class Recall(msgspec.Struct, frozen=True, gc=False):
    """A request to withdraw pushes: those of one id, or those of one user with one collapse key."""

    tenant: str = ""
    push_id: str = ""
    """The push to withdraw, for every user; empty where `user` and `collapse_key` say which."""
    user: str = ""
    collapse_key: str = ""


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """An outcome, to be sent back over AMQP: to each queue of `replies`, and on `push.outcomes`."""

    row: Row
    replies: tuple[Reply, ...] = ()
    announce: bool = True
    """False: only to `replies`. The answer to a repeat, whose outcome was announced before."""


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A message for `push.dead`; its row is already written."""

    push_id: str
    reason: Reason
    detail: str
    body: bytes
    properties: Properties


class LateProof(NamedTuple):
    """Proof that came after a row's end: fills `late_at`, and `proven_at`, where they are null, and nothing else."""

    key: RowKey
    at: float


class Difference(NamedTuple):
    """A request that came with a row's id and other content: fills `differed_at` where it is null, and nothing else."""

    key: RowKey
    at: float


# --- Closing a session -----------------------------------------------------------------------------------


class CloseReason(enum.Enum):
    """Why a session is closed: (code, word, may the client reconnect, seconds it should wait at least).

    Codes 1000-2999 are RFC 6455 7.4.1 and its registry, 4400-4499 are ours: private use.
    """

    GOING_AWAY = (1001, "going_away", True, 1.0)
    RESTART = (1012, "restart", True, 1.0)
    TRY_LATER = (1013, "try_later", True, 10.0)
    TOKEN_EXPIRED = (4401, "token_expired", False, 0.0)
    TOO_SLOW = (4408, "too_slow", True, 5.0)
    VANISHED = (1006, "vanished", True, 0.0)

    def __init__(self, code: int, word: str, reconnect: bool, retry_after: float) -> None:
        self.code = code
        self.word = word
        self.reconnect = reconnect
        """Whether the same client with the same token may come back."""
        self.retry_after = retry_after
        """Seconds; the bridge spreads them out where many sessions close at once."""


class Claims(msgspec.Struct, frozen=True):
    """What a checked token says."""

    user: str
    expires_at: float
    token_id: str = ""
    """The token's `jti`, empty where it has none."""
    issued_at: float | None = None


class Mode(enum.StrEnum):
    """How a session's frames look."""

    ENVELOPE = "bridge.v1.json"
    """The subprotocol with typed JSON frames, acks and a welcome."""
    BARE = "bridge.bare"
    """Each push is a frame with just its data; also where the client offers no subprotocol at all."""


class Handshake(msgspec.Struct, frozen=True):
    """What a client asked for in its opening handshake (RFC 6455 4.2.1), as the adapter read it."""

    path: str
    query: Mapping[str, Sequence[str]]
    origin: str | None
    authorization: str | None
    subprotocols: tuple[str, ...]


class Grant(msgspec.Struct, frozen=True):
    """A handshake that opens a session."""

    claims: Claims
    mode: Mode
    subprotocol: str | None
    """What is echoed to the client; None where it offered none."""
    last: str | None = None
    """The id of the last push the client has seen, where it asked to resume."""


class Refusal(msgspec.Struct, frozen=True):
    """A handshake that is answered with an HTTP status before any upgrade."""

    status: int
    why: str
    """A fixed word for metrics and logs."""
    text: str
    """The body for people, and the line of the log: it quotes nothing that the client sent."""
