"""Hooks that count open sessions by user, and outcomes: BRIDGE_HOOKS=presence:make."""

from collections import Counter

from bridge.plugins import Row, SessionInfo


class Presence:
    """Has only the methods it needs; `on_error` is not among them."""

    def __init__(self) -> None:
        self.present: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()

    def on_open(self, session: SessionInfo) -> None:
        """A session opened: called in the event loop, so it must return quickly."""
        self.present[session.user] += 1

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        """A session ended."""
        self.present[session.user] -= 1
        if not self.present[session.user]:
            del self.present[session.user]

    def on_outcome(self, row: Row) -> None:
        """A row was committed; `pending` is not its final outcome."""
        if row.final:
            self.ends[row.outcome.value] += 1


def make() -> Presence:
    """Called once at the start."""
    return Presence()
