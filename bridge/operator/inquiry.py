"""Questions about the delivery log and the queues, for people: what became of a push, and does it all add up.

Everything here only reads: the log in Postgres, and what a passive declare says of a queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Literal, LiteralString, NamedTuple, cast

import msgspec

from bridge.adapters.amqp.connection import opened
from bridge.adapters.amqp.depths import QueueDepth, depths
from bridge.adapters.amqp.encoding import legible
from bridge.adapters.postgres.pool import Connection
from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.adapters.postgres.rows import replies_of
from bridge.adapters.postgres.upkeep import DAYS_AHEAD, DAYS_HERE
from bridge.core.model.pushes import NO_USER
from bridge.core.model.rows import Reply
from bridge.core.ports.store import LEASE_SECONDS

USERS_SHOWN = 20
"""Users of one push that are told about when nobody asks for one of them; the rest is counted."""


# --- What became of a push -------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How many users of a push have this outcome and reason."""

    tenant: str
    outcome: str
    reason: str
    final: bool
    meaning: str
    users: int


class Owed(msgspec.Struct, frozen=True):
    """A receipt that is still to be sent to a queue; what is no text in its names is shown."""

    queue: str
    correlation_id: str
    repeat: Literal["differs"] | msgspec.UnsetType = msgspec.UNSET
    """It answers a request with other content."""


class Told(msgspec.Struct, frozen=True):
    """One row of the log, with what its words mean."""

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
    """When proof came after the end."""
    differed_at: datetime | None
    """When a request first came with its id and other content."""
    node: str
    boot: str
    node_alive: bool
    event: str
    app_id: str
    detail: str
    expires_at: datetime | None
    """When its ttl ends; None for a push that is not kept."""
    collapse_key: str | None
    encoding: str | None
    """What the payload is: json, text or bytes; None where it is no data, but the body of a rejected request."""
    payload_bytes: int | None
    owed: tuple[Owed, ...] | None
    """None: nothing. Otherwise the event on push.outcomes, and a receipt to each of these."""


class Found(NamedTuple):
    """What the log holds of one push id."""

    endings: Sequence[Ended]
    """Over all its users, the most frequent first."""
    rows: Sequence[Told]
    """Some of them: those that reached nobody first."""
    asked_at: datetime
    """The database's time."""
    kept_since: date | None
    """The oldest day of the log; None for a log without a partition."""


_ENDINGS: LiteralString = """
    select l.tenant, l.outcome, l.reason, l.final, coalesce(max(e.meaning), '') as meaning, count(*) as users
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
           length(coalesce(l.payload, (select c.payload from push_content c where c.day = l.day and c.id = l.content)))
               as payload_bytes, l.owed::text as owed
    from delivery_log l
    left join ending e on e.outcome = l.outcome and e.reason = l.reason
    left join node n on n.name = l.node and n.boot = l.boot
    where l.push_id = %(push_id)s and (%(tenant)s::text is null or l.tenant = %(tenant)s)
      and (%(user)s::text is null or l.user_id in (%(user)s, %(nobody)s))
    order by l.outcome in ('acked', 'received', 'written'), l.tenant, l.user_id, l.day
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
    """What the log says of a push, for one user (and for none: it may have failed before one was known) or all.

    Each of its statements may take so many seconds. Raises StoreUnavailable.
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
        endings = [Ended(**row) for row in await ask(conn, _ENDINGS, params, seconds)]
        found = await ask(conn, _ROWS, params, seconds)
        rows = [Told(**{**row, "owed": _legible(replies_of(row["owed"]))}) for row in found]
        (frame,) = await ask(conn, _SINCE, {}, seconds)
    return Found(endings, rows, frame["now"], frame["since"])


def _legible(owed: Sequence[Reply] | None) -> tuple[Owed, ...] | None:
    if owed is None:
        return None
    return tuple(
        Owed(legible(r.queue), legible(r.correlation_id), "differs" if r.differs else msgspec.UNSET)
        for r in owed
    )


# --- Queues ----------------------------------------------------------------------------------------------


async def queue_depths(url: str) -> list[QueueDepth]:
    """The queues that bridges take from, and push.dead. Raises BrokerUnavailable."""
    async with opened(url, "bridge audit", lambda events: None, lambda cause: None) as (connection, _):
        return await depths(connection)


# --- Does it add up --------------------------------------------------------------------------------------

SETTLED_AFTER = 10.0
"""Seconds after the death of a process in which the others end its rows: the lease, and a sweep."""
OWED_AFTER = 60.0
"""Seconds after which a debt should be paid, unless the broker was away."""
KEPT_AFTER = 60.0
"""Seconds after the end of its ttl in which a kept push should have ended, unless no node could write."""
STUCK_AFTER = 7200.0
"""Seconds after which a row of a live process can't be waiting for its proof any more: twice the longest
`ack_within`, which is longer than the longest BRIDGE_CONFIRM_TIMEOUT."""
DAYS_AHEAD_AT_LEAST = DAYS_AHEAD - 1
"""The upkeep runs every hour and makes DAYS_AHEAD: at midnight one fewer is there for a while."""
EDGE = 1e-5
"""Seconds: the log keeps microseconds, a process the whole float."""


class Hour(NamedTuple):
    """The rows of the pushes that were taken in one hour."""

    hour: datetime
    taken: int
    """Rows that the log was given, as the tally has them."""
    rows: int
    """Those that it holds."""
    delivered: int
    """acked, received, written."""
    offline: int
    expired: int
    superseded: int
    recalled: int
    dropped: int
    unknown: int
    rejected: int
    pending: int
    stored: int
    owing: int
    """Final, and a receipt is owed."""
    wrong: int
    """Rows that contradict themselves, see the query."""


class Irregular(NamedTuple):
    """What should not be, of any age; found through indexes that hold little else."""

    orphans: int
    """`pending`, and the process that would end them has been dead for longer than SETTLED_AFTER."""
    stuck: int
    """`pending` for longer than STUCK_AFTER, though their process lives."""
    overdue: int
    """Final, and owing for longer than OWED_AFTER."""
    unexpired: int
    """`stored`, though their ttl ended more than KEPT_AFTER ago."""
    oldest_pending: datetime | None
    nodes: Sequence[str]
    """The processes that live."""
    missing_days: Sequence[date]
    """Days from today on that have no partition, and should."""


class Began(NamedTuple):
    """What a process has said of the pushes it took, see `Account`: of those that live, and those that have ended
    and lost one."""

    name: str
    ended_at: datetime | None
    """None: it lives."""
    begun: int
    with_row: int
    on_their_way: int


class Books(NamedTuple):
    """What the log says of itself."""

    hours: Sequence[Hour]
    began: Sequence[Began]
    irregular: Irregular


class Stretch(NamedTuple):
    """What the log holds of the pushes that were taken in a stretch of time."""

    of_boot: int
    """Final rows that this boot wrote, or that were ended for it."""
    wrong: int
    """Rows of any boot that contradict themselves."""
    unbalanced: int
    """Of the whole minutes until the end of the stretch: rows that the log was given and does not hold, or holds and
    was not given."""


# Proof is what an outcome claims (received, acked: proven; written: handed over), a final row has its time,
# and no other has; a stored row has what it takes to deliver it; outcome, reason and final are a line of
# table ending.
_WRONG: LiteralString = """
    (e.outcome is null
     or (l.outcome in ('acked', 'received') and l.proven_at is null)
     or (l.outcome = 'written' and l.written_at is null)
     or (l.outcome = 'stored' and (l.expires_at is null or (l.payload is null and l.content is null)
                                  or l.encoding is null))
     or l.final <> (l.finished_at is not null))
    """
_JOIN: LiteralString = """
    delivery_log l
    left join ending e on e.outcome = l.outcome and e.reason = l.reason and e.final = l.final
    """
# One statement, and so one snapshot: rows and their tally are committed together.
_HOURS: LiteralString = f"""
    with held as (
    select date_trunc('hour', l.taken_at, 'UTC') as hour, count(*) as rows,
           count(*) filter (where l.outcome in ('acked', 'received', 'written')) as delivered,
           count(*) filter (where l.outcome = 'offline') as offline,
           count(*) filter (where l.outcome = 'expired') as expired,
           count(*) filter (where l.outcome = 'superseded') as superseded,
           count(*) filter (where l.outcome = 'recalled') as recalled,
           count(*) filter (where l.outcome = 'dropped') as dropped,
           count(*) filter (where l.outcome = 'unknown') as unknown,
           count(*) filter (where l.outcome = 'rejected') as rejected,
           count(*) filter (where l.outcome = 'pending') as pending,
           count(*) filter (where l.outcome = 'stored') as stored,
           count(*) filter (where l.final and l.owed is not null) as owing,
           count(*) filter (where {_WRONG}) as wrong
    from {_JOIN}
    where l.taken_at >= date_trunc('hour', now() - make_interval(hours => %(hours)s), 'UTC')
    group by 1), given as (
    select date_trunc('hour', t.minute, 'UTC') as hour, sum(t.rows)::bigint as taken
    from tally t
    where t.minute >= date_trunc('hour', now() - make_interval(hours => %(hours)s), 'UTC') and t.day in ({DAYS_HERE})
    group by 1)
    select coalesce(h.hour, g.hour) as hour, coalesce(g.taken, 0) as taken,
           {", ".join(f"coalesce(h.{name}, 0) as {name}" for name in Hour._fields[2:])}
    from held h full join given g on g.hour = h.hour
    order by 1
    """
_STRETCH: LiteralString = f"""
    select count(*) filter (where l.final and l.boot = %(boot)s) as of_boot,
           count(*) filter (where {_WRONG}) as wrong,
           abs((select count(*) from delivery_log m
                where m.taken_at >= date_trunc('minute', to_timestamp(%(since)s), 'UTC')
                  and m.taken_at < date_trunc('minute', to_timestamp(%(until)s), 'UTC'))
               - (select coalesce(sum(t.rows), 0)::bigint from tally t
                  where t.minute >= date_trunc('minute', to_timestamp(%(since)s), 'UTC')
                    and t.minute < date_trunc('minute', to_timestamp(%(until)s), 'UTC')
                    and t.day in ({DAYS_HERE}))) as unbalanced
    from {_JOIN}
    where l.taken_at >= to_timestamp(%(since)s - {EDGE}) and l.taken_at < to_timestamp(%(until)s + {EDGE})
    """
_BEGAN: LiteralString = f"""
    select name, null::timestamptz as ended_at, begun, with_row, on_their_way from node
    where seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS})
    union all
    select name, seen_at, begun, with_row, on_their_way from past_boot
    where seen_at > clock_timestamp() - make_interval(hours => %(hours)s) and begun <> with_row + on_their_way
    order by 1, 2
    """
# Since when nobody can end a row any more but a sweep: a newer boot has its node's name, or the lease ran out,
# or the name was given back. Stored rows wait for their user, not for a process.
_PENDING: LiteralString = f"""
    select count(*) filter (where not alive and dead_since < now - make_interval(secs => {SETTLED_AFTER})) as orphans,
           count(*) filter (where alive and taken_at < now - make_interval(secs => {STUCK_AFTER})) as stuck,
           min(taken_at) as oldest_pending
    from (
        select l.taken_at, t.now,
               coalesce(n.boot = l.boot and n.seen_at > t.now - make_interval(secs => {LEASE_SECONDS}), false) as alive,
               greatest(l.taken_at, case when n.boot = l.boot then n.seen_at else n.claimed_at end) as dead_since
        from (select clock_timestamp() as now) t
        cross join delivery_log l
        left join node n on n.name = l.node
        where l.outcome = 'pending'
    ) as pending
    """
_OVERDUE: LiteralString = f"""
    select count(*) as overdue from delivery_log
    where final and owed is not null
      and coalesce(finished_at, taken_at) < clock_timestamp() - make_interval(secs => {OWED_AFTER})
    """
# now(), not clock_timestamp(): that may change from row to row, and so finds nothing by an index.
_UNEXPIRED: LiteralString = f"""
    select count(*) as unexpired from delivery_log
    where outcome = 'stored' and expires_at < now() - make_interval(secs => {KEPT_AFTER})
    """
_NODES: LiteralString = f"""
    select name from node where seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS}) order by name
    """
_DAYS: LiteralString = f"""
    select log_today() as today, coalesce(array_agg(days.day), '{{}}') as days from ({DAYS_HERE}) as days
    """


async def read_books(dsn: str, hours: int) -> Books:
    """Count the last `hours` hours and the one that is running, and look for what should not be, of any age.

    Raises StoreUnavailable.
    """
    async with reading(dsn, "bridge audit") as conn:
        counted = [Hour(**row) for row in await ask(conn, _HOURS, {"hours": hours})]
        began = [Began(**row) for row in await ask(conn, _BEGAN, {"hours": hours})]
        return Books(counted, began, await _irregular(conn, QUERY_TIMEOUT))


async def read_stretch(
    dsn: str, boot: str, since: float, until: float, seconds: float
) -> tuple[Stretch, Irregular]:
    """Count what was taken from `since` to `until` (seconds since the epoch), and look for what should not be.

    By indexes only; each statement may take so many seconds. Rows at the very edges, within EDGE, may be counted
    though they are out. Raises StoreUnavailable.
    """
    params = {"boot": boot, "since": since, "until": until}
    async with reading(dsn, "bridge audit", seconds) as conn:
        (stretch,) = await ask(conn, _STRETCH, params, seconds)
        return Stretch(**stretch), await _irregular(conn, seconds)


async def _irregular(conn: Connection, seconds: float) -> Irregular:
    (pending,) = await ask(conn, _PENDING, {}, seconds)
    (owed,) = await ask(conn, _OVERDUE, {}, seconds)
    (kept,) = await ask(conn, _UNEXPIRED, {}, seconds)
    nodes = [row["name"] for row in await ask(conn, _NODES, {}, seconds)]
    (partitions,) = await ask(conn, _DAYS, {}, seconds)
    today = cast("date", partitions["today"])
    wanted = [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD_AT_LEAST + 1)]
    missing = [day for day in wanted if day not in partitions["days"]]
    return Irregular(**pending, **owed, **kept, nodes=nodes, missing_days=missing)
