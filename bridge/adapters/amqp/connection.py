"""One connection to the broker, with a tap between the library and its socket.

aio-pika connects, shakes hands, declares and keeps the heartbeats. Through its `TransportFactory` hook the tap sees
every byte first: it takes deliveries and confirms out before they reach the library (`frames.py`), and writes acks
and publishes past it. Both write whole frames only, so they can share one socket.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import aiormq.abc
from aio_pika.connection import make_url
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, AuthenticationError
from pamqp.commands import Queue
from yarl import URL

from bridge.adapters.amqp import tls
from bridge.adapters.amqp.encoding import AMQP_HEARTBEAT
from bridge.adapters.amqp.frames import Closed, Event, Splitter
from bridge.adapters.amqp.grammar import NotAmqp
from bridge.adapters.amqp.login import LoginConnection
from bridge.adapters.amqp.refusals import outage, with_code
from bridge.core.errors import BrokerUnavailable
from bridge.core.redaction import redact

CONNECT_TIMEOUT = 5.0
"""Seconds for the TCP connection and the AMQP handshake together."""
STEP_TIMEOUT = 5.0
"""Seconds for one declare, bind, qos or consume: a queue without a leader never answers."""
CLOSE_TIMEOUT = 2.0
"""Seconds for closing in order, before the connection is aborted."""
HEARTBEAT_SECONDS = 10
SIP = 4.0
"""Seconds between single reads while reading is paused. They show a dead broker, and feed the heartbeat."""
LIFE_SIGN = 1.0
"""Seconds between signs of life for the library, when everything received is taken out before it."""

# What these loggers report reaches the ErrorHandler as an error with its cause. At debug level they print whole
# frames, payloads included.
for _name in ("aiormq", "aio_pika"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


@asynccontextmanager
async def border(step: str, seconds: float) -> AsyncIterator[None]:
    """Around a call into the library: limits its time, and turns what it raises into BrokerUnavailable.

    When its connection is lost, the library ends waiting calls with CancelledError. That is told apart from our own
    cancellation, which passes. And its `close` swallows a cancellation: here it is raised again.
    """
    task = asyncio.current_task()
    assert task is not None
    cancels = task.cancelling()
    try:
        async with asyncio.timeout(seconds):
            yield
        if task.cancelling() > cancels:
            raise asyncio.CancelledError
    except TimeoutError as exc:
        raise BrokerUnavailable(f"{step}: no answer within {seconds:g} s") from exc
    except asyncio.CancelledError as exc:
        if task.cancelling() > cancels:
            raise
        raise BrokerUnavailable(f"{step}: the connection was lost") from exc
    except BrokerUnavailable:
        raise
    except Exception as exc:  # the library raises its own, OSError, ssl's, RuntimeError and ValueError
        raise outage(f"{step}: {_sentence(exc)}") from exc


def _sentence(exc: BaseException) -> str:
    if isinstance(exc, AuthenticationError):
        return f"the broker does not support the auth of the URL; it supports {exc.args[0]}"
    if about_tls := tls.advice(exc):
        return about_tls
    text = str(exc) or type(exc).__name__
    if isinstance(exc, AMQPConnectionError) and len(exc.args) > 1:
        text = str(exc.args[-1])
    return with_code(redact(text))


class _Protocol(asyncio.StreamReaderProtocol):
    """Shows the tap every byte before the library's reader."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, tap: Tap) -> None:
        super().__init__(reader, loop=loop)
        self._tap = tap

    def data_received(self, data: bytes) -> None:
        passed = self._tap.received(data)
        if passed:
            super().data_received(passed)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._tap.fail(f"the connection was lost: {exc}" if exc else "the broker closed the connection")


class Tap(TransportFactory):
    """The tap on one connection: events out, bytes in. Used for one connection only.

    `on_events` is called once at most for each read of the socket, and must not raise. If it does, the connection is
    given up, since nobody knows what was handled. `on_lost` is told the cause when the connection is unusable, whoever
    noticed first.
    """

    def __init__(self, on_events: Callable[[Sequence[Event]], None], on_lost: Callable[[str], None]) -> None:
        self._on_events = on_events
        self._on_lost = on_lost
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._fed = math.inf  # no life signs of ours before the handshake is over
        self._sip: asyncio.TimerHandle | None = None
        self.paused = False
        self.frame_max = 131072
        self.failure = ""
        """Why the connection is unusable; empty while it works."""
        self.closed: Closed | None = None
        """What the broker said when it closed the connection."""

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket, as the library's own factories do, with the tap in between."""
        contexts = kwargs.pop("ssl_context_provider")
        context = await tls.context_of(url, contexts) if url.scheme == "amqps" else None
        reader = asyncio.StreamReader(loop=self._loop)
        try:
            transport, protocol = await self._loop.create_connection(
                lambda: _Protocol(reader, self._loop, self),
                url.host or "",
                url.port or 5672,
                ssl=context,
                **kwargs,
            )
        except OSError as exc:
            raise AMQPConnectionError(*exc.args) from exc
        self._transport = transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    def watch(self, channel: int, *, uncut: bool = False) -> None:
        """Take deliveries and confirms of this channel out of the stream from now on. `uncut`: see `Splitter.watch`."""
        self._splitter.watch(channel, uncut=uncut)
        self._fed = self._loop.time()

    def unwatch(self, channel: int) -> None:
        """Leave this channel to the library again, once it is closed; idempotent."""
        self._splitter.unwatch(channel)

    def write(self, frames: bytes) -> bool:
        """Write whole frames to the socket at once; False when the connection is unusable."""
        transport = self._transport
        if transport is None or self.failure or transport.is_closing():
            return False
        transport.write(frames)
        return True

    def received(self, data: bytes) -> bytes:
        """Take one read of the socket; return what the library is to get. Never raises."""
        if self.failure:
            return b""
        try:
            events, passed = self._splitter.feed(data)
            if events:
                self._notice_close(events)
                self._on_events(events)
        except NotAmqp as exc:
            self.fail(str(exc))
            return b""
        except Exception as exc:  # becomes the cause of the loss, which is reported
            self.fail(f"handling what the broker sent failed: {exc!r}")
            return b""
        if self.paused and self._sip is None:
            self._pause()
        if passed:
            return passed
        # The library believes that a silent broker is dead, and it does not see the frames that were taken out.
        now = self._loop.time()
        if now - self._fed > LIFE_SIGN:
            self._fed = now
            return AMQP_HEARTBEAT
        return b""

    def _notice_close(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Closed) and event.channel == 0:
                self.closed = event

    def pause(self) -> None:
        """Stop reading the socket, but for one read every few seconds; idempotent."""
        if not self.paused:
            self.paused = True
            self._pause()

    def resume(self) -> None:
        """Read on; idempotent."""
        self.paused = False
        if self._sip is not None:
            self._sip.cancel()
            self._sip = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._sip = self._loop.call_later(SIP, self._take_sip)

    def _take_sip(self) -> None:
        self._sip = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def fail(self, cause: str) -> None:
        """Give the connection up: it is dropped at once with what is buffered. The first cause counts."""
        if self.failure:
            return
        self.failure = cause
        self.paused = False
        if self._sip is not None:
            self._sip.cancel()
            self._sip = None
        if self._transport is not None:
            self._transport.abort()
        self._on_lost(cause)


class _TappedConnection(LoginConnection):
    """aio-pika's connection, opened through our tap."""

    def __init__(self, url: URL, tap: Tap) -> None:
        super().__init__(url)
        self.kwargs["transport_factory"] = tap


@asynccontextmanager
async def opened(
    url: str,
    name: str,
    on_events: Callable[[Sequence[Event]], None],
    on_lost: Callable[[str], None],
) -> AsyncIterator[tuple[aio_pika.Connection, Tap]]:
    """Open one connection, and close it at the end: in order if it still works, within seconds in any case.

    Raises BrokerUnavailable. `name` is what people see in the broker's list of connections.
    """
    tap = Tap(on_events, on_lost)
    connection = _TappedConnection(make_url(url, heartbeat=HEARTBEAT_SECONDS, name=name), tap)
    try:
        try:
            async with border("connect", CONNECT_TIMEOUT):
                await connection.connect()
        except BrokerUnavailable as failed:
            if tap.closed is None:
                raise
            # The library's error hides the broker's own words.
            raise outage(str(tap.closed)) from failed
        assert connection.transport is not None
        tap.frame_max = connection.transport.connection.connection_tune.frame_max or 131072
        yield connection, tap
    finally:
        tap.resume()
        try:
            async with border("close", CLOSE_TIMEOUT):
                await connection.close()
        except BrokerUnavailable as gone:
            tap.fail(gone.cause)
        tap.fail("closed")


async def channel(connection: aio_pika.Connection, *, confirms: bool) -> aiormq.abc.AbstractChannel:
    """Open a channel and return the low-level one. Raises BrokerUnavailable."""
    async with border("open a channel", STEP_TIMEOUT):
        made = connection.channel(publisher_confirms=confirms)
        await made.initialize()
        return await made.get_underlay_channel()


async def close_channel(low: aiormq.abc.AbstractChannel) -> None:
    """Close a low-level channel. Raises BrokerUnavailable."""
    async with border("close a channel", STEP_TIMEOUT):
        await low.close()


async def look_at(low: aiormq.abc.AbstractChannel, queue: str) -> Queue.DeclareOk:
    """What the broker tells everybody of a queue: a passive declare.

    Raises BrokerUnavailable; the cause tells a queue that is missing, or another connection's. Then the channel is
    closed, too.
    """
    async with border(f"look at {queue}", STEP_TIMEOUT):
        return await low.queue_declare(queue, passive=True)
