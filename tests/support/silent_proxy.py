"""A TCP proxy that can fall silent: both sides stay connected, and nothing passes any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SilentProxy:
    """Passes bytes both ways; connections that were there when it fell silent pass nothing ever again."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.taken = 0
        """Connections so far."""
        self._behind = port
        self._silent: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def fall_silent(self) -> None:
        """From now on the open connections pass nothing; new ones do."""
        self._silent = set(self._writers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have closed; cancelled at the end where it fell silent."""
        self.taken += 1
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        self._writers |= {writer, inner_writer}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pass(reader, inner_writer))
                tasks.create_task(self._pass(inner_reader, writer))
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


@asynccontextmanager
async def silent_proxy(port: int) -> AsyncIterator[SilentProxy]:
    """A proxy before 127.0.0.1:port, until the block ends."""
    proxy = SilentProxy(port)
    connections: set[asyncio.Task[None]] = set()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(proxy.serve(reader, writer), name="proxy"))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
