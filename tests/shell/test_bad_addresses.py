"""Addresses that can't be read: refused by every command, with a sentence that quotes nothing of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.cli import entry as cli

SECRET = "n0t-a-real-secret-but-long-enough-for-it"
CANARY = "zqx"
"""Stands in each part of a value that may belong to a password."""

COMMANDS = [
    ["serve"],
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
    ["dead", "purge", "--all"],
    ["replay", "--where", "user=u"],
    ["token", "u"],
    ["dev"],
    ["demo"],
]

BAD_DSNS = [
    "postgresql://app:zqx1 zqx2@127.0.0.1/db",
    "postgresql://app:zqx1\tzqx2@127.0.0.1/db",
    "postgresql://app:zqx1\nzqx2@127.0.0.1/db",
    "postgresql://app:zqx1%zqx2@127.0.0.1/db",
    "postgresql://app:zqx1%2@127.0.0.1/db",
    "postgresql://app:zqx1%00@127.0.0.1/db",
    "postgresql://app:zqx1%ff@127.0.0.1/db",
    "postgresql://app:zqx1\udcff@127.0.0.1/db",
    "postgresql://app:zqx1@zqx2@127.0.0.1/db",
    "postgresql://app:zqx1/zqx2@127.0.0.1/db",
    "postgresql://app:12/zqx2@127.0.0.1/db",
    "postgresql://app:12?zqx1/zqx2@127.0.0.1/db",
    "postgresql://app:12?zqx1=zqx2/zqx3@127.0.0.1/db",
    "postgresql://app:12?schema=zqx2/zqx3@127.0.0.1/db",
    "postgresql://app:zqx@127.0.0.1:zqx/db",
    "postgresql://app:zqx@127.0.0.1:99999/db",
    "host=h1,h2,h3 port=1,2 password=zqx",
    "postgresql://app:zqx@h1:1,h2:2:3/db",
    "postgresql://app:zqx@[::1/db",
    "postgresql://app:zqx@[]/db",
    "postgresql://app:zqx@[::1]zqx/db",
    "postgresql://app:zqx@zqx..zqx/db",
    "postgresql://app:zqx@" + "zqx" * 30 + "/db",
    "postgresql://app:zqx@127.0.0.1/db?schema=public",
    "postgresql://app:zqx@127.0.0.1/db?zqx",
    "postgresql://app:zqx@127.0.0.1/db?user=zqx=1",
    "postgresql://app:zqx@127.0.0.1/db?sslmode=zqx",
    "postgresql://app:zqx@127.0.0.1/db?connect_timeout=zqx",
    "host=h password=zqx1 zqx2 user=app",
    "host=h password=zqx1 zqx2=3",
    "host=h password=zqx schema=public",
    "host=h password='zqx1 user=app",
    "host=h port=zqx password=zqx",
    "zqx1 zqx2",
    "mysql://app:zqx@127.0.0.1/db",
    "postgres//app:zqx@127.0.0.1/db",
    "postgresql://app:12?zqx=1",
]

BAD_URLS = [
    "amqp://app:zqx1 zqx2@127.0.0.1/",
    "amqp://app:zqx1\tzqx2@127.0.0.1/",
    "amqp://app:zqx1\x7f@127.0.0.1/",
    "amqp://app:zqx1\\zqx2@127.0.0.1/",
    "amqp://app:zqx1%zqx2@127.0.0.1/",
    "amqp://app:zqx1%@127.0.0.1/",
    "amqp://app:zqx1%00@127.0.0.1/",
    "amqp://app:zqx1%ff@127.0.0.1/",
    "amqp://app:zqx1\udcff@127.0.0.1/",
    "amqp://app:zqx1#zqx2@127.0.0.1/",
    "amqp://app:12#zqx2@127.0.0.1/",
    "amqp://app:zqx1/zqx2@127.0.0.1/",
    "amqp://app:zqx1?zqx2@127.0.0.1/",
    "amqp://app:12?heartbeat=zqx2@127.0.0.1/",
    "amqp://app:zqx@127.0.0.1:zqx/",
    "amqp://app:zqx@127.0.0.1:0/",
    "amqp://app:zqx@127.0.0.1:99999/",
    "amqp://app:zqx@[::1/",
    "amqp://app:zqx@[zqx]/",
    "amqp://app:zqx@zqx..zqx/",
    "amqp://app:zqx@/",
    "amqp://app:zqx@:5672/",
    "amqp://app:zqx@127.0.0.1/?auth=zqx",
    "amqp://app:zqx@127.0.0.1/?cadata=zqx!",
    "amqp://app:zqx@127.0.0.1/" + "v" * 256,
    "amqp://app:zqx@127.0.0.1/a%0Ab",
    "amqp:/app:zqx@127.0.0.1/",
    "http://app:zqx@127.0.0.1/",
]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory without files and an environment without our variables, but for the JWT secret."""
    for name in [n for n in os.environ if n.upper().startswith("BRIDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_JWT_SECRET", SECRET)


def refused(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says that is refused with 2; fails where it quotes the value, or shows a traceback."""
    assert cli.main(words) == 2
    said = capfd.readouterr()
    text = said.out + said.err
    assert CANARY not in text.lower()
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize("dsn", BAD_DSNS)
def test_a_dsn_that_cannot_be_read_is_refused_and_not_quoted(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_POSTGRES_DSN", dsn)
    text = refused(["check"], capfd)
    assert "BRIDGE_POSTGRES_DSN: " in text


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_read_is_refused_and_not_quoted(
    url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_AMQP_URL", url)
    text = refused(["check"], capfd)
    assert "BRIDGE_AMQP_URL: " in text


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_refuses_what_it_cannot_read(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRIDGE_POSTGRES_DSN", BAD_DSNS[0])
    assert "BRIDGE_POSTGRES_DSN" in refused(words, capfd)
    monkeypatch.delenv("BRIDGE_POSTGRES_DSN")
    monkeypatch.setenv("BRIDGE_AMQP_URL", BAD_URLS[3])
    assert "BRIDGE_AMQP_URL" in refused(words, capfd)


def test_a_wrong_value_in_a_flag_is_not_quoted_either(capfd: pytest.CaptureFixture[str]) -> None:
    assert "--postgres-dsn: " in refused(["why", "p1", "--postgres-dsn", BAD_DSNS[0]], capfd)


def test_a_misspelt_flag_is_named_without_its_value(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", "--jwt-secrt=zqx-zqx-zqx"])
    assert caught.value.code == 2
    said = capfd.readouterr().err
    assert "there is no option --jwt-secrt (did you mean --jwt-secret?)" in said
    assert CANARY not in said
