"""Postgres as installations have it: encodings, date styles, roles with few rights, poolers in between."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg import conninfo

from bridge.adapters.finding import Finding
from bridge.adapters.postgres import migrate
from bridge.adapters.postgres import rights as postgres_rights
from bridge.adapters.postgres.check import findings
from bridge.adapters.postgres.lease import PostgresLease
from bridge.adapters.postgres.pool import connect
from bridge.adapters.postgres.store import PostgresStore
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.core.errors import StatementFailed
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.ports.store import MailboxAsk, ResumeAsk
from bridge.operator import lookup
from tests.support.bridges import bridge, final_rows, get, publish, request, token
from tests.support.clients import client
from tests.support.rows import EVER, NOON, kept_row, row

DAY = datetime.timedelta(days=1)
ENVELOPE = ("bridge.v1.json",)


async def told(port: int, user: str, path: str = "/ws") -> dict[str, object]:
    """The first push that a session of this user gets."""
    async with client(port, token(user), subprotocols=ENVELOPE, path=path) as opened:
        while True:
            frame = await opened.read_json()
            if frame["type"] == "push":
                assert isinstance(frame, dict)
                return frame


# --- Encodings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["environment", "dsn", "role"])
async def test_a_user_of_any_script_is_served_whatever_encoding_the_surroundings_ask_for(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    dsn = database
    if wrong == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        monkeypatch.setenv("PGDATESTYLE", "German")
    elif wrong == "dsn":
        dsn = conninfo.make_conninfo(database, client_encoding="LATIN1")
    else:
        with psycopg.connect(database, autocommit=True) as conn:
            name = conn.info.dbname
            conn.execute(f"alter database {name} set client_encoding to 'SQL_ASCII'".encode())
            conn.execute(f"alter database {name} set datestyle to 'SQL, DMY'".encode())
    async with bridge(vhost, dsn) as b:
        await publish(vhost, {**request("Иван", "заказ-7"), "ttl": 60})
        assert (await told(b.ws_port, "Иван"))["id"] == "заказ-7"
    monkeypatch.delenv("PGCLIENTENCODING", raising=False)
    monkeypatch.delenv("PGDATESTYLE", raising=False)
    found = await lookup.look_up(dsn, "заказ-7")
    assert [r.user for r in found.rows] == ["Иван"]
    assert all(line.applied_at for line in migrate.status(dsn))


REFUSING = """
alter function mailbox_pages rename to pages_before;
create function mailbox_pages(a text[], b text[], c bigint[], d bigint[], e bigint[], f integer[], g bigint[])
    returns table (ord bigint, place bigint, more boolean, log delivery_log) language plpgsql as $$
begin
    if 'bad' = any(a) then
        raise exception 'no such character' using errcode = '22P05';
    end if;
    return query select * from pages_before(a, b, c, d, e, f, g);
end $$;
alter function resume_points rename to points_before;
create function resume_points(p_users text[], p_push_ids text[])
    returns table (ord bigint, seen bigint, cut boolean) language plpgsql as $$
begin
    if 'bad' = any(p_users) then
        raise exception 'no such character' using errcode = '22021';
    end if;
    return query select * from points_before(p_users, p_push_ids);
end $$;
"""


async def test_a_read_that_the_database_refuses_costs_its_own_session_and_nobody_else(
    vhost: str, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(REFUSING)
    store = PostgresStore(database)
    with pytest.raises(StatementFailed):
        await store.mailbox([MailboxAsk("bad", 0, EVER)])
    with pytest.raises(StatementFailed):
        await store.resume_points([ResumeAsk("bad", "p")])
    await store.close()
    async with bridge(vhost, database) as b:
        await publish(vhost, *({**request(user, f"to-{user}"), "ttl": 60} for user in ("bad", "good")))
        async with client(b.ws_port, token("bad"), subprotocols=ENVELOPE, path="/ws?last=p") as bad:
            assert (await bad.read_json())["complete"] is False
            assert (await told(b.ws_port, "good"))["id"] == "to-good"
            await publish(vhost, request("bad", "live"), request("good", "away"))
            rows = await final_rows(database, 2)
            assert {r["push_id"] for r in rows if r["final"]} >= {"to-good"}
        assert b.gate.is_open


# --- One row ---------------------------------------------------------------------------------------------

PICKY = """
create function picky() returns trigger language plpgsql as $$
begin
    if new.user_id = 'bad' then
        raise exception 'not this one' using errcode = '{0}';
    end if;
    return new;
end $$;
create trigger picky before insert or update on delivery_log for each row execute function picky();
"""


def drop_picky(conn: psycopg.Connection) -> None:
    """It locks the whole log, and may lose against a statement of the bridge that holds a part of it."""
    while True:
        try:
            conn.execute("drop function picky cascade")
        except psycopg.errors.DeadlockDetected:
            continue
        return


@pytest.mark.parametrize("sqlstate", ["0A000", "P0001", "42501", "54000", "XX000", "55000", "38000", "53400"])
async def test_a_row_that_the_database_does_not_take_is_set_aside_whatever_the_error(
    vhost: str, database: str, sqlstate: str
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(PICKY.format(sqlstate).encode())
        async with bridge(vhost, database) as b:
            users = [*(f"u{n}" for n in range(40)), "bad", *(f"v{n}" for n in range(40))]
            await publish(vhost, *(request(user, f"to-{user}") for user in users))
            rows = await final_rows(database, 80)
            assert {r["user_id"] for r in rows} == set(users) - {"bad"}
            await b.gate.opened()
            await publish(vhost, request("next", "next"))
            await final_rows(database, 81)
            status, page = await get(b.ops_port, "/metrics")
            assert (status, b"bridge_rows_set_aside 1" in page) == (200, True)
            await asyncio.to_thread(drop_picky, conn)
            rows = await final_rows(database, 82)
            assert {r["user_id"] for r in rows} == {*users, "next"}


async def test_what_takes_no_row_at_all_is_an_outage_and_is_told_as_one(vhost: str, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        async with bridge(vhost, database) as b:
            conn.execute(PICKY.format("P0001").replace("= 'bad'", "is not null").encode())
            await publish(vhost, request("u", "p"))
            async with asyncio.timeout(20):
                while b.gate.is_open:
                    await asyncio.sleep(0.01)
            assert any("not this one (P0001)" in cause for cause in b.gate.causes)
            await asyncio.to_thread(drop_picky, conn)
            await b.gate.opened()
            await final_rows(database, 1)


async def test_a_row_that_can_not_be_ended_keeps_no_other_from_its_end(database: str) -> None:
    store = PostgresStore(database)
    users = ("bad", *(f"u{n}" for n in range(20)))
    dead: dict[str, Any] = {"outcome": Outcome.PENDING, "reason": Reason.AWAITING_PROOF, "finished_at": None}
    await store.record(
        [kept_row(f"kept {user}", user, n, expires_at=NOON - 1e9) for n, user in enumerate(users)]
    )
    await store.record([row(f"pending {user}", user, node="n1", boot="old", **dead) for user in users])
    lease = PostgresLease(database, "n1", "new")
    await lease.claim()
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(PICKY.format("P0001").encode())
        for _ in range(2):
            ended = [*await store.expire(10), *await store.expire(100), *await lease.end_dead(100)]
            assert "bad" not in {r.key.user for r in ended}
        assert conn.execute(
            "select user_id, count(*) from delivery where not final group by 1"
        ).fetchall() == [("bad", 2)]
        conn.execute("drop function picky cascade")
    assert [r.key.user for r in (*await store.expire(10), *await lease.end_dead(10))] == ["bad", "bad"]
    await lease.release()
    await store.close()


# --- Views of time ---------------------------------------------------------------------------------------

FILL = """
insert into delivery_log (day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
    published_at, taken_at, written_at, proven_at, finished_at, node, boot, event, app_id, detail, traceparent)
select d.day, '', 'p' || n, 'u' || n % 1000, 'received', 'pong', true, 2, 1, 1,
    t.at - interval '1 second', t.at, t.at, t.at, t.at, 'n1', 'b', 'e', '', '', ''
from (select l.day - 3 + i as day from log_day l, generate_series(0, 3) i) d
cross join generate_series(1, 20000) n
cross join lateral (
    select (d.day::timestamp at time zone 'UTC') + make_interval(secs => n * 86400.0 / 20001) as at) t
"""


def grown(dsn: str) -> None:
    """Eighty thousand rows in four days."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select make_partition(day - i) from log_day, generate_series(1, 3) i")
        conn.execute(FILL)
        conn.execute("analyze delivery_log; analyze tally")


@pytest.mark.parametrize(
    ("view", "where"),
    [
        ("delivery", "taken_at >= %s and taken_at < %s"),
        ("delivery", "day = %s and taken_at < %s"),
        ("user_timeline", "user_id = 'u7' and at >= %s and at < %s"),
        ("user_timeline", "taken_at >= %s and taken_at < %s"),
    ],
)
def test_a_view_of_time_reads_only_the_time_that_it_is_asked_for(
    database: str, view: str, where: str
) -> None:
    grown(database)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("set timezone to 'Asia/Kolkata'")
        # Hours of this zone begin in the middle of those of UTC.
        [(day, hour)] = conn.execute(
            "select day - 1, (day - 1)::timestamp at time zone 'UTC' + interval '30 min' from log_day"
        ).fetchall()
        until = hour + datetime.timedelta(hours=1)
        params = (day if "day" in where else hour, until)
        query = psycopg.ClientCursor(conn).mogrify(f"select * from {view} where {where}", params)
        conn.execute(query.encode())
        [[[plan]]] = conn.execute(f"explain (analyze, buffers, format json) {query}".encode()).fetchall()
        assert plan["Plan"]["Actual Rows"] > 0
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 600, plan
        read = [node for node in _nodes(plan["Plan"]) if node.get("Actual Loops")]
        assert [
            n for n in read if n["Node Type"] == "Seq Scan" and "delivery_log" in n["Relation Name"]
        ] == []


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


async def test_absence_is_told_apart_from_latency(database: str) -> None:
    store = PostgresStore(database)
    times: dict[str, Any] = {
        "published_at": NOON - 1,
        "taken_at": NOON,
        "written_at": NOON + 60,
        "proven_at": NOON + 60.25,
    }
    await store.record(
        [
            row("live", published_at=NOON - 1, taken_at=NOON, written_at=NOON + 0.5, proven_at=NOON + 1),
            kept_row("came", outcome=Outcome.RECEIVED, finished_at=NOON + 61, attempts=1, **times),
            kept_row("twice", outcome=Outcome.RECEIVED, finished_at=NOON + 61, attempts=2, **times),
        ]
    )
    await store.close()
    with psycopg.connect(database) as conn:
        found = conn.execute("select push_id, latency_ms, waited_ms from delivery order by 1").fetchall()
    assert found == [("came", 1250.0, 60000.0), ("live", 2000.0, None), ("twice", None, 60000.0)]


# --- Roles -----------------------------------------------------------------------------------------------


class Roles(NamedTuple):
    """A database whose schema belongs to one role, and is used by another."""

    admin: str
    owner: str
    app: str

    @property
    def app_name(self) -> str:
        return str(conninfo.conninfo_to_dict(self.app)["user"])


@pytest.fixture
def roles(empty_database: str) -> Iterator[Roles]:
    name = conninfo.conninfo_to_dict(empty_database)["dbname"]
    made = {role: f"{role}_{name}" for role in ("owner", "app")}
    with psycopg.connect(empty_database, autocommit=True) as admin:
        for role in made.values():
            admin.execute(f"create role {role} login password 'x'".encode())
        admin.execute(f"grant create, usage on schema public to {made['owner']}".encode())
        admin.execute("revoke create on schema public from public")
        dsns = {role: conninfo.make_conninfo(empty_database, user=made[role], password="x") for role in made}
        migrate.upgrade(dsns["owner"])
        yield Roles(empty_database, **dsns)
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = any(%s)",
            (list(made.values()),),
        )
        for role in reversed(made.values()):
            admin.execute(f"drop owned by {role} cascade".encode())
            admin.execute(f"drop role {role}".encode())


def failed(found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level != "ok"]


async def test_a_role_that_does_not_own_the_schema_runs_a_bridge_over_midnight_and_drops_old_days(
    vhost: str, roles: Roles
) -> None:
    assert postgres_rights.grant(roles.owner, roles.app_name)
    assert postgres_rights.grant(roles.owner, roles.app_name), "as often as one likes"
    assert failed(await findings(roles.app)) == []
    async with bridge(vhost, roles.app) as b:
        await publish(vhost, {**request("u", "p"), "ttl": 60}, request("v", "q"))
        assert (await told(b.ws_port, "u"))["id"] == "p"
        await final_rows(roles.admin, 2)
    store = PostgresStore(roles.app)
    with psycopg.connect(roles.admin, autocommit=True) as conn:
        for n in range(6):
            conn.execute("select roll_day(day + 1) from log_day")
            await store.record([row(f"day {n}")])
        [(oldest, today)] = conn.execute("select min(day), max(day) from delivery_log").fetchall()
        done = await Upkeep(roles.app).run_once(3)
        assert (done.trouble, done.kept) == ([], [])
        assert done.made
        assert len(done.dropped) == (today - oldest).days - 3
        assert conn.execute("select min(day) from delivery_log").fetchall() == [(today - 3 * DAY,)]
        # A row that is kept holds its day, whoever asks.
        conn.execute("update delivery_log set owed = '[]' where day = %s", (today - 3 * DAY,))
        done = await Upkeep(roles.app).run_once(2)
        assert (done.kept, done.dropped) == ([f"delivery_log_{today - 3 * DAY:%Y%m%d}"], [])
    await store.close()


async def test_what_a_role_lacks_is_found_with_the_statement_that_mends_it(roles: Roles) -> None:
    for _ in range(200):
        lacking = failed(await findings(roles.app))
        if not lacking:
            break
        assert {finding.what for finding in lacking} <= {"rights"}
        with psycopg.connect(roles.owner, autocommit=True) as conn:
            for finding in lacking:
                conn.execute(finding.words.partition(": ")[2].encode())
    assert failed(await findings(roles.app)) == []


@pytest.mark.parametrize(
    "right",
    [
        "insert on tally", "delete on tally", "update on log_day", "insert on past_boot", "delete on node",
        "select on schema_version", "insert on push_content", "execute on function make_partition(date)",
        "execute on function drop_partition(date,integer)",
    ],
)  # fmt: skip
async def test_each_right_that_a_week_needs_is_missed_by_the_check(roles: Roles, right: str) -> None:
    postgres_rights.grant(roles.owner, roles.app_name)
    with psycopg.connect(roles.owner, autocommit=True) as conn:
        conn.execute(f"revoke {right} from {roles.app_name}".encode())
    [finding] = failed(await findings(roles.app))
    assert (finding.level, finding.what) == ("fail", "rights")
    assert finding.words.endswith(f"grant {right} to {roles.app_name};")


async def test_the_functions_of_the_owner_do_nothing_else(roles: Roles) -> None:
    postgres_rights.grant(roles.owner, roles.app_name)
    with psycopg.connect(roles.owner, autocommit=True) as conn:
        found = conn.execute(
            "select proname, proconfig from pg_proc where prosecdef and proowner = current_user::regrole order by 1"
        ).fetchall()
        assert [name for name, _ in found] == [
            "count_hour",
            "drop_partition",
            "hours_to_count",
            "make_partition",
            "note_changed_hours",
            "note_counted",
        ]
        assert all("search_path=pg_catalog, public, pg_temp" in config for _, config in found)
        conn.execute("create table mine (n int)")
        conn.execute("create table delivery_log_19990101 (n int)")
    with psycopg.connect(roles.app, autocommit=True) as conn:
        # A table of the caller's own with the name of ours is not taken for it.
        conn.execute("create temp table log_day (day date, since date, kept_since date)")
        conn.execute("insert into pg_temp.log_day select '2090-01-01', '2090-01-01', '2090-01-01'")
        for refused in (
            "select drop_partition(public.log_day.day, 0) from public.log_day",
            "select drop_partition(public.log_day.day - 1, 0) from public.log_day",
            "select drop_partition(null, 1)",
            "select drop_partition('2000-01-01', -10000)",
            "select make_partition('infinity')",
            "select make_partition(null)",
            "select make_partition('9999-01-01')",
            "select count_hour(null, '2000-01-01 00:00+00')",
            "select count_hour('2000-01-01', '2000-01-01 00:30+00')",
        ):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                conn.execute(refused.encode())
        # Not a partition of ours.
        assert conn.execute("select drop_partition('1999-01-01', 1)").fetchall() == [(False,)]
        assert conn.execute("select count_hour('1999-01-01', '1999-01-01 00:00+00')").fetchall() == [(False,)]
    with psycopg.connect(roles.owner, autocommit=True) as conn:
        conn.execute(f"revoke execute on function make_partition(date) from {roles.app_name}".encode())
    with psycopg.connect(roles.app, autocommit=True) as conn:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("select make_partition(current_date + 9)")


async def test_a_database_that_only_reads_is_found_with_what_mends_it(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for setting, mends in ((f"database {conn.info.dbname}", f"alter database {conn.info.dbname} reset"),):
            conn.execute(f"alter {setting} set default_transaction_read_only to on".encode())
            [finding] = failed(await findings(database))
            assert finding.level == "fail"
            assert mends in finding.words
    [finding] = failed(
        await findings(conninfo.make_conninfo(database, options="-c default_transaction_read_only=on"))
    )
    assert "DSN or PGOPTIONS" in finding.words


async def test_a_clock_that_is_wrong_is_found(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    for ahead, level in ((5.0, "warn"), (-60.0, "fail")):
        monkeypatch.setattr("bridge.adapters.postgres.check.time.time", lambda ahead=ahead: right() + ahead)
        [finding] = failed(await findings(database))
        assert (finding.level, finding.what) == (level, "clock")


async def test_the_check_leaves_nothing_behind(database: str) -> None:
    def content() -> list[tuple[Any, ...]]:
        with psycopg.connect(database, autocommit=True) as conn:
            return conn.execute(
                "select c.relname, (xpath('/row/n/text()',"
                " query_to_xml(format('select count(*) as n from %I', c.relname), true, true, '')))[1]::text"
                " from pg_class c where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace order by 1"
            ).fetchall()

    before = content()
    assert failed(await findings(database)) == []
    assert content() == before


# --- What a role may have set ----------------------------------------------------------------------------

SETTINGS = {
    "synchronous_commit": ("off", "on"),
    "array_nulls": ("off", "on"),
    "extra_float_digits": ("-15", "1"),
}
"""By name: what a role has, and what the bridge's connections have all the same."""


async def test_what_a_role_has_set_neither_loses_rows_nor_changes_what_is_written(
    vhost: str, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        for name, (theirs, _) in SETTINGS.items():
            conn.execute(f"alter database {conn.info.dbname} set {name} to '{theirs}'".encode())
    opened = await connect(database, "test")
    for name, (_, ours) in SETTINGS.items():
        found = await (await opened.execute("select current_setting(%s)", (name,))).fetchone()
        assert found == (ours,), name
    opened.pgconn.finish()
    async with bridge(vhost, database):
        await publish(vhost, request("nobody", "p1"))
        (row,) = await final_rows(database, 1)
    assert row["outcome"] == "offline"
    assert abs(row["taken_at"].timestamp() - time.time()) < 60
    assert all(finding.level != "fail" for finding in await findings(database))
