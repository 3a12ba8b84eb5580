"""What sessions here had of another node when a new one of their user opens: the new one is to read it.

The other node took these pushes. It does not know of the new session, and this one has their data no more. The owner
writes a row of each within a second, or as soon as it has ended. The new session reads what is older meanwhile, and
nothing that is newer.

    a session of the user has it, unproven ──┐
                                             ├──> no page goes beyond it ──> it has its row ──> the page has it
    all of them have done with it ───────────┘               │
                                                             └──> no row in time ──> not complete
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from bridge.core.errors import StatementFailed
from bridge.core.inflight.offered import keys_of
from bridge.core.model.outcomes import Outcome
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.replay import Other, Replay
from bridge.core.sessions.session import Session
from bridge.core.settlement.persistence import Persistence

OTHERS_EVERY: Final = 0.1
"""Seconds until rows are looked for again that another node is about to write,"""
OTHERS_FOR: Final = 2.0
"""and after which they are not waited for any more."""
ENDED_FOR: Final = 10.0
"""Seconds for which a push is remembered that the last session here has done with: its owner has written its row by
then, or is dead, and the next one sends it again."""
ENDED_MAX: Final = 100_000
"""Such pushes that are remembered; over it the oldest are forgotten,"""
ENDED_OF_USER: Final = 1_000
"""and so they are over this number of one user: a session that opens is to wait for few statements."""
KEYS: Final = 1_000
"""Pushes whose rows one statement looks for."""


class _Ended(NamedTuple):
    key: RowKey
    position: int
    proven: bool
    until: float
    """Monotonic seconds."""


class Others:
    """Knows these pushes, and asks the log for their rows."""

    def __init__(
        self, *, hub: Hub, store: Store, persistence: Persistence, errors: ErrorHandler, clock: Clock
    ) -> None:
        self._hub = hub
        self._store = store
        self._persistence = persistence
        self._errors = errors
        self._clock = clock
        # Nearly every user has few at a time, and an empty deque takes more than a list of them.
        self._ended: dict[str, list[_Ended]] = {}
        """By user, oldest first."""
        self._line: deque[_Ended] = deque()
        """Of all users, oldest first."""

    def ended(self, key: RowKey, position: int, *, proven: bool) -> None:
        """The last session here has done with this kept push of another node. `proven`: it has the proof that it asks
        for."""
        self.forget_old(ENDED_MAX - 1)
        one = _Ended(key, position, proven, self._clock.monotonic() + ENDED_FOR)
        of_user = self._ended.setdefault(key.user, [])
        of_user.append(one)
        if len(of_user) > ENDED_OF_USER:
            del of_user[0]
        self._line.append(one)

    def forget_old(self, most: int = ENDED_MAX) -> None:
        """Forget those whose time is over, and the oldest ones, until there are no more than this. To be called each
        second."""
        now = self._clock.monotonic()
        while self._line and (len(self._line) > most or self._line[0].until <= now):
            one = self._line.popleft()
            user = one.key.user
            of_user = self._ended.get(user)
            if of_user and of_user[0] is one:
                del of_user[0]
                if not of_user:
                    del self._ended[user]

    def of(self, session: Session) -> dict[RowKey, Other] | None:
        """See `Replay.others`, for a session that opens now."""
        now = self._clock.monotonic()
        found = {
            one.key: Other(one.position, None, one.proven)
            for one in self._ended.get(session.user, ())
            if one.until > now
        }
        for one in self._hub.of_user(session.user):
            if one is not session:
                for push in (*one.waiting_pushes(), *one.handed_pushes()):
                    if push.kept_elsewhere:
                        found[push.key] = Other(push.position, push, False)
        return dict(sorted(found.items(), key=lambda item: item[1].position)) or None

    def proven(self, user: str) -> set[RowKey]:
        """Those that the last session of this user here has proven: all that were there had been offered them."""
        return {one.key for one in self._ended.get(user, ()) if one.proven}

    async def look(self, sessions: Sequence[Session]) -> Sequence[Session]:
        """Find out which of them have their rows by now. Returns the sessions that were promised everything since the
        push last seen, and for which it is not known in time whether they will read it."""
        waiting = [s for s in sessions if s.replay is not None and s.replay.others is not None]
        if not waiting:
            return ()
        keys: dict[RowKey, None] = {}
        for session in waiting:
            keys.update(dict.fromkeys(_needed(session)))
            # There may be thousands for each of them; all else gets its turn in between.
            await self._clock.sleep(0)
        written: set[RowKey] = set()
        asked = list(keys)
        for at in range(0, len(asked), KEYS):
            some = asked[at : at + KEYS]
            rows = await self._persistence.in_parts(some, self._store.find, self._not_found)
            written.update(row.key for row in rows if row.outcome is not Outcome.PENDING)
        late: list[Session] = []
        now = self._clock.monotonic()
        for session in waiting:
            await self._clock.sleep(0)
            replay = session.replay
            if replay is None or replay.others is None:
                continue  # it has closed
            left = {key: replay.others[key] for key in _needed(session) if key not in written}
            if left and now - replay.began >= OTHERS_FOR:
                if replay.resumed is not None:
                    late.append(session)
                left = {}
            replay.others = left or None
        return late

    async def _not_found(self, key: RowKey, error: StatementFailed) -> Sequence[Row]:
        """Nobody can tell whether it has a row: its time will be over."""
        self._errors.handle(error, "mailbox.others", {"push_id": key.push_id})
        return ()


def _needed(session: Session) -> list[RowKey]:
    """Those of them that this session is to read, oldest first. Who has not resumed needs none that is proven."""
    replay = session.replay
    if replay is None or replay.others is None:
        return []
    has = keys_of(session.waiting_pushes())
    return [key for key, other in replay.others.items() if key not in has and _is_needed(replay, other)]


def _is_needed(replay: Replay, other: Other) -> bool:
    if replay.resumed is not None and other.position > replay.resumed:
        return True
    return not other.proven if other.push is None else other.push.kept_elsewhere


def reads_until(replay: Replay) -> int | None:
    """The position before which its pages end for the moment; None where they need not."""
    return None if replay.others is None else next(iter(replay.others.values())).position
