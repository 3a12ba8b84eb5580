"""The Retained port in memory: for tests of the core. Without Postgres a bridge keeps nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.adapters.memory.store import MemoryStore
from bridge.core.model.outcomes import Outcome
from bridge.core.model.pushes import PushKey, ToTopic
from bridge.core.model.retained import FoundValue, LastValue, LastValuesAsk, LastValuesPage
from bridge.core.model.rows import RowKey
from bridge.core.ports.clock import Clock

PAGE = 3
"""Values on one page: few, so that tests see several."""


class MemoryRetained:
    """Last values in a dictionary, which several nodes may share. `store` has the rows."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._values: dict[tuple[str, str], LastValue] = {}
        """By topic and event."""

    async def keep(self, value: LastValue) -> None:
        """See the port."""
        assert isinstance(value.request.target, ToTopic)
        place = value.request.target.topic, value.request.event
        before = self._values.get(place)
        if before is None or before.position < value.position:
            self._values[place] = value

    async def find(self, asks: Sequence[LastValuesAsk]) -> Sequence[LastValuesPage]:
        """See the port."""
        return [self._page(ask) for ask in asks]

    def _page(self, ask: LastValuesAsk) -> LastValuesPage:
        now = self._clock.time()
        found = sorted(
            (
                value
                for (topic, _), value in self._values.items()
                if topic == ask.topic and value.position > ask.after and value.until > now
            ),
            key=lambda value: value.position,
        )
        return LastValuesPage([self._found(value, ask.user) for value in found[:PAGE]], len(found) > PAGE)

    def _found(self, value: LastValue, user: str) -> FoundValue:
        row = self._store.rows.get(RowKey(value.request.tenant, value.request.id, user))
        taken_back = row is not None and row.first_device and row.outcome is Outcome.ACKED
        return FoundValue(value, row is not None, taken_back)

    async def forget(self, push: PushKey) -> bool:
        """See the port."""
        named = [place for place, value in self._values.items() if value.request.key == push]
        for place in named:
            del self._values[place]
        return bool(named)
