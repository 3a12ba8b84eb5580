"""Random stories of several nodes: letters are late, lost or returned, users move, and every push ends once, truly.

The steps of a story are numbers, so that one that fails can be told in fewer steps: see `shrunk`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests.support.random_town import KINDS, LIMITS, Step, Story
from tests.support.random_town_checks import wrong_of
from tests.support.town import town


def story(seed: int, length: int) -> tuple[int, list[Step]]:
    """The number of nodes, and what happens."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    if seed % 3 == 0:  # nothing but late letters
        weights = [0 if k in ("returns", "loses", "unsure", "moves") else w for k, w in KINDS.items()]
    steps = [
        Step(rng.choices(kinds, weights)[0], rng.randrange(1 << 10), rng.randrange(1 << 10))
        for _ in range(length)
    ]
    first = [Step("open", n, rng.randrange(3)) for n in range(3)]
    return rng.choice((2, 3)), first + steps


async def told(nodes: int, steps: Sequence[Step], *, says: bool = True) -> list[str]:
    """What is wrong after this story."""
    async with town(*"abc"[:nodes], limits=LIMITS) as (made, houses):
        it = Story(made, houses, says=says)
        await it.pass_time(0.1)
        for step in steps:
            await it.do(step)
        await it.heal()
        return wrong_of(it)


async def shrunk(nodes: int, steps: list[Step], *, says: bool = True) -> list[Step]:
    """The story without all that it fails without."""
    size = len(steps) // 2
    while size:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + size :]
            if await told(nodes, fewer, says=says):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


@pytest.mark.parametrize("seed", range(40))
async def test_every_push_ends_once_and_truly(seed: int) -> None:
    nodes, steps = story(seed, 60)
    says = seed % 4 > 0  # otherwise no node says what it has, as those of the version before
    if await told(nodes, steps, says=says):
        fewer = await shrunk(nodes, steps, says=says)
        raise AssertionError(f"{await told(nodes, fewer, says=says)} after {fewer}")
