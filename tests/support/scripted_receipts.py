"""A consumer in the place of a bridge: it answers each request with the receipts that a test has set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.adapters.amqp.link import LinkState
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Receipt, Reply, RowKey
from bridge.core.ports.broker import Arrival
from tests.support.amqp import RecordingIntake, consumer, publisher
from tests.support.rows import row
from tests.support.waiting import until

PENDING = (Outcome.PENDING, Reason.AWAITING_PROOF)
RECEIVED = (Outcome.RECEIVED, Reason.PONG)
PARKED = (Outcome.STORED, Reason.AWAITING_PROOF)
KEPT = (Outcome.STORED, Reason.NO_SESSION)


class ScriptedReceipts(RecordingIntake):
    """Answers each request with receipts for each user, by default a first one that is not final."""

    def __init__(self, publisher: ReceiptPublisher) -> None:
        super().__init__()
        self._publisher = publisher
        self.answers: dict[str, Sequence[tuple[Outcome, Reason]]] = {}
        """What each user is answered with, where it is something else."""
        self.tasks: set[asyncio.Task[Sequence[Receipt]]] = set()

    def arrived(self, batch: Sequence[Arrival]) -> None:
        super().arrived(batch)
        receipts = []
        for arrival in batch:
            request = json.loads(arrival.body)
            to = request["to"]
            for user in to.get("users") or [to.get("user", "u1")]:
                reply = Reply(arrival.properties.reply_to, arrival.properties.correlation_id)
                key = RowKey("", request["id"], user)
                for outcome, reason in self.answers.get(user, (PENDING, RECEIVED)):
                    receipts.append(Receipt(row(key=key, outcome=outcome, reason=reason), (reply,)))
        task = asyncio.create_task(self._publisher.send(receipts))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@asynccontextmanager
async def scripted_receipts(url: str) -> AsyncIterator[ScriptedReceipts]:
    """A consumer of this broker's queues that answers by its `answers`."""
    async with publisher(url) as out:
        intake = ScriptedReceipts(out)
        taker = consumer(url)
        intake.acks = taker
        async with taker.taking(intake):
            await until(lambda: taker.state is LinkState.OPEN)
            yield intake
