"""What other nodes have not heard is said again, in the order in which it was said first.

While a node can't be reached, only a few of them are tried each second, whatever their number. Once one of its letters
arrives, the next few follow, until all are said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Final, NamedTuple

from bridge.core.contract.letters import Item

UNHEARD_MAX: Final = 100_000
"""Reports, rings or recalls that are kept to be said again."""
AT_ONCE: Final = 500
"""How many are said to one process in one turn of the loop: about a letter."""


class _Unsaid(NamedTuple):
    number: int
    """In the order in which they were said first."""
    item: Item
    say: Callable[[int], None]


class Unheard:
    """What could not be delivered, by process."""

    def __init__(self, most: int = UNHEARD_MAX) -> None:
        self._most = most
        self._lines: dict[str, list[_Unsaid]] = {}
        self._size = 0
        self._last = 0

    def __len__(self) -> int:
        return self._size

    @property
    def full(self) -> bool:
        """Whether there is as much as may be kept."""
        return self._size >= self._most

    def __contains__(self, boot: str) -> bool:
        """Whether the process with this boot has not heard something."""
        return boot in self._lines

    @property
    def boots(self) -> Sequence[str]:
        """The processes that have not heard something."""
        return list(self._lines)

    def of(self, boot: str) -> Sequence[Item]:
        """What the process with this boot has not heard."""
        return [one.item for one in self._lines.get(boot, ())]

    def add(self, boot: str, item: Item, say: Callable[[int], None], number: int) -> None:
        """The process with this boot has not heard this. `say` says it again, and is given the number that it is to
        come back with if that fails, too; 0: it has none yet."""
        if not number:
            self._last += 1
            number = self._last
        heappush(self._lines.setdefault(boot, []), _Unsaid(number, item, say))
        self._size += 1

    def say_some(self, boot: str) -> None:
        """Say the oldest again."""
        for _ in range(min(AT_ONCE, len(self._lines.get(boot, ())))):
            one = self._next(boot)
            one.say(one.number)

    def drop_oldest(self, boot: str) -> None:
        """Forget the oldest one, of this process if it has any."""
        self._next(boot if boot in self._lines else next(iter(self._lines)))

    def _next(self, boot: str) -> _Unsaid:
        line = self._lines[boot]
        self._size -= 1
        one = heappop(line)
        if not line:
            del self._lines[boot]
        return one
