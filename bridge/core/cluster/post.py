"""Send items to other nodes: one letter for all that waits for a node, in the order in which it came.

While many items are on their way, others collect for the next letter. What is in no hurry waits a moment for something
that is. Reports, and what takes pushes back, are kept until their reader says that it has read them: a queue ends with
its connection, and what is in it too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.cluster.unheard import Unheard
from bridge.core.contract.letters import Forwarded, Item, Recalled, Report, Ring, encode_letter
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Letter, NodePost, Sent
from bridge.core.ports.plugins import Metrics

ITEMS: Final = 500
"""Items in one letter, a push once for each of its users: who reads it offers them all in one turn of the loop,"""
BYTES: Final = 1024 * 1024
"""and bytes of their data; a single push may have more."""
UNDER_WAY: Final = 10
"""Items for one process that may be under way before others wait for the confirm of their letters. A single push waits
for no other, and many go together."""
LINGER: Final = 0.005
"""Seconds at most for which an item that is in no hurry waits for others."""
UNREAD_MAX: Final = 200
"""Letters that are kept for a process which has not read them; over it the oldest are forgotten,"""
UNREAD_FOR: Final = 10.0
"""and after so many seconds those for a process that never says what it has read, as bridges of the version before."""


class _Waiting(NamedTuple):
    item: Item
    failed: Callable[[Sent], None]
    since: float | None
    """Monotonic seconds, for what is in no hurry."""


class _Sealed(NamedTuple):
    """A letter that must be read."""

    number: int
    queue: str
    at: float
    """Monotonic seconds."""
    kept: Sequence[_Waiting]
    """What is said again if it was lost."""


class _Peer:
    """What another process was sent, and what came from it."""

    __slots__ = ("had", "number", "read", "said", "says", "under_way", "unread")

    def __init__(self) -> None:
        self.had = 0
        """The number of the last push that came from it."""
        self.number = 0
        """Of the last letter to it that must be read."""
        self.read = 0
        """The number of the last such letter that came from it,"""
        self.said = 0
        """and up to which it was told so."""
        self.says = False
        """Whether it has ever said what it has read."""
        self.under_way = 0
        """Items in letters that are not confirmed."""
        self.unread: deque[_Sealed] = deque(maxlen=UNREAD_MAX)
        """Such letters that it has not said to have read."""


class _Under(NamedTuple):
    """A letter that is under way."""

    boot: str
    peer: _Peer
    number: int
    items: Sequence[_Waiting]


class Post:
    """Sends what other nodes are to know."""

    def __init__(
        self,
        mail: NodePost | None,
        neighbours: Neighbours,
        metrics: Metrics,
        clock: Clock,
        boot: str,
        unheard: Sequence[Unheard],
    ) -> None:
        """`unheard`: what is to be said again."""
        self._mail = mail
        self._unheard = unheard
        self._again: dict[str, None] = {}
        """Processes to which some of it is to be said now."""
        self._neighbours = neighbours
        self._metrics = metrics
        self._clock = clock
        self._boot = boot
        self._waiting: dict[str, deque[_Waiting]] = {}
        self._peers: dict[str, _Peer] = {}
        self._letters = 0
        """Letters that are under way."""
        self._failed: list[tuple[_Under, Sent]] = []
        """Those of them that are not any more, and were not delivered."""
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
        peer = self._peer(boot)
        peer.had = max(peer.had, number)  # what was lost is sent again
        self._waiting.setdefault(boot, deque())
        self._linger.set()

    def had(self, boot: str) -> int:
        """The number of the newest push that came from the process with this boot."""
        return self._peer(boot).had

    def unread(self, boot: str) -> set[int]:
        """The numbers of the pushes of which the process with this boot is yet to read a report: it is on its way, or
        will be said again."""
        waiting = [*self._waiting.get(boot, ())]
        for letter in self._peer(boot).unread:
            waiting += letter.kept
        for under, _ in self._failed:
            if under.boot == boot:
                waiting += under.items
        items = [one.item for one in waiting]
        for unheard in self._unheard:
            items += unheard.of(boot)
        return {item.number for item in items if isinstance(item, Report)}

    def came(self, boot: str, number: int, read: int) -> None:
        """A letter of this process came, which has read those of this one up to `read`. It will be told."""
        if number:
            self._peer(boot).read = number
        if read:
            peer = self._peer(boot)
            peer.says = True
            some: list[_Sealed] = []
            while peer.unread and peer.unread[0].number <= read:
                some.append(peer.unread.popleft())
            for letter in some:
                if letter.queue != some[-1].queue:  # it may have been lost with that
                    _tell(letter.kept, Sent.UNSURE)

    def every_second(self) -> None:
        """Called each second: tell what was read and not said yet, find letters that nobody will read any more, and say
        again what was not heard."""
        give_up = self._clock.monotonic() - UNREAD_FOR
        for boot, peer in list(self._peers.items()):
            gone = self._neighbours.of_boot(boot) is None
            queue = self.queue_of(boot)
            while queue and peer.unread and peer.unread[0].queue != queue:
                _tell(peer.unread.popleft().kept, Sent.UNSURE)
            while peer.unread and not peer.says and peer.unread[0].at <= give_up:
                peer.unread.popleft()
            if gone:
                # It may have read them: what it has proven by them must not be noted as late.
                del self._peers[boot]
            elif peer.said < peer.read:
                self._waiting.setdefault(boot, deque())
                self._wake.set()
        for unheard in self._unheard:
            self._again.update(dict.fromkeys(unheard.boots))
        self._say_again()

    def _say_again(self) -> None:
        """Say some of it to one process. The others have their turns of the loop."""
        boot = next(iter(self._again), None)
        if boot is None:
            return
        del self._again[boot]
        gone = self._neighbours.of_boot(boot) is None
        if gone or len(self._waiting.get(boot, ())) < ITEMS:
            for unheard in self._unheard:
                unheard.say_some(boot)
        if gone and self._lacks(boot):
            self._again[boot] = None  # no letter of it will be delivered
        if self._again:
            self._wake.set()

    def _lacks(self, boot: str) -> bool:
        """Whether the process with this boot has not heard something."""
        return any(boot in unheard for unheard in self._unheard)

    def _peer(self, boot: str) -> _Peer:
        return self._peers.setdefault(boot, _Peer())

    def queue_of(self, boot: str) -> str:
        """Where the process with this boot listens now; empty where that is not known."""
        neighbour = self._neighbours.of_boot(boot)
        return "" if neighbour is None else neighbour.queue

    @property
    def waiting(self) -> int:
        """Items that are not sent yet."""
        return sum(map(len, self._waiting.values()))

    @property
    def busy(self) -> bool:
        """Whether something is not sent yet, or not confirmed."""
        return bool(self._waiting or self._letters or self._failed)

    async def run(self) -> None:
        """Send as items come, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send_those_that_linger(), name="lingering letters")
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._tell_those_that_failed()
                self._say_again()
                self.flush()
                await self._clock.sleep(0)  # while nothing can be sent, each letter wakes this at once

    def flush(self) -> None:
        """Send what may be sent now, before the loop goes on: what else it has to do may take a while."""
        while self._send() and not self._failed:
            pass

    async def _send_those_that_linger(self) -> None:
        while True:
            await self._linger.wait()
            self._linger.clear()
            await self._clock.sleep(LINGER)
            self._wake.set()

    def _send(self) -> bool:
        """Send a letter to each process that may have one. Returns whether any was sent."""
        letters: list[Letter] = []
        now = self._clock.monotonic()
        inside: list[_Under] = []
        for boot in list(self._waiting):
            peer = self._peer(boot)
            if peer.under_way >= UNDER_WAY:
                continue
            line = self._waiting[boot]
            some = _some(line)
            if not line:
                del self._waiting[boot]
            queue = self.queue_of(boot)
            if not queue:
                self._has_failed(_Under(boot, peer, 0, some), Sent.UNREACHABLE)
                continue
            kept = [one for one in some if _must_be_read(one.item)]
            if kept:
                peer.number += 1
                peer.unread.append(_Sealed(peer.number, queue, now, kept))
            if not line:  # a push in it may be one of which a report was read since
                peer.said = peer.read
            body = encode_letter(
                self._boot,
                [_aged(one, now) for one in some],
                peer.had,
                peer.number if kept else 0,
                peer.said,
            )
            letters.append(Letter(queue, body))
            inside.append(_Under(boot, peer, peer.number if kept else 0, some))
            peer.under_way += len(some)
            self._metrics.letter(len(some))
        if not letters or self._mail is None:
            return False
        self._letters += len(letters)
        self._mail.send(letters, partial(self._sent, inside))
        return True

    def _sent(self, inside: Sequence[_Under], place: int, sent: Sent) -> None:
        """What became of the letter at this place. Called from the adapter, so what follows from it is done later."""
        under = inside[place]
        self._letters -= 1
        under.peer.under_way -= len(under.items)
        if sent is not Sent.DELIVERED:
            self._has_failed(under, sent)
            return
        if self._lacks(under.boot):
            self._again[under.boot] = None
        if under.boot in self._waiting or self._again:
            self._wake.set()

    def _has_failed(self, under: _Under, sent: Sent) -> None:
        self._failed.append((under, sent))
        self._wake.set()

    def _tell_those_that_failed(self) -> None:
        failed, self._failed = self._failed, []
        for (_, peer, number, items), sent in failed:
            peer.unread = deque((one for one in peer.unread if one.number != number), UNREAD_MAX)
            _tell(items, sent)


def _some(line: deque[_Waiting]) -> list[_Waiting]:
    some: list[_Waiting] = []
    count = size = 0
    while line and count < ITEMS and size < BYTES:
        one = line.popleft()
        some.append(one)
        if isinstance(one.item, Forwarded):
            count += len(one.item.users)
            size += len(one.item.data)
        else:
            count += 1
    return some


def _must_be_read(item: Item) -> bool:
    """Pushes are sent again by their number, and who listens on a new queue looks for what is stored."""
    if isinstance(item, Ring):
        return item.push_id != ""
    return isinstance(item, (Report, Recalled))


def _aged(one: _Waiting, now: float) -> Item:
    item, _, since = one
    if since is None or not isinstance(item, Report):
        return item
    return Report(item.number, item.word, item.why, item.session, item.unprovable, now - since)


def _tell(some: Sequence[_Waiting], sent: Sent) -> None:
    for one in some:
        one.failed(sent)
