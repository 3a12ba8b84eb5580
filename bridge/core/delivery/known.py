"""Find out, before requests are taken, which of them may have come before, and the rows that they have.

One statement looks up the rows of many messages; a large message is looked up in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeAlias

from bridge.core.contract.requests import Decoded
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.remembered import Remembered
from bridge.core.delivery.targets import resolver_of
from bridge.core.delivery.turns import Turns
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.pushes import NO_USER, PushRequest, Rejected, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.broker import Arrival, Source

_FALLEN: Final = Source.FALLEN
DecodedMessage: TypeAlias = tuple[Arrival, Decoded]


class Known(NamedTuple):
    """What was found out about the requests of a few messages."""

    came: set[int]
    """`id()` of the requests that may have come before."""
    rows: dict[RowKey, Row]
    """The rows that the log has for them."""


class KnownRows:
    """Looks up rows for the taker. Rows that are settled after a look-up are newer than its answer: see `settled`."""

    def __init__(
        self,
        *,
        inflight: InFlight,
        lookups: Lookups,
        remembered: Remembered,
        turns: Turns,
        lookup_rows: int,
        is_aside: Callable[[PushRequest | Rejected], bool] | None = None,
    ) -> None:
        """`lookup_rows`: rows that one statement looks for, at most. `is_aside`: whether somebody else has a push with
        this id in hand now."""
        self._inflight = inflight
        self._lookups = lookups
        self._remembered = remembered
        self._turns = turns
        self._lookup_rows = lookup_rows
        self._is_aside = is_aside
        self._settled: dict[RowKey, Row] = {}
        """Rows that were settled since the last look-up."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """During the block, collect the rows that are settled after each look-up."""
        with self._inflight.watching() as self._settled:
            try:
                yield
            finally:
                self._settled = {}

    def settled(self, key: RowKey) -> Row | None:
        """The row with this key, if it was settled since the last look-up."""
        return self._settled.get(key) if self._settled else None

    def may_have_come(self, arrival: Arrival, request: PushRequest | Rejected) -> bool:
        """Whether a push may have come before: the broker delivers it again, or its id is remembered."""
        properties = arrival.properties
        return (
            properties.redelivered
            or properties.delivery_count > 0
            or arrival.source is _FALLEN
            or request.id in self._remembered
            or (self._is_aside is not None and self._is_aside(request))
        )

    def portions(self, decoded: Sequence[DecodedMessage]) -> Iterator[Sequence[DecodedMessage]]:
        """Group messages whose rows one statement can look up; a message that is too large for that is alone."""
        portion: list[DecodedMessage] = []
        rows = 0
        for one in decoded:
            size = _rows_named(one[1], self._lookup_rows)
            if portion and rows + size > self._lookup_rows:
                yield portion
                portion, rows = [], 0
            portion.append(one)
            rows += size
        if portion:
            yield portion

    async def find(self, portion: Sequence[DecodedMessage]) -> Known | None:
        """What is known of the requests of these messages. None where they name too many users for one look-up: then
        parts of the message, or of a request, are looked up one by one. Raises Stopped."""
        if len(portion) == 1 and _rows_named(portion[0][1], self._lookup_rows) > self._lookup_rows:
            return None
        came: set[int] = set()
        keys: dict[RowKey, None] = {}
        for arrival, taking in portion:
            for request in taking.requests:
                if self.may_have_come(arrival, request):
                    came.add(id(request))
                    for user in _named_users(request):
                        keys[RowKey(request.tenant, request.id, user)] = None
        return Known(came, await self.look_up(list(keys)) if keys else self._nothing())

    async def look_up(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """The rows that the log has for these keys. Raises Stopped."""
        self._settled.clear()
        rows = await self._lookups.rows(keys)
        self._turns.begin()
        return rows

    def _nothing(self) -> dict[RowKey, Row]:
        self._settled.clear()
        return {}


def _named_users(request: PushRequest | Rejected) -> Sequence[str]:
    return (NO_USER,) if isinstance(request, Rejected) else resolver_of(request).named(request.target)


def _rows_named(taking: Decoded, most: int) -> int:
    """How many rows the requests of a message name; over `most` where only the hub knows the users."""
    rows = 0
    for request in taking.requests:
        if isinstance(request, Rejected) or isinstance(request.target, ToUser):
            rows += 1
            continue
        resolver = resolver_of(request)
        if resolver.roams:
            return most + 1
        rows += len(resolver.named(request.target))
    return rows
