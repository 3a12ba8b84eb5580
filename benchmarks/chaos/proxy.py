"""A TCP proxy that misbehaves on command: late, silent, slow, cut after some bytes, or reset."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from benchmarks.listening import listening

CHUNK = 64 * 1024
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with zero seconds: closing sends a reset."""

Look = Callable[["Link", bool, bytes], bytes | None]
"""Called with a chunk before it is passed on: (link, whether it goes up, its bytes); returns what is passed on. None
ends the link with a reset."""


class Link:
    """One connection through the proxy."""

    def __init__(self, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self._down = down
        self._up = up
        self.silent = False
        """Everything is discarded, both ways; both sides believe that the connection is alive."""
        self.bytes_left: int | None = None
        """Bytes, both ways together, until it is reset; None means never."""
        self.notes: dict[str, object] = {}
        """State of the function that inspects the bytes."""

    def reset(self) -> None:
        """Reset the connections to both sides."""
        for writer in (self._down, self._up):
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """Listens on a port of its own and passes everything on to one address, in the way its attributes say."""

    def __init__(self, host: str, port: int, dial: Callable[[], socket.socket] | None = None) -> None:
        """`dial` makes the socket with which it goes on; without it, an ordinary one."""
        self._target = (host, port)
        self._dial = dial
        self.port = 0
        self.latency = 0.0
        """Seconds that each chunk is kept back."""
        self.bytes_per_second: float | None = None
        """The pace, for each link and way; None means as fast as possible."""
        self.refuse = False
        """Reset every new connection."""
        self.look: Look | None = None
        self.links: set[Link] = set()
        self.ended: list[float] = []
        """Monotonic seconds at which links have ended."""

    @asynccontextmanager
    async def listening(self, sock: socket.socket | None = None) -> AsyncIterator[Proxy]:
        """Serve for the length of the block, on any port of loopback, or on a socket that is bound."""
        async with listening(self._serve, sock=sock, backlog=4096) as self.port:
            try:
                yield self
            finally:
                self.reset()

    def reset(self) -> None:
        """Reset all open links."""
        for link in list(self.links):
            link.reset()

    def silence(self) -> int:
        """Make all open links half-open; new ones work. Returns how many."""
        for link in self.links:
            link.silent = True
        return len(self.links)

    def cut_after(self, count: int) -> None:
        """Reset each open link after this many more bytes."""
        for link in self.links:
            link.bytes_left = count

    def cut_after_nothing(self) -> None:
        """Cancel the resets that have not happened yet."""
        for link in self.links:
            link.bytes_left = None

    def heal(self) -> None:
        """Work normally from now on. Silent links stay silent: a half-open connection never recovers."""
        self.latency = 0.0
        self.bytes_per_second = None
        self.refuse = False
        self.look = None
        self.cut_after_nothing()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await self._open()
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, up_writer)
        self.links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, up_writer, goes_up=True),
                self._pump(link, up_reader, writer, goes_up=False),
            )
        except OSError:
            link.reset()
        finally:
            link.reset()
            self.links.discard(link)
            self.ended.append(time.monotonic())

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._dial is None:
            return await asyncio.open_connection(*self._target)
        sock = self._dial()
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._target)
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock)

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, goes_up: bool
    ) -> None:
        while data := await self._read(link, reader):
            if self.latency:
                await asyncio.sleep(self.latency)
            if link.silent:
                continue
            if self.bytes_per_second:
                await asyncio.sleep(len(data) / self.bytes_per_second)
            if self.look is not None:
                passed = self.look(link, goes_up, data)
                if passed is None:
                    link.reset()
                    return
                data = passed
            if link.bytes_left is not None:
                data = data[: link.bytes_left]
                link.bytes_left -= len(data)
            writer.write(data)
            if link.bytes_left == 0:
                # What was passed on must reach the other side before the reset overtakes it.
                await asyncio.sleep(0.01)
                link.reset()
                return
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def _read(self, link: Link, reader: asyncio.StreamReader) -> bytes:
        """The next chunk, empty at the end. A silent link has no end: when one side has noticed, the other
        is not told until it notices by itself."""
        try:
            data = await reader.read(CHUNK)
        except OSError:
            if not link.silent:
                raise
            data = b""
        if not data and link.silent:
            await asyncio.Event().wait()
        return data
