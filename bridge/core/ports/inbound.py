"""The port to the exchange push.inbound: what users publish, on its way to the systems that listen there."""

from __future__ import annotations

import enum
from typing import NamedTuple, Protocol


class InboundMessage(NamedTuple):
    """What a user has published, and who it was."""

    id: str
    """Unique over all nodes, for all time."""
    event: str
    """At most 255 bytes in UTF-8."""
    body: bytes
    """JSON, byte for byte as it came."""
    user: str
    session: str
    at: float
    """When it came, unix seconds."""
    topic: str | None = None
    ref: str | int | None = None
    """The client's own, so that a message that is published again can be told."""


class InboundEnd(enum.Enum):
    """What became of one message."""

    TAKEN = enum.auto()
    """The broker has it, in the queue of everybody who listens."""
    NOBODY = enum.auto()
    """No queue is bound for it; it is gone."""
    FULL = enum.auto()
    """A queue that should get it is full and takes no more. Another one may have it."""
    REFUSED = enum.auto()
    """The bridge may not publish this event; somebody has to change something at the broker."""
    UNSENT = enum.auto()
    """Nothing was sent."""
    UNSURE = enum.auto()
    """It was sent and not confirmed: it may have arrived, or may arrive later."""


class InboundListener(Protocol):
    """Hears what became of messages."""

    def told(self, message_id: str, end: InboundEnd) -> None:
        """Called once at most for each message, in the event loop, never from within `publish`. Must not raise."""
        ...


class Inbound(Protocol):
    """Publishes what users say. Messages arrive in the order in which they were given."""

    @property
    def cause(self) -> str:
        """Why nothing can be published now; empty if it can."""
        ...

    def listen(self, listener: InboundListener) -> None:
        """Who hears what becomes of messages; to be called once, before the first."""
        ...

    def publish(self, message: InboundMessage) -> None:
        """Send this soon. The caller bounds how many are under way, and ends the waiting with `forget`."""
        ...

    def forget(self, message_id: str) -> None:
        """Nobody waits for this one any more, which was not told; idempotent. It may arrive all the same."""
        ...
