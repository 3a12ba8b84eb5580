"""The Schedule port in memory: for tests of the core. Without Postgres nothing is scheduled."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from bridge.adapters.memory.store import MemoryStore
from bridge.core.model.pushes import Recall
from bridge.core.model.scheduled import Due, Scheduled, Withdrawn
from bridge.core.ports.clock import Clock
from bridge.core.ports.scheduling import CLAIM_SECONDS
from bridge.core.ports.store import LEASE_SECONDS


class MemorySchedule:
    """Entries in a dictionary; which boots live is what a MemoryStore knows."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.entries: dict[str, Scheduled] = {}
        """By id, in the order in which they were scheduled."""
        self._due_at: dict[str, float] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        """By entry: the boot that has claimed it, empty once it was given back, and when."""

    async def add(self, entries: Sequence[Scheduled]) -> None:
        """See the port."""
        for entry in entries:
            if entry.id not in self.entries:
                self.entries[entry.id] = entry
                self._due_at[entry.id] = entry.deliver_at

    async def claim(self, boot: str, limit: int, most_bytes: int) -> Due:
        """See the port."""
        now = self._clock.time()
        living = {n.boot for n in self._store.nodes.values() if now - n.seen_at < LEASE_SECONDS}
        if any(
            owner != boot and owner in living and now - since < CLAIM_SECONDS
            for owner, since in self._claims.values()
        ):
            return Due((), None)
        # Sorting is stable: entries of one time stay in the order of the dictionary.
        waiting = sorted(self.entries, key=lambda one: self._due_at[one])
        claimed: list[Scheduled] = []
        size = 0
        for one in waiting:
            if self._due_at[one] > now or len(claimed) == limit or (claimed and size >= most_bytes):
                break
            entry = self.entries[one]
            size += len(entry.body) + len(entry.properties)
            self._claims[one] = (boot, now)
            claimed.append(entry)
        left = waiting[len(claimed) :]
        return Due(claimed, max(0.0, self._due_at[left[0]] - now) if left else None)

    async def done(self, ids: Collection[str]) -> None:
        """See the port."""
        for one in ids:
            self.entries.pop(one, None)
            self._due_at.pop(one, None)
            self._claims.pop(one, None)

    async def give_back(self, boot: str, ids: Collection[str]) -> None:
        """See the port."""
        for one in ids:
            owner, since = self._claims.get(one, ("", 0.0))
            if owner == boot:
                self._claims[one] = ("", since)

    async def recall(self, recall: Recall, limit: int) -> Sequence[Withdrawn]:
        """See the port."""
        withdrawn: list[Withdrawn] = []
        now = self._clock.time()
        for one, entry in self.entries.items():
            if len(withdrawn) == limit:
                break
            if (
                one in self._claims
                or entry.recalled
                or entry.tenant != recall.tenant
                or not names(recall, entry)
            ):
                continue
            self.entries[one] = msgspec.structs.replace(entry, recalled=True)
            self._due_at[one] = min(self._due_at[one], now)
            withdrawn.append(Withdrawn(entry.push_id, entry.users))
        return withdrawn


def names(recall: Recall, entry: Scheduled) -> bool:
    """Whether a recall, of the tenant of this entry, means it."""
    if recall.push_id:
        return entry.push_id == recall.push_id
    return entry.user == recall.user and entry.collapse_key == recall.collapse_key
