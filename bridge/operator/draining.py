"""Ask a node to stop, and tell how its sessions move to other nodes and whether a push is lost by it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, LiteralString, NamedTuple

import psycopg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Connection, Watchdog, connect
from bridge.adapters.postgres.reading import ask, reading
from bridge.core.errors import BridgeError
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.store import LEASE_SECONDS
from bridge.operator.story import printable

SESSIONS_MAX: Final = 200_000
"""Sessions of one stop that are looked at."""
QUESTION_SECONDS: Final = 10.0
"""How long each statement may take."""
NAME_SHOWN: Final = 80
"""Characters of a name that nobody has."""
SKEW: Final = 1.0
"""Seconds by which the clocks of two nodes may differ."""

LOST: Final = (
    (Outcome.OFFLINE, Reason.LEFT_BEFORE_SEND),
    (Outcome.UNKNOWN, Reason.CONNECTION_LOST),
    (Outcome.UNKNOWN, Reason.NODE_DIED),
    (Outcome.UNKNOWN, Reason.NODE_SILENT),
    (Outcome.DROPPED, Reason.NODE_UNREACHABLE),
)
"""Endings of pushes to users whose sessions a stop has closed that count as lost by it, if they were taken since it
began."""
ON_THE_WAY: Final = (Outcome.OFFLINE, Reason.NO_SESSION)
"""The ending of a push without a ttl that was taken while its user was between two nodes. It says what happened, and
nothing else was promised; so it is counted by itself."""


class NotDrained(BridgeError):
    """The node can't be asked to stop. The message says why."""


class LivingNode(NamedTuple):
    """A process that holds a node's name."""

    name: str
    boot: str
    silent: float
    """Seconds since it last said that it lives."""
    stopping: float | None
    """Seconds since it stops, or was asked to; None: it goes on."""
    sessions: int

    @property
    def alive(self) -> bool:
        """Whether its lease is good."""
        return self.silent < LEASE_SECONDS


class Stop(NamedTuple):
    """A stop that was asked for."""

    node: str
    boot: str
    since: datetime
    """By the database's clock."""


class Progress(NamedTuple):
    """How far a stop is."""

    runs: bool
    """Whether the process still holds its name."""
    silent: bool
    """It does, and its lease has run out: it died on the way."""
    open: int
    """Its sessions that are open,"""
    closed: int
    """that the stop has closed,"""
    cut_off: int
    """and those that ended because the process died."""
    moved: int
    """Those closed whose user has opened one at another process since."""
    pending: int
    """Its rows that still wait for a proof."""

    @property
    def sessions(self) -> int:
        """All that the stop is about."""
        return self.open + self.closed + self.cut_off


class Loss(NamedTuple):
    """How many pushes have ended in one way that a stop may be the cause of."""

    outcome: str
    reason: str
    pushes: int

    @property
    def on_the_way(self) -> bool:
        """Whether their users were between two nodes."""
        return (self.outcome, self.reason) == ON_THE_WAY


_NODES: LiteralString = """
    select n.name, n.boot, extract(epoch from clock_timestamp() - n.seen_at)::float8 as silent,
           case when n.stopping = n.boot
                then extract(epoch from clock_timestamp() - n.stopping_since)::float8 end as stopping,
           (select count(*) from session s
            where s.node = n.name collate "C" and s.boot = n.boot collate "C" and s.closed_at is null and s.node <> ''
           ) as sessions
    from node n order by n.name collate "C"
    """
_ASK: LiteralString = """
    update node set stopping = boot, stopping_since = clock_timestamp()
    where name = %s and boot = %s and stopping is distinct from boot
    returning stopping_since
    """
# Whose sessions the stop has closed, how many and when, and when they were back: by the indexes session_closed and
# session_of_user.
_MOVING: LiteralString = """
    with closed as materialized (
        select s.user_id, s.closed_at from session s
        where s.closed_at >= %(since)s and s.node = %(node)s collate "C" and s.boot = %(boot)s collate "C"
          and s.close_reason = %(word)s
        limit %(most)s),
    person as (
        select c.user_id, count(*) as closed, min(c.closed_at) as left_at from closed c group by c.user_id),
    moving as (
        select p.user_id, p.closed, p.left_at, b.opened, b.back_at
        from person p
        cross join lateral (
            select count(*) as opened, min(o.opened_at) as back_at
            from (
                select s.opened_at from session s
                where s.user_id = p.user_id and s.boot <> %(boot)s collate "C"
                  and s.opened_at >= p.left_at - make_interval(secs => %(skew)s)
                order by s.opened_at limit p.closed) o) b)
    """
_PROGRESS: LiteralString = f"""
    {_MOVING}
    select
        exists (select from node n where n.name = %(node)s and n.boot = %(boot)s) as runs,
        exists (
            select from node n where n.name = %(node)s and n.boot = %(boot)s
              and n.seen_at < clock_timestamp() - make_interval(secs => %(lease)s)) as silent,
        (select count(*) from session s
         where s.node = %(node)s collate "C" and s.boot = %(boot)s collate "C" and s.closed_at is null and s.node <> ''
        ) as open,
        (select coalesce(sum(m.closed), 0)::bigint from moving m) as closed,
        (select count(*) from session s where s.boot = %(boot)s and s.close_reason = 'node_died') as cut_off,
        (select coalesce(sum(least(m.closed, m.opened)), 0)::bigint from moving m) as moved,
        (select count(*) from delivery_log l where l.node = %(node)s and l.boot = %(boot)s and l.outcome = 'pending'
        ) as pending
    """
# By the index delivery_log_user, for each of those users the rows since the stop began.
_LOSSES: LiteralString = f"""
    {_MOVING}
    select l.outcome, l.reason, count(*) as pushes
    from moving m
    cross join lateral (
        select l.outcome, l.reason from delivery_log l
        where l.day >= (%(since)s::timestamptz at time zone 'UTC')::date - 1
          and nullif(l.user_id, '') = m.user_id and l.taken_at >= %(since)s
          and ((l.outcome || '/' || l.reason) = any (%(lost)s)
               or ((l.outcome || '/' || l.reason) = %(on_the_way)s
                   and l.taken_at >= m.left_at - make_interval(secs => %(skew)s)
                   and l.taken_at <= m.back_at + make_interval(secs => %(skew)s)))) l
    group by l.outcome, l.reason order by l.outcome, l.reason
    """


async def nodes(dsn: str) -> Sequence[LivingNode]:
    """The processes that hold a name, by name. Raises StoreUnavailable."""
    async with reading(dsn, "bridge drain", QUESTION_SECONDS) as conn:
        return [LivingNode(**row) for row in await ask(conn, _NODES, {}, QUESTION_SECONDS)]


def chosen(found: Sequence[LivingNode], name: str) -> LivingNode:
    """The node of this name, if it can be asked to stop. Raises NotDrained."""
    for node in found:
        if node.name == name:
            if not node.alive:
                raise NotDrained(f"{name} is dead: it was last seen {node.silent:.0f} s ago")
            if node.stopping is not None:
                raise NotDrained(f"{name} is stopping already, since {node.stopping:.0f} s ago")
            return node
    alive = ", ".join(node.name for node in found if node.alive) or "none"
    raise NotDrained(f"there is no node {printable(name[:NAME_SHOWN])}; alive: {alive}")


async def ask_to_stop(dsn: str, node: LivingNode) -> Stop:
    """Ask a node to stop: it hears of it within two seconds. Raises NotDrained where it stops already or is gone, and
    StoreUnavailable."""
    conn = await connect(dsn, "bridge drain")
    try:
        async with Watchdog(conn):
            asked = await conn.execute(_ASK, (node.name, node.boot))
            since = [row[0] for row in await asked.fetchall() if isinstance(row[0], datetime)]
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        conn.pgconn.finish()
    if not since:
        raise NotDrained(f"{node.name} is stopping already, or has just ended")
    return Stop(node.name, node.boot, since[0])


class Observer:
    """Looks at one stop. Its methods raise psycopg's errors, which `reading` translates."""

    def __init__(self, conn: Connection, stop: Stop) -> None:
        self._conn = conn
        self._of = {
            "node": stop.node,
            "boot": stop.boot,
            "since": stop.since,
            "word": CloseReason.RESTART.word,
            "most": SESSIONS_MAX,
            "skew": SKEW,
            "lease": LEASE_SECONDS,
            "lost": ["/".join(pair) for pair in LOST],
            "on_the_way": "/".join(ON_THE_WAY),
        }

    async def progress(self) -> Progress:
        """How far it is."""
        (row,) = await ask(self._conn, _PROGRESS, self._of, QUESTION_SECONDS)
        return Progress(**row)

    async def losses(self) -> Sequence[Loss]:
        """What was lost by it so far, and what came for users between two nodes."""
        return [Loss(**row) for row in await ask(self._conn, _LOSSES, self._of, QUESTION_SECONDS)]
