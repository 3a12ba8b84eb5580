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
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Payment] = asyncio.Queue()
        self.being_paid: set[RowKey] = set()
        """Rows whose debt is being paid: the sweep must not pay it as well."""
        self.sweep_waits = False
        """Whether one of the waiting payments has a sweep."""

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, payment: Payment) -> None:
        """Queue a payment after those that wait."""
        self._queue.put_nowait(payment)

    async def next(self) -> Payment:
        """Wait for the next payment, and return it; may be cancelled."""
        return await self._queue.get()


def in_parts(receipt: Receipt, replies_max: int) -> Sequence[Receipt]:
    """Split a receipt with very many replies into several, each small enough to be confirmed in time."""
    replies = receipt.replies
    if len(replies) <= replies_max:
        return (receipt,)
    return [
        Receipt(receipt.row, replies[at : at + replies_max], announce=receipt.announce and at == 0)
        for at in range(0, len(replies), replies_max)
    ]
