"""What idle sessions cost: memory, and the CPU for pings and heartbeats.

The naive bridge, and this one in both modes, run at the same time, each with its own clients in a process of their
own that answer every ping. So all are measured in the same windows, on a machine that is equally busy for all.

A process cannot have more sockets than it may have open files. More sessions than that are spread over several
processes of the same bridge, each with a vhost, a database and clients of its own.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Final, NamedTuple

from benchmarks.processes import BenchmarkFailed, cpu_seconds, resident_bytes, wait_until
from benchmarks.scene import NAIVE, RECEIVED, Contestant, Scene, scene
from bridge.core.contract.frames import HEARTBEAT_EVERY
from bridge.core.sessions.hub import PING_EVERY
from bridge.devservers import Servers

PINGED_WITHIN: Final = 60.0
"""Seconds in which every session should have been pinged, after all are open."""

FILES_SPARED: Final = 1_000
"""Open files of a process that are left for all but sessions."""

BARE: Final = RECEIVED._replace(name="bridge.bare", subprotocol="bridge.bare")
ENVELOPE: Final = RECEIVED._replace(name="bridge.v1.json", subprotocol="bridge.v1.json")
CONTESTANTS: Final = (NAIVE, BARE, ENVELOPE)
MANY: Final = 20_000
"""Sessions of a bridge above which only this bridge is measured, in one mode."""


class Window(NamedTuple):
    """A period in which nothing was published."""

    seconds: float
    cpu: float
    """Seconds of the bridge's CPU: user and system, its children included."""
    pings: int
    """Pings that all sessions together got, and answered."""
    frames: int
    """Heartbeat frames that all sessions together got."""

    @property
    def share(self) -> float:
        """Of one core."""
        return self.cpu / self.seconds


class Idle(NamedTuple):
    """A bridge with idle sessions."""

    name: str
    sessions: int
    each_bytes: float
    """The growth of resident memory for each session."""
    without: Window
    """Before the first session opened."""
    windows: list[Window]
    processes: int = 1
    """Bridges that the sessions are spread over. CPU is that of all of them."""
    fewest_pings: int = 0
    """Pings that the session with the fewest got, and answered, until the end."""

    @property
    def cpu(self) -> float:
        """Share of one core, the median."""
        return median(w.share for w in self.windows)

    @property
    def each_hour(self) -> float:
        """Seconds of CPU for each session and hour, beyond what the bridge uses without any."""
        return (self.cpu - self.without.share) * 3600 / self.sessions


def measure(
    servers: Servers,
    *,
    directory: Path,
    sessions: int,
    windows: int,
    seconds: float,
    contestants: Sequence[Contestant] = CONTESTANTS,
) -> list[Idle]:
    """Measure all bridges in the given windows, with equally many sessions each."""
    counts = shares(sessions, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_SPARED)
    with ExitStack() as stack:
        on = [
            [_scene(stack, servers, directory, one, number) for number in range(len(counts))]
            for one in contestants
        ]
        without = _window(on, seconds)
        sizes = [_resident(group) for group in on]
        for group in on:
            for one, count in zip(group, counts, strict=True):
                one.connect([count])
        wait_until(
            lambda: all(_told(one)["pinged"] == one.sessions for group in on for one in group),
            seconds=PINGED_WITHIN,
            every=0.5,
            what=f"all of {sessions:,} sessions were pinged",
        )
        each = [(_resident(group) - size) / sessions for group, size in zip(on, sizes, strict=True)]
        turns = [_window(on, seconds) for _ in range(windows)]
        fewest = [min(_told(one)["fewest"] for one in group) for group in on]
    made = [
        Idle(one.name, sessions, each[n], without[n], [turn[n] for turn in turns], len(counts), fewest[n])
        for n, one in enumerate(contestants)
    ]
    for idle, contestant in zip(made, contestants, strict=True):
        verify(idle, heartbeats=contestant.subprotocol == ENVELOPE.subprotocol)
    return made


def shares(sessions: int, most: int) -> list[int]:
    """The sessions of each process, if one may have `most`."""
    processes = -(-sessions // most)
    return [sessions // processes + (n < sessions % processes) for n in range(processes)]


def _scene(stack: ExitStack, servers: Servers, directory: Path, contestant: Contestant, number: int) -> Scene:
    own = directory / f"idle-{contestant.name}-{number}"
    own.mkdir(exist_ok=True)
    return stack.enter_context(scene(servers, contestant, directory=own, sessions=[0]))


def _resident(group: Sequence[Scene]) -> int:
    return sum(resident_bytes(one.bridge.pid) for one in group)


def _told(one: Scene) -> dict[str, int]:
    """What the clients of one bridge say."""
    return one.crowds[0].ask("sessions")


def _window(on: Sequence[Sequence[Scene]], seconds: float) -> list[Window]:
    """One window for each bridge, all at the same time."""
    before = [[_look(one) for one in group] for group in on]
    time.sleep(seconds)
    after = [[_look(one) for one in group] for group in on]
    made = []
    for first, last in zip(before, after, strict=True):
        passed = [
            [now - then for then, now in zip(*pair, strict=True)] for pair in zip(first, last, strict=True)
        ]
        times, cpu, pings, frames = zip(*passed, strict=True)
        made.append(Window(fmean(times), sum(cpu), int(sum(pings)), int(sum(frames))))
    return made


def _look(one: Scene) -> tuple[float, float, int, int]:
    told = _told(one)
    if told["open"] != one.sessions:
        raise BenchmarkFailed(
            f"{one.contestant.name}: {told['open']} of {one.sessions} idle sessions are open"
        )
    return time.monotonic(), cpu_seconds(one.bridge.pid), told["pings"], told["frames"]


def verify(idle: Idle, *, heartbeats: bool) -> None:
    """Check that every session got its pings and heartbeats all the time; otherwise the CPU is that of something else.

    A window may begin just after a round and end just before another: it misses one round at most.
    """
    for window in idle.windows:
        rounds = window.seconds / PING_EVERY - 1
        beats = window.seconds / HEARTBEAT_EVERY - 1 if heartbeats else 0
        if window.pings < rounds * idle.sessions or window.frames < beats * idle.sessions:
            raise BenchmarkFailed(
                f"{idle.name}: {idle.sessions} sessions missed pings or heartbeats: {window}"
            )
        if window.frames and not heartbeats:
            raise BenchmarkFailed(f"{idle.name}: {window.frames} frames came, and nothing was published")
