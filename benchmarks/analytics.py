"""What analysts' questions take on a large log: `python -m benchmarks.analytics --rows 10000000`.

A log of ten days is generated in a database of its own and counted; then each question of docs/analytics.md is asked
three times, and two days are dropped. Nothing else should run meanwhile. It prints the table of that page.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from benchmarks.guard import ROOT
from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.counting import Counting
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.devservers import private_servers

PAGE: Final = ROOT / "docs" / "analytics.md"
DIRECTORY: Final = ROOT / ".dev" / "bench" / "analytics"
DAYS: Final = 10
"""Days of the log: the last of them are yesterday and today."""
USERS: Final = 100_000
SESSIONS: Final = 200_000
TRIES: Final = 3

# 20 events, 5 publishers, 2 tenants. Of a hundred pushes 90
# are received, 4 acked, 3 offline, 1 lost, 1 kept, 1 rejected.
_ROWS: LiteralString = """
insert into delivery_log (
    day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts, published_at, taken_at,
    written_at, proven_at, finished_at, node, boot, event, app_id, detail, traceparent, expires_at, position,
    batch_id, batch_position, data_bytes, stored_at)
select
    %(day)s, (array['', 'shop'])[1 + n %% 2], 'p' || %(first)s + n, case when k.outcome = 'rejected' then '' else
    'u' || floor(power(random(), 2) * %(users)s) end, k.outcome, k.reason, k.outcome <> 'stored', 2,
    k.handed::integer, k.handed::integer, t.published, t.taken, t.written, t.proven,
    case when k.outcome <> 'stored' then coalesce(t.proven, t.taken + interval '1 second') end,
    'n1', 'b1', case when n %% 4 = 0 then 'order.paid' else 'event.' || n %% 20 end, 'app' || n %% 5, '', '',
    case when k.outcome = 'stored' then t.taken + interval '20 days' end,
    case when k.outcome = 'stored' then %(first)s + n end,
    case when n %% 10 = 0 then 'b' || (%(first)s + n) / 500 end, case when n %% 10 = 0 then (n / 10) %% 50 end,
    200 + n %% 400, case when k.outcome = 'stored' then t.taken end
from generate_series(1, %(rows)s) n
cross join lateral (select
    %(begin)s::timestamptz + make_interval(secs => n * %(seconds)s::float8 / (%(rows)s + 1)) as at) a
cross join lateral (select case
    when n %% 100 < 90 then 'received' when n %% 100 < 94 then 'acked' when n %% 100 < 97 then 'offline'
    when n %% 100 < 98 then 'unknown' when n %% 100 < 99 then 'stored' else 'rejected' end as name) o
cross join lateral (select o.name as outcome, case o.name
    when 'received' then 'pong' when 'acked' then 'ack_frame' when 'offline' then 'no_session'
    when 'unknown' then 'connection_lost' when 'stored' then 'no_session' else 'invalid' end as reason,
    o.name in ('received', 'acked', 'unknown') as handed) k
cross join lateral (select a.at as taken, a.at - make_interval(secs => 0.002 * exp(random() * 3)) as published,
    case when k.handed then a.at + make_interval(secs => 0.0005 * exp(random() * 2)) end as written,
    case when k.outcome in ('received', 'acked')
         then a.at + make_interval(secs => 0.01 * exp(random() * 4)) end as proven) t
"""
_SESSIONS: LiteralString = """
insert into session (session, user_id, node, boot, opened_at, closed_at, close_code, mode, expires_at)
select 's' || n, 'u' || n %% 100000, 'n1', 'b1', t.at, t.at + interval '20 minutes', 1001, 'bridge.v1.json',
    t.at + interval '1 hour'
from generate_series(1, %s) n
cross join lateral (select now() - make_interval(secs => n * 4.0) as at) t
"""


class Question(NamedTuple):
    """One of the page."""

    title: str
    query: str


class Answer(NamedTuple):
    """What it took."""

    title: str
    rows: int
    ms: float
    pages: int
    scans: str
    """How the rows were found: kinds of scans, without those of small tables."""


def questions(page: str) -> Iterator[Question]:
    """The numbered questions of docs/analytics.md."""
    for title, query in re.findall(r"(?ms)^### (\d+\. .+?)$\s+```sql\n(.+?);\n```", page):
        yield Question(title, query)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analytics", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--rows", type=int, default=10_000_000, metavar="N", help="rows of the log [10000000]"
    )
    chosen = parser.parse_args(arguments)
    with private_servers(DIRECTORY, say=lambda line: None, reuse=False) as servers:
        measure(servers.postgres_dsn, chosen.rows)
    return 0


def measure(dsn: str, rows: int) -> None:
    """Fill a database, ask, and print."""
    migrate.upgrade(dsn)
    began = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as conn:
        fill(conn, rows)
        print(f"{rows} rows in {DAYS} days, made in {time.monotonic() - began:.0f} s", flush=True)
        took = asyncio.run(count(dsn))
        print(f"all hours counted in {took:.1f} s; ", end="")
        print(f"the fullest again in {count_fullest(conn):.2f} s", flush=True)
        conn.execute("vacuum analyze")
        print("\n| question | rows | ms | pages | found by |\n|---|---|---|---|---|")
        for question in questions(PAGE.read_text(encoding="utf-8")):
            answer = ask(conn, question)
            print(
                f"| {answer.title} | {answer.rows} | {answer.ms:.1f} | {answer.pages} | {answer.scans} |",
                flush=True,
            )
        conn.execute(
            "update delivery_log set final = true, outcome = 'expired', reason = 'ttl' where outcome = 'stored'"
        )
        conn.execute("update log_day set since = day - 1, kept_since = day - 1")
        began = time.monotonic()
        conn.execute("select drop_partition(day - %s, %s) from log_day", (DAYS - 1, DAYS - 2))
        alone = time.monotonic() - began
    began = time.monotonic()
    done = asyncio.run(Upkeep(dsn).run_once(DAYS - 3))
    took = time.monotonic() - began
    print(f"\na day of {rows // DAYS} rows dropped in {alone * 1000:.0f} ms; ", end="")
    print(f"{len(done.dropped)} by upkeep, with its sessions and its tally, in {took * 1000:.0f} ms")


def fill(conn: psycopg.Connection[Any], rows: int) -> None:
    """Write the log: the same number of rows for each day, today's up to now."""
    conn.execute("select make_partition(day - i) from log_day, generate_series(0, %s) i", (DAYS - 1,))
    conn.execute("set synchronous_commit to off")
    for back in range(DAYS - 1, -1, -1):
        [(day, begin, seconds)] = conn.execute(
            "select day - %s, (day - %s)::timestamp at time zone 'UTC', case when %s > 0 then 86400 else"
            " greatest(extract(epoch from now() - day::timestamp at time zone 'UTC'), 60) end::float8 from log_day",
            (back, back, back),
        ).fetchall()
        conn.execute(
            _ROWS,
            {
                "day": day,
                "first": (DAYS - 1 - back) * (rows // DAYS),
                "rows": rows // DAYS,
                "users": USERS,
                "begin": begin,
                "seconds": seconds,
            },
        )
    conn.execute(_SESSIONS, (SESSIONS,))
    conn.execute("analyze")


async def count(dsn: str) -> float:
    """Count all hours; returns the seconds that it took."""
    began = time.monotonic()
    while (await Counting(dsn).run_once(everything=True, most=1000)).left:
        pass
    return time.monotonic() - began


def count_fullest(conn: psycopg.Connection[Any]) -> float:
    """Count the hour with the most rows once more; returns the seconds that it took."""
    [(day, hour)] = conn.execute("select day, hour from counted_hour order by rows desc limit 1").fetchall()
    began = time.monotonic()
    conn.execute("select count_hour(%s, %s)", (day, hour))
    return time.monotonic() - began


def ask(conn: psycopg.Connection[Any], question: Question) -> Answer:
    """Ask it a few times: the median time, and what the last plan says."""
    times = []
    for _ in range(TRIES):
        explained = conn.execute(
            f"explain (analyze, buffers, format json) {question.query}".encode()
        ).fetchall()
        plan = explained[0][0][0]
        times.append(plan["Execution Time"] + plan["Planning Time"])
    root = plan["Plan"]
    kinds = sorted(
        {
            f"{node['Node Type'].lower()} of {re.sub(r'_[0-9]{8}$', '', node['Relation Name'])}"
            for node in nodes(root)
            if node.get("Actual Loops")
            and node.get("Relation Name") not in (None, "ending", "counting", "log_day")
        }
    )
    pages = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
    return Answer(question.title, root["Actual Rows"], median(times), pages, ", ".join(kinds))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


if __name__ == "__main__":
    sys.exit(main())
