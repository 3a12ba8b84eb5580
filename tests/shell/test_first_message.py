"""Sockets whose token is to come as the first message: how large that may be, on real sockets."""

from __future__ import annotations

import struct

from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.listening import listen
from tests.support.clients import SECONDS, client, masked, opening, raw_client
from tests.support.loops import on_both_loops
from tests.support.websocket_host import Host

LINE_BYTES, MESSAGE_BYTES = SocketLimits().line_bytes, SocketLimits().message_bytes


@on_both_loops
async def test_the_first_message_may_be_as_long_as_a_header_and_later_ones_longer() -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=SECONDS) as server:
        async with client(server.port, "later") as peer:
            await peer.send("a" * LINE_BYTES)
            seen = await host.session()
            await host.until(lambda: seen.messages)
            await peer.send("b" * MESSAGE_BYTES)
            await host.until(lambda: len(seen.messages) == 2)
            assert [len(message) for message in seen.messages] == [LINE_BYTES, MESSAGE_BYTES]


@on_both_loops
async def test_a_longer_one_is_closed_with_1009_before_it_is_kept() -> None:
    for how in ("whole", "in parts", "announced"):
        await longer(how)


async def longer(how: str) -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=SECONDS) as server:
        async with raw_client(server.port) as peer:
            peer.send(opening("/ws?token=later"))
            await peer.read_until(b"\r\n\r\n")
            if how == "whole":
                peer.send(masked(0x1, b"a" * (LINE_BYTES + 1)))
            elif how == "in parts":
                peer.send(masked(0x1, b"a" * LINE_BYTES, fin=False) + masked(0x0, b"a"))
            else:  # only the header of a frame that would be far too long
                peer.send(struct.pack("!BBQI", 0x81, 0xFF, 1 << 40, 0))
            answer = await peer.read_until(struct.pack("!H", 1009))
            assert answer[0] == 0x88
            seen = await host.session()
            assert seen.messages == []


@on_both_loops
async def test_a_session_that_is_open_has_the_usual_bound() -> None:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=SECONDS) as server:
        async with client(server.port, "u1") as peer:
            await peer.send("a" * (LINE_BYTES + 1))
            seen = await host.session()
            await host.until(lambda: seen.messages)
