"""Rows for Postgres and from it: array literals one way, records the other.

The literals are built here, since the driver dumps lists so slowly that it, not the server, would be the limit.
https://www.postgresql.org/docs/15/arrays.html#ARRAYS-IO
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, LiteralString, TypeVar

import msgspec

from bridge.core.errors import RowsRefused
from bridge.core.model.outcomes import FINAL, Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding
from bridge.core.model.rows import Reply, Row, RowKey, columns_of
from bridge.core.model.tuples import new_tuple
from bridge.core.ports.store import Written

COLUMNS: tuple[LiteralString, ...] = (
    "tenant", "push_id", "user_id", "outcome", "reason", "confirm", "sessions", "attempts",
    "extract(epoch from published_at)::float8", "extract(epoch from taken_at)::float8",
    "extract(epoch from written_at)::float8", "extract(epoch from proven_at)::float8",
    "extract(epoch from finished_at)::float8",
    "node", "boot", "event", "app_id", "detail", "traceparent",
    "meta::text", "payload", "owed::text",
    "day", "extract(epoch from expires_at)::float8", "position", "encoding", "excluded::text", "collapse_key",
    "ack_within", "extract(epoch from late_at)::float8", "fingerprint",
    "extract(epoch from differed_at)::float8", "topic", "session", "holder", "first_device",
    "batch_id", "batch_position", "data_bytes",
)  # fmt: skip
"""What `row_of` reads, in its order, of a row of delivery_log."""
META: LiteralString = (
    "(case when {0}.content is null then {0}.meta else coalesce({0}.meta,"
    " (select c.meta from push_content c where c.day = {0}.day and c.id = {0}.content)) end)"
)
"""The meta of a record: its own, or the one that it shares."""
MICRO: Final = 1_000_000
SHARE_BYTES: Final = 256
"""What several rows of a batch have in common is stored once if it has at least so many bytes."""

T = TypeVar("T")

# To call an enum costs more than everything else for a field.
_OUTCOMES = {o.value: o for o in Outcome}
_REASONS = {r.value: r for r in Reason}
_ENCODINGS = {e.value: e for e in Encoding}
_PROOFS = {p.value: p for p in Proof}


def columns(
    record: LiteralString, *, data: bool = False, excluded: bool = False, meta: bool = True
) -> LiteralString:
    """The COLUMNS of a record that an SQL expression names, such as `l` or `(r.log)`.

    With `data` or `excluded` the record must be one of whole(), and its payload or its except list is read. What is not
    read the row will not have, and likewise `meta`.
    """
    here: dict[LiteralString, LiteralString] = {}
    if not data:
        here["payload"] = "null::bytea"
        here["meta::text"] = f"{META.format(record)}::text" if meta else "null::text"
    if not excluded:
        here["excluded::text"] = "null::text"
    return ", ".join(here.get(c) or _column(c, record) for c in COLUMNS)


def _column(column: LiteralString, record: LiteralString) -> LiteralString:
    if column.startswith("extract"):
        return column.replace("(epoch from ", f"(epoch from {record}.")
    return f"{record}.{column}"


def row_of(record: Sequence[Any]) -> Row:
    """The row that a record of COLUMNS holds."""
    (
        tenant, push_id, user_id, outcome, reason, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        day, expires_at, position, encoding, excluded, collapse_key, ack_within, late_at, fingerprint,
        differed_at, topic, session, holder, first_device, batch_id, batch_position, data_bytes,
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
        fingerprint=fingerprint or 0,
        differed_at=differed_at,
        topic=topic or "",
        session=session or "",
        holder=holder or "",
        first_device=first_device is True,
        batch_id=batch_id or "",
        batch_position=batch_position,
        data_bytes=data_bytes,
    )


# --- Array literals --------------------------------------------------------------------------------------


def texts(values: Sequence[str]) -> str:
    """A text[] literal. Every element is quoted, so `NULL`, commas and braces are themselves."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    # Escapes are rare; one look at the whole is cheaper than one at each element.
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join([v.replace("\\", "\\\\").replace('"', '\\"') for v in values])
    return f'{{"{joined}"}}'


def texts_or_none(values: Sequence[str]) -> str | None:
    """A text[] literal, None where all are empty."""
    return texts(values) if any(values) else None


def nulls_for_empty(values: Sequence[str]) -> str | None:
    """A literal of texts, with null for each that is empty; None where all are."""
    if not any(values):
        return None
    return texts(values) if all(values) else nullable_texts([v or None for v in values])


def nullable_texts(values: Sequence[str | None]) -> str | None:
    """A literal of texts and nulls, None where all are null."""
    if _all_null(values):
        return None
    return "{" + ",".join(["NULL" if v is None else texts((v,))[1:-1] for v in values]) + "}"


def numbers(values: Iterable[float]) -> str:
    """An array literal of numbers; the shortest form that reads back as the same float."""
    return f"{{{','.join(map(repr, values))}}}"


def nullable_numbers(values: Sequence[float | None]) -> str:
    """An array literal of numbers and nulls."""
    return f"{{{','.join(map(repr, values))}}}".replace("None", "NULL")


def times(values: Sequence[float | None]) -> str:
    """An array literal of times and nulls, in whole microseconds, as Postgres keeps them.

    A batch shares most of its times, so each is written once; and a whole number is written five times as fast as a
    fraction.
    """
    written: dict[float | None, str] = {}
    parts: list[str] = []
    last: float | None = None
    text = "NULL"
    for value in values:
        if value != last:
            last = value
            text = written.get(value) or _time(value)
            written[value] = text
        parts.append(text)
    return f"{{{','.join(parts)}}}"


def _time(value: float | None) -> str:
    if value is None:
        return "NULL"
    # What is no time is for the database to refuse.
    return f"{round(value * MICRO)}e-6" if math.isfinite(value) else repr(value)


def mostly_alike(values: Sequence[T], literal: Callable[[Sequence[T]], str]) -> str:
    """The literal of a column in which the rows of a batch mostly have the same: then it is written once."""
    count = len(values)
    if count < 2 or values.count(values[0]) < count:
        return literal(values)
    return f"{{{','.join([literal(values[:1])[1:-1]] * count)}}}"


def booleans(values: Iterable[bool]) -> str:
    """A boolean[] literal."""
    return f"{{{','.join(map(repr, values))}}}"


def key_params(rows: Iterable[RowKey]) -> tuple[str, str, str]:
    """Three text[] literals, as every function of the schema takes keys: tenants, push ids, users."""
    tenants, push_ids, users = zip(*rows, strict=True)
    return mostly_alike(tenants, texts), texts(push_ids), texts(users)


def lock_order(key: RowKey) -> tuple[str, str, str]:
    """The order in which every writer takes rows, that of the primary key; without one, two writers would deadlock."""
    tenant, push_id, user = key
    return push_id, user, tenant


def in_lock_order(rows: Sequence[Row]) -> list[int]:
    """The places of these rows in lock order."""
    keys = [lock_order(row.key) for row in rows]
    return sorted(range(len(keys)), key=keys.__getitem__)


def all_applied(rows: Sequence[Row]) -> list[Written]:
    """What a write returns where every row was written as it is."""
    return list(map(new_tuple, repeat(Written), zip(rows, repeat(True))))


def _finals(outcomes: Sequence[Outcome]) -> str:
    return booleans([FINAL[outcome] for outcome in outcomes])


def _proofs(proofs: Sequence[Proof]) -> str:
    return numbers([int(proof) for proof in proofs])


RECORD_PARAMS = 46
"""How many parameters record_rows() has."""


def record_params(rows: Sequence[Row]) -> tuple[str | None, ...]:
    """The RECORD_PARAMS of record_rows() for rows in lock order. Raises RowsRefused for broken text."""
    c = columns_of(rows)
    tenants, push_ids, users = key_params(c.key)
    carries = any(c.payload) or any(c.excluded) or any(c.meta)
    # A list may have thousands of ids, and mostly all rows of a batch share one: each is turned into text once.
    lists = {id(excluded): excluded for excluded in c.excluded if excluded}
    listed = {place: _json_array(ids) for place, ids in lists.items()}
    shared = _Shared(rows if carries else (), listed)
    own = rows
    if carries:
        own = [r if of is None else _NOTHING for r, of in zip(rows, shared.of_row, strict=True)]
    return (
        tenants,
        push_ids,
        users,
        mostly_alike(c.outcome, texts),
        mostly_alike(c.reason, texts),
        mostly_alike(c.outcome, _finals),
        mostly_alike(c.confirm, _proofs),
        mostly_alike(c.sessions, numbers),
        mostly_alike(c.attempts, numbers),
        times(c.published_at),
        times(c.taken_at),
        times(c.written_at),
        times(c.proven_at),
        times(c.finished_at),
        mostly_alike(c.node, texts),
        mostly_alike(c.boot, texts),
        mostly_alike(c.event, texts),
        mostly_alike(c.app_id, texts),
        texts_or_none(c.detail),
        texts_or_none(c.traceparent),
        nullable_texts([_meta(r.meta) for r in own]) if any(c.meta) else None,
        _bytes([r.payload for r in own]) if carries else _bytes(c.payload),
        None if _all_null(c.owed) else nullable_texts([owed_text(owed) for owed in c.owed]),
        None if _all_null(c.day) else nullable_texts([day and day.isoformat() for day in c.day]),
        *_kept_params(rows, own, listed, c),
        _bytes(shared.of_row),
        *shared.params(),
        nullable_numbers([fingerprint or None for fingerprint in c.fingerprint]),
        nulls_for_empty(c.topic),
        nulls_for_empty(c.session),
        nulls_for_empty(c.holder),
        booleans(c.first_device) if any(c.first_device) else None,
        *_fallback_params(c),
        nulls_for_empty(c.batch_id),
        _numbers_or_none(c.batch_position),
        _numbers_or_none(c.data_bytes),
    )


def _all_null(values: Sequence[object]) -> bool:
    return values.count(None) == len(values)


def _numbers_or_none(values: Sequence[float | None]) -> str | None:
    """An array literal of numbers and nulls, None where all are null."""
    return None if _all_null(values) else nullable_numbers(values)


def _fallback_params(c: Any) -> tuple[str | None, str | None]:
    """When fallbacks are due, and their routing keys; null where no row has one."""
    keys = nulls_for_empty(c.fallback_key)
    return (None, None) if keys is None else (times(c.fallback_due), keys)


def _kept_params(
    rows: Sequence[Row], own: Sequence[Row], listed: Mapping[int, str], c: Any
) -> tuple[str | None, ...]:
    """Positions, ends of ttl, encodings, collapse keys, excluded sessions, times for acks, bytes; null if not kept."""
    if _all_null(c.expires_at) and _all_null(c.fallback_due) and not any(c.collapse_key):
        return (None,) * 7
    kept = [r.expires_at is not None for r in rows]
    owes = [r.fallback_due is not None for r in rows]
    sizes = [len(r.payload or b"") + len(listed.get(id(r.excluded), "")) for r in rows]
    return (
        nullable_numbers([r.position or None for r in rows]),
        times([r.expires_at for r in rows]),
        nullable_texts(
            [r.encoding.value if k or o else None for r, k, o in zip(rows, kept, owes, strict=True)]
        ),
        nullable_texts([r.collapse_key or None for r in rows]),
        nullable_texts([listed[id(r.excluded)] if r.excluded else None for r in own]),
        nullable_numbers([r.ack_within or None for r in rows]),
        nullable_numbers(
            [n if k and r.payload is not None else None for r, k, n in zip(rows, kept, sizes, strict=True)]
        ),
    )


class _Shared:
    """What several rows of a batch have in common: their data, except list and meta, once each."""

    def __init__(self, rows: Sequence[Row], listed: Mapping[int, str]) -> None:
        self._listed = listed
        self.of_row: list[bytes | None] = [None] * len(rows)
        """The id of what a row shares; None if it shares nothing."""
        self._found: dict[bytes, Row] = {}
        # The rows of one request hold the same objects, not only equal ones.
        alike: dict[tuple[int, int, int], list[int]] = {}
        for place, row in enumerate(rows):
            if row.payload or row.excluded or row.meta:
                alike.setdefault((id(row.payload), id(row.excluded), id(row.meta)), []).append(place)
        for places in alike.values():
            if len(places) > 1:
                self._share(rows[places[0]], places)

    def _share(self, row: Row, places: Sequence[int]) -> None:
        parts = (
            b"" if row.payload is None else b"d" + row.payload,
            self._listed.get(id(row.excluded), "").encode(),
            row.meta,
        )
        if sum(map(len, parts)) < SHARE_BYTES:
            return
        digest = hashlib.sha256()
        for part in parts:
            digest.update(b"%d:" % len(part))
            digest.update(part)
        content_id = digest.digest()[:16]
        self._found[content_id] = row
        for place in places:
            self.of_row[place] = content_id

    def params(self) -> tuple[str | None, ...]:
        """Ids, payloads, except lists and metas, for push_content; null where nothing is shared."""
        if not self._found:
            return (None,) * 4
        rows = self._found.values()
        return (
            _bytes(list(self._found)),
            _bytes([r.payload for r in rows]) or _nulls(len(self._found)),
            nullable_texts([self._listed.get(id(r.excluded)) for r in rows]) or _nulls(len(self._found)),
            nullable_texts([_meta(r.meta) for r in rows]) or _nulls(len(self._found)),
        )


_NOTHING = Row(RowKey("", "", ""), Outcome.PENDING, Reason.AWAITING_PROOF, "", "", 0.0, 0.0)
"""Stands for a row whose data, except list and meta are shared."""


def _nulls(count: int) -> str:
    return f"{{{','.join(['NULL'] * count)}}}"


def _bytes(values: Sequence[bytes | None]) -> str | None:
    """A bytea[] literal with nulls, None where all are null."""
    if _all_null(values):
        return None
    return "{" + ",".join(["NULL" if v is None else f'"\\\\x{v.hex()}"' for v in values]) + "}"


def binaries(values: Sequence[bytes]) -> str:
    """A bytea[] literal."""
    return _bytes(values) or "{}"


def _json_array(values: Iterable[str]) -> str:
    return msgspec.json.encode(sorted(values)).decode()


def _meta(meta: bytes) -> str | None:
    if not meta:
        return None
    try:
        return meta.decode()
    except UnicodeDecodeError as error:
        raise RowsRefused("22021", f"meta that is not UTF-8: {error.reason}") from error


# --- Owed replies ----------------------------------------------------------------------------------------


def owed_text(owed: tuple[Reply, ...] | None) -> str | None:
    """What a row owes as JSON, None for nothing. The database takes it whatever a peer has sent."""
    if owed is None:
        return None
    if not owed:
        return "[]"
    return msgspec.json.encode(
        [
            _field("queue", r.queue)
            | _field("correlation_id", r.correlation_id)
            | ({"repeat": "differs"} if r.differs else {})
            for r in owed
        ]
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
    return tuple(
        Reply(_read(r, "queue"), _read(r, "correlation_id"), "repeat" in r) for r in msgspec.json.decode(owed)
    )


def _read(reply: Mapping[str, str], name: str) -> str:
    if name in reply:
        return reply[name]
    return bytes.fromhex(reply[f"{name}_hex"]).decode("utf-8", "surrogatepass")
