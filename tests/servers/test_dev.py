"""`bridge dev`: what it chooses, what it prints, that the line it prints works, and that all ends with it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import psycopg
import pytest

from bridge.adapters.postgres.migrate import MigrationChanged
from bridge.cli.dev import (
    Progress,
    StaleData,
    dev_settings,
    env_file,
    free_port,
    given,
    kept_secret,
    upgrade,
    usual_or_free,
)
from bridge.config import CommonSettings, Settings
from tests.support.clients import client
from tests.support.processes import processes_of


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory without files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bridge.config.common.SECRETS_DIR", str(tmp_path / "none"))
    return tmp_path


# --- what it chooses -------------------------------------------------------------------------------------


def test_the_secret_is_made_once_kept_and_private(place: Path) -> None:
    first = kept_secret(place / ".dev")
    assert kept_secret(place / ".dev") == first
    assert len(first) >= 64
    assert stat.S_IMODE((place / ".dev" / "jwt-secret").stat().st_mode) == 0o600


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port, (port + 1,)) > port + 1


def test_what_the_user_gave_wins_over_what_dev_chooses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dev_settings({}, place / ".dev")
    assert chosen.dev
    assert chosen.ws_host == "127.0.0.1"
    assert chosen.jwt_secret.get_secret_value() == kept_secret(place / ".dev")
    assert not {"amqp_url", "postgres_dsn"} & chosen.model_fields_set
    monkeypatch.setenv("BRIDGE_WS_PORT", "4711")
    (place / ".env").write_text("BRIDGE_JWT_SECRET=mine\nBRIDGE_AMQP_URL=amqp://h/\n")
    chosen = dev_settings({"ws_host": "0.0.0.0"}, place / ".dev")
    assert (chosen.ws_host, chosen.ws_port) == ("0.0.0.0", 4711)
    assert chosen.jwt_secret.get_secret_value() == "mine"
    assert "amqp_url" in chosen.model_fields_set


def test_what_was_given_and_chosen_reaches_another_process_whole(place: Path) -> None:
    flags = {"workers": "2", "origins": "https://a.example,https://b.example", "ops_token": "t" * 40}
    settings = dev_settings({**flags, "amqp_url": "amqp://h/"}, place / ".dev")
    sent = json.loads(msgspec.json.encode(given(settings)))
    assert Settings.load(sent) == settings


def test_a_second_dev_does_not_take_the_servers_of_the_first(place: Path) -> None:
    with env_file(Settings(dev=True, amqp_url="amqp://first/")):
        assert CommonSettings().amqp_url == "amqp://first/"
        assert "amqp_url" not in dev_settings({}, place / ".dev").model_fields_set


def test_the_env_file_carries_any_value_is_private_and_goes(place: Path) -> None:
    dsn = r"host=h password='a\'b c\\'"
    url = "amqp://u:p'x%5Cy@h/"
    ports = {"ws_port": 8291, "ops_port": 8292}
    with env_file(Settings(dev=True, amqp_url=url, postgres_dsn=dsn, jwt_secret="a'b\\c", **ports)):
        path = place / ".dev" / "env"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        found = Settings(dev=True)
        assert found.amqp_url == url
        assert found.postgres_dsn == dsn
        assert (found.ws_port, found.ops_port) == (8291, 8292)
        assert found.jwt_secret.get_secret_value() == "a'b\\c"
    assert not path.exists()


def test_data_of_another_state_of_the_program_says_how_to_begin_anew(database: str, place: Path) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("update schema_version set checksum = 'another' where version = 1")
    with pytest.raises(StaleData, match=r"was changed .* or begin anew: rm -r /\S+/servers$"):
        upgrade(database, Progress(), place / "servers")
    with pytest.raises(MigrationChanged):
        upgrade(database, Progress(), None)


# --- the command -----------------------------------------------------------------------------------------


def _env(**more: str) -> dict[str, str]:
    root = str(Path(__file__).parent.parent.parent)
    return {**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **more}


@asynccontextmanager
async def _dev(env: dict[str, str], *words: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`bridge dev` and what it has printed when it was ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge.cli", "dev", *words),
        env=env,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    printed = ""
    try:
        async with asyncio.timeout(90):
            while "Ctrl-C stops" not in printed:
                line = await process.stdout.readline()
                assert line, printed
                printed += line.decode()
        yield process, printed
    finally:
        if process.returncode is None:
            process.terminate()
        await process.stdout.read()
        await process.wait()


async def test_dev_starts_all_says_how_to_try_it_and_leaves_nothing_running(place: Path) -> None:
    async with _dev(_env(), "--user", "eve") as (process, printed):
        assert re.search(r"^ +\d+\.\d s  starting RabbitMQ", printed, re.MULTILINE)
        assert re.search(r"^ +\d+\.\d s  applied 0001_", printed, re.MULTILINE)
        ws = re.search(r"WebSocket +ws://127\.0\.0\.1:(\d+)/ws", printed)
        page = re.search(r"demo page +http://127\.0\.0\.1:(\d+)/demo\n", printed)
        token = re.search(r"token +(ey\S+)", printed)
        line = re.search(r"^ +(\S.* push --user eve .*)$", printed, re.MULTILINE)
        assert ws
        assert page
        assert token
        assert line
        async with client(int(ws[1]), token[1]) as peer:
            shell = await asyncio.create_subprocess_shell(
                line[1], env=_env(), stdout=asyncio.subprocess.PIPE, cwd=place
            )
            out, _ = await shell.communicate()
            assert shell.returncode == 0, out
            assert await peer.read_json() == {"hello": "world"}
        ports = [int(ws[1]), int(page[1]), *map(int, re.findall(r" on 127\.0\.0\.1:(\d+)", printed))]
        assert len(ports) == 4
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, port
    assert not (place / ".dev" / "env").exists()


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.5])
async def test_dev_that_is_interrupted_three_times_leaves_nothing_either(place: Path, gap: float) -> None:
    async with _dev(_env()) as (process, _):
        for _ in range(3):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await asyncio.sleep(gap)
        async with asyncio.timeout(60):
            assert await process.wait() in (0, 130, -signal.SIGINT)
    async with asyncio.timeout(60):
        while processes_of(place):
            await asyncio.sleep(0.05)
    assert not (place / ".dev" / "env").exists()


async def test_dev_uses_the_servers_that_it_is_given_and_ends_with_0_at_sigterm(
    vhost: str, database: str, place: Path
) -> None:
    env = _env(BRIDGE_AMQP_URL=vhost, BRIDGE_POSTGRES_DSN=database)
    async with _dev(env) as (process, printed):
        assert "starting RabbitMQ" not in printed
        assert vhost in (place / ".dev" / "env").read_text()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    assert not (place / ".dev" / "servers").exists()


def test_a_port_that_is_in_use_is_told_and_another_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert usual_or_free("WebSockets", taken, (), Progress()) > taken
    assert f"port {taken} is in use: WebSockets are on " in capsys.readouterr().out
