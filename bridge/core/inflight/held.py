"""One AMQP message after it was taken and before its ack: it is held until every row that it names is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.core.model.pushes import Properties, PushRequest, Rejected
from bridge.core.model.rows import DeadLetter, Receipt, Reply
from bridge.core.ports.broker import AckToken


class HeldMessage:
    """The parts of a message that are needed until its ack: ack token, replies, and what is sent before the ack."""

    __slots__ = (
        "answers",
        "batch_id",
        "crowd",
        "done",
        "letters",
        "open",
        "places",
        "properties",
        "published_at",
        "redelivered",
        "replies",
        "taken_at",
        "token",
        "traceparent",
    )

    def __init__(
        self,
        token: AckToken,
        properties: Properties,
        *,
        published_at: float,
        taken_at: float,
        traceparent: str = "",
    ) -> None:
        self.token: AckToken | None = token
        """None once the message was acked or given back."""
        self.properties = properties
        self.published_at = published_at
        self.taken_at = taken_at
        self.traceparent = traceparent
        self.redelivered = properties.redelivered or properties.delivery_count > 0
        self.replies: tuple[Reply, ...] = (
            (Reply(properties.reply_to, properties.correlation_id),) if properties.reply_to else ()
        )
        self.batch_id = ""
        """See `Decoded`."""
        self.places: dict[int, int] | None = None
        """Of a batch the place of each request, from 0, by its `id()`; None for any other message."""
        self.crowd = False
        """Whether it has a push to everyone or to a topic, which may have thousands of rows."""
        self.open = 0
        """Rows that must still be settled before the message may be acked."""
        self.done: asyncio.Event | None = None
        """Set when the message is acked or given back; None unless it is handled alone."""
        self.letters: list[DeadLetter] = []
        """Sent to `push.dead` after the rows and before the ack."""
        self.answers: list[Receipt] = []
        """Sent to its publisher before the ack, since no row owes them."""

    def hold_batch(self, batch_id: str, requests: Sequence[PushRequest | Rejected]) -> None:
        """It is a batch of these requests, which live as long as flights are made of them."""
        self.batch_id = batch_id
        self.places = {id(request): place for place, request in enumerate(requests)}

    def place_of(self, request: PushRequest | Rejected) -> int | None:
        """The place of a request in its batch; None where it came alone."""
        return None if self.places is None else self.places.get(id(request))

    @property
    def alone(self) -> bool:
        """Whether no other message is handled until this one is acked or given back."""
        return self.done is not None

    def replies_where(self, differs: bool) -> tuple[Reply, ...]:
        """The replies that it asked for. `differs`: its row has other content than this message."""
        if not differs:
            return self.replies
        return tuple(Reply(r.queue, r.correlation_id, differs=True) for r in self.replies)
