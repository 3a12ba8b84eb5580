"""Withdraw pushes that are not proven, and tell the sessions that may have them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from itertools import islice
from typing import Final, NamedTuple

from bridge.core.bounds import Bounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import Effect, Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.last_values import LastValues
from bridge.core.mailbox.withdrawing import Withdrawing
from bridge.core.model.outcomes import DELIVERED, Outcome
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import RecallPlace, Store
from bridge.core.row_limit import RowLimit
from bridge.core.sessions.session import Session

SLICE: Final = 500
"""Pushes in flight that are looked at, or taken off screens, before others have a turn of the event loop."""


class Recalled(NamedTuple):
    """What a recall did."""

    ended: int
    """Pushes that it ended, counted once per user."""
    sessions: int
    """Sessions that were told to withdraw a push."""


class _InTheAir(NamedTuple):
    """What was in flight when a recall came."""

    pushes: dict[tuple[str, str], None]
    """Users and push ids."""
    ended: set[RowKey]
    """Those that it ended."""
    uncommitted: list[asyncio.Future[None]]
    """Done when the rows of those are committed,"""
    proven: list[asyncio.Future[None]]
    """and the rows of those that were proven before."""


class Recalls:
    """Carries out recalls: pushes in flight first, then what is stored."""

    def __init__(
        self,
        *,
        store: Store,
        inflight: InFlight,
        withdrawing: Withdrawing,
        last_values: LastValues,
        tell_others: Callable[[Recall, int], None],
        take_back: Callable[[Iterable[Row]], None],
        tell_holders: Callable[[Flight], None],
        scheduled: Callable[[Recall], Awaitable[int]],
        clock: Clock,
        bounds: Bounds,
    ) -> None:
        """`tell_others` has other nodes carry out a recall, too, of what was taken up to a position (`HeardRecalls`).
        `take_back` has them tell the user's sessions of a push that was delivered: nobody there knows of it any more.
        `tell_holders` has those nodes tell them that were forwarded a push in flight.
        `scheduled` withdraws what waits for its time, and returns how many pushes that were."""
        self._tell_others = tell_others
        self._take_back = take_back
        self._tell_holders = tell_holders
        self._scheduled = scheduled
        self._store = store
        self._inflight = inflight
        self._withdrawing = withdrawing
        self._last_values = last_values
        self._clock = clock
        self._bounds = bounds.statements
        self._tries = bounds.mailbox.recall_tries
        self._wait = bounds.mailbox.recall_wait

    async def recall(self, recall: Recall) -> Recalled:
        """Withdraw pushes that are not proven, and tell sessions that may have them. Idempotent. Other
        nodes are told, and do not say what they did.

        Returns when all of it is committed: a push in flight without a row would come again with its message. Many rows
        are ended step by step, and the sessions are told after each step. Raises StoreUnavailable: call it again then.
        """
        if recall.push_id:
            await self._last_values.forget(PushKey(recall.tenant, recall.push_id))
        # First: what is released meanwhile, or is being sent to a crowd, is in flight when those are looked at.
        withdrawn = await self._scheduled(recall)
        await self._inflight.until_sent(recall.push_id)
        self._tell_others(recall, self._inflight.take_position())
        flying, ended, uncommitted, proven = await self._in_the_air(recall)
        told: set[Session] = set()
        place: RecallPlace | None = RecallPlace()
        limit = RowLimit(self._bounds.sweep_rows, self._bounds.parts)
        count = withdrawn + len(ended)
        held = tries = 0
        while place is not None:
            try:
                page = await self._store.recall(recall, place, limit.rows)
            except StatementFailed:
                if not limit.shrink():
                    raise
                continue
            limit.grow()
            self._inflight.ended_in_store([w.row for w in page.written if w.applied])
            count += sum(1 for w in page.written if w.applied and w.row.key not in ended)
            of_page = dict.fromkeys((w.row.key.user, w.row.key.push_id) for w in page.written)
            for push in of_page:
                flying.pop(push, None)
            told |= self._withdrawing.withdraw(of_page, recall.tenant)
            self._take_back(w.row for w in page.written if w.row.outcome in DELIVERED)
            held += sum(1 for w in page.written if w.applied is None)
            place = page.next
            await self._clock.sleep(0)
            if place is None and proven:
                # Their rows are being written with the data, which is deleted there.
                await asyncio.wait(proven)
                proven.clear()
                held, place = 0, RecallPlace()
            elif place is None and held:
                # Begin again until no other transaction has any of them locked.
                tries += 1
                if tries == self._tries:
                    raise StatementFailed(f"{held} rows are locked by another transaction")
                await self._clock.sleep(self._wait)
                held, place = 0, RecallPlace()
        # Sessions are told after the pushes have ended, so that no push is sent after its withdrawal.
        rest = iter(flying)
        while some := tuple(islice(rest, SLICE)):
            told |= self._withdrawing.withdraw(some, recall.tenant)
            await self._clock.sleep(0)
        if uncommitted:
            await asyncio.wait(uncommitted)
        return Recalled(count, len(told))

    async def _in_the_air(self, recall: Recall) -> _InTheAir:
        """End what is in flight, with a turn of the event loop for others after each slice."""
        now = self._clock.time()
        found = _InTheAir({}, set(), [], [])
        for number, flight in enumerate(tuple(named_flights(self._inflight, recall)), 1):
            if number % SLICE == 0:
                await self._clock.sleep(0)
            found.pushes[flight.key.user, flight.key.push_id] = None
            if self._inflight.get(flight.key) is not flight:
                continue  # its row was committed meanwhile, or another node has it
            self._tell_holders(flight)
            if flight.parked and flight.kept is not None:
                continue  # the store ends its row
            if flight.recalled(now) is Effect.ENDED:
                found.ended.add(flight.key)
            if flight.outcome is Outcome.RECALLED:
                found.uncommitted.append(self._inflight.until_settled(flight))
            elif flight.outcome in DELIVERED and flight.kept is not None:
                found.proven.append(self._inflight.until_settled(flight))
        return found


def named_flights(inflight: InFlight, recall: Recall) -> Collection[Flight]:
    """The flights of the pushes that a recall names."""
    if recall.push_id:
        return [f for f in inflight.of_push(recall.push_id) if f.key.tenant == recall.tenant]
    return inflight.of_collapse_key(recall.tenant, recall.user, recall.collapse_key)
