"""A plug-in that can't be entered refuses the start in one line; one that can't be left spoils nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from bridge.cli import check as checking
from tests.support.bridges import Process, final_rows, publish, request
from tests.support.check_command import run_check

PLUGINS = """
import asyncio
from pathlib import Path

HERE = Path(__file__).parent

class All:
    def on_open(self, session): pass
    async def record(self, rows): pass
    def handle(self, error, where, facts): pass
    def note(self, what):
        with open(HERE / "notes", "a") as notes: notes.write(what + chr(10))
    async def __aenter__(self):
        self.note("entered")
    async def __aexit__(self, *reason):
        self.note("left")

class Refusing(All):
    async def __aenter__(self):
        raise ConnectionRefusedError("no Redis at 127.0.0.1:6379" + chr(10) + "is it up?")

class Plain(All):
    def __aenter__(self):
        return self

class Waiting(All):
    async def __aenter__(self):
        await asyncio.Event().wait()

class Failing(All):
    async def __aexit__(self, *reason):
        self.note("left")
        raise RuntimeError("could not flush")
"""
SETTINGS = ("hooks", "delivery_log", "error_handler")


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `entering`, on the path of this process and of those that it starts."""
    (tmp_path / "entering.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parent.parent.parent}")
    monkeypatch.delitem(sys.modules, "entering", raising=False)
    return tmp_path


def notes(plugins: Path) -> list[str]:
    path = plugins / "notes"
    return path.read_text().splitlines() if path.exists() else []


def chosen(setting: str, value: str) -> dict[str, str]:
    return {f"BRIDGE_{setting.upper()}": value}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("name", "words"),
    [("Refusing", "ConnectionRefusedError: no Redis at 127.0.0.1:6379 is it up?"), ("Plain", "TypeError: ")],
)
async def test_a_plug_in_that_can_not_be_entered_refuses_the_start_in_one_line(
    vhost: str, database: str, plugins: Path, setting: str, name: str, words: str
) -> None:
    served = Process(vhost, database, log=plugins / "log", variables=chosen(setting, f"entering:{name}"))
    await served.start()
    assert await served.exited() == 2
    told = (plugins / "log").read_text().splitlines()
    start = f"bridge: BRIDGE_{setting.upper()}: entering:{name}: entering it (__aenter__) failed: {words}"
    assert next(line for line in told if not line.startswith("{")).startswith(start)
    assert "Traceback" not in str(told)


async def test_those_that_were_entered_before_are_left(vhost: str, database: str, plugins: Path) -> None:
    served = Process(vhost, database, log=plugins / "log", hooks="entering:All,entering:Refusing")
    await served.start()
    assert await served.exited() == 2
    assert notes(plugins) == ["entered", "left"]


@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_plug_in_that_can_not_be_left_spoils_no_stop(
    vhost: str, database: str, plugins: Path, setting: str
) -> None:
    value = "entering:Failing" if setting != "delivery_log" else "postgres,entering:Failing"
    served = Process(vhost, database, log=plugins / "log", variables=chosen(setting, value))
    await served.start()
    try:
        await served.ready()
        await publish(vhost, request("u", "p"))
        await final_rows(database, 1)
        assert await served.stop() == 0
    finally:
        if served.alive:
            await served.kill()
    assert notes(plugins) == ["entered", "left"]
    assert "plug-in.leave: RuntimeError: could not flush" in served.logged()


@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_check_enters_each_plug_in_and_leaves_it(
    vhost: str,
    database: str,
    plugins: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
) -> None:
    flag = f"--{setting.replace('_', '-')}"
    before = "postgres," if setting == "delivery_log" else ""
    assert await asyncio.to_thread(run_check, vhost, database, flag, f"{before}entering:All") == 0
    assert notes(plugins) == ["entered", "left"]
    assert "ok    plug-ins  entering:All: made, entered and left" in capsys.readouterr().out
    assert await asyncio.to_thread(run_check, vhost, database, flag, f"{before}entering:Refusing") == 2
    assert "fail  plug-ins" in (shown := capsys.readouterr().out)
    assert "entering it (__aenter__) failed: ConnectionRefusedError: no Redis" in shown
    assert await asyncio.to_thread(run_check, vhost, database, flag, f"{before}entering:Failing") == 0
    assert "leaving it failed: RuntimeError('could not flush')" in capsys.readouterr().out
    monkeypatch.setattr(checking, "PLUGIN_SECONDS", 0.1)
    assert await asyncio.to_thread(run_check, vhost, database, flag, f"{before}entering:Waiting") == 2
    assert "entering and leaving it took over 0.1 s" in capsys.readouterr().out
