"""`bridge check` finds what keeps `bridge serve` from its work, says what mends it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import psycopg
import pytest

from bridge.adapters.amqp import check as amqp_check
from bridge.adapters.amqp.check import findings
from bridge.adapters.amqp.topology import DeclareMode
from bridge.cli import main
from bridge.devservers import Servers
from tests.support.amqp import declare
from tests.support.bridges import final_rows, process, publish, request
from tests.support.broker_settings import memory_alarm, topic_permissions
from tests.support.check_command import broker_findings, broker_objects, run_check
from tests.support.queues import listening, ready_messages


@asynccontextmanager
async def on(vhost: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(vhost) as connection, connection.channel() as channel:
        yield channel


async def test_a_queue_of_another_type_is_a_failure_with_the_command_that_mends_it(vhost: str) -> None:
    async with on(vhost) as channel:
        await channel.declare_queue("push.requests", durable=True)
    (failure,) = await broker_findings(vhost)
    assert failure.level == "fail"
    assert failure.words.startswith("queue push.requests exists with another x-")
    assert f"rabbitmqctl delete_queue -p {urlsplit(vhost).path[1:]} push.requests" in failure.words


async def test_an_exchange_of_another_type_is_a_failure_with_the_command_that_mends_it(vhost: str) -> None:
    async with on(vhost) as channel:
        await channel.declare_exchange("push", "direct", durable=True)
    (failure,) = await broker_findings(vhost)
    assert "exchange push exists with another type" in failure.words
    assert "delete exchange name=push" in failure.words


@pytest.mark.parametrize("declared", [False, True], ids=["before the first start", "after it"])
async def test_a_user_who_may_not_configure_is_told_the_permissions_that_are_needed(
    servers: Servers, vhost: str, declared: bool
) -> None:
    if declared:
        await declare(vhost)
    _permit(servers, vhost, "^$", ".*", ".*")
    failures = await broker_findings(vhost)
    own = ("push.taker", "push.node.")
    assert {f.level for f in failures if not any(name in f.words for name in own)} == {"fail"}
    named = " ".join(f.words for f in failures)
    for name in ("push.requests", "push.fallen", "push.dead", "push.control", "push.outcomes", *own):
        assert name in named
    assert "rabbitmqctl set_permissions -p " in failures[0].words
    passive = await broker_findings(vhost, DeclareMode.PASSIVE)
    assert {f.level for f in passive} == ({"warn"} if declared else {"fail", "warn"})


async def test_a_user_who_may_not_read_or_write_is_told_of_what(servers: Servers, vhost: str) -> None:
    await declare(vhost)
    _permit(servers, vhost, ".*", "^$", "^$")
    words = [f.words for f in await broker_findings(vhost)]
    for part in (
        "read queue push.requests",
        "read queue push.fallen",
        "read queue push.control",
        "read queue push.taker",
        "read queues whose name begins with push.node.",
        "write to exchange push.dead",
        "write to exchange push.outcomes",
        "write to exchange push:",
        "bind push.requests to push",
        "publish to the default exchange",
    ):
        assert any(part in w for w in words), part


@pytest.mark.parametrize(
    ("exchange", "write", "named", "level"),
    [
        ("push.outcomes", "^(acked|received)[.]", "expired.message", "fail"),
        ("push.dead", "^poison$", "not_json", "fail"),
        ("push", "^user[.]", "bridge.producer", "fail"),
    ],
)
async def test_a_user_who_may_not_publish_some_routing_keys_is_told_which_and_what_mends_it(
    servers: Servers, vhost: str, exchange: str, write: str, named: str, level: str
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, exchange, write)
    async with listening(vhost, exchange) as seen:
        (finding,) = await broker_findings(vhost)
        assert finding.level == level
        assert f"may not publish to exchange {exchange} with routing key" in finding.words
        assert named in finding.words
        assert "acked.message" not in finding.words
        command = finding.words.partition("rabbitmqctl ")[2].replace("'", "").split(" ")
        servers.rabbit.ctl(*command)
        assert await broker_findings(vhost) == []
        assert seen.empty()


async def test_outcome_events_that_are_switched_off_need_no_right(servers: Servers, vhost: str) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, "push.outcomes", "^$")
    looked = await findings(vhost, DeclareMode.ACTIVE, "here", told=())
    assert [f for f in looked if f.level != "ok"] == []


async def test_the_permissions_that_are_named_are_enough(servers: Servers, vhost: str) -> None:
    configure, write, read = (p.strip("'") for p in amqp_check.PERMISSIONS.split(" "))
    _permit(servers, vhost, configure, write, read)
    assert await broker_findings(vhost) == []
    await declare(vhost)
    assert await broker_findings(vhost) == []


@pytest.mark.parametrize("declared", [False, True])
async def test_a_check_leaves_nothing_behind(
    servers: Servers, vhost: str, database: str, declared: bool
) -> None:
    if declared:
        await declare(vhost)
        async with on(vhost) as channel:
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), "push.requests")
    before = broker_objects(servers, vhost)
    assert await asyncio.to_thread(run_check, vhost, database) == 0
    assert broker_objects(servers, vhost) == before
    if declared:
        assert await ready_messages(vhost, "push.requests") == 1


async def test_a_broker_that_blocks_publishers_is_named(servers: Servers, vhost: str) -> None:
    await declare(vhost)
    servers.rabbit.evaluate(memory_alarm(True))
    try:
        (warning,) = await broker_findings(vhost)
    finally:
        servers.rabbit.evaluate(memory_alarm(False))
    assert warning.level == "warn"
    assert "the broker blocks publishers: low on memory" in warning.words


async def test_a_port_that_is_in_use_is_a_failure_unless_this_node_has_it(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ("--ws-host", "127.0.0.1", "--ws-port", port)
        assert await asyncio.to_thread(run_check, vhost, database, *words) == 2
    shown = capsys.readouterr().out
    assert f"fail  ports     BRIDGE_WS_PORT: cannot listen on 127.0.0.1:{port}: " in shown
    assert f"ss -ltnp 'sport = :{port}'" in shown
    async with process(vhost, database) as serving:
        own = (
            "--ws-host",
            "127.0.0.1",
            "--ws-port",
            f"{serving.ws_port}",
            "--ops-port",
            f"{serving.ops_port}",
        )
        assert await asyncio.to_thread(run_check, vhost, database, "--node", "n1", *own) == 0
        shown = capsys.readouterr().out
        assert f"ok    ports     {serving.ws_port} is in use by node n1, which runs" in shown
        assert "a bridge takes the pushes already" in shown
        assert await asyncio.to_thread(run_check, vhost, database, "--node", "n2", *own) == 2


async def test_a_node_that_runs_is_known_by_a_credential_that_may_read(
    vhost: str, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "credentials"
    secret = secrets.token_urlsafe(32)
    file.write_text(f"shop push push-{secret}\ngrafana read read-{secret}\n")
    async with process(vhost, database, ops_credentials=str(file)) as serving:
        ports = (
            "--ws-host",
            "127.0.0.1",
            "--ws-port",
            f"{serving.ws_port}",
            "--ops-port",
            f"{serving.ops_port}",
        )
        own = ("--node", "n1", "--ops-credentials", str(file), *ports)
        assert await asyncio.to_thread(run_check, vhost, database, *own) == 0
    assert f"ok    ports     {serving.ws_port} is in use by node n1, which runs" in capsys.readouterr().out


def test_a_plug_in_that_can_not_be_used_is_a_failure(
    vhost: str,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ours_for_check.py").write_text("class Empty:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for words, problem in (
        (("--hooks", "nowhere:Hooks"), "BRIDGE_HOOKS: nowhere:Hooks: there is no module nowhere"),
        (("--hooks", "ours_for_check:Empty"), "needs one or more of on_open"),
        (("--delivery-log", "postgres,ours_for_check:Empty"), "needs a method: async def record"),
        (("--error-handler", "ours_for_check:Missing"), "has no Missing"),
    ):
        assert run_check(vhost, database, *words) == 2, words
        assert problem in capsys.readouterr().out


def test_a_schema_that_is_newer_than_the_program_is_told_as_such(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("insert into schema_version values (9001, '9001_future.sql', 'x', now())")
    assert run_check(vhost, database) == 0
    assert "warn  schema    the schema is at version 9001, newer than" in capsys.readouterr().out
    assert main(["db", "status", "--postgres-dsn", database]) == 0
    assert ", by a newer program" in capsys.readouterr().out.splitlines()[-1]
    assert main(["db", "upgrade", "--postgres-dsn", database]) == 0
    assert "nothing to do: the schema is at version 9001, newer than" in capsys.readouterr().out


async def test_a_bridge_that_finds_a_newer_schema_says_so_and_serves(
    vhost: str, database: str, tmp_path: Path
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("insert into schema_version values (9001, '9001_future.sql', 'x', now())")
    async with process(vhost, database, log=tmp_path / "log") as serving:
        await serving.says("the schema is at version 9001, newer than")
        await publish(vhost, request("u1", "p1"))
        await final_rows(database, 1)
        assert sum(message.startswith("the schema is at") for message in serving.logged()) == 1


def _permit(servers: Servers, vhost: str, configure: str, write: str, read: str) -> None:
    address = urlsplit(vhost)
    user = address.username or ""
    rights = ", ".join(f'<<"{right}">>' for right in (configure, write, read))
    servers.rabbit.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{address.path[1:]}">>, {rights}, <<"test">>).'
    )
