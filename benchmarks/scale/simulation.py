"""Simulate how pushes are routed between nodes: look-ups, letters, rows. Nothing is measured here.

Each node is three loops, as in the bridge: one asks for the holders of all pushes that have come meanwhile, one sends a
letter to each node for which something waits, one writes the rows that are due. How many a statement or a letter takes
at most, who takes which partition, and how long questions and the writer linger are the bridge's own constants and
functions. How long a statement and a letter take is given; that the nodes have the CPU for all of it is taken for
granted, and checked by whoever reads the result.

Every push is for one user who is there, and was when somebody asked last; without a ttl, with proof `received`.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from bridge.core.bounds import Bounds
from bridge.core.cluster.post import ITEMS
from bridge.core.cluster.sharing import Plan, plan_of
from bridge.core.delivery.routing import LINGER, PUSHES
from bridge.core.sessions.departures import Pace, waits

BOUNDS: Final = Bounds().settlement
TICK: Final = 0.1
"""Seconds between two looks of a stop at its sessions."""
REPORTS: Final = 2
"""What a holder tells the taker of a push: that a session has it, and that its peer has proven it."""


class Delays(NamedTuple):
    """Seconds."""

    look_up: float
    """For the statement that asks which nodes have some users."""
    letter: float
    """From the write of a letter until it is confirmed; then it is there, too."""
    write: float
    """For a statement that writes rows."""
    pong: float
    """From a frame to the answer of its peer."""


class Push(NamedTuple):
    """One push."""

    number: int
    at: float
    taker: int
    holders: Sequence[int]
    """The nodes that have sessions of its user, each as often as it has some."""


class _Item(NamedTuple):
    """What is in a letter: a push, or a report of it."""

    push: Push
    proven: bool | None
    """None: the push itself. False: it was handed over. True: it is proven."""


class Work:
    """What one node has done."""

    def __init__(self) -> None:
        self.taken = 0
        self.frames = 0
        self.forwards = 0
        """Pushes that it forwarded or was forwarded,"""
        self.letters = 0
        """and letters that it sent or got."""
        self.statements = 0
        """Statements that wrote rows."""


class Counted:
    """What happened in a simulation, over all nodes."""

    def __init__(self) -> None:
        self.look_ups = 0
        """Statements that asked for holders,"""
        self.asked = 0
        """and pushes in them."""
        self.forwards = 0
        self.letters = 0
        self.items = 0
        """In those letters."""
        self.work: defaultdict[int, Work] = defaultdict(Work)
        """By node."""
        self.frames = 0
        self.statements = 0
        """Statements that wrote rows,"""
        self.rows = 0
        """and the rows; each has a receipt and an ack."""


class Simulation:
    """So many nodes, for one simulation."""

    def __init__(self, nodes: int, delays: Delays) -> None:
        self.counted = Counted()
        self._nodes = nodes
        self._delays = delays
        self._proven: set[int] = set()
        """The numbers of pushes whose row is due or written."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._unasked: list[list[Push]] = [[] for _ in range(nodes)]
        self._asking = [False] * nodes
        self._post: list[dict[int, list[_Item]]] = [{} for _ in range(nodes)]
        self._posting = [False] * nodes
        self._due = [0] * nodes
        self._writing = [False] * nodes

    def run(self, pushes: Iterable[Push]) -> Counted:
        """Let these pushes come; returns when all have ended."""
        for push in pushes:
            self._at(push.at, lambda push=push: self._take(push))  # type: ignore[misc]
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return self.counted

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _in(self, seconds: float, happen: Callable[[], None]) -> None:
        self._at(self._now + seconds, happen)

    def _take(self, push: Push) -> None:
        self.counted.work[push.taker].taken += 1
        here = push.holders.count(push.taker)
        if here:
            self._hand(push, push.taker)
            self._in(self._delays.pong, lambda: self._is_due(push))
        if self._nodes > 1:
            self._forward(push)
            waiting = self._unasked[push.taker]
            waiting.append(push)
            if len(waiting) == 1:
                self._in(LINGER, lambda: self._ask(push.taker))

    def _forward(self, push: Push) -> None:
        """To all who probably have its user: nobody waits until it is known."""
        for holder in set(push.holders) - {push.taker}:
            self.counted.forwards += 1
            self.counted.work[push.taker].forwards += 1
            self.counted.work[holder].forwards += 1
            self._tell(push.taker, holder, _Item(push, None))

    def _hand(self, push: Push, node: int) -> None:
        frames = push.holders.count(node)
        self.counted.frames += frames
        self.counted.work[node].frames += frames

    # --- who has the users ---

    def _ask(self, node: int) -> None:
        if self._asking[node] or not self._unasked[node]:
            return
        some, self._unasked[node] = self._unasked[node][:PUSHES], self._unasked[node][PUSHES:]
        self._asking[node] = True
        self._in(self._delays.look_up, lambda: self._found(node, some))

    def _found(self, node: int, some: Sequence[Push]) -> None:
        self._asking[node] = False
        self.counted.look_ups += 1
        self.counted.asked += len(some)
        self._ask(node)

    # --- letters ---

    def _tell(self, sender: int, to: int, item: _Item) -> None:
        self._post[sender].setdefault(to, []).append(item)
        # All that is told at one moment is told before the first letter is made.
        self._in(0.0, lambda: self._send(sender))

    def _send(self, node: int) -> None:
        if self._posting[node] or not self._post[node]:
            return
        self._posting[node] = True
        sent: list[tuple[int, list[_Item]]] = []
        for to, line in list(self._post[node].items()):
            sent.append((to, line[:ITEMS]))
            del line[:ITEMS]
            if not line:
                del self._post[node][to]
        self._in(self._delays.letter, lambda: self._arrived(node, sent))

    def _arrived(self, node: int, sent: Sequence[tuple[int, list[_Item]]]) -> None:
        self._posting[node] = False
        for to, items in sent:
            self.counted.letters += 1
            self.counted.items += len(items)
            self.counted.work[node].letters += 1
            self.counted.work[to].letters += 1
            for item in items:
                self._read(to, item)
        self._send(node)

    def _read(self, node: int, item: _Item) -> None:
        push = item.push
        if item.proven:
            self._is_due(push)
        elif item.proven is None:
            self._hand(push, node)
            self._tell(node, push.taker, _Item(push, proven=False))
            self._in(self._delays.pong, lambda: self._tell(node, push.taker, _Item(push, proven=True)))

    # --- rows ---

    def _is_due(self, push: Push) -> None:
        if push.number in self._proven:
            return
        self._proven.add(push.number)
        self._due[push.taker] += 1
        if not self._writing[push.taker]:
            self._write_soon(push.taker)

    def _write_soon(self, node: int) -> None:
        self._writing[node] = True
        linger = BOUNDS.linger if self._due[node] < BOUNDS.linger_rows else 0.0
        self._in(linger, lambda: self._write(node))

    def _write(self, node: int) -> None:
        rows = min(self._due[node], BOUNDS.batch_rows)
        self._due[node] -= rows
        self.counted.statements += 1
        self.counted.work[node].statements += 1
        self.counted.rows += rows
        self._in(self._delays.write, lambda: self._written(node))

    def _written(self, node: int) -> None:
        self._writing[node] = False
        if self._due[node]:
            self._write_soon(node)


def names(nodes: int) -> list[str]:
    """The names of so many nodes."""
    return [f"node-{number + 1}" for number in range(nodes)]


def takers(plan: Plan, named: Sequence[str]) -> list[int]:
    """The node that takes each partition, by its place."""
    return [named.index(owner) for owner in plan.owners]


def partition_of(user: int, partitions: int) -> int:
    """The partition of a user. The broker's hash is another one; both are even, and that is all that counts here."""
    return int.from_bytes(blake2b(f"user.{user}".encode(), digest_size=8).digest()) % partitions


def random_pushes(
    *, nodes: int, partitions: int, users: int, devices: int, rate: float, seconds: float, seed: int = 1
) -> Iterable[Push]:
    """Pushes at a rate to users at random, whose devices are each at a node by chance."""
    chance = random.Random(seed)
    by_partition = takers(plan_of(partitions, names(nodes)), names(nodes))
    for number in range(int(rate * seconds)):
        user = chance.randrange(users)
        # Of a user who comes twice in a simulation the devices may have moved: that changes no count.
        holders = [chance.randrange(nodes) for _ in range(devices)]
        yield Push(number, number / rate, by_partition[partition_of(user, partitions)], holders)


def takeover_rings(nodes: int, partitions: int) -> int:
    """Rings for everybody, at most, once so many partitions have changed hands: each new taker rings all other nodes,
    and there and here all sessions look into their mailboxes."""
    return partitions * (nodes - 1)


class Drained(NamedTuple):
    """How a node stops that has so many sessions."""

    in_turn: int
    """Sessions that are closed at the rate,"""
    at_once: int
    """and those for which there is no time left, and which are told when to come."""
    seconds: float
    """Until the last one is closed,"""
    last_back: float
    """and until the last one is to be back, but for the second that every client waits."""


def drain(sessions: int, rate: float, timeout: float) -> Drained:
    """Close the sessions of a node at this rate, as `bridge.core.delivery.moving` does, if nobody waits for proofs."""
    pace = Pace(rate, -1.0)  # it has not closed any for a while
    closed, now = 0, 0.0
    while closed < sessions and now < timeout:
        room = pace.room(now, sessions - closed)
        pace.closed(room)
        closed += room
        now += TICK
    seconds = min(now, timeout)
    return Drained(
        closed, sessions - closed, seconds, seconds + max(waits(sessions - closed, rate), default=0.0)
    )
