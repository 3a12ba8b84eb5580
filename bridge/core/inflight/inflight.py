"""The one owner of every push in flight: it indexes and finds flights, and acts on what each event has done to them.

Callers send events to a flight. The flight tells this owner what they did, and the owner passes on what the settlement
must write. All indexes, deadlines and positions of flights are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Final, Protocol

from bridge.core.inflight.deadlines import Appointments, Deadlines
from bridge.core.inflight.flight import Effect, Flight
from bridge.core.inflight.index import Index
from bridge.core.inflight.shares import CountedIndex, Shares
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushKey
from bridge.core.model.rows import LateProof, Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import Account

RESENDS: Final = 3
"""How often a kept push is resent to the sessions that have it; then it waits for the next session."""
MICRO: Final = 1_000_000


class Ends(Protocol):
    """Accepts what must be written: the settlement's worklist."""

    def due(self, flight: Flight) -> None:
        """Its row must be written, from the flight's state at that time. Idempotent until it is written."""
        ...

    def is_due(self, flight: Flight) -> bool:
        """Whether its row waits to be written, or is being written."""
        ...

    def late(self, proof: LateProof) -> None:
        """Better proof has come than the row says."""
        ...

    def ended_by_sweep(self, rows: Sequence[Row]) -> None:
        """The store has ended these rows."""
        ...


class _Watch:
    """A caller that collects rows which become final."""

    __slots__ = ("rows", "users")

    def __init__(self, users: Collection[str] | None) -> None:
        self.users = users
        """None: all, except where the store ends a row."""
        self.rows: dict[RowKey, Row] = {}


class InFlight:
    """Every push in flight, at most one flight for each row."""

    def __init__(
        self,
        *,
        ends: Ends,
        others: Callable[[], bool],
        clock: Clock,
        park_after: float,
        confirm_timeout: float,
        shares: Shares | None = None,
    ) -> None:
        """`park_after`, `confirm_timeout`: seconds until a push without proof gets its row, and until its time for a
        proof is over. `others`: whether there are other nodes. `shares` counts by tenant."""
        self._ends = ends
        self._others = others
        self._clock = clock
        self._patience = confirm_timeout
        self._index = Index() if shares is None else CountedIndex(shares)
        self._deadlines = Deadlines(park_after, confirm_timeout)
        self._looks = Appointments(lambda flight: self._index.get(flight.key) is flight)
        self._position = 0
        self._begun = 0
        self._first_rows = 0
        self._watches: list[_Watch] = []
        self._sending: dict[str, Callable[[], None]] = {}
        """See `sending`."""
        self._sent: dict[str, asyncio.Future[None]] = {}
        self._settling: dict[RowKey, asyncio.Future[None]] = {}
        """Pushes for whose final row a caller waits."""

    # --- taken, and found ---

    def add(self, flight: Flight, *, roams: bool = False) -> None:
        """Add the flight of a push that was just taken, and whose key is not here. An older push with its collapse key
        is superseded. `roams`: the user came from the hub (the push is to a session, or to everyone)."""
        older = self._index.add(flight, roams=roams)
        if older is not None:
            older.superseded(self._clock.time())
        self._begun += 1
        if flight.ended:
            self._ends.due(flight)

    def add_stored(self, flight: Flight) -> None:
        """Add the flight of a stored row that was offered to a session."""
        self._index.add(flight)
        self._index.rest(flight)

    def forget(self, flight: Flight) -> None:
        """Remove it without a row: another bridge has this push, or its message goes back to the queue."""
        self._index.remove(flight)
        self._begun -= 1

    def get(self, key: RowKey) -> Flight | None:
        """The flight of this row, if there is one."""
        return self._index.get(key)

    def of_push(self, push_id: str) -> Collection[Flight]:
        """The flights of pushes with this id, of any tenant and user."""
        if self._sending:
            self.make_sent(push_id)
        return self._index.of_push(push_id)

    def of_push_to(self, push_id: str, user: str) -> Collection[Flight]:
        """Those of them that are for this user."""
        if self._sending:
            self.make_sent(push_id)
        return self._index.of_push_to(push_id, user)

    def of_collapse_key(self, tenant: str, user: str, collapse_key: str) -> Collection[Flight]:
        """The flights of a user's pushes with this collapse key, except those that had ended when they were added."""
        return self._index.of_collapse_key(tenant, user, collapse_key)

    def roaming(self, push: PushKey) -> dict[str, Flight]:
        """The flights of a push whose users came from the hub, by user."""
        return self._index.roaming(push)

    # --- what an event has done ---

    def carry_on(self, flight: Flight, effect: Effect, now: float) -> None:
        """See `Owner`: an event has had this effect on a flight."""
        if effect is Effect.LATE:
            self._ends.late(LateProof(flight.key, now))
            return
        if effect is Effect.LACKED:
            self._index.lacked(flight)
            return
        if effect is Effect.KEPT and flight.came_back:
            self._write_older(flight)  # a reader here has them written by itself
        elif effect is Effect.ENDED and flight.kept is not None and self._others():
            # Who resumes there reads the rows of what was proven, and must not find this one alone.
            self._write_older(flight)
        self._ends.due(flight)
        if effect is Effect.KEPT and flight.open > 0:
            self.look_later(flight, 0.0)

    # --- time ---

    def wait(self, flight: Flight) -> None:
        """It waits for a proof, or for its user. Its message waits too, until its row is due."""
        self._deadlines.wait(flight)

    def park(self, flight: Flight, *, at_once: bool = False) -> None:
        """Write its row as it stands now, so that its message can be acked. `at_once`: it has not waited before."""
        self._row_due(flight)
        self._deadlines.park(flight, at_once=at_once)

    def _row_due(self, flight: Flight) -> None:
        if flight.kept is not None:
            self._write_older(flight)
        self._ends.due(flight)

    def park_those_at(self, boots: Set[str]) -> None:
        """Park now what waits for an answer of one of these processes: others must not wait for them."""

        def waits(flight: Flight) -> bool:
            return not flight.ended and flight.silent > 0 and not boots.isdisjoint(flight.holders)

        for flight in self._deadlines.park_early(waits):
            if self._index.get(flight.key) is flight:
                self._row_due(flight)

    def limit(self, flight: Flight, now: float) -> None:
        """It was offered now (monotonic seconds). Its `ack_within` begins, if it has one."""
        if flight.ack_within:
            self._deadlines.limit(flight, now)

    def tick(self, now: float) -> None:
        """Park pushes whose row is due, and time out those whose time for a proof is over; `now` is monotonic seconds.

        A flight that is not in the index any more was stored. The push may be in flight again as another flight, which
        is then responsible for the row.
        """
        for flight in self._deadlines.rows_due(now):
            if self._index.get(flight.key) is flight:
                self.park(flight)
        for flight in self._deadlines.over(now):
            if self._index.get(flight.key) is flight:
                flight.timed_out(self._clock.time())

    def look_later(self, flight: Flight, seconds: float | None = None) -> None:
        """Check for the proof of a kept push in this many seconds; None: when its time for a proof is over."""
        kept = flight.kept
        now = self._clock.monotonic()
        if kept is None or kept.look_at > now:
            return
        kept.look_at = now + ((flight.ack_within or self._patience) if seconds is None else seconds)
        self._looks.push(kept.look_at, flight)

    def overdue(self, now: float) -> Iterator[Flight]:
        """Kept pushes that sessions have and did not prove in time, and that may be resent."""
        for flight in self._looks.due(now):
            kept = flight.kept
            if kept is None or flight.ended or flight.open <= 0:
                continue
            before = kept.reason
            if flight.looked_at(self._clock.time()) is Effect.ENDED or kept.reason is not before:
                self._ends.due(flight)
            if flight.outcome is None and kept.resent < RESENDS:
                yield flight

    # --- rows ---

    def older_lacks(self, flight: Flight, boots: Collection[str]) -> bool:
        """Whether its user has an older push that has a ttl and no row yet, is not proven, or was a moment ago, and was
        not forwarded to all of these processes."""
        return self._index.is_lacked(flight.key.user, flight.position, frozenset(boots))

    def write_unwritten(self, user: str, until: int) -> bool:
        """Queue the rows of the user's pushes up to this position that have a ttl and no row yet, in the order in which
        they were taken. Returns whether there are any."""
        for flight in self._index.ask_for(user, until):
            if not self._ends.is_due(flight):
                self._ends.due(flight)
        return self._index.has_unwritten(user, until)

    def _write_older(self, flight: Flight) -> None:
        """Before a kept push, the user's earlier ones get their rows: a reader of the mailbox must not find the later
        one alone."""
        self.write_unwritten(flight.key.user, flight.position - 1)

    def committed(self, flight: Flight) -> bool:
        """A row of it is committed, final or not. Returns whether it is the first."""
        if flight.parked:
            return False
        if flight.fallback is not None:
            flight.payload = None  # its row has it
        self._first_rows += 1
        flight.parked = True
        return True

    def stored(self, flight: Flight) -> None:
        """Its row is committed and says `stored`. It leaves memory if no session has it and no message waits."""
        if flight.kept is not None:
            flight.kept.data = None
            flight.kept.excluded = frozenset()
        self._index.written(flight)
        if flight.messages:
            return
        if (flight.ended or flight.open <= 0) and not self._ends.is_due(flight):
            # No session has it, or it was just ended in the store: its row is enough.
            self._index.remove(flight)
        else:
            self._index.rest(flight)

    def settled(self, flight: Flight, row: Row) -> None:
        """Its final row is committed: remove it, from now on its row is found instead."""
        flight.logged(row.outcome, row.reason, row.finished_at or row.taken_at)
        self._watched(row)
        self._index.remove(flight)
        waiting = self._settling.pop(flight.key, None) if self._settling else None
        if waiting is not None:
            waiting.set_result(None)

    def ended_in_store(self, rows: Sequence[Row]) -> None:
        """The store has ended these stored rows: sessions must not send their pushes any more."""
        for row in rows:
            self._watched(row, by_sweep=True)
            flight = self._index.get(row.key)
            if flight is None:
                continue
            flight.logged(row.outcome, row.reason, row.finished_at or self._clock.time())
            if flight.messages:
                # They wait for this row. The write changes nothing and returns the row, and they are answered.
                self._ends.due(flight)
            elif not self._ends.is_due(flight):
                self._index.remove(flight)
        if rows:
            self._ends.ended_by_sweep(rows)

    def taken_back(self, key: RowKey) -> None:
        """Another node has written how this push has ended, and no session here is to have it: it is over, too."""
        flight = self._index.get(key)
        if flight is None or flight.messages or self._ends.is_due(flight):
            return  # its own write will find that row
        flight.logged(Outcome.ACKED, Reason.ACK_FRAME, self._clock.time())
        self._index.remove(flight)

    def until_settled(self, flight: Flight) -> asyncio.Future[None]:
        """A future that is done when its final row is committed."""
        return self._settling.setdefault(flight.key, asyncio.get_running_loop().create_future())

    @contextmanager
    def watching(self, users: Collection[str] | None = None) -> Iterator[dict[RowKey, Row]]:
        """Collect the rows of these users that become final during the block: a page that is read meanwhile may show
        them as they were before. None: of all users, except the rows that the store ends. The caller owns the
        dictionary, and may empty it."""
        watch = _Watch(users)
        self._watches.append(watch)
        try:
            yield watch.rows
        finally:
            self._watches.remove(watch)

    @contextmanager
    def sending(self, push_id: str, make_sent: Callable[[], None]) -> Iterator[None]:
        """During the block the push with this id is sent to a crowd before its flights are made. `make_sent` makes
        those that are missing: it is called when somebody looks for its flights, and at the end of the block."""
        self._sending[push_id] = make_sent
        sent = self._sent[push_id] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._sending[push_id], self._sent[push_id]
            sent.set_result(None)  # whoever waits goes on in a later turn, also where this fails:
            make_sent()

    async def until_sent(self, push_id: str) -> None:
        """Return when the push with this id is not being sent to a crowd: all who get it have it, and flights."""
        if (sent := self._sent.get(push_id)) is not None:
            await asyncio.wait((sent,))

    def make_sent(self, push_id: str) -> None:
        """Make the flights that are missing, if this push is being sent to a crowd: `get` finds them then."""
        if (make := self._sending.get(push_id)) is not None:
            make()

    def _watched(self, row: Row, *, by_sweep: bool = False) -> None:
        for watch in self._watches:
            # A sweep may end millions of rows, and an older copy of such a row answers a repeat as well.
            if row.key.user in watch.users if watch.users is not None else not by_sweep:
                watch.rows[row.key] = row

    # --- positions ---

    def take_position(self) -> int:
        """A position higher than any before: microseconds since the epoch, where the clock allows."""
        self._position = max(self._position + 1, int(self._clock.time() * MICRO))
        return self._position

    def above(self, position: int) -> None:
        """Later positions are higher than this one, which the log or another node has. (Lamport's clock.)"""
        self._position = max(self._position, position)

    # --- for people ---

    def account(self) -> Account:
        """The numbers that an audit compares: unless `begun` = `with_row` + `on_their_way`, a push was lost."""
        now = self._clock.monotonic()
        ages = [now - flight.taken_mono for flight in self._index if not flight.parked]
        return Account(self._begun, self._first_rows, len(ages), ages)

    def awaited(self) -> set[str]:
        """The users to whom a push is on its way: its proof, its row or its message waits for something."""
        return {flight.key.user for flight in self._index}

    @property
    def busy(self) -> int:
        """Pushes whose message or outcome waits for something, including parked ones. Their number bounds what is
        taken."""
        return self._index.busy

    @property
    def resting(self) -> int:
        """Kept pushes whose row is stored. They are in memory for sessions that have them and may still prove them."""
        return self._index.resting

    @property
    def parked(self) -> int:
        """Pushes whose proof is overdue and whose message is acked."""
        return self._deadlines.parked
