"""A process of many WebSocket clients that count pushes: those that came, that came twice, that were for others.

It reads commands as JSON lines from stdin, answers each with one line, and ends with its stdin. A client
is one asyncio protocol and no task: a library's client costs several times as much and would distort what is
measured. It does what a browser does: opening handshake, and a pong for every ping (RFC 6455 5.5.2).
"""

from __future__ import annotations

import asyncio
import base64
import errno
import gc
import hashlib
import itertools
import json
import os
import socket
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import jwt
import uvloop

from benchmarks.load import NUMBER_AT, PADDING_AT, USER_AT, addressees, user_id

HANDSHAKES_AT_ONCE: Final = 100
TOKEN_SECONDS: Final = 3600
SOURCES: Final = 20_000
"""Clients per loopback address: fewer than it has ports, whatever they are connected to."""
LOWEST_PORT: Final = 10_000
PORTS: Final = 22_768
"""Up to those that the kernel gives out."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class Tally:
    """What all clients of this process have received since the last `expect`."""

    def __init__(self) -> None:
        self._complete = asyncio.Event()
        self.expect(0, 0)

    def expect(self, total: int, mine: int, *, users: int = 0, each: int = 1, devices: int = 1) -> None:
        """Begin to count: `total` requests come, and of their frames `mine` are for this process.

        A request goes to `each` of `users` users from the one that its data names, and to every device of theirs.
        """
        self._total, self._users, self._each, self._devices = total, users, each, devices
        self._seen = bytearray(total * each * devices)
        self._mine = mine
        self.frames = self.distinct = self.duplicates = self.strays = self.disordered = 0
        self.latencies = array("q")
        self.last_at = 0
        self._complete.clear()
        if not mine:
            self._complete.set()

    def push(self, client: Client, frame: bytes, now: int) -> None:
        """One data frame came; `now` is when its bytes were read."""
        self.frames += 1
        try:
            number = int(frame[NUMBER_AT : USER_AT - 1])
            place = client.user - int(frame[USER_AT : PADDING_AT - 1])
        except ValueError:
            self.strays += 1
            return
        if place < 0:
            place += self._users
        if not 0 <= place < self._each or number >= self._total:
            self.strays += 1
            return
        at = (number * self._each + place) * self._devices + client.device
        if self._seen[at]:
            self.duplicates += 1
            return
        self._seen[at] = 1
        self.distinct += 1
        self.latencies.append(now - int(frame[: NUMBER_AT - 1]))
        if number < client.newest:
            self.disordered += 1
        client.newest = number
        self.last_at = now
        if self.distinct == self._mine:
            self._complete.set()

    async def complete(self, seconds: float) -> bool:
        """Whether all that was expected came within this many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._complete.wait()
        except TimeoutError:
            return False
        return True

    def report(self, *, latencies: bool) -> dict[str, Any]:
        """What was counted; times in ns of the monotonic clock."""
        counts = {
            "frames": self.frames,
            "distinct": self.distinct,
            "duplicates": self.duplicates,
            "strays": self.strays,
            "disordered": self.disordered,
            "last_at": self.last_at,
        }
        return counts | {"latencies": self.latencies.tolist()} if latencies else counts


class Client(asyncio.Protocol):
    """One WebSocket. Clients of other servers derive from it: some say more to be open, or unpack messages."""

    __slots__ = (
        "_accept",
        "_rest",
        "_subprotocol",
        "_tally",
        "_token",
        "_transport",
        "answered_at",
        "device",
        "first_at",
        "newest",
        "opened",
        "pinged",
        "user",
    )

    def __init__(
        self,
        user: int,
        token: str,
        tally: Tally,
        opened: asyncio.Future[None],
        subprotocol: str = "",
        device: int = 0,
    ) -> None:
        self.user = user
        self.device = device
        self.newest = -1
        self.pinged = 0
        self.answered_at = 0
        """When the answer to the handshake was read, in ns of the monotonic clock."""
        self.first_at = 0
        """When the first data frame was read; 0 before that."""
        self.opened = opened
        self._token = token
        self._tally = tally
        # Offered, and the bridge must choose it; if empty, none is offered.
        self._subprotocol = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode() if subprotocol else b""
        self._accept = b""
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    @property
    def open(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        key = base64.b64encode(os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self._transport.write(
            b"GET %b HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%b\r\n"
            % (self._target(), key, self._subprotocol)
        )

    def _target(self) -> bytes:
        """Path and query of the handshake."""
        return b"/ws?token=%b" % self._token.encode()

    def _upgraded(self) -> None:
        """The answer to the handshake came."""
        self.opened.set_result(None)

    def _message(self, message: bytes, now: int) -> None:
        """A data frame came; `now` is when its bytes were read."""
        self._tally.push(self, message, now)

    def data_received(self, data: bytes) -> None:
        """Frames, after the answer to the handshake."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not self.answered_at:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            if not head.startswith(b"HTTP/1.1 101 ") or self._accept not in head:
                self._fail(f"refused: {head[:40]!r}")
                return
            if self._subprotocol.lower() not in head.lower() + b"\r\n":
                self._fail("the subprotocol was not chosen")
                return
            self.answered_at = time.monotonic_ns()
            self._upgraded()
        self._read_frames(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: `open` becomes false, and a handshake that is awaited fails."""
        self._transport = None
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("lost during the handshake"))

    def leave(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, why: str) -> None:
        self.opened.set_exception(ConnectionError(why))
        self.leave()

    def _read_frames(self, data: bytes) -> None:
        now = time.monotonic_ns()
        at, end = 0, len(data)
        while end - at >= 2:
            first, size = data[at], data[at + 1]
            body = at + 2
            if size == 126:
                body += 2
                if body > end:
                    break
                size = (data[at + 2] << 8) | data[at + 3]
            elif size == 127:
                body += 8
                if body > end:
                    break
                (size,) = struct.unpack_from("!Q", data, at + 2)
            if body + size > end:
                break
            at = body + size
            opcode = first & 15
            if opcode in (_TEXT, _BINARY, _CONTINUATION):
                if not self.first_at:
                    self.first_at = now
                self._message(data[body:at], now)
            elif opcode == _PING and self._transport is not None:
                self.pinged += 1
                # A mask of zeros: a legal frame, and the server unmasks it like any other.
                self._transport.write(bytes((0x80 | _PONG, 0x80 | size, 0, 0, 0, 0)) + data[body:at])
            elif opcode == _CLOSE:
                self.leave()
        self._rest = data[at:]


class Crowd:
    """All clients of this process, and the commands that they understand."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._clients: list[Client] = []

    async def connect(
        self,
        *,
        port: int,
        secret: str,
        first: int,
        count: int,
        subprotocol: str = "",
        devices: int = 1,
        topic: str = "",
    ) -> dict[str, Any]:
        """Open a session for each of `count` users from `first` on, or one for each of their devices. Their tokens name
        the topic, if there is one."""
        began = time.monotonic()
        gate = asyncio.Semaphore(HANDSHAKES_AT_ONCE)

        async def one(user: int, device: int) -> None:
            async with gate:
                await self._open(user, port, token(user, secret, topic), subprotocol, device)

        async with asyncio.TaskGroup() as group:
            for user in range(first, first + count):
                for device in range(devices):
                    group.create_task(one(user, device), name=f"handshake of {user}")
        # Clients live as long as this process; collecting garbage among them only costs time.
        gc.collect()
        gc.freeze()
        return {"connected": len(self._clients), "seconds": time.monotonic() - began}

    async def open_kept(
        self, *, port: int, secret: str, first: int, count: int, each: int, total: int, seconds: float
    ) -> dict[str, Any]:
        """Open a session for each of `count` users from `first` on, for whom `each` of `total` pushes are kept.

        One after the other, each when the one before has all of its own. Times in ms: from the first packet,
        and from the answer to the handshake, until the first push was read.
        """
        from_connect, from_answer = [], []
        counts: Counter[str] = Counter()
        for user in range(first, first + count):
            mine = token(user, secret)
            self._tally.expect(total, each)
            began = time.monotonic_ns()
            client = await self._open(user, port, mine)
            complete = await self._tally.complete(seconds)
            counts.update(self._tally.report(latencies=False))
            del counts["last_at"]
            if not complete:
                break
            from_connect.append((client.first_at - began) / 1e6)
            from_answer.append((client.first_at - client.answered_at) / 1e6)
        return {**counts, "from_connect": from_connect, "from_answer": from_answer}

    async def _open(self, user: int, port: int, token: str, subprotocol: str = "", device: int = 0) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Client(user, token, self._tally, loop.create_future(), subprotocol, device),
            sock=await connected(source(user, port), port),
        )
        await client.opened
        self._clients.append(client)
        return client

    async def expect(
        self, *, seed: int, total: int, users: int, each: int = 1, devices: int = 1
    ) -> dict[str, Any]:
        """Count from now on: `total` requests come, to `each` users from one on that depends on the seed."""
        mine = Counter(client.user for client in self._clients)
        for client in self._clients:
            client.newest = -1
        chosen = addressees(seed, total, users)
        expected = sum(mine[(user + n) % users] for user in chosen for n in range(each))
        self._tally.expect(total, expected, users=users, each=each, devices=devices)
        return {"expected": expected}

    async def expect_kept(self, *, total: int) -> dict[str, Any]:
        """Count from now on: `total` kept pushes come, all of them to this process."""
        self._tally.expect(total, total)
        return {"expected": total}

    async def complete(self, *, seconds: float) -> dict[str, Any]:
        """Wait for what is expected, for at most `seconds`; return what came."""
        return {"complete": await self._tally.complete(seconds)} | self._tally.report(latencies=False)

    async def report(self) -> dict[str, Any]:
        """All that was counted, with the latencies in ns."""
        return self._tally.report(latencies=True)

    async def sessions(self) -> dict[str, Any]:
        """How many are open, how many of those have got a ping, how many pings and frames all have got, and the fewest
        pings that one of them has got."""
        still = [client for client in self._clients if client.open]
        return {
            "open": len(still),
            "pinged": sum(client.pinged > 0 for client in still),
            "pings": sum(client.pinged for client in still),
            "fewest": min((client.pinged for client in still), default=0),
            "frames": self._tally.frames,
        }

    async def leave(self) -> dict[str, Any]:
        """Drop all connections."""
        for client in self._clients:
            client.leave()
        self._clients.clear()
        return {}


def source(user: int, port: int) -> str:
    """The address that a client connects from: clients of two servers share none, and no address has too many."""
    return f"127.{port >> 8}.{port & 255}.{2 + user // SOURCES}"


_ports = itertools.count(os.getpid() * 7919)
"""Processes begin in different places."""


async def connected(local: str, port: int) -> socket.socket:
    """A connection to this port of loopback, from this address.

    With thousands of sockets the kernel takes milliseconds to find a port that is free. So they are taken one after the
    other, below those that the kernel gives out.
    """
    while True:
        made = socket.socket()
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((local, LOWEST_PORT + next(_ports) % PORTS))
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        except OSError as taken:
            made.close()
            if taken.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
        except BaseException:
            made.close()
            raise
        else:
            return made


def token(user: int, secret: str, topic: str = "") -> str:
    claims: dict[str, Any] = {"sub": user_id(user), "exp": int(time.time()) + TOKEN_SECONDS}
    if topic:
        claims["topics"] = [topic]
    return jwt.encode(claims, secret, algorithm="HS256")


Commands = dict[str, Callable[..., Awaitable[dict[str, Any]]]]


async def serve(crowd: Crowd, more: Commands | None = None) -> None:
    """Do what each line of stdin says until there are no more."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    commands: Commands = {
        "connect": crowd.connect,
        "open_kept": crowd.open_kept,
        "expect": crowd.expect,
        "expect_kept": crowd.expect_kept,
        "complete": crowd.complete,
        "report": crowd.report,
        "sessions": crowd.sessions,
        "leave": crowd.leave,
        **(more or {}),
    }
    async for line in lines:
        command = json.loads(line)
        answer = await commands[command.pop("do")](**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Crowd(Tally())))
