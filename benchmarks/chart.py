"""Draw what `--only growth` measured: `python -m benchmarks.chart` makes the SVGs of docs/charts from their JSON.

A chart has two panels over one x axis: microseconds of the bridge's CPU for each push, and pushes a second. A point is
the median; the bar through it goes from the lowest to the highest repetition. The y axes begin at 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape

CHARTS: Final = Path(__file__).resolve().parent.parent / "docs" / "charts"
WIDTH: Final = 800
HEIGHT: Final = 300
PANEL_WIDTH: Final = 320
TOP: Final = 74
BOTTOM: Final = 250
LEFTS: Final = (60, 460)
INSET: Final = 28
"""Between the frame of a panel and its first and last point."""
BINARY: Final = "bytes"
"""The unit of an x axis whose numbers are shown as KiB."""

_STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.panel { font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.line { stroke: #0969da; stroke-width: 2; fill: none }
.bar { stroke: #0969da; stroke-width: 1.5; opacity: .55 }
.point { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .small { fill: #9198a1 }
  .grid { stroke: #3d444d }
  .line, .bar { stroke: #4493f8 }
  .point { fill: #4493f8 }
}
"""


class Point(NamedTuple):
    """What was measured at one place of the x axis, by repetition."""

    x: int
    cpu_each: Sequence[float]
    """Microseconds of the bridge's CPU time for each push."""
    rate: Sequence[float]
    """Pushes a second, end to end."""


class Chart(NamedTuple):
    """One curve."""

    title: str
    x: str
    """What its x axis counts."""
    unit: str
    """`BINARY`, or nothing."""
    points: Sequence[Point]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chart", description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=CHARTS, help="[docs/charts]")
    directory = parser.parse_args(arguments).directory
    for found in sorted(directory.glob("growth-*.json")):
        print(draw_file(found))
    return 0


def draw_file(measured: Path) -> Path:
    """Draw the chart of this JSON beside it."""
    path = measured.with_suffix(".svg")
    path.write_text(svg(read(json.loads(measured.read_text()))))
    return path


def read(measured: Mapping[str, Any]) -> Chart:
    """The chart in what `--only growth` wrote."""
    points = [Point(one["x"], one["cpu_each"], one["rate"]) for one in measured["points"]]
    return Chart(measured["title"], measured["x"], measured["unit"], points)


def svg(chart: Chart) -> str:
    """The chart as a document of its own, in light and dark colours."""
    cpu = _Panel(chart, LEFTS[0], "CPU of the bridge for each push, µs", [p.cpu_each for p in chart.points])
    rate = _Panel(chart, LEFTS[1], "pushes a second", [p.rate for p in chart.points])
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
            f' height="{HEIGHT}" role="img" aria-labelledby="title about">',
            f'<title id="title">{escape(chart.title)}</title>',
            f'<desc id="about">{escape(about(chart))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="{LEFTS[0]}" y="22">{escape(chart.title)}</text>',
            *cpu.lines(),
            *rate.lines(),
            "</svg>\n",
        )
    )


def about(chart: Chart) -> str:
    """The figures in words, for those who do not see them."""
    each = "; ".join(
        f"{shown(p.x, chart.unit)}: {median(p.cpu_each):,.0f} µs, {median(p.rate):,.0f} a second"
        for p in chart.points
    )
    return (
        f"By {chart.x}, microseconds of the bridge's CPU for each push and pushes a second, medians. {each}."
    )


def shown(x: int, unit: str = "") -> str:
    """A number of the x axis: 100 B, 4 KiB, 10,000, 50 M."""
    if unit == BINARY:
        return f"{x // 1024} KiB" if x >= 1024 else f"{x} B"
    return f"{x // 1_000_000} M" if x >= 1_000_000 else f"{x:,}"


class _Panel:
    """One y axis over the x axis of the chart."""

    def __init__(self, chart: Chart, left: int, title: str, values: Sequence[Sequence[float]]) -> None:
        self._chart = chart
        self._left = left
        self._title = title
        self._values = values
        self._step, self._most = scale(max((max(v) for v in values), default=0.0))

    def lines(self) -> Iterator[str]:
        chart, left, right = self._chart, self._left, self._left + PANEL_WIDTH
        yield f'<text class="panel" x="{left}" y="46">{escape(self._title)}</text>'
        for n in range(round(self._most / self._step) + 1):
            y = self._y(n * self._step)
            yield f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            yield (
                f'<text class="small" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{n * self._step:,g}</text>'
            )
        xs = [
            left + INSET + place * (PANEL_WIDTH - 2 * INSET) for place in places([p.x for p in chart.points])
        ]
        for x, point in zip(xs, chart.points, strict=True):
            label = escape(shown(point.x, chart.unit))
            yield f'<text class="small" x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{label}</text>'
        yield (
            f'<text class="small" x="{(left + right) / 2:.1f}" y="{BOTTOM + 38}" text-anchor="middle">'
            f"{escape(chart.x)}</text>"
        )
        middles = [self._y(median(v)) for v in self._values]
        along = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, middles, strict=True))
        yield f'<polyline class="line" points="{along}"/>'
        for x, y, values in zip(xs, middles, self._values, strict=True):
            high, low = self._y(max(values)), self._y(min(values))
            yield f'<line class="bar" x1="{x:.1f}" y1="{high:.1f}" x2="{x:.1f}" y2="{low:.1f}"/>'
            yield f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            yield f'<text x="{x:.1f}" y="{high - 7:.1f}" text-anchor="middle">{median(values):,.0f}</text>'

    def _y(self, value: float) -> float:
        return BOTTOM - value / self._most * (BOTTOM - TOP)


def places(xs: Sequence[int]) -> list[float]:
    """Where these numbers are on a logarithmic axis from 0 to 1. A 0 gets a place to the left of the others."""
    logs = [log10(x) for x in xs if x]
    if len(logs) < len(xs):
        # As far from the next as the others are from each other.
        gap = (logs[-1] - logs[0]) / (len(logs) - 1) if len(logs) > 1 else 1.0
        logs = [logs[0] - gap if logs else 0.0, *logs]
    across = logs[-1] - logs[0]
    return [(place - logs[0]) / across if across else 0.5 for place in logs]


def scale(most: float) -> tuple[float, float]:
    """The step of a y axis that reaches a little above `most`, and where it ends."""
    if most <= 0:
        return 1.0, 1.0
    wanted = most * 1.1
    power = 10.0 ** floor(log10(wanted / 4))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n * 5 >= wanted)
    return step, step * ceil(wanted / step)


if __name__ == "__main__":
    sys.exit(main())
