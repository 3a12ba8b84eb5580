-- Bounds: what many rows would repeat is stored once, every statement reads and changes a bounded number of rows, and
-- no index holds what its readers do not look for.

-- What rows share -----------------------------------------------------------------------------------------

create table push_content (
    day      date  not null,
    id       bytea not null,
    payload  bytea,
    excluded jsonb,
    meta     jsonb,
    -- The day is the same all over a partition.
    constraint push_content_key primary key (id, day)
) partition by list (day);
comment on table push_content is
    'What rows of one push to many users would repeat, stored once a day. In partitions like those of delivery_log.';
comment on column push_content.day is 'The day of the rows that share it: it goes when they go.';
comment on column push_content.id is 'The first 16 bytes of the SHA-256 of the rest.';
comment on column push_content.payload is 'As delivery_log.payload.';
comment on column push_content.excluded is 'As delivery_log.excluded.';
comment on column push_content.meta is 'As delivery_log.meta.';

alter table delivery_log
    add column kept_bytes integer,
    add column content    bytea;
comment on column delivery_log.kept_bytes is
    'Of a kept push the bytes of its data and of the list of sessions that do not get it; null for others, and for '
    'rows of before there was this column.';
comment on column delivery_log.content is
    'Where payload, excluded and meta are: push_content.id of the same day; null: in the row itself.';

create function whole(l delivery_log) returns delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    as $$
begin
    if l.content is not null then
        select coalesce(l.payload, c.payload), coalesce(l.excluded, c.excluded), coalesce(l.meta, c.meta)
        into l.payload, l.excluded, l.meta
        from push_content c where c.day = l.day and c.id = l.content;
    end if;
    return l;
end $$;
comment on function whole is 'The row with what it shares with others.';

create or replace function make_partition(wanted date) returns boolean
    language plpgsql
    set search_path to public, pg_temp
    as $$
declare
    parent text;
    name text;
    made boolean := false;
begin
    perform pg_advisory_xact_lock(7093848243014270978);
    -- The content first: whoever sees the partition of the rows finds that of their content.
    foreach parent in array array['push_content', 'delivery_log'] loop
        name := parent || '_' || to_char(wanted, 'YYYYMMDD');
        continue when exists (
            select from pg_inherits where inhrelid = to_regclass(name) and inhparent = parent::regclass);
        -- CREATE ... PARTITION OF would wait for every reader of the log, with all writers behind it; ATTACH does not.
        -- The check spares ATTACH its scan. Rows are updated in place (pending, then final), hence the room.
        execute format('create table %I (like %I including defaults including constraints including comments,
                        constraint day_check check (day = %L)) with (fillfactor = %s)',
                       name, parent, wanted, case parent when 'delivery_log' then 90 else 100 end);
        execute format('alter table %I attach partition %I for values in (%L)', parent, name, wanted);
        execute format('alter table %I drop constraint day_check', name);
        made := parent = 'delivery_log';
    end loop;
    return made;
end $$;
comment on function make_partition(date) is
    'Makes the partitions of a day, of the rows and of their content, and returns true; false where they are there. '
    'Safe to call from several nodes.';

-- Every day that there is needs a place for content; what is not a day is nobody's partition.
do $$
declare
    bound text;
begin
    for bound in
        select (regexp_match(pg_get_expr(c.relpartbound, c.oid), $r$FOR VALUES IN \('([0-9-]+)'\)$r$))[1]
        from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'delivery_log'::regclass
    loop
        perform make_partition(bound::date);
    end loop;
end $$;

create or replace view delivery as
select
    push_id, nullif(user_id, '') as user_id, outcome, reason, final, event, app_id, tenant,
    case when content is null then meta
         else coalesce(meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)) end as meta,
    published_at, taken_at, written_at, proven_at, finished_at, sessions, attempts, node, detail, expires_at, late_at
from delivery_log l;

-- Indexes -------------------------------------------------------------------------------------------------

-- Those of what was delivered, and no longer of all that was ever kept: what ended otherwise nobody resumes.
drop index delivery_log_resume;
create index delivery_log_resume on delivery_log (user_id, position)
    where outcome in ('acked', 'received', 'written') and expires_at is not null;
create index delivery_log_dropped on delivery_log (user_id, position)
    where outcome = 'dropped' and reason = 'mailbox_full';
create index delivery_log_position on delivery_log (position) where position is not null;

-- Writing -------------------------------------------------------------------------------------------------

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
    p_collapse_keys text[] default null, p_excluded jsonb[] default null, p_ack_withins double precision[] default null,
    p_kept_bytes integer[] default null, p_contents bytea[] default null,
    p_content_ids bytea[] default null, p_content_payloads bytea[] default null,
    p_content_excluded jsonb[] default null, p_content_metas jsonb[] default null
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
        position, expires_at, encoding, collapse_key, excluded, ack_within, kept_bytes, content)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed,
        n.position, to_timestamp(n.expires), n.encoding, n.collapse_key, n.excluded, n.ack_within, n.kept_bytes, n.content
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed,
        days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content)
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
        select l.day, n.*
        from rows from (unnest(
            p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_sessions, p_attempts,
            p_written, p_proven, p_finished, p_nodes, p_boots, p_details, p_payloads, p_owed,
            days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents
        )) with ordinality as n (
            tenant, push_id, user_id, outcome, reason, final, sessions, attempts,
            written, proven, finished, node, boot, detail, payload, owed,
            its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content, ord)
        cross join lateral (
            select l.day from delivery_log l
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
        payload = case when l.content is null then coalesce(l.payload, n.payload) end,
        excluded = case when l.content is null then coalesce(l.excluded, n.excluded) end,
        content = coalesce(l.content, case when l.payload is null then n.content end),
        kept_bytes = coalesce(l.kept_bytes, n.kept_bytes),
        position = coalesce(l.position, n.position),
        expires_at = coalesce(l.expires_at, to_timestamp(n.expires)),
        encoding = coalesce(l.encoding, n.encoding),
        collapse_key = coalesce(l.collapse_key, n.collapse_key),
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

create function try_writing() returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set jit to off
    as $$
begin
    perform pg_advisory_xact_lock_shared(7093848243014270977);
    -- As the others do: a plan that was made once locks every partition, also those that it then does not look into.
    perform from delivery_log l
    where l.day = (select d.day from log_day d) and l.push_id = '' and l.user_id = '' and l.tenant = '';
    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts, published_at, taken_at,
        node, boot, event, app_id, detail, traceparent)
    select l.day, '', '', '', 'rejected', 'invalid', true, 1, 0, 0, clock_timestamp(), clock_timestamp(),
        '', '', '', '', '', ''
    from log_day l;
    raise exception 'undone' using errcode = 'P0B01';
exception
    when sqlstate 'P0B01' then
        return; -- what it wrote is rolled back
end $$;
comment on function try_writing is 'Writes a row and takes it back: fails where the log takes no rows at all.';

-- Known ids -----------------------------------------------------------------------------------------------

create function find_rows(p_tenants text[], p_push_ids text[], p_users text[]) returns setof delivery_log
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
    select l.* from unnest(p_tenants, p_push_ids, p_users) as n (tenant, push_id, user_id)
    cross join lateral (
        select * from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C" and l.tenant = n.tenant collate "C"
        offset 0) l;
end $$;
comment on function find_rows(text[], text[], text[]) is 'The rows of these keys in the days in which a key is known.';

create function rows_of_push(p_tenant text, p_push_id text, p_from text, p_limit integer) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    return query
    select l.* from delivery_log l
    where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
      and l.user_id >= p_from collate "C"
    order by l.push_id, l.user_id
    fetch first (p_limit) rows with ties;
end $$;
comment on function rows_of_push is
    'A page of the rows of a push, by user, from this user on, in the days in which a key is known; all rows of the '
    'last user are on it.';

create function ids_of_day(p_day date, p_after text, p_limit integer)
    returns table (ids text, reached text, more boolean)
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
    select string_agg(i.push_id, E'\n'), max(i.push_id), coalesce(sum(i.rows), 0) >= p_limit
    from (
        select l.push_id, count(*) as rows
        from (
            select l.push_id from delivery_log l
            where l.day = p_day and l.push_id > p_after collate "C"
            order by l.push_id
            limit p_limit) l
        group by l.push_id) i;
end $$;
comment on function ids_of_day is
    'The push ids of a day above p_after, one a line, from at most p_limit rows; and the last of them. A push with '
    'more rows than that is on one page: the next begins behind it.';

-- Debts ---------------------------------------------------------------------------------------------------

-- `not in (select ...)` is a look-up in a hash table: the lists may be long.
create or replace function merge_owed(have jsonb, more jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select case
        when have is null then more
        when more is null or more = '[]' then have
        else have || coalesce((select jsonb_agg(r) from jsonb_array_elements(more) r
                               where r not in (select h from jsonb_array_elements(have) h)), '[]')
    end $$;

create or replace function unpaid(have jsonb, paid jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select jsonb_agg(r order by place)
    from jsonb_array_elements(have) with ordinality h (r, place)
    where r not in (select p from jsonb_array_elements(paid) p) $$;

create function note_debts(p_tenants text[], p_push_ids text[], p_users text[], p_owed jsonb[])
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
    done bigint[];
begin
    with locked as materialized (
        select l.day, n.*
        from rows from (unnest(p_tenants, p_push_ids, p_users, p_owed)) with ordinality
            as n (tenant, push_id, user_id, owed, ord)
        cross join lateral (
            select l.day from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            for update skip locked) l),
    noted as (
        update delivery_log l set owed = merge_owed(l.owed, n.owed)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        returning n.ord)
    select array_agg(distinct n.ord) into done from noted n;
    if cardinality(done) >= cardinality(p_push_ids) then
        return;
    end if;
    return query
    select n.ord
    from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
    where n.ord <> all (coalesce(done, '{}'))
      and exists (
        select from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C");
end $$;
comment on function note_debts is
    'Adds these replies to what the rows owe, idempotent; returns the places of rows that somebody else holds.';

create function settle_debts(p_tenants text[], p_push_ids text[], p_users text[], p_paid jsonb[])
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
                for update skip locked) l)
        update delivery_log l set owed = unpaid(l.owed, n.paid)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
        get diagnostics more = row_count;
        done := done + more;
        exit when done >= cardinality(p_push_ids);
        if first = '-infinity' then
            -- Whatever owes one of these replies all the same is held by somebody else.
            return query
            select n.ord
            from rows from (unnest(p_tenants, p_push_ids, p_users, p_paid)) with ordinality
                as n (tenant, push_id, user_id, paid, ord)
            where exists (
                select from delivery_log l
                where l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C"
                  and (l.owed = n.paid or (n.paid <> '[]' and l.owed @> n.paid)));
            return;
        end if;
        last := first - 1;
        first := '-infinity';
    end loop;
end $$;
comment on function settle_debts is
    'These replies are paid; a row with no others owes nothing any more. Of whatever day, idempotent; returns the '
    'places of rows that somebody else holds.';

create function note_late_proofs(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[])
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
    update delivery_log l set late_at = to_timestamp(n.proven), proven_at = coalesce(l.proven_at, to_timestamp(n.proven))
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
comment on function note_late_proofs is
    'Notes proof that came after the end of these rows, for each the first; returns the places of rows that somebody '
    'else holds.';

create function owing_rows(p_limit integer, p_bytes bigint) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
begin
    return query
    select (o.log).* from (
        select l as log,
               sum(pg_column_size(l.owed)) over (order by l.taken_at rows between unbounded preceding and 1 preceding) as before
        from (
            select * from delivery_log l
            where l.final and l.owed is not null
            order by l.taken_at
            limit p_limit
            -- What somebody else holds could be paid and not settled, and would be paid again.
            for share of l skip locked) l) o
    where coalesce(o.before, 0) < p_bytes;
end $$;
comment on function owing_rows(integer, bigint) is
    'Final rows that owe a receipt, and that nobody else holds, the oldest first: at most p_limit, and no more once they '
    'owe so many bytes.';

-- Ends ----------------------------------------------------------------------------------------------------

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
    update delivery_log l set outcome = p_outcome, reason = p_reason, final = true, finished_at = clock_timestamp()
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function end_stored is
    'Ends those of these rows that are stored and that nobody else holds, and returns them.';

-- The mailbox ---------------------------------------------------------------------------------------------

create function mailbox_pages(
    p_users text[], p_sessions text[], p_after bigint[], p_until bigint[], p_seen bigint[], p_most integer[],
    p_bytes bigint[]
) returns table (ord bigint, place bigint, more boolean, log delivery_log)
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
    select n.ord, page.position, page.looked >= n.most or page.bytes_before + page.bytes >= n.bytes, l.log
    from rows from (unnest(p_users, p_sessions, p_after, p_until, p_seen, p_most, p_bytes)) with ordinality
        as n (user_id, session, after, until, seen, most, bytes, ord)
    cross join lateral (
        select w.*,
               coalesce(sum(w.bytes) over (order by w.position groups between unbounded preceding and 1 preceding), 0)
                   as bytes_before,
               row_number() over (order by w.position desc) = 1 as is_last,
               count(*) over () as looked
        from (
            select k.*, case when k.wanted then coalesce(k.kept_bytes, 0) else 0 end as bytes
            from (
                (select l.day, l.push_id, l.user_id, l.tenant, l.position,
                        l.expires_at > right_now as wanted, coalesce(l.kept_bytes, octet_length(l.payload)) as kept_bytes
                 from delivery_log l
                 where l.day >= first
                   and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
                   and l.position > n.after and l.position <= n.until
                 order by l.position
                 -- What is looked at is bounded, wanted or not. Two nodes may have given one position to two rows: a
                 -- page never ends between them.
                 fetch first (n.most) rows with ties)
                union all
                (select l.day, l.push_id, l.user_id, l.tenant, l.position,
                        l.expires_at > right_now and (l.payload is not null or l.content is not null),
                        coalesce(l.kept_bytes, octet_length(l.payload))
                 from delivery_log l
                 where n.seen is not null
                   and l.user_id = n.user_id collate "C" and l.outcome in ('acked', 'received', 'written')
                   and l.expires_at is not null
                   and l.position > greatest(n.seen, n.after) and l.position <= n.until
                 order by l.position
                 fetch first (n.most) rows with ties)
                order by position
                fetch first (n.most) rows with ties) k) w) page
    left join lateral (
        select w as log
        from delivery_log l cross join lateral whole(l) w
        where page.wanted
          and l.day = page.day and l.push_id = page.push_id and l.user_id = page.user_id and l.tenant = page.tenant
          and not coalesce(w.excluded ? n.session, false)
        offset 0) l on true
    where page.bytes_before < n.bytes
    order by n.ord, page.position;
end $$;
comment on function mailbox_pages is
    'A page of each mailbox: stored rows with p_after < position <= p_until, where p_seen is not null also those '
    'after it that were delivered, without those that p_sessions does not get. At most p_most are looked at, and no '
    'more once they have p_bytes. `place` is how far that goes, also where `log` is null because a row is not '
    'wanted; `more` of the last one says that the page was cut.';

-- A program of the version before reads its pages by this; it knows nothing of content.
create or replace function mailbox_rows(
    p_users text[], p_after bigint[], p_until bigint[], p_seen bigint[], p_most integer[], p_bytes bigint[]
) returns table (ord bigint, log delivery_log)
    language sql stable
    as $$
    select m.ord, m.log
    from mailbox_pages(
        p_users, array_fill(''::text, array[cardinality(p_users)]), p_after, p_until, p_seen, p_most, p_bytes) m
    where (m.log).push_id is not null
    $$;

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
        where l.user_id = n.user_id collate "C" and l.position > last.seen
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

create or replace function dropped_since(p_users text[], p_positions bigint[]) returns table (ord bigint, dropped boolean)
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
        where l.user_id = n.user_id collate "C" and l.position > n.position
          and l.outcome = 'dropped' and l.reason = 'mailbox_full')
    from rows from (unnest(p_users, p_positions)) with ordinality as n (user_id, position, ord);
end $$;

create function overfull(p_users text[], p_pushes bigint, p_bytes bigint) returns table (user_id text, until bigint)
    language plpgsql stable
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
begin
    return query
    select n.user_id, k.position
    from unnest(p_users) as n (user_id)
    cross join lateral (
        select w.position
        from (
            select l.position, row_number() over newest as pushes,
                   sum(coalesce(l.kept_bytes, octet_length(l.payload))) over newest as bytes
            from delivery_log l
            where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
            window newest as (order by l.position desc rows unbounded preceding)) w
        where w.pushes > p_pushes or w.bytes > p_bytes
        -- Read from the newest on, and no further than to the first that is too many.
        limit 1) k;
end $$;
comment on function overfull is
    'Those of these users who have more than so many stored rows, or bytes in them, and up to which position they '
    'must go.';

create function trim_stored(p_users text[], p_until bigint[], p_limit integer) returns setof delivery_log
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
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id
        from unnest(p_users, p_until) as n (user_id, until)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id
            from delivery_log l
            where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
              and l.position <= n.until
            order by l.position
            limit p_limit) l
        limit p_limit) k;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'dropped', 'mailbox_full');
    end if;
end $$;
comment on function trim_stored is
    'Ends stored rows of these users up to these positions, the oldest of each first, at most p_limit in all.';

create function users_with_mail(p_after text, p_limit integer) returns setof text
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    here text := p_after;
begin
    -- From one user to the next: one look into each partition's index, however much is in a mailbox.
    for i in 1 .. p_limit loop
        select l.user_id into here from delivery_log l
        where l.day >= first and l.outcome = 'stored' and l.user_id > here collate "C"
        order by l.user_id
        limit 1;
        exit when not found;
        return next here;
    end loop;
end $$;
comment on function users_with_mail is 'The next users, in the order of their ids, for whom something is stored.';

create function supersede_rows(
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
comment on function supersede_rows(text[], text[], text[], bigint[], integer) is
    'Ends stored rows of lower positions with the same tenant, user and key, at most p_limit; of those that somebody else '
    'holds it tells.';

create function forget_data(p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
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
        from (
            select * from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
            order by push_id collate "C", user_id collate "C", tenant collate "C", day) n
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            for update skip locked) l)
    update delivery_log l set
        meta = coalesce(l.meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)),
        payload = null, content = null
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function forget_data is
    'Forgets the data that was kept of those of these rows that nobody else holds; returns them.';

create function recall_push(p_tenant text, p_push_id text, p_from text, p_limit integer)
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
    select last, looked >= p_limit,
           case when (l.log).outcome <> 'stored'
                 and not ((l.log).outcome in ('acked', 'received', 'written') and (l.log).expires_at is not null
                          and ((l.log).payload is not null or (l.log).content is not null)) then false end,
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
comment on function recall_push is
    'A page of the rows of a push, by user from this one on: ends those that are stored as recalled, tells of the '
    'others, and forgets the data that was kept of those that were delivered. Applied is null for rows that somebody else '
    'holds. The last line says only how far it went.';

create function recall_stored(p_tenant text, p_user text, p_collapse_key text, p_limit integer)
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
comment on function recall_stored is
    'Ends stored rows of a user with a collapse key as recalled, at most p_limit; applied is null for those that somebody '
    'else holds.';

create function recall_delivered(
    p_tenant text, p_user text, p_collapse_key text, p_after bigint, p_limit integer
) returns table (place bigint, more boolean, held boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    reached bigint;
    looked bigint;
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select count(*), max(k.position),
           array_agg(k.day) filter (where k.mine), array_agg(k.tenant) filter (where k.mine),
           array_agg(k.push_id) filter (where k.mine), array_agg(k.user_id) filter (where k.mine)
    into strict looked, reached, days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id, l.position,
               l.collapse_key is not distinct from p_collapse_key collate "C" and l.tenant = p_tenant collate "C"
               and l.expires_at > clock_timestamp() as mine
        from delivery_log l
        where l.day >= first and l.user_id = p_user collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and l.position > p_after
        order by l.position
        fetch first (p_limit) rows with ties) k;
    if looked = 0 then
        return;
    end if;
    return query
    select reached, looked >= p_limit, false, f
    from (select) one
    left join lateral forget_data(days, tenants, push_ids, users) f on true;
    return query
    select reached, looked >= p_limit, true, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
          and (l.payload is not null or l.content is not null) and l.xmin <> pg_current_xact_id()::xid
        offset 0) l;
end $$;
comment on function recall_delivered is
    'Looks at delivered rows of a user above a position, at most p_limit; of those with this collapse key whose ttl '
    'has not ended it forgets the data, and returns them, also those that somebody else holds. At least one line says how '
    'far it went.';

-- For bridges of before this version, which call it: data may be in push_content as well.
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
          and not (l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and (l.payload is not null or l.content is not null));
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and (l.payload is not null or l.content is not null);
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
    return query select false, f from forget_data(days, tenants, push_ids, users) f;
end $$;

-- Dead nodes ----------------------------------------------------------------------------------------------

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
    done integer;
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
        return query
        with dead as materialized (
            select l.day, l.push_id, l.user_id, l.tenant
            from delivery_log l
            where l.outcome = 'pending' and l.node = its_node and l.boot = its_boot
            limit room
            for update of l skip locked)
        update delivery_log l set
            -- The best proof that is held counts: an acked push whose pong had come is received.
            outcome = case when l.proven_at is null then 'unknown' else 'received' end,
            reason = case when l.proven_at is null then 'node_died' else 'not_acked' end,
            final = true, finished_at = right_now
        from dead
        where l.day = dead.day and l.push_id = dead.push_id and l.user_id = dead.user_id and l.tenant = dead.tenant
        returning l.*;
        get diagnostics done = row_count;
        room := room - done;
    end loop;
end $$;

-- For people ----------------------------------------------------------------------------------------------

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on push_content to bridge_reader;
    end if;
end $$;
