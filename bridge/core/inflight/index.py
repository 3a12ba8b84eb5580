"""Find a push in flight: by key, by push id, by collapse key, and by user while it has no row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from typing import Final

from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import DELIVERED
from bridge.core.model.pushes import PushKey
from bridge.core.model.rows import RowKey

GONE_MAX: Final = 100
"""Pushes of one user with rows that are still remembered as without one, and as many as are without one."""


class _Unwritten:
    """Kept pushes of one user without a row, by position. A user may have tens of thousands of them, so nothing here
    looks at all of them whenever one is taken or written. (To find the first of a plain dictionary takes the longer,
    the more it has lost before it.)"""

    __slots__ = ("boots", "flights", "last", "looks", "unasked", "unsure")

    def __init__(self) -> None:
        self.flights: OrderedDict[RowKey, Flight] = OrderedDict()
        self.unasked: OrderedDict[RowKey, Flight] = OrderedDict()
        """Those of them that `ask_for` has not returned yet."""
        self.last = 0
        """The highest position."""
        self.boots: frozenset[str] = frozenset()
        """The processes that `is_lacked` was last asked about."""
        self.unsure: list[tuple[int, int, Flight]] = []
        """A heap, by position, of those that may lack at one of these processes; and of some that have a row by now."""
        self.looks = 0
        """How many were ever put there."""

    def add(self, flight: Flight) -> None:
        self.flights[flight.key] = self.unasked[flight.key] = flight
        if flight.position < self.last:
            # Its position was taken before that of another one, which was added before it: a push to a crowd.
            self.flights = _by_position(self.flights)
            self.unasked = _by_position(self.unasked)
        self.last = max(self.last, flight.position)
        self.look_at(flight)

    def ask_for(self, until: int) -> list[Flight]:
        asked: list[Flight] = []
        for flight in self.unasked.values():
            if flight.position > until:
                break
            asked.append(flight)
        for flight in asked:
            del self.unasked[flight.key]
        return asked

    def look_at(self, flight: Flight) -> None:
        """It may lack at one of those processes."""
        if len(self.unsure) > 2 * len(self.flights) + GONE_MAX:
            self.boots, self.unsure = frozenset(), []
        if self.boots:
            self.looks += 1
            heappush(self.unsure, (flight.position, self.looks, flight))

    def is_lacked(self, before: int, boots: frozenset[str]) -> bool:
        if boots != self.boots:
            self.boots, self.unsure = boots, []
            for flight in self.flights.values():
                self.look_at(flight)
        while self.unsure and self.unsure[0][0] < before:
            flight = self.unsure[0][2]
            counts = not flight.ended or flight.outcome in DELIVERED
            if counts and self.flights.get(flight.key) is flight and not boots.issubset(flight.holders):
                return True
            heappop(self.unsure)
        return False


def _by_position(flights: OrderedDict[RowKey, Flight]) -> OrderedDict[RowKey, Flight]:
    return OrderedDict(sorted(flights.items(), key=lambda item: item[1].position))


class Index:
    """At most one flight for each row. A flight is removed when its final or `stored` row is committed."""

    def __init__(self) -> None:
        self._busy: dict[RowKey, Flight] = {}
        self._resting: dict[RowKey, Flight] = {}
        # Nearly every push goes to one user: no dictionary is made for those.
        self._of_push: dict[str, Flight | dict[str, dict[str, Flight]]] = {}
        """By push id, and then, where it has several, by tenant and user."""
        self._unwritten: dict[str, _Unwritten] = {}
        self._of_place: dict[tuple[str, str, str], dict[RowKey, Flight]] = {}
        """By tenant, user and collapse key: flights that had not ended when they were added."""
        self._newest: dict[tuple[str, str, str], Flight] = {}
        self._roaming: dict[PushKey, dict[str, Flight]] = {}

    def __iter__(self) -> Iterator[Flight]:
        """The busy flights; see `busy`."""
        return iter(list(self._busy.values()))

    @property
    def busy(self) -> int:
        """Flights whose message or outcome waits for something. Their number bounds what is taken."""
        return len(self._busy)

    @property
    def resting(self) -> int:
        """Kept pushes whose row is stored. They are in memory for sessions that have them and may still prove them."""
        return len(self._resting)

    def get(self, key: RowKey) -> Flight | None:
        """The flight of this row, if there is one."""
        return self._busy.get(key) or (self._resting.get(key) if self._resting else None)

    def of_push(self, push_id: str) -> Collection[Flight]:
        """The flights of pushes with this id, of any tenant and user."""
        found = self._of_push.get(push_id)
        if found is None:
            return ()
        if not isinstance(found, dict):
            return (found,)
        return [flight for of_tenant in found.values() for flight in of_tenant.values()]

    def of_push_to(self, push_id: str, user: str) -> Collection[Flight]:
        """Those of them that are for this user, without a look at the others: a crowd may resume after one push."""
        found = self._of_push.get(push_id)
        if found is None:
            return ()
        if not isinstance(found, dict):
            return (found,) if found.key.user == user else ()
        return [of_tenant[user] for of_tenant in found.values() if user in of_tenant]

    def of_collapse_key(self, tenant: str, user: str, collapse_key: str) -> Collection[Flight]:
        """The flights of a user's pushes with this collapse key, except those that had ended when they were added."""
        return list(self._of_place.get((tenant, user, collapse_key), {}).values())

    def add(self, flight: Flight, *, roams: bool = False) -> Flight | None:
        """Add a flight whose key is not here. Returns the unfinished one that it replaces by its collapse key, if
        any. `roams`: the user came from the hub (the push is to a session, or to everyone)."""
        key = flight.key
        self._busy[key] = flight
        self._index(flight)
        if flight.kept is not None and not flight.parked:
            of_user = self._unwritten.get(key.user)
            if of_user is None:
                of_user = self._unwritten[key.user] = _Unwritten()
            of_user.add(flight)
        if roams:
            self._roaming.setdefault(PushKey(key.tenant, key.push_id), {})[key.user] = flight
        if not flight.collapse_key or flight.ended:
            return None
        place = (key.tenant, key.user, flight.collapse_key)
        self._of_place.setdefault(place, {})[key] = flight
        older = self._newest.get(place)
        if older is not None and older.position > flight.position:
            # This one was stored, and is sent again after a newer one was taken.
            return None
        self._newest[place] = flight
        return older

    def _index(self, flight: Flight) -> None:
        key = flight.key
        first = self._of_push.setdefault(key.push_id, flight)
        if first is flight:
            return
        if not isinstance(first, dict):
            self._of_push[key.push_id] = first = {first.key.tenant: {first.key.user: first}}
        of_tenant = first.get(key.tenant)
        if of_tenant is None:
            first[key.tenant] = {key.user: flight}
        else:
            of_tenant[key.user] = flight

    def _leave(self, flight: Flight) -> None:
        key = flight.key
        found = self._of_push.get(key.push_id)
        if isinstance(found, dict):
            of_tenant = found[key.tenant]
            del of_tenant[key.user]
            if not of_tenant:
                del found[key.tenant]
            if found:
                return
        del self._of_push[key.push_id]

    def written(self, flight: Flight) -> None:
        """It is a kept push, and its row is committed; idempotent."""
        of_user = self._unwritten.get(flight.key.user)
        if of_user is None:
            return
        of_user.unasked.pop(flight.key, None)
        if of_user.flights.pop(flight.key, None) is not None and not of_user.flights:
            del self._unwritten[flight.key.user]

    def rest(self, flight: Flight) -> None:
        """Its row is stored, and only its sessions still need it; idempotent."""
        if flight.kept is not None and self._busy.get(flight.key) is flight:
            self._resting[flight.key] = self._busy.pop(flight.key)

    def remove(self, flight: Flight) -> None:
        """Remove it: from now on its row is found instead; idempotent."""
        key = flight.key
        if self.get(key) is not flight:
            return
        self._busy.pop(key, None)
        if self._resting:
            self._resting.pop(key, None)
        self._leave(flight)
        if flight.kept is not None:
            self.written(flight)
        if flight.collapse_key:
            place = (key.tenant, key.user, flight.collapse_key)
            if self._newest.get(place) is flight:
                del self._newest[place]
            of_place = self._of_place.get(place)
            if of_place is not None and of_place.pop(key, None) is not None and not of_place:
                del self._of_place[place]
        if self._roaming:
            push = PushKey(key.tenant, key.push_id)
            roaming = self._roaming.get(push)
            if roaming is not None and roaming.pop(key.user, None) is not None and not roaming:
                del self._roaming[push]

    def has_unwritten(self, user: str, until: int) -> bool:
        """Whether this user has pushes up to this position that have a ttl and no row yet."""
        of_user = self._unwritten.get(user)
        return of_user is not None and next(iter(of_user.flights.values())).position <= until

    def ask_for(self, user: str, until: int) -> Collection[Flight]:
        """Those of them up to this position that this has not returned before, in their order: their rows are asked for
        now."""
        of_user = self._unwritten.get(user)
        return of_user.ask_for(until) if of_user is not None else ()

    def is_lacked(self, user: str, before: int, boots: frozenset[str]) -> bool:
        """Whether one of them before this position is not proven, or was a moment ago, and was not forwarded to all of
        these processes."""
        of_user = self._unwritten.get(user)
        return of_user is not None and bool(boots) and of_user.is_lacked(before, boots)

    def lacked(self, flight: Flight) -> None:
        """A process that it was forwarded to lacks it; idempotent."""
        of_user = self._unwritten.get(flight.key.user)
        if of_user is not None and of_user.flights.get(flight.key) is flight:
            of_user.look_at(flight)

    def roaming(self, push: PushKey) -> dict[str, Flight]:
        """The flights of a push whose users came from the hub, by user."""
        return self._roaming.get(push, {})
