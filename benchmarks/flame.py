"""Where the bridge spends its time: py-spy samples it during a drain, and the stacks are drawn and listed.

py-spy is not among the pinned dependencies: `pip install py-spy` puts it where `--profile` looks for it.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from benchmarks.processes import BenchmarkFailed, Child, running

RATE: Final = 500
"""Samples per second."""
WIDTH: Final = 1400
ROW: Final = 17
NARROWEST: Final = 1.5
"""Pixels below which a box is left out."""

Stacks = Mapping[tuple[str, ...], int]
"""Samples by stack, outermost function first."""


class Place(NamedTuple):
    """A function, the share of samples in which it was on the stack, and the share in which it was on top."""

    name: str
    share: float
    own: float


@contextmanager
def sampled(child: Child, *, directory: Path) -> Iterator[dict[tuple[str, ...], int]]:
    """Sample a process for the length of the block; the stacks are complete when the block has ended."""
    profiler = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if profiler is None:
        raise BenchmarkFailed("py-spy is not installed: pip install py-spy")
    raw = directory / "stacks.txt"
    # Nonblocking: the process is never stopped for a sample, so that it does not get slower.
    command = [profiler, "record", "--pid", str(child.pid), "--format", "raw", "--output", str(raw)]
    stacks: dict[tuple[str, ...], int] = {}
    with running(
        "profiler",
        [*command, "--rate", str(RATE), "--nonblocking", "--duration", "600"],
        directory=directory,
        environment={},
    ) as spy:
        yield stacks
        spy.interrupt()
    stacks.update(parse(raw.read_text().splitlines()))


def parse(lines: Iterable[str]) -> dict[tuple[str, ...], int]:
    """Folded stacks (`a;b;c 12`), without line numbers; samples of one stack are added up."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        stacks[tuple(_function(frame) for frame in stack.split(";"))] += int(count)
    return dict(stacks)


def _function(frame: str) -> str:
    # `name (path/file.py:12)`: without the line, so that all lines of a function count as one.
    return frame.rpartition(":")[0] + ")" if frame.endswith(")") and ":" in frame else frame


def widest(stacks: Stacks) -> list[Place]:
    """All functions, those that were most often on top first."""
    total = sum(stacks.values())
    on_stack: Counter[str] = Counter()
    on_top: Counter[str] = Counter()
    for stack, count in stacks.items():
        on_top[stack[-1]] += count
        for name in set(stack):
            on_stack[name] += count
    places = [Place(name, on_stack[name] / total, on_top[name] / total) for name in on_stack]
    return sorted(places, key=lambda place: (-place.own, -place.share))


def svg(stacks: Stacks, title: str) -> str:
    """A flame graph: boxes as wide as their share, callers below what they call, names as tooltips."""
    total = sum(stacks.values())
    depth = max(map(len, stacks), default=0)
    height = (depth + 2) * ROW
    boxes: list[str] = []
    _draw(boxes, sorted(stacks.items()), 0, 0.0, WIDTH / max(total, 1), height, total)
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
            ' font-family="sans-serif" font-size="11">',
            f'<text x="4" y="12">{escape(title)}: {total} samples</text>',
            *boxes,
            "</svg>\n",
        )
    )


def _draw(
    boxes: list[str],
    stacks: list[tuple[tuple[str, ...], int]],
    level: int,
    left: float,
    scale: float,
    height: int,
    total: int,
) -> None:
    """Draw `level` and all above it of these stacks, which are equal below it."""
    groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
    for stack, count in stacks:
        if len(stack) > level:
            groups.setdefault(stack[level], []).append((stack, count))
    for name, group in groups.items():
        samples = sum(count for _, count in group)
        width = samples * scale
        if width >= NARROWEST:
            top = height - (level + 1) * ROW
            hue = 20 + crc32(name.encode()) % 35
            shown = name[: int(width / 7)] if width > 30 else ""
            boxes.append(
                f"<g><title>{escape(name)}: {samples} samples, {samples / total:.1%}</title>"
                f'<rect x="{left:.1f}" y="{top}" width="{width - 0.4:.1f}" height="{ROW - 1}"'
                f' fill="hsl({hue},85%,65%)"/>'
                f'<text x="{left + 3:.1f}" y="{top + 12}">{escape(shown)}</text></g>'
            )
            _draw(boxes, group, level + 1, left, scale, height, total)
        left += width
