-- The roles of a bridge, each with no more than it needs. For psql, as a superuser, in the database of the bridge:
--
--   psql -d push -f deploy/postgres/roles.sql
--   BRIDGE_POSTGRES_DSN=postgresql://bridge_owner@db/push bridge db upgrade
--   BRIDGE_POSTGRES_DSN=postgresql://bridge_owner@db/push bridge db grant bridge_app
--   psql -d push -U bridge_owner -f deploy/postgres/analyst.sql
--
-- It may be run again at any time; the other three are to be run after each upgrade. It sets no password:
-- `\password bridge_app` does. Other names: -v owner=NAME -v app=NAME -v analyst=NAME
--
--   bridge_owner    owns the schema. `bridge db` runs as this role, and nothing else does.
--   bridge_app      reads and writes rows. `bridge serve` and the commands run as this role. It can't make or drop a table:
--                   two functions of the owner make and drop the partitions of the log, and refuse everything else.
--   bridge_analyst  has views of the tenants that it is given, in schema analyst. A group: logins are members of it.
--   bridge_reader   has the views of all tenants (`bridge db upgrade` grants them). A group, too.

\set ON_ERROR_STOP on
\if :{?owner}
\else
    \set owner bridge_owner
\endif
\if :{?app}
\else
    \set app bridge_app
\endif
\if :{?analyst}
\else
    \set analyst bridge_analyst
\endif

begin;
set local client_min_messages to warning;

select format('create role %I %s', wanted.name, wanted.kind)
from (values (:'owner', 'login'), (:'app', 'login'), (:'analyst', 'nologin'), ('bridge_reader', 'nologin')) wanted (name, kind)
where not exists (select from pg_roles r where r.rolname = wanted.name)
\gexec

-- What somebody may have given them. Asked first, since only a superuser may take it away, and mostly there is nothing.
select format('alter role %I nosuperuser nocreatedb nocreaterole noreplication nobypassrls', r.rolname)
from pg_roles r
where r.rolname in (:'owner', :'app', :'analyst')
  and (r.rolsuper or r.rolcreatedb or r.rolcreaterole or r.rolreplication or r.rolbypassrls)
\gexec

-- The database. By default everybody may connect to it and make temporary tables there.
revoke all on database :"DBNAME" from public;
revoke all on database :"DBNAME" from :"owner", :"app", :"analyst";
grant connect on database :"DBNAME" to :"owner", :"app", :"analyst", bridge_reader;

-- The schema of the bridge. By default everybody may use it, and before Postgres 15 make tables there.
revoke all on schema public from public;
revoke all on schema public from :"app", :"analyst";
grant usage, create on schema public to :"owner";
grant usage on schema public to :"app", bridge_reader;

-- The schema of the analysts' views.
select format('create schema analyst authorization %I', :'owner')
where not exists (select from pg_namespace where nspname = 'analyst')
\gexec
revoke all on schema analyst from public;
grant usage on schema analyst to :"analyst";

-- By default everybody may execute a new function. `bridge db grant` grants those that a bridge needs.
alter default privileges for role :"owner" revoke execute on functions from public;
select format('revoke execute on function %s from public', p.oid::regprocedure)
from pg_proc p
where p.pronamespace = 'public'::regnamespace and p.proowner = (select oid from pg_roles where rolname = :'owner')
\gexec

commit;
