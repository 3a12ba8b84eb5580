"""How far a session has come with what is kept for its user."""

from __future__ import annotations

from typing import NamedTuple

from bridge.core.inflight.offered import Offered
from bridge.core.model.rows import RowKey


class Other(NamedTuple):
    """A kept push of another node that sessions here have, or had."""

    position: int
    push: Offered | None
    """None where the last of them has done with it,"""
    proven: bool
    """and whether it had its proof then."""


class Replay:
    """How far a session has come with what is kept for its user. Positions are those of `Row.position`."""

    __slots__ = (
        "after",
        "again",
        "asked",
        "awaits",
        "began",
        "exact",
        "full",
        "last",
        "missed",
        "others",
        "parked",
        "resumed",
        "rung",
        "seen",
        "until",
    )

    def __init__(
        self, *, after: int, until: int, seen: int | None = None, last: str | None = None, again: bool = False
    ) -> None:
        self.after = after
        """Pushes up to this position were offered."""
        self.until = until
        """Pushes that were taken after this position are not read: the session holds them."""
        self.seen = seen
        """See `MailboxAsk.seen`."""
        self.last = last
        """The push the client has seen last, while its position is not yet known."""
        self.again = again
        """Whether this round is for pushes that the session was handed before and did not prove."""
        self.exact = False
        """Whether nothing after `until` is read, not even what another node's clock may have put there."""
        self.asked = False
        """Its next page was asked for, and has not come yet."""
        self.awaits = 0
        """What is yet to come from elsewhere than the mailbox: it does not end before."""
        self.parked = False
        """All pages have come, and only that is awaited."""
        self.full = False
        """There was no room for all of the last page: no other is read before the socket takes bytes."""
        self.missed: int | None = None
        """The position of the first push that could not be held: the next round begins with it."""
        self.rung: int | None = None
        """The lowest position that another node has stored a push at since the last page was asked for."""
        self.resumed: int | None = None
        """The position of the push that it resumed after; None unless its client was promised everything since."""
        self.others: dict[RowKey, Other] | None = None
        """What the user's other sessions here have or had, and another node keeps, oldest first: it may have no row
        yet, and nothing newer is read before it has one. For a moment only."""
        self.began = 0.0
        """Monotonic seconds of the session's opening."""
