"""Looks at queues of the broker, as a stranger does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bridge.adapters.amqp import connection as low_level
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.frames import Delivered, Event
from bridge.adapters.amqp.topology import DEAD, FALLEN, REQUESTS

ENVELOPE = ("bridge.v1.json",)
MARKER = b"the last message"


@asynccontextmanager
async def channel(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel()


async def ready_messages(url: str, queue: str) -> int:
    """Messages that the broker would give out now; with no consumer connected, all that are not acked."""
    async with channel(url) as open_channel:
        declared = await open_channel.declare_queue(queue, passive=True)
        count = declared.declaration_result.message_count
        assert count is not None
        return count


async def drained(url: str, queue: str) -> list[AbstractIncomingMessage]:
    """Take all that is in a queue, what was given out and not acked before included, and leave it empty.

    A marker is published behind it. A single active consumer gets nothing before the one before it is gone,
    and what that one had not acked comes first: so whoever sees the marker has seen everything.
    """
    found: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(url) as connection, connection.channel() as opened_channel:
        await opened_channel.default_exchange.publish(aio_pika.Message(MARKER), queue)
        await (await opened_channel.get_queue(queue)).consume(found.put)
        messages: list[AbstractIncomingMessage] = []
        async with asyncio.timeout(60):
            while (message := await found.get()).body != MARKER:
                messages.append(message)
                if len(messages) % 1000 == 0:  # a quorum queue gives out 2,000 at most before it wants an ack
                    await message.ack(multiple=True)
        await message.ack(multiple=True)
    return messages


async def at_rest(url: str) -> bool:
    """Whether nothing is left in the queues that the bridge takes from."""
    return not await drained(url, REQUESTS) and not await drained(url, FALLEN)


@asynccontextmanager
async def listening(
    url: str, exchange: str = "", *, key: str = "#", name: str = ""
) -> AsyncIterator[asyncio.Queue[Mapping[str, object]]]:
    """What reaches an exchange, or the queue `name`, from now on: body, routing key, properties."""
    seen: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()

    async def received(message: AbstractIncomingMessage) -> None:
        seen.put_nowait(described(message))

    async with await aio_pika.connect(url) as connection, connection.channel() as opened_channel:
        queue = await opened_channel.declare_queue(name or None, exclusive=True)
        if exchange:
            await queue.bind(exchange, key)
        await queue.consume(received, no_ack=True)
        yield seen


@asynccontextmanager
async def raw_deliveries(
    url: str, queue: str, *, held: bool = False, bound_to: str = ""
) -> AsyncIterator[asyncio.Queue[Delivered]]:
    """What reaches a queue, or one that is made under this name, as our own decoder reads it.

    `held`: it goes back to the queue at the end. `bound_to`: the queue gets a copy of all that reaches this exchange.

    The library would give up its connection over a property that is not UTF-8.
    """
    seen: asyncio.Queue[Delivered] = asyncio.Queue()

    def happened(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delivered):
                seen.put_nowait(event)

    async with low_level.opened(url, "test reader", happened, lambda cause: None) as (connection, tap):
        low = await low_level.channel(connection, confirms=False)
        if queue not in (DEAD, REQUESTS, FALLEN):
            await low.queue_declare(queue, exclusive=True)
        if bound_to:
            await low.queue_bind(queue, bound_to, "#")
        tap.watch(low.number)
        await low.basic_consume(queue, never_called, no_ack=not held)
        yield seen


def described(message: AbstractIncomingMessage) -> Mapping[str, object]:
    return {
        "body": message.body,
        "routing_key": message.routing_key,
        "correlation_id": message.correlation_id,
        "message_id": message.message_id,
        "content_type": message.content_type,
        "persistent": message.delivery_mode == 2,
        "type": message.type,
        "app_id": message.app_id,
        "headers": dict(message.headers),
    }
