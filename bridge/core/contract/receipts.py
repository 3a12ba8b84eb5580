"""A row as the receipt that its publisher gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from bridge.core.contract.jsontext import encode
from bridge.core.model.outcomes import FINAL, Outcome, Reason
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Row, columns_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def receipt_body(row: Row, *, differs: bool = False) -> bytes:
    """A row as the JSON of its receipt: times in RFC 3339, UTC; null for what is not known.

    `differs`: it answers a request with the row's id and other content.
    """
    (body,) = receipt_bodies(columns_of([row]))
    return body[:-1] + b',"repeat":"differs"}' if differs else body


def receipt_bodies(c: Any) -> list[bytes]:
    """The receipts of the rows in these columns; see `columns_of`."""
    tenants, push_ids, users = zip(*c.key, strict=True)
    what = _each(_what, c.outcome, c.reason, c.event, c.topic, tenants)
    when = _each(_when, c.published_at, c.taken_at, c.written_at, c.proven_at, c.finished_at)
    where = _each(_where, c.sessions, c.attempts, c.node)
    return [
        b"".join(
            (
                b'{"push_id":',
                encode(push_id),
                b',"user_id":',
                b"null" if user == NO_USER else encode(user),
                of,
                at,
                by,
                b',"detail":' + encode(detail) if detail else b"",
                b"}",
            )
        )
        for push_id, user, of, at, by, detail in zip(
            push_ids, users, what, when, where, c.detail, strict=True
        )
    ]


def _each(write: Callable[..., bytes], *columns: Sequence[object]) -> Sequence[bytes]:
    """What is written for each row, whose fields are in these columns. A row mostly has what the one before it has."""
    written: list[bytes] = []
    before: tuple[object, ...] = ()
    for fields in zip(*columns, strict=True):
        if fields != before:
            before, text = fields, write(*fields)
        written.append(text)
    return written


# What many receipts share is written once.


@lru_cache(maxsize=1024)
def _what(outcome: Outcome, reason: Reason, event: str, topic: str, tenant: str) -> bytes:
    return b',"outcome":%b,"reason":%b,"final":%b,"event":%b%b,"tenant":%b' % (
        encode(outcome),
        encode(reason),
        b"true" if FINAL[outcome] else b"false",
        encode(event or None),
        b',"topic":' + encode(topic) if topic else b"",
        encode(tenant or None),
    )


@lru_cache(maxsize=1024)
def _when(
    published_at: float,
    taken_at: float,
    written_at: float | None,
    proven_at: float | None,
    finished_at: float | None,
) -> bytes:
    # The rows of a batch have most of their times in common.
    return b',"published_at":%b,"taken_at":%b,"written_at":%b,"proven_at":%b,"finished_at":%b' % (
        rfc3339(published_at),
        rfc3339(taken_at),
        rfc3339(written_at),
        rfc3339(proven_at),
        rfc3339(finished_at),
    )


@lru_cache(maxsize=1024)
def _where(sessions: int, attempts: int, node: str) -> bytes:
    return b',"sessions":%d,"attempts":%d,"node":%b' % (sessions, attempts, encode(node))


@lru_cache(maxsize=1024)
def rfc3339(seconds: float | None) -> bytes:
    """A time as JSON, in UTC; null for None."""
    # To the microsecond that the row gets: the library rounds the fraction of a float in another way.
    if seconds is None:
        return b"null"
    return encode(_EPOCH + timedelta(microseconds=round(seconds * 1_000_000)))
