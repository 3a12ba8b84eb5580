"""What Receipts and DeadLetters must do, run against each implementation: in memory, and a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.amqp.topology import DEAD, OUTCOMES
from bridge.core.contract.receipts import receipt_body
from bridge.core.model.outcomes import Reason
from bridge.core.model.rows import Receipt, Reply
from bridge.core.ports.broker import DeadLetters, Receipts
from bridge.devservers import Servers
from tests.support.amqp import CLOCK, declare
from tests.support.broker_settings import memory_alarm
from tests.support.ports import RecordingErrors, RecordingPublisher
from tests.support.queues import listening
from tests.support.rows import letter, row
from tests.support.waiting import until

REPLY_QUEUE = "answers"


class Subject(Protocol):
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


class InMemory:
    def __init__(self) -> None:
        self._publisher = RecordingPublisher()
        self.receipts: Receipts = self._publisher
        self.letters: DeadLetters = self._publisher
        self._outcomes: list[tuple[str, bytes]] = []
        self._replies: list[tuple[str, bytes]] = []

    def _read(self) -> None:
        """Put what was sent where its readers look for it."""
        for receipt in self._publisher.sent:
            if receipt.announce:
                key = f"{receipt.row.outcome.value}.{receipt.row.event}"
                self._outcomes.append((key, receipt_body(receipt.row)))
            self._replies += [
                (reply.correlation_id, receipt_body(receipt.row, differs=reply.differs))
                for reply in receipt.replies
                if reply.queue == REPLY_QUEUE
            ]
        self._publisher.sent.clear()

    async def outcome(self) -> tuple[str, bytes]:
        self._read()
        return self._outcomes.pop(0)

    async def reply(self) -> tuple[str, bytes]:
        self._read()
        return self._replies.pop(0)

    async def buried(self) -> tuple[str, str, str, bytes]:
        letter = self._publisher.buried.pop(0)
        return letter.push_id, letter.reason.value, letter.detail, letter.body

    async def silent(self) -> bool:
        self._read()
        return not self._outcomes and not self._replies

    async def block(self) -> None:
        self._publisher.blocked = True

    async def unblock(self) -> None:
        self._publisher.blocked = False


class OnRabbitMQ:
    def __init__(
        self,
        publisher: ReceiptPublisher,
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
        # The alarm reaches connections after the answer, and RabbitMQ tells one of them that it is blocked only when
        # that publishes: so we publish until it does.
        probe = Receipt(row("probe"), (Reply("nowhere"),), announce=False)
        async with asyncio.timeout(20):
            while not self.receipts.blocked:
                assert list(await self.receipts.send([probe])) in ([probe], [])
                await asyncio.sleep(0)

    async def unblock(self) -> None:
        self._servers.rabbit.evaluate(memory_alarm(False))
        await until(lambda: not self._publisher.blocked)


async def _next(queue: asyncio.Queue[Mapping[str, object]]) -> Mapping[str, object]:
    async with asyncio.timeout(10):
        return await queue.get()


def _bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


@pytest.fixture(params=["memory", "rabbitmq"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield InMemory()
        return
    url: str = request.getfixturevalue("vhost")
    servers: Servers = request.getfixturevalue("servers")
    await declare(url)
    errors = RecordingErrors()
    async with AsyncExitStack() as stack:
        outcomes = await stack.enter_async_context(listening(url, OUTCOMES))
        replies = await stack.enter_async_context(listening(url, name=REPLY_QUEUE))
        dead = await stack.enter_async_context(listening(url, DEAD))
        publisher = await stack.enter_async_context(ReceiptPublisher(url, clock=CLOCK, errors=errors))
        await until(lambda: not publisher.blocked)
        stack.callback(servers.rabbit.evaluate, memory_alarm(False))
        yield OnRabbitMQ(publisher, servers, outcomes, replies, dead)
    assert errors.seen == []


async def test_a_receipt_goes_to_push_outcomes_by_outcome_and_event_and_to_every_reply(
    subject: Subject,
) -> None:
    ended = row()
    replies = (Reply(REPLY_QUEUE, "c1"), Reply(REPLY_QUEUE, "c2"))
    assert list(await subject.receipts.send([Receipt(ended, replies)])) == []
    assert await subject.outcome() == ("received.order.paid", receipt_body(ended))
    assert await subject.reply() == ("c1", receipt_body(ended))
    assert await subject.reply() == ("c2", receipt_body(ended))
    assert await subject.silent()


async def test_receipts_keep_their_order(subject: Subject) -> None:
    rows = [row(f"p{n}") for n in range(50)]
    assert not await subject.receipts.send([Receipt(r) for r in rows])
    for expected in rows:
        assert (await subject.outcome())[1] == receipt_body(expected)


async def test_the_answer_to_a_repeat_is_not_announced_again(subject: Subject) -> None:
    assert not await subject.receipts.send([Receipt(row(), (Reply(REPLY_QUEUE, "c1"),), announce=False)])
    assert (await subject.reply())[0] == "c1"
    assert await subject.silent()


async def test_a_receipt_that_nobody_wants_counts_as_sent(subject: Subject) -> None:
    nobody = Receipt(row(), (Reply("no-such-queue", "c1"),), announce=False)
    assert not await subject.receipts.send([nobody, Receipt(row(), announce=False)])
    assert await subject.silent()


async def test_nothing_to_send_is_sent(subject: Subject) -> None:
    assert list(await subject.receipts.send([])) == []
    assert list(await subject.letters.bury([])) == []


def blocked(subject: Subject) -> bool:
    return subject.receipts.blocked


async def test_while_blocked_everything_is_given_back_and_later_it_goes_on(subject: Subject) -> None:
    receipts = [Receipt(row("p1")), Receipt(row("p2"), (Reply(REPLY_QUEUE, "c2"),))]
    letters = [letter()]
    assert not blocked(subject)
    await subject.block()
    assert blocked(subject)
    assert list(await subject.receipts.send(receipts)) == receipts
    assert list(await subject.letters.bury(letters)) == letters
    await subject.unblock()
    assert not blocked(subject)
    assert not await subject.receipts.send(receipts)
    assert not await subject.letters.bury(letters)
    assert json.loads((await subject.outcome())[1])["push_id"] == "p1"
    assert (await subject.buried())[0] == "p1"


async def test_a_dead_letter_is_buried_with_its_reason_and_its_body_as_it_was(subject: Subject) -> None:
    assert not await subject.letters.bury(
        [letter("p1"), letter("p2", reason=Reason.POISON, body=b"\x00\xff")]
    )
    assert await subject.buried() == ("p1", "invalid", "to.user: expected a string", b'{"to":{"user":1}}')
    assert await subject.buried() == ("p2", "poison", "to.user: expected a string", b"\x00\xff")
