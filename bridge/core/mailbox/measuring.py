"""Which mailboxes are to be measured: those that have grown much, or some time ago, and each in its turn.

To measure one is to read an index entry of what is in it, up to its bounds, which may be ten thousand; and a mailbox
that is over its bounds by a hundredth for a moment harms nobody. Growth is remembered for so many users; what is
forgotten then is found by the patrol, which comes by every mailbox however many there are.
"""

from __future__ import annotations

import itertools

import msgspec

SHARE = 100
"""A mailbox is measured at once when it has grown by this part of a bound."""
PATIENCE = 10.0
"""Seconds after which it is measured in any case."""
USERS_MAX = 50_000
"""Users whose growth is remembered; over it the one that was measured longest ago is left to the patrol."""


class MailboxLimits(msgspec.Struct, frozen=True):
    """The bounds of one user's mailbox; over them its oldest pushes end as `dropped`/`mailbox_full`."""

    pushes: int = 10_000
    total_bytes: int = 64 * 1024 * 1024


class Growth:
    """What was stored for a user since the mailbox was last measured."""

    __slots__ = ("pushes", "since", "total_bytes")

    def __init__(self, since: float) -> None:
        self.since = since
        """Monotonic seconds of the first of it."""
        self.pushes = 0
        self.total_bytes = 0


class Measuring:
    """Remembers growth, and gives out users to be measured. `now` is monotonic seconds."""

    def __init__(self, limits: MailboxLimits, users_max: int = USERS_MAX) -> None:
        self._pushes = limits.pushes / SHARE
        self._total_bytes = limits.total_bytes / SHARE
        self._users_max = users_max
        self._grown: dict[str, Growth] = {}
        """By user, the longest ago first."""
        self._much: dict[str, None] = {}
        """Those of them that have grown by a share of a bound."""

    def __len__(self) -> int:
        return len(self._grown)

    def stored(self, user: str, payload_bytes: int, now: float) -> None:
        """A push of this user was stored, or stored once more."""
        growth = self._grown.get(user)
        if growth is None:
            growth = self._grown[user] = Growth(now)
            if len(self._grown) > self._users_max:
                self._forget(next(iter(self._grown)))
        growth.pushes += 1
        growth.total_bytes += payload_bytes
        if growth.pushes >= self._pushes or growth.total_bytes >= self._total_bytes:
            self._much[user] = None

    def _forget(self, user: str) -> None:
        del self._grown[user]
        self._much.pop(user, None)

    def take(self, most: int, now: float) -> list[str]:
        """At most so many users that are to be measured now; they count as measured."""
        users = list(itertools.islice(self._much, most))
        for user, growth in self._grown.items():
            if len(users) >= most or now - growth.since < PATIENCE:
                break
            if user not in self._much:
                users.append(user)
        for user in users:
            self._forget(user)
        return users
