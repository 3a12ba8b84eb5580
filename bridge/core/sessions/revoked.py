"""Which tokens are revoked: the revocations in memory, as a handshake asks for them."""

from __future__ import annotations

import itertools

from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, Refusal

UNREAD = Refusal(503, "starting", "The service is starting, come back in a moment.")
"""Before the revocations have been read, nobody knows which tokens are good."""
REVOKED = Refusal(401, "revoked", "The token was refused: revoked.")
LONG_LIVED = Refusal(
    401, "long_lived", "The token was refused: it is good for longer than BRIDGE_TOKEN_DAYS allows."
)


class Revoked:
    """The revocations that have been read. `token_seconds`: for how long a token may be good; revocations are kept for
    as long, so that each outlives every token that it means."""

    def __init__(self, token_seconds: float) -> None:
        self.token_seconds = token_seconds
        self.read = False
        """Whether all that were there at the start have been read, and this node has said so."""
        # Both in the order of `kept_until`, which is that of their commits; but for those `before` a time to come.
        self._users: dict[str, tuple[float, float]] = {}
        self._tokens: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._users) + len(self._tokens)

    def note(self, revocation: Revocation, kept_until: float) -> None:
        """This one was committed; idempotent."""
        if revocation.user:
            before, until = self._users.pop(revocation.user, (0.0, 0.0))
            self._users[revocation.user] = max(before, revocation.before), max(until, kept_until)
        if revocation.token_id:
            until = self._tokens.pop(revocation.token_id, 0.0)
            self._tokens[revocation.token_id] = max(until, kept_until)

    def means(self, token_id: str) -> bool:
        """Whether the token with this id is revoked by its id."""
        return token_id in self._tokens

    def covers(self, claims: Claims) -> bool:
        """Whether this token is revoked. One that does not say when it was issued may be older than any revocation."""
        if claims.token_id in self._tokens:
            return True
        found = self._users.get(claims.user)
        return found is not None and (claims.issued_at is None or claims.issued_at < found[0])

    def refusal(self, claims: Claims, now: float) -> Refusal | None:
        """Why a session with these claims may not open at `now` (unix seconds), as far as revocations go; else None."""
        if not self.read:
            return UNREAD
        if self.covers(claims):
            return REVOKED
        begins = now if claims.issued_at is None else min(claims.issued_at, now)
        return LONG_LIVED if claims.expires_at > begins + self.token_seconds else None

    def forget(self, now: float) -> None:
        """Forget revocations that are not kept any more at `now` (unix seconds)."""
        # Each is looked for once: the first entry of a dictionary is found past all that were deleted before it.
        for token_id in list(itertools.takewhile(lambda one: self._tokens[one] <= now, self._tokens)):
            del self._tokens[token_id]
        gone = list(itertools.takewhile(lambda one: self._users[one][1] <= now, self._users))
        for user in gone:
            del self._users[user]
        for user, (before, _) in self._users.items():
            if before > now:
                # It is kept for longer than those behind it, perhaps for centuries: they do not wait for it.
                self._users[user] = self._users.pop(user)
            return
