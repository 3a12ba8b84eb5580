-- Analysts see more of a push: its batch, what was asked for, the size of its data, since when it was kept, who is responsible.

-- Without a default: no row is written again.
alter table delivery_log
    add column batch_id text collate "C",
    add column batch_position integer,
    add column data_bytes integer,
    add column stored_at timestamptz;
comment on column delivery_log.batch_id is 'As in delivery.';
comment on column delivery_log.batch_position is 'As in delivery.';
comment on column delivery_log.data_bytes is 'As in delivery.';
comment on column delivery_log.stored_at is 'As in delivery.';

alter table ending add column party text;
comment on column ending.party is
    'Who could have made it end better: publisher (the request was wrong, was taken back or replaced, or excluded the user''s '
    'sessions), bridge (a node, or the way between two), peer (the user was not there, or their client did not read, answer or '
    'acknowledge), network (the connection to the client), policy (a limit of time, room or access). Null: the proof that was '
    'asked for has come, or nothing has gone wrong so far.';
-- The party depends on the reason alone.
update ending e set party = p.party from (values
    ('not_acked', 'peer'),
    ('no_proof_possible', 'peer'),
    ('no_session', 'peer'),
    ('nobody', 'peer'),
    ('left_before_send', 'peer'),
    ('slow_consumer', 'peer'),
    ('no_proof', 'peer'),
    ('connection_lost', 'network'),
    ('excluded', 'publisher'),
    ('collapsed', 'publisher'),
    ('withdrawn', 'publisher'),
    ('not_json', 'publisher'),
    ('invalid', 'publisher'),
    ('unsupported', 'publisher'),
    ('too_large', 'publisher'),
    ('too_many', 'publisher'),
    ('max_age', 'policy'),
    ('ttl', 'policy'),
    ('queue_expiration', 'policy'),
    ('mailbox_full', 'policy'),
    ('revoked', 'policy'),
    ('overflow', 'bridge'),
    ('node_died', 'bridge'),
    ('node_unreachable', 'bridge'),
    ('node_silent', 'bridge'),
    ('poison', 'bridge'),
    ('delivery_limit', 'bridge'),
    ('given_up', 'bridge')
) as p (reason, party) where e.reason = p.reason;

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
comment on function record_rows is
    'Compare-and-set of a batch with one row per key, sorted by (push_id, user_id, tenant): inserts, or updates '
    'what is not final. Rows that it inserted are not returned; of the others, what the log holds now; applied is null '
    'where somebody else holds the row. What rows share (p_contents) is stored once.';

do $$
begin
    if current_setting('bridge.callers') <> '' then
        execute 'grant execute on function record_rows to ' || current_setting('bridge.callers');
    end if;
end $$;

create or replace view delivery as
select
    l.push_id, nullif(l.user_id, '') as user_id, l.outcome, l.reason, l.final, l.event, l.app_id, l.tenant,
    case when l.content is null then l.meta
         else coalesce(l.meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)) end as meta,
    l.published_at, l.taken_at, l.written_at, l.proven_at, l.finished_at, l.sessions, l.attempts, l.node, l.detail,
    l.expires_at, l.late_at, l.day,
    case when l.expires_at is null then extract(epoch from l.proven_at - l.published_at)::float8 * 1000
         when l.attempts <= 1
         then (extract(epoch from greatest(l.taken_at - l.published_at, '0'))
               + extract(epoch from l.proven_at - l.written_at))::float8 * 1000
    end as latency_ms,
    case when l.expires_at is not null
         then greatest(extract(epoch from coalesce(l.written_at, l.finished_at) - l.taken_at)::float8 * 1000, 0)
    end as waited_ms,
    l.differed_at, l.topic, l.session,
    coalesce(l.holder, case when l.session is not null then l.node end) as holder,
    l.fallback_due, l.fallback_at,
    l.batch_id, l.batch_position,
    case when l.outcome <> 'rejected' then (array['written', 'received', 'acked'])[l.confirm] end as confirm,
    round(extract(epoch from l.expires_at - l.published_at)::numeric, 3)::float8 as ttl,
    l.data_bytes, nullif(l.collapse_key, '') as collapse_key, l.stored_at, e.party
from delivery_log l
left join ending e on e.outcome = l.outcome and e.reason = l.reason;
comment on column delivery.batch_id is
    'What the pushes of one batch (one message with an array of requests) share: the message_id of the message, or an id made '
    'of its bytes; null where the push came alone, or was scheduled.';
comment on column delivery.batch_position is 'Its place in the batch, from 0; null where the push came alone.';
comment on column delivery.confirm is
    'The proof that its publisher asked for: written, received or acked. Null where the request was rejected.';
comment on column delivery.ttl is 'The seconds after published_at for which it is kept; null for a push without a ttl.';
comment on column delivery.data_bytes is
    'Bytes of its data as they came; null where the request was rejected, and in rows of before there was this column.';
comment on column delivery.collapse_key is 'Its collapse_key; null where it has none.';
comment on column delivery.stored_at is
    'When it was first kept for its user, because nobody was there or no proof came in time; null: it was not, or before there '
    'was this column.';
comment on column delivery.party is
    'Who could have made it end better: publisher, bridge, peer, network or policy. Null: the proof that was asked for has come, '
    'or nothing has gone wrong so far. See table ending.';
