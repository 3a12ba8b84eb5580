"""What the broker's tests stand on: an intake that records, a TCP proxy that cuts, and a look at queues."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from bridge.adapters.amqp import encoding, frames
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.consume import Consumer, never_called
from bridge.adapters.amqp.frames import Delivered, Event
from bridge.adapters.amqp.outbox import Message, Outbox
from bridge.adapters.amqp.topology import DEAD, FALLEN, PUSH, REQUESTS, DeclareMode, ensure
from bridge.app.build import SystemClock
from bridge.core.ports.broker import AckToken, Arrival
from tests.support.core import RecordingErrors, until

CLOCK = SystemClock()
MARKER = b"the last message"


class RecordingIntake:
    """Fills the Intake port; acks each batch at once where it is told to."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.batches: list[int] = []
        self.lost: list[int] = []
        self.acks: Consumer | None = None

    def arrived(self, batch: Sequence[Arrival]) -> None:
        self.arrivals += batch
        self.batches.append(len(batch))
        if self.acks is not None:
            self.acks.widen()
            self.acks.ack([a.token for a in batch])

    def channel_lost(self, incarnation: int) -> None:
        self.lost.append(incarnation)

    @property
    def bodies(self) -> list[bytes]:
        return [a.body for a in self.arrivals]

    @property
    def tokens(self) -> list[AckToken]:
        return [a.token for a in self.arrivals]

    async def has(self, count: int) -> None:
        await until(lambda: len(self.arrivals) >= count)


class WideConsumer(Consumer):
    """One whose core finds nothing suspicious in what comes first."""

    def happened(self, events: Sequence[Event]) -> None:
        super().happened(events)
        if any(isinstance(event, frames.Delivered) for event in events):
            self.widen()


def consumer(
    url: str, errors: RecordingErrors | None = None, *, kind: type[Consumer] = WideConsumer, **options: object
) -> Consumer:
    return kind(url, clock=CLOCK, errors=errors or RecordingErrors(), **options)  # type: ignore[arg-type]


@asynccontextmanager
async def outbox(url: str) -> AsyncIterator[Outbox]:
    """A confirming channel, to publish whatever a test likes."""
    made: list[Outbox] = []

    def happened(events: Sequence[Event]) -> None:
        for box in made:
            box.happened(events)

    async with opened(url, "test publisher", happened, lambda cause: None) as (connection, tap):
        low = await channel(connection, confirms=True)
        tap.watch(low.number)
        made.append(Outbox(tap, low.number))
        yield made[0]


async def declare(url: str) -> None:
    async with opened(url, "test", lambda events: None, lambda cause: None) as (connection, _):
        await ensure(connection, DeclareMode.ACTIVE)


async def publish(url: str, bodies: Sequence[bytes], properties: bytes | None = None) -> None:
    """Publish to exchange `push` and await the confirms."""
    plain = properties if properties is not None else encoding.properties()
    async with outbox(url) as box:
        failures = await box.publish([Message(PUSH, b"user.u1", plain, body) for body in bodies], 10.0)
        assert not failures


async def drained(url: str, queue: str) -> list[AbstractIncomingMessage]:
    """Take all that is in a queue, what was given out and not acked before included, and leave it empty.

    A marker is published behind it. A single active consumer gets nothing before the one before it is gone,
    and what that one had not acked comes first: so whoever sees the marker has seen everything.
    """
    found: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    async with await aio_pika.connect(url) as connection, connection.channel() as opened_channel:
        await opened_channel.default_exchange.publish(aio_pika.Message(MARKER), queue)
        await (await opened_channel.get_queue(queue)).consume(found.put)
        messages: list[AbstractIncomingMessage] = []
        async with asyncio.timeout(60):
            while (message := await found.get()).body != MARKER:
                messages.append(message)
                if len(messages) % 1000 == 0:  # a quorum queue gives out 2,000 at most before it wants an ack
                    await message.ack(multiple=True)
        await message.ack(multiple=True)
    return messages


async def at_rest(url: str) -> bool:
    """Whether nothing is left in the queues that the bridge takes from."""
    return not await drained(url, REQUESTS) and not await drained(url, FALLEN)


@asynccontextmanager
async def listening(
    url: str, exchange: str = "", *, key: str = "#", name: str = ""
) -> AsyncIterator[asyncio.Queue[Mapping[str, object]]]:
    """What reaches an exchange, or the queue `name`, from now on: body, routing key, properties."""
    seen: asyncio.Queue[Mapping[str, object]] = asyncio.Queue()

    async def received(message: AbstractIncomingMessage) -> None:
        seen.put_nowait(described(message))

    async with await aio_pika.connect(url) as connection, connection.channel() as opened_channel:
        queue = await opened_channel.declare_queue(name or None, exclusive=True)
        if exchange:
            await queue.bind(exchange, key)
        await queue.consume(received, no_ack=True)
        yield seen


@asynccontextmanager
async def raw_deliveries(url: str, queue: str) -> AsyncIterator[asyncio.Queue[Delivered]]:
    """What reaches a queue, or one that is made under this name, as our own decoder reads it.

    The library would give up its connection over a property that is not UTF-8.
    """
    seen: asyncio.Queue[Delivered] = asyncio.Queue()

    def happened(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Delivered):
                seen.put_nowait(event)

    async with opened(url, "test reader", happened, lambda cause: None) as (connection, tap):
        low = await channel(connection, confirms=False)
        if queue not in (DEAD, REQUESTS, FALLEN):
            await low.queue_declare(queue, exclusive=True)
        tap.watch(low.number)
        await low.basic_consume(queue, never_called, no_ack=True)
        yield seen


def memory_alarm(on: bool) -> str:
    """What to evaluate on the broker so that it has too little memory, or enough again."""
    return f"vm_memory_monitor:set_vm_memory_high_watermark({'0.0000001' if on else '0.4'})."


def described(message: AbstractIncomingMessage) -> Mapping[str, object]:
    return {
        "body": message.body,
        "routing_key": message.routing_key,
        "correlation_id": message.correlation_id,
        "message_id": message.message_id,
        "content_type": message.content_type,
        "persistent": message.delivery_mode == 2,
        "type": message.type,
        "app_id": message.app_id,
        "headers": dict(message.headers),
    }


class Proxy:
    """A TCP proxy before the broker that can cut, reset, freeze, and say something to the client itself."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._split = urlsplit(url)
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self.most = 65536
        """Bytes passed on in one piece."""
        self.connections = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user = self._split.netloc.rpartition("@")[0]
        scheme = "amqps" if self._tls is not None else "amqp"
        return urlunsplit(self._split._replace(scheme=scheme, netloc=f"{user}@127.0.0.1:{port}"))

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
        try:
            up_reader, up_writer = await asyncio.open_connection(self._split.hostname, self._split.port)
        except OSError:
            writer.transport.abort()
            return
        if self.most < 65536:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections += 1
        self._pairs.append((writer, up_writer))
        for name, source, sink in (("up", reader, up_writer), ("down", up_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink), name=f"proxy {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

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
