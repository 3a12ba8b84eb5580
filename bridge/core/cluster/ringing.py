"""Ring other nodes when a push is stored: its user may have opened a session there since the holders were asked for.

The order is: store, commit, look again, ring. A session that opens reads the mailbox after its open is committed. So
either it finds the row, or this look finds the session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.cluster.post import Post
from bridge.core.cluster.unheard import Unheard
from bridge.core.contract.letters import Ring
from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import Flight
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Directory, Sent
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.settlement.persistence import Persistence

USERS: Final = 500
"""Users that one statement asks for."""
TRY_AGAIN: Final = 1.0
"""Seconds until users are asked for again, where the statement fails though the database is there."""


class _Missed(NamedTuple):
    """Rings for stored pushes of one user that nobody has heard."""

    position: int
    """The lowest, at least since there was none."""
    rings: int


class _Proven(NamedTuple):
    position: int
    holders: Sequence[str]
    """The processes that were forwarded it."""


class Ringing:
    """Asks for the holders of users whose mailbox has grown, and rings them."""

    def __init__(
        self,
        directory: Directory | None,
        *,
        persistence: Persistence,
        routed: Callable[[], Awaitable[None]],
        neighbours: Neighbours,
        post: Post,
        unheard: Unheard,
        errors: ErrorHandler,
        clock: Clock,
    ) -> None:
        """`routed`: returns when the pushes that were taken until now are on their way to other nodes. `unheard`: rings
        that nobody has heard."""
        self._directory = directory
        self._routed = routed
        self._persistence = persistence
        self._neighbours = neighbours
        self._post = post
        self._errors = errors
        self._clock = clock
        self._grown: dict[str, int] = {}
        """The lowest position that each user may not have heard of."""
        self._delivered: dict[str, list[_Proven]] = {}
        """Kept pushes that were proven before they had a row, by user."""
        self._unheard = unheard
        self._missed: dict[str, _Missed] = {}
        """By user, without those that are being rung again."""
        self._asking: dict[str, int] = {}
        """Those of them whose holders are being asked for,"""
        self._asking_proven: dict[str, list[_Proven]] = {}
        """and these, too."""
        self._wake = asyncio.Event()

    def stored(self, user: str, position: int) -> None:
        """The row of a push is committed and says `stored`."""
        if self._directory is None or self._neighbours.alone:
            return
        self._grown[user] = min(position, self._grown.get(user, position))
        self._wake.set()

    def delivered(self, row: Row, holders: Sequence[str]) -> None:
        """The first row of a kept push is committed, and says that it was delivered. Who has resumed elsewhere since
        its holders were asked for, and was promised everything, lacks it."""
        if self._directory is not None and not self._neighbours.alone:
            self._delivered.setdefault(row.key.user, []).append(_Proven(row.position, holders))
            self._wake.set()

    def lacked(self, user: str, position: int, boot: str) -> None:
        """A kept push that was forwarded to this process did not get there, and others have proven it by now."""
        self.ring(user, position, [boot], delivered=True)

    def due(self, user: str) -> int | None:
        """From which position a user is about to be rung, or must be rung again; None where there is nothing to ring
        for."""
        found = [due[user] for due in (self._grown, self._asking) if user in due]
        if user in self._missed:
            found.append(self._missed[user].position)
        return min(found, default=None)

    def proven(self, user: str, before: int, boots: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
        """What others have proven before this position, and the user is about to be rung for: its position, and those
        of these processes that were not forwarded it."""
        for some in (self._asking_proven.get(user, ()), self._delivered.get(user, ())):
            for position, holders in some:
                lacking = [boot for boot in boots if boot not in holders]
                if position < before and lacking:
                    yield position, lacking

    def taken_back(self, row: Row, keeps: str = "") -> None:
        """A delivered push was recalled, or is for the session `keeps` alone, which was the first to ack it: all others
        lose it."""
        key = row.key
        ring = Ring(key.user, row.position, True, key.push_id, key.tenant, keeps)
        for other in self._neighbours.others:
            self._ring(other.boot, ring)

    def recalled(self, rows: Iterable[Row]) -> None:
        """Delivered pushes were recalled."""
        for row in rows:
            self.taken_back(row)

    def recalled_in_flight(self, flight: Flight) -> None:
        """A recall names a push in flight. Who has it may have proven it, and know of it no more."""
        key = flight.key
        for boot in flight.holders:
            self._ring(boot, Ring(key.user, flight.position, False, key.push_id, key.tenant))

    def ring(self, user: str, position: int, boots: Sequence[str], *, delivered: bool = False) -> None:
        """Ring a user at these processes."""
        for boot in boots:
            self._ring(boot, Ring(user, position, delivered))

    def _ring(self, boot: str, ring: Ring, number: int = 0) -> None:
        self._post.add(boot, ring, partial(self._not_heard, boot, ring, number))

    def _not_heard(self, boot: str, ring: Ring, number: int, sent: Sent) -> None:
        """It may listen on another queue by now, and have read its mailboxes before this was stored."""
        if self._unheard.full:
            return  # the user gets the push when they come back
        self._unheard.add(boot, ring, partial(self._ring_again, boot, ring), number)
        if _says_stored(ring):
            position, rings = self._missed.get(ring.user, _Missed(ring.position, 0))
            self._missed[ring.user] = _Missed(min(position, ring.position), rings + 1)

    def _ring_again(self, boot: str, ring: Ring, number: int) -> None:
        if _says_stored(ring):
            position, rings = self._missed.pop(ring.user)
            if rings > 1:
                self._missed[ring.user] = _Missed(position, rings - 1)
        if self._neighbours.of_boot(boot) is not None:
            self._ring(boot, ring, number)

    async def run(self) -> None:
        """Ring as rows are stored, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._grown or self._delivered:
                self._asking = {user: self._grown.pop(user) for user in list(self._grown)[:USERS]}
                some = list(self._delivered)[:USERS]
                self._asking_proven = {user: self._delivered.pop(user) for user in some}
                found = await self._holders([*self._asking, *self._asking_proven])
                # Who is rung reads what is stored, and must have been sent what was taken before.
                await self._routed()
                # Also of older pushes that nobody has heard of: they are shown first.
                rings = [
                    (self.due(user) or position, user, found.get(user, ()), False)
                    for user, position in self._asking.items()
                ]
                for user, of_user in self._asking_proven.items():
                    for position, holders in of_user:
                        new = [boot for boot in found.get(user, ()) if boot not in holders]
                        rings.append((position, user, new, True))
                self._asking, self._asking_proven = {}, {}
                for position, user, boots, proven in sorted(rings, key=_position):
                    self.ring(user, position, boots, delivered=proven)

    async def _holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        assert self._directory is not None
        ask = partial(self._directory.holders, list(dict.fromkeys(users)))
        while True:
            try:
                return await self._persistence.call(ask)
            except StatementFailed as failed:
                self._errors.handle(failed, "nodes.holders", {"users": len(users)})
                await self._clock.sleep(TRY_AGAIN)


def _says_stored(ring: Ring) -> bool:
    return not ring.delivered and not ring.push_id


def _position(ring: tuple[int, str, Sequence[str], bool]) -> int:
    """Older pushes are shown first."""
    return ring[0]
