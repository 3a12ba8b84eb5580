"""Find the flights whose row is due, and those whose time for a proof is over.

Nearly all flights wait equally long. They are queued in the order in which they were taken, and only the head of each
queue is checked. Flights with an `ack_within` of their own are in a heap. Times are monotonic seconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from bridge.core.inflight.flight import Flight

PRUNE_FROM = 1000
"""Up to this many appointments, none is removed before its time."""


class Appointments:
    """Flights by the time at which each must be checked. Flights that are not `wanted` any more are removed earlier,
    so that they do not pile up."""

    def __init__(self, wanted: Callable[[Flight], bool]) -> None:
        self._wanted = wanted
        self._heap: list[tuple[float, int, Flight]] = []
        """(time, number, flight); the number only breaks ties."""
        self._count = 0
        self._full = PRUNE_FROM

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, at: float, flight: Flight) -> None:
        """Check this flight at `at`."""
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, flight))
        if len(self._heap) >= self._full:
            self._heap = [place for place in self._heap if self._wanted(place[2])]
            heapq.heapify(self._heap)
            self._full = max(PRUNE_FROM, 2 * len(self._heap))

    def due(self, now: float) -> Iterator[Flight]:
        """The flights whose time has come, the earliest first, wanted or not."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]


class Deadlines:
    """Returns each flight once when its row is due, and once when its time for a proof is over."""

    def __init__(self, park_after: float, confirm_timeout: float) -> None:
        self._park_after = park_after
        self._confirm_timeout = confirm_timeout
        self._young: deque[Flight] = deque()
        self._parked: deque[Flight] = deque()
        self._parked_at_once: deque[Flight] = deque()
        self._parked_early: deque[Flight] = deque()
        self._own = Appointments(lambda flight: not flight.ended and flight.open > 0)
        """Flights with an `ack_within`."""

    @property
    def parked(self) -> int:
        """Flights whose row was due before their proof came, including those that have ended since."""
        return len(self._parked) + len(self._parked_at_once) + len(self._parked_early)

    def wait(self, flight: Flight) -> None:
        """This flight waits for a proof, or for its user, and has no row yet."""
        self._young.append(flight)

    def park_early(self, early: Callable[[Flight], bool]) -> Sequence[Flight]:
        """Park those for which `wait` was called, and of which this says that their row is due now; returns them."""
        parked = [flight for flight in self._young if early(flight)]
        if parked:
            self._young = deque(flight for flight in self._young if not early(flight))
            # Those of another node that were parked earlier may be younger. A merge of two sorted lists, nearly.
            self._parked_early = deque(sorted((*self._parked_early, *parked), key=_taken))
        return parked

    def park(self, flight: Flight, *, at_once: bool = False) -> None:
        """Its row is due, and its time for a proof goes on. `at_once`: `wait` was not called for it."""
        (self._parked_at_once if at_once else self._parked).append(flight)

    def limit(self, flight: Flight, now: float) -> None:
        """It was offered now; its `ack_within` begins."""
        self._own.push(now + flight.ack_within, flight)

    def rows_due(self, now: float) -> Iterator[Flight]:
        """Flights that have waited `park_after` seconds without a row, and have not ended."""
        while self._young and (self._young[0].ended or now - self._young[0].taken_mono >= self._park_after):
            flight = self._young.popleft()
            if not flight.ended:
                yield flight

    def over(self, now: float) -> Iterator[Flight]:
        """Flights whose time for a proof is over; some of them have ended already."""
        yield from self._own.due(now)
        for line in (self._parked, self._parked_at_once, self._parked_early):
            while line and (line[0].ended or now - line[0].taken_mono >= self._confirm_timeout):
                flight = line.popleft()
                if not flight.ack_within:
                    yield flight


def _taken(flight: Flight) -> float:
    return flight.taken_mono
