"""A log that takes no row is an outage, whatever its words; a row that it does not take is a row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from bridge.adapters.finding import Finding
from bridge.adapters.postgres.check import findings
from tests.support.bridges import Process, bridge, final_rows, get, process, publish, request
from tests.support.check_command import run_check

SQLSTATES = (
    "23514", "22023", "54000", "P0001", "P0B01", "0A000", "42501", "42P01", "40001", "55P03", "57014", "57P01", "53100",
    "08006", "25006", "XX000",
)  # fmt: skip


def meddling(does: str, events: str = "insert or update") -> str:
    return f"""
        create function meddle() returns trigger language plpgsql as $$ begin {does}; end $$;
        create trigger meddle before {events} on delivery_log for each row execute function meddle();
        """


def refusing(sqlstate: str) -> str:
    return meddling(f"raise exception 'none at all' using errcode = '{sqlstate}'")


WAYS = {
    "returns null": meddling("return null"),
    "returns null at an update": meddling("return null", "update"),
    "refuses an update": meddling("raise exception 'none at all'", "update"),
    "changes the row": meddling(
        "new.outcome := 'offline'; new.reason := 'no_session'; new.final := true; return new"
    ),
    "a rule": "create rule meddle as on insert to delivery_log do instead nothing",
    "at the commit": """
        create function meddle() returns trigger language plpgsql as $$ begin raise exception 'none at all'; end $$;
        create constraint trigger meddle after insert on delivery_log deferrable initially deferred
            for each row execute function meddle();
        """,
}


def end(conn: psycopg.Connection) -> None:
    """Drop it; that locks the whole log, and may lose against a statement of the bridge."""
    while True:
        try:
            conn.execute("drop rule if exists meddle on delivery_log")
            conn.execute("drop function if exists meddle cascade")
        except psycopg.errors.DeadlockDetected:
            continue
        return


async def failures(database: str) -> list[Finding]:
    return [f for f in await findings(database) if f.level != "ok"]


@pytest.mark.parametrize("sqlstate", SQLSTATES)
async def test_a_check_fails_where_a_trigger_refuses_every_row(database: str, sqlstate: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(refusing(sqlstate).encode())
        (found,) = await failures(database)
        assert (found.level, found.what) == ("fail", "rows")
        assert f"none at all ({sqlstate})" in found.words
        assert "alter table delivery_log disable trigger meddle;" in found.words
        conn.execute("alter table delivery_log disable trigger meddle")
        assert await failures(database) == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_check_fails_where_rows_do_not_stay_as_they_are_written(database: str, way: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(WAYS[way].encode())
        (found,) = await failures(database)
        assert (found.level, found.what) == ("fail", "rows")
        assert "meddle on delivery_log" in found.words
        end(conn)
        assert await failures(database) == []


async def test_the_exit_code_of_a_check_is_that_of_a_failure(vhost: str, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(refusing("55000").encode())
    assert await asyncio.to_thread(run_check, vhost, database) == 1


async def test_a_lock_that_somebody_holds_is_a_warning_as_before(database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("lock table delivery_log in share mode")
        found = await failures(database)
    assert {f.level for f in found} == {"warn"}
    assert "could not be tried now: canceling statement due to lock timeout" in found[0].words


@asynccontextmanager
async def shut(vhost: str, database: str, sql: str) -> AsyncIterator[tuple[psycopg.Connection, list[str]]]:
    """A bridge that was ready, and this in its log: the gate's causes after the first push."""
    with psycopg.connect(database, autocommit=True) as conn:
        async with process(vhost, database) as served:
            await publish(vhost, request("u0", "p0"))
            await final_rows(database, 1)
            conn.execute(sql.encode())
            await publish(vhost, *(request(f"u{n}", f"p{n}") for n in range(1, 30)))
            async with asyncio.timeout(20):
                causes: list[str] = []
                while not any("takes no rows" in cause for cause in causes):
                    causes = await served.ready(503)
                    await asyncio.sleep(0.02)
            status, page = await get(served.ops_port, "/metrics")
            assert status == 200
            assert b"bridge_database_up 0.0" in page
            assert b"bridge_ready 0.0" in page
            assert b"bridge_rows_set_aside 0.0" in page
            yield conn, causes
            end(conn)
            await served.ready()
            rows = await final_rows(database, 30)
            assert {(r["outcome"], r["detail"]) for r in rows} == {("offline", "")}


@pytest.mark.parametrize("sqlstate", ["22023", "23514", "40001", "42P01", "57P01", "P0001", "P0B01"])
async def test_what_refuses_every_row_shuts_the_gate_with_its_words_and_costs_nothing(
    vhost: str, database: str, sqlstate: str
) -> None:
    async with shut(vhost, database, refusing(sqlstate)) as (_, causes):
        assert any(
            c.startswith(f"rows: the delivery log takes no rows: none at all ({sqlstate})") for c in causes
        )
        assert not any("away" in cause for cause in causes)


async def test_what_drops_every_row_without_a_word_shuts_the_gate(vhost: str, database: str) -> None:
    async with shut(vhost, database, WAYS["returns null"]) as (_, causes):
        assert any("there is trigger meddle on delivery_log" in cause for cause in causes)


@pytest.mark.parametrize("sql", [refusing("23514"), WAYS["returns null"]], ids=["refused", "dropped"])
async def test_a_bridge_that_starts_on_a_log_that_takes_no_rows_is_not_ready(
    vhost: str, database: str, sql: str
) -> None:
    served = Process(vhost, database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(sql.encode())
        await served.start()
        try:
            async with asyncio.timeout(20):
                while "starting: the delivery log takes no rows" not in str(await served.ready(503)):
                    await asyncio.sleep(0.05)
            status, body = await get(served.ops_port, "/status")
            assert (status, json.loads(body)["ready"]) == (200, False)
            end(conn)
            await served.ready()
            assert await served.stop() == 0
        finally:
            if served.alive:
                await served.kill()


@pytest.mark.parametrize("sqlstate", ["23514", "22023", "57P01"])
async def test_one_row_that_is_refused_among_good_ones_costs_nobody_else(
    vhost: str, database: str, sqlstate: str
) -> None:
    does = f"if new.user_id = 'bad' then raise exception 'not it' using errcode = '{sqlstate}'; end if; return new"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(meddling(does).encode())
        async with bridge(vhost, database) as b:
            users = [*(f"u{n}" for n in range(20)), "bad", *(f"v{n}" for n in range(20))]
            await publish(vhost, *(request(user, f"to-{user}") for user in users))
            assert {r["user_id"] for r in await final_rows(database, 40)} == set(users) - {"bad"}
            await b.gate.opened()
            end(conn)
            await final_rows(database, 41)
