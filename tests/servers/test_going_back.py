"""Going back to the version before: its program works on today's schema, beside today's program and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres.migrate import MIGRATIONS
from bridge.adapters.postgres.rows import key_params, lock_order, numbers, record_params, texts
from bridge.adapters.postgres.store import PostgresStore
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Reply, Row
from tests.support import earlier_statements
from tests.support.rows import EVER, NOON, kept_row, row

_FUNCTIONS: LiteralString = """
    select p.proname, array(select format_type(t, null) from unnest(p.proargtypes) with ordinality a (t, n) order by n),
           p.pronargdefaults,
           case when p.proargmodes is null then array[format_type(p.prorettype, null)]
                else array(select a.name || ' ' || format_type(a.type, null)
                           from unnest(p.proargnames, p.proallargtypes, p.proargmodes) with ordinality
                               a (name, type, mode, n)
                           where a.mode in ('t', 'o') order by n) end
    from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype
    """
_COLUMNS: LiteralString = """
    select c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod),
           a.attnotnull and not a.atthasdef and a.attidentity = '' and c.relkind <> 'v'
    from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
      and a.attnum > 0 and not a.attisdropped and c.relname <> 'schema_version'
    """
INNER = frozenset(
    {
        "merge_owed",
        "unpaid",
        "keep_boot",
        "tally_rows",
        "make_partition",
        "whole",
        "mailbox_rows",
    }
)
"""Functions that only other functions call: they change with those."""
ONLY_ROWS = frozenset({"log_day"})
"""Tables to which no program adds a row."""


class Schema:
    """What a program can rely on in a database."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self.functions: dict[str, list[tuple[list[str], int, list[str]]]] = {}
        for name, parameters, defaults, columns in conn.execute(_FUNCTIONS).fetchall():
            self.functions.setdefault(name, []).append((parameters, defaults, columns))
        found = conn.execute(_COLUMNS).fetchall()
        self.columns: dict[str, str] = {name: kind for name, kind, _ in found}
        self.must_be_given: set[str] = {name for name, _, needed in found if needed}

    def serves(self, called: tuple[str, list[str], list[str]]) -> bool:
        """Whether a function may be called so: further parameters have defaults, further columns come last."""
        name, given, read = called
        return any(
            parameters[: len(given)] == given
            and len(parameters) - defaults <= len(given)
            and columns[: len(read)] == read
            for parameters, defaults, columns in self.functions.get(name, [])
        )


def test_each_version_keeps_what_the_program_of_the_one_before_calls_and_reads(empty_database: str) -> None:
    broken = []
    with psycopg.connect(empty_database, autocommit=True) as conn:
        migrate.upgrade(empty_database, MIGRATIONS[:1])
        before = Schema(conn)
        for version in range(2, migrate.WANTED_VERSION + 1):
            migrate.upgrade(empty_database, MIGRATIONS[:version])
            after = Schema(conn)
            for name, ways in before.functions.items():
                for parameters, _, columns in ways:
                    if name not in INNER and not after.serves((name, parameters, columns)):
                        broken.append(f"{version}: {name}({', '.join(parameters)})")
            broken += [
                f"{version}: {name}"
                for name, kind in before.columns.items()
                if after.columns.get(name) != kind
            ]
            tables = {name.partition(".")[0] for name in before.columns} - ONLY_ROWS
            broken += [
                f"{version}: {name} has no default"
                for name in after.must_be_given - before.must_be_given
                if name.partition(".")[0] in tables
            ]
            before = after
    assert not broken


def test_the_statements_of_the_version_before_are_understood_as_they_were(database: str) -> None:
    schema, kept = earlier_statements.read()
    assert schema <= migrate.WANTED_VERSION
    with psycopg.connect(database, autocommit=True) as conn:
        for name, statement in kept.items():
            now = earlier_statements.described(conn, statement.sql)
            assert now.parameters == statement.parameters, name
            assert now.columns == statement.columns, name


class Earlier:
    """The program of the version before, as far as its statements go."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn
        _, self._kept = earlier_statements.read()

    def ask(self, name: str, *params: Any) -> list[dict[str, Any]]:
        """Its answers to a statement, by column. It knows only the first parameters of today's."""
        statement = self._kept[name]
        count = len(statement.parameters)
        cursor = self._conn.execute(statement.sql.encode(), params[:count])
        names = [column.rpartition(" ")[0].split(" ")[0] for column in statement.columns]
        return [dict(zip(names, record, strict=True)) for record in cursor.fetchall()]

    def record(self, rows: Sequence[Row]) -> list[tuple[str, bool | None]]:
        """Write rows; of those that were there, their ids and whether they were changed."""
        params = record_params(sorted(rows, key=lambda r: lock_order(r.key)))
        return [(each["push_id"], each["applied"]) for each in self.ask("store._RECORD", *params)]

    def find(self, *rows: Row) -> dict[str, str]:
        """The outcomes of these, by push id."""
        found = self.ask("store._FIND", *key_params([r.key for r in rows]))
        return {each["push_id"]: each["outcome"] for each in found}

    def mailbox(self, user: str) -> list[str]:
        """The ids of what is kept for a user."""
        one = numbers([1000])
        found = self.ask(
            "store._MAILBOX",
            texts([user]),
            texts(["s9"]),
            numbers([0]),
            numbers([EVER]),
            "{NULL}",
            one,
            numbers([2**30]),
        )
        return [each["push_id"] for each in found if each["push_id"] is not None]


async def test_the_program_before_goes_on_with_what_the_new_one_has_written_beside_it_and_after_it(
    database: str,
) -> None:
    new = PostgresStore(database)
    with psycopg.connect(database, autocommit=True) as conn:
        old = Earlier(conn)
        # The two are different nodes, as while they follow one another in an upgrade.
        for node, boot in (("n1", "b1"), ("n2", "b2")):
            assert conn.execute("select claim_node(%s, %s, '')", (node, boot)).fetchone() == (True,)
        of_new = [
            row("ended", node="n2", boot="b2"),
            row("pending", outcome=Outcome.PENDING, node="n2", boot="b2"),
            kept_row("stored", node="n2", boot="b2", fallback_due=NOON + 9, fallback_key="mail"),
            kept_row("recalled", position=2, node="n2", boot="b2", collapse_key="k"),
            row("owing", owed=(Reply("answers", "c1"),), node="n2", boot="b2"),
        ]
        await new.record(of_new)

        # Beside the new one: it finds, sends and ends its rows, and its own are found by the new one.
        assert old.find(*of_new) == {r.key.push_id: r.outcome.value for r in of_new}
        assert old.mailbox("u") == ["stored", "recalled"]
        assert {each["push_id"] for each in old.ask("store._OWING", 9, 2**20)} >= {"owing"}
        of_old = kept_row("of the old one", position=3)
        assert old.record([of_old, row("ended")]) == [("ended", False)]
        assert [r.key for r in await new.find([of_old.key])] == [of_old.key]
        proven = kept_row("stored", outcome=Outcome.RECEIVED, reason=Reason.PONG, proven_at=NOON + 1)
        assert old.record([proven]) == [("stored", True)]
        [found] = await new.find([proven.key])
        assert (found.outcome, found.fallback_due) == (Outcome.RECEIVED, None), (
            "nothing falls back after a proof"
        )
        gone = old.ask("store._RECALL_STORED", "", "u", "k", 9)
        assert [(each["push_id"], each["outcome"]) for each in gone] == [("recalled", "recalled")]

        # The new one stops without a word, and the old one goes on alone: each row ends once.
        conn.execute("update node set seen_at = seen_at - interval '1 hour' where name = 'n2'")
        assert conn.execute("select claim_node('n2', 'b3', 'b2')").fetchone() == (True,)
        ended = old.ask("lease._END_DEAD", "n2", "b3", 9)
        assert [(each["push_id"], each["outcome"], each["reason"]) for each in ended] == [
            ("pending", "unknown", "node_died")
        ]
        assert old.find(*of_new, of_old) == {
            "ended": "received",
            "pending": "unknown",
            "stored": "received",
            "recalled": "recalled",
            "owing": "received",
            "of the old one": "stored",
        }
        assert old.mailbox("u") == ["of the old one"]
        assert conn.execute("select sum(rows) from tally").fetchone() == (6,)
    await new.close()
