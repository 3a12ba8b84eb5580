"""nginx, HAProxy and Caddy before bridges, with the files in deploy/: what passes, and that nothing is lost."""

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

from bridge.app.build import Running
from bridge.core.sessions import hub
from tests.support.bridges import bridge, endings, final_rows, get, publish, request, token
from tests.support.browser import launched
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

OPENS = "url => new Promise(opened => new WebSocket(url, 'bridge.v1.json').onmessage = opened).then(() => 0)"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class Here(AbstractResolver):
    """Every name is this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
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
        made = await bridges.enter_async_context(bridge(vhost, database, confirm_timeout=1.0, **BELIEVED))
        async with (
            front_proxy(name, tmp_path, authority, [made.ws_port], say) as proxy,
            web(authority) as http,
        ):
            await a_websocket_proves(vhost, database, authority, proxy)
            key = await a_stream_proves(vhost, database, http, proxy)
            for path in ("/", "/metrics", "/status", "/readyz", "/ws/", "/wsx", "/v1/users/u1"):
                assert (path, await asked(http, proxy, path)) == (path, 404)
            assert (await get(made.ws_port, "/readyz"))[0] == 200, "the bridge itself has it"
            assert await asked(http, proxy, f"/sse?token={KNOWN}") == 401
            await bridges.aclose()
            assert await asked(http, proxy, f"/sse?token={KNOWN}") in (502, 503)
    assert "/sse" in proxy.logged
    for begin in (KNOWN, "eyJ", "bridge.token", key):
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
        # The proxy takes what its client does not read, and answers no ping in its place.
        opened.freeze()
        await publish(vhost, request("u1", "p3"))
        assert endings(await final_rows(database, 2))["p3", "u1"] == ("unknown", "no_proof")
    assert await ask(database, "select address from session") == [(CLIENT,)]


async def a_stream_proves(vhost: str, database: str, http: aiohttp.ClientSession, proxy: FrontProxy) -> str:
    """Each frame comes while the next one is not there yet, so nothing collects them. Returns the key."""
    headers = {"X-Forwarded-For": "6.6.6.6"}
    async with http.get(address(proxy, f"/sse?token={token('u2')}"), headers=headers) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        welcome = await frame(answer)
        await publish(vhost, request("u2", "p2", confirm="acked"))
        assert (await frame(answer))["id"] == "p2"
        proof = {"Authorization": f"Bearer {welcome['key']}"}
        async with http.post(address(proxy, "/v1/ack?id=p2"), headers=proof) as said:
            assert said.status == 204
        assert endings(await final_rows(database, 3))["p2", "u2"] == ("acked", "ack_frame")
        return str(welcome["key"])


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


def seconds_of(name: str) -> dict[str, float]:
    """What ends a connection that is idle for so long, as the file says it."""
    text = FILES[name].read_text()
    if name == "caddy":
        # It has no such limit while none of these is there.
        assert not re.search("timeouts|read_timeout|write_timeout|stream_timeout", text)
        return {}
    pattern = r"\b(\w*_timeout) (\d+)s;" if name == "nginx" else r"\btimeout (\S+) (\d+)s"
    opening = {"proxy_connect_timeout", "fail_timeout", "connect", "http-request"}
    found = {what: float(limit) for what, limit in re.findall(pattern, text) if what not in opening}
    # Counted from when the client has gone.
    found.pop("client-fin", None)
    return found


@pytest.mark.parametrize("name", PROXIES)
def test_no_file_ends_a_session_between_two_pings(name: str) -> None:
    limits = seconds_of(name)
    assert (
        set(limits)
        == {
            "nginx": {"proxy_read_timeout", "proxy_send_timeout", "send_timeout"},
            "haproxy": {"client", "server", "tunnel"},
            "caddy": set(),
        }[name]
    )
    # One ping may be late, and the next one is there in time.
    assert all(seconds > 3 * hub.PING_EVERY for seconds in limits.values())


async def test_pings_keep_an_idle_session_open_and_without_them_it_ends(
    vhost: str,
    database: str,
    tmp_path: Path,
    authority: Authority,
    say: Say,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A ping every 0.4 s, and a heartbeat, where the files' limits are cut to two seconds.
    monkeypatch.setattr(hub, "_PLACES", 4)
    monkeypatch.setattr(hub, "_LOOK", 1)
    monkeypatch.setattr(hub, "HEARTBEAT_LOOK", 0.3)
    async with bridge(vhost, database, **BELIEVED) as made:

        async def try_it(name: str) -> None:
            async with front_proxy(name, tmp_path, authority, [made.ws_port], say, {"75s": "2s"}) as proxy:
                await idle(vhost, database, authority, made, proxy)

        await asyncio.gather(try_it("haproxy"), try_it("nginx"))


async def idle(vhost: str, database: str, authority: Authority, made: Running, proxy: FrontProxy) -> None:
    """Three sessions through this proxy: one that is pinged, one that is not, and a stream."""
    tls, name = authority.trusted(), proxy.name
    async with (
        web(authority) as http,
        client(proxy.port, token(f"pinged-{name}"), tls=tls, name=HOST) as pinged,
        client(proxy.port, token(f"silent-{name}"), tls=tls, name=HOST) as silent,
        http.get(address(proxy, f"/sse?token={token(f'stream-{name}')}")) as stream,
    ):
        await frame(stream)
        sessions = made._node.core.hub
        [alone] = sessions.of_user(f"silent-{name}")
        for place in sessions._wheel:
            place.discard(alone)
        began = asyncio.get_running_loop().time()
        assert (await silent.ended())[0] == 1006
        assert asyncio.get_running_loop().time() - began > 1
        await asyncio.sleep(3)
        await publish(
            vhost,
            request(f"pinged-{name}", f"{name}-1"),
            request(f"stream-{name}", f"{name}-2", confirm="written"),
        )
        assert json.loads(await pinged.read()) == {"n": f"{name}-1"}
        assert (await frame(stream))["id"] == f"{name}-2"
        proven = "select outcome = 'received' from delivery where push_id = %s"
        await eventually(database, proven, f"{name}-1")


async def test_reloads_and_a_drain_under_load_lose_no_push(
    vhost: str, database: str, tmp_path: Path, authority: Authority, say: Say
) -> None:
    """All three before the same two bridges. The sessions that a reload leaves behind end a second later."""
    tls, enough = authority.trusted(), asyncio.Event()
    quick = {"haproxy": {"hard-stop-after 1h": "hard-stop-after 1s"}}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        staying = await stack.enter_async_context(bridge(vhost, database, node="n2", **BELIEVED))
        leaving = AsyncExitStack()
        stack.push_async_callback(leaving.aclose)
        going = await leaving.enter_async_context(bridge(vhost, database, node="n1", **BELIEVED))
        ports = [going.ws_port, staying.ws_port]
        proxies = [
            await stack.enter_async_context(
                front_proxy(name, tmp_path, authority, ports, say, quick.get(name))
            )
            for name in PROXIES
        ]
        pages = [Page(f"{proxy.name}-{n}", proxy.port, tls, HOST) for proxy in proxies for n in range(4)]
        stays = [tasks.create_task(page.stay(), name=page.user) for page in pages]
        await until(lambda: all(page.opened for page in pages))
        await eventually(database, "select count(distinct node) = 2 from who_is_online")
        flow = tasks.create_task(published(vhost, [page.user for page in pages], enough), name="flow")
        await asyncio.sleep(0.5)
        await asyncio.gather(*(proxy.reload() for proxy in proxies))
        await until(lambda: all(page.opened >= 2 for page in pages), 20)
        await leaving.aclose()
        await eventually(
            database, "select count(*) = %s and bool_and(node = 'n2') from who_is_online", len(pages)
        )
        enough.set()
        ids = await flow
        found = endings(await final_rows(database, len(ids) * len(pages), 30))
        for stay in stays:
            stay.cancel()
    assert len(ids) > 10
    assert {page.user: page.seen for page in pages} == {page.user: ids for page in pages}
    assert found == {(push, page.user): ("acked", "ack_frame") for push in ids for page in pages}


async def published(vhost: str, users: list[str], enough: asyncio.Event) -> list[str]:
    """Ten pushes a second to each of them; returns their ids."""
    ids: list[str] = []
    while not enough.is_set():
        ids.append(f"p{len(ids)}")
        await publish(
            vhost, {"id": ids[-1], "to": {"users": users}, "data": 1, "ttl": 60, "confirm": "acked"}
        )
        await asyncio.sleep(0.1)
    return ids


async def test_a_browser_opens_a_websocket_in_a_stream_of_http2(
    vhost: str, database: str, tmp_path: Path, authority: Authority, say: Say
) -> None:
    """By RFC 8441, which HAProxy has. The browser does it where it has a connection with HTTP/2 already."""
    version = {'"%ci [': '"%HV %ci ['}
    async with (
        bridge(vhost, database, **BELIEVED) as made,
        front_proxy("haproxy", tmp_path, authority, [made.ws_port], say, version) as proxy,
        launched() as browser,
    ):
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        await page.goto(f"https://127.0.0.1:{proxy.port}/v1/ack")
        await page.evaluate(OPENS, f"wss://127.0.0.1:{proxy.port}/ws?token={token('u1')}")
        await publish(vhost, request("u1", "p1"))
        assert endings(await final_rows(database, 1)) == {("p1", "u1"): ("received", "pong")}
        await context.close()
    assert re.search(r"^HTTP/2.0 .* GET https://\S+/ws 101 ", proxy.logged, re.MULTILINE)
