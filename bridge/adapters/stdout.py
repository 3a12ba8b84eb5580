"""A DeliveryLog of JSON lines: one object each time a row is committed, with the names of view `delivery`."""

from __future__ import annotations

import asyncio
import datetime
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

import msgspec

from bridge.core.errors import BridgeError
from bridge.core.model.outcomes import Outcome
from bridge.core.model.parties import PARTIES
from bridge.core.model.rows import Row

_FIRST, _LAST = -62135596800.0, 253402300799.0
"""0001-01-01 and 9999-12-31T23:59:59 in seconds since the epoch."""
_LINE_BREAKS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}
"""Line breaks that JSON does not escape; some readers would end a line there."""


class LogUnwritable(BridgeError):
    """The stream of a delivery log can't be written to; `cause` is what the system said."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(f"the delivery log can't be written: {cause}")


class JsonLinesLog:
    """Writes each batch of rows to a stream at once, in one piece, and flushes it.

    Whether a written row is durable depends on whoever reads the stream. A batch that is recorded again, after an
    error or a cancellation, is written again: the lines of one key agree, and the last one counts.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        # A cancelled call leaves its thread running, and the next must not write into its line.
        self._lock = threading.Lock()

    async def record(self, rows: Sequence[Row]) -> None:
        """See `DeliveryLog.record`. It writes in a thread, since a reader that stands still blocks the write."""
        if rows:
            text = "".join([line_of(row) for row in rows])
            try:
                await asyncio.to_thread(self._write, text)
            except (OSError, ValueError) as error:
                raise LogUnwritable(str(error)) from error

    def _write(self, text: str) -> None:
        with self._lock:
            self._stream.write(text)
            self._stream.flush()


def line_of(row: Row) -> str:
    """The row as one line of JSON; times in RFC 3339, UTC."""
    fields: dict[str, object] = {
        "push_id": row.key.push_id,
        "user_id": row.key.user or None,
        "outcome": row.outcome,
        "reason": row.reason,
        "final": row.final,
        "event": row.event,
        "app_id": row.app_id,
        "tenant": row.key.tenant,
        # Decoded and encoded again, since it may hold line breaks.
        "meta": msgspec.json.decode(row.meta) if row.meta else None,
        "published_at": _time(row.published_at),
        "taken_at": _time(row.taken_at),
        "written_at": _time(row.written_at),
        "proven_at": _time(row.proven_at),
        "finished_at": _time(row.finished_at),
        "sessions": row.sessions,
        "attempts": row.attempts,
        "node": row.node,
        "detail": row.detail,
        "expires_at": _time(row.expires_at),
        "late_at": _time(row.late_at),
        "topic": row.topic or None,
        "session": row.session or None,
        "holder": row.holder or (row.node if row.session else None),
        "batch_id": row.batch_id or None,
        "batch_position": row.batch_position,
        "confirm": None if row.outcome is Outcome.REJECTED else row.confirm.name.lower(),
        "ttl": None if row.expires_at is None else round(row.expires_at - row.published_at, 3),
        "data_bytes": row.data_bytes,
        "collapse_key": row.collapse_key or None,
        "party": PARTIES[row.reason],
    }
    line = msgspec.json.encode(fields).decode()
    if not line.isascii():
        line = line.translate(_LINE_BREAKS)
    return line + "\n"


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    # A publisher may give any time, and years of four digits end before the database's do.
    seconds = min(max(seconds, _FIRST), _LAST)
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="microseconds")
