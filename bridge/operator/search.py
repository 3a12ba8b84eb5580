"""Find pushes in the delivery log: by id, user, event, topic, tenant or trace id. It only reads.

Ids of pushes and users have an index, and are found however old they are. Nothing else has one: so the newest
`ROWS_LOOKED_AT` rows are looked at, and the answer says since when that is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, LiteralString

import msgspec

from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading

PAGE: Final = 50
"""Pushes of a page."""
ROWS_LOOKED_AT: Final = 50_000
"""Rows that are looked at for what has no index."""
FIELDS: Final = ("any", "push_id", "user", "event", "topic", "tenant", "trace")
"""What can be searched for; `any` is each of them."""


class FoundPush(msgspec.Struct, frozen=True):
    """A push to a user, as a line of a list."""

    push_id: str
    tenant: str
    user: str
    """Empty where no user was known."""
    event: str
    topic: str | None
    app_id: str
    outcome: str
    reason: str
    final: bool
    meaning: str
    published_at: datetime
    taken_at: datetime
    written_at: datetime | None
    proven_at: datetime | None
    finished_at: datetime | None


class Page(msgspec.Struct, frozen=True):
    """Some of what was found, the newest first."""

    pushes: Sequence[FoundPush]
    next: str | None
    """What to ask for the pushes after these; None: there are no more."""
    looked_since: datetime | None
    """Where the end of the page is not that of a list, but as far as was looked: when the row there was taken."""
    asked_at: datetime


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a page ends."""

    taken_at: datetime
    push_id: str
    user: str
    tenant: str
    day: date


_COLUMNS: LiteralString = """
    l.push_id, l.tenant, l.user_id, l.event, l.topic, l.app_id, l.outcome, l.reason, l.final, l.published_at,
    l.taken_at, l.written_at, l.proven_at, l.finished_at, l.day
    """
_AFTER: LiteralString = """
    (%(at)s::timestamptz is null or (l.taken_at <= %(at)s
        and (l.taken_at, l.push_id, l.user_id, l.tenant, l.day)
            < (%(at)s, %(push)s collate "C", %(user)s collate "C", %(tenant)s collate "C", %(day)s::date)))
    """
_ORDER: LiteralString = "order by l.taken_at desc, l.push_id desc, l.user_id desc, l.tenant desc, l.day desc"
_BY_PUSH: LiteralString = f"""
    (select {_COLUMNS} from delivery_log l where l.push_id = %(q)s and {_AFTER} {_ORDER} limit %(limit)s)
    """
_BY_USER: LiteralString = f"""
    (select {_COLUMNS} from delivery_log l
     where nullif(l.user_id, '') = %(q)s and {_AFTER} {_ORDER} limit %(limit)s)
    """
_NEWEST: LiteralString = f"""
    (select {_COLUMNS}, l.traceparent from delivery_log l where {_AFTER} {_ORDER} limit %(rows)s)
    """
_FITS: Final[Mapping[str, LiteralString]] = {
    "any": "%(q)s in (l.event, l.topic, l.tenant, split_part(l.traceparent, '-', 2))",
    "event": "l.event = %(q)s",
    "topic": "l.topic = %(q)s",
    "tenant": "l.tenant = %(q)s",
    "trace": "split_part(l.traceparent, '-', 2) = %(q)s",
}
_TOLD: LiteralString = """
    select l.push_id, l.tenant, l.user_id as user, l.event, l.topic, l.app_id, l.outcome, l.reason, l.final,
           coalesce(e.meaning, '') as meaning, l.published_at, l.taken_at, l.written_at, l.proven_at, l.finished_at,
           l.day
    from found l left join ending e on e.outcome = l.outcome and e.reason = l.reason
    """


def _query(field: str, *, everything: bool) -> LiteralString:
    """One statement: the rows that fit, and no column but those of a list."""
    if field == "push_id":
        return f"with found as {_BY_PUSH} {_TOLD} {_ORDER} limit %(limit)s"
    if field == "user":
        return f"with found as {_BY_USER} {_TOLD} {_ORDER} limit %(limit)s"
    fits: LiteralString = "true" if everything else _FITS[field]
    recent: LiteralString = f"select {_COLUMNS} from newest l where {fits}"
    if field == "any" and not everything:
        # What is found by an index may be among the newest, too; `union` tells it once.
        recent = f"{recent} union {_BY_PUSH} union {_BY_USER}"
    return f"with newest as materialized {_NEWEST}, found as ({recent}) {_TOLD} {_ORDER} limit %(limit)s"


_LAST: LiteralString = f"""
    select l.taken_at, l.push_id, l.user_id as user, l.tenant, l.day from delivery_log l
    where {_AFTER} {_ORDER} offset %(rows)s - 1 limit 1
    """


async def search(
    dsn: str, field: str, text: str, after: Place | None = None, *, seconds: float = QUERY_TIMEOUT
) -> Page:
    """A page of the pushes where this field is this text; with no text, of all. Each statement may take `seconds`.

    `field`: one of `FIELDS`. Raises StoreUnavailable.
    """
    everything = not text
    field = "any" if everything else field
    by_index = field in ("push_id", "user") or everything
    rows = PAGE + 1 if everything else ROWS_LOOKED_AT
    params: dict[str, object] = {"q": text, "limit": PAGE + 1, "rows": rows, **_params(after)}
    async with reading(dsn, "bridge console", seconds) as conn:
        found = await ask(conn, _query(field, everything=everything), params, seconds)
        more = len(found) > PAGE
        # Where not all was looked at, the next page begins behind the last row that was.
        last = [] if by_index or more else await ask(conn, _LAST, params, seconds)
        (frame,) = await ask(conn, "select clock_timestamp() as now", {}, seconds)
    shown = found[:PAGE]
    end = shown[-1] if more else last[0] if last else None
    return Page(
        [_push(row) for row in shown],
        None if end is None else _place(end),
        last[0]["taken_at"] if last else None,
        frame["now"],
    )


def _push(row: Mapping[str, Any]) -> FoundPush:
    return FoundPush(**{name: value for name, value in row.items() if name != "day"})


def _params(after: Place | None) -> dict[str, object]:
    if after is None:
        return dict.fromkeys(("at", "push", "user", "tenant", "day"))
    return {
        "at": after.taken_at,
        "push": after.push_id,
        "user": after.user,
        "tenant": after.tenant,
        "day": after.day,
    }


def _place(row: Mapping[str, Any]) -> str:
    place = Place(row["taken_at"], row["push_id"], row["user"], row["tenant"], row["day"])
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(text: str) -> Place:
    """The place that a page named. Raises ValueError."""
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Place)
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError("after: the `next` of an answer expected") from error
