-- A role that may only read and write rows is enough to run a bridge: what needs the owner is done in the owner's name, by
-- functions that do nothing else. And views of time that read the hours that they are asked for.

-- Partitions ----------------------------------------------------------------------------------------------

-- In the owner's name, so everything in it is named with its schema, and a table of the caller's is never taken for one of
-- these (pg_temp comes last).
create or replace function make_partition(wanted date) returns boolean
    language plpgsql
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
declare
    parent text;
    name text;
    made boolean := false;
begin
    if wanted is null or not wanted between date '2000-01-01' and date '2199-12-31' then
        raise exception 'no day to make a partition of: %', wanted using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock(7093848243014270978);
    -- The content first: whoever sees the partition of the rows finds that of their content.
    foreach parent in array array['push_content', 'delivery_log'] loop
        name := parent || '_' || to_char(wanted, 'YYYYMMDD');
        continue when exists (
            select from pg_inherits
            where inhrelid = to_regclass('public.' || name) and inhparent = to_regclass('public.' || parent));
        -- CREATE ... PARTITION OF would wait for every reader of the log, with all writers behind it; ATTACH does not.
        -- The check spares ATTACH its scan. Rows are updated in place (pending, then final), hence the room.
        execute format('create table public.%I (like public.%I including defaults including constraints including comments,
                        constraint day_check check (day = %L)) with (fillfactor = %s)',
                       name, parent, wanted, case parent when 'delivery_log' then 90 else 100 end);
        execute format('alter table public.%I attach partition public.%I for values in (%L)', parent, name, wanted);
        execute format('alter table public.%I drop constraint day_check', name);
        made := parent = 'delivery_log';
    end loop;
    return made;
end $$;

create function drop_partition(wanted date, retention_days integer) returns boolean
    language plpgsql
    security definer
    set search_path to pg_catalog, public, pg_temp
    set datestyle to 'ISO, YMD'
    -- It locks the whole log, and writers queue behind it while it waits for those before it: give up early.
    set lock_timeout to '200ms'
    as $$
declare
    parent text;
    name text;
begin
    if wanted is null or retention_days is null or retention_days < 0 then
        raise exception 'a day and a number of days are needed' using errcode = 'invalid_parameter_value';
    end if;
    if wanted >= (select least(l.day - retention_days, l.since) from public.log_day l) then
        raise exception 'the day % must be kept', wanted using errcode = 'invalid_parameter_value';
    end if;
    lock table only public.push_content, only public.delivery_log in access exclusive mode;
    -- With that nobody can make one of these true again.
    if exists (select from public.delivery_log l where l.day = wanted and l.outcome = 'pending')
        or exists (select from public.delivery_log l where l.day = wanted and l.outcome = 'stored')
        or exists (select from public.delivery_log l where l.day = wanted and l.final and l.owed is not null)
    then
        return false;
    end if;
    foreach parent in array array['push_content', 'delivery_log'] loop
        name := parent || '_' || to_char(wanted, 'YYYYMMDD');
        -- A partition that has its name and holds its day, and that nobody has begun to detach; nothing else.
        if exists (
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhrelid = to_regclass('public.' || name) and i.inhparent = to_regclass('public.' || parent)
              and not i.inhdetachpending
              and pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES IN (%L)', wanted::text))
        then
            execute format('drop table public.%I', name);
        end if;
    end loop;
    return to_regclass('public.' || name) is null;
end $$;
comment on function drop_partition is
    'Drops the partitions of a day that is past its retention, for a role that does not own them; false where it has rows '
    'that are not final or owe a receipt, or where they are not partitions any more.';

-- Whoever writes the log keeps its partitions; bridge db grant gives a role what it needs.
revoke execute on function make_partition(date), drop_partition(date, integer) from public;
do $$
declare
    writer text;
begin
    for writer in
        select distinct case when a.grantee = 0 then 'public' else a.grantee::regrole::text end
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'delivery_log'::regclass and a.privilege_type = 'INSERT' and a.grantee <> c.relowner
    loop
        execute format('grant execute on function make_partition(date), drop_partition(date, integer) to %s', writer);
    end loop;
end $$;

-- Sweeps --------------------------------------------------------------------------------------------------

create function end_rows(
    p_days date[], p_tenants text[], p_push_ids text[], p_users text[], p_outcome text, p_reason text
) returns setof delivery_log
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
    right_now timestamptz := clock_timestamp();
begin
    begin
        update delivery_log l set
            -- The best proof that is held counts: an acked push whose pong had come is received.
            outcome = case when l.proven_at is null then p_outcome else 'received' end,
            reason = case when l.proven_at is null then p_reason else 'not_acked' end,
            final = true, finished_at = right_now
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
    exception when others then
        -- What says something about the server, not about a row, is told.
        if sqlstate ~ '^(25|40|53|55|57|58)' then
            raise;
        end if;
        for place in 1 .. cardinality(p_days) loop
            begin
                update delivery_log l set
                    outcome = case when l.proven_at is null then p_outcome else 'received' end,
                    reason = case when l.proven_at is null then p_reason else 'not_acked' end,
                    final = true, finished_at = right_now
                where l.day = p_days[place]
                  and l.push_id = p_push_ids[place] collate "C" and l.user_id = p_users[place] collate "C"
                  and l.tenant = p_tenants[place] collate "C";
            exception when others then
                if sqlstate ~ '^(25|40|53|55|57|58)' then
                    raise;
                end if;
                raise warning 'push % for % can not be ended: % (%)', p_push_ids[place], p_users[place], sqlerrm, sqlstate;
            end;
        end loop;
    end;
    return query
    select l.* from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l.* from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
          and l.final and l.finished_at = right_now
        offset 0) l;
end $$;
comment on function end_rows is
    'Ends these rows, which the caller has locked, and returns them. A row that can not be ended (a trigger of somebody''s '
    'raises an error) is left out, where it would keep all others from their end; bridge audit tells of what is left.';

create or replace function expire_rows(p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    right_now timestamptz := clock_timestamp();
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    -- What is locked is just being ended or written by somebody else: it is left to them, and to the next sweep.
    with over as materialized (
        select l.day, l.tenant, l.push_id, l.user_id
        from delivery_log l
        where l.day >= first and l.outcome = 'stored' and l.expires_at <= right_now
        order by l.expires_at
        limit p_limit
        for update of l skip locked)
    select array_agg(o.day), array_agg(o.tenant), array_agg(o.push_id), array_agg(o.user_id)
    into days, tenants, push_ids, users from over o;
    if days is not null then
        return query select * from end_rows(days, tenants, push_ids, users, 'expired', 'ttl');
    end if;
end $$;

create or replace function end_dead_rows(p_name text, p_boot text, p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    right_now timestamptz := clock_timestamp();
    steady boolean;
    its_node text := '';
    its_boot text := '';
    room integer := p_limit;
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    -- Only the holder of its own name may judge. Of other names only those are dead whose lease ran out while
    -- this node saw the database answer all the time: after an outage all leases are old, and the first to
    -- come back must give the others as long as a lease lasts.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    -- From one process to the next: what those that live have parked is not read.
    while room > 0 loop
        select l.node, l.boot into its_node, its_boot
        from delivery_log l
        where l.outcome = 'pending' and (l.node, l.boot) > (its_node, its_boot)
        order by l.node, l.boot
        limit 1;
        exit when not found;
        continue when case
            when its_node = p_name then its_boot = p_boot
            else not steady or exists (
                select from node n
                where n.name = its_node and n.boot = its_boot and n.seen_at > right_now - interval '5 seconds')
            end;
        with dead as materialized (
            select l.day, l.push_id, l.user_id, l.tenant
            from delivery_log l
            where l.outcome = 'pending' and l.node = its_node and l.boot = its_boot
            limit room
            for update of l skip locked)
        select array_agg(d.day), array_agg(d.tenant), array_agg(d.push_id), array_agg(d.user_id)
        into days, tenants, push_ids, users from dead d;
        if days is not null then
            return query select * from end_rows(days, tenants, push_ids, users, 'unknown', 'node_died');
            room := room - cardinality(days);
        end if;
    end loop;
end $$;

-- For people ----------------------------------------------------------------------------------------------

create or replace view delivery as
select
    push_id, nullif(user_id, '') as user_id, outcome, reason, final, event, app_id, tenant,
    case when content is null then meta
         else coalesce(meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)) end as meta,
    published_at, taken_at, written_at, proven_at, finished_at, sessions, attempts, node, detail, expires_at, late_at,
    day,
    case when expires_at is null then extract(epoch from proven_at - published_at)::float8 * 1000
         when attempts <= 1
         then (extract(epoch from greatest(taken_at - published_at, '0')) + extract(epoch from proven_at - written_at))::float8
              * 1000
    end as latency_ms,
    case when expires_at is not null
         then greatest(extract(epoch from coalesce(written_at, finished_at) - taken_at)::float8 * 1000, 0)
    end as waited_ms
from delivery_log l;
comment on column delivery.day is
    'The day of the log (UTC) in which the row was written, rarely after that of taken_at: a range of days reads no other '
    'partitions.';
comment on column delivery.latency_ms is
    'Milliseconds from published_at to proven_at; of a kept push (with a ttl) without the time that it waited for its user, '
    'which is waited_ms. Null without proof, and for a kept push that was handed over more than once: nothing tells how much '
    'of the time between its user was away.';
comment on column delivery.waited_ms is
    'Of a kept push the milliseconds from taken_at until it was first handed to a socket, or ended without that: mostly '
    'until its user came. Null for a push without a ttl, and while it waits.';

-- The hours come from the tally, which is small; of each only its rows are read, in the partition that has them. (Days
-- without a tally are those that somebody has attached again.)
create or replace view delivery_hourly as
select
    h.hour, l.tenant, l.app_id, l.event, l.outcome, l.reason,
    count(*) as pushes,
    count(distinct nullif(l.user_id, '')) as users,
    percentile_cont(0.5) within group (order by l.latency_s) as proof_p50,
    percentile_cont(0.99) within group (order by l.latency_s) as proof_p99
from (
    select distinct t.day, date_trunc('hour', t.minute) as hour from tally t
    union all
    select distinct d.day, date_trunc('hour', a.taken_at) from (
        select c.day from (
            select to_date(right(c.relname, 8), 'YYYYMMDD') as day
            from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = 'delivery_log'::regclass and c.relname ~ '^delivery_log_[0-9]{8}$') c
        where not exists (select from tally t where t.day = c.day) offset 0) d
    cross join lateral (select l.taken_at from delivery_log l where l.day = d.day offset 0) a
) h
cross join lateral (
    select l.tenant, l.app_id, l.event, l.outcome, l.reason, l.user_id,
        case when l.expires_at is null then extract(epoch from l.proven_at - l.published_at)::float8
             when l.attempts <= 1
             then (extract(epoch from greatest(l.taken_at - l.published_at, '0'))
                   + extract(epoch from l.proven_at - l.written_at))::float8
        end as latency_s
    from delivery_log l
    where l.day = h.day and l.taken_at >= h.hour and l.taken_at < h.hour + interval '1 hour'
    offset 0) l
group by 1, 2, 3, 4, 5, 6;
comment on view delivery_hourly is
    'Counts and latencies per hour, publisher, event and end. Give it a range of hours: it reads no others.';
comment on column delivery_hourly.proof_p50 is
    'Median of the seconds from publishing to proof, as delivery.latency_ms: without the time that a kept push waited for '
    'its user. Null without any.';

create or replace view user_timeline as
select
    nullif(l.user_id, '') as user_id, step.at, step.step, l.push_id, l.tenant, l.event, l.outcome, l.reason, l.node,
    l.day, l.taken_at
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
comment on view user_timeline is
    'What happened to the pushes of a user, step by step. Ask for one user_id, or for a range of taken_at: a step may come '
    'long after, so a range of at alone reads the whole log.';
comment on column user_timeline.day is 'As in delivery.';
comment on column user_timeline.taken_at is 'As in delivery.';
