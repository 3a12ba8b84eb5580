"""`bridge check` opens and declares at the broker as much at once as `bridge serve`, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from bridge.adapters.amqp import limits as amqp_limits
from bridge.adapters.amqp.limits import CHANNELS, OWN_QUEUES
from bridge.adapters.amqp.topology import ONE
from bridge.adapters.finding import Finding
from bridge.devservers import Servers
from tests.support.amqp import declare
from tests.support.bridges import Process, get, process, publish, request
from tests.support.broker_settings import limit_user, limit_vhost, own_user
from tests.support.check_command import broker_findings, broker_objects, run_check


@pytest.fixture
def user(servers: Servers, vhost: str) -> Iterator[str]:
    """The URL of the vhost for a user of its own, on whom limits may be set."""
    with own_user(servers, vhost) as url:
        yield url


async def failures(url: str) -> list[Finding]:
    return [f for f in await broker_findings(url) if f.level == "fail"]


async def refused(url: str) -> Finding:
    """The one failure of a limit. Half a second of tries is enough: nothing was closed that still counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amqp_limits, "CLOSING", 0.5)
        (failure,) = await failures(url)
    return failure


async def test_a_vhost_with_too_few_connections_is_a_failure_in_the_brokers_words(
    servers: Servers, user: str
) -> None:
    limit = 2
    limit_vhost(servers, user, max_connections=limit)
    failure = await refused(user)
    assert failure.what == "limits"
    assert f"has {len(CHANNELS)} connections at once, and got {limit}: NOT_ALLOWED - " in failure.words
    assert f"connection limit ({limit}) is reached" in failure.words
    assert "max-connections" in failure.words
    limit_vhost(servers, user, max_connections=len(CHANNELS))
    assert await failures(user) == []


async def test_a_user_with_too_few_connections_is_a_failure_in_the_brokers_words(
    servers: Servers, user: str
) -> None:
    limit_user(servers, user, max_connections=2)
    failure = await refused(user)
    assert "user connection limit (2) is reached" in failure.words
    assert f"set_user_limits {urlsplit(user).username}" in failure.words
    limit_user(servers, user, max_connections=len(CHANNELS))
    assert await failures(user) == []


@pytest.mark.parametrize("limit", [1, sum(CHANNELS.values()) - 1])
async def test_a_user_with_too_few_channels_is_a_failure_in_the_brokers_words(
    servers: Servers, user: str, limit: int
) -> None:
    limit_user(servers, user, max_channels=limit)
    failure = await refused(user)
    assert failure.what == "limits"
    assert f"has {sum(CHANNELS.values())} channels at once, and got {limit}: NOT_ALLOWED - " in failure.words
    assert "max-channels" in failure.words
    limit_user(servers, user, max_channels=sum(CHANNELS.values()))
    assert await failures(user) == []


@pytest.mark.parametrize("declared", [False, True])
async def test_a_vhost_with_too_few_queues_is_a_failure_in_the_brokers_words(
    servers: Servers, user: str, declared: bool
) -> None:
    enough = len(ONE.queues) + 1 + OWN_QUEUES
    if declared:
        await declare(user)
    limit = enough - 1
    limit_vhost(servers, user, max_queues=limit)
    before = broker_objects(servers, user)
    failure = await refused(user)
    assert f"({limit}) is reached" in failure.words
    assert "max-queues" in failure.words
    assert broker_objects(servers, user) == before
    limit_vhost(servers, user, max_queues=enough)
    assert await failures(user) == []


async def test_a_limit_is_the_exit_code_and_serve_says_the_same(
    servers: Servers, user: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    limit_vhost(servers, user, max_queues=2)
    assert await asyncio.to_thread(run_check, user, database) == 1
    assert "fail  limits" in capsys.readouterr().out
    served = Process(user, database)
    await served.start()
    try:
        async with asyncio.timeout(20):
            while "queue limit in vhost" not in str(causes := await served.ready(503)):
                await asyncio.sleep(0.05)
        assert "is different" not in str(causes)
        limit_vhost(servers, user, max_queues=6)
        await served.ready()
        assert await served.stop() == 0
    finally:
        if served.alive:
            await served.kill()


async def test_a_bridge_that_runs_has_what_a_check_opens_and_no_more(
    servers: Servers, user: str, database: str
) -> None:
    limit_user(servers, user, max_connections=len(CHANNELS) + 1, max_channels=sum(CHANNELS.values()) + 2)
    limit_vhost(servers, user, max_queues=len(ONE.queues) + 1 + OWN_QUEUES)
    async with process(user, database) as served:
        await publish(user, request("u", "p"))
        body = json.dumps(request("u", "q")).encode()
        assert await posted(served.ops_port, body) == 200
        own = ("--ws-host", "127.0.0.1", "--ws-port", f"{served.ws_port}", "--ops-port", f"{served.ops_port}")
        # It has its connections, and there is no room for as many again.
        assert await asyncio.to_thread(run_check, user, database, "--node", "n1", *own) == 0
        assert (await get(served.ops_port, "/readyz"))[0] == 200
        listed = servers.rabbit.evaluate("rabbit_networking:connection_info_all([user, channels]).")
    name = urlsplit(user).username
    counts = [int(n) for n in re.findall(rf'{{user,<<"{name}">>}},{{channels,(\d+)}}', listed)]
    assert counts
    assert len(counts) <= len(CHANNELS)
    assert sum(counts) <= sum(CHANNELS.values())


async def posted(port: int, body: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/push?wait=5 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return int(answer.split()[1])
