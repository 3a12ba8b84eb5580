"""What holds the bridge back: named causes, and whoever waits until there is none."""

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
        """Whether the last cause of all has ever been taken away."""

    @property
    def is_open(self) -> bool:
        """Whether nothing holds the bridge back."""
        return not self._causes

    def __contains__(self, name: str) -> bool:
        return name in self._causes

    @property
    def database_down(self) -> bool:
        """Whether one of the causes is that the database does not answer, or takes nothing."""
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
        """Set a cause; idempotent, the newest sentence counts. `database`: it is the database's."""
        self._causes[name] = why
        if database:
            self._of_database.add(name)
        self._opened.clear()

    def clear(self, name: str) -> None:
        """Take a cause away; idempotent."""
        self._causes.pop(name, None)
        if not self._causes:
            self._opened.set()
            self.was_open = True

    async def opened(self) -> None:
        """Return when nothing holds the bridge back; may be cancelled."""
        await self._opened.wait()
