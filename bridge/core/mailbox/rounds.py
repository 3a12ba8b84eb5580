"""Another round through the mailbox, for sessions whose user was rung for by another node.

| the ring is for                   | for whom                  | what it reads                                      |
|-----------------------------------|---------------------------|----------------------------------------------------|
| what is stored from a position on | every session of the user | what is stored from there on; who has resumed also |
|                                   |                           | what others have proven by now: it was promised    |
| one push that others have proven  | those that have resumed   | this one only                                      |

A round shows no session what all sessions here had, nor what it has read from the mailbox itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bridge.core.inflight.inflight import MICRO, InFlight
from bridge.core.mailbox.others import ENDED_FOR, Others
from bridge.core.mailbox.resuming import Resuming, Shown
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.replay import Replay
from bridge.core.sessions.session import Session

UNSHOWN_MAX: Final = 100
"""Pushes that others have proven and that a session reads one by one, a statement for each; over it, all from the first
of them on are read, in pages."""


class Rounds:
    """Begins them, and knows what they need not show."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        resuming: Resuming,
        others: Others,
        clock: Clock,
        begin: Callable[[Session, Replay], None],
    ) -> None:
        """`begin` begins a replay of a session that is LIVE."""
        self._hub = hub
        self._inflight = inflight
        self._resuming = resuming
        self._others = others
        self._clock = clock
        self._begin = begin
        self._unshown: dict[Session, list[int]] = {}
        """Positions of pushes that sessions which have resumed may lack, though others have proven them."""

    def rung(self, user: str, position: int, *, delivered: bool = False) -> None:
        """Another node has stored a push for this user, at this position. Position 1 says that it is not known which:
        it was in the last seconds. `delivered`: another session has proven it by now."""
        for session in self._hub.of_user(user):
            promised = self._resuming.promised.get(session)
            if not session.takes_pushes:
                continue
            if delivered and (promised is None or position <= promised.since):
                continue
            replay = session.replay
            if delivered:
                unshown = self._unshown.setdefault(session, [])
                unshown.append(position)
                if replay is None:
                    self.show_next(session)
                elif len(unshown) > UNSHOWN_MAX:
                    replay.rung = min(unshown if replay.rung is None else (replay.rung, *unshown))
                    del self._unshown[session]
            elif replay is None:
                until = max(position, self._inflight.take_position())
                seen = None if promised is None else self._promised_from(position, promised)
                self._begin(session, Replay(after=position - 1, until=until, seen=seen, again=True))
            else:
                replay.rung = position if replay.rung is None else min(position, replay.rung)

    def _promised_from(self, position: int, promised: Shown) -> int:
        """See `Replay.seen`, for a session that was promised everything, and is rung from this position on."""
        if position == 1:
            position = int((self._clock.time() - ENDED_FOR) * MICRO)
        return max(position - 1, promised.since)

    def show_next(self, session: Session) -> None:
        """Begin the round for the next push that others have proven, if there is one. The session is LIVE."""
        position = self._next_unshown(session)
        if position is not None:
            replay = Replay(after=position - 1, until=position, seen=position - 1, again=True)
            replay.exact = True
            self._begin(session, replay)

    def goes_on(self, session: Session, replay: Replay) -> bool:
        """Whether this replay, whose pages have all come, goes on with the next push that others have proven: before
        the session is let have what it holds, which is newer."""
        position = self._next_unshown(session)
        if position is None:
            return False
        replay.after, replay.until, replay.seen = position - 1, position, position - 1
        replay.again = replay.exact = True
        return True

    def _next_unshown(self, session: Session) -> int | None:
        unshown = self._unshown.get(session)
        if unshown is None:
            return None
        position = unshown.pop(0)
        if not unshown:
            del self._unshown[session]
        return position

    def read_again(self, session: Session, replay: Replay) -> None:
        """This replay, whose pages have all come, goes on with what was rung for meanwhile."""
        assert replay.rung is not None
        position, replay.rung = replay.rung, None
        replay.after, replay.again, replay.exact = min(replay.after, position - 1), True, False
        replay.until = max(replay.until, position, self._inflight.take_position())
        promised = self._resuming.promised.get(session)
        if promised is not None:
            seen = self._promised_from(position, promised)
            replay.seen = seen if replay.seen is None else min(replay.seen, seen)

    def had(self, session: Session, rows: Sequence[Row]) -> set[RowKey]:
        """Those of these rows that a round need not show to this session. What sessions here have proven may still say
        that it is stored: its owner has not heard it."""
        shown = self._resuming.promised.get(session)
        proven = self._others.proven(session.user)
        return {
            row.key
            for row in rows
            if row.key in proven or (row.final and shown is not None and row.key in shown)
        }

    def closed(self, session: Session) -> None:
        """The session is closed, or gets no more pushes; idempotent."""
        self._unshown.pop(session, None)
