"""The gate: shut by named causes, open when there is none; callers can wait until it is open."""

from __future__ import annotations

import asyncio


class Gate:
    """Open while no cause is set. Pushes are taken only while it is open; sessions stay open either way."""

    def __init__(self) -> None:
        self._causes: dict[str, str] = {}
        self._of_database: set[str] = set()
        self._opened = asyncio.Event()
        self._opened.set()
        self.was_open = False
        """Whether it has ever become open because its last cause was cleared."""

    @property
    def is_open(self) -> bool:
        """Whether no cause is set."""
        return not self._causes

    def __contains__(self, name: str) -> bool:
        return name in self._causes

    @property
    def database_down(self) -> bool:
        """Whether one of the causes is that the database does not answer, or refuses every row."""
        return not self._of_database.isdisjoint(self._causes)

    @property
    def names(self) -> list[str]:
        """A word or two for each cause, fixed in the program."""
        return list(self._causes)

    @property
    def causes(self) -> list[str]:
        """One sentence for each cause, for `/readyz`, logs and people."""
        return [f"{name}: {why}" for name, why in self._causes.items()]

    def shut(self, name: str, why: str, *, database: bool = False) -> None:
        """Set a cause; idempotent, the newest sentence counts. `database`: the database is down."""
        self._causes[name] = why
        if database:
            self._of_database.add(name)
        self._opened.clear()

    def clear(self, name: str) -> None:
        """Clear a cause; idempotent."""
        self._causes.pop(name, None)
        if not self._causes:
            self._opened.set()
            self.was_open = True

    async def opened(self) -> None:
        """Return when no cause is set; may be cancelled."""
        await self._opened.wait()
