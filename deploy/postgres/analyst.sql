-- What analysts see: the views of the bridge, but only the rows of the tenants that they are given. For psql, as the owner
-- of the schema, after roles.sql and `bridge db upgrade`; again after each upgrade:
--
--   psql -d push -U bridge_owner -f deploy/postgres/analyst.sql
--
-- An analyst is a login that is a member of bridge_analyst, and has a row here for each tenant:
--
--   create role shop_analyst login in role bridge_analyst;
--   insert into analyst.tenant_of (role, tenant) values ('shop_analyst', 'shop');
--
-- The row may also name a group that the login is a member of. The tenant '' is that of requests that name none.
--
-- These are views of the owner, so an analyst needs no right on the tables. They have a security barrier: a condition
-- that could tell what it sees (a function that raises, a cast that fails) gets no row of another tenant. Policies on
-- the log itself would do the same, at the cost of a check in every statement of the bridge.

\set ON_ERROR_STOP on
\if :{?analyst}
\else
    \set analyst bridge_analyst
\endif

begin;
set local client_min_messages to warning;

create table if not exists analyst.tenant_of (
    role   name not null,
    tenant text not null,
    primary key (role, tenant)
);
comment on table analyst.tenant_of is 'Which role sees the rows of which tenant.';
comment on column analyst.tenant_of.role is 'A login, or a group that it is a member of.';
comment on column analyst.tenant_of.tenant is 'A tenant that it sees.';

-- Roles are asked by name: a row of a role that was dropped grants nothing.
create or replace view analyst.tenant with (security_barrier) as
select distinct t.tenant
from analyst.tenant_of t
join pg_catalog.pg_roles r on r.rolname = t.role
where pg_catalog.pg_has_role(current_user, r.oid, 'usage');
comment on view analyst.tenant is 'The tenants that you see.';

create or replace view analyst.delivery with (security_barrier) as
select d.* from public.delivery d where d.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.delivery is 'As public.delivery, of your tenants.';

create or replace view analyst.delivery_hourly with (security_barrier) as
select h.* from public.delivery_hourly h where h.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.delivery_hourly is 'As public.delivery_hourly, of your tenants; without the rows of zeros.';

create or replace view analyst.delivery_daily with (security_barrier) as
select d.* from public.delivery_daily d where d.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.delivery_daily is 'As public.delivery_daily, of your tenants; without the rows of zeros.';

create or replace view analyst.funnel with (security_barrier) as
select f.* from public.funnel f where f.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.funnel is 'As public.funnel, of your tenants.';

create or replace view analyst.push_summary with (security_barrier) as
select p.* from public.push_summary p where p.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.push_summary is 'As public.push_summary, of your tenants.';

create or replace view analyst.top_reasons with (security_barrier) as
select r.* from public.top_reasons r where r.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.top_reasons is 'As public.top_reasons, of your tenants.';

create or replace view analyst.user_timeline with (security_barrier) as
select u.* from public.user_timeline u where u.tenant in (select t.tenant from analyst.tenant t);
comment on view analyst.user_timeline is 'As public.user_timeline, of your tenants.';

create or replace view analyst.ending as select * from public.ending;
comment on view analyst.ending is 'What each outcome and reason mean.';

revoke all on all tables in schema analyst from public, :"analyst";
grant select on analyst.tenant, analyst.delivery, analyst.delivery_hourly, analyst.delivery_daily, analyst.funnel,
    analyst.push_summary, analyst.top_reasons, analyst.user_timeline, analyst.ending
    to :"analyst";

commit;
