"""`bridge replay`: publish logged pushes again."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from bridge.adapters.actions import Action
from bridge.cli.record import actor, on_record
from bridge.config import CommonSettings
from bridge.core.ports.clock import Clock
from bridge.operator import replay as replaying

PROGRESS_EVERY: Final = 5.0
"""Seconds between two lines of progress."""


async def replay(
    settings: CommonSettings,
    conditions: Sequence[str],
    *,
    mark: str,
    rate: float,
    ttl: float | None,
    dry_run: bool,
    clock: Clock | None = None,
) -> int:
    """Count what matches, and replay what can be; 1 if nothing matches, or something can't be replayed."""
    if clock is None:
        from bridge.app.build import SystemClock

        clock = SystemClock()
    meant = replaying.where(conditions, datetime.fromtimestamp(clock.time(), UTC))
    async with replaying.selected(settings.postgres_dsn, meant, replaying.checked_mark(mark)) as selection:
        counts = await selection.count()
        _print_verdicts(counts)
        wanted = counts.get(replaying.REPLAYABLE, 0)
        if wanted and not dry_run:
            so_far = {"wanted": wanted, "replayed": 0}
            pages = replaying.publish(selection, settings.amqp_url, rate=rate, ttl=ttl, clock=clock)
            target: dict[str, object] = {"where": list(conditions), "mark": mark, "ttl": ttl}
            async with on_record(settings) as record:
                await record.carry_out(
                    Action(actor(), "replay", target), lambda: _publish(pages, so_far, clock), dict, so_far
                )
            print(f"{so_far['replayed']} replayed")
    return 0 if counts and counts.keys() <= {replaying.REPLAYABLE, *replaying.DONE} else 1


async def _publish(
    pages: AsyncGenerator[int, None], so_far: dict[str, int], clock: Clock
) -> Mapping[str, object]:
    """Publish page by page; says now and then how far it is, and keeps it in `so_far`."""
    said = clock.monotonic()
    try:
        async with aclosing(pages) as progress:
            async for confirmed in progress:
                so_far["replayed"] = confirmed
                if clock.monotonic() - said >= PROGRESS_EVERY:
                    said = clock.monotonic()
                    print(f"{confirmed} of {so_far['wanted']} replayed", file=sys.stderr)
    except BaseException:
        print(
            f"stopped after {so_far['replayed']} of {so_far['wanted']}: the same command continues from there",
            file=sys.stderr,
        )
        raise
    return so_far


def _print_verdicts(counts: Mapping[str, int]) -> None:
    total = sum(counts.values())
    print("no row matches" if not total else "1 row matches" if total == 1 else f"{total} rows match")
    for verdict, words in replaying.VERDICTS.items():
        if verdict in counts:
            print(f"  {counts[verdict]:>7}  {words}")
