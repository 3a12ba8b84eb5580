-- A fallback is published by who wrote the row of its push, as long as that process lives: it alone knows of proofs that are on their way.

create or replace function claim_fallbacks(p_node text, p_boot text, p_limit integer, p_bytes bigint)
    returns table (routing_key text, log delivery_log)
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
begin
    -- As end_dead_rows judges: only who holds its own name, and has seen the database answer all the time. After an outage
    -- others must have time to write the proofs that have come meanwhile, and to say that they live.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_node and n.boot = p_boot;
    if not coalesce(steady, false) then
        return;
    end if;
    return query
    with due as materialized (
        select l.day, l.push_id, l.user_id, l.tenant, l.fallback_due,
               coalesce(octet_length(l.payload), (
                   select octet_length(c.payload) from push_content c where c.day = l.day and c.id = l.content), 0) as bytes
        from delivery_log l
        -- The row of a proof that came in time is written within a second.
        where l.fallback_due <= right_now - interval '1 second'
          -- Who wrote the row, and lives, may know of a proof that it does not say yet.
          and (l.boot = p_boot or l.fallback_due <= right_now - interval '10 seconds'
               or not exists (
                   select from node n where n.boot = l.boot and n.seen_at > right_now - interval '5 seconds'))
          and (l.fallback_claim is null or l.fallback_claim = p_boot
               or not exists (
                   select from node n
                   where n.boot = l.fallback_claim and n.seen_at > right_now - interval '5 seconds'))
        order by l.fallback_due
        limit p_limit
        for update of l skip locked),
    few as materialized (
        select f.day, f.push_id, f.user_id, f.tenant
        from (
            select d.*, sum(d.bytes) over (order by d.fallback_due rows between unbounded preceding and 1 preceding) as before
            from due d) f
        where coalesce(f.before, 0) < p_bytes),
    claimed as (
        update delivery_log l set fallback_claim = p_boot
        from few n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        returning l)
    select (c.l).fallback_key, whole(c.l) from claimed c;
end $$;
comment on function claim_fallbacks is
    'Claims fallbacks that are due, the earliest first, for this boot, which holds this name and has lived for five seconds: '
    'those that no other live process has claimed, and that nobody else holds, at most p_limit, and no more once they have so many bytes of data. '
    'A row of another live process is left to that for ten seconds.';
