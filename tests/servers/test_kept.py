"""Kept pushes on a real broker, a real database and real sockets, as the people who use them see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aio_pika
import psycopg
import pytest
from websockets.exceptions import ConnectionClosedError

from bridge.adapters.amqp.producer import Producer
from tests.support.bridges import (
    bridge,
    endings,
    final_rows,
    process,
    publish,
    request,
    rows,
    rows_when,
    token,
)
from tests.support.clients import Client, client
from tests.support.queues import ENVELOPE, ready_messages


def all_stored(count: int) -> Callable[[list[dict[str, Any]]], bool]:
    return lambda found: sum(row["outcome"] == "stored" for row in found) == count


@asynccontextmanager
async def session(port: int, user: str, last: str | None = None) -> AsyncIterator[tuple[Client, Any]]:
    """An open session and its welcome."""
    path = "/ws" if last is None else f"/ws?last={last}"
    async with client(port, token(user), subprotocols=ENVELOPE, path=path) as opened:
        yield opened, await opened.read_json()


async def pushes(opened: Client, count: int) -> list[str]:
    """The ids of the next so many frames, all of them pushes."""
    frames = [json.loads(f) for f in await opened.read_many(count)]
    assert {f["type"] for f in frames} == {"push"}, frames
    return [f["id"] for f in frames]


@asynccontextmanager
async def control(url: str) -> AsyncIterator[Callable[[Mapping[str, object]], Any]]:
    """Says something on push.control and gives back the answer."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        answers = await channel.declare_queue(exclusive=True)
        exchange = await channel.get_exchange("push.control")

        async def say(message: Mapping[str, object]) -> Any:
            await exchange.publish(
                aio_pika.Message(json.dumps(message).encode(), reply_to=answers.name, correlation_id="c1"),
                "",
            )
            async with asyncio.timeout(10):
                while (answer := await answers.get(no_ack=True, fail=False)) is None:
                    await asyncio.sleep(0.01)
            assert answer.correlation_id == "c1"
            return json.loads(answer.body)

        yield say


async def test_pushes_for_a_user_who_is_away_arrive_in_order_before_what_is_newer(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b:
        ids = [f"p{n:04}" for n in range(450)]
        await publish(vhost, *(request("u1", push_id, ttl=600) for push_id in ids))
        found = await rows_when(database, all_stored(450))
        assert await ready_messages(vhost, "push.requests") == 0, "kept in Postgres, not in the queue"
        assert {(r["reason"], r["final"], r["finished_at"]) for r in found} == {("no_session", False, None)}
        async with session(b.ws_port, "u1") as (opened, welcome):
            assert welcome["complete"] is True
            await publish(vhost, request("u1", "newer"))
            assert await pushes(opened, 451) == [*ids, "newer"]
            found = await final_rows(database, 451)
            assert set(endings(found).values()) == {("received", "pong")}


async def test_data_of_every_kind_comes_out_as_it_went_in(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        user = {"x-push-user": "u1", "x-push-ttl": 60}
        async with Producer.connect(vhost) as producer:
            await producer.publish(b"\x00\xff raw", headers=user, content_type="application/octet-stream")
            await producer.publish("grüße".encode(), headers=user, content_type="text/plain")
            await producer.publish(b'{"a": "\\u0000"}', headers=user, content_type="application/json")
        await rows_when(database, all_stored(3))
        async with client(b.ws_port, token("u1")) as bare:
            assert await bare.read_many(3) == [b"\x00\xff raw", "grüße", '{"a": "\\u0000"}']


async def test_a_push_ends_at_its_ttl_and_a_newer_one_replaces_an_older(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        await publish(
            vhost,
            request("u1", "short", ttl=1),
            request("u1", "old", ttl=60, collapse_key="score"),
            request("u1", "new", ttl=60, collapse_key="score"),
        )
        found = endings(await final_rows(database, 2))
        assert found["short", "u1"] == ("expired", "ttl")
        assert found["old", "u1"] == ("superseded", "collapsed")
        async with session(b.ws_port, "u1") as (opened, _):
            assert await pushes(opened, 1) == ["new"]
            await final_rows(database, 3)


async def test_who_resumes_gets_what_another_device_took_and_is_told_when_nothing_is_known(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b:
        async with session(b.ws_port, "u1") as (phone, _):
            await publish(vhost, *(request("u1", f"p{n}", ttl=60) for n in range(5)))
            assert await pushes(phone, 5) == [f"p{n}" for n in range(5)]
            await final_rows(database, 5)
        async with session(b.ws_port, "u1", last="p1") as (laptop, welcome):
            assert welcome["complete"] is True
            assert (await pushes(laptop, 5))[-3:] == ["p2", "p3", "p4"]
        async with session(b.ws_port, "u1", last="nobody-knows") as (_, welcome):
            assert welcome["complete"] is False
        async with session(b.ws_port, "u2", last="p1") as (_, welcome):
            assert welcome["complete"] is False, "what another user has seen is nothing to begin from"


async def test_a_node_that_is_killed_in_the_middle_of_a_replay_loses_nothing(
    vhost: str, database: str
) -> None:
    ids = [f"p{n:04}" for n in range(1500)]
    seen: dict[str, None] = {}

    async def read_on(opened: Client, last: str) -> None:
        while last not in seen:
            seen[(await opened.read_json())["id"]] = None

    async with process(vhost, database) as first:
        await publish(vhost, *(request("u1", push_id, ttl=600) for push_id in ids))
        await rows_when(database, all_stored(1500))
        async with session(first.ws_port, "u1") as (opened, _):
            seen.update(dict.fromkeys(await pushes(opened, 700)))
            await first.kill()
            # It answers pings before the test has read what came in front of them: that may be proven, too.
            with pytest.raises(ConnectionClosedError) as end:
                await read_on(opened, "what never comes")
            assert end.value.rcvd is None
        found = await rows(database)
        ended = {r["push_id"] for r in found if r["final"]}
        assert ended <= seen.keys(), "only what was read may be called received"
    async with process(vhost, database) as second:
        async with session(second.ws_port, "u1", last=list(seen)[-1]) as (opened, welcome):
            assert welcome["complete"] is True
            await read_on(opened, ids[-1])
            assert list(seen) == ids, "no gap, and new ones in order"
            found = await final_rows(database, 1500)
            assert set(endings(found).values()) == {("received", "pong")}


async def test_two_devices_that_open_at_once_prove_each_push_once(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        ids = [f"p{n:03}" for n in range(300)]
        await publish(vhost, *(request("u1", push_id, ttl=600) for push_id in ids))
        await rows_when(database, all_stored(300))

        async def everything(device: Client) -> list[str]:
            seen: list[str] = []
            while "last" not in seen:
                seen.append((await device.read_json())["id"])
            return seen[:-1]

        async with AsyncExitStack() as stack, asyncio.TaskGroup() as reading:
            sessions = [session(b.ws_port, "u1") for _ in range(2)]
            opened = await asyncio.gather(*map(stack.enter_async_context, sessions))
            readers = [reading.create_task(everything(device)) for device, _ in opened]
            # Which of the two shows how much is open: what one has proven by then, the other is not sent.
            await final_rows(database, 300)
            await publish(vhost, request("u1", "last"))
        both = [reader.result() for reader in readers]
        for seen in both:
            assert seen == sorted(set(seen)), "in order, none twice"
        assert sorted({*both[0], *both[1]}) == ids
        found = await final_rows(database, 301)
        assert set(endings(found).values()) == {("received", "pong")}


async def test_pushes_that_are_published_while_their_user_arrives_all_arrive(
    vhost: str, database: str
) -> None:
    async def publish_each(ids: Sequence[str], confirmed: int, so_many: asyncio.Event) -> None:
        for n, push_id in enumerate(ids):
            if n == confirmed:
                so_many.set()
            await producer.publish(json.dumps(request(ids[0], push_id, ttl=600)).encode())

    async with bridge(vhost, database) as b, Producer.connect(vhost) as producer:
        for round_ in range(20):
            ids = [f"u{round_}-{n}" for n in range(20)]
            # The user comes a little later each time: before the first push, and in the end before the last one.
            so_many = asyncio.Event()
            async with asyncio.TaskGroup() as publishing:
                publishing.create_task(publish_each(ids, round_, so_many))
                await so_many.wait()
                async with session(b.ws_port, ids[0]) as (opened, _):
                    assert await pushes(opened, 20) == ids
                    # What is not proven when it leaves stays kept.
                    await final_rows(database, 20 * (round_ + 1))


async def test_a_recall_takes_a_kept_push_back_and_tells_the_screens_that_show_it(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database) as b, control(vhost) as say:
        async with session(b.ws_port, "here") as (opened, _):
            to = {"users": ["here", "away"]}
            await publish(vhost, {"id": "p1", "to": to, "data": 1, "ttl": 60})
            assert await pushes(opened, 1) == ["p1"]
            await rows_when(database, lambda found: len(found) == 2 and sum(r["final"] for r in found) == 1)
            answer = await say({"type": "recall", "push_id": "p1"})
            assert (answer["type"], answer["node"], answer["ended"], answer["sessions"]) == (
                "recall",
                "n1",
                1,
                1,
            )
            assert await opened.read_json() == {"type": "withdraw", "id": "p1"}
        found = endings(await final_rows(database, 2))
        assert found == {("p1", "here"): ("received", "pong"), ("p1", "away"): ("recalled", "withdrawn")}
        await publish(vhost, request("away", "p2", ttl=60, collapse_key="k"))
        await rows_when(database, lambda found: len(found) == 3)
        answer = await say({"type": "recall", "user": "away", "collapse_key": "k"})
        assert answer["ended"] == 1
        assert (await say({"type": "recall", "push_id": "p1"}))["ended"] == 0, "it may be repeated"
        async with session(b.ws_port, "away") as (back, _):
            await publish(vhost, request("away", "p3"))
            assert await pushes(back, 1) == ["p3"]


async def test_a_control_message_that_says_nothing_we_can_do_is_answered_and_gone(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database), control(vhost) as say:
        answer = await say({"type": "recall", "push": "p1"})
        assert (answer["type"], answer["node"]) == ("error", "n1")
        assert "push" in answer["problem"]
        assert (await say({"type": "dance"}))["type"] == "error"
    assert await ready_messages(vhost, "push.control") == 0


async def test_receipts_say_stored_and_later_the_end(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, await aio_pika.connect(vhost) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("answers", durable=True)
        await publish(vhost, request("u1", "p1", ttl=60), reply_to="answers", correlation_id="c")
        await rows_when(database, all_stored(1))
        async with session(b.ws_port, "u1"):
            await final_rows(database, 1)
            got: list[dict[str, Any]] = []
            async with asyncio.timeout(10):
                while len(got) < 2:
                    message = await queue.get(no_ack=True, fail=False)
                    if message is None:
                        await asyncio.sleep(0.02)
                    else:
                        got.append(json.loads(message.body))
        assert [(r["outcome"], r["final"]) for r in got] == [("stored", False), ("received", True)]


async def test_at_rest_nothing_is_owed_and_a_kept_row_holds_its_data(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b:
        await publish(vhost, request("u1", "p1", ttl=60), request("u1", "p2", ttl=60, confirm="acked"))
        await rows_when(database, all_stored(2))
        async with session(b.ws_port, "u1") as (opened, _):
            assert await pushes(opened, 2) == ["p1", "p2"]
            await opened.send_json({"type": "ack", "id": "p2"})
            assert endings(await final_rows(database, 2))["p2", "u1"] == ("acked", "ack_frame")
            async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
                async with asyncio.timeout(10):
                    while True:
                        cursor = await connection.execute("select payload, owed from delivery_log")
                        found = await cursor.fetchall()
                        if all(owed is None for _, owed in found):
                            break
                        await asyncio.sleep(0.05)
        assert sorted(payload for payload, _ in found) == [b'{"n": "p1"}', b'{"n": "p2"}']


async def test_the_first_device_to_ack_takes_a_push_back_from_the_others(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, session(b.ws_port, "u1") as (one, _):
        async with session(b.ws_port, "u1") as (two, welcome):
            calls = [request("u1", name, ttl=60, confirm="acked", devices="first") for name in ("c1", "c2")]
            await publish(vhost, *calls)
            assert await pushes(one, 2) == await pushes(two, 2) == ["c1", "c2"]
            await two.send(json.dumps({"type": "ack", "id": "c1"}))
            assert await one.read_json() == {"type": "withdraw", "id": "c1"}
        found = await rows_when(database, lambda found: sum(row["final"] for row in found) == 1)
        told = {row["push_id"]: (row["outcome"], row["session"]) for row in found if row["final"]}
        assert told == {"c1": ("acked", welcome["session"])}
        async with session(b.ws_port, "u1", last="unknown") as (three, _):
            assert await pushes(three, 1) == ["c2"]
            await three.send(json.dumps({"type": "ack", "id": "c2"}))
            assert await one.read_json() == {"type": "withdraw", "id": "c2"}
