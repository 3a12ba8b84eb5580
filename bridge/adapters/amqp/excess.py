"""The rights that a user of the broker has and the bridge does not need.

AMQP can't ask what a user may do. So the broker is asked for something impossible under names that the bridge does not
use, as in `bridge.adapters.amqp.check`: it refuses with 403 if the user may not do it, and with another code if it may.

| to learn whether this user may | the broker is asked to | which it refuses with |
|---|---|---|
| configure queues that are not the bridge's | declare one with `x-expires` 0 | 406 |
| read queues that are not the bridge's | consume one that does not exist | 404 |
| write to exchanges that are not the bridge's | bind `amq.topic` to a source that does not exist | 404 |
| configure the topology, with BRIDGE_DECLARE=passive | declare `push.requests` with `x-expires` 0 | 406 |

This can't see the tags of a user (`administrator`), its rights in other vhosts, nor what else its three patterns fit.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, cast

import aio_pika
import aiormq
import aiormq.abc
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.adapters.amqp.check import PERMISSIONS
from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel, opened
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.topology import REQUESTS, DeclareMode
from bridge.adapters.finding import Finding
from bridge.core.errors import BrokerUnavailable

PASSIVE_PERMISSIONS: Final = (
    r"'^(push\.(taker(\.[0-9]+)?$|node\.)|amq\.gen)'"
    r" '^(push|push\.(dead|fallback|inbound|outcomes|sessions)|amq\.default)$'"
    r" '^(push\.((requests|taker)(\.[0-9]+)?$|(fallen|control)$|node\.)|amq\.gen)'"
)
"""Configure, write and read of a bridge with BRIDGE_DECLARE=passive; deploy/rabbitmq/users.sh sets the same."""

Low: TypeAlias = aiormq.abc.AbstractChannel


async def findings(url: str, mode: DeclareMode) -> list[Finding]:
    """One warning that names what is not needed, or one line that none was found. Raises BrokerUnavailable."""
    stranger = f"bridge.check.{uuid.uuid4().hex}"

    async def declare(name: str, low: Low) -> None:
        await low.queue_declare(name, durable=True, arguments={"x-expires": 0})

    async def consume(low: Low) -> None:
        await low.basic_consume(stranger, never_called)

    async def bind(low: Low) -> None:
        await low.exchange_bind(destination="amq.topic", source=stranger)

    asked: list[tuple[str, Callable[[Low], Awaitable[None]]]] = [
        ("configure any queue", lambda low: declare(stranger, low)),
        ("write to any exchange", bind),
        ("read any queue", consume),
    ]
    if mode is DeclareMode.PASSIVE:
        asked.append((f"configure {REQUESTS}", lambda low: declare(REQUESTS, low)))
    async with opened(url, "bridge check", lambda events: None, lambda cause: None) as (connection, _):
        may = [what for what, ask in asked if await _may(connection, what, ask)]
        assert connection.transport is not None
        low = cast(aiormq.Connection, connection.transport.connection)
        user, vhost = low.url.user or "guest", low.vhost
    if not may:
        words = f"user {user} has no more rights than it needs, as far as AMQP can tell: not seen are its tags and"
        return [Finding("ok", "excess", f"{words} its rights in other vhosts")]
    enough = PASSIVE_PERMISSIONS if mode is DeclareMode.PASSIVE else PERMISSIONS
    command = f"rabbitmqctl set_permissions -p {shlex.quote(vhost)} {shlex.quote(user)} {enough}"
    words = f"user {user} has more rights than it needs: it may {', '.join(may)}"
    return [Finding("warn", "excess", f"{words}: {command}")]


async def _may(connection: aio_pika.Connection, what: str, ask: Callable[[Low], Awaitable[None]]) -> bool:
    low = await channel(connection, confirms=False)
    try:
        async with border(what, STEP_TIMEOUT):
            await ask(low)
    except BrokerUnavailable as error:
        # Each refusal closes the channel.
        if isinstance(error.__cause__, ChannelAccessRefused):
            return False
        if isinstance(error.__cause__, ChannelNotFoundEntity | ChannelPreconditionFailed):
            return True
        raise
    await close_channel(low)
    return True
