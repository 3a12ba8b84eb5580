"""What the store in memory has of fallbacks: who publishes which, and which are published."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec

from bridge.core.model.rows import DueFallback, Row, RowKey

_GRACE = 1.0
"""Seconds that a fallback is due before it is claimed: the row of a proof that came in time is written by then."""
_FOREIGN = 10.0
"""Seconds until it is claimed by another than who has written its row, and lives."""


class FallbackClaims:
    """The claims of fallbacks, by row."""

    def __init__(self) -> None:
        self.claims: dict[RowKey, str] = {}
        """The boot that publishes the fallback of each row."""
        self.published: dict[RowKey, float] = {}
        """When the fallback of each row was published."""

    def claim(
        self,
        boot: str,
        due: Iterable[Row],
        living: Collection[str],
        now: float,
        limit: int,
        payload_bytes: int,
    ) -> list[DueFallback]:
        """Claim some of these for a boot. `living`: those whose claims stand, and whose rows are left to them at
        first."""
        claimed: list[DueFallback] = []
        size = 0
        for row in due:
            if len(claimed) == limit or size >= payload_bytes:
                break
            theirs = row.boot != boot and row.boot in living
            if theirs and row.fallback_due is not None and row.fallback_due > now - _FOREIGN:
                continue
            claim = self.claims.get(row.key, boot)
            if claim == boot or claim not in living:
                self.claims[row.key] = boot
                size += len(row.payload or b"")
                claimed.append(
                    DueFallback(
                        msgspec.structs.replace(
                            row, fallback_due=None, fallback_key="", excluded=frozenset()
                        ),
                        row.fallback_key,
                    )
                )
        return claimed

    def give_up(self, boot: str, rows: Sequence[Row]) -> list[RowKey]:
        """Those of these rows that this boot has claimed; it has no more."""
        mine = [row.key for row in rows if self.claims.get(row.key) == boot]
        for key in mine:
            del self.claims[key]
        return mine

    def forget(self, key: RowKey) -> None:
        """There is no such row any more."""
        self.claims.pop(key, None)
        self.published.pop(key, None)


def due_fallbacks(rows: Iterable[Row], now: float) -> list[Row]:
    """The rows whose fallbacks may be claimed, the earliest first."""
    due = [(row.fallback_due, row) for row in rows if row.fallback_due is not None]
    return [row for at, row in sorted(due, key=lambda one: one[0]) if at <= now - _GRACE]


def later(row: Row, at: float) -> Row:
    """The row with its fallback due at this time, unless it is due later anyway, or not at all."""
    if row.fallback_due is None:
        return row
    return msgspec.structs.replace(row, fallback_due=max(row.fallback_due, at))
