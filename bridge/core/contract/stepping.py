"""Work in steps, so that the event loop has its turn in between.

A function that returns `Steps` is a generator: it yields None between pieces of work, and returns the result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final, TypeAlias, TypeVar

from bridge.core.ports.clock import Clock

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""Work whose result is a T. A step takes some milliseconds at most, whatever the input is."""

AT_ONCE: Final = 64 * 1024
"""Bytes of text for one step, where the work is a few tens of nanoseconds for each byte."""
PARTS_AT_ONCE: Final = 16 * 1024
"""Objects that one step may make in C: about a tenth of a microsecond each."""
TURN: Final = 0.005
"""Seconds of work before others have their turn."""


def finish(steps: Steps[T]) -> T:
    """Run all steps without a break."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_turns(steps: Steps[T], clock: Clock) -> T:
    """Run all steps, and let others have their turn whenever `TURN` is over."""
    until = clock.monotonic() + TURN
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if clock.monotonic() >= until:
            await clock.sleep(0)
            until = clock.monotonic() + TURN
