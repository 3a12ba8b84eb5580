"""What is known of a user: sessions, what is kept for them, how their last pushes ended; and how to disconnect them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

import msgspec
import psycopg

from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Watchdog, connect
from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.core.model.sessions import CloseReason
from bridge.operator.story import age, printable, span

SESSIONS_SHOWN: Final = 100
"""Live sessions that are listed; more are only counted."""
ENDED_SHOWN: Final = 10
"""The last sessions that have closed."""
PUSHES_SHOWN: Final = 20
"""The last pushes."""
CLOSED_WITHIN: Final = 2.0
"""Seconds in which the nodes should have closed what they were asked to. Those that have not by then are named."""
_LOOK_EVERY: Final = 0.05


class UserSession(msgspec.Struct, frozen=True):
    """One row of the ledger."""

    session: str
    node: str
    opened_at: datetime
    closed_at: datetime | None
    close_code: int | None
    close_reason: str | None
    mode: str
    address: str | None
    user_agent: str | None
    expires_at: datetime
    """When its token expires."""
    topics: Sequence[str]
    """What it is subscribed to, or was when it closed, as long as that counts."""


class UserPush(msgspec.Struct, frozen=True):
    """How a push stands for the user."""

    push_id: str
    tenant: str
    event: str
    outcome: str
    reason: str
    taken_at: datetime
    written_at: datetime | None
    proven_at: datetime | None
    finished_at: datetime | None
    session: str | None
    """The session that gave the best proof; None: none did."""


class Kept(msgspec.Struct, frozen=True):
    """What waits for the user."""

    pushes: int
    since: datetime | None
    """When the oldest of them was taken."""


class Person(msgspec.Struct, frozen=True):
    """What is known of a user."""

    user: str
    online: bool
    sessions: Sequence[UserSession]
    """Live ones, the oldest first."""
    ended: Sequence[UserSession]
    """The last ones that have closed, or whose process is dead; the last first."""
    kept: Kept
    pushes: Sequence[UserPush]
    """The last ones, the last first."""
    asked_at: datetime
    """The database's time."""

    @property
    def known(self) -> bool:
        """Whether ledger or log has anything of this user."""
        return bool(self.sessions or self.ended or self.kept.pushes or self.pushes)


_COLUMNS: LiteralString = """
    s.session, s.node, s.opened_at, s.closed_at, s.close_code, s.close_reason, s.mode, s.address, s.user_agent,
    s.expires_at, array(select u.topic from subscription u where u.session = s.session order by 1) as topics
    """
_ITS_PROCESS_LIVES: LiteralString = """
    exists (
        select from node n
        where n.name = s.node and n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds')
    """
# As who_is_online judges. A join with that view may read all open sessions for each of the user's.
_LIVE: LiteralString = f"""
    select {_COLUMNS} from session s
    where s.user_id = %(user)s and s.closed_at is null and {_ITS_PROCESS_LIVES}
    order by s.opened_at limit %(limit)s
    """
_ENDED: LiteralString = f"""
    select {_COLUMNS} from session s
    where s.user_id = %(user)s and (s.closed_at is not null or not {_ITS_PROCESS_LIVES})
    order by s.opened_at desc limit %(limit)s
    """
_KEPT: LiteralString = """
    select count(*) as pushes, min(taken_at) as since from delivery_log
    where user_id = %(user)s and outcome = 'stored'
    """
_PUSHES: LiteralString = """
    select push_id, tenant, event, outcome, reason, taken_at, written_at, proven_at, finished_at, session
    from delivery_log
    where nullif(user_id, '') = %(user)s order by taken_at desc limit %(limit)s
    """


async def look_up(dsn: str, user: str, *, seconds: float = QUERY_TIMEOUT) -> Person:
    """What is known of a user; each statement may take `seconds`. Raises StoreUnavailable."""
    async with reading(dsn, "bridge who", seconds) as conn:

        async def found(query: LiteralString, limit: int = 0) -> list[dict[str, Any]]:
            return await ask(conn, query, {"user": user, "limit": limit}, seconds)

        live = [UserSession(**row) for row in await found(_LIVE, SESSIONS_SHOWN)]
        ended = [UserSession(**row) for row in await found(_ENDED, ENDED_SHOWN)]
        (kept,) = await found(_KEPT)
        pushes = [UserPush(**row) for row in await found(_PUSHES, PUSHES_SHOWN)]
        (now,) = await found("select clock_timestamp() as now")
    return Person(user, bool(live), live, ended, Kept(**kept), pushes, now["now"])


# --- disconnecting ---------------------------------------------------------------------------------------


class Disconnected(NamedTuple):
    """What came of it."""

    sessions: int
    """How many have closed."""
    nodes: Sequence[str]
    """The nodes that had them."""
    silent: Sequence[str]
    """Nodes that have not closed theirs in time; they do as soon as they reach the database."""


_UNWANT: LiteralString = "select session, node from unwant_sessions(%s, %s, %s)"
_OPEN: LiteralString = "select session from session where session = any(%s) and closed_at is null"


async def disconnect(dsn: str, user: str, session: str | None = None) -> Disconnected:
    """Have the live sessions of a user closed, or one of them; their clients may come back at once.

    Returns when the nodes have closed them, or after two seconds. Idempotent. Raises StoreUnavailable.
    """
    conn = await connect(dsn, "bridge who")
    try:
        async with Watchdog(conn):
            asked = await conn.execute(_UNWANT, (user, session, CloseReason.DISCONNECTED.word))
            nodes = {str(name): str(node) for name, node in await asked.fetchall()}
        give_up = asyncio.get_running_loop().time() + CLOSED_WITHIN
        left = set(nodes)
        while left and asyncio.get_running_loop().time() < give_up:
            await asyncio.sleep(_LOOK_EVERY)
            async with Watchdog(conn):
                open_ = await conn.execute(_OPEN, (list(left),))
                left = {str(name) for (name,) in await open_.fetchall()}
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        conn.pgconn.finish()
    silent = sorted({nodes[name] for name in left})
    done = sorted({node for name, node in nodes.items() if name not in left})
    return Disconnected(len(nodes) - len(left), done, silent)


# --- for people ------------------------------------------------------------------------------------------


def tell(person: Person) -> Iterator[str]:
    """A screen of text about a user."""
    user, now = printable(person.user), person.asked_at
    if not person.known:
        yield f"{user}: neither the ledger nor the log has anything of them"
        yield "It means that nobody has opened a session with this id, and that no push was for it, within"
        yield "BRIDGE_RETENTION_DAYS. (Ids are compared letter by letter, as the token and the request say them.)"
        return
    count = len(person.sessions)
    more = "or more " if count == SESSIONS_SHOWN else ""
    yield f"{user} is {'online' if count else 'offline'}" + (f", {count} {more}session(s)" if count else "")
    for one in person.sessions:
        since = age((now - one.opened_at).total_seconds())
        yield f"  open       for {since:<8} {_where(one)}"
    for one in person.ended:
        yield f"  {_end(one, now)}"
    if person.kept.since is not None:
        since = age((now - person.kept.since).total_seconds())
        yield f"  kept       {person.kept.pushes} push(es), the oldest for {since}"
    if person.pushes:
        yield ""
        yield "their last pushes (`bridge why PUSH` tells the story of one):"
    for push in person.pushes:
        took = span(((push.finished_at or now) - push.taken_at).total_seconds())
        before = age((now - push.taken_at).total_seconds())
        ended = f"{push.outcome:<9} {push.reason:<16}"
        yield f"  {before + ' ago':<12} {ended} {took:>9}  {printable(push.push_id, 60)}"


def _where(one: UserSession) -> str:
    device = printable(one.user_agent or "no User-Agent", 60)
    return f"on {one.node} from {one.address or 'an unknown address'}  {device}  {one.session}"


def _end(one: UserSession, now: datetime) -> str:
    if one.closed_at is None:
        return f"lost       its process is dead, the next sweep says so  {_where(one)}"
    before = age((now - one.closed_at).total_seconds())
    lasted = age((one.closed_at - one.opened_at).total_seconds())
    code = f" {one.close_code}" if one.close_code is not None else ""
    return f"closed     {before} ago, after {lasted}: {one.close_reason}{code}  {_where(one)}"
