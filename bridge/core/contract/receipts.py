"""A row as the receipt that its publisher gets."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from bridge.core.contract.jsontext import encode
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Row


class _Receipt(msgspec.Struct, omit_defaults=True, gc=False):
    push_id: str
    user_id: str | None
    outcome: str
    reason: str
    final: bool
    event: str | None
    tenant: str | None
    published_at: datetime
    taken_at: datetime
    written_at: datetime | None
    proven_at: datetime | None
    finished_at: datetime | None
    sessions: int
    attempts: int
    node: str
    detail: str = ""
    repeat: str = ""


def receipt_body(row: Row, *, differs: bool = False) -> bytes:
    """A row as the JSON of its receipt: times in RFC 3339, UTC; null for what is not known.

    `differs`: it answers a request with the row's id and other content.
    """
    key = row.key
    return encode(
        _Receipt(
            key.push_id,
            None if key.user == NO_USER else key.user,
            row.outcome,
            row.reason,
            row.final,
            row.event or None,
            key.tenant or None,
            datetime.fromtimestamp(row.published_at, UTC),
            datetime.fromtimestamp(row.taken_at, UTC),
            None if row.written_at is None else datetime.fromtimestamp(row.written_at, UTC),
            None if row.proven_at is None else datetime.fromtimestamp(row.proven_at, UTC),
            None if row.finished_at is None else datetime.fromtimestamp(row.finished_at, UTC),
            row.sessions,
            row.attempts,
            row.node,
            row.detail,
            "differs" if differs else "",
        )
    )
