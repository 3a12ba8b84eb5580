"""The ops port of a group of workers in tests: that of the supervisor, before workers that a test can change."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from bridge.ops.server import listen
from bridge.workers import ops as group_ops
from bridge.workers.link import State
from tests.support.ops import Parts
from tests.support.ports import ManualClock


@dataclass(eq=False)
class Seen:
    """Fills the Worker port: a worker as its supervisor knows it, with what it serves."""

    number: int
    ops_path: str
    parts: Parts
    pid: int | None = 1
    restarts: int = 0
    state: State = field(default_factory=lambda: State(ready=True))

    @property
    def node(self) -> str:
        """Its name."""
        return f"n1-{self.number}"


@dataclass(eq=False)
class Group:
    """The workers, and a client of the port."""

    workers: Sequence[Seen]
    client: aiohttp.ClientSession


@asynccontextmanager
async def group(*parts: Parts, token: str = "", silent: int = 0) -> AsyncIterator[Group]:
    """Serve these, and `silent` workers behind them whose sockets nobody serves."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [Seen(k, f"{folder}/{k}", one) for k, one in enumerate(parts, 1)]
        dead = [Seen(len(parts) + k, f"{folder}/dead-{k}", Parts()) for k in range(1, silent + 1)]
        async with AsyncExitStack() as stack:
            for worker in workers:
                served = listen(
                    worker.parts.context(),
                    host="127.0.0.1",
                    port=0,
                    credentials=worker.parts.credentials(token),
                    path=worker.ops_path,
                )
                await stack.enter_async_context(served)
            port = await stack.enter_async_context(
                group_ops.listening(
                    "127.0.0.1", 0, [*workers, *dead], node="n1", ws_port=8181, clock=ManualClock()
                )
            )
            client = aiohttp.ClientSession(f"http://127.0.0.1:{port}")
            yield Group([*workers, *dead], await stack.enter_async_context(client))
