"""The core put together for tests, as `bridge.app.build` does it: ports in memory, time in the test's hands.

Nothing else under tests/ calls the constructors of the core's objects, so that a change of one is a change here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from bridge.adapters.memory import MemoryStore
from bridge.core.control import Control
from bridge.core.delivery.delivery import Delivery, DeliveryLimits
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.gateway import Client, Gateway
from bridge.core.inflight.flight import Flight, Message
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.mailbox.outgoing import Outgoing
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import Properties, PushRequest, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Grant, Mode
from bridge.core.ports.broker import AckToken, Arrival
from bridge.core.sessions.access import Access
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session, SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.settlement import Settlement
from bridge.core.settlement.worklist import Worklist
from tests.support.ports import (
    AnyToken,
    CountingMetrics,
    GatedStore,
    ManualClock,
    RecordingAcks,
    RecordingAnswers,
    RecordingErrors,
    RecordingHooks,
    RecordingPublisher,
    RecordingSocket,
    arrival,
    claims,
)
from tests.support.waiting import until

# --- single objects ----------------------------------------------------------------------------------------


def session(
    user: str = "u1",
    *,
    session_id: str = "s1",
    mode: Mode = Mode.BARE,
    frames: int = 256,
    total_bytes: int = 1 << 20,
    expires_at: float = 4e9,
    socket: RecordingSocket | None = None,
) -> tuple[Session, RecordingSocket]:
    """A session on a recording socket."""
    sock = socket or RecordingSocket()
    limits = SessionLimits(frames, total_bytes)
    return Session(session_id, claims(user, expires_at), mode, sock, limits, opened_at=0.0), sock


def message(
    *, tag: int = 1, published_at: float = 10.0, taken_at: float = 11.0, **properties: Any
) -> Message:
    """A message that was taken."""
    return Message(AckToken(1, tag), Properties(**properties), published_at=published_at, taken_at=taken_at)


def flight(
    push_id: str = "p1",
    user: str = "u1",
    *,
    confirm: Proof = Proof.RECEIVED,
    sessions: int = 1,
    of: Message | None = None,
    taken_mono: float = 0.0,
) -> Flight:
    """A push on its way to this many sessions of a user, handed to none of them yet."""
    request = PushRequest(id=push_id, target=ToUser(user), data=b"1", confirm=confirm)
    made = Flight.of(request, user, of or message(), taken_mono)
    made.addressed(sessions)
    return made


# --- the whole core ----------------------------------------------------------------------------------------


class Runs(Protocol):
    """A part of the core with a task of its own."""

    def run(self) -> Coroutine[Any, Any, None]: ...


class Reports:
    """Keeps what settlement reports, in place of delivery and the mailbox."""

    def __init__(self) -> None:
        self.settled: list[Flight] = []
        self.superseded: list[Row] = []

    def on_settled(self, flight: Flight, row: Row | None) -> None:
        self.settled.append(flight)

    def on_stored(self, flight: Flight, row: Row) -> None: ...

    def on_superseded(self, rows: Sequence[Row]) -> None:
        self.superseded.extend(rows)


class Peer:
    """A client on a recording socket."""

    def __init__(self, client: Client, socket: RecordingSocket) -> None:
        self.client = client
        self.socket = socket
        self._answered = 0
        self._read: list[dict[str, object]] = []

    @property
    def session_id(self) -> str:
        return self.client.session.id

    def answer(self) -> None:
        """Answer every ping that was not answered yet, as any WebSocket endpoint does."""
        while self._answered < len(self.socket.pings):
            self._answered += 1
            self.client.pong(self.socket.pings[self._answered - 1])

    @property
    def unanswered(self) -> int:
        """Pings that were not answered yet."""
        return len(self.socket.pings) - self._answered

    def next_read(self) -> int:
        """How many frames this peer has read when it answers its oldest unanswered ping."""
        return self.socket.read_by_ping[self._answered] if self._answered < len(self.socket.pings) else 0

    def answer_one(self) -> None:
        """Answer the oldest unanswered ping only."""
        if self._answered < len(self.socket.pings):
            self._answered += 1
            self.client.pong(self.socket.pings[self._answered - 1])

    def leave(self, code: int = 1001) -> None:
        self.socket.open = False
        self.client.closed(code, "")

    @property
    def pushes(self) -> list[dict[str, object]]:
        return self.first(len(self.socket.frames))

    def first(self, count: int) -> list[dict[str, object]]:
        """The pushes among the first `count` frames."""
        self._read.extend(json.loads(f.payload) for f in self.socket.frames[len(self._read) :])
        return [f for f in self._read[:count] if f["type"] == "push"]


class House:
    """The whole core, with ports in memory and time in the test's hands."""

    def __init__(
        self,
        limits: DeliveryLimits | None = None,
        session_limits: SessionLimits | None = None,
        *,
        clock: ManualClock | None = None,
        store: MemoryStore | None = None,
        boot: str = "b1",
        mailbox_limits: MailboxLimits | None = None,
        settlement_only: bool = False,
    ) -> None:
        """`settlement_only`: settlement reports to `reports`, and not to delivery and the mailbox."""
        limits = limits or DeliveryLimits(start_grace=0.0)
        self.clock = clock or ManualClock()
        self.store = store or GatedStore(self.clock)
        self.acks = RecordingAcks()
        self.publisher = RecordingPublisher(self.acks)
        self.answers = RecordingAnswers()
        self.errors = RecordingErrors()
        self.hooks = RecordingHooks()
        self.metrics = CountingMetrics()
        self.reports = Reports()
        self.gate = Gate()
        self.hub = Hub()
        self.flights = Flights()
        self.worklist = Worklist(metrics=self.metrics, clock=self.clock)
        self.outgoing = Outgoing(hub=self.hub, worklist=self.worklist, metrics=self.metrics, clock=self.clock)
        self.mailbox = Mailbox(
            store=self.store,
            hub=self.hub,
            flights=self.flights,
            worklist=self.worklist,
            outgoing=self.outgoing,
            clock=self.clock,
            gate=self.gate,
            errors=self.errors,
            boot=boot,
            patience=limits.confirm_timeout,
            park_after=limits.park_after,
            limits=mailbox_limits or MailboxLimits(),
        )
        self.remembered = Remembered(1 << 16, self.clock.monotonic())
        self.recollection = Recollection(
            self.remembered, store=self.store, errors=self.errors, clock=self.clock, boot=boot
        )
        self.delivery = Delivery(
            hub=self.hub,
            store=self.store,
            flights=self.flights,
            worklist=self.worklist,
            outgoing=self.outgoing,
            mailbox=self.mailbox,
            acks=self.acks,
            metrics=self.metrics,
            errors=self.errors,
            clock=self.clock,
            gate=self.gate,
            remembered=self.remembered,
            recollection=self.recollection,
            limits=limits,
        )
        self.settlement = Settlement(
            worklist=self.worklist,
            store=self.store,
            logs=(),
            receipts=self.publisher,
            dead_letters=self.publisher,
            acks=self.acks,
            hooks=self.hooks,
            metrics=self.metrics,
            errors=self.errors,
            clock=self.clock,
            gate=self.gate,
            node="n1",
            boot=boot,
            on_settled=self.reports.on_settled if settlement_only else self.delivery.settled,
            on_stored=self.reports.on_stored if settlement_only else self.mailbox.stored,
            on_superseded=self.reports.on_superseded if settlement_only else self.mailbox.ended_in_store,
        )
        self.control = Control(
            store=self.store,
            mailbox=self.mailbox,
            acks=self.acks,
            answers=self.answers,
            errors=self.errors,
            clock=self.clock,
            gate=self.gate,
            node="n1",
        )
        ids = iter(range(1, 100_000))
        self.gateway = Gateway(
            access=Access(AnyToken(), ()),
            delivery=self.delivery,
            limits=session_limits or SessionLimits(256, 1 << 20),
            hooks=self.hooks,
            metrics=self.metrics,
            clock=self.clock,
            new_session_id=lambda: f"s{next(ids)}",
        )
        self._tags = iter(range(1, 100_000))

    # --- its tasks ---

    @property
    def parts(self) -> tuple[Runs, ...]:
        """What runs in every bridge."""
        return self.settlement, self.delivery, self.mailbox

    @asynccontextmanager
    async def running(self, *parts: Runs) -> AsyncIterator[None]:
        """Run these parts for the length of the block; each must end by being cancelled, or by itself."""
        tasks = start(*parts)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results

    # --- what comes in ---

    def connect(self, user: str, mode: Mode = Mode.ENVELOPE, last: str | None = None) -> Peer:
        """Open a session for a user."""
        return self.open(Grant(claims(user), mode, mode.value, last))

    def open(self, grant: Grant) -> Peer:
        """Open the session that a handshake was granted."""
        socket = RecordingSocket()
        return Peer(self.gateway.opened(grant, socket), socket)

    async def live(self, user: str, mode: Mode = Mode.ENVELOPE, last: str | None = None) -> Peer:
        """Connect, and wait until the session was sent what is kept for its user."""
        peer = self.connect(user, mode, last)
        await until(lambda: peer.client.session.replay is None)
        return peer

    async def take(self, *arrivals: Arrival) -> None:
        """Let the core take these, and what it does at once."""
        self.delivery.arrived(arrivals)
        await until(lambda: not self.delivery.inbox)
        for _ in range(20):
            await asyncio.sleep(0)

    async def push(self, body: dict[str, object] | Sequence[object], **properties: Any) -> Arrival:
        """Let the core take this request."""
        made = arrival(json.dumps(body).encode(), arrived_at=self.clock.now, **properties)
        await self.take(made)
        return made

    def message(self, reply_to: str = "", correlation_id: str = "c", *, redelivered: bool = False) -> Message:
        """A message that was taken now, for a settlement that is tested alone."""
        return message(
            tag=next(self._tags),
            published_at=self.clock.now,
            taken_at=self.clock.now,
            reply_to=reply_to,
            correlation_id=correlation_id,
            redelivered=redelivered,
        )

    def flight(self, push_id: str, of: Message, user: str = "u1") -> Flight:
        """A push of this message that was handed to one session, for a settlement that is tested alone."""
        made = flight(push_id, user, of=of, taken_mono=self.clock.mono)
        made.handed(self.clock.now)
        of.open += 1
        return made

    def advance(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass as the service's ticker sees it."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.delivery.tick()

    # --- what comes of it ---

    async def settled(self, count: int) -> None:
        """Wait until so many messages are acked."""
        async with asyncio.timeout(10):
            while len(self.acks.acked) < count:
                self.clock.advance(0.001)
                await asyncio.sleep(0)

    def row(self, push_id: str, user: str = "u1") -> Row:
        """The row of a push to a user."""
        return self.store.rows[RowKey("", push_id, user)]

    def end(self, push_id: str, user: str = "u1") -> tuple[Outcome, Reason]:
        """What the row of a push to a user says."""
        row = self.row(push_id, user)
        return row.outcome, row.reason

    async def ends(self, push_id: str, outcome: Outcome, reason: Reason, user: str = "u1") -> None:
        """Wait until the row of a push to a user says so."""
        try:
            await until(lambda: self._says(push_id, user) == (outcome, reason))
        except TimeoutError:
            raise AssertionError(f"{push_id} for {user} is {self._says(push_id, user)}") from None

    def _says(self, push_id: str, user: str) -> tuple[Outcome, Reason] | None:
        try:
            return self.end(push_id, user)
        except KeyError:
            return None


def start(*parts: Runs) -> list[asyncio.Task[None]]:
    """A task for each part, by its name."""
    return [asyncio.create_task(part.run(), name=type(part).__name__.lower()) for part in parts]


@asynccontextmanager
async def house(
    *,
    frames: int = 256,
    total_bytes: int = 1 << 20,
    clock: ManualClock | None = None,
    store: MemoryStore | None = None,
    boot: str = "b1",
    mailbox: MailboxLimits | None = None,
    start_grace: float = 0.0,
    **limits: Any,
) -> AsyncIterator[House]:
    """A running house; `limits` are those of `DeliveryLimits`."""
    built = House(
        DeliveryLimits(start_grace=start_grace, **limits),
        SessionLimits(frames, total_bytes),
        clock=clock,
        store=store,
        boot=boot,
        mailbox_limits=mailbox,
    )
    async with built.running(*built.parts):
        built.mailbox.begin(await built.store.last_position())
        yield built


@asynccontextmanager
async def settlement_house() -> AsyncIterator[House]:
    """A house in which settlement alone runs, and reports to `reports`."""
    built = House(settlement_only=True)
    async with built.running(built.settlement):
        yield built


def to(user: str, push_id: str = "p1", **more: object) -> dict[str, object]:
    """A push request to a user."""
    return {"id": push_id, "to": {"user": user}, "data": {"n": 1}, **more}


def kept(user: str, push_id: str = "p1", ttl: float = 3600, **more: object) -> dict[str, object]:
    """A push request to a user, kept for an hour."""
    return to(user, push_id, ttl=ttl, **more)
