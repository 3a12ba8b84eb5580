"""Opening handshakes at a whole bridge: what each way to refuse one says, counts and logs, and who gets in."""

from __future__ import annotations

import base64
import json
import logging
import time

import jwt
import pytest

from bridge.core.redaction import redact
from tests.support import bridges
from tests.support.clients import client, opening, raw_client, refusal

FAR = int(time.time()) + 86_400


def signed(**claims: object) -> str:
    return jwt.encode({"exp": FAR, **claims}, bridges.SECRET, algorithm="HS256")


async def answer(port: int, request: bytes) -> tuple[int, str, str]:
    """Status, word and sentence of the answer."""
    async with raw_client(port) as peer:
        peer.send(request)
        return refusal(await peer.read_all())


async def test_every_refused_handshake_is_counted_and_one_debug_line_with_its_reason_and_no_token(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = signed(sub="u1")
    in_ms = signed(sub="u1", exp=FAR * 1000)
    requests = {
        "subprotocol": opening("/ws", f"Sec-WebSocket-Protocol: bridge.token.{good}"),
        "bad_header": opening(f"/ws?token={good}", "Sec-WebSocket-Protocol: "),
        "malformed": opening(f"/ws?token={in_ms}"),
        "signature": opening(f"/ws?token={good[:-8]}AAAAAAAA"),
        "missing": opening("/ws?token="),
        "many": opening(f"/ws?token={good}", f"Authorization: Bearer {in_ms}"),
        "origin": opening(f"/ws?token={good}", "Origin: https://evil.example"),
        "path": opening(f"/socket?token={good}"),
        "too_long": opening(f"/ws?token={good}&last={'x' * 30_000}"),
        "not_http": f"GET /ws?token={good}\r\n\r\n".encode(),
        "too_early": opening(f"/ws?token={good}") + b"\x81\x80\0\0\0\0",
    }
    caplog.set_level(logging.DEBUG, "bridge.handshake")
    async with bridges.bridge(vhost, database, origins="https://app.example") as b:
        answers = {why: await answer(b.ws_port, request) for why, request in requests.items()}
        _, page = await bridges.get(b.ops_port, "/metrics")
    lines = [record for record in caplog.records if record.name == "bridge.handshake"]
    assert [vars(line)["why"] for line in lines] == list(requests)
    assert {line.levelno for line in lines} == {logging.DEBUG}
    for line, (why, (status, word, sentence)) in zip(lines, answers.items(), strict=True):
        assert word == why
        assert line.getMessage() == f"handshake refused: {sentence}"
        assert redact(line.getMessage()) == line.getMessage(), "nothing in it looks like a secret"
        assert vars(line)["status"] == status
        assert f'bridge_handshakes_total{{result="{why}"}} 1' in page.decode()
    assert "milliseconds" in answers["malformed"][2]
    assert "offer bridge.v1.json or bridge.bare too" in answers["subprotocol"][2]
    assert all(part not in caplog.text for token in (good, in_ms) for part in token.split(".")[1:])


async def test_a_user_whose_token_has_a_number_for_sub_gets_the_pushes_for_that_number(
    vhost: str, database: str
) -> None:
    token = jwt.PyJWS().encode(
        json.dumps({"sub": 42, "exp": FAR}).encode(), bridges.SECRET, algorithm="HS256"
    )
    async with bridges.bridge(vhost, database) as b, client(b.ws_port, token) as c:
        await bridges.publish(vhost, bridges.request("42", "p1"))
        assert json.loads(await c.read()) == {"n": "p1"}


async def test_a_token_in_standard_base64_opens_a_session_raw_and_percent_encoded(
    vhost: str, database: str
) -> None:
    parts = signed(sub="u1", k="?~?~?~").split(".")
    token = ".".join(
        base64.b64encode(base64.urlsafe_b64decode(p + "=" * (-len(p) % 4))).decode() for p in parts
    )
    assert "=" in token
    async with bridges.bridge(vhost, database) as b:
        for written in (token, token.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")):
            async with client(b.ws_port, written, subprotocols=["bridge.v1.json"]) as c:
                assert (await c.read_json())["user"] == "u1"


@pytest.mark.parametrize("size", [8_000, 16_000])
async def test_a_large_token_opens_a_session_in_each_carrier(vhost: str, database: str, size: int) -> None:
    token = signed(sub="u1", groups="g" * (size * 3 // 4 - 100))
    assert size - 200 < len(token) <= 16 * 1024
    async with bridges.bridge(vhost, database) as b:
        async with client(b.ws_port, token, subprotocols=["bridge.v1.json"]) as c:
            assert (await c.read_json())["user"] == "u1"
        bearer = {"Authorization": f"bearer  {token}"}
        async with client(b.ws_port, subprotocols=["bridge.v1.json"], headers=bearer) as c:
            assert (await c.read_json())["user"] == "u1"
        offered = [f"bridge.token.{token}", "bridge.v1.json"]
        async with client(b.ws_port, subprotocols=offered) as c:
            assert (await c.read_json())["user"] == "u1"
