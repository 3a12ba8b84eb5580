-- Data that no push needs any more can be erased while its row stays: BRIDGE_PAYLOAD, docs/privacy.md.

alter table push_content add column until timestamptz;
comment on column push_content.until is
    'When no row needs its payload any more: an hour or two after the last ttl, or fallback; null: not known, it goes with its day.';
create index push_content_until on push_content (until) where payload is not null;

-- By when their data is not needed any more: after the ttl where a client that resumes may get it, else at the end.
create index delivery_log_data on delivery_log ((
    case when outcome in ('acked', 'received', 'written') and expires_at > finished_at then expires_at
         else finished_at end))
    where final and payload is not null and fallback_due is null;

-- The ids are sorted, so that two writers take them in one order.
create function share_content(
    p_day date, p_ids bytea[], p_payloads bytea[], p_excluded jsonb[], p_metas jsonb[],
    p_contents bytea[], p_expires float8[], p_fallbacks float8[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set jit to off
    as $$
declare
    ids bytea[];
    payloads bytea[];
    lists jsonb[];
    metas jsonb[];
    untils timestamptz[];
    made bigint;
begin
    -- In steps of an hour: so it seldom changes where others share the same later.
    select array_agg(n.id order by n.id), array_agg(n.payload order by n.id), array_agg(n.excluded order by n.id),
           array_agg(n.meta order by n.id),
           array_agg(to_timestamp(ceil(coalesce(n.due, extract(epoch from clock_timestamp())) / 3600) * 3600 + 3600)
                     order by n.id)
    into ids, payloads, lists, metas, untils
    from (
        select x.id, (array_agg(x.payload) filter (where x.payload is not null))[1] as payload,
               (array_agg(x.excluded) filter (where x.excluded is not null))[1] as excluded,
               (array_agg(x.meta) filter (where x.meta is not null))[1] as meta, max(x.due) as due
        from (
            select c.id, c.payload, c.excluded, c.meta, null::float8 as due
            from unnest(p_ids, p_payloads, p_excluded, p_metas) as c (id, payload, excluded, meta)
            union all
            select r.content, null, null, null, greatest(r.expires, r.fallback)
            from unnest(p_contents, p_expires, p_fallbacks) as r (content, expires, fallback)
            where r.content is not null) x
        group by x.id) n;

    insert into push_content (day, id, payload, excluded, meta, until)
    select p_day, n.id, n.payload, n.excluded, n.meta, n.until
    from unnest(ids, payloads, lists, metas, untils) as n (id, payload, excluded, meta, until)
    on conflict do nothing;
    get diagnostics made = row_count;
    if made = cardinality(ids) then
        return;
    end if;
    -- What was there may be due earlier, or erased already.
    with there as materialized (
        select n.*
        from unnest(ids, payloads, untils) as n (id, payload, until)
        cross join lateral (
            select from push_content c
            where c.day = p_day and c.id = n.id
              and (c.until < n.until or (c.payload is null and n.payload is not null))
            for update) c)
    update push_content c set until = greatest(c.until, n.until), payload = coalesce(c.payload, n.payload)
    from there n
    where c.day = p_day and c.id = n.id;
end $$;
comment on function share_content is
    'Stores what rows of a day share, once, and until when they need it: p_contents has for each row the id of what it shares.';

-- Whoever may call record_rows, which calls it, may call it.
select set_config('bridge.callers', coalesce(string_agg(distinct
    case when a.grantee = 0 then 'public' else a.grantee::regrole::text end, ', '), ''), false)
from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
where p.oid = 'record_rows'::regproc and a.privilege_type = 'EXECUTE' and a.grantee <> p.proowner;
do $$
begin
    if current_setting('bridge.callers') <> '' then
        execute 'grant execute on function share_content to ' || current_setting('bridge.callers');
    end if;
end $$;

create or replace function record_rows(
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
    p_fallbacks float8[] default null, p_fallback_keys text[] default null,
    p_batches text[] default null, p_batch_positions integer[] default null, p_data_bytes integer[] default null
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
        perform share_content(d, p_content_ids, p_content_payloads, p_content_excluded, p_content_metas,
                              p_contents, p_expires, p_fallbacks);
    end if;

    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        position, expires_at, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, session, holder, first_device, fallback_due, fallback_key,
        batch_id, batch_position, data_bytes, stored_at)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed,
        n.position, to_timestamp(n.expires), n.encoding, n.collapse_key, n.excluded, n.ack_within, n.kept_bytes, n.content,
        n.fingerprint, n.topic, n.prover, n.holder, nullif(n.first_device, false),
        to_timestamp(n.fallback), n.fallback_key,
        n.batch_id, n.batch_position, n.data_bytes, case when n.outcome = 'stored' then clock_timestamp() end
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed,
        days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents,
        p_fingerprints, p_topics, p_provers, p_holders, p_first_devices, p_fallbacks, p_fallback_keys,
        p_batches, p_batch_positions, p_data_bytes
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, prover, holder, first_device, fallback, fallback_key,
        batch_id, batch_position, data_bytes)
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
        perform share_content(found.day, p_content_ids, p_content_payloads, p_content_excluded, p_content_metas,
                              p_contents, p_expires, p_fallbacks)
        from (
            select distinct l.day
            from rows from (unnest(p_tenants, p_push_ids, p_users)) as n (tenant, push_id, user_id)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day < d
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C" and not l.final
                offset 0) l
            order by l.day) found;
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
        fallback_due = case when not n.cancels then l.fallback_due end,
        stored_at = coalesce(l.stored_at, case when n.outcome = 'stored' then clock_timestamp() end)
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

create or replace function note_changed_hours() returns trigger
    language plpgsql
    -- For a role that was granted its rights before there was this table.
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
begin
    -- No count depends on data.
    if current_setting('bridge.erasing', true) = 'on' then
        return null;
    end if;
    insert into public.changed_hour (day, hour)
    select distinct c.day, date_trunc('hour', c.taken_at, 'UTC') from changed c;
    return null;
end $$;

create function erase_data(p_before timestamptz, p_limit integer) returns integer
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set jit to off
    as $$
declare
    erased integer;
    more integer;
    soon timestamptz := clock_timestamp() + interval '1 minute';
    needed bytea[];
    waiting integer;
begin
    perform set_config('bridge.erasing', 'on', true);
    with old as materialized (
        select l.day, l.push_id, l.user_id, l.tenant
        from delivery_log l
        where l.final and l.payload is not null and l.fallback_due is null
          and (case when l.outcome in ('acked', 'received', 'written') and l.expires_at > l.finished_at then l.expires_at
                    else l.finished_at end) < p_before
        order by (case when l.outcome in ('acked', 'received', 'written') and l.expires_at > l.finished_at
                       then l.expires_at else l.finished_at end)
        limit p_limit
        for update skip locked)
    update delivery_log l set payload = null
    from old o
    where l.day = o.day
      and l.push_id = o.push_id collate "C" and l.user_id = o.user_id collate "C" and l.tenant = o.tenant collate "C";
    get diagnostics erased = row_count;
    perform set_config('bridge.erasing', '', true);
    -- A fallback that can't be published is tried again every few seconds, for hours, and needs its data.
    select array_agg(f.content), count(*) into needed, waiting
    from (
        select l.content from delivery_log l where l.fallback_due < soon and l.content is not null limit 10001) f;
    if waiting > 10000 then
        return erased;
    end if;
    with old as materialized (
        select c.day, c.id from push_content c
        where c.payload is not null and c.until < p_before and (needed is null or c.id <> all (needed))
        order by c.until
        limit p_limit
        for update skip locked)
    update push_content c set payload = null from old o where c.day = o.day and c.id = o.id;
    get diagnostics more = row_count;
    return erased + more;
end $$;
comment on function erase_data is
    'Erases at most p_limit payloads of rows, and as many that rows share, that nobody has needed since then; returns how many.';
do $$
begin
    if current_setting('bridge.callers') <> '' then
        execute 'grant execute on function erase_data to ' || current_setting('bridge.callers');
    end if;
end $$;
