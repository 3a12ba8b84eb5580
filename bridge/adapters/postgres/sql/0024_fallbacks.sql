-- A fallback: what is published to the exchange push.fallback for a push that is still unproven some time after its
-- publication. It is a debt of the row.

alter table delivery_log
    add column fallback_due timestamptz, add column fallback_key text collate "C",
    add column fallback_claim text collate "C", add column fallback_at timestamptz;
comment on column delivery_log.fallback_due is 'As in delivery.';
comment on column delivery_log.fallback_key is
    'The routing key of its fallback on the exchange push.fallback; null where it has none.';
comment on column delivery_log.fallback_claim is
    'The boot that publishes its fallback; null: none does. What a dead process has claimed anyone may claim. It means nothing '
    'where none is due.';
comment on column delivery_log.fallback_at is 'As in delivery.';
comment on column delivery_log.fingerprint is
    'Made of event, data, confirm, ttl, collapse_key, devices, retain and fallback, to tell a repeat from another push with the '
    'same id; null: not known.';
comment on column delivery_log.payload is
    'Of a kept push its data, and of one without a ttl until its fallback is published or cancelled; of a rejected request '
    'its body, cut where detail says so; null otherwise.';
comment on column delivery_log.encoding is
    'Of a push that is kept, or has a fallback, what payload is: json, text or bytes; null for others.';

-- Nearly empty: a row leaves it when its fallback is published, or cancelled.
create index delivery_log_fallback on delivery_log (fallback_due) where fallback_due is not null;
create index delivery_log_fallback_key on delivery_log (user_id, collapse_key)
    where fallback_due is not null and collapse_key is not null;

-- Whoever may call the one that was there may call the one that is.
select set_config('bridge.callers', coalesce(string_agg(distinct
    case when a.grantee = 0 then 'public' else a.grantee::regrole::text end, ', '), ''), false)
from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where p.oid = 'record_rows'::regproc and a.privilege_type = 'EXECUTE' and a.grantee <> p.proowner;

drop function record_rows;
create function record_rows(
    p_tenants text[], p_push_ids text[], p_users text[],
    p_outcomes text[], p_reasons text[], p_finals boolean[], p_confirms smallint[],
    p_sessions integer[], p_attempts integer[],
    p_published float8[], p_taken float8[], p_written float8[], p_proven float8[], p_finished float8[],
    p_nodes text[], p_boots text[], p_events text[], p_app_ids text[],
    -- Mostly empty, so they may be null as a whole:
    p_details text[], p_traceparents text[], p_metas jsonb[], p_payloads bytea[], p_owed jsonb[],
    p_days date[] default null,
    p_positions bigint[] default null, p_expires float8[] default null, p_encodings text[] default null,
    p_collapse_keys text[] default null, p_excluded jsonb[] default null, p_ack_withins double precision[] default null,
    p_kept_bytes integer[] default null, p_contents bytea[] default null,
    p_content_ids bytea[] default null, p_content_payloads bytea[] default null,
    p_content_excluded jsonb[] default null, p_content_metas jsonb[] default null,
    p_fingerprints integer[] default null,
    p_topics text[] default null, p_provers text[] default null, p_holders text[] default null,
    p_first_devices boolean[] default null,
    p_fallbacks float8[] default null, p_fallback_keys text[] default null
) returns table (ord bigint, applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    -- One plan, made when a partition is still empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    wanted bigint := cardinality(p_push_ids);
    d date;
    s date;
    first date;
    days date[];
    me xid;
    done bigint;
    more bigint;
begin
    if coalesce((select l.day from log_day l) < log_today(), true) then
        perform roll_day();
    end if;
    -- While this lock is held the day stays, and every row of an earlier day is committed: roll_day() takes it
    -- exclusively. Each statement below has its own snapshot (READ COMMITTED), taken after this lock.
    perform pg_advisory_xact_lock_shared(7093848243014270977);
    select l.day, l.since into strict d, s from log_day l;
    first := s;

    if p_days is not null then
        -- Where the rows are that say their day. One that is not there any more is a row like any other.
        select array_agg(l.day order by n.ord), least(s, min(l.day)) into strict days, first
        from rows from (unnest(p_tenants, p_push_ids, p_users, p_days)) with ordinality
            as n (tenant, push_id, user_id, day, ord)
        left join lateral (
            select l.day from delivery_log l
            where l.day >= n.day and l.day <= d
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            limit 1) l on true;
    end if;

    if p_content_ids is not null then
        insert into push_content (day, id, payload, excluded, meta)
        select d, c.id, c.payload, c.excluded, c.meta
        from unnest(p_content_ids, p_content_payloads, p_content_excluded, p_content_metas)
            as c (id, payload, excluded, meta)
        on conflict do nothing;
    end if;

    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        position, expires_at, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, session, holder, first_device, fallback_due, fallback_key)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed,
        n.position, to_timestamp(n.expires), n.encoding, n.collapse_key, n.excluded, n.ack_within, n.kept_bytes, n.content,
        n.fingerprint, n.topic, n.prover, n.holder, nullif(n.first_device, false),
        to_timestamp(n.fallback), n.fallback_key
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed,
        days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents,
        p_fingerprints, p_topics, p_provers, p_holders, p_first_devices, p_fallbacks, p_fallback_keys
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, prover, holder, first_device, fallback, fallback_key)
    where n.its_day is null
      and not exists (
        select from delivery_log l
        where l.day >= s and l.day < d
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C")
    on conflict do nothing;
    get diagnostics done = row_count;
    if done = wanted then
        return;
    end if;

    -- What is there already, told from what was just inserted by its transaction.
    me := pg_current_xact_id()::xid;
    if p_content_ids is not null and first < d then
        -- A row of an earlier day finds its content in its own day's partition.
        insert into push_content (day, id, payload, excluded, meta)
        select found.day, c.id, c.payload, c.excluded, c.meta
        from (
            select distinct l.day
            from rows from (unnest(p_tenants, p_push_ids, p_users)) as n (tenant, push_id, user_id)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day < d
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C" and not l.final
                offset 0) l) found
        cross join unnest(p_content_ids, p_content_payloads, p_content_excluded, p_content_metas)
            as c (id, payload, excluded, meta)
        on conflict do nothing;
    end if;
    -- An UPDATE locks in the order of its plan; this locks one key after the other, in the order of the batch, which
    -- is that of all writers, and changes only what it has locked. As a join the planner could turn it round, and
    -- would, while a partition is new: it then reads all rows of the day. The first pair of bounds spares the others'
    -- partitions, the second is the row's own.
    return query
    with locked as materialized (
        select l.day, l.cancels, n.*
        from rows from (unnest(
            p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_sessions, p_attempts,
            p_written, p_proven, p_finished, p_nodes, p_boots, p_details, p_payloads, p_owed,
            days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents,
            p_provers, p_holders
        )) with ordinality as n (
            tenant, push_id, user_id, outcome, reason, final, sessions, attempts,
            written, proven, finished, node, boot, detail, payload, owed,
            its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
            prover, holder, ord)
        cross join lateral (
            select l.day,
                   -- Whether its fallback is not to be published any more, if it has one.
                   l.fallback_key is not null
                   and (n.proven is not null or l.proven_at is not null or (l.confirm = 1 and n.written is not null)
                        or n.outcome in ('superseded', 'recalled', 'rejected')) as cancels
            from delivery_log l
            where l.day >= first and l.day <= d
              and l.day >= coalesce(n.its_day, s) and l.day <= coalesce(n.its_day, d)
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and not l.final and l.xmin <> me
            -- What somebody else holds is not waited for: it may be held for hours, and the others are not to wait.
            for update skip locked) l)
    update delivery_log l set
        outcome = n.outcome,
        reason = n.reason,
        final = n.final,
        sessions = greatest(l.sessions, n.sessions),
        -- The same boot counts on, another one began at nought.
        attempts = case when l.node = n.node and l.boot = n.boot then greatest(l.attempts, n.attempts)
                        else l.attempts + n.attempts end,
        written_at = coalesce(l.written_at, to_timestamp(n.written)),
        proven_at = coalesce(to_timestamp(n.proven), l.proven_at),
        finished_at = to_timestamp(n.finished),
        node = n.node,
        boot = n.boot,
        detail = coalesce(n.detail, ''),
        owed = case when n.owed is null then l.owed else merge_owed(l.owed, n.owed) end,
        -- What the row has already stands, whichever of the two places it is in.
        payload = case when l.content is null and not (n.cancels and l.expires_at is null)
                       then coalesce(l.payload, n.payload) end,
        excluded = case when l.content is null then coalesce(l.excluded, n.excluded) end,
        content = coalesce(l.content, case when l.payload is null then n.content end),
        kept_bytes = coalesce(l.kept_bytes, n.kept_bytes),
        position = coalesce(l.position, n.position),
        expires_at = coalesce(l.expires_at, to_timestamp(n.expires)),
        encoding = coalesce(l.encoding, n.encoding),
        collapse_key = coalesce(l.collapse_key, n.collapse_key),
        ack_within = coalesce(l.ack_within, n.ack_within),
        -- Who has it first stays, unless another one proves more.
        session = case when n.proven is not null then coalesce(n.prover, l.session) else coalesce(l.session, n.prover) end,
        holder = case when n.prover is not null and (n.proven is not null or l.session is null) then n.holder
                      when l.session is not null then nullif(coalesce(l.holder, l.node), n.node) end,
        fallback_due = case when not n.cancels then l.fallback_due end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning n.ord, true, l;
    get diagnostics more = row_count;
    done := done + more;

    if done < wanted then
        return query
        select n.ord, case when (l.log).final then false end, l.log
        from rows from (unnest(p_tenants, p_push_ids, p_users, days)) with ordinality
            as n (tenant, push_id, user_id, its_day, ord)
        cross join lateral (
            select l as log from delivery_log l
            where l.day >= first and l.day <= d
              and l.day >= coalesce(n.its_day, s) and l.day <= coalesce(n.its_day, d)
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.xmin <> me
            offset 0) l;
        get diagnostics more = row_count;
        done := done + more;
    end if;
    if done <> wanted then
        raise exception 'of % rows % have an answer', wanted, done using errcode = 'serialization_failure';
    end if;
end $$;
comment on function record_rows is
    'Compare-and-set of a batch with one row per key, sorted by (push_id, user_id, tenant): inserts, or updates '
    'what is not final. Rows that it inserted are not returned; of the others, what the log holds now; applied is null '
    'where somebody else holds the row. What rows share (p_contents) is stored once.';

revoke execute on function record_rows from public;
do $$
begin
    if current_setting('bridge.callers') <> '' then
        execute 'grant execute on function record_rows to ' || current_setting('bridge.callers');
    end if;
end $$;

create or replace function note_late_proofs(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[])
    returns setof bigint
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
    with wanted as materialized (
        select n.*, l.day
        from unnest(p_tenants, p_push_ids, p_users, p_proven) as n (tenant, push_id, user_id, proven)
        cross join lateral (
            -- An id may have come before, days ago: the newest is meant.
            select l.day, l.final and l.late_at is null as wanted from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day desc
            limit 1) l
        where l.wanted),
    locked as materialized (
        select w.*
        from wanted w
        cross join lateral (
            select from delivery_log l
            where l.day = w.day
              and l.push_id = w.push_id collate "C" and l.user_id = w.user_id collate "C"
              and l.tenant = w.tenant collate "C" and l.final and l.late_at is null
            for update skip locked) l)
    update delivery_log l set
        late_at = to_timestamp(n.proven), proven_at = coalesce(l.proven_at, to_timestamp(n.proven)),
        fallback_due = null,
        payload = case when l.fallback_key is null or l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
    cross join lateral (
        select l.final and l.late_at is null as wanted from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        order by l.day desc
        limit 1) l
    where l.wanted;
end $$;

create function cancel_fallbacks(p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
    returns setof delivery_log
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
begin
    return query
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.final and l.fallback_due is not null
            for update skip locked) l)
    update delivery_log l set fallback_due = null, payload = case when l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function cancel_fallbacks is
    'The fallbacks of those of these rows that are final, and that nobody else holds, are not published any more; returns them.';

create function cancel_fallbacks_of_key(
    p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[]
) returns void
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
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select distinct l.push_id, l.user_id, l.tenant, l.day
        from unnest(p_tenants, p_users, p_collapse_keys, p_positions) as n (tenant, user_id, collapse_key, position)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
            where l.fallback_due is not null and l.final
              and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
              and l.tenant = n.tenant collate "C" and (n.position is null or l.position < n.position)
            offset 0) l
        order by 1, 2, 3, 4) k;
    if days is not null then
        perform cancel_fallbacks(days, tenants, push_ids, users);
    end if;
end $$;
comment on function cancel_fallbacks_of_key is
    'The fallbacks of final rows with these collapse keys are not published any more: of those of a lower position, or of all '
    'where that is null.';

create function claim_fallbacks(p_node text, p_boot text, p_limit integer, p_bytes bigint)
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
    'those that no other live process has claimed, and that nobody else holds, at most p_limit, and no more once they have so many bytes of data.';

create function note_fallbacks(p_boot text, p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
    returns setof bigint
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
begin
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.fallback_claim = p_boot
            for update skip locked) l)
    update delivery_log l set fallback_at = clock_timestamp(), fallback_due = null, fallback_claim = null,
        payload = case when l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_days, p_tenants, p_push_ids, p_users)) with ordinality as n (day, tenant, push_id, user_id, ord)
    cross join lateral (
        select from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and l.fallback_claim = p_boot
        offset 0) l;
end $$;
comment on function note_fallbacks is
    'The fallbacks of these rows, which this boot has claimed, are published; returns the places of rows that somebody else '
    'holds.';

create function release_fallbacks(
    p_boot text, p_days date[], p_tenants text[], p_push_ids text[], p_users text[], p_wait float8
)
    returns setof bigint
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
begin
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.fallback_claim = p_boot
            for update skip locked) l)
    update delivery_log l set fallback_claim = null, fallback_due = case when l.fallback_due is not null then greatest(
        l.fallback_due, clock_timestamp() + make_interval(secs => p_wait)) end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_days, p_tenants, p_push_ids, p_users)) with ordinality as n (day, tenant, push_id, user_id, ord)
    cross join lateral (
        select from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and l.fallback_claim = p_boot
        offset 0) l;
end $$;
comment on function release_fallbacks is
    'This boot gives up its claim of these fallbacks, which it could not publish; returns the places of rows that somebody '
    'else holds.';

create or replace function end_stored(
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
begin
    return query
    -- A row that another one has just ended is not stored any more. (Written so that the planner looks keys up in the
    -- primary key, not users in the index of their mailboxes.)
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and (l.outcome = 'stored')::int = 1
            for update skip locked) l)
    update delivery_log l set
        outcome = p_outcome, reason = p_reason, final = true, finished_at = clock_timestamp(),
        fallback_due = case when p_outcome not in ('recalled', 'superseded') then l.fallback_due end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;

create or replace function supersede_rows(
    p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[], p_limit integer
) returns table (held boolean, log delivery_log)
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
    perform cancel_fallbacks_of_key(p_tenants, p_users, p_collapse_keys, p_positions);
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select distinct l.* from unnest(p_tenants, p_users, p_collapse_keys, p_positions)
            as n (tenant, user_id, collapse_key, position)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
            where l.day >= first and l.outcome = 'stored'
              and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
              and l.tenant = n.tenant collate "C" and l.position < n.position
            limit p_limit) l
        limit p_limit) k;
    if days is null then
        return;
    end if;
    return query select false, e from end_stored(days, tenants, push_ids, users, 'superseded', 'collapsed') e;
    return query
    select true, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and (l.outcome = 'stored')::int = 1
        offset 0) l;
end $$;

create or replace function recall_push(p_tenant text, p_push_id text, p_from text, p_limit integer)
    returns table (reached text, more boolean, applied boolean, log delivery_log)
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
    days date[];
    users text[];
    stored boolean[];
    last text;
    looked bigint;
begin
    select max(l.user_id), count(*), array_agg(l.day), array_agg(l.user_id), array_agg(l.outcome = 'stored')
    into strict last, looked, days, users, stored
    from rows_of_push(p_tenant, p_push_id, p_from, p_limit) l;
    return query
    select last, looked >= p_limit, true, e from (
        select array_agg(n.day) as days, array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids,
               array_agg(n.user_id) as users
        from unnest(days, users, stored) as n (day, user_id, stored) where n.stored) s
    cross join lateral end_stored(s.days, s.tenants, s.push_ids, s.users, 'recalled', 'withdrawn') e;
    -- What was stored a moment ago may have been delivered since.
    return query
    select last, looked >= p_limit, false, f from (
        select array_agg(n.day) as days, array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids,
               array_agg(n.user_id) as users
        from unnest(days, users) as n (day, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day and l.push_id = p_push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = p_tenant collate "C"
              and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null
              and (l.payload is not null or l.content is not null)
            offset 0) l) s
    cross join lateral forget_data(s.days, s.tenants, s.push_ids, s.users) f;
    return query
    select last, looked >= p_limit, false, f
    from (select array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids from unnest(users)) s
    cross join lateral cancel_fallbacks(days, s.tenants, s.push_ids, users) f;
    return query
    select last, looked >= p_limit,
           case when (l.log).outcome <> 'stored'
                 and not ((l.log).outcome in ('acked', 'received', 'written') and (l.log).expires_at is not null
                          and ((l.log).payload is not null or (l.log).content is not null))
                 and not ((l.log).final and (l.log).fallback_due is not null) then false end,
           l.log
    from unnest(days, users) as n (day, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = p_push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = p_tenant collate "C" and l.xmin <> pg_current_xact_id()::xid
        offset 0) l;
    -- Rows that are gone by now leave no other line.
    return query select last, looked >= p_limit, null::boolean, null::delivery_log where looked > 0;
end $$;

create or replace function recall_stored(p_tenant text, p_user text, p_collapse_key text, p_limit integer)
    returns table (applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    perform cancel_fallbacks_of_key(array[p_tenant], array[p_user], array[p_collapse_key], null);
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = p_user collate "C" and l.collapse_key = p_collapse_key collate "C"
          and l.tenant = p_tenant collate "C"
        limit p_limit) k;
    if days is null then
        return;
    end if;
    return query select true, e from end_stored(days, tenants, push_ids, users, 'recalled', 'withdrawn') e;
    return query
    select null::boolean, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and (l.outcome = 'stored')::int = 1
        offset 0) l;
end $$;

create or replace function drop_partition(wanted date, retention_days integer) returns boolean
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
        or exists (select from public.delivery_log l where l.day = wanted and l.fallback_due is not null)
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
    'that are not final, or owe a receipt or a fallback, or where they are not partitions any more.';

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
    end as waited_ms,
    differed_at, topic, session,
    coalesce(holder, case when session is not null then node end) as holder,
    fallback_due, fallback_at
from delivery_log l;
comment on column delivery.fallback_due is
    'When its fallback is published if there is no proof until then; null: it has none, or it was published or cancelled.';
comment on column delivery.fallback_at is
    'When its fallback was published to the exchange push.fallback; null: it was not.';
