-- Topics have last values, which who subscribes later gets first.

create table retained (
    topic        text        not null collate "C",
    event        text        not null collate "C",
    position     bigint      not null,
    tenant       text        not null collate "C",
    push_id      text        not null collate "C",
    day          date        not null,
    published_at timestamptz not null,
    until        timestamptz not null,
    confirm      smallint    not null,
    encoding     text        not null,
    data         bytea       not null,
    ttl          float8      not null,
    ack_within   float8      not null,
    first_device boolean     not null,
    excluded     jsonb,
    meta         jsonb,
    app_id       text        not null,
    traceparent  text        not null,
    fingerprint  integer     not null,
    primary key (topic, event)
);
create index retained_order on retained (topic, position);
create index retained_push on retained (push_id, tenant);
create index retained_until on retained (until);
comment on table retained is
    'The last values of topics: for each topic and event the newest push that said retain. Who subscribes gets them first.';
comment on column retained.topic is 'The topic.';
comment on column retained.event is 'The event name of the push.';
comment on column retained.position is 'When it was taken, in microseconds since 1970: of two the higher one stays.';
comment on column retained.tenant is 'The tenant of the push; empty where it named none.';
comment on column retained.push_id is 'The id of the push.';
comment on column retained.day is 'The log''s day when it was first kept: no row of the push is older.';
comment on column retained.published_at is 'When it was published.';
comment on column retained.until is 'When it is no last value any more: its ttl is over, or without one its row would be dropped.';
comment on column retained.confirm is 'The proof that was asked for: 1 written, 2 received, 3 acked.';
comment on column retained.encoding is 'What data is: json, text or bytes.';
comment on column retained.data is 'Its data.';
comment on column retained.ttl is 'Its ttl in seconds; 0: it is not kept for users.';
comment on column retained.ack_within is 'The seconds that it gives the application to ack; 0 where it does not say.';
comment on column retained.first_device is 'Whether the first ack takes it back from the other sessions of a user.';
comment on column retained.excluded is 'The sessions that do not get it; null where it names none.';
comment on column retained.meta is 'The object meta of the request; null where it had none.';
comment on column retained.app_id is 'The publisher, as its AMQP property app_id says; empty where it does not.';
comment on column retained.traceparent is 'W3C trace context of the request; empty where it had none.';
comment on column retained.fingerprint is 'As in delivery_log; 0: not known.';

create function last_values(p_topics text[], p_users text[], p_afters bigint[], p_rows integer, p_bytes integer)
    returns table (ord bigint, value retained, known boolean, taken_back boolean, others bigint)
    language plpgsql stable
    set search_path to public, pg_temp
    -- One plan, made while a table is empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select a.ord, t.value, u.rows > 0, u.acked, v.found - v.nth
    from rows from (unnest(p_topics, p_users, p_afters)) with ordinality as a (topic, user_id, after, ord)
    cross join lateral (
        -- Which they are, by the sizes alone: a whole value would be fetched and thrown away.
        select w.row, row_number() over (order by w.position) as nth, count(*) over () as found,
            sum(w.bytes) over (order by w.position) - w.bytes as before
        from (
            select r.ctid as row, r.position, octet_length(r.data) as bytes from retained r
            where r.topic = a.topic collate "C" and r.position > a.after and r.until > clock_timestamp()
            order by r.position limit p_rows + 1) w) v
    cross join lateral (select r as value from retained r where r.ctid = v.row offset 0) t
    cross join lateral (
        select count(*) as rows, coalesce(bool_or(l.first_device and l.outcome = 'acked'), false) as acked
        from delivery_log l
        where l.day >= (t.value).day and l.push_id = (t.value).push_id collate "C"
          and l.user_id = a.user_id collate "C" and l.tenant = (t.value).tenant collate "C") u
    where v.nth <= p_rows and (v.nth = 1 or v.before < p_bytes)
    order by a.ord, v.nth;
end $$;
comment on function last_values is
    'For each (topic, user, position): the last values of the topic after that position, a page of them; whether the user has '
    'a row of each, whether that says that its first device has acked it, and how many others after it there are at least.';

-- Whoever may write subscriptions, which bridges of the version before do, may write this, too. Who only reads those does not
-- read this: it has the data of pushes.
do $$
declare
    may record;
begin
    for may in
        select distinct a.grantee::regrole::text as role
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'subscription'::regclass and a.grantee <> 0 and a.grantee <> c.relowner
          and a.privilege_type = 'INSERT'
    loop
        execute format('grant select, insert, update, delete on retained to %s', may.role);
    end loop;
end $$;
