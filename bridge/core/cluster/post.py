"""Send items to other nodes: one letter for all that waits for a node, in the order in which it came.

While a letter is on its way, items collect for the next one. What is in no hurry waits a moment for something that is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.contract.letters import Forwarded, Item, Report, encode_letter
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Letter, NodePost, Sent
from bridge.core.ports.plugins import Metrics

ITEMS: Final = 500
"""Items in one letter,"""
BYTES: Final = 1024 * 1024
"""and bytes of their data; a single push may have more."""
LINGER: Final = 0.005
"""Seconds at most for which an item that is in no hurry waits for others."""


class _Waiting(NamedTuple):
    item: Item
    failed: Callable[[Sent], None]
    since: float | None
    """Monotonic seconds, for what is in no hurry."""


class Post:
    """Sends what other nodes are to know."""

    def __init__(
        self, mail: NodePost | None, neighbours: Neighbours, metrics: Metrics, clock: Clock, boot: str
    ) -> None:
        self._mail = mail
        self._neighbours = neighbours
        self._metrics = metrics
        self._clock = clock
        self._boot = boot
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._had: dict[str, int] = {}
        """The number of the last push that came from each process."""
        self._wake = asyncio.Event()
        self._linger = asyncio.Event()
        """Something waits that is in no hurry."""

    def add(self, boot: str, item: Item, failed: Callable[[Sent], None], *, soon: bool = True) -> None:
        """Send this to the process with this boot. `failed` is told unless it is delivered. `soon`: at once; otherwise
        with what comes next, within `LINGER` seconds."""
        since = None if soon else self._clock.monotonic()
        self._waiting.setdefault(boot, deque()).append(_Waiting(item, failed, since))
        if soon:
            self._wake.set()
        else:
            self._linger.set()

    def answer(self, boot: str, number: int) -> None:
        """Tell the process with this boot that its pushes up to this number are here: with what comes next, within
        `LINGER` seconds."""
        self._had[boot] = number
        self._waiting.setdefault(boot, deque())
        self._linger.set()

    def queue_of(self, boot: str) -> str:
        """Where the process with this boot listens now; empty where that is not known."""
        neighbour = self._neighbours.of_boot(boot)
        return "" if neighbour is None else neighbour.queue

    @property
    def waiting(self) -> int:
        """Items that are not sent yet."""
        return sum(map(len, self._waiting.values()))

    async def run(self) -> None:
        """Send as items come, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_those_that_linger(), name="lingering letters")
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._send()

    async def _send_those_that_linger(self) -> None:
        while True:
            await self._linger.wait()
            self._linger.clear()
            await self._clock.sleep(LINGER)
            self._wake.set()

    async def _send(self) -> None:
        letters: list[Letter] = []
        now = self._clock.monotonic()
        inside: list[list[_Waiting]] = []
        for boot in list(self._waiting):
            line = self._waiting[boot]
            some = _some(line)
            if not line:
                del self._waiting[boot]
            queue = self.queue_of(boot)
            if not queue:
                self._had.pop(boot, None)
                _tell(some, Sent.UNREACHABLE)
                continue
            body = encode_letter(self._boot, [_aged(one, now) for one in some], self._had.get(boot, 0))
            letters.append(Letter(queue, body))
            inside.append(some)
            self._metrics.letter(len(some))
        if not letters or self._mail is None:
            return
        for some, sent in zip(inside, await self._mail.send(letters), strict=True):
            if sent is not Sent.DELIVERED:
                _tell(some, sent)


def _some(line: deque[_Waiting]) -> list[_Waiting]:
    some: list[_Waiting] = []
    size = 0
    while line and len(some) < ITEMS and size < BYTES:
        one = line.popleft()
        some.append(one)
        size += len(one.item.data) if isinstance(one.item, Forwarded) else 0
    return some


def _aged(one: _Waiting, now: float) -> Item:
    item, _, since = one
    if since is None or not isinstance(item, Report):
        return item
    return Report(item.number, item.word, item.why, item.session, item.unprovable, now - since)


def _tell(some: list[_Waiting], sent: Sent) -> None:
    for one in some:
        one.failed(sent)
