"""What is kept for users who are away: sent when a session opens, again while it lives, ended by time.

    stored (a row) ──> a session opens ──> read in pages, oldest first ──> offered ──> proven ──> settled
         │                                                     what is newer is held ──┘
         └──> expired, superseded, dropped (mailbox full), recalled

A session is REPLAYING until it was offered all that was taken before it opened; `Session` holds what comes
meanwhile. The next page is read when the peer has proven the last one, so replay never trips the bounds of a
queue. Nothing of a user is read while an older push of that user is in the air without a row: it is parked
first, so that no page misses it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import NamedTuple

from bridge.core.contract.fields import is_id
from bridge.core.contract.frames import bare_frame, push_frame, welcome_frame, withdraw_frame
from bridge.core.errors import StatementFailed
from bridge.core.inflight.deadlines import Appointments
from bridge.core.inflight.flight import Effect, Flight
from bridge.core.inflight.flights import Flights
from bridge.core.mailbox.measuring import MailboxLimits, Measuring
from bridge.core.mailbox.outgoing import Outgoing
from bridge.core.model.outcomes import DELIVERED, Outcome, Reason
from bridge.core.model.pushes import PushRequest, Recall, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.model.states import SessionState
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.sockets import Frame
from bridge.core.ports.store import MailboxAsk, MailboxPage, RecallPlace, ResumeAsk, ResumePoint, Store
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Replay, Session
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import PARTS, SWEEP_ROWS, Persistence
from bridge.core.settlement.worklist import Worklist

READ_SESSIONS = 50
"""Sessions whose pages are read in one statement."""
READ_ROWS, PAGE_ROWS, PAGE_ROWS_LEAST = 1000, 200, 20
"""Rows of one statement, shared among its sessions: at most, and at least, so many for each."""
READ_BYTES, PAGE_BYTES, PAGE_BYTES_LEAST = 4 * 1024 * 1024, 256 * 1024, 64 * 1024
"""Bytes of data likewise."""
POSTPONED = 30.0
"""Seconds until a session is read for again whose page could not be read though the database is there."""
SLACK = 10_000_000
"""Microseconds before the push last seen at which a resume begins: rows are not committed in order."""
SKEW = 60_000_000
"""Microseconds by which the clock of another node may be ahead: what it has stored is read all the same."""
RESENDS = 3
"""How often a push is sent again to the sessions that have it; then it waits for the next session."""
SWEEP_STATEMENTS = 20
"""Such statements in one sweep; what is left waits a second."""
RECALL_TRIES, RECALL_WAIT = 5, 0.1
"""How often a recall is begun again while others hold rows that it names, and the seconds in between."""
TRIM_USERS = 20
"""Mailboxes that one statement measures."""
PATROL_USERS = 20
"""Mailboxes that the patrol measures each second, whether they have grown or not."""
MICRO = 1_000_000


class Recalled(NamedTuple):
    """What a recall did."""

    ended: int
    """Pushes, counted once per user, that ended by it."""
    sessions: int
    """Sessions that were told to withdraw a push."""


class Mailbox:
    """Owns the replay of each session, and every stored row that ends without having been proven."""

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        flights: Flights,
        worklist: Worklist,
        outgoing: Outgoing,
        clock: Clock,
        gate: Gate,
        errors: ErrorHandler,
        boot: str,
        patience: float,
        park_after: float,
        limits: MailboxLimits,
    ) -> None:
        self._store = store
        self._flights = flights
        self._hub = hub
        self._worklist = worklist
        self._outgoing = outgoing
        self._clock = clock
        self._errors = errors
        self._persistence = Persistence(store, gate, clock, "mailboxes")
        self._sweeping = Persistence(store, gate, clock, "mailbox sweeps")
        self._boot = boot
        self._patience = patience
        self._park_after = park_after
        self._limits = limits
        self._position = 0
        self._begun = asyncio.Event()
        self._wake = asyncio.Event()
        self._asked: dict[Session, None] = {}
        """Sessions whose next page is to be read, in the order they asked."""
        self._blocked: dict[str, set[Session]] = {}
        """Sessions, by user, that wait for rows of older pushes."""
        self._replaying: dict[Session, None] = {}
        self._resuming: dict[Session, None] = {}
        """Sessions that wait for their welcome, oldest first."""
        self._postponed: dict[Session, float] = {}
        """Sessions whose page could not be read: monotonic seconds of the next try."""
        self._reading: set[str] = set()
        """Users whose pages are being read."""
        self._gone: dict[RowKey, bool] = {}
        """Rows that ended while a page was being read, which may show them as they were: were they delivered?"""
        self._recalling: dict[RowKey, asyncio.Future[None]] = {}
        """Pushes that a recall has ended here, and whose rows are not yet committed."""
        self._looks = Appointments(lambda flight: self._flights.get(flight.key) is flight)
        self._measuring = Measuring(limits)
        self._patrol = ""
        """The user whose mailbox the patrol has measured last."""
        self._sweep_rows = SWEEP_ROWS

    # --- positions ---

    def take_position(self) -> int:
        """A position higher than any before: microseconds since the epoch, where the clock allows."""
        self._position = max(self._position + 1, int(self._clock.time() * MICRO))
        return self._position

    def begin(self, last_position: int) -> None:
        """The store can be read; positions go on above the highest that it has."""
        self._position = max(self._position, last_position)
        for session in self._replaying:
            if session.replay is not None:
                session.replay.until = self.take_position()
        self._begun.set()

    # --- sessions come, and get what is kept ---

    def opened(self, session: Session, last: str | None) -> None:
        """A session opened; `last` is the push that its client says it has seen. It is welcomed at once,
        where it resumes once it is known whether anything is missing."""
        replay = Replay(after=0, until=self.take_position(), last=last)
        replay.began = self._clock.monotonic()
        session.begin_replay(replay)
        self._replaying[session] = None
        if last is None:
            self._welcome(session, complete=True)
        elif not is_id(last):
            # No push has such an id, and no database need be asked.
            replay.last = None
            self._welcome(session, complete=False)
        else:
            self._resuming[session] = None
        self._want(session)

    def flush(self, session: Session) -> None:
        """Hand over what was offered to a session, and go on with its replay where that made room."""
        self._outgoing.flush(session)
        self.more(session)

    def more(self, session: Session) -> None:
        """The session has handed something over, or proven it: it may have room for its next page."""
        replay = session.replay
        if replay is None or replay.asked or not session.idle:
            return
        if replay.full and not session.socket.writable:
            # It has taken nothing since its last page found no room.
            return
        self._want(session)

    def closed(self, session: Session) -> None:
        """The session is gone, or gets no more pushes; idempotent."""
        self._replaying.pop(session, None)
        self._resuming.pop(session, None)
        self._asked.pop(session, None)
        self._postponed.pop(session, None)
        blocked = self._blocked.get(session.user)
        if blocked is not None:
            blocked.discard(session)
            if not blocked:
                del self._blocked[session.user]

    def _want(self, session: Session) -> None:
        """Read the next page, once every older push of this user that is in the air has its row."""
        replay = session.replay
        if replay is None:
            return
        replay.asked = True
        unwritten = [f for f in self._flights.unwritten(session.user) if f.position <= replay.until]
        if unwritten:
            for flight in unwritten:
                if not self._worklist.is_due(flight):
                    self._worklist.due(flight)
            self._blocked.setdefault(session.user, set()).add(session)
            return
        self._asked[session] = None
        self._wake.set()

    def _unblock(self, user: str) -> None:
        if user in self._blocked:
            for session in self._blocked.pop(user):
                self._want(session)

    def _welcome(self, session: Session, *, complete: bool) -> None:
        self._resuming.pop(session, None)
        if session.mode is Mode.ENVELOPE:
            session.socket.write((welcome_frame(session.id, session.user, complete),), None)
            session.spoken_at = self._clock.monotonic()

    async def run(self) -> None:
        """Read pages for whoever asked, until cancelled."""
        await self._begun.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asked:
                sessions = list(itertools.islice(self._asked, READ_SESSIONS))
                for session in sessions:
                    del self._asked[session]
                await self._read([s for s in sessions if s.replay is not None])

    async def _read(self, sessions: list[Session]) -> None:
        self._gone.clear()
        self._reading = {session.user for session in sessions}
        try:
            await self._find_where_to_resume(sessions)
            reading = {ask: s for s in sessions if (ask := _ask(s, len(sessions))) is not None}
            pages = await self._persistence.in_parts(list(reading), self._pages, self._not_read)
            read = [(reading[ask], ask, page) for ask, page in pages]
            await self._look_for_gaps([session for session, _, page in read if not page.more])
            for session, _, page in read:
                self._page(session, page)
                # A page may hold hundreds of pushes; pongs get their turn in between.
                await self._clock.sleep(0)
        finally:
            self._reading = set()

    async def _pages(self, asks: Sequence[MailboxAsk]) -> Sequence[tuple[MailboxAsk, MailboxPage]]:
        return list(zip(asks, await self._store.mailbox(asks), strict=True))

    async def _not_read(
        self, ask: MailboxAsk, error: StatementFailed
    ) -> Sequence[tuple[MailboxAsk, MailboxPage]]:
        """One session's page can't be read: the others do not wait for it."""
        self._errors.handle(error, "mailbox.read", {"session": ask.session})
        session = self._hub.session(ask.session)
        if session is not None and session.replay is not None:
            self._postponed[session] = self._clock.monotonic() + POSTPONED
        return ()

    async def _find_where_to_resume(self, sessions: Sequence[Session]) -> None:
        """Of the sessions that resume: where, and whether anything is missing since."""
        asks = list(
            dict.fromkeys(
                ResumeAsk(s.user, s.replay.last)
                for s in sessions
                if s.replay is not None and s.replay.last is not None
            )
        )
        flying = self._in_the_air(asks)

        async def find(some: Sequence[ResumeAsk]) -> Sequence[tuple[ResumeAsk, ResumePoint | None]]:
            return list(zip(some, await self._store.resume_points(some), strict=True))

        async def failed(
            ask: ResumeAsk, error: StatementFailed
        ) -> Sequence[tuple[ResumeAsk, ResumePoint | None]]:
            self._errors.handle(error, "mailbox.resume", {"push_id": ask.push_id})
            return [(ask, None)]

        for ask, point in await self._persistence.in_parts(asks, find, failed):
            for session in sessions:
                if session.user == ask.user and session.replay and session.replay.last == ask.push_id:
                    self._resume(session, _earlier(flying.get(ask), point))

    def _in_the_air(self, asks: Sequence[ResumeAsk]) -> dict[ResumeAsk, ResumePoint]:
        """Where pushes are that were seen, and whose rows are not yet written."""
        found: dict[ResumeAsk, ResumePoint] = {}
        for ask in asks:
            positions = [f.position for f in self._flights.of_push(ask.push_id) if f.key.user == ask.user]
            if positions:
                found[ask] = ResumePoint(min(positions), cut=False)
        return found

    async def _look_for_gaps(self, sessions: Sequence[Session]) -> None:
        """Tell those that were promised everything, and whose last page is there, if something is gone after all:
        what they had not come to yet may have been dropped meanwhile, here or by another node."""
        promised = {
            (s.user, s.replay.resumed): s for s in sessions if s.replay and s.replay.resumed is not None
        }

        async def look(places: Sequence[tuple[str, int]]) -> Sequence[tuple[tuple[str, int], bool]]:
            return list(zip(places, await self._store.dropped_since(places), strict=True))

        async def failed(
            place: tuple[str, int], error: StatementFailed
        ) -> Sequence[tuple[tuple[str, int], bool]]:
            # What can't be known is not promised.
            self._errors.handle(error, "mailbox.dropped_since", {})
            return [(place, True)]

        for place, gone in await self._persistence.in_parts(list(promised), look, failed):
            if not gone:
                continue
            for session in sessions:
                replay = session.replay
                if replay is not None and (session.user, replay.resumed) == place:
                    replay.resumed = None
                    self._welcome(session, complete=False)

    def _resume(self, session: Session, point: ResumePoint | None) -> None:
        replay = session.replay
        if replay is None or replay.last is None:
            # Welcomed meanwhile without an answer, or gone.
            return
        replay.last = None
        replay.seen = None if point is None else point.position - SLACK
        complete = point is not None and not point.cut
        replay.resumed = point.position if point is not None and complete else None
        self._welcome(session, complete=complete)

    def _page(self, session: Session, page: MailboxPage) -> None:
        replay = session.replay
        if replay is None:
            return
        replay.asked = replay.full = False
        waiting = session.waiting_keys() if replay.again else set()
        handed = session.handed_keys() if replay.again else set()
        for row in page.rows:
            # As Lamport's clocks: what is taken here from now on is behind what was seen of other nodes.
            self._position = max(self._position, row.position)
            if row.position > replay.until and row.boot == self._boot:
                # Taken here after the session opened, so it was offered to it.
                replay.after = row.position
                continue
            if not self._offer(session, row, replay.again, waiting, handed):
                # No room: the rest is read again when there is some.
                replay.full = True
                break
            replay.after = row.position
        else:
            replay.after = max(replay.after, page.reached if page.more else replay.after)
            if not page.more and self._released(session) and session.end_replay(self.take_position()):
                self._replaying.pop(session, None)
                session.next_round = self._clock.monotonic() + self._patience
        self.flush(session)

    def _released(self, session: Session) -> bool:
        """Whether all that was held is queued; what finds no room waits until the peer has proven the rest."""
        while not session.release_held():
            before = session.waiting
            self.flush(session)
            if session.waiting == before:
                return False
        return True

    def _offer(
        self, session: Session, row: Row, again: bool, waiting: set[RowKey], handed: set[RowKey]
    ) -> bool:
        """Offer one row's push to a session that may want it; False where it has no room for it now."""
        key = row.key
        if key in waiting:
            return True
        if row.final:
            return session.offer_kept(_frame(session.mode, row), None)
        flight = self._flights.get(key)
        if flight is None:
            if key in self._gone:
                # Delivered elsewhere just now: who resumes gets it all the same.
                resumes = session.replay is not None and session.replay.seen is not None
                if resumes and self._gone[key]:
                    return session.offer_kept(_frame(session.mode, row), None)
                return True
            flight = Flight.stored(row, self._boot, self._clock.monotonic())
            if not session.offer_kept(_frame(session.mode, row), flight):
                return False
            self._flights.add(flight)
            self._flights.rest(flight)
        elif flight.ended:
            if flight.outcome in DELIVERED and not again:
                return session.offer_kept(_frame(session.mode, row), None)
            return True
        elif key in handed:
            return self._offer_again(session, row, flight)
        elif not session.offer_kept(_frame(session.mode, row), flight):
            return False
        flight.addressed(1)
        self._look_later(flight)
        return True

    def _offer_again(self, session: Session, row: Row, flight: Flight) -> bool:
        kept = flight.kept
        now = self._clock.monotonic()
        if kept is None or kept.resent >= RESENDS or kept.look_at > now:
            return True
        if not session.offer_kept(_frame(session.mode, row), flight):
            return False
        kept.resent += 1
        self._look_later(flight)
        return True

    # --- what comes to nothing for now, and is sent again ---

    def _look_later(self, flight: Flight, seconds: float | None = None) -> None:
        kept = flight.kept
        now = self._clock.monotonic()
        if kept is None or kept.look_at > now:
            return
        kept.look_at = now + ((flight.ack_within or self._patience) if seconds is None else seconds)
        self._looks.push(kept.look_at, flight)

    def tick(self) -> None:
        """Called about ten times a second: send again what was not proven, welcome who waited too long."""
        now = self._clock.monotonic()
        for flight in self._outgoing.take_kept():
            self._look_later(flight, 0.0)
        for session in [s for s, at in self._postponed.items() if at <= now]:
            del self._postponed[session]
            self._want(session)
        while self._resuming:
            session = next(iter(self._resuming))
            replay = session.replay
            if replay is not None and replay.last is not None and now - replay.began < self._patience:
                break
            if replay is not None:
                # The database is away: what is kept follows when it is back, and the client is told the truth.
                replay.last = None
            self._welcome(session, complete=False)
        due: dict[str, list[Flight]] = {}
        for flight in self._looks.due(now):
            kept = flight.kept
            if kept is None or flight.ended or flight.open <= 0:
                continue
            before = kept.reason
            if flight.timed_out(self._clock.time()) is Effect.ENDED or kept.reason is not before:
                self._worklist.due(flight)
            if flight.outcome is None and kept.resent < RESENDS:
                due.setdefault(flight.key.user, []).append(flight)
        for user, flights in due.items():
            if not self._begin_round(user, min(f.position for f in flights), now):
                for flight in flights:
                    self._look_later(flight)

    def _begin_round(self, user: str, first: int, now: float) -> bool:
        """Send again to those sessions of a user that answer; False where there is none at the moment."""
        begun = False
        for session in self._hub.of_user(user):
            if session.state is not SessionState.LIVE or session.suspect(now, self._park_after):
                continue
            if now < session.next_round:
                continue
            session.begin_replay(Replay(after=first - 1, until=self.take_position(), again=True))
            self._replaying[session] = None
            self._want(session)
            begun = True
        return begun

    # --- rows and flights ---

    def stored(self, flight: Flight, row: Row) -> None:
        """Its row is committed and says `stored`."""
        if flight.kept is not None:
            flight.kept.data = None
            flight.kept.excluded = frozenset()
        self._flights.written(flight)
        size = 0 if flight.kept is None else flight.kept.size
        self._measuring.stored(flight.key.user, size, self._clock.monotonic())
        if not flight.messages:
            if (flight.ended or flight.open <= 0) and not self._worklist.is_due(flight):
                # No session has it, or it was just ended in the store: the row alone stands for it.
                self._flights.remove(flight)
            else:
                self._flights.rest(flight)
        self._unblock(flight.key.user)

    def settled(self, flight: Flight) -> None:
        """Its final row is committed."""
        if flight.key.user in self._reading:
            self._gone[flight.key] = flight.outcome in DELIVERED
        if flight.key in self._recalling:
            self._recalling.pop(flight.key).set_result(None)
        self._unblock(flight.key.user)

    def ended_in_store(self, rows: Sequence[Row]) -> None:
        """The store has ended these stored rows: sessions must not send them any more."""
        if not rows:
            return
        for row in rows:
            if row.key.user in self._reading:
                self._gone[row.key] = False
            flight = self._flights.get(row.key)
            if flight is None:
                continue
            flight.end(row.outcome, row.reason, row.finished_at or self._clock.time())
            if flight.messages:
                # They wait for this row: what it says now is read, and answered, by a write that changes nothing.
                self._worklist.due(flight)
            elif not self._worklist.is_due(flight):
                self._flights.remove(flight)
        self._worklist.ended_by_sweep(rows)

    def every_second(self) -> None:
        """Ask again for sessions whose room nobody has told of: their sockets had taken something in between."""
        for session in list(self._replaying):
            if session.replay is not None:
                session.replay.full = False
            self.more(session)

    async def sweep(self) -> None:
        """Called every second: end what has expired, and what is over the bounds of its mailbox.

        Waits while the database is down. A statement that fails all the same is made smaller, and what fails alone is
        left until it grows again, or the patrol comes by.
        """
        await self._expire()
        for _ in range(SWEEP_STATEMENTS):
            users = self._measuring.take(TRIM_USERS, self._clock.monotonic())
            if not users:
                break
            await self._trim(users)
        try:
            patrolled = await self._sweeping.call(
                lambda: self._store.users_with_mail(self._patrol, PATROL_USERS)
            )
        except StatementFailed as failed:
            self._errors.handle(failed, "mailbox.patrol", {})
            return
        self._patrol = patrolled[-1] if len(patrolled) == PATROL_USERS else ""
        await self._trim(patrolled)

    async def _expire(self) -> None:
        for _ in range(SWEEP_STATEMENTS):
            ended = await self._ended_by(self._store.expire)
            if not ended:
                return

    async def _trim(self, users: Sequence[str]) -> None:
        """Measure these mailboxes, and end what is over their bounds, the oldest first."""

        async def measure(some: Sequence[str]) -> Sequence[tuple[str, int]]:
            return await self._store.overfull(some, self._limits.pushes, self._limits.total_bytes)

        async def failed(user: str, error: StatementFailed) -> Sequence[tuple[str, int]]:
            self._errors.handle(error, "mailbox.measure", {})
            return ()

        over = await self._sweeping.in_parts(users, measure, failed)
        while over and await self._ended_by(lambda limit: self._store.trim(over, limit)):
            await self._clock.sleep(0)

    async def _ended_by(self, statement: Callable[[int], Awaitable[Sequence[Row]]]) -> bool:
        """Run a statement that ends so many rows at most; whether there may be more."""
        try:
            ended = await self._sweeping.call(lambda: statement(self._sweep_rows))
        except StatementFailed as failed:
            self._errors.handle(failed, "mailbox.sweep", {"rows": self._sweep_rows})
            alone = self._sweep_rows == 1
            self._sweep_rows = max(1, self._sweep_rows // PARTS)
            return not alone
        self._sweep_rows = min(SWEEP_ROWS, self._sweep_rows * 2)
        self.ended_in_store(ended)
        return bool(ended)

    # --- recall ---

    async def recall(self, recall: Recall) -> Recalled:
        """Withdraw pushes that are not proven, and tell sessions that may have them. Idempotent.

        Returns when all of it is committed: what was in the air would come again with its message. Many rows are
        ended step by step, and the sessions told with each. Raises StoreUnavailable: then it is to
        be called again.
        """
        now = self._clock.time()
        ended: set[RowKey] = set()
        told: set[Session] = set()
        uncommitted: list[asyncio.Future[None]] = []
        flying: dict[tuple[str, str], None] = {}
        for flight in self._named(recall):
            flying[flight.key.user, flight.key.push_id] = None
            if flight.parked and flight.kept is not None:
                continue  # its row ends, with all that the store keeps
            if flight.end(Outcome.RECALLED, Reason.WITHDRAWN, now) is Effect.ENDED:
                ended.add(flight.key)
                self._worklist.due(flight)
            if flight.outcome is Outcome.RECALLED:
                loop = asyncio.get_running_loop()
                uncommitted.append(self._recalling.setdefault(flight.key, loop.create_future()))
        place: RecallPlace | None = RecallPlace()
        rows = SWEEP_ROWS
        count = len(ended)
        held = tries = 0
        while place is not None:
            try:
                page = await self._store.recall(recall, place, rows)
            except StatementFailed:
                if rows == 1:
                    raise
                rows = max(1, rows // 4)
                continue
            self.ended_in_store([w.row for w in page.written if w.applied])
            count += sum(1 for w in page.written if w.applied and w.row.key not in ended)
            of_page = dict.fromkeys((w.row.key.user, w.row.key.push_id) for w in page.written)
            for push in of_page:
                flying.pop(push, None)
            self._withdraw(of_page, recall.tenant, told)
            held += sum(1 for w in page.written if w.applied is None)
            place = page.next
            await self._clock.sleep(0)
            if place is None and held:
                # It is begun again until nobody holds any of them.
                tries += 1
                if tries == RECALL_TRIES:
                    raise StatementFailed(f"{held} rows are held by somebody else")
                await self._clock.sleep(RECALL_WAIT)
                held, place = 0, RecallPlace()
        # Told when they have ended, so that nothing is sent behind it.
        self._withdraw(flying, recall.tenant, told)
        if uncommitted:
            await asyncio.wait(uncommitted)
        return Recalled(count, len(told))

    def _named(self, recall: Recall) -> Collection[Flight]:
        """The flights that a recall is about."""
        if recall.push_id:
            return [f for f in self._flights.of_push(recall.push_id) if f.key.tenant == recall.tenant]
        return self._flights.of_collapse_key(recall.tenant, recall.user, recall.collapse_key)

    def _withdraw(self, pushes: Collection[tuple[str, str]], tenant: str, told: set[Session]) -> None:
        """Tell the sessions of these users that these pushes, by id, are withdrawn."""
        flushed: set[Session] = set()
        for user, push_id in pushes:
            for session in self._hub.of_user(user):
                if session.mode is Mode.ENVELOPE and session.takes_pushes:
                    session.tell(withdraw_frame(push_id, tenant))
                    flushed.add(session)
        for session in flushed:
            self.flush(session)
        told |= flushed

    # --- for people ---

    @property
    def replaying(self) -> int:
        """Sessions that are being sent what is kept."""
        return len(self._replaying)


def _ask(session: Session, sessions: int) -> MailboxAsk | None:
    """The next page of a session, which shares a statement with so many."""
    replay = session.replay
    if replay is None:
        return None
    return MailboxAsk(
        session.user,
        replay.after,
        replay.until + SKEW,
        replay.seen,
        session.id,
        min(PAGE_ROWS, max(PAGE_ROWS_LEAST, READ_ROWS // sessions)),
        min(PAGE_BYTES, max(PAGE_BYTES_LEAST, READ_BYTES // sessions)),
    )


def _earlier(one: ResumePoint | None, other: ResumePoint | None) -> ResumePoint | None:
    """Where a client resumes that has seen a push of this id: pushes of several tenants may have it."""
    if one is None or other is None:
        return one or other
    return ResumePoint(min(one.position, other.position), one.cut or other.cut)


def _frame(mode: Mode, row: Row) -> Frame:
    request = PushRequest(
        id=row.key.push_id,
        target=ToUser(row.key.user),
        data=row.payload or b"",
        event=row.event,
        encoding=row.encoding,
        tenant=row.key.tenant,
    )
    return bare_frame(request) if mode is Mode.BARE else push_frame(request)
