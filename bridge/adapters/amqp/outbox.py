"""Publish on one confirming channel: a batch in one write, confirms and returns counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.connection import Tap
from bridge.adapters.amqp.frames import Blocked, Closed, Confirm, Event, Returned

_REFUSALS: Final = (403, 406)
"""Codes with which the broker closes a channel because of one message: ACCESS_REFUSED where this user has no
permission, PRECONDITION_FAILED where the message is too large."""


class Message(NamedTuple):
    """A message to publish. `properties` as `encoding.properties` makes them; the key has 255 bytes at most."""

    exchange: str
    routing_key: bytes
    properties: bytes
    body: bytes
    mandatory_id: str = ""
    """Set for a mandatory message: its message_id, which no other message has. A return is known by it."""


class Failure(NamedTuple):
    """Why a message was not confirmed."""

    why: str
    returned: bool = False
    """The broker had no queue for it."""
    refused: bool = False
    """The broker refuses this very message, until somebody changes something there."""
    nacked: bool = False
    """The broker has not taken it (basic.nack): its queue is full."""


class _Batch:
    __slots__ = ("done", "failures", "open")

    def __init__(self, size: int) -> None:
        self.open = size
        self.failures: dict[int, Failure] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, place: int) -> None:
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)


class _Each:
    """Messages whose ends are told one by one."""

    __slots__ = ("_told", "failures")

    def __init__(self, told: Callable[[int, Failure | None], None]) -> None:
        self.failures: dict[int, Failure] = {}
        self._told = told

    def settle(self, place: int) -> None:
        self._told(place, self.failures.pop(place, None))


class _Open:
    """A message that is not confirmed."""

    __slots__ = ("batch", "mandatory_id", "place")

    def __init__(self, batch: _Batch | _Each, place: int, mandatory_id: str) -> None:
        self.batch = batch
        self.place = place
        self.mandatory_id = mandatory_id


class Outbox:
    """Publishes on one confirming channel while it is open. Several batches may be under way."""

    def __init__(self, tap: Tap, number: int) -> None:
        """The channel confirms; its confirms and returns are taken out of the stream from now on."""
        tap.watch(number)
        self._tap = tap
        self.number = number
        """The channel's number."""
        self._next = 1
        self._open: dict[int, _Open] = {}
        """By delivery tag, oldest first."""
        self._mandatory: dict[str, int] = {}
        """Message id to delivery tag, for those of them that are mandatory."""
        self.ended = ""
        """Why nothing can be published any more; empty while it can."""
        self.refusal: Closed | None = None
        """What the broker said when it closed the channel because of a message: any one that was not confirmed."""
        self.properties_max = tap.frame_max - 20
        """Bytes of properties that fit into one content header frame."""

    @property
    def is_fresh(self) -> bool:
        """Whether nothing was published on it yet: then a refusal can only mean the next batch."""
        return self._next == 1

    async def publish(self, messages: Sequence[Message], seconds: float) -> Mapping[int, Failure]:
        """Publish all in one write and await the confirms; return those that failed, by their place.

        Messages that are not confirmed after `seconds` have failed; they may arrive all the same.
        """
        if self.ended:
            return dict.fromkeys(range(len(messages)), Failure(self.ended))
        if not messages:
            return {}
        batch = _Batch(len(messages))
        first = self._next
        why = f"not confirmed within {seconds:g} s"
        try:
            if not self._write(messages, batch):
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

    def post(self, messages: Sequence[Message], told: Callable[[int, Failure | None], None]) -> bool:
        """Publish all in one write. Each is mandatory, and `told` gets its place and why it failed, or None, once it is
        known; it must not raise. False: nothing was written, and nothing is told.

        `forget` ends the waiting for one.
        """
        if self.ended:
            return False
        batch, first = _Each(told), self._next
        if self._write(messages, batch):
            return True
        for tag in range(first, self._next):
            self._mandatory.pop(self._open.pop(tag).mandatory_id, None)
        return False

    def forget(self, mandatory_id: str) -> None:
        """Do not wait for this message any more, nor tell its end; idempotent."""
        tag = self._mandatory.pop(mandatory_id, None)
        if tag is not None:
            del self._open[tag]

    def _write(self, messages: Sequence[Message], batch: _Batch | _Each) -> bool:
        first = self._next
        number, frame_max = self.number, self._tap.frame_max
        out: list[bytes] = []
        to: tuple[str, bytes, bool] | None = None
        method = b""
        for place, message in enumerate(messages):
            exchange, key, properties, body, mandatory_id = message
            if to is None or exchange != to[0] or key != to[1] or bool(mandatory_id) is not to[2]:
                to = exchange, key, bool(mandatory_id)
                method = encoding.publish_method(number, *to)
            out.append(method)
            out.append(encoding.content(number, properties, body, frame_max))
            self._open[first + place] = _Open(batch, place, mandatory_id)
            if mandatory_id:
                self._mandatory[mandatory_id] = first + place
        self._next = first + len(messages)
        return self._tap.write(b"".join(out))

    def happened(self, events: Iterable[Event]) -> None:
        """Count confirms and returns of this channel, and notice its end."""
        number = self.number
        for event in events:
            if type(event) is Confirm:
                if event.channel == number:
                    self._confirmed(event)
            elif type(event) is Returned:
                # Its confirm follows.
                tag = self._mandatory.get(event.message_id)
                if tag is not None:
                    known = self._open[tag]
                    known.batch.failures[known.place] = Failure(
                        f"returned by the broker: {event.text}", returned=True
                    )
            elif type(event) is Closed:
                if event.channel == number and event.code in _REFUSALS:
                    self.refusal = event
                if event.channel in (0, number):
                    self.end(f"the broker closed the channel: {event}")
            elif type(event) is Blocked:
                self.fail_open(f"the broker blocks publishers: {event.why}")

    def end(self, why: str) -> None:
        """Nothing can be published any more; what is not confirmed has failed."""
        self.ended = self.ended or why
        self.fail_open(why)

    def fail_open(self, why: str) -> None:
        """Give up what is not confirmed; a later confirm changes nothing."""
        failed, self._open = self._open, {}
        self._mandatory.clear()
        for known in failed.values():
            known.batch.failures.setdefault(known.place, Failure(why))
            known.batch.settle(known.place)

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
        known = self._open.pop(tag, None)
        if known is None:
            return
        if known.mandatory_id:
            self._mandatory.pop(known.mandatory_id, None)
        if not ok:
            failure = Failure("refused by the broker (basic.nack)", nacked=True)
            known.batch.failures.setdefault(known.place, failure)
        known.batch.settle(known.place)

    def _forget(self, batch: _Batch, first: int, why: str) -> Mapping[int, Failure]:
        for tag in range(first, self._next):
            known = self._open.get(tag)
            if known is not None and known.batch is batch:
                del self._open[tag]
                self._mandatory.pop(known.mandatory_id, None)
                batch.failures.setdefault(known.place, Failure(why))
        return batch.failures
