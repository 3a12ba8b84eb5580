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

    def boottime(self) -> float:
        """As `monotonic`, and goes on while the machine is suspended, where the system can tell."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after at least `seconds` of monotonic time."""
        ...
