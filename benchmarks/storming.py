"""A process of clients that storm two nodes, or of some that were there before and note how old their pushes are.

Those that storm reconnect as browsers do, and stay.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import uvloop

from benchmarks.clients import Client, Crowd, Tally, serve
from benchmarks.load import NUMBER_AT
from benchmarks.roaming import Person

AT_ONCE: Final = 100_000
"""More handshakes at once than there are clients: nobody waits for the others."""


class Timed(Tally):
    """Notes of each push when it was made, besides how old it was."""

    def expect(self, total: int, mine: int, *, users: int = 0, each: int = 1, devices: int = 1) -> None:
        """See `Tally`."""
        super().expect(total, mine, users=users, each=each, devices=devices)
        self.made = array("q")

    def push(self, client: Client, frame: bytes, now: int) -> None:
        """See `Tally`."""
        before = self.distinct
        super().push(client, frame, now)
        if self.distinct > before:
            self.made.append(int(frame[: NUMBER_AT - 1]))


class Door(NamedTuple):
    """See `Place`."""

    node: str
    ws_port: int


class Doors(NamedTuple):
    """A load balancer that chooses at random, and knows nothing of the nodes."""

    doors: Sequence[Door]

    def choose(self) -> Door:
        """See `Choice`."""
        return random.choice(self.doors)


class Storming(Crowd):
    """Clients that were here, and clients that come all at once."""

    def __init__(self, tally: Timed) -> None:
        super().__init__(tally)
        self._timed = tally
        self._people: list[Person] = []
        self._welcomed: list[int] = []
        self._all_in = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def watch(self, *, users: int, most: int) -> dict[str, Any]:
        """Count from now on: at most so many pushes come, to these users."""
        self._timed.expect(most, most, users=users)
        return {}

    async def watched(self) -> dict[str, Any]:
        """What was counted, and of each push when it was made and how old it was, both in ns."""
        return self._timed.report(latencies=True) | {"made": self._timed.made.tolist()}

    async def prepare(self, *, first: int, count: int, secret: str) -> dict[str, Any]:
        """Make so many people, with their tokens."""
        self._people = [Person(number, self._note, secret) for number in range(first, first + count)]
        return {}

    def _note(self, person: Person) -> None:
        if person.opened == 1:
            self._welcomed.append(time.monotonic_ns())
            if len(self._welcomed) == len(self._people):
                self._all_in.set()

    async def storm(self, *, ports: list[int], seconds: float) -> dict[str, Any]:
        """All of them connect, now; answers when each was welcomed, or after so many seconds. They stay."""
        doors = Doors([Door(str(port), port) for port in ports])
        gate = asyncio.Semaphore(AT_ONCE)
        began = time.monotonic_ns()
        self._tasks = [
            asyncio.create_task(person.stay(doors, gate), name=person.user) for person in self._people
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_in.wait()
        return {"began": began, "users": len(self._people), "welcomes": self._welcomed}

    async def here(self) -> dict[str, Any]:
        """How many have a session now, how many tries have failed, and how many welcomes were not the first."""
        return {
            "here": sum(person.at is not None for person in self._people),
            "failed": sum(person.failed for person in self._people),
            "again": sum(max(0, person.opened - 1) for person in self._people),
        }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        storming = Storming(Timed())
        runner.run(
            serve(
                storming,
                {
                    "watch": storming.watch,
                    "watched": storming.watched,
                    "prepare": storming.prepare,
                    "storm": storming.storm,
                    "here": storming.here,
                },
            )
        )
