"""A row of the delivery log, its receipts, and what goes to `push.dead`."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from bridge.core.model.outcomes import FINAL, Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding, Properties


class RowKey(NamedTuple):
    """The key of one row of the delivery log. `user` is `NO_USER` where no user was known."""

    tenant: str
    push_id: str
    user: str


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A queue that wants the receipt of a push, and the request's correlation id: any bytes, see `Properties`."""

    queue: str
    correlation_id: str = ""
    differs: bool = False
    """The request had other content than the push with this id; the receipt says so."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """One row of the delivery log: the truth about a push and a user. See `sql/` for the columns.

    `owed` is what must still be sent for the row after its message is acked. None: nothing. Otherwise the outcome event
    on `push.outcomes`, and a receipt for each reply.
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
    """Sessions the push was offered to."""
    attempts: int = 0
    """How often it was handed to sockets, as far as this row knows of it."""
    payload: bytes | None = None
    """The data of a kept push; the body of a rejected request, cut where `detail` says so; otherwise None."""
    traceparent: str = ""
    owed: tuple[Reply, ...] | None = None
    day: datetime.date | None = None
    """The log's day that the row is in; None where that is not known here."""
    expires_at: float | None = None
    """When its ttl ends; None for a push that is not kept (ttl 0)."""
    position: int = 0
    """Its place in the mailbox: the time it was taken, in microseconds since the epoch; unique and rising in a node."""
    encoding: Encoding = Encoding.JSON
    """What `payload` is."""
    excluded: frozenset[str] = frozenset()
    """Session ids that do not get it."""
    collapse_key: str = ""
    ack_within: float = 0.0
    late_at: float | None = None
    """When better proof than the outcome says came, after the outcome was final."""
    fingerprint: int = 0
    """See `bridge.core.model.fingerprint`; 0: not known."""
    topic: str = ""
    """The topic that it was published to."""
    session: str = ""
    """The session that gave the best proof so far."""
    holder: str = ""
    """The node that has that session; empty: `node`."""
    first_device: bool = False
    """The first ack takes the push back from the user's other sessions."""
    fallback_due: float | None = None
    """When its fallback is to be published; None: it has none, or it is not to be published any more. As `payload`, a
    row that is read has neither this nor the key."""
    fallback_key: str = ""
    """The routing key of its fallback; empty: it has none."""
    batch_id: str = ""
    """The batch that it came in; empty: it came alone."""
    batch_position: int | None = None
    """Its place in that batch, from 0."""
    data_bytes: int | None = None
    """Bytes of its data, as they came; None where that is not known. This and its batch are written with a new row
    only."""
    differed_at: float | None = None
    """When a request first came with this id and other content. `Store.differing` fills it, never `record`."""

    @property
    def final(self) -> bool:
        """Whether this row never changes its outcome again."""
        return FINAL[self.outcome]

    def ended_by(self, write: Row) -> bool:
        """Whether `write` made this row final.

        Only the fields that make a row final are compared: a write keeps others of an older row. A database keeps times
        in microseconds.
        """
        if self.finished_at is None or write.finished_at is None:
            return False
        return (
            self.boot == write.boot
            and self.outcome is write.outcome
            and self.reason is write.reason
            and abs(self.finished_at - write.finished_at) < 1e-5
        )


def columns_of(rows: Iterable[Row]) -> Any:
    """The fields of these rows, one or more, each with the values of all rows. What is made of many rows reads them so:
    to find the fields of each row by their names takes longer than all that is done with them."""
    columns: Any = zip(*map(msgspec.structs.astuple, rows), strict=True)
    return Row(*columns)


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """An outcome to send back over AMQP: to each queue of `replies`, and on `push.outcomes`."""

    row: Row
    replies: tuple[Reply, ...] = ()
    announce: bool = True
    """False: only to `replies`. It answers a repeat, whose outcome was announced before."""


class DueFallback(NamedTuple):
    """A message for `push.fallback`: its push was still unproven when its time had come."""

    row: Row
    """With its data, and as it was when the fallback was claimed."""
    routing_key: str


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A message for `push.dead`; its row is already written."""

    push_id: str
    reason: Reason
    detail: str
    body: bytes
    properties: Properties


class LateProof(NamedTuple):
    """Proof that came after the outcome. It fills `late_at` and `proven_at` where they are null, and nothing else."""

    key: RowKey
    at: float


class Difference(NamedTuple):
    """A request that came with a row's id and other content. It fills `differed_at` where it is null, nothing else."""

    key: RowKey
    at: float


def merged(*lists: Iterable[Reply]) -> tuple[Reply, ...]:
    """All these replies in order, each once."""
    return tuple(dict.fromkeys(reply for replies in lists for reply in replies))
