"""Find the users of a push to everyone, to a topic, or to a session, at other nodes, and forward it to them.

The ledger knows them. Users are read in pages; a page has the data of the push once for each node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.delivery.known import DecodedMessage
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.routing import Router
from bridge.core.delivery.taking import Taking
from bridge.core.delivery.targets import ABSENT_SUBSCRIBER, resolver_of
from bridge.core.delivery.turns import Turns
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.making import flight_of
from bridge.core.model.pushes import NO_USER, PushRequest, ToAll, ToSession, ToTopic
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Holder
from bridge.core.sessions.hub import Hub

Page = Sequence[tuple[str, Sequence[str]]]
"""Users, and the processes that have sessions of each; none of a user who is away."""


class Enter(Protocol):
    """See `Taker`: adds a new flight; False where its push is known."""

    def __call__(
        self, flight: Flight, message: HeldMessage, rows: dict[RowKey, Row], *, roams: bool = False
    ) -> bool:
        """Add it."""
        ...


class Everywhere:
    """Asks the ledger for users whom only the hub of another node knows."""

    def __init__(
        self,
        *,
        neighbours: Neighbours,
        lookups: Lookups,
        router: Router,
        inflight: InFlight,
        turns: Turns,
        clock: Clock,
        linger: float,
    ) -> None:
        """`linger`: seconds for which a user whose session has closed counts as a subscriber of a kept push."""
        self._linger = linger
        self._router = router
        self._turns = turns
        self._neighbours = neighbours
        self._lookups = lookups
        self._inflight = inflight
        self._clock = clock
        self._holders: dict[str, Holder | None] = {}
        """Of the sessions that were asked for with `look_for`, until `forget`."""

    async def look_for(self, hub: Hub, decoded: Sequence[DecodedMessage]) -> None:
        """Ask at once for all sessions that these messages are for and that are not here: `holder` finds them then. One
        question for each would have all that is taken wait for it. Raises Stopped."""
        sessions: dict[str, None] = {}
        for _, taking in decoded:
            for request in taking.requests:
                if isinstance(request, PushRequest):
                    target = request.target
                    if isinstance(target, ToSession) and resolver_of(request).users(hub, request) == (
                        NO_USER,
                    ):
                        sessions[target.session] = None
        self._holders = await self._ask(list(sessions)) if sessions else {}

    def forget(self) -> None:
        """These messages are taken."""
        self._holders = {}

    async def _ask(self, sessions: Sequence[str]) -> dict[str, Holder | None]:
        found = await self._lookups.session_holders(sessions)
        return {session: found.get(session) for session in sessions}

    async def holder(self, taking: Taking, users: Sequence[str]) -> tuple[Taking, Sequence[str]]:
        """For a push to a session that is not here: the user whose it is or was, and the process that has it now.

        It is asked for also where no other process is known: one that was frozen may have taken the push before, and
        both must write the row of the same user. Raises Stopped."""
        target = taking.request.target
        if not isinstance(target, ToSession) or users != (NO_USER,):
            return taking, users
        if taking.ending is not None:
            return taking, users
        session = target.session
        if session not in self._holders:  # it was here a moment ago
            self._holders |= await self._ask([session])
        found = self._holders[session]
        if found is None:
            return taking, users
        return taking._replace(boots=(found.boot,) if found.boot else ()), (found.user,)

    async def page(self, taking: Taking, after: str = "") -> Page:
        """For a push to a crowd: who is elsewhere, from the first user after this one on. Where it is kept, also who
        was subscribed to its topic until a while ago. Raises Stopped."""
        request = taking.request
        if taking.ending or taking.too_old:
            return ()
        if isinstance(request.target, ToAll) and not self._neighbours.alone:
            return await self._lookups.everyone_elsewhere(after)
        if isinstance(request.target, ToTopic) and (request.ttl > 0 or not self._neighbours.alone):
            within = self._linger if request.ttl > 0 else 0.0
            return await self._lookups.subscribers_elsewhere(request.target.topic, after, within)
        return ()

    async def after(self, taking: Taking, page: Page) -> Page:
        """The page after this one. Raises Stopped."""
        return () if self._lookups.is_last(page) else await self.page(taking, page[-1][0])

    async def take(
        self, taking: Taking, page: Page, position: int, rows: dict[RowKey, Row], enter: Enter
    ) -> None:
        """Take a push to a crowd for these users, who have sessions at other nodes or are away. `rows`: those that they
        have."""
        for user, boots in page:
            flight, new = self._flight(taking, user, position)
            if not new or enter(flight, taking.message, rows, roams=True):
                if boots:
                    self._router.forward(flight, taking.request, boots)
                elif new:
                    self._router.route(flight, taking.request, ABSENT_SUBSCRIBER, {})
            if self._turns.is_due():
                await self._turns.give()
        self._router.flush()

    def _flight(self, taking: Taking, user: str, position: int) -> tuple[Flight, bool]:
        """The flight for a user elsewhere, and whether it is new: sessions here may have made it."""
        request = taking.request
        known = self._inflight.get(RowKey(request.tenant, request.id, user))
        if known is not None and known.position == position:
            return known, False
        mono = self._clock.monotonic()
        return (
            flight_of(request, user, taking.message, self._inflight, mono, position, taking.fingerprint),
            True,
        )
