"""Opening requests wait in line, so that a storm of them does not hold up the sessions that are open.

The loop reads all sockets that have something before it does anything else: tens of thousands, if need be. To decide on
a handshake takes a good deal longer than to read it, so that is done in slices, and everybody else has a turn between
two of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

SLICE: Final = 0.005
"""Seconds of handshakes, about, after which the loop gets a turn."""

T = TypeVar("T")


class Line(Generic[T]):
    """What came of requests whose turn has not come, in the order in which they began to wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, serve: Callable[[T, bytes], None]) -> None:
        """`serve` is called with one of them and its bytes."""
        self._loop = loop
        self._serve = serve
        self._waiting: dict[T, bytes] = {}
        self._called = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, one: T, data: bytes) -> None:
        """More of a request has come."""
        self._waiting[one] = self._waiting.get(one, b"") + data
        self._call()

    def now(self, one: T) -> None:
        """Serve this one at once, if it waits."""
        data = self._waiting.pop(one, None)
        if data is not None:
            self._serve(one, data)

    def leave(self, one: T) -> None:
        """It is gone; idempotent."""
        self._waiting.pop(one, None)

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self._loop.call_soon(self._some)

    def _some(self) -> None:
        self._called = False
        until = time.monotonic() + SLICE
        try:
            while self._waiting:
                self.now(next(iter(self._waiting)))
                if time.monotonic() >= until:
                    break
        finally:
            # Also where serving one has failed, which the loop reports.
            if self._waiting:
                self._call()
