-- The rows of the delivery log: one per push and user, in daily partitions, written by compare-and-set.
--
-- Ids compare bytewise (COLLATE "C"): it is faster, and the program sorts its batches the same way, so that
-- two writers always lock rows in one order.

create table delivery_log (
    day          date        not null,
    tenant       text        collate "C" not null,
    push_id      text        collate "C" not null,
    user_id      text        collate "C" not null,
    outcome      text        not null,
    reason       text        not null,
    final        boolean     not null,
    confirm      smallint    not null,
    sessions     integer     not null,
    attempts     integer     not null,
    published_at timestamptz not null,
    taken_at     timestamptz not null,
    written_at   timestamptz,
    proven_at    timestamptz,
    finished_at  timestamptz,
    node         text        not null,
    boot         text        not null,
    event        text        not null,
    app_id       text        not null,
    detail       text        not null,
    traceparent  text        not null,
    meta         jsonb,
    payload      bytea,
    owed         jsonb,
    -- The day is the same all over a partition, so it comes last: a push id alone finds its rows.
    constraint delivery_log_key primary key (push_id, user_id, tenant, day)
) partition by list (day);

-- Both are nearly empty: a row leaves them with its end, or with the confirm of its receipt.
create index delivery_log_open on delivery_log (node, boot) where not final;
create index delivery_log_owing on delivery_log (taken_at) where final and owed is not null;
-- The expression is the one of view delivery, so that a search there by user finds it.
create index delivery_log_user on delivery_log ((nullif(user_id, '')), taken_at);
-- The newest rows, and a stretch of time: appended to at its right end, which costs next to nothing.
create index delivery_log_taken on delivery_log (taken_at);

comment on table delivery_log is
    'One row per push and user, in one partition per day (UTC, by the database''s clock). '
    'People read the view delivery; the bridge alone writes here.';
comment on column delivery_log.day is 'The log''s day when the row was written (log_day.day), the partition key.';
comment on column delivery_log.tenant is 'The tenant of the request; empty where it named none.';
comment on column delivery_log.push_id is 'The id of the request, unique within its tenant.';
comment on column delivery_log.user_id is 'The user it was addressed to; empty where none was known.';
comment on column delivery_log.final is 'True once outcome and reason never change again.';
comment on column delivery_log.confirm is 'The proof that was asked for: 1 written, 2 received, 3 acked.';
comment on column delivery_log.sessions is 'Sessions of the user that it was addressed to.';
comment on column delivery_log.attempts is 'How often it was handed to sockets, over all takings known here.';
comment on column delivery_log.published_at is
    'When it was published: header x-push-published-ms, else the AMQP timestamp, else its arrival.';
comment on column delivery_log.taken_at is 'When a bridge first took it from the queue.';
comment on column delivery_log.written_at is 'When it was first handed to an open socket; null: never.';
comment on column delivery_log.proven_at is
    'When the best proof came (a pong or an ack frame), also after the end; null: none came.';
comment on column delivery_log.finished_at is 'When the outcome was decided; null while it is not final.';
comment on column delivery_log.node is 'The bridge process that wrote the row.';
comment on column delivery_log.boot is 'That process''s start: every start of a node has its own.';
comment on column delivery_log.event is 'The event name that the client dispatches on.';
comment on column delivery_log.app_id is 'The publisher, as its AMQP property app_id says; empty where it does not.';
comment on column delivery_log.detail is 'A sentence for people, such as the path of the wrong field.';
comment on column delivery_log.traceparent is 'W3C trace context of the request; empty where it had none.';
comment on column delivery_log.meta is 'The object meta of the request; null where it had none.';
comment on column delivery_log.payload is 'The body of a rejected request, cut where detail says so; null otherwise.';
comment on column delivery_log.owed is
    'What is still to be sent back: null nothing; otherwise the event on push.outcomes and a receipt to each '
    '{queue, correlation_id} of the list (a text that no JSON of Postgres can hold is kept as <name>_hex).';

-- The log's day ------------------------------------------------------------------------------------------

create table log_day (
    one   boolean primary key default true check (one),
    day   date not null,
    since date not null check (since < day)
);
comment on table log_day is
    'One row: the day that new rows get, and the oldest day in which a key may be known. Changed by roll_day() only.';
comment on column log_day.one is 'Always true: there is one row.';
comment on column log_day.day is 'The partition that new rows go to. Never goes back, whatever the clock does.';
comment on column log_day.since is
    'A key is known when it has a row from this day on: the day before, or the oldest with an unfinished row.';

create function log_today() returns date
    language sql stable parallel safe
    as $$ select (clock_timestamp() at time zone 'UTC')::date $$;
comment on function log_today() is 'The day by the database''s clock, in UTC.';

create function make_partition(wanted date) returns boolean
    language plpgsql
    set search_path to public, pg_temp
    as $$
declare
    name text := 'delivery_log_' || to_char(wanted, 'YYYYMMDD');
begin
    perform pg_advisory_xact_lock(7093848243014270978);
    if exists (select from pg_inherits where inhrelid = to_regclass(name) and inhparent = 'delivery_log'::regclass) then
        return false;
    end if;
    -- CREATE ... PARTITION OF would wait for every reader of the log, with all writers behind it; ATTACH does not.
    -- The check spares ATTACH its scan. Rows are updated in place (pending, then final), hence the room.
    execute format('create table %I (like delivery_log including defaults including constraints including comments,
                    constraint day_check check (day = %L)) with (fillfactor = 90)', name, wanted);
    execute format('alter table delivery_log attach partition %I for values in (%L)', name, wanted);
    execute format('alter table %I drop constraint day_check', name);
    return true;
end $$;
comment on function make_partition(date) is
    'Makes the partition of a day and returns true; false where it is there. Safe to call from several nodes.';

create function roll_day(today date default log_today()) returns date
    language plpgsql
    set search_path to public, pg_temp
    -- Writers queue behind this lock while it waits for those before it: give up early, it is called again soon.
    set lock_timeout to '1s'
    as $$
declare
    have date := (select day from log_day);
begin
    if have is null or today > have then
        perform pg_advisory_xact_lock(7093848243014270977);
        -- Another node may have rolled it while this one waited; a fresh snapshot shows that.
        have := (select day from log_day);
        if have is null then
            perform make_partition(today);
            insert into log_day (day, since) values (today, today - 1);
            have := today;
        elsif today > have then
            perform make_partition(today);
            update log_day set
                day = today,
                since = least(have, (select min(l.day) from delivery_log l where not l.final));
            have := today;
        end if;
    end if;
    return have;
end $$;
comment on function roll_day(date) is
    'Moves the log on to this day (by default the clock''s) and returns the log''s day; never moves it back.';

-- Writing ------------------------------------------------------------------------------------------------

create function merge_owed(have jsonb, more jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select case
        when have is null then more
        when more is null or more = '[]' then have
        else have || coalesce((select jsonb_agg(r) from jsonb_array_elements(more) r
                               where not have @> jsonb_build_array(r)), '[]')
    end $$;
comment on function merge_owed(jsonb, jsonb) is 'Replies of both lists, each once, in order; null owes nothing.';

create function record_rows(
    p_tenants text[], p_push_ids text[], p_users text[],
    p_outcomes text[], p_reasons text[], p_finals boolean[], p_confirms smallint[],
    p_sessions integer[], p_attempts integer[],
    p_published float8[], p_taken float8[], p_written float8[], p_proven float8[], p_finished float8[],
    p_nodes text[], p_boots text[], p_events text[], p_app_ids text[],
    -- Mostly empty, so they may be null as a whole:
    p_details text[], p_traceparents text[], p_metas jsonb[], p_payloads bytea[], p_owed jsonb[]
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

    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed)
    where not exists (
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
    -- An UPDATE locks in the order of its plan; this locks in the order that all writers keep, and changes only
    -- what it has locked. (`final::int = 0` is `not final` to all but the planner: it must look keys up, not
    -- read the index of all open rows.)
    return query
    with locked as materialized (
        select l.day, n.*
        from rows from (unnest(
            p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_sessions, p_attempts,
            p_written, p_proven, p_finished, p_nodes, p_boots, p_details, p_payloads, p_owed
        )) with ordinality as n (
            tenant, push_id, user_id, outcome, reason, final, sessions, attempts,
            written, proven, finished, node, boot, detail, payload, owed, ord)
        join delivery_log l
          on l.day >= s and l.day <= d
         and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
         and l.tenant = n.tenant collate "C"
        where l.final::int = 0 and l.xmin <> me
        order by l.push_id, l.user_id, l.tenant, l.day
        for update of l)
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
        payload = coalesce(n.payload, l.payload),
        owed = case when n.owed is null then l.owed else merge_owed(l.owed, n.owed) end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning n.ord, true, l;
    get diagnostics more = row_count;
    done := done + more;

    if done < wanted then
        return query
        select n.ord, false, l
        from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
        join delivery_log l
          on l.day >= s and l.day <= d
         and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
         and l.tenant = n.tenant collate "C"
        where l.xmin <> me;
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

create function find_rows(p_tenants text[], p_push_ids text[]) returns setof delivery_log
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
    s date := (select since from log_day);
begin
    return query
    select l.* from unnest(p_tenants, p_push_ids) as n (tenant, push_id)
    join delivery_log l
      on l.day >= s and l.push_id = n.push_id collate "C" and l.tenant = n.tenant collate "C";
end $$;
comment on function find_rows is 'Every row of these pushes in the days in which a key is known.';

create function owe_rows(p_tenants text[], p_push_ids text[], p_users text[], p_owed jsonb[]) returns void
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
    s date := (select since from log_day);
begin
    -- Locked in the order of all writers; and only what was locked is changed, whatever came in between.
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_owed) as n (tenant, push_id, user_id, owed)
        join delivery_log l
          on l.day >= s
         and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
         and l.tenant = n.tenant collate "C"
        order by l.push_id, l.user_id, l.tenant, l.day
        for update of l)
    update delivery_log l set owed = merge_owed(l.owed, n.owed)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;
comment on function owe_rows is 'Adds these replies to what the rows owe. Idempotent.';

create function settle_rows(p_tenants text[], p_push_ids text[], p_users text[]) returns void
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
            select l.day, n.* from unnest(p_tenants, p_push_ids, p_users) as n (tenant, push_id, user_id)
            join delivery_log l
              on l.day >= first and l.day <= last
             and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
             and l.tenant = n.tenant collate "C"
            where l.owed is not null
            order by l.push_id, l.user_id, l.tenant, l.day
            for update of l)
        update delivery_log l set owed = null
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
comment on function settle_rows is 'Nothing is owed any more by these rows, of whatever day. Idempotent.';

create function prove_rows(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[]) returns void
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
    s date := (select since from log_day);
begin
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_proven) as n (tenant, push_id, user_id, proven)
        join delivery_log l
          on l.day >= s
         and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
         and l.tenant = n.tenant collate "C"
        where l.final and l.proven_at is null
        order by l.push_id, l.user_id, l.tenant, l.day
        for update of l)
    update delivery_log l set proven_at = to_timestamp(n.proven)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;
comment on function prove_rows is 'Fills proven_at of final rows where it is null. Idempotent.';

select roll_day();
