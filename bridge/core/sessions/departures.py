"""How fast sessions are closed whose clients may come back at once, and when each client is told to come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

AT_ANY_RATE: Final = 2.0
"""Seconds over which clients come back where no rate is set."""
LONGEST: Final = 120.0
"""Seconds over which clients come back at most, however many they are: beyond it they come faster than the rate."""
DITHER: Final = 0.5
"""Seconds by which the waits of clients differ that are closed one by one: those that were closed in one moment do not
come back in one."""
BURST: Final = 0.25
"""A rate that was not used up is remembered for so many seconds."""


class Pace:
    """Says how many sessions may be closed now."""

    def __init__(self, rate: float, now: float) -> None:
        """`rate`: sessions a second; 0: any number. `now`: monotonic seconds."""
        self._rate = rate
        self._most = max(1.0, rate * BURST)
        self._room = 1.0
        self._at = now

    def room(self, now: float, most: int) -> int:
        """How many of `most` sessions may be closed now (monotonic seconds)."""
        if not self._rate:
            return most
        self._room = min(self._most, self._room + (now - self._at) * self._rate)
        self._at = now
        return min(most, int(self._room))

    def closed(self, sessions: int) -> None:
        """So many were closed."""
        self._room -= sessions


def waits(sessions: int, rate: float) -> Iterator[float]:
    """For each of so many sessions that close at one moment: the seconds that its client should wait. They come back at
    the rate, each at a random time in a slot of its own."""
    spread = min(LONGEST, sessions / rate) if rate else AT_ANY_RATE
    for slot in range(sessions):
        yield (slot + random.random()) * spread / sessions


def dither() -> float:
    """Seconds that the client of a session should wait which is closed in its turn."""
    return random.uniform(0.0, DITHER)
