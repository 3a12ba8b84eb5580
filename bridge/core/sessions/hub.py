"""This process's sessions: by id, by user, on the wheel of pings, and in the order in which their time is over."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.core.model.sessions import Mode
from bridge.core.sessions.lifetimes import Lifetimes
from bridge.core.sessions.renewal import asks_at
from bridge.core.sessions.session import Session
from bridge.core.sessions.topics import Topics

PING_EVERY = 20
"""Seconds: every open session is pinged at least this often."""

PLACES_A_SECOND = 10
"""Places of the wheel that have their turn in one second. All places have equally many sessions, even if all sessions
opened at once: a burst of pings, and of their pongs, would hold up the event loop."""

HEARTBEAT_LOOK = HEARTBEAT_EVERY // 2
"""Seconds between two checks whether a session was sent anything; its place on the wheel gives their time, too. At a
check a heartbeat is due if the next check would be too late. So a session without traffic gets one at every second
check, and no session waits longer than HEARTBEAT_EVERY."""

_BARE: Final = Mode.BARE
_PLACES = PING_EVERY * PLACES_A_SECOND
_LOOK = HEARTBEAT_LOOK * PLACES_A_SECOND

EXPIRIES_SPARED = 1000
"""Expiry times of closed sessions that may stay in memory before they are removed."""


class WheelTurn(NamedTuple):
    """One turn of the wheel, and the sessions that are due."""

    at: float
    """Monotonic seconds for which it was planned. Two turns of a session are a whole number of checks apart, however
    late the caller was."""
    to_ping: list[Session]
    quiet: list[Session]
    """Those in other than bare mode that would go without a frame for too long before their next check."""


class Hub:
    """Decides synchronously and returns what the caller must do; it closes nothing itself."""

    def __init__(self, lifetime: float = 0.0) -> None:
        """`lifetime`: seconds after which, about, `outlived` names a session; 0: never."""
        self._sessions: dict[str, Session] = {}
        self._users: dict[str, list[Session]] = {}
        self._wheel: list[set[Session]] = [set() for _ in range(_PLACES)]
        self._turned = 0
        """The last turn that `turns` has returned; 0 before the first."""
        self._opened = 0
        self._expiries: list[tuple[float, str]] = []
        self._lifetimes = Lifetimes(lifetime)
        self.topics = Topics()
        self.backlogged: set[Session] = set()
        """Sessions with frames that their socket has not taken yet, or that wait for the end of a replay."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    @property
    def users(self) -> int:
        """Users with at least one session."""
        return len(self._users)

    def register(self, session: Session, now: float) -> None:
        """A session opened; `now` is monotonic seconds."""
        self._sessions[session.id] = session
        self._users.setdefault(session.user, []).append(session)
        session.place = self._place(now)
        self._wheel[session.place].add(session)
        self._look_at(session)
        self._lifetimes.opened(session.id, now, self._sessions)

    def refreshed(self, session: Session) -> None:
        """It has a new token."""
        if session.id in self._sessions:
            self._look_at(session)

    def _look_at(self, session: Session) -> None:
        heapq.heappush(self._expiries, (asks_at(session), session.id))
        if len(self._expiries) > 2 * len(self._sessions) + EXPIRIES_SPARED:
            # Tokens may be good for weeks, and most sessions leave long before.
            self._expiries = [entry for entry in self._expiries if self._is_due(entry)]
            heapq.heapify(self._expiries)

    def _is_due(self, entry: tuple[float, str]) -> bool:
        """Whether the session is still here, and has the token for which this was entered."""
        session = self._sessions.get(entry[1])
        return session is not None and entry[0] in (asks_at(session), session.claims.expires_at)

    def _place(self, now: float) -> int:
        """The next place on the wheel, such that a session that is sent nothing gets its heartbeats with its pings.

        Its first heartbeat is due at the second check, one to two checks from now, and then one at every second check;
        its ping is due at every fourth.
        """
        self._opened += 1
        rounds, look = divmod(self._opened, _LOOK)
        return (_turn(now) + _LOOK + 1 + look + rounds % 2 * 2 * _LOOK) % _PLACES

    def unregister(self, session: Session) -> bool:
        """A session is gone; idempotent. Returns whether it was here."""
        if self._sessions.pop(session.id, None) is None:
            return False
        of_user = self._users[session.user]
        of_user.remove(session)
        if not of_user:
            del self._users[session.user]
        self._wheel[session.place].discard(session)
        self.backlogged.discard(session)
        return True

    def session(self, session_id: str) -> Session | None:
        """The session with this id, if it is open here."""
        return self._sessions.get(session_id)

    def of_user(self, user: str) -> Sequence[Session]:
        """The open sessions of a user, oldest first."""
        return self._users.get(user, ())

    def everyone(self) -> list[str]:
        """Every user with a session, at this moment."""
        return list(self._users)

    def sessions_of_everyone(self) -> list[tuple[str, Sequence[Session]]]:
        """Every user with a session, and the user's sessions; the list of users does not change, those lists do."""
        return list(self._users.items())

    def turns(self, now: float) -> Iterator[WheelTurn]:
        """The turns that have come since the last call; `now` is monotonic seconds.

        To be called PLACES_A_SECOND times a second. After a pause, each call catches up with the turns of one second.
        A session gets one turn for all that it missed.
        """
        current = _turn(now)
        first = max(self._turned + 1, current - _PLACES + 1) if self._turned else current
        self._turned = min(current, first + PLACES_A_SECOND - 1)
        for turn in range(first, self._turned + 1):
            at = turn / PLACES_A_SECOND
            quiet = [
                session
                for place in self._wheel[turn % _LOOK :: _LOOK]
                for session in place
                if session.mode is not _BARE and session.quiet(at, HEARTBEAT_LOOK)
            ]
            yield WheelTurn(at, list(self._wheel[turn % _PLACES]), quiet)

    def expiring(self, now: float) -> tuple[list[Session], list[Session]]:
        """The sessions whose token expires soon, and those whose token has expired by `now` (wall-clock seconds); each
        is returned once for each of its tokens."""
        soon: list[Session] = []
        gone: list[Session] = []
        while self._expiries and self._expiries[0][0] <= now:
            entry = heapq.heappop(self._expiries)
            if not self._is_due(entry):
                continue
            session = self._sessions[entry[1]]
            if session.claims.expires_at <= now:
                gone.append(session)
            else:
                soon.append(session)
                heapq.heappush(self._expiries, (session.claims.expires_at, session.id))
        return soon, gone

    def outlived(self, now: float) -> list[Session]:
        """The sessions whose lifetime is over by `now` (monotonic seconds), each once."""
        return [self._sessions[name] for name in self._lifetimes.over(now) if name in self._sessions]

    def stalled(self, now: float, deadline: float) -> list[Session]:
        """The sessions that took nothing for `deadline` seconds though frames wait for them."""
        return [
            s for s in self.backlogged if s.stalled_since is not None and now - s.stalled_since > deadline
        ]

    def fullest(self) -> Session | None:
        """The session with the most bytes waiting."""
        return max(self.backlogged, key=lambda s: s.waiting_bytes, default=None)

    @property
    def queued_bytes(self) -> int:
        """Bytes of frames that wait, over all sessions."""
        return sum(s.waiting_bytes for s in self.backlogged)


def _turn(now: float) -> int:
    """The number of turns until `now` (monotonic seconds); each turn advances the wheel by one place."""
    return int(now * PLACES_A_SECOND)
