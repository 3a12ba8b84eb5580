"""`bridge.plugins` is all that a plug-in imports: it is whole, documented, and enough for a plug-in of each kind."""

from __future__ import annotations

import ast
import enum
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import bridge.plugins
from bridge.adapters.plugins import FanOutHooks, load_delivery_log, load_error_handler, load_hooks
from bridge.plugins import (
    NO_USER,
    BridgeError,
    BrokerUnavailable,
    DeliveryLog,
    ErrorHandler,
    Hooks,
    Outcome,
    Proof,
    Reason,
    Row,
    RowKey,
    SessionInfo,
    SettingsError,
    StatementFailed,
    StoreUnavailable,
)

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "docs" / "extending.md").read_text()
SAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
PLUGINS = [*sorted((ROOT / "examples").rglob("*.py"))]

SESSION = SessionInfo("s1", "u42", "bridge.bare", 1.0)
ROW = Row(RowKey("", "p1", NO_USER), Outcome.REJECTED, Reason.INVALID, "n", "b", 1.0, 2.0)


class CommittedRows:
    """A delivery log; typed, so `make lint` shows that the public names are enough for mypy."""

    def __init__(self) -> None:
        self.words: list[tuple[str, str, bool, bool]] = []

    async def record(self, rows: Sequence[Row]) -> None:
        for row in rows:
            wants_ack = row.confirm >= Proof.ACKED
            self.words.append((row.key.push_id, row.outcome.value, row.final, wants_ack))


class ErrorKinds:
    """An error handler that sorts errors by what is to be done about them."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        match error:
            case StatementFailed():
                self.kinds.append("statement")
            case BrokerUnavailable() | StoreUnavailable():
                self.kinds.append("outage")
            case BridgeError():
                self.kinds.append("expected")
            case _:
                self.kinds.append("defect")


class AllHooks:
    """Hooks that note what they are told. (The example `presence.py` has only some of the methods.)"""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_open(self, session: SessionInfo) -> None:
        self.told.append(f"open {session.user}")

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        self.told.append(f"close {session.user} {code}")

    def on_outcome(self, row: Row) -> None:
        self.told.append(f"outcome {row.reason.value}")

    def on_error(self, error: BaseException, where: str) -> None:
        self.told.append(f"error {where}")


def make_log() -> DeliveryLog:
    return CommittedRows()


def make_handler() -> ErrorHandler:
    return ErrorKinds()


def make_hooks() -> Hooks:
    return AllHooks()


def make_nothing() -> Hooks:
    raise SettingsError("MY_URL", "is required")


def imported(text: str) -> set[str]:
    """The modules that a Python text imports; `from bridge import x` counts as `bridge.x`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"bridge.{a.name}" for a in node.names} if node.module == "bridge" else {node.module}
    return found


def of_the_bridge(text: str) -> set[str]:
    return {name for name in imported(text) if name.split(".")[0] == "bridge"}


def classes_in(hint: object) -> Iterator[type]:
    """The classes that a type hint names, at any depth."""
    if isinstance(hint, type):
        yield hint
    for part in typing.get_args(hint):
        yield from classes_in(part)


def annotated(thing: Any) -> Iterator[object]:
    """The type hints of a class's fields and of its methods' arguments and results."""
    yield from typing.get_type_hints(thing).values()
    for member in vars(thing).values():
        if isinstance(member, FunctionType):
            yield from typing.get_type_hints(member).values()


def public() -> dict[str, Any]:
    return {name: getattr(bridge.plugins, name) for name in bridge.plugins.__all__}


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_an_example_imports_nothing_else_of_the_bridge(path: Path) -> None:
    assert of_the_bridge(path.read_text()) <= {"bridge.plugins"}


def test_the_guide_imports_nothing_else_of_the_bridge() -> None:
    assert len(SAMPLES) == 3
    for sample in SAMPLES:
        assert of_the_bridge(sample) <= {"bridge.plugins"}
    assert not re.search(r"bridge[./](ports|model|errors|adapters)", GUIDE), "names a module that may move"


def test_every_name_is_in_the_table_of_the_guide() -> None:
    table = GUIDE.partition("## What to import\n")[2]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(bridge.plugins.__all__)


def test_every_type_that_a_plugin_meets_is_among_the_names() -> None:
    met = {
        found
        for thing in public().values()
        if isinstance(thing, type) and not issubclass(thing, enum.Enum | Exception)
        for hint in annotated(thing)
        for found in classes_in(hint)
        if found.__module__.split(".")[0] == "bridge"
    }
    assert {Row, SessionInfo, Outcome} <= met, "the walk through the type hints finds nothing"
    assert met - set(public().values()) == set()


def test_the_bridge_itself_does_not_import_it() -> None:
    users = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "bridge").rglob("*.py"))
        if "bridge.plugins" in imported(path.read_text())
    ]
    assert users == []


async def test_a_plugin_of_each_kind_works_with_these_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    monkeypatch.setitem(sys.modules, "named_plugins", sys.modules[here])
    log = load_delivery_log("named_plugins:make_log")
    await log.record([ROW])
    assert isinstance(log, CommittedRows)
    assert log.words == [("p1", "rejected", True, False)]

    handler = load_error_handler("named_plugins:make_handler")
    errors = [StatementFailed("slow"), StoreUnavailable("gone"), BrokerUnavailable("gone"), ValueError()]
    for error in [*errors, SettingsError("A", "b")]:
        handler.handle(error, "here", {})
    kinds: Any = handler
    assert kinds.inner.kinds == ["statement", "outage", "outage", "defect", "expected"]

    made = load_hooks("named_plugins:make_hooks")
    hooks = FanOutHooks([made], handler)
    hooks.on_open(SESSION)
    hooks.on_close(SESSION, 1000, "client")
    hooks.on_outcome(ROW)
    hooks.on_error(ValueError(), "here")
    assert isinstance(made, AllHooks)
    assert made.told == ["open u42", "close u42 1000", "outcome invalid", "error here"]

    with pytest.raises(SettingsError, match=r"^MY_URL: is required$"):
        load_hooks("named_plugins:make_nothing")
