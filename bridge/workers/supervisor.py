"""The supervisor: starts the workers, keeps them there, restarts them at SIGHUP, and stops with all of them.

| signal              | what happens                                                                              |
|---------------------|-------------------------------------------------------------------------------------------|
| SIGTERM, SIGINT     | each worker gets it: the first drains, the second hurries, the third kills                |
| SIGHUP              | the workers are restarted one after the other; one that comes meanwhile starts once more. |
|                     | One that comes since its terminal was closed stops all, as SIGTERM does                   |
| SIGKILL             | the workers notice that the supervisor has ended, and drain                               |

A worker that has ended by itself is started again. One that can't start at all (a wrong setting, an unsuitable
database) before any has been ready ends all of it: starting it again would not help.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from bridge.app.clock import SystemClock
from bridge.app.signals import StopSignals, stop_signals
from bridge.config import Settings
from bridge.workers import ops
from bridge.workers.errors import WorkerRefused
from bridge.workers.link import Orders, Stop
from bridge.workers.place import Place
from bridge.workers.port import held_port

END_SECONDS: Final = 15.0
"""Seconds beyond BRIDGE_DRAIN_TIMEOUT that a worker has for its stop when it is replaced."""
READY_SECONDS: Final = 60.0
"""Seconds in which a worker that replaces another has to get ready."""

Ready = Callable[[int, int], None]

log = logging.getLogger("bridge")


async def supervise(
    settings: Settings,
    given: Mapping[str, object],
    *,
    ready: Ready | None = None,
    last: Callable[[], None] | None = None,
    reloads: bool = True,
) -> int:
    """Run `settings.workers` workers until SIGTERM or SIGINT; returns the worst exit code of theirs.

    `given`: the settings that go before those of environment and files, as text or JSON; workers read all others anew
    at each start. `ready` is called once, with the ports, when all are ready; `last` before a third signal kills.
    `reloads`: whether SIGHUP restarts the workers. Raises SettingsError and WorkerRefused.
    """
    clock = SystemClock()
    with _private_directory() as folder, held_port(settings.ws_host, settings.ws_port) as ws_port:
        places = [
            Place(k, node, _orders(settings, given, node, ws_port, f"{folder}/{k}"), clock)
            for k, node in enumerate(settings.nodes, 1)
        ]

        def kill() -> None:
            for place in places:
                place.kill()
            shutil.rmtree(folder, ignore_errors=True)
            if last is not None:
                last()

        with stop_signals(kill) as signals:
            async with ops.listening(
                settings.ops_host,
                settings.ops_port,
                places,
                node=settings.node,
                ws_port=ws_port,
                clock=clock,
            ) as ops_port:
                log.info("%d workers: WebSockets on port %d, ops on port %d", len(places), ws_port, ops_port)
                told = (lambda: ready(ws_port, ops_port)) if ready is not None else None
                with _reloads(reloads) as asked_again:
                    await _run(places, signals, _Rounds(places, settings.drain_timeout, asked_again), told)
    return max(code if code >= 0 else 128 - code for code in (place.exit_code for place in places))


async def _run(
    places: Sequence[Place], signals: StopSignals, rounds: _Rounds, ready: Callable[[], None] | None
) -> None:
    """Until a signal has stopped all, or one can't start."""
    running = [asyncio.create_task(place.run(), name=f"worker {place.number}") for place in places]
    beside = [
        asyncio.create_task(rounds.run(), name="rounds"),
        asyncio.create_task(_announce(places, ready), name="announce"),
    ]
    asked = asyncio.create_task(signals.asked.wait(), name="stop")
    try:
        done, _ = await asyncio.wait((asked, *running, beside[0]), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (asked, *beside):
            task.cancel()
        await asyncio.gather(asked, *beside, return_exceptions=True)
        async with _hurrying(places, signals):
            for place in places:
                place.stop(Stop(signal.SIGTERM))
            ends = await asyncio.gather(*running, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, WorkerRefused):
                log.error("the supervisor has failed", exc_info=end)
        log.info("all workers have ended")


@asynccontextmanager
async def _hurrying(places: Sequence[Place], signals: StopSignals) -> AsyncIterator[None]:
    """Pass a second signal on to all workers."""

    async def wait() -> None:
        await signals.hurried.wait()
        for place in places:
            place.stop(Stop(signals.exit_code - 128, hurry=True))

    waiting = asyncio.create_task(wait(), name="hurry")
    try:
        yield
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def _announce(places: Sequence[Place], ready: Callable[[], None] | None) -> None:
    for place in places:
        await place.ready.wait()
    log.info("ready: all workers are")
    if ready is not None:
        ready()


class _Rounds:
    """Restarts the workers one after the other, each time that somebody asks."""

    def __init__(self, places: Sequence[Place], drain_seconds: float, asked: asyncio.Event) -> None:
        self._places = places
        self._end_seconds = drain_seconds + END_SECONDS
        self._asked = asked

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            log.info("the workers are restarted one after the other")
            if await self._round():
                log.info("all workers were restarted")

    async def _round(self) -> bool:
        for place in self._places:
            if not await place.replace(end_seconds=self._end_seconds, ready_seconds=READY_SECONDS):
                log.error(
                    "worker %d did not get ready after its restart: the others go on as they are",
                    place.number,
                )
                return False
        return True


@contextmanager
def _reloads(reloads: bool) -> Iterator[asyncio.Event]:
    """Sets the event at each SIGHUP that somebody sends; one that says that the terminal is closed stops all."""
    asked = asyncio.Event()
    if not reloads:
        yield asked
        return
    had_terminal = _has_terminal()

    def came() -> None:
        if had_terminal and not _has_terminal():
            log.info("the terminal is closed")
            signal.raise_signal(signal.SIGTERM)
        else:
            asked.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, came)
    try:
        yield asked
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _has_terminal() -> bool:
    """Whether this process was started from a terminal that is open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def _private_directory() -> Iterator[str]:
    """For the unix sockets of the workers. Workers that outlive the supervisor remove it."""
    folder = tempfile.mkdtemp(prefix="bridge-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _orders(settings: Settings, given: Mapping[str, object], node: str, port: int, ops_path: str) -> Orders:
    """What is settled for a worker, whatever its environment and files say by the time it starts."""
    settled: dict[str, object] = {
        "node": node,
        "ws_host": settings.ws_host,
        "ws_port": port,
        "ops_host": settings.ops_host,
        "ops_port": 0,
        "workers": 1,
    }
    if "jwt_secret" not in settings.model_fields_set:
        # Made at the start, for development: all workers must have the same.
        settled["jwt_secret"] = settings.jwt_secret.get_secret_value()
    return Orders({**given, **settled}, ops_path)
