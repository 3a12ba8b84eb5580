"""The port to the revocations: committed by one node, read by all, and confirmed by each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.revocations import Revocation, RevocationAnswer


class Marked(NamedTuple):
    """A committed revocation. Marks rise in the order of commits, so whoever has read up to a mark has missed none."""

    mark: int
    revocation: Revocation
    kept_until: float
    """Until when it is kept, in unix seconds: no token that it means can be valid by then."""


class RevocationPage(NamedTuple):
    """Some revocations, lowest mark first."""

    revocations: Sequence[Marked]
    mark: int
    """Everything up to this mark has been read."""
    more: bool
    unseen_for: float | None = 0.0
    """Seconds since this process last renewed its lease, when this was read; None where it has none."""
    ended_at: float | None = None
    """When others last ended sessions of this node, in unix seconds: they took it for dead. None: never."""


class RevocationLog(Protocol):
    """The revocations. All methods are safe to run again, and raise StoreUnavailable as those of the store do."""

    async def revoke(self, revocation: Revocation) -> int:
        """Commit a revocation; returns its mark. Older ones that say no more than this one are dropped."""
        ...

    async def after(self, mark: int, limit: int) -> RevocationPage:
        """At most `limit` revocations with a higher mark, and how others see this node, in one snapshot."""
        ...

    async def ended(self) -> Sequence[str]:
        """The sessions of this process that others have ended, by id, until it notes their closes itself."""
        ...

    async def confirm(self, mark: int, closed: Mapping[int, int]) -> None:
        """This node has carried out everything up to this mark. `closed`: how many sessions each revocation closed
        here, by its mark."""
        ...

    async def answer(self, mark: int) -> RevocationAnswer:
        """How far the revocation with this mark has come; who is gone is asked apart."""
        ...

    async def gone(self, mark: int) -> Sequence[str]:
        """See `RevocationAnswer.gone`. It may look at every session of a node that has just died."""
        ...
