"""TCP proxies that cut, freeze or fall silent: in front of the broker, and in front of a bridge."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from benchmarks.listening import listening


class SilentProxy:
    """Passes bytes both ways; connections that were there when it fell silent pass nothing ever again."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.taken = 0
        """Connections so far."""
        self.behind = port
        """Where new connections go."""
        self._down = False
        self._silent: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def fall_silent(self) -> None:
        """From now on the open connections pass nothing; new ones do."""
        self._silent = set(self._writers)

    def cut(self) -> None:
        """Reset the open connections, and new ones until `mend`."""
        self._down = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """New connections pass again."""
        self._down = False

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begin: bytes = b""
    ) -> None:
        """One connection, until both sides have closed; cancelled at the end where it fell silent. `begin`: what was
        read of it already."""
        self.taken += 1
        if self._down:
            return writer.transport.abort()
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.behind)
        self._writers |= {writer, inner_writer}
        inner_writer.write(begin)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, inner_writer))
                tasks.create_task(self._pass(inner_reader, writer))
        except* OSError:
            pass  # one side has ended the connection
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        reset = False
        try:
            while data := await source.read(65_536):
                if sink not in self._silent:
                    sink.write(data)
        except ConnectionError:
            reset = True
        if sink in self._silent:
            await asyncio.Event().wait()  # the end does not pass either
        elif reset:
            sink.transport.abort()
        else:
            sink.write_eof()


class PlainProxy(SilentProxy):
    """One that lets no WebSocket through, as in some companies: a request with Upgrade is refused."""

    refused = 0
    passing = False
    """Whether it lets WebSockets through now."""

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, begin: bytes = b""
    ) -> None:
        """See `SilentProxy`."""
        head = await reader.readuntil(b"\r\n\r\n")
        if self.passing or b"\r\nupgrade:" not in head.lower():
            await super().serve(reader, writer, head)
            return
        self.refused += 1
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@asynccontextmanager
async def plain_proxy(port: int) -> AsyncIterator[PlainProxy]:
    """Such a proxy before 127.0.0.1:port, until the block ends."""
    async with _serving(proxy := PlainProxy(port)):
        yield proxy


@asynccontextmanager
async def silent_proxy(port: int) -> AsyncIterator[SilentProxy]:
    """A proxy before 127.0.0.1:port, until the block ends."""
    async with _serving(proxy := SilentProxy(port)):
        yield proxy


@asynccontextmanager
async def _serving(proxy: SilentProxy) -> AsyncIterator[None]:
    async with listening(proxy.serve) as proxy.port:
        yield


class AmqpProxy:
    """A TCP proxy before the broker, or before Postgres. It can cut, reset, freeze, and say something to the client."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._split = urlsplit(url)
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._port = 0
        self._stack = AsyncExitStack()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.most = 65536
        """Bytes passed on in one piece."""
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._port = await self._stack.enter_async_context(listening(self._serve, tls=self._tls))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.reset()
        await self._stack.aclose()

    @property
    def url(self) -> str:
        user = self._split.netloc.rpartition("@")[0]
        scheme = "amqps" if self._tls is not None else self._split.scheme
        return urlunsplit(self._split._replace(scheme=scheme, netloc=f"{user}@127.0.0.1:{self._port}"))

    def reset(self) -> None:
        """Drop every connection with TCP resets on both sides."""
        for client, server in self._pairs:
            for writer in (client, server):
                if not writer.transport.is_closing():
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
        self._pairs.clear()

    def refuse(self) -> None:
        """Drop new connections at once."""
        self._refusing = True

    def accept(self) -> None:
        self._refusing = False

    def freeze(self) -> None:
        """Pass nothing on any more, in either direction; connections stay open."""
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def say(self, data: bytes) -> None:
        """Say this to every client, as if it came from the broker; for a moment in which the broker is silent."""
        for client, _ in self._pairs:
            client.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection(self._split.hostname, self._split.port)
        if self.most < 65536:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        self._pairs.append((writer, up_writer))
        try:
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        finally:
            up_writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing.wait()
                for at in range(0, len(data), self.most):
                    sink.write(data[at : at + self.most])
                    await sink.drain()
                    await asyncio.sleep(0)
        except OSError:
            sink.transport.abort()
        else:
            sink.close()
