"""The queue `push.dead`, for people: look at letters, publish them again, delete them.

A look takes letters without acknowledging them, and gives them back by closing the channel. With one consumer and one
prefetch that covers them all, a quorum queue puts them back in their order; after a look at a part, that part comes
last. (Measured on RabbitMQ 3.10: basic.get makes a consumer for each message, and more than 32 of them shuffle the
queue.)
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import aio_pika
import aiormq.abc
import msgspec
from aiormq.exceptions import ChannelNotFoundEntity

from bridge.adapters.amqp import encoding, frames
from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, opened
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.frames import Delivered, Event
from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.amqp.publish import rfc3339
from bridge.adapters.amqp.refusals import outage
from bridge.adapters.amqp.topology import DEAD
from bridge.core.contract.fields import is_id
from bridge.core.contract.requests import is_payload_only
from bridge.core.errors import BridgeError, BrokerUnavailable
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import ID_MAX

LOOK_MAX = 65_535
"""Letters that one look can take: AMQP's prefetch has 16 bits."""
QUIET = 5.0
"""Seconds without a letter after which somebody else must have taken the rest."""
BACK_WAIT = 5.0
"""Seconds to wait until the letters are back in the queue. Later they come back by themselves."""
BACK_STEP = 0.02
"""Seconds between two looks whether they are back."""
REPLAY_BATCH = 100
"""Letters published again in one write; a crash between confirm and ack repeats at most so many."""

ENDED_FOR_USERS = frozenset((Reason.QUEUE_EXPIRATION, Reason.POISON, Reason.DELIVERY_LIMIT, Reason.GIVEN_UP))
"""Reasons of letters whose users may have final rows; a replay under the old id would be answered from those."""
CHANGED_BY_BROKER = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")
"""Prefixes of headers that the broker adds."""
_NOT_REPLAYED = frozenset(
    ("CC", "BCC", "x-push-reason", "x-push-detail", "x-push-buried-at", "x-push-published-ms")
)
_ABOUT_THE_LETTER = _NOT_REPLAYED | {"x-push-id", "x-push-replayed-at", "x-push-replay-of"}
"""Headers that say nothing about what is pushed to whom."""
MARK_CHARS: Final = 12
"""Hexadecimal digits that tell new ids apart; so many that nobody chooses the same by accident."""
_MARKED = re.compile(rf"(.+)/again-[0-9a-f]{{{MARK_CHARS}}}")


class NoSuchQueue(BridgeError):
    """The broker has no queue of this name."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        super().__init__(f"there is no queue {queue}: has a bridge ever run with this broker (vhost)?")


class Letter(msgspec.Struct, frozen=True):
    """One message of push.dead, with the texts of its properties as in `Properties`."""

    tag: int
    """Its delivery tag, valid while its `Pile` is open."""
    body: bytes
    headers: Mapping[str, Any]
    message_id: str = ""
    correlation_id: str = ""
    reply_to: str = ""
    app_id: str = ""
    content_type: str = ""
    content_encoding: str = ""
    timestamp: datetime | None = None
    left_out: int = 0
    """How many bytes of a body over 1 MiB were cut off. The bridge itself buries no such body."""

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return len(self.body) + self.left_out

    @property
    def id(self) -> str:
        """The push id of its row, or the message id if somebody else put it there."""
        return self._header("x-push-id") or self.message_id

    @property
    def reason(self) -> str:
        """Why it is here; empty if somebody else put it there."""
        return self._header("x-push-reason")

    @property
    def detail(self) -> str:
        """The sentence for people."""
        return self._header("x-push-detail")

    @property
    def tenant(self) -> str:
        """The tenant that headers or body name, if they can be read."""
        given = self._header("x-push-tenant")
        if given or is_payload_only(self.headers):
            return given
        try:
            return _TENANT.decode(self.body).tenant
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""

    @property
    def buried_at(self) -> datetime | None:
        """When the bridge put it here."""
        try:
            at = datetime.fromisoformat(self._header("x-push-buried-at"))
        except ValueError:
            return None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    @property
    def replayed_at(self) -> str:
        """When it was last published again before it came back; empty: never."""
        return self._header("x-push-replayed-at")

    def _header(self, name: str) -> str:
        value = self.headers.get(name)
        return value if isinstance(value, str) else ""


class _Tenant(msgspec.Struct):
    tenant: str = ""


_TENANT = msgspec.json.Decoder(_Tenant)


class Pile:
    """The letters of push.dead that are held now; made by `held`."""

    def __init__(
        self, low: aiormq.abc.AbstractChannel, inbox: asyncio.Queue[Letter | BrokerUnavailable]
    ) -> None:
        self._low = low
        self._inbox = inbox
        self.total = 0
        """Letters that were in the queue at the beginning and that nobody else held."""
        self.wanted = 0
        """How many of them are to be looked at."""
        self._consumers = 0
        """Consumers of the queue before we became one."""

    async def letters(self) -> AsyncIterator[Letter]:
        """The letters, oldest first; fewer than `wanted` if somebody else takes some. To be called once."""
        for _ in range(self.wanted):
            try:
                async with asyncio.timeout(QUIET):
                    letter = await self._inbox.get()
            except TimeoutError:
                return
            if isinstance(letter, BrokerUnavailable):
                raise letter
            yield letter

    async def _take(self, limit: int) -> None:
        self.total, self._consumers = await _counted(self._low)
        self.wanted = min(self.total, limit, LOOK_MAX)
        if self.wanted:
            await self._low.basic_qos(prefetch_count=self.wanted)
            await self._low.basic_consume(DEAD, never_called)

    async def _give_back(self, connection: aio_pika.Connection) -> None:
        """Close the channel, and wait until its letters are back in the queue."""
        async with border("give dead letters back", STEP_TIMEOUT):
            await self._low.close()
        if not self.wanted:
            return
        # A quorum queue learns of the closed channel a little later, and then drops the consumer and takes its letters
        # back in one step. If somebody else has become a consumer in the meantime, this waits for all of BACK_WAIT.
        with suppress(BrokerUnavailable):
            low = await channel(connection, confirms=False)
            async with border("wait for dead letters to be back", BACK_WAIT):
                while True:
                    _, consumers = await _counted(low)
                    if consumers <= self._consumers:
                        return
                    await asyncio.sleep(BACK_STEP)

    async def discard(self, letters: Sequence[Letter]) -> None:
        """Acknowledge these letters, which removes them for good. Raises BrokerUnavailable."""
        async with border("acknowledge dead letters", STEP_TIMEOUT):
            for letter in letters:
                await self._low.basic_ack(letter.tag)


async def _counted(low: aiormq.abc.AbstractChannel) -> tuple[int, int]:
    """How many letters the queue could hand out now, and how many consumers it has."""
    declared = await low.queue_declare(DEAD, passive=True)
    return declared.message_count or 0, declared.consumer_count or 0


@asynccontextmanager
async def held(url: str, limit: int) -> AsyncIterator[Pile]:
    """Hold the oldest `limit` letters; at the end, those that were not discarded are back in the queue.

    Meanwhile nobody else sees them. Raises NoSuchQueue and BrokerUnavailable; the letters go back then, too. Letters
    that the caller has not asked for yet are in memory, with at most 1 MiB each.
    """
    inbox: asyncio.Queue[Letter | BrokerUnavailable] = asyncio.Queue()

    def lost(cause: str) -> None:
        inbox.put_nowait(outage(cause))

    def happened(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delivered):
                inbox.put_nowait(_letter(event))

    async with opened(url, "bridge dead", happened, lost) as (connection, tap):
        low = await channel(connection, confirms=False)
        # Decoded here: the library would close the connection over a property that is not UTF-8.
        tap.watch(low.number)
        pile = Pile(low, inbox)
        try:
            async with border(f"consume {DEAD}", STEP_TIMEOUT):
                await pile._take(limit)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, ChannelNotFoundEntity):
                raise NoSuchQueue(DEAD) from error
            raise
        try:
            yield pile
        except Exception:
            with suppress(BrokerUnavailable):  # the first error says more
                await pile._give_back(connection)
            raise
        await pile._give_back(connection)


def _letter(delivery: Delivered) -> Letter:
    properties = delivery.properties
    return Letter(
        tag=delivery.tag,
        body=delivery.body,
        headers=properties.headers,
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        app_id=properties.app_id,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        timestamp=_moment(properties.timestamp),
        left_out=delivery.body_size - len(delivery.body),
    )


def _moment(seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):  # a publisher may claim any time
        return None


# --- Publishing again ------------------------------------------------------------------------------------


class Replayed(msgspec.Struct):
    """What a replay did, or would do."""

    looked_at: int = 0
    total: int = 0
    """Letters that were in the queue at the beginning."""
    replayed: list[tuple[str, str]] = []
    """(the letter's id, the id that it was published with)."""
    refused: list[tuple[str, str]] = []
    """(the letter's id, why it was kept)."""


async def replay(
    url: str,
    chosen: Callable[[Letter], bool],
    *,
    limit: int,
    now: float,
    new_ids: bool = False,
    dry_run: bool = False,
) -> Replayed:
    """Publish the chosen letters to exchange `push` again, and take each off push.dead once it is confirmed.

    A crash in between leaves it in both places with one id, so its push still has one row. The time of the first
    publication is left out, or an old push would end as `expired` at once. Raises BrokerUnavailable and NotTaken;
    letters that were not confirmed by then stay in push.dead.
    """
    done = Replayed()
    async with held(url, limit) as pile, Producer.connect(url, name="bridge dead replay") as producer:
        batch: list[tuple[Letter, PushMessage]] = []
        done.total = pile.total

        async def publish() -> None:
            if not dry_run:
                await producer.publish_all([outgoing for _, outgoing in batch])
                await pile.discard([letter for letter, _ in batch])
            done.replayed += [(letter.id, outgoing.push_id) for letter, outgoing in batch]
            batch.clear()

        async for letter in pile.letters():
            done.looked_at += 1
            if not chosen(letter):
                continue
            why = unfit(letter, new_ids=new_ids)
            if why:
                done.refused.append((letter.id, why))
                continue
            if len(batch) == REPLAY_BATCH:
                await publish()
            batch.append((letter, outgoing(letter, now, new_id=new_ids)))
        await publish()
    return done


def unfit(letter: Letter, *, new_ids: bool) -> str:
    """Why it would be of no use to publish this letter again; empty if it may be."""
    if not letter.reason or not is_id(letter.id):
        return "the bridge did not put it there"
    if letter.left_out or (letter.reason == Reason.TOO_LARGE and len(letter.body) <= frames.CUT_BYTES):
        return "only the beginning of its body was kept"
    if letter.reason in ENDED_FOR_USERS and not new_ids:
        return "its users have final rows: without --new-ids the replay would be answered from those"
    return ""


def outgoing(letter: Letter, now: float, *, new_id: bool) -> PushMessage:
    """The message that a replay of this letter publishes."""
    headers = {
        name: value
        for name, value in letter.headers.items()
        if name not in _NOT_REPLAYED and not name.startswith(CHANGED_BY_BROKER)
    }
    _, inexpressible = encoding.table(headers)
    for name in inexpressible:
        del headers[name]
    push_id, body = letter.id, letter.body
    if new_id:
        mark = mark_of(letter)
        push_id = marked(letter.id, mark)
        if not is_payload_only(letter.headers):
            body = _with_new_ids(body, push_id, mark)
    return PushMessage(
        body,
        {**headers, "x-push-replayed-at": rfc3339(now)},
        push_id=push_id,
        reply_to=letter.reply_to,
        correlation_id=letter.correlation_id,
        app_id=letter.app_id,
        content_type=letter.content_type,
        content_encoding=letter.content_encoding,
    )


def mark_of(letter: Letter) -> str:
    """What tells this letter from others with its id; the same at each look.

    Two copies of one message are one letter: headers that the broker or the bridge added do not count, nor does when it
    was published or who wants its receipt.
    """
    meaning = sorted(
        (name, repr(value))
        for name, value in letter.headers.items()
        if name.startswith("x-push-") and name not in _ABOUT_THE_LETTER
    )
    facts = hashlib.sha256(repr((letter.id, letter.content_type, meaning)).encode())
    facts.update(letter.body)
    return facts.hexdigest()[:MARK_CHARS]


def marked(push_id: str, mark: str) -> str:
    """The id of a replay with a mark: `p1/again-<mark>`, also for the replay of a replay."""
    earlier = _MARKED.fullmatch(push_id)
    base = earlier[1] if earlier else push_id
    suffix = f"/again-{mark}"
    if len(base) + len(suffix) > ID_MAX:
        base = f"sha256-{hashlib.sha256(base.encode()).hexdigest()}"
    return base + suffix


def _with_new_ids(body: bytes, push_id: str, mark: str) -> bytes:
    """The body with its own ids replaced; unchanged if it is not JSON."""
    try:
        request = msgspec.json.decode(body, type=dict[str, msgspec.Raw] | list[dict[str, msgspec.Raw]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if isinstance(request, dict):
        if "id" in request:
            request["id"] = msgspec.Raw(msgspec.json.encode(push_id))
    else:
        for element in request:
            if "id" in element:
                element["id"] = msgspec.Raw(msgspec.json.encode(_element_id(element["id"], mark)))
    return msgspec.json.encode(request)


def _element_id(raw: msgspec.Raw, mark: str) -> object:
    try:
        own = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return raw
    return marked(own, mark) if isinstance(own, str) and own else own


# --- Deleting --------------------------------------------------------------------------------------------


class Purge(msgspec.Struct):
    """What a purge did, or would do."""

    looked_at: int = 0
    total: int = 0
    """Letters that were in the queue at the beginning."""
    found: int = 0


async def purge(url: str, chosen: Callable[[Letter], bool], *, limit: int, dry_run: bool) -> Purge:
    """Delete the chosen letters. Their rows stay in the log. Raises BrokerUnavailable."""
    done = Purge()
    async with held(url, limit) as pile:
        done.total = pile.total
        async for letter in pile.letters():
            done.looked_at += 1
            if chosen(letter):
                done.found += 1
                if not dry_run:
                    await pile.discard([letter])
    return done
