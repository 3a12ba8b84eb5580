"""The consuming side of the broker: batches of deliveries to the core, and acks back in one write.

All queues are consumed on one channel, so an ack token is only (incarnation, tag): the incarnation counts the
channels. A loss of the channel ends the incarnation, whether by the connection, an error, a deleted queue or a
cancelled consumer; the link then begins a new one.

Requests have two consumers on that channel. At first the single active one is the one with a prefetch of one. `widen`
cancels it, and the broker goes on with the next in its list: ours with the whole prefetch.

Where tenants share the bridge it reads ahead as far as the bytes go that it may hold. No consumer may have more than
`PREFETCH_MOST` messages, so one that has them all is followed by the next in the same way.

A node consumes only when it is its turn (`turn.py`). A node that stands by keeps its connection and waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from itertools import count

import aio_pika
import aiormq.abc

from bridge.adapters.amqp import encoding
from bridge.adapters.amqp.arrivals import read_of
from bridge.adapters.amqp.broker import MIXED, are_mixed, usual_priorities, version
from bridge.adapters.amqp.connection import CLOSE_TIMEOUT, STEP_TIMEOUT, Tap, border, channel
from bridge.adapters.amqp.depths import QueueDepth, depths
from bridge.adapters.amqp.frames import Closed, ConsumerCancelled, Event
from bridge.adapters.amqp.link import Link, LinkState, StateListener
from bridge.adapters.amqp.spread import Spread
from bridge.adapters.amqp.topology import CONTROL, FALLEN, requests_queue
from bridge.adapters.amqp.turn import Role, Turn, lock_of
from bridge.core.errors import BridgeError, BrokerUnavailable
from bridge.core.ports.broker import AckToken, Arrival, Intake, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

log = logging.getLogger("bridge")

HELD_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of bodies given to the core and not acked. Above this the socket is not read any more."""
AHEAD_BYTES_MAX = 256 * 1024 * 1024
"""The same where it reads ahead; then each message counts its headers and `AHEAD_OVERHEAD` bytes more."""
AHEAD_OVERHEAD = 1024
"""What a message with all ordinary properties needs in memory besides its body and headers."""
PREFETCH_MOST = 65_535
"""The most messages that one consumer can hold: AMQP has 16 bits for it, and a quorum queue takes 0 for 2,000."""
FEW = 100
"""Prefetch of push.fallen and of push.control: both have few messages."""
_LOCK_TAG = "lock"
"""Tag of a consumer of the lock: it keeps a policy from expiring the lock, and notices when somebody deletes it."""


def held_bytes_max(ahead: bool) -> int:
    """Bytes that may be held of all partitions together."""
    return AHEAD_BYTES_MAX if ahead else HELD_BYTES_MAX


class Consumers:
    """The tags of what is consumed for one partition. They only have to be unique on their channel."""

    def __init__(self, partition: int) -> None:
        self.requests = requests_queue(partition)
        self.lock = lock_of(partition)
        self.single = f"one by one: {self.requests}"
        """Sorts before the other one of requests. A quorum queue takes the messages of a lost channel back in the
        order of consumer tags, so the oldest message stays in front."""
        others = {} if partition else {CONTROL: CONTROL, FALLEN: FALLEN}
        self.queues: dict[str, str] = {**others, self.single: self.requests, self.requests: self.requests}
        """The queue of each, in the order in which they are begun."""
        self.sources: dict[str, Source] = {
            tag: Source.REQUESTS if queue == self.requests else Source(queue)
            for tag, queue in self.queues.items()
        }
        self.newest = self.requests
        """The one with the whole prefetch."""
        self._more = 0

    def one_more(self) -> str:
        """Name the next consumer of requests, in place of the newest one; it sorts after all that there were."""
        self._more += 1
        del self.queues[self.newest], self.sources[self.newest]
        self.newest = f"{self.requests} {self._more:06}"
        self.queues[self.newest] = self.requests
        self.sources[self.newest] = Source.REQUESTS
        return self.newest


class UnreadableHeaders(BridgeError):
    """A message's header table broke AMQP's grammar; the core got the message without headers."""

    def __init__(self, queue: str, tag: int) -> None:
        self.queue = queue
        self.tag = tag
        super().__init__(f"{queue}: the header table of delivery {tag} can't be read")


class Consumer:
    """Takes messages of one partition inside `taking`; fills the Acks port for them. With the first one,
    push.requests, go push.fallen and push.control."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        errors: ErrorHandler,
        prefetch: int = 1000,
        held_bytes: int = 0,
        ahead: bool = False,
        spread: Spread | None = None,
        partition: int = 0,
        incarnations: Iterator[int] | None = None,
        on_state: StateListener | None = None,
        on_role: Callable[[Role], None] | None = None,
        name: str = "bridge consumer",
    ) -> None:
        """`held_bytes` 0: the usual bound. `ahead`: read as far as it goes, whatever the prefetch. `spread` ensures the
        topology at each connect; None: somebody else does. `incarnations` are the numbers of the next channels, for
        consumers whose tokens must differ. `on_role` is told at each change while the link is up: STANDBY before the
        link counts as set up, ACTIVE or UNKNOWN when it is consumed."""
        self.partition = partition
        self._consumers = Consumers(partition)
        self._incarnations = count(1) if incarnations is None else incarnations
        self._clock, self._errors = clock, errors
        self._ahead = ahead
        self._prefetch, self._overhead = (PREFETCH_MOST, AHEAD_OVERHEAD) if ahead else (prefetch, 0)
        self._held_bytes_max = held_bytes or held_bytes_max(ahead)
        self._resume_below = self._held_bytes_max // 16 * 15 if ahead else self._held_bytes_max // 2
        self._spread = spread
        self._link = Link(url, name, self, clock=clock, errors=errors, on_state=on_state)
        self._on_role = on_role
        self._turn: Turn | None = None
        self.role: Role | None = None
        """What this node is to the others; None without a connection."""
        self._intake: Intake | None = None
        self._connection: aio_pika.Connection | None = None
        self._tap: Tap | None = None
        self._channel: aiormq.abc.AbstractChannel | None = None
        self._number = 0
        self._held: dict[int, int] = {}
        """Delivery tag to the bytes that it counts, of every message that the core has and has not answered."""
        self._others: dict[int, Source] = {}
        """The source of those that are not from push.requests, by delivery tag."""
        self._done: list[int] = []
        self._back: list[int] = []
        self._flush: asyncio.Handle | None = None
        self._stopped = False
        self._set_up = False
        self._single: int | None = None
        """Delivery tag of the newest request that came one by one. None before the first one, and after `widen()`."""
        self._wanted_wide = False
        self._newest_after = self._newest_has = 0
        """Requests with a higher delivery tag came to the newest consumer, and so many of them are not answered."""
        self._usual: AbstractSet[int | None] | None = None
        """Priorities of messages that the broker gives out in their order; None: any. And those that came so far."""
        self._priorities: set[int | None] = set()
        self.incarnation = 0
        self.held_bytes = 0
        self.stale = 0
        """Tokens thrown away: their channel was gone, or they were answered before."""

    # --- Life ---

    @property
    def state(self) -> LinkState:
        """Where the link to the broker is in its life; OPEN means consuming."""
        return self._link.state

    @property
    def cause(self) -> str:
        """Why nothing is consumed; empty when it is."""
        return self._link.cause

    @property
    def held(self) -> int:
        """Messages that the core has and has not answered."""
        return len(self._held)

    @property
    def unacked(self) -> dict[str, int]:
        """`held` by queue."""
        others = list(self._others.values())
        sources = [] if self.partition else [Source.FALLEN, Source.CONTROL]
        counts = {source.value: others.count(source) for source in sources}
        return {self._consumers.requests: len(self._held) - len(others), **counts}

    @property
    def taken(self) -> Sequence[int]:
        """The partitions that this node takes."""
        return [self.partition] if self.role is Role.ACTIVE else []

    async def depths(self) -> list[QueueDepth]:
        """How many messages wait in the queues. Raises BrokerUnavailable."""
        if self._connection is None:
            raise BrokerUnavailable(self.cause or "not connected")
        return await depths(self._connection)

    @asynccontextmanager
    async def taking(self, intake: Intake) -> AsyncIterator[Consumer]:
        """Consume into `intake` until the end of the block; it reconnects by itself.

        Leaving the block closes the connection: messages that were not acked go back to their queue. For a clean
        end, stop handling, settle, and call `stop_consuming` before.
        """
        self._intake = intake
        self._stopped = False
        try:
            async with self._link:
                yield self
        finally:
            self._end_incarnation()
            self._intake = None

    def take_no_more(self) -> None:
        """Leave what the broker delivers from now on to whoever consumes next. Not cancelled, or they could overtake
        what the core still has."""
        self._stopped = True

    def forget(self, tokens: Collection[AckToken]) -> None:
        """The core has given these up: they go back to the queue with the channel."""
        for token in tokens:
            size = self._held.pop(token.tag, None) if token.incarnation == self.incarnation else None
            if size is not None:
                self.held_bytes -= size
                if self._others.pop(token.tag, None) is None and token.tag > self._newest_after:
                    self._newest_has -= 1

    async def stop_consuming(self) -> None:
        """Close the channel after all acks have reached the broker; idempotent. Then the next node has its turn,
        although this connection stays open.

        The broker answers the close only after it has handled what was written before it. The rest goes
        back oldest first; if the consumer were cancelled first, the next node could overtake it. Deliveries
        that still come in are ignored. Never raises: a broker that is unavailable needs no close, and gives the
        messages out again.
        """
        self._stopped = True
        self._send_answers()
        closing, self._channel = self._channel, None
        if closing is not None:
            if self._tap is not None:
                self._tap.resume()
            try:
                async with border("close the consuming channel", CLOSE_TIMEOUT):
                    await closing.close()
            except BrokerUnavailable as gone:
                self._errors.handle(gone, "broker.stop_consuming", {"held": len(self._held)})
        await self._give_up_turn()
        self._end_incarnation()

    async def _give_up_turn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            try:
                await turn.give_up()
            except BrokerUnavailable as gone:
                # The lock ends with the connection in any case.
                self._errors.handle(gone, "broker.stop_consuming", {"queue": self._consumers.lock})

    # --- LinkUser ---

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Make sure of the topology, wait for this node's turn, then begin a new incarnation; not after
        `stop_consuming`."""
        if self._spread is not None:
            await self._spread.ensure(connection)
        self._connection = connection
        consumers = self._consumers = Consumers(self.partition)
        self._turn = Turn(connection, self._clock, self.partition)
        role = await self._turn.come(lambda: self._become(Role.STANDBY), lambda: self._stopped)
        if self._stopped:
            await self._give_up_turn()
            return
        opened = await channel(connection, confirms=False)
        self._tap = tap
        self._usual, self._priorities = usual_priorities(version(connection)), set()
        self._number = opened.number
        tap.watch(opened.number)
        self._channel = opened
        self.incarnation = next(self._incarnations)
        self._wanted_wide = False
        few = min(FEW, self._prefetch)
        prefetches = {consumers.single: 1, consumers.requests: self._prefetch}
        for tag, queue in consumers.queues.items():
            prefetch = prefetches.get(tag, few)
            async with border(f"consume {queue}", STEP_TIMEOUT):
                await opened.basic_qos(prefetch_count=prefetch)
                await opened.basic_consume(queue, never_called, consumer_tag=tag)
        if role is Role.ACTIVE:
            async with border(f"consume {consumers.lock}", STEP_TIMEOUT):
                await opened.basic_consume(consumers.lock, never_called, consumer_tag=_LOCK_TAG, no_ack=True)
        self._set_up = True
        if self._wanted_wide:
            self._widen()
        # If a request has come already, the node is ACTIVE whatever the turn said.
        self._become(Role.ACTIVE if self.role is Role.ACTIVE else role)

    def _become(self, role: Role) -> None:
        if role is not self.role:
            self.role = role
            if self._on_role is not None and not self._stopped:
                self._on_role(role)

    def happened(self, events: Sequence[Event]) -> None:
        """Give the core what one read of the socket brought; notice that the channel or a consumer is gone."""
        number = self._number
        stopped = self._stopped
        read = read_of(
            events,
            channel=0 if stopped else number,
            incarnation=self.incarnation,
            now=self._clock.time(),
            sources=self._consumers.sources,
            single=self._consumers.single,
            usual=self._usual,
            overhead=self._overhead,
        )
        batch = read.arrivals
        if read.single is not None:
            self._single = read.single
        if read.priorities and not read.priorities <= self._priorities:
            self._priorities |= read.priorities
            if are_mixed(self._usual, self._priorities):
                log.warning(MIXED, self._consumers.requests)
        self._held.update(read.sizes)
        self.held_bytes += read.total_bytes
        self._others.update(read.others)
        for arrival in read.unreadable:
            unreadable = UnreadableHeaders(arrival.source.value, arrival.token.tag)
            self._errors.handle(unreadable, "broker.decode", {})
        gone = ""
        for event in read.other_events:
            if type(event) is ConsumerCancelled and event.channel == number:
                lost = self._consumers.queues.get(event.consumer, self._consumers.lock)
                gone = f"the broker cancelled the consumer of {lost}"
            elif type(event) is Closed and event.channel == number and number:
                gone = f"the broker closed the channel: {event}"
        if self.role is not Role.ACTIVE and any(a.source is Source.REQUESTS for a in batch):
            self._become(Role.ACTIVE)
        if batch and self._ahead and self._newest_after:
            self._read_on(batch)
        if batch and self._intake is not None:
            self._intake.arrived(batch)
            if self.held_bytes > self._held_bytes_max and self._tap is not None:
                self._tap.pause()
        if gone and not self._stopped:
            self._end_incarnation()
            self._link.give_up(gone)

    def lost(self, cause: str) -> None:
        """The connection is gone, and with it the incarnation."""
        self._connection = None
        self._end_incarnation()

    def _end_incarnation(self) -> None:
        """Forget the channel, and tell the core exactly once. Its tokens are stale from now on."""
        had = self._number
        self._number = 0
        self._channel = None
        self._tap = None
        self._set_up = False
        self._single = None
        self._newest_after = self._newest_has = 0
        self._turn = None
        self.role = None
        self._held = {}
        self._others = {}
        self.held_bytes = 0
        self._done.clear()
        self._back.clear()
        if had and self._intake is not None:
            self._intake.channel_lost(self.incarnation)

    # --- Acks ---

    def ack(self, tokens: Iterable[AckToken]) -> None:
        """See the port. The frames of one loop iteration leave in one write."""
        self._answer(tokens, self._done)

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        """See the port. A message given back counts as delivered once more (`x-delivery-count`)."""
        self._answer(tokens, self._back)

    def widen(self, incarnations: Collection[int]) -> None:
        """See the port."""
        if self.incarnation in incarnations:
            self._widen()

    def _widen(self) -> None:
        if not self._set_up:
            # If one consumer ended before the other began, a second bridge would take over.
            self._wanted_wide = True
        elif self._single is not None and self._single in self._held and self._tap is not None:
            # Cancel it only while its one message is unanswered: then nothing is on the way to this consumer. Such a
            # message would be given out again, after newer ones.
            self._newest_after, self._newest_has = self._single, 0
            self._single = None
            self._tap.write(encoding.cancel(self._number, self._consumers.single))

    def _read_on(self, batch: Sequence[Arrival]) -> None:
        """Begin one more consumer once the newest can get nothing more: all that it may hold is here and unanswered, so
        nothing is on the way to it. As in `_widen`, it ends only after the other has begun."""
        for arrival in batch:
            if arrival.source is Source.REQUESTS and arrival.token.tag > self._newest_after:
                self._newest_has += 1
        if self._newest_has < self._prefetch or self.held_bytes > self._held_bytes_max or self._tap is None:
            return
        full = self._consumers.newest
        begin = encoding.consume(self._number, self._consumers.requests, self._consumers.one_more())
        self._newest_after, self._newest_has = batch[-1].token.tag, 0
        self._tap.write(begin + encoding.cancel(self._number, full))

    def _answer(self, tokens: Iterable[AckToken], answers: list[int]) -> None:
        incarnation = self.incarnation
        held = self._held
        for made_by, tag in tokens:
            size = held.pop(tag, None) if made_by == incarnation else None
            if size is None:
                self.stale += 1
            else:
                self.held_bytes -= size
                answers.append(tag)
                other = self._others.pop(tag, None) if self._others else None
                if other is None and tag > self._newest_after:
                    self._newest_has -= 1
        if answers and self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send_answers)

    def _send_answers(self) -> None:
        """Write all answers: one `multiple` ack for the finished prefix, the others one by one.

        What was given back leaves first, since a `multiple` would swallow it. The tag of a `multiple` is
        always one that is still open, or the broker would close the channel (406 unknown delivery tag).
        """
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        tap, number = self._tap, self._number
        if tap is None or not (self._done or self._back):
            return
        out = [encoding.requeue(number, tag) for tag in sorted(self._back)]
        done = sorted(self._done)
        self._back.clear()
        self._done.clear()
        oldest = next(iter(self._held), None)
        single = 0
        if oldest is None:
            single = len(done)
        else:
            while single < len(done) and done[single] < oldest:
                single += 1
        if single:
            out.append(encoding.ack(number, done[single - 1], single > 1))
        out += [encoding.ack(number, tag, False) for tag in done[single:]]
        tap.write(b"".join(out))
        if tap.paused and self.held_bytes < self._resume_below:
            tap.resume()


async def never_called(_: aiormq.abc.DeliveredMessage) -> None:
    """For the library, which never calls it: deliveries are taken out of the stream before."""
    raise AssertionError("a delivery went past the tap")
