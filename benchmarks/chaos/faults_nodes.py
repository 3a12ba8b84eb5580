"""Faults of several nodes that work together: one takes the pushes, and all have sessions."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.chaos.bridges import Bridge, BridgeFailed
from benchmarks.chaos.clients import Client, Manner
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Measure, Stage

MOVES = 0.25
"""Seconds between two clients that move to another node, on average."""
PROBES = 0.1
"""Seconds between two pushes to the user who stays at one node, for each node."""
ROLES_TIMEOUT = 60.0
"""Seconds in which one node must take: longer than the broker needs to find a connection dead."""


class Nodes:
    """The bridges of a run, and which of them takes."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._settled: dict[str, str] = {}
        """Node to a user with one client, which is always there."""
        self.moving: list[Client] = []

    @property
    def all(self) -> Sequence[Bridge]:
        """All of them, alive or not."""
        return self._stage.bridges

    async def populate(self) -> None:
        """A third of the clients moves between nodes, the others stay at one each; users get a client elsewhere."""
        stage, bridges = self._stage, self.all
        rng = random.Random(stage.rng.random())
        for i, client in enumerate(list(stage.clients)):
            if i % 3:
                client.move(_port(bridges[i % len(bridges)]))
            else:
                client.move(self._any_port(rng))
                self.moving.append(client)
        added = []
        for i in range(0, stage.scale.users, 3):
            manner = rng.choice([Manner.READS, Manner.ACKS])
            added.append(stage.new_client(f"u{i}", manner, _port(rng.choice(bridges))))
        for bridge in bridges:
            user = self._settled[bridge.node] = f"settled-{bridge.node}"
            added.append(stage.new_client(user, Manner.READS, _port(bridge)))
        for client in added:
            client.start()
        await stage.connected(added)

    def _any_port(self, rng: random.Random) -> Callable[[], int]:
        """As a load balancer: any node that runs."""

        def port() -> int:
            return rng.choice([b for b in self.all if b.alive] or self.all).ws_port

        return port

    async def move(self) -> None:
        """Let clients move, one after the other, until cancelled."""
        rng = random.Random(self._stage.rng.random())
        while True:
            await asyncio.sleep(rng.expovariate(1 / MOVES))
            rng.choice(self.moving).drop()

    async def probe(self) -> None:
        """Push to the settled users, until cancelled."""
        makes, publisher = self._stage.requests[0], self._stage.publishers[0]
        while True:
            publisher.also([makes.to(user) for user in self._settled.values()])
            await asyncio.sleep(PROBES)

    async def roles(self) -> tuple[Bridge, list[Bridge]]:
        """The node that takes, and those that stand by. Raises BridgeFailed if it is not exactly one."""
        deadline = time.monotonic() + ROLES_TIMEOUT
        while True:
            active = [await bridge.metric("bridge_active") for bridge in self.all]
            if active.count(1.0) == 1:
                taker = self.all[active.index(1.0)]
                return taker, [b for b in self.all if b is not taker]
            if time.monotonic() > deadline:
                raise BridgeFailed(f"not one node takes: {active}")
            await asyncio.sleep(0.1)

    def measure(self, *hit: Bridge) -> None:
        """Measure from now on when the users of these nodes, and those of the others, have a proof again."""
        now = time.monotonic()
        for node, user in self._settled.items():
            where = "at the same node" if node in [b.node for b in hit] else "at another node"
            self._stage.measures.append(Measure(f"first proof {where}", now, user))

    async def kill(self, *hit: Bridge) -> None:
        """SIGKILL to each."""
        self.measure(*hit)
        await asyncio.gather(*[bridge.kill() for bridge in hit])

    async def start(self, *hit: Bridge) -> None:
        """Start each again, and wait until all are ready; recovery counts from now."""
        for bridge in hit:
            await bridge.start()
        self._stage.now_healed()
        for bridge in hit:
            await bridge.ready()


def _port(bridge: Bridge) -> Callable[[], int]:
    return lambda: bridge.ws_port


@asynccontextmanager
async def several(stage: Stage, count: int = 2) -> AsyncIterator[Nodes]:
    """So many nodes, with clients at all of them, some of which move."""
    # A push that was stored while its user was away may come after a newer one where a session opens in that moment.
    stage.evidence.ordered = False
    stage.evidence.found = True
    nodes = Nodes(stage)
    for number in range(len(stage.bridges) + 1, count + 1):
        await stage.start_bridge(f"n{number}")
    await nodes.populate()
    tasks = [
        asyncio.create_task(nodes.move(), name="clients that move"),
        asyncio.create_task(nodes.probe(), name="pushes to settled users"),
    ]
    try:
        await stage.load(1)
        yield nodes
        await stage.load(2)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@fault("several nodes: kill -9 of one that stands by")
async def holder_killed(stage: Stage) -> int:
    """The node that has sessions and does not take is killed over and over, for a moment or until its lease is over."""
    times = 2 * stage.scale.repeats
    async with several(stage) as nodes:
        for number in range(times):
            await stage.sleep_some(0.5, 2.5)
            _, (holder,) = await nodes.roles()
            await nodes.kill(holder)
            await stage.sleep_some(*((0.0, 1.0) if number % 3 else (6.0, 9.0)))
            await nodes.start(holder)
    return times
