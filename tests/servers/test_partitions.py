"""Several partitions of the requests: several nodes take at once, and hand over to one another."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack

import aiohttp
import pytest

from bridge import __version__
from bridge.adapters.amqp import spread_check
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.producer import NotTaken
from bridge.adapters.amqp.spread import PLUGIN, SPREAD, Spread, exchange_is_there
from bridge.adapters.amqp.topology import REQUESTS, DeclareMode, TopologyError, requests_queue
from bridge.app.build import Running
from bridge.cli.nodes import show_nodes
from bridge.core.errors import SettingsError
from bridge.core.model.pushes import Recall
from tests.support.bridges import (
    bridge,
    endings,
    final_rows,
    process,
    publish,
    request,
    settings,
    token,
)
from tests.support.clients import Client, client
from tests.support.queries import asked
from tests.support.queues import ENVELOPE
from tests.support.waiting import until

PARTITIONS = 4
USERS = [f"u{n}" for n in range(12)]


def taken(*nodes: Running) -> list[list[int]]:
    return [list(node._consumer.taken) for node in nodes]


async def shared(*nodes: Running) -> None:
    """Wait until all partitions are taken, evenly."""

    def even() -> bool:
        shares = taken(*nodes)
        return sorted(itertools.chain(*shares)) == list(range(PARTITIONS)) and all(
            len(share) == PARTITIONS // len(nodes) for share in shares
        )

    await until(even, 20)


async def crowd(stack: AsyncExitStack, port: int, users: Sequence[str] = USERS) -> dict[str, Client]:
    found = {}
    for user in users:
        c = await stack.enter_async_context(client(port, token(user), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        found[user] = c
    return found


async def in_order(c: Client, count: int) -> None:
    """This client gets so many pushes, numbered from 0 on, each at least once and the first time in order."""
    seen: list[int] = []
    while len(seen) < count:
        frame = json.loads(await c.read())
        if frame["type"] == "push" and frame["data"] not in seen:
            seen.append(frame["data"])
    assert seen == list(range(count))


def numbered(user: str, number: int, **more: object) -> dict[str, object]:
    return {**request(user, f"{user}-{number}", ttl=300, **more), "data": number}


async def test_all_nodes_take_and_every_user_gets_their_pushes_in_order(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(bridge(vhost, database, node=name, partitions=PARTITIONS))
            for name in "ab"
        ]
        await shared(a, b)
        at_a, at_b = await crowd(stack, a.ws_port), await crowd(stack, b.ws_port, USERS[:3])
        for number in range(10):
            await publish(vhost, *(numbered(user, number) for user in USERS))
        await asyncio.gather(*(in_order(c, 10) for c in (*at_a.values(), *at_b.values())))
        found = await final_rows(database, 10 * len(USERS))
        assert set(endings(found).values()) == {("received", "pong")}
        takers = {user: {row["node"] for row in found if row["user_id"] == user} for user in USERS}
        assert all(len(nodes) == 1 for nodes in takers.values()), "a user is one partition's"
        assert set.union(*takers.values()) == {"a", "b"}


async def test_what_another_node_recalls_in_the_moment_of_its_proof_loses_its_data(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(bridge(vhost, database, node=name, partitions=PARTITIONS))
            for name in "ab"
        ]
        await shared(a, b)
        clients = await crowd(stack, a.ws_port)

        async def frame_of(user: str, kind: str, number: int) -> None:
            """Others may come again meanwhile."""
            wanted = (kind, f"{user}-{number}")
            while (frame := json.loads(await clients[user].read())) and (
                frame["type"],
                frame["id"],
            ) != wanted:
                pass

        async def read_and_recall(user: str, number: int) -> None:
            await frame_of(user, "push", number)
            await b._node.core.recalls.recall(Recall(push_id=f"{user}-{number}"))
            await frame_of(user, "withdraw", number)

        for number in range(5):
            await publish(vhost, *(numbered(user, number) for user in USERS))
            await asyncio.gather(*(read_and_recall(user, number) for user in USERS))
        found = await final_rows(database, 5 * len(USERS))
        assert {row["outcome"] for row in found} <= {"received", "recalled"}
        left = "select count(*) from delivery_log where outcome = 'received' and coalesce(payload, content) is not null"
        async with asyncio.timeout(10):
            while await asked(database, left) != [(0,)]:
                await asyncio.sleep(0.02)


async def test_who_joins_and_leaves_gets_and_gives_partitions_and_every_order_is_kept(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(bridge(vhost, database, node="a", partitions=PARTITIONS))
        await shared(a)
        clients = await crowd(stack, a.ws_port)
        published = 0

        async def keep_publishing(stop: asyncio.Event) -> None:
            nonlocal published
            while not stop.is_set():
                await publish(vhost, *(numbered(user, published) for user in USERS))
                published += 1

        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_publishing(stop), name="publisher")
            async with bridge(vhost, database, node="b", partitions=PARTITIONS) as b:
                await shared(a, b)
                before = published
                await until(lambda: published > before + 5)
            await shared(a)
            stop.set()
        await asyncio.gather(*(in_order(c, published) for c in clients.values()))
        found = await final_rows(database, published * len(USERS))
        assert set(endings(found).values()) == {("received", "pong")}
        assert {row["node"] for row in found} == {"a", "b"}


async def test_the_partitions_of_a_node_that_is_killed_are_taken_by_the_others(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(bridge(vhost, database, node="a", partitions=PARTITIONS))
        async with process(vhost, database, node="b", partitions=PARTITIONS) as b:
            await until(lambda: len(taken(a)[0]) == PARTITIONS // 2, 20)
            clients = await crowd(stack, a.ws_port)
            await publish(vhost, *(numbered(user, 0) for user in USERS))
            await b.kill()
            await publish(vhost, *(numbered(user, 1) for user in USERS))
            await asyncio.gather(*(in_order(c, 2) for c in clients.values()))
        await shared(a)
        found = await final_rows(database, 2 * len(USERS))
        assert {ending[0] for ending in endings(found).values()} == {"received"}


async def test_requests_with_another_key_than_their_users_are_counted_and_named(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with bridge(vhost, database, node="a", partitions=2) as a:
        await publish(vhost, request("u1", "p1"), request("u2", "p2"))
        await publish(vhost, request("u1", "p3"), request("u2", "p4"), routing_key="orders", app_id="shop")
        await publish(vhost, {"id": "p5", "to": {"users": ["u1", "u2"]}, "data": 1}, routing_key="orders")
        await final_rows(database, 6)
        keys = a._node.core.reader.keys
        assert keys is not None
        assert keys.others == 2
    [said] = [m for m in caplog.messages if "another routing key" in m]
    assert "by 'shop'" in said
    assert "'orders'" in said


async def test_the_number_of_partitions_is_fixed_once_they_are_made(vhost: str) -> None:
    async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
        await Spread(3, DeclareMode.ACTIVE).ensure(connection)
        await Spread(3, DeclareMode.ACTIVE).ensure(connection)
        await Spread(3, DeclareMode.PASSIVE).ensure(connection)
        for fewer in (1, 2):
            with pytest.raises(TopologyError, match=rf"{requests_queue(fewer)} is there.*BRIDGE_PARTITIONS"):
                await Spread(fewer, DeclareMode.ACTIVE).ensure(connection)
            [finding] = await spread_check.findings(vhost, connection, fewer, DeclareMode.ACTIVE)
            assert (finding.level, "BRIDGE_PARTITIONS" in finding.words) == ("fail", True)
        for more in (4, 8):
            with pytest.raises(TopologyError, match=rf"{requests_queue(more - 1)} is not.*fewer than {more}"):
                await Spread(more, DeclareMode.ACTIVE).ensure(connection)
            [finding] = await spread_check.findings(vhost, connection, more, DeclareMode.ACTIVE)
            assert (finding.level, "BRIDGE_PARTITIONS" in finding.words) == ("fail", True)
        assert await spread_check.findings(vhost, connection, 3, DeclareMode.ACTIVE) == []


async def test_partitions_are_not_made_while_requests_wait(vhost: str) -> None:
    async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
        await Spread(1, DeclareMode.ACTIVE).ensure(connection)
        await publish(vhost, request("u", "p1"))
        with pytest.raises(TopologyError, match="has 1 messages and 0 consumers"):
            await Spread(2, DeclareMode.ACTIVE).ensure(connection)
        [finding] = await spread_check.findings(vhost, connection, 2, DeclareMode.ACTIVE)
        assert "has 1 messages" in finding.words
        low = await channel(connection, confirms=False)
        await low.queue_purge(REQUESTS)
        assert await spread_check.findings(vhost, connection, 2, DeclareMode.ACTIVE) == []
        await Spread(2, DeclareMode.ACTIVE).ensure(connection)
        await publish(vhost, *(request(user, user) for user in USERS))
        counts = [(await low.queue_declare(requests_queue(k), passive=True)).message_count for k in range(2)]
        assert sum(count or 0 for count in counts) == len(USERS), "each of them once"
        assert all(counts)


async def test_an_exchange_that_somebody_deletes_is_told_and_made_again(vhost: str, database: str) -> None:
    async with bridge(vhost, database, node="a", partitions=2):
        async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
            low = await channel(connection, confirms=False)
            await low.exchange_delete(SPREAD)
            async with asyncio.timeout(10):
                while not await exchange_is_there(connection):
                    await asyncio.sleep(0.02)
        async with asyncio.timeout(10):
            while True:
                try:
                    await publish(vhost, request("u", "p1"))
                    break
                except NotTaken:
                    pass  # its bindings follow
        await final_rows(database, 1)
    async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
        low = await channel(connection, confirms=False)
        await low.exchange_delete(SPREAD)
        [finding] = await spread_check.findings(vhost, connection, 2, DeclareMode.ACTIVE)
        assert "pushes reach no queue" in finding.words


async def test_a_broker_without_the_plug_in_is_told_by_its_name(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = ("x-is-not-there", "x-is-not-there-either")
    monkeypatch.setattr(spread_check, "KINDS", unknown)
    spread = Spread(2, DeclareMode.ACTIVE, unknown)
    async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
        [finding] = await spread_check.findings(vhost, connection, 2, DeclareMode.ACTIVE)
        assert (finding.level, f"rabbitmq-plugins enable {PLUGIN}" in finding.words) == ("fail", True)
        with pytest.raises(TopologyError, match=f"rabbitmq-plugins enable {PLUGIN}"):
            await spread.ensure(connection)


async def test_another_type_is_tried_where_the_broker_does_not_know_the_first(vhost: str) -> None:
    spread = Spread(2, DeclareMode.ACTIVE, ("x-is-not-there", "x-consistent-hash"))
    with pytest.raises(TopologyError):
        async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
            await spread.ensure(connection)
    async with opened(vhost, "test", lambda events: None, lambda cause: None) as (connection, _):
        await spread.ensure(connection)
        assert await exchange_is_there(connection), SPREAD


def test_partitions_need_the_log_in_postgres() -> None:
    with pytest.raises(SettingsError, match="BRIDGE_DELIVERY_LOG"):
        settings("amqp://here", "postgresql://here", partitions=2, delivery_log="stdout")


async def test_status_and_a_command_tell_which_nodes_there_are(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(bridge(vhost, database, node=name, partitions=PARTITIONS))
            for name in "ab"
        ]
        await shared(a, b)
        await crowd(stack, b.ws_port, USERS[:3])

        async def told() -> list[tuple[str, str, bool, int, bool]]:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://127.0.0.1:{a.ops_port}/status") as answer,
            ):
                nodes = (await answer.json())["nodes"]
            return [
                (n["node"], n["version"], n["alive"], n["sessions"], len(n["taking"]) == 2) for n in nodes
            ]

        expected = [("a", __version__, True, 0, True), ("b", __version__, True, 3, True)]
        async with asyncio.timeout(10):
            while await told() != expected:
                await asyncio.sleep(0)
        assert await show_nodes(settings(vhost, database), as_json=False) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("a ")
        assert "3 sessions" in second
        assert "takes partition" in second
