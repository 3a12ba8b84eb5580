"""What every DeliveryLog must do, run against each that comes with the bridge: JSON lines on a stream."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

import psycopg
import pytest

from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.stdout import JsonLinesLog, LogUnwritable, line_of
from bridge.core.errors import BridgeError
from bridge.core.model.outcomes import Outcome
from bridge.core.ports.plugins import DeliveryLog
from tests.support.rows import NOON, row


class Subject(Protocol):
    """One implementation, and what it has kept."""

    @property
    def log(self) -> DeliveryLog:
        """The log under test."""

    def kept(self) -> list[dict[str, Any]]:
        """The rows that are durable by now, by the names of view `delivery`."""


class OnStream:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.stream = path.open("w", encoding="utf-8")
        self.log = JsonLinesLog(self.stream)

    def kept(self) -> list[dict[str, Any]]:
        # Read through another descriptor: what was not flushed is not there.
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(params=["stdout"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made = OnStream(tmp_path / "log.jsonl")
    yield made
    made.stream.close()


async def test_rows_are_durable_when_the_call_returns(subject: Subject) -> None:
    await subject.log.record([row("a"), row("b", outcome=Outcome.PENDING)])
    assert [(r["push_id"], r["outcome"], r["final"]) for r in subject.kept()] == [
        ("a", "received", True),
        ("b", "pending", False),
    ]


async def test_every_transition_of_a_row_is_kept(subject: Subject) -> None:
    await subject.log.record([row("a", outcome=Outcome.PENDING)])
    await subject.log.record([row("a")])
    assert [r["outcome"] for r in subject.kept()][-1] == "received"


async def test_an_empty_batch_is_nothing_to_do(subject: Subject) -> None:
    await subject.log.record([])
    assert subject.kept() == []


async def test_recording_again_is_allowed(subject: Subject) -> None:
    for _ in range(2):
        await subject.log.record([row("a")])
    assert {r["push_id"] for r in subject.kept()} == {"a"}


async def test_text_of_every_kind_is_kept(subject: Subject) -> None:
    odd = 'quote " backslash \\ line\nbreak \u2028\u2029\x85 日本語 😀'
    await subject.log.record([row("a", event=odd, detail=odd), row("b")])
    assert [r["event"] for r in subject.kept()] == [odd, "order.paid"]


async def test_batches_at_once_do_not_mix(subject: Subject) -> None:
    await asyncio.gather(*(subject.log.record([row(f"{i}-{n}") for n in range(50)]) for i in range(10)))
    assert len({r["push_id"] for r in subject.kept()}) == 500


# --- JSON lines ------------------------------------------------------------------------------------------


def test_a_line_has_the_fields_of_the_view_and_its_nulls() -> None:
    line = line_of(row(user="", outcome=Outcome.PENDING, meta=b'{"a":\n"b"}'))
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "push_id": "p",
        "user_id": None,
        "outcome": "pending",
        "reason": "awaiting_proof",
        "final": False,
        "event": "order.paid",
        "app_id": "shop",
        "tenant": "",
        "meta": {"a": "b"},
        "published_at": "2027-01-15T11:59:59.000000+00:00",
        "taken_at": "2027-01-15T12:00:00.000000+00:00",
        "written_at": "2027-01-15T12:00:00.250000+00:00",
        "proven_at": None,
        "finished_at": None,
        "sessions": 1,
        "attempts": 1,
        "node": "n1",
        "detail": "",
        "expires_at": None,
        "late_at": None,
        "topic": None,
        "session": None,
        "holder": None,
        "batch_id": None,
        "batch_position": None,
        "confirm": "received",
        "ttl": None,
        "data_bytes": None,
        "collapse_key": None,
        "party": None,
    }


DERIVED = ("day", "latency_ms", "waited_ms", "differed_at")
"""Columns of the view that follow from the others, or from where the row is, or are noted afterwards."""
OF_THE_DATABASE = ("fallback_due", "fallback_at", "stored_at")
"""Columns of the view about what happens apart from the row's transitions, or by the database's clock."""


async def test_a_line_has_the_columns_of_the_view_in_its_order(database: str) -> None:
    store = PostgresStore(database)
    await store.record([row()])
    await store.close()
    async with await psycopg.AsyncConnection.connect(database) as conn:
        cursor = await conn.execute("select * from delivery")
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
    assert [name for name in names if name not in (*DERIVED, *OF_THE_DATABASE)] == list(
        json.loads(line_of(row()))
    )
    first = names.index("day")
    assert names[first : first + 4] == list(DERIVED)


@pytest.mark.parametrize("time", [-1e15, 1e15, 4e11, float("inf")])
def test_a_time_outside_of_the_calendar_is_cut(time: float) -> None:
    year = json.loads(line_of(row(published_at=time)))["published_at"][:4]
    assert year == ("0001" if time < 0 else "9999")


async def test_a_stream_that_is_gone_raises_and_a_later_one_works() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        log = JsonLinesLog(stream)
        await log.record([row("a")])
        os.close(reading)
        with pytest.raises(LogUnwritable) as failed:
            await log.record([row("b")])
        assert isinstance(failed.value, BridgeError)
        # What is buffered can't be written any more; without this, closing would try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


async def test_a_reader_that_stands_still_does_not_stop_the_event_loop() -> None:
    stream = Stalled()
    log = JsonLinesLog(stream)
    task = asyncio.create_task(log.record([row("a")]))
    while not stream.entered.is_set():
        await asyncio.sleep(0)
    assert not task.done()
    stream.go_on.set()
    await task


async def test_a_cancelled_call_does_not_break_the_line_of_the_next() -> None:
    stream = Stalled()
    log = JsonLinesLog(stream)
    first = asyncio.create_task(log.record([row("a")]))
    while not stream.entered.is_set():
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(log.record([row("b")]))
    stream.go_on.set()
    await second
    assert [json.loads(line)["push_id"] for line in stream.getvalue().splitlines()] == ["a", "b"]


class Stalled(io.StringIO, TextIO):
    """A stream whose reader stands still until it is told to go on; it writes a character at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.go_on.wait(10)
        for character in text:
            super().write(character)
        return len(text)


def test_noon_is_the_noon_of_the_lines() -> None:
    assert json.loads(line_of(row()))["taken_at"].startswith("2027-01-15T12:00:00")
    assert NOON == 1_800_014_400
