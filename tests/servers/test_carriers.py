"""Tokens at a whole bridge: every way in which one may come, every kind of key, and nowhere any trace of one."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from websockets.exceptions import InvalidStatus

from tests.support import bridges
from tests.support.clients import Client, client, opening, problem, raw_client
from tests.support.keys import jwks, pair
from tests.support.waiting import until

APP = "https://app.example"
ENVELOPE = ["bridge.v1.json"]


@asynccontextmanager
async def carried(port: int, carrier: str, token: str) -> AsyncIterator[Client]:
    """Connect with the token in this carrier."""
    options: dict[str, dict[str, Any]] = {
        "authorization": {"headers": {"Authorization": f"Bearer {token}"}},
        "subprotocol": {"subprotocols": [f"bridge.token.{token}", *ENVELOPE]},
        "query": {"token": token},
        "frame": {},
        "cookie": {"headers": {"Origin": APP, "Cookie": f"other=1; jar={token}"}},
    }
    async with client(port, **{"subprotocols": ENVELOPE, **options[carrier]}) as peer:
        if carrier == "frame":
            await peer.send_json({"type": "auth", "token": token})
        yield peer


CARRIERS = ("authorization", "subprotocol", "query", "frame", "cookie")
ALL: dict[str, object] = {"token_from": ",".join(CARRIERS), "token_cookie": "jar", "origins": APP}


async def test_no_token_is_in_a_log_a_metric_an_answer_or_a_row_whichever_way_it_came(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [
        bridges.token("u1"),
        bridges.token("u1", ttl=-3600),
        bridges.token("u1")[:-6] + "AAAAAA",
        "opaque-words",
    ]
    said: list[str] = []
    async with bridges.bridge(vhost, database, **ALL) as b:
        for carrier in CARRIERS:
            for token in tokens:
                try:
                    async with carried(b.ws_port, carrier, token) as peer:
                        said.append(str(await peer.read()))
                        if token is tokens[0]:
                            push = bridges.request("u1", f"p-{carrier}")
                            await bridges.publish(vhost, push)
                            said.append(str(await peer.read()))
                        else:
                            said.append(str(await peer.ended()))
                except InvalidStatus as refused:
                    said.append(f"{refused.response.status_code} {problem(refused.response.body)}")
        for path in ("/metrics", "/status", "/readyz"):
            said.append((await bridges.get(b.ops_port, path))[1].decode())
        rows = await bridges.final_rows(database, len(CARRIERS))
    # Before redaction, and without the lines of the clients in this test.
    lines = [record for record in caplog.records if not record.name.startswith("websockets.client")]
    text = "\n".join([*said, str(rows), *(f"{record.getMessage()} {vars(record)}" for record in lines)])
    assert sum('"type":"welcome"' in answer for answer in said) == len(CARRIERS)
    assert sum("The token was refused" in answer for answer in said) == 3 * len(CARRIERS)
    assert "handshake refused: The token was refused: expired" in caplog.text
    for token in tokens:
        for part in token.split(".")[1:] or [token]:
            assert part not in text


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_carrier_that_is_switched_off_opens_nothing(vhost: str, database: str, carrier: str) -> None:
    others = ",".join(each for each in CARRIERS if each != carrier)
    async with bridges.bridge(vhost, database, **{**ALL, "token_from": others}) as b:
        if carrier == "cookie":  # browsers send cookies by themselves, so this one is as if it were not there
            async with carried(b.ws_port, carrier, bridges.token("u1")) as peer:
                assert await peer.ended() == (4401, "auth_timeout")
            return
        with pytest.raises(InvalidStatus) as refused:
            async with carried(b.ws_port, carrier, bridges.token("u1")):
                pass
        assert refused.value.response.status_code == 401


async def test_a_token_that_comes_as_the_first_message_opens_the_session_then_and_not_before(
    vhost: str, database: str
) -> None:
    async with bridges.bridge(vhost, database) as b:
        async with client(b.ws_port) as bare, client(b.ws_port, subprotocols=ENVELOPE) as peer:
            metrics = (await bridges.get(b.ops_port, "/metrics"))[1].decode()
            assert "bridge_strangers 2.0" in metrics
            assert "bridge_sessions 0.0" in metrics
            await bridges.publish(vhost, bridges.request("u1", "before"))
            await bridges.final_rows(database, 1)
            for each in (bare, peer):
                await each.send_json({"type": "auth", "token": bridges.token("u1")})
            assert (await peer.read_json())["type"] == "welcome"
            await bridges.publish(vhost, bridges.request("u1", "after"))
            assert json.loads(await bare.read()) == {"n": "after"}
            assert (await peer.read_json())["id"] == "after"
            rows = await bridges.final_rows(database, 2)
    outcomes = {row["push_id"]: row["outcome"] for row in rows}
    assert outcomes == {"before": "offline", "after": "received"}


async def test_a_wrong_or_missing_first_message_closes_with_4401(vhost: str, database: str) -> None:
    async with bridges.bridge(vhost, database) as b:
        async with client(b.ws_port, subprotocols=ENVELOPE) as peer:
            await peer.send_json({"type": "auth", "token": bridges.token("u1", ttl=-3600)})
            error = await peer.read_json()
            assert (error["type"], error["message"]) == ("error", "The token was refused: expired.")
            assert (await peer.read_json())["code"] == 4401
            assert await peer.ended() == (4401, "token_refused")
        async with client(b.ws_port) as silent:
            assert await silent.ended() == (4401, "auth_timeout")
        metrics = (await bridges.get(b.ops_port, "/metrics"))[1].decode()
    for why in ("expired", "auth_timeout"):
        assert f'bridge_handshakes_total{{result="{why}"}} 1.0' in metrics


# --- keys ------------------------------------------------------------------------------------------------


async def refused(port: int, token: str) -> bool:
    """Whether this token opens no session now."""
    try:
        await welcomed(port, token)
    except InvalidStatus:
        return True
    return False


async def welcomed(port: int, token: str) -> str:
    async with client(port, token, subprotocols=ENVELOPE) as peer:
        return str((await peer.read_json())["user"])


async def test_tokens_of_keys_open_sessions_beside_those_of_several_secrets(
    vhost: str, database: str, tmp_path: Path
) -> None:
    keys = [pair(algorithm, algorithm) for algorithm in ("RS256", "ES256", "EdDSA")]
    path = tmp_path / "keys.json"
    path.write_bytes(jwks(*(key.jwk() for key in keys)))
    new = "another secret for tests only: 9876543210"
    secrets = f"{new},{bridges.SECRET}"
    async with bridges.bridge(vhost, database, jwt_keys=str(path), jwt_secret=secrets) as b:
        claims = {"sub": "u1", "exp": time.time() + 60}
        for key in keys:
            assert await welcomed(b.ws_port, key.sign(claims)) == "u1"
        assert await welcomed(b.ws_port, bridges.token("u2")) == "u2"
        with pytest.raises(InvalidStatus) as refused:
            await welcomed(b.ws_port, keys[0].sign(claims, kid="none"))
        sentence = "The token was refused: unknown_key (no key has its kid)."
        assert problem(refused.value.response.body) == ("unknown_key", sentence)


async def test_keys_of_an_address_are_awaited_fetched_and_renewed(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair("ES256", "old"), pair("ES256", "new", which="new")
    claims = {"sub": "u1", "exp": time.time() + 600}
    published = [b"starting"]
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=published[0])

    app = web.Application()
    app.router.add_get("/keys", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
        monkeypatch.setattr("bridge.adapters.jwks.AGAIN_AFTER", 0.5)
        async with bridges.bridge(vhost, database, jwt_jwks_url=url, dev=True) as b:
            await until(lambda: asked)
            async with raw_client(b.ws_port) as peer:
                peer.send(opening(f"/ws?token={old.sign(claims)}"))
                answer = await peer.read_all()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: " in answer
            assert await bridges.get(b.ws_port, "/readyz") == (503, b'{"ready": false, "causes": ["keys"]}\n')
            assert b"no keys yet" in (await bridges.get(b.ops_port, "/readyz"))[1]
            assert await welcomed(b.ws_port, bridges.token("u2")) == "u2", "a secret needs no key"
            published[0] = jwks(old.jwk())
            async with asyncio.timeout(10):
                while (await bridges.get(b.ws_port, "/readyz"))[0] != 200:
                    await asyncio.sleep(0.02)
            assert await welcomed(b.ws_port, old.sign(claims)) == "u1"
            published[0] = jwks(old.jwk(), new.jwk())
            async with asyncio.timeout(10):
                while await refused(b.ws_port, new.sign(claims)):
                    await asyncio.sleep(0.02)  # until the address may be asked again
            published[0] = b"broken"
            before = len(asked)
            async with asyncio.timeout(10):
                while len(asked) == before:
                    assert await refused(b.ws_port, new.sign(claims, kid="other"))
                    await asyncio.sleep(0.02)
            assert await welcomed(b.ws_port, old.sign(claims)) == "u1", "the keys before are kept"
            metrics = (await bridges.get(b.ops_port, "/metrics"))[1].decode()
            assert 'bridge_jwks_fetches_total{result="ok"} 2.0' in metrics
            assert "bridge_jwks_age_seconds " in metrics
    finally:
        await runner.cleanup()
