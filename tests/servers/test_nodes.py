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


async def nodes(stack: AsyncExitStack, vhost: str, database: str, names: str = "ab", **more: Any) -> list[Running]:
    return [await stack.enter_async_context(bridge(vhost, database, node=name, **more)) for name in names]


async def test_a_user_at_another_node_gets_pushes_live_with_proof_and_in_order(vhost: str, database: str) -> None:
    async with AsyncExitStack() as stack:
        _, other = await nodes(stack, vhost, database)
        c = await stack.enter_async_context(client(other.ws_port, token("u"), subprotocols=ENVELOPE))
        assert json.loads(await c.read())["type"] == "welcome"
        ids = [f"p{n}" for n in range(20)]
        await publish(vhost, *(request("u", name, **({"ttl": 60} if n % 2 else {})) for n, name in enumerate(ids)))
        got = [json.loads(await c.read())["id"] for _ in ids]
        assert got == ids
        found = endings(await final_rows(database, len(ids)))
        assert found == {(name, "u"): ("received", "pong") for name in ids}
