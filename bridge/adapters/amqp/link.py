"""Keep one connection to the broker: open it, set it up, watch it, and open it again after a loss."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self

import aio_pika

from bridge.adapters.amqp.connection import Tap, opened
from bridge.adapters.amqp.frames import Blocked, Closed, Event, Unblocked
from bridge.adapters.amqp.refusals import outage
from bridge.core.backoff import BackOff
from bridge.core.errors import BrokerUnavailable, IllegalTransition
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler

RECONNECT_FIRST, RECONNECT_MOST = 0.2, 5.0
"""Seconds between tries: doubled from the first to the most, each with jitter down to its half."""
STEADY = 5.0
"""Seconds. After a connection that lived so long, the next retry begins at the first delay again."""


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


class LinkUser(Protocol):
    """What uses a link. Called from the event loop."""

    async def set_up(self, connection: aio_pika.Connection, tap: Tap) -> None:
        """Declare, open channels, consume. May raise BrokerUnavailable: then it is tried again."""
        ...

    def happened(self, events: Sequence[Event]) -> None:
        """One read of the socket brought these events of tapped channels and of the connection."""
        ...

    def lost(self, cause: str) -> None:
        """The connection is lost, whether it was set up or about to be."""
        ...


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
        """Drop this connection and open another; idempotent."""
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(cause)

    async def _run(self) -> None:
        back_off = BackOff(self._clock, RECONNECT_FIRST, RECONNECT_MOST, jitter=True)
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
            if self._stopping:
                # The cancellation came while the library was connecting, and was taken for a failure of that.
                return
            self._step(LinkEvent.LOSE, cause)
            if self.opens > opens:
                reported = ""
            if cause != reported:
                reported = cause
                self._errors.handle(error, f"broker.{self._name}", {"opens": self.opens})
            if self._clock.monotonic() - began > STEADY:
                back_off.reset()
            await back_off.wait()
            self._step(LinkEvent.CONNECT, cause)

    async def _one_life(self) -> str:
        """Open, set up, and wait until it is lost; return the cause."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = lost
        async with opened(self._url, self._name, self._happened, self.give_up) as (connection, tap):
            self._step(LinkEvent.CONNECTED, "declaring")
            try:
                await self._user.set_up(connection, tap)
            except BrokerUnavailable:
                if not lost.done():
                    raise
            if self._stopping:
                return "closed"
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
        """The task ends by itself only because of a bug: that is reported, and the link stays lost."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._errors.handle(error, f"broker.{self._name}", {"state": self.state.value})
            self.state = LinkState.LOST
            self.cause = repr(error)
            if self._on_state is not None:
                self._on_state(False, self.cause)
