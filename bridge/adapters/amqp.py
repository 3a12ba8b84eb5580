"""The broker as the core sees it: one object that fills the Acks, the Receipts and the DeadLetters port.

`amqp_link` keeps a connection, `amqp_topology` says what must exist, `amqp_consume` takes and acks,
`amqp_publish` publishes, `amqp_frames` is the wire format of the frames that come by the thousand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from bridge.adapters.amqp_consume import HELD_BYTES_MAX, Consumer
from bridge.adapters.amqp_link import LinkState, StateListener
from bridge.adapters.amqp_publish import Publisher
from bridge.adapters.amqp_topology import DeclareMode, TopologyError
from bridge.model import DeadLetter, Receipt
from bridge.ports import AckToken, Clock, ErrorHandler, Intake

__all__ = ["Broker", "BrokerStatus", "DeclareMode", "LinkState", "TopologyError"]


class BrokerStatus(NamedTuple):
    """What `/status` shows of the broker."""

    consuming: str
    """The consuming link's state: connecting, declaring, open, lost, closed."""
    publishing: str
    """The publishing link's state; `blocked` under a memory or disk alarm."""
    cause: str
    """Why one of them is not open; empty when both are."""
    incarnation: int
    """Channels that were consumed on so far."""
    held: int
    """Messages handed over and not answered."""
    held_bytes: int
    stale: int
    """Ack tokens that were thrown away."""


class Broker:
    """Two connections, since a broker that is short of memory stops reading from those that publish.

    Enter `publishing` first and leave it last: receipts are owed until the very end.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        errors: ErrorHandler,
        prefetch: int = 1000,
        held_bytes: int = HELD_BYTES_MAX,
        outcome_events: bool = True,
        declare: DeclareMode = DeclareMode.ACTIVE,
        on_state: StateListener | None = None,
        name: str = "bridge",
    ) -> None:
        """`on_state` is told of the consuming side only: without the other, receipts become debts."""
        self._consumer = Consumer(
            url,
            clock=clock,
            errors=errors,
            prefetch=prefetch,
            held_bytes=held_bytes,
            declare=declare,
            on_state=on_state,
            name=f"{name} consumer",
        )
        self._publisher = Publisher(
            url,
            clock=clock,
            errors=errors,
            outcome_events=outcome_events,
            declare=declare,
            name=f"{name} publisher",
        )

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Keep the publishing connection until the end of the block."""
        async with self._publisher:
            yield

    @asynccontextmanager
    async def taking(self, intake: Intake) -> AsyncIterator[None]:
        """Consume into `intake` until the end of the block; see `Consumer.taking`."""
        async with self._consumer.taking(intake):
            yield

    async def stop_consuming(self) -> None:
        """See `Consumer.stop_consuming`."""
        await self._consumer.stop_consuming()

    @property
    def status(self) -> BrokerStatus:
        """How both sides are now."""
        consumer, publisher = self._consumer, self._publisher
        return BrokerStatus(
            consumer.state.value,
            publisher.state.value,
            consumer.cause or publisher.cause,
            consumer.incarnation,
            consumer.held,
            consumer.held_bytes,
            consumer.stale,
        )

    def ack(self, tokens: Iterable[AckToken]) -> None:
        """See the Acks port."""
        self._consumer.ack(tokens)

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        """See the Acks port."""
        self._consumer.requeue(tokens)

    @property
    def blocked(self) -> bool:
        """See the Receipts port."""
        return self._publisher.blocked

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """See the Receipts port."""
        return await self._publisher.send(receipts)

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """See the DeadLetters port."""
        return await self._publisher.bury(letters)
