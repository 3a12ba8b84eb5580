"""Generated stories of delivery on the real core, ports in memory and time injected: what `tests.support.model` makes.

They run before the faults, since a story that breaks a promise can be reduced to the few steps that matter, and
a fault can't.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.model import BrokenPromise, DeliveryMachine
from tests.support.world import Step, play

STEPS = 32
"""Steps of a story: enough for pushes and other events to meet."""


@dataclass
class Told:
    """The result of the stories."""

    played: int = 0
    """Stories that were generated, including the attempts to shorten a broken one."""
    pushes: int = 0
    """Messages that were published in them."""
    seconds: float = 0.0
    story: str = ""
    """The shortest one found that breaks a promise, with the promises; empty if all held."""

    @property
    def line(self) -> str:
        """In one line; a broken story follows it."""
        end = f"BROKEN by\n{self.story}" if self.story else "every promise held"
        return (
            f"generated stories on the core: {self.played} stories with {self.pushes} messages"
            f" in {self.seconds:.0f} s: {end}"
        )


def tell(count: int, number: int) -> Told:
    """Run at least `count` stories, generated from the seed `number`. Blocks; uses event loops of its own."""
    told = Told()
    began = time.monotonic()

    class Counted(DeliveryMachine):
        """The state machine, and the stories it has run."""

        def __init__(self) -> None:
            told.played += 1
            super().__init__()

        def teardown(self) -> None:
            told.pushes += len(self.world.messages)
            super().teardown()

    try:
        run_state_machine_as_test(
            seed(number)(Counted),
            settings=settings(
                max_examples=count,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck),
            ),
        )
    except BrokenPromise as broken:
        needed = _needed(broken.steps)
        steps = [f"  {step.kind}({step.n}, {step.m})" for step in needed]
        lines = asyncio.run(play(needed)) or broken.lines
        told.story = "\n".join([*steps, *(f"  broken: {line}" for line in lines)])
    told.seconds = time.monotonic() - began
    return told


def _needed(steps: Sequence[Step]) -> list[Step]:
    """These steps without those that can be left out; hypothesis shortens a story, but not completely."""
    needed = list(steps)
    for at in reversed(range(len(needed))):
        without = needed[:at] + needed[at + 1 :]
        if asyncio.run(play(without)):
            needed = without
    return needed
