"""Forward pushes to other nodes that have sessions of their users, and hear what became of them there.

The node that took the push owns its end. To it another node is one recipient among the user's sessions. A forward
proves nothing, and a node that does not answer until the deadline has proven nothing either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Final, NamedTuple

from bridge.core.cluster.post import Post
from bridge.core.contract.letters import Forwarded, Report, Word
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.transitions import State
from bridge.core.model.outcomes import DELIVERED, Reason
from bridge.core.model.pushes import PushRequest, ToSession, ToTopic
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Sent

OUT_MAX: Final = 100_000
"""Forwards whose end is awaited; over it the oldest are forgotten. Their deadlines are long over."""
OWED_FOR: Final = 10.0
"""Seconds for which an answer may be owed. After that the letter is lost, or was for a process that is no more."""
ASKED_MAX: Final = 10_000
"""Items for one node that are remembered until it says that it has them."""
SUSPECT_AFTER: Final = 0.2
"""Seconds after which a node that says what it has is behind,"""
SUSPECT_TIMES: Final = 4.0
"""or so many times the seconds in which it says so usually, where that is more."""
USUALLY: Final = 1 / 8
"""The weight of the last of these times, as in RFC 6298 (2)."""
_AFTER_HANDED: Final = frozenset((Word.RECEIVED, Word.ACKED, Word.LOST))
"""What is reported only of a push that was handed over."""
USERS_MAX: Final = 500
"""Users for whom a push is in one letter: its data is in it once."""


class Forward(NamedTuple):
    """A push that another node has for one user, and that may still be reported."""

    flight: Flight
    request: PushRequest
    boot: str
    again: bool
    """It was forwarded before, to a node that had no session of its user any more."""


class _Batch(NamedTuple):
    """Flights of one request for one node."""

    request: PushRequest
    again: bool
    flights: list[Flight]


class _Owed:
    """What a process has not answered yet."""

    __slots__ = ("asked", "queue", "since", "usual")

    def __init__(self, queue: str) -> None:
        self.queue = queue
        """Where it listened when the last of them was sent."""
        self.since: dict[int, float] = {}
        """Monotonic seconds at which each was sent of which nothing was heard yet, in order; for `OWED_FOR` seconds."""
        self.asked: deque[tuple[int, float]] = deque(maxlen=ASKED_MAX)
        """The last number of each item that it has not said to have, and when that was sent; in order. Over `ASKED_MAX`
        the oldest are forgotten."""
        self.usual: float | None = None
        """Seconds in which it usually says what it has; None: it has not said so yet, as bridges of the version before
        never do."""


class Forwards:
    """The pushes of this node that other nodes have."""

    def __init__(self, *, post: Post, lacks: Callable[[str, int, str], None], clock: Clock) -> None:
        """`lacks` is told the user, the position and the boot, where a process may lack a kept push that others have
        proven by now."""
        self._post = post
        self._lacks = lacks
        self._clock = clock
        self._next = 1
        self._out: dict[int, Forward] = {}
        self._silent: set[int] = set()
        """Those of them of which nothing was heard yet."""
        self._owed: dict[str, _Owed] = {}
        """The same by boot."""
        self._batches: dict[str, _Batch] = {}
        """What `flush` sends, by boot."""

    def __len__(self) -> int:
        return len(self._out)

    def add(self, flight: Flight, request: PushRequest, boot: str, *, again: bool = False) -> None:
        """Forward a push to the process with this boot: the next `flush` sends it."""
        flight.forwarded(boot)
        batch = self._batches.get(boot)
        if batch is not None:
            same = batch.request is request and batch.again is again
            if same and len(batch.flights) < USERS_MAX:
                batch.flights.append(flight)
                return
            self._send(boot, batch)
        self._batches[boot] = _Batch(request, again, [flight])

    def flush(self) -> None:
        """Send what was added."""
        batches, self._batches = self._batches, {}
        for boot, batch in batches.items():
            self._send(boot, batch)
        if batches:
            self._post.flush()

    def _send(self, boot: str, batch: _Batch) -> None:
        request, again, flights = batch
        owed, now = self._owed_by(boot), self._clock.monotonic()
        first = self._next
        self._next += len(flights)
        owed.asked.append((self._next - 1, now))
        for number, flight in enumerate(flights, first):
            self._out[number] = Forward(flight, request, boot, again)
            self._silent.add(number)
            owed.since[number] = now
        while len(self._out) > OUT_MAX:
            self._forget(next(iter(self._out)))
        failed = partial(self._failed, range(first, self._next))
        self._post.add(boot, _item(first, flights, request), failed)

    def _owed_by(self, boot: str) -> _Owed:
        """What this process owes. If it listens on another queue by now, what was in the one before is lost: that is
        sent again, before anything newer. A node that has it all the same only reports."""
        queue = self._post.queue_of(boot)
        owed = self._owed.get(boot)
        if owed is None:
            for other in [
                other for other, o in self._owed.items() if not o.since and not self._post.queue_of(other)
            ]:
                del self._owed[other]  # it is dead
            owed = self._owed[boot] = _Owed(queue)
        elif queue and queue != owed.queue:
            owed.queue = queue
            for item in self._items_again(list(owed.since)):
                self._post.add(boot, item, _as_before)
        return owed

    def every_second(self) -> None:
        """Called each second: send again what was lost with a queue, though nothing newer follows."""
        for boot, owed in list(self._owed.items()):
            if owed.since:
                self._owed_by(boot)

    def _items_again(self, numbers: Sequence[int]) -> Iterator[Forwarded]:
        """These forwards, but those that have ended; users of one push together, as at first. For a kept
        push that others have proven meanwhile, its user is rung there instead."""
        first, flights, of = 0, list[Flight](), None
        for number in numbers:
            flight, request, boot = self._out[number][:3]
            if flight.ended:
                self._proven_by_others(flight, boot)
                continue
            if request is of and number == first + len(flights) and len(flights) < USERS_MAX:
                flights.append(flight)
                continue
            if of is not None:
                yield _item(first, flights, of)
            first, flights, of = number, [flight], request
        if of is not None:
            yield _item(first, flights, of)

    def _failed(self, numbers: range, sent: Sent) -> None:
        now = self._clock.time()
        for number in numbers:
            out = self._forget(number) if sent is Sent.UNREACHABLE else self._out.get(number)
            if out is None:
                continue
            flight = out.flight
            self._proven_by_others(flight, out.boot)
            if sent is Sent.UNREACHABLE:
                flight.answered()
                flight.unreached(out.boot, now)
                flight.lost(now, handed=False, why=Reason.NODE_UNREACHABLE)
            elif flight.kept is not None:
                # The node may have it: its report, or the deadline, says more. Until then it counts as lacking it.
                flight.unreached(out.boot, now)

    def _proven_by_others(self, flight: Flight, boot: str) -> None:
        if flight.kept is not None and flight.ended and flight.outcome in DELIVERED:
            self._lacks(flight.key.user, flight.position, boot)

    def reported(self, boot: str, node: str, report: Report) -> Forward | None:
        """A process, that of this node, reports. Returns the forward that found no session there: its holders must be
        asked for again."""
        out = self._out.get(report.number)
        if out is None or out.boot != boot:
            return None
        flight, now = out.flight, self._clock.time()
        if not report.session:
            node = ""  # it is of the version before
        if report.number in self._silent:
            self._heard(report.number, boot)
            flight.answered()
        word = report.word
        if flight.state is State.TAKEN and word in _AFTER_HANDED:
            # That report is still to come: its letter was lost, and reports are sent again after a while.
            flight.handed(now, report.session, node, unprovable=report.unprovable)
        if word is Word.HANDED:
            flight.handed(now - report.age, report.session, node, unprovable=report.unprovable)
        elif word is Word.RECEIVED:
            flight.received(now, report.session, node)
        elif word is Word.ACKED:
            flight.acked(now, report.session, node)
        else:
            return self._ended(report, out, now)
        if word >= out.request.confirm - 1:
            self._forget(report.number)
        return None

    def _ended(self, report: Report, out: Forward, now: float) -> Forward | None:
        self._forget(report.number)
        flight, word = out.flight, report.word
        if word is not Word.EXCLUDED:
            flight.unreached(out.boot, now)  # who opens a session there from now on lacks it
        moved = word is Word.ABSENT and not isinstance(out.request.target, ToSession)
        # Who has opened a session elsewhere has read what has a row, or was rung for it.
        stored = flight.kept is not None and flight.parked
        if moved and not out.again and not stored and not flight.ended:
            flight.not_there()
            return out
        if word is Word.EXCLUDED:
            flight.excluded(now)
        else:
            why = Reason(report.why) if report.why else None
            if report.unprovable:
                why = Reason.NO_PROOF_POSSIBLE
            flight.lost(now, handed=word is Word.LOST, why=why)
        return None

    def had(self, boot: str, number: int) -> None:
        """A process says that it has the pushes up to this number."""
        owed = self._owed.get(boot)
        if owed is None:
            return
        sent: float | None = None
        while owed.asked and owed.asked[0][0] <= number:
            _, sent = owed.asked.popleft()
        if sent is not None:
            took = self._clock.monotonic() - sent
            owed.usual = took if owed.usual is None else owed.usual + (took - owed.usual) * USUALLY

    def owes(self, boot: str, seconds: float) -> bool:
        """Whether this process is behind: others must not wait for it then. It has owed an answer for so many seconds,
        or does not say for a shorter time that it has what was sent."""
        owed = self._owed.get(boot)
        if owed is None:
            return False
        now = self._clock.monotonic()
        if owed.usual is not None:
            return self._is_late(
                owed.asked, now, min(seconds, max(SUSPECT_AFTER, SUSPECT_TIMES * owed.usual))
            )
        while owed.since:
            number, since = next(iter(owed.since.items()))
            if now - since < OWED_FOR:
                return now - since >= seconds
            del owed.since[number]
        return False

    def behind(self, seconds: float) -> Set[str]:
        """The processes of which `owes` is true."""
        return {boot for boot in self._owed if self.owes(boot, seconds)}

    def _is_late(self, asked: deque[tuple[int, float]], now: float, seconds: float) -> bool:
        while asked:
            number, since = asked[0]
            # What has ended meanwhile, or was lost with its letter, is not waited for.
            if number in self._out and now - since < OWED_FOR:
                return now - since >= seconds
            asked.popleft()
        return False

    def _heard(self, number: int, boot: str) -> None:
        self._silent.discard(number)
        owed = self._owed.get(boot)
        if owed is not None:
            owed.since.pop(number, None)

    def _forget(self, number: int) -> Forward | None:
        out = self._out.pop(number, None)
        if out is not None:
            self._heard(number, out.boot)
        return out


def _as_before(sent: Sent) -> None:
    """Sent again in vain: the node may have the first one, and report it."""


def _item(first: int, flights: Sequence[Flight], request: PushRequest) -> Forwarded:
    kept = flights[0].kept
    return Forwarded(
        first,
        [flight.key.user for flight in flights],
        request.target.session if isinstance(request.target, ToSession) else "",
        request.tenant,
        request.id,
        request.event,
        request.encoding.value,
        request.data,
        int(request.confirm),
        list(request.excluded),
        request.collapse_key,
        flights[0].position,
        None if kept is None else kept.expires_at,
        request.target.topic if isinstance(request.target, ToTopic) else "",
    )
