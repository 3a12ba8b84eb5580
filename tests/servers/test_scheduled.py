"""Scheduled pushes on a real broker, a real database and real sockets."""

from __future__ import annotations

import asyncio
import json
import time

import aio_pika
import psycopg
import pytest

from bridge.adapters.amqp.producer import Producer
from bridge.cli import main
from tests.servers.test_kept import control
from tests.support.bridges import (
    bridge,
    counted,
    endings,
    final_rows,
    get,
    process,
    publish,
    request,
    token,
)
from tests.support.clients import client
from tests.support.queues import ENVELOPE, ready_messages


async def waiting(dsn: str) -> int:
    """How many pushes are scheduled."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        found = await (await connection.execute("select count(*) from scheduled")).fetchone()
    assert found is not None
    return int(found[0])


async def scheduled(dsn: str, count: int) -> None:
    """Wait until so many pushes are scheduled."""
    async with asyncio.timeout(20):
        while await waiting(dsn) != count:
            await asyncio.sleep(0.02)


async def test_a_push_comes_at_its_time_and_in_order_with_those_published_after_it(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
        await opened.read_json()
        at = time.time() + 2
        await publish(vhost, request("u1", "later", deliver_at=at), request("u1", "now"))
        assert (await opened.read_json())["id"] == "now"
        await scheduled(database, 1)
        assert await ready_messages(vhost, "push.requests") == 0, "it waits in the database, not in the queue"
        assert [row["push_id"] for row in await final_rows(database, 1)] == ["now"]
        assert (await opened.read_json())["id"] == "later"
        assert 0 <= time.time() - at < 1
        await publish(vhost, request("u1", "after"))
        assert (await opened.read_json())["id"] == "after"
        found = await final_rows(database, 3)
        assert set(endings(found).values()) == {("received", "pong")}
        assert await waiting(database) == 0


async def test_what_is_scheduled_outlives_a_restart_and_a_kill_and_has_one_outcome(
    vhost: str, database: str
) -> None:
    at = time.time() + 5
    async with process(vhost, database) as first:
        await publish(vhost, *(request("u1", f"p{n:02}", deliver_at=at, ttl=600) for n in range(40)))
        await publish(vhost, {"to": {"user": "u1"}, "data": 1, "deliver_at": at, "ttl": 600})
        await scheduled(database, 41)
        await first.stop()
    async with process(vhost, database) as second:
        await asyncio.sleep(max(0.0, at - time.time()))
        # In the very second in which they are published.
        await until_released(database, 41)
        await second.kill()
    async with process(vhost, database) as third:
        await counted(database, "outcome = 'stored'", 41)
        async with client(third.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
            await opened.read_json()
            frames = [json.loads(f) for f in await opened.read_many(41)]
            assert len({f["id"] for f in frames}) == 41
            found = await final_rows(database, 41)
            assert set(endings(found).values()) == {("received", "pong")}
        await scheduled(database, 0)
        assert await ready_messages(vhost, "push.requests") == 0


async def until_released(dsn: str, count: int) -> None:
    """Wait until a process has claimed something, or published it all."""
    async with asyncio.timeout(20):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            while True:
                found = await (
                    await connection.execute("select count(*), count(claimed_by) from scheduled")
                ).fetchone()
                assert found is not None
                if found[0] < count or found[1]:
                    return


async def test_of_two_nodes_exactly_one_delivers_it(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database, node="n1") as a,
        bridge(vhost, database, node="n2") as b,
        client(a.ws_port, token("u1"), subprotocols=ENVELOPE) as one,
        client(b.ws_port, token("u2"), subprotocols=ENVELOPE) as two,
    ):
        await one.read_json()
        await two.read_json()
        at = time.time() + 2
        ids = [f"p{n:02}" for n in range(30)]
        await publish(
            vhost,
            *(request(user, f"{push_id}-{user}", deliver_at=at) for push_id in ids for user in ("u1", "u2")),
        )
        for user, opened in (("u1", one), ("u2", two)):
            frames = [json.loads(f) for f in await opened.read_many(30)]
            assert [f["id"] for f in frames] == [f"{push_id}-{user}" for push_id in ids]
            assert time.time() - at < 1.5
        await publish(vhost, request("u1", "after"), request("u2", "after2"))
        assert (await one.read_json())["id"] == "after", "nothing came twice"
        assert (await two.read_json())["id"] == "after2"
        found = await final_rows(database, 62)
        assert set(endings(found).values()) == {("received", "pong")}


async def test_a_recall_before_its_time_is_counted_and_ends_it(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(vhost, database) as b, control(vhost) as say:
        async with client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
            await opened.read_json()
            at = time.time() + 600
            await publish(
                vhost,
                request("u1", "p1", deliver_at=at),
                request("u1", "p2", deliver_at=at, collapse_key="k"),
                {"id": "p3", "to": {"users": ["u1", "u2"]}, "data": 1, "deliver_at": at},
            )
            await scheduled(database, 3)
            status, body = await get(b.ops_port, "/v1/pushes/p1")
            assert status == 200
            assert json.loads(body)["scheduled"][0]["recalled_at"] is None
            dsn = ("--amqp-url", vhost, "--postgres-dsn", database)
            assert await asyncio.to_thread(main, ["why", "p1", *dsn]) == 0
            assert "push p1 for u1: scheduled for " in capsys.readouterr().out
            assert await asyncio.to_thread(main, ["audit", *dsn, "--hours", "1"]) == 0
            assert "3 pushes wait for their deliver_at" in capsys.readouterr().out
            for message, ended in (
                ({"push_id": "p1"}, 1),
                ({"user": "u1", "collapse_key": "k"}, 1),
                ({"push_id": "p3"}, 2),
            ):
                assert (await say({"type": "recall", **message}))["ended"] == ended
            found = endings(await final_rows(database, 4))
            assert set(found.values()) == {("recalled", "withdrawn")}
            assert set(found) == {("p1", "u1"), ("p2", "u1"), ("p3", "u1"), ("p3", "u2")}
            await publish(vhost, request("u1", "after"))
            assert (await opened.read_json())["id"] == "after"


async def test_data_of_every_kind_and_receipts_come_as_if_it_had_been_published_then(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as bare:
        at = f"{time.time() + 1.5:.3f}"
        headers = {"x-push-user": "u1", "x-push-deliver-at": at}
        async with Producer.connect(vhost) as producer:
            for body, kind in (
                (b"\x00\xff raw", "application/octet-stream"),
                ("grüße".encode(), "text/plain"),
            ):
                await producer.publish(body, headers=headers, content_type=kind)
            asked = json.dumps(request("u1", "p1", deliver_at=float(at))).encode()
            [receipt] = await producer.request(asked, timeout=10)
        assert await bare.read_many(3) == [b"\x00\xff raw", "grüße", '{"n": "p1"}']
        assert (receipt["push_id"], receipt["outcome"]) == ("p1", "received")
        found = await final_rows(database, 3)
        assert {f"{row['published_at'].timestamp():.3f}" for row in found} == {at}


async def test_a_bridge_without_a_database_rejects_it_by_name(vhost: str, database: str) -> None:
    async with bridge(vhost, database, delivery_log="stdout"):
        async with Producer.connect(vhost) as producer:
            asked = json.dumps(request("u1", "p1", deliver_at=time.time() + 60)).encode()
            [receipt] = await producer.request(asked, timeout=10)
    assert (receipt["outcome"], receipt["reason"]) == ("rejected", "unsupported")
    assert "deliver_at" in receipt["detail"]


async def test_what_has_no_binding_at_its_time_holds_up_nobody(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
        await opened.read_json()
        at = time.time() + 4
        odd = [json.dumps(request("u1", f"odd{n:03}", deliver_at=at)).encode() for n in range(600)]
        async with await aio_pika.connect(vhost) as connection:
            channel = await connection.channel()
            exchange = await channel.get_exchange("push")
            await asyncio.gather(*(exchange.publish(aio_pika.Message(body), "odd.u1") for body in odd))
            await publish(vhost, request("u2", "even", deliver_at=at, confirm="written"))
            await scheduled(database, 601)
            queue = await channel.get_queue("push.requests")
            await queue.bind("push", "user.#")
            await queue.unbind("push", "#")
            frames = [json.loads(one)["id"] for one in await opened.read_many(600)]
        assert frames == [f"odd{n:03}" for n in range(600)]
        found = endings(await final_rows(database, 601))
        assert found["even", "u2"] == ("offline", "no_session")
        assert await waiting(database) == 0
