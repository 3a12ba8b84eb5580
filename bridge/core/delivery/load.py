"""Count what is in hand: over its bound no more messages are taken."""

from __future__ import annotations

from bridge.core.delivery.later import Later
from bridge.core.inflight.inflight import InFlight
from bridge.core.settlement.worklist import Worklist


class Load:
    """Counts everything of a push that is in memory, from when it is taken to its ack."""

    def __init__(self, inflight: InFlight, worklist: Worklist, later: Later, in_hand_max: int) -> None:
        self._inflight = inflight
        self._worklist = worklist
        self._later = later
        self._in_hand_max = in_hand_max

    @property
    def in_hand(self) -> int:
        """Pushes in flight, those to be scheduled, answers that wait, and rows whose receipts and acks are not
        finished."""
        worklist = self._worklist
        return self._inflight.busy + self._later.waiting + worklist.answers_waiting + worklist.unpaid

    @property
    def full(self) -> bool:
        """Whether nothing more is taken."""
        return self.in_hand > self._in_hand_max

    @property
    def room(self) -> int:
        """How much more may be in hand."""
        return max(0, self._in_hand_max - self.in_hand)

    @property
    def light(self) -> bool:
        """Whether taking may begin again: in hand is half of the bound or less."""
        return self.in_hand <= self._in_hand_max // 2
