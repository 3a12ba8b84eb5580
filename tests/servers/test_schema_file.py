"""schema.sql shows the schema that the migrations make: nothing more, nothing less, nothing else."""

from __future__ import annotations

import difflib
import re
from importlib import resources
from typing import LiteralString

import psycopg

from bridge.adapters.postgres import migrate
from tests.conftest import Databases
from tests.support.catalog import lines_of

SCHEMA = resources.files("bridge.adapters.postgres").joinpath("sql", "schema.sql")
MENDED = (
    "schema.sql is not what the migrations make: a migration changes schema.sql too."
    " (-) only migrations make it, (+) only schema.sql does:\n"
)
OF_THE_FIRST_DAY = re.compile(r"comment on column \w+ of table (delivery_log|push_content)_<today>:")
"""The partitions of the day of the upgrade are made by the first migrations, and have the comments of that time; all
that are made afterwards have today's, which is compared in the partition of the next day."""


def described(dsn: str) -> list[str]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select make_partition((select day from log_day) + 1)")
        # `bridge db upgrade` writes the versions; what was made from the file is none.
        lines = lines_of(conn, without_rows_of=["schema_version"])
    return [line for line in lines if not OF_THE_FIRST_DAY.match(line)]


def make_from_file(dsn: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(SCHEMA.read_bytes())


def test_a_database_made_from_the_file_equals_a_migrated_one(databases: Databases) -> None:
    with databases.fresh("template0") as migrated, databases.fresh("template0") as made:
        migrate.upgrade(migrated)
        make_from_file(made)
        difference = list(difflib.unified_diff(described(migrated), described(made), n=0, lineterm=""))[2:]
    assert not difference, MENDED + "\n".join(line for line in difference if not line.startswith("@@"))


CHANGES: tuple[LiteralString, ...] = (
    "comment on column delivery_log.owed is null",
    "comment on view delivery is 'something else'",
    "comment on function make_partition(date) is null",
    "alter table node alter column begun set default 1",
    "alter table delivery_log alter column meta set not null",
    "alter table past_boot alter column begun type integer",
    "alter table delivery_log add column more text",
    "alter table delivery_log alter column payload set storage external",
    "alter table log_day drop constraint log_day_check",
    "alter table tally set (fillfactor = 60)",
    "alter table ending enable row level security",
    "drop index delivery_log_expiry",
    "drop trigger keep_boot_ended on node",
    "alter table delivery_log disable trigger tally_rows",
    "alter function roll_day(date) reset lock_timeout",
    "alter function roll_day(date) security definer",
    "alter function log_today() volatile",
    "create or replace function log_today() returns date language sql stable parallel safe as 'select current_date'",
    "create view more as select 1 as one",
    "create type more as enum ('one')",
    "revoke select on tally from bridge_reader",
    "grant select (meta) on delivery_log to bridge_reader",
    "grant execute on function make_partition(date) to public",
    "revoke execute on function log_today() from public",
    "revoke usage on schema public from bridge_reader",
    "alter default privileges grant select on tables to bridge_reader",
    "drop view user_timeline",
    "delete from ending where reason = 'poison'",
    "update log_day set kept_since = day",
)


def test_the_comparison_sees_a_change_of_every_kind(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        before = lines_of(conn)
        unseen = []
        for change in CHANGES:
            with conn.transaction(force_rollback=True):
                conn.execute(change)
                if lines_of(conn) == before:
                    unseen.append(change)
        assert unseen == []
        assert lines_of(conn) == before


def test_the_file_is_no_migration_and_nothing_runs_on_a_database_made_from_it(empty_database: str) -> None:
    assert SCHEMA.is_file()
    assert SCHEMA.name not in [m.name for m in migrate.MIGRATIONS]
    make_from_file(empty_database)
    with psycopg.connect(empty_database) as conn:
        assert migrate.current_version(conn) == 0


def test_the_sections_that_the_file_lists_are_there_in_that_order() -> None:
    text = SCHEMA.read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^-- +(\d+\. .+?) {3,}", text)
    assert len(listed) > 1
    assert re.findall(r"(?m)^-- (\d+\. .+?) -{3,}$", text) == listed
