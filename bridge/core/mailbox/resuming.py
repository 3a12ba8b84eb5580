"""Where a session resumes that names the push it has seen last, and whether anything is missing since."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import ResumeAsk, ResumePoint, Store
from bridge.core.sessions.session import Session
from bridge.core.settlement.persistence import Persistence

SLACK = 10_000_000
"""Microseconds before the push last seen at which a resume begins: rows are not committed in order."""


class Resuming:
    """Asks the log, and has sessions welcomed with what is true."""

    def __init__(
        self,
        *,
        store: Store,
        persistence: Persistence,
        inflight: InFlight,
        errors: ErrorHandler,
        welcome: Callable[[Session, bool], None],
    ) -> None:
        """`welcome` sends a session its welcome, which says whether everything since is there or will come."""
        self._store = store
        self._persistence = persistence
        self._inflight = inflight
        self._errors = errors
        self._welcome = welcome

    async def find(self, sessions: Sequence[Session]) -> None:
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
            positions = [f.position for f in self._inflight.of_push(ask.push_id) if f.key.user == ask.user]
            if positions:
                found[ask] = ResumePoint(min(positions), cut=False)
        return found

    async def look_for_gaps(self, sessions: Sequence[Session]) -> None:
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
                    self._welcome(session, False)

    def _resume(self, session: Session, point: ResumePoint | None) -> None:
        replay = session.replay
        if replay is None or replay.last is None:
            # Welcomed meanwhile without an answer, or gone.
            return
        replay.last = None
        replay.seen = None if point is None else point.position - SLACK
        complete = point is not None and not point.cut
        replay.resumed = point.position if point is not None and complete else None
        self._welcome(session, complete)


def _earlier(one: ResumePoint | None, other: ResumePoint | None) -> ResumePoint | None:
    """Where a client resumes that has seen a push of this id: pushes of several tenants may have it."""
    if one is None or other is None:
        return one or other
    return ResumePoint(min(one.position, other.position), one.cut or other.cut)
