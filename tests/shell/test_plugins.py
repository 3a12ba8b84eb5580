"""Plug-ins: how they are loaded, what is refused at the start, and that none takes the service along."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bridge.adapters.plugins import (
    FanOutHooks,
    GuardedErrorHandler,
    LoggingErrorHandler,
    ReportedErrors,
    enter,
    load_delivery_log,
    load_error_handler,
    load_hooks,
)
from bridge.core.errors import BrokerUnavailable, SettingsError, StatementFailed, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, SessionInfo

SESSION = SessionInfo("s1", "u42", "bridge.bare", 1.0)
ROW = Row(RowKey("", "p1", "u42"), Outcome.RECEIVED, Reason.PONG, "n", "b", 1.0, 2.0)


class Recorder:
    """An error handler that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[BaseException, str, dict[str, object]]] = []

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        self.calls.append((error, where, dict(facts)))


@pytest.fixture
def plugin_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An importable module `some_plugin` to put things into."""
    module = ModuleType("some_plugin")
    monkeypatch.setitem(sys.modules, "some_plugin", module)
    return module


# --- loading ---------------------------------------------------------------------------------------------


def test_what_the_factory_returns_is_the_plugin(plugin_module: Any) -> None:
    class Log:
        async def record(self, rows: object) -> None:
            return None

    class Handler(Recorder):
        pass

    class OnlyOpen:
        def on_open(self, session: SessionInfo) -> None:
            return None

    plugin_module.log, plugin_module.handler, plugin_module.hooks = Log, Handler, OnlyOpen
    assert isinstance(load_delivery_log("some_plugin:log"), Log)
    handler = load_error_handler("some_plugin:handler")
    assert isinstance(handler, GuardedErrorHandler)
    assert isinstance(handler.inner, Handler)
    assert isinstance(load_hooks("some_plugin:hooks"), OnlyOpen)
    assert isinstance(load_error_handler("log"), LoggingErrorHandler)


def test_a_module_that_is_not_there_is_refused_with_a_hint() -> None:
    with pytest.raises(
        SettingsError, match="BRIDGE_HOOKS: no_such_module:x: there is no module no_such_module; is"
    ):
        load_hooks("no_such_module:x")


def test_a_module_that_misses_another_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_plugin.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match=r"half_plugin:make: there is no module no_such_library$"):
        load_delivery_log("half_plugin:make")


def test_a_module_that_fails_while_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_plugin.py").write_text("1/0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="importing it failed: ZeroDivisionError: division by zero"):
        load_delivery_log("bad_plugin:make")


def test_a_factory_that_is_missing_uncallable_or_fails_is_refused(plugin_module: Any) -> None:
    with pytest.raises(SettingsError, match="module some_plugin has no make"):
        load_hooks("some_plugin:make")
    plugin_module.make = 5
    with pytest.raises(SettingsError, match="cannot call its make"):
        load_hooks("some_plugin:make")
    plugin_module.make = lambda: dict[str, str]()["url"]
    with pytest.raises(SettingsError, match="the factory failed: KeyError: 'url'"):
        load_hooks("some_plugin:make")


def test_a_factory_may_raise_its_own_settings_error(plugin_module: Any) -> None:
    def make() -> object:
        raise SettingsError("MY_URL", "is required")

    plugin_module.make = make
    with pytest.raises(SettingsError, match="MY_URL: is required"):
        load_delivery_log("some_plugin:make")


def test_a_plugin_of_the_wrong_shape_is_refused_at_the_start(plugin_module: Any) -> None:
    class PlainLog:
        def record(self, rows: object) -> None:
            return None

    class AsyncHandler:
        async def handle(self, error: object, where: object, facts: object) -> None:
            return None

    class AsyncHooks:
        async def on_open(self, session: object) -> None:
            return None

    plugin_module.log, plugin_module.handler, plugin_module.hooks = PlainLog, AsyncHandler, AsyncHooks
    plugin_module.nothing = object
    with pytest.raises(SettingsError, match="async def record"):
        load_delivery_log("some_plugin:log")
    with pytest.raises(SettingsError, match="not async"):
        load_error_handler("some_plugin:handler")
    with pytest.raises(SettingsError, match="not async"):
        load_hooks("some_plugin:hooks")
    with pytest.raises(SettingsError, match="one or more of on_open, on_close, on_outcome, on_error"):
        load_hooks("some_plugin:nothing")


async def test_a_plugin_that_is_a_context_manager_is_entered_and_left() -> None:
    class Managed(Recorder):
        state = "new"

        async def __aenter__(self) -> object:
            self.state = "entered"
            return "anything"

        async def __aexit__(self, *exc: object) -> None:
            self.state = "left"

    managed, plain = Managed(), Recorder()
    guarded = GuardedErrorHandler(Managed(), Recorder())
    async with AsyncExitStack() as stack:
        assert await enter(stack, managed, "m:f", "BRIDGE_HOOKS") is managed
        assert await enter(stack, plain, "m:f", "BRIDGE_HOOKS") is plain
        assert await enter(stack, guarded, "m:f", "BRIDGE_HOOKS") is guarded
        assert managed.state == "entered"
        assert isinstance(guarded.inner, Managed)
        assert guarded.inner.state == "entered"
    assert managed.state == "left"


# --- errors ----------------------------------------------------------------------------------------------


def test_an_expected_error_is_a_warning_and_a_defect_an_error_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = LoggingErrorHandler()
    handler.handle(BrokerUnavailable("gone"), "receipts.send", {"rows": 3})
    handler.handle(ValueError("odd"), "delivery.take", {})
    expected, defect = caplog.records
    assert (expected.levelname, expected.exc_info) == ("WARNING", None)
    assert expected.getMessage() == "receipts.send: BrokerUnavailable: the broker is unavailable: gone"
    assert vars(expected)["facts"] == {"rows": 3}
    assert defect.levelname == "ERROR"
    assert defect.exc_info
    assert isinstance(defect.exc_info[1], ValueError)
    assert logging.getLogger("bridge.errors").name == defect.name


def test_an_error_handler_that_raises_loses_neither_error() -> None:
    class Broken:
        def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
            raise OSError("no disk")

    fallback = Recorder()
    error = ValueError("odd")
    GuardedErrorHandler(Broken(), fallback).handle(error, "here", {"n": 1})
    assert [(type(e), where) for e, where, _ in fallback.calls] == [
        (ValueError, "here"),
        (OSError, "error_handler"),
    ]


# --- hooks -----------------------------------------------------------------------------------------------


class Everything:
    """Hooks that note what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def on_open(self, session: SessionInfo) -> None:
        self.told.append(("open", session))

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        self.told.append(("close", session, code, reason))

    def on_outcome(self, row: Row) -> None:
        self.told.append(("outcome", row))

    def on_error(self, error: BaseException, where: str) -> None:
        self.told.append(("error", error, where))


class Failing:
    """Hooks that always raise."""

    def on_open(self, session: SessionInfo) -> None:
        raise RuntimeError("on_open")

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        raise RuntimeError("on_close")

    def on_outcome(self, row: Row) -> None:
        raise RuntimeError("on_outcome")

    def on_error(self, error: BaseException, where: str) -> None:
        raise RuntimeError("on_error")


class OnlyOutcome:
    """Hooks with one method."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_outcome(self, row: Row) -> None:
        self.rows.append(row)


def call_all(hooks: Hooks, error: BaseException) -> None:
    hooks.on_open(SESSION)
    hooks.on_close(SESSION, 1000, "client")
    hooks.on_outcome(ROW)
    hooks.on_error(error, "here")


def test_hooks_are_told_in_turn_and_one_that_raises_spoils_nothing_for_the_others() -> None:
    handler, last, one = Recorder(), Everything(), OnlyOutcome()
    error = ValueError("x")
    call_all(FanOutHooks([Failing(), last, one], handler), error)
    assert last.told == [
        ("open", SESSION),
        ("close", SESSION, 1000, "client"),
        ("outcome", ROW),
        ("error", error, "here"),
    ]
    assert one.rows == [ROW]
    assert [(where, facts) for _, where, facts in handler.calls] == [
        (f"hooks.{name}", {"hook": "Failing"}) for name in ("on_open", "on_close", "on_outcome", "on_error")
    ]


def test_reported_errors_reach_the_handler_and_the_hooks_and_a_failing_hook_does_not_call_itself() -> None:
    handler, hooks = Recorder(), Everything()
    reported = ReportedErrors(handler, FanOutHooks([Failing(), hooks], handler))
    error = ValueError("x")
    reported.handle(error, "store.record", {"rows": 2})
    assert [where for _, where, _ in handler.calls] == ["store.record", "hooks.on_error"]
    assert hooks.told == [("error", error, "store.record")]


def test_the_classes_fill_their_ports() -> None:
    handler: ErrorHandler = LoggingErrorHandler()
    hooks: Hooks = FanOutHooks([], handler)
    reported: ErrorHandler = ReportedErrors(GuardedErrorHandler(handler, handler), hooks)
    call_all(hooks, ValueError())
    assert reported is not handler


# --- the examples of docs/extending.md -------------------------------------------------------------------

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "plugins"
GUIDE = Path(__file__).parent.parent.parent / "docs" / "extending.md"


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


async def test_the_example_delivery_log_keeps_rows_once(
    examples: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    path = tmp_path / "log.sqlite"
    monkeypatch.setenv("SQLITE_LOG_FILE", str(path))
    async with AsyncExitStack() as stack:
        log: DeliveryLog = await enter(
            stack, load_delivery_log("sqlite_log:make"), "sqlite_log:make", "BRIDGE_DELIVERY_LOG"
        )
        pending = Row(ROW.key, Outcome.PENDING, Reason.AWAITING_PROOF, "n", "b", 1.0, 2.0)
        await log.record([pending])
        await log.record(
            [ROW, Row(RowKey("", "p2", ""), Outcome.REJECTED, Reason.INVALID, "n", "b", 1.0, 2.0)]
        )
        await log.record([ROW])
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "select push_id, user_id, outcome, reason from delivery order by push_id"
        ).fetchall()
    db.close()
    assert rows == [("p1", "u42", "received", "pong"), ("p2", "", "rejected", "invalid")]


def test_the_example_error_handler_tells_of_each_kind_once_in_a_while(
    examples: None, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = load_error_handler("rare_errors:make")
    for number in range(5):
        handler.handle(ValueError(f"odd {number}"), "delivery.take", {"n": number})
    handler.handle(BrokerUnavailable("gone"), "receipts.send", {})
    told = capsys.readouterr().err
    assert told.count("ValueError in delivery.take") == 1
    assert told.count("BrokerUnavailable in receipts.send") == 1


def test_the_example_hooks_know_who_is_here_and_how_pushes_end(examples: None) -> None:
    made: Any = load_hooks("presence:make")
    hooks = FanOutHooks([made], Recorder())
    hooks.on_open(SESSION)
    hooks.on_open(SessionInfo("s2", "u42", "bridge.bare", 2.0))
    hooks.on_close(SESSION, 1001, "client")
    hooks.on_outcome(ROW)
    assert made.present == {"u42": 1}
    assert made.ends == {"received": 1}
    hooks.on_close(SessionInfo("s2", "u42", "bridge.bare", 2.0), 1001, "client")
    assert made.present == {}


def test_the_guide_shows_the_examples_as_they_are() -> None:
    guide = GUIDE.read_text()
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) == 3
    for path in files:
        assert f"```python\n{path.read_text()}```" in guide, path.name


def test_an_outage_is_told_twice_a_minute_however_often_it_is_met(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    handler = LoggingErrorHandler(monotonic=lambda: now[0])
    for _ in range(61):
        handler.handle(BrokerUnavailable("connect: Connection refused"), "broker", {})
        handler.handle(StoreUnavailable("no answer"), "rows", {})
        now[0] += 1.0
    told = [(r.message, getattr(r, "repeated", 0)) for r in caplog.records if "broker" in r.message]
    assert [repeated for _, repeated in told] == [0, 29, 29]
    assert len(caplog.records) == 6
    handler.handle(BrokerUnavailable("another cause"), "broker", {})
    assert len(caplog.records) == 7, "news is told at once"


def test_what_fails_for_one_push_is_told_each_time(caplog: pytest.LogCaptureFixture) -> None:
    handler = LoggingErrorHandler()
    for push_id in ("p1", "p2"):
        handler.handle(StatementFailed("timeout"), "store.settle", {"push_id": push_id})
    assert len(caplog.records) == 2
