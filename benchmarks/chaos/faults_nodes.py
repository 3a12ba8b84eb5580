"""Faults of several nodes that work together: one takes the pushes, and all have sessions."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from benchmarks.chaos.bridges import Bridge, BridgeFailed
from benchmarks.chaos.broker import LONG
from benchmarks.chaos.clients import RETRY_MOST, Client, Manner
from benchmarks.chaos.evidence import Mute, Recall
from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_process import KILLING_PACE
from benchmarks.chaos.stage import QUORUM_SETTLES, Measure, Stage

MOVES = 0.25
"""Seconds between two clients that move to another node, on average."""
PROBES = 0.1
"""Seconds between two pushes to the user who stays at one node, for each node."""
ROLES_TIMEOUT = 60.0
"""Seconds in which one node must take: longer than the broker needs to find a connection dead."""

FROZEN = (6.0, 3.0, 30.0, 12.0, 8.0)
"""Seconds for which a node that stands by is stopped: for less than its lease lasts, and for more."""
FROZEN_TAKER = (6.0, 40.0, 12.0)
"""Seconds for the one that takes: the broker gives it up after 20 to 30."""
CUT_OFF = (3.0, 10.0, 25.0, 35.0)
"""Seconds for which a node is cut off; every second time its connections fall silent."""

HEALED = 10.0
"""Seconds of load after it is back, in which its sessions must be reached again."""
MOVED = 15
"""Clients that move at the same time."""
QUIET_PACE = 0.2
"""The load meanwhile: the next push to a user has the one before written, and so hides that it was missed."""
RECALLED = 5
"""Users for each time that a node is cut off for whom something is recalled meanwhile."""
ANSWERED = 20.0
"""Seconds in which a recall must be answered."""


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

    def mute(self, hit: Bridge, since: float) -> None:
        """The node could not say that it lives since then, and can again."""
        self._stage.evidence.mute.append(Mute(hit.ws_port, since, time.monotonic()))

    async def kill(self, *hit: Bridge) -> None:
        """SIGKILL to each."""
        self.measure(*hit)
        await asyncio.gather(*[bridge.kill() for bridge in hit])

    async def freeze(self, hit: Bridge, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so many seconds later; recovery counts from then."""
        self.measure(hit)
        began = time.monotonic()
        hit.signal(signal.SIGSTOP)
        try:
            await self._stage.load(seconds)
        finally:
            hit.signal(signal.SIGCONT)
        self.mute(hit, began)
        self._stage.now_healed()

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


@fault("several nodes: kill -9 of the one that takes")
async def taker_killed(stage: Stage) -> int:
    """The node that takes is killed over and over, and the other one follows; clients of both come back."""
    times = 2 * stage.scale.repeats
    stage.pace = KILLING_PACE
    followed = 0
    async with several(stage) as nodes:
        for number in range(times):
            await stage.sleep_some(0.5, 2.5)
            taker, (other,) = await nodes.roles()
            await nodes.kill(taker)
            await stage.sleep_some(*((0.0, 1.0) if number % 3 else (6.0, 9.0)))
            await nodes.start(taker)
            followed += (await nodes.roles())[0] is other
        stage.pace = 1.0
    if followed < times // 2:
        stage.evidence.troubles.append(f"only {followed} of {times} times the other node took over")
    return times


@fault("several nodes: kill -9 of both")
async def both_killed(stage: Stage) -> int:
    """All nodes are killed at the same moment, and start again one after the other or together."""
    times = 2 * stage.scale.repeats
    stage.pace = KILLING_PACE
    async with several(stage) as nodes:
        for number in range(times):
            await stage.sleep_some(0.5, 2.5)
            await nodes.kill(*nodes.all)
            await stage.sleep_some(0.0, 2.0)
            for bridge in stage.rng.sample(nodes.all, len(nodes.all)) if number % 2 else ():
                await nodes.start(bridge)
            if not number % 2:
                await nodes.start(*nodes.all)
        stage.pace = 1.0
    return times


@fault("several nodes: one that stands by is frozen")
async def holder_frozen(stage: Stage) -> int:
    """The node that has sessions and does not take is stopped by SIGSTOP for 6 to 30 s, and goes on."""
    async with several(stage) as nodes:
        for number, seconds in enumerate(FROZEN):
            _, (holder,) = await nodes.roles()
            await asyncio.gather(nodes.freeze(holder, seconds), recall_and_push(stage, number))
            await holder.ready()
            await stage.load(HEALED)
        # What a session was handed and has not proven is sent again when its user opens one.
        stage.come_back_at_last = list(stage.clients)
    return len(FROZEN)


@fault("several nodes: the one that takes is frozen")
async def taker_frozen(stage: Stage) -> int:
    """The node that takes is stopped by SIGSTOP, until the broker has given its messages to the other, and less."""
    followed = 0
    async with several(stage) as nodes:
        for seconds in FROZEN_TAKER:
            taker, (other,) = await nodes.roles()
            await nodes.freeze(taker, seconds)
            await taker.ready()
            followed += (await nodes.roles())[0] is other
            await stage.sleep_some(2, 5)
        stage.come_back_at_last = list(stage.clients)
    if not followed:
        stage.evidence.troubles.append("the other node never took over")
    return len(FROZEN_TAKER)


@fault("several nodes: one that stands by is cut off from the broker")
async def holder_without_broker(stage: Stage) -> int:
    """Connections of the standing node to the broker are reset and refused, or fall silent."""
    return await _cut_off(stage, amqp=True)


@fault("several nodes: one that stands by is cut off from Postgres")
async def holder_without_postgres(stage: Stage) -> int:
    """Connections of the standing node to Postgres are reset and refused, or fall silent."""
    return await _cut_off(stage, postgres=True)


@fault("several nodes: one that stands by is cut off from both")
async def holder_without_both(stage: Stage) -> int:
    """Connections of the standing node to broker and Postgres are reset and refused, or fall silent."""
    return await _cut_off(stage, amqp=True, postgres=True)


async def _cut_off(stage: Stage, *, amqp: bool = False, postgres: bool = False) -> int:
    """Cut off the second node, which alone goes through the proxies."""
    stage.amqp_proxied, stage.postgres_proxied = amqp, postgres
    proxies = [proxy for proxy, used in ((stage.amqp, amqp), (stage.postgres, postgres)) if used]
    async with several(stage) as nodes:
        behind = nodes.all[1]
        for number, seconds in enumerate(CUT_OFF):
            taker, _ = await nodes.roles()
            if taker is behind:
                raise BridgeFailed(f"{behind.node} was to stand by, and it takes")
            if not all(proxy.links for proxy in proxies):
                raise BridgeFailed(f"{behind.node} has no connection through the proxy")
            nodes.measure(behind)
            began = time.monotonic()
            for proxy in proxies:
                proxy.refuse = True
                if number % 2:
                    proxy.silence()
                else:
                    proxy.reset()
            await asyncio.gather(stage.load(seconds), recall_and_push(stage, number))
            for proxy in proxies:
                proxy.heal()
                if number % 2:
                    # A network that is back resets what it has no state of.
                    proxy.reset()
            if postgres:
                nodes.mute(behind, began)
            stage.now_healed()
            await behind.ready()
            await stage.load(HEALED)
        stage.come_back_at_last = list(stage.clients)
    return len(CUT_OFF)


async def recall_and_push(stage: Stage, number: int) -> None:
    """Recall what is kept under a key for users who are away; once that is answered, keep something for them under
    that key. It waits for them, whenever the node that is cut off hears of the recall."""
    makes, publisher = stage.requests[0], stage.publishers[0]
    again = [makes.to(f"recalled-{number}-{i}", ttl=LONG, key="balance") for i in range(RECALLED)]
    recalls = []
    for envelope in again:
        (request,) = envelope.requests
        recalls.append(Recall(request.tenant, user=min(request.users), collapse_key=request.collapse_key))
    publisher.also([makes.withdrawing(recall) for recall in recalls])
    deadline = time.monotonic() + ANSWERED
    while any(math.isinf(recall.replied) for recall in recalls):
        if time.monotonic() > deadline:
            stage.evidence.troubles.append(f"recalls were not answered in {ANSWERED:g} s")
            break
        await asyncio.sleep(0.05)
    publisher.also(again)


@fault("several nodes: broker restarted under three")
async def broker_restarted(stage: Stage) -> int:
    """The broker is stopped in order, or killed, and started again; any node may take then."""
    async with several(stage, 3) as nodes:
        for number in range(4):
            await nodes.roles()
            nodes.measure(*nodes.all)
            if number % 2:
                await asyncio.to_thread(stage.servers.rabbit.kill)
            else:
                await asyncio.to_thread(stage.servers.rabbit.stop)
            await stage.sleep_some(0.5, 3)
            await asyncio.to_thread(stage.servers.rabbit.start)
            stage.now_healed()
            for bridge in nodes.all:
                await bridge.ready()
            await stage.sleep_some(QUORUM_SETTLES + 1, QUORUM_SETTLES + 4)
    return 4


@fault("several nodes: sessions that resume while it is under way")
async def resumed(stage: Stage) -> int:
    """Clients move to any of three nodes and resume there, while pushes come for them that other clients prove."""
    rounds = 10 * stage.scale.repeats
    stage.evidence.complete = True
    made = 0
    stage.pace = QUIET_PACE
    async with several(stage, 3) as nodes:
        resuming = [client for client in nodes.moving if client.tab.resumes]
        for _ in range(rounds):
            chosen = stage.rng.sample(resuming, min(MOVED, len(resuming)))
            for client in chosen:
                client.drop()
            for client in chosen:
                await stage.sleep_some(0.0, 2 * RETRY_MOST / len(chosen))
                stage.publishers[0].also([stage.requests[0].to(client.user, ttl=LONG)])
            await stage.sleep_some(0.2, 0.6)
            made += len(chosen)
        stage.pace = 1.0
    return made


@fault("several nodes: kill -9 at random among four")
async def four(stage: Stage) -> int:
    """Any one, or two at the same time, of four nodes are killed at random moments, and start again a little later."""
    times = 3 * stage.scale.repeats
    stage.pace = KILLING_PACE
    async with several(stage, 4) as nodes:
        for _ in range(times):
            await stage.sleep_some(0.0, 2.0)
            hit = stage.rng.sample(nodes.all, stage.rng.choice([1, 1, 2]))
            await nodes.kill(*hit)
            await stage.sleep_some(0.0, 2.0)
            await nodes.start(*hit)
        await nodes.roles()
        stage.pace = 1.0
    return times
