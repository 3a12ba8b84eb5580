"""Several bridges at one broker and one database: a user is reached at whatever node they are."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

from bridge.app.build import Running
from tests.support.bridges import bridge, endings, final_rows, publish, request, token
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
