"""The examples of examples/hello do what their page says, and so does the sample of a backend that listens."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import playwright
import pytest

from tests.project.test_samples import samples
from tests.servers.test_inbound import able
from tests.support.bridges import SECONDS, bridge, publish, request, token
from tests.support.browser import launched, opened
from tests.support.queues import listening

ROOT = Path(__file__).parent.parent.parent
HELLO = ROOT / "examples" / "hello"
NODE = Path(playwright.__file__).parent / "driver" / "node"
"""Newer than Debian's, which has no WebSocket."""
CLIENTS = {"Python": (sys.executable, "hello.py"), "Node": (str(NODE), "hello.mjs")}


@asynccontextmanager
async def started(*words: str, **more: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE, env=more or None)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: Process) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    async with asyncio.timeout(SECONDS):
        return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("language", CLIENTS)
async def test_a_client_prints_pushes_and_says_hello(language: str, vhost: str, database: str) -> None:
    runner, file = CLIENTS[language]
    mine = token("u42", publish=["hello"])
    async with bridge(vhost, database) as made, listening(vhost, "push.inbound", key="hello") as seen:
        await able(made)
        async with started(runner, str(HELLO / file), mine, f"ws://127.0.0.1:{made.ws_port}/ws") as process:
            assert await line(process) == "welcome u42"
            assert await line(process) == "ok"
            message = await seen.get()
            assert message["body"] == f'"from {language}"'.encode()
            await publish(vhost, request("u42", "p1", data="hello, u42", event="greeting"))
            assert await line(process) == "push greeting hello, u42"


async def test_what_is_pasted_into_a_console_prints_pushes_and_says_hello(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as made, listening(vhost, "push.inbound", key="hello") as seen:
        await able(made)
        pasted = (HELLO / "console.js").read_text()
        for word, real in (("TOKEN", token("u42", publish=["hello"])), ("8181", str(made.ws_port))):
            assert pasted.count(word) == 1
            pasted = pasted.replace(word, real)
        first, _, then = pasted.partition("// Once it is welcomed:")
        async with launched() as browser, opened(browser, f"http://127.0.0.1:{made.ops_port}/demo") as page:
            said: asyncio.Queue[str] = asyncio.Queue()
            page.on("console", lambda message: said.put_nowait(message.text))

            async def next_with(words: str) -> None:
                async with asyncio.timeout(SECONDS):
                    while words not in await said.get():
                        pass

            await page.evaluate(f"{first}; null")
            await next_with('"type":"welcome"')
            await page.evaluate(f"{then}; null")
            await next_with('{"type":"ok","ref":1}')
            assert (await seen.get())["body"] == b'"from a console"'
            await publish(vhost, request("u42", "p1"))
            await next_with('"type":"push","id":"p1"')
            await page.evaluate("bridge.close()")


async def test_the_sample_of_a_backend_prints_who_says_what(
    vhost: str, database: str, tmp_path: Path
) -> None:
    (sample,) = (s for s in samples("docs/publishing.md", "python") if "push.inbound" in s)
    assert sample.count("chat.*") == 1
    file = tmp_path / "listen.py"
    file.write_text(sample.replace("chat.*", "hello"))
    async with bridge(vhost, database) as made:
        address = f"ws://127.0.0.1:{made.ws_port}/ws"
        variables = {"BRIDGE_AMQP_URL": vhost, "PYTHONUNBUFFERED": "1"}
        async with started(sys.executable, str(file), **variables) as backend:
            async with asyncio.timeout(SECONDS):
                answer = "error nobody_listens"
                while answer.startswith("error"):
                    async with started(
                        sys.executable, str(HELLO / "hello.py"), token("u42", publish=["hello"]), address
                    ) as client:
                        assert await line(client) == "welcome u42"
                        answer = await line(client)
            assert answer == "ok"
            assert await line(backend) == "u42 hello from Python"
