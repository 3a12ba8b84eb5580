"""What the store in memory does with one row: refuse it, update it, return it without its payload."""

from __future__ import annotations

import msgspec

from bridge.core.errors import RowsRefused
from bridge.core.model.outcomes import DELIVERED, Outcome, Proof, Reason
from bridge.core.model.rows import Row, merged

_TIME_MAX = 9e12
"""About the year 287,000, as in Postgres."""


def light(row: Row) -> Row:
    """A row as it is returned: without its payload, which may be large."""
    return msgspec.structs.replace(
        row, payload=None, excluded=frozenset(), fallback_due=None, fallback_key=""
    )


def lean(row: Row) -> Row:
    """A row without anything that its push carries."""
    return msgspec.structs.replace(light(row), meta=b"")


def kept_bytes(row: Row) -> int:
    """What a row counts for in its mailbox."""
    excluded = len(msgspec.json.encode(sorted(row.excluded))) if row.excluded else 0
    return len(row.payload or b"") + excluded


def updated(have: Row, new: Row) -> Row:
    """What an update makes of a row that is not final; `record_rows` of `schema.sql` does the same."""
    same_boot = have.node == new.node and have.boot == new.boot
    session, holder = have.session, ""
    if new.session and (new.proven_at is not None or not session):
        session, holder = new.session, new.holder
    elif session and (have.holder or have.node) != new.node:
        holder = have.holder or have.node
    owed = new.owed if have.owed is None else merged(have.owed, new.owed or ())
    written = msgspec.structs.replace(
        have,
        outcome=new.outcome,
        reason=new.reason,
        sessions=max(have.sessions, new.sessions),
        attempts=max(have.attempts, new.attempts) if same_boot else have.attempts + new.attempts,
        written_at=new.written_at if have.written_at is None else have.written_at,
        proven_at=have.proven_at if new.proven_at is None else new.proven_at,
        finished_at=new.finished_at,
        node=new.node,
        boot=new.boot,
        detail=new.detail,
        payload=new.payload if have.payload is None else have.payload,
        owed=owed,
        position=have.position or new.position,
        expires_at=new.expires_at if have.expires_at is None else have.expires_at,
        encoding=new.encoding if have.expires_at is None else have.encoding,
        excluded=have.excluded or new.excluded,
        collapse_key=have.collapse_key or new.collapse_key,
        ack_within=have.ack_within or new.ack_within,
        session=session,
        holder=holder,
    )
    cared_for = written.proven_at is not None or (
        have.confirm is Proof.WRITTEN and new.written_at is not None
    )
    return cancelled(written) if cared_for or new.outcome in NO_FALLBACK else written


def cancelled(row: Row) -> Row:
    """The row when nobody needs its fallback any more; its data goes with it, unless it is kept."""
    if not row.fallback_key:
        return row
    payload = None if row.expires_at is None else row.payload
    return msgspec.structs.replace(row, fallback_due=None, payload=payload)


def forgotten(row: Row) -> Row:
    """The row when its push is recalled: the data that was kept of a delivered one is gone."""
    return msgspec.structs.replace(row, payload=None) if is_kept(row) else row


def is_kept(row: Row) -> bool:
    """Whether it was delivered, and its data is kept for who resumes."""
    return row.outcome in DELIVERED and row.expires_at is not None


def died(row: Row, now: float) -> Row:
    """The row when the boot that had it is dead."""
    proven = row.proven_at is not None
    return msgspec.structs.replace(
        row,
        outcome=Outcome.RECEIVED if proven else Outcome.UNKNOWN,
        reason=Reason.NOT_ACKED if proven else Reason.NODE_DIED,
        finished_at=now,
    )


NO_FALLBACK = frozenset((Outcome.SUPERSEDED, Outcome.RECALLED, Outcome.REJECTED))
"""Outcomes after which no fallback is published."""


def check(row: Row) -> None:
    """Refuse what no database takes: NUL, lone surrogates, times out of range."""
    text = "".join((*row.key, row.node, row.boot, row.event, row.app_id, row.detail, row.traceparent))
    text += "".join((row.collapse_key, row.topic, row.session, row.holder, row.fallback_key, *row.excluded))
    if "\0" in text:
        raise RowsRefused("22021", "text with a NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowsRefused("22021", f"text that is no UTF-8: {error.reason}") from error
    for time in (
        row.published_at, row.taken_at, row.written_at, row.proven_at, row.finished_at, row.expires_at,
        row.fallback_due,
    ):  # fmt: skip
        if time is not None and not abs(time) <= _TIME_MAX:
            raise RowsRefused("22008", "a time that is out of range")
