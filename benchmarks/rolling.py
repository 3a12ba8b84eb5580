"""`python -m benchmarks.rolling`: four nodes restarted in turn under load, and sessions that even out when one joins.

2,000 clients reconnect as browsers do, through a load balancer that chooses a node at random among those that are
ready. Meanwhile 200 pushes a second with a ttl go to users at random, and 20 without one.

1. Each node is stopped by SIGTERM and started again, one after the other.
   With `--from COMMIT` they begin with the program of that commit, and are started again with this one: an upgrade.
2. Four nodes with a session lifetime, and a fifth that joins: the sessions at each before, and 1.25 lifetimes after.

Exit codes: 0 measured, and nobody missed a push with a ttl; 1 somebody did; 2 it could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import uvloop

from benchmarks.chaos.bridges import Bridge, BridgeFailed
from benchmarks.guard import ROOT, CannotMeasure, resolve, unpack
from benchmarks.processes import raise_file_limit
from benchmarks.roaming import Balancer, People, peak
from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.postgres import migrate
from bridge.core.errors import BridgeError
from bridge.devservers import Servers, ServersUnavailable, private_servers

DIRECTORY: Final = ROOT / ".dev" / "bench" / "rolling"
NODES: Final = 4
TTL: Final = 300
KEPT: Final = 200.0
LIVE: Final = 20.0
"""Pushes a second, with a ttl and without one."""
EVERY: Final = 0.05
"""Seconds between two batches of them."""
BACK_WITHIN: Final = 90.0
END_WITHIN: Final = 60.0
SEEN_WITHIN: Final = 10.0
"""Seconds in which all clients must be back, all pushes must have ended, and their users must have read them."""


class Chosen(NamedTuple):
    """What was asked for."""

    sessions: int
    rate: float
    lifetime: float
    before: str
    """The commit whose program the nodes run before their restart; empty for this one."""


class Load:
    """The pushes of a run."""

    def __init__(self, people: People, name: str) -> None:
        self.sent: dict[str, list[str]] = {}
        """User to ids of pushes with a ttl, in the order in which they were published."""
        self.name = name
        self.kept = self.live = 0
        self._people = people
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    async def end(self) -> None:
        """Publish no more."""
        self._ending.set()
        await self._ended.wait()

    async def run(self, url: str) -> None:
        """Publish, until `end`."""
        began = time.monotonic()
        async with Producer.connect(url) as producer:
            while not self._ending.is_set():
                seconds = time.monotonic() - began
                batch = [self._next(kept=True) for _ in range(int(seconds * KEPT) - self.kept)]
                batch += [self._next(kept=False) for _ in range(int(seconds * LIVE) - self.live)]
                await producer.publish_all(batch)
                await asyncio.sleep(EVERY)
        self._ended.set()

    async def seen(self) -> int:
        """Pushes with a ttl that their users have not seen some time after all have ended."""
        give_up = time.monotonic() + SEEN_WITHIN
        while missed := self._missed():
            if time.monotonic() >= give_up:
                break
            await asyncio.sleep(0.1)
        return missed

    def _next(self, *, kept: bool) -> PushMessage:
        user = random.choice(self._people.all).user
        self.kept, self.live = self.kept + kept, self.live + (not kept)
        push_id = f"{self.name}-{'k' if kept else 'l'}{self.kept if kept else self.live}"
        body: dict[str, object] = {"id": push_id, "to": {"user": user}, "data": {"id": push_id}}
        if kept:
            body["ttl"] = TTL
            self.sent.setdefault(user, []).append(push_id)
        return PushMessage(json.dumps(body).encode())

    def _missed(self) -> int:
        return sum(len(set(self.sent.get(person.user, ())) - set(person.seen)) for person in self._people.all)


class Outcomes(NamedTuple):
    """How the pushes of a load have ended, by the log."""

    kept: Counter[str]
    live: Counter[str]

    @property
    def lost(self) -> int:
        """Pushes with a ttl that were not delivered."""
        return sum(self.kept.values()) - self.kept["received/pong"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling", description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=2000, metavar="N", help="clients [2000]")
    parser.add_argument("--rate", type=float, default=100.0, metavar="N", help="BRIDGE_DRAIN_RATE [100]")
    parser.add_argument(
        "--lifetime", type=float, default=40.0, metavar="S", help="BRIDGE_SESSION_LIFETIME [40]"
    )
    parser.add_argument(
        "--from",
        dest="before",
        default="",
        metavar="COMMIT",
        help="upgrade from it, and leave out the second part",
    )
    asked = parser.parse_args(arguments)
    chosen = Chosen(asked.sessions, asked.rate, asked.lifetime, asked.before)
    raise_file_limit()
    try:
        with private_servers(DIRECTORY / "servers", say=lambda line: None, reuse=False) as servers:
            migrate.upgrade(servers.postgres_dsn)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                missed = runner.run(both(servers, chosen))
    except (CannotMeasure, BridgeFailed, BridgeError, ServersUnavailable, TimeoutError) as problem:
        print(f"not measured: {problem!r}", file=sys.stderr)
        return 2
    return 1 if missed else 0


async def both(servers: Servers, chosen: Chosen) -> int:
    """Both parts; returns how many pushes with a ttl were lost or missed."""
    with tempfile.TemporaryDirectory() as logs:
        tree = unpack(chosen.before, DIRECTORY / "before") if chosen.before else ROOT
        missed = await restarts(servers, Path(logs), chosen, tree)
        if chosen.before:
            return missed
        return missed + await joining(servers, Path(logs), chosen)


@asynccontextmanager
async def running(
    servers: Servers, logs: Path, names: Sequence[str], *, tree: Path = ROOT, **settings: object
) -> AsyncIterator[list[Bridge]]:
    """Bridges of these names, all ready; at first with the program in `tree`."""
    bridges = [
        Bridge(name, servers.amqp_url, servers.postgres_dsn, logs / name, confirm_timeout=5, **settings)
        for name in names
    ]
    try:
        for bridge in bridges:
            bridge.tree = tree
            await bridge.start()
        for bridge in bridges:
            await bridge.ready()
        yield bridges
    finally:
        for bridge in bridges:
            await bridge.kill()


@asynccontextmanager
async def crowded(
    servers: Servers, bridges: Sequence[Bridge], sessions: int, name: str
) -> AsyncIterator[tuple[Balancer, People, Load]]:
    """Clients at these nodes, and the load."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        balancer = Balancer(bridges)
        await balancer.look()
        looking = group.create_task(balancer.run(), name="load balancer")
        people = await stack.enter_async_context(People(sessions, balancer))
        load = Load(people, f"{name}{time.time_ns():x}")
        group.create_task(load.run(servers.amqp_url), name="load")
        yield balancer, people, load
        looking.cancel()


# --- 1. ----------------------------------------------------------------------------------------------------


async def restarts(servers: Servers, logs: Path, chosen: Chosen, tree: Path) -> int:
    """Restart each node, which has run the program in `tree`; prints a line for each."""
    if chosen.before:
        print(f"upgrade from {resolve(chosen.before)[:12]}")
    names = [f"node-{number + 1}" for number in range(NODES)]
    print(f"{chosen.sessions} sessions, {NODES} nodes, BRIDGE_DRAIN_RATE={chosen.rate:g}")
    print("| node | sessions moved | stopped after, s | all back after, s | most reconnects in a second |")
    print("|---|---:|---:|---:|---:|")
    async with running(servers, logs, names, tree=tree, drain_rate=chosen.rate, drain_timeout=30) as bridges:
        async with crowded(servers, bridges, chosen.sessions, "r") as (_, people, load):
            for bridge in bridges:
                await asyncio.sleep(2.0)
                print(await restarted(bridge, people), flush=True)
            return await told(servers, load)


async def restarted(bridge: Bridge, people: People) -> str:
    """Stop a node, wait until all its clients are elsewhere, start it again."""
    people.returns.clear()
    moved, began = people.by_node()[bridge.node], time.monotonic()
    code = await bridge.stop()
    if code:
        raise BridgeFailed(f"{bridge.node} exited with {code}")
    stopped = time.monotonic() - began
    await people.everybody_here(BACK_WITHIN)
    back = time.monotonic() - began
    most = peak(people.returns)
    bridge.tree = ROOT
    await bridge.start()
    await bridge.ready()
    return f"| {bridge.node} | {moved} | {stopped:.1f} | {back:.1f} | {most} |"


async def told(servers: Servers, load: Load) -> int:
    """Print how the pushes have ended; returns how many with a ttl were lost or missed."""
    await load.end()
    outcomes = await ended(servers.postgres_dsn, load.name, load.kept + load.live)
    missed = await load.seen()
    print(
        f"{load.kept} pushes with a ttl: {outcomes.lost} lost, {missed} missed; of {load.live} without one "
        f"{outcomes.live['offline/no_session']} offline, {_others(outcomes.live)} lost otherwise"
    )
    return outcomes.lost + missed


def _others(live: Counter[str]) -> int:
    return sum(live.values()) - live["received/pong"] - live["offline/no_session"]


async def ended(dsn: str, name: str, pushes: int) -> Outcomes:
    """Wait until at least so many pushes of this load have a final row, and count those."""
    async with (
        asyncio.timeout(END_WITHIN),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        while True:
            found = await conn.execute(
                "select push_id like %s, outcome || '/' || reason, count(*), bool_and(final) from delivery_log"
                " where push_id like %s group by 1, 2",
                (f"{name}-k%", f"{name}-%"),
            )
            rows = await found.fetchall()
            if sum(row[2] for row in rows if row[3]) >= pushes and all(row[3] for row in rows):
                break
            await asyncio.sleep(0.2)
    kept, live = (
        Counter({how: n for is_kept, how, n, _ in rows if is_kept is which}) for which in (True, False)
    )
    return Outcomes(kept, live)


# --- 2. ----------------------------------------------------------------------------------------------------


async def joining(servers: Servers, logs: Path, chosen: Chosen) -> int:
    """A fifth node joins; prints the sessions at each before and after."""
    names = [f"even-{number + 1}" for number in range(NODES)]
    print(f"\n{chosen.sessions} sessions, BRIDGE_SESSION_LIFETIME={chosen.lifetime:g}, and a node that joins")
    settings: dict[str, Any] = {
        "session_lifetime": chosen.lifetime,
        "drain_rate": chosen.rate,
        "drain_timeout": 30,
    }
    async with running(servers, logs, names, **settings) as bridges:
        async with crowded(servers, bridges, chosen.sessions, "j") as (balancer, people, load):
            async with running(servers, logs, [f"even-{NODES + 1}"], **settings) as joined:
                before = people.by_node() | {joined[0].node: 0}
                people.returns.clear()
                balancer.bridges += joined
                await asyncio.sleep(1.25 * chosen.lifetime)
                after = people.by_node()
                most = peak(people.returns)
                print("| | " + " | ".join(after) + " |\n|---|" + "---:|" * len(after))
                for title, counts in (("before", before), ("1.25 lifetimes after", after)):
                    print(f"| {title} | " + " | ".join(str(counts[node]) for node in after) + " |")
                print(f"most reconnects in a second: {most}")
                return await told(servers, load)


if __name__ == "__main__":
    sys.exit(main())
