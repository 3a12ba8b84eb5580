"""Which sessions here are subscribed to which topics."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bridge.core.sessions.session import Session


class Topics:
    """An index in memory. All methods are idempotent."""

    def __init__(self) -> None:
        self._users: dict[str, dict[str, list[Session]]] = {}
        """Sessions by topic and user."""
        self._of: dict[str, set[str]] = {}
        """Topics by the id of a session."""
        self._leaving: dict[str, dict[str, int]] = {}
        """Users, by topic, with so many sessions that have closed, and of which the ledger does not say so yet."""
        self._left: dict[str, tuple[str, frozenset[str]]] = {}
        """The user and the topics of those sessions."""
        self.count = 0
        """Subscriptions: one for each session and topic."""

    def add(self, session: Session, topic: str) -> bool:
        """Subscribe a session. False where it is subscribed already."""
        of_session = self._of.setdefault(session.id, set())
        if topic in of_session:
            return False
        of_session.add(topic)
        self._users.setdefault(topic, {}).setdefault(session.user, []).append(session)
        self.count += 1
        return True

    def remove(self, session: Session, topic: str) -> bool:
        """End a subscription. False where there is none."""
        of_session = self._of.get(session.id)
        if of_session is None or topic not in of_session:
            return False
        of_session.remove(topic)
        if not of_session:
            del self._of[session.id]
        users = self._users[topic]
        sessions = users[session.user]
        sessions.remove(session)
        if not sessions:
            del users[session.user]
            if not users:
                del self._users[topic]
        self.count -= 1
        return True

    def leaves(self, session: Session, *, remember: bool) -> None:
        """A session has closed. `remember`: until `has_left`."""
        topics = frozenset(self._of.get(session.id, ()))
        for topic in topics:
            self.remove(session, topic)
        if not topics or not remember:
            return
        self._left[session.id] = session.user, topics
        for topic in topics:
            users = self._leaving.setdefault(topic, {})
            users[session.user] = users.get(session.user, 0) + 1

    def has_left(self, session_id: str) -> None:
        """The ledger says that this session has closed."""
        user, topics = self._left.pop(session_id, ("", frozenset()))
        for topic in topics:
            users = self._leaving[topic]
            users[user] -= 1
            if not users[user]:
                del users[user]
                if not users:
                    del self._leaving[topic]

    def of(self, session: Session) -> Collection[str]:
        """The topics of a session, in no order."""
        return self._of.get(session.id, ())

    def sessions(self, topic: str, user: str) -> Sequence[Session]:
        """The user's sessions that are subscribed, oldest subscription first."""
        users = self._users.get(topic)
        return () if users is None else users.get(user, ())

    def audience(self, topic: str) -> list[tuple[str, Sequence[Session]]]:
        """The users that are subscribed, each with those sessions. The list of users does not change, those do."""
        return list(self._users.get(topic, {}).items())

    def leaving(self, topic: str) -> list[str]:
        """Users without a subscribed session here of whom one has closed, and the ledger does not say so yet."""
        users = self._users.get(topic, {})
        return [user for user in self._leaving.get(topic, ()) if user not in users]
