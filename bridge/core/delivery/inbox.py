"""Messages that have arrived and are not taken yet: in the order of the queue (`Inbox`), or shared out over tenants.

`bridge.core.delivery.sharing_out` has the other one; both are filled and emptied by `bridge.core.delivery.intake`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from bridge.core.ports.broker import AckToken, Arrival


class Inbox:
    """One line for all messages."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        """Set when something may be there to be taken."""
        self._waiting: deque[Arrival] = deque()

    def add(self, batch: Sequence[Arrival]) -> None:
        """These have arrived, in the order of the queue."""
        self._waiting.extend(batch)

    def next_batch(self, most: int, is_suspect: Callable[[Arrival], bool]) -> list[Arrival]:
        """Remove the next messages, at most so many; a suspect is alone."""
        waiting = self._waiting
        batch: list[Arrival] = []
        while waiting and len(batch) < most:
            if is_suspect(waiting[0]):
                if not batch:
                    batch.append(waiting.popleft())
                break
            batch.append(waiting.popleft())
        return batch

    def put_back(self, left: Sequence[Arrival]) -> None:
        """These of the last batch were not taken; they are in its order."""
        self._waiting.extendleft(reversed(left))

    def channel_lost(self, incarnation: int) -> None:
        """Forget the messages of this channel: they will come again."""
        self.give_back(incarnation)

    def give_back(self, incarnation: int) -> list[AckToken]:
        """Forget the messages of this channel that are not taken yet; returns their tokens."""
        tokens = [a.token for a in self._waiting if a.token.incarnation == incarnation]
        if tokens:
            self._waiting = deque(a for a in self._waiting if a.token.incarnation != incarnation)
        return tokens

    def answered(self, tokens: Iterable[AckToken]) -> None:
        """These messages were taken, and are acked or given back."""

    def tick(self) -> None:
        """Called about ten times a second."""

    @property
    def has_next(self) -> bool:
        """Whether `next_batch` would return something."""
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        """Messages that are here."""
        return len(self._waiting)

    @property
    def tenants(self) -> int | None:
        """How many tenants have something here; None where nobody counts."""
        return None
