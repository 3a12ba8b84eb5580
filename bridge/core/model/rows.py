"""What is kept and told: a row of the delivery log, its receipts, and what goes to `push.dead`."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from bridge.core.model.outcomes import FINAL, Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding, Properties


class RowKey(NamedTuple):
    """What one row of the delivery log stands for. `user` is `NO_USER` where no user was known."""

    tenant: str
    push_id: str
    user: str


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


def merged(*lists: Iterable[Reply]) -> tuple[Reply, ...]:
    """These replies in order, each once."""
    return tuple(dict.fromkeys(reply for replies in lists for reply in replies))
