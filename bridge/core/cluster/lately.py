"""Which processes had sessions of a user when that was last asked: the first guess for the next push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bridge.core.cluster.neighbours import Neighbours

USERS_MAX: Final = 50_000
"""Users that are remembered; over it the first ones are forgotten. For those nothing is guessed."""


class Lately:
    """Remembers the last answers. A wrong guess costs a letter and its answer."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._boots: dict[str, tuple[str, ...]] = {}

    def guess(self, user: str) -> Sequence[str] | None:
        """The processes that probably have sessions of this user now; None where that is not known."""
        boots = self._boots.get(user)
        if not boots:
            return boots
        return [boot for boot in boots if self._neighbours.of_boot(boot) is not None]

    def found(self, user: str, boots: Sequence[str]) -> None:
        """This was the answer."""
        self._boots[user] = tuple(boots)
        if len(self._boots) > USERS_MAX:
            del self._boots[next(iter(self._boots))]

    def forget(self, user: str) -> None:
        """The guess was wrong, or is worth nothing. Idempotent."""
        self._boots.pop(user, None)
