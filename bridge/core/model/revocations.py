"""What a revocation names: tokens that open no session any more."""

from __future__ import annotations

import msgspec


class Revocation(msgspec.Struct, frozen=True):
    """One revocation: of a user's tokens up to a time, of one token, or of a session and the token that opened it."""

    user: str = ""
    before: float = 0.0
    """The user's tokens that were issued before this are revoked (unix seconds), and those that do not say when."""
    token_id: str = ""
    session: str = ""

    def named(self) -> dict[str, object]:
        """What it names, by the words of the contract."""
        if self.user:
            return {"user": self.user, "before": self.before}
        given = {"jti": self.token_id, "session": self.session}
        return {word: value for word, value in given.items() if value}


class RevocationAnswer(msgspec.Struct, frozen=True):
    """What came of a revocation."""

    sessions: int
    """Sessions that it closed, on all nodes that have answered."""
    nodes: tuple[str, ...]
    """Live nodes that have closed what they had of it, and refuse its tokens."""
    silent: tuple[str, ...]
    """Live nodes that have not said so in time. They will, as soon as they reach the database."""
    gone: tuple[str, ...] = ()
    """Nodes that are not alive any more, or cut off, and had such a session within the last minute. They send nothing;
    what they had handed to their machine by then may still be read."""
