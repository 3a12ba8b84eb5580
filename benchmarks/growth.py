"""How the cost of a push grows with what there is much of: a curve for each, for the charts in docs/performance.md.

Each curve changes one thing and leaves the rest as it is in the other parts. Its points are measured in turn, each
repetition beginning with another one. The bridges of one curve are all open meanwhile. A point whose counts do not
agree is left out, and fails the run at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import psycopg

from benchmarks.chart import BINARY, draw_file
from benchmarks.kept import insert_stored
from benchmarks.load import Shape
from benchmarks.peers.fan import CLIENTS
from benchmarks.processes import BenchmarkFailed, file_limit, wait_until
from benchmarks.repeats import READ_TIMEOUT, fill
from benchmarks.scene import RECEIVED, TO_TOPIC, Drain, Scene, scene
from benchmarks.spread import Group, together
from bridge.devservers import Servers

SPARE_FILES: Final = 500
"""Files and sockets that a bridge has open besides its sessions."""
QUOTES: Final = 2
FIRST_USER: Final = 300_000
"""The first user with kept pushes; users with sessions during drains have lower numbers."""

Turn = Callable[[], Drain]
Say = Callable[[str], None]


class Extent(NamedTuple):
    """How far each curve goes, and how many pushes each drain has."""

    repetitions: int = 5
    users: int = 1_000
    backlog: int = 10_000
    sessions: Sequence[int] = (100, 1_000, 10_000, 50_000)
    devices: Sequence[int] = (1, 2, 4, 8, 16)
    all_devices: int = 1_600
    """Sessions of each point, whoever has them."""
    device_frames: int = 32_000
    """Frames of each drain at most."""
    payload: Sequence[int] = (100, 1024, 4096, 16_384, 65_536)
    payload_bytes: int = 96 << 20
    """Bytes of data of each drain at most."""
    batch: Sequence[int] = (1, 10, 100, 1_000)
    rows: Sequence[int] = (0, 1_000_000, 10_000_000)
    mailbox: Sequence[int] = (1, 10, 100, 1_000)
    comers: int = 2_000
    """Users at most who come for what is kept."""
    nodes: Sequence[int] = (1, 2, 4)
    topic: Sequence[int] = (1, 10, 100, 1_000, 10_000)


SMALL: Final = Extent(
    repetitions=2,
    users=100,
    backlog=1_000,
    sessions=(10, 100, 1_000),
    devices=(1, 4),
    all_devices=100,
    payload=(100, 65_536),
    payload_bytes=8 << 20,
    batch=(1, 100),
    rows=(0, 100_000),
    mailbox=(1, 100),
    nodes=(1, 2),
    topic=(1, 100),
)


class Curve(NamedTuple):
    """What was measured, for each place on the x axis by repetition."""

    name: str
    title: str
    x: str
    unit: str
    points: Mapping[int, Sequence[Drain]]
    failed: Sequence[str]
    notes: Mapping[str, Any]
    """What the account of the chart needs besides."""

    def facts(self, machine: Mapping[str, object]) -> dict[str, Any]:
        """What goes to the JSON."""
        return {
            "title": self.title,
            "x": self.x,
            "unit": self.unit,
            "when": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": {name: machine[name] for name in ("cpu", "cores", "python", "core")},
            "notes": dict(self.notes),
            "points": [
                {
                    "x": x,
                    "pushes": drains[0].pushes,
                    "cpu_each": [round(d.cpu_each, 1) for d in drains],
                    "rate": [round(d.rate) for d in drains],
                    "postgres": [round(d.cpu["postgres"], 2) for d in drains],
                    "others": [round(d.cpu["others"] + d.cpu["stolen"], 2) for d in drains],
                }
                for x, drains in self.points.items()
            ],
        }


class Bench(NamedTuple):
    """What every curve needs."""

    servers: Servers
    directory: Path
    extent: Extent
    say: Say

    def open(self, stack: ExitStack, name: str, sessions: Sequence[int], **more: Any) -> Scene:
        """A bridge of its own that is warm."""
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        on = stack.enter_context(
            scene(self.servers, RECEIVED, directory=directory, sessions=sessions, **more)
        )
        on.drain(self.extent.backlog // 5)
        return on

    def in_turn(self, turns: Mapping[int, Turn]) -> tuple[dict[int, list[Drain]], list[str]]:
        """Measure every point once in each repetition; returns the points, and what failed."""
        made: dict[int, list[Drain]] = {x: [] for x in turns}
        failed: dict[int, str] = {}
        order = list(turns)
        for repetition in range(self.extent.repetitions):
            self.say(f"repetition {repetition + 1} of {self.extent.repetitions}: {len(order)} points")
            first = repetition % len(order)
            for x in order[first:] + order[:first]:
                if x not in failed:
                    try:
                        made[x].append(turns[x]())
                    except BenchmarkFailed as why:
                        failed[x] = f"{x:,}: {why}"
        return {x: drains for x, drains in made.items() if x not in failed}, list(failed.values())


def sessions(bench: Bench) -> Curve:
    """The same drain on bridges with different numbers of sessions."""
    extent, most = bench.extent, file_limit() - SPARE_FILES
    counts = sorted({min(n, most) for n in extent.sessions})
    notes: dict[str, Any] = {}
    if most < max(extent.sessions):
        notes["file_limit"] = file_limit()
        bench.say(f"a process may open {file_limit():,} files here: {most:,} sessions are the most")
    with ExitStack() as stack:
        on = {n: bench.open(stack, f"sessions{n}", [n]) for n in counts}
        turns = {n: lambda one=one: one.drain(extent.backlog) for n, one in on.items()}
        points, failed = bench.in_turn(turns)
    return Curve("sessions", "More sessions", "open sessions, one user each", "", points, failed, notes)


def devices(bench: Bench) -> Curve:
    """The same sessions, of users with different numbers of devices: so many frames has a push."""
    extent = bench.extent
    with ExitStack() as stack:
        on = {
            n: bench.open(stack, f"devices{n}", [extent.all_devices // n], devices=n) for n in extent.devices
        }
        turns = {
            n: lambda n=n, one=one: one.drain(min(extent.backlog, extent.device_frames // n))
            for n, one in on.items()
        }
        points, failed = bench.in_turn(turns)
    return Curve(
        "devices", "More devices", "devices of each user, and frames of each push", "", points, failed, {}
    )


def payload(bench: Bench) -> Curve:
    """Data of different sizes, on one bridge."""
    extent = bench.extent
    with ExitStack() as stack:
        on = bench.open(stack, "payload", [extent.users])
        turns = {
            size: lambda size=size: on.drain(
                min(extent.backlog, extent.payload_bytes // size), shape=Shape(data_bytes=size - QUOTES)
            )
            for size in extent.payload
        }
        points, failed = bench.in_turn(turns)
    return Curve("payload", "More data in each push", "size of `data`", BINARY, points, failed, {})


def batch(bench: Bench) -> Curve:
    """Requests that name different numbers of users, on one bridge."""
    extent = bench.extent
    with ExitStack() as stack:
        on = bench.open(stack, "batch", [extent.users])
        turns = {
            each: lambda each=each: on.drain(extent.backlog // each * each, shape=Shape(each=each))
            for each in extent.batch
        }
        points, failed = bench.in_turn(turns)
    return Curve(
        "batch", "More users in each request", "users in `to` of each request", "", points, failed, {}
    )


def rows(bench: Bench) -> Curve:
    """The same drain beside logs of different sizes, whose ids of today are in memory."""
    extent = bench.extent
    with ExitStack() as stack:
        on: dict[int, Scene] = {}
        for n in extent.rows:
            on[n] = bench.open(stack, f"rows{n}", [extent.users], prepare=lambda dsn, n=n: fill(dsn, n))
            wait_until(
                lambda one=on[n]: one.metric("bridge_ids_whole") == 1,  # type: ignore[misc]
                seconds=READ_TIMEOUT,
                every=0.05,
                what="all ids are in memory",
            )
        turns = {n: lambda one=one: one.drain(extent.backlog) for n, one in on.items()}
        points, failed = bench.in_turn(turns)
    return Curve("rows", "More rows in the log", "rows of today in the log", "", points, failed, {})


def mailbox(bench: Bench) -> Curve:
    """Pushes that are kept for absent users, in mailboxes of different depths, when those users come."""
    extent = bench.extent
    runs = count(1)
    opening: list[float] = []

    def one(on: Scene, depth: int) -> Drain:
        run, users = f"depth{next(runs):06d}", min(extent.comers, extent.backlog // max(depth, 1))
        if depth:
            with psycopg.connect(on.dsn, autocommit=True) as conn:
                insert_stored(
                    conn,
                    run,
                    users * depth,
                    FIRST_USER,
                    days=1,
                    expire_after=86_400,
                    expire_every=0,
                    each=depth,
                )
                conn.execute("vacuum (analyze) delivery_log")
                conn.execute("checkpoint")
        drain = on.replay(on.crowds[1], run=run, first=FIRST_USER, users=users, each=depth)
        if not depth:
            opening.append(drain.cpu_each)
        return drain

    with ExitStack() as stack:
        on = bench.open(stack, "mailbox", [extent.users, 0])
        # Depth 0 tells what the openings alone cost.
        turns = {depth: lambda depth=depth: one(on, depth) for depth in (0, *extent.mailbox)}
        points, failed = bench.in_turn(turns)
    points.pop(0, None)
    notes = {"opening_cpu": round(median(opening), 1)} if opening else {}
    return Curve(
        "mailbox", "Deeper mailboxes", "kept pushes of each user who comes", "", points, failed, notes
    )


def nodes(bench: Bench) -> Curve:
    """The same sessions spread over several nodes, of which one takes; the CPU is that of all nodes."""
    extent = bench.extent

    with ExitStack() as stack:
        on: dict[int, Scene] = {}
        for n in extent.nodes:
            group = together(bench.servers, Group(n, 1), bench.directory / f"nodes{n}", sessions=extent.users)
            on[n] = stack.enter_context(group)
            on[n].drain(extent.backlog // 5)
        turns = {n: lambda one=one: of_all_nodes(one.drain(extent.backlog)) for n, one in on.items()}
        points, failed = bench.in_turn(turns)
    return Curve("nodes", "More nodes", "nodes that share the sessions", "", points, failed, {})


def of_all_nodes(drain: Drain) -> Drain:
    """The same drain, with the CPU of all nodes as that of the bridge."""
    return drain._replace(cpu={**drain.cpu, "bridge": drain.cpu["bridge"] + drain.cpu["neighbours"]})


def topic(bench: Bench) -> Curve:
    """Pushes to topics with different numbers of subscribers; as many frames and rows in each turn."""
    extent = bench.extent

    def one(on: Scene, frames: int) -> Drain:
        flood = on.everyone(max(1, frames // on.sessions))
        return Drain(
            flood.pushes, flood.seconds, flood.frames_seconds, flood.publish_seconds, flood.cpu, disordered=0
        )

    contestant = TO_TOPIC._replace(confirm=RECEIVED.confirm)
    with ExitStack() as stack:
        on: dict[int, Scene] = {}
        for n in extent.topic:
            directory = bench.directory / f"topic{n}"
            directory.mkdir(parents=True, exist_ok=True)
            on[n] = stack.enter_context(
                scene(bench.servers, contestant, directory=directory, sessions=[n], clients=CLIENTS)
            )
            one(on[n], extent.backlog // 5)
        turns = {n: lambda made=made: one(made, extent.backlog) for n, made in on.items()}
        points, failed = bench.in_turn(turns)
    title = "More subscribers of the topic"
    return Curve("topic", title, "subscribers of each topic; a push for each counts", "", points, failed, {})


CURVES: Final[Mapping[str, Callable[[Bench], Curve]]] = {
    curve.__name__: curve for curve in (sessions, devices, payload, batch, rows, mailbox, nodes, topic)
}


def measure(
    bench: Bench, names: Sequence[str], charts: Path, machine: Mapping[str, object]
) -> Iterator[Curve]:
    """Measure these curves; each is written and drawn as soon as it is measured."""
    charts.mkdir(parents=True, exist_ok=True)
    for name in names:
        curve = CURVES[name](bench)
        if curve.points:
            path = charts / f"growth-{name}.json"
            path.write_text(json.dumps(curve.facts(machine), indent=1) + "\n")
            draw_file(path)
        yield curve
