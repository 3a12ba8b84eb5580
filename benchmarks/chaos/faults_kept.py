"""Faults of kept pushes: everyone absent and back, mailboxes that are full, and a kill in the middle of a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.chaos.broker import LONG
from benchmarks.chaos.clients import Client
from benchmarks.chaos.evidence import Recall
from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_process import killed_at
from benchmarks.chaos.stage import Stage

PARKED = 300
"""Pushes that wait for each user: more than one page of a mailbox."""
BOUND = 40
"""Pushes that a mailbox holds in the run that fills it."""


REPLAY_POINTS = (
    ("before a page of a mailbox", 4),
    ("after a page of a mailbox", 4),
    ("after a resume is found", 2),
    ("after send", 60),
)
"""Where to die in a replay, and the highest number of passes before it: one page is read for many sessions."""


async def _park(stage: Stage, users: Sequence[str], count: int) -> None:
    """Keep this many pushes for each of these users."""
    makes = stage.requests[0]
    await stage.publish_now([makes.to(*users, ttl=LONG) for _ in range(count)])


def _clients_of(stage: Stage, users: Sequence[str]) -> list[Client]:
    return [c for c in stage.clients if c.user in users]


@fault("everyone away, and back at once", short=True)
async def all_away(stage: Stage) -> int:
    """All clients disconnect for some seconds, while publishers continue, and reconnect at the same moment."""
    times = 1 if stage.scale.repeats == 1 else 3
    for _ in range(times):
        for client in stage.clients:
            client.go_away()
        await stage.load(1.5 if stage.scale.repeats == 1 else 5)
        for client in stage.clients:
            client.come_back()
        stage.now_healed()
        await stage.sleep_some(1.0, 3.0)
    return times


@fault("users who arrive while it is stored")
async def arriving(stage: Stage) -> int:
    """Pushes are kept for users at the moments in which their clients disconnect and connect."""
    users = [f"u{i}" for i in range(20)]
    clients = _clients_of(stage, users)
    times = 40 * stage.scale.repeats
    for _ in range(times):
        chosen = stage.rng.sample(clients, 5)
        for client in chosen:
            client.drop()
        stage.publishers[0].also([stage.requests[0].to(c.user, ttl=LONG) for c in chosen for _ in range(3)])
        await stage.sleep_some(0.0, 0.15)
    stage.now_healed()
    return times


@fault("a full mailbox", settings={"mailbox_pushes": BOUND})
async def full_mailbox(stage: Stage) -> int:
    """Absent users are sent more than their mailboxes hold."""
    stage.evidence.mailbox = BOUND
    users = ["never1", "never2", *(f"u{i}" for i in range(10))]
    clients = _clients_of(stage, users)
    for client in clients:
        client.go_away()
    await _park(stage, users, BOUND * 4)
    await stage.load(3)
    for client in clients:
        client.come_back()
    stage.now_healed()
    return len(users)


@fault("kill -9 in the middle of a replay")
async def in_replay(stage: Stage) -> int:
    """Hundreds of pushes wait for users who connect at once, and the bridge dies while it sends them."""
    users = [f"u{i}" for i in range(20)]
    clients = _clients_of(stage, users)
    times = 0
    for point, most in REPLAY_POINTS:
        for client in clients:
            client.go_away()
        await _park(stage, users, PARKED)
        await stage.bridge.kill()
        await stage.bridge.start(point=point, count=stage.rng.randint(1, most))
        for client in clients:
            client.come_back()
        times += await stage.dies()
        await stage.starts_again()
    return times


@fault("kill -9 when kept pushes end")
async def at_their_ends(stage: Stage) -> int:
    """Die before and after the database ends pushes that expired, were superseded, or were recalled."""
    points = (
        "before others are superseded",
        "after others are superseded",
        "after an expiry",
        "before a recall",
        "after a recall",
    )
    feeding = asyncio.create_task(_ending(stage), name="ends of kept pushes")
    try:
        return await killed_at(stage, points, most=4)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _ending(stage: Stage) -> None:
    """Pushes for a user who never connects, that expire, replace each other, and are recalled, all the time."""
    makes, publisher = stage.requests[0], stage.publishers[0]
    while True:
        recalled = makes.to("never1", ttl=LONG)
        publisher.also([recalled, makes.to("never1", ttl=LONG, key="k"), makes.to("never1", ttl=0.5)])
        await asyncio.sleep(0.3)
        (request,) = recalled.requests
        publisher.also([makes.withdrawing(Recall(request.tenant, push_id=request.push_id))])


@fault("kill -9 when a full mailbox is cut", settings={"mailbox_pushes": BOUND})
async def at_the_cut(stage: Stage) -> int:
    """Die when the database has ended the oldest pushes of a mailbox, before any receipt of it is sent."""
    stage.evidence.mailbox = BOUND
    feeding = asyncio.create_task(_overfill(stage), name="overfill")
    try:
        return await killed_at(stage, ["after a full mailbox is cut"], most=3)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _overfill(stage: Stage) -> None:
    """More pushes, all the time, for a user who never connects."""
    while True:
        stage.publishers[0].also([stage.requests[0].to("never1", ttl=LONG) for _ in range(BOUND)])
        await asyncio.sleep(1.0)
