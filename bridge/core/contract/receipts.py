"""A row as the receipt that its publisher gets."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from bridge.core.contract.jsontext import encode
from bridge.core.model.outcomes import FINAL, Outcome, Reason
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Row


def receipt_body(row: Row, *, differs: bool = False) -> bytes:
    """A row as the JSON of its receipt: times in RFC 3339, UTC; null for what is not known.

    `differs`: it answers a request with the row's id and other content.
    """
    tenant, push_id, user = row.key
    return (
        b'{"push_id":%b,"user_id":%b,%b,"event":%b,"tenant":%b,"published_at":%b,"taken_at":%b,"written_at":%b,'
        b'"proven_at":%b,"finished_at":%b,"sessions":%d,"attempts":%d,"node":%b%b%b}'
        % (
            encode(push_id),
            b"null" if user == NO_USER else encode(user),
            _ending(row.outcome, row.reason),
            _often(row.event),
            _often(tenant),
            _time(row.published_at),
            _time(row.taken_at),
            _time(row.written_at),
            _time(row.proven_at),
            _time(row.finished_at),
            row.sessions,
            row.attempts,
            _often(row.node),
            b',"detail":%b' % encode(row.detail) if row.detail else b"",
            b',"repeat":"differs"' if differs else b"",
        )
    )


# What many receipts share is written once.


@lru_cache(maxsize=256)
def _ending(outcome: Outcome, reason: Reason) -> bytes:
    final = b"true" if FINAL[outcome] else b"false"
    return b'"outcome":%b,"reason":%b,"final":%b' % (encode(outcome), encode(reason), final)


@lru_cache(maxsize=1024)
def _often(text: str) -> bytes:
    return encode(text or None)


@lru_cache(maxsize=1024)
def _time(seconds: float | None) -> bytes:
    return b"null" if seconds is None else encode(datetime.fromtimestamp(seconds, UTC))
