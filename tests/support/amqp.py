"""The AMQP adapter in tests: an intake that records, consumers and publishers, and messages of any kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.frames import Delivered, Event
from bridge.adapters.amqp.outbox import Message, Outbox
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.amqp.spread import Spread
from bridge.adapters.amqp.topology import INBOUND_ONLY, PUSH, DeclareMode, ensure
from bridge.app.build import SystemClock
from bridge.core.ports.broker import AckToken, Arrival
from tests.support.ports import RecordingErrors
from tests.support.waiting import until

CLOCK = SystemClock()


class RecordingIntake:
    """Fills the Intake port; acks each batch at once where it is told to."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.batches: list[int] = []
        self.lost: list[int] = []
        self.acks: Consumer | None = None

    def arrived(self, batch: Sequence[Arrival]) -> None:
        self.arrivals += batch
        self.batches.append(len(batch))
        if self.acks is not None:
            self.acks.widen({a.token.incarnation for a in batch})
            self.acks.ack([a.token for a in batch])

    def channel_lost(self, incarnation: int) -> None:
        self.lost.append(incarnation)

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        return [a.token for a in self.arrivals if a.token.incarnation == incarnation]

    @property
    def bodies(self) -> list[bytes]:
        return [a.body for a in self.arrivals]

    @property
    def tokens(self) -> list[AckToken]:
        return [a.token for a in self.arrivals]

    async def has(self, count: int) -> None:
        await until(lambda: len(self.arrivals) >= count)


class WideConsumer(Consumer):
    """One whose core finds nothing suspicious in what comes first."""

    def happened(self, events: Sequence[Event]) -> None:
        super().happened(events)
        if any(isinstance(event, Delivered) for event in events):
            self.widen({self.incarnation})


def consumer(
    url: str,
    errors: RecordingErrors | None = None,
    *,
    kind: type[Consumer] = WideConsumer,
    declare: DeclareMode = DeclareMode.ACTIVE,
    **options: object,
) -> Consumer:
    """A consumer that is not connected yet."""
    spread = Spread(1, declare)
    return kind(url, clock=CLOCK, errors=errors or RecordingErrors(), spread=spread, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def publisher(
    url: str, errors: RecordingErrors | None = None, **options: object
) -> AsyncIterator[ReceiptPublisher]:
    """A publisher that is connected."""
    made = ReceiptPublisher(url, clock=CLOCK, errors=errors or RecordingErrors(), **options)  # type: ignore[arg-type]
    async with made:
        await until(lambda: not made.blocked)
        yield made


@asynccontextmanager
async def outbox(url: str) -> AsyncIterator[Outbox]:
    """A confirming channel, to publish whatever a test likes."""
    made: list[Outbox] = []

    def happened(events: Sequence[Event]) -> None:
        for box in made:
            box.happened(events)

    async with opened(url, "test publisher", happened, lambda cause: None) as (connection, tap):
        low = await channel(connection, confirms=True)
        tap.watch(low.number)
        made.append(Outbox(tap, low.number))
        yield made[0]


async def declare(url: str) -> None:
    """Declare the topology, as a bridge does when it starts."""
    async with opened(url, "test", lambda events: None, lambda cause: None) as (connection, _):
        await ensure(connection, DeclareMode.ACTIVE)
        await ensure(connection, DeclareMode.ACTIVE, INBOUND_ONLY)


async def publish(url: str, bodies: Sequence[bytes], properties: bytes | None = None) -> None:
    """Publish to exchange `push` and await the confirms."""
    plain = properties if properties is not None else encoding.properties()
    async with outbox(url) as box:
        failures = await box.publish([Message(PUSH, b"user.u1", plain, body) for body in bodies], 10.0)
        assert not failures
