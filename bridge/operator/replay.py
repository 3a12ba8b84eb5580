"""Publish logged pushes again: which rows are chosen, which of them can be replayed, and the messages they become.

A push becomes `<id>/replay-<mark>`, the same each time. So a second replay with the same mark is recognised by its row,
as long as the log keeps that. The replay of a replay counts as a replay of the first push. The messages are
payload-only: the body is the data exactly as it was.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import msgspec

from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.postgres.pool import Connection
from bridge.adapters.postgres.reading import ask, reading
from bridge.adapters.postgres.rows import META
from bridge.core.errors import SettingsError
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import ID_MAX, NO_USER, Encoding
from bridge.core.ports.clock import Clock

PAGE_ROWS: Final = 50
"""Rows that are read, published and confirmed together: an interruption repeats at most so many."""
PAGES_PER_SECOND: Final = 5
"""At a low rate pages are smaller, so that the rate is even."""
SCAN_TIMEOUT: Final = 600.0
"""Seconds to count, or to find the next page: both may have to read the whole log."""
NAME_BYTES_MAX: Final = 255
"""Bytes of the name of an AMQP header, which a key of `meta` becomes."""

_MARK = re.compile(r"[A-Za-z0-9._-]{1,16}")
_AGE = re.compile(r"([0-9]{1,9})(s|m|min|h|d)")
_UNITS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_CONTENT_TYPES: Final[Mapping[str, str]] = {
    Encoding.JSON.value: "application/json",
    Encoding.TEXT.value: "text/plain",
    Encoding.BYTES.value: "application/octet-stream",
}


# --- Which rows are chosen ------------------------------------------------------------------------------


class Where(msgspec.Struct, frozen=True):
    """A choice of rows: those that fit every field. An empty field, or None, fits all."""

    push: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    event: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    since: datetime | None = None
    """Taken at this moment or later."""
    until: datetime | None = None
    """Taken before this moment."""


KEYS: Final = Where.__struct_fields__
_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "outcome": frozenset(o.value for o in Outcome),
    "reason": frozenset(r.value for r in Reason),
}


def where(conditions: Sequence[str], now: datetime) -> Where:
    """Read `key=value` conditions: all keys must fit, each with any of its values.

    A time is ISO 8601 (local unless it names a zone) or an age such as `90s`, `30min`, `2h`, `7d`. Raises
    SettingsError.
    """
    words: dict[str, list[str]] = {}
    times: dict[str, datetime] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if key not in KEYS or not equals:
            raise SettingsError("--where", f"key=value expected, not {condition!r}; keys: {', '.join(KEYS)}")
        if key in ("since", "until"):
            if key in times:
                raise SettingsError("--where", f"{key} can be given once")
            times[key] = _moment(key, value, now)
            continue
        if not value and key != "tenant":
            raise SettingsError("--where", f"{key} needs a value")
        known = _WORDS.get(key)
        if known is not None and value not in known:
            raise SettingsError("--where", f"no {key} {value!r}; there are {', '.join(sorted(known))}")
        words.setdefault(key, []).append(value)
    if "since" in times and times["since"] >= times.get("until", now):
        raise SettingsError("--where", "since is not before until, or in the future")
    fields: dict[str, Any] = {**{key: tuple(values) for key, values in words.items()}, **times}
    return Where(**fields)


def _moment(key: str, text: str, now: datetime) -> datetime:
    age = _AGE.fullmatch(text)
    try:
        if age:
            return now - timedelta(seconds=int(age[1]) * _UNITS[age[2]])
        # `astimezone` takes a time without a zone for local time.
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            "--where", f"{key}: a time such as 2026-11-22T18:30 or an age such as 2h expected, not {text!r}"
        ) from error


def checked_mark(mark: str) -> str:
    """The mark, if it may be part of an id; raises SettingsError."""
    if not _MARK.fullmatch(mark):
        raise SettingsError("--mark", f"1 to 16 of letters, digits, `.`, `_` and `-` expected, not {mark!r}")
    return mark


# --- Which of them can be replayed -----------------------------------------------------------------------

REPLAYABLE: Final = "again"
"""The verdict on a row that can be replayed and has not been with this mark."""
DONE: Final = frozenset(("done", "own"))
"""Verdicts on rows that need no replay."""
VERDICTS: Final[Mapping[str, str]] = {
    REPLAYABLE: "can be replayed",
    "done": "replayed before: the log has the row of it",
    "own": "are rows of this replay themselves",
    "open": "have not ended: the bridge still delivers them",
    "rejected": "were rejected: their messages are in push.dead, see `bridge dead replay`",
    "nobody": "name no user: they went to a session or to everyone, and reached nobody",
    "not_kept": "can't be: their data is not kept (that of pushes with a ttl is, as BRIDGE_PAYLOAD says)",
    "meta": f"can't be: a key of their meta has over {NAME_BYTES_MAX} bytes, too long for a header",
}
"""What becomes of a chosen row, and the words for it."""

# `taken_at`, push_id and nullif(user_id, '') have indexes.
_CHOSEN: LiteralString = """
    (%(push)s::text[] is null or l.push_id = any(%(push)s))
    and (%(user)s::text[] is null or nullif(l.user_id, '') = any(%(user)s))
    and (%(event)s::text[] is null or l.event = any(%(event)s))
    and (%(outcome)s::text[] is null or l.outcome = any(%(outcome)s))
    and (%(reason)s::text[] is null or l.reason = any(%(reason)s))
    and (%(tenant)s::text[] is null or l.tenant = any(%(tenant)s))
    and (%(since)s::timestamptz is null or l.taken_at >= %(since)s)
    and l.taken_at < %(until)s
    """
_PAYLOAD: LiteralString = (
    "coalesce(l.payload, (select c.payload from push_content c where c.day = l.day and c.id = l.content))"
)
"""The data of a row, its own or what it shares; null where it was not kept, or is erased."""
_FROM: LiteralString = f"""
    from delivery_log l
    cross join lateral (select regexp_replace(l.push_id, '/replay-[A-Za-z0-9._-]{{1,16}}$', '') as base) b
    cross join lateral (
        select (case when char_length(b.base) + char_length(%(suffix)s) <= {ID_MAX} then b.base
                     else 'sha256-' || encode(sha256(convert_to(b.base, 'UTF8')), 'hex')
                end || %(suffix)s) collate "C" as new_id) i
    cross join lateral (
        select case
            when l.outcome = 'rejected' then 'rejected'
            when l.user_id = '{NO_USER}' then 'nobody'
            when not l.final then 'open'
            when l.push_id = i.new_id then 'own'
            when {_PAYLOAD} is null or l.encoding is null then 'not_kept'
            when exists (select from jsonb_object_keys({META.format("l")}) k
                         where octet_length(k) > {NAME_BYTES_MAX}) then 'meta'
            when exists (select from delivery_log r
                         where r.push_id = i.new_id and r.user_id = l.user_id and r.tenant = l.tenant
                           and r.day >= l.day) then 'done'
            else '{REPLAYABLE}' end as verdict) v
    """
_COUNT: LiteralString = f"select v.verdict, count(*) as rows {_FROM} where {_CHOSEN} group by 1"
_PAGE: LiteralString = f"""
    select l.tenant, l.push_id, l.user_id, i.new_id, l.event, l.app_id, l.confirm, l.encoding,
           {META.format("l")} as meta,
           {_PAYLOAD} as payload,
           l.ack_within, l.taken_at, extract(epoch from l.expires_at - l.published_at)::float8 as ttl
    {_FROM}
    where {_CHOSEN} and v.verdict = '{REPLAYABLE}'
      and (%(after)s::timestamptz is null
           or (l.taken_at >= %(after)s
               and (l.taken_at, l.push_id, l.user_id, l.tenant)
                   > (%(after)s, %(after_push)s, %(after_user)s, %(after_tenant)s)))
    order by l.taken_at, l.push_id, l.user_id, l.tenant
    limit %(limit)s
    """


class Selection:
    """The chosen rows, on one connection that only reads; made by `selected`."""

    def __init__(self, conn: Connection, chosen: Where, mark: str, until: datetime, seconds: float) -> None:
        self._conn = conn
        self._seconds = seconds
        self._params: dict[str, object] = {
            **{name: list(getattr(chosen, name)) or None for name in KEYS if name not in ("since", "until")},
            "since": chosen.since,
            # Rows that come while this runs, those of the replays among them, are not chosen.
            "until": chosen.until or until,
            "suffix": f"/replay-{mark}",
        }

    async def count(self) -> dict[str, int]:
        """How many rows each verdict has. Raises psycopg's errors, which `selected` translates."""
        return {
            row["verdict"]: row["rows"] for row in await ask(self._conn, _COUNT, self._params, self._seconds)
        }

    async def pages(self, rows: int) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows that can be replayed, in the order in which they were taken, `rows` at a time.

        Each page is its own statement, so that a replay of hours holds no snapshot and no partition.
        """
        after: dict[str, object] = dict.fromkeys(("after", "after_push", "after_user", "after_tenant"))
        while True:
            page = await ask(self._conn, _PAGE, {**self._params, **after, "limit": rows}, self._seconds)
            if not page:
                return
            last = page[-1]
            after = {
                "after": last["taken_at"],
                "after_push": last["push_id"],
                "after_user": last["user_id"],
                "after_tenant": last["tenant"],
            }
            yield page


@asynccontextmanager
async def selected(
    dsn: str, chosen: Where, mark: str, seconds: float = SCAN_TIMEOUT
) -> AsyncIterator[Selection]:
    """Look at the chosen rows that were taken until now; each statement may take `seconds`. Raises StoreUnavailable."""
    async with reading(dsn, "bridge replay", seconds) as conn:
        (now,) = await ask(conn, "select clock_timestamp() as now", {}, seconds)
        yield Selection(conn, chosen, mark, now["now"], seconds)


# --- Publishing ------------------------------------------------------------------------------------------


async def publish(
    selection: Selection, url: str, *, rate: float, ttl: float | None, clock: Clock
) -> AsyncGenerator[int, None]:
    """Publish what can be replayed, at most `rate` a second, and yield how many are confirmed, page by page.

    A replay has the user, event, data, tenant, meta, confirm and publisher of the push, and its ttl unless another is
    given. It has no collapse key, or an old push would replace a newer one. This may be stopped at any time and run
    again: at most one page is published twice, with the same ids. Raises BrokerUnavailable, NotTaken, and what the
    selection raises.
    """
    rows = max(1, min(PAGE_ROWS, round(rate / PAGES_PER_SECOND)))
    began = clock.monotonic()
    confirmed = 0
    async with Producer.connect(url, name="bridge replay") as producer:
        async for page in selection.pages(rows):
            await producer.publish_all([outgoing(row, ttl) for row in page])
            confirmed += len(page)
            yield confirmed
            ahead = began + confirmed / rate - clock.monotonic()
            if ahead > 0:
                await clock.sleep(ahead)


def outgoing(row: Mapping[str, Any], ttl: float | None) -> PushMessage:
    """The message that replays a row."""
    headers: dict[str, object] = {
        "x-push-id": row["new_id"],
        "x-push-replay-of": row["push_id"],
        "x-push-user": row["user_id"],
        "x-push-event": row["event"],
        "x-push-confirm": Proof(row["confirm"]).name.lower(),
    }
    if row["tenant"]:
        headers["x-push-tenant"] = row["tenant"]
    if row["meta"]:
        headers["x-push-meta"] = row["meta"]
    kept = row["ttl"] or 0.0 if ttl is None else ttl
    if kept > 0:
        headers["x-push-ttl"] = _decimal(kept)
    if row["ack_within"] and row["confirm"] == Proof.ACKED:
        headers["x-push-ack-within"] = _decimal(row["ack_within"])
    return PushMessage(
        row["payload"],
        headers,
        app_id=row["app_id"],
        content_type=_CONTENT_TYPES[row["encoding"]],
    )


def _decimal(seconds: float) -> str:
    # As text: some libraries send floats with 32 bits, and an integer would lose the fraction.
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
