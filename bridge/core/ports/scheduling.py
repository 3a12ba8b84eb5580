"""What the core asks of the place where scheduled pushes wait, and of the broker when their time has come."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.pushes import Properties, Recall
from bridge.core.model.scheduled import Due, Scheduled, Withdrawn

CLAIM_SECONDS = 30.0
"""Seconds for which a claim of a living process counts; the functions of the schema use the same number."""


class Schedule(Protocol):
    """Entries, each kept until it was published again. All processes of a bridge share them.

    Every method is safe to run again, and raises what those of `Store` raise.
    """

    async def add(self, entries: Sequence[Scheduled]) -> None:
        """Keep these, in one commit. An entry whose id is there already stays as it is."""
        ...

    async def claim(self, boot: str, limit: int, most_bytes: int) -> Due:
        """Claim entries that are due by the clock of the store, for this boot: at most `limit`, and of no more than
        `most_bytes` in all unless the first one has more. Those that this boot has claimed before come again.

        One boot releases at a time, so that the order stays. While a living one has claimed something, nobody else
        gets anything, for `CLAIM_SECONDS` at most. What a dead one has claimed is due again.
        """
        ...

    async def done(self, ids: Collection[str]) -> None:
        """These were published: forget them."""
        ...

    async def give_back(self, boot: str, ids: Collection[str]) -> None:
        """These could not be published, or nobody knows whether they were: they are due again, for any boot. They can't
        be recalled any more."""
        ...

    async def recall(self, recall: Recall, limit: int) -> Sequence[Withdrawn]:
        """Withdraw at most `limit` entries that nobody has ever claimed: they are due at once, and say so. Returns none
        where there were no more. By collapse key only entries that name this one user are meant."""
        ...


class Release(NamedTuple):
    """A message that is published again to the exchange `push`."""

    id: str
    """Its AMQP message id, which no other message has."""
    key: bytes
    body: bytes
    properties: Properties
    """Without `user_id`, `expiration` and priority: the broker would act on them."""


class Releases(Protocol):
    """Publishes requests whose time has come, with publisher confirms."""

    @property
    def blocked(self) -> bool:
        """Whether publishing is impossible now (memory alarm, connection lost)."""
        ...

    async def release(self, releases: Sequence[Release]) -> Sequence[Release]:
        """Publish in this order, persistent and mandatory, and await the confirms; returns those NOT confirmed, which
        may have arrived all the same. Never raises."""
        ...
