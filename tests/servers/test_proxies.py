"""nginx, HAProxy and Caddy before bridges, with the files in deploy/: what passes, what does not, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from websockets.exceptions import InvalidStatus

from bridge.core.sessions import hub
from tests.support.bridges import bridge, endings, final_rows, get, publish, request, token
from tests.support.certificates import Authority
from tests.support.clients import client
from tests.support.front_proxies import FILES, HOST, FrontProxy, front_proxy
from tests.support.other_sessions import ask, eventually
from tests.support.pages import Page
from tests.support.waiting import until

Say = Callable[[str], None]
PROXIES = sorted(FILES)
BELIEVED = {"trusted_proxies": "127.0.0.1"}
KNOWN = "a-token-that-nobody-else-writes"
CLIENT = "127.0.0.7"
"""The address of a client that is not the proxy's."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Here(AbstractResolver):
    """Every name is this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def web(authority: Authority) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client that trusts the proxies' certificates."""
    connector = aiohttp.TCPConnector(ssl=authority.trusted(), resolver=Here(), force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session


@pytest.mark.parametrize("name", PROXIES)
async def test_what_belongs_to_the_bridge_passes_and_nothing_else(
    vhost: str, database: str, tmp_path: Path, authority: Authority, say: Say, name: str
) -> None:
    async with AsyncExitStack() as bridges:
        made = await bridges.enter_async_context(bridge(vhost, database, **BELIEVED))
        async with (
            front_proxy(name, tmp_path, authority, [made.ws_port], say) as proxy,
            web(authority) as http,
        ):
            await a_websocket_proves(vhost, database, authority, proxy)
            await a_stream_proves(vhost, database, http, proxy)
            for path in ("/", "/metrics", "/status", "/readyz", "/ws/", "/wsx", "/v1/users/u1"):
                assert (path, await asked(http, proxy, path)) == (path, 404)
            assert (await get(made.ws_port, "/readyz"))[0] == 200, "the bridge itself has it"
            assert await asked(http, proxy, f"/sse?token={KNOWN}") == 401
            await bridges.aclose()
            assert await asked(http, proxy, f"/sse?token={KNOWN}") in (502, 503)
    assert "/sse" in proxy.logged
    for begin in (KNOWN, "eyJ", "bridge.token"):
        assert begin not in proxy.logged


async def a_websocket_proves(vhost: str, database: str, authority: Authority, proxy: FrontProxy) -> None:
    offered = ["bridge.v1.json", f"bridge.token.{token('u1')}"]
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    async with client(
        proxy.port, subprotocols=offered, headers=forged, tls=authority.trusted(), name=HOST, source=CLIENT
    ) as opened:
        assert (await opened.read_json())["user"] == "u1"
        await publish(vhost, request("u1", "p1"))
        assert (await opened.read_json())["id"] == "p1"
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("received", "pong")}
    assert await ask(database, "select address from session") == [(CLIENT,)]


async def a_stream_proves(
    vhost: str, database: str, http: aiohttp.ClientSession, proxy: FrontProxy
) -> None:
    """Each frame comes while the next one is not there yet, so nothing collects them."""
    headers = {"X-Forwarded-For": "6.6.6.6"}
    async with http.get(address(proxy, f"/sse?token={token('u2')}"), headers=headers) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        welcome = await frame(answer)
        await publish(vhost, request("u2", "p2", confirm="acked"))
        assert (await frame(answer))["id"] == "p2"
        proof = {"Authorization": f"Bearer {welcome['key']}"}
        async with http.post(address(proxy, "/v1/ack?id=p2"), headers=proof) as said:
            assert said.status == 204
        assert endings(await final_rows(database, 2))["p2", "u2"] == ("acked", "ack_frame")


async def asked(http: aiohttp.ClientSession, proxy: FrontProxy, path: str) -> int:
    async with http.get(address(proxy, path)) as answer:
        return answer.status


async def frame(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next frame of a stream, but pings and heartbeats."""
    while True:
        line = (await answer.content.readline()).decode()
        assert line
        if line.startswith("data:"):
            found: dict[str, Any] = json.loads(line.removeprefix("data:"))
            if found["type"] not in ("ping", "heartbeat"):
                return found


def address(proxy: FrontProxy, path: str) -> str:
    return f"https://{HOST}:{proxy.port}{path}"
