"""Does the bridge's memory grow? Sessions open and close all the time, while pushes flow.

Each round publishes pushes while sessions come and go, waits until the queue is empty, and looks at the resident memory
of the bridge. Rounds differ in the proof that is asked for and in the ttl. A third of the users are absent at any
moment, and some for good: their pushes are kept, sent when they come, or expire. The database may grow.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.processes import BenchmarkFailed, cpu_seconds, resident_bytes
from benchmarks.scene import RECEIVED, scene
from bridge.devservers import Servers

GROWTH: Final = 0.05
"""Growth after the warm-up that is allowed."""
OPEN_AT_ONCE: Final = 1_000
USERS: Final = 1_500
"""Users whose sessions come and go."""
NEVER_THERE: Final = 100
"""Users who never come."""
KINDS: Final = (("written", 0), ("received", 0), ("received", 30), ("written", 30), ("received", 0))
"""The proof and the ttl, by turns."""
ROUND_PUSHES: Final = 5_000
"""Pushes of a round, at most."""
ROUNDS_LEAST: Final = 50
PART: Final = 0.1
"""The part of all rounds that is the warm-up; those of the next and of the last such part are compared."""
SAY_EVERY: Final = 60.0


class Sample(NamedTuple):
    """The state after a round."""

    seconds: float
    sessions: int
    """Opened until then."""
    pushes: int
    resident: int
    """Bytes of the bridge's process."""


class Soak(NamedTuple):
    """The memory of one bridge over many sessions and pushes."""

    sessions: int
    pushes: int
    seconds: float
    cpu: float
    """Seconds of the bridge's CPU."""
    frames: int
    """Frames that the clients read, those of the envelope mode that are no pushes included."""
    lost: int
    """Sessions that the bridge closed."""
    rows: dict[str, int]
    """By outcome."""
    samples: list[Sample]

    @property
    def warm(self) -> float:
        """Resident bytes after the warm-up, the median of a tenth of the rounds."""
        part = _part(self.samples)
        return median(one.resident for one in self.samples[part : 2 * part])

    @property
    def last(self) -> float:
        """Resident bytes at the end, the median of a tenth of the rounds."""
        return median(one.resident for one in self.samples[-_part(self.samples) :])

    @property
    def growth(self) -> float:
        """Share by which the memory grew since the warm-up; negative where it shrank."""
        return self.last / self.warm - 1


def _part(samples: list[Sample]) -> int:
    return max(1, round(len(samples) * PART))


def measure(
    servers: Servers, *, directory: Path, sessions: int, pushes: int, say: Callable[[str], None]
) -> Soak:
    """Open and close this many sessions while this many pushes flow."""
    rounds = max(ROUNDS_LEAST, -(-pushes // ROUND_PUSHES))
    samples: list[Sample] = []
    with scene(servers, RECEIVED, directory=directory, sessions=[0], clients=("benchmarks.churn",)) as on:
        used, began = cpu_seconds(on.bridge.pid), time.monotonic()
        said = began
        told: dict[str, int] = {}
        for number in range(rounds):
            opened = samples[-1].sessions if samples else 0
            published = samples[-1].pushes if samples else 0
            confirm, ttl = KINDS[number % len(KINDS)]
            more = (number + 1) * pushes // rounds - published
            told = on.stir(
                sessions=(number + 1) * sessions // rounds - opened,
                users=USERS,
                most=OPEN_AT_ONCE,
                pushes=more,
                absent=NEVER_THERE,
                confirm=confirm,
                ttl=ttl,
            )
            now = time.monotonic()
            at = Sample(now - began, told["opened"], published + more, resident_bytes(on.bridge.pid))
            samples.append(at)
            if now - said > SAY_EVERY:
                said = now
                say(
                    f"{at.sessions:,} sessions, {at.pushes:,} pushes: the bridge has {at.resident / 2**20:.1f} MiB"
                )
        seconds, cpu = time.monotonic() - began, cpu_seconds(on.bridge.pid) - used
        rows = on.all_outcomes()
    if sum(rows.values()) != pushes:
        raise BenchmarkFailed(f"{pushes} pushes were published, the rows are {rows}")
    return Soak(sessions, pushes, seconds, cpu, told["frames"], told["lost"], rows, samples)


def verify(soak: Soak) -> None:
    """Raise where the memory grew, or sessions were lost."""
    if soak.growth > GROWTH:
        raise BenchmarkFailed(f"the bridge's memory grew by {soak.growth:.1%}: {GROWTH:.0%} are allowed")
    if soak.lost:
        raise BenchmarkFailed(f"the bridge closed {soak.lost} sessions")
