"""Generated stories of delivery on the real core, ports in memory and time injected: the model of `tests.model`.

They come before the faults, since a story that breaks a promise is cut down to the few steps that matter, and
a fault is not.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.model import STEPS, Step, play

stories = st.lists(
    st.builds(Step, st.sampled_from(STEPS), st.integers(0, 60), st.integers(0, 60)), min_size=8, max_size=32
)
"""Longer than those of the tests: what was published must meet what happens."""


@dataclass
class Told:
    """What became of the stories."""

    played: int = 0
    """Those that were generated; what was tried to shorten a broken one counts as well."""
    pushes: int = 0
    """Messages that were published in them."""
    seconds: float = 0.0
    story: str = ""
    """The shortest one found that breaks a promise, with the promises; empty where all held."""

    @property
    def line(self) -> str:
        """In one line; a broken story follows it."""
        end = f"BROKEN by\n{self.story}" if self.story else "every promise held"
        return (
            f"generated stories on the core: {self.played} stories with {self.pushes} messages"
            f" in {self.seconds:.0f} s: {end}"
        )


class Broke(Exception):
    """A story broke a promise."""


def tell(count: int, number: int) -> Told:
    """Play at least `count` stories that the seed `number` decides. Blocks; its event loops are its own."""
    told = Told()
    began = time.monotonic()

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(stories)
    def one(story: list[Step]) -> None:
        told.played += 1
        told.pushes += sum(step.kind.startswith("publish") for step in story)
        broken = asyncio.run(play(story))
        if broken:
            steps = [f"  {step.kind}({step.n}, {step.m})" for step in story]
            raise Broke("\n".join([*steps, *(f"  broken: {b}" for b in broken)]))

    try:
        one()
    except Broke as broke:
        told.story = str(broke)
    told.seconds = time.monotonic() - began
    return told
