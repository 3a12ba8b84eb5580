"""Which flights have waited long enough: for their row, and for a proof.

Nearly all wait equally long, so they stand in the order in which they were taken and only the head of each line
is looked at; those with an `ack_within` of their own are in a heap. Times are monotonic seconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator

from bridge.core.inflight.flight import Flight

PRUNE_FROM = 1000
"""Appointments from which on it is worth looking for those that nobody needs any more."""


class Appointments:
    """Flights by the time at which each is to be looked at; those that are not `wanted` any more are let go of long
    before that."""

    def __init__(self, wanted: Callable[[Flight], bool]) -> None:
        self._wanted = wanted
        self._heap: list[tuple[float, int, Flight]] = []
        """The number only breaks ties."""
        self._count = 0
        self._full = PRUNE_FROM

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at: float, flight: Flight) -> None:
        """Look at it then."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, flight))
        if len(self._heap) >= self._full:
            self._heap = [place for place in self._heap if self._wanted(place[2])]
            heapq.heapify(self._heap)
            self._full = max(PRUNE_FROM, 2 * len(self._heap))

    def due(self, now: float) -> Iterator[Flight]:
        """Those whose time has come, the earliest first, wanted or not."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]


class Deadlines:
    """Gives out each flight once when its row is due, and once when its time for a proof is over."""

    def __init__(self, park_after: float, confirm_timeout: float) -> None:
        self._park_after = park_after
        self._confirm_timeout = confirm_timeout
        self._young: deque[Flight] = deque()
        self._parked: deque[Flight] = deque()
        self._parked_at_once: deque[Flight] = deque()
        self._own = Appointments(lambda flight: not flight.ended and flight.open > 0)
        """Flights with an `ack_within`."""

    @property
    def parked(self) -> int:
        """Flights whose rows were due before their proof came, those that have ended since among them."""
        return len(self._parked) + len(self._parked_at_once)

    def wait(self, flight: Flight) -> None:
        """It waits for a proof, or for its user, without a row."""
        self._young.append(flight)

    def park(self, flight: Flight, *, at_once: bool = False) -> None:
        """Its row is due and its time for a proof goes on; `at_once`: it did not wait for that."""
        (self._parked_at_once if at_once else self._parked).append(flight)

    def limit(self, flight: Flight, now: float) -> None:
        """It was offered now, and has a time for its proof that is its own."""
        self._own.push(now + flight.ack_within, flight)

    def rows_due(self, now: float) -> Iterator[Flight]:
        """Flights that have waited without a row for long enough, and have not ended."""
        while self._young and (self._young[0].ended or now - self._young[0].taken_mono >= self._park_after):
            flight = self._young.popleft()
            if not flight.ended:
                yield flight

    def over(self, now: float) -> Iterator[Flight]:
        """Flights whose time for a proof is over; some have ended since."""
        yield from self._own.due(now)
        for line in (self._parked, self._parked_at_once):
            while line and (line[0].ended or now - line[0].taken_mono >= self._confirm_timeout):
                flight = line.popleft()
                if not flight.ack_within:
                    yield flight
