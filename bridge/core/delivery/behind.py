"""Pushes that wait for the rows of older ones of their user: who has a session elsewhere reads those first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.ports.clock import Clock

AT_ONCE: Final = 100
"""Pushes that go on before the event loop gets a turn: one row may be all that tens of thousands wait for."""


class _Waiting(NamedTuple):
    flight: Flight
    boots: Sequence[str]
    """The processes that have its user."""
    route: Callable[[], None]


class Behind:
    """Has them routed in their order, as rows are written."""

    def __init__(self, *, inflight: InFlight, flush: Callable[[], None], clock: Clock) -> None:
        """`flush` is called when some were routed."""
        self._inflight = inflight
        self._flush = flush
        self._clock = clock
        self._lines: dict[str, deque[_Waiting]] = {}
        """By user."""
        self._written: dict[str, None] = {}
        """Users of such pushes who have got rows since that was last looked at, or were left in the middle."""
        self._rows = asyncio.Event()

    def __len__(self) -> int:
        """How many users have some."""
        return len(self._lines)

    def __contains__(self, user: str) -> bool:
        return user in self._lines

    def add(self, flight: Flight, boots: Sequence[str], route: Callable[[], None]) -> None:
        """This one waits; `route` routes it to these processes."""
        self._lines.setdefault(flight.key.user, deque()).append(_Waiting(flight, boots, route))

    def row_written(self, user: str) -> None:
        """A row of this user was committed: what waited for it goes on once all rows of that commit are known."""
        if user in self._lines:
            self._written[user] = None
            self._rows.set()

    async def run(self) -> None:
        """Go on as rows are written, until cancelled."""
        while True:
            await self._rows.wait()
            self._rows.clear()
            users, self._written = self._written, {}
            routed = 0
            for user in users:
                routed += self._go_on(user)
                if routed >= AT_ONCE:
                    routed = 0
                    await self._clock.sleep(0)

    def _go_on(self, user: str) -> int:
        """Returns how many were routed."""
        line = self._lines.get(user, deque())
        routed = 0
        while line:
            flight, boots, route = line[0]
            if self._inflight.older_lacks(flight, boots):
                # Some that went on have come back: their time for a row is not yet over, and these wait.
                self._inflight.write_unwritten(user, flight.position - 1)
                break
            if routed == AT_ONCE:
                self.row_written(user)
                break
            line.popleft()
            route()
            routed += 1
        if not line:
            self._lines.pop(user, None)
        if routed:
            self._flush()
        return routed
