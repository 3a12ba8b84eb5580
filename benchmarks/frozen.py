"""How much a few peers that vanished silently slow down all the others.

A thousand sessions, one in twenty of them in a client process of its own, which is frozen by SIGSTOP: its
sockets stay open, accept bytes and never answer a ping. It measures how fast the others get their pushes,
with and without the freeze, in turn on one bridge. Then the frozen clients continue, and all counts must agree.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.scene import RECEIVED, Drain, scene
from bridge.devservers import Servers

SHARE: Final = 0.05
"""The share of sessions that freeze."""


class Frozen(NamedTuple):
    """Drains without and with the freeze, in turn; `pushes` counts those of the others only."""

    sessions: int
    frozen_sessions: int
    free: list[Drain]
    frozen: list[Drain]

    @property
    def ratio(self) -> float:
        """The others' throughput with the freeze, as a share of that without."""
        return median(d.rate for d in self.frozen) / median(d.rate for d in self.free)


def measure(
    servers: Servers, *, directory: Path, sessions: int, backlog: int, repetitions: int, warm_up: int
) -> Frozen:
    """Measure it on a bridge of its own."""
    frozen_sessions = max(1, round(sessions * SHARE))
    made = Frozen(sessions, frozen_sessions, [], [])
    with scene(
        servers, RECEIVED, directory=directory, sessions=[sessions - frozen_sessions, frozen_sessions]
    ) as on:
        on.drain(warm_up)
        for _ in range(repetitions):
            made.free.append(on.drain(backlog, only=on.crowds[:1]))
            made.frozen.append(on.drain(backlog, frozen=on.crowds[1:]))
    return made
