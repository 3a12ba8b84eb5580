"""Carry out revocations: close the sessions that they mean, on this node and on all others, and refuse their tokens.

A revocation is committed first. Every node reads new ones a few times a second, closes what it has, and confirms it in
the log, where whoever asked for the revocation finds that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import structs

from bridge.core.delivery.presence import Presence
from bridge.core.errors import StoreUnavailable
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.revocations import Marked, RevocationLog
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.ledger import Ledger
from bridge.core.sessions.revoked import Revoked
from bridge.core.sessions.session import Session
from bridge.core.settlement.gate import Gate

PAGE = 5_000
"""Revocations that are read at a time."""
READ_EVERY = 0.25
"""Seconds between two looks for new ones."""
ANSWERS_WITHIN = 2.0
"""Seconds in which all live nodes should have confirmed. Who has not by then is named."""
LOOK_EVERY = 0.05
"""Seconds between two looks for their confirmations."""
CAUSE = "revocations"
"""The gate's cause while this node may have missed a revocation: it takes no pushes then."""


async def answered(log: RevocationLog, mark: int, clock: Clock) -> RevocationAnswer:
    """What came of the revocation with this mark: returns when all live nodes have confirmed it, or after
    `ANSWERS_WITHIN` seconds. Raises StoreUnavailable."""
    give_up = clock.monotonic() + ANSWERS_WITHIN
    while True:
        answer = await log.answer(mark)
        if not answer.silent or clock.monotonic() >= give_up:
            return structs.replace(answer, gone=tuple(await log.gone(mark)))
        await clock.sleep(LOOK_EVERY)


class Revoking:
    """Commits revocations, and carries out those of all nodes."""

    def __init__(
        self,
        *,
        log: RevocationLog,
        revoked: Revoked,
        freshness: Freshness,
        ledger: Ledger,
        hub: Hub,
        presence: Presence,
        gate: Gate,
        errors: ErrorHandler,
        clock: Clock,
    ) -> None:
        self._log = log
        self._revoked = revoked
        self._freshness = freshness
        self._ledger = ledger
        self._hub = hub
        self._presence = presence
        self._gate = gate
        self._errors = errors
        self._clock = clock
        self._mark = 0
        """Everything up to this mark has been carried out,"""
        self._confirmed = -1
        """and confirmed up to this one."""
        self._closed: dict[int, int] = {}
        """How many sessions each revocation closed that was not confirmed yet, by its mark."""
        self._learned: list[Revocation] = []
        """Tokens to be revoked, each with its session, which was named by whoever could not know all of them."""
        self._ended_at: float | None = None
        """When others had last ended sessions of this node, as far as it has let go of them."""
        self._one_at_a_time = asyncio.Lock()

    async def revoke(self, revocation: Revocation) -> RevocationAnswer:
        """Commit a revocation, and return when all live nodes have carried it out, or after two seconds. Idempotent.
        Raises StoreUnavailable: it may have been committed then, and is safe to ask for again."""
        mark = await self._log.revoke(revocation)
        await self.read()
        await self._try_to_confirm()
        return await answered(self._log, mark, self._clock)

    async def begin(self) -> None:
        """From now on tokens are good unless they are revoked. Raises StoreUnavailable.

        The log knows by then for how long this node accepts tokens, and keeps revocations for as long.
        """
        await self.read()
        await self.confirm()
        self._revoked.read = True

    def _session(self, session_id: str) -> Session | None:
        """One that is open here, or has closed and whose last token the ledger does not know yet."""
        return self._hub.session(session_id) or self._ledger.refreshing(session_id)

    async def read(self) -> None:
        """Carry out everything that has been committed. Raises StoreUnavailable."""
        async with self._one_at_a_time:
            while True:
                asked = self._clock.boottime()
                page = await self._log.after(self._mark, PAGE)
                self._carry_out(page.revocations)
                self._mark = page.mark
                if not page.more:
                    if page.ended_at != self._ended_at:
                        await self._let_go()
                        self._ended_at = page.ended_at
                    if page.unseen_for is not None:
                        # Who renews late may be taken for dead before the next look.
                        self._freshness.heard(asked - page.unseen_for)
                    return

    async def _let_go(self) -> None:
        """Close the sessions that others have ended: their users were told to be away, so nothing may reach them."""
        for name in await self._log.ended():
            session = self._hub.session(name)
            if session is not None:
                self._presence.close(session, CloseReason.VANISHED)

    async def confirm(self) -> None:
        """Commit what was learned, and confirm what was carried out. Raises StoreUnavailable. What fails here is done
        by the next call: these sessions are closed by then, so nobody would find them again."""
        async with self._one_at_a_time:
            while self._learned:
                # Before the mark is confirmed: whoever asked waits until all nodes have read these as well.
                await self._log.revoke(self._learned[0])
                del self._learned[0]
            if self._confirmed < self._mark:
                await self._log.confirm(self._mark, self._closed)
                self._confirmed = self._mark
                self._closed.clear()

    async def run(self) -> None:
        """Read new revocations and confirm them, until cancelled."""
        while True:
            await self._clock.sleep(READ_EVERY)
            self._revoked.forget(self._clock.time())
            try:
                await self.read()
            except StoreUnavailable as down:
                # Whoever was cut off sends nothing before it has read what it missed.
                self._gate.shut(CAUSE, str(down), database=True)
            else:
                self._gate.clear(CAUSE)
                await self._try_to_confirm()

    async def _try_to_confirm(self) -> None:
        """A failure changes nothing here: all that was read is carried out. Whoever asked finds this node silent."""
        try:
            await self.confirm()
        except StoreUnavailable as failed:
            self._errors.handle(
                failed, "revocations.confirm", {"carried_out": self._mark, "confirmed": self._confirmed}
            )

    def _carry_out(self, page: Sequence[Marked]) -> None:
        """Refuse the tokens of these revocations, and close their sessions."""
        for _, revocation, kept_until in page:
            self._revoked.note(revocation, kept_until)
        by_token = {one.token_id: mark for mark, one, _ in page if one.token_id}
        for mark, revocation, kept_until in page:
            if revocation.user:
                named = [s for s in self._hub.of_user(revocation.user) if self._revoked.covers(s.claims)]
                self._close(named, mark)
            if (session := self._session(revocation.session)) is not None:
                for token_id in _tokens(session):
                    by_token.setdefault(token_id, mark)
                    if not self._revoked.means(token_id):
                        self._revoked.note(Revocation(token_id=token_id), kept_until)
                        self._learned.append(Revocation(session=session.id, token_id=token_id))
                if session.takes_pushes:
                    self._close([session], mark)
        if by_token:
            for session in self._hub:
                mark = by_token.get(session.claims.token_id, 0)
                if mark:
                    self._close([session], mark)

    def _close(self, sessions: Sequence[Session], mark: int) -> None:
        for session in sessions:
            self._presence.close(session, CloseReason.REVOKED)
        self._closed[mark] = self._closed.get(mark, 0) + len(sessions)


def _tokens(session: Session | None) -> list[str]:
    """The ids of its tokens that may still be good."""
    if session is None:
        return []
    ids = (claims.token_id for claims in (*session.former, session.claims))
    return list(dict.fromkeys(token_id for token_id in ids if token_id))
