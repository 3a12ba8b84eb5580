"""The Lease port in memory."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.adapters.memory.store import RENEW_GAP, MemoryStore, Node
from bridge.core.errors import NodeNameTaken
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import LEASE_SECONDS, NO_ACCOUNT, Account


class MemoryLease:
    """The Lease port over a MemoryStore: other claimants are objects of the same process."""

    def __init__(self, store: MemoryStore, clock: Clock, node: str, boot: str) -> None:
        self._store = store
        self._clock = clock
        self._node = node
        self._boot = boot

    def _begin(self) -> None:
        if self._store.fail_with is not None:
            raise self._store.fail_with

    async def check(self) -> None:
        """See the port."""

    async def claim(self) -> None:
        """See `Lease.claim`; does not wait for a predecessor."""
        self._begin()
        now = self._clock.time()
        holder = self._store.nodes.get(self._node)
        if holder is not None and holder.boot != self._boot and now - holder.seen_at < LEASE_SECONDS:
            raise NodeNameTaken(self._node)
        self._store.nodes[self._node] = Node(self._boot, now)

    async def renew(self, account: Account = NO_ACCOUNT) -> bool:
        """See `Lease.renew`."""
        self._begin()
        now = self._clock.time()
        holder = self._store.nodes.setdefault(self._node, Node(self._boot, now))
        if holder.boot != self._boot:
            raise NodeNameTaken(self._node)
        if now - holder.seen_at > RENEW_GAP:
            holder.steady_since = now
        holder.seen_at = now
        return holder.stopping

    async def stopping(self) -> None:
        """See `Lease.stopping`."""
        self._begin()
        holder = self._store.nodes.get(self._node)
        if holder is not None and holder.boot == self._boot:
            holder.stopping = True

    async def end_dead(self, limit: int) -> Sequence[Row]:
        """See `Lease.end_dead`."""
        return self._store.end_dead(self._node, self._boot, limit)

    async def release(self) -> None:
        """See `Lease.release`."""
        self._begin()
        holder = self._store.nodes.get(self._node)
        if holder is not None and holder.boot == self._boot:
            del self._store.nodes[self._node]
