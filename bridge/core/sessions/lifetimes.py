"""When each session is asked to move on: at a time of its own, around the lifetime that is set."""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection
from typing import Final

SHARE_LEAST: Final = 0.75
SHARE_MOST: Final = 1.25
"""A session lives for at least and at most this share of the lifetime: those that opened together do not leave
together."""
SPARED: Final = 1000
"""Entries of closed sessions that may stay in memory before they are removed."""


class Lifetimes:
    """Nothing is kept where no lifetime is set."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: the lifetime; 0: sessions stay as long as they like."""
        self._seconds = seconds
        self._ends: list[tuple[float, str]] = []

    def opened(self, session_id: str, now: float, here: Collection[str]) -> None:
        """A session has opened; `now` is monotonic seconds, `here` are the ids of all that are open."""
        if not self._seconds:
            return
        share = random.uniform(SHARE_LEAST, SHARE_MOST)
        heapq.heappush(self._ends, (now + self._seconds * share, session_id))
        if len(self._ends) > 2 * len(here) + SPARED:
            self._ends = [entry for entry in self._ends if entry[1] in here]
            heapq.heapify(self._ends)

    def over(self, now: float) -> list[str]:
        """The ids of sessions whose lifetime is over by now (monotonic seconds), each once; some may have closed."""
        over: list[str] = []
        while self._ends and self._ends[0][0] <= now:
            over.append(heapq.heappop(self._ends)[1])
        return over

    def __len__(self) -> int:
        return len(self._ends)
