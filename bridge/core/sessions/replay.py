"""How far a session has come with what is kept for its user."""

from __future__ import annotations


class Replay:
    """How far a session has come with what is kept for its user. Positions are those of `Row.position`."""

    __slots__ = ("after", "again", "asked", "began", "full", "last", "missed", "resumed", "seen", "until")

    def __init__(
        self, *, after: int, until: int, seen: int | None = None, last: str | None = None, again: bool = False
    ) -> None:
        self.after = after
        """What is up to here was offered."""
        self.until = until
        """What was taken after this is not read but held."""
        self.seen = seen
        """See `MailboxAsk.seen`."""
        self.last = last
        """The push the client has seen last, while it is not yet known where in the mailbox that is."""
        self.again = again
        """A round for pushes that this session was handed before and did not prove."""
        self.asked = False
        """Its next page was asked for, and has not come yet."""
        self.full = False
        """There was no room for all of the last page: the next is of no use before the socket takes bytes."""
        self.missed: int | None = None
        """The position of the first push that could not be held: another round begins with it."""
        self.resumed: int | None = None
        """The position of the push it resumed after, where its client was told that everything since will come."""
        self.began = 0.0
        """Monotonic seconds of the session's opening, where the client resumes."""
