"""Messages from the broker wait here until they are taken, in the order of `inbox`. The way of a push begins here.

    arrived ──> taken ──> routed ──> handed to sockets ──> proven ──> settled (row, receipt, ack)
                  │          │              │                 │
               rejected   offline        dropped      pending, then unknown
                             └──────────────┴─────────────────┴──> with a ttl: stored, see `bridge.core.mailbox`

Read `intake`, `take`, `take_request`, `routing`, `dispatch`, `proof` in this order; then `bridge.core.inflight`, which
owns the push all that time, and `bridge.core.settlement`. The other files help them: `inbox` and `sharing_out` (what
waits), `crowds` and `fan_out` (pushes to many), `reading` (messages), `known`, `lookups`, `remembered`, `repeats` and
`elsewhere` (pushes that came before), `takeover` (before a channel's first push), `targets`, `given_up`, `grace` (after
a start), `presence`, `liveness` (sessions), `turns`, `load` (bounds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.core.delivery.crowds import Crowds
from bridge.core.delivery.elsewhere import Elsewhere
from bridge.core.delivery.inbox import Inbox
from bridge.core.delivery.load import Load
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.remembered import Recollection
from bridge.core.delivery.take import Taker
from bridge.core.delivery.takeover import Takeover
from bridge.core.ports.broker import AckToken, Arrival, Source
from bridge.core.ports.clock import Clock
from bridge.core.settlement.gate import Gate


class PushIntake:
    """Fills the Intake port for pushes: gives messages to the taker while the gate is open."""

    def __init__(
        self,
        *,
        inbox: Inbox,
        taker: Taker,
        crowds: Crowds,
        elsewhere: Elsewhere,
        takeover: Takeover,
        lookups: Lookups,
        recollection: Recollection,
        load: Load,
        clock: Clock,
        gate: Gate,
        batch: int,
    ) -> None:
        """`batch`: messages taken together, at most."""
        self._taker = taker
        self._crowds = crowds
        self._elsewhere = elsewhere
        self._takeover = takeover
        self._lookups = lookups
        self._recollection = recollection
        self._load = load
        self._clock = clock
        self._gate = gate
        self._batch = batch
        self._inbox = inbox
        self._wake = inbox.wake
        self._room = asyncio.Event()
        self._room.set()
        self._alone = False
        """Whether the next message is a suspect, which waits until nothing is taken beside it."""
        self._stopping = False
        self._handling = asyncio.Lock()

    def arrived(self, batch: Sequence[Arrival]) -> None:
        """Queue the messages that one read of the broker's socket brought, in the order of the queue."""
        # Messages of `push.fallen` come to every bridge: only requests show that no other bridge takes now.
        for arrival in batch:
            if arrival.source is Source.REQUESTS:
                if self._recollection.began(arrival.token.incarnation):
                    self._takeover.due = True
                break
        self._inbox.add(batch)
        self._wake.set()

    def channel_lost(self, incarnation: int) -> None:
        """Messages of this channel will come again: forget those that are not taken yet."""
        self._taker.channel_lost(incarnation)
        self._crowds.channel_lost(incarnation)
        self._recollection.doubt(incarnation)
        self._inbox.channel_lost(incarnation)

    def give_back(self, incarnation: int) -> Sequence[AckToken]:
        """See the port."""
        aside = self._crowds.give_back(incarnation)
        self._inbox.answered(aside)
        return [*aside, *self._inbox.give_back(incarnation)]

    async def run(self) -> None:
        """Take messages while the gate is open, until `stop`."""
        while not self._stopping:
            await self._wake.wait()
            await self._gate.opened()
            await self._room.wait()
            if self._alone:
                await self._crowds.idle()
                self._alone = False
            async with self._handling:
                # Check again: while this waited, `stop` may have been called, or the gate shut.
                if self._gate.is_open and not self._stopping:
                    await self._take_some()
            if not self._inbox.has_next:
                self._wake.clear()
            if self._load.full:
                self._room.clear()  # until `tick` finds that half of it is gone
            # Between two batches, pongs and writable sockets get their turn.
            await self._clock.sleep(0)

    async def _take_some(self) -> None:
        """Take a batch, and look again for what may be elsewhere."""
        if self._takeover.due and not await self._takeover.begin():
            return
        batch = self._inbox.next_batch(self._batch, self._taker.is_suspect)
        self._alone = bool(batch) and self._taker.is_suspect(batch[0]) and self._crowds.busy
        if self._alone:
            self._inbox.put_back(batch)
        elif batch:
            taken = await self._taker.take(batch)
            self._inbox.put_back([a for a in batch[taken:] if not self._taker.is_lost(a)])
        await self._elsewhere.look_again()

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds."""
        if self._load.light:
            self._room.set()
        self._crowds.tick(now)
        self._inbox.tick()
        if self._elsewhere.due(now):
            self._wake.set()

    async def stop(self) -> None:
        """Take no more messages; returns when none is being taken. The rest is not acked and goes back to the queue."""
        self._stopping = True
        self._lookups.stop()
        await self._crowds.stop()
        async with self._handling:
            self._elsewhere.drop()

    @property
    def waiting(self) -> int:
        """Messages that arrived and are not taken yet."""
        return self._inbox.waiting + self._crowds.waiting

    @property
    def tenants_waiting(self) -> int | None:
        """How many tenants have messages in the inbox; None where tenants are not told apart."""
        return self._inbox.tenants
