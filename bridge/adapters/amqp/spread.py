"""The exchange that spreads requests over partitions: by the hash of the routing key, so that a key keeps its order.

    push ──"#"──> push.partitions ──hash of the routing key──> push.requests, push.requests.1, push.requests.2 ...

The number of partitions is fixed once they are made: with another number the same key would go to another queue, and
overtake what waits in the first. AMQP shows no bindings, so what is there is told by the queues.

| the broker has | and the setting says | then |
|---|---|---|
| `push.requests.<n>` | n partitions | refuse: there are more |
| `push.requests.1`, and not the last of n | n partitions | refuse: there are fewer (they are declared last to first) |
| only `push.requests`, empty and not consumed | n > 1 | make the partitions |
| only `push.requests`, with messages or a consumer | n > 1 | refuse: what waits there would be overtaken |
"""

from __future__ import annotations

import re
from typing import Final

import aio_pika
import aiormq.abc
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel, look_at
from bridge.adapters.amqp.topology import (
    PUSH,
    REQUESTS,
    DeclareMode,
    TopologyError,
    ensure,
    named,
    requests_queue,
    topology_of,
)
from bridge.core.errors import BrokerUnavailable

SPREAD: Final = "push.partitions"
"""The exchange that spreads."""
KINDS: Final = ("x-consistent-hash", "x-modulus-hash")
"""Types that do it: of the plug-in rabbitmq_consistent_hash_exchange, and of rabbitmq_sharding."""
PLUGIN: Final = "rabbitmq_consistent_hash_exchange"
_UNKNOWN_TYPE: Final = re.compile(r"(unknown|invalid) exchange type")
_WEIGHT: Final = "1"
"""The binding key, which says to a consistent hash how much of all a queue gets. Others ignore it."""


def plugin_missing(kind: str, cause: str) -> str:
    """A sentence for operators where the broker's words say that it does not know an exchange type; else empty."""
    if not _UNKNOWN_TYPE.search(cause):
        return ""
    return (
        f"exchange {SPREAD}: the broker does not know the type {kind}, which BRIDGE_PARTITIONS needs: "
        f"rabbitmq-plugins enable {PLUGIN}"
    )


def too_many(partitions: int) -> str:
    """A sentence for operators: there are more partitions than this."""
    return (
        f"queue {requests_queue(partitions)} is there, so there are more than {partitions} partitions: "
        "set BRIDGE_PARTITIONS to their number"
    )


def too_few(partitions: int) -> str:
    """A sentence for operators: there are fewer partitions than this."""
    return (
        f"queue {requests_queue(1)} is there and {requests_queue(partitions - 1)} is not, so there are fewer than "
        f"{partitions} partitions: set BRIDGE_PARTITIONS to their number"
    )


async def other_number(connection: aio_pika.Connection, partitions: int) -> str:
    """A sentence for operators where there are partitions, and not so many; else empty. Raises BrokerUnavailable."""
    if await is_there(connection, requests_queue(partitions)):
        return too_many(partitions)
    if partitions > 2 and not await is_there(connection, requests_queue(partitions - 1)):
        return too_few(partitions) if await is_there(connection, requests_queue(1)) else ""
    return ""


def waiting(messages: int, consumers: int) -> str:
    """A sentence for operators where partitions can't be made now; else empty."""
    if not messages and not consumers:
        return ""
    return (
        f"queue {REQUESTS} has {messages} messages and {consumers} consumers: partitions are made while it is empty "
        "and no bridge runs, or new pushes would overtake old ones"
    )


class Spread:
    """Ensures the topology for a number of partitions."""

    def __init__(self, partitions: int, mode: DeclareMode, kinds: tuple[str, ...] = KINDS) -> None:
        """`kinds`: exchange types, each is tried at another connection: some brokers end it over an unknown one."""
        self.partitions = partitions
        self._mode = mode
        self._kinds = kinds
        self._tries = 0
        self._checked = False

    async def ensure(self, connection: aio_pika.Connection) -> None:
        """Declare the topology, or check that it is there; idempotent. Raises as `topology.ensure`."""
        there = None
        if not self._checked:
            # Once: a broker logs each look at a queue that is missing.
            there = await self._refuse_other_number(connection)
        if self.partitions > 1 and self._mode is DeclareMode.ACTIVE and there is False:
            await self._refuse_what_waits(connection)
        await ensure(connection, self._mode, topology_of(self.partitions))
        if self.partitions > 1:
            await self._ensure_exchange(connection)
        if not self._checked and self.partitions == 1:
            await self._undo_if_overtaken(connection)
        self._checked = True

    async def _refuse_other_number(self, connection: aio_pika.Connection) -> bool:
        """Whether there are partitions already. Raises TopologyError where there is another number of them."""
        if problem := await other_number(connection, self.partitions):
            raise TopologyError([problem])
        return self.partitions > 1 and await is_there(connection, requests_queue(1))

    async def _refuse_what_waits(self, connection: aio_pika.Connection) -> None:
        if not await is_there(connection, REQUESTS):
            return
        low = await channel(connection, confirms=False)
        declared = await look_at(low, REQUESTS)
        await close_channel(low)
        if problem := waiting(declared.message_count or 0, declared.consumer_count or 0):
            raise TopologyError([problem])

    async def _ensure_exchange(self, connection: aio_pika.Connection) -> None:
        if not await exchange_is_there(connection):
            if self._mode is DeclareMode.PASSIVE:
                raise TopologyError([f"exchange {SPREAD} is missing"])
            await self._declare_exchange(connection)
        if self._mode is DeclareMode.PASSIVE:
            return
        low = await channel(connection, confirms=False)
        for partition in range(self.partitions):
            queue = requests_queue(partition)
            async with named(f"binding of {queue} to {SPREAD}"):
                await low.queue_bind(queue, SPREAD, _WEIGHT)
        async with named(f"binding of {SPREAD} to {PUSH}"):
            await low.exchange_bind(destination=SPREAD, source=PUSH, routing_key="#")
        # Only now: what comes in between is in two queues, and known by its id. The other way round it would be lost.
        async with named(f"binding of {REQUESTS} to {PUSH}"):
            await low.queue_unbind(REQUESTS, PUSH, "#")
        await close_channel(low)

    async def _declare_exchange(self, connection: aio_pika.Connection) -> None:
        kind = self._kinds[self._tries % len(self._kinds)]
        low = await channel(connection, confirms=False)
        try:
            async with named(f"exchange {SPREAD}"):
                await low.exchange_declare(SPREAD, exchange_type=kind, durable=True)
        except BrokerUnavailable as refused:
            problem = plugin_missing(self._kinds[0], refused.cause)
            if not problem:
                raise
            self._tries += 1
            raise TopologyError([problem]) from refused
        await close_channel(low)

    async def _undo_if_overtaken(self, connection: aio_pika.Connection) -> None:
        """Another node may have made partitions since the first look: then take back the binding to one queue."""
        if self._mode is DeclareMode.ACTIVE and await is_there(connection, requests_queue(1)):
            low = await channel(connection, confirms=False)
            async with named(f"binding of {REQUESTS} to {PUSH}"):
                await low.queue_unbind(REQUESTS, PUSH, "#")
            await close_channel(low)
            raise TopologyError([too_many(self.partitions)])


async def is_there(connection: aio_pika.Connection, queue: str) -> bool:
    """Whether a queue exists. Raises BrokerUnavailable."""
    low = await channel(connection, confirms=False)
    try:
        await look_at(low, queue)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return False
        raise
    await close_channel(low)
    return True


async def look_at_exchange(low: aiormq.abc.AbstractChannel) -> None:
    """Raises BrokerUnavailable where the exchange that spreads is missing; then the channel is closed, too."""
    async with border(f"look at exchange {SPREAD}", STEP_TIMEOUT):
        await low.exchange_declare(SPREAD, passive=True)


async def exchange_is_there(connection: aio_pika.Connection) -> bool:
    """Whether the exchange that spreads exists. Raises BrokerUnavailable."""
    low: aiormq.abc.AbstractChannel = await channel(connection, confirms=False)
    try:
        await look_at_exchange(low)
    except BrokerUnavailable as error:
        if isinstance(error.__cause__, ChannelNotFoundEntity):
            return False
        raise
    await close_channel(low)
    return True
