"""How full the bridge's queues are, as a passive declare tells it."""

from __future__ import annotations

from bridge.adapters.amqp.connection import opened
from bridge.adapters.amqp.depths import QueueDepth, depths


async def queue_depths(url: str) -> list[QueueDepth]:
    """The queues that bridges take from, and push.dead. Raises BrokerUnavailable."""
    async with opened(url, "bridge audit", lambda events: None, lambda cause: None) as (connection, _):
        return await depths(connection)
