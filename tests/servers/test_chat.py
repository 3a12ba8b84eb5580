"""The backend of examples/chat: what users say goes on to their room once, and it outlives its broker connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bridge.app.build import Running
from tests.servers.test_inbound import heard, say
from tests.support.bridges import bridge
from tests.support.chat import chat
from tests.support.clients import Client, client
from tests.support.proxies import AmqpProxy
from tests.support.queues import ENVELOPE

ROOT = Path(__file__).parent.parent.parent
ROOM: dict[str, Any] = {"topic": "room.kitchen"}


@asynccontextmanager
async def entered(page: str, made: Running, user: str) -> AsyncIterator[Client]:
    """A client with the token that the page of the chat gets, in the room."""
    async with aiohttp.ClientSession() as http, http.get(f"{page}token", params={"user": user}) as answer:
        token = await answer.text()
    async with client(made.ws_port, token, subprotocols=ENVELOPE) as one:
        assert (await one.read_json())["type"] == "welcome"
        await one.send_json({"type": "subscribe", **ROOM, "ref": 0})
        assert await one.read_json() == {"type": "ok", "ref": 0}
        yield one


async def said(one: Client) -> Any:
    """The next push, past answers."""
    async with asyncio.timeout(40):
        while (frame := await one.read_json())["type"] != "push":
            assert frame["type"] == "ok", frame
        return frame


async def test_what_is_said_comes_to_the_room_with_its_sender_and_once_for_each_ref(
    vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database) as made,
        chat(vhost, made.ws_port) as page,
        entered(page, made, "ann") as ann,
        entered(page, made, "bob") as bob,
    ):
        await heard(ann, "the backend listens; this has no topic")
        for frame in (
            {"data": {"text": "hello"}, "ref": 1},
            {"data": {"text": "hello"}, "ref": 1},
            {"data": {"text": 7}, "ref": 2},
            {"data": "hello", "ref": 3},
            {"data": {"text": "without a ref"}},
            {"data": {"text": "bye", "user": "bob"}, "ref": 4},
        ):
            await ann.send_json({"type": "publish", "event": "chat.said", **ROOM, **frame})
        pushes = [await said(bob) for _ in range(3)]
        assert [push["data"] for push in pushes] == [
            {"user": "ann", "text": text} for text in ("hello", "without a ref", "bye")
        ]
        assert {(push["event"], push["topic"]) for push in pushes} == {("chat.said", "room.kitchen")}
        assert [await said(ann) for _ in range(3)] == pushes


async def test_it_comes_back_when_it_has_lost_the_broker(vhost: str, database: str) -> None:
    async with (
        AmqpProxy(vhost) as proxy,
        bridge(vhost, database) as made,
        chat(proxy.url, made.ws_port) as page,
        entered(page, made, "ann") as ann,
    ):
        await heard(ann, "the backend listens; this has no topic")
        proxy.refuse()
        proxy.reset()
        # Its queue is there, and keeps what is said meanwhile.
        answer = await say(ann, data={"text": "meanwhile"}, ref=1, **ROOM)
        assert answer == {"type": "ok", "ref": 1}
        proxy.accept()
        assert (await said(ann))["data"] == {"user": "ann", "text": "meanwhile"}


def test_make_run_names_the_address_of_the_chat() -> None:
    code = (ROOT / "examples" / "chat" / "page.py").read_text()
    port = re.search(r'"CHAT_PORT", "(\d+)"', code)
    assert port is not None
    run = (ROOT / "Makefile").read_text().partition("\nrun: ")[2].partition("\n\n")[0]
    assert f"http://127.0.0.1:{port[1]}/" in run
