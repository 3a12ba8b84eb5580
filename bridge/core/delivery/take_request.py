"""Take one request of a message for its users: a new flight for each of them, unless the push came before."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bridge.core.bounds import TakingBounds
from bridge.core.delivery.everywhere import Page
from bridge.core.delivery.given_up import given_up, letter_of, recalled, too_old_of
from bridge.core.delivery.known import DecodedMessage, Known
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.parts import TakeParts
from bridge.core.delivery.taking import Taking
from bridge.core.delivery.targets import resolver_of, sessions_of, why_nobody
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.making import flight_of, flight_of_rejected
from bridge.core.inflight.offered import keys_of
from bridge.core.model.fingerprint import fingerprint_of
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import NO_USER, PushRequest, Rejected
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.broker import Arrival
from bridge.core.ports.sockets import Frame


class RequestTaker:
    """Takes requests, one at a time."""

    def __init__(self, parts: TakeParts, limits: DeliveryLimits, bounds: TakingBounds) -> None:
        self._hub = parts.hub
        self._inflight = parts.inflight
        self._router = parts.router
        self._dispatcher = parts.dispatcher
        self._fan_out = parts.fan_out
        self._lookups = parts.lookups
        self._known = parts.known
        self._repeats = parts.repeats
        self._elsewhere = parts.elsewhere
        self._everywhere = parts.everywhere
        self._retaining = parts.retaining
        self._remembered = parts.remembered
        self._turns = parts.turns
        self._later = parts.later
        self._clock = parts.clock
        self._limits = limits
        self._lookup_rows = bounds.lookup_rows

    async def look_for_sessions(self, decoded: Sequence[DecodedMessage]) -> None:
        """To be called before the requests of these messages are taken, and `forget_sessions` after that: see
        `Everywhere.look_for`. Raises Stopped."""
        await self._everywhere.look_for(self._hub, decoded)

    def forget_sessions(self) -> None:
        """See `look_for_sessions`."""
        self._everywhere.forget()

    async def take(
        self,
        arrival: Arrival,
        message: HeldMessage,
        place: int,
        request: PushRequest | Rejected,
        known: Known | None,
    ) -> None:
        """Take the request at a place of a message."""
        came_before = (
            self._known.may_have_come(arrival, request) if known is None else id(request) in known.came
        )
        if isinstance(request, Rejected):
            message.letters.append(
                letter_of(arrival, request.id, request.reason, request.detail, request.body)
            )
            await self._take_rejected(message, request, came_before, known)
            return
        ending = given_up(arrival, self._limits.max_attempts)
        if ending is not None and place == 0:
            message.letters.append(letter_of(arrival, request.id, ending.reason, ending.detail, arrival.body))
        elif request.deliver_at and ending is None:
            if self._later.schedule(arrival, message, request):
                return
            ending = recalled(arrival)
        too_old = None if ending is not None else too_old_of(message, request, self._limits.max_age)
        resolver = resolver_of(request)
        taking = Taking(
            message, request, resolver, fingerprint_of(request), came_before, known, ending, too_old
        )
        users = resolver.users(self._hub, request) if ending is None else resolver.named(request.target)
        await self._retaining.keep(taking)
        taking, users = await self._everywhere.holder(taking, users)
        if resolver.roams and came_before:
            await self._take_again(taking, users)
        else:
            page = await self._everywhere.page(taking)
            await self._take_for(taking, users, self._inflight.take_position(), page)

    async def _take_rejected(
        self, message: HeldMessage, request: Rejected, came_before: bool, known: Known | None
    ) -> None:
        flight = flight_of_rejected(
            request, message, self._inflight, message.taken_at, keep_body=self._limits.keep_bodies
        )
        rows = {} if known is None else known.rows
        if known is None and came_before:
            rows = await self._known.look_up([flight.key])
        self._remembered.add(request.id)
        self.enter(flight, message, rows)
        if self._turns.is_due():
            await self._turns.give()

    async def _take_again(self, taking: Taking, users: Sequence[str]) -> None:
        """Take a push to a session or to everyone that may have come before: it may have been for other users then."""
        request, message = taking.request, taking.message
        # A session has one user: the outcome from when the push was taken before stands, even if no user had it.
        page = await self._everywhere.page(taking)
        nobody = users == (NO_USER,) and not page
        final = taking.ending is not None or nobody or taking.resolver.one_session
        if final and (self._inflight.roaming(request.key) or await self._lookups.has_rows(request.key)):
            # It is for no user now, or the user does not matter: the earlier outcomes stand.
            self.remember(request)
            await self._repeats.join_earlier(request.key, message, taking.fingerprint)
            return
        position = self._inflight.take_position()
        if taking.resolver.one_session and users == (NO_USER,) and taking.ending is None:
            if not message.alone:
                self._ask_later(taking, position)
                return
            # It is handled alone and holds up all others anyway: wait for the other bridge here.
            await self._clock.sleep(self._elsewhere.wait)
            if await self._lookups.has_rows(request.key):
                self.remember(request)
                await self._repeats.join_earlier(request.key, message, taking.fingerprint)
                return
            users = taking.resolver.users(self._hub, request)
        taken = await self._take_for(taking, users, position, page)
        await self._repeats.join_earlier(request.key, message, taking.fingerprint, taken)

    def _ask_later(self, taking: Taking, position: int) -> None:
        """The session is not here. Decide nothing until another bridge, which may have it, has had time to write the
        row."""
        request, message = taking.request, taking.message
        flight = flight_of(
            request, NO_USER, message, self._inflight, self._clock.monotonic(), position, taking.fingerprint
        )
        self.remember(request)
        end = too_old_of(message, request, self._limits.max_age) or (Outcome.OFFLINE, Reason.NO_SESSION)
        if self.enter(flight, message, {}, roams=True):
            self._elsewhere.add(flight, request.key, *end)

    async def _take_for(
        self, taking: Taking, users: Sequence[str], position: int, page: Page
    ) -> Collection[str]:
        """Take a push for these users, and for a crowd elsewhere, of which this is the first page. Returns all of
        them."""
        request = taking.request
        taking.message.crowd |= taking.resolver.crowd
        frames: dict[Mode, Frame] = {}
        taken = set(users)
        if page and users == (NO_USER,):
            users = ()
        # Sessions elsewhere may not be excluded: those decide.
        waits = bool(page) and bool(request.excluded)
        excluded: list[str] = []

        def take_one(user: str, rows: dict[RowKey, Row]) -> None:
            of = self._hub, request, taking.resolver, user
            if waits and not sessions_of(*of) and why_nobody(*of) is Reason.EXCLUDED:
                excluded.append(user)
            else:
                self._take_one(taking, user, position, rows, frames)

        if taking.resolver.crowd and not (taking.came_before or taking.ending or taking.too_old):
            if users:
                await self._fan_out.take(taking, position, frames, take_one, alone=not page)
            users = ()
        for at in range(0, len(users), self._lookup_rows):
            some = users[at : at + self._lookup_rows] if len(users) > self._lookup_rows else users
            rows = taking.known.rows if taking.known is not None else await self._rows_of(taking, some)
            for user in some:
                take_one(user, rows)
                if self._turns.is_due():
                    await self._turns.give()
        elsewhere = set[str]()
        while page:
            elsewhere.update(user for user, _ in page)
            rows = await self._rows_of(taking, [user for user, _ in page])
            await self._everywhere.take(taking, page, position, rows, self.enter)
            page = await self._everywhere.after(taking, page)
        left = [user for user in excluded if user not in elsewhere]
        rows = await self._rows_of(taking, left) if left else {}
        for user in left:
            self._take_one(taking, user, position, rows, frames)
        self.remember(request)
        return taken | elsewhere

    def _take_one(
        self, taking: Taking, user: str, position: int, rows: dict[RowKey, Row], frames: dict[Mode, Frame]
    ) -> None:
        """Take a push for one user."""
        message, request, resolver, fingerprint, _, _, ending, too_old, boots = taking
        mono = self._clock.monotonic()
        flight = flight_of(request, user, message, self._inflight, mono, position, fingerprint)
        if ending is not None:
            flight.detail = ending.detail
            flight.born_ended(ending.outcome, ending.reason, message.taken_at)
        elif too_old is not None:
            flight.born_ended(*too_old, message.taken_at)
        if self.enter(flight, message, rows, roams=resolver.roams) and not flight.ended:
            if boots:
                self._router.forward(flight, request, boots)
            else:
                self._router.route(flight, request, resolver, frames)
        elif request.retain and not taking.came_before:
            self._follow(flight.key, taking, frames)

    def _follow(self, key: RowKey, taking: Taking, frames: dict[Mode, Frame]) -> None:
        """A session of the user has subscribed meanwhile, and has this push as its last value: the others follow."""
        request = taking.request
        flight = self._inflight.get(key)
        for session in sessions_of(self._hub, request, taking.resolver, key.user):
            if key in keys_of((*session.waiting_pushes(), *session.handed_pushes())):
                continue
            if flight is not None and not flight.ended:
                self._dispatcher.offer(flight, request, (session,), frames)
            else:
                self._dispatcher.show(request, session)

    async def _rows_of(self, taking: Taking, users: Sequence[str]) -> dict[RowKey, Row]:
        """The rows that a request has for these users, from a look-up of its own."""
        if not taking.came_before:
            return {}
        request = taking.request
        return await self._known.look_up([RowKey(request.tenant, request.id, user) for user in users])

    def enter(
        self, flight: Flight, message: HeldMessage, rows: dict[RowKey, Row], *, roams: bool = False
    ) -> bool:
        """Add a new flight. False where its push is known: the message joins it, or is answered from its row."""
        message.open += 1
        key = flight.key
        row = self._known.settled(key) or (rows.get(key) if rows else None)
        flying = self._inflight.get(key)
        if flying is not None:
            self._repeats.join(flying, message, flight.fingerprint)
            return False
        if row is not None:
            self._repeats.answer(row, message, flight.fingerprint)
            return False
        self._inflight.add(flight, roams=roams)
        return True

    def remember(self, request: PushRequest) -> None:
        """Its id was taken: what has it from now on may have come before."""
        if not request.generated_id:
            self._remembered.add(request.id)
