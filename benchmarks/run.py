"""`make bench`: the naive bridge and this one in turn, on private servers, in about fifteen minutes.

It prints a table and writes all figures to .dev/bench/<date>.json. Exit codes: 0 measured; 1 a measurement
failed, or its counts did not agree; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks import compiled, flame, frozen, report
from benchmarks import idle as idling
from benchmarks.chart import CHARTS
from benchmarks.growth import CURVES, SMALL, Bench, Extent
from benchmarks.growth import measure as measure_growth
from benchmarks.idle import measure as measure_idle
from benchmarks.kept import measure_away, measure_parked
from benchmarks.peers import nodejs
from benchmarks.peers.contenders import Ports, versions
from benchmarks.peers.contenders import peers as all_peers
from benchmarks.peers.fan import measure as measure_fan
from benchmarks.peers.measure import measure as measure_peers
from benchmarks.processes import BenchmarkFailed, raise_file_limit
from benchmarks.repeats import measure_repeats
from benchmarks.scene import NAIVE, RECEIVED, WRITTEN, Contestant, postgres_facts, scene
from benchmarks.soak import measure as measure_soak
from benchmarks.soak import verify as verify_soak
from bridge.cli.dev import Progress, sigterm_interrupts
from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.devservers import Servers, ServersUnavailable, private_servers

DIRECTORY: Final = Path(__file__).resolve().parent.parent / ".dev" / "bench"
CONTESTANTS: Final[tuple[Contestant, ...]] = (NAIVE, WRITTEN, RECEIVED)
NODE_DIRECTORY: Final = DIRECTORY / "node"
"""Where the packages of the Node bridge are installed."""
GIVEN: Final = (
    "repetitions",
    "backlog",
    "minutes",
    "idle_sessions",
    "soak_sessions",
    "soak_pushes",
)
"""Options that change the plan."""
RATE: Final = 500.0
"""Pushes per second when latency is measured."""
LOADED: Final = 0.7
"""Then once more at this share of the rate of the bridge's own drain."""


class Plan(NamedTuple):
    """How much to measure."""

    sessions: int = 1000
    backlog: int = 15_000
    warm_up: int = 1_000
    repetitions: int = 5
    minutes: float = 5.5
    """Seconds: a repetition of the comparison that would end later is not begun."""
    steady_seconds: float = 5.0
    idle_sessions: int = 10_000
    idle_windows: int = 3
    idle_seconds: float = 4.0 * HEARTBEAT_EVERY
    frozen_backlog: int = 20_000
    frozen_repetitions: int = 5
    kept_backlog: int = 10_000
    kept_repetitions: int = 5
    parked: int = 1_000_000
    parked_backlog: int = 20_000
    parked_repetitions: int = 5
    openings: int = 50
    known: tuple[int, ...] = (0, 1_000_000)
    known_backlog: int = 20_000
    known_repetitions: int = 5
    profile_backlog: int = 30_000
    peer_pushes: int = 10_000
    peer_steady_seconds: float = 4.0
    fan_sessions: int = 10_000
    fan_repetitions: int = 7
    soak_sessions: int = 40_000
    soak_pushes: int = 400_000
    growth: Extent = Extent()
    curves: tuple[str, ...] = tuple(CURVES)
    charts: Path = CHARTS
    """Where the charts of growth go."""
    with_node: bool = False
    """Whether the comparison includes the batched Node bridge."""


Part = Callable[[Servers, Plan, report.Results, Progress], None]

QUICK: Final = Plan(
    backlog=5_000,
    repetitions=2,
    steady_seconds=3.0,
    idle_sessions=5_000,
    idle_windows=1,
    idle_seconds=2.0 * HEARTBEAT_EVERY,
    frozen_repetitions=1,
    kept_backlog=5_000,
    kept_repetitions=1,
    parked=100_000,
    parked_backlog=5_000,
    parked_repetitions=1,
    known=(0, 100_000),
    known_backlog=5_000,
    known_repetitions=1,
    peer_pushes=5_000,
    peer_steady_seconds=2.0,
    fan_sessions=2_000,
    fan_repetitions=3,
    soak_sessions=10_000,
    soak_pushes=100_000,
    growth=SMALL,
    charts=DIRECTORY / "charts",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repetitions: four minutes")
    parser.add_argument("--repetitions", type=int, metavar="N", help="repetitions of the comparison [5]")
    parser.add_argument("--backlog", type=int, metavar="N", help="pushes of a drain [15000]")
    parser.add_argument("--minutes", type=float, metavar="M", help="that the comparison may take [5.5]")
    parser.add_argument(
        "--only",
        choices=("compare", "idle", "freeze", "kept", "repeats", "peers", "fan", "soak", "growth"),
        help="one part of it",
    )
    parser.add_argument(
        "--curve", choices=tuple(CURVES), action="append", help="one curve of `growth`: the others stay"
    )
    parser.add_argument(
        "--with-node", action="store_true", help="compare with a batched Node bridge too: needs node and npm"
    )
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="one more log for `repeats` and `growth`, with this many ids, such as 50000000",
    )
    parser.add_argument("--idle-sessions", type=int, metavar="N", help="idle sessions of each bridge [10000]")
    parser.add_argument("--soak-sessions", type=int, metavar="N", help="sessions of the soak [40000]")
    parser.add_argument("--soak-pushes", type=int, metavar="N", help="pushes of the soak [400000]")
    parser.add_argument(
        "--profile", action="store_true", help="sample this bridge instead (py-spy), and draw a flame graph"
    )
    parser.add_argument("--compiled", action="store_true", help=compiled.ABOUT)
    chosen = parser.parse_args(arguments)
    if chosen.compiled:
        compiled.run_compiled("benchmarks", arguments)
    plan = QUICK if chosen.quick else Plan()
    given = {name: value for name in GIVEN if (value := getattr(chosen, name))}
    plan = plan._replace(**given, with_node=chosen.with_node)
    if chosen.rows:
        more = plan.growth._replace(rows=(*plan.growth.rows, chosen.rows))
        plan = plan._replace(known=(*plan.known, chosen.rows), growth=more)
    if chosen.repetitions:
        plan = plan._replace(growth=plan.growth._replace(repetitions=chosen.repetitions))
    if chosen.curve:
        plan = plan._replace(curves=tuple(chosen.curve))
    say = Progress()
    raise_file_limit()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    ports = Ports() if chosen.only == "peers" else None
    try:
        with (
            sigterm_interrupts(),
            private_servers(
                DIRECTORY / "servers", say=say, usual_ports=False, plugins=ports.plugins() if ports else None
            ) as servers,
        ):
            postgres = postgres_facts(servers.postgres_dsn)
            if postgres["fsync"] != "on" or postgres["synchronous_commit"] != "on":
                raise BenchmarkFailed(f"this Postgres commits without fsync: {postgres}")
            rabbit = servers.rabbit.evaluate("list_to_binary(rabbit_misc:version())").strip('<>"')
            options = {name: value for name, value in plan._asdict().items() if name != "charts"}
            results = report.Results(options, report.machine_facts(rabbit, postgres))
            parts: Sequence[Part] = (profile,) if chosen.profile else (compare, idle, freeze, kept, repeats)
            if ports is not None:
                parts = (partial(peers, ports), fan)
            elif chosen.only:
                parts = [part for part in (*parts, fan, soak, growth) if part.__name__ == chosen.only]
            failure = measure(parts, servers, plan, results, say)
        print()
        for line in report.table(results):
            print(line)
        print(f"\nall figures: {report.write_json(results, DIRECTORY)}")
        if failure is not None:
            raise failure
    except (BenchmarkFailed, ServersUnavailable) as failed:
        print(f"bench: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def measure(
    parts: Sequence[Part], servers: Servers, plan: Plan, results: report.Results, say: Progress
) -> BenchmarkFailed | None:
    """Measure one part after the other; after a failure, report what was measured until then."""
    try:
        for part in parts:
            part(servers, plan, results, say)
    except BenchmarkFailed as failed:
        return failed
    return None


def compare(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """Throughput and latency of every bridge once in each repetition, each time starting with another one."""
    contestants = CONTESTANTS
    if plan.with_node:
        contestants += (nodejs.contestant(NODE_DIRECTORY, say),)
    results.drains = {contestant.name: [] for contestant in contestants}
    results.latencies = {contestant.name: [] for contestant in contestants}
    results.loaded = {contestant.name: [] for contestant in contestants}
    began = time.monotonic()
    longest = 0.0
    for repetition in range(plan.repetitions):
        if time.monotonic() - began + longest > plan.minutes * 60:
            say(f"only {repetition} repetitions: no time for another")
            break
        this = time.monotonic()
        results.loop_ms.append(report.loop_milliseconds())
        turn = repetition % len(contestants)
        for contestant in contestants[turn:] + contestants[:turn]:
            one_turn(servers, contestant, plan, results, say)
        longest = max(longest, time.monotonic() - this)


def one_turn(
    servers: Servers, contestant: Contestant, plan: Plan, results: report.Results, say: Progress
) -> None:
    """One bridge, freshly started: a warm-up, a drain, a period at a steady rate."""
    with scene(servers, contestant, directory=DIRECTORY, sessions=[plan.sessions]) as on:
        on.drain(plan.warm_up)
        drain = on.drain(plan.backlog)
        latency = on.latency(round(plan.steady_seconds * RATE), RATE)
        rate = LOADED * drain.rate
        loaded = on.latency(round(plan.steady_seconds * rate), rate)
    results.drains[contestant.name].append(drain)
    results.latencies[contestant.name].append(latency)
    results.loaded[contestant.name].append(loaded)
    say(
        f"{contestant.name}: {drain.rate:,.0f} pushes/s, {drain.cpu_each:.0f} µs of CPU for each;"
        f" at {latency.rate:.0f}/s p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms;"
        f" at {loaded.rate:.0f}/s p50 {loaded.p50:.1f} ms, p99 {loaded.p99:.1f} ms"
    )


def idle(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """What idle sessions cost."""
    results.idle = measure_idle(
        servers,
        directory=DIRECTORY,
        sessions=plan.idle_sessions,
        windows=plan.idle_windows,
        seconds=plan.idle_seconds,
        contestants=idling.CONTESTANTS if plan.idle_sessions <= idling.MANY else (idling.ENVELOPE,),
    )
    for one in results.idle:
        say(
            f"{one.name}: {one.each_bytes / 1024:.1f} KiB for each of {one.sessions:,} idle sessions,"
            f" and {one.cpu:.1%} of a core for all"
        )


def freeze(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """How much frozen peers slow down the others."""
    results.frozen = frozen.measure(
        servers,
        directory=DIRECTORY,
        sessions=plan.sessions,
        backlog=plan.frozen_backlog,
        repetitions=plan.frozen_repetitions,
        warm_up=plan.warm_up,
    )
    say(
        f"{results.frozen.frozen_sessions} of {plan.sessions:,} sessions frozen:"
        f" the others keep {results.frozen.ratio:.0%} of their throughput"
    )


def kept(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """How much kept pushes slow down the others."""
    results.away = measure_away(
        servers,
        directory=DIRECTORY,
        sessions=plan.sessions,
        backlog=plan.kept_backlog,
        repetitions=plan.kept_repetitions,
        warm_up=plan.warm_up,
    )
    say(
        f"{results.away.away_sessions} of {plan.sessions:,} users absent:"
        f" {results.away.ratio:.0%} of the throughput with none absent"
    )
    results.parked = measure_parked(
        servers,
        directory=DIRECTORY,
        sessions=plan.sessions,
        backlog=plan.parked_backlog,
        repetitions=plan.parked_repetitions,
        warm_up=plan.warm_up,
        rows=plan.parked,
        openings=plan.openings,
    )
    say(
        f"{plan.parked:,} parked rows: {results.parked.ratio:.0%} of the throughput without;"
        f" the first kept push comes in {median(results.parked.openings.from_connect):.1f} ms"
    )


def repeats(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """What it costs to recognise repeats, beside logs of different sizes."""
    results.repeats = measure_repeats(
        servers,
        directory=DIRECTORY,
        sessions=plan.sessions,
        backlog=plan.known_backlog,
        repetitions=plan.known_repetitions,
        warm_up=plan.warm_up,
        rows=plan.known,
    )
    for log in results.repeats.logs[1:]:
        say(f"{log.title}: {results.repeats.ratio(log):.0%} of the throughput beside an empty log")


def peers(ports: Ports, servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """Other ways to push to browsers, beside this bridge and a batched Node bridge."""
    results.loop_ms.append(report.loop_milliseconds())
    all_ = all_peers(servers, ports, directory=DIRECTORY, say=say)
    results.versions = {"RabbitMQ": str(results.machine["rabbitmq"]), **versions()}
    measure_peers(
        servers,
        all_,
        results.peers,
        directory=DIRECTORY,
        node_directory=NODE_DIRECTORY,
        sessions=plan.sessions,
        pushes=plan.peer_pushes,
        warm_up=plan.warm_up,
        steady_seconds=plan.peer_steady_seconds,
        rate=RATE,
        repetitions=plan.repetitions,
        say=say,
    )


def fan(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """One push to everyone, beside nchan."""
    results.fans = measure_fan(
        servers,
        directory=DIRECTORY,
        sessions=plan.fan_sessions,
        repetitions=plan.fan_repetitions,
        say=say,
    )


def soak(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """Whether the memory of a bridge grows."""
    results.soak = measure_soak(
        servers,
        directory=DIRECTORY,
        sessions=plan.soak_sessions,
        pushes=plan.soak_pushes,
        say=say,
    )
    verify_soak(results.soak)


def growth(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """How the cost of a push grows with sessions, devices, data, users of a request, rows and mailboxes."""
    bench = Bench(servers, DIRECTORY / "growth", plan.growth, say)
    failed: list[str] = []
    for curve in measure_growth(bench, plan.curves, plan.charts, results.machine):
        results.curves.append(curve)
        failed += [f"{curve.name} {why}" for why in curve.failed]
        say(f"{curve.name}: " + ", ".join(report.points(curve)))
    if failed:
        raise BenchmarkFailed("; ".join(failed))


def profile(servers: Servers, plan: Plan, results: report.Results, say: Progress) -> None:
    """Sample this bridge during drains, for each proof; the flame graph goes to a file."""
    for contestant in (WRITTEN, RECEIVED):
        with scene(servers, contestant, directory=DIRECTORY, sessions=[plan.sessions]) as on:
            on.drain(plan.warm_up)
            with flame.sampled(on.bridge, directory=DIRECTORY) as stacks:
                results.drains[contestant.name] = [
                    on.drain(plan.profile_backlog) for _ in range(plan.repetitions)
                ]
        results.places[contestant.name] = flame.widest(stacks)
        path = DIRECTORY / f"flame-{contestant.confirm}.svg"
        path.write_text(flame.svg(stacks, contestant.name))
        say(f"{contestant.name}: {path}")


if __name__ == "__main__":
    sys.exit(main())
