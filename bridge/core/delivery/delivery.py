"""The way of one push, from the queue to its end. Read this file to know how the bridge works.

    arrived ──> taken ──> routed ──> handed to sockets ──> proven ──> settled (row, receipt, ack)
                  │          │              │                 │
               rejected   offline        dropped      pending, then unknown
                             └──────────────┴─────────────────┴──> with a ttl: stored, see `bridge.core.mailbox.mailbox`

`Delivery` decides; it is told of everything by synchronous calls (the broker adapter, sessions, the ticker)
and does I/O only through ports. Ends of pushes are handed to `Settlement`, which writes, pays and acks.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from bridge.core.contract.frames import HEARTBEAT, bare_frame, bye_frame, push_frame
from bridge.core.contract.requests import Decoded, Limits, begin
from bridge.core.delivery.lookups import LOOKUP_ROWS, Lookups, Stopped
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.delivery.routing import Address, address, named_users, roams, users_of
from bridge.core.inflight.deadlines import Deadlines
from bridge.core.inflight.flight import Flight, Message
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.outgoing import Outgoing
from bridge.core.model.fingerprint import fingerprint_of
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import NO_USER, PushKey, PushRequest, Rejected, ToSession, ToUser, ToUsers
from bridge.core.model.rows import DeadLetter, Row, RowKey
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.model.states import SessionState
from bridge.core.ports.broker import Acks, Arrival, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.ports.sockets import Frame
from bridge.core.ports.store import Account, Store
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.worklist import Worklist

FLIGHTS_MAX = 50_000
"""Flights that may be on their way at once; over it no more messages are taken (rows bound memory)."""
SUSPECT_ATTEMPTS = 5
"""From this delivery count on a message is taken and handled alone: what kills the process must not take its
neighbours along, nor have their deliveries counted with its own."""
BATCH = 200
"""Messages taken together: what they have for a session leaves in one write."""
YIELD_EVERY = 250
"""Flights made before the event loop gets a turn: more than most batches make."""
SLICE = 0.008
"""Seconds after which it gets one in any case."""
ANSWERS_MAX = 10_000
"""Repeats that wait to be answered, over which no more rows are read for others."""


_Decoded: TypeAlias = tuple[Arrival, Decoded]


class _Known(NamedTuple):
    """What was found out of the requests of a few messages before they are taken."""

    came: set[int]
    """Identities of those that may have come before."""
    rows: dict[RowKey, Row]
    """The rows that they have."""


class _Unclaimed(NamedTuple):
    """A push to a session that is not here, and that another bridge may have."""

    look_at: float
    """Monotonic seconds at which the log is asked once more."""
    flight: Flight
    key: PushKey
    outcome: Outcome
    """How it ends where the log has no row then, and why."""
    reason: Reason


class DeliveryLimits(msgspec.Struct, frozen=True):
    """Times in seconds; see the settings of the same names."""

    wire: Limits = Limits()
    confirm_timeout: float = 5.0
    park_after: float = 1.0
    max_age: float = 60.0
    start_grace: float = 2.0
    max_attempts: int = 20
    total_bytes: int = 256 * 1024 * 1024


class Delivery:
    """Takes messages, knows every push on its way, and hands each to the settlement when it has ended."""

    def __init__(
        self,
        *,
        hub: Hub,
        store: Store,
        flights: Flights,
        worklist: Worklist,
        outgoing: Outgoing,
        mailbox: Mailbox,
        acks: Acks,
        metrics: Metrics,
        errors: ErrorHandler,
        clock: Clock,
        gate: Gate,
        remembered: Remembered,
        recollection: Recollection,
        limits: DeliveryLimits,
    ) -> None:
        self._hub = hub
        self._worklist = worklist
        self._outgoing = outgoing
        self._flights = flights
        self._mailbox = mailbox
        self._acks = acks
        self._metrics = metrics
        self._errors = errors
        self._clock = clock
        self._gate = gate
        self._limits = limits
        self._wire_limits = limits.wire
        # Where few attempts are allowed, some of them must be alone all the same.
        self._suspect_from = min(SUSPECT_ATTEMPTS, max(1, limits.max_attempts // 2))
        self.remembered = remembered
        self._recollection = recollection
        self._lookups = Lookups(store, gate, clock, errors, metrics)
        self._slice_began = 0.0
        self._since_turn = 0
        self._inbox: deque[Arrival] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._lost_incarnation = -1
        # Rows that were settled while a batch is being taken: younger than what was looked up for it.
        self._settled_meanwhile: dict[RowKey, Row] = {}
        self._deadlines = Deadlines(limits.park_after, limits.confirm_timeout)
        # By then the bridge that has such a session, if there is one, has parked the push and written its row.
        self._claim_after = 2 * limits.park_after
        self._awaited: dict[str, list[tuple[Flight, PushRequest]]] = {}
        self._unclaimed: deque[_Unclaimed] = deque()
        self._grace_until = 0.0
        self.begin_grace()
        self._begun = 0
        self._stopping = False
        self._handling = asyncio.Lock()

    # --- 1. what the broker brings (the Intake port) ---------------------------------------------------

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """What one read of the broker's socket brought, in the order of the queue."""
        # What fell out of the queue comes to any bridge: only requests show that no other one takes now.
        if not self._recollection.taking and any(a.source is Source.REQUESTS for a in batch):
            self._recollection.began()
        self._inbox.extend(batch)
        self._wake.set()

    def channel_lost(self, incarnation: int) -> None:
        """Messages of this channel will come again: those not yet taken are forgotten here."""
        self._lost_incarnation = max(self._lost_incarnation, incarnation)
        self._recollection.doubt()
        self._inbox = deque(a for a in self._inbox if a.token.incarnation > self._lost_incarnation)

    async def run(self) -> None:
        """Take messages while nothing holds the bridge back, until `stop`."""
        while not self._stopping:
            await self._wake.wait()
            await self._gate.opened()
            await self._room.wait()
            async with self._handling:
                # Looked at again: a stop or a shut gate may have come while this waited.
                if self._gate.is_open and not self._stopping:
                    if self._inbox:
                        await self._take_batch(self._next_batch())
                    await self._look_again()
            if not self._inbox:
                self._wake.clear()
            if self._full:
                self._room.clear()  # until a tick finds half of them gone
            # Pongs, and sockets that take bytes again, get their turn between two batches.
            await self._clock.sleep(0)

    def begin_grace(self) -> None:
        """Taking begins: from now on pushes wait a moment for browsers that are coming back."""
        self._grace_until = self._clock.monotonic() + self._limits.start_grace

    async def stop(self) -> None:
        """Take no more messages; returns when none is being taken. The rest stays unacked: it goes back."""
        self._stopping = True
        self._lookups.stop()
        async with self._handling:
            for one in self._unclaimed:
                self._forget(one.flight)
            self._unclaimed.clear()

    def _next_batch(self) -> list[Arrival]:
        batch: list[Arrival] = []
        while self._inbox and len(batch) < BATCH:
            if self._suspect(self._inbox[0]):
                if not batch:
                    batch.append(self._inbox.popleft())
                break
            batch.append(self._inbox.popleft())
        return batch

    def _suspect(self, arrival: Arrival) -> bool:
        """Whether a message was given out so often that handling it may be what ended the process."""
        return arrival.properties.delivery_count >= self._suspect_from

    # --- 2. taken: decoded, known ones answered from their rows ----------------------------------------

    async def _take_batch(self, batch: list[Arrival]) -> None:
        self._slice_began = self._clock.monotonic()
        touched: set[Session] = set()
        decoded = []
        for arrival in batch:
            decoded.append((arrival, await self._decode(arrival, touched)))
            if self._clock.monotonic() - self._slice_began >= SLICE:
                await self._give_a_turn(touched)
        self._since_turn = 0
        messages = requests = 0
        try:
            for portion in _portions(decoded):
                known = await self._known(portion)
                for arrival, taking in portion:
                    if messages and self._full:
                        self._inbox.extendleft(reversed(batch[messages:]))
                        return
                    messages += 1
                    if arrival.token.incarnation <= self._lost_incarnation:
                        continue
                    requests += len(taking.requests)
                    await self._take_message(arrival, taking, known, touched)
        except Stopped:
            # What was not acked goes back to the queue with the channel.
            return
        finally:
            self._flush(touched)
            self._metrics.taken(messages, requests)
        if any(arrival.source is Source.REQUESTS and not self._suspect(arrival) for arrival in batch):
            self._acks.widen()

    @property
    def _full(self) -> bool:
        """Whether so much is on its way that nothing more is taken."""
        return self._in_hand > FLIGHTS_MAX

    @property
    def _in_hand(self) -> int:
        """What keeps something of a push in memory, from its taking to its ack."""
        return self._flights.busy + self._worklist.answers_waiting + self._worklist.unpaid

    async def _take_message(
        self, arrival: Arrival, taking: Decoded, known: _Known | None, touched: set[Session]
    ) -> None:
        message = Message(
            arrival.token,
            arrival.properties,
            published_at=taking.published_at,
            taken_at=self._clock.time(),
            traceparent=taking.traceparent,
        )
        if arrival.source is Source.FALLEN:
            # Taken before, as often as the broker allows: receipts of then may have been lost.
            message.redelivered = True
        # Held open until every request has been looked at, whatever is settled meanwhile.
        message.open = 1
        alone = self._suspect(arrival)
        if alone:
            message.done = asyncio.Event()
        try:
            if known is not None or len(taking.requests) == 1:
                for place, request in enumerate(taking.requests):
                    await self._take(arrival, message, place, request, known, touched)
            else:
                await self._take_in_parts(arrival, taking, message, touched)
        except Stopped:
            raise
        except Exception as error:  # a defect must cost one message, not the service
            self._failed(arrival, message, error)
        self._worklist.release(message)
        if alone and message.done is not None:
            self._flush(touched)
            await message.done.wait()

    async def _take_in_parts(
        self, arrival: Arrival, taking: Decoded, message: Message, touched: set[Session]
    ) -> None:
        """Take a batch of requests whose rows are too many for one look."""
        place = 0
        for part in _portions([(arrival, taking._replace(requests=(r,))) for r in taking.requests]):
            known = await self._known(part)
            for _, one in part:
                await self._take(arrival, message, place, one.requests[0], known, touched)
                place += 1

    def _turn_is_due(self) -> bool:
        """Whether this has worked for so long that others should get a turn: a message may name 10,000 users."""
        self._since_turn += 1
        return self._since_turn >= YIELD_EVERY or self._clock.monotonic() - self._slice_began >= SLICE

    async def _give_a_turn(self, touched: set[Session]) -> None:
        self._flush(touched)
        await self._clock.sleep(0)
        self._since_turn = 0
        self._slice_began = self._clock.monotonic()

    async def _decode(self, arrival: Arrival, touched: set[Session]) -> Decoded:
        try:
            decoded = begin(arrival, self._wire_limits)
            while not isinstance(decoded, Decoded):
                try:
                    next(decoded)
                except StopIteration as end:
                    decoded = end.value
                if self._clock.monotonic() - self._slice_began >= SLICE:
                    await self._give_a_turn(touched)
            return decoded
        except Exception as error:  # a defect in decoding would come again with every redelivery
            self._errors.handle(error, "wire.decode", {"bytes": arrival.body_size})
            push_id = f"sha256-{hashlib.sha256(arrival.body).hexdigest()}"
            rejected = Rejected(push_id, Reason.POISON, "decoding it failed", arrival.body)
            return Decoded((rejected,), arrival.arrived_at, "")

    # Known ones are told by their rows, which are looked up for many messages at once, and for a large one bit by bit.

    def _may_have_come(self, arrival: Arrival, request: PushRequest | Rejected) -> bool:
        properties = arrival.properties
        return (
            properties.redelivered
            or properties.delivery_count > 0
            or arrival.source is Source.FALLEN
            or request.id in self.remembered
        )

    async def _known(self, portion: Sequence[_Decoded]) -> _Known | None:
        """What is known of the requests of these messages; None where they name too many users for one look: then
        parts of the message, or of a request, are looked for by themselves."""
        if len(portion) == 1 and _named(portion[0][1]) > LOOKUP_ROWS:
            return None
        came: set[int] = set()
        keys: dict[RowKey, None] = {}
        for arrival, taking in portion:
            for request in taking.requests:
                if self._may_have_come(arrival, request):
                    came.add(id(request))
                    users = (NO_USER,) if isinstance(request, Rejected) else named_users(request)
                    for user in users:
                        keys[RowKey(request.tenant, request.id, user)] = None
        return _Known(came, await self._look_up(list(keys)))

    async def _look_up(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        self._settled_meanwhile.clear()
        if not keys:
            return {}
        rows = await self._lookups.rows(keys)
        self._slice_began = self._clock.monotonic()
        return rows

    def _failed(self, arrival: Arrival, message: Message, error: Exception) -> None:
        """Handling one message failed: it goes back to the queue, until it has failed too often."""
        self._errors.handle(
            error,
            "delivery.take",
            {"delivery_count": arrival.properties.delivery_count, "bytes": arrival.body_size},
        )
        self._give_back(message)

    def _give_back(self, message: Message) -> None:
        """Back to the queue. Flights that it has begun end without it."""
        if message.token is not None:
            self._acks.requeue([message.token])
            message.token = None
            if message.done is not None:
                message.done.set()

    async def _take(
        self,
        arrival: Arrival,
        message: Message,
        place: int,
        request: PushRequest | Rejected,
        known: _Known | None,
        touched: set[Session],
    ) -> None:
        """Take the request at a place of a message."""
        now = message.taken_at
        came_before = self._may_have_come(arrival, request) if known is None else id(request) in known.came
        if isinstance(request, Rejected):
            flight = Flight.rejected(request, message, now)
            message.letters.append(_letter(arrival, request.id, request.reason, request.detail, request.body))
            rows = {} if known is None else known.rows
            if known is None and came_before:
                rows = await self._look_up([flight.key])
            self.remembered.add(request.id)
            self._enter(flight, message, rows)
            if self._turn_is_due():
                await self._give_a_turn(touched)
            return
        ending = self._given_up(arrival)
        if ending is not None and place == 0:
            message.letters.append(_letter(arrival, request.id, ending[1], ending[2], arrival.body))
        fingerprint = fingerprint_of(request)
        roaming = roams(request)
        users = users_of(self._hub, request) if ending is None else named_users(request)
        # A session has one user: whatever became of the push at an earlier taking, also that nobody had it, is its end.
        has_one_end = ending is not None or users == (NO_USER,) or isinstance(request.target, ToSession)
        if roaming and came_before and has_one_end:
            reached = bool(self._flights.roaming(request.key)) or await self._lookups.has_rows(request.key)
        else:
            reached = False
        if reached:
            # Whom it was for at an earlier taking has left since, or is of no interest; what became of it there stands.
            self._remember(request)
            await self._join_earlier(request.key, message, fingerprint, frozenset(), touched)
            return
        position = self._mailbox.take_position()
        age = now - message.published_at
        too_old = age > self._limits.max_age if request.ttl == 0 else age >= request.ttl
        is_elsewhere = isinstance(request.target, ToSession) and users == (NO_USER,)
        if is_elsewhere and came_before and ending is None:
            if message.done is None:
                self._claim_later(request, message, position, too_old)
                return
            # It is handled alone, and holds up all others in any case: the other bridge is waited for here.
            await self._clock.sleep(self._claim_after)
            if await self._lookups.has_rows(request.key):
                self._remember(request)
                await self._join_earlier(request.key, message, fingerprint, frozenset(), touched)
                return
            users = users_of(self._hub, request)
        frames: dict[Mode, Frame] = {}
        for at in range(0, len(users), LOOKUP_ROWS):
            some = users[at : at + LOOKUP_ROWS] if len(users) > LOOKUP_ROWS else users
            rows = {} if known is None else known.rows
            if known is None and came_before:
                rows = await self._look_up([RowKey(request.tenant, request.id, user) for user in some])
            for user in some:
                flight = Flight.of(request, user, message, self._clock.monotonic(), position, fingerprint)
                if ending is not None:
                    flight.detail = ending[2]
                    flight.end(ending[0], ending[1], now)
                elif too_old:
                    flight.end(Outcome.EXPIRED, Reason.MAX_AGE if request.ttl == 0 else Reason.TTL, now)
                if self._enter(flight, message, rows, roams=roaming) and not flight.ended:
                    self._route(flight, request, address(self._hub, request, user), frames, touched)
                if self._turn_is_due():
                    await self._give_a_turn(touched)
        self._remember(request)
        if roaming and came_before:
            await self._join_earlier(request.key, message, fingerprint, frozenset(users), touched)

    # A push to a session comes again, the session is not here, and the log has no row: another bridge may have it. That
    # one lost its channel and not its sessions; its row, which tells whose the session is, comes within `park_after`.

    def _claim_later(self, request: PushRequest, message: Message, position: int, too_old: bool) -> None:
        """Decide nothing before the other bridge, if there is one, has had the time to write its row."""
        now = self._clock.monotonic()
        flight = Flight.of(request, NO_USER, message, now, position, fingerprint_of(request))
        self._remember(request)
        end = (Outcome.OFFLINE, Reason.NO_SESSION)
        if too_old:
            end = (Outcome.EXPIRED, Reason.MAX_AGE if request.ttl == 0 else Reason.TTL)
        if self._enter(flight, message, {}, roams=True):
            self._unclaimed.append(_Unclaimed(now + self._claim_after, flight, request.key, *end))

    async def _look_again(self) -> None:
        touched: set[Session] = set()
        try:
            while self._unclaimed and self._unclaimed[0].look_at <= self._clock.monotonic():
                _, flight, key, outcome, reason = self._unclaimed[0]
                reached = await self._lookups.has_rows(key)
                self._unclaimed.popleft()
                if not reached:
                    flight.end(outcome, reason, self._clock.time())
                    self._worklist.due(flight)
                    continue
                self._forget(flight)
                for message in flight.messages:
                    await self._join_earlier(
                        key, message, flight.fingerprint_of(message), frozenset(), touched
                    )
                    self._worklist.release(message)
        except Stopped:
            # What was not acked goes back to the queue with the channel.
            return
        finally:
            self._flush(touched)

    def _forget(self, flight: Flight) -> None:
        """It has no row of its own, and gets none."""
        self._flights.remove(flight)
        self._begun -= 1

    def _remember(self, request: PushRequest) -> None:
        if not request.generated_id:
            self.remembered.add(request.id)

    async def _join_earlier(
        self,
        key: PushKey,
        message: Message,
        fingerprint: int,
        addressed: Collection[str],
        touched: set[Session],
    ) -> None:
        """A push to a session or to everyone comes again: users that it reached before and would not now.

        Their ends are this message's as well: it waits for those in the air, and answers for the others,
        whose receipts may have been lost with the process or the connection.
        """
        joined = set(addressed)
        for user, flying in list(self._flights.roaming(key).items()):
            if user not in joined:
                joined.add(user)
                message.open += 1
                self._join(flying, message, fingerprint)
        async for rows in self._lookups.of_push(key):
            for row in rows:
                if row.key.user not in joined:
                    message.open += 1
                    self._worklist.answer(message, row, fingerprint)
            while self._worklist.answers_waiting > ANSWERS_MAX:
                await self._clock.sleep(SLICE)
            await self._give_a_turn(touched)

    def _join(self, flying: Flight, message: Message, fingerprint: int) -> None:
        if flying.joined(message, fingerprint):
            self._worklist.differs(flying.key, flying)
        if flying.parked and not flying.ended:
            # Its row is there; written once more, it owes this message's receipt as well.
            self._worklist.due(flying)

    def _given_up(self, arrival: Arrival) -> tuple[Outcome, Reason, str] | None:
        """How a message ends that the broker, or this bridge, has given up; None for any other."""
        if arrival.source is Source.REQUESTS:
            count = arrival.properties.delivery_count
            if count < self._limits.max_attempts:
                return None
            return Outcome.REJECTED, Reason.POISON, f"given out {count} times and never settled"
        why = str(arrival.properties.headers.get("x-first-death-reason", "unknown"))
        if why == "expired":
            return Outcome.EXPIRED, Reason.QUEUE_EXPIRATION, "its AMQP expiration ran out in the queue"
        if why == "delivery_limit":
            return Outcome.REJECTED, Reason.DELIVERY_LIMIT, "the broker's delivery limit was reached"
        return Outcome.REJECTED, Reason.GIVEN_UP, f"the broker gave it up: {why}"

    def _enter(
        self, flight: Flight, message: Message, rows: dict[RowKey, Row], *, roams: bool = False
    ) -> bool:
        """Register a new flight. False where its push is known: joined in the air, or answered from its row."""
        message.open += 1
        row = self._settled_meanwhile.get(flight.key) or rows.get(flight.key)
        flying = self._flights.get(flight.key)
        if flying is not None:
            self._join(flying, message, flight.fingerprint)
            return False
        if row is not None:
            self._worklist.answer(message, row, flight.fingerprint)
            return False
        older = self._flights.add(flight, roams=roams)
        if older is not None:
            self._replace(older)
        self._begun += 1
        if flight.ended:
            self._worklist.due(flight)
        return True

    def _replace(self, older: Flight) -> None:
        """A newer push with its collapse key was taken: what was not handed over yet never will be."""
        if older.withdrawable:
            self._outgoing.note(older, older.end(Outcome.SUPERSEDED, Reason.COLLAPSED, self._clock.time()))
        elif older.kept is not None:
            older.kept.collapsed = True

    # --- 3. routed: offered to every session of the user ------------------------------------------------

    def _route(
        self,
        flight: Flight,
        request: PushRequest,
        address: Address,
        frames: dict[Mode, Frame],
        touched: set[Session],
    ) -> None:
        now = self._clock.monotonic()
        # What is handled alone holds up the whole queue: its row need not wait for anything.
        alone = flight.messages[0].done is not None
        if not address.sessions:
            if flight.kept is not None:
                self._outgoing.note(
                    flight, flight.failed(Outcome.OFFLINE, address.nobody, self._clock.time())
                )
            elif self._may_come_back(request, address, now):
                self._awaited.setdefault(address.user, []).append((flight, request))
                self._wait(flight, parked=alone)
            else:
                flight.end(Outcome.OFFLINE, address.nobody, self._clock.time())
                self._worklist.due(flight)
            return
        self._offer(flight, request, address.sessions, frames, touched)
        if flight.ended:
            return
        if request.ack_within:
            self._deadlines.limit(flight, now)
        suspect = any(s.suspect(now, self._limits.park_after) for s in address.sessions)
        self._wait(flight, parked=alone or suspect)

    def _wait(self, flight: Flight, *, parked: bool) -> None:
        """It waits for a proof, or for its user; its message with it, unless it is parked."""
        if parked:
            self._park(flight)
            self._deadlines.park(flight, at_once=True)
        else:
            self._deadlines.wait(flight)

    def _park(self, flight: Flight) -> None:
        """Its row says that it is on its way, and its message waits no longer.

        Of a kept push, the user's earlier ones get their rows first: whoever reads the mailbox must not find
        the later one alone.
        """
        if flight.kept is not None:
            for earlier in self._flights.unwritten(flight.key.user):
                if not self._worklist.is_due(earlier):
                    self._worklist.due(earlier)
        self._worklist.due(flight)

    def _may_come_back(self, request: PushRequest, address: Address, now: float) -> bool:
        """Whether a user without a session may still be reconnecting after our start."""
        return (
            now < self._grace_until
            and isinstance(request.target, (ToUser, ToUsers))
            and address.nobody is Reason.NO_SESSION
        )

    def _offer(
        self,
        flight: Flight,
        request: PushRequest,
        sessions: Sequence[Session],
        frames: dict[Mode, Frame],
        touched: set[Session],
    ) -> None:
        flight.addressed(len(sessions))
        for session in sessions:
            frame = frames.get(session.mode)
            if frame is None:
                build = bare_frame if session.mode is Mode.BARE else push_frame
                frame = frames[session.mode] = build(request)
            if not session.offer(frame, flight):
                # Full of this very batch, perhaps: a socket that takes bytes makes room.
                self._flush_session(session)
                if session.offer(frame, flight):
                    touched.add(session)
                    continue
                replay = session.replay
                why = Reason.SLOW_CONSUMER if replay is None else Reason.OVERFLOW
                self._outgoing.note(flight, flight.lost(self._clock.time(), handed=False, why=why))
                if replay is None:
                    self.close_session(session, CloseReason.TOO_SLOW)
                elif flight.kept is not None and replay.missed is None:
                    # It is not slow, it is still being sent what is older: what is kept comes from the mailbox.
                    replay.missed = flight.position
            else:
                touched.add(session)

    # --- 4. handed to sockets, and proven ---------------------------------------------------------------

    def _flush(self, touched: set[Session]) -> None:
        """Hand over what was offered: one write for each session, whatever number of pushes it got."""
        for session in touched:
            self._flush_session(session)
        touched.clear()

    def _flush_session(self, session: Session) -> None:
        self._mailbox.flush(session)

    def pong(self, session: Session, payload: bytes) -> None:
        """A peer answered a ping: everything sent before it is received."""
        now = self._clock.time()
        for flight in session.pong(payload, self._clock.monotonic()):
            self._outgoing.note(flight, flight.received(now), now)
        if session.queued or session.replay is not None:
            self._flush_session(session)

    def resumed(self, session: Session) -> None:
        """A socket takes bytes again."""
        self._flush_session(session)

    def acked(self, session: Session, push_id: str, tenant: str | None = None) -> bool:
        """An application acknowledged a push; False where no such push waits for an ack of this session.

        Raises AmbiguousAck: see `Session.ack`.
        """
        flight = session.ack(push_id, tenant)
        if flight is None:
            return False
        now = self._clock.time()
        self._outgoing.note(flight, flight.acked(now), now)
        return True

    # --- 5. sessions come and go -----------------------------------------------------------------------

    def session_opened(self, session: Session, last: str | None = None) -> None:
        """A session opened: what is kept for its user goes out first, then what waited since our start, then
        what is newer. `last` is the push that its client has seen last, where it resumes."""
        self._hub.register(session, self._clock.monotonic())
        self._mailbox.opened(session, last)
        build = bare_frame if session.mode is Mode.BARE else push_frame
        for flight, request in self._awaited.pop(session.user, ()):
            if flight.ended:
                continue
            if session.id in request.excluded:
                flight.end(Outcome.OFFLINE, Reason.EXCLUDED, self._clock.time())
                self._worklist.due(flight)
                continue
            flight.addressed(1)
            session.hold(build(request), flight)
            if request.ack_within:
                self._deadlines.limit(flight, self._clock.monotonic())

    def close_session(self, session: Session, reason: CloseReason, retry_after: float | None = None) -> None:
        """Close a session for a reason of ours; `session_closed` follows when the socket is gone.

        `retry_after` (seconds) is what the client is told to wait; the reason's own by default. Idempotent, and
        nothing for a session that is gone: who closes many takes a while, and some leave before their turn.
        """
        if session.close_reason is not None or session.state is SessionState.CLOSED:
            return
        session.close_reason = reason
        self._hub.unregister(session)
        self._mailbox.closed(session)
        why = Reason.SLOW_CONSUMER if reason is CloseReason.TOO_SLOW else None
        now = self._clock.time()
        for flight in session.drain():
            self._outgoing.note(flight, flight.lost(now, handed=False, why=why))
        if session.mode is Mode.ENVELOPE:
            session.socket.write(
                (bye_frame(reason, reason.retry_after if retry_after is None else retry_after),), None
            )
        session.socket.close(reason)

    def session_closed(self, session: Session) -> None:
        """A socket is gone, whoever closed it: what it had not proven by now it never will."""
        self._hub.unregister(session)
        self._mailbox.closed(session)
        now = self._clock.time()
        queued, unproven = session.close()
        for flight in queued:
            self._outgoing.note(flight, flight.lost(now, handed=False))
        for flight in unproven:
            self._outgoing.note(flight, flight.lost(now, handed=True))

    # --- 6. time passes ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Called about ten times a second: park what waits for a proof, end what has waited long enough."""
        now = self._clock.monotonic()
        if self._in_hand <= FLIGHTS_MAX // 2:
            self._room.set()
        for session in self._hub.stalled(now, self._limits.confirm_timeout):
            self.close_session(session, CloseReason.TOO_SLOW)
        while self._hub.queued_bytes > self._limits.total_bytes:
            fullest = self._hub.fullest()
            if fullest is None:
                break
            self.close_session(fullest, CloseReason.TOO_SLOW)
        if self._awaited and now >= self._grace_until:
            self._end_grace()
        if self._unclaimed and self._unclaimed[0].look_at <= now:
            self._wake.set()
        for flight in self._deadlines.rows_due(now):
            # One that left was stored, and may be on its way again as another flight, which its row is up to.
            if self._flights.get(flight.key) is flight:
                self._park(flight)
                self._deadlines.park(flight)
        for flight in self._deadlines.over(now):
            self._time_out(flight)
        self._mailbox.tick()
        self._show_life(now)

    def _show_life(self, now: float) -> None:
        """Pings and heartbeats whose turn it is, and an end for peers that are gone without a word."""
        for turn in self._hub.turns(now):
            quiet = dict.fromkeys(turn.quiet, HEARTBEAT)
            for session in turn.to_ping:
                if session.suspect(now, self._limits.confirm_timeout * 2):
                    self.close_session(session, CloseReason.VANISHED)
                else:
                    session.ping(now, quiet.get(session), turn.at)
            for session, heartbeat in quiet.items():
                if session.close_reason is None:
                    session.beat(heartbeat, turn.at)

    def _time_out(self, flight: Flight) -> None:
        """Its time is over, unless it has left: for the log where it has ended, or where nobody has it."""
        if self._flights.get(flight.key) is flight:
            self._outgoing.note(flight, flight.timed_out(self._clock.time()))

    def _end_grace(self) -> None:
        now = self._clock.time()
        for waiting in self._awaited.values():
            for flight, _ in waiting:
                self._outgoing.note(flight, flight.end(Outcome.OFFLINE, Reason.NO_SESSION, now))
        self._awaited.clear()

    def every_second(self) -> None:
        """Tokens that expire, mailboxes whose room nobody told of, and the age of what is remembered."""
        now = self._clock.monotonic()
        for session in self._hub.expired(self._clock.time()):
            self.close_session(session, CloseReason.TOKEN_EXPIRED)
        self._mailbox.every_second()
        self.remembered.every_second(now)

    # --- 7. settled -------------------------------------------------------------------------------------

    def settled(self, flight: Flight, row: Row) -> None:
        """Its final row is committed: from now on the row answers for it."""
        if self._handling.locked():
            self._settled_meanwhile[row.key] = row
        self._flights.remove(flight)
        self._mailbox.settled(flight)

    # --- for people -------------------------------------------------------------------------------------

    def account(self) -> Account:
        """What an audit compares: begun = with a row + on their way, or a push was lost."""
        now = self._clock.monotonic()
        ages = [now - flight.taken_mono for flight in self._flights if not flight.parked]
        return Account(self._begun, self._worklist.first_rows, len(ages), ages)

    @property
    def inbox(self) -> int:
        """Messages that arrived and are not taken yet."""
        return len(self._inbox)

    @property
    def in_flight(self) -> int:
        """Pushes on their way, parked ones included; not those that are stored, whoever has them."""
        return self._flights.busy

    @property
    def parked(self) -> int:
        """Pushes whose proof is overdue and whose message is acked."""
        return self._deadlines.parked


def _named(taking: Decoded) -> int:
    """Rows that the requests of a message name; too many to look up where only the hub knows the users."""
    rows = 0
    for request in taking.requests:
        if isinstance(request, Rejected) or isinstance(request.target, ToUser):
            rows += 1
        elif isinstance(request.target, ToUsers):
            rows += len(request.target.users)
        else:
            return LOOKUP_ROWS + 1
    return rows


def _portions(decoded: Sequence[_Decoded]) -> Iterator[Sequence[_Decoded]]:
    """Messages whose rows can be looked up in one statement; one that is too large for that stands alone."""
    portion: list[_Decoded] = []
    rows = 0
    for one in decoded:
        size = _named(one[1])
        if portion and rows + size > LOOKUP_ROWS:
            yield portion
            portion, rows = [], 0
        portion.append(one)
        rows += size
    if portion:
        yield portion


def _letter(arrival: Arrival, push_id: str, reason: Reason, detail: str, body: bytes) -> DeadLetter:
    return DeadLetter(push_id, reason, detail, body, arrival.properties)
