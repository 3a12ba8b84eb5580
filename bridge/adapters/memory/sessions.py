"""The SessionLog port in memory: for tests of the core. Without Postgres a bridge has no ledger."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.errors import StoreUnavailable
from bridge.core.model.ledger import Closed, Entries, Noted, Opened
from bridge.core.ports.clock import Clock


class MemorySessions:
    """Sessions in a dictionary, which several nodes may share."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.opened: dict[str, Opened] = {}
        self.closed: dict[str, Closed] = {}
        self.subscriptions: dict[tuple[str, str], None] = {}
        """Topics and sessions, in the order in which they were subscribed."""
        self.revoked: set[str] = set()
        """Ids of tokens that are revoked."""
        self.over: set[str] = set()
        """Sessions that are one too many of their user."""
        self.unwanted: dict[str, str] = {}
        """Why somebody wants a session closed, by its id."""
        self.ended = False
        """Whether another process has this node's name."""
        self.dead: list[str] = []
        """Sessions of dead processes."""

    async def note(self, entries: Entries) -> Noted:
        """See the port."""
        if self.ended:
            raise StoreUnavailable("another process has the name of this node")
        for opened in entries.opened:
            self.opened.setdefault(opened.session, opened)
        for fresh in entries.refreshed:
            found = self.opened.get(fresh.session)
            if found is not None:
                self.opened[fresh.session] = found._replace(
                    token_id=fresh.token_id, expires_at=fresh.expires_at
                )
        for said in entries.subscribed:
            for topic, session in list(self.subscriptions):
                its = self.opened[session]
                left_behind = its.user == said.user and session in self.closed
                if topic == said.topic and (left_behind or (session == said.session and not said.on)):
                    del self.subscriptions[topic, session]
            if said.on and said.session in self.opened:
                self.subscriptions[said.topic, said.session] = None
        for closed in entries.closed:
            if closed.session in self.opened:
                self.closed.setdefault(closed.session, closed)
        return Noted(
            [one.session for one in entries.opened if one.token_id in self.revoked],
            [one.session for one in entries.opened if one.session in self.over],
            [(name, word) for name, word in self.unwanted.items() if name not in self.closed],
        )

    async def end_dead(self, limit: int) -> Sequence[Closed]:
        """See the port."""
        now = self._clock.time()
        dead, self.dead = self.dead[:limit], self.dead[limit:]
        ended = []
        for name in dead:
            opened = self.opened[name]
            ended.append(Closed(name, opened.user, opened.node, opened.opened_at, now, None, "node_died"))
            self.closed[name] = ended[-1]
        return ended
