"""Handle pushes that came before: the message joins the push in flight, or is answered from its row."""

from __future__ import annotations

from collections.abc import Collection

from bridge.core.bounds import TakingBounds
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.turns import Turns
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.pushes import PushKey
from bridge.core.model.rows import Row
from bridge.core.ports.clock import Clock
from bridge.core.settlement.worklist import Worklist


class Repeats:
    """Each repeat waits for the outcome of the push that it repeats, or is answered with it."""

    def __init__(
        self,
        *,
        inflight: InFlight,
        worklist: Worklist,
        lookups: Lookups,
        turns: Turns,
        clock: Clock,
        bounds: TakingBounds,
    ) -> None:
        self._inflight = inflight
        self._worklist = worklist
        self._lookups = lookups
        self._turns = turns
        self._clock = clock
        self._answers = bounds.answers
        self._slice = bounds.slice_seconds

    def join(self, flight: Flight, message: HeldMessage, fingerprint: int) -> None:
        """The push is in flight. `message.open` counts it."""
        if flight.joined(message, fingerprint):
            self._worklist.differs(flight.key, flight)
        if flight.parked and not flight.ended:
            # It has a row already. Write it again, so that it owes this message's receipt as well.
            self._worklist.due(flight)

    def answer(self, row: Row, message: HeldMessage, fingerprint: int) -> None:
        """The push has a row. `message.open` counts it."""
        self._worklist.answer(message, row, fingerprint)

    async def join_earlier(
        self, key: PushKey, message: HeldMessage, fingerprint: int, addressed: Collection[str] = ()
    ) -> None:
        """A push to a session or to everyone came again: join or answer it for the users of before, except `addressed`.

        The message waits for those that are in flight. The others are answered from their rows: their receipts may have
        been lost with the process or the connection. Raises Stopped.
        """
        joined = set(addressed)
        for user, flight in list(self._inflight.roaming(key).items()):
            if user not in joined:
                joined.add(user)
                message.open += 1
                self.join(flight, message, fingerprint)
        async for rows in self._lookups.of_push(key):
            for row in rows:
                if row.key.user not in joined:
                    message.open += 1
                    self.answer(row, message, fingerprint)
            while self._worklist.answers_waiting > self._answers:
                await self._clock.sleep(self._slice)
            await self._turns.give()
