"""Decide which node consumes a partition of the requests; with one partition, push.requests.

The queue has a single active consumer, so the broker gives requests to one consumer at a time in any case. But it never
tells a consumer whether it is that one (AMQP 0-9-1 has no such message). So a node consumes only when it is its turn:

1. nobody consumes push.requests. A passive declare shows that, at no cost and without an error in the broker's log. It
   also shows a bridge of an older version, which has no turns;
2. it holds the lock: the exclusive queue `push.taker`, which exists as long as the connection that declared it
   (AMQP 0-9-1, queue.declare, `exclusive`). It decides between two nodes that look at the same moment.

A frozen process keeps both until the broker misses its heartbeats. So does an old connection of this node that the
broker has not noticed to be dead.

| the broker says | then |
|---|---|
| somebody consumes | stand by, look again |
| the same at the first look, and the lock is free | as before, but keep the lock, and log who that may be |
| nobody does, the lock is free | ACTIVE |
| nobody does, the lock is held | the holder is about to consume: stand by, look again |
| the same for `LOCK_PATIENCE` | the holder does not consume: consume without the lock, UNKNOWN |
| this user may not declare the lock | consume without it, UNKNOWN |
| somebody has declared an ordinary queue of its name | consume without it, UNKNOWN, and log how to fix it |

UNKNOWN becomes ACTIVE with the first request: only the active consumer gets one.
"""

from __future__ import annotations

import enum
import logging
import shlex
from collections.abc import Callable
from typing import cast

import aio_pika
import aiormq
import aiormq.abc
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel, look_at
from bridge.adapters.amqp.topology import requests_queue
from bridge.core.errors import BrokerUnavailable
from bridge.core.ports.clock import Clock

log = logging.getLogger("bridge")

LOCK = "push.taker"
"""The exclusive queue that the active node holds. Nothing is ever published to it. See `lock_of` for partitions."""
LOOK_EVERY = 0.5
"""Seconds between two looks of a node that stands by. A takeover takes no longer."""
LOCK_PATIENCE = 5.0
"""Seconds to wait for a lock whose holder does not consume."""


def lock_of(partition: int) -> str:
    """The lock of a partition."""
    return f"{LOCK}.{partition}" if partition else LOCK


def no_lock(lock: str) -> str:
    """A sentence for operators: anybody may consume this lock."""
    return (
        f"{lock} is an ordinary queue that somebody has declared, where the bridges want one that each declares for "
        "its own connection: bridges that start at once can't say which one takes"
    )


class Role(enum.StrEnum):
    """The role of a node that is connected to the broker."""

    ACTIVE = "active"
    """This node takes the pushes."""
    STANDBY = "standby"
    """Another consumer takes them. This node takes over when that one is gone."""
    UNKNOWN = "unknown"
    """This node consumes. Whether it gets the pushes is known with the first one."""


class Turn:
    """Waits for the turn of one connection. `held` is the channel on which the lock was declared."""

    def __init__(self, connection: aio_pika.Connection, clock: Clock, partition: int = 0) -> None:
        self._connection = connection
        self._clock = clock
        self._queue = requests_queue(partition)
        self._name = lock_of(partition)
        self.held: aiormq.abc.AbstractChannel | None = None
        self._told = False

    async def come(self, waiting: Callable[[], None], stopped: Callable[[], bool]) -> Role:
        """Return ACTIVE or UNKNOWN when this node should consume; STANDBY only once `stopped`.

        `waiting` is called after each look that finds another node's turn. Raises BrokerUnavailable.
        """
        looking = await channel(self._connection, confirms=False)
        locked_since: float | None = None
        first = True
        while not stopped():
            if await consumers_of(looking, self._queue):
                locked_since = None
                if first and await self._lock() is Role.ACTIVE:
                    log.warning(
                        "%s is consumed by somebody who does not hold the queue %s: a bridge of an older version, or "
                        "none",
                        self._queue,
                        self._name,
                    )
            else:
                role = await self._lock()
                now = self._clock.monotonic()
                locked_since = now if locked_since is None else locked_since
                if role is Role.STANDBY and now - locked_since >= LOCK_PATIENCE:
                    log.warning(
                        "%s is locked by a connection that does not consume: going on without it", self._name
                    )
                    role = Role.UNKNOWN
                if role is not Role.STANDBY:
                    await close_channel(looking)
                    return role
            first = False
            waiting()
            await self._clock.sleep(LOOK_EVERY)
        return Role.STANDBY

    async def _lock(self) -> Role:
        if self.held is not None:
            return Role.ACTIVE
        # A refusal costs the channel.
        low = await channel(self._connection, confirms=False)
        try:
            async with border(f"declare {self._name}", STEP_TIMEOUT):
                await low.queue_declare(self._name, exclusive=True, arguments={"x-queue-type": "classic"})
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ChannelAccessRefused):
                return Role.UNKNOWN
            if isinstance(error.__cause__, ChannelPreconditionFailed | ChannelLockedResource):
                return await self._refused_by_what()
            raise
        self.held = low
        return Role.ACTIVE

    async def _refused_by_what(self) -> Role:
        """STANDBY where another connection has the lock; UNKNOWN where the queue is an ordinary one.

        The broker answers both with the same words. But everybody may look at an ordinary queue.
        """
        low = await channel(self._connection, confirms=False)
        try:
            await look_at(low, self._name)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ChannelLockedResource | ChannelNotFoundEntity):
                # Another connection has it, or had it a moment ago.
                return Role.STANDBY
            raise
        await close_channel(low)
        if not self._told:
            self._told = True
            log.warning("%s: %s", no_lock(self._name), delete_command(self._connection, self._name))
        return Role.UNKNOWN

    async def give_up(self) -> None:
        """Let the next node have its turn at once, and not only when this connection ends. Raises BrokerUnavailable."""
        held, self.held = self.held, None
        if held is not None:
            async with border(f"delete {self._name}", STEP_TIMEOUT):
                await held.queue_delete(self._name)


def delete_command(connection: aio_pika.Connection, lock: str) -> str:
    """The command that fixes `no_lock`."""
    assert connection.transport is not None
    vhost = cast(aiormq.Connection, connection.transport.connection).vhost
    return f"rabbitmqctl delete_queue -p {shlex.quote(vhost)} {lock}"


async def consumers_of(low: aiormq.abc.AbstractChannel, queue: str) -> int:
    """How many consumers a queue of requests has; a quorum queue counts only the single active one."""
    return (await look_at(low, queue)).consumer_count or 0
