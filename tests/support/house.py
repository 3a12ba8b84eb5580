"""The core put together for tests, as `bridge.app.build` does it: ports in memory, time in the test's hands.

Nothing else under tests/ calls the constructors of the core's objects, so that a change of one is a change here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from bridge.adapters.memory import MemoryRevocations, MemoryStore
from bridge.core.assembly import Core
from bridge.core.bounds import Bounds, SettlementBounds
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.gateway import Client, Gateway
from bridge.core.given import CoreLimits, Ports
from bridge.core.inflight.flight import Effect, Flight, Owner
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.making import flight_of
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import NO_USER, Properties, PushRequest, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Grant, Mode
from bridge.core.ports.broker import AckToken, Arrival
from bridge.core.ports.connecting import ConnectHook
from bridge.core.ports.nodes import Directory, NodePost
from bridge.core.ports.plugins import DeliveryLog
from bridge.core.ports.retained import Retained
from bridge.core.ports.revocations import RevocationLog
from bridge.core.ports.scheduling import Releases, Schedule
from bridge.core.ports.session_log import SessionEvents, SessionLog
from bridge.core.sessions.access import Access
from bridge.core.sessions.admission import AdmissionLimits
from bridge.core.sessions.carriers import usual_carriers
from bridge.core.sessions.connecting import HookLimits
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.session import Session
from bridge.core.settlement.gate import Gate
from bridge.core.talking.hearing import Hearing
from bridge.core.talking.publishing import Publishing
from tests.support.ports import (
    AnyToken,
    CountingMetrics,
    GatedStore,
    ManualClock,
    RecordingAcks,
    RecordingAnswers,
    RecordingErrors,
    RecordingHooks,
    RecordingInbound,
    RecordingPublisher,
    RecordingSocket,
    arrival,
    claims,
)
from tests.support.waiting import until

TOKEN_SECONDS: Final = 400 * 86400.0
BOUNDS: Final = Bounds(settlement=SettlementBounds(linger=0.0))
"""The fixed bounds of the core, but that no row waits for others: time is in the test's hands."""

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
) -> HeldMessage:
    """A message that was taken."""
    return HeldMessage(
        AckToken(1, tag), Properties(**properties), published_at=published_at, taken_at=taken_at
    )


class Recorder:
    """Owns flights that nothing else owns, and keeps what it was told."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []

    def carry_on(self, flight: Flight, effect: Effect, now: float) -> None:
        self.effects.append(effect)


def flight(
    push_id: str = "p1",
    user: str = "u1",
    *,
    confirm: Proof = Proof.RECEIVED,
    sessions: int = 1,
    of: HeldMessage | None = None,
    owner: Owner | None = None,
    taken_mono: float = 0.0,
) -> Flight:
    """A push on its way to this many sessions of a user, handed to none of them yet."""
    request = PushRequest(id=push_id, target=ToUser(user), data=b"1", confirm=confirm)
    made = flight_of(request, user, of or message(), owner or Recorder(), taken_mono)
    made.addressed(sessions)
    return made


# --- the whole core ----------------------------------------------------------------------------------------


class Runs(Protocol):
    """A part of the core with a task of its own."""

    def run(self) -> Coroutine[Any, Any, None]: ...


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
        bounds: Bounds = BOUNDS,
        revocations: RevocationLog | None = None,
        admission: AdmissionLimits = AdmissionLimits(),  # noqa: B008 -- it can't be changed
        sessions: SessionLog | None = None,
        session_events: SessionEvents | None = None,
        logs: Sequence[DeliveryLog] = (),
        hook: ConnectHook | None = None,
        hook_limits: HookLimits | None = None,
        node: str = "n1",
        directory: Directory | None = None,
        post: NodePost | None = None,
        retained: Retained | None = None,
        schedule: Schedule | None = None,
        releases: Releases | None = None,
    ) -> None:
        limits = limits or DeliveryLimits(start_grace=0.0)
        self.clock = clock or ManualClock()
        self.store = store or GatedStore(self.clock)
        self.revocations: RevocationLog = revocations or MemoryRevocations(self.clock, "n1", TOKEN_SECONDS)
        self.acks = RecordingAcks()
        self.publisher = RecordingPublisher(self.acks)
        self.answers = RecordingAnswers()
        self.errors = RecordingErrors()
        self.hooks = RecordingHooks()
        self.metrics = CountingMetrics()
        self.gate = Gate()
        self.core = Core(
            Ports(
                store=self.store,
                revocations=self.revocations,
                logs=logs,
                acks=self.acks,
                receipts=self.publisher,
                dead_letters=self.publisher,
                fallbacks=self.publisher,
                answers=self.answers,
                hooks=self.hooks,
                metrics=self.metrics,
                errors=self.errors,
                clock=self.clock,
                hook=hook,
                sessions=sessions,
                session_events=session_events,
                directory=directory,
                post=post,
                retained=retained,
                schedule=schedule,
                releases=releases,
            ),
            CoreLimits(
                limits,
                mailbox_limits or MailboxLimits(),
                1 << 16,
                TOKEN_SECONDS,
                bounds,
                admission,
                hook_limits or HookLimits(),
            ),
            gate=self.gate,
            node=node,
            boot=boot,
        )
        self.core.revoked.read = True
        self.hub = self.core.hub
        self.worklist = self.core.worklist
        self.inflight = self.core.inflight
        self.intake = self.core.intake
        self.settlement = self.core.settlement
        self.control = self.core.control
        self.remembered = self.core.remembered
        self.recollection = self.core.recollection
        self.final_rows: dict[RowKey, Row] = {}
        """In a settlement house, the rows of nobody, u1 and u2 that became final, by key."""
        ids = iter(range(1, 100_000))
        access = Access(
            AnyToken(),
            (),
            revoked=self.core.revoked,
            ledger=self.core.ledger,
            admission=self.core.admission,
            clock=self.clock,
            connecting=self.core.connecting,
            token_from=usual_carriers(hook=hook is not None),
        )
        self.inbound = RecordingInbound()
        self.publishing = Publishing(self.inbound, self.core.freshness, self.core.pages, self.clock)
        self.gateway = Gateway(
            access=access,
            presence=self.core.presence,
            proofs=self.core.proofs,
            saying=self.core.saying,
            hearing=Hearing(
                access=access,
                presence=self.core.presence,
                proofs=self.core.proofs,
                publishing=self.publishing,
                subscriptions=self.core.subscriptions,
                clock=self.clock,
            ),
            limits=session_limits or SessionLimits(256, 1 << 20),
            hooks=self.hooks,
            metrics=self.metrics,
            clock=self.clock,
            new_session_id=lambda: f"s{next(ids)}" if node == "n1" else f"{node}-s{next(ids)}",
        )
        self._tags = iter(range(1, 100_000))

    # --- its tasks ---

    @property
    def parts(self) -> tuple[Runs, ...]:
        """What runs in every bridge."""
        core = self.core
        return self.settlement, self.intake, core.crowds, core.pages, core.last_values, core.heard_recalls

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
        return self.open(Grant(claims(user), mode, mode.value, last, granted_at=self.clock.now))

    def open(self, grant: Grant) -> Peer:
        """Open the session that a handshake was granted."""
        socket = RecordingSocket()
        opened = self.gateway.opened(grant, socket)
        assert isinstance(opened, Client), "a grant without a token"
        return Peer(opened, socket)

    async def live(self, user: str, mode: Mode = Mode.ENVELOPE, last: str | None = None) -> Peer:
        """Connect, and wait until the session was sent what is kept for its user."""
        peer = self.connect(user, mode, last)
        await until(lambda: peer.client.session.replay is None)
        return peer

    async def take(self, *arrivals: Arrival) -> None:
        """Let the core take these, and what it does at once."""
        self.intake.arrived(arrivals)
        await until(lambda: not self.intake.waiting)
        for _ in range(20):
            await asyncio.sleep(0)

    async def push(self, body: dict[str, object] | Sequence[object], **properties: Any) -> Arrival:
        """Let the core take this request."""
        made = arrival(json.dumps(body).encode(), arrived_at=self.clock.now, **properties)
        await self.take(made)
        return made

    def message(
        self, reply_to: str = "", correlation_id: str = "c", *, redelivered: bool = False
    ) -> HeldMessage:
        """A message that was taken now, for a settlement that is tested alone."""
        return message(
            tag=next(self._tags),
            published_at=self.clock.now,
            taken_at=self.clock.now,
            reply_to=reply_to,
            correlation_id=correlation_id,
            redelivered=redelivered,
        )

    def flight(self, push_id: str, of: HeldMessage, user: str = "u1") -> Flight:
        """A push of this message that was handed to one session, for a settlement that is tested alone."""
        made = flight(push_id, user, of=of, owner=self.inflight, taken_mono=self.clock.mono)
        made.handed(self.clock.now, "s1")
        of.open += 1
        return made

    def advance(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass as the service's ticker sees it."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.core.tick()

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
    bounds: Bounds = BOUNDS,
    start_grace: float = 0.0,
    all_bytes: int = 256 * 1024 * 1024,
    hook: ConnectHook | None = None,
    hook_limits: HookLimits | None = None,
    **limits: Any,
) -> AsyncIterator[House]:
    """A running house; `limits` are those of `DeliveryLimits`, and `all_bytes` its `total_bytes`."""
    built = House(
        DeliveryLimits(start_grace=start_grace, total_bytes=all_bytes, **limits),
        SessionLimits(frames, total_bytes),
        clock=clock,
        store=store,
        boot=boot,
        mailbox_limits=mailbox,
        bounds=bounds,
        hook=hook,
        hook_limits=hook_limits,
    )
    parts = (*built.parts, built.core.renewing) if built.core.renewing else built.parts
    async with built.running(*parts):
        built.core.begin(await built.store.last_position())
        yield built


@asynccontextmanager
async def settlement_house(*logs: DeliveryLog, bounds: Bounds = BOUNDS) -> AsyncIterator[House]:
    """A house in which settlement alone runs, with these logs besides the store."""
    built = House(logs=logs, bounds=bounds)
    with built.inflight.watching({NO_USER, "u1", "u2"}) as built.final_rows:
        async with built.running(built.settlement):
            yield built


def to(user: str, push_id: str = "p1", **more: object) -> dict[str, object]:
    """A push request to a user."""
    return {"id": push_id, "to": {"user": user}, "data": {"n": 1}, **more}


def kept(user: str, push_id: str = "p1", ttl: float = 3600, **more: object) -> dict[str, object]:
    """A push request to a user, kept for an hour."""
    return to(user, push_id, ttl=ttl, **more)
