"""The publishing side of a broker in memory: fills Receipts and DeadLetters, for tests of the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.contract.receipts import receipt_body
from bridge.core.model.rows import DeadLetter, Receipt


class Published(NamedTuple):
    """What a reader of a queue sees."""

    exchange: str
    routing_key: str
    body: bytes
    correlation_id: str = ""


class MemoryBroker:
    """Confirms everything at once, unless it is blocked."""

    def __init__(self) -> None:
        self.blocked = False
        self.outcomes: list[Published] = []
        self.replies: list[Published] = []
        self.buried: list[DeadLetter] = []

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        if self.blocked:
            return receipts
        for receipt in receipts:
            row = receipt.row
            body = receipt_body(row)
            if receipt.announce:
                key = f"{row.outcome.value}.{row.event}"
                self.outcomes.append(Published("push.outcomes", key, body))
            for reply in receipt.replies:
                told = receipt_body(row, differs=True) if reply.differs else body
                self.replies.append(Published("", reply.queue, told, reply.correlation_id))
        return []

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        if self.blocked:
            return letters
        self.buried += letters
        return []
