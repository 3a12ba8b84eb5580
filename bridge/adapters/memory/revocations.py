"""The RevocationLog port in memory: for a log on stdout, and for tests of the core. Forgotten when the process ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.ports.clock import Clock
from bridge.core.ports.revocations import Marked, RevocationPage


class MemoryRevocations:
    """Revocations in a list; `token_seconds`: how long each is kept."""

    def __init__(self, clock: Clock, node: str, token_seconds: float) -> None:
        self._clock = clock
        self._node = node
        self._keep = token_seconds
        self._mark = 0
        self._rows: dict[int, Marked] = {}
        self._confirmed = 0
        self._closed: dict[int, int] = {}

    async def revoke(self, revocation: Revocation) -> int:
        """See the port."""
        now = self._clock.time()
        self._mark += 1
        for mark, row in list(self._rows.items()):
            if row.kept_until <= now or _says_no_more(row.revocation, revocation):
                del self._rows[mark]
        kept_until = max(now, revocation.before) + self._keep
        self._rows[self._mark] = Marked(self._mark, revocation, kept_until)
        return self._mark

    async def after(self, mark: int, limit: int) -> RevocationPage:
        """See the port."""
        now = self._clock.time()
        newer = [row for row in self._rows.values() if row.mark > mark and row.kept_until > now]
        if len(newer) > limit:
            return RevocationPage(newer[:limit], newer[limit - 1].mark, True)
        return RevocationPage(newer, max(mark, self._mark), False)

    async def ended(self) -> Sequence[str]:
        """See the port. There is no other node."""
        return ()

    async def confirm(self, mark: int, closed: Mapping[int, int]) -> None:
        """See the port."""
        self._confirmed = max(self._confirmed, mark)
        self._closed.update({mark: count for mark, count in closed.items() if count})

    async def answer(self, mark: int) -> RevocationAnswer:
        """See the port."""
        if self._confirmed < mark:
            return RevocationAnswer(0, (), (self._node,))
        row = self._rows.get(mark)
        session = row.revocation.session if row else ""
        meant = {m for m, other in self._rows.items() if session and other.revocation.session == session}
        return RevocationAnswer(sum(self._closed.get(m, 0) for m in meant | {mark}), (self._node,), ())

    async def gone(self, mark: int) -> Sequence[str]:
        """See the port. There is no other node."""
        return ()


def _says_no_more(older: Revocation, newer: Revocation) -> bool:
    if older.user:
        return older.user == newer.user and older.before <= newer.before
    return (older.token_id, older.session) == (newer.token_id, newer.session)
