"""The outcomes of a push, their reasons, what both mean, and the proofs of delivery."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Proof(enum.IntEnum):
    """How far a push provably came; a request's `confirm` names the proof it wants.

    WRITTEN: handed to the socket with the connection still open. RECEIVED: the peer answered a ping sent
    after the frame (RFC 6455 5.5.3), so its WebSocket endpoint has read it. ACKED: the application sent an ack frame.
    """

    NONE = 0
    WRITTEN = 1
    RECEIVED = 2
    ACKED = 3

    # The library's hashes the name, in Python: three times as slow as the number's own.
    __hash__ = int.__hash__


CONFIRM: Mapping[str, Proof] = {
    "written": Proof.WRITTEN,
    "received": Proof.RECEIVED,
    "acked": Proof.ACKED,
}


class Outcome(enum.StrEnum):
    """How a push stands or ended for one user. Two are not final: `pending` (waits for its proof) and `stored` (kept
    for the user)."""

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

    __hash__ = str.__hash__


class Reason(enum.StrEnum):
    """Why an outcome is what it is: a closed list. `ENDINGS` says which outcomes each may have."""

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
    REVOKED = "revoked"
    NODE_UNREACHABLE = "node_unreachable"
    OVERFLOW = "overflow"
    NO_PROOF = "no_proof"
    NO_PROOF_POSSIBLE = "no_proof_possible"
    CONNECTION_LOST = "connection_lost"
    NODE_DIED = "node_died"
    NODE_SILENT = "node_silent"
    NOT_JSON = "not_json"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    POISON = "poison"
    DELIVERY_LIMIT = "delivery_limit"
    GIVEN_UP = "given_up"
    AWAITING_PROOF = "awaiting_proof"

    __hash__ = str.__hash__


class Ending(NamedTuple):
    """One line of the table of outcomes: an outcome, one of its reasons, and what both mean."""

    outcome: Outcome
    reason: Reason
    final: bool
    meaning: str


ENDINGS: tuple[Ending, ...] = (
    Ending(Outcome.ACKED, Reason.ACK_FRAME, True, "the application acknowledged the push with an ack frame"),
    Ending(Outcome.RECEIVED, Reason.PONG, True, "the peer answered a ping sent after the push"),
    Ending(Outcome.RECEIVED, Reason.NOT_ACKED, True, "acked was wanted; at the deadline received was proven"),
    Ending(Outcome.WRITTEN, Reason.HANDED_OVER, True, "handed to an open socket, and no more was asked for"),
    Ending(
        Outcome.WRITTEN,
        Reason.NO_PROOF_POSSIBLE,
        True,
        "handed to an open stream of events whose client has never proven anything; more was asked for",
    ),
    Ending(Outcome.OFFLINE, Reason.NO_SESSION, True, "the user had no session (or the session was not here)"),
    Ending(Outcome.OFFLINE, Reason.EXCLUDED, True, "every session of the user was named in `except`"),
    Ending(Outcome.OFFLINE, Reason.NOBODY, True, "sent to everyone or to a topic, and nobody was there"),
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
        Reason.REVOKED,
        True,
        "the session's token was revoked before this push was handed to its socket",
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
    Ending(
        Outcome.DROPPED,
        Reason.NODE_UNREACHABLE,
        True,
        "the node that has the user's session could not be reached",
    ),
    Ending(
        Outcome.UNKNOWN,
        Reason.NODE_SILENT,
        True,
        "forwarded to the node that has the user's session, which has not answered in time",
    ),
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
        Reason.REVOKED,
        False,
        "kept: the session's token was revoked before it was handed to a socket",
    ),
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
    Ending(
        Outcome.STORED,
        Reason.NO_PROOF_POSSIBLE,
        False,
        "kept: handed to a stream of events whose client has never proven anything",
    ),
    Ending(Outcome.STORED, Reason.NOT_ACKED, False, "kept: received, but acked was wanted and has not come"),
    Ending(
        Outcome.STORED, Reason.CONNECTION_LOST, False, "kept: handed over; the connection ended before proof"
    ),
    Ending(
        Outcome.STORED,
        Reason.NODE_UNREACHABLE,
        False,
        "kept: the node that has the user's session could not be reached",
    ),
    Ending(
        Outcome.STORED,
        Reason.NODE_SILENT,
        False,
        "kept: forwarded to the node that has the user's session, which has not answered in time",
    ),
)
FINAL: Mapping[Outcome, bool] = {e.outcome: e.final for e in ENDINGS}
DELIVERED = frozenset((Outcome.WRITTEN, Outcome.RECEIVED, Outcome.ACKED))
"""The outcomes that say that the push was delivered."""
