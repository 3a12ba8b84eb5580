-- Kept pushes: rows that are `stored` for a user until they are proven, or until their ttl ends.
--
-- Kept pushes may be many and stay for days, the ordinary ones pass through: no index that an ordinary row is in
-- grows with what is kept, and nothing that runs every second reads more of it than it ends.

alter table delivery_log
    add column position     bigint,
    add column expires_at   timestamptz,
    add column encoding     text,
    add column collapse_key text collate "C",
    add column excluded     jsonb,
    add column ack_within   double precision;
comment on column delivery_log.position is
    'Of a kept push its place in the mailbox, in microseconds since 1970 when it was taken; null for others.';
comment on column delivery_log.expires_at is 'Of a kept push when its ttl ends; null for a push without a ttl.';
comment on column delivery_log.encoding is 'Of a kept push what payload is: json, text or bytes; null for others.';
comment on column delivery_log.collapse_key is 'Of a kept push its collapse_key; null where it has none.';
comment on column delivery_log.excluded is 'Of a kept push the sessions that do not get it; null where it names none.';
comment on column delivery_log.ack_within is
    'Of a kept push the seconds that it gives the application to ack; null where it does not say.';
comment on column delivery_log.payload is
    'Of a kept push its data, of a rejected request its body, cut where detail says so; null otherwise.';

drop index delivery_log_open;
-- Nearly empty: a row leaves it with its end.
create index delivery_log_pending on delivery_log (node, boot) where outcome = 'pending';
-- What waits for a user, in order; what was kept for a user, delivered or not, for a client that resumes.
create index delivery_log_mailbox on delivery_log (user_id, position) where outcome = 'stored';
create index delivery_log_resume on delivery_log (user_id, position) where expires_at is not null;
create index delivery_log_expiry on delivery_log (expires_at) where outcome = 'stored';
create index delivery_log_collapse on delivery_log (user_id, collapse_key)
    where outcome = 'stored' and collapse_key is not null;

insert into ending (outcome, reason, final, meaning) values
    ('expired', 'ttl', true, 'its ttl ran out before it was proven'),
    ('superseded', 'collapsed', true, 'a newer push with its collapse_key came before this one was proven'),
    ('dropped', 'mailbox_full', true, 'the user''s mailbox was over its limit, and this was the oldest push in it'),
    ('recalled', 'withdrawn', true, 'withdrawn by a recall before it was proven'),
    ('stored', 'no_session', false, 'kept: the user had no session'),
    ('stored', 'excluded', false, 'kept: every session of the user was named in `except`'),
    ('stored', 'left_before_send', false, 'kept: the user''s sessions closed before it was handed to a socket'),
    ('stored', 'slow_consumer', false, 'kept: the peer did not read'),
    ('stored', 'awaiting_proof', false, 'kept: on its way to the user, the proof is awaited'),
    ('stored', 'no_proof', false, 'kept: handed over; no proof in BRIDGE_CONFIRM_TIMEOUT'),
    ('stored', 'not_acked', false, 'kept: received, but acked was wanted and has not come'),
    ('stored', 'connection_lost', false, 'kept: handed over; the connection ended before proof');

create or replace view delivery as
select
    push_id, nullif(user_id, '') as user_id, outcome, reason, final, event, app_id, tenant, meta,
    published_at, taken_at, written_at, proven_at, finished_at, sessions, attempts, node, detail, expires_at
from delivery_log;
comment on column delivery.expires_at is 'When its ttl ends, until which it is kept; null for a push without a ttl.';

do $$
declare
    outcomes text := (
        select 'How it ended: ' || string_agg(distinct outcome, ', ' order by outcome) filter (where final)
            || '; not final: ' || string_agg(distinct outcome, ', ' order by outcome) filter (where not final)
            || '. See table ending.'
        from ending);
    reasons text := (
        select 'Why: ' || string_agg(outcome || '/' || reason || ' - ' || meaning, E'\n' order by outcome, reason)
        from ending);
    place text;
begin
    foreach place in array array['delivery', 'delivery_log'] loop
        execute format('comment on column %I.outcome is %L', place, outcomes);
        execute format('comment on column %I.reason is %L', place, reasons);
    end loop;
end $$;

-- The log's day ------------------------------------------------------------------------------------------

alter table log_day add column kept_since date;
update log_day set kept_since = since;
alter table log_day alter column kept_since set not null;
comment on column log_day.since is
    'New rows are looked for from this day on: the day before, or the oldest with a pending row.';
comment on column log_day.kept_since is
    'Rows that are asked for are looked for from this day on: since, or the oldest with a stored row.';
comment on table log_day is
    'One row: the day that new rows get, and the oldest days in which a row may be known. Changed by roll_day() only.';

create or replace function roll_day(today date default log_today()) returns date
    language plpgsql
    set search_path to public, pg_temp
    -- Writers queue behind this lock while it waits for those before it: give up early, it is called again soon.
    set lock_timeout to '1s'
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    have date := (select day from log_day);
    pending date;
    stored date;
begin
    if have is null or today > have then
        perform pg_advisory_xact_lock(7093848243014270977);
        -- Another node may have rolled it while this one waited; a fresh snapshot shows that.
        have := (select day from log_day);
        if have is null then
            perform make_partition(today);
            insert into log_day (day, since, kept_since) values (today, today - 1, today - 1);
            have := today;
        elsif today > have then
            perform make_partition(today);
            -- A row is never moved to an earlier day, so no day before those known until now can have one. One
            -- look into a partial index for each day, the oldest first: a million stored rows are not counted. (The
            -- bounds on node and expires_at hold for every row: they name the index.)
            select since, kept_since into strict pending, stored from log_day;
            while pending < have
                and not exists (
                    select from delivery_log l where l.day = pending and l.outcome = 'pending' and l.node >= '') loop
                pending := pending + 1;
            end loop;
            while stored < pending
                and not exists (
                    select from delivery_log l
                    where l.day = stored and l.outcome = 'stored' and l.expires_at > '-infinity') loop
                stored := stored + 1;
            end loop;
            update log_day set day = today, since = pending, kept_since = stored;
            have := today;
        end if;
    end if;
    return have;
end $$;

-- Writing ------------------------------------------------------------------------------------------------

-- A program of the version before calls it with the parameters it knows: the others have defaults.
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
    p_collapse_keys text[] default null, p_excluded jsonb[] default null, p_ack_withins double precision[] default null
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

    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        position, expires_at, encoding, collapse_key, excluded, ack_within)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed,
        n.position, to_timestamp(n.expires), n.encoding, n.collapse_key, n.excluded, n.ack_within
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed,
        days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        its_day, position, expires, encoding, collapse_key, excluded, ack_within)
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
    -- An UPDATE locks in the order of its plan; this locks one key after the other, in the order of the batch, which
    -- is that of all writers, and changes only what it has locked. As a join the planner could turn it round, and
    -- would, while a partition is new: it then reads all rows of the day. The first pair of bounds spares the others'
    -- partitions, the second is the row's own.
    return query
    with locked as materialized (
        select l.day, n.*
        from rows from (unnest(
            p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_sessions, p_attempts,
            p_written, p_proven, p_finished, p_nodes, p_boots, p_details, p_payloads, p_owed,
            days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins
        )) with ordinality as n (
            tenant, push_id, user_id, outcome, reason, final, sessions, attempts,
            written, proven, finished, node, boot, detail, payload, owed,
            its_day, position, expires, encoding, collapse_key, excluded, ack_within, ord)
        cross join lateral (
            select l.day from delivery_log l
            where l.day >= first and l.day <= d
              and l.day >= coalesce(n.its_day, s) and l.day <= coalesce(n.its_day, d)
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and not l.final and l.xmin <> me
            for update) l)
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
        payload = coalesce(l.payload, n.payload),
        position = coalesce(l.position, n.position),
        expires_at = coalesce(l.expires_at, to_timestamp(n.expires)),
        encoding = coalesce(l.encoding, n.encoding),
        collapse_key = coalesce(l.collapse_key, n.collapse_key),
        excluded = coalesce(l.excluded, n.excluded),
        ack_within = coalesce(l.ack_within, n.ack_within)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning n.ord, true, l;
    get diagnostics more = row_count;
    done := done + more;

    if done < wanted then
        return query
        select n.ord, false, l.log
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
    'what is not final. Rows that it inserted are not returned; of the others, what the log holds now.';

create or replace function find_rows(p_tenants text[], p_push_ids text[]) returns setof delivery_log
    language plpgsql stable
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
    return query
    select l.* from unnest(p_tenants, p_push_ids) as n (tenant, push_id)
    -- The offset keeps the planner from reading all rows and looking for the keys among them.
    cross join lateral (
        select * from delivery_log l
        where l.day >= first and l.push_id = n.push_id collate "C" and l.tenant = n.tenant collate "C"
        offset 0) l;
end $$;

create or replace function owe_rows(p_tenants text[], p_push_ids text[], p_users text[], p_owed jsonb[]) returns void
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
    -- Locked as record_rows() does; and only what was locked is changed, whatever came in between.
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_owed) as n (tenant, push_id, user_id, owed)
        cross join lateral (
            select l.day from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            for update) l)
    update delivery_log l set owed = merge_owed(l.owed, n.owed)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;

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
            select l.day from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.final and l.proven_at is null
            order by l.day
            for update) l)
    update delivery_log l set proven_at = to_timestamp(n.proven)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;

create or replace function end_dead_rows(p_name text, p_boot text, p_limit integer) returns setof delivery_log
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
        -- The bound on node makes the index of pending rows the cheapest, also where a plan is made for a new day.
        where l.outcome = 'pending' and l.node >= ''
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
    returning l.*;
end $$;
comment on function end_dead_rows is
    'Ends pending rows whose boot is dead, for the boot that holds this name; returns them.';

-- Debts --------------------------------------------------------------------------------------------------

create function unpaid(have jsonb, paid jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select case
        when have <@ paid then null
        else (select jsonb_agg(r) from jsonb_array_elements(have) r where not paid @> jsonb_build_array(r))
    end $$;
comment on function unpaid(jsonb, jsonb) is 'Replies of the first list that are not in the second; null where none is left.';

-- The function of the same name with three parameters forgets a reply that was noted while the others were paid.
create function settle_rows(p_tenants text[], p_push_ids text[], p_users text[], p_paid jsonb[]) returns void
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
    first date := (select since from log_day);
    last date := (select day from log_day);
    done bigint := 0;
    more bigint;
begin
    -- Nearly all debts are of the newest days; only what is not found there is worth a look at every partition.
    loop
        with locked as materialized (
            select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_paid) as n (tenant, push_id, user_id, paid)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day <= last
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C"
                  and (l.owed is not null)::int = 1
                order by l.day
                for update) l)
        update delivery_log l set owed = unpaid(l.owed, n.paid)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
        get diagnostics more = row_count;
        done := done + more;
        exit when done >= cardinality(p_push_ids) or first = '-infinity';
        last := first - 1;
        first := '-infinity';
    end loop;
end $$;
comment on function settle_rows(text[], text[], text[], jsonb[]) is
    'These replies are paid; a row with no others owes nothing any more. Of whatever day, idempotent.';

create function owing_rows(p_limit integer) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
begin
    return query
    select * from delivery_log l where l.final and l.owed is not null order by l.taken_at limit p_limit;
end $$;
comment on function owing_rows is 'Final rows that owe a receipt, the oldest first.';

-- The mailbox --------------------------------------------------------------------------------------------

create function mailbox_rows(
    p_users text[], p_after bigint[], p_until bigint[], p_seen bigint[], p_most integer[], p_bytes bigint[]
) returns table (ord bigint, log delivery_log)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    -- The rows come out of each partition's index in order; only those of one page are ever sorted.
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    right_now timestamptz := clock_timestamp();
begin
    return query
    select n.ord, l.log
    from rows from (unnest(p_users, p_after, p_until, p_seen, p_most, p_bytes)) with ordinality
        as n (user_id, after, until, seen, most, bytes, ord)
    cross join lateral (
        select k.*, sum(k.bytes) over (order by k.position groups between unbounded preceding and 1 preceding) as before
        from (
            (select l.day, l.push_id, l.user_id, l.tenant, l.position, octet_length(l.payload) as bytes
             from delivery_log l
             where l.day >= first
               and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
               and l.position > n.after and l.position <= n.until and l.expires_at > right_now
             order by l.position
             -- Two nodes may have given one position to two rows: a page never ends between them.
             fetch first (n.most) rows with ties)
            union all
            (select l.day, l.push_id, l.user_id, l.tenant, l.position, octet_length(l.payload) as bytes
             from delivery_log l
             where n.seen is not null
               and l.user_id = n.user_id collate "C" and l.outcome in ('acked', 'received', 'written')
               and l.position > greatest(n.seen, n.after) and l.position <= n.until and l.expires_at > right_now
               and l.payload is not null
             order by l.position
             fetch first (n.most) rows with ties)
            order by position
            fetch first (n.most) rows with ties) k) page
    cross join lateral (
        select l as log from delivery_log l
        where l.day = page.day and l.push_id = page.push_id and l.user_id = page.user_id and l.tenant = page.tenant
        offset 0) l
    where coalesce(page.before, 0) < n.bytes
    order by n.ord, page.position;
end $$;
comment on function mailbox_rows is
    'A page of each mailbox: stored rows with p_after < position <= p_until, where p_seen is not null also those '
    'after it that were delivered; at most p_most, and no more once they have p_bytes of payload.';

create function resume_points(p_users text[], p_push_ids text[])
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
        select max(coalesce(l.position, (extract(epoch from l.taken_at) * 1000000)::bigint)) as seen
        from delivery_log l
        where l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C") last
    where last.seen is not null;
end $$;
comment on function resume_points is
    'The position of the push that a user has seen (its taken_at in microseconds where it was not kept), and whether '
    'a newer one was dropped because the mailbox was full. Nothing where the log has no such row.';

create function end_stored(
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
    -- Locked in the order of all writers; a row that another one has just ended is not stored any more. (Written so
    -- that the planner looks keys up in the primary key, not users in the index of their mailboxes.)
    with locked as materialized (
        select n.*
        from (
            select * from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
            order by push_id collate "C", user_id collate "C", tenant collate "C", day) n
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and (l.outcome = 'stored')::int = 1
            for update) l)
    update delivery_log l set outcome = p_outcome, reason = p_reason, final = true, finished_at = clock_timestamp()
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function end_stored is 'Ends those of these rows that are stored, and returns them.';

create function expire_rows(p_limit integer) returns setof delivery_log
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
begin
    return query
    -- What is locked is just being ended or written by somebody else: it is left to them, and to the next sweep.
    with over as materialized (
        select l.day, l.push_id, l.user_id, l.tenant
        from delivery_log l
        where l.day >= first and l.outcome = 'stored' and l.expires_at <= right_now
        order by l.expires_at
        limit p_limit
        for update of l skip locked)
    update delivery_log l set
        -- The best proof that is held counts: an acked push whose pong had come is received.
        outcome = case when l.proven_at is null then 'expired' else 'received' end,
        reason = case when l.proven_at is null then 'ttl' else 'not_acked' end,
        final = true, finished_at = right_now
    from over n
    where l.day = n.day and l.push_id = n.push_id and l.user_id = n.user_id and l.tenant = n.tenant
    returning l.*;
end $$;
comment on function expire_rows is 'Ends stored rows whose ttl has ended, the earliest first; returns them.';

create function trim_rows(p_users text[], p_pushes bigint, p_bytes bigint) returns setof delivery_log
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
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(n.user_id)
    into strict days, tenants, push_ids, users
    from unnest(p_users) as n (user_id)
    cross join lateral (
        select l.day, l.tenant, l.push_id,
               row_number() over newest as pushes, sum(octet_length(l.payload)) over newest as bytes
        from delivery_log l
        where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
        window newest as (order by l.position desc rows unbounded preceding)) k
    where k.pushes > p_pushes or k.bytes > p_bytes;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'dropped', 'mailbox_full');
    end if;
end $$;
comment on function trim_rows is
    'Ends the oldest stored rows of each of these users that are over so many, or over so many bytes of payload.';

create function supersede_rows(p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[])
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
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
    into strict days, tenants, push_ids, users
    from unnest(p_tenants, p_users, p_collapse_keys, p_positions) as n (tenant, user_id, collapse_key, position)
    cross join lateral (
        select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
          and l.tenant = n.tenant collate "C" and l.position < n.position
        offset 0) l;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'superseded', 'collapsed');
    end if;
end $$;
comment on function supersede_rows is 'Ends stored rows of lower positions with the same tenant, user and key.';

create function recall_rows(p_tenant text, p_push_id text, p_user text, p_collapse_key text)
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
          and l.outcome <> 'stored' and l.xmin <> pg_current_xact_id()::xid;
    end if;
end $$;
comment on function recall_rows is
    'Ends the stored rows of a push, or of a user with a collapse key, as recalled; of a push, tells of its others too.';
