"""What the delivery log has of one push. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal, LiteralString, NamedTuple

import msgspec

from bridge.adapters.amqp.encoding import legible
from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.adapters.postgres.rows import replies_of
from bridge.adapters.postgres.upkeep import DAYS_HERE
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Reply
from bridge.core.ports.store import LEASE_SECONDS

SESSIONS_SHOWN = 10
"""Sessions that are told of each row."""
USERS_SHOWN = 20
"""Rows of a push that are returned; its other users are only counted."""


class OutcomeCount(NamedTuple):
    """How many users of a push have this outcome and reason."""

    tenant: str
    outcome: str
    reason: str
    final: bool
    meaning: str
    users: int
    handed: int = 0
    """How many of them it was handed to a socket of."""
    proven: int = 0
    """How many of their peers have proven it, also too late."""


class Owed(msgspec.Struct, frozen=True):
    """A receipt that is still to be sent to a queue. Bytes in its names that are not UTF-8 are shown as escapes."""

    queue: str
    correlation_id: str
    repeat: Literal["differs"] | msgspec.UnsetType = msgspec.UNSET
    """Set when it answers a repeat with other content."""


class Holding(msgspec.Struct, frozen=True):
    """A session of the user that was open while the push was on its way."""

    session: str
    node: str
    opened_at: datetime
    closed_at: datetime | None


class LoggedPush(msgspec.Struct, frozen=True):
    """One row of the log, with the meaning of its outcome."""

    tenant: str
    push_id: str
    user: str
    """Empty where no user was known."""
    outcome: str
    reason: str
    meaning: str
    final: bool
    confirm: int
    sessions: int
    attempts: int
    published_at: datetime
    taken_at: datetime
    written_at: datetime | None
    proven_at: datetime | None
    finished_at: datetime | None
    late_at: datetime | None
    """When a proof came that was too late for the outcome."""
    differed_at: datetime | None
    """When a request with the same id and other content first came."""
    node: str
    boot: str
    node_alive: bool
    event: str
    app_id: str
    detail: str
    expires_at: datetime | None
    """When its ttl ends; None for a push without one."""
    topic: str | None
    """The topic that it was published to; None where it was published to users."""
    session: str | None
    """The session that gave the best proof; None: none did."""
    holder: str | None
    """The node of that session."""
    collapse_key: str | None
    encoding: str | None
    """json, text or bytes; None if the payload is the body of a rejected request."""
    payload_bytes: int | None
    owed: tuple[Owed, ...] | None
    """None: nothing is owed. Otherwise the event on push.outcomes, and a receipt to each of these."""
    fallback_key: str | None
    """The routing key of its fallback; None: it has none."""
    fallback_due: datetime | None
    """When that is published unless the push is proven by then; None: it was published or cancelled."""
    fallback_at: datetime | None
    """When that was published."""
    held: Sequence[Holding] = ()
    """The user's sessions between the taking and the end, by the ledger: at most `SESSIONS_SHOWN`, the last ones."""


class Waiting(NamedTuple):
    """A push that is scheduled: it has no row in the log yet."""

    tenant: str
    user: str
    """Empty where it names no one user."""
    users: int
    deliver_at: datetime
    scheduled_at: datetime
    recalled_at: datetime | None
    """When it was recalled; it ends as soon as it is taken again."""


class Found(NamedTuple):
    """What the log holds of one push id."""

    endings: Sequence[OutcomeCount]
    """How its users ended, the most frequent outcome first."""
    rows: Sequence[LoggedPush]
    """At most `USERS_SHOWN`, undelivered ones first."""
    asked_at: datetime
    """The database's time."""
    kept_since: date | None
    """The oldest day of the log; None for a log without a partition."""
    scheduled: Sequence[Waiting] = ()
    """At most `USERS_SHOWN`, the next ones: what still waits for its time."""


_ENDINGS: LiteralString = """
    select l.tenant, l.outcome, l.reason, l.final, coalesce(max(e.meaning), '') as meaning, count(*) as users,
           count(l.written_at) as handed, count(l.proven_at) as proven
    from delivery_log l left join ending e on e.outcome = l.outcome and e.reason = l.reason
    where l.push_id = %(push_id)s and (%(tenant)s::text is null or l.tenant = %(tenant)s)
    group by l.tenant, l.outcome, l.reason, l.final
    order by users desc, l.outcome, l.reason
    """
_ROWS: LiteralString = """
    select l.tenant, l.push_id, l.user_id as user, l.outcome, l.reason, coalesce(e.meaning, '') as meaning, l.final,
           l.confirm, l.sessions, l.attempts,
           l.published_at, l.taken_at, l.written_at, l.proven_at, l.finished_at, l.late_at, l.differed_at,
           l.node, l.boot,
           coalesce(n.seen_at > clock_timestamp() - make_interval(secs => %(lease)s), false) as node_alive,
           l.event, l.app_id, l.detail,
           l.expires_at, l.collapse_key, l.encoding,
           l.topic, l.session, coalesce(l.holder, case when l.session is not null then l.node end) as holder,
           length(coalesce(l.payload, (select c.payload from push_content c where c.day = l.day and c.id = l.content)))
               as payload_bytes, l.owed::text as owed, l.fallback_key, l.fallback_due, l.fallback_at
    from delivery_log l
    left join ending e on e.outcome = l.outcome and e.reason = l.reason
    left join node n on n.name = l.node and n.boot = l.boot
    where l.push_id = %(push_id)s and (%(tenant)s::text is null or l.tenant = %(tenant)s)
      and (%(user)s::text is null or l.user_id in (%(user)s, %(nobody)s))
    order by l.outcome in ('acked', 'received', 'written'), l.tenant, l.user_id, l.day
    limit %(limit)s
    """
_HELD: LiteralString = """
    select h.session, h.node, h.opened_at, h.closed_at from (
        select s.session, s.node, s.opened_at, s.closed_at from session s
        where s.user_id = %(user)s and s.opened_at <= coalesce(%(until)s, clock_timestamp())
          and (s.closed_at is null or s.closed_at >= %(since)s)
        order by s.opened_at desc limit %(limit)s) h
    order by h.opened_at
    """
_SCHEDULED: LiteralString = """
    select s.tenant, s.user_id as user, s.users, s.deliver_at, s.scheduled_at, s.recalled_at from scheduled s
    where s.push_id = %(push_id)s and (%(tenant)s::text is null or s.tenant = %(tenant)s)
      and (%(user)s::text is null or s.user_id in (%(user)s, %(nobody)s))
    order by s.due_at, s.place
    limit %(limit)s
    """
_SINCE: LiteralString = f"""
    select clock_timestamp() as now, min(days.day) as since from ({DAYS_HERE}) as days
    """


async def look_up(
    dsn: str,
    push_id: str,
    *,
    user: str | None = None,
    tenant: str | None = None,
    seconds: float = QUERY_TIMEOUT,
) -> Found:
    """What the log has of a push: of all users, or of one.

    The rows of one user include rows without a user: the push may have failed before its users were known. Each
    statement may take `seconds`. Raises StoreUnavailable.
    """
    params = {
        "push_id": push_id,
        "user": user,
        "tenant": tenant,
        "nobody": NO_USER,
        "limit": USERS_SHOWN,
        "lease": LEASE_SECONDS,
    }
    async with reading(dsn, "bridge why", seconds) as conn:
        endings = [OutcomeCount(**row) for row in await ask(conn, _ENDINGS, params, seconds)]
        found = await ask(conn, _ROWS, params, seconds)
        rows = [LoggedPush(**{**row, "owed": _legible(replies_of(row["owed"]))}) for row in found]
        for place, row in enumerate(rows):
            its_time = {"since": row.taken_at, "until": row.finished_at, "limit": SESSIONS_SHOWN}
            if row.user != NO_USER:
                held = await ask(conn, _HELD, {"user": row.user, **its_time}, seconds)
                rows[place] = msgspec.structs.replace(row, held=[Holding(**one) for one in held])
        scheduled = [Waiting(**row) for row in await ask(conn, _SCHEDULED, params, seconds)]
        (frame,) = await ask(conn, _SINCE, {}, seconds)
    return Found(endings, rows, frame["now"], frame["since"], scheduled)


def _legible(owed: Sequence[Reply] | None) -> tuple[Owed, ...] | None:
    if owed is None:
        return None
    return tuple(
        Owed(legible(r.queue), legible(r.correlation_id), "differs" if r.differs else msgspec.UNSET)
        for r in owed
    )
