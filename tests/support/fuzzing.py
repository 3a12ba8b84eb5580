"""Fuzzing a bridge: one whose reported errors are kept, many inputs in one test, and a well-behaved neighbour."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.adapters.amqp.producer import Producer
from bridge.app import build as app
from tests.support import bridges
from tests.support.clients import Client, client
from tests.support.ports import RecordingErrors

T = TypeVar("T")

REPORTED = RecordingErrors()
"""The error handler of every bridge that `bridge` starts: whatever a client sends, nothing may come here."""


def recording_errors() -> RecordingErrors:
    """The factory that BRIDGE_ERROR_HANDLER names."""
    return REPORTED


@asynccontextmanager
async def bridge(amqp_url: str, postgres_dsn: str, **more: object) -> AsyncIterator[app.Running]:
    """A bridge in this process. Fails at the end where its error handler was told of anything."""
    REPORTED.seen.clear()
    async with bridges.bridge(
        amqp_url, postgres_dsn, error_handler=f"{__name__}:recording_errors", **more
    ) as made:
        yield made
        assert REPORTED.seen == []


@contextmanager
def bridge_in_a_thread(amqp_url: str, postgres_dsn: str, **more: object) -> Iterator[app.Running]:
    """The same for tests that block: its event loop runs in a thread of its own."""
    made: list[app.Running] = []
    failed: list[BaseException] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with bridge(amqp_url, postgres_dsn, **more) as running:
            made.append(running)
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="bridge")
    thread.start()
    ready.wait()
    try:
        if made:
            yield made[0]
    finally:
        if not failed:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
    for error in failed:
        raise error


async def for_each(strategy: st.SearchStrategy[T], count: int, check: Callable[[T], Awaitable[None]]) -> None:
    """Check `count` values that the strategy makes, the same ones each time; a failure is made small first."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=count, derandomize=True, database=None)
    @given(strategy)
    def run(value: T) -> None:
        asyncio.run_coroutine_threadsafe(in_time(check(value)), loop).result()

    await asyncio.to_thread(run)


async def in_time(awaitable: Awaitable[T]) -> T:
    """Await it, for as long as anything may take."""
    async with asyncio.timeout(bridges.SECONDS):
        return await awaitable


class Neighbour:
    """Somebody else's session, and a producer that pushes to it."""

    def __init__(self, user: str, screen: Client, producer: Producer) -> None:
        self.user = user
        self.screen = screen
        self._producer = producer

    async def is_well(self) -> float:
        """A push to it arrives and is proven; returns the seconds from publishing it to its receipt."""
        loop = asyncio.get_running_loop()
        push_id = f"well-{uuid.uuid4().hex}"
        began = loop.time()
        body = json.dumps(bridges.request(self.user, push_id)).encode()
        [receipt] = await self._producer.request(body, bridges.SECONDS)
        seconds = loop.time() - began
        assert (receipt["push_id"], receipt["outcome"]) == (push_id, "received")
        assert (await self.screen.read_json())["id"] == push_id
        return seconds


@asynccontextmanager
async def neighbour(port: int, amqp_url: str, user: str = "neighbour") -> AsyncIterator[Neighbour]:
    """A session of this user that reads all it gets; at the end one more push to it arrives and is proven."""
    async with (
        client(port, bridges.token(user), subprotocols=("bridge.v1.json",)) as screen,
        Producer.connect(amqp_url) as producer,
    ):
        assert (await screen.read_json())["type"] == "welcome"
        made = Neighbour(user, screen, producer)
        yield made
        await made.is_well()
