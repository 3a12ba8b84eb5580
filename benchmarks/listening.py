"""A TCP server of a test or a benchmark, of which nothing is left when its block ends."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from weakref import WeakSet

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(
    serve: Serve,
    port: int = 0,
    *,
    sock: socket.socket | None = None,
    path: str | None = None,
    tls: ssl.SSLContext | None = None,
    backlog: int = 100,
) -> AsyncIterator[int]:
    """Accept connections on loopback during the block; yields the port (0 with a `path`).

    `sock`: a bound socket to listen on instead; `path`: a Unix socket instead. Each connection is a task of `serve`.
    It is closed when that returns, reset at the end of the block, and never served when it comes after that. What
    `serve` raises is raised at the end of the block, but for a connection that its peer has ended.
    """
    tasks: set[asyncio.Task[None]] = set()
    writers: WeakSet[asyncio.StreamWriter] = WeakSet()
    failed: list[Exception] = []
    closed = False

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (OSError, EOFError):
            writer.transport.abort()
        except Exception as exc:
            writer.transport.abort()
            failed.append(exc)
        else:
            writer.close()

    # A plain function, so that no connection is without an owner: a coroutine that asyncio starts itself can be
    # cancelled before its first line, and then nobody closes the socket.
    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if closed:
            writer.transport.abort()
            return
        writers.add(writer)
        task = asyncio.create_task(one(reader, writer), name="a connection")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if path is not None:
        server = await asyncio.start_unix_server(accepted, path, ssl=tls, backlog=backlog)
    elif sock is not None:
        server = await asyncio.start_server(accepted, sock=sock, ssl=tls, backlog=backlog)
    else:
        server = await asyncio.start_server(accepted, "127.0.0.1", port, ssl=tls, backlog=backlog)
    try:
        yield 0 if path is not None else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        closed = True
        for writer in list(writers):
            writer.transport.abort()
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    if failed:
        raise ExceptionGroup("serving a connection failed", failed)
