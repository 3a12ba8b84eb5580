"""What the core asks of the broker, and the messages that come from it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, Receipt, Reply


class AckToken(NamedTuple):
    """Acknowledges one message. It is valid only for the channel incarnation that delivered the message."""

    incarnation: int
    tag: int


class Source(enum.Enum):
    """The queue a message came from."""

    REQUESTS = "push.requests"
    FALLEN = "push.fallen"
    """Messages that the broker has given up: delivery limit, expiration."""
    CONTROL = "push.control"
    """Recalls of pushes; not pushes."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One message as the broker delivered it."""

    token: AckToken
    source: Source
    body: bytes
    """At most `MESSAGE_BYTES_MAX` bytes; of a larger body only the first 4,096 bytes."""
    body_size: int
    """Bytes of the body as published; more than `len(body)` if it was cut."""
    properties: Properties
    arrived_at: float
    """Wall-clock seconds."""
    reordered: bool = False
    """The broker may have delivered it ahead of older messages, because of its priority."""


class Intake(Protocol):
    """The core's side of the taking port; the broker adapter calls it from the event loop."""

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """Accept the messages of one read of the broker's socket, in queue order. Never raises."""
        ...

    def channel_lost(self, incarnation: int) -> None:
        """Every token of this incarnation is invalid: the broker will deliver its messages again."""
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

    def widen(self) -> None:
        """A message was handled without harm: from now on, deliver as many requests at a time as the prefetch allows.

        Before the first call on a channel, one request is delivered at a time. A broker may count each return of a
        message, handled or not. If a message kills the process, the returns of its neighbours must not be counted with
        its own. Idempotent. Never raises.
        """
        ...


class Receipts(Protocol):
    """Outcomes sent back over AMQP, with publisher confirms."""

    @property
    def blocked(self) -> bool:
        """Whether publishing is known to be impossible now (memory alarm, connection lost)."""
        ...

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """Publish and await the confirms; return those that were NOT confirmed (empty: all were confirmed).

        A receipt that no queue wanted counts as sent. Always returns within a few seconds. A receipt may be sent twice;
        its consumer recognizes it by push id and user. Does not raise when the broker is down: then everything is
        returned.
        """
        ...


class DeadLetters(Protocol):
    """The exchange for messages that people must look at."""

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """Publish to `push.dead` and await the confirms; return those NOT confirmed. As `Receipts.send`."""
        ...


class Answers(Protocol):
    """Answers to control messages."""

    async def answer(self, reply: Reply, body: bytes) -> bool:
        """Publish a JSON body to a queue; False if it was not confirmed. Not tried again. Never raises."""
        ...
