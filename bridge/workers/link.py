"""What supervisor and worker tell each other, as JSON lines over a socket that is the worker's standard input.

The supervisor sends its orders, so that no secret is on a command line, and later that the worker is to stop. Signals
would do so, too, but where a service manager sends those to all processes a worker would get them twice. The worker
sends its state each time that it changes and once a second, and why it could not serve. The end of the stream says that
the other process has ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec

STALE_SECONDS: Final = 4.0
"""Seconds after which a state that was not told again counts as that of a frozen worker."""
LINE_BYTES_MAX: Final = 1 << 20
"""Bytes of a line."""


class Orders(msgspec.Struct):
    """What a worker is to be; `settings` go before all other places that settings come from."""

    settings: Mapping[str, object]
    ops_path: str
    """The unix socket of its ops routes."""


class Stop(msgspec.Struct, frozen=True):
    """A worker is to stop as after this signal. It may have got that itself: then nothing more happens."""

    number: int
    hurry: bool = False
    """It is to wait for nothing more."""


class State(msgspec.Struct, frozen=True, tag="state"):
    """How a worker is."""

    ready: bool = False
    active: bool = False
    """It takes the pushes."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """A worker can't serve; `code` is what it exits with."""

    problem: str
    code: int


def decode_report(line: bytes) -> State | Refused:
    """What a worker has sent."""
    return msgspec.json.decode(line, type=State | Refused)


def encode(message: Orders | Stop | State | Refused) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


class Link:
    """The worker's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def of_stdin(cls) -> Link:
        """Take it from standard input, which is empty from now on: what this process starts must not keep it open."""
        sock = socket.socket(fileno=os.dup(0))
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        return cls(sock)

    def orders(self) -> Orders:
        """Wait for them. Raises EOFError if the supervisor ends before."""
        line = b""
        while not line.endswith(b"\n"):
            more = self._sock.recv(LINE_BYTES_MAX)
            if not more:
                raise EOFError
            line += more
        return msgspec.json.decode(line, type=Orders)

    def tell(self, report: State | Refused) -> None:
        """Send it. Whether the supervisor is there to read it, `stops` says."""
        try:
            self._sock.sendall(encode(report))
        except OSError:
            pass

    async def stops(self) -> AsyncIterator[Stop]:
        """What the supervisor tells, until it has ended."""
        self._sock.setblocking(False)
        loop = asyncio.get_running_loop()
        rest = b""
        while more := await _received(loop, self._sock):
            *lines, rest = (rest + more).split(b"\n")
            for line in lines:
                yield msgspec.json.decode(line, type=Stop)


async def _received(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """What has come; empty at the end."""
    try:
        return await loop.sock_recv(sock, 65536)
    except ConnectionResetError:
        return b""
