"""`bridge replay`: publish logged pushes again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

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
            confirmed = 0
            said = clock.monotonic()
            try:
                async with aclosing(
                    replaying.publish(selection, settings.amqp_url, rate=rate, ttl=ttl, clock=clock)
                ) as progress:
                    async for confirmed in progress:
                        if clock.monotonic() - said >= PROGRESS_EVERY:
                            said = clock.monotonic()
                            print(f"{confirmed} of {wanted} replayed", file=sys.stderr)
            except BaseException:
                print(
                    f"stopped after {confirmed} of {wanted}: the same command continues from there",
                    file=sys.stderr,
                )
                raise
            print(f"{confirmed} replayed")
    return 0 if counts and counts.keys() <= {replaying.REPLAYABLE, *replaying.DONE} else 1


def _print_verdicts(counts: Mapping[str, int]) -> None:
    total = sum(counts.values())
    print("no row matches" if not total else "1 row matches" if total == 1 else f"{total} rows match")
    for verdict, words in replaying.VERDICTS.items():
        if verdict in counts:
            print(f"  {counts[verdict]:>7}  {words}")
