"""The core's ports for its tests: a clock that moves only when told, and ports that record what they are given."""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from bridge.adapters.memory import MemoryStore
from bridge.core.model.outcomes import Outcome
from bridge.core.model.pushes import Properties
from bridge.core.model.rows import DeadLetter, DueFallback, Receipt, Reply, Row
from bridge.core.model.sessions import Claims, CloseReason
from bridge.core.ports.broker import AckToken, Arrival, Published, Source
from bridge.core.ports.inbound import InboundEnd, InboundListener, InboundMessage
from bridge.core.ports.plugins import SessionInfo, TokenVerifier
from bridge.core.ports.sockets import Frame
from bridge.core.ports.store import MailboxAsk, MailboxPage, Written
from bridge.core.sessions.access import Access
from bridge.core.sessions.admission import Admission, AdmissionLimits
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.ledger import Ledger
from bridge.core.sessions.revoked import Revoked


class ManualClock:
    """Time that stands still until `advance`; sleepers wake in order."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self.now = start
        self.mono = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.mono

    def boottime(self) -> float:
        return self.mono

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self.mono + seconds, self._count, future))
        await future

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.mono += seconds
        while self._sleepers and self._sleepers[0][0] <= self.mono:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


class RecordingSocket:
    """Fills the Socket port: keeps what was handed to it, and can be stuffed or cut."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.read_by_ping: list[int] = []
        """For each ping, how many frames went out before it."""
        self.pings: list[bytes] = []
        self.writes = 0
        self.closed_with: CloseReason | None = None
        self.aborted = False
        self.open = True
        self.stuffed = False
        self.buffered_bytes = 0

    @property
    def writable(self) -> bool:
        return self.open and not self.stuffed

    @property
    def buffered(self) -> int:
        return self.buffered_bytes

    def write(self, frames: Sequence[Frame], ping: bytes | None) -> bool:
        if not self.open:
            return False
        self.writes += 1
        self.frames.extend(frames)
        if ping is not None:
            self.pings.append(ping)
            self.read_by_ping.append(len(self.frames))
        return True

    def close(self, reason: CloseReason) -> None:
        self.closed_with = self.closed_with or reason
        self.open = False

    def abort(self) -> None:
        self.aborted = True
        self.open = False

    @property
    def texts(self) -> list[bytes]:
        return [f.payload for f in self.frames]


class RecordingAcks:
    """Fills the Acks port."""

    def __init__(self) -> None:
        self.acked: list[AckToken] = []
        self.requeued: list[AckToken] = []
        self.wide = False
        self.changed = asyncio.Event()

    def ack(self, tokens: Iterable[AckToken]) -> None:
        self.acked.extend(tokens)
        self.changed.set()

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        self.requeued.extend(tokens)
        self.changed.set()

    def widen(self, incarnations: Collection[int]) -> None:
        self.wide = True


class RecordingErrors:
    """Fills the ErrorHandler port."""

    def __init__(self) -> None:
        self.seen: list[tuple[BaseException, str]] = []
        self.facts: list[Mapping[str, object]] = []

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        self.seen.append((error, where))
        self.facts.append(facts)


def access(verifier: TokenVerifier, origins: Collection[str] = (), **more: Any) -> Access:
    """Access with nothing revoked, for tokens of any length."""
    revoked = Revoked(1e10)
    revoked.read = True
    ledger = Ledger("n1", kept=False)
    admission = Admission(Hub(), AdmissionLimits())
    return Access(
        verifier,
        origins,
        revoked=revoked,
        ledger=ledger,
        admission=admission,
        clock=ManualClock(),
        **more,
    )


def claims(user: str, expires_at: float = 4e9) -> Claims:
    return Claims(user=user, expires_at=expires_at)


_tags = iter(range(1, 1 << 60))


def arrival(
    body: bytes,
    *,
    incarnation: int = 1,
    tag: int | None = None,
    source: Source = Source.REQUESTS,
    arrived_at: float = 1_800_000_000.0,
    **properties: object,
) -> Arrival:
    return Arrival(
        token=AckToken(incarnation, tag if tag is not None else next(_tags)),
        source=source,
        body=body,
        body_size=len(body),
        properties=Properties(**properties),  # type: ignore[arg-type]
        arrived_at=arrived_at,
    )


class RecordingHooks:
    """Fills the Hooks port; keeps what it is told."""

    def __init__(self) -> None:
        self.opened: list[SessionInfo] = []
        self.closed: list[tuple[SessionInfo, int, str]] = []
        self.outcomes: list[Row] = []

    def on_open(self, session: SessionInfo) -> None:
        self.opened.append(session)

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        self.closed.append((session, code, reason))

    def on_outcome(self, row: Row) -> None:
        self.outcomes.append(row)

    def on_error(self, error: BaseException, where: str) -> None:
        raise AssertionError("the core reports errors to the ErrorHandler")


class CountingMetrics:
    """Fills the Metrics port and counts messages, repeats and late proofs."""

    def __init__(self) -> None:
        self.repeats = 0
        self.late = 0
        self.differing = 0
        self.takings = 0
        self.looked = 0
        self.fallen = 0
        self.handshakes: list[str] = []
        self.hook: list[str] = []

    def taken(self, messages: int, requests: int) -> None:
        self.takings += messages

    def outcomes(self, rows: Sequence[Row]) -> None: ...

    def looked_up(self, rows: int) -> None:
        self.looked += rows

    def holders_asked(self, pushes: int) -> None: ...

    def letter(self, items: int) -> None: ...

    def repeat(self, outcome: Outcome) -> None:
        self.repeats += 1

    def repeat_differs(self) -> None:
        self.differing += 1

    def proof_late(self, count: int) -> None:
        self.late += count

    def recorded(self, rows: int, seconds: float) -> None: ...

    def receipts(self, sent: int, owed: int, seconds: float) -> None: ...

    def fallbacks(self, published: int, unroutable: int, unsent: int) -> None:
        self.fallen += published

    def handed(self, pushes: int) -> None: ...

    def handshake(self, result: str, seconds: float) -> None:
        self.handshakes.append(result)

    def hook_asked(self, result: str, seconds: float) -> None:
        self.hook.append(result)

    def closed(self, reason: str) -> None: ...


class RecordingPublisher:
    """Fills Receipts, DeadLetters, Fallbacks: keeps what it gets, takes nothing while `blocked` or `refusing`."""

    def __init__(self, acks: RecordingAcks | None = None) -> None:
        self.sent: list[Receipt] = []
        self.buried: list[DeadLetter] = []
        self.fallen_back: list[DueFallback] = []
        self.blocked = False
        """The broker takes no publishes, and has said so."""
        self.refusing = False
        """The broker refuses what is published."""
        self.acked_before: list[int] = []
        """For each call of `send`, how many messages were acked before it."""
        self._acks = acks or RecordingAcks()

    async def send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        self.acked_before.append(len(self._acks.acked))
        await asyncio.sleep(0)
        if self.blocked or self.refusing:
            return receipts
        self.sent.extend(receipts)
        return ()

    async def bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        await asyncio.sleep(0)
        if self.blocked or self.refusing:
            return letters
        self.buried.extend(letters)
        return ()

    async def publish(self, fallbacks: Sequence[DueFallback]) -> Published:
        await asyncio.sleep(0)
        if self.blocked or self.refusing:
            return Published(fallbacks, 0)
        self.fallen_back.extend(fallbacks)
        return Published((), 0)

    def final_receipts(self) -> int:
        """How many receipts say how a push ended."""
        return sum(r.row.final for r in self.sent)

    def replies_of(self, push_id: str, outcome: Outcome) -> list[Reply]:
        """To whom it was said that a push has this outcome."""
        return [
            reply
            for r in self.sent
            if r.row.key.push_id == push_id and r.row.outcome is outcome
            for reply in r.replies
        ]


class RecordingInbound:
    """Fills Inbound: keeps what it is given, and tells its end when the test says so."""

    def __init__(self) -> None:
        self.cause = ""
        self.given: list[InboundMessage] = []
        self.forgotten: list[str] = []
        self._listener: InboundListener | None = None

    def listen(self, listener: InboundListener) -> None:
        self._listener = listener

    def publish(self, message: InboundMessage) -> None:
        self.given.append(message)

    def forget(self, message_id: str) -> None:
        self.forgotten.append(message_id)

    def end(self, end: InboundEnd, *messages: InboundMessage) -> None:
        """Tell that these have ended so; without any, all that were given and not forgotten."""
        assert self._listener is not None
        for message in messages or list(self.given):
            if message.id not in self.forgotten:
                self._listener.told(message.id, end)


class RecordingAnswers:
    """Fills the Answers port."""

    def __init__(self) -> None:
        self.given: list[tuple[Reply, dict[str, object]]] = []

    async def answer(self, reply: Reply, body: bytes) -> bool:
        self.given.append((reply, json.loads(body)))
        return True


class GatedStore(MemoryStore):
    """Lets a test stop the writer, or the reader of the mailbox, before it does anything."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.writing = asyncio.Event()
        self.reading = asyncio.Event()
        self.writing.set()
        self.reading.set()
        self.reads = 0

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        await self.writing.wait()
        return await super().record(rows)

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        pages = await super().mailbox(asks)
        self.reads += 1
        await self.reading.wait()
        return pages


class AnyToken:
    """Fills the TokenVerifier port: the token is the user."""

    def verify(self, token: str) -> Claims:
        return claims(token)
