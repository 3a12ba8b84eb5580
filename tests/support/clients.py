"""WebSocket clients for tests: real ones over TCP, and the ways in which real ones misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

HEARTBEAT = '{"type":"heartbeat"}'
SECONDS = 10.0
"""How long anything may take before a test fails."""


class Client:
    """One open WebSocket of a peer that answers pings by itself, as every browser does, while it reads."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    @property
    def subprotocol(self) -> str | None:
        """What the server chose to speak."""
        return self.connection.subprotocol

    async def read(self) -> str | bytes:
        """The next message but heartbeats: str of a text frame, bytes of a binary one."""
        async with asyncio.timeout(SECONDS):
            while (message := await self.connection.recv()) == HEARTBEAT:
                pass
            return message

    async def read_json(self) -> Any:
        """The next message, parsed."""
        return json.loads(await self.read())

    async def read_many(self, count: int) -> list[str | bytes]:
        """The next `count` messages."""
        return [await self.read() for _ in range(count)]

    async def send(self, message: str | bytes) -> None:
        """Send a text (str) or binary (bytes) message."""
        async with asyncio.timeout(SECONDS):
            await self.connection.send(message)

    async def send_json(self, frame: Mapping[str, object]) -> None:
        """Send a frame of the envelope mode."""
        await self.send(json.dumps(frame))

    async def ended(self) -> tuple[int, str]:
        """Read to the end; the close code and reason that this side has seen (1006 without a close frame)."""
        async with asyncio.timeout(SECONDS):
            try:
                while True:
                    await self.connection.recv()
            except ConnectionClosed as closed:
                return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")

    def freeze(self) -> None:
        """Stop reading: frames and pings stay unanswered, and in the end the server's buffer fills."""
        self.connection.transport.pause_reading()

    def thaw(self) -> None:
        """Read again."""
        self.connection.transport.resume_reading()

    def vanish(self) -> None:
        """Fall silent for good, as behind a cut cable: no more reading, and no goodbye at the end either.

        (The kernel still acknowledges what its buffer takes; `receive_buffer` keeps that small.)
        """
        self.freeze()

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        sock = self.connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with the closing handshake."""
        async with asyncio.timeout(SECONDS):
            await self.connection.close(code, reason)


@asynccontextmanager
async def client(
    port: int,
    token: str | None = None,
    *,
    host: str = "127.0.0.1",
    path: str = "/ws",
    subprotocols: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    receive_buffer: int | None = None,
    tls: ssl.SSLContext | None = None,
    name: str = "",
    source: str = "",
) -> AsyncIterator[Client]:
    """Connect, with the token in the query; on leaving, the connection is dropped without a goodbye.

    `receive_buffer`: bytes that the kernel keeps for a client that doesn't read. `tls`: by wss://, to a server of this
    `name`. `source`: the client's own address. Raises `websockets.exceptions.InvalidStatus` when the server answers
    with another status than 101.
    """
    if token is not None:
        path += ("&" if "?" in path else "?") + f"token={token}"
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
        connection = await connect(
            f"{'ws' if tls is None else 'wss'}://{name or host}:{port}{path}",
            sock=sock,
            ssl=tls,
            subprotocols=[cast(Subprotocol, s) for s in subprotocols] or None,
            additional_headers=dict(headers or {}),
            compression=None,
            ping_interval=None,
            max_queue=None,
            max_size=None,
            proxy=None,
            open_timeout=SECONDS,
        )
    except BaseException:
        sock.close()
        raise
    try:
        yield Client(connection)
    finally:
        connection.transport.abort()
        await connection.wait_closed()


class RawClient:
    """A TCP connection to the WebSocket port that says just what a test wants it to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`."""
        async with asyncio.timeout(SECONDS):
            return await self.reader.readuntil(mark)

    async def read_exactly(self, count: int) -> bytes:
        """So many bytes."""
        async with asyncio.timeout(SECONDS):
            return await self.reader.readexactly(count)

    async def read_all(self) -> bytes:
        """Everything up to the end of the stream; raises ConnectionResetError after a reset."""
        async with asyncio.timeout(SECONDS):
            return await self.reader.read()

    async def upgrade(self, path: str = "/ws") -> None:
        """Make the opening handshake."""
        self.send(opening(path))
        assert (await self.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def raw_client(
    port: int, host: str = "127.0.0.1", receive_buffer: int | None = None
) -> AsyncIterator[RawClient]:
    """Connect without saying anything; on leaving, the connection is dropped. `receive_buffer`: bytes that the kernel
    takes before anybody reads."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):  # the server was quicker to drop it
            await writer.wait_closed()


def problem(body: bytes | bytearray | str | None) -> tuple[str, str]:
    """The word and the sentence of an answer that refuses a request; fails where the body has another form."""
    text = body if isinstance(body, str) else bytes(body or b"").decode()
    said = json.loads(text)
    assert set(said) == {"error", "problem"}
    word, sentence = said["error"], said["problem"]
    assert isinstance(word, str)
    assert isinstance(sentence, str)
    assert re.fullmatch("[a-z_]+", word), "one word, for programs"
    assert sentence == sentence.strip()
    assert text.endswith("}\n")
    return word, sentence


def refusal(answer: bytes) -> tuple[int, str, str]:
    """Status, word and sentence of a whole answer that refuses a request; fails where its headers say other things."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    status = int(first.split(" ")[1])
    assert (headers["content-type"], headers["connection"]) == ("application/json", "close")
    assert int(headers["content-length"]) == len(body)
    assert (headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert ("retry-after" in headers) == (status == 503)
    return status, *problem(body)


def opening(path: str = "/ws", *more: str) -> bytes:
    """A valid opening handshake request with `more` header lines."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: test",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *more,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame (RFC 6455 5.2); its mask is zero, so the payload is readable on the wire."""
    size = len(payload)
    first = (0x80 if fin else 0) | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload
