"""GET /v1/outcomes of all workers as one stream: each event whole, in the order in which it comes.

A reader that is slow slows the streams of the workers, which keep so many rows for it and count the others, as they do
for their own readers. A worker that is started again is listened to again.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import aiohttp
from aiohttp import web

from bridge.workers.asking import NOBODY, SUM_SECONDS, Answer, Asking, Worker, answer_of

COMMENT_AFTER: Final = 15.0
"""Seconds between two comments, so that reader and proxies keep the stream open."""
AGAIN_SECONDS: Final = 0.5
"""Seconds until a worker that does not answer is asked again."""
_END: Final = b"\n\n"


class _Left(Exception):
    """The reader has gone."""


class Stream:
    """What one reader gets."""

    def __init__(self, asking: Asking, request: web.Request, stopping: asyncio.Event) -> None:
        self._asking = asking
        self._request = request
        self._stopping = stopping
        self._response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        self._writing = asyncio.Lock()
        self._begun = asyncio.Event()
        self._listened = 0
        """Workers that have answered with a stream."""
        self._refusal: Answer | None = None
        self._over = asyncio.Event()
        """The reader may not read any more."""

    async def answer(self) -> web.StreamResponse:
        """Until the reader leaves, may not read any more, or the supervisor stops."""
        tried = {worker: asyncio.Event() for worker in self._asking.workers}
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._follow(worker, event), name=f"outcomes of {worker.node}")
            for worker, event in tried.items()
        ]
        try:
            try:
                async with asyncio.timeout(SUM_SECONDS):
                    # What is committed after the reader has its first line is sent.
                    for event in tried.values():
                        await event.wait()
            except TimeoutError:
                pass
            if not self._listened:
                if self._refusal is None:
                    raise NOBODY
                return self._refusal.response()
            await self._response.prepare(self._request)
            await self._write(b": outcomes from now on\n\n")
            self._begun.set()
            tasks.append(asyncio.create_task(self._comment(), name="comments"))
            tasks += [
                asyncio.create_task(event.wait(), name="end of outcomes")
                for event in (self._stopping, self._over)
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except _Left as left:
            raise ConnectionResetError("the reader has left") from left
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._response.write_eof()
        return self._response

    async def _follow(self, worker: Worker, tried: asyncio.Event) -> None:
        """Listen to one worker, again and again. Sets `tried` after the first try."""
        while True:
            try:
                if worker.pid is not None:
                    async with self._asking.request(worker, self._request, "GET") as response:
                        await self._listen(response, tried)
            except (aiohttp.ClientError, OSError):
                # It has ended, or is not there yet.
                pass
            tried.set()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _listen(self, response: aiohttp.ClientResponse, tried: asyncio.Event) -> None:
        if response.status != 200:
            self._refusal = await answer_of(response)
            if self._begun.is_set() and response.status in (401, 403):
                self._over.set()
            return
        self._listened += 1
        tried.set()
        await self._begun.wait()
        await self._pump(response.content)

    async def _pump(self, content: aiohttp.StreamReader) -> None:
        """Write whole events until the worker's stream ends. Its comments are left out: there are our own."""
        rest = b""
        async for chunk in content.iter_any():
            *events, rest = (rest + chunk).split(_END)
            whole = b"".join(event + _END for event in events if not event.startswith(b":"))
            if whole:
                await self._write(whole)

    async def _comment(self) -> None:
        while True:
            await asyncio.sleep(COMMENT_AFTER)
            await self._write(b": still here\n\n")

    async def _write(self, piece: bytes) -> None:
        async with self._writing:
            try:
                await self._response.write(piece)
            except ConnectionResetError as error:
                raise _Left from error
