"""The whole core, with ports in memory and time in the test's hands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from bridge.core.delivery.delivery import Delivery, DeliveryLimits
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.outgoing import Outgoing

from bridge.adapters.memory import MemoryStore
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.gateway import Client, Gateway
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Claims, Grant, Mode
from bridge.core.ports.broker import Arrival
from bridge.core.sessions.access import Access
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import SessionLimits
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.settlement import Settlement
from bridge.core.settlement.worklist import Worklist
from tests.support.core import (
    ManualClock,
    QuietHooks,
    QuietMetrics,
    RecordingAcks,
    RecordingErrors,
    RecordingSocket,
    arrival,
    claims,
    until,
)
from tests.support.settlement_house import Publisher


class AnyToken:
    """Fills the TokenVerifier port: the token is the user."""

    def verify(self, token: str) -> Claims:
        return claims(token)


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
        limits: DeliveryLimits,
        session_limits: SessionLimits,
        *,
        clock: ManualClock | None = None,
        store: MemoryStore | None = None,
        boot: str = "b1",
        mailbox_limits: MailboxLimits | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.store = store or MemoryStore(clock=self.clock)
        self.acks = RecordingAcks()
        self.publisher = Publisher(self.store, self.acks)
        self.errors = RecordingErrors()
        self.hooks = QuietHooks()
        self.metrics = QuietMetrics()
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
            on_settled=self.delivery.settled,
            on_stored=self.mailbox.stored,
            on_superseded=self.mailbox.ended_in_store,
        )
        ids = iter(range(1, 100_000))
        self.gateway = Gateway(
            access=Access(AnyToken(), ()),
            delivery=self.delivery,
            limits=session_limits,
            hooks=self.hooks,
            metrics=self.metrics,
            clock=self.clock,
            new_session_id=lambda: f"s{next(ids)}",
        )

    def connect(self, user: str, mode: Mode = Mode.ENVELOPE, last: str | None = None) -> Peer:
        socket = RecordingSocket()
        grant = Grant(claims(user), mode, mode.value, last)
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
        made = arrival(json.dumps(body).encode(), arrived_at=self.clock.now, **properties)
        await self.take(made)
        return made

    def advance(self, seconds: float, step: float = 0.1) -> None:
        """Let time pass as the service's ticker sees it."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.delivery.tick()

    async def settled(self, count: int) -> None:
        """Wait until so many messages are acked."""
        async with asyncio.timeout(10):
            while len(self.acks.acked) < count:
                self.clock.advance(0.001)
                await asyncio.sleep(0)

    def row(self, push_id: str, user: str = "u1") -> Row:
        return self.store.rows[RowKey("", push_id, user)]

    def end(self, push_id: str, user: str = "u1") -> tuple[Outcome, Reason]:
        row = self.row(push_id, user)
        return row.outcome, row.reason


@asynccontextmanager
async def house(
    *, frames: int = 256, total_bytes: int = 1 << 20, start_grace: float = 0.0, **limits: float
) -> AsyncIterator[House]:
    built = House(
        DeliveryLimits(start_grace=start_grace, **limits),  # type: ignore[arg-type]
        SessionLimits(frames, total_bytes),
    )
    tasks = [
        asyncio.create_task(built.settlement.run(), name="settlement"),
        asyncio.create_task(built.delivery.run(), name="delivery"),
        asyncio.create_task(built.mailbox.run(), name="mailbox"),
    ]
    built.mailbox.begin(0)
    try:
        yield built
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results


def to(user: str, push_id: str = "p1", **more: object) -> dict[str, object]:
    return {"id": push_id, "to": {"user": user}, "data": {"n": 1}, **more}
