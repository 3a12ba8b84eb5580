"""End stored rows that newer pushes with the same collapse key have replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from bridge.core.bounds import SettlementBounds
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Collapse, Store, Superseded
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist

UNTRIED = frozenset(
    (Reason.QUEUE_EXPIRATION, Reason.MAX_AGE, Reason.POISON, Reason.DELIVERY_LIMIT, Reason.GIVEN_UP)
)
"""Why a push was dead on arrival."""

_Place: TypeAlias = tuple[str, str, str]
"""Tenant, user and collapse key."""


class Replacer:
    """Ends older pushes after the row of the newer one is committed, and before its message is acked."""

    def __init__(
        self,
        store: Store,
        persistence: Persistence,
        errors: ErrorHandler,
        clock: Clock,
        worklist: Worklist,
        inflight: InFlight,
        bounds: SettlementBounds,
    ) -> None:
        self._store = store
        self._persistence = persistence
        self._errors = errors
        self._clock = clock
        self._worklist = worklist
        self._inflight = inflight
        self._rows = bounds.replace_rows
        self._tries = bounds.replace_tries
        self._wait = bounds.replace_wait
        self._unreplaced: dict[_Place, Collapse] = {}
        """By place, the newest push whose older ones could not be ended."""

    async def supersede(self, rows: Sequence[Row]) -> None:
        """End what these pushes replace: after their own rows are committed, and before their messages are acked.

        Rows of repeats are among them: a process may have died between the two. A push that was dead on arrival
        replaces nothing: it comes late, after pushes that are newer than it.
        """
        newer = [
            Collapse(row.key.tenant, row.key.user, row.collapse_key, row.position)
            for row in rows
            if row.collapse_key and not _untried(row)
        ]
        highest: dict[_Place, Collapse] = {}
        for one in newer:
            place = _place(one)
            later = self._unreplaced.get(place)
            if later is not None:
                # Older rows of this place could not be ended before: `run` tries them again, this batch does not wait.
                self._unreplaced[place] = max(later, one, key=lambda c: c.position)
            elif place not in highest or highest[place].position < one.position:
                highest[place] = one
        every = list(highest.values())
        for at in range(0, len(every), self._rows):
            await self._replace(every[at : at + self._rows])

    async def _replace(self, newer: Sequence[Collapse]) -> None:
        """End what is older. Rows that another transaction has locked, or that fail, are left to `run`."""

        async def some(part: Sequence[Collapse]) -> Sequence[Superseded]:
            return [await self._store.supersede(part, self._rows)]

        async def failed(one: Collapse, error: StatementFailed) -> Sequence[Superseded]:
            self._errors.handle(error, "store.supersede", {"collapse_key": one.collapse_key})
            self._unreplaced[_place(one)] = one
            return ()

        for attempt in range(self._tries):
            if attempt:
                # Mostly this process itself has it locked, for a moment.
                await self._clock.sleep(self._wait)
            more = True
            while newer and more:
                steps = await self._persistence.in_parts(newer, some, failed)
                ended = [row for step in steps for row in step.ended]
                held = {
                    (row.key.tenant, row.key.user, row.collapse_key) for step in steps for row in step.held
                }
                if ended:
                    self._inflight.ended_in_store(ended)
                newer = [one for one in newer if _place(one) not in self._unreplaced]
                more = bool(ended)
            newer = [one for one in newer if _place(one) in held] if newer else []
            if not newer:
                return
        self._unreplaced.update((_place(one), one) for one in newer)

    async def run(self) -> None:
        """Try again, each second, to end what newer pushes have replaced."""
        while True:
            await self._worklist.replace_wake.wait()
            self._worklist.replace_wake.clear()
            later, self._unreplaced = self._unreplaced, {}
            if later:
                await self._replace(list(later.values()))


def _place(one: Collapse) -> _Place:
    return one.tenant, one.user, one.collapse_key


def _untried(row: Row) -> bool:
    """Whether this push was dead on arrival."""
    over = row.outcome in (Outcome.EXPIRED, Outcome.RECALLED) and row.sessions == 0
    return over or row.reason in UNTRIED
