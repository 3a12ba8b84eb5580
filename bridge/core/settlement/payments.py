"""What the writer leaves to the payer: a batch of committed rows, and what is to be done about them before the acks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.inflight.held import HeldMessage
from bridge.core.model.rows import Receipt, Reply, Row, RowKey


class Payment(NamedTuple):
    """What the payer does about a batch of rows that are committed."""

    receipts: list[Receipt]
    owed_by_row: set[RowKey]
    """Rows that carry their debt themselves: cleared when paid, left to the sweep when not."""
    notes: dict[RowKey, list[tuple[HeldMessage, tuple[Reply, ...]]]]
    """By rows that are not final yet, the messages that want to hear of the outcome, and where."""
    for_logs: list[Row]
    """Transitions for the logs that are not the store."""
    messages: list[tuple[HeldMessage, RowKey]]
    """One entry for each message and row that are settled once the rest of this payment is done."""
    released: list[HeldMessage]
    """Messages whose rows were all settled before the last of them was named."""
    sweep: bool = False
    """Debts and late proofs of other rows are to be looked for afterwards."""
    rows: int = 0
    """How many it is about; see `Worklist.unpaid`."""


def payment_of(
    receipts: list[Receipt] | None = None,
    owed_by_row: set[RowKey] | None = None,
    messages: list[tuple[HeldMessage, RowKey]] | None = None,
    *,
    for_logs: list[Row] | None = None,
    sweep: bool = False,
    rows: int = 0,
) -> Payment:
    """A payment with this in it, and nothing else yet."""
    return Payment(receipts or [], owed_by_row or set(), {}, for_logs or [], messages or [], [], sweep, rows)


class Debt(NamedTuple):
    """Replies that could not be noted in their row; the message stays unacked until they are."""

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
        """Rows that owe, and whose debt is on its way: the sweep must not pay it as well."""
        self.sweep_waits = False
        """A sweep is among the payments."""

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, payment: Payment) -> None:
        """Pay it after those that wait."""
        self._queue.put_nowait(payment)

    async def next(self) -> Payment:
        """The next one; may be cancelled."""
        return await self._queue.get()


def in_parts(receipt: Receipt, replies_max: int) -> Sequence[Receipt]:
    """A receipt for very many replies as several, each small enough to be confirmed in time."""
    replies = receipt.replies
    if len(replies) <= replies_max:
        return (receipt,)
    return [
        Receipt(receipt.row, replies[at : at + replies_max], announce=receipt.announce and at == 0)
        for at in range(0, len(replies), replies_max)
    ]
