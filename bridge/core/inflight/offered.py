"""A push as a session sees it: what the session reads of it, and the reports that the session makes to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from bridge.core.model.outcomes import Proof, Reason
from bridge.core.model.rows import RowKey


class Offered(ABC):
    """A push that sessions report to. A report never raises because the push has ended meanwhile.

    `now` is wall-clock seconds, read once for a whole batch.
    """

    __slots__ = ("confirm", "key", "position")

    key: RowKey
    confirm: Proof
    """The proof that was asked for."""
    position: int
    """Its place in the order of all pushes, in microseconds."""

    @property
    @abstractmethod
    def withdrawn(self) -> bool:
        """Whether it must not be sent any more: it has ended and was not delivered."""

    @property
    def kept_elsewhere(self) -> bool:
        """Whether another node owns it, and keeps it for its user as long as it is not proven."""
        return False

    @abstractmethod
    def handed(self, now: float, by: str, *, unprovable: bool = False) -> object:
        """The session with the id `by` has handed it to its socket. `unprovable`: whoever is there has never proven
        anything that this push asks for, and perhaps can't."""

    @abstractmethod
    def received(self, now: float, by: str) -> object:
        """The peer of a session has answered a ping that was sent after it (RFC 6455 section 5.5.3)."""

    @abstractmethod
    def acked(self, now: float, by: str) -> object:
        """The application behind a session has sent the ack frame for it."""

    @abstractmethod
    def lost(self, now: float, *, handed: bool, why: Reason | None = None) -> object:
        """A session that it was offered to will not prove it any more. `handed`: the session had handed it over. If
        not, and if the session's queue was the cause, `why` says what was wrong with it. If it had, and waits no longer
        for a client that can't prove it, `why` is NO_PROOF_POSSIBLE."""


def keys_of(pushes: Iterable[Offered]) -> set[RowKey]:
    """The keys of these."""
    return {push.key for push in pushes}
