"""The Directory port in memory: for tests of the core. Without Postgres nodes do not know of one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.adapters.memory.sessions import MemorySessions
from bridge.adapters.memory.store import MemoryStore
from bridge.core.errors import StoreUnavailable
from bridge.core.model.nodes import Around, Neighbour
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Holder
from bridge.core.ports.store import LEASE_SECONDS

FORGET = 30.0
"""Seconds after which a process that does not renew its lease, and has no open session, is nobody any more."""


class MemoryDirectory:
    """Nodes are those of a MemoryStore, and sessions those of a MemorySessions, which all of them share."""

    def __init__(
        self, store: MemoryStore, sessions: MemorySessions, clock: Clock, node: str, boot: str
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._clock = clock
        self._node = node
        self._boot = boot

    async def look(self, queue: str, known_until: float | None, taking: Sequence[int] | None) -> Around:
        """See the port."""
        now = self._clock.time()
        ours = self._store.nodes.get(self._node)
        if ours is None or ours.boot != self._boot:
            raise StoreUnavailable("another process has the name of this node")
        ours.queue = queue
        ours.taking = None if taking is None else tuple(taking)
        ours.known_until = now if known_until is None else known_until
        others = [
            Neighbour(
                name, one.boot, one.queue, now - one.seen_at < LEASE_SECONDS, one.known_until, one.taking
            )
            for name, one in self._store.nodes.items()
            if name != self._node and (now - one.seen_at < FORGET or name in self._nodes_with_sessions())
        ]
        return Around(now, others)

    def _open(self) -> list[tuple[str, str, str]]:
        """Session, user and node of those that are open elsewhere."""
        return [
            (one.session, one.user, one.node)
            for one in self._sessions.opened.values()
            if one.session not in self._sessions.closed and one.node != self._node
        ]

    def _nodes_with_sessions(self) -> set[str]:
        return {node for _, _, node in self._open()}

    async def holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """See the port."""
        found: dict[str, list[str]] = {}
        wanted = set(users)
        for _, user, node in self._open():
            boot = self._store.nodes[node].boot
            if user in wanted and boot not in found.setdefault(user, []):
                found[user].append(boot)
        return found

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        """See the port."""
        found = {}
        for session in sessions:
            opened = self._sessions.opened.get(session)
            if opened is not None:
                elsewhere = session not in self._sessions.closed and opened.node != self._node
                boot = self._store.nodes[opened.node].boot if elsewhere else ""
                found[session] = Holder(opened.user, boot)
        return found

    async def everyone(self, after: str, limit: int) -> Sequence[tuple[str, Sequence[str]]]:
        """See the port."""
        users = sorted(
            {user for _, user, _ in self._open() if user.encode() > after.encode()}, key=str.encode
        )
        holders = await self.holders(users[:limit])
        return [(user, holders[user]) for user in users[:limit]]

    async def subscribers(
        self, topic: str, after: str, limit: int, within: float
    ) -> Sequence[tuple[str, Sequence[str]]]:
        """See the port."""
        elsewhere = {session: self._store.nodes[node].boot for session, _, node in self._open()}
        since = self._clock.time() - within
        found: dict[str, set[str]] = {}
        away, here = set[str](), set[str]()
        for its_topic, session in self._sessions.subscriptions:
            user = self._sessions.opened[session].user
            closed = self._sessions.closed.get(session)
            if its_topic != topic or user.encode() <= after.encode():
                continue
            if closed is not None:
                away.update([user] if closed.closed_at > since else ())
            elif session in elsewhere:
                found.setdefault(user, set()).add(elsewhere[session])
            else:
                here.add(user)
        found.update({user: set() for user in away - here - found.keys()})
        return [(user, sorted(found[user])) for user in sorted(found, key=str.encode)[:limit]]
