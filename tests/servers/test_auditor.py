"""The figures of the audit metric: quiet when all adds up, and each kind of loss is found."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import psycopg
import pytest

from bridge.adapters.postgres.store import PostgresStore
from bridge.app import build as app
from bridge.core.delivery.routing import Router
from bridge.core.errors import StoreUnavailable
from bridge.core.inflight.flight import Flight
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Row, RowKey
from bridge.core.ports.store import Account
from bridge.operator import auditor, books
from bridge.operator.auditor import CHECKS, SETTLE, SLICE, Auditor
from bridge.operator.books import Irregular, Stretch
from tests.support.bridges import bridge, final_rows, get, publish, request, token
from tests.support.clients import client
from tests.support.ports import ManualClock
from tests.support.rows import row as logged

ALL_WELL = Account(begun=0, with_row=0, on_their_way=0, ages=())
NOTHING = Irregular(0, 0, 0, 0, 0, 0, 0, None, (), ())
START = 1_800_000_000.0
"""The beginning of a slice."""


class Log:
    """What an auditor is given to look at the log: answers with what the test says, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []
        self.of_boot = 0
        self.wrong = 0
        self.unbalanced = 0
        self.irregular = NOTHING
        self.error: Exception | None = None

    async def look(self, since: float, until: float) -> tuple[Stretch, Irregular]:
        self.asked.append((since, until))
        if self.error is not None:
            raise self.error
        return Stretch(self.of_boot, self.wrong, self.unbalanced), self.irregular


def committed(at: float, outcome: Outcome = Outcome.RECEIVED, boot: str = "b1") -> Row:
    reason = {Outcome.RECEIVED: Reason.PONG, Outcome.STORED: Reason.NO_SESSION}[outcome]
    finished = at if outcome is Outcome.RECEIVED else None
    return Row(RowKey("", "p1", "u1"), outcome, reason, "n1", boot, at, at, finished_at=finished)


def made(log: Log | None, start: float = START) -> tuple[Auditor, ManualClock]:
    clock = ManualClock(start)
    return Auditor("b1", clock, None if log is None else log.look), clock


async def test_all_checks_are_made_and_say_when() -> None:
    log = Log()
    audit, clock = made(log)
    assert (audit.drift, audit.audited_at) == ({}, 0.0)
    clock.advance(7.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift == dict.fromkeys(CHECKS, 0)
    assert audit.audited_at == START + 7.0


async def test_a_push_that_has_no_row_and_is_not_on_its_way_is_lost() -> None:
    audit, _ = made(None)
    await audit.run(Account(10, 6, 4, [0.1] * 4), gate_open=True)
    assert audit.drift == {"taken": 0, "stuck": 0}
    await audit.run(Account(10, 6, 3, [0.1] * 3), gate_open=True)
    assert audit.drift["taken"] == 1
    await audit.run(Account(10, 8, 3, [0.1] * 3), gate_open=True)
    assert audit.drift["taken"] == 1, "a row too many is no better than one too few"


async def test_a_push_on_its_way_for_long_is_stuck_unless_something_held_the_bridge_back() -> None:
    audit, _ = made(None)
    old = Account(2, 0, 2, [0.1, 700.0])
    stuck = []
    for gate_open in (True, False, True, True):
        await audit.run(old, gate_open=gate_open)
        stuck.append(audit.drift["stuck"])
    assert stuck == [0, 0, 0, 1]


async def test_rows_are_looked_for_once_a_minute_or_two_after_their_taking() -> None:
    log = Log()
    audit, clock = made(log, START + 30.0)
    clock.advance(SLICE)
    await audit.run(ALL_WELL, gate_open=True)
    clock.advance(SLICE)
    await audit.run(ALL_WELL, gate_open=True)
    clock.advance(3 * SLICE)
    await audit.run(ALL_WELL, gate_open=True)
    assert log.asked == [(START, START), (START, START + SLICE), (START + SLICE, START + 4 * SLICE)]
    assert SETTLE == SLICE


async def test_a_committed_row_that_the_log_does_not_have_is_missing_for_good() -> None:
    log = Log()
    audit, clock = made(log)
    for at in (START, START + 59.9, START + 60.0):
        audit.on_outcome(committed(at))
    log.of_boot = 1
    clock.advance(120.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift["missing_rows"] == 1
    log.of_boot = 5
    clock.advance(60.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift["missing_rows"] == 1, "more rows elsewhere do not make up for it"


async def test_only_final_rows_of_this_boot_that_it_took_itself_are_expected() -> None:
    log = Log()
    audit, clock = made(log)
    audit.on_outcome(committed(START + 1, Outcome.STORED))
    audit.on_outcome(committed(START + 1, boot="b0"))
    audit.on_outcome(committed(START - 1))
    clock.advance(120.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift["missing_rows"] == 0
    audit.on_outcome(committed(START + 1))
    clock.advance(60.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift["missing_rows"] == 0, "its slice has been looked at"


async def test_while_the_log_can_not_be_asked_nothing_is_forgotten_and_the_time_stands_still() -> None:
    log = Log()
    audit, clock = made(log)
    audit.on_outcome(committed(START))
    log.error = StoreUnavailable("away")
    clock.advance(120.0)
    with pytest.raises(StoreUnavailable):
        await audit.run(Account(1, 0, 0, ()), gate_open=False)
    assert (audit.drift, audit.audited_at) == ({"taken": 1, "stuck": 0}, 0.0)
    log.error = None
    clock.advance(60.0)
    await audit.run(ALL_WELL, gate_open=True)
    assert log.asked[-1] == (START, START + 120.0)
    assert (audit.drift["missing_rows"], audit.audited_at) == (1, START + 180.0)


async def test_what_the_log_says_of_itself_is_told_as_it_is_now() -> None:
    log = Log()
    audit, clock = made(log)
    log.irregular = Irregular(1, 2, 3, 4, 7, 9, 6, None, (), [date(2026, 11, 23)])
    log.wrong = 5
    log.unbalanced = 6
    for _ in range(2):
        clock.advance(60.0)
        await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift == {
        "taken": 0, "stuck": 0, "missing_rows": 0, "wrong_rows": 10, "log_rows": 12,
        "dead_nodes": 1, "stuck_rows": 2, "receipts": 3, "kept": 4, "fallbacks": 7, "partitions": 1,
        "scheduled": 6,
    }  # fmt: skip
    log.irregular = NOTHING
    await audit.run(ALL_WELL, gate_open=True)
    assert audit.drift["kept"] == 0


# --- in a whole bridge -----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits without the waiting."""
    monkeypatch.setattr(app, "LIMITS", dataclasses.replace(app.LIMITS, audit_every=0.1))
    monkeypatch.setattr(auditor, "SLICE", 0.25)
    # A row that is written later than this after its taking is in no slice that is looked at.
    monkeypatch.setattr(auditor, "SETTLE", 2.0)


async def audited(b: app.Running, good: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Wait until the page's figures are what is wanted; `at` is when they were made."""
    figures: dict[str, float] = {}
    try:
        async with asyncio.timeout(15):
            while True:
                _, page = await get(b.ops_port, "/metrics")
                found = re.findall(
                    r'^bridge_audit_drift\{check="(\w+)"\} (\S+)$', page.decode(), re.MULTILINE
                )
                figures = {check: float(value) for check, value in found}
                (at,) = re.findall(r"^bridge_audit_timestamp_seconds (\S+)$", page.decode(), re.MULTILINE)
                figures["at"] = float(at)
                if good(figures):
                    return figures
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within 15 s: {figures}") from None


@pytest.mark.usefixtures("quick")
async def test_after_traffic_of_all_kinds_every_figure_is_0(vhost: str, database: str) -> None:
    async with bridge(vhost, database, confirm_timeout=2.0) as b, client(b.ws_port, token("u1")) as c:
        await publish(
            vhost, *[request("u1", f"p{n}") for n in range(50)], request("away", "p99"), {"data": 1}
        )
        await publish(vhost, request("away", "kept", ttl=60), request("away", "short", ttl=0.1))
        await c.read_many(50)
        found = await final_rows(database, 53)
        async with client(b.ws_port, token("away")) as back:
            await back.read()
            await final_rows(database, 54)
        done = max(row["taken_at"] for row in found).timestamp()
        figures = await audited(b, lambda f: f["at"] > done + 3.0)
    assert figures.keys() == {*CHECKS, "at"}
    assert not any(value for check, value in figures.items() if check != "at")


@pytest.mark.usefixtures("quick")
async def test_rows_that_vanish_from_the_log_show(vhost: str, database: str) -> None:
    async with bridge(vhost, database) as b, client(b.ws_port, token("u1")) as c:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "create function forget() returns trigger language plpgsql as"
                " $$ begin delete from delivery_log where push_id = 'p2'; return null; end $$"
            )
            connection.execute(
                "create trigger forget after insert on delivery_log for each statement execute function forget()"
            )
        await publish(vhost, request("u1", "p1"), request("u1", "p2"), request("u1", "p3"))
        await c.read_many(3)
        figures = await audited(b, lambda f: f.get("missing_rows", 0) > 0)
    assert figures["missing_rows"] == 1
    assert figures["taken"] == 0


@pytest.mark.usefixtures("quick")
async def test_a_push_that_the_bridge_loses_shows(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = Router.route

    def lose(self: Router, flight: Flight, *rest: object) -> None:
        if flight.key.push_id == "p2":
            self._inflight._index.remove(flight)
        else:
            real(self, flight, *rest)

    monkeypatch.setattr(Router, "route", lose)
    async with bridge(vhost, database, drain_timeout=1.0) as b:
        await publish(vhost, request("u1", "p1"), request("u1", "p2"))
        await final_rows(database, 1)
        figures = await audited(b, lambda f: f.get("taken", 0) > 0)
    assert figures["taken"] == 1


@pytest.mark.usefixtures("quick")
async def test_without_a_log_in_a_database_the_process_still_compares_what_it_knows(
    vhost: str, database: str
) -> None:
    async with bridge(vhost, database, delivery_log=["stdout"]) as b:
        figures = await audited(b, lambda f: f["at"] > 0)
    assert figures.keys() == {"taken", "stuck", "at"}


async def test_of_the_log_only_final_rows_of_this_boot_in_this_stretch_count(database: str) -> None:
    store = PostgresStore(database)
    taken: list[tuple[float, dict[str, object]]] = [
        (START, {}),
        (START + 59.9999999, {}),
        (START + 60.1, {}),
        (START - 0.1, {}),
        (START + 1, {"boot": "another"}),
        (START + 2, {"outcome": Outcome.PENDING, "reason": Reason.AWAITING_PROOF, "finished_at": None}),
        (START + 3, {"boot": "another", "proven_at": None}),
    ]
    for number, (at, more) in enumerate(taken):
        made = {"taken_at": at, "published_at": at, "finished_at": at, "proven_at": at, "boot": "b1", **more}
        await store.record([logged(f"p{number}", **made)])  # type: ignore[arg-type]
    await store.close()
    stretch, _ = await books.read_stretch(database, "b1", START, START + 60.0, 5.0)
    assert stretch == Stretch(of_boot=2, wrong=1, unbalanced=0)
    for change, unbalanced in (
        ("delete from delivery_log where push_id = 'p0'", 1),
        ("delete from delivery_log where push_id = 'p2'", 1),  # of another minute
        ("update tally set rows = rows - 1 where minute = to_timestamp(1800000000) and boot = 'another'", 0),
        ("update tally set rows = 0 where minute = to_timestamp(1800000000)", 3),
    ):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(change)
        stretch, _ = await books.read_stretch(database, "b1", START, START + 60.0, 5.0)
        assert stretch.unbalanced == unbalanced, change


async def test_the_log_is_asked_by_its_indexes(database: str) -> None:
    queries = [
        (books._STRETCH, {"boot": "b1", "since": START, "until": START + 60}),
        (books._PENDING, {}),
        (books._OVERDUE, {}),
        (books._UNEXPIRED, {}),
    ]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            """
            insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions,
                attempts, published_at, taken_at, finished_at, node, boot, event, app_id, detail, traceparent,
                expires_at, payload, encoding)
            select day, '', 'p' || n, 'u' || mod(n, 100), case when mod(n, 2) = 0 then 'stored' else 'offline' end,
                'no_session', mod(n, 2) = 1, 2, 0, 0, t, t, case when mod(n, 2) = 1 then t end, 'n', 'b1',
                '', '', '', '', case when mod(n, 2) = 0 then now() + interval '1 hour' end, '1', 'json'
            from log_day, generate_series(1, 50000) n,
                lateral (select to_timestamp(%s) + n * interval '1 second' as t) as times
            """,
            (START,),
        )
        connection.execute("analyze")
        for query, params in queries:
            plan = connection.execute(
                "explain (analyze, format json) " + query,
                params,
            ).fetchone()
            assert plan is not None
            assert read_of_the_log(plan[0][0]["Plan"]) <= 200, query


def read_of_the_log(node: dict[str, Any]) -> float:
    """Rows that this plan read of the partitions, those thrown away among them."""
    rows = sum(read_of_the_log(inner) for inner in node.get("Plans", ()))
    if str(node.get("Relation Name", "")).startswith("delivery_log"):
        rows += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return rows


@pytest.mark.usefixtures("quick")
async def test_what_somebody_put_into_the_schema_ends_no_bridge(
    vhost: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with psycopg.connect(database, autocommit=True) as somebody:
        somebody.execute("create table delivery_log_20269999 (n int)")
        somebody.execute(
            "create table delivery_log_20269998 partition of delivery_log for values in ('2099-01-01')"
        )
        async with bridge(vhost, database) as b:
            async with asyncio.timeout(15):
                while "upkeep of delivery_log_20269999" not in caplog.text:
                    await asyncio.sleep(0.02)
            since = time.time()
            figures = await audited(b, lambda found: found["at"] > since)
            assert figures["partitions"] == 0
            # A time that no Python has: the audit can't tell how old the row is.
            await publish(vhost, request("away", "p1"))
            await final_rows(database, 1)
            somebody.execute(
                "update delivery_log set outcome = 'pending', final = false, taken_at = 'infinity'"
            )
            async with asyncio.timeout(15):
                while "audit: " not in caplog.text:
                    await asyncio.sleep(0.02)
            somebody.execute("delete from delivery_log")
            await publish(vhost, request("away", "p2"))
            assert [row["push_id"] for row in await final_rows(database, 1)] == ["p2"]
