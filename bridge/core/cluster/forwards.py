"""Forward a push to another node that has sessions of its user, and hear what became of it there.

The node that took the push owns its end. To it another node is one recipient among the user's sessions. A forward
proves nothing, and a node that does not answer until the deadline has proven nothing either.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from bridge.core.cluster.post import Post
from bridge.core.contract.letters import Forwarded, Report, Withdrawn, Word
from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Sent

OUT_MAX: Final = 100_000
"""Forwards whose end is awaited; over it the oldest are forgotten. Their deadlines are long over."""


class Forward(NamedTuple):
    """A push that another node has, and that may still be reported."""

    flight: Flight
    request: PushRequest
    boot: str
    again: bool
    """It was forwarded before, to a node that had no session of its user any more."""


class Forwards:
    """The pushes of this node that other nodes have."""

    def __init__(self, *, post: Post, clock: Clock) -> None:
        self._post = post
        self._clock = clock
        self._numbers = itertools.count(1)
        self._out: dict[int, Forward] = {}
        self._silent: set[int] = set()
        """Those of them of which nothing was heard yet."""

    def __len__(self) -> int:
        return len(self._out)

    def send(self, flight: Flight, request: PushRequest, boot: str, *, again: bool = False) -> None:
        """Forward a push to the process with this boot."""
        number = next(self._numbers)
        self._out[number] = Forward(flight, request, boot, again)
        self._silent.add(number)
        if len(self._out) > OUT_MAX:
            self._forget(next(iter(self._out)))
        flight.forwarded()
        item = Forwarded(
            number,
            request.tenant,
            request.id,
            flight.key.user,
            request.event,
            request.encoding.value,
            request.data,
            int(request.confirm),
            tuple(request.excluded),
            None if flight.kept is None else flight.position,
        )
        self._post.add(boot, item, partial(self._failed, number))

    def _failed(self, number: int, sent: Sent) -> None:
        if sent is not Sent.UNREACHABLE:
            return  # the node may have it: its report, or the deadline, says more
        out = self._forget(number)
        if out is not None:
            out.flight.answered()
            out.flight.lost(self._clock.time(), handed=False, why=Reason.NODE_UNREACHABLE)

    def reported(self, boot: str, report: Report) -> Forward | None:
        """A node reports. Returns the forward that found no session there: its holders must be asked for again."""
        out = self._out.get(report.number)
        if out is None or out.boot != boot:
            return None
        flight, now = out.flight, self._clock.time()
        if report.number in self._silent:
            self._silent.discard(report.number)
            flight.answered()
        word = report.word
        if word is Word.HANDED:
            flight.handed(now)
        elif word is Word.RECEIVED:
            flight.received(now)
        elif word is Word.ACKED:
            flight.acked(now)
        else:
            return self._ended(report, out, now)
        if word >= out.request.confirm - 1:
            self._forget(report.number)
        return None

    def _ended(self, report: Report, out: Forward, now: float) -> Forward | None:
        self._forget(report.number)
        flight, word = out.flight, report.word
        if word is Word.ABSENT and not out.again and not flight.ended:
            flight.not_there()
            return out
        if word is Word.EXCLUDED:
            flight.excluded(now)
        else:
            why = Reason(report.why) if report.why else None
            flight.lost(now, handed=word is Word.LOST, why=why)
        return None

    def _forget(self, number: int) -> Forward | None:
        self._silent.discard(number)
        return self._out.pop(number, None)

    def withdraw(self, flights: Sequence[Flight]) -> None:
        """These must not be sent any more: tell the nodes that may have them."""
        wanted = {id(flight) for flight in flights}
        for out in self._out.values():
            if id(out.flight) in wanted:
                key = out.flight.key
                self._post.add(out.boot, Withdrawn(key.tenant, key.push_id, key.user), lambda sent: None)
