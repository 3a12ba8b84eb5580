"""What Receipts and DeadLetters must do, run against each implementation: in memory, and a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import aio_pika
import pytest

from bridge.adapters.amqp_publish import Publisher
from bridge.adapters.amqp_topology import DEAD, OUTCOMES
from bridge.devservers import Servers
from bridge.model import DeadLetter, Outcome, Properties, Reason, Receipt, Reply, Row, RowKey
from bridge.ports import DeadLetters, Receipts
from tests.amqp import CLOCK, bound_queue, described, drained_dead, memory_alarm, raw_channel
from tests.core import RecordingErrors, until
from tests.memory_broker import MemoryBroker


def row(push_id: str = "p1", outcome: Outcome = Outcome.RECEIVED, event: str = "order.paid", **more: object) -> Row:
    made: dict[str, object] = {
        "key": RowKey("", push_id, "u1"),
        "outcome": outcome,
        "reason": Reason.PONG,
        "node": "n",
        "boot": "b",
        "published_at": 1_800_000_000.0,
        "taken_at": 1_800_000_000.5,
        "event": event,
    }
    return Row(**(made | more))  # type: ignore[arg-type]


class House(Protocol):
    """One implementation, and a look at what comes out of it."""

    receipts: Receipts
    letters: DeadLetters

    async def outcome(self) -> tuple[str, bytes]:
        """The next receipt on push.outcomes: its routing key and body."""

    async def reply(self) -> tuple[str, bytes]:
        """The next receipt in the reply queue: its correlation id and body."""

    async def buried(self) -> tuple[str, str, str, bytes]:
        """The next dead letter: push id, reason, detail, body."""

    async def silent(self) -> bool:
        """Whether there is nothing more on push.outcomes and in the reply queue."""

    async def block(self) -> None:
        """Make publishing impossible, so that the implementation knows it."""

    async def unblock(self) -> None: ...


class MemoryHouse:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.receipts: Receipts = self.broker
        self.letters: DeadLetters = self.broker

    async def outcome(self) -> tuple[str, bytes]:
        published = self.broker.outcomes.pop(0)
        return published.routing_key, published.body

    async def reply(self) -> tuple[str, bytes]:
        published = next(p for p in self.broker.replies if p.routing_key == REPLY_QUEUE)
        self.broker.replies.remove(published)
        return published.correlation_id, published.body

    async def buried(self) -> tuple[str, str, str, bytes]:
        letter = self.broker.buried.pop(0)
        return letter.push_id, letter.reason.value, letter.detail, letter.body

    async def silent(self) -> bool:
        return not self.broker.outcomes and not [p for p in self.broker.replies if p.routing_key == REPLY_QUEUE]

    async def block(self) -> None:
        self.broker.blocked = True

    async def unblock(self) -> None:
        self.broker.blocked = False


REPLY_QUEUE = "answers"


class RabbitHouse:
    def __init__(
        self,
        publisher: Publisher,
        servers: Servers,
        outcomes: asyncio.Queue[Mapping[str, object]],
        replies: asyncio.Queue[Mapping[str, object]],
        dead: asyncio.Queue[Mapping[str, object]],
    ) -> None:
        self.receipts: Receipts = publisher
        self.letters: DeadLetters = publisher
        self._publisher = publisher
        self._servers = servers
        self._outcomes = outcomes
        self._replies = replies
        self._dead = dead

    async def outcome(self) -> tuple[str, bytes]:
        seen = await _next(self._outcomes)
        return str(seen["routing_key"]), _bytes(seen["body"])

    async def reply(self) -> tuple[str, bytes]:
        seen = await _next(self._replies)
        return str(seen["correlation_id"]), _bytes(seen["body"])

    async def buried(self) -> tuple[str, str, str, bytes]:
        seen = await _next(self._dead)
        headers = seen["headers"]
        assert isinstance(headers, dict)
        return headers["x-push-id"], headers["x-push-reason"], headers["x-push-detail"], _bytes(seen["body"])

    async def silent(self) -> bool:
        """A receipt sent after all others is the next to be seen, if there is nothing before it."""
        last = Receipt(row("last"), (Reply(REPLY_QUEUE, "last"),))
        assert not await self.receipts.send([last])
        announced = json.loads((await self.outcome())[1])["push_id"]
        return announced == "last" and (await self.reply())[0] == "last"

    async def block(self) -> None:
        self._servers.rabbit.evaluate(memory_alarm(True))
        await until(lambda: self._publisher.blocked)

    async def unblock(self) -> None:
        self._servers.rabbit.evaluate(memory_alarm(False))
        await until(lambda: not self._publisher.blocked)


async def _next(queue: asyncio.Queue[Mapping[str, object]]) -> Mapping[str, object]:
    async with asyncio.timeout(10):
        return await queue.get()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value
