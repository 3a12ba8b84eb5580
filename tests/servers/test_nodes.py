"""Several bridges at one broker and one database: a user is reached at whatever node they are."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import psycopg
import pytest
from websockets.exceptions import ConnectionClosed

from bridge.app.build import Running
from bridge.core.contract.letters import Forwarded, encode_letter
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.devservers import Servers
from tests.support.bridges import (
    bridge,
    endings,
    final_rows,
    process,
    publish,
    request,
    rows_when,
    token,
)
from tests.support.broker_settings import own_user
from tests.support.clients import client
from tests.support.queues import ENVELOPE


async def nodes(
    stack: AsyncExitStack, vhost: str, database: str, names: str = "ab", **more: Any
) -> list[Running]:
    return [await stack.enter_async_context(bridge(vhost, database, node=name, **more)) for name in names]


async def test_a_user_at_another_node_gets_pushes_live_with_proof_and_in_order(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        ids = [f"p{n}" for n in range(20)]
        await publish(
            vhost, *(request("u", name, **({"ttl": 60} if n % 2 else {})) for n, name in enumerate(ids))
        )
        got = [json.loads(await c.read())["id"] for _ in ids]
        assert got == ids
        found = endings(await final_rows(database, len(ids)))
        assert found == {(name, "u"): ("received", "pong") for name in ids}


async def test_the_largest_pushes_reach_a_user_at_another_node(vhost: str, database: str) -> None:
    # A letter is a little larger than the request.
    large = "x" * (MESSAGE_BYTES_MAX - len(json.dumps(request("u", "p0", data=""))))
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database, max_data_bytes=MESSAGE_BYTES_MAX)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        ids = [f"p{n}" for n in range(4)]
        await publish(vhost, *(request("u", name, data=large) for name in ids))
        for name in ids:
            push = json.loads(await c.read())
            assert (push["id"], push["data"]) == (name, large)
        assert set(endings(await final_rows(database, len(ids))).values()) == {("received", "pong")}


async def test_a_user_at_several_nodes_gets_each_push_at_all_of_them_and_has_one_row(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        made = await nodes(stack, vhost, database, "abc")
        here = [
            await stack.enter_async_context(client(one.ws_port, token("u"), subprotocols=ENVELOPE))
            for one in made
        ]
        for c in here:
            assert json.loads(await c.read())["type"] == "welcome"
        await publish(
            vhost, request("u", "p1"), request("u", "p2", ttl=60), request("u", "p3", confirm="acked")
        )
        for c in here:
            assert [json.loads(await c.read())["id"] for _ in range(3)] == ["p1", "p2", "p3"]
        await here[2].send_json({"type": "ack", "id": "p3"})
        found = endings(await final_rows(database, 3))
        assert found == {
            ("p1", "u"): ("received", "pong"),
            ("p2", "u"): ("received", "pong"),
            ("p3", "u"): ("acked", "ack_frame"),
        }


async def test_the_best_proof_counts_and_sessions_that_are_excluded_are_spared_at_every_node(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        first, second = await nodes(stack, vhost, database)
        one = await stack.enter_async_context(client(first.ws_port, token("u"), subprotocols=ENVELOPE))
        other = await stack.enter_async_context(client(second.ws_port, token("u"), subprotocols=ENVELOPE))
        ids = [json.loads(await c.read())["session"] for c in (one, other)]
        await publish(
            vhost,
            request("u", "p1", to={"user": "u", "except": [ids[1]]}),
            request("u", "p2", to={"user": "u", "except": [ids[0]]}),
            request("u", "p3", to={"user": "u", "except": ids}),
            request("u", "p4"),
        )
        assert [json.loads(await one.read())["id"] for _ in range(2)] == ["p1", "p4"]
        assert [json.loads(await other.read())["id"] for _ in range(2)] == ["p2", "p4"]
        found = endings(await final_rows(database, 4))
        assert found[("p3", "u")] == ("offline", "excluded")
        assert {found[(name, "u")] for name in ("p1", "p2", "p4")} == {("received", "pong")}


async def test_a_push_that_is_stored_while_its_user_opens_at_another_node_reaches_that_session(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        for n in range(100):
            user, name = f"u{n}", f"p{n}"
            sent = asyncio.create_task(publish(vhost, request(user, name, ttl=60)), name="publish")
            async with client(other.ws_port, token(user), subprotocols=ENVELOPE) as c:
                frames = [json.loads(await c.read()) for _ in range(2)]
                assert [frame["type"] for frame in frames] == ["welcome", "push"]
                assert frames[1]["id"] == name
                await sent
                await asyncio.sleep(0)
        found = endings(await final_rows(database, 100))
        assert set(found.values()) == {("received", "pong")}


async def test_a_push_without_ttl_to_a_user_who_is_nowhere_is_offline(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        await nodes(stack, vhost, database)
        await publish(vhost, request("u", "p1"))
        assert endings(await final_rows(database, 1)) == {("p1", "u"): ("offline", "no_session")}


async def test_a_push_to_a_session_reaches_it_at_another_node_and_a_closed_one_is_told_by_its_user(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        async with client(other.ws_port, token("u"), subprotocols=ENVELOPE) as c:
            session = json.loads(await c.read())["session"]
            await publish(vhost, {"id": "p1", "to": {"session": session}, "data": 1})
            assert json.loads(await c.read())["id"] == "p1"
        async with asyncio.timeout(10):
            while await open_sessions(database):
                await asyncio.sleep(0.02)
        await publish(vhost, {"id": "p2", "to": {"session": session}, "data": 1})
        await publish(vhost, {"id": "p3", "to": {"session": "never-was"}, "data": 1})
        assert endings(await final_rows(database, 3)) == {
            ("p1", "u"): ("received", "pong"),
            ("p2", "u"): ("offline", "no_session"),
            ("p3", None): ("offline", "no_session"),
        }


async def test_a_push_to_everyone_reaches_all_nodes_and_each_user_has_one_row(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        made = await nodes(stack, vhost, database, "abc")
        here = []
        for n, node in enumerate(made):
            for user in (f"u{n}", "at every node"):
                c = await stack.enter_async_context(client(node.ws_port, token(user), subprotocols=ENVELOPE))
                assert json.loads(await c.read())["type"] == "welcome"
                here.append(c)
        await publish(vhost, {"id": "p1", "to": {"all": True}, "data": 1})
        for c in here:
            assert json.loads(await c.read())["id"] == "p1"
        found = endings(await final_rows(database, 4))
        assert found == {("p1", user): ("received", "pong") for user in ("u0", "u1", "u2", "at every node")}


async def test_a_push_to_everyone_whom_only_other_nodes_have_has_no_row_of_nobody(
    vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        async with client(other.ws_port, token("u"), subprotocols=ENVELOPE) as c:
            assert json.loads(await c.read())["type"] == "welcome"
            await publish(vhost, {"id": "p1", "to": {"all": True}, "data": 1, "confirm": "written"})
            assert json.loads(await c.read())["id"] == "p1"
            assert endings(await final_rows(database, 1)) == {("p1", "u"): ("written", "handed_over")}


async def test_a_recall_reaches_the_sessions_of_all_nodes(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        await publish(vhost, request("u", "p1", confirm="acked", ttl=60), request("u", "p2", confirm="acked"))
        assert [json.loads(await c.read())["id"] for _ in range(2)] == ["p1", "p2"]
        for name in ("p1", "p2"):
            async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
                exchange = await channel.get_exchange("push.control")
                body = json.dumps({"type": "recall", "push_id": name}).encode()
                await exchange.publish(aio_pika.Message(body), "")
            frame = json.loads(await c.read())
            assert (frame["type"], frame["id"]) == ("withdraw", name)
        found = endings(await final_rows(database, 2))
        assert found == {(name, "u"): ("recalled", "withdrawn") for name in ("p1", "p2")}


async def test_a_client_resumes_at_another_node_and_misses_nothing(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        first, second = await nodes(stack, vhost, database)
        async with client(first.ws_port, token("u"), subprotocols=ENVELOPE) as c:
            assert json.loads(await c.read())["type"] == "welcome"
            await publish(vhost, request("u", "p1", ttl=60))
            assert json.loads(await c.read())["id"] == "p1"
            await final_rows(database, 1)
        await publish(vhost, *(request("u", f"p{n}", ttl=60) for n in range(2, 6)))
        async with client(second.ws_port, token("u"), path="/ws?last=p1", subprotocols=ENVELOPE) as c:
            welcome = json.loads(await c.read())
            assert (welcome["type"], welcome["complete"]) == ("welcome", True)
            # A resume begins a moment before the push that was seen last.
            assert [json.loads(await c.read())["id"] for _ in range(5)] == ["p1", "p2", "p3", "p4", "p5"]
        assert set(endings(await final_rows(database, 5)).values()) == {("received", "pong")}


@pytest.mark.parametrize("place", [0, 1], ids=["where the push is taken", "at another node"])
async def test_a_client_that_resumes_gets_what_another_session_proves_meanwhile(
    vhost: str, database: str, place: int
) -> None:
    async with AsyncExitStack() as stack:
        made = await nodes(stack, vhost, database)
        one = await stack.enter_async_context(client(made[0].ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await one.read())["type"] == "welcome"
        await publish(vhost, request("u", "p0", ttl=600))
        assert json.loads(await one.read())["id"] == "p0"
        await final_rows(database, 1)
        await publish(vhost, request("u", "p1", ttl=600, confirm="acked"))
        assert json.loads(await one.read())["id"] == "p1"
        port = made[place].ws_port
        async with client(port, token("u"), path="/ws?last=p0", subprotocols=ENVELOPE) as two:
            assert json.loads(await two.read())["complete"] is True
            await one.send_json({"type": "ack", "id": "p1"})
            while json.loads(await two.read())["id"] != "p1":
                pass
        await final_rows(database, 2)


async def test_a_holder_that_is_killed_leaves_its_pushes_unknown_or_kept_and_none_is_offline(
    vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database, node="a", confirm_timeout=2.0),
        process(vhost, database, node="b") as other,
    ):
        async with client(other.ws_port, token("u"), subprotocols=ENVELOPE) as c:
            assert json.loads(await c.read())["type"] == "welcome"
            await publish(vhost, request("u", "p1"))
            assert json.loads(await c.read())["id"] == "p1"
            await final_rows(database, 1)
            other.signal(signal.SIGSTOP)
            await publish(vhost, request("u", "p2"), request("u", "p3", ttl=600))
            found = endings(await final_rows(database, 2))
            assert found[("p2", "u")] == ("unknown", "node_silent")
            assert found[("p3", "u")] == ("stored", "node_silent")
            await other.kill()
            await publish(vhost, request("u", "p4"))
            assert endings(await final_rows(database, 3))[("p4", "u")] == ("dropped", "node_unreachable")


async def test_a_taker_that_is_killed_is_followed_by_one_that_ends_what_it_left(
    vhost: str, database: str
) -> None:
    async with process(vhost, database, node="a") as first, bridge(vhost, database, node="b") as other:
        async with client(other.ws_port, token("u"), subprotocols=ENVELOPE) as c:
            assert json.loads(await c.read())["type"] == "welcome"
            await publish(vhost, request("u", "p1", confirm="acked", ack_within=60), request("u", "p2"))
            assert [json.loads(await c.read())["id"] for _ in range(2)] == ["p1", "p2"]
            await final_rows(database, 1)
            await until_parked(database, "p1")
            await first.kill()
            await publish(vhost, request("u", "p3"))
            assert json.loads(await c.read())["id"] == "p3"
            found = endings(await final_rows(database, 3))
            assert found == {
                ("p1", "u"): ("received", "not_acked"),
                ("p2", "u"): ("received", "pong"),
                ("p3", "u"): ("received", "pong"),
            }
            await c.send_json({"type": "ack", "id": "p1"})


async def test_a_node_that_was_frozen_sends_nothing_to_users_whom_the_others_found_away(
    servers: Servers, vhost: str, database: str
) -> None:
    async with (
        process(vhost, database, node="a") as first,
        bridge(vhost, database, node="b"),
        client(first.ws_port, token("u")) as c,
    ):
        await until_open(database, 1)
        first.signal(signal.SIGSTOP)
        await publish(vhost, request("u", "p1"))  # the broker hands it to the frozen node
        await until_open(database, 0)
        servers.rabbit.evaluate(
            '[rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()].'
        )
        assert endings(await final_rows(database, 1)) == {("p1", "u"): ("offline", "no_session")}
        first.signal(signal.SIGCONT)
        with pytest.raises(ConnectionClosed):
            pytest.fail(f"got {await c.read()!r}")


async def until_open(database: str, sessions: int) -> None:
    async with asyncio.timeout(15):
        while await open_sessions(database) != sessions:
            await asyncio.sleep(0.05)


async def until_parked(database: str, push: str) -> None:
    await rows_when(database, lambda found: any(row["push_id"] == push for row in found))


async def open_sessions(database: str) -> int:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute("select count(*) from session where closed_at is null")
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])


async def test_what_somebody_else_writes_to_the_queue_of_a_node_is_thrown_away(
    servers: Servers, vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        [queue] = [name for name in await queues_of_nodes(database) if name.startswith("push.node.b.")]
        forged = Forwarded(1, ["u"], "", "", "forged", "message", "json", b"1", 2, [], "", 1, None)
        with own_user(servers, vhost) as stranger:
            for url in (stranger, vhost):
                name = urlsplit(url).username
                async with await aio_pika.connect(url) as connection, connection.channel() as channel:
                    for user_id in (None, name) if url is stranger else (None,):
                        letter = aio_pika.Message(encode_letter("x", [forged]), user_id=user_id)
                        await channel.default_exchange.publish(letter, queue)
        await publish(vhost, request("u", "p1"))
        assert json.loads(await c.read())["id"] == "p1"
        assert sum("are thrown away" in message for message in caplog.messages) == 1


async def test_nodes_whose_connections_are_cut_find_each_other_again(
    servers: Servers, vhost: str, database: str
) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        before = await queues_of_nodes(database)
        servers.rabbit.evaluate(
            '[rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()].'
        )
        async with asyncio.timeout(20):
            while len(now := await queues_of_nodes(database)) != 2 or set(now) & set(before):
                await asyncio.sleep(0.05)
        await publish(vhost, *(request("u", f"p{n}", ttl=60) for n in range(3)))
        seen = [json.loads(await c.read())["id"] for _ in range(3)]
        assert seen == ["p0", "p1", "p2"]
        assert set(endings(await final_rows(database, 3)).values()) == {("received", "pong")}


async def queues_of_nodes(database: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        cursor = await connection.execute("select queue from node where queue is not null")
        return [name for (name,) in await cursor.fetchall()]
