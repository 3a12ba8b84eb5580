"""What the core asks of the table of last values: one push for each topic and event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bridge.core.model.pushes import PushKey
from bridge.core.model.retained import LastValue, LastValuesAsk, LastValuesPage


class Retained(Protocol):
    """The last values. All methods raise StoreUnavailable, and its subclass StatementFailed, as those of `Store`."""

    async def keep(self, value: LastValue) -> None:
        """Keep it in place of one with a lower position for its topic and event. Idempotent."""
        ...

    async def find(self, asks: Sequence[LastValuesAsk]) -> Sequence[LastValuesPage]:
        """A page for each ask, in the order of the asks: none whose time is over by the database's clock. A page is
        bounded in values and in bytes, and has one value at least if there is any."""
        ...

    async def forget(self, push: PushKey) -> bool:
        """A recall names this push: it is no last value any more. Returns whether it was one. Idempotent."""
        ...
