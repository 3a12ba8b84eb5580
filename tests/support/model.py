"""Generated stories of delivery: any order of the steps of a `World`, as a hypothesis state machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.world import Step, World

NUMBERS = st.integers(0, 60)
"""Taken modulo whatever there is."""


def _step(kind: str, *, needs_a_peer: bool = False) -> Any:
    """The rule that makes this step. A world without peers has nobody who could answer, leave or be slow."""

    def make(self: DeliveryMachine, n: int, m: int) -> None:
        self.do(Step(kind, n, m))

    make.__name__ = make.__qualname__ = kind
    made = rule(n=NUMBERS, m=NUMBERS)(make)
    return precondition(lambda self: bool(self.world.peers))(made) if needs_a_peer else made


class BrokenPromise(AssertionError):
    """What does not hold after these steps."""

    def __init__(self, steps: Sequence[Step], lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.steps = steps
        self.lines = lines


class DeliveryMachine(RuleBasedStateMachine):
    """The world as a hypothesis state machine: any order of its steps, then everything comes back and is checked.

    A rule that stands several times is taken more often.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._steps: list[Step] = []
        self.world = World()
        self._runner.run(self.world.start())

    def do(self, step: Step) -> None:
        """Make one step."""
        self._steps.append(step)
        self._runner.run(self.world.step(step))

    @initialize(tight=st.booleans(), shared=st.booleans())
    def bounds(self, tight: bool, shared: bool) -> None:
        if tight:
            self.do(Step("tighten"))
        if shared:
            self.do(Step("share"))

    publish = _step("publish")
    publish_once_more = _step("publish")
    publish_kept = _step("publish_kept")
    publish_kept_once_more = _step("publish_kept")
    publish_many = _step("publish_many")
    publish_many_once_more = _step("publish_many")
    publish_everyone = _step("publish_everyone")
    publish_topic = _step("publish_topic")
    publish_later = _step("publish_later")
    subscribe = _step("subscribe")
    unsubscribe = _step("unsubscribe")
    publish_wrong = _step("publish_wrong")
    recall = _step("recall")
    connect = _step("connect")
    connect_once_more = _step("connect")
    device_comes = _step("device_comes")
    device_comes_once_more = _step("device_comes")
    answer = _step("answer", needs_a_peer=True)
    answer_one = _step("answer_one", needs_a_peer=True)
    answer_one_once_more = _step("answer_one", needs_a_peer=True)
    forge = _step("forge", needs_a_peer=True)
    acknowledge = _step("acknowledge", needs_a_peer=True)
    leave = _step("leave", needs_a_peer=True)
    come_back = _step("come_back", needs_a_peer=True)
    come_back_once_more = _step("come_back", needs_a_peer=True)
    stuff = _step("stuff", needs_a_peer=True)
    drain = _step("drain", needs_a_peer=True)
    answer_lost = _step("answer_lost")
    database_away = _step("database_away")
    database_back = _step("database_back")
    database_slow = _step("database_slow")
    database_quick = _step("database_quick")
    receipts_refused = _step("receipts_refused")
    receipts_taken = _step("receipts_taken")
    receipts_silent = _step("receipts_silent")
    receipts_heard = _step("receipts_heard")
    channel_lost = _step("channel_lost")
    pass_time = _step("pass_time")
    pass_time_once_more = _step("pass_time")
    restart = _step("restart")

    @invariant()
    def nothing_is_seen_broken(self) -> None:
        """What is wrong at once and not only at rest: an ack before its rows, accounts that differ."""
        if self.world.violations:
            raise BrokenPromise(self._steps, self.world.violations)

    def teardown(self) -> None:
        """At rest every promise holds."""
        seen = list(self.world.violations)
        try:
            self._runner.run(self.world.heal())
            broken = self.world.check()
        finally:
            self._runner.run(self.world.end())
            self._runner.close()
            # Examples are many, and are remembered.
            del self.world, self._runner
        if broken and not seen:
            raise BrokenPromise(self._steps, broken)
