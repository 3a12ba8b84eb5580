"""One process of a worker, as the supervisor sees it: started, told what to be, listened to, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import msgspec

from bridge.app.signals import SIGNALS
from bridge.workers.link import LINE_BYTES_MAX, Orders, Refused, State, Stop, decode_report, encode

MODULE: Final = "bridge.cli.worker"

log = logging.getLogger("bridge")


class WorkerProcess:
    """A process that runs, or has ended. Made by `started`."""

    def __init__(self, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self.state = State()
        """The last that it told."""
        self.refused: Refused | None = None
        """Why it could not serve."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self, stop: Stop) -> None:
        """Tell it to stop."""
        self._writer.write(encode(stop))

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        try:
            self._process.kill()
        except ProcessLookupError:
            pass

    async def ended(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        return await self._process.wait()

    async def listen(self, reader: asyncio.StreamReader, changed: Callable[[], None]) -> None:
        """Read what it tells, until its end. `changed` is called after each state."""
        while line := await _next_line(reader):
            try:
                report = decode_report(line)
            except msgspec.DecodeError as error:
                log.error("worker process %d has told what nobody understands: %s", self.pid, error)
                continue
            if isinstance(report, Refused):
                self.refused = report
            else:
                self.state = report
                changed()


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    """Empty at the end."""
    try:
        return await reader.readline()
    except ConnectionResetError:
        # It has ended before it read its orders.
        return b""


@asynccontextmanager
async def started(
    node: str, orders: Orders, changed: Callable[[WorkerProcess], None]
) -> AsyncIterator[WorkerProcess]:
    """Start a worker. At the end of the block it has ended, or is killed.

    It has a session of its own: what a terminal sends with Ctrl-C goes to the supervisor only.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with _blocked():
            process = await asyncio.create_subprocess_exec(
                sys.executable, *_options(), "-m", MODULE, node, stdin=theirs.fileno(), start_new_session=True
            )
        theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES_MAX)
        made = WorkerProcess(process, writer)
        writer.write(encode(orders))
        listening = asyncio.create_task(made.listen(reader, lambda: changed(made)), name=f"listen to {node}")
        try:
            yield made
            # What it told at last is in the socket.
            await listening
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            writer.close()
            if process.returncode is None:
                made.kill()
                await made.ended()


@contextmanager
def _blocked() -> Iterator[None]:
    """What is started meanwhile gets signals to stop once it listens for them: see `bridge.workers.worker`.

    Several may be in this block at once: each has made its process before it waits for anything.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _options() -> list[str]:
    """Options of the interpreter, so that a worker finds the same package as this process: `-m` would look into the
    working directory first, where the `bridge` script does not."""
    return [] if sys.path[:1] in ([""], [os.getcwd()]) else ["-P"]
