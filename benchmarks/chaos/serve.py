"""A `bridge serve` that kills itself at a named point, or whose clock steps: for chaos runs only.

CHAOS_POINT names the point, and CHAOS_COUNT the number of the pass; the kill is SIGKILL, so nothing is flushed
or unwound. CHAOS_CLOCK names a file with the seconds that the clock is off; it is read again at SIGUSR1.
CHAOS_POOL is its number of connections to the database. CHAOS_KILLER names a user: each push to them kills it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.publish import ReceiptPublisher
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.pool import Connections
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.websocket.connection import WebSocketConnection
from bridge.app import build as app
from bridge.core.delivery import take
from bridge.core.delivery.targets import RESOLVERS, Resolver
from bridge.core.model.pushes import PushRequest, Target, ToUser
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session

FLUSH: Final = 0.002
"""Seconds in which the event loop writes what it holds before the kill."""


def die() -> None:
    """End as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_soon() -> None:
    """Let the loop write what it holds, then die."""
    asyncio.get_running_loop().call_later(FLUSH, die)


class Point:
    """A place in an adapter: before or after one of its methods."""

    def __init__(
        self,
        owner: type,
        method: str,
        *,
        after: bool,
        when: Callable[..., bool] | None = None,
        result: bool = False,
    ) -> None:
        self._owner = owner
        self._method = method
        self._after = after
        self._when = when or (lambda *_: True)
        """Whether a call with these arguments counts."""
        self._result = result
        """Whether only a call that returns something counts."""

    def arm(self, count: int) -> None:
        """Die at the `count`-th call that counts."""
        original = getattr(self._owner, self._method)
        left = count

        def counts(arguments: tuple[Any, ...]) -> bool:
            nonlocal left
            if self._when(*arguments):
                left -= 1
            return left <= 0

        if asyncio.iscoroutinefunction(original):

            @functools.wraps(original)
            async def patched(*arguments: Any) -> Any:
                now = not self._result and counts(arguments[1:])
                if now and not self._after:
                    die()
                result = await original(*arguments)
                if now or (self._result and result and counts(arguments[1:])):
                    die()
                return result
        else:

            @functools.wraps(original)
            def patched(*arguments: Any) -> Any:
                now = counts(arguments[1:])
                if now and not self._after:
                    die()
                result = original(*arguments)
                if now:
                    die_soon()
                return result

        setattr(self._owner, self._method, patched)


def _any(things: Any, *_: Any) -> bool:
    return bool(things)


POINTS: Final = {
    "before send": Point(WebSocketConnection, "write", after=False, when=_any),
    "after send": Point(WebSocketConnection, "write", after=True, when=_any),
    "before commit": Point(PostgresStore, "record", after=False, when=_any),
    "after commit": Point(PostgresStore, "record", after=True, when=_any),
    "before receipt": Point(ReceiptPublisher, "send", after=False, when=_any),
    "after receipt": Point(ReceiptPublisher, "send", after=True, when=_any),
    "before debt is noted": Point(PostgresStore, "owe", after=False, when=_any),
    "before debt is cleared": Point(PostgresStore, "settle", after=False, when=_any),
    "before burial": Point(ReceiptPublisher, "bury", after=False, when=_any),
    "after burial": Point(ReceiptPublisher, "bury", after=True, when=_any),
    "before ack": Point(Consumer, "ack", after=False, when=_any),
    "after ack": Point(Consumer, "ack", after=True, when=_any),
    "after dead rows end": Point(PostgresLease, "end_dead", after=True),
    "before a page of a mailbox": Point(PostgresStore, "mailbox", after=False, when=_any),
    "after a page of a mailbox": Point(PostgresStore, "mailbox", after=True, when=_any),
    "after a resume is found": Point(PostgresStore, "resume_points", after=True, when=_any),
    "before others are superseded": Point(PostgresStore, "supersede", after=False, when=_any),
    "after others are superseded": Point(PostgresStore, "supersede", after=True, result=True),
    "after an expiry": Point(PostgresStore, "expire", after=True, result=True),
    "after a full mailbox is cut": Point(PostgresStore, "trim", after=True, result=True),
    "before a recall": Point(PostgresStore, "recall", after=False),
    "after a recall": Point(PostgresStore, "recall", after=True),
    "after a revocation": Point(PostgresRevocations, "revoke", after=True),
}


class SteppingClock(app.SystemClock):
    """The machine's clock, off by the seconds in a file."""

    offset = 0.0

    def time(self) -> float:
        """Seconds since the epoch, plus the offset."""
        return time.time() + SteppingClock.offset


def _step(file: Path) -> None:
    SteppingClock.offset = float(file.read_text() or 0)


def _limit_pool(most: int) -> None:
    original = Connections.__init__

    def limited(self: Connections, dsn: str, application_name: str, size: int = most) -> None:
        original(self, dsn, application_name, min(size, most))

    Connections.__init__ = limited  # type: ignore[method-assign]


class _Deadly:
    """A resolver that dies when it is asked for the sessions of one user, and is the other one otherwise."""

    def __init__(self, resolver: Resolver, killer: str) -> None:
        self._resolver = resolver
        self._killer = killer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolver, name)

    def sessions(self, hub: Hub, request: PushRequest, user: str) -> Sequence[Session]:
        if user == self._killer:
            die()
        return self._resolver.sessions(hub, request, user)


def _die_of_pushes_to(killer: str) -> None:
    # Replaced, not patched: the methods of compiled objects can't be.
    resolvers = cast(dict[type[Target], Any], RESOLVERS)
    resolvers[ToUser] = take._TO_USER = _Deadly(RESOLVERS[ToUser], killer)


def main() -> int:
    """Arm what the environment asks for, then run `bridge serve`."""
    point = os.environ.pop("CHAOS_POINT", "")
    if point:
        POINTS[point].arm(int(os.environ.pop("CHAOS_COUNT", "1")))
    clock = os.environ.pop("CHAOS_CLOCK", "")
    if clock:
        signal.signal(signal.SIGUSR1, lambda *_: _step(Path(clock)))
        _step(Path(clock))
        app.SystemClock = SteppingClock  # type: ignore[misc]
    if pool := int(os.environ.pop("CHAOS_POOL", "0")):
        _limit_pool(pool)
    if killer := os.environ.pop("CHAOS_KILLER", ""):
        _die_of_pushes_to(killer)
    from bridge.cli import main as bridge

    return bridge(["serve"])


if __name__ == "__main__":
    sys.exit(main())
