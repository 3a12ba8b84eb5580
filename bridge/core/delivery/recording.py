"""Write the ledger. A session is sent nothing before its open is committed; one that somebody wants closed is closed.

Entries that come while a statement runs are written by the next one, all together, so a storm of reconnects takes a few
statements.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from bridge.core.backoff import BackOff
from bridge.core.delivery.announcing import Announcing
from bridge.core.delivery.presence import Presence
from bridge.core.errors import RowsRefused, StatementFailed, StoreUnavailable
from bridge.core.model.ledger import Entries, Noted
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.session_log import SessionLog
from bridge.core.row_limit import RowLimit
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.ledger import DOWN, Ledger
from bridge.core.sessions.session import Session
from bridge.core.sessions.subscriptions import Subscriptions

ENTRIES: Final = 500
"""Entries of each kind in one statement."""
LOOK_EVERY: Final = 0.25
"""Seconds between two looks whether somebody wants sessions closed, while nothing is to be written."""
OPENS_WITHIN: Final = 3.0
"""Seconds that an open may take; then its session is closed, and its client told to come back later. On a busy machine
a second passes while nothing is wrong. The session holds pushes meanwhile, which wait for their proof for longer."""
SWEEP_EVERY: Final = 1.0
"""Seconds between two looks for sessions of dead processes."""
DEAD_AT_ONCE: Final = 2_000
TRY_AGAIN: Final = 0.25
"""Seconds until the first try after one that failed."""
TRY_AGAIN_MAX: Final = 2.0
READ_WITHIN: Final = 1.0
"""Seconds in which a revocation is read by then at the latest; then a session that it means is closed without."""
SPREAD: Final = 10.0
"""Seconds over which the clients come back that were told to."""

_REASONS: Final = {reason.word: reason for reason in CloseReason}


class Recording:
    """Writes what the ledger has to be told, and carries out what comes back."""

    def __init__(
        self,
        log: SessionLog,
        *,
        ledger: Ledger,
        hub: Hub,
        presence: Presence,
        subscriptions: Subscriptions,
        announcing: Announcing,
        errors: ErrorHandler,
        clock: Clock,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._hub = hub
        self._presence = presence
        self._subscriptions = subscriptions
        self._announcing = announcing
        self._errors = errors
        self._clock = clock
        self._limit = RowLimit(ENTRIES, 8)
        self._back_off = BackOff(clock, TRY_AGAIN, TRY_AGAIN_MAX)
        self._looked = self._swept = clock.monotonic()
        self._one_at_a_time = asyncio.Lock()
        self._revoked: dict[Session, float] = {}
        """Sessions whose token is revoked, and which are never welcomed; since when, in monotonic seconds."""

    async def run(self) -> None:
        """Write entries as they come, until cancelled."""
        while True:
            await self._ledger.wake.wait()
            self._ledger.wake.clear()
            try:
                await self._write()
                await self._sweep()
            except StoreUnavailable as failed:
                self._ledger.refusal = DOWN
                self._errors.handle(failed, "ledger.note", {"waiting": len(self._ledger)})
                await self._back_off.wait()
                self._ledger.wake.set()
            else:
                self._ledger.refusal = None
                self._back_off.reset()
                if self._ledger.ready:
                    self._ledger.wake.set()

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds."""
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            self._ledger.wake.set()
        for session in [s for s, since in self._revoked.items() if now - since > READ_WITHIN]:
            del self._revoked[session]
            self._presence.close(session, CloseReason.REVOKED)
        for session in self._ledger.overdue(now - OPENS_WITHIN):
            self._ledger.refusal = DOWN
            self._turn_away(session)

    async def flush(self) -> None:
        """Write all there is: for a stop. Raises StoreUnavailable."""
        while self._ledger.ready:
            await self._write()

    async def _write(self) -> None:
        async with self._one_at_a_time:
            entries, sessions = self._ledger.take(self._limit.rows)
            try:
                noted = await self._log.note(entries)
            except StatementFailed as failed:
                if self._limit.shrink():
                    return
                if not isinstance(failed, RowsRefused):
                    raise
                self._give_up(entries, sessions, failed)
                return
            self._limit.grow()
            self._subscriptions.committed(entries, self._ledger.written(entries))
        self._announcing.tell((*entries.opened, *entries.closed))
        self._carry_out(noted, sessions)

    def _carry_out(self, noted: Noted, opened: list[Session]) -> None:
        over, revoked = frozenset(noted.over), frozenset(noted.revoked)
        for session in opened:
            if session.id in revoked:
                # Whoever reads revocations closes it, and counts it: this process has not read that one yet.
                self._revoked[session] = self._clock.monotonic()
            elif session.id in over:
                self._presence.close(session, CloseReason.OVER_LIMIT)
            else:
                self._presence.recorded(session)
        for session_id, word in noted.unwanted:
            unwanted = self._hub.session(session_id)
            if unwanted is not None:
                self._presence.close(unwanted, _REASONS.get(word, CloseReason.DISCONNECTED))

    async def _sweep(self) -> None:
        """End the sessions of dead processes."""
        now = self._clock.monotonic()
        if now - self._swept >= SWEEP_EVERY:
            self._swept = now
            self._announcing.tell(await self._log.end_dead(DEAD_AT_ONCE))

    def _give_up(self, entries: Entries, sessions: list[Session], failed: RowsRefused) -> None:
        """The database refuses these alone: without them the others can be written."""
        self._errors.handle(failed, "ledger.note", {"given_up": [one.session for one in entries.opened]})
        self._subscriptions.given_up(entries, self._ledger.written(entries))
        for session in sessions:
            self._turn_away(session)

    def _turn_away(self, session: Session) -> None:
        wait = CloseReason.TRY_LATER.retry_after + random.uniform(0.0, SPREAD)
        self._presence.close(session, CloseReason.TRY_LATER, wait)
