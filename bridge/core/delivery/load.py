"""Count what is in hand: over its bound no more messages are taken."""

from __future__ import annotations

from bridge.core.inflight.inflight import InFlight
from bridge.core.settlement.worklist import Worklist


class Load:
    """Counts everything of a push that is in memory, from when it is taken to its ack."""

    def __init__(self, inflight: InFlight, worklist: Worklist, in_hand_max: int) -> None:
        self._inflight = inflight
        self._worklist = worklist
        self._in_hand_max = in_hand_max

    @property
    def in_hand(self) -> int:
        """Pushes in flight, answers that wait, and rows whose receipts and acks are not finished."""
        return self._inflight.busy + self._worklist.answers_waiting + self._worklist.unpaid

    @property
    def full(self) -> bool:
        """Whether nothing more is taken."""
        return self.in_hand > self._in_hand_max

    @property
    def light(self) -> bool:
        """Whether taking may begin again: in hand is half of the bound or less."""
        return self.in_hand <= self._in_hand_max // 2
