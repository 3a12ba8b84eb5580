"""Take pushes to everyone and to topics beside all others: what goes to one user does not wait for 10,000 others.

The taker sets their messages aside as it comes to them, and they are taken here, in the order of the queue and one at
a time. No order is promised between a push to a crowd and one to somebody by name. What has the id of a push that is
here follows it. A message that may have killed a process is taken alone, by the other taker: see `PushIntake`.
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
from bridge.core.model.pushes import PushRequest, Rejected
from bridge.core.ports.broker import AckToken, Arrival
from bridge.core.ports.clock import Clock
from bridge.core.settlement.gate import Gate


class Crowds:
    """Gives messages that were set aside to a taker of its own, while the gate is open and little is in hand."""

    def __init__(
        self, *, taker: Taker, lookups: Lookups, load: Load, gate: Gate, clock: Clock, turn: float
    ) -> None:
        """`turn`: seconds after which a push is taken though more than half of what may be in hand is."""
        self._turn = turn
        self._taker = taker
        self._lookups = lookups
        self._load = load
        self._gate = gate
        self._clock = clock
        self._aside: deque[tuple[Arrival, Decoded]] = deque()
        self._ids: dict[tuple[str, str], int] = {}
        """Tenants and ids of the pushes that are set aside or being taken; how often each."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._full_since = 0.0
        """Monotonic seconds since when too much is in hand."""
        self._stopping = False
        self._handling = asyncio.Lock()

    def accepts(self, arrival: Arrival, taking: Decoded) -> bool:
        """Set a message aside that is for a crowd, or has the id of one that is here; False for any other."""
        for request in taking.requests:
            if self.has(request):
                break
            if isinstance(request, PushRequest) and resolver_of(request).crowd:
                break
        else:
            return False
        for request in taking.requests:
            key = (request.tenant, request.id)
            self._ids[key] = self._ids.get(key, 0) + 1
        self._aside.append((arrival, taking))
        self._idle.clear()
        self._wake.set()
        return True

    def has(self, request: PushRequest | Rejected) -> bool:
        """Whether a push with its id is set aside or being taken."""
        return bool(self._ids) and (request.tenant, request.id) in self._ids

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
                self._full_since = self._clock.monotonic()
            await self._clock.sleep(0)

    def _forget(self, taking: Decoded) -> None:
        for request in taking.requests:
            key = (request.tenant, request.id)
            times = self._ids[key] - 1
            if times:
                self._ids[key] = times
            else:
                del self._ids[key]
        if not self._ids:
            self._idle.set()

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds."""
        # Whatever goes on beside it, it has its turn once a second.
        if self._load.light or (not self._load.full and now - self._full_since >= self._turn):
            self._room.set()

    async def idle(self) -> None:
        """Return when nothing is set aside or being taken, or will be."""
        await self._idle.wait()

    async def stop(self) -> None:
        """Take no more messages; returns when none is being taken."""
        self._stopping = True
        self._lookups.stop()
        self._idle.set()
        async with self._handling:
            return

    @property
    def busy(self) -> bool:
        """Whether something is set aside or being taken."""
        return bool(self._ids)

    @property
    def waiting(self) -> int:
        """Messages that are set aside and not taken yet."""
        return len(self._aside)
