"""One connection to the broker that is always wanted: opened, set up, watched, and opened again after a loss.

aio-pika connects, shakes hands, declares and keeps the heartbeats. Its `TransportFactory` hook puts a tap
between it and the socket: deliveries and confirms are taken out before they reach it (`frames.py`), acks
and publishes are written past it. Whole frames only, so both can write to one socket.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self

import aio_pika
import aiormq.abc
from aio_pika.connection import make_url
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, AuthenticationError
from yarl import URL

from bridge.adapters.amqp.encoding import HEARTBEAT
from bridge.adapters.amqp.frames import Blocked, Closed, Event, Splitter, Unblocked
from bridge.adapters.amqp.grammar import NotAmqp
from bridge.adapters.amqp.login import LoginConnection
from bridge.adapters.amqp.refusals import outage, with_code
from bridge.core.errors import BrokerUnavailable, IllegalTransition
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.redaction import redact

CONNECT_TIMEOUT = 5.0
"""Seconds for the TCP connection and the AMQP handshake together."""
STEP_TIMEOUT = 5.0
"""Seconds for one declare, bind, qos or consume: a queue without a leader never answers."""
CLOSE_TIMEOUT = 2.0
"""Seconds for a polite close, before the connection is aborted."""
HEARTBEAT_SECONDS = 10
RETRY_FIRST, RETRY_MOST = 0.2, 5.0
"""Seconds between tries, doubled from the first to the most; each is jittered down to its half."""
STEADY = 5.0
"""A connection that lived so long counts as a success: the next retry begins at the first delay again."""
SIP = 4.0
"""Seconds between single reads while reading is paused: shows a dead broker, and feeds the heartbeat."""
LIFE_SIGN = 1.0
"""Seconds between signs of life for the library, when all that comes is taken out before it."""

# Everything that these loggers report reaches the ErrorHandler as an error with its cause; at their debug
# level they print whole frames, payloads and all.
for _name in ("aiormq", "aio_pika"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class LinkState(enum.Enum):
    """Where a link to the broker is in its life."""

    CONNECTING = "connecting"
    DECLARING = "declaring"
    OPEN = "open"
    BLOCKED = "blocked"
    """Open, but the broker reads no publishes (memory or disk alarm)."""
    LOST = "lost"
    CLOSED = "closed"


class LinkEvent(enum.Enum):
    """What happens to a link."""

    CONNECT = "connect"
    CONNECTED = "connected"
    SET_UP = "set_up"
    BLOCK = "block"
    UNBLOCK = "unblock"
    LOSE = "lose"
    CLOSE = "close"


LINK_TRANSITIONS: Mapping[tuple[LinkState, LinkEvent], LinkState] = {
    (LinkState.CLOSED, LinkEvent.CONNECT): LinkState.CONNECTING,
    (LinkState.CONNECTING, LinkEvent.CONNECTED): LinkState.DECLARING,
    (LinkState.DECLARING, LinkEvent.SET_UP): LinkState.OPEN,
    (LinkState.OPEN, LinkEvent.BLOCK): LinkState.BLOCKED,
    (LinkState.BLOCKED, LinkEvent.BLOCK): LinkState.BLOCKED,
    (LinkState.BLOCKED, LinkEvent.UNBLOCK): LinkState.OPEN,
    (LinkState.OPEN, LinkEvent.UNBLOCK): LinkState.OPEN,
    (LinkState.CONNECTING, LinkEvent.LOSE): LinkState.LOST,
    (LinkState.DECLARING, LinkEvent.LOSE): LinkState.LOST,
    (LinkState.OPEN, LinkEvent.LOSE): LinkState.LOST,
    (LinkState.BLOCKED, LinkEvent.LOSE): LinkState.LOST,
    (LinkState.LOST, LinkEvent.CONNECT): LinkState.CONNECTING,
    **{(state, LinkEvent.CLOSE): LinkState.CLOSED for state in LinkState},
}


def next_link_state(state: LinkState, event: LinkEvent) -> LinkState:
    """Return the state after `event`; raises IllegalTransition where the table has no line for it."""
    try:
        return LINK_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition("broker link", state.value, event.value) from None


StateListener = Callable[[bool, str], None]
"""Told (ok, cause) when a link is set up or lost; `cause` is a sentence, empty when ok. A blocked link is
not lost: consuming goes on."""


@asynccontextmanager
async def border(step: str, seconds: float) -> AsyncIterator[None]:
    """Around a call into the library: limits its time, and turns whatever it raises into BrokerUnavailable.

    When its connection goes, the library ends waiting calls with CancelledError: that is told apart from
    our own cancellation, which passes. And its `close` swallows a cancellation: that is raised again.
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
        return f"the broker does not take what the URL names as auth; it takes {exc.args[0]}"
    text = str(exc) or type(exc).__name__
    if isinstance(exc, AMQPConnectionError) and len(exc.args) > 1:
        text = str(exc.args[-1])
    return with_code(redact(text))


class _Protocol(asyncio.StreamReaderProtocol):
    """Shows the tap every byte before the library's reader sees any."""

    def __init__(self, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
        super().__init__(reader, loop=loop)
        self._wire = wire

    def data_received(self, data: bytes) -> None:
        passed = self._wire.received(data)
        if passed:
            super().data_received(passed)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wire.fail(f"the connection was lost: {exc}" if exc else "the broker closed the connection")


class Wire(TransportFactory):
    """The tap on one connection: events out, bytes in. Used once, thrown away with its connection.

    `on_events` is called from within the socket's read, at most once for each, and must not raise; if it
    does, the connection is given up, since nobody knows what was handled. `lost` is resolved with the cause
    when the connection is of no more use, whoever noticed first.
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
        """Why the connection is of no more use; empty while it is."""
        self.closed: Closed | None = None
        """What the broker said when it closed the connection."""

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket, as the library's own factories do, with the tap in between."""
        contexts = kwargs.pop("ssl_context_provider")
        context: ssl.SSLContext | None = await contexts.get_context() if url.scheme == "amqps" else None
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

    def tap(self, channel: int) -> None:
        """Take deliveries and confirms of this channel out of the stream from now on."""
        self._splitter.tap(channel)
        self._fed = self._loop.time()

    def untap(self, channel: int) -> None:
        """Leave this channel, which is closed, to the library again; idempotent."""
        self._splitter.untap(channel)

    def write(self, frames: bytes) -> bool:
        """Hand whole frames to the socket in one write; False when the connection is of no more use."""
        transport = self._transport
        if transport is None or self.failure or transport.is_closing():
            return False
        transport.write(frames)
        return True

    def received(self, data: bytes) -> bytes:
        """Take one read of the socket; return what goes on to the library. Never raises."""
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
        # The library takes a silent broker for dead, and it sees none of the frames that were taken out.
        now = self._loop.time()
        if now - self._fed > LIFE_SIGN:
            self._fed = now
            return HEARTBEAT
        return b""

    def _notice_close(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Closed) and event.channel == 0:
                self.closed = event

    def pause(self) -> None:
        """Stop reading the socket, but for a sip every few seconds; idempotent."""
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
        """Give the connection up: dropped at once, whatever is buffered. The first cause counts."""
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


class _Connection(LoginConnection):
    """aio-pika's connection, opened through our tap."""

    def __init__(self, url: URL, wire: Wire) -> None:
        super().__init__(url)
        self.kwargs["transport_factory"] = wire


@asynccontextmanager
async def opened(
    url: str,
    name: str,
    on_events: Callable[[Sequence[Event]], None],
    on_lost: Callable[[str], None],
) -> AsyncIterator[tuple[aio_pika.Connection, Wire]]:
    """Open one connection, and close it at the end: politely if it still works, within seconds in any case.

    Raises BrokerUnavailable. `name` is what people see in the broker's list of connections.
    """
    wire = Wire(on_events, on_lost)
    connection = _Connection(make_url(url, heartbeat=HEARTBEAT_SECONDS, name=name), wire)
    try:
        try:
            async with border("connect", CONNECT_TIMEOUT):
                await connection.connect()
        except BrokerUnavailable as failed:
            if wire.closed is None:
                raise
            # What the library makes of it hides the broker's own words.
            raise outage(str(wire.closed)) from failed
        assert connection.transport is not None
        wire.frame_max = connection.transport.connection.connection_tune.frame_max or 131072
        yield connection, wire
    finally:
        wire.resume()
        try:
            async with border("close", CLOSE_TIMEOUT):
                await connection.close()
        except BrokerUnavailable as gone:
            wire.fail(gone.cause)
        wire.fail("closed")


async def channel(connection: aio_pika.Connection, *, confirms: bool) -> aiormq.abc.AbstractChannel:
    """Open a channel and return the low-level one. Raises BrokerUnavailable."""
    async with border("open a channel", STEP_TIMEOUT):
        made = connection.channel(publisher_confirms=confirms)
        await made.initialize()
        return await made.get_underlay_channel()


class LinkUser(Protocol):
    """What runs over a link. Called from the event loop."""

    async def set_up(self, connection: aio_pika.Connection, wire: Wire) -> None:
        """Declare, open channels, consume. May raise BrokerUnavailable: then it is tried again."""
        ...

    def happened(self, events: Sequence[Event]) -> None:
        """What one read of the socket brought for tapped channels, and what concerns the connection."""
        ...

    def lost(self, cause: str) -> None:
        """The connection that was set up, or was about to be, is gone."""
        ...


class BackOff:
    """Delays between tries: doubled up to a most, each one jittered, so that a herd spreads out."""

    def __init__(self, first: float = RETRY_FIRST, most: float = RETRY_MOST) -> None:
        self._first = first
        self._most = most
        self._next = first

    def succeed(self) -> None:
        """Begin at the first delay again."""
        self._next = self._first

    def delay(self) -> float:
        """Seconds to wait now."""
        delay = self._next * random.uniform(0.5, 1.0)
        self._next = min(self._next * 2, self._most)
        return delay


class Link:
    """Keeps one connection open for a `LinkUser` for as long as it is entered."""

    def __init__(
        self,
        url: str,
        name: str,
        user: LinkUser,
        *,
        clock: Clock,
        errors: ErrorHandler,
        on_state: StateListener | None = None,
    ) -> None:
        self._url = url
        self._name = name
        self._user = user
        self._clock = clock
        self._errors = errors
        self._on_state = on_state
        self._task: asyncio.Task[None] | None = None
        self._lost: asyncio.Future[str] | None = None
        self._stopping = False
        self.state = LinkState.CLOSED
        self.cause = ""
        """Why it is not open; empty when it is."""
        self.opens = 0
        """How often the link was set up."""

    async def __aenter__(self) -> Self:
        self._stopping = False
        self._step(LinkEvent.CONNECT, "connecting")
        self._task = asyncio.create_task(self._run(), name=f"broker link {self._name}")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        self._step(LinkEvent.CLOSE, "closed")

    def give_up(self, cause: str) -> None:
        """Drop the connection as it is now, and open another; idempotent."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(cause)

    async def _run(self) -> None:
        back_off = BackOff()
        reported = ""
        while True:
            began = self._clock.monotonic()
            opens = self.opens
            try:
                cause = await self._one_life()
            except BrokerUnavailable as away:
                cause = away.cause
                error: BrokerUnavailable = away
            else:
                error = outage(cause)
            self._user.lost(cause)
            self._step(LinkEvent.LOSE, cause)
            if self.opens > opens:
                reported = ""
            if cause != reported:
                reported = cause
                self._errors.handle(error, f"broker.{self._name}", {"opens": self.opens})
            if self._clock.monotonic() - began > STEADY:
                back_off.succeed()
            await self._clock.sleep(back_off.delay())
            self._step(LinkEvent.CONNECT, cause)

    async def _one_life(self) -> str:
        """Open, set up, and wait until it is lost; return the cause."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = lost
        async with opened(self._url, self._name, self._happened, self.give_up) as (connection, wire):
            self._step(LinkEvent.CONNECTED, "declaring")
            try:
                await self._user.set_up(connection, wire)
            except BrokerUnavailable:
                if not lost.done():
                    raise
            if not lost.done():
                self.opens += 1
                self._step(LinkEvent.SET_UP, "")
            return await lost

    def _happened(self, events: Sequence[Event]) -> None:
        self._user.happened(events)
        for event in events:
            kind = type(event)
            if kind is Blocked and self.state in (LinkState.OPEN, LinkState.BLOCKED):
                assert isinstance(event, Blocked)
                self._step(LinkEvent.BLOCK, f"the broker blocks publishers: {event.why}")
            elif kind is Unblocked and self.state in (LinkState.OPEN, LinkState.BLOCKED):
                self._step(LinkEvent.UNBLOCK, "")
            elif kind is Closed:
                assert isinstance(event, Closed)
                if event.channel == 0:
                    self.give_up(f"the broker closed the connection: {event}")

    def _step(self, event: LinkEvent, cause: str) -> None:
        self.state = next_link_state(self.state, event)
        self.cause = cause
        if self._on_state is None or self._stopping:
            return
        if event is LinkEvent.SET_UP:
            self._on_state(True, "")
        elif event is LinkEvent.LOSE:
            self._on_state(False, cause)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The side task never ends by itself but for a bug: then it is reported, and the link stays lost."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._errors.handle(error, f"broker.{self._name}", {"state": self.state.value})
            self.state = LinkState.LOST
            self.cause = repr(error)
            if self._on_state is not None:
                self._on_state(False, self.cause)
