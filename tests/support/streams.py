"""A client of streams of events: reads messages as a browser does, and says something with requests of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.clients import SECONDS


class Message(NamedTuple):
    """One message of a stream."""

    data: str
    id: str | None
    """None where it has none."""
    retry: int | None


class Stream:
    """An answer to `GET /sse`, or to any other request that ends with the connection."""

    def __init__(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._port = port
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.key = ""
        self.last: str | None = None
        """The id of the last event."""

    async def head(self) -> None:
        """Read the head of the answer."""
        async with asyncio.timeout(SECONDS):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}

    async def message(self) -> Message | None:
        """The next message; None at the end of the stream."""
        data: list[str] = []
        event_id: str | None = None
        retry: int | None = None
        async with asyncio.timeout(SECONDS):
            while line := await self._reader.readline():
                text = line.decode().removesuffix("\n")
                if not text:
                    return Message("\n".join(data), event_id, retry)
                field, _, value = text.partition(":")
                value = value.removeprefix(" ")
                if field == "data":
                    data.append(value)
                elif field == "id":
                    event_id = self.last = value
                elif field == "retry":
                    retry = int(value)
        assert not data, "the stream ended within a message"
        return None

    async def frame(self, *skipped: str) -> Any:
        """The next frame, but for those of these types; None at the end of the stream."""
        while (message := await self.message()) is not None:
            frame = json.loads(message.data)
            if frame["type"] == "welcome":
                self.key = frame["key"]
            if frame["type"] not in skipped:
                return frame
        return None

    async def say(self, port: int | None = None, key: str | None = None, **fields: str) -> int:
        """Post an ack or a pong; returns the status."""
        query = "&".join(f"{name}={quote(value)}" for name, value in fields.items())
        headers = (f"Authorization: Bearer {self.key if key is None else key}", "Content-Length: 0")
        answer = await asked(port or self._port, "POST", f"/v1/ack?{query}", *headers)
        await answer.leave()
        return answer.status

    async def body(self) -> bytes:
        """The rest of the answer."""
        async with asyncio.timeout(SECONDS):
            return await self._reader.read()

    async def leave(self) -> None:
        """Leave without a word."""
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()


async def asked(port: int, method: str, target: str, *lines: str, version: str = "1.1") -> Stream:
    """The answer to a request of which the head was read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = (f"{method} {target} HTTP/{version}", "Host: test", *lines)
    writer.write(("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))
    answer = Stream(port, reader, writer)
    await answer.head()
    return answer


@asynccontextmanager
async def stream(port: int, token: str, *lines: str, query: str = "") -> AsyncIterator[Stream]:
    """A stream that was granted."""
    opened = await asked(port, "GET", f"/sse{query}", f"Authorization: Bearer {token}", *lines)
    assert opened.status == 200
    try:
        yield opened
    finally:
        await opened.leave()
