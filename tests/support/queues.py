"""Looks at queues of the broker, as a stranger does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika

ENVELOPE = ("bridge.v1.json",)


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
