"""Connect hooks for tests: one in memory whose answers a test chooses, and one on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from bridge.core.errors import ConnectHookFailed
from bridge.core.ports.connecting import HookAnswer
from tests.support.waiting import until


def allowing(user: object = "u1", expires_at: object = 1_800_003_600, **more: object) -> HookAnswer:
    """The answer that lets a user in."""
    return HookAnswer(200, json.dumps({"user": user, "expires_at": expires_at, **more}).encode())


class ScriptedHook:
    """Fills the ConnectHook port: gives the answer of the moment, or waits while there is none."""

    def __init__(self) -> None:
        self.answer: HookAnswer | None = None
        """None: everybody waits."""
        self.questions: list[Any] = []
        self.raw: list[bytes] = []
        self.waiting = 0
        self.most = 0
        """How many have waited at a time."""
        self._changed = asyncio.Condition()

    async def ask(self, question: bytes) -> HookAnswer:
        """See the port."""
        self.raw.append(question)
        self.questions.append(json.loads(question))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self.answer is not None)
            assert self.answer is not None
            if not self.answer.status:
                raise ConnectHookFailed("no answer within 2 s", down=True)
            return self.answer
        finally:
            self.waiting -= 1

    async def say(self, answer: HookAnswer | None) -> None:
        """Give this answer from now on, also to those who wait."""
        self.answer = answer
        async with self._changed:
            self._changed.notify_all()

    async def asked(self, count: int) -> None:
        """Wait until it was asked so often."""
        await until(lambda: len(self.questions) >= count)


NOTHING = HookAnswer(0, b"")
"""No answer at all."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Business:
    """A business system on loopback: its users by their cookie, and what it was asked."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        """By the header Cookie."""
        self.seconds = 3600.0
        """For how long it lets somebody in."""
        self.handler: Handler | None = None
        """What answers in its place, where a test says so."""
        self.questions: list[dict[str, Any]] = []
        self.requests: list[web.Request] = []
        self.waiting = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Say who it is."""
        self.requests.append(request)
        self.questions.append(await request.json())
        self.waiting += 1
        try:
            if self.handler is not None:
                return await self.handler(request)
            user = self.users.get(self.questions[-1]["headers"].get("cookie", ""))
            if user is None:
                return web.Response(status=401)
            return web.json_response({"user": user, "expires_at": time.time() + self.seconds})
        finally:
            self.waiting -= 1


@asynccontextmanager
async def business(handler: Handler | None = None) -> AsyncIterator[Business]:
    """Serve one."""
    made = Business()
    made.handler = handler
    app = web.Application()
    app.router.add_post("/connect", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/connect"
        yield made
    finally:
        await runner.cleanup()


async def hanging(request: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError
