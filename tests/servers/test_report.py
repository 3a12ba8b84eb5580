"""`bridge report`: what it counts, and the forms in which it prints it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest

from bridge.adapters.postgres.counting import Counting
from bridge.adapters.postgres.store import PostgresStore
from bridge.cli import main
from bridge.cli.report import sparkline
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row
from bridge.operator.reports import NAMES_MAX, Count, quantiles
from tests.support.rows import kept_row, row

NASTY = "<b>\x1b[31m&\"'"


@pytest.fixture
def now() -> float:
    return time.time()


async def written(dsn: str, rows: list[Row]) -> None:
    store = PostgresStore(dsn)
    await store.record(rows)
    await store.close()
    while (await Counting(dsn).run_once(everything=True)).left:
        pass


def report(dsn: str, *words: str) -> int:
    return main(["report", *words, "--postgres-dsn", dsn])


def at(moment: float, seconds: float = 0.2) -> dict[str, Any]:
    return {
        "published_at": moment - 0.1,
        "taken_at": moment,
        "written_at": moment,
        "proven_at": moment + seconds,
        "finished_at": moment + seconds,
    }


def some(now: float) -> list[Row]:
    hour = 3600.0
    return [
        *(row(f"a{n}", event="order.paid", **at(now - 3 * hour)) for n in range(6)),
        *(row(f"b{n}", event="order.paid", **at(now - 60, 5.0)) for n in range(2)),
        row("c", outcome=Outcome.OFFLINE, reason=Reason.NO_SESSION, **at(now - 60) | {"proven_at": None}),
        kept_row("d", event="order.paid", taken_at=now - 60, published_at=now - 60),
        row("e", event=NASTY, app_id="other", **at(now - 60)),
        row("old", event="order.paid", **at(now - 100 * 24 * hour)),
    ]  # fmt: skip


def test_text_tells_counts_latencies_and_reasons(
    database: str, now: float, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(written(database, some(now)))
    assert report(database, "--since", "24h") == 0
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("order.paid")]
    assert re.match(r"order.paid +10 +88.89 % +1 +1 +0.3\d? s +5.\d s ", line)
    assert re.search(r"[\u2581-\u2588]", line)
    assert "1  peer       offline/no_session: the user had no session" in out
    assert "\x1b" not in out
    [everything] = [line for line in out.splitlines() if line.startswith("all ")]
    assert everything.split()[1:3] == ["11", "90.00"]


def test_longer_periods_are_told_by_the_day_and_csv_has_each(
    database: str, now: float, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(written(database, some(now)))
    assert report(database, "--since", "120d", "--by", "app", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {r["app"] for r in rows} == {"shop", "other"}
    assert len(rows) == 2 * 121
    first = datetime.fromtimestamp(now - 120 * 86400, UTC)
    assert rows[0]["start"] == f"{first:%Y-%m-%d}T00:00:00Z"
    assert sum(int(r["pushes"]) for r in rows) == 12
    assert sum(int(r["delivered"]) for r in rows) == 10
    assert sum(int(r["waiting"]) for r in rows) == sum(int(r["failed"]) for r in rows) == 1


def test_json_has_all_of_it(database: str, now: float, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(written(database, some(now)))
    assert report(database, "--since", "6h", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["by"], found["hourly"], len(found["starts"])) == ("event", True, 7)
    paid, nasty = found["lines"]
    assert (paid["name"], nasty["name"]) == ("order.paid", NASTY)
    assert paid["total"] == {"pushes": 10, "delivered": 8, "waiting": 1, "failed": 1, "share": 8 / 9}
    assert paid["seconds_50"] == pytest.approx(0.3, rel=0.026)
    assert paid["seconds_99"] == pytest.approx(5.1, rel=0.026)
    assert sum(step["pushes"] for step in found["total"]["steps"]) == found["total"]["total"]["pushes"] == 11
    assert found["causes"][0]["party"] == "peer"


def test_the_page_loads_nothing_and_takes_no_name_for_markup(
    database: str, now: float, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(written(database, some(now)))
    assert report(database, "--since", "24h", "--html") == 0
    page = capsys.readouterr().out
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "<b>" not in page
    charts = re.findall(r"(?s)<svg.*?</svg>", page)
    assert len(charts) == 1 + 3
    for chart in charts:
        assert list(ElementTree.fromstring(chart))
    assert "88.89 %" in page


def test_names_beyond_the_first_are_counted_together(
    database: str, now: float, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(written(database, [row(f"p{n}", event=f"e{n:02}", **at(now)) for n in range(NAMES_MAX + 5)]))
    assert report(database, "--json", "--since", "1h") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["lines"]) == NAMES_MAX + 1
    assert found["lines"][-1]["name"] is None
    assert found["lines"][-1]["total"]["pushes"] == 5
    assert found["total"]["total"]["pushes"] == NAMES_MAX + 5


@pytest.mark.parametrize("form", ["--csv", "--json", "--html", "--by=tenant"])
def test_a_log_that_nobody_has_counted_is_told_so(
    database: str, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert report(database, form) == 1
    out = capsys.readouterr().out
    assert "Nothing is counted yet" in out or form in ("--csv", "--json")


@pytest.mark.parametrize("words", ["0d", "yesterday", "401d", "-1h", "1.5h"])
def test_what_is_no_age_is_refused(capsys: pytest.CaptureFixture[str], words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", f"--since={words}"])
    assert ended.value.code == 2
    assert "argument --since" in capsys.readouterr().err


def test_bars_are_as_tall_as_their_pushes() -> None:
    assert sparkline([Count(n) for n in (0, 1, 4, 8)]) == " ▁▄█"
    assert sparkline([Count(1)] * 48 + [Count(0)] * 48) == "█" * 12 + " " * 12
    assert sparkline([]) == ""


def test_quantiles_are_those_of_a_sorted_list() -> None:
    assert quantiles({}) == (None, None, None)
    half, most, nearly_all = quantiles({0: 50, 100: 45, 200: 4, 300: 1})
    assert [half, most, nearly_all] == [pytest.approx(0.0001 * 1.05 ** (b + 0.5)) for b in (0, 100, 200)]
