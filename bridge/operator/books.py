"""Does the delivery log add up: counts by hour, rows that contradict themselves or that nobody ends. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import LiteralString, NamedTuple, cast

from bridge.adapters.postgres.figures import SCHEDULED_MAX
from bridge.adapters.postgres.pool import Connection
from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.adapters.postgres.upkeep import DAYS_AHEAD, DAYS_HERE, TODAY_AND_DAYS
from bridge.core.ports.store import LEASE_SECONDS

SETTLED_AFTER = 10.0
"""Seconds after the death of a process in which others end its rows: the lease, then a sweep."""
OWED_AFTER = 60.0
"""Seconds after which an owed receipt should have been sent, unless the broker was down."""
LATE_AFTER = 60.0
"""Seconds after its time when a scheduled push should have been published."""
KEPT_AFTER = 60.0
"""Seconds after the end of its ttl in which a kept push should have ended, unless no node could write."""
FALLBACK_AFTER = 60.0
"""Seconds after a fallback was due in which it should have been published, unless the broker was down."""
STUCK_AFTER = 7200.0
"""Seconds after which a row of a live process can no longer be waiting for its proof: twice the longest `ack_within`,
which is longer than the longest BRIDGE_CONFIRM_TIMEOUT."""
DAYS_AHEAD_AT_LEAST = DAYS_AHEAD - 1
"""The upkeep makes DAYS_AHEAD partitions every hour, so after midnight one is missing for a while."""
EDGE = 1e-5
"""Seconds: the log keeps microseconds, a process the whole float."""


class Hour(NamedTuple):
    """The rows of the pushes that were taken in one hour."""

    hour: datetime
    taken: int
    """Rows that were written to the log, as its tally counts them."""
    rows: int
    """Rows that it has now."""
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
    """Final rows that owe a receipt."""
    wrong: int
    """Rows that contradict themselves, see the query."""


class Irregular(NamedTuple):
    """What does not add up, of any age; found through indexes that hold little else."""

    orphans: int
    """`pending`, and the process that would end them has been dead for longer than SETTLED_AFTER."""
    stuck: int
    """`pending` for longer than STUCK_AFTER, though their process lives."""
    overdue: int
    """Final, and owing for longer than OWED_AFTER."""
    unexpired: int
    """`stored`, though their ttl ended more than KEPT_AFTER ago."""
    unpublished: int
    """Fallbacks that have been due for longer than FALLBACK_AFTER."""
    scheduled: int
    """Pushes that wait for their time, `SCHEDULED_MAX` at most: they have no row yet, and are not lost."""
    late: int
    """Those of them whose time was more than LATE_AFTER ago."""
    oldest_pending: datetime | None
    nodes: Sequence[str]
    """The processes that live."""
    missing_days: Sequence[date]
    """Days from today on that should have a partition and have none."""


class BootCount(NamedTuple):
    """What a process has written about the pushes it took, see `Account`. One for each live process, and for each that
    has ended and whose numbers do not add up."""

    name: str
    ended_at: datetime | None
    """None: the process lives."""
    begun: int
    with_row: int
    on_their_way: int


class Books(NamedTuple):
    """What the log says of itself."""

    hours: Sequence[Hour]
    processes: Sequence[BootCount]
    irregular: Irregular


class Stretch(NamedTuple):
    """What the log holds of the pushes that were taken in a stretch of time."""

    of_boot: int
    """Final rows that this boot wrote, or that were ended for it."""
    wrong: int
    """Rows of any boot that contradict themselves."""
    unbalanced: int
    """In the whole minutes of the stretch: rows that were written and are gone, or exist but were never written."""


# A row has the proof that its outcome claims (received, acked: proven; written: handed over). A final row has
# `finished_at`, no other has. A stored row has what its delivery needs. Outcome, reason and final are a line of table
# ending.
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
# One statement for both, so that one snapshot sees rows and their tally, which are committed together.
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
_PROCESSES: LiteralString = f"""
    select name, null::timestamptz as ended_at, begun, with_row, on_their_way from node
    where seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS})
    union all
    select name, seen_at, begun, with_row, on_their_way from past_boot
    where seen_at > clock_timestamp() - make_interval(hours => %(hours)s) and begun <> with_row + on_their_way
    order by 1, 2
    """
# `dead_since`: from then on only a sweep can end the row, since a newer boot has its node's name, the lease ran out, or
# the name was given back. Stored rows wait for their user, not for a process.
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
# now(), not clock_timestamp(), which may change from row to row, so that no index could be used.
_UNEXPIRED: LiteralString = f"""
    select count(*) as unexpired from delivery_log
    where outcome = 'stored' and expires_at < now() - make_interval(secs => {KEPT_AFTER})
    """
_UNPUBLISHED: LiteralString = f"""
    select count(*) as unpublished from delivery_log
    where fallback_due < now() - make_interval(secs => {FALLBACK_AFTER})
    """
_SCHEDULED: LiteralString = f"""
    select (select count(*) from (
                select from scheduled s order by s.due_at, s.place limit {SCHEDULED_MAX}) a) as scheduled,
           (select count(*) from (
                select from scheduled s where s.due_at < now() - make_interval(secs => {LATE_AFTER})
                order by s.due_at, s.place limit {SCHEDULED_MAX}) b) as late
    """
_NODES: LiteralString = f"""
    select name from node where seen_at > clock_timestamp() - make_interval(secs => {LEASE_SECONDS}) order by name
    """


async def read_books(dsn: str, hours: int) -> Books:
    """Count the last `hours` hours and the current one, and look for what does not add up, of any age.

    Raises StoreUnavailable.
    """
    async with reading(dsn, "bridge audit") as conn:
        counted = [Hour(**row) for row in await ask(conn, _HOURS, {"hours": hours})]
        processes = [BootCount(**row) for row in await ask(conn, _PROCESSES, {"hours": hours})]
        return Books(counted, processes, await _irregular(conn, QUERY_TIMEOUT))


async def read_stretch(
    dsn: str, boot: str, since: float, until: float, seconds: float
) -> tuple[Stretch, Irregular]:
    """Count what was taken from `since` to `until` (seconds since the epoch), and look for what does not add up.

    It reads through indexes only; each statement may take `seconds`. Rows up to EDGE outside may be counted as well.
    Raises StoreUnavailable.
    """
    params = {"boot": boot, "since": since, "until": until}
    async with reading(dsn, "bridge audit", seconds) as conn:
        (stretch,) = await ask(conn, _STRETCH, params, seconds)
        return Stretch(**stretch), await _irregular(conn, seconds)


async def _irregular(conn: Connection, seconds: float) -> Irregular:
    (pending,) = await ask(conn, _PENDING, {}, seconds)
    (owed,) = await ask(conn, _OVERDUE, {}, seconds)
    (kept,) = await ask(conn, _UNEXPIRED, {}, seconds)
    (due,) = await ask(conn, _UNPUBLISHED, {}, seconds)
    (later,) = await ask(conn, _SCHEDULED, {}, seconds)
    nodes = [row["name"] for row in await ask(conn, _NODES, {}, seconds)]
    (partitions,) = await ask(conn, TODAY_AND_DAYS, {}, seconds)
    today = cast("date", partitions["today"])
    wanted = [today + timedelta(days=ahead) for ahead in range(DAYS_AHEAD_AT_LEAST + 1)]
    missing = [day for day in wanted if day not in partitions["days"]]
    return Irregular(**pending, **owed, **kept, **due, **later, nodes=nodes, missing_days=missing)
