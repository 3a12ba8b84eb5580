"""Take pushes to everyone and to topics beside all others: what goes to one user does not wait for 10,000 others.

The taker sets their messages aside as it comes to them, and they are taken here, in the order of the queue and one at
a time. No order is promised between a push to a crowd and one to somebody by name. What has the same id as a push here
follows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from bridge.core.contract.requests import Decoded
from bridge.core.delivery.load import Load
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.take import Taker
from bridge.core.delivery.targets import resolver_of
from bridge.core.model.pushes import PushRequest
from bridge.core.ports.broker import AckToken, Arrival
from bridge.core.ports.clock import Clock
from bridge.core.settlement.gate import Gate


class Crowds:
    """Gives messages that were set aside to a taker of its own, while the gate is open and little is in hand."""

    def __init__(self, *, taker: Taker, lookups: Lookups, load: Load, gate: Gate, clock: Clock) -> None:
        self._taker = taker
        self._lookups = lookups
        self._load = load
        self._gate = gate
        self._clock = clock
        self._aside: deque[tuple[Arrival, Decoded]] = deque()
        self._ids: dict[str, int] = {}
        """Of the pushes that are set aside or being taken; how often each."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._handling = asyncio.Lock()

    def accepts(self, arrival: Arrival, taking: Decoded) -> bool:
        """Set a message aside that is for a crowd, or has the id of one that is here; False for any other."""
        for request in taking.requests:
            if self._ids and request.id in self._ids:
                break
            if isinstance(request, PushRequest) and resolver_of(request).crowd:
                break
        else:
            return False
        for request in taking.requests:
            self._ids[request.id] = self._ids.get(request.id, 0) + 1
        self._aside.append((arrival, taking))
        self._idle.clear()
        self._wake.set()
        return True

    def channel_lost(self, incarnation: int) -> None:
        """See `PushIntake`."""
        self._taker.channel_lost(incarnation)
        self.give_back(incarnation)

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        """Forget the messages of this channel that are not taken yet; returns their tokens."""
        back = [one for one in self._aside if one[0].token.incarnation == incarnation]
        self._aside = deque(one for one in self._aside if one[0].token.incarnation != incarnation)
        for _, taking in back:
            self._forget(taking)
        return [arrival.token for arrival, _ in back]

    async def run(self) -> None:
        """Take messages while the gate is open, until `stop`."""
        while not self._stopping:
            await self._wake.wait()
            await self._gate.opened()
            await self._room.wait()
            async with self._handling:
                # Check again: while this waited, `stop` may have been called, or the gate shut.
                if self._aside and self._gate.is_open and not self._stopping:
                    one = self._aside.popleft()
                    await self._taker.take_read([one])
                    self._forget(one[1])
            if not self._aside:
                self._wake.clear()
            if not self._load.light:
                # One push may be ten thousand. The other half of what may be in hand is for all others.
                self._room.clear()
            await self._clock.sleep(0)

    def _forget(self, taking: Decoded) -> None:
        for request in taking.requests:
            times = self._ids[request.id] - 1
            if times:
                self._ids[request.id] = times
            else:
                del self._ids[request.id]
        if not self._ids:
            self._idle.set()

    def tick(self) -> None:
        """Called about ten times a second."""
        if self._load.light:
            self._room.set()

    async def idle(self) -> None:
        """Return when nothing is set aside or being taken."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Take no more messages; returns when none is being taken."""
        self._stopping = True
        self._lookups.stop()
        async with self._handling:
            return

    @property
    def waiting(self) -> int:
        """Messages that are set aside and not taken yet."""
        return len(self._aside)
