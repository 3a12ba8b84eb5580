"""The publishing side of the broker: receipts and dead letters, a batch in one write, confirms counted.

On a connection of its own: a broker under a memory or disk alarm stops reading from connections that
publish, and the acks must not be stuck behind that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import aio_pika

from bridge import wire as contract
from bridge.adapters import amqp_frames as frames
from bridge.adapters.amqp_frames import Blocked, Closed, Confirm, Event, Returned
from bridge.adapters.amqp_link import Link, LinkState, StateListener, Wire, channel
from bridge.adapters.amqp_topology import DEAD, OUTCOMES, DeclareMode, ensure
from bridge.errors import BridgeError
from bridge.model import DeadLetter, Outcome, Properties, Receipt, Reply, Row
from bridge.ports import Clock, ErrorHandler

CONFIRM_TIMEOUT = 2.0
"""Seconds to wait for the confirms of one write."""
SEND_TIMEOUT = 5.0
"""Seconds for a whole `send` or `bury`: what was not begun by then is given back unsent."""
WRITE_BYTES = 4 * 1024 * 1024
"""Bytes of messages in one write; a larger batch takes several, each after the confirms of the last."""
DETAIL_CHARS = 500
QUEUE_NAME_BYTES = 255
_NOT_KEPT = frozenset({"CC", "BCC", "x-push-reason", "x-push-detail", "x-push-id", "x-push-buried-at"})
"""Headers of a dead letter's original that are left out: the broker would route by the first two."""


T = TypeVar("T")


class ReplyQueueTooLong(BridgeError):
    """A `reply_to` that no AMQP queue can have; its receipt is dropped."""

    def __init__(self, push_id: str, size: int) -> None:
        self.push_id = push_id
        self.size = size
        super().__init__(f"reply_to has {size} bytes, a queue's name has at most {QUEUE_NAME_BYTES}")


class HeadersLeftOut(BridgeError):
    """Headers of a dead letter that AMQP, or one frame, can't hold; it was buried without them."""

    def __init__(self, push_id: str, names: Sequence[str]) -> None:
        self.push_id = push_id
        self.names = tuple(map(frames.legible, names))
        super().__init__(
            f"{len(names)} header(s) were left out of a dead letter: {', '.join(self.names)[:200]}"
        )


class Message(NamedTuple):
    """What is published. `properties` as `amqp_frames.properties` makes them; the key: 255 bytes at most."""

    exchange: str
    routing_key: bytes
    properties: bytes
    body: bytes
    mandatory_id: str = ""
    """Set for a mandatory message: its message_id, which no other message has. A return is known by it."""


class Failure(NamedTuple):
    """Why a message was not confirmed; `returned`: the broker had no queue for it."""

    why: str
    returned: bool = False


class _Batch:
    __slots__ = ("done", "failures", "open")

    def __init__(self, size: int) -> None:
        self.open = size
        self.failures: dict[int, Failure] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)


class Outbox:
    """Publishes on one confirming channel for as long as that lives. Several batches may be in flight."""

    def __init__(self, wire: Wire, number: int) -> None:
        self._wire = wire
        self._number = number
        self._next = 1
        self._open: dict[int, tuple[_Batch, int]] = {}
        """Delivery tag to the batch and the place in it, oldest first."""
        self._mandatory: dict[str, tuple[_Batch, int]] = {}
        """Message id of each mandatory message in flight to the same."""
        self.ended = ""
        """Why nothing can be published any more; empty while it can."""
        self.properties_max = wire.frame_max - 20
        """Bytes of properties that fit into one content header frame."""

    async def publish(self, messages: Sequence[Message], seconds: float) -> Mapping[int, Failure]:
        """Publish all in one write and await the confirms; return those that failed, by their place.

        After `seconds` what is unconfirmed has failed; it may arrive all the same.
        """
        if self.ended:
            return dict.fromkeys(range(len(messages)), Failure(self.ended))
        if not messages:
            return {}
        batch = _Batch(len(messages))
        first = self._next
        number, frame_max = self._number, self._wire.frame_max
        out: list[bytes] = []
        for place, message in enumerate(messages):
            exchange, key, properties, body, mandatory_id = message
            out.append(frames.publish_method(number, exchange, key, bool(mandatory_id)))
            out.append(frames.content(number, properties, body, frame_max))
            self._open[first + place] = (batch, place)
            if mandatory_id:
                self._mandatory[mandatory_id] = (batch, place)
        self._next = first + len(messages)
        why = f"not confirmed within {seconds:g} s"
        try:
            if not self._wire.write(b"".join(out)):
                why = "the connection was lost"
                return self._forget(batch, first, why)
            async with asyncio.timeout(seconds):
                await batch.done
        except TimeoutError:
            return self._forget(batch, first, why)
        except BaseException:
            self._forget(batch, first, "cancelled")
            raise
        return batch.failures

    def happened(self, events: Iterable[Event]) -> None:
        """Count confirms and returns of this channel, and notice its end."""
        number = self._number
        for event in events:
            if type(event) is Confirm:
                if event.channel == number:
                    self._confirmed(event)
            elif type(event) is Returned:
                place = self._mandatory.pop(event.message_id, None)
                if place is not None:
                    place[0].failures[place[1]] = Failure(
                        f"returned by the broker: {event.text}", returned=True
                    )
            elif type(event) is Closed:
                if event.channel in (0, number):
                    self.end(f"the broker closed the channel: {event}")
            elif type(event) is Blocked:
                self.fail_open(f"the broker blocks publishers: {event.why}")

    def end(self, why: str) -> None:
        """Nothing can be published any more; everything in flight has failed."""
        self.ended = self.ended or why
        self.fail_open(why)

    def fail_open(self, why: str) -> None:
        """Give up what is in flight; a confirm that comes later changes nothing."""
        failed, self._open = self._open, {}
        self._mandatory.clear()
        for batch, place in failed.values():
            batch.failures.setdefault(place, Failure(why))
            batch.settle()

    def _confirmed(self, confirm: Confirm) -> None:
        if confirm.multiple:
            open_ = self._open
            tags = []
            for tag in open_:
                if tag > confirm.tag:
                    break
                tags.append(tag)
            for tag in tags:
                self._settle(tag, confirm.ok)
        else:
            self._settle(confirm.tag, confirm.ok)

    def _settle(self, tag: int, ok: bool) -> None:
        place = self._open.pop(tag, None)
        if place is None:
            return
        if not ok:
            place[0].failures.setdefault(place[1], Failure("refused by the broker (basic.nack)"))
        place[0].settle()

    def _forget(self, batch: _Batch, first: int, why: str) -> Mapping[int, Failure]:
        for tag in range(first, self._next):
            place = self._open.get(tag)
            if place is not None and place[0] is batch:
                del self._open[tag]
                batch.failures.setdefault(place[1], Failure(why))
        for name in [name for name, place in self._mandatory.items() if place[0] is batch]:
            del self._mandatory[name]
        return batch.failures


class Publisher:
    """Publishes for as long as it is entered; fills Receipts, DeadLetters and Answers."""

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
    ) -> None:
        self._clock = clock
        self._errors = errors
        self._outcome_events = outcome_events
        self._declare = declare
        self._link = Link(url, name, self, clock=clock, errors=errors, on_state=on_state)
        self._outbox: Outbox | None = None

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

    async def set_up(self, connection: aio_pika.Connection, wire: Wire) -> None:
        """Make sure of the topology, then open the channel."""
        await ensure(connection, self._declare)
        opened = await channel(connection, confirms=True)
        wire.tap(opened.number)
        self._outbox = Outbox(wire, opened.number)

    def happened(self, events: Sequence[Event]) -> None:
        """Confirms, and whatever ends the channel."""
        outbox = self._outbox
        if outbox is None:
            return
        outbox.happened(events)
        if outbox.ended:
            self._outbox = None
            self._link.give_up(outbox.ended)

    def lost(self, cause: str) -> None:
        """The connection is gone: everything in flight has failed."""
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.end(cause)

    # --- Receipts ---

    @property
    def blocked(self) -> bool:
        """See the port: a memory or disk alarm, or the broker is away."""
        return self._outbox is None or self._link.state is not LinkState.OPEN

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        """See the port."""
        if self.blocked:
            return receipts
        return await self._publish(receipts, self._receipt)

    def _receipt(self, receipt: Receipt) -> list[Message]:
        row = receipt.row
        messages: list[Message] = []
        announce = receipt.announce and self._outcome_events
        if not announce and not receipt.replies:
            return messages
        body = contract.receipt_body(row)
        headers = _receipt_headers(row)
        if announce:
            messages.append(
                Message(
                    OUTCOMES,
                    outcome_key(row.outcome, row.event),
                    _receipt_properties(row.key.push_id, headers, ""),
                    body,
                )
            )
        for reply in receipt.replies:
            key = self._reply_key(row, reply)
            if key:
                properties = _receipt_properties(row.key.push_id, headers, reply.correlation_id)
                told = contract.receipt_body(row, differs=True) if reply.differs else body
                messages.append(Message("", key, properties, told))
        return messages

    def _reply_key(self, row: Row, reply: Reply) -> bytes:
        key = frames.octets(reply.queue)
        if len(key) > QUEUE_NAME_BYTES:
            error = ReplyQueueTooLong(row.key.push_id, len(key))
            self._errors.handle(error, "receipts.send", {"push_id": row.key.push_id})
            return b""
        return key

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
        table, left_out = frames.table({**kept, **ours})
        properties = _letter_properties(original, table)
        if outbox is not None and len(properties) > outbox.properties_max:
            table, _ = frames.table(ours)
            properties = _letter_properties(original, table)
            left_out = list(kept)
        if left_out:
            error = HeadersLeftOut(letter.push_id, left_out)
            self._errors.handle(error, "dead_letters.bury", {"push_id": letter.push_id})
        return [Message(DEAD, letter.reason.value.encode(), properties, letter.body)]

    # --- Answers ---

    async def answer(self, reply: Reply, body: bytes) -> bool:
        """See the port."""
        return not await self._publish([(reply, body)], self._answer)

    def _answer(self, answer: tuple[Reply, bytes]) -> list[Message]:
        reply, body = answer
        key = frames.octets(reply.queue)
        if len(key) > QUEUE_NAME_BYTES:
            self._errors.handle(ReplyQueueTooLong("", len(key)), "control.answer", {})
            return []
        properties = frames.properties(
            content_type="application/json", correlation_id=reply.correlation_id, type="push.control"
        )
        return [Message("", key, properties, body)]

    # --- All ---

    async def _publish(self, things: Sequence[T], encode: Callable[[T], list[Message]]) -> Sequence[T]:
        """Publish in writes of a limited size; return the things of which any message was not confirmed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SEND_TIMEOUT
        unconfirmed: list[T] = []
        at = 0
        while at < len(things):
            outbox = self._outbox
            if outbox is None or self.blocked or loop.time() >= deadline:
                unconfirmed += things[at:]
                break
            messages: list[Message] = []
            owners: list[int] = []
            size = 0
            while at < len(things) and size < WRITE_BYTES:
                for message in encode(things[at]):
                    messages.append(message)
                    owners.append(at)
                    size += len(message.body)
                at += 1
            failures = await outbox.publish(messages, CONFIRM_TIMEOUT)
            unconfirmed += [things[i] for i in sorted({owners[place] for place in failures})]
        return unconfirmed


def rfc3339(seconds: float) -> str:
    """A moment as people and programs read it: UTC, to the second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


@lru_cache(maxsize=4096)
def outcome_key(outcome: Outcome, event: str) -> bytes:
    """The routing key of a receipt on push.outcomes: `<outcome>.<event>`, cut at 255 bytes as a key must be."""
    return frames.cut(f"{outcome.value}.{event}")


@lru_cache(maxsize=256)
def _tenant_header(tenant: str) -> bytes:
    return frames.table({"tenant": tenant})[0]


def _receipt_headers(row: Row) -> bytes:
    tenant = row.key.tenant
    if row.traceparent:
        given = {"traceparent": row.traceparent}
        return frames.table({"tenant": tenant, **given} if tenant else given)[0]
    return _tenant_header(tenant) if tenant else b""


def _receipt_properties(push_id: str, headers: bytes, correlation_id: str) -> bytes:
    return frames.properties(
        content_type="application/json",
        headers=headers,
        correlation_id=correlation_id,
        # The body has it whole. A part of it would be the same for another push.
        message_id=push_id if frames.fits(push_id) else "",
        type="push.outcome",
    )


def _letter_properties(original: Properties, headers: bytes) -> bytes:
    """The original's properties, but for those that the broker would act on: expiration and user_id."""
    stamp = original.timestamp
    return frames.properties(
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        headers=headers,
        correlation_id=original.correlation_id,
        reply_to=original.reply_to,
        message_id=original.message_id,
        timestamp=int(stamp) if stamp is not None and 0 <= stamp < 1 << 63 else None,
        app_id=original.app_id,
    )
