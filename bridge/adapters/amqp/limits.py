"""Check that the limits of vhost and user allow the connections, channels and queues of `bridge serve`.

All of them are opened at once, as `serve` does, and closed again. https://www.rabbitmq.com/docs/vhosts#limits and
https://www.rabbitmq.com/docs/user-limits
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final

import aio_pika
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource, ChannelNotFoundEntity

from bridge.adapters.amqp.connection import STEP_TIMEOUT, Tap, border, channel, look_at, opened
from bridge.adapters.amqp.turn import LOCK
from bridge.adapters.finding import Finding
from bridge.core.errors import BrokerRefused, BrokerUnavailable

CHANNELS: Final[Mapping[str, int]] = {
    "consumer": 3,
    "publisher": 1,
    "inbound": 1,
    "ops": 2,
    "nodes": 2,
}
"""The connections of `bridge serve`, and how many channels each has at most. The consumer has one to take messages, one
for its turn and one to look at queues; the ops port has one to publish and one for receipts; the one to other nodes has
one to listen and one to publish."""
OWN_QUEUES: Final = 2
"""Queues besides those of the topology: one for the receipts of the ops port, and one for letters of other nodes."""
CLOSING: Final = 2.0
"""Seconds in which a refusal does not count: the broker still counts a connection that was just closed."""
_STEP: Final = 0.2


async def limits(url: str, vhost: str, user: str, missing: int) -> list[Finding]:
    """What the broker's limits refuse; `missing` queues are still to be declared.

    It uses connections of its own, since the broker closes one that has too many channels, and closes all of them.
    Raises BrokerUnavailable.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + CLOSING
    while True:
        found = await _tried(url, missing)
        if found is None:
            words = f"{len(CHANNELS)} connections, {sum(CHANNELS.values())} channels and the queues of `bridge serve`"
            return [Finding("ok", "limits", f"{words} at once")]
        if loop.time() > give_up:
            words, kind = found
            mend = f"rabbitmqctl set_vhost_limits -p {vhost} (it replaces what list_vhost_limits shows)"
            if kind != "max-queues":
                mend += f", or set_user_limits {user}"
            return [Finding("fail", "limits", f"`bridge serve` {words}: {mend}: {kind}")]
        await asyncio.sleep(_STEP)


async def _tried(url: str, missing: int) -> tuple[str, str] | None:
    """Open and declare everything once; returns what is refused and the name of the limit, or None."""
    held: list[tuple[aio_pika.Connection, Tap]] = []
    async with AsyncExitStack() as stack:
        try:
            for name in CHANNELS:
                made = opened(url, f"bridge check {name}", lambda events: None, lambda cause: None)
                held.append(await stack.enter_async_context(made))
        except BrokerRefused as refused:
            return (
                f"has {len(CHANNELS)} connections at once, and got {len(held)}: {refused.cause}",
                "max-connections",
            )
        lows: list[AbstractChannel] = []
        for (connection, tap), wanted in zip(held, CHANNELS.values(), strict=True):
            for _ in range(wanted):
                try:
                    lows.append(await channel(connection, confirms=False))
                except BrokerUnavailable as away:
                    said = str(tap.closed) if tap.closed is not None else away.cause
                    return (
                        f"has {sum(CHANNELS.values())} channels at once, and got {len(lows)}: {said}",
                        "max-channels",
                    )
        if refusal := await _queues(lows[: CHANNELS["consumer"]], missing):
            return refusal, "max-queues"
    return None


async def _queues(lows: Sequence[AbstractChannel], missing: int) -> str:
    """Declare as many queues as `serve` would, under other names and exclusive, and delete them.

    Returns what is refused, or an empty text. Each refusal costs a channel.
    """
    look, low, spare = lows
    wanted = missing + OWN_QUEUES + (0 if await _taken(look) else 1)
    made: list[str] = []
    refusal = ""
    try:
        for _ in range(wanted):
            name = f"push.check.{uuid.uuid4().hex}"
            async with border("declare a queue", STEP_TIMEOUT):
                await low.queue_declare(name, exclusive=True, arguments={"x-queue-type": "classic"})
            made.append(name)
    except BrokerUnavailable as refused:
        # Without permission for these names: other checks tell of the names that matter.
        if not isinstance(refused.__cause__, ChannelAccessRefused):
            refusal = f"declares {wanted} queues more, and could have {len(made)}: {refused.cause}"
    async with border("delete queues", STEP_TIMEOUT):
        for name in made:
            await spare.queue_delete(name)
    return refusal


async def _taken(low: AbstractChannel) -> bool:
    """Whether a bridge holds the queue of its turn."""
    try:
        await look_at(low, LOCK)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelLockedResource):
            return True
        if isinstance(error.__cause__, ChannelNotFoundEntity | ChannelAccessRefused):
            return False
        raise
    return True
