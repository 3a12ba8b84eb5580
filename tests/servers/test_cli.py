"""The command line: help, errors, exit codes, and each command against a real broker and database."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest

from bridge import __version__
from bridge.adapters.amqp.producer import Producer
from bridge.cli.entry import main
from bridge.cli.parsers import OVERVIEW, build_parser
from bridge.core.contract.requests import request_body
from bridge.core.model.outcomes import Outcome, Reason
from tests.support.clients import client
from tests.support.reference_settings import REFERENCE, cli_page, settings_page
from tests.support.scripted_receipts import KEPT, PARKED, PENDING, RECEIVED, scripted_receipts

SECRET = "n0t-a-real-secret-but-long-enough-for-it"
NOWHERE = "127.0.0.1:1"
"""An address on which nobody listens."""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A working directory without files, and the log as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bridge.config.common.SECRETS_DIR", str(tmp_path / "none"))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def run(*words: str) -> int:
    """The exit code of one command line."""
    try:
        return main(words)
    except SystemExit as usage:
        return usage.code if isinstance(usage.code, int) else -1


# --- help and usage --------------------------------------------------------------------------------------


def test_without_a_command_it_shows_the_overview_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert capsys.readouterr().out == OVERVIEW
    assert run("--help") == 0
    assert capsys.readouterr().out == OVERVIEW


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"bridge {__version__}\n"


def test_the_overview_names_every_command_and_every_command_has_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in build_parser()[1]:
        assert re.search(rf"^  {name.split()[0]} ", OVERVIEW, re.MULTILINE), name
        assert run(*name.split(), "--help") == 0
        assert f"usage: bridge {name}" in capsys.readouterr().out


def test_flags_of_settings_say_what_they_mean_and_their_default(capsys: pytest.CaptureFixture[str]) -> None:
    run("serve", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--ws-port N The port that WebSockets are served on; 0: any free [8181]" in shown
    assert "--outcome-events, --no-outcome-events" in shown
    run("push", "--help")
    shown = capsys.readouterr().out
    assert "--amqp-url" in shown
    assert "--ws-port" not in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["pusj"], "bridge: there is no command pusj (did you mean push?)"),
        (["xyzzy"], "bridge: there is no command xyzzy\n"),
        (["serve", "--ws-prt", "3"], "bridge serve: there is no option --ws-prt (did you mean --ws-port?)"),
        (["push", "--usr=x"], "bridge push: there is no option --usr (did you mean --user?)"),
        (["token"], "bridge token: the following arguments are required: USER"),
        (["token", "u", "--ttl", "soon"], "argument --ttl: seconds expected, not 'soon'"),
        (["tail", "--count", "0"], "argument --count: a whole number from 1 expected, not '0'"),
        (["db"], "bridge db: the following arguments are required: upgrade|status|sql"),
        (["db", "down"], "bridge db: argument upgrade|status|sql|grant: invalid choice: 'down'"),
        (["--verbose"], "bridge: the following arguments are required: <command>"),
        (["serve"], "bridge: BRIDGE_JWT_SECRET: a secret of at least 32 bytes is required"),
        (["serve", "--jwt-secret", SECRET, "--ws-port", "a"], "bridge: --ws-port: a whole number from 0 to"),
        (["push", "--user", "u", "--data", "hi"], "bridge: --data: JSON expected (Expecting value"),
        (["push", "--user", "u"], "bridge: --data: one of --data JSON and --text TEXT is needed"),
        (["push", "--user", "u", "--data", "1", "--text", "x"], "bridge: --data: one of"),
        (
            ["push", "--text", "x"],
            "bridge: the request: to: expected one of user, users, session, topic, all",
        ),
        (["push", "--text", "x", "--user", "u", "--all"], "bridge: the request: to: expected one of"),
        (["push", "--text", "x", "--topic", "a.*"], "bridge: the request: to.topic: "),
        (
            ["push", "{}", "--topic", "a"],
            "bridge: REQUEST: is a whole request: it can't be mixed with --topic",
        ),
        (["push", "--text", "x", "--user", "u", "--meta", "k"], "bridge: --meta: KEY=VALUE expected"),
        (["push", "{}", "--user", "u"], "bridge: REQUEST: is a whole request: it can't be mixed with --user"),
        (
            ["push", "{}", "--except", "s"],
            "bridge: REQUEST: is a whole request: it can't be mixed with --except",
        ),
        (["push", "{}", "--ttl", "0"], "bridge: REQUEST: is a whole request: it can't be mixed with --ttl"),
        (["push", "--text", "x", "--user", "u", "--ttl", "-1"], "argument --ttl: seconds expected, not '-1'"),
        (
            ["push", "--text", "x", "--user", "u", "--ack-within", "5"],
            "bridge: the request: ack_within: expected",
        ),
        (["push", "--text", "x", "--user", "u", "--collapse-key", ""], "bridge: the request: collapse_key: "),
        (["push", "{"], "bridge: REQUEST: JSON expected"),
        (["demo", "--requests", "/none"], "bridge: --requests: /none cannot be read"),
    ],
)
def test_wrong_usage_and_settings_exit_with_2_and_say_what_is_wrong(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    told = capsys.readouterr()
    assert complaint in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["push", "--user", "u", "--text", "x", "--amqp-url", f"amqp://me:s3cr3t@{NOWHERE}/"],
        ["tail", "--amqp-url", f"amqp://me:s3cr3t@{NOWHERE}/"],
        ["db", "upgrade", "--postgres-dsn", f"postgresql://me:s3cr3t@{NOWHERE}/x"],
        ["db", "status", "--postgres-dsn", f"postgresql://me:s3cr3t@{NOWHERE}/x"],
        ["db", "sql", "--postgres-dsn", f"postgresql://me:s3cr3t@{NOWHERE}/x"],
    ],
)
def test_what_cannot_be_reached_exits_with_3_and_shows_no_password(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 3
    told = capsys.readouterr()
    assert "is unavailable" in told.err
    assert "s3cr3t" not in told.err + told.out


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.cli.tokens.token", interrupted)
    assert run("token", "u", "--jwt-secret", SECRET) == 130


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        words = [sys.executable, "-m", "bridge.cli", "db", "sql", "--all"]
        shown = subprocess.run(
            words, stdout=write_end, stderr=subprocess.PIPE, text=True, check=False, env=_env()
        )
    finally:
        os.close(write_end)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_the_reference_pages_are_what_the_code_says() -> None:
    hint = "run: python -m tests.support.reference_settings"
    assert (REFERENCE / "settings.md").read_text() == settings_page(), hint
    assert (REFERENCE / "cli.md").read_text() == cli_page(), hint


# --- token -----------------------------------------------------------------------------------------------


def test_a_token_is_what_the_bridge_with_the_same_settings_takes(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "token",
        "u42",
        "--ttl",
        "60",
        "--jwt-secret",
        SECRET,
        "--jwt-issuer",
        "me",
        "--jwt-audience",
        "it",
    ]
    assert run(*words) == 0
    token = capsys.readouterr().out.strip()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="it", issuer="me")
    assert claims["sub"] == "u42"
    assert claims["exp"] - claims["iat"] == 60


def test_a_token_says_what_its_user_may_do_and_a_wrong_pattern_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--publish", "chat.*", "--publish", "a", "--topic", "news"]
    assert run("token", "u1", "--jwt-secret", SECRET, *words) == 0
    claims = jwt.decode(capsys.readouterr().out.strip(), SECRET, algorithms=["HS256"])
    assert (claims["publish"], claims["topics"]) == (["chat.*", "a"], ["news"])
    assert "subscribe" not in claims
    assert run("token", "u1", "--jwt-secret", SECRET, "--publish", "a.#.b") == 2
    assert "# only as the last one" in capsys.readouterr().err


def test_a_token_signed_with_a_made_up_secret_is_not_given_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("token", "u42", "--dev") == 2
    assert "BRIDGE_JWT_SECRET" in capsys.readouterr().err


# --- db --------------------------------------------------------------------------------------------------


def test_db_upgrade_status_and_sql_tell_one_story(
    empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = ("--postgres-dsn", empty_database)
    assert run("db", "status", *dsn) == 1
    assert "still to be applied" in capsys.readouterr().out
    assert run("db", "sql", *dsn) == 0
    pending = capsys.readouterr().out
    assert run("db", "upgrade", *dsn) == 0
    applied = re.findall(r"^applied (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert applied
    assert all(f"-- {name}\n" in pending for name in applied)
    assert run("db", "status", *dsn) == 0
    assert "still to be applied" not in capsys.readouterr().out
    assert run("db", "upgrade", *dsn) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run("db", "sql", *dsn) == 0
    assert capsys.readouterr().out == ""
    assert run("db", "sql", "--all", *dsn) == 0
    assert capsys.readouterr().out == pending


# --- check -----------------------------------------------------------------------------------------------


def test_check_tells_settings_broker_topology_database_and_schema_in_a_line_each(
    vhost: str, database: str, empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["check", "--jwt-secret", SECRET, "--amqp-url", vhost, "--ws-port", "0", "--ops-port", "0"]
    assert run(*base, "--postgres-dsn", database) == 0
    lines = capsys.readouterr().out.splitlines()
    # The user and the role of the tests may do everything.
    assert [line.split()[:2] for line in lines] == [
        ["warn" if what == "excess" else "ok", what]
        for what in (
            *("settings", "ports", "broker", "topology", "limits", "excess", "database", "schema"),
            *("pooler", "clock", "rights", "partitions", "week", "sessions", "excess"),
        )
    ]
    assert run(*base, "--postgres-dsn", database, "--declare", "passive") == 1
    assert "fail  topology  queue push.requests is missing" in capsys.readouterr().out
    assert run(*base, "--postgres-dsn", empty_database) == 1
    assert "run `bridge db upgrade`" in capsys.readouterr().out


def test_check_exits_with_3_for_what_is_away_and_2_for_settings(
    vhost: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f"amqp://me:s3cr3t@{NOWHERE}/"
    assert run("check", "--jwt-secret", SECRET, "--amqp-url", away, "--postgres-dsn", database) == 3
    shown = capsys.readouterr().out
    assert f"fail  broker    amqp://me:***@{NOWHERE}/: " in shown
    assert "ok    schema" in shown
    assert run("check", "--jwt-secret", SECRET, "--amqp-url", vhost, "--postgres-dsn", f"host={NOWHERE}") == 3
    assert "fail  database" in capsys.readouterr().out
    assert run("check", "--prefetch", "0") == 2
    shown = capsys.readouterr().out
    assert "fail  settings  --prefetch: a whole number from 1" in shown
    assert "fail  settings  BRIDGE_JWT_SECRET" in shown


def test_check_points_out_a_variable_that_is_nearly_right_and_needs_no_database_without_postgres(
    vhost: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_WSPORT", "1")
    free = ("--ws-port", "0", "--ops-port", "0")
    assert run("check", "--jwt-secret", SECRET, "--amqp-url", vhost, "--delivery-log", "stdout", *free) == 0
    shown = capsys.readouterr().out
    assert "warn  settings  BRIDGE_WSPORT is no setting; BRIDGE_WS_PORT was probably meant" in shown
    assert "ok    database  not used" in shown


# --- serve, push, tail: the real thing -------------------------------------------------------------------


def _env(**more: str) -> dict[str, str]:
    path = str(Path(__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


async def _command(*words: str, env: dict[str, str], stdin: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.cli", *words),
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def _serving(env: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """`bridge serve` with any free ports: the process and its WebSocket port, once it takes pushes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.cli", "serve", "--ws-port", "0", "--ops-port", "0"),
        env=env,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    port = 0
    try:
        async with asyncio.timeout(30):
            async for line in process.stderr:
                entry = json.loads(line)
                found = re.search(r"WebSockets on port (\d+)", entry["message"])
                port = int(found[1]) if found else port
                if entry["message"].startswith("ready"):
                    break
        assert port
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        # Read to the end: the pipe must not fill, nor be left open.
        await process.stderr.read()
        await process.wait()


@pytest.fixture
def env(vhost: str, database: str) -> dict[str, str]:
    return _env(BRIDGE_AMQP_URL=vhost, BRIDGE_POSTGRES_DSN=database, BRIDGE_JWT_SECRET=SECRET)


async def test_serve_push_and_tail_work_together_and_sigterm_ends_with_0(env: dict[str, str]) -> None:
    async with _serving(env) as (process, port):
        code, token, _ = await _command("token", "u42", "--topic", "room.7", env=env)
        assert code == 0
        async with client(port, token.strip()) as peer:
            for to in (("--user", "u42"), ("--topic", "room.7")):
                code, out, err = await _command("push", *to, "--data", '{"hi": 1}', env=env)
                assert (code, err) == (0, "")
                assert out.split()[:3] == ["u42", "received", "pong"]
                assert await peer.read_json() == {"hi": 1}

            words = (
                "push",
                "--user",
                "u42",
                "--user",
                "u43",
                "--text",
                "hi",
                "--event",
                "order.paid",
                "--json",
            )
            code, out, _ = await _command(*words, env=env)
            assert code == 1
            receipts = [json.loads(line) for line in out.splitlines()]
            assert {r["user_id"]: r["outcome"] for r in receipts} == {"u42": "received", "u43": "offline"}
            assert await peer.read() == "hi"

            body = b'{"to": {"user": "u42"}, "data": "from stdin", "id": "p-7"}'
            code, out, _ = await _command("push", "-", env=env, stdin=body)
            assert code == 0
            assert "p-7" in out
            assert await peer.read() == "from stdin"

            code, out, _ = await _command("push", "--user", "u42", "--data", "-", env=env, stdin=b"[1]")
            assert code == 0
            assert await peer.read_json() == [1]

            code, out, _ = await _command("push", '{"to": {"user": 7}, "data": 1}', env=env)
            assert code == 1
            assert "rejected" in out
            assert "to.user" in out

            silent = ("push", "--user", "u42", "--text", "unwatched", "--wait", "0")
            assert await _command(*silent, env=env) == (0, "", "")
            assert await peer.read() == "unwatched"

            await _check_tail(env)
        process.terminate()
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def _check_tail(env: dict[str, str]) -> None:
    tail = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "bridge.cli",
            "tail",
            "--outcome",
            "received",
            "--event",
            "order.*",
            "--json",
        ),
        *("--count", "2", "--user", "u42", "--reason", "pong", "--topic", "room.*"),
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    ended = asyncio.create_task(tail.communicate())
    async with asyncio.timeout(30), Producer.connect(env["BRIDGE_AMQP_URL"]) as producer:
        # The tail listens from some moment on: push until it has seen enough.
        while not ended.done():
            for event in ("other", "order.paid"):
                await producer.request(request_body("x", user="u42", event=event), timeout=5)
                await producer.publish(request_body("x", topic="room.7", event=event))
    out, _ = await ended
    assert tail.returncode == 0
    told = [json.loads(line) for line in out.splitlines()]
    assert [(receipt["event"], receipt["topic"]) for receipt in told] == [("order.paid", "room.7")] * 2


async def test_a_push_that_is_kept_is_no_failure(vhost: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with scripted_receipts(vhost) as bridge:

        async def push(*words: str) -> tuple[int, str]:
            command = ("push", "--amqp-url", vhost, "--text", "x", "--ttl", "86400", *words)
            code = await asyncio.to_thread(main, command)
            return code, capsys.readouterr().out

        bridge.answers = {"away": (KEPT,)}
        words = ("--confirm", "acked", "--ack-within", "0.5", "--collapse-key", "c")
        code, out = await push("--user", "away", *words)
        assert (code, out.split()[:3]) == (0, ["away", "stored", "no_session"])
        body = json.loads(bridge.arrivals[0].body)
        assert (body["ttl"], body["ack_within"], body["collapse_key"]) == (86400, 0.5, "c")
        bridge.answers = {"u1": (PARKED, RECEIVED), "u2": (PARKED, (Outcome.EXPIRED, Reason.TTL))}
        assert (await push("--user", "u1", "--user", "away"))[0] == 0
        assert (await push("--user", "u1", "--user", "u2"))[0] == 1
        bridge.answers = {"u1": (PENDING,)}
        assert (await push("--user", "u1", "--user", "away", "--wait", "0.2"))[0] == 1


async def test_push_without_a_bridge_says_that_there_is_no_outcome(env: dict[str, str]) -> None:
    async with _serving(env):
        pass
    words = ("push", "--user", "u42", "--text", "x", "--wait", "0.5")
    code, out, err = await _command(*words, env=env)
    assert (code, out) == (1, "")
    assert "no outcome within 0.5 s; the push is in the queue" in err


async def test_serve_refuses_a_port_that_is_taken_with_2(env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("serve", "--ws-host", "127.0.0.1", "--ws-port", str(port), "--ops-port", "0")
        code, _, err = await _command(*words, env=env)
    assert code == 2
    assert f"BRIDGE_WS_PORT: cannot listen on 127.0.0.1:{port}" in err


async def test_serve_refuses_a_plugin_that_is_not_there_with_2(env: dict[str, str]) -> None:
    words = ("serve", "--hooks", "no_such_module:make", "--ws-port", "0", "--ops-port", "0")
    code, _, err = await _command(*words, env=env)
    assert code == 2
    assert "BRIDGE_HOOKS: no_such_module:make: there is no module no_such_module" in err


def test_light_commands_load_no_heavy_library(capsys: pytest.CaptureFixture[str]) -> None:
    probe = (
        "import sys; sys.argv = ['bridge', '--version']\n"
        "from bridge.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'aio_pika', 'psycopg', 'aiohttp', 'jwt', 'pydantic', 'websockets', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=_env()
    )
    assert shown.stdout.splitlines()[-1] == "[]"
