"""The connect hook over HTTP: what is asked, and which answers are none, on a real server."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from benchmarks.listening import listening
from bridge.adapters.connect_hook import ANSWER_BYTES_MAX, HttpConnectHook, connect_hook
from bridge.cli import check
from bridge.config import Settings
from bridge.core.errors import ConnectHookFailed
from tests.support.hooks import Business, Handler, business, hanging

SECRET = "a secret for tests only: 0123456789"
LONG = 20.0


@asynccontextmanager
async def asking(
    handler: Handler | None = None, seconds: float = LONG, at_once: int = 10
) -> AsyncIterator[tuple[HttpConnectHook, Business]]:
    """A business system, and what asks it."""
    async with business(handler) as made, connect_hook(made.url, seconds=seconds, at_once=at_once) as hook:
        yield hook, made


async def failure(hook: HttpConnectHook, *, down: bool) -> str:
    """Why it has failed."""
    with pytest.raises(ConnectHookFailed) as caught:
        await hook.ask(b"{}")
    assert caught.value.down is down
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.cause


async def test_a_question_is_one_post_of_json_and_the_answer_comes_as_it_is() -> None:
    async with asking() as (hook, made):
        made.users["s=1"] = "u1"
        answer = await hook.ask(b'{"headers":{"cookie":"s=1"}}')
        assert answer.status == 200
        assert b'"u1"' in answer.body
        assert (await hook.ask(b'{"headers":{}}')).status == 401
        (first, second) = made.requests
        assert first.headers["Content-Type"] == "application/json"
        assert first.headers["Accept-Encoding"] == "identity"
        assert set(first.headers) == {
            "Host",
            "Accept",
            "Accept-Encoding",
            "Connection",
            "Content-Type",
            "Content-Length",
            "User-Agent",
        }
        assert first.headers["Connection"] == second.headers["Connection"] == "close"


async def test_cookies_that_the_hook_sets_are_not_kept_for_the_next_client() -> None:
    async def setting(request: web.Request) -> web.Response:
        answer = web.Response(status=401)
        answer.set_cookie("session", "of the first")
        return answer

    async with business(setting) as made:
        url = made.url.replace("127.0.0.1", "localhost")  # the library keeps no cookies of addresses anyway
        async with connect_hook(url, seconds=LONG, at_once=2) as hook:
            for _ in range(2):
                await hook.ask(b"{}")
        assert ["Cookie" in request.headers for request in made.requests] == [False, False]


async def test_user_and_password_of_the_address_are_sent_along() -> None:
    async with business() as made:
        url = made.url.replace("http://", "http://bridge:p%40ss@")
        async with connect_hook(url, seconds=LONG, at_once=2) as hook:
            await hook.ask(b'{"headers":{}}')
        assert made.requests[0].headers["Authorization"] == "Basic YnJpZGdlOnBAc3M="


async def test_a_redirect_is_an_answer_and_nobody_follows_it() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": str(request.url)})

    async with asking(elsewhere) as (hook, made):
        assert (await hook.ask(b"{}")).status == 307
        assert len(made.requests) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with asking() as (hook, _):
        assert (await hook.ask(b'{"headers":{}}')).status == 401


async def large(request: web.Request) -> web.Response:
    return web.Response(body=b" " * (ANSWER_BYTES_MAX + 1))


async def endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" " * 65536)


async def compressed(request: web.Request) -> web.Response:
    return web.Response(body=gzip.compress(b" " * 10_000_000), headers={"Content-Encoding": "gzip"})


async def cut(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "100"})
    await answer.prepare(request)
    await answer.write(b"{")
    assert request.transport is not None
    request.transport.abort()
    return answer


async def dropped(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@pytest.mark.parametrize(
    ("handler", "cause", "down"),
    [
        (large, "the answer has more than 65536 bytes", False),
        (endless, "the answer has more than 65536 bytes", False),
        (compressed, "the answer is compressed, which was not asked for", False),
        (cut, "ClientPayloadError", True),
        (dropped, "the connection was closed before the answer", True),
    ],
)
async def test_what_is_no_whole_plain_answer_is_a_failure(handler: Handler, cause: str, down: bool) -> None:
    async with asking(handler) as (hook, _):
        assert await failure(hook, down=down) == cause


async def dripping(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" ")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("handler", [hanging, dripping])
async def test_the_whole_answer_must_be_there_in_time(handler: Handler) -> None:
    async with asking(handler, seconds=0.3) as (hook, _):
        assert await failure(hook, down=True) == "no answer within 0.3 s"


async def test_what_comes_after_an_answer_is_nobody_elses_answer() -> None:
    said, served = asyncio.Event(), list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        if len(served) == 1:
            # A second answer, when the first has been read: on a kept connection it would be the next client's.
            await said.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await asyncio.Event().wait()  # the connection is kept

    async with (
        listening(serve) as port,
        connect_hook(f"http://127.0.0.1:{port}/", seconds=LONG, at_once=2) as hook,
    ):
        assert (await hook.ask(b"{}")).status == 401
        said.set()
        for _ in range(3):
            await asyncio.sleep(0)
            assert (await hook.ask(b"{}")).status == 401
    assert len(served) == 4


async def test_nobody_at_the_address_is_told_without_the_address() -> None:
    for url, cause in (
        ("http://127.0.0.1:1/secret?key=secret", "cannot connect: "),
        ("https://127.0.0.1:1/secret", "cannot connect: "),
    ):
        async with connect_hook(url, seconds=LONG, at_once=2) as hook:
            assert (await failure(hook, down=True)).startswith(cause)


async def test_no_more_connections_than_questions_at_once_are_open() -> None:
    async with asking(hanging, at_once=3) as (hook, made):
        tasks = [asyncio.create_task(hook.ask(b"{}")) for _ in range(6)]
        async with asyncio.timeout(LONG):
            while made.waiting < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        assert made.waiting == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- bridge check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [
        (401, "ok", "it answers, and refuses who shows nothing (401)"),
        (403, "ok", "it answers, and refuses who shows nothing (403)"),
        (200, "warn", "BRIDGE_CONNECT_URL: it lets in a client without a cookie or any other header"),
        (500, "warn", "BRIDGE_CONNECT_URL: it answered with 500, and 200, 401 or 403 is expected"),
    ],
)
async def test_bridge_check_says_whether_the_hook_answers(status: int, level: str, words: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status)

    async with business(answer) as made:
        settings = Settings(jwt_secret=SECRET, connect_url=made.url, node="n1", _env_file=None)
        found = await check._hook(settings)
        assert (found.level, found.words) == (level, words)
        assert made.questions == [{"headers": {}, "query": {}, "address": "", "node": "n1"}]
    gone = await check._hook(settings)
    assert gone.level == "warn"
    assert "the connect hook failed: cannot connect" in gone.words
