"""What was measured, as a table for people and as JSON for comparing."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.chart import shown
from benchmarks.flame import Place
from benchmarks.frozen import Frozen
from benchmarks.growth import Curve
from benchmarks.idle import BARE, Idle
from benchmarks.kept import AWAY_RATIO, EXPIRING_RATE, FIRST_PUSH_MS, Away, Parked
from benchmarks.peers import fan, nodejs
from benchmarks.peers import measure as peers
from benchmarks.repeats import Repeats
from benchmarks.scene import Drain, Latency
from benchmarks.soak import GROWTH, Soak
from bridge.ops.core_form import core_form

LIBRARIES: Final = ("aio-pika", "aiormq", "websockets", "psycopg", "psycopg-binary", "uvloop", "msgspec")
BUSY: Final = 0.5
"""Cores that others may keep busy before the report says that this distorts its figures."""
PLACES: Final = 12
"""Lines of each list of a profile."""
ROOTS: Final = 0.95
"""A function on nearly every stack only calls the others, so it is left out."""


@dataclass
class Results:
    """Everything that was measured; lists are by repetition, in order."""

    options: Mapping[str, object]
    machine: Mapping[str, object]
    drains: dict[str, list[Drain]] = field(default_factory=dict)
    latencies: dict[str, list[Latency]] = field(default_factory=dict)
    loaded: dict[str, list[Latency]] = field(default_factory=dict)
    """Each at a fixed share of the rate of the bridge's own drain."""
    idle: list[Idle] = field(default_factory=list)
    frozen: Frozen | None = None
    away: Away | None = None
    parked: Parked | None = None
    repeats: Repeats | None = None
    peers: list[peers.Measured] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the peers' programs."""
    fans: list[fan.Fan] = field(default_factory=list)
    soak: Soak | None = None
    curves: list[Curve] = field(default_factory=list)
    places: dict[str, list[Place]] = field(default_factory=dict)
    loop_ms: list[float] = field(default_factory=list)
    """The time of a fixed piece of work at the beginning of each repetition: it shows how steady the machine is."""

    def rate(self, name: str) -> float:
        """Pushes per second, the median."""
        return median(d.rate for d in self.drains[name])


def machine_facts(rabbit: str, postgres: Mapping[str, object]) -> dict[str, object]:
    """What the figures depend on, besides the code."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "core": core_form(),
        "rabbitmq": rabbit,
        "postgres": dict(postgres),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def loop_milliseconds() -> float:
    """How long a fixed piece of work takes on this machine at this moment."""
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number & 7
    return (time.perf_counter() - began) * 1e3


def table(results: Results) -> Iterator[str]:
    """The lines of the report."""
    machine = results.machine
    yield f"{machine['cores']} cores, {machine['cpu']}; {results.options}"
    yield ""
    if any(results.drains.values()):
        yield from _comparison(results)
    if results.idle:
        yield from _idle(results.idle)
    if results.frozen is not None:
        yield from _frozen(results.frozen)
    if results.away is not None:
        yield from _away(results.away)
    if results.parked is not None:
        yield from _parked(results.parked)
    if results.repeats is not None:
        yield from _repeats(results.repeats)
    if results.peers:
        yield ", ".join(f"{name} {version}" for name, version in results.versions.items())
        yield ""
        yield from peers.table(results.peers)
    if results.fans:
        yield ""
        yield from fan.table(results.fans)
    if results.soak is not None:
        yield from _soak(results.soak)
    for curve in results.curves:
        yield f"{curve.title}, by {curve.x}: {', '.join(points(curve))}"
    for name, places in results.places.items():
        yield from _places(name, places)
    yield from _warnings(results)


def points(curve: Curve) -> Iterator[str]:
    """The medians of a curve."""
    for x, drains in curve.points.items():
        cpu, rate = median(d.cpu_each for d in drains), median(d.rate for d in drains)
        yield f"{shown(x, curve.unit)}: {cpu:,.0f} µs, {rate:,.0f}/s"


def _comparison(results: Results) -> Iterator[str]:
    names = [name for name in results.drains if results.drains[name]]
    first = names[0]
    yield _line("", names)
    yield _line("pushes/s, end to end", [f"{results.rate(n):,.0f}" for n in names])
    yield _line("  lowest .. highest", [_span(results.drains[n], lambda d: d.rate) for n in names])
    yield _line(f"  times {first}", [f"{results.rate(n) / results.rate(first):.1f}" for n in names])
    if nodejs.NAME in names:
        # Within each repetition, since what else runs on the machine changes more between two of them.
        node = results.drains[nodejs.NAME]
        ratios = {
            n: median(d.rate / of.rate for d, of in zip(results.drains[n], node, strict=False)) for n in names
        }
        yield _line(f"  times {nodejs.NAME}", [f"{ratios[n]:.2f}" for n in names])
    yield _line("  repetitions, all counts equal", [str(len(results.drains[n])) for n in names])
    yield _line(
        "bridge's CPU per push, µs", [_median(results.drains[n], lambda d: d.cpu_each) for n in names]
    )
    yield "CPU during a drain, % of a core"
    for process in results.drains[first][0].cpu:
        if process != "publisher":
            yield _line(
                f"  {process}",
                [_median(results.drains[n], _share_of(process)) for n in names],
            )
    if any(results.latencies.values()):
        rate = results.latencies[first][0].rate
        yield f"publish to browser at {rate:.0f}/s, ms"
        for title, pick in _PERCENTILES.items():
            yield _line(f"  {title}", [_median(results.latencies[n], pick, 1) for n in names])
        yield "CPU at that rate, % of a core"
        for process in ("bridge", "rabbitmq", "postgres", "clients", "publisher"):
            yield _line(
                f"  {process}",
                [_median(results.latencies[n], _share_of(process)) for n in names],
            )
    if any(results.loaded.values()):
        yield "publish to browser at 70 % of its own pushes/s"
        yield _line("  pushes/s", [_median(results.loaded[n], lambda one: one.rate) for n in names])
        for title, pick in _PERCENTILES.items():
            yield _line(f"  {title}, ms", [_median(results.loaded[n], pick, 1) for n in names])
        yield "CPU at that rate, % of a core"
        for process in ("bridge", "rabbitmq", "postgres", "clients", "publisher", "others"):
            yield _line(f"  {process}", [_median(results.loaded[n], _share_of(process)) for n in names])


_PERCENTILES: Final[Mapping[str, Callable[[Latency], float]]] = {
    "p50": lambda latency: latency.p50,
    "p99": lambda latency: latency.p99,
}


def _idle(all_: Sequence[Idle]) -> Iterator[str]:
    first = all_[0]
    bare = next((one for one in all_ if one.name == BARE.name), first)
    yield ""
    yield _line(f"{first.sessions:,} idle sessions", [one.name for one in all_])
    yield _line("memory of each, KiB", [f"{one.each_bytes / 1024:.1f}" for one in all_])
    yield _line(f"  times {bare.name}", [f"{one.each_bytes / bare.each_bytes:.2f}" for one in all_])
    yield _line("bridge's CPU, % of a core", [f"{one.cpu * 100:.2f}" for one in all_])
    yield _line("  lowest .. highest", [_percents(w.share for w in one.windows) for one in all_])
    yield _line(f"  times {bare.name}", [f"{one.cpu / bare.cpu:.2f}" for one in all_])
    yield _line("  without any session", [f"{one.without.share * 100:.2f}" for one in all_])
    yield _line("  ms a session and hour", [f"{one.each_hour * 1e3:.1f}" for one in all_])
    if any(one.processes > 1 for one in all_):
        yield _line("processes of it", [str(one.processes) for one in all_])
    yield _line("all open, pings to each at least", [str(one.fewest_pings) for one in all_])
    yield _line("windows", [f"{len(one.windows)} of {first.windows[0].seconds:.0f} s" for one in all_])
    yield _line("  pings to each", [_each(one, [w.pings for w in one.windows]) for one in all_])
    yield _line("  heartbeats to each", [_each(one, [w.frames for w in one.windows]) for one in all_])


def _each(one: Idle, counts: Sequence[int]) -> str:
    return f"{median(counts) / one.sessions:.1f}"


def _percents(shares: Iterable[float]) -> str:
    values = sorted(shares)
    return f"{values[0] * 100:.2f} .. {values[-1] * 100:.2f}"


def _frozen(frozen: Frozen) -> Iterator[str]:
    free, held = (f"{median(d.rate for d in drains):,.0f}" for drains in (frozen.free, frozen.frozen))
    yield (
        f"the others' pushes/s with {frozen.frozen_sessions} of {frozen.sessions:,} sessions frozen: {held},"
        f" without: {free}, ratio {frozen.ratio:.2f} ({len(frozen.frozen)} times each)"
    )


def _away(away: Away) -> Iterator[str]:
    yield ""
    yield _line(
        f"kept pushes, {away.sessions:,} users",
        ["none absent, no ttl", "none absent, ttl", f"{away.away_sessions} absent, ttl"],
    )
    yield from _drains([away.no_ttl, away.there, away.away])
    yield (
        f"with {away.away_sessions} of {away.sessions:,} users absent / none absent, both with a ttl: {away.ratio:.2f}"
        f" (target: at least {AWAY_RATIO:.2f}{_missed(away.ratio < AWAY_RATIO)})"
    )


def _parked(parked: Parked) -> Iterator[str]:
    yield ""
    yield _line(f"{parked.rows:,} parked rows", ["without them", "beside them"])
    yield from _drains([parked.without, parked.beside])
    yield _line("rows that expire in a second", ["0", f"{median(parked.expired):,.0f}"])
    yield f"beside them, {EXPIRING_RATE:,} others expiring in a second / without: {parked.ratio:.2f}"
    opened = parked.openings
    most = max(opened.from_connect)
    yield (
        f"a session opens, {opened.each} pushes kept for its user: ms until the first is there"
        f" ({len(opened.from_connect)} users; target: under {FIRST_PUSH_MS:.0f}{_missed(most >= FIRST_PUSH_MS)})"
    )
    for title, times in (
        ("from the first packet", opened.from_connect),
        ("from the answer to the upgrade", opened.from_answer),
    ):
        yield f"  {title:<30}  median {median(times):.1f}, highest {max(times):.1f}"


def _repeats(repeats: Repeats) -> Iterator[str]:
    yield ""
    yield _line("known ids in the log", [log.title for log in repeats.logs])
    yield from _drains([log.drains for log in repeats.logs])
    yield _line("looked up per push", [f"{median(log.looked_up):.3f}" for log in repeats.logs])
    yield _line("seconds to read the ids", [f"{median(log.read_in):.1f}" for log in repeats.logs])
    yield _line("throughput / beside an empty log", [f"{repeats.ratio(log):.2f}" for log in repeats.logs])


def _soak(soak: Soak) -> Iterator[str]:
    resident = [one.resident for one in soak.samples]
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(soak.rows.items()))
    yield ""
    yield (
        f"{soak.sessions:,} sessions opened and closed, {soak.pushes:,} pushes, in {soak.seconds:,.0f} s"
        f" ({soak.cpu / soak.seconds:.0%} of a core for the bridge); frames read: {soak.frames:,}"
    )
    yield f"  outcomes: {outcomes}"
    yield (
        f"  the bridge's memory, MiB: {soak.warm / 2**20:.1f} after the warm-up, {soak.last / 2**20:.1f} at the end"
        f" (lowest {min(resident) / 2**20:.1f}, highest {max(resident) / 2**20:.1f})"
    )
    yield f"  growth: {soak.growth:+.1%} (target: at most {GROWTH:.0%}{_missed(soak.growth > GROWTH)})"


def _drains(columns: Sequence[Sequence[Drain]]) -> Iterator[str]:
    yield _line("pushes/s, end to end", [_median(drains, lambda d: d.rate) for drains in columns])
    yield _line("  lowest .. highest", [_span(drains, lambda d: d.rate) for drains in columns])
    yield _line("  repetitions, all counts equal", [str(len(drains)) for drains in columns])
    yield _line("bridge's CPU per push, µs", [_median(drains, lambda d: d.cpu_each) for drains in columns])
    yield _line("Postgres, % of a core", [_median(drains, _share_of("postgres")) for drains in columns])


def _missed(missed: bool) -> str:
    return ": MISSED" if missed else ""


def _places(name: str, places: Sequence[Place]) -> Iterator[str]:
    yield f"where {name} spends its time (on top of the stack, anywhere on it)"
    for place in places[:PLACES]:
        yield f"  {place.own:6.1%} {place.share:6.1%}  {place.name}"
    yield f"the widest of {name}, callees included"
    inner = [place for place in places if place.share < ROOTS]
    for place in sorted(inner, key=lambda p: -p.share)[: 2 * PLACES]:
        yield f"  {place.share:6.1%}  {place.name}"


def _warnings(results: Results) -> Iterator[str]:
    named = dict(results.drains)
    if (away := results.away) is not None:
        named |= {
            "kept, no ttl": away.no_ttl,
            "kept, none absent": away.there,
            "kept, some absent": away.away,
        }
    if (parked := results.parked) is not None:
        named |= {"without parked rows": parked.without, "beside parked rows": parked.beside}
    if (repeats := results.repeats) is not None:
        named |= {log.title: log.drains for log in repeats.logs}
    for curve in results.curves:
        named |= {f"{curve.name} {x:,}": list(drains) for x, drains in curve.points.items()}
    drains = [d for drains in named.values() for d in drains]
    used = [d.cpu for d in drains] + [flood.cpu for one in results.peers for flood in one.floods]
    for what in ("others", "stolen"):
        most = max((cpu[what] for cpu in used), default=0.0)
        if most > BUSY:
            yield f"NOTE: up to {most:.1f} cores were {_TAKEN[what]} during a drain: compare ratios only"
    if results.loop_ms and max(results.loop_ms) > 1.5 * min(results.loop_ms):
        yield (
            f"NOTE: a fixed loop took {min(results.loop_ms):.0f} to {max(results.loop_ms):.0f} ms:"
            " this machine is not steady, compare ratios only"
        )
    disordered = {n: sum(d.disordered for d in drains) for n, drains in named.items()}
    for name, count in disordered.items():
        if count:
            yield f"NOTE: {name} brought {count} frames after a later one for the same user"


_TAKEN: Final = {"others": "kept busy by other programs", "stolen": "taken by the machine's host"}


def _line(title: str, cells: Sequence[str]) -> str:
    return f"{title:<32}" + "".join(f"{cell:>20}" for cell in cells)


def _share_of(process: str) -> Callable[[Drain | Latency], float]:
    return lambda measured: measured.cpu[process] * 100


def _median(items: Sequence[Any], pick: Callable[[Any], float], digits: int = 0) -> str:
    return f"{median(map(pick, items)):,.{digits}f}"


def _span(items: Sequence[Any], pick: Callable[[Any], float]) -> str:
    values = [pick(item) for item in items]
    return f"{min(values):,.0f} .. {max(values):,.0f}"


def _facts(drains: Sequence[Drain]) -> list[dict[str, Any]]:
    return [d._asdict() | {"rate": d.rate, "cpu_each": d.cpu_each} for d in drains]


def write_json(results: Results, directory: Path) -> Path:
    """Write everything to a file named after the time."""
    path = directory / f"{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    drains = {name: _facts(drains) for name, drains in results.drains.items()}
    made = asdict(results) | {
        "drains": drains,
        "latencies": {
            name: [latency._asdict() for latency in all_] for name, all_ in results.latencies.items()
        },
        "loaded": {name: [latency._asdict() for latency in all_] for name, all_ in results.loaded.items()},
        "median_rate": {name: results.rate(name) for name, drains in results.drains.items() if drains},
        "places": {
            name: [place._asdict() for place in places[:100]] for name, places in results.places.items()
        },
    }
    made["idle"] = [
        one._asdict()
        | {"cpu": one.cpu, "each_hour": one.each_hour}
        | {"without": one.without._asdict(), "windows": [w._asdict() for w in one.windows]}
        for one in results.idle
    ]
    if results.frozen is not None:
        made["frozen"] = results.frozen._asdict() | {
            "free": [d._asdict() | {"rate": d.rate} for d in results.frozen.free],
            "frozen": [d._asdict() | {"rate": d.rate} for d in results.frozen.frozen],
            "ratio": results.frozen.ratio,
        }
    if (away := results.away) is not None:
        made["away"] = away._asdict() | {
            "no_ttl": _facts(away.no_ttl),
            "there": _facts(away.there),
            "away": _facts(away.away),
            "ratio": away.ratio,
        }
    if (parked := results.parked) is not None:
        made["parked"] = parked._asdict() | {
            "openings": parked.openings._asdict(),
            "without": _facts(parked.without),
            "beside": _facts(parked.beside),
            "ratio": parked.ratio,
        }
    if (soak := results.soak) is not None:
        made["soak"] = soak._asdict() | {
            "samples": [one._asdict() for one in soak.samples],
            "warm": soak.warm,
            "last": soak.last,
            "growth": soak.growth,
        }
    if (repeats := results.repeats) is not None:
        made["repeats"] = [
            log._asdict() | {"drains": _facts(log.drains), "ratio": repeats.ratio(log)}
            for log in repeats.logs
        ]
    made["peers"] = [
        one._asdict()
        | {"promises": one.promises._asdict(), "rate": one.rate}
        | {"floods": [flood._asdict() | {"servers_each": flood.servers_each} for flood in one.floods]}
        | {"latencies": [latency._asdict() for latency in one.latencies]}
        for one in results.peers
    ]
    made["fans"] = [
        {"name": one.name, "rate": one.rate, "complete_rate": one.complete_rate}
        | {"pushes": [push._asdict() for push in one.pushes]}
        for one in results.fans
    ]
    made["curves"] = {curve.name: curve.facts(results.machine) for curve in results.curves}
    path.write_text(json.dumps(made, indent=1) + "\n")
    return path
