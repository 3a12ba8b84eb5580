"""How many messages wait in our queues, by passive declares."""

from __future__ import annotations

from typing import NamedTuple

import aio_pika
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from bridge.adapters.amqp.connection import channel, close_channel, look_at
from bridge.adapters.amqp.topology import CONTROL, DEAD, FALLEN, requests_queue
from bridge.core.errors import BrokerUnavailable


class QueueDepth(NamedTuple):
    """What a passive declare tells of a queue. Unacknowledged messages are not counted."""

    name: str
    there: bool
    ready: int
    consumers: int
    hidden: bool = False
    """The broker does not let this user look at it: nobody knows whether it is there. From RabbitMQ 4.2.6 on it wants a
    right to the queue for that."""


async def depths(connection: aio_pika.Connection, partitions: int = 1) -> list[QueueDepth]:
    """The queues that bridges take from, and push.dead. Raises BrokerUnavailable."""
    found = []
    for name in (*map(requests_queue, range(partitions)), FALLEN, CONTROL, DEAD):
        # A queue that is missing costs the channel, so each gets its own.
        low = await channel(connection, confirms=False)
        try:
            declared = await look_at(low, name)
        except BrokerUnavailable as error:
            if not isinstance(error.__cause__, ChannelNotFoundEntity | ChannelAccessRefused):
                raise
            hidden = isinstance(error.__cause__, ChannelAccessRefused)
            found.append(QueueDepth(name, False, 0, 0, hidden))
        else:
            found.append(QueueDepth(name, True, declared.message_count or 0, declared.consumer_count or 0))
            await close_channel(low)
    return found
