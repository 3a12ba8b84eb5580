"""Ask the connect hook again about open sessions before their time is over.

| the hook says                          | what happens                                                       |
|----------------------------------------|--------------------------------------------------------------------|
| 200, the same user                     | the session goes on until the new time                             |
| 200, another user; 401; 403            | it is closed at once with 4401 `token_refused`                     |
| anything else, or nothing              | it is asked again, ever less often, until the session's time is    |
|                                        | over: then the session is closed with 4401 `token_expired`         |

The client takes no part in it, so it is the same in bare mode. A session that has got a token meanwhile goes by that.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from typing import Final

from bridge.core.delivery.presence import Presence
from bridge.core.model.sessions import Claims, CloseReason, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.sessions.connecting import Connecting
from bridge.core.sessions.session import Session

LOOK_EVERY: Final = 0.1
"""Seconds between two looks for sessions whose turn has come."""
FIRST_RETRY: Final = 1.0
"""Seconds until a session's hook is asked again after a failure, cut by up to a half at random; then twice as long,"""
LONGEST_RETRY: Final = 15.0
"""and so many at most."""


class Renewing:
    """The sessions about which the hook is to be asked, and those about which it is being asked."""

    def __init__(self, connecting: Connecting, presence: Presence, clock: Clock) -> None:
        self._connecting = connecting
        self._presence = presence
        self._clock = clock
        self._due: list[tuple[float, int, int, Session]] = []
        """A heap: monotonic seconds, a number that tells equal ones apart, failures so far."""
        self._numbers = itertools.count()

    def due(self, session: Session) -> None:
        """Ask about this session as soon as there is a place."""
        self._enter(session, 0.0, 0)

    def _enter(self, session: Session, after: float, failures: int) -> None:
        entry = (self._clock.monotonic() + after, next(self._numbers), failures, session)
        heapq.heappush(self._due, entry)

    async def run(self) -> None:
        """Ask about those whose turn has come, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._begin(group)
                await self._clock.sleep(LOOK_EVERY)

    def _begin(self, group: asyncio.TaskGroup) -> None:
        now = self._clock.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, failures, session = self._due[0]
            if _waits(session):
                if not self._connecting.begin_renewal():
                    break
                group.create_task(self._renew(group, session, failures), name="ask the hook again")
            heapq.heappop(self._due)
        self._connecting.places.renewals_wait = bool(self._due) and self._due[0][0] <= now

    async def _renew(self, group: asyncio.TaskGroup, session: Session, failures: int) -> None:
        claims = session.claims
        answer = await self._connecting.renew(claims)
        if session.claims is claims and _waits(session):
            self._answered(session, claims, answer, failures)
        self._begin(group)

    def _answered(self, session: Session, claims: Claims, answer: Claims | Refusal, failures: int) -> None:
        if isinstance(answer, Refusal):
            if answer.status != 503:
                self._presence.close(session, CloseReason.TOKEN_REFUSED)
                return
            longest = min(FIRST_RETRY * 2.0**failures, LONGEST_RETRY)
            self._enter(session, longest * random.uniform(0.5, 1.0), failures + 1)
        elif answer.user != claims.user:
            self._presence.close(session, CloseReason.TOKEN_REFUSED)
        else:
            session.claims = answer
            self._presence.refreshed(session)


def _waits(session: Session) -> bool:
    """Whether it is open, and goes by what the hook has said."""
    return session.takes_pushes and session.claims.asked is not None
