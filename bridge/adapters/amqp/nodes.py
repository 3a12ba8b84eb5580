"""Letters between nodes: a queue of this process at the broker, and a channel to those of the others.

It has a connection of its own, which is never paused. The queue is exclusive to it, so it ends with it. The next
connection has another, since a connection that the broker has not noticed to be dead keeps its queue. Others learn its
name from the database.

A letter counts only with the user id that the broker has checked (RabbitMQ's guide "Validated User-ID"): that of this
bridge's own user. Who logs in without a name in the URL (EXTERNAL) has no such id: then whoever may publish to the
default exchange can write letters.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import aio_pika
from aio_pika.connection import make_url
from pamqp.common import FieldTable

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.connection import STEP_TIMEOUT, Tap, border, channel
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.frames import Closed, ConsumerCancelled, Delivered, Event
from bridge.adapters.amqp.link import Link, LinkState
from bridge.adapters.amqp.login import GUEST
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Letter, NodeListener, Sent
from bridge.core.ports.plugins import ErrorHandler

log = logging.getLogger("bridge")

NODE_QUEUE: Final = "push.node"
"""What the names of the queues begin with."""
STRANGER: Final = "messages in %s are thrown away: their user_id is not %s, as which all nodes log in"
WRITE_TIMEOUT: Final = 2.0
"""Seconds to wait for the confirms of one write; a letter may arrive all the same after that."""
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Bytes of letters that may wait for a node; over it the broker takes no more."""


class NodeLink:
    """Fills the port NodePost inside its `async with`. `listen` says who hears what comes."""

    def __init__(
        self, url: str, node: str, boot: str, *, seconds: float, clock: Clock, errors: ErrorHandler
    ) -> None:
        """`seconds`: after that a letter that nobody has read is thrown away."""
        self._node = node
        self._boot = boot
        self._millis = max(1, int(seconds * 1000))
        self._link = Link(url, f"{node} nodes", self, clock=clock, errors=errors)
        given = make_url(url)
        external = str(given.query.get("auth", "")).lower() == "external"
        self._user = "" if external else given.user or GUEST
        self._outbox: Outbox | None = None
        self._queue = ""
        self._hears_on = 0
        """The number of the channel that consumes the queue; 0: none does."""
        self._numbers = itertools.count(1)
        self._listener: NodeListener | None = None
        self._told = False

    def listen(self, listener: NodeListener) -> None:
        """From now on this one hears what comes; to be called before the connection is opened."""
        self._listener = listener

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._link.__aexit__(kind, exc, tb)
        self.lost("closed")

    @property
    def queue(self) -> str:
        """See the port."""
        return self._queue

    # --- LinkUser ---

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Declare the queue, consume it, and open the channel to the others."""
        name = f"{NODE_QUEUE}.{self._node}.{self._boot}-{next(self._numbers)}"
        low = await channel(connection, confirms=False)
        arguments: FieldTable = {
            "x-queue-type": "classic",
            "x-message-ttl": self._millis,
            "x-max-length-bytes": QUEUE_BYTES,
            "x-overflow": "reject-publish",
        }
        async with border(f"declare {name}", STEP_TIMEOUT):
            await low.queue_declare(name, exclusive=True, arguments=arguments)
        self._hears_on = low.number
        tap.watch(low.number, uncut=True)
        async with border(f"consume {name}", STEP_TIMEOUT):
            # Letters are not acked: what a dead node has not read is worth nothing.
            await low.basic_consume(name, never_called, no_ack=True, exclusive=True)
        self._outbox = Outbox(tap, (await channel(connection, confirms=True)).number)
        self._queue = name
        if self._listener is not None:
            self._listener.listening()

    def happened(self, events: Sequence[Event]) -> None:
        """Letters, confirms, returns, and whatever ends one of the channels: a node that hears nothing needs a new
        queue."""
        for event in events:
            if type(event) is Delivered and event.channel == self._hears_on:
                self._came(event)
            elif type(event) is ConsumerCancelled and event.channel == self._hears_on:
                self._link.give_up(f"the broker cancelled the consumer of {NODE_QUEUE}.{self._node}")
            elif type(event) is Closed and event.channel == self._hears_on:
                self._link.give_up(f"the broker closed the channel: {event}")
        outbox = self._outbox
        if outbox is None:
            return
        outbox.happened(events)
        if outbox.ended:
            self._link.give_up(outbox.ended)

    def lost(self, cause: str) -> None:
        """The connection is lost, and the queue with it."""
        outbox, self._outbox = self._outbox, None
        self._queue = ""
        self._hears_on = 0
        if outbox is not None:
            outbox.end(cause)

    # --- Letters ---

    def _came(self, letter: Delivered) -> None:
        if self._user and letter.properties.user_id != self._user:
            if not self._told:
                self._told = True
                log.warning(STRANGER, self._queue, self._user)
            return
        if self._listener is not None:
            self._listener.came(letter.body)

    def send(self, letters: Sequence[Letter], told: Callable[[int, Sent], None]) -> None:
        """See the port."""
        outbox = self._outbox
        if outbox is None or self._link.state is not LinkState.OPEN:
            for place in range(len(letters)):
                told(place, Sent.UNREACHABLE)
            return
        messages = [self._message(letter) for letter in letters]
        under_way = _UnderWay(outbox, messages, told)
        if outbox.post(messages, under_way.ended):
            under_way.wait()
        else:
            under_way.give_up()

    def _message(self, letter: Letter) -> Message:
        number = f"{self._boot}-{next(self._numbers)}"
        properties = encoding.properties(message_id=number, type="push.letter", user_id=self._user)
        return Message("", encoding.octets(letter.queue), properties, letter.body, number)


class _UnderWay:
    """Letters of one write whose end is awaited."""

    __slots__ = ("_open", "_outbox", "_timer", "_told")

    def __init__(
        self, outbox: Outbox, messages: Sequence[Message], told: Callable[[int, Sent], None]
    ) -> None:
        self._outbox = outbox
        self._open = {place: message.mandatory_id for place, message in enumerate(messages)}
        self._told = told
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> None:
        """Wait for confirms, but not too long."""
        self._timer = asyncio.get_running_loop().call_later(WRITE_TIMEOUT, self.give_up)

    def ended(self, place: int, failure: Failure | None) -> None:
        """What became of the letter at this place is known."""
        del self._open[place]
        if not self._open and self._timer is not None:
            self._timer.cancel()
        self._told(place, _sent(failure))

    def give_up(self) -> None:
        """Nobody knows what became of the rest."""
        left, self._open = self._open, {}
        for place, number in left.items():
            self._outbox.forget(number)
            self._told(place, Sent.UNSURE)


def _sent(failure: Failure | None) -> Sent:
    if failure is None:
        return Sent.DELIVERED
    return Sent.UNREACHABLE if failure.returned or failure.nacked else Sent.UNSURE
