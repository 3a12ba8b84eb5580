"""What a database holds, as lines of text: everything of its catalogs that somebody could rely on, and the rows of its
tables. Two databases that say the same are the same to whoever uses them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import LiteralString

import psycopg
from psycopg import sql

FIRST_USER_OID = 16384
"""What the server itself came with is below.
https://www.postgresql.org/docs/15/system-catalog-initial-data.html#SYSTEM-CATALOG-OID-ASSIGNMENT"""

_OBJECTS: LiteralString = """
    select 'object ' || pg_describe_object(o.class::regclass, o.oid, 0), owner
    from (
        select 'pg_class' as class, oid, relowner::regrole::text as owner from pg_class
        where relnamespace <> 'pg_toast'::regnamespace
        union all select 'pg_proc', oid, proowner::regrole::text from pg_proc
        union all select 'pg_type', oid, typowner::regrole::text from pg_type
        union all select 'pg_constraint', oid, '' from pg_constraint
        union all select 'pg_trigger', oid, '' from pg_trigger where not tgisinternal
        union all select 'pg_attrdef', oid, '' from pg_attrdef
        union all select 'pg_rewrite', oid, '' from pg_rewrite
        union all select 'pg_policy', oid, '' from pg_policy
        union all select 'pg_namespace', oid, nspowner::regrole::text from pg_namespace where nspname !~ '^pg_'
        union all select 'pg_extension', oid, extowner::regrole::text from pg_extension
        union all select 'pg_statistic_ext', oid, stxowner::regrole::text from pg_statistic_ext
        union all select 'pg_cast', oid, '' from pg_cast
        union all select 'pg_operator', oid, oprowner::regrole::text from pg_operator
        union all select 'pg_collation', oid, collowner::regrole::text from pg_collation
        union all select 'pg_event_trigger', oid, evtowner::regrole::text from pg_event_trigger
        union all select 'pg_publication', oid, pubowner::regrole::text from pg_publication
        union all select 'pg_default_acl', oid, defaclrole::regrole::text from pg_default_acl
    ) o
    where o.oid >= %(first)s
    """
_RELATIONS: LiteralString = """
    select 'relation ' || c.relname,
        concat_ws(' ', c.relkind, c.relpersistence, am.amname, c.relreplident, c.reloptions::text, t.reloptions::text,
                  pg_get_partkeydef(c.oid), i.inhparent::regclass::text, pg_get_expr(c.relpartbound, c.oid),
                  case when c.relrowsecurity then 'row security' end)
    from pg_class c
    left join pg_am am on am.oid = c.relam
    left join pg_class t on t.oid = c.reltoastrelid
    left join pg_inherits i on i.inhrelid = c.oid
    where c.oid >= %(first)s and c.relnamespace <> 'pg_toast'::regnamespace
    """
_COLUMNS: LiteralString = """
    select format('column %%s %%s of %%s', a.attnum, a.attname, c.relname),
        concat_ws(' ', format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
                  'default ' || pg_get_expr(d.adbin, d.adrelid), 'collate ' || co.collname,
                  nullif(a.attidentity, ''), nullif(a.attgenerated, ''), a.attstorage, nullif(a.attcompression, ''),
                  a.attstattarget,
                  (select string_agg(o, ' ') from unnest(a.attoptions) o where o not like 'pg_attver=%%'))
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    left join pg_collation co on co.oid = a.attcollation
    where c.oid >= %(first)s and c.relnamespace <> 'pg_toast'::regnamespace
      and c.relkind in ('r', 'p', 'v', 'm') and a.attnum > 0 and not a.attisdropped
    """
_CONSTRAINTS: LiteralString = """
    select format('constraint %%s of %%s', conname, conrelid::regclass),
        concat_ws(' ', pg_get_constraintdef(oid), convalidated, connoinherit, conislocal)
    from pg_constraint where oid >= %(first)s
    """
_INDEXES: LiteralString = """
    select 'index ' || c.relname, concat_ws(' ', pg_get_indexdef(c.oid), x.indisvalid, x.indisprimary, x.indisclustered)
    from pg_index x join pg_class c on c.oid = x.indexrelid
    where c.oid >= %(first)s and c.relnamespace <> 'pg_toast'::regnamespace
    """
_TRIGGERS: LiteralString = """
    select 'trigger ' || tgname, concat_ws(' ', pg_get_triggerdef(oid), tgenabled)
    from pg_trigger where oid >= %(first)s and not tgisinternal
    """
_FUNCTIONS: LiteralString = """
    select 'function ' || oid::regprocedure, pg_get_functiondef(oid) from pg_proc where oid >= %(first)s
    """
_VIEWS: LiteralString = """
    select 'view ' || relname, pg_get_viewdef(oid) from pg_class where oid >= %(first)s and relkind in ('v', 'm')
    """
_COMMENTS: LiteralString = """
    select 'comment on ' || pg_describe_object(classoid, objoid, objsubid), description
    from pg_description where objoid >= %(first)s or objoid = 'public'::regnamespace
    """
# Without an entry the default holds: a privilege that is said, and is the default, is the same.
_PRIVILEGES: LiteralString = """
    select
        format('privilege on %%s for %%s', o.what,
               case when a.grantee = 0 then 'public' else a.grantee::regrole::text end),
        a.privilege_type || case when a.is_grantable then ' with grant option' else '' end
    from (
        select 'relation ' || relname as what, coalesce(relacl, acldefault('r', relowner)) as acl
        from pg_class where oid >= %(first)s and relkind in ('r', 'p', 'v', 'm')
        union all
        select format('column %%s of %%s', attname, attrelid::regclass), attacl
        from pg_attribute where attrelid >= %(first)s and attacl is not null
        union all
        select 'function ' || oid::regprocedure, coalesce(proacl, acldefault('f', proowner))
        from pg_proc where oid >= %(first)s
        union all
        select 'type ' || typname, coalesce(typacl, acldefault('T', typowner)) from pg_type where oid >= %(first)s
        union all
        select 'schema ' || nspname, coalesce(nspacl, acldefault('n', nspowner))
        from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'
        union all
        select 'default ' || defaclobjtype::text, defaclacl from pg_default_acl
    ) o cross join lateral aclexplode(o.acl) a
    """
_ALL = (
    _OBJECTS, _RELATIONS, _COLUMNS, _CONSTRAINTS, _INDEXES, _TRIGGERS, _FUNCTIONS, _VIEWS, _COMMENTS, _PRIVILEGES,
)  # fmt: skip


def lines_of(conn: psycopg.Connection, without_rows_of: Iterable[str] = ()) -> list[str]:
    """The database, a line for each thing, sorted. The log's day and those beside it are written as such, so that a
    database of yesterday says the same.

    Rows of tables and of partitions are there, but for those of `without_rows_of`.
    """
    found: list[tuple[str, str]] = []
    for query in _ALL:
        found += conn.execute(query, {"first": FIRST_USER_OID}).fetchall()
    tables = conn.execute(
        "select relname from pg_class where oid >= %s and relkind in ('r', 'p') and not relispartition",
        (FIRST_USER_OID,),
    ).fetchall()
    for (table,) in tables:
        if table not in without_rows_of:
            rows = sql.SQL("select to_jsonb(t)::text from {} t").format(sql.Identifier(table))
            found += [(f"row of {table}", str(text)) for (text,) in conn.execute(rows)]
    day = conn.execute("select day from log_day").fetchone()
    assert day is not None
    lines = "\n".join(
        # A line of many lines, such as a function, names its thing on each: a difference says where it is.
        f"{what}: {line}" if len(text.splitlines()) == 1 else f"{what}:{number:4}: {line}"
        for what, text in sorted(found)
        for number, line in enumerate(text.splitlines() or [""], 1)
    )
    return _without_dates(lines, day[0]).splitlines()


def _without_dates(text: str, today: datetime.date) -> str:
    for name, days in (("<yesterday>", -1), ("<today>", 0), ("<tomorrow>", 1)):
        day = today + datetime.timedelta(days=days)
        text = text.replace(day.isoformat(), name).replace(f"{day:%Y%m%d}", name)
    return text
