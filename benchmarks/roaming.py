"""Clients that stay connected as browsers do, through a load balancer that sees which nodes are ready."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import msgspec

from benchmarks.chaos.bridges import SECRET, Bridge, token
from benchmarks.clients import HANDSHAKES_AT_ONCE, Client, Tally, connected, source
from bridge.core.model.sessions import Mode

LOOK_EVERY: Final = 0.5
"""Seconds between two looks of the load balancer at a node."""
FIRST_WAIT: Final = 0.5
"""Seconds; the library waits for half of it to all of it before it comes back, then twice as long each time."""
LONGEST_WAIT: Final = 30.0


class Place(Protocol):
    """A node, as a client sees it."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def ws_port(self) -> int:
        """Where its WebSockets are."""


class Choice(Protocol):
    """Says where a new connection goes."""

    def choose(self) -> Place | None:
        """The node for it; None while there is none."""


class Balancer:
    """Chooses a node at random among those whose /readyz was 200 a moment ago."""

    def __init__(self, bridges: Sequence[Bridge]) -> None:
        self.bridges = list(bridges)
        self._ready: list[Bridge] = []

    async def run(self) -> None:
        """Look at the nodes, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Look at all of them once."""
        bridges = list(self.bridges)
        found = await asyncio.gather(*(bridge.status() for bridge in bridges))
        self._ready = [b for b, (status, _) in zip(bridges, found, strict=True) if status == 200]

    def choose(self) -> Bridge | None:
        """The node for a new connection; None while none is ready."""
        return random.choice(self._ready) if self._ready else None


class _Socket(Client):
    """One WebSocket of a person, in the mode with an envelope."""

    __slots__ = ("_last", "_on_frame", "ended")

    def __init__(self, person: Person, opened: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        super().__init__(person.number, person.token, _NO_TALLY, opened, Mode.ENVELOPE.value)
        self._last = person.last
        self._on_frame = person.came
        self.ended = ended

    def _target(self) -> bytes:
        last = b"&last=" + self._last.encode() if self._last else b""
        return super()._target() + last

    def _message(self, message: bytes, now: int) -> None:
        self._on_frame(msgspec.json.decode(message))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.ended.done():
            self.ended.set_result(None)


_NO_TALLY: Final = Tally()


class Person:
    """A user with one page: what they have seen, and where they are."""

    def __init__(self, number: int, on_welcome: Callable[[Person], None], secret: str = SECRET) -> None:
        self.number = number
        self.user = f"u{number}"
        self.token = token(self.user, secret)
        self.last = ""
        self.seen: list[str] = []
        """Ids of pushes, each once, in the order in which they came."""
        self.repeats = 0
        self.at: Place | None = None
        """Where the session is; None while there is none."""
        self.opened = 0
        self.failed = 0
        """Tries that did not get as far as a session."""
        self._known: set[str] = set()
        self._wait = 0.0
        self._on_welcome = on_welcome

    def came(self, frame: dict[str, Any]) -> None:
        """A frame came."""
        if frame["type"] == "push":
            self.last = frame["id"]
            if self.last in self._known:
                self.repeats += 1
            else:
                self._known.add(self.last)
                self.seen.append(self.last)
        elif frame["type"] == "welcome":
            self.opened += 1
            self._on_welcome(self)
        elif frame["type"] == "bye":
            self._wait = frame["retry_after"]

    async def stay(self, balancer: Choice, gate: asyncio.Semaphore) -> None:
        """Be connected, until cancelled."""
        loop = asyncio.get_running_loop()
        tries = 0
        while True:
            self._wait = 0.0
            node = balancer.choose()
            if node is not None:
                try:
                    async with gate:
                        _, socket = await loop.create_connection(
                            lambda: _Socket(self, loop.create_future(), loop.create_future()),
                            sock=await connected(source(self.number, node.ws_port), node.ws_port),
                        )
                        await socket.opened
                except OSError:
                    tries += 1
                    self.failed += 1
                else:
                    self.at, tries = node, 0
                    await socket.ended
                    self.at = None
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
            await asyncio.sleep(self._wait + longest * random.uniform(0.5, 1.0))


class People:
    """So many of them, connected for the length of the block."""

    def __init__(self, count: int, balancer: Balancer) -> None:
        self.all = [Person(number, self._welcomed) for number in range(count)]
        self.returns: list[float] = []
        """When each came back, by the loop's clock."""
        self._balancer = balancer
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    def _welcomed(self, person: Person) -> None:
        self._changed.set()
        if person.opened > 1:
            self.returns.append(asyncio.get_running_loop().time())

    async def __aenter__(self) -> People:
        gate = asyncio.Semaphore(HANDSHAKES_AT_ONCE)
        self._tasks = [
            asyncio.create_task(person.stay(self._balancer, gate), name=person.user) for person in self.all
        ]
        await self.everybody_here(60.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def everybody_here(self, seconds: float) -> None:
        """Return when all have a session. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while sum(self.by_node().values()) < len(self.all):
                self._changed.clear()
                await self._changed.wait()

    def by_node(self) -> dict[str, int]:
        """How many sessions each node has."""
        counts = Counter(person.at.node for person in self.all if person.at is not None)
        return {bridge.node: counts[bridge.node] for bridge in self._balancer.bridges}


def peak(times: Sequence[float]) -> int:
    """The most of these times that lie within one second."""
    ordered, most, first = sorted(times), 0, 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most
