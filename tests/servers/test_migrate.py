"""The schema's history: applied once and in order, refused when it was tampered with, told apart when behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.check import about_version
from bridge.adapters.postgres.migrate import Migration, MigrationChanged, MigrationFailed
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.errors import DatabaseUnsuitable, SchemaBehind, StoreUnavailable
from bridge.core.model.outcomes import ENDINGS
from bridge.core.model.parties import PARTIES

ONE = Migration(1, "0001_one.sql", "create table one (n int);")
TWO = Migration(2, "0002_two.sql", "create table two (n int); insert into one values (1);")
BROKEN = Migration(3, "0003_broken.sql", "create table three (n int); select nonsense;")


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def test_the_files_are_numbered_without_a_gap() -> None:
    assert [m.version for m in migrate.MIGRATIONS] == list(range(1, migrate.WANTED_VERSION + 1))


def test_an_upgrade_applies_everything_once_and_says_what(empty_database: str) -> None:
    names = [m.name for m in migrate.MIGRATIONS]
    assert [s.applied_at for s in migrate.status(empty_database)] == [None] * len(names)
    assert migrate.upgrade(empty_database) == names
    assert migrate.upgrade(empty_database) == []
    assert [s.name for s in migrate.status(empty_database) if s.applied_at] == names
    with psycopg.connect(empty_database) as conn:
        assert migrate.current_version(conn) == migrate.WANTED_VERSION


def test_status_and_sql_change_nothing(empty_database: str) -> None:
    migrate.status(empty_database)
    migrate.pending_sql(empty_database)
    assert tables(empty_database) == set()


def test_an_upgrade_goes_on_from_where_the_database_is(empty_database: str) -> None:
    assert migrate.upgrade(empty_database, (ONE,)) == [ONE.name]
    assert migrate.upgrade(empty_database, (ONE, TWO)) == [TWO.name]
    assert [s.applied_at is not None for s in migrate.status(empty_database, (ONE, TWO, BROKEN))] == [
        True, True, False,
    ]  # fmt: skip


def test_a_migration_that_fails_leaves_nothing_behind_and_keeps_the_earlier_ones(empty_database: str) -> None:
    with pytest.raises(MigrationFailed) as failed:
        migrate.upgrade(empty_database, (ONE, TWO, BROKEN))
    assert failed.value.name == BROKEN.name
    assert "nonsense" in failed.value.problem
    assert tables(empty_database) == {"schema_version", "one", "two"}
    with psycopg.connect(empty_database) as conn:
        assert migrate.current_version(conn) == 2


def test_an_applied_file_that_was_changed_is_named_and_nothing_is_applied(empty_database: str) -> None:
    migrate.upgrade(empty_database, (ONE,))
    changed = ONE._replace(sql=ONE.sql + "\n")
    for call in (migrate.upgrade, migrate.status, migrate.pending_sql):
        with pytest.raises(MigrationChanged, match=r"0001_one\.sql") as refused:
            call(empty_database, (changed, TWO))
        assert refused.value.name == ONE.name
    assert "two" not in tables(empty_database)


def test_two_upgrades_at_once_apply_everything_once(empty_database: str) -> None:
    applied: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: applied.append(migrate.upgrade(empty_database))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(applied) == [[], [], [m.name for m in migrate.MIGRATIONS]]


def test_the_sql_for_psql_makes_the_same_schema(empty_database: str, tmp_path: Path) -> None:
    script = tmp_path / "schema.sql"
    script.write_text(migrate.pending_sql(None), encoding="utf-8")
    run_script(empty_database, script)
    assert all(s.applied_at for s in migrate.status(empty_database))
    assert migrate.pending_sql(empty_database) == ""
    assert migrate.upgrade(empty_database) == []


def run_script(dsn: str, script: Path) -> None:
    """As somebody else would run it: with psql where there is one, else statement by statement."""
    try:
        subprocess.run(
            ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--file={script}", dsn],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    except FileNotFoundError:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(script.read_text(encoding="utf-8").encode())


def test_pending_sql_gives_only_what_is_missing(empty_database: str) -> None:
    migrate.upgrade(empty_database, (ONE,))
    pending = migrate.pending_sql(empty_database, (ONE, TWO))
    assert "create table two" in pending
    assert "create table one" not in pending


@pytest.mark.parametrize("call", [migrate.upgrade, migrate.status, migrate.pending_sql])
def test_a_database_that_is_away_is_told_so(call: object) -> None:
    assert callable(call)
    with pytest.raises(StoreUnavailable):
        call("host=127.0.0.1 port=1 dbname=none user=none")


async def test_a_store_says_how_far_behind_the_schema_is_and_works_after_the_upgrade(
    empty_database: str,
) -> None:
    store = PostgresStore(empty_database)
    with pytest.raises(SchemaBehind) as behind:
        await store.last_position()
    assert (behind.value.have, behind.value.want) == (0, migrate.WANTED_VERSION)
    migrate.upgrade(empty_database, migrate.MIGRATIONS[:1])
    with pytest.raises(SchemaBehind) as behind:
        await store.last_position()
    assert (behind.value.have, behind.value.want) == (1, migrate.WANTED_VERSION)
    migrate.upgrade(empty_database)
    assert await store.last_position() == 0
    await store.close()


async def test_a_store_that_was_connected_finds_out_when_the_schema_is_gone(database: str) -> None:
    store = PostgresStore(database)
    assert await store.last_position() == 0
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("drop schema public cascade; create schema public")
    with pytest.raises(SchemaBehind):
        await store.last_position()
    await store.close()


async def test_a_program_that_is_older_than_the_schema_goes_on(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("insert into schema_version (version, name, checksum) values (9999, 'later', '')")
    store = PostgresStore(database)
    assert await store.last_position() == 0
    await store.close()
    assert migrate.upgrade(database) == []


# --- What the schema says about itself ------------------------------------------------------------------


def test_the_table_of_endings_is_that_of_the_model(database: str) -> None:
    with psycopg.connect(database) as conn:
        rows = conn.execute("select outcome, reason, final, meaning, party from ending").fetchall()
    assert set(rows) == {
        (e.outcome.value, e.reason.value, e.final, e.meaning, PARTIES[e.reason]) for e in ENDINGS
    }


def test_the_comments_name_every_outcome_and_reason(database: str) -> None:
    with psycopg.connect(database) as conn:
        for relation in ("delivery", "delivery_log"):
            comments: dict[str, str] = dict(
                conn.execute(
                    "select attname, col_description(attrelid, attnum) from pg_attribute"
                    " where attrelid = %s::regclass and attname in ('outcome', 'reason')",
                    (relation,),
                ).fetchall()
            )
            for ending in ENDINGS:
                assert ending.outcome in comments["outcome"]
                assert f"{ending.outcome}/{ending.reason} - {ending.meaning}" in comments["reason"]


def test_every_table_view_column_and_function_has_a_comment(database: str) -> None:
    with psycopg.connect(database) as conn:
        columns = conn.execute(
            """
            select c.relname, a.attname
            from pg_class c join pg_attribute a on a.attrelid = c.oid and not a.attisdropped
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')
              and not c.relispartition and a.attnum >= 0 and col_description(c.oid, a.attnum) is null
            union all
            select c.relname, '' from pg_class c
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')
              and not c.relispartition and obj_description(c.oid, 'pg_class') is null
            union all
            select p.proname, '()' from pg_proc p
            where p.pronamespace = 'public'::regnamespace and obj_description(p.oid, 'pg_proc') is null
            """
        ).fetchall()
    assert columns == []


def test_the_view_delivery_has_the_columns_that_outsiders_rely_on(database: str) -> None:
    with psycopg.connect(database) as conn:
        rows = conn.execute(
            "select attname, format_type(atttypid, null) from pg_attribute"
            " where attrelid = 'delivery'::regclass and attnum > 0 order by attnum"
        ).fetchall()
    text = dict.fromkeys(
        [
            *("push_id", "user_id", "outcome", "reason", "event", "app_id", "tenant", "node", "detail"),
            *("topic", "session", "holder", "batch_id", "confirm", "collapse_key", "party"),
        ],
        "text",
    )
    times = [
        "published_at",
        "taken_at",
        "written_at",
        "proven_at",
        "finished_at",
        "expires_at",
        "late_at",
        "differed_at",
        "fallback_due",
        "fallback_at",
        "stored_at",
    ]
    assert dict(rows) == text | dict.fromkeys(times, "timestamp with time zone") | {
        "final": "boolean", "meta": "jsonb", "sessions": "integer", "attempts": "integer",
        "day": "date", "latency_ms": "double precision", "waited_ms": "double precision",
        "batch_position": "integer", "data_bytes": "integer", "ttl": "double precision",
    }  # fmt: skip


def test_the_reader_may_read_the_views_and_nothing_else(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("set role bridge_reader")
        for view in ("delivery", "delivery_hourly", "user_timeline", "ending", "node"):
            conn.execute(f"select * from {view}".encode())
        for refused in ("select payload from delivery_log", "delete from node", "select * from log_day"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(refused.encode())


def test_who_may_not_create_roles_can_still_migrate(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        # The role is the whole server's: renamed and back, so that other databases don't miss it for long.
        there = conn.execute("select to_regrole('bridge_reader')").fetchone()
        if there is not None and there[0] is not None:
            conn.execute("alter role bridge_reader rename to bridge_reader_away")
        try:
            conn.execute("create role plain login")
            conn.execute("grant all on schema public to plain")
            notices: list[str] = []
            conn.add_notice_handler(lambda d: notices.append(d.message_primary or ""))
            conn.execute("set role plain")
            for migration in migrate.MIGRATIONS:
                conn.execute(migration.sql)
            assert any("may not create roles" in notice for notice in notices)
        finally:
            conn.execute("reset role")
            conn.execute("drop owned by plain cascade")
            conn.execute("drop role plain")
            if there is not None and there[0] is not None:
                conn.execute("alter role bridge_reader_away rename to bridge_reader")


async def test_a_server_that_is_too_old_is_refused_with_its_version(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", 130_023)
    with pytest.raises(DatabaseUnsuitable, match="Postgres 13 is too old: 14 is the first that can be used"):
        migrate.upgrade(empty_database)
    store = PostgresStore(empty_database)
    with pytest.raises(DatabaseUnsuitable, match="Postgres 13 is too old"):
        await store.last_position()
    await store.close()


@pytest.mark.parametrize(
    ("number", "words"), [(140_023, []), (180_004, []), (190_000, ["Postgres 19 is newer"])]
)
def test_the_check_warns_of_a_server_that_nobody_has_tried(number: int, words: list[str]) -> None:
    found = about_version(number)
    assert [finding.words.partition(" than")[0] for finding in found] == words
    assert all(finding.level == "warn" for finding in found)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_of_another_encoding_is_refused_with_its_reason(
    vhost: str, database: str, encoding: str
) -> None:
    params = conninfo.conninfo_to_dict(database)
    name = f"{params['dbname']}_{encoding}".lower()
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0".encode())
    dsn = conninfo.make_conninfo(database, dbname=name)
    try:
        with pytest.raises(DatabaseUnsuitable, match=f"encoding {encoding}, but the bridge needs UTF8"):
            migrate.upgrade(dsn)
        store = PostgresStore(dsn)
        with pytest.raises(DatabaseUnsuitable, match=f"encoding {encoding}, but the bridge needs UTF8"):
            await store.last_position()
        await store.close()
        for words in (["db", "upgrade"], ["db", "status"], ["check"], ["why", "p"], ["serve"]):
            done = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-c",
                    f"import sys; from bridge.cli import main; sys.exit(main({words!r}))",
                ),
                env={**os.environ, "BRIDGE_POSTGRES_DSN": dsn, "BRIDGE_AMQP_URL": vhost, "BRIDGE_DEV": "1"}
                | {"BRIDGE_WS_PORT": "0", "BRIDGE_OPS_PORT": "0"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(30):
                told = (await done.communicate())[0].decode()
            assert f"encoding {encoding}, but the bridge needs UTF8" in told, words
            assert "Traceback" not in told, words
            assert done.returncode == 1, words
    finally:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute(f"drop database {name} with (force)".encode())
