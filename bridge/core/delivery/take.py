"""Take messages: decode them, answer pushes that came before from their rows, and route all others."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from bridge.core.bounds import TakingBounds
from bridge.core.contract.requests import Decoded
from bridge.core.delivery.everywhere import Page
from bridge.core.delivery.given_up import given_up, letter_of, recalled, too_old_of
from bridge.core.delivery.known import Known
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.lookups import Stopped
from bridge.core.delivery.parts import TakeParts
from bridge.core.delivery.taking import Taking
from bridge.core.delivery.targets import RESOLVERS, address, resolver_of
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.making import flight_of, flight_of_rejected
from bridge.core.model.fingerprint import fingerprint_of
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import NO_USER, PushRequest, Rejected, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.broker import Arrival, Source
from bridge.core.ports.sockets import Frame

_TO_USER = RESOLVERS[ToUser]


class Taker:
    """Takes batches of messages, one batch at a time."""

    def __init__(self, parts: TakeParts, limits: DeliveryLimits, bounds: TakingBounds) -> None:
        self._hub = parts.hub
        self._inflight = parts.inflight
        self._worklist = parts.worklist
        self._reader = parts.reader
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
        self._load = parts.load
        self._later = parts.later
        self._acks = parts.acks
        self._metrics = parts.metrics
        self._errors = parts.errors
        self._clock = parts.clock
        self._limits = limits
        self._lookup_rows = bounds.lookup_rows
        # Even if few attempts are allowed, some of them must be alone.
        self._suspect_from = min(bounds.suspect_attempts, max(1, limits.max_attempts // 2))
        self._lost: set[int] = set()
        """Channels that were lost while the batch in hand was taken."""
        self._taken_at = 0.0
        """Wall-clock seconds since the last wait: one time for all messages that are taken without one."""

    def is_suspect(self, arrival: Arrival) -> bool:
        """Whether a message was delivered so often that handling it may have killed the process."""
        return arrival.properties.delivery_count >= self._suspect_from

    def channel_lost(self, incarnation: int) -> None:
        """Messages of this channel will come again."""
        self._lost.add(incarnation)

    def is_lost(self, arrival: Arrival) -> bool:
        """Whether the channel of this message was lost since the last `take` began."""
        return arrival.token.incarnation in self._lost

    async def take(self, batch: Sequence[Arrival]) -> int:
        """Take these messages, of channels that are there. Returns how many it has dealt with: fewer than all if too
        much is in hand."""
        self._lost.clear()
        self._turns.begin()
        decoded = await self._reader.read(batch)
        self._turns.begin_count()
        self._taken_at = self._clock.time()
        messages = requests = 0
        try:
            with self._known.watching():
                for portion in self._known.portions(decoded):
                    known = await self._known.find(portion)
                    for arrival, taking in portion:
                        if messages and self._load.full:
                            return messages
                        messages += 1
                        if self.is_lost(arrival):
                            continue
                        requests += len(taking.requests)
                        if self._take_ordinary(arrival, taking, known):
                            if self._turns.is_due():
                                await self._turns.give()
                                self._taken_at = self._clock.time()
                        else:
                            await self._take_message(arrival, taking, known)
                            self._taken_at = self._clock.time()
        except Stopped:
            # Messages that were not acked go back to the queue with the channel.
            return len(batch)
        finally:
            self._dispatcher.flush()
            self._metrics.taken(messages, requests)
        handled = {
            a.token.incarnation for a in batch if a.source is Source.REQUESTS and not self.is_suspect(a)
        }
        if handled:
            self._acks.widen(handled)
        return messages

    # --- a message ---

    def _take_ordinary(self, arrival: Arrival, taking: Decoded, known: Known | None) -> bool:
        """Take a message with one request to one user, which nothing says may have come before: nearly every one.

        It needs no look-up and no wait. False, and nothing done, where it is any other: see `_take_message`.
        """
        properties = arrival.properties
        if (
            known is None
            or len(taking.requests) != 1
            or arrival.source is not Source.REQUESTS
            or properties.delivery_count > 0
        ):
            return False
        request = taking.requests[0]
        if (
            not isinstance(request, PushRequest)
            or not isinstance(request.target, ToUser)
            or request.deliver_at
            or id(request) in known.came
        ):
            return False
        message = HeldMessage(
            arrival.token,
            properties,
            published_at=taking.published_at,
            taken_at=self._taken_at,
            traceparent=taking.traceparent,
        )
        try:
            flight = flight_of(
                request,
                request.target.user,
                message,
                self._inflight,
                self._clock.monotonic(),
                self._inflight.take_position(),
                fingerprint_of(request),
            )
            too_old = too_old_of(message, request, self._limits.max_age)
            if too_old is not None:
                flight.born_ended(*too_old, message.taken_at)
            if self._enter(flight, message, known.rows) and too_old is None:
                self._router.route(flight, request, _TO_USER, {})
            self._remember(request)
        except Exception as error:  # a defect must cost one message, not the service
            self._failed(arrival, message, error)
        return True

    async def _take_message(self, arrival: Arrival, taking: Decoded, known: Known | None) -> None:
        message = HeldMessage(
            arrival.token,
            arrival.properties,
            published_at=taking.published_at,
            taken_at=self._clock.time(),
            traceparent=taking.traceparent,
        )
        if arrival.source is Source.FALLEN:
            # It was taken before, as often as the broker allows: receipts sent then may have been lost.
            message.redelivered = True
        # One more than its rows: the message stays open until all of its requests are taken; `release` subtracts it.
        message.open = 1
        if self.is_suspect(arrival):
            message.done = asyncio.Event()
        try:
            if known is not None or len(taking.requests) == 1:
                for place, request in enumerate(taking.requests):
                    await self._take_element(arrival, message, place, request, known)
            else:
                await self._take_in_parts(arrival, taking, message)
        except Stopped:
            raise
        except Exception as error:  # a defect must cost one message, not the service
            self._failed(arrival, message, error)
        self._worklist.release(message)
        if message.done is not None:
            self._dispatcher.flush()
            await message.done.wait()

    async def _take_in_parts(self, arrival: Arrival, taking: Decoded, message: HeldMessage) -> None:
        """Take a batch of requests that has too many rows for one look-up."""
        place = 0
        for part in self._known.portions(
            [(arrival, taking._replace(requests=(r,))) for r in taking.requests]
        ):
            known = await self._known.find(part)
            for _, one in part:
                await self._take_element(arrival, message, place, one.requests[0], known)
                place += 1

    def _failed(self, arrival: Arrival, message: HeldMessage, error: Exception) -> None:
        """Handling a message failed: it goes back to the queue, until it has failed too often. Flights that were begun
        for it go on without it."""
        context = {"delivery_count": arrival.properties.delivery_count, "bytes": arrival.body_size}
        self._errors.handle(error, "delivery.take", context)
        if message.token is not None:
            self._acks.requeue([message.token])
            message.token = None
            if message.done is not None:
                message.done.set()

    async def _rows_of(self, taking: Taking, users: Sequence[str]) -> dict[RowKey, Row]:
        """The rows that a request has for these users, from a look-up of its own."""
        if not taking.came_before:
            return {}
        request = taking.request
        return await self._known.look_up([RowKey(request.tenant, request.id, user) for user in users])

    def _enter(
        self, flight: Flight, message: HeldMessage, rows: dict[RowKey, Row], *, roams: bool = False
    ) -> bool:
        """Add a new flight. False where its push is known: the message joins it, or is answered from its row."""
        message.open += 1
        row = self._known.settled(flight.key) or rows.get(flight.key)
        flying = self._inflight.get(flight.key)
        if flying is not None:
            self._repeats.join(flying, message, flight.fingerprint)
            return False
        if row is not None:
            self._repeats.answer(row, message, flight.fingerprint)
            return False
        self._inflight.add(flight, roams=roams)
        return True

    # --- a request ---

    async def _take_element(
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
        flight = flight_of_rejected(request, message, self._inflight, message.taken_at)
        rows = {} if known is None else known.rows
        if known is None and came_before:
            rows = await self._known.look_up([flight.key])
        self._remembered.add(request.id)
        self._enter(flight, message, rows)
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
            self._remember(request)
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
                self._remember(request)
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
        self._remember(request)
        end = too_old_of(message, request, self._limits.max_age) or (Outcome.OFFLINE, Reason.NO_SESSION)
        if self._enter(flight, message, {}, roams=True):
            self._elsewhere.add(flight, request.key, *end)

    async def _take_for(
        self, taking: Taking, users: Sequence[str], position: int, page: Page
    ) -> Collection[str]:
        """Take a push for these users, and for a crowd elsewhere, of which this is the first page. Returns all of
        them."""
        request = taking.request
        frames: dict[Mode, Frame] = {}
        taken = set(users)
        if page and users == (NO_USER,):
            users = ()
        # Sessions elsewhere may not be excluded: those decide.
        waits = bool(page) and bool(request.excluded)
        excluded: list[str] = []

        def take_one(user: str, rows: dict[RowKey, Row]) -> None:
            if waits and address(self._hub, request, taking.resolver, user).nobody is Reason.EXCLUDED:
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
            await self._everywhere.take(taking, page, position, rows, self._enter)
            page = await self._everywhere.page(taking, page[-1][0])
        left = [user for user in excluded if user not in elsewhere]
        rows = await self._rows_of(taking, left) if left else {}
        for user in left:
            self._take_one(taking, user, position, rows, frames)
        self._remember(request)
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
        if self._enter(flight, message, rows, roams=resolver.roams) and not flight.ended:
            if boots:
                self._router.forward(flight, request, boots)
                self._router.send_forwards()
            else:
                self._router.route(flight, request, resolver, frames)

    def _remember(self, request: PushRequest) -> None:
        if not request.generated_id:
            self._remembered.add(request.id)
