"""Measure what pushes, forwards, letters and batches take: `python -m benchmarks.scale --measure`.

The same sessions and pushes at one node, at two where the other one has all sessions, and at four with one queue and
with four partitions; at full speed, and at 500 a second, where nearly every push is alone in its letters and
statements. How much CPU each used, and how many forwards, letters and batches of rows each has had, gives what one of
them costs (least squares). The publisher works meanwhile, so the broker's share includes what it publishes.
"""

from __future__ import annotations

import re
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import psycopg

from benchmarks.nodes import SESSIONS, pair
from benchmarks.processes import BenchmarkFailed
from benchmarks.scale.simulation import REPORTS
from benchmarks.scene import RECEIVED, Flood, Latency, Scene
from benchmarks.spread import Group, together
from bridge.devservers import Servers

PUSHES: Final = 10_000
RATE: Final = 500.0
SLOW: Final = 2_000
"""Pushes at that rate."""
METRICS: Final = (
    "bridge_letter_items_count",
    "bridge_letter_items_sum",
    "bridge_holders_asked_pushes_count",
    "bridge_record_rows_count",
)
PAYERS: Final = ("nodes", "rabbitmq", "postgres")
CAUSES: Final = ("a push", "a forward", "a letter", "a batch of rows")


class Seen(NamedTuple):
    """How some pushes went."""

    pushes: int
    rate: float
    cpu: Mapping[str, float]
    letters: float
    items: float
    look_ups: float
    batches: float
    wal: float
    """Bytes of write-ahead log for a push."""
    log: float
    """Bytes by which the delivery log grew for a push, with its indexes."""

    def cost(self, payer: str) -> float:
        """Microseconds of CPU that this one used for a push."""
        used = self.cpu["bridge"] + self.cpu.get("neighbours", 0.0) if payer == "nodes" else self.cpu[payer]
        return used * 1e6 / self.rate

    @property
    def each(self) -> list[float]:
        """How many of each of CAUSES there were for a push."""
        forwards = self.items / (1 + REPORTS)
        return [1.0, *(count / self.pushes for count in (forwards, self.letters, self.batches))]


@contextmanager
def scenes(servers: Servers, logs: Path, name: str) -> Iterator[Scene]:
    """The nodes of that name."""
    logs.mkdir()
    if name == "elsewhere":
        with pair(servers, RECEIVED, logs / "pair", elsewhere=SESSIONS) as made:
            yield made
    else:
        with together(servers, Group(*map(int, name.split("x"))), logs / "group") as made:
            yield made


def measure(servers: Servers, logs: Path, turns: int) -> dict[str, list[Seen]]:
    """What was seen, by the nodes and the rate; each started anew for each turn."""
    found: dict[str, list[Seen]] = {}
    for turn in range(turns):
        for name in ("1x1", "elsewhere", "4x1", "4x4"):
            with scenes(servers, logs / f"{turn} {name}", name) as one:
                one.flood(PUSHES)  # a warm-up
                found.setdefault(name, []).append(_seen(one, PUSHES, lambda: one.flood(PUSHES)))
                steady = _seen(one, SLOW, lambda: one.latency(SLOW, RATE))
                found.setdefault(f"{name} at {RATE:g}/s", []).append(steady)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def _seen(one: Scene, pushes: int, run: Callable[[], Flood | Latency]) -> Seen:
    before, counts = _postgres(one.dsn), _counts(one)
    done = run()
    wal, log = (now - then for now, then in zip(_postgres(one.dsn), before, strict=True))
    letters, items, look_ups, batches = (now - then for now, then in zip(_counts(one), counts, strict=True))
    return Seen(pushes, done.rate, done.cpu, letters, items, look_ups, batches, wal / pushes, log / pushes)


def _counts(one: Scene) -> list[float]:
    """The sums of METRICS over all nodes."""
    pages = []
    for port in one.ops_ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            pages.append(page.read().decode())
    return [
        sum(float(value) for page in pages for value in re.findall(rf"^{name} (\S+)$", page, re.MULTILINE))
        for name in METRICS
    ]


def _postgres(dsn: str) -> tuple[float, float]:
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            "select pg_current_wal_lsn() - '0/0'::pg_lsn,"
            " (select sum(pg_total_relation_size(inhrelid)) from pg_inherits"
            "  where inhparent = 'delivery_log'::regclass)"
        ).fetchone()
    assert found is not None
    return float(found[0]), float(found[1])


def solved(found: Mapping[str, Sequence[Seen]], payer: str) -> list[float]:
    """Microseconds of CPU for each of CAUSES: the least squares of the shares by which they miss what was seen. None
    is below 0."""
    seen = [one for some in found.values() for one in some]
    return fitted([one.each for one in seen], [one.cost(payer) for one in seen])


def fitted(counts: Sequence[Sequence[float]], costs: Sequence[float]) -> list[float]:
    """What each of the counted things costs, where these together cost that."""
    rows = [[count / cost for count in row] for row, cost in zip(counts, costs, strict=True)]
    left = list(range(len(counts[0])))
    while True:
        matrix = [[sum(row[i] * row[j] for row in rows) for j in left] for i in left]
        each = solution(matrix, [sum(row[i] for row in rows) for i in left])
        if min(each) >= 0.0:
            found = dict(zip(left, each, strict=True))
            return [found.get(i, 0.0) for i in range(len(counts[0]))]
        # What would cost less than nothing can't be told apart from the others.
        del left[each.index(min(each))]


def solution(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Of as many linear equations as unknowns (Gauss' elimination). Raises BenchmarkFailed where there is not one."""
    a = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(a)):
        best = max(range(i, len(a)), key=lambda n: abs(a[n][i]))
        a[i], a[best] = a[best], a[i]
        if not a[i][i]:
            raise BenchmarkFailed("what was measured does not differ: nothing can be told apart")
        for n in range(len(a)):
            if n != i:
                factor = a[n][i] / a[i][i]
                a[n] = [x - factor * y for x, y in zip(a[n], a[i], strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(a)]


def told(found: Mapping[str, Sequence[Seen]]) -> str:
    """What was measured, as docs/scale.md shows it."""
    lines = [
        "| nodes x partitions | pushes/s | letters a push | items a letter | pushes a look-up | rows a batch | "
        + " | ".join(f"CPU of {payer}, µs a push" for payer in PAYERS)
        + " | WAL, bytes a push | log, bytes a push |",
        "|---|" + "---:|" * (7 + len(PAYERS)),
    ]
    for name, some in found.items():
        pushes = some[0].pushes
        letters, items = median(one.letters for one in some), median(one.items for one in some)
        look_ups = median(one.look_ups for one in some)
        cells = [
            f"{median(one.rate for one in some):,.0f}",
            f"{letters / pushes:.2f}",
            f"{items / letters:.1f}" if letters else "",
            f"{pushes / look_ups:.1f}" if look_ups else "",
            f"{pushes / median(one.batches for one in some):.1f}",
            *(f"{median(one.cost(payer) for one in some):,.0f}" for payer in PAYERS),
            f"{median(one.wal for one in some):,.0f}",
            f"{median(one.log for one in some):,.0f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| µs of CPU | " + " | ".join(CAUSES) + " |", "|---|" + "---:|" * len(CAUSES)]
    for payer in PAYERS:
        lines.append(f"| {payer} | " + " | ".join(f"{one:,.0f}" for one in solved(found, payer)) + " |")
    return "\n".join(lines)
