"""Take from several partitions of the requests, each over a connection of its own, as many as this node is to take.

A connection beside them watches: it ensures the topology, and counts who consumes the partitions that are asked for.

A partition is handed over in this order: nothing more is taken from it; what was taken is settled, or its time is over;
the channel is closed, so that the rest goes back oldest first; the lock goes, and the next node has its turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeAlias

import aio_pika
import aiormq.abc

from bridge.adapters.amqp.connection import Tap, channel
from bridge.adapters.amqp.consume import Consumer, held_bytes_max
from bridge.adapters.amqp.depths import QueueDepth, depths
from bridge.adapters.amqp.frames import Event
from bridge.adapters.amqp.link import Link, LinkState, StateListener
from bridge.adapters.amqp.spread import Spread, look_at_exchange
from bridge.adapters.amqp.topology import requests_queue
from bridge.adapters.amqp.turn import Role, consumers_of
from bridge.core.errors import BrokerUnavailable
from bridge.core.ports.broker import AckToken, Intake
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

LOOK_EVERY = 0.5
"""Seconds between two looks at who consumes."""
SETTLE_LOOK = 0.05
"""Seconds between two looks at what of a partition is settled."""

log = logging.getLogger("bridge")


class Partitions:
    """Takes messages inside `taking` from the partitions that `take` names; fills the Acks port."""

    def __init__(
        self,
        url: str,
        spread: Spread,
        *,
        clock: Clock,
        errors: ErrorHandler,
        prefetch: int,
        ahead: bool = False,
        settle_seconds: float,
        on_state: StateListener,
        on_role: Callable[[Role], None],
        name: str,
    ) -> None:
        """`prefetch`: of each partition; `ahead` as for `Consumer`. `settle_seconds`: how long a partition that is
        handed over may settle.
        `on_state` is told of the connection that watches; `on_role` as for `Consumer`."""
        self._url = url
        self._spread = spread
        self._clock = clock
        self._errors = errors
        self._prefetch = prefetch
        self._ahead = ahead
        self._settle_seconds = settle_seconds
        self._on_role = on_role
        self._name = name
        self._link = Link(url, f"{name} watch", self, clock=clock, errors=errors, on_state=on_state)
        self._incarnations = count(1)
        self._intake: Intake | None = None
        self._connection: aio_pika.Connection | None = None
        self._looking: aiormq.abc.AbstractChannel | None = None
        self._wanted: frozenset[int] = frozenset()
        self._watched: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._consumers: dict[int, Consumer] = {}
        self._leave: dict[int, asyncio.Event] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._said: tuple[int, ...] = ()
        self._stopped = False
        self.untaken: Mapping[int, float] = {}
        """Of the partitions that `take` has watched: those that nobody consumes, since which monotonic second."""

    # --- What it is doing ---

    @property
    def partitions(self) -> int:
        """How many there are."""
        return self._spread.partitions

    @property
    def taken(self) -> Sequence[int]:
        """The partitions that this node takes."""
        return sorted(k for k, one in self._consumers.items() if one.role is Role.ACTIVE)

    @property
    def role(self) -> Role | None:
        """ACTIVE while it takes from any; None without a connection."""
        if self._connection is None:
            return None
        roles = [one.role for one in self._consumers.values()]
        return next((role for role in (Role.ACTIVE, Role.UNKNOWN) if role in roles), Role.STANDBY)

    @property
    def held(self) -> int:
        """Messages that the core has and has not answered."""
        return sum(one.held for one in self._consumers.values())

    @property
    def unacked(self) -> Mapping[str, int]:
        """`held` by queue."""
        return {queue: n for one in self._consumers.values() for queue, n in one.unacked.items()}

    async def depths(self) -> list[QueueDepth]:
        """How many messages wait in the queues. Raises BrokerUnavailable."""
        if self._connection is None:
            raise BrokerUnavailable(self._link.cause or "not connected")
        return await depths(self._connection, self.partitions)

    # --- Which ones ---

    def take(self, wanted: Collection[int], watched: Collection[int]) -> None:
        """Take these partitions from now on, hand over all others, and see who consumes those that are watched.
        Idempotent; it is carried out by and by."""
        self._wanted, self._watched = frozenset(wanted), frozenset(watched)
        self._changed.set()

    @asynccontextmanager
    async def taking(self, intake: Intake) -> AsyncIterator[Partitions]:
        """Consume into `intake` until the end of the block. See `Consumer.taking`."""
        self._intake = intake
        try:
            async with self._link:
                keeping = asyncio.create_task(self._keep(), name="partitions")
                keeping.add_done_callback(self._ended)
                try:
                    yield self
                finally:
                    tasks = [keeping, *self._tasks.values()]
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._intake = None

    async def stop_consuming(self) -> None:
        """See `Consumer.stop_consuming`; of all partitions, and no other is begun. Idempotent."""
        self._stopped = True
        await asyncio.gather(*(one.stop_consuming() for one in self._consumers.values()))

    async def _keep(self) -> None:
        """Begin and end partitions, and watch."""
        while True:
            if not self._stopped:
                for partition in sorted(self._wanted - self._tasks.keys()):
                    self._begin(partition)
                for partition, leave in self._leave.items():
                    if partition not in self._wanted:
                        leave.set()
            await self._watch()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    def _begin(self, partition: int) -> None:
        self._leave[partition] = asyncio.Event()
        task = asyncio.create_task(
            self._one(partition, self._leave[partition]), name=f"partition {partition}"
        )
        self._tasks[partition] = task
        task.add_done_callback(self._ended)

    async def _one(self, partition: int, leave: asyncio.Event) -> None:
        """Take one partition until it is to be handed over."""
        assert self._intake is not None
        consumer = Consumer(
            self._url,
            clock=self._clock,
            errors=self._errors,
            prefetch=self._prefetch,
            ahead=self._ahead,
            held_bytes=held_bytes_max(self._ahead) // self.partitions,
            partition=partition,
            incarnations=self._incarnations,
            on_role=lambda role: self._changed_role(),
            name=f"{self._name} {partition}",
        )
        self._consumers[partition] = consumer
        try:
            async with consumer.taking(self._intake):
                await leave.wait()
                await self._hand_over(consumer)
        finally:
            del self._consumers[partition], self._leave[partition], self._tasks[partition]
            self._changed_role()

    async def _hand_over(self, consumer: Consumer) -> None:
        assert self._intake is not None
        consumer.take_no_more()
        consumer.forget(self._intake.give_back(consumer.incarnation))
        give_up = self._clock.monotonic() + self._settle_seconds
        while consumer.held and self._clock.monotonic() < give_up:
            await self._clock.sleep(SETTLE_LOOK)
        await consumer.stop_consuming()

    def _changed_role(self) -> None:
        taken = tuple(self.taken)
        if taken == self._said or self._stopped or self._connection is None:
            return
        log.info("takes partitions %s of %d", ", ".join(map(str, taken)) or "none", self.partitions)
        if bool(taken) != bool(self._said):
            self._on_role(Role.ACTIVE if taken else Role.STANDBY)
        self._said = taken

    async def _watch(self) -> None:
        """Count the consumers of the partitions that are watched, and see that the exchange is there which spreads."""
        now = self._clock.monotonic()
        untaken: dict[int, float] = {}
        looking = self._looking
        if looking is None:
            return
        try:
            await look_at_exchange(looking)
            for partition in sorted(self._watched):
                if not await consumers_of(looking, requests_queue(partition)):
                    untaken[partition] = self.untaken.get(partition, now)
        except BrokerUnavailable as away:
            # Something is gone: the topology is ensured at the next connection.
            self._looking = None
            self._link.give_up(away.cause)
            return
        self.untaken = untaken

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task ends with an error only because of a bug: that is reported. Its partition is begun again, or another
        node's in time."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.handle(error, "broker.partitions", {"task": task.get_name()})

    # --- LinkUser, of the connection that watches ---

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Make sure of the topology."""
        await self._spread.ensure(connection)
        self._looking = await channel(connection, confirms=False)
        self._connection = connection
        self._changed.set()

    def happened(self, events: Sequence[Event]) -> None:
        """Nothing is delivered here."""

    def lost(self, cause: str) -> None:
        """The connection is gone. Those that take notice by themselves."""
        self._connection = self._looking = None
        self.untaken = {}

    @property
    def state(self) -> LinkState:
        """Where the connection that watches is in its life."""
        return self._link.state

    # --- Acks ---

    def ack(self, tokens: Iterable[AckToken]) -> None:
        """See the port."""
        for consumer, its_own in self._sorted(tokens):
            consumer.ack(its_own)

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        """See the port."""
        for consumer, its_own in self._sorted(tokens):
            consumer.requeue(its_own)

    def widen(self, incarnations: Collection[int]) -> None:
        """See the port."""
        for consumer in self._consumers.values():
            consumer.widen(incarnations)

    def _sorted(self, tokens: Iterable[AckToken]) -> Sequence[tuple[Consumer, Sequence[AckToken]]]:
        """The tokens by consumer, each in order; without those of channels that are gone."""
        its_own: dict[int, list[AckToken]] = {}
        for token in tokens:
            its_own.setdefault(token.incarnation, []).append(token)
        return [
            (one, its_own[one.incarnation]) for one in self._consumers.values() if one.incarnation in its_own
        ]


TakesRequests: TypeAlias = Consumer | Partitions
"""What a node takes requests with: where there is one partition, and where there are several."""
