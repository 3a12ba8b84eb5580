-- Pushes with a deliver_at wait in a table of their own until they are published again.

create table scheduled (
    place        bigint      not null generated always as identity primary key,
    id           text        not null collate "C",
    tenant       text        not null collate "C",
    push_id      text        not null collate "C",
    user_id      text        not null collate "C",
    collapse_key text        not null collate "C",
    users        integer     not null,
    deliver_at   timestamptz not null,
    due_at       timestamptz not null,
    published_at timestamptz not null,
    scheduled_at timestamptz not null default clock_timestamp(),
    routing_key  bytea       not null,
    body         bytea       not null,
    properties   bytea       not null,
    bytes        integer     not null,
    claimed_by   text        collate "C",
    claimed_at   timestamptz,
    recalled_at  timestamptz
);
create unique index scheduled_id on scheduled (id);
create index scheduled_due on scheduled (due_at, place);
create index scheduled_push on scheduled (push_id, tenant);
create index scheduled_collapse on scheduled (user_id, collapse_key, tenant) where collapse_key <> '';
create index scheduled_claimed on scheduled (claimed_by) where claimed_by is not null;
comment on table scheduled is
    'Push requests whose deliver_at is ahead: one row for each. At its time a node publishes it again, and deletes the row. '
    'Its outcome is in the delivery log from then on.';
comment on column scheduled.place is 'The order in which they were scheduled; of one time the lowest goes first.';
comment on column scheduled.id is 'Chosen by the program; the message id of the message that is published at its time.';
comment on column scheduled.tenant is 'Its tenant, or empty.';
comment on column scheduled.push_id is 'Its push id, generated where the producer gave none.';
comment on column scheduled.user_id is 'The user that it names, if it names one; else empty.';
comment on column scheduled.collapse_key is 'Its collapse_key, or empty.';
comment on column scheduled.users is 'How many users it names; 1 for a session, a topic or everyone.';
comment on column scheduled.deliver_at is 'Its deliver_at.';
comment on column scheduled.due_at is 'When it is published: its deliver_at, or when it was recalled.';
comment on column scheduled.published_at is 'When its producer published it.';
comment on column scheduled.scheduled_at is 'When this row was written.';
comment on column scheduled.routing_key is 'The routing key with which it came, and is published again.';
comment on column scheduled.body is 'The body of the message, or the element of a batch.';
comment on column scheduled.properties is 'The properties and headers of the message, in MessagePack.';
comment on column scheduled.bytes is 'Bytes of body and properties.';
comment on column scheduled.claimed_by is 'The boot that publishes it now; null: none.';
comment on column scheduled.claimed_at is 'When it was claimed last; null: never, and only then it can be recalled.';
comment on column scheduled.recalled_at is 'When it was recalled; null: it was not.';

create function schedule_pushes(
    p_ids text[], p_tenants text[], p_pushes text[], p_users text[], p_keys text[], p_counts integer[],
    p_deliver float8[], p_published float8[], p_routing bytea[], p_bodies bytea[], p_properties bytea[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into scheduled (
        id, tenant, push_id, user_id, collapse_key, users, deliver_at, due_at, published_at, routing_key, body, properties,
        bytes)
    select n.id, n.tenant, n.push_id, n.user_id, n.collapse_key, n.users, to_timestamp(n.deliver_at),
        to_timestamp(n.deliver_at), to_timestamp(n.published_at),
        n.routing_key, n.body, n.properties, octet_length(n.body) + octet_length(n.properties)
    from unnest(
        p_ids, p_tenants, p_pushes, p_users, p_keys, p_counts, p_deliver, p_published, p_routing, p_bodies, p_properties)
        with ordinality
        as n (
            id, tenant, push_id, user_id, collapse_key, users, deliver_at, published_at, routing_key, body, properties, ord)
    order by n.ord
    on conflict (id) do nothing;
end $$;
comment on function schedule_pushes is 'Writes pushes that are scheduled; those whose id is there stay as they are.';

create function claim_scheduled(p_boot text, p_limit integer, p_bytes bigint)
    returns table (
        its_id text, its_tenant text, its_push text, its_user text, its_key text, its_users integer, delivers float8,
        published float8, its_routing bytea, its_body bytea, its_properties bytea, was_recalled boolean, next_in float8)
    language plpgsql volatile
    set search_path to public, pg_temp
    -- One plan, made while the table is empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    right_now timestamptz;
    its_due timestamptz;
begin
    -- Nothing may be due: then nobody needs to wait for anybody.
    select s.due_at into its_due from scheduled s order by s.due_at, s.place limit 1;
    right_now := clock_timestamp();
    if its_due is null or its_due > right_now then
        return query select null::text, null::text, null::text, null::text, null::text, null::integer, null::float8,
            null::float8, null::bytea, null::bytea, null::bytea, null::boolean,
            extract(epoch from its_due - right_now)::float8;
        return;
    end if;
    -- One process after the other, so that what is due goes out in one order. Whoever comes meanwhile looks again later.
    if not pg_try_advisory_xact_lock(7065640021) then
        return;
    end if;
    if exists (
        select from scheduled s
        where s.claimed_by is not null and s.claimed_by <> p_boot and s.claimed_at > right_now - interval '30 seconds'
          and exists (select from node n where n.boot = s.claimed_by and n.seen_at > right_now - interval '5 seconds')
    ) then
        return;
    end if;
    return query
    with waiting as materialized (
        select s.place, s.due_at, s.bytes from scheduled s
        where s.due_at <= right_now
        order by s.due_at, s.place limit p_limit
        for update of s skip locked),
    sized as (
        select w.place, sum(w.bytes) over (order by w.due_at, w.place) - w.bytes as before from waiting w),
    claimed as (
        update scheduled s set claimed_by = p_boot, claimed_at = right_now
        from sized z where s.place = z.place and z.before < p_bytes
        returning s.*)
    select c.id, c.tenant, c.push_id, c.user_id, c.collapse_key, c.users, extract(epoch from c.deliver_at)::float8,
        extract(epoch from c.published_at)::float8, c.routing_key, c.body, c.properties, c.recalled_at is not null,
        null::float8
    from claimed c
    order by c.due_at, c.place;
    select s.due_at into its_due from scheduled s
    where s.claimed_by is null or s.claimed_by <> p_boot
    order by s.due_at, s.place limit 1;
    return query select null::text, null::text, null::text, null::text, null::text, null::integer, null::float8,
        null::float8, null::bytea, null::bytea, null::bytea, null::boolean,
        greatest(extract(epoch from its_due - right_now), 0)::float8;
end $$;
comment on function claim_scheduled is
    'Claims pushes that are due, for one process at a time. The last row has no id: it tells the seconds until the next one is '
    'due, null without any. No row at all: another process publishes what is due.';

create function forget_scheduled(p_ids text[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    delete from scheduled s using unnest(p_ids) as n (id) where s.id = n.id collate "C";
end $$;
comment on function forget_scheduled is 'Forgets scheduled pushes that were published.';

create function give_back_scheduled(p_boot text, p_ids text[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    update scheduled s set claimed_by = null
    from unnest(p_ids) as n (id) where s.id = n.id collate "C" and s.claimed_by = p_boot;
end $$;
comment on function give_back_scheduled is
    'Ends claims of a process on pushes that it could not publish. When they were claimed stays: they may have arrived.';

create function recall_scheduled(p_tenant text, p_push_id text, p_user text, p_key text, p_limit integer)
    returns table (its_push text, its_users integer)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    if p_push_id <> '' then
        return query
        with named as materialized (
            select s.place from scheduled s
            where s.push_id = p_push_id collate "C" and s.tenant = p_tenant collate "C"
              and s.claimed_at is null and s.recalled_at is null
            limit p_limit
            for update of s)
        update scheduled s set recalled_at = clock_timestamp(), due_at = least(s.due_at, clock_timestamp())
        from named n where s.place = n.place
        returning s.push_id, s.users;
    else
        return query
        with named as materialized (
            select s.place from scheduled s
            where s.user_id = p_user collate "C" and s.collapse_key = p_key collate "C" and s.collapse_key <> ''
              and s.tenant = p_tenant collate "C" and s.claimed_at is null and s.recalled_at is null
            limit p_limit
            for update of s)
        update scheduled s set recalled_at = clock_timestamp(), due_at = least(s.due_at, clock_timestamp())
        from named n where s.place = n.place
        returning s.push_id, s.users;
    end if;
end $$;
comment on function recall_scheduled is
    'Withdraws scheduled pushes that no process has ever claimed: of one id, or of one user and collapse key. They are due at '
    'once, and end as recalled.';

-- Whoever may write the ledger may write this, too: bridges of the version before have their rights by role. Analysts may not
-- read it: it has the data of pushes.
do $$
declare
    may record;
begin
    for may in
        select distinct a.grantee::regrole::text as role, a.privilege_type as word
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'session'::regclass and a.grantee <> 0 and a.grantee <> c.relowner
          and a.grantee is distinct from to_regrole('bridge_reader')::oid
          and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    loop
        execute format('grant %s on scheduled to %s', may.word, may.role);
    end loop;
end $$;
