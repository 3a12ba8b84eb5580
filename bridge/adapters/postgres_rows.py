"""Rows as Postgres takes and gives them: array literals one way, records the other.

The literals are built by hand because the driver's list dumpers, not the server, would be the limit.
https://www.postgresql.org/docs/15/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

import msgspec

from bridge.errors import RowsRefused
from bridge.model import Encoding, Outcome, Proof, Reason, Reply, Row, RowKey

COLUMNS: tuple[LiteralString, ...] = (
    "tenant", "push_id", "user_id", "outcome", "reason", "confirm", "sessions", "attempts",
    "extract(epoch from published_at)::float8", "extract(epoch from taken_at)::float8",
    "extract(epoch from written_at)::float8", "extract(epoch from proven_at)::float8",
    "extract(epoch from finished_at)::float8",
    "node", "boot", "event", "app_id", "detail", "traceparent",
    "meta::text", "payload", "owed::text",
    "day", "extract(epoch from expires_at)::float8", "position", "encoding", "excluded::text", "collapse_key",
    "ack_within", "extract(epoch from late_at)::float8",
)  # fmt: skip
"""What `row_of` reads, in its order, of a row of delivery_log."""


# Calling an enum costs more than all the rest of a field.
_OUTCOMES = {o.value: o for o in Outcome}
_REASONS = {r.value: r for r in Reason}
_ENCODINGS = {e.value: e for e in Encoding}
_PROOFS = {p.value: p for p in Proof}


def columns(record: LiteralString) -> LiteralString:
    """The COLUMNS of a record that an SQL expression names, such as `l` or `(r.log)`."""
    return ", ".join(
        c.replace("(epoch from ", f"(epoch from {record}.") if c.startswith("extract") else f"{record}.{c}"
        for c in COLUMNS
    )


def row_of(record: Sequence[Any]) -> Row:
    """The row that a record of COLUMNS holds."""
    (
        tenant, push_id, user_id, outcome, reason, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        day, expires_at, position, encoding, excluded, collapse_key, ack_within, late_at,
    ) = record  # fmt: skip
    return Row(
        key=RowKey(tenant, push_id, user_id),
        outcome=_OUTCOMES[outcome],
        reason=_REASONS[reason],
        node=node,
        boot=boot,
        published_at=published_at,
        taken_at=taken_at,
        detail=detail,
        event=event,
        app_id=app_id,
        meta=b"" if meta is None else meta.encode(),
        confirm=_PROOFS[confirm],
        written_at=written_at,
        proven_at=proven_at,
        finished_at=finished_at,
        sessions=sessions,
        attempts=attempts,
        payload=payload,
        traceparent=traceparent,
        owed=replies_of(owed),
        day=day,
        expires_at=expires_at,
        position=position or 0,
        encoding=Encoding.JSON if encoding is None else _ENCODINGS[encoding],
        excluded=frozenset() if excluded is None else frozenset(msgspec.json.decode(excluded)),
        collapse_key=collapse_key or "",
        ack_within=ack_within or 0.0,
        late_at=late_at,
    )


# --- Array literals --------------------------------------------------------------------------------------


def texts(values: Sequence[str]) -> str:
    """A text[] literal. Every element is quoted, so `NULL`, commas and braces are themselves."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    # Nearly always nothing is to be escaped; one look at the whole is cheaper than one at each.
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join([v.replace("\\", "\\\\").replace('"', '\\"') for v in values])
    return f'{{"{joined}"}}'


def texts_or_none(values: Sequence[str]) -> str | None:
    """A text[] literal, None where all are empty."""
    return texts(values) if any(values) else None


def nullable_texts(values: Sequence[str | None]) -> str | None:
    """A literal of texts and nulls, None where all are null."""
    if all(v is None for v in values):
        return None
    return "{" + ",".join(["NULL" if v is None else texts((v,))[1:-1] for v in values]) + "}"


def numbers(values: Iterable[float]) -> str:
    """An array literal of numbers; the shortest form that reads back as the same float."""
    return f"{{{','.join(map(repr, values))}}}"


def nullable_numbers(values: Sequence[float | None]) -> str:
    """An array literal of numbers and nulls."""
    return f"{{{','.join(map(repr, values))}}}".replace("None", "NULL")


def booleans(values: Iterable[bool]) -> str:
    """A boolean[] literal."""
    return f"{{{','.join(map(repr, values))}}}"


def key_params(rows: Iterable[RowKey]) -> tuple[str, str, str]:
    """Three text[] literals, as every function of the schema takes keys: tenants, push ids, users."""
    tenants, push_ids, users = zip(*rows, strict=True)
    return texts(tenants), texts(push_ids), texts(users)


def lock_order(key: RowKey) -> tuple[str, str, str]:
    """The order of all writers, that of the columns in the primary key: two unsorted ones would deadlock."""
    return key.push_id, key.user, key.tenant


RECORD_PARAMS = 30
"""How many parameters record_rows() has."""


def record_params(rows: Sequence[Row]) -> tuple[str | None, ...]:
    """The RECORD_PARAMS of record_rows() for rows in lock order. Raises RowsRefused for broken text."""
    tenants, push_ids, users = key_params([r.key for r in rows])
    payloads = [r.payload for r in rows]
    return (
        tenants,
        push_ids,
        users,
        texts([r.outcome for r in rows]),
        texts([r.reason for r in rows]),
        booleans([r.final for r in rows]),
        numbers([r.confirm.value for r in rows]),
        numbers([r.sessions for r in rows]),
        numbers([r.attempts for r in rows]),
        numbers([r.published_at for r in rows]),
        numbers([r.taken_at for r in rows]),
        nullable_numbers([r.written_at for r in rows]),
        nullable_numbers([r.proven_at for r in rows]),
        nullable_numbers([r.finished_at for r in rows]),
        texts([r.node for r in rows]),
        texts([r.boot for r in rows]),
        texts([r.event for r in rows]),
        texts([r.app_id for r in rows]),
        texts_or_none([r.detail for r in rows]),
        texts_or_none([r.traceparent for r in rows]),
        nullable_texts([_meta(r.meta) for r in rows]) if any(r.meta for r in rows) else None,
        nullable_texts([None if p is None else "\\x" + p.hex() for p in payloads]),
        nullable_texts([owed_text(r.owed) for r in rows]),
        nullable_texts([None if r.day is None else r.day.isoformat() for r in rows]),
        *_kept_params(rows),
    )


def _kept_params(rows: Sequence[Row]) -> tuple[str | None, ...]:
    """Positions, ends, encodings, collapse keys, excluded sessions, acks within: null for what is not kept."""
    kept = [r.expires_at is not None for r in rows]
    if not any(kept) and not any(r.collapse_key for r in rows):
        return (None,) * 6
    return (
        nullable_numbers([r.position or None for r in rows]),
        nullable_numbers([r.expires_at for r in rows]),
        nullable_texts([r.encoding.value if k else None for r, k in zip(rows, kept, strict=True)]),
        nullable_texts([r.collapse_key or None for r in rows]),
        nullable_texts([_json_array(r.excluded) if r.excluded else None for r in rows]),
        nullable_numbers([r.ack_within or None for r in rows]),
    )


def _json_array(values: Iterable[str]) -> str:
    return msgspec.json.encode(sorted(values)).decode()


def _meta(meta: bytes) -> str | None:
    if not meta:
        return None
    try:
        return meta.decode()
    except UnicodeDecodeError as error:
        raise RowsRefused("22021", f"meta that is no UTF-8: {error.reason}") from error


# --- Owed replies ----------------------------------------------------------------------------------------


def owed_text(owed: tuple[Reply, ...] | None) -> str | None:
    """What a row owes as JSON, None for nothing owed. Never refused by the database, whatever a peer sent."""
    if owed is None:
        return None
    if not owed:
        return "[]"
    return msgspec.json.encode(
        [_field("queue", r.queue) | _field("correlation_id", r.correlation_id) for r in owed]
    ).decode()


def _field(name: str, value: str) -> dict[str, str]:
    # jsonb has no NUL and no lone surrogates; AMQP short strings may hold either.
    if "\0" not in value:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return {name: value}
    return {f"{name}_hex": value.encode("utf-8", "surrogatepass").hex()}


def replies_of(owed: str | None) -> tuple[Reply, ...] | None:
    """What a row owes, from its JSON."""
    if owed is None:
        return None
    return tuple(Reply(_read(r, "queue"), _read(r, "correlation_id")) for r in msgspec.json.decode(owed))


def _read(reply: Mapping[str, str], name: str) -> str:
    if name in reply:
        return reply[name]
    return bytes.fromhex(reply[f"{name}_hex"]).decode("utf-8", "surrogatepass")
