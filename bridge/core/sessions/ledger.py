"""What the ledger has yet to be told of this process's sessions.

A session's open is written before its close, both at most once, and nothing of a session that closed before its open
was tried. What was tried stays here until it is committed: the database may have it though its answer was lost.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Final

from bridge.core.model.ledger import Closed, Device, Entries, Opened, Refreshed
from bridge.core.model.sessions import Refusal
from bridge.core.sessions.session import Session

DOWN: Final = Refusal(503, "ledger", "Sessions can't be recorded at the moment, try again soon.")
"""The answer to handshakes while the ledger can't be written."""


class Opening:
    """A session whose open is not committed yet. It is sent nothing until then."""

    __slots__ = ("device", "session", "since", "tried")

    def __init__(self, session: Session, device: Device, since: float) -> None:
        self.session = session
        self.device = device
        self.since = since
        """Monotonic seconds."""
        self.tried = False
        """Whether it was given to the database."""

    def entry(self, node: str) -> Opened:
        """What is written of it."""
        session = self.session
        claims = session.claims
        return Opened(
            session.id,
            session.user,
            node,
            session.opened_at,
            session.mode.value,
            self.device,
            claims.token_id,
            claims.issued_at,
            claims.expires_at,
        )


class Ledger:
    """The entries to be written, in their order."""

    def __init__(self, node: str, *, kept: bool) -> None:
        """`kept`: whether there is a ledger at all; without one nothing waits for it."""
        self.kept = kept
        self._node = node
        self.refusal: Refusal | None = None
        """The answer to every handshake while the ledger can't be written; None while it can."""
        self.wake = asyncio.Event()
        """Set when there is something to write."""
        self._opening: dict[str, Opening] = {}
        self._refreshed: dict[str, Session] = {}
        self._closed: dict[str, Closed] = {}

    def __len__(self) -> int:
        return len(self._opening) + len(self._refreshed) + len(self._closed)

    @property
    def ready(self) -> bool:
        """Whether there is something to write."""
        return bool(self._opening or self._refreshed or self._closed)

    @property
    def opening(self) -> int:
        """Sessions whose open is not committed yet."""
        return len(self._opening)

    def opened(self, session: Session, device: Device, now: float) -> None:
        """A session has opened; `now` is monotonic seconds."""
        self._opening[session.id] = Opening(session, device, now)
        self.wake.set()

    def refreshed(self, session: Session) -> None:
        """A session has a new token."""
        if self.kept:
            self._refreshed[session.id] = session
            self.wake.set()

    def closed(self, session: Session, code: int, reason: str, now: float) -> None:
        """A session has closed; `now` is unix seconds."""
        if not self.kept:
            return
        opening = self._opening.get(session.id)
        if opening is not None and not opening.tried:
            del self._opening[session.id]
            return
        self._closed[session.id] = Closed(
            session.id, session.user, self._node, session.opened_at, now, code, reason
        )
        self.wake.set()

    def refreshing(self, session_id: str) -> Session | None:
        """The session with this id, also when it has closed, if the ledger has to be told of its new token yet."""
        return self._refreshed.get(session_id)

    def overdue(self, before: float) -> list[Session]:
        """The sessions that wait since before `before` (monotonic seconds), oldest first."""
        waiting = itertools.takewhile(lambda opening: opening.since < before, self._opening.values())
        return [opening.session for opening in waiting if opening.session.takes_pushes]

    def take(self, most: int) -> tuple[Entries, list[Session]]:
        """What is to be written next, at most so many of each kind; and the sessions that it opens."""
        opening = list(itertools.islice(self._opening.values(), most))
        for one in opening:
            one.tried = True
        taken = {one.session.id for one in opening}
        # Nothing comes before the open.
        fresh = (one for key, one in self._refreshed.items() if key in taken or key not in self._opening)
        ready = (one for key, one in self._closed.items() if key in taken or key not in self._opening)
        entries = Entries(
            [one.entry(self._node) for one in opening],
            [_refreshed(session) for session in itertools.islice(fresh, most)],
            list(itertools.islice(ready, most)),
        )
        return entries, [one.session for one in opening]

    def written(self, entries: Entries) -> None:
        """These are committed."""
        _forget(self._opening, (entry.session for entry in entries.opened))
        _forget(self._closed, (entry.session for entry in entries.closed))
        for entry in entries.refreshed:
            session = self._refreshed.get(entry.session)
            if session is not None and session.claims.token_id == entry.token_id:
                del self._refreshed[entry.session]


def _refreshed(session: Session) -> Refreshed:
    former = [claims.token_id for claims in session.former if claims.token_id]
    return Refreshed(session.id, session.claims.token_id, session.claims.expires_at, former)


def _forget(entries: dict[str, Opening] | dict[str, Closed], sessions: Iterable[str]) -> None:
    for session in sessions:
        entries.pop(session, None)
