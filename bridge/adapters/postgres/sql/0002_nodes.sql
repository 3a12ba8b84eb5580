-- The nodes that write the log: leases by the database's time, and the end of what dead ones left behind.

create table node (
    name         text        primary key,
    boot         text        not null,
    claimed_at   timestamptz not null,
    seen_at      timestamptz not null,
    steady_since timestamptz not null
);
comment on table node is 'The bridge processes that are alive, by the database''s time: one row per node name.';
comment on column node.name is 'The node''s name (BRIDGE_NODE).';
comment on column node.boot is 'The start of the process that holds the name.';
comment on column node.claimed_at is 'When this boot took the name.';
comment on column node.seen_at is 'When it last said that it lives; its lease runs out 5 seconds later.';
comment on column node.steady_since is
    'Since when it has said so without a pause of more than 3 seconds. Who was away itself must not call others dead.';

create function claim_node(p_name text, p_boot text, p_instead_of text) returns boolean
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into node values (p_name, p_boot, clock_timestamp(), clock_timestamp(), clock_timestamp())
    on conflict (name) do update set
        boot = excluded.boot, claimed_at = excluded.claimed_at, seen_at = excluded.seen_at,
        steady_since = excluded.steady_since
        where node.boot = p_instead_of;
    return found;
end $$;
comment on function claim_node is
    'Gives the name to this boot where nobody has it or this other boot; the caller has made sure that it is dead.';

create function renew_node(p_name text, p_boot text) returns boolean
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into node values (p_name, p_boot, clock_timestamp(), clock_timestamp(), clock_timestamp())
    on conflict (name) do update set
        seen_at = excluded.seen_at,
        steady_since = case when excluded.seen_at - node.seen_at > interval '3 seconds'
                            then excluded.seen_at else node.steady_since end
        where node.boot = excluded.boot;
    return found;
end $$;
comment on function renew_node is 'Says that this boot lives; false where another boot has the name.';

create function end_dead_rows(p_name text, p_boot text, p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    right_now timestamptz := clock_timestamp();
    steady boolean;
begin
    -- Only the holder of its own name may judge. Of other names only those are dead whose lease ran out while
    -- this node saw the database answer all the time: after an outage all leases are old, and the first to
    -- come back must give the others as long as a lease lasts.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    return query
    with dead as materialized (
        select l.day, l.push_id, l.user_id, l.tenant
        from delivery_log l
        where not l.final
          and case when l.node = p_name then l.boot <> p_boot
                   else steady and not exists (
                       select from node n
                       where n.name = l.node and n.boot = l.boot and n.seen_at > right_now - interval '5 seconds')
              end
        order by l.push_id, l.user_id, l.tenant, l.day
        limit p_limit
        for update of l skip locked)
    update delivery_log l set
        -- The best proof that is held counts: an acked push whose pong had come is received.
        outcome = case when l.proven_at is null then 'unknown' else 'received' end,
        reason = case when l.proven_at is null then 'node_died' else 'not_acked' end,
        final = true, finished_at = right_now
    from dead
    where l.day = dead.day and l.push_id = dead.push_id and l.user_id = dead.user_id and l.tenant = dead.tenant
      and not l.final
    returning l.*;
end $$;
comment on function end_dead_rows is
    'Ends rows that are not final and whose boot is dead, for the boot that holds this name; returns them.';
