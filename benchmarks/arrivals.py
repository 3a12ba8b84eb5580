"""A process whose WebSocket clients arrive, all together or one by one, and wait for their welcome.

It can also be the business system that a connect hook asks, and then lets everybody in.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import uvloop
from aiohttp import web

from benchmarks.clients import Client, Crowd, Tally, connected, serve, source, token

SUBPROTOCOL: Final = "bridge.v1.json"


class Arrival(Client):
    """One WebSocket; `welcomed` is done when its first frame has come."""

    __slots__ = ("welcomed",)

    def _target(self) -> bytes:
        """Without a token the query says who it is, for the hook."""
        return super()._target() if self._token else b"/ws?who=u%d" % self.user

    def _message(self, message: bytes, now: int) -> None:
        if not self.welcomed.done():
            self.welcomed.set_result(None)

    welcomed: asyncio.Future[None]


class Arrivals(Crowd):
    """Opens sessions, and closes them again."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self._here: list[Arrival] = []

    async def storm(
        self,
        *,
        port: int,
        first: int,
        count: int,
        at_once: int,
        secret: str = "",
        tokens: list[str] | None = None,
    ) -> dict[str, Any]:
        """Open a session for each of `count` users, so many at once, until all are welcomed; then close them.

        `tokens`: the ones that they come with, in turn; else each has its own. `each`: ms from the first packet of a
        connection until its welcome.
        """
        given = tokens or [token(user, secret) for user in range(first, first + count)]
        gate = asyncio.Semaphore(at_once)
        each: list[float] = []
        refused = 0

        async def one(number: int) -> None:
            nonlocal refused
            async with gate:
                began = time.monotonic_ns()
                try:
                    await self._arrive(first + number, port, given[number % len(given)])
                except (ConnectionError, TimeoutError):
                    refused += 1
                else:
                    each.append((time.monotonic_ns() - began) / 1e6)

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number), name=f"arrival {number}")
        seconds = time.monotonic() - began
        for client in self._here:
            client.leave()
        self._here.clear()
        return {"seconds": seconds, "each": each, "refused": refused}

    async def vouch(self) -> dict[str, Any]:
        """Be a business system that lets everybody in, from now on; returns the port."""
        app = web.Application()
        app.router.add_post("/", _vouched)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return {"port": runner.addresses[0][1]}

    async def _arrive(self, user: int, port: int, token: str) -> None:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Arrival(user, token, self._tally, loop.create_future(), SUBPROTOCOL),
            sock=await connected(source(user, port), port),
        )
        client.welcomed = loop.create_future()
        if client.first_at:
            client.welcomed.set_result(None)
        async with asyncio.timeout(10):
            await client.opened
            await client.welcomed
        self._here.append(client)


async def _vouched(request: web.Request) -> web.Response:
    who = (await request.json())["query"]["who"][0]
    return web.json_response({"user": who, "expires_at": time.time() + 3600})


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        arrivals = Arrivals(Tally())
        runner.run(serve(arrivals, {"storm": arrivals.storm, "vouch": arrivals.vouch}))
