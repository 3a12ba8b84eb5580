"""Write rows to the log: a whole batch if possible, in parts where that fails, and without fields that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from bridge.core.bounds import StatementBounds
from bridge.core.errors import RowsRefused, StatementFailed
from bridge.core.model.rows import Row
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.store import Store, Written
from bridge.core.settlement.persistence import Persistence, parts_of

SUSPECT_FIELDS = ("meta", "payload", "app_id", "traceparent", "detail", "ack_within", "published_at")
"""Fields that publishers fill and a database may refuse. None of them is part of the truth about the push."""


class Recorder:
    """Writes batches of rows. The caller retries rows that could not be written."""

    def __init__(
        self, store: Store, persistence: Persistence, errors: ErrorHandler, bounds: StatementBounds
    ) -> None:
        self._store = store
        self._persistence = persistence
        self._errors = errors
        self._parts = bounds.parts
        self._give_up = bounds.give_up

    async def record(self, rows: Sequence[Row], *, tried: bool = False) -> list[Written | None]:
        """Write these rows, one per key. The result is None for a row that fails alone or that another transaction
        has locked, and for all rows that are left after `give_up` failures in a row. `tried`: these rows may have been
        written before."""
        self._persistence.unsure = tried
        written = await self._write(rows)
        if self._persistence.unsure:
            # An earlier try of this write may have been committed, and its answer lost.
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
                    waiting += reversed(parts_of(places, self._parts))
            except StatementFailed as failed:
                failures += 1
                if len(some) > 1 and failures < self._give_up:
                    waiting += reversed(parts_of(places, self._parts))
                    continue
                self._errors.handle(failed, "store.record", {"push_id": some[0].key.push_id})
                if failures >= self._give_up:
                    break
            else:
                failures = 0
                for place, result in zip(places, written, strict=True):
                    results[place] = None if result.applied is None else result
        return results

    async def _without_what_is_refused(self, row: Row, refused: RowsRefused) -> Written | None:
        """Write the row without the field that the database refuses: without each in turn, then without all of them."""
        self._errors.handle(refused, "store.record", {"push_id": row.key.push_id})
        single = [(name,) for name in SUSPECT_FIELDS if _without(row, (name,)) != row]
        for names in (*single, SUSPECT_FIELDS):
            plain = _without(row, names)
            left_out = ", ".join(names) if names != SUSPECT_FIELDS else "what publishers fill"
            # The row's own detail comes first, unless it is the field that is left out.
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
        # Refused even without all of them. Its keys are checked, so this is a defect, and must not stop the service.
        self._errors.handle(refused, "store.record", {"push_id": row.key.push_id})
        return None


def _without(row: Row, names: Sequence[str]) -> Row:
    """The row without these fields. The data that is still needed stays: it is bytes, which no database refuses."""
    empty: dict[str, object] = {
        "meta": b"",
        "payload": row.payload if row.expires_at is not None or row.fallback_due is not None else None,
        "app_id": "",
        "traceparent": "",
        "detail": "",
        "ack_within": 0.0,
        "published_at": row.taken_at,
    }
    return msgspec.structs.replace(row, **{name: empty[name] for name in names})
