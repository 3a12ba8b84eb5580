"""Ids seen of late, in bounded memory: whether a request may have come before, never whether it has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from bridge.model import PushKey

CAPACITY = 131_072
"""Ids remembered: some minutes at full speed. What is older is told apart by its row."""


class Recent:
    """A set of hashes that forgets its oldest. A false hit costs a query, a miss costs a second send."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: set[int] = set()
        self._order: deque[int] = deque()

    def __contains__(self, key: PushKey) -> bool:
        return hash(key) in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, key: PushKey) -> None:
        """Remember an id; idempotent."""
        value = hash(key)
        if value in self._seen:
            return
        self._seen.add(value)
        self._order.append(value)
        if len(self._order) > self._capacity:
            self._seen.discard(self._order.popleft())

    def warm(self, keys: Iterable[PushKey]) -> None:
        """Remember ids from the log, oldest first."""
        for key in keys:
            self.add(key)
