"""Route a push to one user: to the sessions here, to nodes that have others, to the log, or until the user is back.

While other nodes live, the ledger says which of them have sessions of a user. It is asked for many pushes at a time,
and the answers are acted on in the order in which the pushes were taken. Sessions here get theirs at once, unless an
older push of the same user waits for such an answer. So do the nodes that were named last; then it is only asked to
learn of further ones, and is asked for several pushes at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

from bridge.core.cluster.cluster import Cluster
from bridge.core.delivery.behind import Behind
from bridge.core.delivery.dispatch import Dispatcher
from bridge.core.delivery.grace import Grace
from bridge.core.delivery.targets import Resolver, resolver_of, sessions_of, why_nobody
from bridge.core.errors import StatementFailed
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.offered import keys_of
from bridge.core.model.outcomes import DELIVERED, Outcome, Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session
from bridge.core.settlement.persistence import Persistence

PUSHES: Final = 1_000
"""Pushes whose holders are asked for in one statement."""
LINGER: Final = 0.02
"""Seconds at most that the question who else has a user waits for more of them: nobody waits for the answer."""
TRY_AGAIN: Final = 1.0
"""Seconds until they are asked for again, where the statement fails though the database is there."""


class Asked(NamedTuple):
    """A push that waits for the answer which nodes have sessions of its user."""

    flight: Flight
    request: PushRequest
    offered: bool
    """Whether the sessions here, or the nodes that had its user last, have been offered it."""
    again: bool = False
    """It was forwarded to a node that had no session of its user any more."""
    guessed: Sequence[str] | None = None
    """The processes that it was forwarded to already; None where it was not known who had its user last, or where an
    older push of the user could have come after it."""
    before: Sequence[Session] = ()
    """The sessions here that were not offered it, since older pushes of the user wait as well."""


class Router:
    """Routes pushes that were just taken."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        dispatcher: Dispatcher,
        grace: Grace,
        cluster: Cluster,
        persistence: Persistence,
        errors: ErrorHandler,
        clock: Clock,
        pong_after: float,
    ) -> None:
        """`pong_after`: seconds for which a session may owe a pong, or another node an answer, before a push to it is
        parked at once."""
        self._hub = hub
        self._inflight = inflight
        self._dispatcher = dispatcher
        self._grace = grace
        self._neighbours = cluster.neighbours
        self._directory = cluster.directory
        self._lately = cluster.lately
        self._forwards = cluster.forwards
        self._ringing = cluster.ringing
        self._persistence = persistence
        self._metrics = cluster.metrics
        self._errors = errors
        self._clock = clock
        self._pong_after = pong_after
        self._asked: list[Asked] = []
        self._came = self._answered = 0  # how many were ever asked for, and have their answer
        self._progress = asyncio.Event()  # some more have theirs
        self._unrouted: dict[str, int] = {}
        """How many pushes of a user wait for their holders and were not offered to anybody yet."""
        self._unguessed: dict[str, int] = {}
        """How many pushes of a user wait for their holders and were not forwarded to anybody yet."""
        self.behind = Behind(inflight=inflight, flush=self.flush, clock=clock)
        """Pushes whose holders are known, and that wait for the rows of older ones."""
        self._wake = asyncio.Event()
        self._linger = asyncio.Event()
        """Some wait that are in no hurry."""

    def route(
        self, flight: Flight, request: PushRequest, resolver: Resolver, frames: dict[Mode, Frame]
    ) -> None:
        """Route one push. A message that is handled alone holds up the whole queue: its pushes are parked at once."""
        if resolver.waits and (self._neighbours.any or flight.key.user in self._unrouted):
            # Its users are known without the hub, and may have sessions elsewhere. The last other node may be forgotten
            # while older pushes of the user wait for the answer who has them.
            self._ask(flight, request, resolver, frames)
        else:
            self._here(flight, request, resolver, frames, known=not resolver.waits)

    def _here(
        self,
        flight: Flight,
        request: PushRequest,
        resolver: Resolver,
        frames: dict[Mode, Frame],
        *,
        known: bool = True,
        waits: bool = False,
    ) -> None:
        """Offer it to the sessions here, or find that there are none. `known`: no other node has its user. `waits`: its
        deadlines have begun."""
        now = self._clock.monotonic()
        alone = bool(flight.messages) and flight.messages[0].alone
        user = flight.key.user
        sessions = sessions_of(self._hub, request, resolver, user)
        if not sessions:
            if not known and not self._neighbours.alone:
                # Others may have come while this process was stopped.
                self._wait_for_holders(Asked(flight, request, offered=False))
                return
            why = why_nobody(self._hub, request, resolver, user)
            self._nobody(flight, request, resolver, why, now, alone)
            return
        if flight.sessions:
            # It waited for its holders, and sessions that opened meanwhile have read it.
            key = flight.key
            sessions = [s for s in sessions if key not in keys_of((*s.waiting_pushes(), *s.handed_pushes()))]
        self._dispatcher.offer(flight, request, sessions, frames)
        if flight.ended or waits:
            return
        self._inflight.limit(flight, now)
        owing = any(s.owes_pong(now, self._pong_after) for s in sessions)
        self._wait(flight, parked=alone or owing)

    def _nobody(
        self, flight: Flight, request: PushRequest, resolver: Resolver, why: Reason, now: float, alone: bool
    ) -> None:
        if flight.kept is None and resolver.waits and why is Reason.NO_SESSION and self._grace.lasts(now):
            self._grace.wait(flight, request)
            self._wait(flight, parked=alone)
        else:
            if flight.kept is not None and self._neighbours.any:
                # Who opens a session elsewhere must not find it alone: older ones may be with other nodes.
                self._inflight.write_unwritten(flight.key.user, flight.position - 1)
            flight.undeliverable(Outcome.OFFLINE, why, self._clock.time())

    def _wait(self, flight: Flight, *, parked: bool) -> None:
        if parked:
            self._inflight.park(flight, at_once=True)
        else:
            self._inflight.wait(flight)

    # --- sessions at other nodes ---

    def _ask(
        self, flight: Flight, request: PushRequest, resolver: Resolver, frames: dict[Mode, Frame]
    ) -> None:
        user = flight.key.user
        before = sessions_of(self._hub, request, resolver, user)
        here = bool(before) and user not in self._unrouted
        guessed = self._guess(flight, request)
        offered = here or bool(guessed)
        if offered:
            # Who has it may fail before it is known who else has the user.
            flight.looked_for()
        if here:
            self._here(flight, request, resolver, frames)
        for boot in guessed or ():
            self._forwards.add(flight, request, boot)
        if guessed and not here:
            self._inflight.limit(flight, flight.taken_mono)
            self._wait_for(flight, guessed)
        if offered:
            self._wait_for_holders(Asked(flight, request, offered=True, guessed=guessed))
        else:
            self._wait_for_holders(Asked(flight, request, offered=False, before=before))

    def _guess(self, flight: Flight, request: PushRequest) -> Sequence[str] | None:
        """See `Asked.guessed`."""
        user = flight.key.user
        boots = None if user in self._unguessed else self._lately.guess(user)
        if boots and (flight.withdrawn or request.excluded or user in self.behind):
            return None
        if boots and (self._ringing.due(user) is not None or self._inflight.older_lacks(flight, boots)):
            return None
        return boots

    def _wait_for_holders(self, asked: Asked) -> None:
        user = asked.flight.key.user
        if not asked.offered:
            # It stays here meanwhile, even if its row is written: a session that reads that gets this flight.
            asked.flight.looked_for()
            self._unrouted[user] = self._unrouted.get(user, 0) + 1
        if asked.guessed is None:
            self._unguessed[user] = self._unguessed.get(user, 0) + 1
        self._asked.append(asked)
        self._came += 1
        if asked.guessed is None:
            self._wake.set()
        else:
            self._linger.set()

    def again(self, flight: Flight, request: PushRequest) -> None:
        """The node that it was forwarded to has no session of its user any more: ask once more who has."""
        self._lately.forget(flight.key.user)
        flight.looked_for()
        self._wait_for_holders(Asked(flight, request, offered=True, again=True))

    def grace_over(self, flight: Flight, request: PushRequest) -> None:
        """It was held for its user, who has not come here: they may have come to another node."""
        if self._neighbours.alone:
            flight.decided(Outcome.OFFLINE, Reason.NO_SESSION, self._clock.time())
        else:
            self.again(flight, request)

    async def run(self) -> None:
        """Ask for holders, and act on the answers, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_for_those_that_linger(), name="lingering questions")
            tasks.create_task(self.behind.run(), name="pushes behind rows")
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._ask_for_all()

    async def _ask_for_those_that_linger(self) -> None:
        while True:
            await self._linger.wait()
            await self._clock.sleep(LINGER)
            self._linger.clear()
            self._wake.set()

    async def _ask_for_all(self) -> None:
        while self._asked:
            some = self._asked[:PUSHES]
            self._metrics.holders_asked(len(some))
            holders = await self._holders(list(dict.fromkeys(one.flight.key.user for one in some)))
            del self._asked[: len(some)]
            for one in some:
                self._found(one, holders.get(one.flight.key.user, ()))
            self.flush()
            self._answered += len(some)
            self._progress.set()

    async def caught_up(self) -> None:
        """Return when what was asked for by now has its answer, and is forwarded or waits for rows of older pushes."""
        last = self._came
        while self._answered < last:
            self._progress.clear()
            self._wake.set()
            await self._progress.wait()

    def flush(self) -> None:
        """Send what was forwarded, and hand over what was offered."""
        self._forwards.flush()
        self._dispatcher.flush()

    def tick(self) -> None:
        """Called about ten times a second: what waits for a process that is behind with its answers is parked."""
        if behind := self._forwards.behind(self._pong_after):
            self._inflight.park_those_at(behind)

    def forward(self, flight: Flight, request: PushRequest, boots: Sequence[str]) -> None:
        """Forward a push that is for no session here but those that have it; `flush` sends it. `boots`: the
        processes that have sessions of its user."""
        waits = flight.sessions > 0
        if not flight.withdrawn:
            for boot in boots:
                self._forwards.add(flight, request, boot)
        if not waits and not flight.ended:
            self._inflight.limit(flight, self._clock.monotonic())
            self._wait_for(flight, boots)

    async def _holders(self, users: list[str]) -> dict[str, Sequence[str]]:
        assert self._directory is not None
        while True:
            try:
                return dict(await self._persistence.call(partial(self._directory.holders, users)))
            except StatementFailed as failed:
                self._errors.handle(failed, "nodes.holders", {"users": len(users)})
                await self._clock.sleep(TRY_AGAIN)

    def _found(self, asked: Asked, boots: Sequence[str]) -> None:
        """These processes have sessions of its user. A kept push that was taken before and that they were not forwarded
        has its row first, and is rung for: sessions there read it before they get this one."""
        flight = asked.flight
        user = flight.key.user
        if boots or asked.offered:
            self._lately.found(user, boots)
        else:
            self._lately.forget(user)  # many users are away
        # Also where nobody has the user any more: those that wait come first.
        behind = user in self.behind
        if not behind and boots and not flight.withdrawn and self._inflight.older_lacks(flight, boots):
            self._inflight.write_unwritten(user, flight.position - 1)
            behind = True
        if behind:
            self.behind.add(flight, boots, partial(self._route_to, asked, boots))
        else:
            self._route_to(asked, boots)

    def _route_to(self, asked: Asked, boots: Sequence[str]) -> None:
        flight, request, offered, again, guessed, before = asked
        user = flight.key.user
        rung_from = self._ringing.due(user)
        if rung_from is not None and rung_from < flight.position:
            self._forwards.flush()
            self._ringing.ring(user, rung_from, boots)
        for position, lacking in self._ringing.proven(user, flight.position, boots):
            self._forwards.flush()
            self._ringing.ring(user, position, lacking, delivered=True)
        if not offered:
            _less(self._unrouted, user)
        if guessed is None:
            _less(self._unguessed, user)
        if not flight.withdrawn:
            has = flight.holders if again else guessed or ()
            for boot in [boot for boot in boots if boot not in has]:
                self._forwards.add(flight, request, boot, again=again)
        if offered and not (again and flight.sessions == 0):
            flight.found(self._clock.time())
        elif not flight.ended:
            self._unoffered(flight, request, boots, waits=offered)
        elif flight.outcome in DELIVERED and not flight.withdrawn:
            # A session that opened meanwhile has read and proven it. Those that were here before have not got it.
            for session in sessions_of(self._hub, request, resolver_of(request), user):
                if session in before and session.read_to < flight.position:
                    self._dispatcher.show(request, session)

    def _unoffered(self, flight: Flight, request: PushRequest, boots: Sequence[str], *, waits: bool) -> None:
        """No session here was offered it; these processes were forwarded it. `waits`: its deadlines have begun."""
        resolver = resolver_of(request)
        here = sessions_of(self._hub, request, resolver, flight.key.user)
        if not waits:
            flight.taken_mono = self._clock.monotonic()
        if flight.sessions and not here:
            # Other nodes have it, or a session that opened meanwhile has read it: if nobody can prove it, it fails now.
            flight.found(self._clock.time())
            if flight.ended or flight.open <= 0:
                return
        else:
            flight.open -= 1  # see `looked_for`
            if here or not boots:
                self._here(flight, request, resolver, {}, waits=waits)
                return
        self._inflight.limit(flight, flight.taken_mono)
        self._wait_for(flight, boots)

    def _wait_for(self, flight: Flight, boots: Sequence[str]) -> None:
        """Wait for what these processes report; parked at once where one of them is behind with its answers."""
        owing = any(self._forwards.owes(boot, self._pong_after) for boot in boots)
        self._wait(flight, parked=owing or (bool(flight.messages) and flight.messages[0].alone))


def _less(counts: dict[str, int], user: str) -> None:
    """One push of this user less."""
    left = counts[user] - 1
    if left:
        counts[user] = left
    else:
        del counts[user]
