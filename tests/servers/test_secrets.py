"""No password and no token leaves the process: canaries in every place, over all commands and both ports."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from benchmarks.ports import reserved_port
from bridge.adapters.tokens import make_token
from bridge.core import redaction
from bridge.devservers import Servers
from tests.support.bridges import SECRET, get, publish, request, rows
from tests.support.clients import SECONDS, client

PASSWORD = "c4nary/P@ss w%rd"
"""The password of both servers."""
KEY = "c4nary-key-that-signs-the-tokens-of-users"
OPS_TOKEN = "c4nary-token-of-the-ops-port"
CANARY = "c4nary"

COMMANDS = [
    ("serve",),
    ("check",),
    ("db", "upgrade"),
    ("db", "status"),
    ("db", "sql"),
    ("push", "--user", "u1", "--text", "x", "--wait", "1"),
    ("tail", "--count", "1"),
    ("why", "p1"),
    ("replay", "--where", "user=u1"),
    ("dead", "list"),
    ("dead", "show", "p1"),
    ("dead", "replay", "--id", "p1"),
    ("dead", "purge", "--id", "p1"),
    ("audit",),
]


def environment(**settings: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BRIDGE_", "PG"))}
    ours = {f"BRIDGE_{name.upper()}": value for name, value in settings.items()}
    path = str(Path(__file__).parent.parent.parent)
    return {**inherited, **ours, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "BRIDGE_LOG_LEVEL": "debug"}


async def run(words: tuple[str, ...], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Run a command to its end; its exit code, and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.cli", *words),
        env=env,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(SECONDS * 3):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


class Account(NamedTuple):
    """A user of both servers whose password is the canary."""

    name: str
    amqp_url: str
    postgres_dsn: str


@contextmanager
def account(servers: Servers, vhost: str, database: str) -> Iterator[Account]:
    """An account that may do everything in this vhost and this database."""
    rabbit = servers.rabbit
    broker, dsn = urlsplit(vhost), urlsplit(database)
    place = broker.path[1:]
    name = f"user_{place}"
    secret = f"<<{','.join(map(str, PASSWORD.encode()))}>>"
    rights = ", ".join(['<<".*">>'] * 3)
    role = sql.Identifier(name)
    with ExitStack() as stack:
        add = f'rabbit_auth_backend_internal:add_user(<<"{name}">>, {secret}, <<"test">>).'
        rabbit.evaluate(add)
        remove = f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>).'
        stack.callback(rabbit.evaluate, remove)
        rabbit.evaluate(
            f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"{place}">>, {rights}, <<"test">>).'
        )
        admin = stack.enter_context(psycopg.connect(database, autocommit=True))
        admin.execute(sql.SQL("create role {} superuser login password {}").format(role, PASSWORD))
        for statement in ("drop role {}", "drop owned by {} cascade", "reassign owned by {} to current_user"):
            stack.callback(admin.execute, sql.SQL(statement).format(role))
        host = f"{name}:{quote(PASSWORD, safe='')}@127.0.0.1"
        yield Account(
            name,
            f"amqp://{host}:{rabbit.port}/{place}",
            f"postgresql://{host}:{dsn.port}{dsn.path}",
        )


class Serving:
    """`bridge serve` with all that it has printed."""

    def __init__(self, ws_port: int, ops_port: int) -> None:
        self.ws_port = ws_port
        self.ops_port = ops_port
        self.printed = ""


@asynccontextmanager
async def serving(env: dict[str, str], cwd: Path) -> AsyncIterator[Serving]:
    made = Serving(reserved_port(), reserved_port())
    ports = {"BRIDGE_WS_PORT": str(made.ws_port), "BRIDGE_OPS_PORT": str(made.ops_port)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.cli", "serve"),
        env={**env, **ports},
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    reading = asyncio.create_task(process.communicate())
    try:
        yield made
        process.terminate()
        async with asyncio.timeout(SECONDS * 3):
            out, _ = await reading
        made.printed = out.decode()
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait([reading])


async def answers(port: int, paths: tuple[str, ...]) -> str:
    """What a port says at each of these paths."""
    said = []
    for path in paths:
        status, body = await get(port, path)
        said.append(f"{status} {body.decode(errors='replace')}")
    return "\n".join(said)


async def until_ready(port: int, wanted: int) -> None:
    async with asyncio.timeout(SECONDS * 3):
        while True:
            try:
                if (await get(port, "/readyz"))[0] == wanted:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.05)


OPS = ("/livez", "/readyz", "/metrics", "/status", "/v1/pushes/p1", "/v1/outcomes?token=c4narytoken")
PUBLIC = ("/livez", "/readyz", "/nowhere", "/ws?token=c4narytoken")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
async def test_a_command_whose_addresses_cannot_be_read_says_so_and_nothing_of_them(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    bad = environment(
        amqp_url=f"amqp://app:{CANARY} {CANARY}%@h/",
        postgres_dsn=f"postgresql://app:{CANARY} {CANARY}%@h/db",
        jwt_secret=KEY,
    )
    code, printed = await run(words, bad, tmp_path)
    assert code == 2
    assert "BRIDGE_AMQP_URL" in printed
    assert "BRIDGE_POSTGRES_DSN" in printed
    assert "Traceback" not in printed
    assert CANARY not in printed


@pytest.mark.parametrize("words", [w for w in COMMANDS if w != ("serve",)], ids=" ".join)
async def test_a_command_that_is_not_let_in_says_so_without_the_password(
    words: tuple[str, ...], tmp_path: Path, vhost: str, database: str
) -> None:
    broker, dsn = urlsplit(vhost), urlsplit(database)
    wrong = f"nobody:{quote(PASSWORD, safe='')}@127.0.0.1"
    env = environment(
        amqp_url=f"amqp://{wrong}:{broker.port}{broker.path}",
        postgres_dsn=f"postgresql://{wrong}:{dsn.port}{dsn.path}",
        jwt_secret=KEY,
    )
    code, printed = await run(words, env, tmp_path)
    assert code == 3, printed
    assert "Traceback" not in printed
    assert CANARY not in printed


async def test_a_bridge_that_works_tells_no_secret(
    servers: Servers, vhost: str, database: str, tmp_path: Path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(f"grafana read {OPS_TOKEN}-that-may-only-read\n")
    with account(servers, vhost, database) as canary:
        env = environment(
            amqp_url=canary.amqp_url,
            postgres_dsn=canary.postgres_dsn,
            jwt_secret=KEY,
            ops_token=OPS_TOKEN,
            ops_credentials=str(credentials),
            node="n1",
            start_grace="0",
        )
        async with serving(env, tmp_path) as bridge:
            await until_ready(bridge.ops_port, 200)
            async with client(bridge.ws_port, make_token(KEY, "u1", 60)):
                pass
            said = await answers(bridge.ws_port, PUBLIC)
            said += await answers(bridge.ops_port, OPS)
            await publish(vhost, request("u1", "p1"))
            for words in COMMANDS[1:]:
                if words[0] != "tail":
                    _, printed = await run(words, env, tmp_path)
                    said += printed
            # Half of a file that is being written, with a secret that nobody has seen yet.
            credentials.write_text(f"grafana {CANARY}-0123456789-abcdefghijklmnopqrstuvwxyz")
            code, printed = await run(("check",), env, tmp_path)
            assert code == 2
            said += printed
        said += bridge.printed
        said += str(await rows(database))
    assert CANARY not in said


async def test_a_bridge_whose_servers_are_lost_tells_no_secret(
    servers: Servers, vhost: str, database: str, tmp_path: Path
) -> None:
    with account(servers, vhost, database) as canary:
        env = environment(
            amqp_url=canary.amqp_url, postgres_dsn=canary.postgres_dsn, jwt_secret=KEY, start_grace="0"
        )
        async with serving(env, tmp_path) as bridge:
            await until_ready(bridge.ops_port, 200)
            async with client(bridge.ws_port, make_token(KEY, "u1", 60)):
                servers.rabbit.evaluate(
                    f'rabbit_auth_backend_internal:change_password(<<"{canary.name}">>, <<"x">>, <<"test">>).'
                )
                with psycopg.connect(database, autocommit=True) as admin:
                    admin.execute(sql.SQL("alter role {} nologin").format(sql.Identifier(canary.name)))
                    admin.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s",
                        (canary.name,),
                    )
                servers.rabbit.evaluate(
                    '[rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections(),'
                    " proplists:get_value(user, rabbit_networking:connection_info(P, [user])) =:="
                    f' <<"{canary.name}">>].'
                )
                await until_ready(bridge.ops_port, 503)
                said = await answers(bridge.ws_port, PUBLIC) + await answers(bridge.ops_port, OPS)
        said += bridge.printed
    assert "Traceback" not in said
    assert CANARY not in said


async def test_strangers_hear_which_part_is_not_ready_and_no_more(
    vhost: str, database: str, tmp_path: Path
) -> None:
    port = reserved_port()
    env = environment(
        amqp_url=vhost, postgres_dsn=f"postgresql://someone@127.0.0.1:{port}/{CANARY}", jwt_secret=SECRET
    )
    async with serving(env, tmp_path) as bridge:
        await until_ready(bridge.ws_port, 503)
        public = await answers(bridge.ws_port, ("/readyz",))
        assert '"causes": ["starting"' in public
        assert str(port) not in public
        assert str(port) in await answers(bridge.ops_port, ("/readyz",))


def test_a_secret_is_taken_out_in_each_spelling_that_a_text_may_have() -> None:
    redaction.learn(['tr"icky\\/pass wörd'])
    for text in (
        'say tr"icky\\/pass wörd now',
        "say tr%22icky%5C%2Fpass%20w%C3%B6rd now",
        'say tr\\"icky\\\\/pass w\\u00f6rd now',
        "say " + repr('tr"icky\\/pass wörd')[1:-1] + " now",
    ):
        assert redaction.redact(text) == "say *** now"


def test_a_password_that_is_a_common_word_or_the_user_leaves_texts_readable() -> None:
    redaction.learn(["postgres", "sho", "the-same-user"], public=["the-same-user"])
    assert redaction.redact("postgres is short of the-same-user") == "postgres is short of the-same-user"


def test_a_short_password_is_taken_out_where_it_stands_by_itself() -> None:
    redaction.learn(["quay"])
    assert redaction.redact('for user "quay" or quay, not quayside') == 'for user "***" or ***, not quayside'


@pytest.mark.parametrize(
    "variables",
    [
        {"jwt_algorithms": KEY, "jwt_secret": KEY},
        {"jwt_secret": KEY, "ws_port": f"amqp://u:{CANARY}'x@h"},
        {"jwt_secret": KEY, "node": f"postgresql://app:{CANARY} x@h/db"},
        {"jwt_secret": KEY, "origins": f"https://u:{CANARY}'x@h:x"},
        {"jwt_secret": KEY, "hooks": f"host=h password={CANARY}&x"},
        {"jwt_secret": KEY, "postgres_dsn": f"host=127.0.0.1 port=1 password=x{CANARY}&{CANARY}"},
        {"jwt_secret": KEY, "postgres_dsn": f"host=127.0.0.1 port=1 password=x{CANARY}\\'{CANARY}"},
        {"jwt_secret": KEY, "postgres_dsn": f"postgresql://127.0.0.1:1/d?password=x'{CANARY}"},
        {"jwt_secret": KEY, "amqp_url": f"amqp://127.0.0.1:1/?password={CANARY}'{CANARY}"},
    ],
    ids=lambda variables: list(variables)[-1],
)
async def test_a_secret_in_the_wrong_place_is_not_quoted(variables: dict[str, str], tmp_path: Path) -> None:
    settings = {"amqp_url": "amqp://127.0.0.1:1/", "postgres_dsn": "postgresql://127.0.0.1:1/d", **variables}
    code, printed = await run(("check",), environment(**settings), tmp_path)
    assert code in (2, 3), printed
    assert "Traceback" not in printed
    assert CANARY not in printed


@pytest.mark.parametrize("words", [(f"--jwt-secret={CANARY}", CANARY), (f"postgresql://a:{CANARY}@h/d",)])
async def test_a_word_too_many_is_not_quoted(words: tuple[str, ...], tmp_path: Path) -> None:
    code, printed = await run(("serve", *words), environment(), tmp_path)
    assert code == 2
    assert CANARY not in printed


async def test_a_secret_file_that_is_no_text_is_told_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "BRIDGE_JWT_SECRET").write_bytes(CANARY.encode() + b"\xff\xfe")
    code, printed = await run(("check",), {**environment(), "BRIDGE_SECRETS_DIR": str(tmp_path)}, tmp_path)
    assert code == 2
    assert "BRIDGE_SECRETS_DIR" in printed
    assert "Traceback" not in printed
    assert CANARY not in printed
