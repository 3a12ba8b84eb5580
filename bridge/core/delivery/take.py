"""Take messages: decode them, answer pushes that came before from their rows, and route all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from bridge.core.bounds import TakingBounds
from bridge.core.contract.requests import Decoded
from bridge.core.delivery.given_up import too_old_of
from bridge.core.delivery.known import Known
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.lookups import Stopped
from bridge.core.delivery.parts import TakeParts
from bridge.core.delivery.take_request import RequestTaker
from bridge.core.delivery.targets import RESOLVERS
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.making import flight_of
from bridge.core.model.fingerprint import fingerprint_of
from bridge.core.model.pushes import PushRequest, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.broker import Arrival, Source

_TO_USER = RESOLVERS[ToUser]
_REQUESTS: Final = Source.REQUESTS
_FALLEN: Final = Source.FALLEN
_NO_ROWS: Final[dict[RowKey, Row]] = {}


class Taker:
    """Takes batches of messages, one batch at a time."""

    def __init__(
        self,
        parts: TakeParts,
        limits: DeliveryLimits,
        bounds: TakingBounds,
        aside: Callable[[Arrival, Decoded], bool] | None = None,
    ) -> None:
        """`aside`: whether somebody else takes a message, which then has it."""
        self._requests = RequestTaker(parts, limits, bounds)
        self._inflight = parts.inflight
        self._worklist = parts.worklist
        self._reader = parts.reader
        self._router = parts.router
        self._known = parts.known
        self._turns = parts.turns
        self._load = parts.load
        self._acks = parts.acks
        self._metrics = parts.metrics
        self._errors = parts.errors
        self._clock = parts.clock
        self._limits = limits
        self._aside = aside
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
        return await self._take(await self._reader.read(batch))

    async def take_read(self, decoded: Sequence[tuple[Arrival, Decoded]]) -> int:
        """The same for messages that were read."""
        self._lost.clear()
        self._turns.begin()
        return await self._take(decoded)

    async def _take(self, decoded: Sequence[tuple[Arrival, Decoded]]) -> int:
        self._turns.begin_count()
        messages = requests = aside = 0
        handled: set[int] = set()
        try:
            await self._requests.look_for_sessions(decoded)
            self._taken_at = self._clock.time()
            with self._known.watching():
                for portion in self._known.portions(decoded):
                    known = await self._known.find(portion)
                    rows = _NO_ROWS if known is None else known.rows
                    for arrival, taking in portion:
                        if messages and self._load.full:
                            return messages
                        messages += 1
                        channel = arrival.token.incarnation
                        if channel in self._lost:
                            continue
                        ordinary = self._ordinary(arrival, taking, known)
                        # The ids of what was set aside before are among those that may have come before.
                        if (ordinary is None or aside) and self._sets_aside(arrival, taking):
                            aside += 1
                            continue
                        if ordinary is not None:
                            handled.add(channel)
                            requests += 1
                            self._take_ordinary(arrival, taking, ordinary, rows)
                            if self._turns.is_due():
                                await self._turns.give()
                                self._taken_at = self._clock.time()
                            continue
                        if arrival.source is _REQUESTS and not self.is_suspect(arrival):
                            handled.add(channel)
                        requests += len(taking.requests)
                        await self._take_message(arrival, taking, known)
                        self._taken_at = self._clock.time()
        except Stopped:
            # Messages that were not acked go back to the queue with the channel.
            return len(decoded)
        finally:
            self._requests.forget_sessions()
            self._router.flush()
            self._metrics.taken(messages - aside, requests)
        if handled:
            self._acks.widen(handled)
        return messages

    # --- a message ---

    def _sets_aside(self, arrival: Arrival, taking: Decoded) -> bool:
        """Whether somebody else takes this message, and has it now."""
        return self._aside is not None and not self.is_suspect(arrival) and self._aside(arrival, taking)

    def _ordinary(self, arrival: Arrival, taking: Decoded, known: Known | None) -> PushRequest | None:
        """The request of a message with only one, to one user, which nothing says may have come before: nearly every
        one. None for any other message: see `_take_message`."""
        requests = taking.requests
        if known is None or len(requests) != 1 or arrival.source is not _REQUESTS:
            return None
        request = requests[0]
        if (
            not isinstance(request, PushRequest)
            or not isinstance(request.target, ToUser)
            or request.deliver_at
            or (known.came and id(request) in known.came)
            or arrival.properties.delivery_count > 0
        ):
            return None
        return request

    def _take_ordinary(
        self, arrival: Arrival, taking: Decoded, request: PushRequest, rows: dict[RowKey, Row]
    ) -> None:
        """Take a message that is `_ordinary`: it needs no look-up and no wait."""
        requests, published_at, traceparent, batch_id = taking
        message = HeldMessage(
            arrival.token,
            arrival.properties,
            published_at=published_at,
            taken_at=self._taken_at,
            traceparent=traceparent,
        )
        if batch_id:
            message.hold_batch(batch_id, requests)
        assert isinstance(request.target, ToUser)
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
            if self._requests.enter(flight, message, rows) and too_old is None:
                self._router.route(flight, request, _TO_USER, {})
            self._requests.remember(request)
        except Exception as error:  # a defect must cost one message, not the service
            self._failed(arrival, message, error)

    async def _take_message(self, arrival: Arrival, taking: Decoded, known: Known | None) -> None:
        message = HeldMessage(
            arrival.token,
            arrival.properties,
            published_at=taking.published_at,
            taken_at=self._clock.time(),
            traceparent=taking.traceparent,
        )
        if taking.batch_id:
            message.hold_batch(taking.batch_id, taking.requests)
        if arrival.source is _FALLEN:
            # It was taken before, as often as the broker allows: receipts sent then may have been lost.
            message.redelivered = True
        # One more than its rows: the message stays open until all of its requests are taken; `release` subtracts it.
        message.open = 1
        if self.is_suspect(arrival):
            message.done = asyncio.Event()
        try:
            if known is not None or len(taking.requests) == 1:
                for place, request in enumerate(taking.requests):
                    await self._requests.take(arrival, message, place, request, known)
            else:
                await self._take_in_parts(arrival, taking, message)
        except Stopped:
            raise
        except Exception as error:  # a defect must cost one message, not the service
            self._failed(arrival, message, error)
        self._worklist.release(message)
        if message.done is not None:
            self._router.flush()
            await message.done.wait()

    async def _take_in_parts(self, arrival: Arrival, taking: Decoded, message: HeldMessage) -> None:
        """Take a batch of requests that has too many rows for one look-up."""
        place = 0
        for part in self._known.portions(
            [(arrival, taking._replace(requests=(r,))) for r in taking.requests]
        ):
            known = await self._known.find(part)
            for _, one in part:
                await self._requests.take(arrival, message, place, one.requests[0], known)
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
