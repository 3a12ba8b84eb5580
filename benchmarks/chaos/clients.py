"""Recording clients: each records every push that it reads, before a pong for it can be sent.

They use websockets' sans-I/O ClientProtocol, so that a client decides byte by byte what a peer does: answer a
ping or reset the connection instead, read or not, acknowledge or not. Everything is recorded when it happens
on this side of the connection, without trusting what the bridge reports.
"""

from __future__ import annotations

import asyncio
import enum
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import quote

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from benchmarks.chaos.evidence import Session, Showing, Tab

ENVELOPE = Subprotocol("bridge.v1.json")
_RESET = struct.pack("ii", 1, 0)
CONNECT_TIMEOUT = 10.0
RETRY_LEAST, RETRY_MOST = 0.1, 0.6
"""Seconds before a client reconnects."""


class Manner(enum.Enum):
    """What a client does with what it reads."""

    READS = "reads"
    """As a browser: pongs, no acks."""
    ACKS = "acks"
    """Acks every push."""
    ACKS_SOME = "acks some"
    """Acks every second push or so."""
    BARE = "bare"
    """Without the envelope."""
    NEVER_READS = "never reads"
    """Opens a session and reads nothing more."""
    RESETS = "resets"
    """Resets its connection instead of sending the pong, then reconnects."""


class Witness:
    """What all clients of a run have read."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], Showing] = {}
        self.strangers: list[str] = []
        """Frames that were not a push of a run."""
        self.first_read: float | None = None
        """Monotonic seconds of the first push since `begin`."""

    def begin(self) -> None:
        """Wait for the first push from now on."""
        self.first_read = None

    def saw(self, client: Client, mark: str, session: str) -> Showing:
        """A client has read a push."""
        showing = self.shown.get((client.user, mark))
        if showing is None:
            showing = self.shown[client.user, mark] = Showing()
        showing.times[client.number] += 1
        if session:
            showing.sessions.add(session)
        if self.first_read is None:
            self.first_read = time.monotonic()
        return showing


class _Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, client: Client, port: int) -> None:
        self._client = client
        self._port = port
        last = f"&last={quote(client.last)}" if client.tab.resumes and client.last else ""
        uri = parse_uri(f"ws://127.0.0.1/ws?token={client.token}{last}")
        wanted = None if client.manner is Manner.BARE else [ENVELOPE]
        self._protocol = ClientProtocol(uri, subprotocols=wanted)
        self._transport: asyncio.Transport | None = None
        self._unponged: list[Showing] = []
        self._taken = 0
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.session = ""
        self.welcomed: float | None = None
        self.code = 1006

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._protocol.send_request(self._protocol.connect())
        self._write()

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        answered: list[Showing] = []
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._answered()
            elif isinstance(event, Frame):
                if event.opcode in (Opcode.TEXT, Opcode.BINARY):
                    self._read(event)
                    if self._transport is None or self._transport.is_closing():
                        return
                elif event.opcode is Opcode.PING:
                    answered += self._unponged
                    self._unponged.clear()
        if self._protocol.handshake_exc is not None and not self.opened.done():
            self.opened.set_exception(ConnectionError(repr(self._protocol.handshake_exc)))
            self.reset()
            return
        if self._write():
            for showing in answered:
                showing.ponged = True

    def eof_received(self) -> None:
        self._protocol.receive_eof()
        self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.welcomed is not None:
            self._client.tab.open.append(Session(self.welcomed, time.monotonic(), self._port))
        if self._protocol.close_rcvd is not None:
            self.code = int(self._protocol.close_rcvd.code)
        if not self.opened.done():
            self.opened.set_exception(ConnectionError("lost during the handshake"))
        if not self.gone.done():
            self.gone.set_result(None)

    def _answered(self) -> None:
        if self._protocol.state is OPEN and not self.opened.done():
            self.opened.set_result(None)
            if self._client.manner is Manner.NEVER_READS and self._transport is not None:
                self._transport.pause_reading()

    def _read(self, frame: Frame) -> None:
        client = self._client
        try:
            message = json.loads(bytes(frame.data))
            if client.manner is Manner.BARE:
                mark = message["mark"]
            elif message["type"] == "push":
                mark = message["data"]["mark"]
            else:
                if message["type"] == "welcome":
                    self.session = message["session"]
                    self.welcomed = time.monotonic()
                    client.session_opened(self.session, message["complete"])
                return
        except (ValueError, KeyError, TypeError):
            client.witness.strangers.append(f"{client.user} read {bytes(frame.data)[:200]!r}")
            return
        showing = client.witness.saw(client, mark, self.session)
        client.has_read(mark, "" if client.manner is Manner.BARE else message["id"])
        self._unponged.append(showing)
        self._taken += 1
        manner = client.manner
        acks = manner is Manner.ACKS or (manner is Manner.ACKS_SOME and self._taken % 2)
        if acks and self._protocol.state is OPEN:
            # Recorded first: if we crash, an ack may be recorded and not sent, never sent and not recorded.
            showing.acked = True
            ack = {"type": "ack", "id": message["id"], "tenant": message.get("tenant")}
            self._protocol.send_text(json.dumps(ack).encode())
        elif manner is Manner.RESETS:
            self.reset()

    def _write(self) -> bool:
        """Write what the protocol has to send; returns whether the transport took it."""
        writes = self._protocol.data_to_send()
        if self._transport is None or self._transport.is_closing():
            return False
        for data in writes:
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()
        return True

    def freeze(self) -> None:
        """Read no more."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        if self._transport is not None and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()


class Client:
    """One browser tab: connects, reconnects whenever it loses the connection, and records."""

    def __init__(
        self,
        number: int,
        user: str,
        token: str,
        port: Callable[[], int],
        manner: Manner,
        witness: Witness,
        rng: random.Random,
    ) -> None:
        self.number = number
        self.user = user
        self.token = token
        self.manner = manner
        self.witness = witness
        self.connects = 0
        self.codes: list[int] = []
        """Close codes that it received."""
        self.session = ""
        """Its present session, if it knows it."""
        self.tab = Tab(user, acks=manner is Manner.ACKS)
        """Its evidence for the checker."""
        self.last = ""
        """The push that it has seen last, if it knows its id."""
        self.sessions: list[str] = []
        self._port = port
        self._rng = rng
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._away = asyncio.Event()
        self._away.set()

    def session_opened(self, session: str, complete: bool) -> None:
        """It has received a welcome."""
        self.session = session
        self.sessions.append(session)
        self.tab.cut += not complete

    def has_read(self, mark: str, push_id: str) -> None:
        """It has read a push, whose id it may not know."""
        now = time.monotonic()
        self.tab.reads.append((self.connects, mark, now))
        if push_id:
            self.last = push_id
            self.tab.since = min(self.tab.since, now)

    @property
    def stays(self) -> bool:
        """Whether it reads everything, so that the checker may expect it to."""
        return self.manner not in (Manner.NEVER_READS, Manner.RESETS)

    @property
    def open(self) -> bool:
        """Whether it is connected."""
        return self._connection is not None and self._connection.opened.done()

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        self._task = asyncio.create_task(self._live(), name=f"client {self.number} of {self.user}")

    async def stop(self) -> None:
        """Disconnect for good. Raises the error that ended its task."""
        if self._task is None:
            return
        self._task.cancel()
        try:
            await self._task
        except asyncio.CancelledError:
            return

    def drop(self) -> None:
        """Reset its connection; it reconnects."""
        if self._connection is not None:
            self._connection.reset()

    def move(self, port: Callable[[], int]) -> None:
        """Reset its connection, and connect to this port from now on."""
        self._port = port
        self.drop()

    def freeze(self) -> None:
        """Stop reading on the connection that it has."""
        if self._connection is not None:
            self._connection.freeze()

    def go_away(self) -> None:
        """Reset its connection and stay disconnected until `come_back`."""
        self._away.clear()
        self.drop()

    def come_back(self) -> None:
        """Connect again."""
        self._away.set()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._away.wait()
            port = self._port()
            connection = _Connection(self, port)
            self.connects += 1
            try:
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                if self.manner is Manner.NEVER_READS:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.setblocking(False)
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    try:
                        await loop.sock_connect(sock, ("127.0.0.1", port))
                    except BaseException:
                        sock.close()
                        raise
                    # From here on the socket is the transport's: closing it here would close somebody else's.
                    await loop.create_connection(lambda c=connection: c, sock=sock)  # type: ignore[misc]
                    await connection.opened
                self._connection = connection
                await connection.gone
            except (OSError, TimeoutError):
                pass  # it reconnects below
            finally:
                connection.reset()
                self._connection = None
                self.session = ""
                if connection.opened.done() and not connection.opened.cancelled():
                    connection.opened.exception()
            self.codes.append(connection.code)
            await asyncio.sleep(self._rng.uniform(RETRY_LEAST, RETRY_MOST))
