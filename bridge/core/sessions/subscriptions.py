"""Subscribe sessions to topics, and end that. It counts from the commit on, which the answer waits for.

A session may subscribe to what its claims permit: those in `topics` at once, and by a frame what a pattern in
`subscribe` permits. What a new token does not permit any more ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, Protocol

from bridge.core.contract.frames import Ref, error_frame, ok_frame
from bridge.core.contract.patterns import permits
from bridge.core.model.ledger import Entries
from bridge.core.model.sessions import Claims
from bridge.core.sessions.answering import send_later_answer
from bridge.core.sessions.ledger import Ledger, Wish
from bridge.core.sessions.session import Session
from bridge.core.sessions.topics import Topics

TOPICS_MAX: Final = 200
"""Topics of one session: those that its token may name, and as many by frames."""
UNANSWERED_MAX: Final = 200
"""Frames of a session that wait for their answer."""


class Trouble(enum.Enum):
    """Why a frame is not carried out."""

    FORBIDDEN = enum.auto()
    TOO_MANY = enum.auto()
    TRY_LATER = enum.auto()


class SubscriptionListener(Protocol):
    """Is told of subscriptions on their way into the ledger. See `mailbox/last_values.py`."""

    def subscribes(self, session: Session, topic: str) -> None:
        """A session is about to be subscribed."""
        ...

    def subscribed(self, session: Session, topic: str) -> None:
        """The ledger has it."""
        ...

    def not_subscribed(self, session: Session, topic: str) -> None:
        """It has ended, or is refused."""
        ...

    def closed(self, session: Session) -> None:
        """The session gets no more pushes."""
        ...


class Subscriptions:
    """Keeps the index of topics and what the ledger is told of it in step."""

    def __init__(self, topics: Topics, ledger: Ledger, listener: SubscriptionListener) -> None:
        self._topics = topics
        self._ledger = ledger
        self._listener = listener

    def opened(self, session: Session) -> None:
        """A session has opened: its token names topics."""
        for topic in session.claims.topics:
            if topic in self._topics.of(session) or len(self._topics.of(session)) < TOPICS_MAX:
                self._set(session, topic, (), on=True)
            else:
                problem = f"topic: there is no room for {topic}, the session has {TOPICS_MAX}"
                send_later_answer(session, error_frame("over_limit", problem))

    def refreshed(self, session: Session) -> None:
        """A session has a new token."""
        for topic in [t for t in self._topics.of(session) if not _may(session.claims, t)]:
            self._set(session, topic, (), on=False)
            problem = f"topic: the new token does not permit {topic}, the subscription has ended"
            send_later_answer(session, error_frame("forbidden", problem))
        self.opened(session)

    def subscribe(self, session: Session, topic: str, ref: Ref) -> Trouble | None:
        """A client asks for a topic. Idempotent."""
        if not _may(session.claims, topic):
            return Trouble.FORBIDDEN
        if topic not in self._topics.of(session) and len(self._topics.of(session)) >= TOPICS_MAX:
            return Trouble.TOO_MANY
        return self._asked(session, topic, ref, on=True)

    def unsubscribe(self, session: Session, topic: str, ref: Ref) -> Trouble | None:
        """A client asks for it no more. Idempotent; it also ends what an earlier session of the user left behind."""
        return self._asked(session, topic, ref, on=False)

    def _asked(self, session: Session, topic: str, ref: Ref, *, on: bool) -> Trouble | None:
        unanswered = self._ledger.unanswered(session)
        if self._ledger.refusal is not None or unanswered >= UNANSWERED_MAX or not session.takes_pushes:
            return Trouble.TRY_LATER
        self._set(session, topic, (ref,), on=on)
        return None

    def _set(self, session: Session, topic: str, refs: tuple[Ref, ...], *, on: bool) -> None:
        changed = self._topics.add(session, topic) if on else self._topics.remove(session, topic)
        if not self._ledger.kept:
            _answer(session, refs)
        elif changed or refs:
            if changed and on:
                self._listener.subscribes(session, topic)
            self._ledger.subscribed(session, topic, refs, on=on)

    def closed(self, session: Session, *, remember: bool) -> None:
        """A session gets no more pushes. `remember`: until the ledger has its close."""
        self._topics.leaves(session, remember=remember)
        self._listener.closed(session)

    def committed(self, entries: Entries, wishes: Iterable[Wish]) -> None:
        """The ledger has these entries; the wishes are what it had been told last."""
        for closed in entries.closed:
            self._topics.has_left(closed.session)
        for wish in wishes:
            _answer(wish.session, wish.refs)
            tell = self._listener.subscribed if wish.entry.on else self._listener.not_subscribed
            tell(wish.session, wish.entry.topic)

    def given_up(self, entries: Entries, wishes: Iterable[Wish]) -> None:
        """The database refuses these entries."""
        for closed in entries.closed:
            self._topics.has_left(closed.session)
        for wish in wishes:
            self._topics.remove(wish.session, wish.entry.topic)
            self._listener.not_subscribed(wish.session, wish.entry.topic)
            for ref in wish.refs:
                send_later_answer(
                    wish.session, error_frame("try_later", "topic: the database refuses it", ref)
                )


def _may(claims: Claims, topic: str) -> bool:
    return topic in claims.topics or permits(claims.subscribe, topic, claims.user)


def _answer(session: Session, refs: tuple[Ref, ...]) -> None:
    for ref in refs:
        send_later_answer(session, ok_frame(ref))
