"""Find where a session resumes that names the push it has seen last, and whether anything is missing since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import ResumeAsk, ResumePoint, Store
from bridge.core.sessions.session import Session
from bridge.core.settlement.persistence import Persistence

SHOWN_MAX: Final = 64
"""Pushes that a session which has resumed is known to have read: a ring has it read the mailbox again."""


class Shown:
    """What a session that was promised everything since a position has read of that: the last pushes."""

    __slots__ = ("_marks", "since")

    def __init__(self, since: int) -> None:
        self.since = since
        # There may be one for each session: a key takes several times as much as its hash.
        self._marks: list[int] = []

    def __contains__(self, key: RowKey) -> bool:
        return hash(key) in self._marks

    def lacks(self, row: Row) -> bool:
        """Whether it was promised this push, and may not have read it."""
        return row.position > self.since and row.key not in self

    def add(self, key: RowKey) -> None:
        """It has read this one. Over `SHOWN_MAX` the first is forgotten."""
        self._marks.append(hash(key))
        if len(self._marks) > SHOWN_MAX:
            del self._marks[0]


class Resuming:
    """Asks the log where sessions resume, and has them welcomed accordingly."""

    def __init__(
        self,
        *,
        store: Store,
        persistence: Persistence,
        inflight: InFlight,
        errors: ErrorHandler,
        welcome: Callable[[Session, bool], None],
        slack: int,
    ) -> None:
        """`welcome` sends a session its welcome, which says whether it gets everything since the push last seen.
        `slack`: microseconds before that push at which a resume begins."""
        self._store = store
        self._persistence = persistence
        self._inflight = inflight
        self._errors = errors
        self._welcome = welcome
        self._slack = slack
        self.promised: dict[Session, Shown] = {}
        """Sessions that have resumed, and were promised everything since. Who is told of their end empties this."""

    async def find(self, sessions: Sequence[Session]) -> None:
        """Find out where these sessions resume and whether anything is missing since, and welcome them."""
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
        """The positions of pushes last seen that are in flight: their rows may not be written yet."""
        found: dict[ResumeAsk, ResumePoint] = {}
        for ask in asks:
            positions = [f.position for f in self._inflight.of_push_to(ask.push_id, ask.user)]
            if positions:
                found[ask] = ResumePoint(min(positions), cut=False)
        return found

    async def look_for_gaps(self, sessions: Sequence[Session]) -> None:
        """Welcome sessions again that were promised everything, if something is missing after all. These sessions have
        read their last page; pushes may have been dropped before they were read, here or by another node."""
        promised = {
            (s.user, s.replay.resumed): s for s in sessions if s.replay and s.replay.resumed is not None
        }

        async def look(places: Sequence[tuple[str, int]]) -> Sequence[tuple[tuple[str, int], bool]]:
            return list(zip(places, await self._store.dropped_since(places), strict=True))

        async def failed(
            place: tuple[str, int], error: StatementFailed
        ) -> Sequence[tuple[tuple[str, int], bool]]:
            # Nothing can be promised then.
            self._errors.handle(error, "mailbox.dropped_since", {})
            return [(place, True)]

        for place, gone in await self._persistence.in_parts(list(promised), look, failed):
            if not gone:
                continue
            for session in sessions:
                replay = session.replay
                if replay is not None and (session.user, replay.resumed) == place:
                    self.take_back(session)

    def take_back(self, session: Session) -> None:
        """Something is missing after all for a session that was promised everything: welcome it again, and say so."""
        if session.replay is not None:
            session.replay.resumed = None
            self._welcome(session, False)

    def _resume(self, session: Session, point: ResumePoint | None) -> None:
        replay = session.replay
        if replay is None or replay.last is None:
            # It was welcomed meanwhile without an answer, or is closed.
            return
        replay.last = None
        replay.seen = None if point is None else point.position - self._slack
        complete = point is not None and not point.cut
        replay.resumed = point.position if point is not None and complete else None
        if replay.resumed is not None:
            self.promised[session] = Shown(replay.resumed)
        self._welcome(session, complete)


def _earlier(one: ResumePoint | None, other: ResumePoint | None) -> ResumePoint | None:
    """The earlier of two places where a client may resume: pushes of several tenants may have the id that it names."""
    if one is None or other is None:
        return one or other
    return ResumePoint(min(one.position, other.position), one.cut or other.cut)
