"""`bridge report`: what became of the pushes of a period, as text, CSV, JSON or a page."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final, Literal

import msgspec

from bridge.config import CommonSettings
from bridge.operator.report_page import name_of, page, percent, span
from bridge.operator.reports import By, Count, Report, read_report
from bridge.operator.story import printable

Form = Literal["text", "csv", "json", "html"]
_BARS: Final = "▁▂▃▄▅▆▇█"
_WIDE: Final = 24
"""Characters for a name, and columns for the bars of a line."""


async def report(settings: CommonSettings, since: timedelta, by: By, form: Form) -> int:
    """Print it; 1 if no push was counted in that time."""
    found = await read_report(settings.postgres_dsn, since, by)
    if form == "csv":
        _print_csv(found)
    elif form == "json":
        print(msgspec.json.encode(_plain(found)).decode())
    elif form == "html":
        print(page(found, _title(found), list(_head(found))), end="")
    else:
        for line in _text(found):
            print(line)
    return 0 if found.total.total.pushes else 1


def _title(found: Report) -> str:
    return f"Pushes from {found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC, by {found.by}"


def _head(found: Report) -> Iterator[str]:
    if found.through is None:
        yield "Nothing is counted yet: a running bridge of this version begins within a minute of its start."
        return
    yield (
        f"Everything until {found.through:%Y-%m-%d %H:%M:%S} UTC is counted. A push counts once for each of its users,"
        f" in the {'hour' if found.hourly else 'day'} in which it was taken."
        " The share that was delivered is that of pushes with an end."
    )


def _text(found: Report) -> Iterator[str]:
    yield _title(found)
    yield from _head(found)
    yield ""
    titles = f"{'pushes':>10} {'delivered':>10} {'waiting':>8} {'failed':>8} {'p50':>8} {'p99':>8}"
    yield f"{found.by:<{_WIDE}} {titles}  each {'hour' if found.hourly else 'day'}"
    for line in (*found.lines, found.total):
        name = "all" if line is found.total else printable(name_of(line), _WIDE)
        count = line.total
        yield (
            f"{name:<{_WIDE}} {count.pushes:>10} {percent(count.share):>10} {count.waiting:>8} {count.failed:>8}"
            f" {span(line.seconds_50):>8} {span(line.seconds_99):>8}  {sparkline(line.steps)}"
        )
    yield ""
    if found.causes:
        yield "not delivered, because:"
        for cause in found.causes:
            party = cause.party or "-"
            yield f"{cause.pushes:>10}  {party:<9}  {cause.outcome}/{cause.reason}: {cause.meaning}"
    elif found.total.total.pushes:
        yield "All that have ended were delivered."
    else:
        yield "No push was taken, or none is counted yet."


def sparkline(steps: Sequence[Count]) -> str:
    """A bar for each step, or for some of them together, as tall as its pushes; a space where there are none."""
    each = max(1, -(-len(steps) // _WIDE))
    sums = [sum(count.pushes for count in steps[at : at + each]) for at in range(0, len(steps), each)]
    most = max(sums, default=0)
    return "".join(_BARS[(n * len(_BARS) - 1) // most] if n else " " for n in sums)


def _print_csv(found: Report) -> None:
    """A line for each step and name."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["start", found.by, "pushes", "delivered", "waiting", "failed"])
    for line in found.lines:
        for start, count in zip(found.starts, line.steps, strict=True):
            row = [f"{start:%Y-%m-%dT%H:%M:%SZ}", name_of(line) if line.name is None else line.name]
            out.writerow([*row, count.pushes, count.delivered, count.waiting, count.failed])


def _plain(found: Report) -> dict[str, object]:
    """The report with what follows from its counts."""

    def counted(count: Count) -> dict[str, object]:
        return {
            **msgspec.structs.asdict(count),
            "failed": count.failed,
            "share": count.share,
        }

    lines = [
        {
            **msgspec.structs.asdict(line),
            "total": counted(line.total),
            "steps": [counted(count) for count in line.steps],
        }
        for line in (*found.lines, found.total)
    ]
    return {**msgspec.structs.asdict(found), "lines": lines[:-1], "total": lines[-1]}
