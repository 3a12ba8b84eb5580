"""The connect hook at a whole bridge: who it lets in, for how long, and what its trouble costs the others."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import playwright
import pytest
from aiohttp import web
from websockets.exceptions import InvalidStatus

from benchmarks.ports import reserved_port
from tests.support import bridges
from tests.support.clients import client, opening, problem, raw_client
from tests.support.hooks import Business, business, hanging
from tests.support.waiting import until

APP = "https://app.example"
ENVELOPE = ["bridge.v1.json"]
ROOT = Path(__file__).parent.parent.parent
NODE = Path(playwright.__file__).parent / "driver" / "node"
EXAMPLES = {
    "python": (sys.executable, ROOT / "examples" / "connect-hook" / "python" / "app.py"),
    "node": (str(NODE), ROOT / "examples" / "connect-hook" / "node" / "app.js"),
}


def beside(hook: Business, **more: object) -> dict[str, Any]:
    """The settings of a bridge that asks this business system."""
    return {"connect_url": hook.url, "origins": APP, **more}


def cookie(value: str) -> dict[str, str]:
    return {"Cookie": value, "Origin": APP}


async def refused(port: int, **how: Any) -> tuple[int, str, str]:
    """Status, word and sentence of the answer to a handshake that opens nothing."""
    with pytest.raises(InvalidStatus) as caught:
        async with client(port, **how):
            pass
    return caught.value.response.status_code, *problem(caught.value.response.body)


async def metrics(port: int) -> str:
    return (await bridges.get(port, "/metrics"))[1].decode()


async def test_a_client_with_a_cookie_of_the_business_system_gets_its_pushes(
    vhost: str, database: str
) -> None:
    async with business() as hook, bridges.bridge(vhost, database, **beside(hook)) as b:
        hook.users["s=1"] = "u1"
        path = "/ws?room=7&room=8"
        async with client(b.ws_port, path=path, headers=cookie("s=1"), subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["user"] == "u1"
            await bridges.publish(vhost, bridges.request("u1", "p1"))
            assert (await peer.read_json())["id"] == "p1"
        assert hook.questions[0]["query"] == {"room": ["7", "8"]}
        assert (hook.questions[0]["address"], hook.questions[0]["node"]) == ("127.0.0.1", "n1")
        assert set(hook.questions[0]["headers"]) == {"cookie", "origin", "user-agent"}
        assert (await refused(b.ws_port, headers=cookie("s=2")))[0] == 401
        assert (await refused(b.ws_port, headers={"Cookie": "s=1"}))[0] == 403
        assert (await refused(b.ws_port, headers={"Cookie": "s=1", "Origin": "https://evil.example"}))[
            0
        ] == 403
        async with client(b.ws_port, bridges.token("u2"), subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["user"] == "u2"
        assert len(hook.questions) == 2
        page = await metrics(b.ops_port)
        assert 'bridge_connect_hook_requests_total{result="allowed"} 1.0' in page
        assert 'bridge_connect_hook_requests_total{result="refused"} 1.0' in page
        assert 'bridge_handshakes_total{result="hook_refused"} 1.0' in page
        assert "bridge_connect_hook_seconds_count 2.0" in page
        rows = await bridges.final_rows(database, 1)
    assert bridges.endings(rows) == {("p1", "u1"): ("received", "pong")}


async def test_in_development_a_page_of_this_machine_may_send_its_cookie(vhost: str, database: str) -> None:
    async with business() as hook, bridges.bridge(vhost, database, connect_url=hook.url, dev=True) as b:
        hook.users["s=1"] = "u1"
        here = {"Cookie": "s=1", "Origin": "http://localhost:3000"}
        async with client(b.ws_port, headers=here, subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["user"] == "u1"
        for origin in ("https://app.example", "null", "http://[x", "file://"):
            assert (await refused(b.ws_port, headers={**here, "Origin": origin}))[0] == 403
        assert len(hook.questions) == 1


async def test_with_a_hook_no_secret_is_needed_and_every_header_that_is_listed_reaches_it(
    vhost: str, database: str
) -> None:
    async with business() as hook:
        more = beside(hook, jwt_secret="", connect_headers="X-Tenant, authorization")

        async def by_tenant(request: web.Request) -> web.Response:
            said = (await request.json())["headers"]
            return web.json_response(
                {"user": f"{said['x-tenant']} {said['authorization']}", "expires_at": 4e9}
            )

        hook.handler = by_tenant
        async with bridges.bridge(vhost, database, **more, token_days=36500) as b:
            headers = {"X-Tenant": "acme", "Authorization": "Bearer opaque", "X-Other": "no", "Cookie": "c=1"}
            async with client(b.ws_port, "of-their-own", headers=headers, subprotocols=ENVELOPE) as peer:
                assert (await peer.read_json())["user"] == "acme Bearer opaque"
            assert hook.questions[0]["query"] == {"token": ["of-their-own"]}


async def test_a_session_lasts_as_long_as_the_hook_says_so_in_bare_mode_as_well(
    vhost: str, database: str
) -> None:
    async with business() as hook, bridges.bridge(vhost, database, **beside(hook)) as b:
        hook.users["s=1"] = "u1"
        hook.seconds = 2.0
        async with (
            client(b.ws_port, headers=cookie("s=1")) as bare,
            client(b.ws_port, headers=cookie("s=1"), subprotocols=ENVELOPE) as peer,
        ):
            assert (await peer.read_json())["type"] == "welcome"
            await until(lambda: len(hook.questions) >= 8)
            assert {str(question) for question in hook.questions[2:]} == {
                str(question) for question in hook.questions[:2]
            }
            await bridges.publish(vhost, bridges.request("u1", "p1"))
            assert json.loads(await bare.read()) == {"n": "p1"}
            assert (await peer.read_json())["id"] == "p1"
            del hook.users["s=1"]
            assert await bare.ended() == (4401, "token_refused")
            bye = await peer.read_json()
            assert (bye["type"], bye["code"]) == ("bye", 4401)
            assert await peer.ended() == (4401, "token_refused")


async def test_a_hook_that_dies_ends_a_session_when_its_time_is_over_and_not_before(
    vhost: str, database: str
) -> None:
    async with business() as hook, bridges.bridge(vhost, database, **beside(hook, connect_timeout=0.2)) as b:
        hook.users["s=1"] = "u1"
        hook.seconds = 3.0
        async with client(b.ws_port, headers=cookie("s=1"), subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["type"] == "welcome"
            hook.handler = hanging
            await until(lambda: len(hook.questions) > 1)
            await bridges.publish(vhost, bridges.request("u1", "p1"))
            assert (await peer.read_json())["id"] == "p1"
            assert await peer.ended() == (4401, "token_expired")


async def test_a_hook_that_hangs_costs_its_own_clients_a_503_and_nobody_else_anything(
    vhost: str, database: str
) -> None:
    async with business(hanging) as hook:
        async with (
            bridges.bridge(vhost, database, **beside(hook, connect_timeout=1.0)) as b,
            client(b.ws_port, bridges.token("u1"), subprotocols=ENVELOPE) as old,
            AsyncExitStack() as stack,
        ):
            assert (await old.read_json())["type"] == "welcome"
            crowd = [await stack.enter_async_context(raw_client(b.ws_port)) for _ in range(500)]
            for peer in crowd:
                peer.send(opening())
            await until(lambda: hook.waiting >= 100)
            for n in range(20):  # while they wait
                async with client(b.ws_port, bridges.token("u2"), subprotocols=ENVELOPE) as new:
                    assert (await new.read_json())["type"] == "welcome"
                await bridges.publish(vhost, bridges.request("u1", f"p{n}"))
                assert (await old.read_json())["id"] == f"p{n}"
            answers = await asyncio.gather(*(peer.read_all() for peer in crowd))
            assert [answer[:13] for answer in answers] == [b"HTTP/1.1 503 "] * 500
            assert all(b"\r\nRetry-After: 1\r\n" in answer for answer in answers)
            assert len(hook.questions) == 100
            answer = await refused(b.ws_port, headers=cookie("s=1"))
            assert answer == (503, "unchecked", "Clients can't be checked at the moment, try again soon.")
            assert len(hook.questions) <= 101
            assert (await bridges.get(b.ws_port, "/readyz"))[0] == 200
            page = await metrics(b.ops_port)
            assert "bridge_connect_hook_breaker_open 1.0" in page
            assert 'bridge_connect_hook_requests_total{result="failed"} 100.0' in page
            said = json.loads((await bridges.get(b.ops_port, "/status"))[1])
            assert said["gauges"]["connect_hook_breaker_open"] is True
            hook.handler = None
            hook.users["s=1"] = "u3"
            async with asyncio.timeout(bridges.SECONDS):
                while True:
                    try:
                        async with client(b.ws_port, headers=cookie("s=1"), subprotocols=ENVELOPE) as back:
                            assert (await back.read_json())["user"] == "u3"
                            break
                    except InvalidStatus:
                        await asyncio.sleep(0.05)  # until it is tried again
            assert "bridge_connect_hook_breaker_open 0.0" in await metrics(b.ops_port)


async def test_a_stop_does_not_wait_for_the_hook(vhost: str, database: str) -> None:
    async with business(hanging) as hook, AsyncExitStack() as stack:
        async with bridges.bridge(vhost, database, **beside(hook, connect_timeout=8)) as b:
            peer = await stack.enter_async_context(raw_client(b.ws_port))
            peer.send(opening())
            await until(lambda: hook.waiting)
        assert (await peer.read_all()).startswith(b"HTTP/1.1 503 ")


async def test_a_revocation_while_the_hook_answers_wins(vhost: str, database: str) -> None:
    async with business() as hook, bridges.bridge(vhost, database, **beside(hook, connect_timeout=8)) as b:
        go = asyncio.Event()

        async def slowly(request: web.Request) -> web.Response:
            await go.wait()
            return web.json_response({"user": "u1", "expires_at": time.time() + 600})

        hook.handler = slowly
        opens = asyncio.create_task(refused(b.ws_port, headers=cookie("s=1")))
        await until(lambda: hook.waiting)
        async with aiohttp.ClientSession() as http:
            now = int(time.time()) + 1
            url = f"http://127.0.0.1:{b.ops_port}/v1/revoke"
            async with http.post(url, json={"user": "u1", "before": now}) as answer:
                assert answer.status == 200, await answer.text()
        go.set()
        assert await opens == (401, "revoked", "The token was refused: revoked.")
        await until(lambda: time.time() > now)
        async with client(b.ws_port, headers=cookie("s=1"), subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["user"] == "u1", "who is asked about later is let in"


CANARY = "c4nary"


async def test_no_cookie_no_header_and_no_address_of_the_hook_is_in_a_log_a_metric_an_answer_or_a_row(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bodies: list[web.Response] = []

    async def scripted(request: web.Request) -> web.Response:
        return bodies.pop(0)

    said: list[str] = []
    async with business(scripted) as hook:
        url = hook.url.replace("http://", f"http://app:{CANARY}-password@") + f"?key={CANARY}-key"
        async with bridges.bridge(vhost, database, connect_url=url, origins=APP, connect_timeout=1) as b:
            bodies += [
                web.Response(status=401, text=CANARY),
                web.Response(status=500, text=CANARY),
                web.Response(text=CANARY),
                web.json_response({"user": f"{CANARY}\n", "expires_at": CANARY}),
                web.json_response({"user": 1, "expires_at": CANARY, CANARY: CANARY}),
                web.Response(status=307, headers={"Location": f"http://{CANARY}/"}),
                web.Response(headers={"Content-Encoding": CANARY}),
                web.json_response({"user": "u1", "expires_at": time.time() + 600, "meta": {"key": CANARY}}),
            ]
            headers = {**cookie(f"s={CANARY}"), "Authorization": f"Digest {CANARY}"}
            path = f"/ws?name={CANARY}"
            for _ in range(7):
                said.append(str(await refused(b.ws_port, path=path, headers=headers)))
            async with client(b.ws_port, path=path, headers=headers, subprotocols=ENVELOPE) as peer:
                said.append(str(await peer.read_json()))
                await bridges.publish(vhost, bridges.request("u1", "p1"))
                said.append(str(await peer.read_json()))
                for page in ("/metrics", "/status", "/readyz"):
                    said.append((await bridges.get(b.ops_port, page))[1].decode())
            await hook.requests[0].read()
            assert hook.requests[0].headers["Authorization"].startswith("Basic ")
            said.append(str(await bridges.final_rows(database, 1)))
    # Before redaction, and without the lines of the clients and of the business system in this test.
    lines = [r for r in caplog.records if not r.name.startswith(("websockets.client", "aiohttp.access"))]
    text = "\n".join([*said, *(f"{record.getMessage()} {vars(record)}" for record in lines)])
    assert "it answered with 500" in text
    assert "user: expected a string of 1 to 128 characters" in text
    assert CANARY not in text


# --- the examples ----------------------------------------------------------------------------------------


@asynccontextmanager
async def example(language: str) -> AsyncIterator[str]:
    """Run it; yields its address."""
    runner, file = EXAMPLES[language]
    port = reserved_port()
    process = await asyncio.create_subprocess_exec(
        runner,
        str(file),
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(bridges.SECONDS):
            while True:
                assert process.returncode is None
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        writer.close()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("language", EXAMPLES)
async def test_an_example_lets_in_whoever_has_logged_in(language: str, vhost: str, database: str) -> None:
    async with (
        example(language) as url,
        bridges.bridge(
            vhost, database, jwt_secret="", connect_url=f"{url}/connect", origins="http://localhost:8300"
        ) as b,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as browser,
    ):
        async with browser.post(f"{url}/login", data={"user": "u42"}) as answer:
            assert answer.status == 200
            session = answer.cookies["session"]
            assert session["httponly"]
        headers = {"Cookie": f"a=b; session={session.value}", "Origin": "http://localhost:8300"}
        async with client(b.ws_port, headers=headers, subprotocols=ENVELOPE) as peer:
            assert (await peer.read_json())["user"] == "u42"
            await bridges.publish(vhost, bridges.request("u42", "p1"))
            assert (await peer.read_json())["id"] == "p1"
        for others in ("", "session=", "session=guessed", "other=1"):
            assert (await refused(b.ws_port, headers={**headers, "Cookie": others}))[0] == 401
        async with browser.post(f"{url}/logout", headers={"Cookie": headers["Cookie"]}) as answer:
            assert answer.status == 200
        assert (await refused(b.ws_port, headers=headers))[0] == 401
