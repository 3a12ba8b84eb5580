"""The ports between the core and the broker: taking, acking, publishing."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, DueFallback, Receipt, Reply


class AckToken(NamedTuple):
    """Acknowledges one message; valid only for the channel incarnation that delivered it."""

    incarnation: int
    tag: int


class Source(enum.Enum):
    """The queue a message came from."""

    REQUESTS = "push.requests"
    FALLEN = "push.fallen"
    """Messages that the broker has given up: delivery limit, expiration."""
    CONTROL = "push.control"
    """Control messages: recalls."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One message as the broker delivered it."""

    token: AckToken
    source: Source
    body: bytes
    """At most `MESSAGE_BYTES_MAX` bytes; only the first 4,096 bytes of a larger body."""
    body_size: int
    """Bytes of the body as published; more than `len(body)` if it was cut."""
    properties: Properties
    arrived_at: float
    """Wall-clock seconds."""
    reordered: bool = False
    """The broker may have delivered it ahead of older messages, because of its priority."""
    key: bytes = b""
    """The routing key."""


class Intake(Protocol):
    """The core's side of the taking port; the broker adapter calls it from the event loop."""

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """Accept the messages of one read of the broker's socket, in queue order. Never raises."""
        ...

    def channel_lost(self, incarnation: int) -> None:
        """Every token of this incarnation is invalid: the broker will deliver its messages again."""
        ...

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        """Forget the messages of this incarnation that are not taken yet; returns their tokens. Those that are taken go
        on."""
        ...


class Acks(Protocol):
    """The adapter's side of the taking port."""

    def ack(self, tokens: Iterable[AckToken]) -> None:
        """Acknowledge (AMQP basic.ack). Tokens of another incarnation are ignored. Never raises.

        The adapter sends `multiple` only for a finished prefix, the others one by one in one write.
        """
        ...

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        """Return messages (AMQP basic.nack with requeue). Tokens of another incarnation are ignored. Never raises."""
        ...

    def widen(self, incarnations: Collection[int]) -> None:
        """The first message of these channels could be handled: deliver as many requests at a time as the prefetch
        allows from now on.

        Until then, on every new channel, requests are delivered one at a time. A broker may count each return of a
        message, handled or not: a message that kills the process must not raise the counts of its neighbours.
        Idempotent. Never raises.
        """
        ...


class Receipts(Protocol):
    """Outcomes sent back over AMQP, with publisher confirms."""

    @property
    def blocked(self) -> bool:
        """Whether publishing is impossible now (memory alarm, connection lost)."""
        ...

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """Publish and await the confirms; return those that were NOT confirmed (empty: all were confirmed).

        A receipt that no queue wanted counts as sent. Returns within a few seconds whatever happens. A receipt may be
        sent twice; its consumer knows it by push id and user. Never raises: if the broker is down, everything is
        returned.
        """
        ...


class DeadLetters(Protocol):
    """The exchange for rejected messages, which people look at."""

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """Publish to `push.dead` and await the confirms; return those NOT confirmed. As `Receipts.send`."""
        ...


class Published(NamedTuple):
    """What became of fallbacks that were to be published."""

    unsent: Sequence[DueFallback]
    """Those that the broker has not confirmed."""
    unroutable: int
    """How many of the others no queue wanted; they are reported."""


class Fallbacks(Protocol):
    """The exchange for what another channel is to deliver, with publisher confirms."""

    @property
    def blocked(self) -> bool:
        """As `Receipts.blocked`."""
        ...

    async def publish(self, fallbacks: Sequence[DueFallback]) -> Published:
        """Publish to `push.fallback` and await the confirms. Each may be sent twice, with the same message id. Returns
        within a few seconds whatever happens. Never raises."""
        ...


class Answers(Protocol):
    """Answers to control messages."""

    async def answer(self, reply: Reply, body: bytes) -> bool:
        """Publish a JSON body to a queue; False if it was not confirmed. Not tried again. Never raises."""
        ...
