-- Proof that comes after the end of a push, in a column of its own: what was known at the end stays as it was.

alter table delivery_log add column late_at timestamptz;
comment on column delivery_log.late_at is 'As in delivery.';

create or replace view delivery as
select
    push_id, nullif(user_id, '') as user_id, outcome, reason, final, event, app_id, tenant, meta,
    published_at, taken_at, written_at, proven_at, finished_at, sessions, attempts, node, detail, expires_at, late_at
from delivery_log;
comment on column delivery.late_at is
    'When better proof than the outcome claims came (a pong or an ack frame), after the end, which it did not change; '
    'null: none came.';
comment on column delivery.proven_at is
    'When the best proof came (a pong or an ack frame); null: none came. Where there was none at the end, as late_at.';

create or replace view user_timeline as
select
    nullif(l.user_id, '') as user_id, step.at, step.step, l.push_id, l.tenant, l.event, l.outcome, l.reason, l.node
from delivery_log l
cross join lateral (values
    (l.published_at, 'published', 1),
    (l.taken_at, 'taken', 2),
    (l.written_at, 'written', 3),
    (nullif(l.proven_at, l.late_at), 'proven', 4),
    (l.finished_at, 'finished', 5),
    (l.late_at, 'late', 6)
) as step (at, step, place)
where step.at is not null
order by step.at, step.place;
comment on column user_timeline.step is 'published, taken, written, proven, finished or late: the times of delivery.';

create or replace function prove_rows(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[])
    returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_proven) as n (tenant, push_id, user_id, proven)
        cross join lateral (
            -- An id may have come before, days ago: the newest is meant.
            select l.day, l.final and l.late_at is null as wanted from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day desc
            limit 1
            for update) l
        where l.wanted)
    update delivery_log l set late_at = to_timestamp(n.proven), proven_at = coalesce(l.proven_at, to_timestamp(n.proven))
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;
comment on function prove_rows is 'Notes proof that came after the end of these rows, for each the first.';

-- Of a push with this id in several tenants the earliest counts: nothing since must be missing.
create or replace function resume_points(p_users text[], p_push_ids text[])
    returns table (ord bigint, seen bigint, cut boolean)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select n.ord, last.seen, exists (
        select from delivery_log l
        where l.user_id = n.user_id collate "C" and l.expires_at is not null and l.position > last.seen
          and l.outcome = 'dropped' and l.reason = 'mailbox_full')
    from rows from (unnest(p_users, p_push_ids)) with ordinality as n (user_id, push_id, ord)
    cross join lateral (
        select min(of_tenant.seen) as seen from (
            select max(coalesce(l.position, (extract(epoch from l.taken_at) * 1000000)::bigint)) as seen
            from delivery_log l
            where l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
            group by l.tenant) of_tenant) last
    where last.seen is not null;
end $$;
comment on function resume_points is
    'The position of the push that a user has seen (its taken_at in microseconds where it was not kept), the earliest '
    'where several tenants have one of this id, and whether a newer one was dropped because the mailbox was full. '
    'Nothing where the log has no such row.';

create function dropped_since(p_users text[], p_positions bigint[]) returns table (ord bigint, dropped boolean)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select n.ord, exists (
        select from delivery_log l
        where l.user_id = n.user_id collate "C" and l.expires_at is not null and l.position > n.position
          and l.outcome = 'dropped' and l.reason = 'mailbox_full')
    from rows from (unnest(p_users, p_positions)) with ordinality as n (user_id, position, ord);
end $$;
comment on function dropped_since is
    'Whether something was dropped of these mailboxes, because they were full, that came after these positions.';

-- A recall by collapse key tells of those that were delivered as well, while they are kept: a screen may show them. And
-- what is recalled, whatever has become of it, is not kept any longer: no client that resumes is shown it.
create or replace function recall_rows(p_tenant text, p_push_id text, p_user text, p_collapse_key text)
    returns table (applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    if p_push_id <> '' then
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and (l.outcome = 'stored')::int = 1
          and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C";
    else
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = p_user collate "C" and l.collapse_key = p_collapse_key collate "C"
          and l.tenant = p_tenant collate "C";
    end if;
    if days is not null then
        return query select true, l from end_stored(days, tenants, push_ids, users, 'recalled', 'withdrawn') l;
    end if;
    if p_push_id <> '' then
        return query
        select false, l from delivery_log l
        where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
          and l.outcome <> 'stored' and l.xmin <> pg_current_xact_id()::xid
          and not (l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and l.payload is not null);
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and l.payload is not null;
    else
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.user_id = p_user collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at > clock_timestamp() and l.position > 0
          and l.collapse_key = p_collapse_key collate "C" and l.tenant = p_tenant collate "C";
    end if;
    if days is null then
        return;
    end if;
    return query
    with locked as materialized (
        select l.day, n.tenant, n.push_id, n.user_id
        from (
            select * from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
            order by push_id collate "C", user_id collate "C", tenant collate "C", day) n
        cross join lateral (
            select l.day from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            for update) l),
    forgotten as (
        update delivery_log l set payload = null
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        returning l as log)
    select false, f.log from forgotten f;
end $$;
comment on function recall_rows is
    'Ends the stored rows of a push, or of a user with a collapse key, as recalled; tells of its others too, of a key '
    'of those that were delivered and whose ttl has not ended, and forgets the data that was kept of those.';

-- What a process had taken when it ended: the next one of its name must not wipe out that it lost a push.

create table past_boot (
    boot         text        not null primary key,
    name         text        not null,
    seen_at      timestamptz not null,
    begun        bigint      not null,
    with_row     bigint      not null,
    on_their_way bigint      not null
);
comment on table past_boot is
    'Processes that have ended, with what they last said of the pushes that they had taken. For bridge audit.';
comment on column past_boot.boot is 'As in node.';
comment on column past_boot.name is 'As in node.';
comment on column past_boot.seen_at is 'When it last said so, at most a second before its end while the database answered.';
comment on column past_boot.begun is 'As in node.';
comment on column past_boot.with_row is 'As in node.';
comment on column past_boot.on_their_way is 'As in node.';

create function keep_boot() returns trigger
    language plpgsql
    set search_path to public, pg_temp
    as $$
begin
    insert into past_boot values (old.boot, old.name, old.seen_at, old.begun, old.with_row, old.on_their_way)
    on conflict do nothing;
    return null;
end $$;
comment on function keep_boot() is 'Keeps what a process has said when its name goes to another, or is given back.';
create trigger keep_boot_replaced after update on node for each row when (old.boot <> new.boot) execute function keep_boot();
create trigger keep_boot_ended after delete on node for each row execute function keep_boot();

create or replace function claim_node(p_name text, p_boot text, p_instead_of text) returns boolean
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into node values (p_name, p_boot, clock_timestamp(), clock_timestamp(), clock_timestamp())
    on conflict (name) do update set
        boot = excluded.boot, claimed_at = excluded.claimed_at, seen_at = excluded.seen_at,
        steady_since = excluded.steady_since, begun = 0, with_row = 0, on_their_way = 0
        where node.boot = p_instead_of;
    return found;
end $$;

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on past_boot to bridge_reader;
    end if;
end $$;
