"""What became of the pushes of a period, by event, tenant or publisher: read from the counted hours. It only reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, LiteralString

import msgspec

from bridge.adapters.postgres.reading import QUERY_TIMEOUT, ask, reading
from bridge.core.model.outcomes import DELIVERED

By = Literal["event", "tenant", "app"]
COLUMNS: Final[Mapping[By, LiteralString]] = {"event": "event", "tenant": "tenant", "app": "app_id"}
"""What pushes are told apart by, and its column."""
NAMES_MAX: Final = 20
"""Events, tenants or publishers that are told apart, those with the most pushes; all others together are one more."""
HOURS_MAX: Final = 72
"""A period of at most so many hours is told by the hour, a longer one by the day."""
REASONS_MAX: Final = 10
DELIVERED_OUTCOMES: Final = sorted(outcome.value for outcome in DELIVERED)
WAITING_OUTCOMES: Final = ["pending", "stored"]
_SHARES: Final = (0.5, 0.95, 0.99)


class Count(msgspec.Struct, frozen=True):
    """Pushes, each counted once per user."""

    pushes: int = 0
    delivered: int = 0
    """acked, received or written."""
    waiting: int = 0
    """pending or stored: without an end."""

    @property
    def failed(self) -> int:
        """Those with any other end."""
        return self.pushes - self.delivered - self.waiting

    @property
    def share(self) -> float | None:
        """How much of what has ended was delivered, from 0 to 1; None where nothing has ended."""
        ended = self.pushes - self.waiting
        return self.delivered / ended if ended else None

    def __add__(self, other: Count) -> Count:
        return Count(
            self.pushes + other.pushes, self.delivered + other.delivered, self.waiting + other.waiting
        )


class Line(msgspec.Struct, frozen=True):
    """One event, tenant or publisher."""

    name: str | None
    """None: all others together."""
    total: Count
    seconds_50: float | None
    """Seconds from publishing to proof, as view delivery_hourly has them: at most 2.5 % off; None without any."""
    seconds_95: float | None
    seconds_99: float | None
    steps: Sequence[Count]
    """One for each of `Report.starts`."""


class Cause(msgspec.Struct, frozen=True):
    """Why pushes were not delivered."""

    party: str | None
    outcome: str
    reason: str
    meaning: str
    pushes: int


class Report(msgspec.Struct, frozen=True):
    """A period, in steps of an hour or a day (UTC)."""

    by: By
    since: datetime
    until: datetime
    """The end of the last step."""
    through: datetime | None
    """Everything that was committed by then was counted; None: nothing was counted yet."""
    starts: Sequence[datetime]
    hourly: bool
    lines: Sequence[Line]
    """Those with the most pushes first."""
    total: Line
    causes: Sequence[Cause]
    """The most frequent first, at most `REASONS_MAX`."""


_FRAME: LiteralString = """
    select clock_timestamp() as now, (select n.through from counting n) as through
    """
_NAMES: LiteralString = """
    select {0} as name from delivery_hourly
    where hour >= %(since)s and hour < %(until)s and pushes > 0
    group by 1 order by sum(pushes) desc, 1 limit %(names)s
    """
_COUNTS: LiteralString = """
    select date_trunc(%(step)s, hour, 'UTC') as start,
        case when {0} = any(%(shown)s) then {0} end as name,
        sum(pushes)::bigint as pushes,
        coalesce(sum(pushes) filter (where outcome = any(%(delivered)s)), 0)::bigint as delivered,
        coalesce(sum(pushes) filter (where outcome = any(%(waiting)s)), 0)::bigint as waiting
    from delivery_hourly
    where hour >= %(since)s and hour < %(until)s and pushes > 0
    group by 1, 2
    """
# Percentiles can't be added. The histograms that they are made of can.
_LATENCIES: LiteralString = """
    select case when {0} = any(%(shown)s) then {0} end as name, b.bucket, sum(b.n)::bigint as n
    from hour_count c
    cross join lateral (
        select c.proof[i][1] as bucket, c.proof[i][2] as n from generate_subscripts(c.proof, 1) i) b
    where c.hour >= %(since)s and c.hour < %(until)s
    group by 1, 2 order by 2
    """
_CAUSES: LiteralString = """
    select h.party, h.outcome, h.reason, coalesce(max(e.meaning), '') as meaning, sum(h.pushes)::bigint as pushes
    from delivery_hourly h left join ending e on e.outcome = h.outcome and e.reason = h.reason
    where h.hour >= %(since)s and h.hour < %(until)s and h.pushes > 0
      and h.outcome <> all(%(delivered)s) and h.outcome <> all(%(waiting)s)
    group by 1, 2, 3 order by pushes desc, 2, 3 limit %(reasons)s
    """


async def read_report(dsn: str, since: timedelta, by: By, seconds: float = QUERY_TIMEOUT) -> Report:
    """Read the period that ends now and begins so long ago, from the start of its first hour or day.

    Raises StoreUnavailable.
    """
    hourly = since <= timedelta(hours=HOURS_MAX)
    step = timedelta(hours=1) if hourly else timedelta(days=1)
    column = COLUMNS[by]
    async with reading(dsn, "bridge report", seconds) as conn:
        (frame,) = await ask(conn, _FRAME, {}, seconds)
        end = _start(frame["now"], hourly) + step
        first = _start(frame["now"] - since, hourly)
        params: dict[str, Any] = {
            "since": first,
            "until": end,
            "names": NAMES_MAX,
            "step": "hour" if hourly else "day",
            "delivered": DELIVERED_OUTCOMES,
            "waiting": WAITING_OUTCOMES,
            "reasons": REASONS_MAX,
        }
        names = [row["name"] for row in await ask(conn, _NAMES.format(column), params, seconds)]
        params["shown"] = names
        counts = await ask(conn, _COUNTS.format(column), params, seconds)
        latencies = await ask(conn, _LATENCIES.format(column), params, seconds)
        causes = [Cause(**row) for row in await ask(conn, _CAUSES, params, seconds)]
    starts = [first + step * n for n in range((end - first) // step)]
    return _report(by, starts, end, frame["through"], hourly, names, counts, latencies, causes)


def _start(at: datetime, hourly: bool) -> datetime:
    """The hour or day (UTC) of a time; `at` is in UTC, as all times that are read are."""
    at = at.astimezone(UTC)
    return at.replace(minute=0, second=0, microsecond=0, hour=at.hour if hourly else 0)


def _report(
    by: By,
    starts: Sequence[datetime],
    end: datetime,
    through: datetime | None,
    hourly: bool,
    names: Sequence[str],
    counts: Sequence[Mapping[str, Any]],
    latencies: Sequence[Mapping[str, Any]],
    causes: Sequence[Cause],
) -> Report:
    places = {start: place for place, start in enumerate(starts)}
    steps: dict[str | None, list[Count]] = {}
    for row in counts:
        of_name = steps.setdefault(row["name"], [Count()] * len(starts))
        of_name[places[row["start"].astimezone(UTC)]] = Count(row["pushes"], row["delivered"], row["waiting"])
    buckets: dict[str | None, dict[int, int]] = {}
    everything: dict[int, int] = {}
    for row in latencies:
        buckets.setdefault(row["name"], {})[row["bucket"]] = row["n"]
        everything[row["bucket"]] = everything.get(row["bucket"], 0) + row["n"]
    shown: list[str | None] = [*names, *([None] if None in steps else [])]
    lines = [_line(name, steps[name], buckets.get(name, {})) for name in shown]
    all_steps = [sum((line.steps[place] for line in lines), Count()) for place in range(len(starts))]
    total = _line(None, all_steps, everything)
    return Report(by, starts[0], end, through, starts, hourly, lines, total, causes)


def _line(name: str | None, steps: Sequence[Count], buckets: Mapping[int, int]) -> Line:
    return Line(name, sum(steps, Count()), *quantiles(buckets), steps)


def quantiles(buckets: Mapping[int, int]) -> tuple[float | None, float | None, float | None]:
    """The seconds that half, 95 and 99 of a hundred are not above, of a histogram as table hour_count has them."""
    total = sum(buckets.values())
    if not total:
        return None, None, None
    found: list[float] = []
    upto = 0
    for bucket in sorted(buckets):
        upto += buckets[bucket]
        while len(found) < len(_SHARES) and upto >= _SHARES[len(found)] * total:
            found.append(0.0001 * 1.05 ** (bucket + 0.5))
    return found[0], found[1], found[2]
