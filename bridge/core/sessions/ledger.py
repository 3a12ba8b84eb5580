"""What the ledger has yet to be told of this process's sessions.

A session's open is written before its close, both at most once, and nothing of a session that closed before its open
was tried. What was tried stays here until it is committed: the database may have it though its answer was lost.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from bridge.core.contract.frames import Ref
from bridge.core.model.ledger import Closed, Device, Entries, Opened, Refreshed, Subscribed
from bridge.core.model.sessions import Refusal
from bridge.core.sessions.session import Session

TOPICS_FOR_ONE: Final = 20
"""Subscriptions in one statement, for each open of a session that may be in it."""
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


class Wish:
    """What a session has said last about a topic, which is not committed yet."""

    __slots__ = ("entry", "refs", "session")

    def __init__(self, session: Session, topic: str, on: bool, refs: tuple[Ref, ...]) -> None:
        self.session = session
        self.entry = Subscribed(session.id, session.user, topic, on)
        self.refs = refs
        """Of the frames that are answered when it is committed."""


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
        self._wishes: dict[str, dict[str, Wish]] = {}
        """By session and topic."""
        self._closed: dict[str, Closed] = {}

    def __len__(self) -> int:
        return len(self._opening) + len(self._refreshed) + len(self._wishes) + len(self._closed)

    @property
    def ready(self) -> bool:
        """Whether there is something to write."""
        return bool(self._opening or self._refreshed or self._wishes or self._closed)

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

    def subscribed(self, session: Session, topic: str, refs: tuple[Ref, ...], *, on: bool) -> None:
        """A session has subscribed to a topic, or ended that; `refs` are those of its frames."""
        # To the end: who says much waits for those who say little.
        of_session = self._wishes[session.id] = self._wishes.pop(session.id, {})
        before = of_session.get(topic)
        of_session[topic] = Wish(session, topic, on, (*before.refs, *refs) if before else refs)
        self.wake.set()

    def unanswered(self, session: Session) -> int:
        """How many frames of a session about topics wait for their answer."""
        return sum(len(wish.refs) for wish in self._wishes.get(session.id, {}).values())

    def closed(self, session: Session, code: int, reason: str, now: float) -> bool:
        """A session has closed; `now` is unix seconds. Returns whether that will be written."""
        if not self.kept:
            return False
        opening = self._opening.get(session.id)
        if opening is not None and not opening.tried:
            del self._opening[session.id]
            self._wishes.pop(session.id, None)
            return False
        self._closed[session.id] = Closed(
            session.id, session.user, self._node, session.opened_at, now, code, reason
        )
        self.wake.set()
        return True

    def refreshing(self, session_id: str) -> Session | None:
        """The session with this id, also when it has closed, if the ledger has to be told of its new token yet."""
        return self._refreshed.get(session_id)

    def overdue(self, before: float) -> list[Session]:
        """The sessions that wait since before `before` (monotonic seconds), oldest first."""
        waiting = itertools.takewhile(lambda opening: opening.since < before, self._opening.values())
        return [opening.session for opening in waiting if opening.session.takes_pushes]

    def take(self, most: int) -> tuple[Entries, list[Session]]:
        """What is to be written next, at most so many of each kind; and the sessions that it opens."""
        opening, room = list[Opening](), TOPICS_FOR_ONE * most
        for one in itertools.islice(self._opening.values(), most):
            # What a token names is there when its session is welcomed.
            named = len(self._wishes.get(one.session.id, ()))
            if opening and named > room:
                break
            room -= named
            one.tried = True
            opening.append(one)
        taken = {one.session.id for one in opening}
        # Nothing comes before the open.
        fresh = (one for key, one in self._refreshed.items() if key in taken or key not in self._opening)
        ready = (one for key, one in self._closed.items() if key in taken or key not in self._opening)
        first = [wish for name in taken for wish in self._wishes.get(name, {}).values()]
        others = (
            wish
            for name, of_session in self._wishes.items()
            if name not in self._opening
            for wish in of_session.values()
        )
        said = itertools.chain(first, itertools.islice(others, most))
        entries = Entries(
            [one.entry(self._node) for one in opening],
            [_refreshed(session) for session in itertools.islice(fresh, most)],
            [wish.entry for wish in said],
            list(itertools.islice(ready, most)),
        )
        return entries, [one.session for one in opening]

    def written(self, entries: Entries) -> list[Wish]:
        """These are committed. Returns the wishes among them that are still the last word of their session."""
        _forget(self._opening, (entry.session for entry in entries.opened))
        _forget(self._closed, (entry.session for entry in entries.closed))
        for entry in entries.refreshed:
            session = self._refreshed.get(entry.session)
            if session is not None and session.claims.token_id == entry.token_id:
                del self._refreshed[entry.session]
        return list(self._settled(entries.subscribed))

    def _settled(self, entries: Iterable[Subscribed]) -> Iterator[Wish]:
        for entry in entries:
            of_session = self._wishes.get(entry.session, {})
            wish = of_session.get(entry.topic)
            if wish is not None and wish.entry is entry:
                del of_session[entry.topic]
                if not of_session:
                    del self._wishes[entry.session]
                yield wish


def _refreshed(session: Session) -> Refreshed:
    former = [claims.token_id for claims in session.former if claims.token_id]
    return Refreshed(session.id, session.claims.token_id, session.claims.expires_at, former)


def _forget(entries: dict[str, Opening] | dict[str, Closed], sessions: Iterable[str]) -> None:
    for session in sessions:
        entries.pop(session, None)
