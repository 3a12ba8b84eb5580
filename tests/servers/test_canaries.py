"""No secret gets out: canaries in passwords and tokens, over both ports, the log, plug-ins, commands and rows."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql
from websockets.exceptions import InvalidStatus

from bridge.cli import entry as cli
from bridge.core import redaction
from bridge.devservers import Servers
from tests.support import bridges
from tests.support.clients import client

CANARY = "c4nary"
PASSWORD = "zq c4nary/\"'\\%é@:?#&="
"""Holds all that may be spelt differently somewhere."""
JWT_SECRET = "c4nary-jwt-secret-0123456789-abcdefghijkl"
OPS_TOKEN = "c4nary-ops-token"
NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bridge.config.common.SECRETS_DIR", str(tmp_path / "none"))


@pytest.fixture
def guarded(servers: Servers, vhost: str, database: str) -> Iterator[tuple[str, str]]:
    """The broker's URL and the database's DSN of a user whose password is the canary."""
    name = f"app_{secrets.token_hex(4)}"
    address, where = urlsplit(vhost), urlsplit(database)
    erlang = "<<" + ",".join(str(byte) for byte in PASSWORD.encode()) + ">>"
    servers.rabbit.evaluate(
        f'rabbit_auth_backend_internal:add_user(<<"{name}">>, {erlang}, <<"bridge">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{address.path[1:]}">>, '
        '<<".*">>, <<".*">>, <<".*">>, <<"bridge">>)'
    )
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            sql.SQL("create role {} superuser login password {}").format(
                sql.Identifier(name), sql.Literal(PASSWORD)
            )
        )
    written = f"{name}:{quote(PASSWORD, safe='')}"
    yield (
        f"amqp://{written}@{address.hostname}:{address.port}{address.path}",
        f"postgresql://{written}@{where.hostname}:{where.port}{where.path}",
    )
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(sql.SQL("drop owned by {0} cascade; drop role {0}").format(sql.Identifier(name)))
    servers.rabbit.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"bridge">>)')


async def answer(port: int, request: str) -> bytes:
    """All that comes back for these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        async with asyncio.timeout(bridges.SECONDS):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def requests(token: str) -> list[str]:
    """What a client may send that holds a token, right, wrong, and misshapen."""
    paths = [
        "/livez",
        "/readyz",
        "/metrics",
        "/status",
        "/v1/pushes/p1",
        "/v1/outcomes?x=1",
        "/v1/recall",
        "/none",
    ]
    bearer = f"Authorization: Bearer {token}\r\n"
    close = "Connection: close\r\n"
    return [
        *(f"GET {path}?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n{close}\r\n" for path in paths),
        *(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}{close}\r\n"
            for path in paths
            if "out" not in path
        ),
        f"POST /v1/push HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}{close}Content-Type: application/json\r\n"
        f"Content-Length: 2\r\n\r\n[]",
        f"{token}\r\n\r\n",
        f"GET /ws?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\n{close}{token}\r\n\r\n",
        f"GET /ws?token={token} HTTP/9.{token}\r\n\r\n",
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Header {token}: x\r\n\r\n",
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {token}\r\n\r\n",
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: {token}\r\n\r\n",
        f"GET /ws?token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: close, {token}\r\n\r\n",
    ]


async def logged_rows(dsn: str) -> str:
    """Every table of the log, as text."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        tables = ("delivery_log", "push_content", "node", "schema_version")
        found = []
        for table in tables:
            cursor = await conn.execute(sql.SQL("select t::text from {} t").format(sql.Identifier(table)))
            found += [str(row[0]) for row in await cursor.fetchall()]
    return "\n".join(found)


async def test_no_canary_leaves_a_bridge_that_works(
    guarded: tuple[str, str], database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, dsn = guarded
    monkeypatch.setattr(bridges, "SECRET", JWT_SECRET)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent.parent.parent))
    log = tmp_path / "log"
    token = bridges.token("u1")
    answers: list[bytes] = []
    more: dict[str, object] = {
        "log_level": "debug",
        "ops_token": OPS_TOKEN,
        "hooks": "tests.support.leaky_plugins:Hooks",
        "error_handler": "tests.support.leaky_plugins:Errors",
        "log": log,
    }
    async with bridges.process(url, dsn, **more) as p:
        async with client(p.ws_port, token) as opened:
            await bridges.publish(url, bridges.request("u1", "p1"), {"id": "p2", "to": {"user": 7}})
            await opened.read()
            for given in (f"{CANARY}.{CANARY}.x", token[:-2], "x"):
                with pytest.raises(InvalidStatus) as refused:
                    async with client(p.ws_port, f"{given}&access_token={CANARY}"):
                        pass
                answers.append(bytes(refused.value.response.body or b""))
            await bridges.final_rows(database, 2)
        for port in (p.ws_port, p.ops_port):
            for given in (OPS_TOKEN, token, f"{CANARY}-other"):
                for request in requests(given):
                    answers.append(await answer(port, request))
        rows = await logged_rows(database)
        assert await p.stop() == 0
    text = log.read_text()
    assert "REPORTED hooks.on_open" in text
    assert "connecting to amqp://" in text
    for said in (text, rows, *(a.decode(errors="replace") for a in answers)):
        assert CANARY not in said, said
        assert token.rpartition(".")[2] not in said, said


@pytest.mark.parametrize("broken", ["refused", "down"])
async def test_no_canary_leaves_a_bridge_that_cannot_start(
    broken: str, vhost: str, database: str, tmp_path: Path
) -> None:
    written = f"nobody:{quote(PASSWORD, safe='')}"
    log = tmp_path / "log"
    url, dsn = f"amqp://{written}@{NOWHERE}/v", f"postgresql://{written}@{NOWHERE}/db"
    if broken == "refused":
        broker, db = urlsplit(vhost), urlsplit(database)
        url = f"amqp://{written}@{broker.hostname}:{broker.port}/v"
        dsn = f"postgresql://{written}@{db.hostname}:{db.port}{db.path}"
    p = bridges.Process(url, dsn, log_level="debug", log=log)
    await p.start()
    try:
        causes = await p.ready(503)
        async with asyncio.timeout(bridges.SECONDS):
            while "not answered" in causes[0] or "connecting" in causes[1]:
                causes = await p.ready(503)
        public = await bridges.get(p.ws_port, "/readyz")
        ops = await bridges.get(p.ops_port, "/status")
    finally:
        assert await p.stop() == 0
    if broken == "refused":
        assert "starting: the database refused the connection: " in causes[0]
        assert "password authentication failed" in causes[0]
        assert causes[1].startswith("broker: ACCESS_REFUSED - Login was refused")
        assert causes[1].endswith("(403)")
        assert "is unavailable" not in log.read_text() + str(causes)
    assert public == (503, b'{"ready": false, "causes": ["starting", "broker"]}\n')
    for said in (log.read_text(), str(causes), str(public), str(ops)):
        assert CANARY not in said


COMMANDS = [
    ["check"],
    ["why", "p1"],
    ["audit"],
    ["db", "upgrade"],
    ["db", "status"],
    ["db", "sql"],
    ["push", "--user", "u", "--data", "1"],
    ["tail"],
    ["dead", "list"],
    ["dead", "show", "p1"],
    ["dead", "replay", "--all"],
    ["dead", "purge", "--all", "--yes"],
    ["replay", "--where", "user=u"],
]


@pytest.mark.parametrize("broken", ["refused", "down"])
def test_no_canary_leaves_a_command_and_a_refused_login_is_called_that(
    broken: str,
    vhost: str,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    written = f"nobody:{quote(PASSWORD, safe='')}"
    broker, db = urlsplit(vhost), urlsplit(database)
    places = (
        [f"{broker.hostname}:{broker.port}", f"{db.hostname}:{db.port}"]
        if broken == "refused"
        else [NOWHERE] * 2
    )
    monkeypatch.setenv("BRIDGE_AMQP_URL", f"amqp://{written}@{places[0]}/v")
    monkeypatch.setenv("BRIDGE_POSTGRES_DSN", f"postgresql://{written}@{places[1]}{db.path}")
    monkeypatch.setenv("BRIDGE_JWT_SECRET", JWT_SECRET)
    monkeypatch.setenv("BRIDGE_LOG_LEVEL", "debug")
    for words in COMMANDS:
        assert cli.main(words) == 3, words
        said = capfd.readouterr()
        text = said.out + said.err
        assert CANARY not in text
        assert "Traceback" not in text
        if broken == "refused":
            assert "is unavailable" not in text, text
            assert "refuse" in text.lower() or "authentication failed" in text, text


def test_a_defect_is_shown_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def defect(*_: object) -> None:
        raise ValueError(f"invalid literal: {PASSWORD!r} or {PASSWORD}")

    monkeypatch.setenv("BRIDGE_POSTGRES_DSN", f"postgresql://app:{quote(PASSWORD, safe='')}@{NOWHERE}/db")
    monkeypatch.setattr("bridge.cli.db.db_status", defect)
    assert cli.main(["db", "status"]) == 1
    said = capfd.readouterr().err
    assert "ValueError: invalid literal: '***' or ***" in said
    assert CANARY not in said


def test_the_environment_of_libpq_is_known_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.config import CommonSettings

    monkeypatch.setenv("PGPASSWORD", "c4nary-of-libpq")
    CommonSettings()
    assert redaction.redact("x c4nary-of-libpq y") == "x *** y"
    assert os.environ["PGPASSWORD"]
