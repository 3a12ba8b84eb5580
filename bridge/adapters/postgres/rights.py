"""The rights that a role needs to run the bridge without owning its schema, and the statements that grant them."""

from __future__ import annotations

import re
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from bridge.adapters.postgres.migrate import MIGRATIONS, connected
from bridge.core.errors import BridgeError

READS_AND_WRITES: Final = (
    "delivery_log",
    "push_content",
    "log_day",
    "node",
    "past_boot",
    "tally",
    "revocation_mark",
    "revocation",
    "revocation_reader",
    "session",
    "subscription",
    "retained",
    "ops_action",
    "scheduled",
)
READS: Final = ("ending", "schema_version", "delivery_hourly", "hour_count", "counting")
RIGHTS: Final = ("select", "insert", "update", "delete")
FUNCTIONS: Final = sorted(
    {name for m in MIGRATIONS for name in re.findall(r"(?m)^create (?:or replace )?function (\w+)", m.sql)}
)
"""Names of all functions that a migration has made; each serves some version of the program."""

_OURS: LiteralString = """
    select p.oid::regprocedure::text from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname = any(%s)
      and p.proowner = (select relowner from pg_class where oid = 'public.delivery_log'::regclass)
    order by 1
    """


class NoSuchRole(BridgeError):
    """The role that rights were to be granted to does not exist."""

    def __init__(self, role: str) -> None:
        self.role = role
        super().__init__(f"there is no role {role!r}: `create role ... login` makes one")


def grant(dsn: str, role: str) -> list[str]:
    """Grant a role everything that `bridge serve` needs, in one transaction; returns the statements. Idempotent.

    For the owner of the schema. Raises NoSuchRole, DatabaseUnsuitable (this role may not grant), StoreUnavailable.
    """
    with connected(dsn) as conn, conn.transaction():
        conn.execute("set local search_path to public")
        found = conn.execute("select rolname from pg_roles where rolname = %s", (role,)).fetchone()
        if found is None:
            raise NoSuchRole(role)
        functions = [name for (name,) in conn.execute(_OURS, (FUNCTIONS,)).fetchall()]
        statements = [text.as_string(conn) for text in _statements(role, functions)]
        for statement in statements:
            conn.execute(statement.encode())
    return statements


def _statements(role: str, functions: list[str]) -> list[sql.Composed]:
    def listed(names: tuple[str, ...]) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, names))

    to = sql.Identifier(role)
    return [
        sql.SQL("grant usage on schema public to {}").format(to),
        sql.SQL("grant select, insert, update, delete on {} to {}").format(listed(READS_AND_WRITES), to),
        sql.SQL("grant select on {} to {}").format(listed(READS), to),
        sql.SQL("grant execute on function {} to {}").format(
            # From the catalog: with the types of their parameters, and quoted where needed.
            sql.SQL(", ").join(sql.SQL(name) for name in functions),
            to,
        ),
    ]


async def missing(conn: psycopg.AsyncConnection[tuple[object, ...]]) -> list[tuple[str, str]]:
    """The rights that this connection's role lacks: each in words, and the statement that grants it."""
    role = (await (await conn.execute("select quote_ident(current_user)")).fetchall())[0][0]
    found = []
    if not await _true(conn, "select has_schema_privilege('public', 'usage')"):
        found.append(("use of the schema public", f"grant usage on schema public to {role};"))
        return found
    wanted = [(table, right) for table in READS_AND_WRITES for right in RIGHTS]
    for table, right in (*wanted, *((table, "select") for table in READS)):
        if not await _true(conn, "select has_table_privilege(%s, %s)", f"public.{table}", right):
            found.append((f"{right} on {table}", f"grant {right} on {table} to {role};"))
    for (name,) in await (await conn.execute(_OURS, (FUNCTIONS,))).fetchall():
        if not await _true(conn, "select has_function_privilege(%s, 'execute')", name):
            found.append((f"execute of {name}", f"grant execute on function {name} to {role};"))
    return found


async def _true(
    conn: psycopg.AsyncConnection[tuple[object, ...]], query: LiteralString, *params: object
) -> bool:
    row = await (await conn.execute(query, params)).fetchone()
    return row is not None and bool(row[0])
