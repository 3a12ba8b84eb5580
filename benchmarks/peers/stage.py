"""One peer under load: its servers, its clients, a publisher, and what is measured on them.

A peer has no backlog that can be frozen. So it is measured while the publisher works: from just before the first
message is published until every client has all its frames. `Scene.flood` measures the bridges in the same way, and
they must have their rows and acks as well. A measurement whose counts do not agree is not used.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.processes import BenchmarkFailed, Child, busy_seconds, cpu_seconds, running
from benchmarks.scene import (
    DRAIN_TIMEOUT,
    END_TIMEOUT,
    SLOWEST_OPENING,
    START_TIMEOUT,
    Flood,
    Latency,
    percentiles,
)

_seeds = itertools.count(1_000_001)


class Running(NamedTuple):
    """A peer that is ready."""

    servers: Mapping[str, int]
    """The pids of its servers by name; their children count as well."""
    dialect: str
    """What its clients speak, with which options, at which port."""
    options: Mapping[str, Any]
    port: int
    way: str
    """How to publish, and where."""
    address: Mapping[str, Any]
    secret: str = ""
    """Signs the tokens of its clients, if it checks tokens."""
    needs: Child | None = None
    """A process of it that must not end meanwhile."""


class Promises(NamedTuple):
    """What a publisher and an operator can rely on; empty: not at all."""

    durable: str = ""
    """Does a push survive a crash of the machine between the confirm and its delivery?"""
    logged: str = ""
    """Can one ask afterwards what became of a push?"""
    proven: str = ""
    """Does the server know that the page has it?"""
    receipt: str = ""
    """Does the publisher hear of it?"""


class Peer(NamedTuple):
    """A peer, and how to start it."""

    name: str
    promises: Promises
    start: Callable[[], AbstractContextManager[Running]]


class Stage:
    """A peer with its clients and its publisher."""

    def __init__(self, peer: Peer, running: Running, crowd: Child, publisher: Child, sessions: int) -> None:
        self._peer = peer
        self._running = running
        self._crowd = crowd
        self._publisher = publisher
        self._sessions = sessions
        self._watched = {**running.servers, "clients": crowd.pid, "publisher": publisher.pid}

    def connect(self) -> None:
        """Open the sessions, one user each."""
        told = self._crowd.ask(
            "connect_peer",
            within=START_TIMEOUT + self._sessions / SLOWEST_OPENING,
            dialect=self._running.dialect,
            options=self._running.options,
            port=self._running.port,
            first=0,
            count=self._sessions,
            secret=self._running.secret,
        )
        if told["connected"] != self._sessions:
            raise BenchmarkFailed(
                f"{self._peer.name}: {told['connected']} of {self._sessions} sessions are open"
            )

    def flood(self, count: int) -> Flood:
        """Publish pushes as fast as possible, with confirms; verified."""
        seed = self._expect(count)
        before = self._cpu()
        self._crowd.tell("complete", seconds=DRAIN_TIMEOUT)
        began = time.monotonic_ns()
        self._publish("burst", seed, count)
        told = self._crowd.answer(DRAIN_TIMEOUT + 5, needs=self._running.needs)
        cpu = self._cpu_since(before, (time.monotonic_ns() - began) / 1e9)
        published = self._publisher.answer(DRAIN_TIMEOUT)
        self._verify(count, told)
        seconds = (told["last_at"] - began) / 1e9
        return Flood(
            pushes=count,
            seconds=seconds,
            frames_seconds=seconds,
            publish_seconds=published["seconds"],
            cpu=cpu,
        )

    def latency(self, count: int, rate: float) -> Latency:
        """Publish pushes at a steady rate, and measure how old they are when they arrive; verified."""
        seed = self._expect(count)
        before, began = self._cpu(), time.monotonic()
        self._publish("steady", seed, count, rate=rate)
        published = self._publisher.answer(count / rate * 3 + 30)
        cpu = self._cpu_since(before, time.monotonic() - began)
        self._verify(count, self._crowd.ask("complete", seconds=END_TIMEOUT))
        all_ns = self._crowd.ask("report")["latencies"]
        p50, p99 = percentiles(all_ns, 50, 99)
        return Latency(count, count / published["seconds"], p50 / 1e6, p99 / 1e6, max(all_ns) / 1e6, cpu)

    def _expect(self, count: int) -> int:
        seed = next(_seeds)
        self._crowd.ask("expect", seed=seed, total=count, users=self._sessions)
        return seed

    def _publish(self, how: str, seed: int, count: int, **more: object) -> None:
        self._publisher.tell(
            how,
            way=self._running.way,
            address=self._running.address,
            seed=seed,
            count=count,
            users=self._sessions,
            **more,
        )

    def _verify(self, count: int, told: Mapping[str, Any]) -> None:
        if told["distinct"] != count or told["duplicates"] or told["strays"]:
            raise BenchmarkFailed(f"{self._peer.name}: {count} pushes were published, the clients say {told}")

    def _cpu(self) -> dict[str, float]:
        used = {name: cpu_seconds(pid) for name, pid in self._watched.items()}
        busy, stolen = busy_seconds()
        return used | {"others": busy - sum(used.values()), "stolen": stolen}

    def _cpu_since(self, before: Mapping[str, float], seconds: float) -> dict[str, float]:
        return {name: (used - before[name]) / seconds for name, used in self._cpu().items()}


@contextmanager
def stage(peer: Peer, *, directory: Path, sessions: int) -> Iterator[Stage]:
    """A peer that is ready, all its sessions open."""
    with ExitStack() as stack:
        ready = stack.enter_context(peer.start())

        def child(title: str, module: str) -> Child:
            command = (sys.executable, "-m", module)
            return stack.enter_context(running(title, command, directory=directory, environment={}))

        publisher = child("publisher", "benchmarks.peers.publisher")
        crowd = child("clients 0", "benchmarks.peers.clients")
        made = Stage(peer, ready, crowd, publisher, sessions)
        made.connect()
        yield made


def password() -> str:
    """One for a server that lives as long as a measurement."""
    return secrets.token_hex(16)


START_PATIENCE: Final = 15.0


@contextmanager
def server(
    title: str,
    command: Sequence[str],
    *,
    directory: Path,
    port: int,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """A peer's server, when it takes connections at `port`."""
    with running(title, command, directory=directory, environment=environment or {}) as child:
        deadline = time.monotonic() + START_PATIENCE
        while True:
            child.check_alive()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchmarkFailed(f"{title} did not start, see {child.log}") from None
                time.sleep(0.05)
        yield child
