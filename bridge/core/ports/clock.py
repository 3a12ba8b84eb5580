"""The clock, a port so that tests control time."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Tells the time, and sleeps."""

    def time(self) -> float:
        """Seconds since the epoch (UTC); may step."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after at least `seconds` of monotonic time."""
        ...
