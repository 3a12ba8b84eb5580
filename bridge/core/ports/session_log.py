"""The port to the ledger: the table of sessions, which all nodes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bridge.core.model.ledger import Closed, Entries, Noted, Opened


class SessionLog(Protocol):
    """The ledger. All methods are safe to run again, and raise StoreUnavailable as those of the store do."""

    async def note(self, entries: Entries) -> Noted:
        """Commit these entries, all or none; an entry that is there already changes nothing. Without entries this only
        asks whether somebody wants sessions closed.

        Raises StoreUnavailable also where another process has this node's name: no session of this one counts then.
        """
        ...

    async def end_dead(self, limit: int) -> Sequence[Closed]:
        """Close at most `limit` sessions of processes that are dead, as `Lease` judges; returns those."""
        ...


class SessionEvents(Protocol):
    """Tells others that sessions open and close."""

    async def announce(self, events: Sequence[Opened | Closed]) -> Sequence[Opened | Closed]:
        """Publish these; returns those that the broker has not confirmed. Never raises."""
        ...
