"""The publishing side of the broker: receipts and dead letters, a batch in one write, confirms counted.

It has a connection of its own: a broker with a memory or disk alarm stops reading from connections that publish, and
that must not hold up acks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import aio_pika

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.announcing import one_write, outcome_events, receipt_headers, receipt_properties
from bridge.adapters.amqp.connection import Tap, channel
from bridge.adapters.amqp.fallbacks import FallbacksUnroutable, fallback_message
from bridge.adapters.amqp.frames import Event
from bridge.adapters.amqp.grammar import SHORT_BYTES_MAX
from bridge.adapters.amqp.link import Link, LinkState, StateListener
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.adapters.amqp.search import Kind, PublishRefused, Search
from bridge.adapters.amqp.topology import (
    DEAD,
    OUTCOMES,
    OUTGOING,
    PUSH,
    REQUESTS,
    SESSIONS,
    DeclareMode,
    ensure,
)
from bridge.core.contract.receipts import receipt_body
from bridge.core.contract.session_events import session_event, session_event_word
from bridge.core.errors import BridgeError, BrokerUnavailable
from bridge.core.model.ledger import Closed, Opened
from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, DueFallback, Receipt, Reply
from bridge.core.ports.broker import Published
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.scheduling import Release

WRITE_TIMEOUT = 2.0
"""Seconds to wait for the confirms of one write."""
SEND_TIMEOUT = 5.0
"""Seconds for a whole `send` or `bury`; what was not begun by then is returned unsent."""
WRITE_BYTES = 4 * 1024 * 1024
"""Bytes of messages in one write. A larger batch takes several, each after the confirms of the one before."""
DETAIL_CHARS = 500
_NOT_KEPT = frozenset({"CC", "BCC", "x-push-reason", "x-push-detail", "x-push-id", "x-push-buried-at"})
"""Headers of the original that a dead letter does not get: the broker would route by the first two."""


T = TypeVar("T")


class ReplyQueueTooLong(BridgeError):
    """A `reply_to` that can't be the name of an AMQP queue; its receipt is dropped."""

    def __init__(self, push_id: str, size: int) -> None:
        self.push_id = push_id
        self.size = size
        super().__init__(f"reply_to has {size} bytes, a queue's name has at most {SHORT_BYTES_MAX}")


class HeadersLeftOut(BridgeError):
    """Headers of a message that AMQP, or one frame, can't hold; it was published without them."""

    def __init__(self, push_id: str, names: Sequence[str]) -> None:
        self.push_id = push_id
        self.names = tuple(map(encoding.legible, names))
        super().__init__(f"{len(names)} header(s) were left out of a message: {', '.join(self.names)[:200]}")


class ReleasesUnroutable(BridgeError):
    """No queue is bound to the exchange `push` for the routing keys of some scheduled pushes: they go to the queue of
    requests itself."""

    def __init__(self, count: int, routing_key: bytes) -> None:
        self.count = count
        self.routing_key = routing_key.decode("utf-8", "backslashreplace")
        super().__init__(
            f"{count} scheduled push(es) had no way from {PUSH} to {REQUESTS}: no binding for routing key "
            f"{self.routing_key!r}" + (" and others" if count > 1 else "")
        )


class ReceiptPublisher:
    """Publishes inside its `async with`; fills all ports that publish but Inbound and NodePost."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        errors: ErrorHandler,
        outcome_events: bool = True,
        declare: DeclareMode = DeclareMode.ACTIVE,
        on_state: StateListener | None = None,
        name: str = "bridge publisher",
        on_given_up: Callable[[int], None] = lambda events: None,
        on_events_refused: Callable[[str], None] = lambda cause: None,
    ) -> None:
        """`on_given_up` gets the number of outcome events that are given up, since the broker refuses their routing
        key. `on_events_refused` gets the reason when the broker refuses all outcome events, and an empty text when it
        takes them again; meanwhile every receipt that is to be announced is owed."""
        self._clock = clock
        self._errors = errors
        self._outcome_events = outcome_events
        self._declare = declare
        self._link = Link(url, name, self, clock=clock, errors=errors, on_state=on_state)
        self._outbox: Outbox | None = None
        self._connection: tuple[aio_pika.Connection, Tap] | None = None
        self._on_given_up = on_given_up
        self._on_events_refused = on_events_refused
        self._events_refused = False
        self._search = Search(self._channel, clock, self._refused)
        self._turn = asyncio.Lock()
        """Held while something is published: with two batches at once, nobody could tell which one was refused."""

    # --- Life ---

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._link.__aexit__(kind, exc, tb)
        self.lost("closed")

    @property
    def state(self) -> LinkState:
        """Where the link to the broker is in its life."""
        return self._link.state

    @property
    def cause(self) -> str:
        """Why nothing can be published; empty when it can."""
        return self._link.cause

    # --- LinkUser ---

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Ensure the topology, then open the channel."""
        await ensure(connection, self._declare, OUTGOING)
        self._outbox = Outbox(tap, (await channel(connection, confirms=True)).number)
        self._connection = connection, tap

    def happened(self, events: Sequence[Event]) -> None:
        """Confirms, and whatever ends the channel."""
        outbox = self._outbox
        if outbox is None:
            return
        outbox.happened(events)
        if outbox.ended:
            self._outbox = None
            if outbox.refusal is None or self._connection is None or not self._turn.locked():
                self._link.give_up(outbox.ended)
            else:
                # The publish that is under way opens another channel.
                self._connection[1].unwatch(outbox.number)

    def lost(self, cause: str) -> None:
        """The connection is lost: what is not confirmed has failed."""
        outbox, self._outbox = self._outbox, None
        self._connection = None
        if outbox is not None:
            outbox.end(cause)

    async def _channel(self) -> Outbox | None:
        """The open channel, or a new one; None where the connection gives none."""
        if self._outbox is not None or self._connection is None or self._link.state is not LinkState.OPEN:
            return self._outbox
        used = self._connection
        try:
            connection, tap = used
            made = Outbox(tap, (await channel(connection, confirms=True)).number)
        except BrokerUnavailable as gone:
            self._link.give_up(gone.cause)
            return None
        if self._connection is used:
            self._outbox = made
        return self._outbox

    def _refused(self, kind: Kind, cause: str) -> None:
        error = PublishRefused(kind, cause, given_up=kind.exchange == OUTCOMES and kind.key is not None)
        self._errors.handle(error, "broker.publish", {"exchange": kind.exchange})

    # --- Receipts ---

    @property
    def blocked(self) -> bool:
        """See the port: a memory or disk alarm, or no connection."""
        return self._outbox is None or self._link.state is not LinkState.OPEN

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """See the port."""
        if self.blocked:
            return receipts
        announced = [receipt.row for receipt in receipts if receipt.announce and self._outcome_events]
        return await self._publish(receipts, partial(self._receipt, outcome_events(announced)))

    def _receipt(self, events: Iterator[Message], receipt: Receipt) -> list[Message]:
        messages = [next(events)] if receipt.announce and self._outcome_events else []
        if not receipt.replies:
            return messages
        row = receipt.row
        body = messages[0].body if messages else receipt_body(row)
        headers = receipt_headers(row.key.tenant, row.traceparent)
        for reply in receipt.replies:
            key = self._reply_key(reply, "receipts.send", row.key.push_id)
            if key:
                properties = receipt_properties(row.key.push_id, headers, reply.correlation_id)
                told = receipt_body(row, differs=True) if reply.differs else body
                messages.append(Message("", key, properties, told))
        return messages

    def _reply_key(self, reply: Reply, where: str, push_id: str = "") -> bytes:
        """The routing key of a reply's queue; empty, and reported, where no queue can have this name."""
        key = encoding.octets(reply.queue)
        if len(key) <= SHORT_BYTES_MAX:
            return key
        self._errors.handle(
            ReplyQueueTooLong(push_id, len(key)), where, {"push_id": push_id} if push_id else {}
        )
        return b""

    # --- DeadLetters ---

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """See the port."""
        if self.blocked:
            return letters
        return await self._publish(letters, self._letter)

    def _letter(self, letter: DeadLetter) -> list[Message]:
        outbox = self._outbox
        original = letter.properties
        ours = {
            "x-push-reason": letter.reason.value,
            "x-push-detail": letter.detail[:DETAIL_CHARS],
            "x-push-id": letter.push_id,
            "x-push-buried-at": rfc3339(self._clock.time()),
        }
        kept = {name: value for name, value in original.headers.items() if name not in _NOT_KEPT}
        table, left_out = encoding.table({**kept, **ours})
        properties = _letter_properties(original, table)
        if outbox is not None and len(properties) > outbox.properties_max:
            table, _ = encoding.table(ours)
            properties = _letter_properties(original, table)
            left_out = list(kept)
        if left_out:
            error = HeadersLeftOut(letter.push_id, left_out)
            self._errors.handle(error, "dead_letters.bury", {"push_id": letter.push_id})
        return [Message(DEAD, letter.reason.value.encode(), properties, letter.body)]

    # --- Fallbacks ---

    async def publish(self, fallbacks: Sequence[DueFallback]) -> Published:
        """See the port."""
        if self.blocked:
            return Published(fallbacks, 0)
        now = self._clock.time()
        nowhere: list[Message] = []
        unsent = await self._publish(fallbacks, lambda one: [fallback_message(one, now)], nowhere)
        if nowhere:
            key = nowhere[0].routing_key.decode("utf-8", "backslashreplace")
            self._errors.handle(FallbacksUnroutable(len(nowhere), key), "fallbacks.publish", {})
        return Published(unsent, len(nowhere))

    # --- Answers ---

    async def answer(self, reply: Reply, body: bytes) -> bool:
        """See the port."""
        return not await self._publish([(reply, body)], self._answer)

    def _answer(self, answer: tuple[Reply, bytes]) -> list[Message]:
        reply, body = answer
        key = self._reply_key(reply, "control.answer")
        if not key:
            return []
        properties = encoding.properties(
            content_type="application/json", correlation_id=reply.correlation_id, type="push.control"
        )
        return [Message("", key, properties, body)]

    # --- SessionEvents ---

    async def announce(self, events: Sequence[Opened | Closed]) -> Sequence[Opened | Closed]:
        """See the port."""
        if self.blocked:
            return events
        return await self._publish(events, self._session_event)

    def _session_event(self, event: Opened | Closed) -> list[Message]:
        word = session_event_word(event)
        properties = encoding.properties(content_type="application/json", type="push.session")
        return [Message(SESSIONS, word.encode(), properties, session_event(event))]

    # --- Releases ---

    async def release(self, releases: Sequence[Release]) -> Sequence[Release]:
        """See the port."""
        if self.blocked:
            return releases
        nowhere: list[Message] = []
        unsent = await self._publish(releases, self._released, nowhere)
        if not nowhere:
            return unsent
        # Others must not wait behind them: they go where they came from, past the exchange.
        lost = {message.mandatory_id for message in nowhere}
        self._errors.handle(ReleasesUnroutable(len(nowhere), nowhere[0].routing_key), "schedule.release", {})
        back = [release for release in releases if release.id in lost]
        return [*unsent, *await self._publish(back, self._released_home)]

    def _released_home(self, release: Release) -> list[Message]:
        return [one._replace(exchange="", routing_key=REQUESTS.encode()) for one in self._released(release)]

    def _released(self, release: Release) -> list[Message]:
        outbox = self._outbox
        original = release.properties
        table, left_out = encoding.table(original.headers)
        properties = _release_properties(original, table)
        if outbox is not None and len(properties) > outbox.properties_max:
            ours = {name: value for name, value in original.headers.items() if name.startswith("x-push-")}
            table, _ = encoding.table(ours)
            properties = _release_properties(original, table)
            left_out = [name for name in original.headers if name not in ours]
        if left_out:
            push_id = str(original.headers.get("x-push-id", ""))
            self._errors.handle(HeadersLeftOut(push_id, left_out), "schedule.release", {"push_id": push_id})
        return [Message(PUSH, release.key, properties, release.body, release.id)]

    # --- All ---

    async def _publish(
        self,
        things: Sequence[T],
        encode: Callable[[T], list[Message]],
        nowhere: list[Message] | None = None,
    ) -> Sequence[T]:
        """Publish in writes of a limited size; return the things of which any message was not confirmed. `nowhere` gets
        mandatory messages that no queue wanted: they count as confirmed.

        Outcome events whose routing key this user may not use are given up instead: a row that owed them could never
        be settled.
        """
        async with self._turn:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + SEND_TIMEOUT
            unconfirmed: list[T] = []
            at = 0
            while at < len(things):
                if self.blocked or loop.time() >= deadline:
                    unconfirmed += things[at:]
                    break
                waiting: list[T] = []
                making = encode if self._search.idle else self._unless_refused(encode, waiting)
                messages, owners, at = one_write(things, at, making, WRITE_BYTES)
                unconfirmed += waiting
                failures = await self._search.publish(messages, WRITE_TIMEOUT, deadline)
                if nowhere is not None:
                    nowhere += [messages[place] for place, failure in failures.items() if failure.returned]
                    failures = {place: f for place, f in failures.items() if not f.returned}
                if failures or self._events_refused:
                    given_up = self._given_up(messages, failures)
                    left = {owners[place] for place in failures.keys() - set(given_up)}
                    unconfirmed += [things[i] for i in sorted(left)]
                    # What is left is sent again as a whole, its event too: that event is counted then.
                    events = sum(owners[place] not in left for place in given_up)
                    if events:
                        self._on_given_up(events)
            return unconfirmed

    def _unless_refused(
        self, encode: Callable[[T], list[Message]], waiting: list[T]
    ) -> Callable[[T], list[Message]]:
        """As `encode`, but a thing with a message that was refused a moment ago goes to `waiting`."""

        def making(thing: T) -> list[Message]:
            made = encode(thing)
            if any(self._waits(message) for message in made):
                waiting.append(thing)
                return []
            return made

        return making

    def _given_up(self, messages: Sequence[Message], failures: Mapping[int, Failure]) -> list[int]:
        """The places of outcome events to give up, since only their routing keys are refused."""
        refused = self._search.refuses_all(OUTCOMES)
        if refused:
            self._events_refused = True
            self._on_events_refused(refused)
            return []
        events = [place for place, message in enumerate(messages) if message.exchange == OUTCOMES]
        if self._events_refused and any(place not in failures for place in events):
            self._events_refused = False
            self._on_events_refused("")
        return [place for place in events if place in failures and failures[place].refused]

    def _waits(self, message: Message) -> bool:
        """Whether a message like this was refused a moment ago. It stays owed, and so does
        what belongs to it, which would else be sent twice."""
        if message.exchange == OUTCOMES:
            return bool(self._search.refuses_all(OUTCOMES))
        return self._search.known(message) is not None


def rfc3339(seconds: float) -> str:
    """A time as RFC 3339 writes it: UTC, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _letter_properties(original: Properties, headers: bytes) -> bytes:
    """The original's properties without those that the broker would act on: expiration and user_id."""
    stamp = original.timestamp
    return encoding.properties(
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        headers=headers,
        correlation_id=original.correlation_id,
        reply_to=original.reply_to,
        message_id=original.message_id,
        timestamp=int(stamp) if stamp is not None and 0 <= stamp < 1 << 63 else None,
        app_id=original.app_id,
    )


def _release_properties(original: Properties, headers: bytes) -> bytes:
    return encoding.properties(
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        headers=headers,
        correlation_id=original.correlation_id,
        reply_to=original.reply_to,
        message_id=original.message_id,
        app_id=original.app_id,
    )
