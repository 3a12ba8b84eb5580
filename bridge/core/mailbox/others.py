"""What a user's other sessions have of another node when a session opens: that session is to read it.

The other node, which took these pushes, does not know of the new session, and this one has their data no more. The
owner writes a row of each within a second, or as soon as it has ended. Until then the new session is not shown anything
newer.
"""

from __future__ import annotations

from typing import Final

from bridge.core.inflight.offered import Offered
from bridge.core.model.rows import RowKey
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.replay import Replay
from bridge.core.sessions.session import Session

OTHERS_EVERY: Final = 0.1
"""Seconds until rows are looked for again that another node is about to write,"""
OTHERS_FOR: Final = 2.0
"""and after which they are not waited for any more."""


def others_of(hub: Hub, session: Session) -> dict[RowKey, Offered] | None:
    """See `Replay.others`, for a session that opens now."""
    found = {
        push.key: push
        for other in hub.of_user(session.user)
        if other is not session
        for push in (*other.waiting_pushes(), *other.handed_pushes())
        if push.kept_elsewhere
    }
    return found or None


def waits_for_others(replay: Replay, now: float) -> bool:
    """Whether some of them are yet to be read. Who has not resumed needs none that another session has proven."""
    if replay.others is None or now - replay.began >= OTHERS_FOR:
        return False
    return any(push.kept_elsewhere or replay.resumed is not None for push in replay.others.values())
