"""Where a push belongs among those that a session holds. Frames that are about a push follow it, and have no place of
their own.

A push may come after a newer one: nobody was there when it came first, and its owner has sent it once more.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.inflight.offered import Offered
from bridge.core.ports.sockets import Frame


def place_for(position: int, held: Sequence[tuple[Frame, Offered | None]]) -> int:
    """How many of these come before a push at this position. Nearly always all of them do."""
    place = at = len(held)
    while at:
        at -= 1
        other = held[at][1]
        if other is None:
            continue
        if other.position <= position:
            break
        place = at
    return place


def how_many_before(position: int, held: Sequence[tuple[Frame, Offered | None]]) -> int:
    """How many of these there are up to the last push before this position."""
    count = 0
    for number, (_, push) in enumerate(held, 1):
        if push is None:
            continue
        if push.position >= position:
            break
        count = number
    return count
