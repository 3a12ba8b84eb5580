"""A report as one HTML page: its charts are inline SVG, and it loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from typing import Final

from bridge.operator.reports import Count, Line, Report

_WIDTH, _HEIGHT = 900, 180
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea }
th:first-child, td:first-child, td.text, th.text { text-align: left } td:first-child { overflow-wrap: anywhere }
svg { display: block; width: 100%; height: auto } td svg { width: 10rem }
.delivered { fill: #2a7f62 } .waiting { fill: #d9a62e } .failed { fill: #c2452d } .axis { stroke: #8a97a6 }
text { font-size: 11px; fill: #55636f } .key::before { content: "\\25A0\\00A0" } .key { margin-right: 1rem }
.key.delivered { color: #2a7f62 } .key.waiting { color: #d9a62e } .key.failed { color: #c2452d }
@media (prefers-color-scheme: dark) { body { background: #12181f; color: #dfe6ee } th, td { border-color: #2c3743 } }
"""
_KEY: Final = (
    '<p><span class="key delivered">delivered</span><span class="key waiting">waiting</span>'
    '<span class="key failed">not delivered</span></p>'
)


def page(report: Report, title: str, head: Sequence[str]) -> str:
    """The whole page. `head`: sentences for its beginning."""
    return "\n".join(_page(report, title, head)) + "\n"


def _page(report: Report, title: str, head: Sequence[str]) -> Iterator[str]:
    yield "<!doctype html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
    yield f"<h1>{escape(title)}</h1>"
    for sentence in head:
        yield f"<p>{escape(sentence)}</p>"
    step = "hour" if report.hourly else "day"
    yield f"<h2>Pushes of each {step} (UTC)</h2>"
    yield _KEY
    yield _bars(report.total.steps, report.starts, hourly=report.hourly)
    yield f"<h2>By {report.by}</h2>"
    yield "<table><thead><tr>"
    yield f"<th>{report.by}</th><th>pushes</th><th>delivered</th><th>waiting</th><th>not delivered</th>"
    yield f'<th>half within</th><th>99&nbsp;% within</th><th class="text">each {step}</th></tr></thead><tbody>'
    for line in (*report.lines, report.total):
        yield _row(line, "all" if line is report.total else name_of(line), report)
    yield "</tbody></table>"
    yield "<h2>Why pushes were not delivered</h2>"
    if not report.causes:
        yield "<p>All that have ended were delivered.</p>"
    else:
        yield '<table><thead><tr><th>pushes</th><th class="text">responsible</th><th class="text">outcome</th>'
        yield '<th class="text">meaning</th></tr></thead><tbody>'
        for cause in report.causes:
            yield (
                f'<tr><td>{cause.pushes}</td><td class="text">{escape(cause.party or "")}</td>'
                f'<td class="text">{escape(cause.outcome)}/{escape(cause.reason)}</td>'
                f'<td class="text">{escape(cause.meaning)}</td></tr>'
            )
        yield "</tbody></table>"
    yield "</body></html>"


def name_of(line: Line) -> str:
    """The name of a line, for people."""
    if line.name is None:
        return "(all others)"
    return line.name or "(none)"


def percent(share: float | None) -> str:
    """A share as people read it; never rounded up to all."""
    if share is None:
        return "-"
    return "100 %" if share == 1 else f"{min(share * 100, 99.99):.2f} %"


def span(seconds: float | None) -> str:
    """A latency with the two digits that are known of it."""
    if seconds is None:
        return "-"
    return (
        f"{seconds * 1000:.2g} ms"
        if seconds < 0.0995
        else f"{seconds:.2g} s"
        if seconds < 99.5
        else f"{seconds:.0f} s"
    )


def _row(line: Line, name: str, report: Report) -> str:
    count = line.total
    cells = (
        count.pushes,
        percent(count.share),
        count.waiting,
        count.failed,
        span(line.seconds_50),
        span(line.seconds_99),
    )
    small = _bars(line.steps, report.starts, width=200, height=32)
    return (
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + f"<td>{small}</td></tr>"
    )


def _bars(
    steps: Sequence[Count],
    starts: Sequence[datetime],
    *,
    width: int = _WIDTH,
    height: int = _HEIGHT,
    hourly: bool = False,
) -> str:
    """Bars that stand on each other: delivered, waiting, not delivered. Large ones have times below, and titles."""
    large = height >= _HEIGHT
    room = height - (30 if large else 2)
    most = max((count.pushes for count in steps), default=0) or 1
    wide = width / len(steps)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="pushes over time, {most} at most">']
    for place, count in enumerate(steps):
        top = float(room)
        when = f"{starts[place]:%Y-%m-%d %H:%M}" if hourly else f"{starts[place]:%Y-%m-%d}"
        title = f"{when}: {count.pushes} pushes, {count.failed} not delivered, {count.waiting} waiting"
        parts.append(f"<g><title>{title}</title>" if large else "<g>")
        for kind, n in (("delivered", count.delivered), ("waiting", count.waiting), ("failed", count.failed)):
            if n:
                tall = n / most * (room - 14 if large else room)
                top -= tall
                parts.append(
                    f'<rect class="{kind}" x="{place * wide:.1f}" y="{top:.1f}" width="{max(wide - 1, 0.5):.1f}" '
                    f'height="{tall:.1f}"/>'
                )
        parts.append("</g>")
        if large and place % max(1, len(steps) // 8) == 0:
            label = f"{starts[place]:%d %H:%M}" if hourly else f"{starts[place]:%m-%d}"
            parts.append(f'<text x="{place * wide:.1f}" y="{height - 12}">{label}</text>')
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{room}" y2="{room}"/>')
    if large:
        parts.append(f'<text x="0" y="11">{most} at most</text>')
    return "".join(parts) + "</svg>"
