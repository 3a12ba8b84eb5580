"""What a number of sessions and pushes a second takes: the simulation, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.scale import costs
from benchmarks.scale.connections import broker_connections, database_connections
from benchmarks.scale.costs import Cost
from benchmarks.scale.simulation import (
    Counted,
    Delays,
    Simulation,
    Work,
    drain,
    random_pushes,
    takeover_rings,
)
from bridge.core.bounds import Bounds

SIMULATED: Final = 20_000
"""Pushes of a simulation, at least,"""
CYCLES: Final = 5
"""and it is as long as so many letters take."""
SLOWER: Final = 1.5
"""If the nodes have too little CPU, a letter takes so many times longer in the next try: it has more in it then,"""
SLOWEST: Final = 0.1
"""up to so many seconds."""
DAY: Final = 86_400
ID_BITS: Final = 16
"""Bits of memory for each id of a day: then one new id in a hundred is looked up in the log."""
GENERATIONS: Final = 2
"""Days for which there is such memory."""
GIB: Final = 1024**3


class Wanted(NamedTuple):
    """What is asked for."""

    sessions: int
    devices: int
    """Sessions of a user."""
    rate: float
    """Pushes a second."""
    nodes: int
    partitions: int
    busy: float
    """The share of a core that a node may use."""
    pong: float
    """Seconds from a frame to the answer of its client."""
    life: float
    """Seconds for which a session is open on average."""
    drain_rate: float
    drain_timeout: float
    """As the settings."""


class Found(NamedTuple):
    """How it goes with so many nodes."""

    wanted: Wanted
    counted: Counted
    seconds: float
    """For which pushes came in the simulation."""
    wait: float
    """Seconds for which a letter or a look-up takes, so that the nodes have the CPU for all of them."""

    def rate(self, count: float) -> float:
        """A second."""
        return count / self.seconds

    @property
    def handshakes(self) -> float:
        """A second, over all nodes, where sessions come and go as ever."""
        return self.wanted.sessions / self.wanted.life

    def cores(self, cost: Cost) -> float:
        """Cores of broker or Postgres for pushes and letters."""
        counted = self.counted
        used = (
            counted.rows * cost.push
            + counted.forwards * cost.forward
            + counted.letters * cost.letter
            + counted.statements * cost.batch
        )
        return self.rate(used) / 1e6

    def core(self, work: Work) -> float:
        """The share of a core that a node with this work uses."""
        used = (
            work.taken * (costs.NODES.push - costs.FRAME)
            + work.frames * costs.FRAME
            # Each has two ends.
            + work.forwards * costs.NODES.forward / 2
            + work.letters * costs.NODES.letter / 2
            + work.statements * costs.NODES.batch
        )
        each = self.wanted.nodes
        idle = self.wanted.sessions / each * costs.SESSION_CPU
        return self.rate(used) / 1e6 + idle + self.handshakes / each * costs.HANDSHAKE / 1e6

    @property
    def node_cores(self) -> list[float]:
        """The share of a core that each node uses."""
        return [self.core(self.counted.work[node]) for node in range(self.wanted.nodes)]

    @property
    def enough(self) -> bool:
        """Whether the nodes can do it."""
        return max(self.node_cores) <= self.wanted.busy


def found(wanted: Wanted) -> Found:
    """Simulate with delays that grow until the nodes have the CPU for it, or as slow as may be."""
    wait = costs.LETTER
    while True:
        seconds = max(SIMULATED / wanted.rate, CYCLES * wait)
        pushes = random_pushes(
            nodes=wanted.nodes,
            partitions=wanted.partitions,
            users=wanted.sessions // wanted.devices,
            devices=wanted.devices,
            rate=wanted.rate,
            seconds=seconds,
        )
        slower = wait / costs.LETTER
        delays = Delays(costs.LOOK_UP * slower, wait, costs.WRITE, wanted.pong)
        made = Found(wanted, Simulation(wanted.nodes, delays).run(pushes), seconds, wait)
        if made.enough or wait * SLOWER > SLOWEST:
            return made
        wait *= SLOWER


class Line(NamedTuple):
    """A figure."""

    what: str
    value: str


def lines(one: Found) -> Iterator[Line]:
    """All figures."""
    wanted, counted = one.wanted, one.counted
    each = wanted.sessions / wanted.nodes
    takers = [work for work in counted.work.values() if work.taken]
    yield Line("nodes that take", f"{len(takers)} of {wanted.nodes}")
    yield Line("sessions of a node", f"{each:,.0f}")
    yield from _messages(one)
    yield from _machines(one)
    yield from _sessions(one)


def _messages(one: Found) -> Iterator[Line]:
    counted, rate = one.counted, one.rate
    most = max(work.taken for work in counted.work.values())
    yield Line("pushes/s that the busiest takes", f"{rate(most):,.0f}")
    yield Line("other nodes that a push is forwarded to", f"{counted.forwards / counted.rows:.2f}")
    yield Line("look-ups of holders/s", _batches(rate(counted.look_ups), counted.asked, counted.look_ups))
    yield Line("letters/s", _batches(rate(counted.letters), counted.items, counted.letters))
    yield Line(
        "statements that write rows/s", _batches(rate(counted.statements), counted.rows, counted.statements)
    )
    # A request in and out, its outcome, each letter in and out.
    messages = 3 * rate(counted.rows) + 2 * rate(counted.letters)
    yield Line("messages/s through the broker", f"{messages:,.0f}")
    yield Line(
        "wait for a letter",
        f"{one.wait * 1e3:,.1f} ms" + ("" if one.enough else ", too little CPU"),
    )


def _batches(per_second: float, inside: float, batches: float) -> str:
    return f"{per_second:,.0f}, of {inside / batches:,.1f}" if batches else "0"


def _machines(one: Found) -> Iterator[Line]:
    wanted = one.wanted
    each = wanted.sessions / wanted.nodes
    cores = one.node_cores
    yield Line("cores of all nodes", f"{sum(cores):,.1f}")
    yield Line("core of the busiest node", f"{max(cores):.2f}")
    yield Line("cores of the broker", f"{one.cores(costs.BROKER):,.1f}")
    yield Line("cores of Postgres, on one machine", f"{one.cores(costs.POSTGRES):,.1f}")
    yield Line("memory of a node", f"{(costs.NODE_BYTES + each * costs.SESSION_BYTES) / GIB:.2f} GiB")
    ids = wanted.rate * DAY
    yield Line("rows a day", f"{ids:,.0f}")
    yield Line("pages of ids that a new taker reads", f"{ids / Bounds().taking.ids_rows:,.0f}")
    memory = GENERATIONS * ids * ID_BITS / 8 / GIB
    yield Line(f"BRIDGE_ID_MEMORY_BYTES, {ID_BITS} bits an id", f"{memory:,.1f} GiB")
    yield Line("delivery log a day", f"{wanted.rate * DAY * costs.LOG_BYTES / GIB:,.0f} GiB")
    yield Line("write-ahead log", f"{wanted.rate * costs.WAL_BYTES / 1e6:,.1f} MB/s")
    yield Line("connections to the broker", f"{broker_connections(wanted.nodes, wanted.partitions):,}")
    yield Line("connections to Postgres, at most", f"{database_connections(wanted.nodes):,}")
    yield Line("open files of a node, for sessions", f"{each:,.0f}")


def _sessions(one: Found) -> Iterator[Line]:
    wanted = one.wanted
    each = wanted.sessions // wanted.nodes
    yield Line("ledger: opens and closes/s", f"{2 * one.handshakes:,.0f}")
    stop = drain(each, wanted.drain_rate, wanted.drain_timeout)
    yield Line(
        "a stop",
        f"{stop.in_turn:,} closed in turn, {stop.at_once:,} at once, back in {stop.last_back:,.0f} s",
    )
    yield Line("ledger meanwhile: opens and closes/s more", f"{2 * (wanted.drain_rate or each):,.0f}")
    # All that the others have left of their cores.
    room = sum(max(0.0, 1.0 - core) for core in sorted(one.node_cores)[:-1])
    back = f"{each * costs.HANDSHAKE / 1e6 / room:,.0f} s" if room else "nobody has room for them"
    yield Line("a node dies: its clients are in again after", back)
    looks = wanted.sessions / Bounds().mailbox.read_sessions
    rings = takeover_rings(wanted.nodes, 1)
    yield Line("a partition changes hands", f"{rings:,} rings, {looks:,.0f} looks into mailboxes")


def table(all_found: list[Found]) -> str:
    """A column for each."""
    columns = [list(lines(one)) for one in all_found]
    heads = [f"{one.wanted.nodes} nodes, {one.wanted.partitions} partitions" for one in all_found]
    rows = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for cells in zip(*columns, strict=True):
        rows.append(f"| {cells[0].what} | " + " | ".join(cell.value for cell in cells) + " |")
    return "\n".join(rows)
