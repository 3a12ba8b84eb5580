"""Rows into the log: whole batches where they go in, less at a time where they do not, what is left over told apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from bridge.core.errors import RowsRefused, StatementFailed
from bridge.core.model.rows import Row
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store, Written
from bridge.core.settlement.persistence import GIVE_UP, Persistence, parts_of

SUSPECT_FIELDS = ("meta", "payload", "app_id", "traceparent", "detail", "ack_within", "published_at")
"""What publishers fill and a database may refuse; nothing of it is part of the truth about the push."""


class Recorder:
    """Writes batches of rows. A row that can't be written is the caller's to try again later."""

    def __init__(self, store: Store, persistence: Persistence, errors: ErrorHandler) -> None:
        self._store = store
        self._persistence = persistence
        self._errors = errors

    async def record(self, rows: Sequence[Row], *, tried: bool = False) -> list[Written | None]:
        """Write these rows, one per key; None for one that fails alone, or that somebody else holds, and for those
        that are left when nothing goes through any more. `tried`: these writes may have been carried out before."""
        self._persistence.unsure = tried
        written = await self._write(rows)
        if self._persistence.unsure:
            # An earlier try of this very write may have been committed though its answer was lost.
            written = [
                Written(w.row, applied=True) if w is not None and not w.applied and w.row.ended_by(row) else w
                for row, w in zip(rows, written, strict=True)
            ]
        return written

    async def _write(self, rows: Sequence[Row]) -> list[Written | None]:
        results: list[Written | None] = [None] * len(rows)
        failures = 0
        waiting: list[Sequence[int]] = [range(len(rows))] if rows else []
        while waiting:
            places = waiting.pop()
            some = [rows[place] for place in places]
            try:
                written = await self._persistence.call(partial(self._store.record, some))
            except RowsRefused as refused:
                if len(some) == 1:
                    results[places[0]] = await self._without_what_is_refused(some[0], refused)
                else:
                    waiting += reversed(parts_of(places))
            except StatementFailed as failed:
                failures += 1
                if len(some) > 1 and failures < GIVE_UP:
                    waiting += reversed(parts_of(places))
                    continue
                self._errors.handle(failed, "store.record", {"push_id": some[0].key.push_id})
                if failures >= GIVE_UP:
                    break
            else:
                failures = 0
                for place, result in zip(places, written, strict=True):
                    results[place] = None if result.applied is None else result
        return results

    async def _without_what_is_refused(self, row: Row, refused: RowsRefused) -> Written | None:
        """Find what the database refuses, and write the row without it: one thing alone, or all that may be it."""
        self._errors.handle(refused, "store.record", {"push_id": row.key.push_id})
        single = [(name,) for name in SUSPECT_FIELDS if _without(row, (name,)) != row]
        for names in (*single, SUSPECT_FIELDS):
            plain = _without(row, names)
            left_out = ", ".join(names) if names != SUSPECT_FIELDS else "what publishers fill"
            # The first detail matters more than this one, where it is not what is refused.
            note = f"left out what the database refused ({refused.sqlstate}): {left_out}"
            detail = f"{plain.detail} ({note})" if plain.detail else note
            try:
                again = [msgspec.structs.replace(plain, detail=detail)]
                [written] = await self._persistence.call(partial(self._store.record, again))
            except RowsRefused as once_more:
                refused = once_more
            except StatementFailed as failed:
                self._errors.handle(failed, "store.record", {"push_id": row.key.push_id})
                return None
            else:
                return None if written.applied is None else written
        # Not even without all of that: its keys are checked, so this is a defect. It must not cost the service.
        self._errors.handle(refused, "store.record", {"push_id": row.key.push_id})
        return None


def _without(row: Row, names: Sequence[str]) -> Row:
    """The same truth without these fields. The data of a kept push are bytes that no database refuses."""
    empty: dict[str, object] = {
        "meta": b"",
        "payload": row.payload if row.expires_at is not None else None,
        "app_id": "",
        "traceparent": "",
        "detail": "",
        "ack_within": 0.0,
        "published_at": row.taken_at,
    }
    return msgspec.structs.replace(row, **{name: empty[name] for name in names})
