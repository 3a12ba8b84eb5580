-- Hours and days are counted once, in the background, and views show the counts.

-- Counting rows when somebody asks reads all of them. So they are counted once for each hour, in the background, and again when
-- something has changed: an outcome may come days later. What is counted:
--
--   delivery_log ──> hour_count        one day of the log, one hour: by tenant, publisher, event, outcome and reason
--                        └──> delivery_count    the same for hours and for days (UTC), with the latencies of views
--
-- An hour is counted again where rows were added (the tally then has more than were counted), or changed (a trigger notes the
-- hour). The mark of a change is deleted first, and the rows are read by a later statement, with a later snapshot: so what has
-- left no mark was seen. Everything about an hour is one transaction.
create table changed_hour (
    day  date        not null,
    hour timestamptz not null
);
comment on table changed_hour is
    'Hours in which rows were changed or deleted since they were counted, one row for each statement. Its writers do not wait for '
    'each other, since they only add rows.';
comment on column changed_hour.day is 'The day of those rows.';
comment on column changed_hour.hour is 'The hour (UTC) in which they were taken.';

create function note_changed_hours() returns trigger
    language plpgsql
    -- For a role that was granted its rights before there was this table.
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
begin
    insert into public.changed_hour (day, hour)
    select distinct c.day, date_trunc('hour', c.taken_at, 'UTC') from changed c;
    return null;
end $$;
comment on function note_changed_hours is 'Notes the hours of rows that a statement has changed or deleted.';
create trigger note_updated_hours after update on delivery_log referencing new table as changed
    for each statement execute function note_changed_hours();
create trigger note_deleted_hours after delete on delivery_log referencing old table as changed
    for each statement execute function note_changed_hours();

create table counted_hour (
    day        date        not null,
    hour       timestamptz not null,
    rows       bigint      not null,
    counted_at timestamptz not null,
    primary key (day, hour)
);
comment on table counted_hour is 'The hours that were counted.';
comment on column counted_hour.day is 'The day of the log.';
comment on column counted_hour.hour is 'The hour (UTC) in which the pushes were taken.';
comment on column counted_hour.rows is 'The rows that the tally had for it then: where it has others now, it is counted again.';
comment on column counted_hour.counted_at is 'When it was counted last.';

create table hour_count (
    day     date        not null,
    hour    timestamptz not null,
    tenant  text        not null collate "C",
    app_id  text        not null,
    event   text        not null,
    outcome text        not null,
    reason  text        not null,
    pushes  bigint      not null,
    users   bigint      not null,
    handed  bigint      not null,
    proven  bigint      not null,
    taking  integer[],
    writing integer[],
    proving integer[],
    proof   integer[]
);
create index hour_count_hour on hour_count (hour, day);
comment on table hour_count is
    'Rows of the delivery log, counted for each hour and day of the log. Latencies are histograms: pairs of a bucket and its rows. '
    'Bucket n is from 0.1 ms * 1.05^n to 5 % above that, so that histograms of several hours can be added.';
comment on column hour_count.day is 'The day of the log: it stays when the rows of that day are dropped.';
comment on column hour_count.hour is 'The hour (UTC) in which the pushes were taken.';
comment on column hour_count.tenant is 'As in delivery.';
comment on column hour_count.app_id is 'As in delivery.';
comment on column hour_count.event is 'As in delivery.';
comment on column hour_count.outcome is 'As in delivery.';
comment on column hour_count.reason is 'As in delivery.';
comment on column hour_count.pushes is 'Rows.';
comment on column hour_count.users is 'Different users.';
comment on column hour_count.handed is 'Rows that were handed to a socket.';
comment on column hour_count.proven is 'Rows with a proof, late ones too.';
comment on column hour_count.taking is 'From published_at to taken_at; null where no row has it, as all histograms.';
comment on column hour_count.writing is 'From taken_at to written_at, of pushes without a ttl.';
comment on column hour_count.proving is 'From written_at to proven_at, where the push was handed over once, or has no ttl.';
comment on column hour_count.proof is 'As delivery.latency_ms.';

create table delivery_count (
    span        text        not null check (span in ('hour', 'day')),
    since       timestamptz not null,
    tenant      text        not null collate "C",
    app_id      text        not null,
    event       text        not null,
    outcome     text        not null,
    reason      text        not null,
    pushes      bigint      not null,
    users       bigint,
    handed      bigint      not null,
    proven      bigint      not null,
    taking_p50  float8, taking_p95  float8, taking_p99  float8,
    writing_p50 float8, writing_p95 float8, writing_p99 float8,
    proving_p50 float8, proving_p95 float8, proving_p99 float8,
    proof_p50   float8, proof_p95   float8, proof_p99   float8
);
create index delivery_count_since on delivery_count (span, since);
comment on table delivery_count is 'What views delivery_hourly and delivery_daily show, made of hour_count.';
comment on column delivery_count.span is 'hour or day.';
comment on column delivery_count.since is 'When it begins (UTC).';
comment on column delivery_count.tenant is 'As in delivery.';
comment on column delivery_count.app_id is 'As in delivery.';
comment on column delivery_count.event is 'As in delivery.';
comment on column delivery_count.outcome is 'As in delivery.';
comment on column delivery_count.reason is 'As in delivery.';
comment on column delivery_count.pushes is 'Rows.';
comment on column delivery_count.users is 'Of an hour its different users; null for a day.';
comment on column delivery_count.handed is 'As in hour_count.';
comment on column delivery_count.proven is 'As in hour_count.';
do $$
declare
    step text;
    share integer;
begin
    foreach step in array array['taking', 'writing', 'proving', 'proof'] loop
        foreach share in array array[50, 95, 99] loop
            execute format('comment on column delivery_count.%I is %L', step || '_p' || share, 'As in delivery_hourly.');
        end loop;
    end loop;
end $$;

create table counting (
    one       boolean primary key default true check (one),
    through   timestamptz not null,
    counted_at timestamptz not null
);
comment on table counting is 'One row once the log was counted: how far the counts go.';
comment on column counting.one is 'Always true: there is one row.';
comment on column counting.through is 'Everything that was committed by then was counted.';
comment on column counting.counted_at is 'When that was finished.';

create function hours_to_count(p_all boolean) returns table (at_day date, at_hour timestamptz)
    language plpgsql stable
    security definer
    set search_path to pg_catalog, public, pg_temp
    set jit to off
    as $$
declare
    oldest timestamptz := clock_timestamp() - interval '400 days';
    days date[];
begin
    -- Without to_date(), which raises an error for the name of a day that does not exist.
    days := array(
        select d.day
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        cross join lateral (
            select case when c.relname ~ '^delivery_log_(?!0000)[0-9]{8}$'
                        then (make_date(substr(c.relname, 14, 4)::int, 1, 1)
                              + make_interval(months => substr(c.relname, 18, 2)::int - 1,
                                              days => substr(c.relname, 20, 2)::int - 1))::date end as day) d
        where i.inhparent = 'public.delivery_log'::regclass and not i.inhdetachpending
          and c.relname = 'delivery_log_' || to_char(d.day, 'YYYYMMDD'));
    return query
    select m.day, m.hour from public.changed_hour m where m.hour >= oldest
    union
    -- New rows go to the log's day. Others were added by hand, or while nobody counted.
    select t.day, t.hour from (
        select t.day, date_trunc('hour', t.minute, 'UTC') as hour, sum(t.rows)::bigint as rows from public.tally t
        where p_all or t.day >= (select d.day - 1 from public.log_day d)
        group by 1, 2) t
    left join public.counted_hour c on c.day = t.day and c.hour = t.hour
    where c.rows is distinct from t.rows and t.day = any (days) and t.hour >= oldest;
    if p_all then
        -- Somebody has attached a day again that has no tally any more, and was never counted. By itself, since it locks all
        -- partitions, and waits where one of them is locked.
        return query
        select a.day, a.hour from (
            select h.day, l.hour from unnest(days) h (day)
            cross join lateral (
                select distinct date_trunc('hour', r.taken_at, 'UTC') as hour from public.delivery_log r where r.day = h.day
                offset 0) l
            where not exists (select from public.tally t where t.day = h.day)) a
        where a.hour >= oldest
          and not exists (select from public.counted_hour c where c.day = a.day and c.hour = a.hour);
    end if;
end $$;
comment on function hours_to_count is
    'The hours whose counts are not those of the log any more, in no order; one may come twice. Of the tally the newest two days '
    'are looked at, or all.';

create function count_hour(p_day date, p_hour timestamptz) returns boolean
    language plpgsql volatile
    security definer
    set search_path to pg_catalog, public, pg_temp
    set lock_timeout to '5s'
    set work_mem to '64MB'
    set plan_cache_mode to force_custom_plan
    set jit to off
    as $$
declare
    part text := 'delivery_log_' || to_char(p_day, 'YYYYMMDD');
    added bigint;
begin
    if p_day is null or p_hour is null or p_hour <> date_trunc('hour', p_hour, 'UTC') then
        raise exception 'no hour of a day: %, %', p_hour, p_day using errcode = 'invalid_parameter_value';
    end if;
    -- One at a time: two would both write the counts that they found missing.
    perform pg_advisory_xact_lock(7065640022);
    delete from public.changed_hour m where m.day = p_day and m.hour = p_hour;
    begin
        -- By its name and with a lock, so that nobody drops or detaches it while its rows are counted: of no rows there would
        -- be nothing.
        execute format('lock table public.%I in access share mode', part);
    exception when undefined_table then
        return false;
    end;
    if not exists (
        select from pg_inherits i
        where i.inhrelid = to_regclass('public.' || part) and i.inhparent = 'public.delivery_log'::regclass
          and not i.inhdetachpending)
    then
        return false;
    end if;
    added := (select sum(t.rows) from public.tally t
              where t.day = p_day and t.minute >= p_hour and t.minute < p_hour + interval '1 hour');
    delete from public.hour_count c where c.day = p_day and c.hour = p_hour;
    execute format($q$
        with rows_of_hour as (
            select l.tenant, l.app_id, l.event, l.outcome, l.reason, l.user_id,
                (l.written_at is not null)::integer as handed, (l.proven_at is not null)::integer as proven,
                date_part('epoch', l.taken_at - l.published_at) as taking,
                case when l.expires_at is null then date_part('epoch', l.written_at - l.taken_at) end as writing,
                case when l.expires_at is null or l.attempts <= 1
                     then date_part('epoch', l.proven_at - l.written_at) end as proving,
                case when l.expires_at is null then date_part('epoch', l.proven_at - l.published_at)
                     when l.attempts <= 1
                     then date_part('epoch', greatest(l.taken_at - l.published_at, '0'))
                           + date_part('epoch', l.proven_at - l.written_at) end as proof
            from public.%I l
            where l.taken_at >= $2 and l.taken_at < $2 + interval '1 hour' offset 0),
        placed as (
            select r.tenant, r.app_id, r.event, r.outcome, r.reason, r.handed, r.proven,
                case when r.taking is null then null when r.taking <= 0.0001 then 0
                     else least(floor(ln(r.taking / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as taking,
                case when r.writing is null then null when r.writing <= 0.0001 then 0
                     else least(floor(ln(r.writing / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as writing,
                case when r.proving is null then null when r.proving <= 0.0001 then 0
                     else least(floor(ln(r.proving / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as proving,
                case when r.proof is null then null when r.proof <= 0.0001 then 0
                     else least(floor(ln(r.proof / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as proof
            from rows_of_hour r),
        grouped as (
            select p.tenant, p.app_id, p.event, p.outcome, p.reason, p.taking, p.writing, p.proving, p.proof,
                grouping(p.taking, p.writing, p.proving, p.proof) as which,
                count(*) as n, sum(p.handed) as handed, sum(p.proven) as proven
            from placed p
            group by p.tenant, p.app_id, p.event, p.outcome, p.reason,
                grouping sets ((), (p.taking), (p.writing), (p.proving), (p.proof))),
        people as (
            select u.tenant, u.app_id, u.event, u.outcome, u.reason, count(nullif(u.user_id, '')) as users
            from (select r.tenant, r.app_id, r.event, r.outcome, r.reason, r.user_id from rows_of_hour r
                  group by 1, 2, 3, 4, 5, 6) u
            group by 1, 2, 3, 4, 5)
        insert into public.hour_count (
            day, hour, tenant, app_id, event, outcome, reason, pushes, users, handed, proven, taking, writing, proving, proof)
        select $1, $2, g.tenant, g.app_id, g.event, g.outcome, g.reason,
            max(g.n) filter (where g.which = 15), max(u.users),
            max(g.handed) filter (where g.which = 15), max(g.proven) filter (where g.which = 15),
            array_agg(array[g.taking, g.n::integer] order by g.taking) filter (where g.which = 7 and g.taking is not null),
            array_agg(array[g.writing, g.n::integer] order by g.writing) filter (where g.which = 11 and g.writing is not null),
            array_agg(array[g.proving, g.n::integer] order by g.proving) filter (where g.which = 13 and g.proving is not null),
            array_agg(array[g.proof, g.n::integer] order by g.proof) filter (where g.which = 14 and g.proof is not null)
        from grouped g
        join people u on u.tenant = g.tenant and u.app_id = g.app_id and u.event = g.event and u.outcome = g.outcome
            and u.reason = g.reason
        group by g.tenant, g.app_id, g.event, g.outcome, g.reason
        $q$, part) using p_day, p_hour;
    insert into public.counted_hour (day, hour, rows, counted_at)
    values (p_day, p_hour, coalesce(added, 0), clock_timestamp())
    on conflict (day, hour) do update set rows = excluded.rows, counted_at = excluded.counted_at;
    perform public.add_up_counts('hour', p_hour, p_hour + interval '1 hour');
    perform public.add_up_counts('day', date_trunc('day', p_hour, 'UTC'), date_trunc('day', p_hour, 'UTC') + interval '24 hours');
    return true;
end $$;
comment on function count_hour is
    'Counts the rows of one day of the log that were taken in this hour, and adds up what it is a part of. False, and nothing '
    'changed, where the log does not have that day any more.';

create function add_up_counts(p_span text, p_since timestamptz, p_until timestamptz) returns void
    language plpgsql volatile
    set search_path to pg_catalog, public, pg_temp
    set plan_cache_mode to force_custom_plan
    set jit to off
    as $$
begin
    delete from public.delivery_count c where c.span = p_span and c.since = p_since;
    insert into public.delivery_count
    with counts as materialized (
        select * from public.hour_count c where c.hour >= p_since and c.hour < p_until),
    placed as (
        select c.tenant, c.app_id, c.event, c.outcome, c.reason, s.step, b.bucket, sum(b.n) as n
        from counts c
        cross join lateral (values
            ('taking', c.taking), ('writing', c.writing), ('proving', c.proving), ('proof', c.proof)) s (step, histogram)
        cross join lateral (
            select s.histogram[i][1] as bucket, s.histogram[i][2] as n from generate_subscripts(s.histogram, 1) i) b
        group by 1, 2, 3, 4, 5, 6, 7),
    ranked as (
        select p.tenant, p.app_id, p.event, p.outcome, p.reason, p.step,
            -- The middle of the bucket: 2.5 % from both of its ends.
            0.0001 * power(1.05::float8, p.bucket + 0.5) as seconds,
            sum(p.n) over (w order by p.bucket) / sum(p.n) over w as share
        from placed p
        window w as (partition by p.tenant, p.app_id, p.event, p.outcome, p.reason, p.step)),
    latencies as (
        select r.tenant, r.app_id, r.event, r.outcome, r.reason,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.5) as taking_p50,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.95) as taking_p95,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.99) as taking_p99,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.5) as writing_p50,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.95) as writing_p95,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.99) as writing_p99,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.5) as proving_p50,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.95) as proving_p95,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.99) as proving_p99,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.5) as proof_p50,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.95) as proof_p95,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.99) as proof_p99
        from ranked r group by 1, 2, 3, 4, 5),
    sums as (
        select c.tenant, c.app_id, c.event, c.outcome, c.reason, sum(c.pushes) as pushes,
            case when p_span = 'hour' then sum(c.users) end as users, sum(c.handed) as handed, sum(c.proven) as proven
        from counts c group by 1, 2, 3, 4, 5)
    select p_span, p_since, s.tenant, s.app_id, s.event, s.outcome, s.reason, s.pushes, s.users, s.handed, s.proven,
        t.taking_p50, t.taking_p95, t.taking_p99, t.writing_p50, t.writing_p95, t.writing_p99,
        t.proving_p50, t.proving_p95, t.proving_p99, t.proof_p50, t.proof_p95, t.proof_p99
    from sums s
    left join latencies t on t.tenant = s.tenant and t.app_id = s.app_id and t.event = s.event and t.outcome = s.outcome
        and t.reason = s.reason;
end $$;
comment on function add_up_counts is 'Makes the counts of an hour or a day of those of its hours.';

create function note_counted(p_through timestamptz) returns void
    language plpgsql volatile
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
begin
    insert into public.counting (through, counted_at) values (p_through, clock_timestamp())
    on conflict (one) do update set
        through = greatest(counting.through, excluded.through), counted_at = excluded.counted_at;
    -- So many days are kept, whatever the retention of rows is: this year and the same weeks of the last one.
    delete from public.delivery_count c where c.since < p_through - interval '400 days';
    delete from public.hour_count c where c.hour < p_through - interval '400 days';
    delete from public.changed_hour m where m.hour < p_through - interval '400 days';
    -- The hours of a day that may be attached again are known as long as its counts.
    delete from public.counted_hour c where c.hour < p_through - interval '400 days';
end $$;
comment on function note_counted is
    'Everything that was committed by then was counted. Forgets counts that are more than 400 days old.';

-- `bridge db grant` gives these rights to the role of a bridge.
revoke execute on function hours_to_count(boolean), count_hour(date, timestamptz), note_counted(timestamptz) from public;
revoke execute on function add_up_counts(text, timestamptz, timestamptz) from public;

create or replace view delivery_hourly as
select
    c.since as hour, c.tenant, c.app_id, c.event, c.outcome, c.reason, c.pushes, c.users, c.proof_p50, c.proof_p99,
    e.party, c.handed, c.proven, c.proof_p95, c.taking_p50, c.taking_p95, c.taking_p99,
    c.writing_p50, c.writing_p95, c.writing_p99, c.proving_p50, c.proving_p95, c.proving_p99
from delivery_count c
left join ending e on e.outcome = c.outcome and e.reason = c.reason
where c.span = 'hour'
union all
select z.since, null, null, null, null, null, 0, 0, null, null, null, 0, 0, null, null, null, null, null, null, null, null, null, null
from generate_series(
    (select min(c.since) from delivery_count c where c.span = 'hour'),
    (select date_trunc('hour', n.through, 'UTC') from counting n), interval '1 hour') as z (since)
where not exists (select from delivery_count c where c.span = 'hour' and c.since = z.since);
create view delivery_daily as
select
    (c.since at time zone 'UTC')::date as day, c.tenant, c.app_id, c.event, c.outcome, c.reason, e.party,
    c.pushes, c.handed, c.proven, c.taking_p50, c.taking_p95, c.taking_p99, c.writing_p50, c.writing_p95, c.writing_p99,
    c.proving_p50, c.proving_p95, c.proving_p99, c.proof_p50, c.proof_p95, c.proof_p99
from delivery_count c
left join ending e on e.outcome = c.outcome and e.reason = c.reason
where c.span = 'day'
union all
select (z.since at time zone 'UTC')::date, null, null, null, null, null, null, 0, 0, 0, null, null, null, null, null, null, null, null, null, null, null, null
from generate_series(
    (select min(c.since) from delivery_count c where c.span = 'day'),
    (select date_trunc('day', n.through, 'UTC') from counting n), interval '24 hours') as z (since)
where not exists (select from delivery_count c where c.span = 'day' and c.since = z.since);
create view funnel as
select
    d.day, d.tenant, d.app_id, d.event, sum(d.pushes)::bigint as pushes,
    coalesce(sum(d.pushes) filter (where d.outcome <> 'rejected'), 0)::bigint as accepted,
    sum(d.handed)::bigint as handed, sum(d.proven)::bigint as proven,
    coalesce(sum(d.pushes) filter (where d.outcome = 'acked'), 0)::bigint as acked,
    coalesce(sum(d.pushes) filter (where d.outcome in ('pending', 'stored')), 0)::bigint as waiting
from delivery_daily d
group by 1, 2, 3, 4;
create view push_summary as
select
    l.tenant, l.push_id, max(l.event) as event, max(l.app_id) as app_id,
    min(l.published_at) as published_at, max(l.finished_at) filter (where l.final) as finished_at, bool_and(l.final) as final,
    count(*) as users,
    count(*) filter (where l.outcome in ('acked', 'received', 'written')) as delivered,
    count(*) filter (where l.final and l.outcome not in ('acked', 'received', 'written')) as failed,
    count(*) filter (where not l.final) as waiting,
    count(l.written_at) as handed, count(l.proven_at) as proven,
    count(*) filter (where l.outcome = 'acked') as acked,
    nullif(percentile_disc(0.5) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_50,
    nullif(percentile_disc(0.9) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_90,
    nullif(percentile_disc(0.99) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_99
from delivery_log l
group by l.push_id, l.tenant;
create view unreached_users as
select
    nullif(l.user_id, '') as user_id, l.day, count(*) as pushes,
    count(*) filter (where l.outcome = 'stored') as waiting, max(l.taken_at) as last_taken_at,
    (array_agg(l.outcome order by l.taken_at desc))[1] as last_outcome,
    (array_agg(l.reason order by l.taken_at desc))[1] as last_reason
from delivery_log l
where nullif(l.user_id, '') is not null
group by nullif(l.user_id, ''), l.day
having count(*) filter (where l.outcome in ('acked', 'received', 'written') or l.late_at is not null) = 0
    and bool_or(l.outcome <> 'rejected');
create view top_reasons as
select
    d.day, d.tenant, d.app_id, d.event, d.outcome, d.reason, d.party, e.meaning, d.pushes,
    d.pushes::float8 / sum(d.pushes) over (partition by d.day, d.tenant) as share
from delivery_daily d
join ending e on e.outcome = d.outcome and e.reason = d.reason
where e.final and d.outcome not in ('acked', 'received', 'written');
comment on view delivery_hourly is
    'Counts and latencies per hour (UTC), publisher, event and end. They are counted in the background, once a minute where something has changed, and are then exactly those of delivery; they stay for 400 days, also when the rows are dropped. An hour without pushes is a row of zeros, whose other columns are null.';
comment on column delivery_hourly.hour is
    'The hour in which the pushes were taken; it begins with the hours of UTC.';
comment on column delivery_hourly.party is 'As in delivery.';
comment on column delivery_hourly.handed is 'Pushes that were handed to a socket.';
comment on column delivery_hourly.proven is 'Pushes with a proof, late ones too.';
comment on column delivery_hourly.users is
    'Different users among them. Around midnight, and after an outage, an hour has rows in two days of the log: who has some in '
    'both counts twice.';
comment on column delivery_hourly.proof_p50 is
    'Median of the seconds from publishing to proof, as delivery.latency_ms: without the time that a kept push waited for its user. At most 2.5 % off; null without any.';
comment on column delivery_hourly.proof_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.taking_p50 is
    'Median of the seconds from publishing to taking: the time in the queue. At most 2.5 % off; null without any.';
comment on column delivery_hourly.taking_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.taking_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.writing_p50 is
    'Median of the seconds from taking to the first socket, of pushes without a ttl (a kept push may wait for its user). At most 2.5 % off; null without any.';
comment on column delivery_hourly.writing_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.writing_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.proving_p50 is
    'Median of the seconds from the first socket to the proof; of a kept push only where it was handed over once. At most 2.5 % off; null without any.';
comment on column delivery_hourly.proving_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.proving_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.proof_p95 is 'The same for the slowest 5 in a hundred.';
comment on view delivery_daily is
    'As delivery_hourly, per day (UTC). Users are not counted: the same one may come in many hours.';
comment on column delivery_daily.day is 'The day (UTC) in which the pushes were taken.';
comment on column delivery_daily.tenant is 'As in delivery.';
comment on column delivery_daily.app_id is 'As in delivery.';
comment on column delivery_daily.event is 'As in delivery.';
comment on column delivery_daily.outcome is 'As in delivery.';
comment on column delivery_daily.reason is 'As in delivery.';
comment on column delivery_daily.party is 'As in delivery.';
comment on column delivery_daily.pushes is 'Rows of delivery: pushes, each counted once per user.';
comment on column delivery_daily.handed is 'Pushes that were handed to a socket.';
comment on column delivery_daily.proven is 'Pushes with a proof, late ones too.';
comment on column delivery_daily.taking_p50 is
    'Median of the seconds from publishing to taking: the time in the queue. At most 2.5 % off; null without any.';
comment on column delivery_daily.taking_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.taking_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.writing_p50 is
    'Median of the seconds from taking to the first socket, of pushes without a ttl (a kept push may wait for its user). At most 2.5 % off; null without any.';
comment on column delivery_daily.writing_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.writing_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.proving_p50 is
    'Median of the seconds from the first socket to the proof; of a kept push only where it was handed over once. At most 2.5 % off; null without any.';
comment on column delivery_daily.proving_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.proving_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.proof_p50 is
    'Median of the seconds from publishing to proof, as delivery.latency_ms: without the time that a kept push waited for its user. At most 2.5 % off; null without any.';
comment on column delivery_daily.proof_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.proof_p99 is 'The same for the slowest 1 in a hundred.';
comment on view funnel is
    'How far the pushes of a day came, per publisher and event: each step has those that came so far or farther, but waiting.';
comment on column funnel.day is 'The day (UTC) in which the pushes were taken.';
comment on column funnel.tenant is 'As in delivery.';
comment on column funnel.app_id is 'As in delivery.';
comment on column funnel.event is
    'As in delivery; null, as the two before, on a day without pushes.';
comment on column funnel.pushes is 'Rows of delivery: pushes, each counted once per user.';
comment on column funnel.accepted is 'Those whose request was not rejected.';
comment on column funnel.handed is 'Those that were handed to a socket.';
comment on column funnel.proven is 'Those that the peer has proven, late or in time.';
comment on column funnel.acked is 'Those that ended as acked.';
comment on column funnel.waiting is 'Those that have no end yet: pending or stored.';
comment on view push_summary is
    'How far a push came with all of its users. Ask for one push_id.';
comment on column push_summary.tenant is 'As in delivery.';
comment on column push_summary.push_id is 'As in delivery.';
comment on column push_summary.event is 'As in delivery.';
comment on column push_summary.app_id is 'As in delivery.';
comment on column push_summary.published_at is 'As in delivery.';
comment on column push_summary.finished_at is 'When the last outcome so far was decided; null: none is.';
comment on column push_summary.final is 'Whether all of its outcomes are.';
comment on column push_summary.users is 'Its rows: users, and one without where none was known.';
comment on column push_summary.delivered is 'Those that ended as acked, received or written.';
comment on column push_summary.failed is 'Those with any other end.';
comment on column push_summary.waiting is 'Those without an end: pending or stored.';
comment on column push_summary.handed is 'Those to whom it was handed at a socket.';
comment on column push_summary.proven is 'Those that have proven it, late or in time.';
comment on column push_summary.acked is 'Those that ended as acked.';
comment on column push_summary.seconds_50 is
    'Seconds from publishing until half of all users had proven it; null: so many have not.';
comment on column push_summary.seconds_90 is 'The same for 90 of a hundred.';
comment on column push_summary.seconds_99 is 'The same for 99 of a hundred.';
comment on view unreached_users is
    'The users to whom nothing of a day was delivered, with what was for them. Ask for a day, or for one user_id.';
comment on column unreached_users.user_id is 'The user.';
comment on column unreached_users.day is 'The day of the log (UTC), as in delivery.';
comment on column unreached_users.pushes is 'The pushes of that day for them.';
comment on column unreached_users.waiting is 'Those of them that are still kept for them.';
comment on column unreached_users.last_taken_at is 'When the last of them was taken.';
comment on column unreached_users.last_outcome is 'How that one stands or ended.';
comment on column unreached_users.last_reason is 'Why.';
comment on view top_reasons is
    'Why pushes of a day were not delivered, per publisher and event: only final outcomes that are no delivery. Order it by pushes.';
comment on column top_reasons.day is 'The day (UTC) in which the pushes were taken.';
comment on column top_reasons.tenant is 'As in delivery.';
comment on column top_reasons.app_id is 'As in delivery.';
comment on column top_reasons.event is 'As in delivery.';
comment on column top_reasons.outcome is 'As in delivery.';
comment on column top_reasons.reason is 'As in delivery.';
comment on column top_reasons.party is 'As in delivery.';
comment on column top_reasons.meaning is 'What both mean, in a sentence.';
comment on column top_reasons.pushes is 'Rows of delivery.';
comment on column top_reasons.share is
    'Their share of all pushes of the day and tenant that were not delivered.';

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on delivery_daily, funnel, push_summary, unreached_users, top_reasons, counting, counted_hour to bridge_reader;
    end if;
end $$;
