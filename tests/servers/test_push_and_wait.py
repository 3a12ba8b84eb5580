"""`POST /v1/push?wait=` on a whole bridge: what it says is final is final, and what is kept ends the wait."""

from __future__ import annotations

import time
from typing import Any

import aiohttp

from tests.support import bridges
from tests.support.clients import client


async def pushed(port: int, body: object) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{port}/v1/push?wait=20"
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
        return answer.status, await answer.json()


async def test_a_push_for_nobody_who_is_here_ends_the_wait_and_is_not_complete(
    vhost: str, database: str
) -> None:
    async with bridges.bridge(vhost, database) as bridge:
        started = time.monotonic()
        status, said = await pushed(bridge.ops_port, bridges.request("u1", "p1", ttl=60))
        assert time.monotonic() - started < 15, "it waited for somebody who is away"
    assert (status, said["complete"], said["stored"]) == (202, False, 1)
    assert [(r["outcome"], r["final"]) for r in said["receipts"]] == [("stored", False)]


async def test_what_is_complete_is_final(vhost: str, database: str) -> None:
    async with bridges.bridge(vhost, database) as bridge, client(bridge.ws_port, bridges.token("u1")):
        status, said = await pushed(bridge.ops_port, bridges.request("u1", "p1", ttl=60))
    assert (status, said["complete"], said["stored"]) == (200, True, 0)
    assert said["receipts"][-1]["final"] is True
