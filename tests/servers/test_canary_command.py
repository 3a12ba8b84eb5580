"""`bridge canary`: a push each second through everything, and which step fails when one does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.request import urlopen

import aio_pika
import psycopg
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from benchmarks.chaos.proxy import Proxy
from benchmarks.ports import reserved_port
from bridge.cli.canary import canary
from bridge.config import CommonSettings
from bridge.core.errors import SettingsError
from bridge.operator.canary import Canary, Result, Try
from bridge.publisher import Publisher
from tests.support.bridges import SECRET, bridge, final_rows, rows, settings, token


async def run(at: CommonSettings, port: int, **more: object) -> int:
    options = {
        "url": f"ws://127.0.0.1:{port}/ws",
        "token_file": None,
        "every": 0.01,
        "timeout": 10.0,
        "count": 3,
        "metrics": None,
        "as_json": False,
        **more,
    }
    return await canary(at, **options)  # type: ignore[arg-type]


async def test_a_good_push_was_shown_acked_and_has_its_row(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = settings(vhost, database)
    async with bridge(vhost, database) as running:
        assert await run(at, running.ws_port, as_json=True) == 0
        tries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [one["result"] for one in tries] == ["ok", "ok", "ok"]
        for one in tries:
            assert 0 < one["shown"] <= one["proven"] < 10
        async with await psycopg.AsyncConnection.connect(database) as connection:
            cursor = await connection.execute(
                "select push_id, outcome, event, app_id from delivery order by 1"
            )
            rows = await cursor.fetchall()
        assert rows == sorted((one["push_id"], "acked", "bridge.canary", "bridge-canary") for one in tries)

        assert await run(at, running.ws_port) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert "3 of 3 pushes shown and proven; published to receipt: median " in line


async def test_its_page_for_prometheus_counts_by_result(vhost: str, database: str) -> None:
    port = reserved_port()
    seen: list[str] = []

    def page() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    async with bridge(vhost, database) as running:
        at = settings(vhost, database)
        running_canary = asyncio.create_task(
            run(at, running.ws_port, count=None, metrics=("127.0.0.1", port), as_json=True)
        )
        async with asyncio.timeout(30):
            while not seen or 'result="ok"} 0.0' in seen[-1] or "proven_seconds_count 0.0" in seen[-1]:
                try:
                    seen.append(await asyncio.to_thread(page))
                except OSError:
                    await asyncio.sleep(0.01)  # it is not listening yet
        running_canary.cancel()
        await asyncio.gather(running_canary, return_exceptions=True)
    assert 'bridge_canary_pushes_total{result="not_shown"} 0.0' in seen[-1]
    assert "bridge_canary_last_success_timestamp_seconds 1." in seen[-1]


@pytest.fixture
async def parts(vhost: str, database: str) -> AsyncIterator[tuple[Proxy, AsyncGenerator[Try]]]:
    """A bridge that sessions reach through a proxy, and a canary with tries that last half a second at most."""
    async with (
        bridge(vhost, database) as running,
        Proxy("127.0.0.1", running.ws_port).listening() as proxy,
        Publisher(vhost, retry_for=2.0) as publisher,
    ):
        bird = Canary(publisher, f"ws://127.0.0.1:{proxy.port}/ws", lambda: token("canary"), 2.0, 3600)
        async with aclosing(bird.tries(0.01)) as tries:
            yield proxy, tries


async def test_a_session_that_is_cut_off_and_one_that_falls_silent_are_named_and_opened_again(
    parts: tuple[Proxy, AsyncGenerator[Try]],
) -> None:
    proxy, tries = parts
    assert (await anext(tries)).result is Result.OK
    proxy.refuse = True
    proxy.reset()
    seen = [await anext(tries), await anext(tries)]
    while seen[-1].result is not Result.NO_SESSION:
        seen.append(await anext(tries))
    assert {one.result for one in seen} <= {Result.NOT_SHOWN, Result.NO_SESSION}
    assert all(one.why for one in seen)
    proxy.heal()
    assert (await anext(tries)).result is Result.OK
    proxy.silence()
    silent: Try = await anext(tries)
    assert silent.result is Result.NOT_SHOWN
    assert silent.shown is None
    assert silent.why


async def test_what_the_broker_does_not_take_is_called_that(database: str, vhost: str) -> None:
    async with bridge(vhost, database) as running:
        connection = await aio_pika.connect(vhost)
        async with connection, connection.channel() as channel:
            queue = await channel.get_queue("push.requests", ensure=False)
            await queue.unbind("push", "#")
            async with Publisher(vhost) as publisher:
                url = f"ws://127.0.0.1:{running.ws_port}/ws"
                bird = Canary(publisher, url, lambda: token("canary"), 2.0, 3600)
                async with aclosing(bird.tries(0.01)) as tries:
                    one = await anext(tries)
        assert one.result is Result.NOT_PUBLISHED
        assert "push.requests" in one.why or "route" in one.why.lower(), one.why
        assert await rows(database) == []


async def test_without_a_bridge_it_says_so_and_ends_with_1(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = reserved_port()
    assert await run(settings(vhost, database), port, count=2) == 1
    first, second, summary = capsys.readouterr().out.splitlines()
    assert "no_session: ws://127.0.0.1" in first
    assert "no_session" in second
    assert summary.endswith("0 of 2 pushes shown and proven")


async def test_a_token_may_come_from_a_file_and_a_secret_that_is_missing_is_named(
    vhost: str, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(token("watcher") + "\n")
    without = CommonSettings(amqp_url=vhost, _env_file=None)
    async with bridge(vhost, database) as running:
        assert await run(without, running.ws_port, token_file=str(file), count=1) == 0
        with pytest.raises(SettingsError, match="BRIDGE_JWT_SECRET"):
            await run(without, running.ws_port)
        with pytest.raises(SettingsError, match="--token-file"):
            await run(without, running.ws_port, token_file=str(tmp_path / "none"))


async def test_a_token_file_that_is_away_for_a_moment_makes_failures_and_no_end(
    vhost: str, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"

    def read() -> str:
        if not file.exists():
            raise SettingsError("--token-file", "it is not there")
        return file.read_text()

    async with bridge(vhost, database) as running, Publisher(vhost) as publisher:
        bird = Canary(publisher, f"ws://127.0.0.1:{running.ws_port}/ws", read, 5.0, 3600)
        async with aclosing(bird.tries(0.01)) as tries:
            assert (await anext(tries)).result is Result.NO_SESSION
            file.write_text(token("watcher"))
            assert (await anext(tries)).result is Result.OK


async def test_an_old_session_is_opened_anew_between_two_pushes(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as running, Publisher(vhost) as publisher:
        url = f"ws://127.0.0.1:{running.ws_port}/ws"
        bird = Canary(publisher, url, lambda: token("watcher"), 5.0, 0.0)
        async with aclosing(bird.tries(0.01)) as tries:
            assert [(await anext(tries)).result for _ in range(3)] == [Result.OK] * 3
        async with await psycopg.AsyncConnection.connect(database) as connection:
            cursor = await connection.execute("select count(*) from session where user_id = 'watcher'")
            assert await cursor.fetchone() == (3,)


@pytest.mark.parametrize("frame", ['{"type":"hello"}', "[]", "17", '{"type":"welcome","user":7}', "no JSON"])
async def test_another_server_than_a_bridge_is_no_session(vhost: str, frame: str) -> None:
    async def greet(connection: ServerConnection) -> None:
        await connection.send(frame)
        await connection.wait_closed()

    async with serve(greet, "127.0.0.1", 0, subprotocols=[Subprotocol("bridge.v1.json")]) as server:
        port = server.sockets[0].getsockname()[1]
        async with Publisher(vhost) as publisher:
            bird = Canary(publisher, f"ws://127.0.0.1:{port}/ws", lambda: "token", 2.0, 3600)
            async with aclosing(bird.tries(0.01)) as tries:
                one = await anext(tries)
    assert (one.result, bool(one.why)) == (Result.NO_SESSION, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_who_interrupts_it_gets_the_summary(vhost: str, database: str, number: signal.Signals) -> None:
    async with bridge(vhost, database) as running:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bridge.cli", "canary", "--every", "0.01"),
            *("--url", f"ws://127.0.0.1:{running.ws_port}/ws"),
            env={**os.environ, "BRIDGE_AMQP_URL": vhost, "BRIDGE_JWT_SECRET": SECRET},
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            await final_rows(database, 2)
            process.send_signal(number)
            out, _ = await process.communicate()
        assert process.returncode == 130
        assert b" pushes shown and proven; published to receipt: median " in out.splitlines()[-1]
