"""The charts of growth: what is drawn, what is counted, and that docs/performance.md shows them."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest

from benchmarks import load, report, steps
from benchmarks.chart import CHARTS, HEIGHT, WIDTH, Chart, Point, draw_file, places, read, scale, shown, svg
from benchmarks.clients import Client, Tally
from benchmarks.growth import CURVES, SMALL, Bench, Curve, measure, of_all_nodes
from benchmarks.processes import BenchmarkFailed
from benchmarks.scene import Drain, Latency
from bridge.devservers import Servers

PAGE = CHARTS.parent / "performance.md"
SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {"cpu": "some", "cores": 2, "python": "3.11", "core": "interpreted"}
CPU = {"bridge": 0.5, "postgres": 0.1, "others": 0.3, "stolen": 0.1}


def drain(pushes: int, seconds: float) -> Drain:
    """A drain that took so long."""
    return Drain(pushes, seconds, seconds, 0.0, CPU, 0)


# --- drawing ---


def test_a_chart_is_a_document_with_every_point_in_its_frame_and_no_text_taken_as_markup() -> None:
    points = [
        Point(0, [61.0, 60.0, 75.0], [9_000, 12_000, 10_000]),
        Point(1_000, [70.0], [0.5]),
        Point(50_000_000, [1_234.5, 1.0], [98_765, 3]),
    ]
    drawn = ElementTree.fromstring(svg(Chart("Rows <&> others", 'x "of" <b>', "", points)))
    assert drawn.findtext(f"{SVG}title") == "Rows <&> others"
    assert "50 M: 618 µs, 49,384 a second" in str(drawn.findtext(f"{SVG}desc"))
    assert 'x "of" <b>' in [text.text for text in drawn.iter(f"{SVG}text")]
    circles = list(drawn.iter(f"{SVG}circle"))
    assert len(circles) == 2 * len(points)
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < WIDTH
        assert 0 < float(circle.attrib["cy"]) < HEIGHT
    for line in drawn.iter(f"{SVG}line"):
        assert 0 <= float(line.attrib["y1"]) <= float(line.attrib["y2"]) <= HEIGHT
    style = str(drawn.findtext(f"{SVG}style"))
    assert "prefers-color-scheme: dark" in style


def test_the_x_axis_is_logarithmic_and_nothing_has_a_place_of_its_own() -> None:
    assert places([100, 1_000, 10_000]) == pytest.approx([0, 0.5, 1])
    assert places([0, 10, 1_000]) == pytest.approx([0, 0.5, 1])
    assert places([7]) == [0.5]
    assert places([0, 7]) == pytest.approx([0, 1])


@pytest.mark.parametrize("most", [0.0, 0.3, 1, 9.99, 61, 100, 1_234, 98_765])
def test_a_y_axis_ends_above_the_highest_value_and_has_few_lines(most: float) -> None:
    step, end = scale(most)
    assert end > most
    assert 1 <= round(end / step) <= 5


def test_numbers_have_their_units() -> None:
    assert [shown(x, "bytes") for x in (100, 1024, 65_536)] == ["100 B", "1 KiB", "64 KiB"]
    assert [shown(x) for x in (0, 50_000, 10_000_000)] == ["0", "50,000", "10 M"]


# --- counting ---


def test_a_request_may_name_several_users_and_carry_other_amounts_of_data() -> None:
    body = load.request("run1", 7, 42, 1, "written", 0, load.Shape(data_bytes=1022, each=3), 44)
    request = json.loads(body)
    assert request["to"] == {"users": ["u000042", "u000043", "u000000"]}
    assert len(json.dumps(request["data"])) == 1024
    assert len(body) == len(load.request("run1", 8, 1, 2, "written", 0, load.Shape(1022, 3), 44))


async def test_every_device_of_every_named_user_must_get_its_frame_once() -> None:
    tally = Tally()
    tally.expect(1, 4, users=10, each=2, devices=2)
    made = asyncio.get_running_loop().create_future
    clients = [Client(user, "", tally, made(), device=device) for user in (9, 0) for device in (0, 1)]
    frame = load.data(0, 9, 1)
    for client in (*clients[:3], clients[0]):
        tally.push(client, frame, 2)
    tally.push(Client(1, "", tally, made()), frame, 2)
    assert not await tally.complete(0)
    tally.push(clients[3], frame, 2)
    assert await tally.complete(0)
    counts = tally.report(latencies=False)
    assert (counts["distinct"], counts["duplicates"], counts["strays"]) == (4, 1, 1)


def test_points_are_measured_in_turn_and_one_whose_counts_do_not_agree_is_left_out() -> None:
    asked: list[int] = []

    def turn(x: int) -> Drain:
        asked.append(x)
        if x == 10:
            raise BenchmarkFailed("9 of 10 frames came")
        return drain(x, 1.0)

    bench = Bench(cast(Servers, None), Path(), SMALL._replace(repetitions=3), print)
    points, failed = bench.in_turn({x: partial(turn, x) for x in (1, 10, 100)})
    assert asked == [1, 10, 100, 100, 1, 100, 1]
    assert {x: len(drains) for x, drains in points.items()} == {1: 3, 100: 3}
    assert failed == ["10: 9 of 10 frames came"]


def test_a_push_costs_what_all_nodes_use_for_it() -> None:
    one = drain(1_000, 0.5)
    assert of_all_nodes(one._replace(cpu={**one.cpu, "neighbours": 0.25})).cpu["bridge"] == 0.75


def test_curves_are_measured_with_servers_and_drawn(servers: Servers, tmp_path: Path) -> None:
    extent = SMALL._replace(
        repetitions=1,
        users=10,
        backlog=100,
        devices=(2,),
        all_devices=10,
        payload=(65_536,),
        batch=(10,),
        mailbox=(20,),
        nodes=(2,),
        topic=(10,),
    )
    bench = Bench(servers, tmp_path, extent, print)
    names = ["devices", "payload", "batch", "mailbox", "nodes", "topic"]
    curves = {curve.name: curve for curve in measure(bench, names, tmp_path / "charts", MACHINE)}
    assert [curve.failed for curve in curves.values()] == [[]] * 6
    assert [len(curve.points) for curve in curves.values()] == [1] * 6
    assert curves["topic"].points[10][0].pushes == 100
    assert curves["mailbox"].points[20][0].pushes == 100
    assert curves["mailbox"].notes["opening_cpu"] > 0
    for name in names:
        written = json.loads((tmp_path / "charts" / f"growth-{name}.json").read_text())
        assert written["machine"] == MACHINE
        ElementTree.fromstring((tmp_path / "charts" / f"growth-{name}.svg").read_text())


# --- the report and the page ---


def test_the_report_has_the_curves_and_the_latency_under_load() -> None:
    made = report.Results({}, MACHINE)
    made.drains = {"bridge": [drain(1_000, 0.1)]}
    made.drains["bridge"][0] = made.drains["bridge"][0]._replace(cpu={**CPU, "rabbitmq": 0.1})
    used = {**CPU, "rabbitmq": 0.1, "clients": 0.1, "publisher": 0.1}
    made.latencies = {"bridge": [Latency(100, 500.0, 1.0, 2.0, 3.0, used)]}
    made.loaded = {"bridge": [Latency(100, 7_000.0, 4.0, 9.5, 12.0, used)]}
    curve = Curve("rows", "More rows", "rows", "", {0: [drain(100, 1)], 10: [drain(100, 2)]}, [], {})
    text = "\n".join(report.table(replace(made, curves=[curve])))
    assert re.search(r"70 % of its own pushes/s\n +pushes/s +7,000\n +p50, ms +4\.0\n +p99, ms +9\.5\n", text)
    assert "More rows, by rows: 0: 5,000 µs, 100/s, 10: 10,000 µs, 50/s" in text


def test_the_page_shows_every_chart_that_is_measured() -> None:
    shows = re.findall(r"!\[[^\]]+\]\(charts/growth-(\w+)\.svg\)", PAGE.read_text())
    assert sorted(shows) == sorted(CURVES)


@pytest.mark.parametrize("name", CURVES)
def test_a_chart_is_what_was_measured(name: str, tmp_path: Path) -> None:
    kept = CHARTS / f"growth-{name}.json"
    again = tmp_path / kept.name
    again.write_text(kept.read_text())
    assert draw_file(again).read_text() == kept.with_suffix(".svg").read_text(), (
        "run: python -m benchmarks.chart"
    )
    chart = read(json.loads(kept.read_text()))
    assert len(chart.points) > 2


def test_the_table_of_steps_has_a_ratio_for_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    monkeypatch.setattr(steps, "COMPILED", tmp_path / "none")
    monkeypatch.setattr(steps, "_trees", lambda commit: (before, after))
    monkeypatch.setattr(steps, "cpu", lambda trees, proof, turns: {before: 50.0, after: 40.0})
    monkeypatch.setattr(steps, "instructions", lambda tree, proof: {before: 4_000.0, after: 2_000.0}[tree])
    *_, line = steps.table(["1a2b3c4"], "written", 1, count=True)
    assert line == "| 1a2b3c4 | `1a2b3c4` | 50.0 to 40.0 | 0.80 | 4,000 to 2,000 | 0.50 |"


def test_the_page_has_every_step_that_is_counted() -> None:
    page = PAGE.read_text()
    assert [commit for commit in steps.STEPS if f"`{commit}`" not in page] == []
