"""A bridge in which enough has happened for each view of the console to have something: for tests and pictures."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import aiohttp
import pytest

from bridge.app import build as app
from bridge.ops import history
from tests.support import bridges
from tests.support.clients import Client, client

MARKUP = "<img src=x onerror=alert(1)>"
"""An event that would be markup, if it were ever taken for any."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
CROWD = 30
"""Users of the push `to-many`; a story tells twenty of them."""
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


class Scene(NamedTuple):
    """A bridge, and where its servers are."""

    running: app.Running
    vhost: str
    database: str

    @property
    def url(self) -> str:
        """Its console."""
        return f"http://127.0.0.1:{self.running.ops_port}/"


@asynccontextmanager
async def scene(vhost: str, database: str, *, every: float = 1.0, **settings: object) -> AsyncIterator[Scene]:
    """For the length of the block. `every`: seconds between two samples of the history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "EVERY", every)
        async with (
            bridges.bridge(vhost, database, dev=True, **settings) as running,
            AsyncExitStack() as stack,
        ):
            for user, topics in (("u1", ["news.local"]), ("u1", []), ("u2", ["news.local"]), ("u3", [])):
                await _stay(stack, running.ws_port, user, topics)
            await fill(vhost, running.ops_port)
            await bridges.counted(database, "push_id = 'to-many'", CROWD, 30)
            await bridges.counted(
                database, "push_id in ('kept-1', 'offline-1', 'marked', 'not-whole')", 4, 30
            )
            yield Scene(running, vhost, database)


async def _stay(stack: AsyncExitStack, port: int, user: str, topics: list[str]) -> None:
    """A client that reads, acks what asks for it, and stays until the stack is left."""
    token = bridges.token(user, topics=topics, subscribe=["#"])
    headers = {"User-Agent": AGENT}
    peer = await stack.enter_async_context(
        client(port, token, subprotocols=["bridge.v1.json"], headers=headers)
    )
    await peer.read_json()
    task = asyncio.create_task(_read(peer), name=f"client of {user}")

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


async def _read(peer: Client) -> None:
    with contextlib.suppress(Exception):
        async for message in peer.connection:
            frame = json.loads(message)
            if frame["type"] == "push":
                await peer.send_json({"type": "ack", "id": frame["id"]})


async def fill(vhost: str, ops_port: int) -> None:
    """Publish pushes with every kind of end, and do something by hand."""
    one = bridges.request
    await bridges.publish(
        vhost,
        one("u1", "order-7-shipped", event="order", confirm="acked"),
        one("u9", "offline-1", event="order", tenant="shop"),
        one("u9", "kept-1", event="order", ttl=3600),
        one("u1", "marked", event=MARKUP),
        {"id": "to-many", "to": {"users": [f"m{n:02}" for n in range(CROWD - 2)] + ["u1", "u2"]}, "data": 1},
        {"id": "score", "to": {"topic": "news.local"}, "event": "score", "data": {"home": 2}, "retain": True},
        {"id": "not-whole", "to": {}, "data": 1},
        *(one("u2", f"note-{n}", event="note") for n in range(20)),
        app_id="billing",
    )
    await bridges.publish(
        vhost, one("u3", "traced"), headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    )
    json_type = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{ops_port}") as http:
        async with http.post("/v1/push?wait=5", data=b"{", headers=json_type) as answer:
            assert answer.status == 422
        async with http.post("/v1/recall", json={"push_id": "nothing-has-this-id"}) as answer:
            assert answer.status == 200
