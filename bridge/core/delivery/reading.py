"""Read messages: an ordinary one at once, any other in steps between which the event loop gets its turns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bridge.core.contract.requests import Decoded, Limits, begin
from bridge.core.contract.stepping import Steps
from bridge.core.delivery.keys import Keys
from bridge.core.delivery.turns import Turns
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Rejected
from bridge.core.ports.broker import Arrival
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler


class Reader:
    """Reads messages, and never raises: what a defect makes unreadable is rejected."""

    def __init__(
        self, limits: Limits, partitions: int, turns: Turns, errors: ErrorHandler, clock: Clock
    ) -> None:
        self.keys = Keys(errors, clock) if partitions > 1 else None
        """Looks at routing keys; None where they do not matter."""
        self._limits = limits
        self._turns = turns
        self._errors = errors

    async def read(self, batch: Sequence[Arrival]) -> list[tuple[Arrival, Decoded]]:
        """Read these messages."""
        decoded: list[tuple[Arrival, Decoded]] = []
        for arrival in batch:
            begun = self.begin(arrival)
            read = begun if isinstance(begun, Decoded) else await self.finish(arrival, begun)
            decoded.append((arrival, read))
            if self._turns.is_late:
                await self._turns.give()
        return decoded

    def begin(self, arrival: Arrival) -> Decoded | Steps[Decoded]:
        """Read an ordinary message; for any other return what `finish` needs."""
        try:
            begun = begin(arrival, self._limits)
        except Exception as error:
            return self._unreadable(arrival, error)
        if self.keys is not None and isinstance(begun, Decoded):
            self.keys.look(arrival, begun.requests)
        return begun

    async def finish(self, arrival: Arrival, steps: Steps[Decoded]) -> Decoded:
        """Read the rest of a message."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                read: Decoded = end.value
                if self.keys is not None:
                    self.keys.look(arrival, read.requests)
                return read
            except Exception as error:
                return self._unreadable(arrival, error)
            if self._turns.is_late:
                await self._turns.give()

    def _unreadable(self, arrival: Arrival, error: Exception) -> Decoded:
        """A defect would come again with every redelivery: the message is rejected."""
        self._errors.handle(error, "wire.decode", {"bytes": arrival.body_size})
        push_id = f"sha256-{hashlib.sha256(arrival.body).hexdigest()}"
        rejected = Rejected(push_id, Reason.POISON, "decoding it failed", arrival.body)
        return Decoded((rejected,), arrival.arrived_at, "")
