"""Of several bridges at one broker one takes the pushes; the others say that they stand by, and take over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from bridge.adapters.amqp import turn as amqp_turn
from bridge.adapters.amqp.check import findings
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.consume import Consumer, never_called
from bridge.adapters.amqp.topology import CONTROL, FALLEN, REQUESTS, DeclareMode
from bridge.adapters.amqp.turn import LOCK, Role
from bridge.devservers import Servers
from tests.support.amqp import CLOCK, RecordingIntake, consumer, declare
from tests.support.amqp import publish as publish_bodies
from tests.support.bridges import Process, bridge, endings, final_rows, get, process, publish, request, token
from tests.support.clients import client
from tests.support.ports import RecordingErrors
from tests.support.waiting import until

NUMBERED = [b"0", b"1", b"2"]


class Roles(list[Role]):
    """What a consumer has said that it is."""


def candidate(url: str) -> tuple[Consumer, Roles]:
    roles = Roles()
    return Consumer(url, clock=CLOCK, errors=RecordingErrors(), on_role=roles.append), roles


@asynccontextmanager
async def lock_held(url: str) -> AsyncIterator[None]:
    """Another connection holds the lock, and consumes nothing."""
    async with opened(url, "test", lambda events: None, lambda cause: None) as (connection, _):
        low = await channel(connection, confirms=False)
        await low.queue_declare(LOCK, exclusive=True, arguments={"x-queue-type": "classic"})
        yield


async def metric(port: int, name: str) -> float | None:
    """The value of a series without labels; None where it is not there."""
    page = (await get(port, "/metrics"))[1].decode()
    return next((float(line.split()[1]) for line in page.splitlines() if line.startswith(f"{name} ")), None)


async def test_a_second_node_says_that_it_stands_by_and_takes_over_from_one_that_is_killed(
    vhost: str, database: str
) -> None:
    async with process(vhost, database) as first:
        second = Process(vhost, database, node="n2")
        await second.start()
        try:
            assert await second.ready() == []
            await until_role(second, "standby")
            for node, role, active in ((first, "active", 1), (second, "standby", 0)):
                assert json.loads((await get(node.ops_port, "/status"))[1])["role"] == role
                assert await metric(node.ops_port, "bridge_active") == active
            async with client(second.ws_port, token("u1")) as c:
                await first.kill()
                assert await second.ready() == []
                await publish(vhost, request("u1", "p1"))
                assert json.loads(await c.read()) == {"n": "p1"}
            assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("received", "pong")}
            assert await metric(second.ops_port, "bridge_active") == 1
        finally:
            await second.kill()


async def until_role(node: Process, role: str) -> None:
    async with asyncio.timeout(10):
        while json.loads((await get(node.ops_port, "/status"))[1])["role"] != role:
            await asyncio.sleep(0.05)


async def test_a_node_that_stops_lets_the_next_one_take_before_its_connection_ends(
    vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    await declare(vhost)
    (first, _), (second, roles) = candidate(vhost), candidate(vhost)
    async with first.taking(RecordingIntake()):
        await until(lambda: first.role is Role.ACTIVE)
        async with second.taking(RecordingIntake()):
            await until(lambda: second.role is Role.STANDBY)
            await first.stop_consuming()
            await until(lambda: second.role is Role.ACTIVE)
            assert roles == [Role.STANDBY, Role.ACTIVE]
            assert caplog.messages == []


async def test_of_nodes_that_come_at_once_one_is_active(vhost: str) -> None:
    await declare(vhost)
    nodes = [candidate(vhost)[0] for _ in range(5)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.taking(RecordingIntake()))
        await until(lambda: all(node.role in (Role.ACTIVE, Role.STANDBY) for node in nodes))
        assert [node.role for node in nodes].count(Role.ACTIVE) == 1


async def test_a_node_that_stands_by_takes_nothing_of_any_queue(vhost: str) -> None:
    await declare(vhost)
    taken, left = RecordingIntake(), RecordingIntake()
    (first, _), (second, _) = candidate(vhost), candidate(vhost)
    async with first.taking(taken):
        await until(lambda: first.role is Role.ACTIVE)
        async with second.taking(left), await aio_pika.connect(vhost) as connection:
            await until(lambda: second.role is Role.STANDBY)
            async with connection.channel() as publishing:
                for _ in range(10):
                    for queue in (FALLEN, CONTROL, REQUESTS):
                        await publishing.default_exchange.publish(aio_pika.Message(b"{}"), queue)
            await taken.has(21)  # of the requests only the first comes while it is not answered
            assert left.arrivals == []


async def test_a_bridge_without_turns_is_stood_by_for_and_named_in_the_log(
    vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    await declare(vhost)
    async with opened(vhost, "older", lambda events: None, lambda cause: None) as (connection, _):
        older = await channel(connection, confirms=False)
        await older.basic_consume(REQUESTS, never_called, consumer_tag="older")
        node, roles = candidate(vhost)
        async with node.taking(RecordingIntake()):
            await until(lambda: node.role is Role.STANDBY)
            await older.basic_cancel("older")
            await until(lambda: node.role is Role.ACTIVE)
        assert roles == [Role.STANDBY, Role.ACTIVE]
        assert caplog.messages == [
            "push.requests is consumed by somebody who does not hold the queue push.taker: a bridge of an older "
            "version, or none"
        ]


async def test_a_lock_whose_holder_never_consumes_does_not_stop_the_next_one(
    vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_turn, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(amqp_turn, "LOCK_PATIENCE", 0.2)
    await declare(vhost)
    intake = RecordingIntake()
    node, roles = candidate(vhost)
    async with lock_held(vhost), node.taking(intake):
        await until(lambda: node.role is Role.UNKNOWN)
        await publish_bodies(vhost, [b"0"])
        await intake.has(1)
        assert roles == [Role.STANDBY, Role.UNKNOWN, Role.ACTIVE], "a request proves it"


@pytest.mark.parametrize(
    "options",
    [
        {"durable": True},
        {"durable": True, "arguments": {"x-queue-type": "quorum"}},
        {"durable": False, "auto_delete": True},
    ],
    ids=["durable", "quorum", "transient"],
)
async def test_an_ordinary_queue_in_place_of_the_lock_is_told_with_the_command_that_mends_it(
    servers: Servers, vhost: str, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    await declare(vhost)
    async with await aio_pika.connect(vhost) as connection, connection.channel() as declaring:
        await declaring.declare_queue(LOCK, **options)
    intake = RecordingIntake()
    node, roles = candidate(vhost)
    async with node.taking(intake):
        await until(lambda: node.role is Role.UNKNOWN)
        await publish_bodies(vhost, [b"0"])
        await intake.has(1)
        assert roles == [Role.UNKNOWN, Role.ACTIVE]
    [message] = caplog.messages
    command = f"rabbitmqctl delete_queue -p {urlsplit(vhost).path[1:]} push.taker"
    assert message == f"{amqp_turn.no_lock(amqp_turn.LOCK)}: {command}"
    [finding] = [f for f in await findings(vhost, DeclareMode.ACTIVE, "here") if f.level != "ok"]
    assert (finding.level, finding.words) == ("warn", message)
    servers.rabbit.ctl(*command.split()[1:])
    assert [f for f in await findings(vhost, DeclareMode.ACTIVE, "here") if f.level != "ok"] == []
    node, roles = candidate(vhost)
    async with node.taking(RecordingIntake()):
        await until(lambda: node.role is Role.ACTIVE)
        # What another one holds is no ordinary queue, to who looks.
        [finding] = [f for f in await findings(vhost, DeclareMode.ACTIVE, "here") if f.level != "ok"]
        assert "a bridge takes the pushes already" in finding.words


async def test_a_user_who_may_not_declare_the_lock_takes_and_says_that_it_is_unknown_until_a_push_comes(
    servers: Servers, vhost: str, database: str
) -> None:
    await declare(vhost)
    address = urlsplit(vhost)
    servers.rabbit.ctl("set_permissions", "-p", address.path[1:], address.username or "", "^$", ".*", ".*")
    async with bridge(vhost, database, declare="passive") as node:
        assert json.loads((await get(node.ops_port, "/status"))[1])["role"] == "unknown"
        assert await metric(node.ops_port, "bridge_active") is None
        await publish(vhost, request("u1", "p1"))
        await final_rows(database, 1)
        assert await metric(node.ops_port, "bridge_active") == 1


async def test_a_lock_that_somebody_deletes_is_taken_again(servers: Servers, vhost: str) -> None:
    await declare(vhost)
    node, roles = candidate(vhost)
    async with node.taking(RecordingIntake()):
        await until(lambda: node.role is Role.ACTIVE)
        servers.rabbit.ctl("delete_queue", "-p", urlsplit(vhost).path[1:], LOCK)
        await until(lambda: len(roles) == 2)
        assert roles == [Role.ACTIVE, Role.ACTIVE]


async def test_what_strangers_publish_to_the_lock_is_thrown_away(vhost: str) -> None:
    await declare(vhost)
    intake = RecordingIntake()
    node = consumer(vhost)
    intake.acks = node
    async with node.taking(intake):
        await until(lambda: node.role is Role.ACTIVE)
        async with await aio_pika.connect(vhost) as connection, connection.channel() as publishing:
            await publishing.default_exchange.publish(aio_pika.Message(b"spam"), LOCK)
        await publish_bodies(vhost, NUMBERED)
        await intake.has(3)
        assert intake.bodies == NUMBERED
        assert intake.lost == []
        await node.stop_consuming()
