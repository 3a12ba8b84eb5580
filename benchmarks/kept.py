"""How much pushes with a ttl slow down the others: absent users, and a store full of kept pushes.

Absent users: the same drain in turn with nobody absent and no ttl, with nobody absent and a ttl on every push, and with
a fifth of the users absent. After the clock has stopped those connect, and get what was kept for them.

Parked rows: two bridges of the same kind take the same drain in turn. The log of one holds very many stored rows,
of several days, and every second about a thousand others in it expire. And sessions open for users whose pushes
that log keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psycopg

from benchmarks.load import DATA_BYTES, PADDING_AT
from benchmarks.processes import wait_until
from benchmarks.scene import END_TIMEOUT, RECEIVED, Drain, Openings, Scene, scene
from bridge.devservers import Servers

TTL: Final = 3600
AWAY: Final = 0.2
"""The share of users who are absent."""
AWAY_RATIO: Final = 0.75
"""The target for the throughput with them absent, as a share of that with nobody absent."""
FIRST_PUSH_MS: Final = 50.0
"""The target for the time until a session gets its first kept push: less than this."""

DAYS: Final = 5
"""Days, and so partitions, over which the parked rows are spread."""
EACH: Final = 20
"""Pushes that are parked for each user."""
PARKED_USERS: Final = 100_000
EXPIRING_USERS: Final = 200_000
"""The first users of parked and of expiring rows; users with sessions during drains have lower numbers."""
PARKED: Final = "parked"
EXPIRING_RATE: Final = 1000
"""Rows that expire in a second."""


class Away(NamedTuple):
    """Drains in turn on one bridge, every push counted in each."""

    sessions: int
    away_sessions: int
    no_ttl: list[Drain]
    there: list[Drain]
    away: list[Drain]

    @property
    def ratio(self) -> float:
        """The throughput with a fifth absent, as a share of that with nobody absent, both with a ttl."""
        return median(d.rate for d in self.away) / median(d.rate for d in self.there)


class Parked(NamedTuple):
    """Drains of ordinary pushes in turn on two bridges, and sessions that open at the second."""

    rows: int
    openings: Openings
    without: list[Drain]
    beside: list[Drain]
    expired: list[float]
    """Rows that were expired in a second of each drain beside the parked rows."""

    @property
    def ratio(self) -> float:
        """The throughput beside the parked rows, as a share of that without."""
        return median(d.rate for d in self.beside) / median(d.rate for d in self.without)


def measure_away(
    servers: Servers, *, directory: Path, sessions: int, backlog: int, repetitions: int, warm_up: int
) -> Away:
    """Measure it on a bridge of its own."""
    away = max(1, round(sessions * AWAY))
    made = Away(sessions, away, [], [], [])
    with scene(servers, RECEIVED, directory=directory, sessions=[sessions - away, away]) as on:
        turns: list[Callable[[], None]] = [
            lambda: made.no_ttl.append(on.drain(backlog)),
            lambda: made.there.append(on.drain(backlog, ttl=TTL)),
            lambda: made.away.append(on.drain(backlog, ttl=TTL, away=on.crowds[1:])),
        ]
        on.drain(warm_up)
        on.drain(warm_up, ttl=TTL, away=on.crowds[1:])
        for repetition in range(repetitions):
            first = repetition % len(turns)
            for turn in turns[first:] + turns[:first]:
                turn()
    return made


def measure_parked(
    servers: Servers,
    *,
    directory: Path,
    sessions: int,
    backlog: int,
    repetitions: int,
    warm_up: int,
    rows: int,
    openings: int,
) -> Parked:
    """Measure it on two bridges."""
    beside_directory = directory / "beside"
    beside_directory.mkdir(exist_ok=True)
    with (
        scene(servers, RECEIVED, directory=directory, sessions=[sessions]) as without,
        scene(servers, RECEIVED, directory=beside_directory, sessions=[sessions, 0]) as beside,
    ):
        without.drain(warm_up)
        beside.drain(warm_up)
        park(beside.dsn, rows)
        opened = beside.open_kept(
            beside.crowds[1], run=PARKED, first=PARKED_USERS, count=openings, each=EACH, total=rows
        )
        made = Parked(rows, opened, [], [], [])
        # Long enough for a drain, and no longer: rows that expire after it are waited for.
        seconds = 1 + round(without.drain(backlog).seconds)
        turns: list[Callable[[], None]] = [
            lambda: made.without.append(without.drain(backlog)),
            lambda: _beside(beside, made, backlog, seconds),
        ]
        for repetition in range(repetitions):
            for turn in turns if repetition % 2 else reversed(turns):
                turn()
    return made


def _beside(on: Scene, made: Parked, backlog: int, seconds: int) -> None:
    """One drain while other rows expire; returns when they have all ended and owe nothing."""
    run, rows = f"expiring{len(made.beside):03}", seconds * EXPIRING_RATE
    with psycopg.connect(on.dsn, autocommit=True) as conn:
        began = 0.0

        def expire_from_now_on() -> None:
            nonlocal began
            insert_stored(
                conn, run, rows, EXPIRING_USERS, days=1, expire_after=0, expire_every=1 / EXPIRING_RATE
            )
            began = time.time()

        drain = on.drain(backlog, just_before=expire_from_now_on)
        found = conn.execute(
            "select count(*) from delivery_log where starts_with(push_id, %s) and finished_at <= to_timestamp(%s)",
            (run, began + drain.seconds),
        ).fetchone()
        assert found is not None
        made.beside.append(drain)
        made.expired.append(found[0] / drain.seconds)

        def expired() -> bool:
            owing = conn.execute("select exists (select from delivery_log where final and owed is not null)")
            return on.outcomes(run) == {"expired": rows} and owing.fetchone() == (False,)

        # A sweep sends the receipts of rows, a bounded number in a second.
        wait_until(
            expired, seconds=END_TIMEOUT + 4 * seconds, every=0.1, what=f"{rows} rows of {run} have ended"
        )


def park(dsn: str, rows: int) -> None:
    """Write stored rows, `EACH` for each user, spread over `DAYS` days; the newest are today's."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select make_partition(day - ago) from log_day, generate_series(1, %s) ago", (DAYS - 1,))
        conn.execute("update log_day set kept_since = day - %s::int", (DAYS - 1,))
        insert_stored(conn, PARKED, rows, PARKED_USERS, days=DAYS, expire_after=86_400, expire_every=0)
        # The server would do this by itself soon: do it now, so that it is not measured.
        conn.execute("vacuum (analyze) delivery_log")
        conn.execute("checkpoint")


def insert_stored(
    conn: psycopg.Connection,
    run: str,
    rows: int,
    first_user: int,
    *,
    days: int,
    expire_after: float,
    expire_every: float,
    each: int = EACH,
) -> None:
    """Stored rows as the bridge writes them, for users from `first_user` on, `each` for each user.

    A user's rows are spread over all days. The first expires in `expire_after` seconds from now, each of the
    others `expire_every` seconds after the one before.
    """
    conn.execute(
        """
        insert into delivery_log (
            day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
            published_at, taken_at, node, boot, event, app_id, detail, traceparent, owed,
            position, expires_at, encoding, payload)
        select
            log_day.day - (%(days)s - 1 - n * %(days)s / %(rows)s)::int,
            '', %(run)s || '-' || lpad(n::text, 8, '0'), user_id,
            'stored', 'no_session', false, 2, 0, 0,
            taken_at, taken_at, 'bench', 'earlier', 'message', '', '', '', '[]',
            (extract(epoch from taken_at) * 1000000)::bigint,
            clock.now + (%(after)s + n * %(every)s) * interval '1 second', 'json',
            convert_to(
                '"' || repeat('0', 20) || ' ' || lpad(n::text, 8, '0') || ' ' || right(user_id, 6) || ' '
                || repeat('x', %(padding)s) || '"', 'UTF8')
        from
            log_day,
            (select clock_timestamp() as now offset 0) clock,
            generate_series(0::bigint, %(rows)s - 1) n,
            lateral (
                select
                    'u' || lpad((%(first)s + n %% %(users)s)::text, 6, '0') as user_id,
                    now - (%(rows)s - n) * (%(days)s * interval '1 day' / %(rows)s) as taken_at) made
        """,
        {
            "run": run,
            "rows": rows,
            "days": days,
            "after": expire_after,
            "every": expire_every,
            "first": first_user,
            "users": max(1, rows // each),
            "padding": DATA_BYTES - PADDING_AT,
        },
    )
