"""The network that the chaos run gives a bridge: what is cut is lost without a word, in that direction alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.network import Network, Way, network
from benchmarks.listening import listening
from benchmarks.ports import reserved_port

NOT_YET = 0.3
"""Seconds in which a packet would have come, several times over."""
CAN = os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


class Peer:
    """A server, and a connection to it from where the bridge is."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[bytes]()
        self.accepted = asyncio.Queue[asyncio.StreamWriter]()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.put_nowait(writer)
        while data := await reader.read(100):
            self.heard.put_nowait(data)

    async def connect(self, own: Network, address: tuple[str, int]) -> None:
        sock = own.socket()
        await asyncio.get_running_loop().sock_connect(sock, address)
        self.reader, self.writer = await asyncio.open_connection(sock=sock)
        self.server = await self.accepted.get()

    async def hears(self) -> bytes:
        return await asyncio.wait_for(self.heard.get(), 10)

    async def is_told(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(100), 10)


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Network, Peer, Peer]]:
    """A network, and connections over its links to a broker and a Postgres."""
    async with AsyncExitStack() as stack:
        broker, postgres = Peer(), Peer()
        addresses = []
        for peer in (broker, postgres):
            addresses.append(("127.0.0.1", await stack.enter_async_context(listening(peer.serve))))
        own = await stack.enter_async_context(network(*addresses))
        for peer, address in ((broker, own.amqp), (postgres, own.database)):
            await peer.connect(own, address)
            stack.callback(peer.writer.close)
        yield own, broker, postgres


async def test_what_is_cut_is_lost_in_that_direction_alone_and_only_on_its_link() -> None:
    if not CAN:
        with pytest.raises(NotPossible):
            async with connected():
                pass
        return
    async with connected() as (own, broker, postgres):
        own.broker.cut(Way.OUT)
        broker.writer.write(b"lost for now")
        broker.server.write(b"comes")
        assert await broker.is_told() == b"comes"
        postgres.writer.write(b"comes as well")
        assert await postgres.hears() == b"comes as well"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.heard.get(), NOT_YET)

        own.broker.cut(Way.IN)
        # TCP sends again what was lost; its acknowledgement is lost now, and nobody minds.
        assert await broker.hears() == b"lost for now"
        broker.server.write(b"lost")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(broker.reader.read(100), NOT_YET)

        own.broker.heal()
        assert await broker.is_told() == b"lost"


async def test_a_bridge_in_it_is_reached_under_its_own_port_whatever_is_cut() -> None:
    if not CAN:
        return
    async with connected() as (own, _, _):
        own.broker.cut(Way.BOTH)
        own.postgres.cut(Way.BOTH)
        port = reserved_port()
        inside = own.socket()
        inside.bind(("127.0.0.1", port))

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")

        async with listening(greet, sock=inside), own.door(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await asyncio.wait_for(reader.read(), 10) == b"hello"
            writer.close()


async def test_nothing_is_left_of_it() -> None:
    if not CAN:
        return
    async with connected() as (own, _, _):
        path = own.within[1].removeprefix("--net=")
        assert os.path.exists(path)
    assert not os.path.exists(path), "its process has ended"
