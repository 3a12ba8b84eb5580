"""The rights that a role has and the bridge does not need, each with the statement that takes it away.

Only the role that the DSN names is looked at. That a role has too much keeps no bridge from its work.
"""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

from bridge.adapters.finding import Finding
from bridge.adapters.postgres.errors import translated
from bridge.adapters.postgres.pool import Watchdog, plain_connection
from bridge.adapters.postgres.rights import READS, READS_AND_WRITES

NAME: Final = "bridge check"
OWN_ROLE: Final = "give the bridge a role of its own (deploy/postgres/roles.sql)"

# Each row: what it may do, and the statement. The first query that finds something is the last one that is asked: a
# superuser has all other rights, and so has the owner those on the tables.
_SUPERUSER: LiteralString = f"""
    select 'it is a superuser', '{OWN_ROLE}' from pg_roles where rolname = current_user and rolsuper
    """
_OWNER: LiteralString = f"""
    select 'it owns the tables, so it may change and drop them', '{OWN_ROLE}'
    from pg_class c where c.oid = to_regclass('public.delivery_log') and pg_has_role(c.relowner, 'usage')
    """
_ROLE: LiteralString = """
    select 'it may ' || can.what, format('alter role %I %s;', current_user, can.ends)
    from pg_roles r
    cross join lateral (values
        (r.rolcreaterole, 'make roles', 'nocreaterole'),
        (r.rolcreatedb, 'make databases', 'nocreatedb'),
        (r.rolreplication, 'read all databases by replication', 'noreplication'),
        (r.rolbypassrls, 'pass by row level security', 'nobypassrls')) can (has, what, ends)
    where r.rolname = current_user and can.has
    """
_PLACES: LiteralString = """
    select 'it may make tables in schema public',
           format('revoke create on schema public from %s;', giver.name)
    from (select case when has_schema_privilege('public', 'public', 'create') then 'public'
                      else quote_ident(current_user) end) giver (name)
    where has_schema_privilege('public', 'create')
    union all
    select 'it may make ' || can.what,
           format('revoke %s on database %I from %s;', can.privilege, current_database(),
                  case when has_database_privilege('public', current_database(), can.privilege) then 'public'
                       else quote_ident(current_user) end)
    from (values ('create', 'schemas'), ('temporary', 'temporary tables')) can (privilege, what)
    where has_database_privilege(current_database(), can.privilege)
    """
_TABLES: LiteralString = """
    select format('it may %%s %%s', lower(p.privilege), t.name),
           format('revoke %%s on public.%%I from %%s;', lower(p.privilege), t.name,
                  case when has_table_privilege('public', 'public.' || t.name, p.privilege) then 'public'
                       else quote_ident(current_user) end)
    from unnest(%s::text[], %s::boolean[]) t (name, writes)
    cross join (values ('TRUNCATE', false), ('REFERENCES', false), ('TRIGGER', false),
                       ('INSERT', true), ('UPDATE', true), ('DELETE', true)) p (privilege, of_writers)
    where to_regclass('public.' || t.name) is not null
      and not (t.writes and p.of_writers) and has_table_privilege('public.' || t.name, p.privilege)
    order by t.name, p.privilege
    """


async def findings(dsn: str) -> list[Finding]:
    """A warning for each right that is not needed, or one line that there is none. Raises StoreUnavailable."""
    conn = await plain_connection(dsn, NAME)
    try:
        conn.prepare_threshold = None
        tables = (*READS_AND_WRITES, *READS)
        async with Watchdog(conn):
            found: list[tuple[object, ...]] = []
            for query in (_SUPERUSER, _OWNER):
                found = found or await (await conn.execute(query)).fetchall()
            if not found:
                params = list(tables), [table in READS_AND_WRITES for table in tables]
                found += await (await conn.execute(_ROLE)).fetchall()
                found += await (await conn.execute(_PLACES)).fetchall()
                found += await (await conn.execute(_TABLES, params)).fetchall()
            (role,) = await (await conn.execute("select current_user")).fetchall()
    except psycopg.Error as error:
        raise translated(error) from error
    finally:
        conn.pgconn.finish()
    return [
        Finding("warn", "excess", f"role {role[0]} has more rights than it needs: {what}: {mend}")
        for what, mend in found
    ] or [Finding("ok", "excess", f"role {role[0]} has no more rights than it needs")]
