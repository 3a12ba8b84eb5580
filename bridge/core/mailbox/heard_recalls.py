"""Recalls that other nodes carry out: what is in flight here is ended, and what was just proven loses its data.

The node that was asked ends what is stored, and deletes the data of what was delivered. It does not see what has no row
yet: that is deleted here, once it has one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from bridge.core.bounds import MailboxBounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.last_values import LastValues
from bridge.core.mailbox.recalls import named_flights
from bridge.core.mailbox.withdrawing import Withdrawing
from bridge.core.model.outcomes import DELIVERED
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store, Written
from bridge.core.settlement.persistence import Persistence

JUST_FOR: Final = 10.0
"""Seconds for which a proven push is remembered after its row is committed: by then every letter with a recall
that did not see the row has come, or never will."""
JUST_MAX: Final = 10_000
"""Such pushes that are remembered; over it the oldest are forgotten."""
KEYS: Final = 1_000
"""Rows whose data one statement deletes."""

Place: TypeAlias = tuple[str, str, str]
"""Tenant, user and collapse key."""


class _Just(NamedTuple):
    """The row of a kept push is committed, and says that it was delivered."""

    key: RowKey
    collapse_key: str
    position: int
    until: float
    """Monotonic seconds."""


class HeardRecalls:
    """Carries out here what other nodes recall."""

    def __init__(
        self,
        *,
        store: Store,
        persistence: Persistence,
        inflight: InFlight,
        withdrawing: Withdrawing,
        last_values: LastValues,
        take_back: Callable[[Iterable[Row]], None],
        tell_holders: Callable[[Flight], None],
        errors: ErrorHandler,
        clock: Clock,
        bounds: MailboxBounds,
        most: int = JUST_MAX,
    ) -> None:
        """For `take_back` and `tell_holders` see `Recalls`."""
        self._most = most
        self._store = store
        self._persistence = persistence
        self._inflight = inflight
        self._withdrawing = withdrawing
        self._last_values = last_values
        self._take_back = take_back
        self._tell_holders = tell_holders
        self._errors = errors
        self._clock = clock
        self._tries = bounds.recall_tries
        self._wait = bounds.recall_wait
        self._just: deque[_Just] = deque()
        """Oldest first."""
        self._just_named: dict[PushKey | Place, dict[RowKey, _Just]] = {}
        """The same by what a recall may name them by: many recalls may come in one letter."""
        self._to_forget: dict[RowKey, None] = {}
        """What was proven before it was recalled, and has a row."""
        self._wake = asyncio.Event()

    def delivered(self, row: Row) -> None:
        """The row of a kept push is committed, and says that it was delivered."""
        until = self._clock.monotonic() + JUST_FOR
        one = _Just(row.key, row.collapse_key, row.position, until)
        self._just.append(one)
        for name in _names(one):
            self._just_named.setdefault(name, {})[one.key] = one
        if len(self._just) > self._most:
            self._forget_oldest()

    def every_second(self) -> None:
        """Called each second: forget what no letter asks for any more."""
        now = self._clock.monotonic()
        while self._just and self._just[0].until <= now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        one = self._just.popleft()
        for name in _names(one):
            named = self._just_named[name]
            if named.get(one.key) is one:  # its key may have come again since
                del named[one.key]
            if not named:
                del self._just_named[name]

    def came(self, recall: Recall, until: int) -> None:
        """Another node recalls what was taken up to this position: end what is in flight here, and tell the sessions
        here. Idempotent."""
        now = self._clock.time()
        if recall.push_id:
            self._last_values.recalled(PushKey(recall.tenant, recall.push_id))
        keys: dict[RowKey, None] = {}
        for flight in named_flights(self._inflight, recall):
            if flight.position <= until:
                keys[flight.key] = None
                self._tell_holders(flight)
                flight.recalled(now)
                if flight.outcome in DELIVERED and flight.kept is not None:
                    # Each for itself: a row that the database does not take holds up no other.
                    settled = self._inflight.until_settled(flight)
                    settled.add_done_callback(partial(self._has_a_row, flight.key))
        for one in self._just_named.get(_name(recall), {}).values():
            if one.position <= until:
                keys[one.key] = None
                self._forget_soon(one.key)
        self._withdrawing.withdraw([(key.user, key.push_id) for key in keys], recall.tenant)

    def carried_out(self, flight: Flight) -> None:
        """The row of a push in flight says that another node has recalled it, whose letter has not come yet. When it
        comes, nobody here knows the push any more."""
        self._tell_holders(flight)
        self._withdrawing.withdraw([(flight.key.user, flight.key.push_id)], flight.key.tenant)

    def _has_a_row(self, key: RowKey, _settled: asyncio.Future[None]) -> None:
        self._forget_soon(key)

    def _forget_soon(self, key: RowKey) -> None:
        self._to_forget[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Delete the data of what was proven before it was recalled, once it has a row; until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            to_forget, self._to_forget = self._to_forget, {}
            await self._delete(list(to_forget))

    async def _delete(self, keys: Sequence[RowKey]) -> None:
        for _ in range(self._tries):
            held: list[RowKey] = []
            for at in range(0, len(keys), KEYS):
                some = keys[at : at + KEYS]
                written = await self._persistence.in_parts(some, self._store.forget_data, self._not_deleted)
                self._take_back(w.row for w in written if w.applied)
                held += [w.row.key for w in written if w.applied is None]
            if not held:
                return
            # Somebody else has these rows locked.
            keys = held
            await self._clock.sleep(self._wait)
        error = StatementFailed(f"{len(keys)} rows are locked by another transaction")
        self._errors.handle(error, "mailbox.recall", {"rows": len(keys)})

    async def _not_deleted(self, key: RowKey, error: StatementFailed) -> Sequence[Written]:
        self._errors.handle(error, "mailbox.recall", {"push_id": key.push_id})
        return ()


def _name(recall: Recall) -> PushKey | Place:
    if recall.push_id:
        return PushKey(recall.tenant, recall.push_id)
    return recall.tenant, recall.user, recall.collapse_key


def _names(one: _Just) -> Sequence[PushKey | Place]:
    """What a recall may name it by."""
    key = one.key
    of_push = PushKey(key.tenant, key.push_id)
    return (of_push, (key.tenant, key.user, one.collapse_key)) if one.collapse_key else (of_push,)
