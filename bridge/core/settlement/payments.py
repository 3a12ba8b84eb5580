"""The queue from the writer to the payer: batches of committed rows, and what must be done for them before the acks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.inflight.held import HeldMessage
from bridge.core.model.rows import Receipt, Reply, Row, RowKey


class Payment(NamedTuple):
    """What the payer must do for a batch of committed rows."""

    receipts: list[Receipt]
    owed_by_row: set[RowKey]
    """Rows that were written with their debt: it is cleared when paid, otherwise left to the sweep."""
    notes: dict[RowKey, list[tuple[HeldMessage, tuple[Reply, ...]]]]
    """By row that is not final yet: the messages whose replies must be noted in it."""
    for_logs: list[Row]
    """Transitions for the logs other than the store."""
    messages: list[tuple[HeldMessage, RowKey]]
    """One entry for each message and row that are settled once the rest of this payment is done."""
    released: list[HeldMessage]
    """Messages whose rows were all settled before `Worklist.release` was called."""
    sweep: bool = False
    """Whether to sweep debts and late proofs afterwards."""
    rows: int = 0
    """Rows and answers in this payment; see `Worklist.unpaid`."""


def payment_of(
    receipts: list[Receipt] | None = None,
    owed_by_row: set[RowKey] | None = None,
    messages: list[tuple[HeldMessage, RowKey]] | None = None,
    *,
    for_logs: list[Row] | None = None,
    sweep: bool = False,
    rows: int = 0,
) -> Payment:
    """A payment with these parts; the rest is empty."""
    return Payment(receipts or [], owed_by_row or set(), {}, for_logs or [], messages or [], [], sweep, rows)


class Debt(NamedTuple):
    """Replies to be noted in their row. The message, if any, stays unacked until they are."""

    key: RowKey
    replies: tuple[Reply, ...]
    message: HeldMessage | None


class Payments:
    """The payments that wait for the payer, and the rows that are being paid.

    It has no bound of its own: a row must never wait for a broker that is silent. `Worklist.unpaid` is bounded.

    What waits is paid together. A payment takes as long as the broker and the database need for an answer, so a payer
    that took one small batch after the other would be slower than the writer, and on a busy machine it was.
    """

    def __init__(self, rows_most: int) -> None:
        """`rows_most`: in payments that are paid together."""
        self._rows_most = rows_most
        self._queue: asyncio.Queue[Payment] = asyncio.Queue()
        self._first: Payment | None = None
        """The next one; None: the first of the queue."""
        self.being_paid: set[RowKey] = set()
        """Rows whose debt is being paid: the sweep must not pay it as well."""
        self.sweep_waits = False
        """Whether one of the waiting payments has a sweep."""

    def __len__(self) -> int:
        return self._queue.qsize() + (self._first is not None)

    def put(self, payment: Payment) -> None:
        """Queue a payment after those that wait."""
        self._queue.put_nowait(payment)

    async def next(self) -> Payment:
        """Wait for the next payment, and return it with those behind it, up to one that has a row of theirs: a row is
        paid in the order in which it was written. May be cancelled."""
        payment, self._first = self._first, None
        if payment is None:
            payment = await self._queue.get()
        if self._queue.empty():
            return payment
        keys = _keys(payment)
        while not self._queue.empty():
            more = self._queue.get_nowait()
            its = _keys(more)
            if payment.rows + more.rows > self._rows_most or not keys.isdisjoint(its):
                self._first = more
                break
            keys |= its
            payment = _together(payment, more)
        return payment


def _keys(payment: Payment) -> set[RowKey]:
    """The rows for which something is sent or noted."""
    return {receipt.row.key for receipt in payment.receipts} | payment.owed_by_row | payment.notes.keys()


def _together(payment: Payment, more: Payment) -> Payment:
    payment.receipts.extend(more.receipts)
    payment.owed_by_row.update(more.owed_by_row)
    payment.notes.update(more.notes)
    payment.for_logs.extend(more.for_logs)
    payment.messages.extend(more.messages)
    payment.released.extend(more.released)
    return payment._replace(sweep=payment.sweep or more.sweep, rows=payment.rows + more.rows)


def in_parts(receipt: Receipt, replies_max: int) -> Sequence[Receipt]:
    """Split a receipt with very many replies into several, each small enough to be confirmed in time."""
    replies = receipt.replies
    if len(replies) <= replies_max:
        return (receipt,)
    return [
        Receipt(receipt.row, replies[at : at + replies_max], announce=receipt.announce and at == 0)
        for at in range(0, len(replies), replies_max)
    ]
