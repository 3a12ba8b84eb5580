"""A settlement on real parts of the core, with its ports in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.adapters.memory import MemoryStore
from bridge.core.inflight.flight import Flight, Message
from bridge.core.model.outcomes import Outcome, Proof
from bridge.core.model.pushes import Properties, PushRequest, ToUser
from bridge.core.model.rows import DeadLetter, Receipt, Reply, Row, RowKey
from bridge.core.ports.broker import AckToken
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.settlement import Settlement
from bridge.core.settlement.worklist import Worklist
from tests.support.core import ManualClock, QuietHooks, QuietMetrics, RecordingAcks, RecordingErrors


class Publisher:
    """Fills Receipts and DeadLetters: keeps what it is given, refuses while `refusing`."""

    def __init__(self, store: MemoryStore, acks: RecordingAcks) -> None:
        self.sent: list[Receipt] = []
        self.buried: list[DeadLetter] = []
        self.refusing = False
        self.blocked = False
        self._acks = acks
        self.acked_before: list[int] = []

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        self.acked_before.append(len(self._acks.acked))
        await asyncio.sleep(0)
        if self.refusing:
            return receipts
        self.sent.extend(receipts)
        return ()

    def final_receipts(self) -> int:
        """How many ends were announced."""
        return sum(r.row.final for r in self.sent)

    def replies_of(self, push_id: str, outcome: Outcome) -> list[Reply]:
        """To whom it was said that a push has this outcome."""
        return [
            reply
            for r in self.sent
            if r.row.key.push_id == push_id and r.row.outcome is outcome
            for reply in r.replies
        ]

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        await asyncio.sleep(0)
        if self.refusing:
            return letters
        self.buried.extend(letters)
        return ()


class House:
    """A settlement on real parts of the core, with its ports in memory."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(clock=self.clock)
        self.acks = RecordingAcks()
        self.publisher = Publisher(self.store, self.acks)
        self.errors = RecordingErrors()
        self.hooks = QuietHooks()
        self.gate = Gate()
        self.settled: list[Flight] = []
        metrics = QuietMetrics()
        self.superseded: list[Row] = []
        self.worklist = Worklist(metrics=metrics, clock=self.clock)
        self.settlement = Settlement(
            worklist=self.worklist,
            store=self.store,
            logs=(),
            receipts=self.publisher,
            dead_letters=self.publisher,
            acks=self.acks,
            hooks=self.hooks,
            metrics=metrics,
            errors=self.errors,
            clock=self.clock,
            gate=self.gate,
            node="n1",
            boot="b1",
            on_settled=lambda flight, row: self.settled.append(flight),
            on_stored=lambda flight, row: None,
            on_superseded=self.superseded.extend,
        )
        self._tags = iter(range(1, 100_000))

    def message(self, reply_to: str = "", *, redelivered: bool = False) -> Message:
        properties = Properties(reply_to=reply_to, correlation_id="c", redelivered=redelivered)
        token = AckToken(1, next(self._tags))
        return Message(token, properties, published_at=self.clock.now, taken_at=self.clock.now)

    def flight(self, push_id: str, message: Message, user: str = "u1") -> Flight:
        request = PushRequest(id=push_id, target=ToUser(user), data=b"1", confirm=Proof.RECEIVED)
        flight = Flight.of(request, user, message, self.clock.mono)
        flight.addressed(1)
        flight.handed(self.clock.now)
        message.open += 1
        return flight

    def row(self, push_id: str, user: str = "u1") -> Row:
        return self.store.rows[RowKey("", push_id, user)]


@asynccontextmanager
async def house() -> AsyncIterator[House]:
    built = House()
    task = asyncio.create_task(built.settlement.run(), name="settlement")
    try:
        yield built
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
