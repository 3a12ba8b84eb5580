"""What users publish: to the exchange push.inbound, each message confirmed for itself.

It has a connection of its own. So a flood of clients slows neither receipts nor letters, and a queue that is slow to
confirm holds up no message to another one.

The broker closes a channel because of one message that this user may not publish (RabbitMQ's guide "Topic
Authorisation"), and says whose routing key it was. That event is not published again for a while: with every try all
messages under way would become unsure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Self

import aio_pika
from aio_pika.connection import make_url

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.connection import Tap, channel
from bridge.adapters.amqp.frames import Event
from bridge.adapters.amqp.link import Link, LinkState
from bridge.adapters.amqp.login import GUEST
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.adapters.amqp.topology import INBOUND, INBOUND_ONLY, DeclareMode, ensure
from bridge.core.ports.clock import Clock
from bridge.core.ports.inbound import InboundEnd, InboundListener, InboundMessage
from bridge.core.ports.plugins import ErrorHandler

TRY_REFUSED: Final = 30.0
"""Seconds until an event that the broker has refused is published again."""
REFUSED_MAX: Final = 1000
"""Such events that are known at a time; over it the oldest are tried again."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class InboundPublisher:
    """Publishes inside its `async with`; fills the port Inbound."""

    def __init__(
        self,
        url: str,
        node: str,
        *,
        clock: Clock,
        errors: ErrorHandler,
        declare: DeclareMode = DeclareMode.ACTIVE,
    ) -> None:
        self._node = node
        self._clock = clock
        self._declare = declare
        self._link = Link(url, f"{node} inbound", self, clock=clock, errors=errors)
        given = make_url(url)
        external = str(given.query.get("auth", "")).lower() == "external"
        self._login = "" if external else given.user or GUEST
        """The name that the broker checks (RabbitMQ's guide "Validated User-ID"); empty where it is not in the URL."""
        self._outbox: Outbox | None = None
        self._listener: InboundListener | None = None
        self._unwritten: list[InboundMessage] = []
        self._refused: dict[str, float] = {}
        """Events that the broker has refused, and until when (monotonic seconds) they are not tried."""

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._write()
        await self._link.__aexit__(kind, exc, tb)
        self.lost("closed")

    # --- LinkUser ---

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Ensure the exchange, then open the channel."""
        await ensure(connection, self._declare, INBOUND_ONLY)
        self._outbox = Outbox(tap, (await channel(connection, confirms=True)).number)

    def happened(self, events: Sequence[Event]) -> None:
        """Confirms, returns, and whatever ends the channel."""
        outbox = self._outbox
        if outbox is None:
            return
        outbox.happened(events)
        if outbox.ended:
            self._outbox = None
            self._link.give_up(outbox.ended)

    def lost(self, cause: str) -> None:
        """The connection is lost: what is not confirmed is unsure."""
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.end(cause)

    # --- Inbound ---

    @property
    def cause(self) -> str:
        """See the port."""
        if self._link.state is LinkState.OPEN and self._outbox is None:
            return "the channel is lost"
        return self._link.cause

    def listen(self, listener: InboundListener) -> None:
        """See the port."""
        self._listener = listener

    def publish(self, message: InboundMessage) -> None:
        """See the port. What comes in one turn of the loop leaves in one write."""
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        self._unwritten.append(message)

    def forget(self, message_id: str) -> None:
        """See the port."""
        if self._outbox is not None:
            self._outbox.forget(message_id)

    def _write(self) -> None:
        messages, self._unwritten = self._unwritten, []
        allowed: list[InboundMessage] = []
        for message in messages:
            if self._is_refused(message.event):
                self._tell(message, InboundEnd.REFUSED)
            else:
                allowed.append(message)
        outbox = self._outbox
        if not allowed:
            return
        if outbox is None or self._link.state is not LinkState.OPEN:
            unsent = True
        else:
            made = [self._made(message) for message in allowed]
            unsent = not outbox.post(
                made, lambda place, failure: self._ended(outbox, allowed[place], failure)
            )
        if unsent:
            for message in allowed:
                self._tell(message, InboundEnd.UNSENT)

    def _ended(self, outbox: Outbox, message: InboundMessage, failure: Failure | None) -> None:
        if failure is None:
            end = InboundEnd.TAKEN
        elif failure.returned:
            end = InboundEnd.NOBODY
        elif failure.nacked:
            end = InboundEnd.FULL
        elif outbox.refusal is not None and f"topic '{message.event}' in" in outbox.refusal.text:
            end = InboundEnd.REFUSED
            self._refuse(message.event)
        else:
            end = InboundEnd.UNSURE
        self._tell(message, end)

    def _tell(self, message: InboundMessage, end: InboundEnd) -> None:
        if self._listener is not None:
            self._listener.told(message.id, end)

    def _refuse(self, event: str) -> None:
        self._refused.pop(event, None)
        self._refused[event] = self._clock.monotonic() + TRY_REFUSED
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]

    def _is_refused(self, event: str) -> bool:
        until = self._refused.get(event)
        if until is not None and until <= self._clock.monotonic():
            del self._refused[event]
            return False
        return until is not None

    def _made(self, message: InboundMessage) -> Message:
        headers: dict[str, object] = {
            "user": message.user,
            "session": message.session,
            "node": self._node,
            "received_at": _rfc3339(message.at),
        }
        if message.topic is not None:
            headers["topic"] = message.topic
        if message.ref is not None:
            headers["ref"] = message.ref
        properties = encoding.properties(
            content_type="application/json",
            headers=encoding.table(headers)[0],
            message_id=message.id,
            timestamp=int(message.at),
            type="push.inbound",
            user_id=self._login,
        )
        return Message(INBOUND, message.event.encode(), properties, message.body, message.id)


def _rfc3339(seconds: float) -> str:
    moment = _EPOCH + timedelta(microseconds=round(seconds * 1_000_000))
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
