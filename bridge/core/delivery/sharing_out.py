"""Share the bridge out over tenants: each has a line of its own, and they take turns (deficit round robin).

A turn is worth `quantum` of work: a message costs one, one more for each KiB of its body, and one for each user that
it turns out to be for. What a message was worth more than the turn is subtracted from the tenant's next turns. Within a
tenant the order is that of the queue; between tenants there is none.

No tenant has all of the hand: it may have so many messages in hand, and as many pushes as there is room left for
others. So whoever comes next finds room, however many came before. (Choudhury and Hahne call this dynamic thresholds.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from bridge.core.bounds import TakingBounds
from bridge.core.contract.requests import tenant_of
from bridge.core.delivery.inbox import Inbox
from bridge.core.delivery.load import Load
from bridge.core.inflight.shares import Share, Shares
from bridge.core.ports.broker import Acks, AckToken, Arrival

COST_BYTES = 1024
"""Bytes of a body that cost as much as one push to one user."""


class HasRoom(Protocol):
    """What says how much more may be in hand: `Load`."""

    @property
    def room(self) -> int:
        """Pushes."""
        ...


class SharedInbox(Inbox):
    """A line for each tenant."""

    def __init__(self, shares: Shares, load: HasRoom, window: int, bounds: TakingBounds) -> None:
        """`window`: messages of one tenant that may be taken and not answered, while it is alone."""
        super().__init__()
        self._shares = shares
        self._load = load
        self._alone = window
        self._beside_others = min(window, bounds.shared_window)
        self._window = window
        self._quantum = bounds.turn
        self._batch = bounds.shared_batch
        self._behind, self._batch_behind = bounds.behind, bounds.behind_batch
        self._arrived = 0
        """Messages that have come since the last batch."""
        self._ticks = bounds.shared_ticks
        self._shared_for = 0
        """Ticks for which it counts as shared."""
        self._ring: deque[Share] = deque()
        """Shares with something waiting; whose turn it is comes first."""
        self._taken: dict[AckToken, Share] = {}
        """The messages that were taken and are not answered."""
        self._count = 0
        shares.on_less = self.wake.set

    def add(self, batch: Sequence[Arrival]) -> None:
        """See `Inbox`."""
        of = self._shares.of
        for arrival in batch:
            share = of(tenant_of(arrival))
            if not share.waiting:
                self._ring.append(share)
            share.waiting.append(arrival)
        self._count += len(batch)
        self._arrived += len(batch)

    def next_batch(self, most: int, is_suspect: Callable[[Arrival], bool]) -> list[Arrival]:
        """See `Inbox`."""
        if len(self._shares) > 1:
            self._shared_for = self._ticks
            self._window = self._beside_others
        if self._shared_for:
            most = min(most, self._batch_behind if self._arrived >= self._behind else self._batch)
        self._arrived = 0
        batch: list[Arrival] = []
        ring, room_before = self._ring, self._load.room
        passed = 0
        """Turns since something was taken."""
        while ring and len(batch) < most and passed < len(ring):
            share = ring[0]
            before = len(batch)
            # What is in the batch will be in hand, and perhaps this tenant's, too.
            room = room_before - 2 * before
            if self._may(share, room):
                if share.credit <= 0:
                    share.credit += self._quantum
                if self._take_turn(share, batch, most, room, is_suspect):
                    return batch
            passed = 0 if len(batch) > before else passed + 1
            if len(batch) < most or share.credit <= 0 or not share.waiting:
                self._end_turn(share)
        if not batch and self._forgive(room_before):
            return self.next_batch(most, is_suspect)
        return batch

    def _may(self, share: Share, room: int) -> bool:
        return share.messages < self._window and share.flights <= room

    def _take_turn(
        self,
        share: Share,
        batch: list[Arrival],
        most: int,
        room: int,
        is_suspect: Callable[[Arrival], bool],
    ) -> bool:
        """Add to the batch what the share may take in its turn. Returns whether the batch ends here, since a suspect is
        in it or comes next."""
        waiting, taken, credit = share.waiting, self._taken, share.credit
        before = len(batch)
        end = min(most, before + self._window - share.messages, before + (room - share.flights) // 2 + 1)
        suspect = False
        while waiting and credit > 0 and len(batch) < end:
            arrival = waiting[0]
            suspect = is_suspect(arrival)
            if suspect and batch:
                break
            batch.append(waiting.popleft())
            taken[arrival.token] = share
            credit -= 1 + arrival.body_size // COST_BYTES
            if suspect:
                break
        share.credit = credit
        share.messages += len(batch) - before
        self._count -= len(batch) - before
        if suspect and not share.waiting:
            self._end_turn(share)
        return suspect

    def _end_turn(self, share: Share) -> None:
        """The share at the front has had its turn."""
        self._ring.popleft()
        if share.waiting:
            self._ring.append(share)
        else:
            share.credit = min(share.credit, 0)  # turns are not saved up

    def _forgive(self, room: int) -> bool:
        """Where everybody who may take has had more than a turn already, so many rounds pass at once that somebody's
        turn comes. False where nobody may take."""
        able = [share for share in self._ring if self._may(share, room)]
        if not able:
            return False
        rounds = -max(share.credit for share in able) // self._quantum
        for share in able:
            share.credit += rounds * self._quantum
        return True

    def put_back(self, left: Sequence[Arrival]) -> None:
        """See `Inbox`."""
        for arrival in reversed(left):
            share = self._taken.pop(arrival.token)
            share.messages -= 1
            share.credit += cost_of(arrival)
            if not share.waiting:
                self._ring.appendleft(share)
            share.waiting.appendleft(arrival)
        self._count += len(left)

    def channel_lost(self, incarnation: int) -> None:
        """See `Inbox`."""
        self.give_back(incarnation)
        for token in [t for t in self._taken if t.incarnation == incarnation]:
            self._shares.answered(self._taken.pop(token))

    def give_back(self, incarnation: int) -> list[AckToken]:
        """See `Inbox`."""
        tokens: list[AckToken] = []
        for share in list(self._ring):
            its_own = [a.token for a in share.waiting if a.token.incarnation == incarnation]
            if its_own:
                tokens += its_own
                share.waiting = deque(a for a in share.waiting if a.token.incarnation != incarnation)
                self._shares.left(share)
        self._ring = deque(share for share in self._ring if share.waiting)
        self._count -= len(tokens)
        return tokens

    def answered(self, tokens: Iterable[AckToken]) -> None:
        """These messages were acked, or given back."""
        for token in tokens:
            share = self._taken.pop(token, None)
            if share is not None:
                self._shares.answered(share)

    def tick(self) -> None:
        """See `Inbox`: there may be room again."""
        if self._shared_for:
            self._shared_for -= 1
            if not self._shared_for:
                self._window = self._alone
        if self._ring:
            self.wake.set()

    @property
    def has_next(self) -> bool:
        """See `Inbox`."""
        room = self._load.room
        return any(self._may(share, room) for share in self._ring)

    @property
    def waiting(self) -> int:
        """See `Inbox`."""
        return self._count

    @property
    def tenants(self) -> int | None:
        """See `Inbox`."""
        return len(self._ring)


class SharedAcks:
    """Fills the Acks port: tells the inbox which messages are answered."""

    def __init__(self, acks: Acks, inbox: SharedInbox) -> None:
        self._acks = acks
        self._inbox = inbox

    def ack(self, tokens: Iterable[AckToken]) -> None:
        """See the port."""
        answered = list(tokens)
        self._acks.ack(answered)
        self._inbox.answered(answered)

    def requeue(self, tokens: Iterable[AckToken]) -> None:
        """See the port."""
        answered = list(tokens)
        self._acks.requeue(answered)
        self._inbox.answered(answered)

    def widen(self, incarnations: Collection[int]) -> None:
        """See the port."""
        self._acks.widen(incarnations)


def inbox_of(
    shares: Shares | None, load: Load, acks: Acks, window: int, bounds: TakingBounds
) -> tuple[Inbox, Acks]:
    """The inbox, and the acks that it hears of. `shares` None: tenants are not told apart, and nothing is counted."""
    if shares is None:
        return Inbox(), acks
    inbox = SharedInbox(shares, load, window, bounds)
    return inbox, SharedAcks(acks, inbox)


def cost_of(arrival: Arrival) -> int:
    """What taking a message costs, besides the users that it is for."""
    return 1 + arrival.body_size // COST_BYTES
