"""How much is in hand: over its bound no more messages are taken."""

from __future__ import annotations

from bridge.core.inflight.inflight import InFlight
from bridge.core.settlement.worklist import Worklist

IN_HAND_MAX = 50_000
"""Pushes and answers that may be in memory at once; over it no more messages are taken (rows bound memory)."""


class Load:
    """Counts what keeps something of a push in memory, from its taking to its ack."""

    def __init__(self, inflight: InFlight, worklist: Worklist) -> None:
        self._inflight = inflight
        self._worklist = worklist

    @property
    def in_hand(self) -> int:
        """Pushes on their way, answers that wait, and rows whose receipts and acks are not done with."""
        return self._inflight.busy + self._worklist.answers_waiting + self._worklist.unpaid

    @property
    def full(self) -> bool:
        """Whether nothing more is taken."""
        return self.in_hand > IN_HAND_MAX

    @property
    def light(self) -> bool:
        """Whether taking may begin again: half of the most is gone."""
        return self.in_hand <= IN_HAND_MAX // 2
