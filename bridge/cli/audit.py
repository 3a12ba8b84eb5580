"""`bridge audit`: check that the delivery log adds up, and that the queues are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bridge.adapters.amqp.depths import QueueDepth
from bridge.config import CommonSettings
from bridge.operator.books import (
    FALLBACK_AFTER,
    KEPT_AFTER,
    LATE_AFTER,
    OWED_AFTER,
    SETTLED_AFTER,
    STUCK_AFTER,
    Books,
    Hour,
    Irregular,
    read_books,
)
from bridge.operator.queues import queue_depths

HOURS_MAX: Final = 10 * 366 * 24
"""More than the longest retention."""


async def audit(settings: CommonSettings, hours: int) -> int:
    """Print the hours and the checks; 1 if something does not add up."""
    books = await read_books(settings.postgres_dsn, min(hours, HOURS_MAX))
    depths = await queue_depths(settings.amqp_url)
    _print_hours(books)
    print()
    drift = False
    for wrong, what, words in [*_log_checks(books), *_queue_checks(depths)]:
        drift = drift or wrong
        print(f"{'DRIFT' if wrong else 'ok':<5}  {what:<14} {words}")
    return 1 if drift else 0


def _print_hours(books: Books) -> None:
    names = Hour._fields[1:]
    print(f"{'hour':<16}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in names))
    for hour in books.hours:
        cells = "".join(f"{getattr(hour, name):>{max(9, len(name) + 2)}}" for name in names)
        print(f"{hour.hour.astimezone():%Y-%m-%d %H:%M}{cells}")
    if not books.hours:
        print("(no push was taken)")


def _log_checks(books: Books) -> Iterator[tuple[bool, str, str]]:
    """(whether it is drift, what was checked, what was found)."""
    found = books.irregular
    nodes = ", ".join(found.nodes) or "none"
    oldest = (
        f", the oldest taken {found.oldest_pending.astimezone():%Y-%m-%d %H:%M:%S}"
        if found.oldest_pending
        else ""
    )
    for name, ended_at, begun, with_row, on_their_way in books.processes:
        until = "" if ended_at is None else f" until it ended at {ended_at.astimezone():%Y-%m-%d %H:%M:%S}"
        yield (
            begun != with_row + on_their_way,
            "taken",
            f"{begun} pushes by {name} since its start{until}: {with_row} with a row,"
            f" {on_their_way} on their way",
        )
    absent = sum(max(0, hour.taken - hour.rows) for hour in books.hours)
    strange = sum(max(0, hour.rows - hour.taken) for hour in books.hours)
    yield (
        absent + strange > 0,
        "log",
        f"{absent} of the rows that were written in these hours are gone"
        + (f", {strange} exist but were never written" if strange else ""),
    )
    yield (
        found.orphans > 0,
        "dead nodes",
        f"{found.orphans} rows pending, left by processes that died over {SETTLED_AFTER:g} s ago"
        + (f"{oldest}; nodes alive: {nodes}" if found.orphans else ""),
    )
    yield (
        found.stuck > 0,
        "stuck rows",
        f"{found.stuck} rows pending for over {STUCK_AFTER:g} s, though their process lives",
    )
    yield (
        found.unexpired > 0,
        "kept",
        f"{found.unexpired} rows stored though their ttl ended over {KEPT_AFTER:g} s ago",
    )
    yield _scheduled(found)
    yield found.overdue > 0, "receipts", f"{found.overdue} rows owe one for over {OWED_AFTER:g} s"
    yield (
        found.unpublished > 0,
        "fallbacks",
        f"{found.unpublished} due for over {FALLBACK_AFTER:g} s and not published",
    )
    wrong = sum(hour.wrong for hour in books.hours)
    yield (
        wrong > 0,
        "rows",
        f"{wrong} contradict themselves (proof, times, outcome and reason) in these hours",
    )
    missing = ", ".join(f"{day}" for day in found.missing_days)
    yield (
        bool(missing),
        "partitions",
        f"missing: {missing}" if missing else "there, for today and the next days",
    )


def _scheduled(found: Irregular) -> tuple[bool, str, str]:
    late = f", {found.late} of them since over {LATE_AFTER:g} s ago" if found.late else ""
    return found.late > 0, "scheduled", f"{found.scheduled} pushes wait for their deliver_at{late}"


def _queue_checks(depths: Sequence[QueueDepth]) -> Iterator[tuple[bool, str, str]]:
    for depth in depths:
        if depth.hidden:
            yield False, depth.name, "not known: the broker does not let this user look at it"
        elif not depth.there:
            yield True, depth.name, "the queue is missing"
        elif depth.name == "push.dead":
            yield False, depth.name, f"{depth.ready} ready, for people: bridge dead list"
        elif depth.consumers == 0:
            yield depth.ready > 0, depth.name, f"{depth.ready} ready, nobody takes them"
        else:
            yield False, depth.name, f"{depth.ready} ready, bridges take from it"
