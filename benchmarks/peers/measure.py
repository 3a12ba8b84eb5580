"""The bridges and the peers in turn, each freshly started, under the same load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.peers import nodejs
from benchmarks.peers.stage import Peer, Promises, Stage, stage
from benchmarks.scene import RECEIVED, WRITTEN, Contestant, Flood, Latency, Scene, scene
from bridge.devservers import Servers

ROWS: Final = "a row per push"
BRIDGES: Final[Mapping[str, Promises]] = {
    RECEIVED.name: Promises(durable="yes", logged=ROWS, proven="yes", receipt="yes"),
    WRITTEN.name: Promises(durable="yes", logged=ROWS, receipt="yes"),
    nodejs.NAME: Promises(durable="yes", logged=ROWS),
}


class Measured(NamedTuple):
    """What was measured of one; lists are by repetition."""

    name: str
    promises: Promises
    floods: list[Flood]
    latencies: list[Latency]

    @property
    def rate(self) -> float:
        """Pushes per second, the median."""
        return median(flood.rate for flood in self.floods)


def measure(
    servers: Servers,
    peers: Sequence[Peer],
    made: list[Measured],
    *,
    directory: Path,
    node_directory: Path,
    sessions: int,
    pushes: int,
    warm_up: int,
    steady_seconds: float,
    rate: float,
    repetitions: int,
    say: Callable[[str], None],
) -> None:
    """Measure all in turn, each time starting with another one; what was measured goes to `made` at once."""
    bridges = [RECEIVED, WRITTEN, nodejs.contestant(node_directory, say)]
    chosen: list[Contestant | Peer] = [*bridges, *peers]
    made.extend(Measured(one.name, _promises(one), [], []) for one in chosen)
    by_name = {measured.name: measured for measured in made}
    for repetition in range(repetitions):
        turn = repetition % len(chosen)
        for one in chosen[turn:] + chosen[:turn]:
            with _ready(servers, one, directory, sessions) as on:
                on.flood(warm_up)
                flood = on.flood(pushes)
                latency = on.latency(round(steady_seconds * rate), rate)
            by_name[one.name].floods.append(flood)
            by_name[one.name].latencies.append(latency)
            say(
                f"{one.name}: {flood.rate:,.0f} pushes/s, {flood.servers_each:.0f} µs of its servers' CPU for each;"
                f" at {latency.rate:.0f}/s p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms"
            )


def _promises(one: Contestant | Peer) -> Promises:
    return one.promises if isinstance(one, Peer) else BRIDGES[one.name]


@contextmanager
def _ready(
    servers: Servers, one: Contestant | Peer, directory: Path, sessions: int
) -> Iterator[Scene | Stage]:
    if isinstance(one, Peer):
        with stage(one, directory=directory, sessions=sessions) as on:
            yield on
    else:
        with scene(servers, one, directory=directory, sessions=[sessions]) as bridge:
            yield bridge


COLUMNS: Final = (
    "",
    "pushes/s",
    "lowest .. highest",
    f"times {nodejs.NAME}",
    "servers' CPU per push, µs",
    "p50 at 500/s, ms",
    "p99",
    "durable",
    "logged",
    "proven",
    "receipt",
)


def ratio(one: Measured, other: Measured) -> float:
    """Throughput as a multiple of another's: the median of the ratios within each repetition.

    What else runs on the machine changes between repetitions, less within one.
    """
    return median(mine.rate / theirs.rate for mine, theirs in zip(one.floods, other.floods, strict=False))


def table(measured: Sequence[Measured]) -> Iterator[str]:
    """The figures beside the promises, in Markdown."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---|" + "---:|" * 6 + "---|" * 4
    complete = [one for one in measured if one.floods]
    node = next((one for one in complete if one.name == nodejs.NAME), None)
    for one in complete:
        rates = sorted(flood.rate for flood in one.floods)
        cells = (
            one.name,
            f"{one.rate:,.0f}",
            f"{rates[0]:,.0f} .. {rates[-1]:,.0f}",
            f"{ratio(one, node):.2f}" if node else "",
            f"{median(flood.servers_each for flood in one.floods):.0f}",
            f"{median(latency.p50 for latency in one.latencies):.1f}",
            f"{median(latency.p99 for latency in one.latencies):.1f}",
            *one.promises,
        )
        yield f"| {' | '.join(cells)} |"
