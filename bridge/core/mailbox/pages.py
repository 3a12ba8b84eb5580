"""Send a session what is kept for its user, in pages, oldest first. Newer pushes wait until all of that is sent.

    stored (a row) ──> a session opens ──> read in pages, oldest first ──> offered ──> proven ──> settled
         │                                                     newer pushes are held ──┘
         └──> expired, superseded, dropped (mailbox full), recalled

A session is REPLAYING until it was offered all pushes that were taken before it opened; `Session` holds those that
come meanwhile. The next page is read when the peer has proven the last one, so a replay never exceeds the bounds of a
queue. No page of a user is read while an older push of that user is in flight without a row: its row is written first,
so that no page misses it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from bridge.core.bounds import Bounds, MailboxBounds
from bridge.core.contract.fields import is_id
from bridge.core.contract.frames import welcome_frame
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.offered import keys_of
from bridge.core.mailbox.offering import Offering
from bridge.core.mailbox.others import OTHERS_EVERY, Others, reads_until
from bridge.core.mailbox.resuming import Resuming
from bridge.core.mailbox.rounds import Rounds
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import MailboxAsk, MailboxPage, Store
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.outgoing import Outgoing
from bridge.core.sessions.replay import Replay
from bridge.core.sessions.session import Session
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence

WELCOMES: Final = 1_000
"""Sessions at a time that are welcomed without an answer whether anything is missing: all of them may have resumed."""


class Pages:
    """Owns the replay of each session."""

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        inflight: InFlight,
        outgoing: Outgoing,
        clock: Clock,
        gate: Gate,
        errors: ErrorHandler,
        boot: str,
        patience: float,
        bounds: Bounds,
    ) -> None:
        """`patience`: seconds after which a session is welcomed even if it is not known whether anything is missing;
        also the seconds between two rounds of one session."""
        self._store = store
        self._hub = hub
        self._inflight = inflight
        self._outgoing = outgoing
        self._clock = clock
        self._errors = errors
        self._persistence = Persistence(store, gate, clock, "mailboxes", bounds.statements)
        self._offering = Offering(inflight, clock, boot)
        self._resuming = Resuming(
            store=store,
            persistence=self._persistence,
            inflight=inflight,
            errors=errors,
            welcome=self._welcome,
            slack=bounds.mailbox.slack,
        )
        self.others = Others(hub=hub, store=store, persistence=self._persistence, errors=errors, clock=clock)
        self.rounds = Rounds(
            hub=hub,
            inflight=inflight,
            resuming=self._resuming,
            others=self.others,
            clock=clock,
            begin=self.begin_replay,
        )
        self._boot = boot
        self._patience = patience
        self._bounds = bounds.mailbox
        self._begun = asyncio.Event()
        self._wake = asyncio.Event()
        self._asked: dict[Session, None] = {}
        """Sessions whose next page must be read, in the order they asked."""
        self._blocked: dict[str, set[Session]] = {}
        """Sessions, by user, that wait for rows of older pushes."""
        self._replaying: dict[Session, None] = {}
        self._unwelcomed: dict[Session, None] = {}
        """Sessions that wait for their welcome, oldest first."""
        self._postponed: dict[Session, float] = {}
        """Sessions whose page could not be read, or lacks something: monotonic seconds of the next try."""

    def begin(self) -> None:
        """Read pages from now on: the store can be read, and new positions are higher than all that it has."""
        for session in self._replaying:
            if session.replay is not None:
                session.replay.until = self._inflight.take_position()
        self._begun.set()

    def opened(self, session: Session, last: str | None) -> None:
        """A session opened, and holds its pushes; `last` is the push that its client says it has seen."""
        replay = Replay(after=0, until=self._inflight.take_position(), last=last)
        # No page is wanted before `recorded`.
        replay.asked = True
        replay.others = self.others.of(session)
        self._hold(session, replay)

    def recorded(self, session: Session) -> None:
        """The ledger has this session, which has opened. It is welcomed at once, or, if it resumes, when it is known
        whether anything is missing."""
        replay = session.replay
        assert replay is not None
        replay.began = self._clock.monotonic()
        last = replay.last
        if last is None:
            self._welcome(session, True)
        elif not is_id(last):
            # No push has such an id: the database need not be asked.
            replay.last = None
            self._welcome(session, False)
        else:
            self._unwelcomed[session] = None
        self._want(session)

    def begin_replay(self, session: Session, replay: Replay) -> None:
        """Begin a replay of a session that is LIVE."""
        self._hold(session, replay)
        self._want(session)

    def hold(self, session: Session) -> None:
        """From now on the session holds what it is offered, until `let_go` is called as often: something else comes
        first."""
        if session.replay is None:
            now = self._inflight.take_position()
            replay = Replay(after=now, until=now)
            replay.asked = replay.parked = True
            self._hold(session, replay)
        assert session.replay is not None
        session.replay.awaits += 1

    def let_go(self, session: Session) -> None:
        """See `hold`."""
        replay = session.replay
        if replay is None:
            return
        replay.awaits -= 1
        if not replay.awaits and replay.parked:
            replay.parked = False
            self._want(session)

    def _hold(self, session: Session, replay: Replay) -> None:
        session.begin_replay(replay)
        self._replaying[session] = None

    def flush_all(self, sessions: Collection[Session]) -> None:
        """As `flush`, for many sessions at one time."""
        self._outgoing.flush_all(sessions)
        if self._replaying:
            for session in sessions:
                self.more(session)

    def flush(self, session: Session) -> None:
        """Hand over what was offered to a session, and continue its replay if that made room."""
        self._outgoing.flush(session)
        self.more(session)

    def more(self, session: Session) -> None:
        """Want the next page if there may be room: the session has handed something over, or proven it."""
        replay = session.replay
        if replay is None or replay.asked or not session.idle:
            return
        if replay.full and not session.socket.writable:
            # The socket has taken nothing since the last page found no room.
            return
        self._want(session)

    def closed(self, session: Session) -> None:
        """The session is closed, or gets no more pushes; idempotent."""
        self._replaying.pop(session, None)
        self._unwelcomed.pop(session, None)
        self._asked.pop(session, None)
        self.rounds.closed(session)
        self._resuming.promised.pop(session, None)
        self._postponed.pop(session, None)
        blocked = self._blocked.get(session.user)
        if blocked is not None:
            blocked.discard(session)
            if not blocked:
                del self._blocked[session.user]

    def _want(self, session: Session) -> None:
        """Read the next page, once every older push of this user that is in flight has its row."""
        replay = session.replay
        if replay is None:
            return
        replay.asked = True
        if self._inflight.write_unwritten(session.user, replay.until):
            self._blocked.setdefault(session.user, set()).add(session)
            return
        self._asked[session] = None
        self._wake.set()

    def row_written(self, user: str) -> None:
        """A row of this user was committed: sessions that waited for it may continue."""
        if user in self._blocked:
            for session in self._blocked.pop(user):
                self._want(session)

    def _welcome(self, session: Session, complete: bool) -> None:
        self._unwelcomed.pop(session, None)
        if session.mode is not Mode.BARE:
            key = session.key if isinstance(session, EventSession) else ""
            welcome = welcome_frame(session.id, session.user, complete, key)
            session.socket.write((welcome,), None)
            session.spoken_at = self._clock.monotonic()

    async def run(self) -> None:
        """Read pages for the sessions that asked, until cancelled."""
        await self._begun.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asked:
                sessions = list(itertools.islice(self._asked, self._bounds.read_sessions))
                for session in sessions:
                    del self._asked[session]
                await self._read([s for s in sessions if s.replay is not None])

    async def _read(self, sessions: list[Session]) -> None:
        with self._inflight.watching({session.user for session in sessions}) as gone:
            await self._resuming.find(sessions)
            for session in await self.others.look(sessions):
                self._resuming.take_back(session)
            reading = {ask: s for s in sessions if (ask := _ask(s, len(sessions), self._bounds)) is not None}
            pages = await self._persistence.in_parts(list(reading), self._pages, self._not_read)
            read = [(reading[ask], ask, page) for ask, page in pages]
            await self._resuming.look_for_gaps([session for session, _, page in read if not page.more])
            for session, _, page in read:
                self._page(session, page, gone)
                # A page may hold hundreds of pushes; pongs get their turn in between.
                await self._clock.sleep(0)

    async def _pages(self, asks: Sequence[MailboxAsk]) -> Sequence[tuple[MailboxAsk, MailboxPage]]:
        return list(zip(asks, await self._store.mailbox(asks), strict=True))

    async def _not_read(
        self, ask: MailboxAsk, error: StatementFailed
    ) -> Sequence[tuple[MailboxAsk, MailboxPage]]:
        """One session's page can't be read: postpone it, so that the others do not wait."""
        self._errors.handle(error, "mailbox.read", {"session": ask.session})
        session = self._hub.session(ask.session)
        if session is not None and session.replay is not None:
            self._postponed[session] = self._clock.monotonic() + self._bounds.postponed
        return ()

    def _page(self, session: Session, page: MailboxPage, gone: Mapping[RowKey, Row]) -> None:
        replay = session.replay
        if replay is None:
            return
        replay.asked = replay.full = False
        # What was taken before it opened, and routed only since, is held by it.
        waiting = keys_of(session.waiting_pushes())
        # What another node has stored it may have forwarded as well.
        may_have = replay.again or any(row.boot != self._boot for row in page.rows)
        handed = keys_of(session.handed_pushes()) if may_have else set()
        had = self.rounds.had(session, page.rows) if replay.again else set()
        shown = self._resuming.promised.get(session)
        held_from = session.held_from
        for row in page.rows:
            # Pushes taken here from now on come after those of other nodes that were seen.
            self._inflight.above(row.position)
            if row.position > replay.until and row.boot == self._boot:
                # Taken here after the session opened, so it was offered to it.
                replay.after = row.position
                continue
            if row.key in waiting or row.key in had:
                replay.after = row.position
                continue
            room = True
            if held_from is not None and held_from < row.position:
                # What it holds comes before what is newer in the mailbox.
                room = session.release_held(row.position)
                held_from = session.held_from
            resumes = replay.seen is not None if shown is None else shown.lacks(row)
            if not room or not self._offering.offer(
                session, row, again=replay.again, resumes=resumes, handed=handed, gone=gone
            ):
                # No room: the rest is read again when there is some.
                replay.full = True
                break
            replay.after = session.read_to = row.position
            if shown is not None:
                shown.add(row.key)
        else:
            replay.after = max(replay.after, page.reached if page.more else replay.after)
            if page.more:
                pass
            elif replay.others is not None:
                replay.asked = True
                self._postponed[session] = self._clock.monotonic() + OTHERS_EVERY
            elif replay.rung is not None:
                self.rounds.read_again(session, replay)
            elif self.rounds.goes_on(session, replay):
                pass
            elif replay.awaits:
                replay.asked = replay.parked = True
            elif self._released(session) and session.end_replay(self._inflight.take_position()):
                self._replaying.pop(session, None)
                session.next_round = self._clock.monotonic() + self._patience
                self.rounds.show_next(session)
        self.flush(session)

    def _released(self, session: Session) -> bool:
        """Queue what is held. Returns whether all of it is queued; the rest waits until the peer has proven more."""
        while not session.release_held():
            before = session.waiting
            self.flush(session)
            if session.waiting == before:
                return False
        return True

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds. Read postponed pages again, and welcome sessions
        that have waited too long for the answer whether anything is missing."""
        for session in [s for s, at in self._postponed.items() if at <= now]:
            del self._postponed[session]
            self._want(session)
        late: list[Session] = []
        for session in itertools.islice(self._unwelcomed, WELCOMES):
            replay = session.replay
            if replay is not None and replay.last is not None and now - replay.began < self._patience:
                break
            late.append(session)
        for session in late:
            if session.replay is not None:
                # The database is down: what is kept follows when it is back, and nothing is promised to the client.
                session.replay.last = None
            self._welcome(session, False)

    def every_second(self) -> None:
        """Want the next page for sessions that may have room again, but whose socket never reported to be writable."""
        self.others.forget_old()
        for session in list(self._replaying):
            if session.replay is not None:
                session.replay.full = False
            self.more(session)

    # --- for people ---

    @property
    def replaying(self) -> int:
        """Sessions that are being sent kept pushes."""
        return len(self._replaying)


def _ask(session: Session, sessions: int, bounds: MailboxBounds) -> MailboxAsk | None:
    """The next page of a session; `sessions`: how many share the statement."""
    replay = session.replay
    if replay is None:
        return None
    until = replay.until if replay.exact else replay.until + bounds.skew
    before = reads_until(replay)
    return MailboxAsk(
        session.user,
        replay.after,
        until if before is None else min(until, before - 1),
        replay.seen,
        session.id,
        min(bounds.page_rows, max(bounds.page_rows_least, bounds.read_rows // sessions)),
        min(bounds.page_bytes, max(bounds.page_bytes_least, bounds.read_bytes // sessions)),
    )
