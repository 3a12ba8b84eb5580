"""Publish push requests: for our own commands, the ops port, the demo and the tests.

Any AMQP client can do the same: publish to the exchange `push` with confirms, and `mandatory`, so that a request that
no queue takes is an error.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import aio_pika
import aiormq.abc

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel, opened
from bridge.adapters.amqp.frames import Closed, ConsumerCancelled, Event
from bridge.adapters.amqp.grammar import SHORT_BYTES_MAX
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.adapters.amqp.refusals import outage
from bridge.adapters.amqp.topology import OUTCOMES, PUSH
from bridge.core.contract.routing_keys import key_of_request
from bridge.core.errors import BridgeError, BrokerUnavailable

REQUEST_TIMEOUT = 5.0
"""Seconds to wait for the broker's confirm."""


_Received: TypeAlias = dict[str, Any] | BrokerUnavailable
"""A receipt, or why no more will come."""


class NotTaken(BridgeError):
    """No queue took the request: the broker has no `push.requests` bound to `push` (yet)."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"nothing took the push request: {why}; has a bridge ever run with this broker?")


class PushMessage(NamedTuple):
    """A push request to be published: the body, and the AMQP properties that the bridge honours."""

    body: bytes
    headers: Mapping[str, object] = {}
    push_id: str = ""
    """For a body that names none. It is sent as header `x-push-id`, since it may be too long for a property."""
    reply_to: str = ""
    correlation_id: str = ""
    app_id: str = ""
    content_type: str = "application/json"
    expiration: float | None = None
    """Seconds."""
    timestamp: int | None = None
    routing_key: str = ""
    """Empty: that of its user, `user.<id>`. Requests with the same one stay in order."""
    content_encoding: str = ""


class Producer:
    """One connection that publishes; made by `connect`. After a loss it raises, and does not reconnect."""

    def __init__(self, connection: aio_pika.Connection, outbox: Outbox) -> None:
        self._connection = connection
        self._outbox = outbox
        self._inboxes: set[asyncio.Queue[_Received]] = set()
        self._hearing: dict[int, Callable[[str], None]] = {}
        """Who is told that no more receipts come, by the number of the channel that they come on."""
        self._replies: aiormq.abc.AbstractChannel | None = None

    @property
    def ended(self) -> str:
        """Why nothing can be published any more; empty while it can."""
        return self._outbox.ended

    @staticmethod
    @asynccontextmanager
    async def connect(
        url: str, *, name: str = "bridge producer", lost: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Producer]:
        """Connect for the length of the block; `lost` is called when the connection is. Raises BrokerUnavailable."""
        made: list[Producer] = []

        def happened(events: Sequence[Event]) -> None:
            for producer in made:
                producer._happened(events)

        def ended(cause: str) -> None:
            for producer in made:
                producer._lost(cause)
            lost()

        async with opened(url, name, happened, ended) as (connection, tap):
            made.append(Producer(connection, Outbox(tap, (await channel(connection, confirms=True)).number)))
            yield made[0]

    def _happened(self, events: Sequence[Event]) -> None:
        self._outbox.happened(events)
        if self._hearing:
            for number, cause in _unheard(events):
                if (lost := self._hearing.pop(number, None)) is not None:
                    lost(cause)

    def _lost(self, cause: str) -> None:
        self._outbox.end(cause)
        for inbox in self._inboxes:
            inbox.put_nowait(outage(cause))

    async def publish(
        self,
        body: bytes,
        *,
        headers: Mapping[str, object] | None = None,
        push_id: str = "",
        reply_to: str = "",
        correlation_id: str = "",
        app_id: str = "",
        content_type: str = "application/json",
        expiration: float | None = None,
        timestamp: int | None = None,
        routing_key: str = "",
    ) -> None:
        """Publish one request and await its confirm. See `publish_all`."""
        await self.publish_all(
            [
                PushMessage(
                    body,
                    headers or {},
                    push_id,
                    reply_to,
                    correlation_id,
                    app_id,
                    content_type,
                    expiration,
                    timestamp,
                    routing_key,
                )
            ]
        )

    async def publish_all(self, requests: Sequence[PushMessage]) -> None:
        """Publish all in one write and await the confirms.

        Raises NotTaken when a request reached no queue, and BrokerUnavailable when one was not confirmed: it may or
        may not have arrived, and may be published again under the same id. Raises ValueError for headers and
        properties that AMQP can't express.
        """
        failures = await self._outbox.publish([_message(request) for request in requests], REQUEST_TIMEOUT)
        for failure in failures.values():
            raise _error(failure)

    async def publish_each(
        self, requests: Sequence[PushMessage], seconds: float
    ) -> Mapping[int, BridgeError]:
        """Publish all in one write and await the confirms, so many seconds; returns why some were not confirmed, by
        their place: errors as `publish_all` raises them. Raises ValueError as that."""
        failures = await self._outbox.publish([_message(request) for request in requests], seconds)
        return {place: _error(failure) for place, failure in failures.items()}

    async def reply_queue(
        self, heard: Callable[[str, Mapping[str, Any]], None], lost: Callable[[str], None]
    ) -> str:
        """Declare a queue for receipts instead of the one before, if there was one; returns its name. It lives as long
        as this connection, unless somebody deletes it: then `lost` is called once, with the cause. `heard` gets the
        correlation id and the receipt of each message. Raises BrokerUnavailable."""
        old, self._replies = self._replies, None
        if old is not None:
            self._hearing.pop(old.number, None)
            if not old.is_closed:
                await close_channel(old)
        low = self._replies = await channel(self._connection, confirms=False)
        # Before there is a queue: it may be deleted as soon as there is.
        self._hearing[low.number] = lost

        async def received(message: aiormq.abc.DeliveredMessage) -> None:
            heard(message.header.properties.correlation_id or "", json.loads(message.body))

        async with border("declare a reply queue", STEP_TIMEOUT):
            declared = await low.queue_declare(exclusive=True, auto_delete=True)
            queue = declared.queue or ""
            await low.basic_consume(queue, received, no_ack=True)
        return queue

    async def request(
        self,
        body: bytes,
        timeout: float,  # noqa: ASYNC109 - it ends the wait, and is not an error
        *,
        expect: int | None = None,
        headers: Mapping[str, object] | None = None,
        push_id: str = "",
        app_id: str = "",
    ) -> list[dict[str, Any]]:
        """Publish one request and collect its receipts, in the order in which they came.

        Returns when `expect` of them are final or say that the push is kept for an absent user, or after `timeout`
        seconds with what has come. By default `expect` is the number of users that the body names; for `all` that is
        unknown. Raises as `publish_all`, and BrokerUnavailable where the connection is lost meanwhile.
        """
        wanted = expect if expect is not None else expected_receipts(body)
        inbox: asyncio.Queue[_Received] = asyncio.Queue()
        receipts: list[dict[str, Any]] = []
        rest = _Rest()
        correlation_id = str(uuid.uuid4())
        low = await channel(self._connection, confirms=False)

        async def received(message: aiormq.abc.DeliveredMessage) -> None:
            if message.header.properties.correlation_id == correlation_id:
                inbox.put_nowait(json.loads(message.body))

        self._inboxes.add(inbox)
        self._hearing[low.number] = lambda cause: inbox.put_nowait(outage(cause))
        try:
            async with border("declare a reply queue", STEP_TIMEOUT):
                declared = await low.queue_declare(exclusive=True, auto_delete=True)
                queue = declared.queue or ""
                await low.basic_consume(queue, received, no_ack=True)
            await self.publish(
                body,
                headers=headers,
                push_id=push_id,
                reply_to=queue,
                correlation_id=correlation_id,
                app_id=app_id,
            )
            try:
                async with asyncio.timeout(timeout):
                    while wanted is None or rest.count < wanted:
                        receipts.append(_receipt(await inbox.get()))
                        rest.heard(receipts[-1])
            except TimeoutError:
                return receipts
            return receipts
        finally:
            self._inboxes.discard(inbox)
            self._hearing.pop(low.number, None)
            try:
                async with border("close the reply channel", STEP_TIMEOUT):
                    await low.close()
            except BrokerUnavailable as gone:
                self._outbox.end(gone.cause)


async def outcomes(url: str, binding_key: str = "#") -> AsyncIterator[dict[str, Any]]:
    """Every receipt on push.outcomes whose routing key `<outcome>.<event>` matches, from now on.

    Ends only when it is closed. Raises BrokerUnavailable when the broker can't be reached, the connection is lost or
    its queue is deleted, or where the exchange does not exist yet.
    """
    inbox: asyncio.Queue[_Received] = asyncio.Queue()

    async def received(message: aiormq.abc.DeliveredMessage) -> None:
        inbox.put_nowait(json.loads(message.body))

    def lost(cause: str) -> None:
        inbox.put_nowait(outage(cause))

    def happened(events: Sequence[Event]) -> None:
        for _, cause in _unheard(events):
            lost(cause)

    async with opened(url, "bridge tail", happened, lost) as (connection, _):
        low = await channel(connection, confirms=False)
        async with border("listen to push.outcomes", STEP_TIMEOUT):
            declared = await low.queue_declare(exclusive=True, auto_delete=True)
            queue = declared.queue or ""
            await low.queue_bind(queue, OUTCOMES, binding_key)
            await low.basic_consume(queue, received, no_ack=True)
        while True:
            yield _receipt(await inbox.get())


def expected_receipts(body: bytes) -> int | None:
    """How many final receipts a request brings: one for each named user, one for a session or for a wrong request.

    None where only the bridge can know: for everyone. A batch brings the sum over its elements.
    """
    try:
        document = json.loads(body)
    except ValueError:
        return 1
    if not isinstance(document, list):
        document = [document]
    total = 0
    for request in document:
        to = request.get("to") if isinstance(request, dict) else None
        if isinstance(to, dict) and to.get("all"):
            return None
        users = to.get("users") if isinstance(to, dict) else None
        named = {user for user in users if isinstance(user, str)} if isinstance(users, list) else ()
        total += max(1, len(named))
    return max(1, total)


class _Rest:
    """Counts the pushes of which no further receipt is to be expected soon."""

    def __init__(self) -> None:
        self._final = 0
        self._ended: set[tuple[object, ...]] = set()
        self._kept: set[tuple[object, ...]] = set()

    @property
    def count(self) -> int:
        """Pushes that are final, and those kept for an absent user, which may take days."""
        return self._final + len(self._kept)

    def heard(self, receipt: Mapping[str, Any]) -> None:
        """Count a receipt. The final one may come before the one that says `stored`."""
        key = receipt["tenant"], receipt["push_id"], receipt["user_id"]
        if receipt["final"]:
            self._final += 1
            self._ended.add(key)
        if key in self._ended or receipt["outcome"] != "stored" or receipt["reason"] == "awaiting_proof":
            self._kept.discard(key)
        else:
            self._kept.add(key)


def _unheard(events: Sequence[Event]) -> Iterator[tuple[int, str]]:
    """Channels on which nothing is delivered any more, each with the cause, though the connection lives."""
    for event in events:
        if type(event) is ConsumerCancelled:
            yield (
                event.channel,
                "the broker cancelled the consumer of the queue for receipts: the queue is gone",
            )
        elif type(event) is Closed and event.channel:
            yield event.channel, f"the broker closed the channel for receipts: {event}"


def _receipt(received: _Received) -> dict[str, Any]:
    if isinstance(received, BrokerUnavailable):
        raise received
    return received


def _message(request: PushMessage) -> Message:
    headers = {**request.headers, "x-push-id": request.push_id} if request.push_id else request.headers
    table = b""
    if headers:
        table, left_out = encoding.table(headers)
        if left_out:
            raise ValueError(f"AMQP can't express these headers: {', '.join(left_out)}")
    for name in ("reply_to", "correlation_id"):
        if not encoding.fits(getattr(request, name)):
            raise ValueError(f"{name} has over {SHORT_BYTES_MAX} bytes")
    # A new one each time, for us alone: the broker's returns name a message by it.
    message_id = str(uuid.uuid4())
    properties = encoding.properties(
        content_type=request.content_type,
        content_encoding=request.content_encoding,
        headers=table,
        correlation_id=request.correlation_id,
        reply_to=request.reply_to,
        expiration="" if request.expiration is None else str(max(0, round(request.expiration * 1000))),
        message_id=message_id,
        timestamp=request.timestamp,
        app_id=request.app_id,
    )
    key = encoding.cut(request.routing_key) or key_of_request(request.body, request.headers)
    return Message(PUSH, key, properties, request.body, message_id)


def _error(failure: Failure) -> BridgeError:
    return NotTaken(failure.why) if failure.returned else outage(failure.why)
