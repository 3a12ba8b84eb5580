"""What it costs to recognise repeats before they are sent: the same drain with few and with very many ids in the log.

Bridges of the same kind take the same drain in turn. The log of each holds a number of rows of today, one for each id,
which it reads into its memory first. One more has so little memory that every id may be known, and is looked up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psycopg

from benchmarks.processes import wait_until
from benchmarks.scene import RECEIVED, Contestant, Drain, Scene, scene
from bridge.devservers import Servers

READ_TIMEOUT: Final = 3600.0
LEAST_MEMORY: Final = 1 << 16
"""Bytes that a million ids fill."""
LOOKED_UP: Final = "bridge_looked_up_rows_total"


class Log(NamedTuple):
    """Drains of ordinary pushes by a bridge whose log held this many ids at its start."""

    rows: int
    memory: int
    """In bytes; 0 means the default."""
    read_in: list[float]
    """Seconds from its first message until all ids of the log were in memory."""
    drains: list[Drain]
    looked_up: list[float]
    """Keys that were looked up for each push of a drain."""

    @property
    def title(self) -> str:
        """The heading of its column."""
        return f"{self.rows:,} ids" + (", all looked up" if self.memory else "")


class Repeats(NamedTuple):
    """One for each log; the first is empty."""

    logs: list[Log]

    def ratio(self, log: Log) -> float:
        """The throughput beside this log, as a share of that beside the empty one."""
        return median(d.rate for d in log.drains) / median(d.rate for d in self.logs[0].drains)


def measure_repeats(
    servers: Servers,
    *,
    directory: Path,
    sessions: int,
    backlog: int,
    repetitions: int,
    warm_up: int,
    rows: Sequence[int],
) -> Repeats:
    """Measure it on a bridge for each number of rows, and on one more with the fewest rows and little memory."""
    some = min(n for n in rows if n)
    logs = [Log(n, 0, [], [], []) for n in rows] + [Log(some, LEAST_MEMORY, [], [], [])]
    with ExitStack() as stack:
        on = [_scene(stack, servers, directory / f"log{n}", log, sessions) for n, log in enumerate(logs)]
        for log, one in zip(logs, on, strict=True):
            began = time.monotonic()
            one.drain(warm_up)
            wait_until(
                lambda one=one: one.metric("bridge_ids_whole") == 1,  # type: ignore[misc]
                seconds=READ_TIMEOUT,
                every=0.02,
                what="all ids are in memory",
            )
            log.read_in.append(time.monotonic() - began)
        turns: list[Callable[[], None]] = [
            lambda log=log, one=one: _drain(log, one, backlog)  # type: ignore[misc]
            for log, one in zip(logs, on, strict=True)
        ]
        for repetition in range(repetitions):
            first = repetition % len(turns)
            for turn in turns[first:] + turns[:first]:
                turn()
    return Repeats(logs)


def _scene(stack: ExitStack, servers: Servers, directory: Path, log: Log, sessions: int) -> Scene:
    directory.mkdir(exist_ok=True)
    contestant: Contestant = RECEIVED
    if log.memory:
        more = {**contestant.environment, "BRIDGE_ID_MEMORY_BYTES": str(log.memory)}
        contestant = contestant._replace(environment=more)
    return stack.enter_context(
        scene(
            servers,
            contestant,
            directory=directory,
            sessions=[sessions],
            prepare=lambda dsn: fill(dsn, log.rows),
        )
    )


def _drain(log: Log, one: Scene, backlog: int) -> None:
    before = one.metric(LOOKED_UP)
    log.drains.append(one.drain(backlog))
    log.looked_up.append((one.metric(LOOKED_UP) - before) / backlog)


def fill(dsn: str, rows: int) -> None:
    """Write rows of today into the log, as another process would have written them, one for each id."""
    if not rows:
        return
    with psycopg.connect(dsn, autocommit=True) as conn:
        ((day,),) = conn.execute("select day from log_day").fetchall()
        name = f"delivery_log_{day:%Y%m%d}"
        conn.execute("set maintenance_work_mem = '512MB'")
        # Its indexes are made when it is attached: that is quicker than row by row.
        conn.execute(f"alter table delivery_log detach partition {name}".encode())
        conn.execute(f"drop table {name}".encode())
        conn.execute(
            f"create table {name} (like delivery_log including defaults including constraints)".encode()
        )
        conn.execute(
            f"""
            insert into {name} (
                day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts, published_at,
                taken_at, written_at, proven_at, finished_at, node, boot, event, app_id, detail, traceparent)
            select %s, '', 'order-' || lpad(n::text, 9, '0'), 'u' || n %% 100000, 'received', 'pong', true, 2, 1, 1,
                t, t, t, t, t, 'other', 'earlier', 'message', 'bench', '', ''
            from (select n, now() - (%s - n) * interval '1 ms' as t from generate_series(1, %s) n) made
            """.encode(),
            (day, rows, rows),
        )
        conn.execute(f"alter table delivery_log attach partition {name} for values in ('{day}')".encode())
        conn.execute(
            "insert into tally (day, minute, boot, rows) values (%s, date_trunc('minute', now()), 'earlier', %s)",
            (day, rows),
        )
        # The server would do this by itself soon: do it now, so that it is not measured.
        conn.execute(f"vacuum (analyze) {name}".encode())
        conn.execute("checkpoint")
