"""The ordinary bad day: processes killed, servers away, peers frozen. Nothing lost, nothing told twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import psycopg

from benchmarks.ports import reserved_port
from bridge.adapters.amqp.producer import Producer
from bridge.adapters.postgres import migrate
from bridge.devservers import Servers
from tests.support.bridges import (
    Process,
    bridge,
    endings,
    final_rows,
    get,
    process,
    publish,
    request,
    rows,
    rows_when,
    settings,
    token,
)
from tests.support.clients import client
from tests.support.queues import ENVELOPE, ready_messages

QUORUM_SETTLES = 1.0
"""Seconds that a quorum queue of RabbitMQ 3.10 needs after its declaration before its broker may be killed."""


async def read_all(port: int, user: str, seen: list[str]) -> None:
    """A browser's tab: stays connected through every restart and keeps the ids that it was shown."""
    while True:
        try:
            async with client(port, token(user), subprotocols=ENVELOPE) as c:
                while True:
                    frame = json.loads(await c.connection.recv())
                    if frame["type"] == "push":
                        seen.append(frame["id"])
        except Exception:  # whatever ends the connection, a browser comes back
            await asyncio.sleep(0.05)


async def stop_tasks(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_killed_bridge_loses_nothing_and_ends_everything_once(vhost: str, database: str) -> None:
    port = reserved_port()
    seen: list[str] = []
    tabs = [asyncio.create_task(read_all(port, "u1", seen))]
    names = [f"p{i:03}" for i in range(400)]
    try:
        async with process(vhost, database, ws_port=port, start_grace=3) as p:
            await publish(vhost, *[request("u1", n) for n in names[:100]])
            for round_ in range(3):
                feeding = asyncio.create_task(
                    publish(
                        vhost, *[request("u1", n) for n in names[100 + 100 * round_ : 200 + 100 * round_]]
                    )
                )
                await asyncio.sleep(0)  # the kill comes while they are on their way
                await p.kill()
                await feeding
                await p.start()
                await p.ready()
            found = endings(await final_rows(database, 400))
            assert set(found) == {(n, "u1") for n in names}
            received = {push for (push, _), (outcome, _) in found.items() if outcome == "received"}
            assert received <= set(seen), "what is called received was seen"
            assert {outcome for outcome, _ in found.values()} <= {"received", "unknown", "offline"}
            assert await p.stop() == 0
        assert await ready_messages(vhost, "push.requests") == 0
    finally:
        await stop_tasks(tabs)


async def test_rows_that_a_killed_bridge_left_pending_end_when_its_name_starts_again(
    vhost: str, database: str
) -> None:
    async with process(vhost, database, confirm_timeout=60) as p:
        async with client(p.ws_port, token("u1")) as c:
            c.freeze()
            await publish(vhost, request("u1", "p1"))
            await rows_when(database, bool)
            await p.kill()
        await p.start()
        await p.ready()
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("unknown", "node_died")}


async def test_a_second_live_bridge_of_the_same_name_is_refused(vhost: str, database: str) -> None:
    async with process(vhost, database) as first:
        second = Process(vhost, database)
        await second.start()
        assert await second.exited() == 1
        assert first.alive
        assert (await get(first.ops_port, "/readyz"))[0] == 200


async def test_sigterm_under_load_settles_what_is_under_way_and_gives_back_the_rest(
    vhost: str, database: str
) -> None:
    names = [f"p{i:04}" for i in range(3000)]
    async with process(vhost, database) as p:
        async with client(p.ws_port, token("u1"), subprotocols=ENVELOPE) as c:
            feeding = asyncio.create_task(publish(vhost, *[request("u1", n) for n in names]))
            assert (await c.read_json())["type"] == "welcome"
            for _ in range(20):
                await c.read()
            assert await p.stop() == 0
            assert (await c.ended())[0] == 1012
            await feeding
        settled = endings(await rows(database))
        assert all(ending == ("received", "pong") for ending in settled.values())
        assert await ready_messages(vhost, "push.requests") == 3000 - len(settled)
        await p.start()
        await p.ready()
        found = endings(await final_rows(database, 3000))
        assert set(found) == {(n, "u1") for n in names}
        assert {k: found[k] for k in settled} == settled


async def test_while_postgres_is_away_sessions_stay_and_pushes_wait(own_servers: Servers) -> None:
    s = own_servers
    async with bridge(s.amqp_url, s.postgres_dsn) as b, client(b.ws_port, token("u1")) as c:
        await publish(s.amqp_url, request("u1", "before"))
        await c.read()
        await final_rows(s.postgres_dsn, 1)
        await asyncio.to_thread(s.postgres.stop, "immediate")
        async with asyncio.timeout(15):
            while (await get(b.ops_port, "/readyz"))[0] == 200:
                await asyncio.sleep(0.05)
        status, body = await get(b.ops_port, "/readyz")
        assert status == 503
        assert "database" in json.loads(body)["causes"][0]
        await publish(s.amqp_url, *[request("u1", f"p{i}") for i in range(50)])
        await asyncio.to_thread(s.postgres.start)
        assert [json.loads(m)["n"] for m in await c.read_many(50)] == [f"p{i}" for i in range(50)]
        found = endings(await final_rows(s.postgres_dsn, 51))
        assert set(found.values()) == {("received", "pong")}
        assert (await get(b.ops_port, "/readyz"))[0] == 200


async def test_postgres_that_stops_in_the_middle_of_a_stream_costs_nothing(own_servers: Servers) -> None:
    s = own_servers
    names = [f"p{i:04}" for i in range(2000)]
    async with bridge(s.amqp_url, s.postgres_dsn) as b, client(b.ws_port, token("u1")) as c:
        feeding = asyncio.create_task(publish(s.amqp_url, *[request("u1", n) for n in names]))
        await c.read_many(100)
        await asyncio.to_thread(s.postgres.stop, "immediate")
        await asyncio.to_thread(s.postgres.start)
        await feeding
        found = endings(await final_rows(s.postgres_dsn, 2000))
        assert set(found) == {(n, "u1") for n in names}
        assert {outcome for outcome, _ in found.values()} == {"received"}
    assert await ready_messages(s.amqp_url, "push.requests") == 0


async def test_a_broker_that_is_killed_comes_back_with_every_push(own_servers: Servers) -> None:
    s = own_servers
    names = [f"p{i:03}" for i in range(600)]
    async with bridge(s.amqp_url, s.postgres_dsn) as b, client(b.ws_port, token("u1")) as c:
        await publish(s.amqp_url, request("u1", names[0]))
        await c.read()  # all that is kept has been read by then: there is room for as many as come at once
        await publish(s.amqp_url, *[request("u1", n) for n in names[1:300]])
        await c.read_many(50)
        await asyncio.sleep(QUORUM_SETTLES)
        await asyncio.to_thread(s.rabbit.kill)
        async with asyncio.timeout(15):
            while (await get(b.ops_port, "/readyz"))[0] == 200:
                await asyncio.sleep(0.05)
        await asyncio.to_thread(s.rabbit.start)
        async with asyncio.timeout(40):
            await b.gate.opened()
        await publish(s.amqp_url, *[request("u1", n) for n in names[300:]])
        found = endings(await final_rows(s.postgres_dsn, 600, 40))
        assert set(found) == {(n, "u1") for n in names}
        assert set(found.values()) == {("received", "pong")}
    assert await ready_messages(s.amqp_url, "push.requests") == 0


async def test_a_bridge_that_starts_before_its_servers_waits_and_says_why(own_servers: Servers) -> None:
    s = own_servers
    await asyncio.to_thread(s.rabbit.stop)
    await asyncio.to_thread(s.postgres.stop)
    p = Process(s.amqp_url, s.postgres_dsn)
    await p.start()
    try:
        causes = await p.ready(503)
        assert [c.split(":")[0] for c in causes] == ["starting", "broker"]
        assert (await get(p.ops_port, "/livez"))[0] == 200
        await asyncio.gather(asyncio.to_thread(s.rabbit.start), asyncio.to_thread(s.postgres.start))
        await p.ready()
        await publish(s.amqp_url, request("away", "p1"))
        assert len(await final_rows(s.postgres_dsn, 1)) == 1
        assert await p.stop() == 0
    finally:
        if p.alive:
            await p.kill()


async def test_a_schema_that_is_behind_keeps_it_waiting_and_names_the_command(
    vhost: str, empty_database: str
) -> None:
    p = Process(vhost, empty_database)
    await p.start()
    try:
        async with asyncio.timeout(20):
            while "bridge db upgrade" not in str(await p.ready(503)):
                await asyncio.sleep(0.05)
        await asyncio.to_thread(migrate.upgrade, empty_database)
        await p.ready()
        assert await p.stop() == 0
    finally:
        if p.alive:
            await p.kill()


async def test_receipts_become_debts_while_the_broker_takes_no_publishes(own_servers: Servers) -> None:
    s = own_servers
    async with (
        bridge(s.amqp_url, s.postgres_dsn) as b,
        client(b.ws_port, token("u1")) as c,
        Producer.connect(s.amqp_url) as producer,
    ):
        # Twenty are in hand before the alarm, and their receipts fall due during it. Before the first push has been
        # taken there would be one.
        await producer.request(json.dumps(request("away", "first")).encode(), 60)
        b.gate.shut("test", "held")
        asking = [
            asyncio.create_task(producer.request(json.dumps(request("u1", f"p{i}")).encode(), 60))
            for i in range(20)
        ]
        async with asyncio.timeout(20):
            while b._node.core.intake.waiting < 20:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(s.rabbit.ctl, "set_vm_memory_high_watermark", "0.0000001")
        try:
            b.gate.clear("test")
            assert len(await c.read_many(20)) == 20
            await final_rows(s.postgres_dsn, 21)
            with psycopg.connect(s.postgres_dsn, autocommit=True) as connection:
                async with asyncio.timeout(20):
                    while connection.execute(
                        "select count(*) from delivery_log where owed is not null"
                    ).fetchone() != (20,):
                        await asyncio.sleep(0.05)
                async with asyncio.timeout(10):  # acked all the same: the rows carry the debt
                    while b._consumer.held:
                        await asyncio.sleep(0.02)
        finally:
            await asyncio.to_thread(s.rabbit.ctl, "set_vm_memory_high_watermark", "0.4")
        receipts = [r for found in await asyncio.gather(*asking) for r in found]
        assert {r["push_id"] for r in receipts} == {f"p{i}" for i in range(20)}
        with psycopg.connect(s.postgres_dsn, autocommit=True) as connection:
            async with asyncio.timeout(10):
                while connection.execute(
                    "select count(*) from delivery_log where owed is not null"
                ).fetchone() != (0,):
                    await asyncio.sleep(0.05)


async def test_without_postgres_rows_go_to_standard_output_only(vhost: str, tmp_path: object) -> None:
    async with bridge(vhost, "postgresql://127.0.0.1:1/none", delivery_log="stdout") as b:
        async with client(b.ws_port, token("u1")) as c, Producer.connect(vhost) as producer:
            receipts = await producer.request(json.dumps(request("u1", "p1")).encode(), 10)
            assert json.loads(await c.read()) == {"n": "p1"}
            assert [r["outcome"] for r in receipts] == ["received"]
            again = await producer.request(json.dumps(request("u1", "p1")).encode(), 10)
            assert [r["outcome"] for r in again] == ["received"]
    assert settings(vhost, "postgresql://127.0.0.1:1/none", delivery_log="stdout").uses_postgres is False
