"""Decide which mailboxes to measure: those that have grown much, and those that grew some time ago.

Measuring a mailbox reads an index entry for each push in it, up to its bounds, which may be ten thousand. A mailbox
that is over its bounds by a hundredth for a moment does no harm. Growth is remembered for a bounded number of users.
The patrol finds the others: it measures every mailbox in its turn.
"""

from __future__ import annotations

import itertools

import msgspec

from bridge.core.bounds import MailboxBounds


class MailboxLimits(msgspec.Struct, frozen=True):
    """The bounds of one user's mailbox; over them its oldest pushes end as `dropped`/`mailbox_full`."""

    pushes: int = 10_000
    total_bytes: int = 64 * 1024 * 1024


class Growth:
    """What was stored for a user since the mailbox was last measured."""

    __slots__ = ("pushes", "since", "total_bytes")

    def __init__(self, since: float) -> None:
        self.since = since
        """Monotonic seconds of the first push."""
        self.pushes = 0
        self.total_bytes = 0


class Measuring:
    """Remembers growth, and returns users whose mailboxes must be measured. `now` is monotonic seconds."""

    def __init__(self, limits: MailboxLimits, bounds: MailboxBounds) -> None:
        self._pushes = limits.pushes / bounds.measured_share
        self._total_bytes = limits.total_bytes / bounds.measured_share
        self._after = bounds.measured_after
        self._users_max = bounds.growth_users
        self._grown: dict[str, Growth] = {}
        """By user, the earliest first growth first."""
        self._much: dict[str, None] = {}
        """Users of `_grown` whose mailbox has grown by a share of a bound."""

    def __len__(self) -> int:
        return len(self._grown)

    def stored(self, user: str, payload_bytes: int, now: float) -> None:
        """A push of this user was stored, or stored again."""
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
        """Return at most `most` users to measure now; they count as measured."""
        users = list(itertools.islice(self._much, most))
        for user, growth in self._grown.items():
            if len(users) >= most or now - growth.since < self._after:
                break
            if user not in self._much:
                users.append(user)
        for user in users:
            self._forget(user)
        return users
