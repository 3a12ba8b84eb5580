"""The simulation of benchmarks/scale counts what real nodes do, as their metrics have it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import psycopg

from benchmarks.scale.connections import broker_connections, database_connections
from benchmarks.scale.simulation import (
    REPORTS,
    Counted,
    Delays,
    Push,
    Simulation,
    names,
    takeover_rings,
)
from bridge.app.build import Running
from bridge.core.cluster.sharing import plan_of
from bridge.devservers import Servers
from tests.support.bridges import bridge, endings, final_rows, publish, request, token
from tests.support.clients import client
from tests.support.metrics_page import samples
from tests.support.queues import ENVELOPE
from tests.support.waiting import until

PARTITIONS = 4
NODES = names(3)
PLACES: dict[str, list[int]] = {
    **{f"u{n}": [n % 3] for n in range(9)},
    **{f"two-{n}": [n, (n + 1) % 3] for n in range(3)},
    "all": [0, 1, 2],
    "twice": [1, 1],
}
"""At which nodes each user has sessions."""
WARM_UP = 60
SLOW = Delays(look_up=0.01, letter=0.01, write=0.01, pong=0.1)


class Seen(NamedTuple):
    """What the metrics of all nodes add up to."""

    look_ups: int
    asked: int
    letters: int
    items: int
    frames: int
    statements: int
    rows: int
    receipts: int
    parked: int
    """Rows that were written before there was a proof, since it took a second; each is written twice."""


async def seen(nodes: Sequence[Running]) -> Seen:
    totals: Counter[tuple[str, ...]] = Counter()
    for node in nodes:
        page = node._node.core.router._metrics.page().decode()  # type: ignore[attr-defined]
        totals.update({key: int(value) for key, value in samples(page).items()})
    keys = {
        "look_ups": ("bridge_holders_asked_pushes_count",),
        "asked": ("bridge_holders_asked_pushes_sum",),
        "letters": ("bridge_letter_items_count",),
        "items": ("bridge_letter_items_sum",),
        "frames": ("bridge_handed_frames_total",),
        "statements": ("bridge_record_rows_count",),
        "rows": ("bridge_record_rows_sum",),
        "receipts": ("bridge_receipts_total", "sent"),
    }
    parked = sum(count for key, count in totals.items() if key[:2] == ("bridge_outcomes_total", "pending"))
    return Seen(parked=parked, **{name: totals[key] for name, key in keys.items()})


@asynccontextmanager
async def town(vhost: str, database: str) -> AsyncIterator[list[Running]]:
    """Three nodes that take, and clients at the places of their users, who read all they get."""
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(bridge(vhost, database, node=name, partitions=PARTITIONS))
            for name in NODES
        ]
        plan = plan_of(PARTITIONS, NODES)
        shares = [[k for k, owner in enumerate(plan.owners) if owner == name] for name in NODES]
        await until(lambda: [sorted(node._consumer.taken) for node in made] == shares, 20)
        for user, places in PLACES.items():
            for place in places:
                c = await stack.enter_async_context(
                    client(made[place].ws_port, token(user), subprotocols=ENVELOPE)
                )
                assert json.loads(await c.read())["type"] == "welcome"
        # Nobody has these users, and each partition gets some of their pushes.
        await publish(vhost, *(request(f"w{n}", f"w{n}") for n in range(WARM_UP)))
        await final_rows(database, WARM_UP)
        rings = (await settled(made, WARM_UP)).items
        # Fewer where a node begins to take from two partitions at the same moment.
        assert takeover_rings(len(made), len(made)) <= rings <= takeover_rings(len(made), PARTITIONS)
        yield made


async def taken(database: str, count: int) -> dict[str, int]:
    """The node that took each push, once all have ended."""
    found = [row for row in await final_rows(database, WARM_UP + count) if row["user_id"] in PLACES]
    assert set(endings(found).values()) == {("received", "pong")}
    return {row["push_id"]: NODES.index(row["node"]) for row in found}


async def since(before: Seen, nodes: Sequence[Running], receipts: int) -> Seen:
    """What was counted since then, once so many receipts are sent and nothing is under way."""
    now = await settled(nodes, before.receipts + receipts)
    return Seen(*(n - b for n, b in zip(now, before, strict=True)))


async def settled(nodes: Sequence[Running], receipts: int) -> Seen:
    """What was counted, once so many receipts are sent and nothing is under way."""
    async with asyncio.timeout(10):
        while (now := await seen(nodes)).receipts < receipts or any(
            node._node.core.cluster.post.waiting or len(node._node.core.cluster.forwards) for node in nodes
        ):
            await asyncio.sleep(0.02)
    return now


def simulated(pushes: Sequence[tuple[str, str]], by: dict[str, int], apart: float) -> Counted:
    """The same pushes (id, user), so many seconds apart, each taken by the node that took it."""
    return Simulation(len(NODES), SLOW).run(
        Push(n, n * apart, by[name], PLACES[user]) for n, (name, user) in enumerate(pushes)
    )


async def test_pushes_one_by_one_take_as_many_look_ups_letters_and_statements_as_are_simulated(
    vhost: str, database: str
) -> None:
    async with town(vhost, database) as nodes:
        pushes = [(f"p-{user}", user) for user in PLACES]
        before = await seen(nodes)
        for number, (name, user) in enumerate(pushes, 1):
            await publish(vhost, request(user, name))
            await since(before, nodes, number)
        by = await taken(database, len(pushes))
        real, model = await since(before, nodes, len(pushes)), simulated(pushes, by, apart=1.0)
        assert len(set(by.values())) > 1, "several take"
        assert (real.look_ups, real.asked) == (model.look_ups, model.asked)
        assert real.items == model.items == model.forwards * (1 + REPORTS)
        assert real.frames == model.frames
        assert (real.statements - real.parked, real.rows - real.parked) == (model.statements, model.rows)
        assert real.receipts == model.rows
        # The report that a session has it and the report of its proof are one letter where the pong is quick.
        assert model.letters == model.items
        assert 2 * model.forwards <= real.letters <= model.letters


async def test_pushes_that_come_together_share_look_ups_letters_and_statements(
    vhost: str, database: str
) -> None:
    async with town(vhost, database) as nodes:
        pushes = [(f"{user}-{n}", user) for n, user in itertools.product(range(20), PLACES)]
        before = await seen(nodes)
        await publish(vhost, *(request(user, name) for name, user in pushes))
        by = await taken(database, len(pushes))
        real = await since(before, nodes, len(pushes))
        together, apart = simulated(pushes, by, apart=0.0), simulated(pushes, by, apart=1.0)
        # What does not depend on the time is the same.
        for model in (together, apart):
            assert (real.asked, real.items, real.frames) == (model.asked, model.items, model.frames)
            assert real.rows - real.parked == model.rows == real.receipts
        # What does lies between one for each node, or each pair of nodes, that has to do with it, and one by one.
        pairs = {(by[name], holder) for name, user in pushes for holder in PLACES[user] if holder != by[name]}
        both_ways = len(pairs | {(holder, taker) for taker, holder in pairs})
        takers = len(set(by.values()))
        for name, fewest in (("look_ups", takers), ("letters", both_ways), ("statements", takers)):
            for one in (real, together):
                assert fewest <= getattr(one, name) <= getattr(apart, name), name


async def test_nodes_have_as_many_connections_as_are_counted(
    servers: Servers, vhost: str, database: str
) -> None:
    async with town(vhost, database) as nodes:
        name = vhost.rpartition("/")[2]
        told = servers.rabbit.evaluate(
            f'length([C || C <- rabbit_networking:connections(), [{{vhost, <<"{name}">>}}] =:='
            " rabbit_networking:connection_info(C, [vhost])])."
        )
        assert int(told) == broker_connections(len(nodes), PARTITIONS)
        async with await psycopg.AsyncConnection.connect(database) as conn:
            found = await conn.execute(
                "select count(*) from pg_stat_activity where datname = current_database()"
                " and pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
            row = await found.fetchone()
        assert row is not None
        # Those for rows, mailboxes and people are opened as they are needed.
        assert row[0] <= database_connections(len(nodes))
