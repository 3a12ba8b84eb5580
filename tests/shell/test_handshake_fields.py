"""What the host gets of a handshake: the client's address, and the headers that it asks for."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from bridge.adapters.websocket import server as websocket
from bridge.adapters.websocket.listening import listen
from bridge.core.contract.connecting import question
from tests.support.clients import SECONDS, opening, raw_client
from tests.support.loops import on_both_loops
from tests.support.websocket_host import Host

NAMES = ("cookie", "x-tenant", "authorization", "missing")


@on_both_loops
async def test_the_host_gets_the_address_and_the_headers_that_it_asked_for_and_no_others() -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, headers=NAMES) as server:
        async with raw_client(server.port) as peer:
            lines = (
                "Cookie: a=1",
                "X-TENANT: acme",
                "Cookie: b=2",
                "X-Tenant: 7",
                "X-Other: no",
                "Origin: o",
            )
            peer.send(opening("/ws", *lines))
            await peer.read_until(b"\r\n\r\n")
    (asked,) = host.handshakes
    assert asked.headers == {"cookie": "a=1; b=2", "x-tenant": "acme, 7"}
    assert (asked.device.address, asked.cookie, asked.origin) == ("127.0.0.1", "a=1; b=2", "o")


@pytest.mark.parametrize(
    ("sent", "said"),
    [("é".encode(), "é"), ("é".encode("latin-1"), "é"), (b"plain", "plain"), ("é€😀".encode(), "é€😀")],
)
async def test_bytes_that_are_not_ascii_reach_a_connect_hook_as_text(sent: bytes, said: str) -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, headers=("x-name", "cookie")) as server:
        async with raw_client(server.port) as peer:
            lines = (
                b"\r\nX-Name: " + sent + b"\r\nCookie: a=" + sent + b"\r\nUser-Agent: " + sent + b"\r\n\r\n"
            )
            path = f"/ws?{quote(said)}={quote(said)}"
            peer.send(opening(path).removesuffix(b"\r\n\r\n") + lines)
            await peer.read_until(b"\r\n\r\n")
    (asked,) = host.handshakes
    told = json.loads(question(asked, "n1"))
    assert told["headers"] == {"x-name": said, "cookie": f"a={said}"}
    assert told["query"] == {said: [said]}
    assert asked.device.agent == said


@on_both_loops
async def test_over_ipv6_the_address_is_the_plain_one() -> None:
    host = Host()
    async with listen("::1", 0, host, readiness=host.readiness) as server:
        async with raw_client(server.port, "::1") as peer:
            peer.send(opening())
            await peer.read_until(b"\r\n\r\n")
    assert (host.handshakes[0].device.address, host.handshakes[0].headers) == ("::1", {})


@on_both_loops
async def test_handshakes_about_which_somebody_else_is_asked_take_no_place_of_those_that_wait_for_a_key() -> (
    None
):
    host = Host()
    held = host.hold()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "HANDSHAKES_AT_ONCE", 1)
        async with listen(
            "127.0.0.1", 0, host, readiness=host.readiness, asks_at_once=1, close_grace=SECONDS
        ) as server:
            async with (
                raw_client(server.port) as first,
                raw_client(server.port) as second,
                raw_client(server.port) as third,
            ):
                for peer in (first, second):
                    peer.send(opening())
                await host.until(lambda: host.begun == 2)
                third.send(opening())
                assert (await third.read_all()).startswith(b"HTTP/1.1 503 ")
                held.set_result(None)
                for peer in (first, second):
                    assert (await peer.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
