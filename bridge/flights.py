"""Every push that is on its way: by key, those kept that have no row yet by user, the newest of each collapse key."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from bridge.flight import Flight
from bridge.model import PushKey, RowKey


class Flights:
    """At most one flight for each row; a flight leaves when its end, or its being stored, is committed."""

    def __init__(self) -> None:
        self._by_key: dict[RowKey, Flight] = {}
        self._unwritten: dict[str, dict[RowKey, Flight]] = {}
        self._newest: dict[tuple[str, str, str], Flight] = {}
        self._roaming: dict[PushKey, dict[str, Flight]] = {}
        self._resting = 0

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_key.values()))

    @property
    def busy(self) -> int:
        """Flights whose message, or whose end, waits for something: those that bound what is taken."""
        return len(self._by_key) - self._resting

    @property
    def resting(self) -> int:
        """Kept pushes whose row is stored, in memory for the sessions that have them and may still prove them."""
        return self._resting

    def get(self, key: RowKey) -> Flight | None:
        """The flight of this row, if there is one."""
        return self._by_key.get(key)

    def add(self, flight: Flight, *, roams: bool = False) -> Flight | None:
        """Take in a flight whose key is not there. Returns the unfinished one that it replaces by its collapse
        key, if any. `roams`: only the hub knew its user (the push is to a session, or to everyone)."""
        key = flight.key
        self._by_key[key] = flight
        if flight.kept is not None and not flight.parked:
            self._unwritten.setdefault(key.user, {})[key] = flight
        if roams:
            self._roaming.setdefault(PushKey(key.tenant, key.push_id), {})[key.user] = flight
        if not flight.collapse_key or flight.ended:
            return None
        place = (key.tenant, key.user, flight.collapse_key)
        older = self._newest.get(place)
        if older is not None and older.position > flight.position:
            # A stored one that goes out again after a newer one was taken.
            return None
        self._newest[place] = flight
        return older

    def written(self, flight: Flight) -> None:
        """It is kept, and its row is there; idempotent."""
        of_user = self._unwritten.get(flight.key.user)
        if of_user is not None and of_user.pop(flight.key, None) is not None and not of_user:
            del self._unwritten[flight.key.user]

    def rest(self, flight: Flight) -> None:
        """Its row is stored, and nobody but its sessions waits for it; idempotent."""
        if flight.kept is not None and not flight.kept.resting:
            flight.kept.resting = True
            self._resting += 1

    def remove(self, flight: Flight) -> None:
        """From now on the row answers for it; idempotent."""
        key = flight.key
        if self._by_key.get(key) is not flight:
            return
        del self._by_key[key]
        kept = flight.kept
        if kept is not None:
            self.written(flight)
            if kept.resting:
                kept.resting = False
                self._resting -= 1
        place = (key.tenant, key.user, flight.collapse_key)
        if flight.collapse_key and self._newest.get(place) is flight:
            del self._newest[place]
        if self._roaming:
            push = PushKey(key.tenant, key.push_id)
            roaming = self._roaming.get(push)
            if roaming is not None and roaming.pop(key.user, None) is not None and not roaming:
                del self._roaming[push]

    def unwritten(self, user: str) -> Collection[Flight]:
        """The flights of this user's pushes that have a ttl and no row yet, in the order they were taken."""
        of_user = self._unwritten.get(user)
        return list(of_user.values()) if of_user else ()

    def roaming(self, push: PushKey) -> dict[str, Flight]:
        """Flights of a push whose users only the hub knew, by user."""
        return self._roaming.get(push, {})
