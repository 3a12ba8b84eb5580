-- Sessions subscribe to topics. Whoever takes a push to a topic finds here who is subscribed at other nodes, and who was a
-- moment ago.

create table subscription (
    topic    text        not null collate "C",
    user_id  text        not null collate "C",
    session  text        not null collate "C",
    since    timestamptz not null default clock_timestamp(),
    left_at  timestamptz,
    primary key (topic, user_id, session)
);
create index subscription_of_session on subscription (session);
create index subscription_left on subscription (topic, user_id, left_at) where left_at is not null;
comment on table subscription is
    'Who is subscribed to which topic: one row per topic and session. Rows of sessions that have closed stay for a while, '
    'since pushes with a ttl are kept for their users.';
comment on column subscription.topic is 'The topic.';
comment on column subscription.user_id is 'The user of the session.';
comment on column subscription.session is 'The session, as in table session.';
comment on column subscription.since is 'When it was subscribed.';
comment on column subscription.left_at is 'When the session closed without ending the subscription; null: it is open.';

create function note_subscriptions(
    p_sessions text[], p_users text[], p_topics text[], p_on boolean[], p_closed text[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    if cardinality(p_topics) > 0 then
        -- Another node may write of the same users: rows are locked in one order.
        perform 1 from subscription u
        join unnest(p_users, p_topics) as n (user_id, topic)
          on u.topic = n.topic collate "C" and u.user_id = n.user_id collate "C"
        order by u.topic, u.user_id, u.session
        for update of u;
        -- What the session itself ends, and what earlier ones of its user have left behind.
        delete from subscription u using unnest(p_sessions, p_users, p_topics, p_on) as n (session, user_id, topic, subscribed)
        where u.topic = n.topic collate "C" and u.user_id = n.user_id collate "C"
          and (u.left_at is not null or (not n.subscribed and u.session = n.session collate "C"));
        insert into subscription (topic, user_id, session, left_at)
        select n.topic, n.user_id, n.session, s.closed_at
        from unnest(p_sessions, p_users, p_topics, p_on) as n (session, user_id, topic, subscribed)
        join session s on s.session = n.session collate "C"
        where n.subscribed
        on conflict do nothing;
    end if;
    update subscription u set left_at = s.closed_at
    from session s
    where u.session = any (p_closed) and u.left_at is null and s.session = u.session;
end $$;
comment on function note_subscriptions is
    'Writes which sessions are subscribed to which topics, or are not any more, and that sessions have closed: after '
    'note_sessions(), in its transaction.';

create function topic_subscribers(p_topic text, p_after text, p_boot text, p_within float8, p_limit integer)
    returns table (its_user text, its_boots text[])
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
    (select u.user_id, array_agg(distinct h.boot)
     from subscription u
     -- By its key alone: while the table is small an index of all open sessions looks as cheap.
     cross join lateral (select s.boot, s.closed_at from session s where s.session = u.session offset 0) h
     where u.topic = p_topic collate "C" and u.user_id > p_after collate "C" and u.left_at is null
       and h.closed_at is null and h.boot <> p_boot collate "C"
     group by u.user_id order by u.user_id limit p_limit)
    union all
    (select distinct u.user_id, array[]::text[]
     from subscription u
     where u.topic = p_topic collate "C" and u.user_id > p_after collate "C"
       and u.left_at > clock_timestamp() - make_interval(secs => p_within)
       and not exists (
           select from subscription v
           where v.topic = u.topic and v.user_id = u.user_id and v.left_at is null
           offset 0)
     order by u.user_id limit p_limit)
    order by 1 limit p_limit;
end $$;
comment on function topic_subscribers is
    'Users with sessions at other processes that are subscribed to a topic, and the boots of those; with no boots, users whose '
    'last subscribed session closed within so many seconds.';

create or replace function end_dead_sessions(p_name text, p_boot text, p_limit integer) returns setof session
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    right_now timestamptz := clock_timestamp();
    steady boolean;
    its_node text := '';
    its_boot text := '';
    died timestamptz;
    room integer := p_limit;
    ended integer;
begin
    -- As end_dead_rows judges.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    while room > 0 loop
        select s.node, s.boot into its_node, its_boot
        from session s
        where s.closed_at is null and s.node <> '' and (s.node, s.boot) > (its_node collate "C", its_boot collate "C")
        order by s.node, s.boot
        limit 1;
        exit when not found;
        continue when case
            when its_node = p_name then its_boot = p_boot
            else not steady or exists (
                select from node n
                where n.name = its_node and n.boot = its_boot and n.seen_at > right_now - interval '5 seconds')
            end;
        -- One that renews its lease in this moment lives; one that does so afterwards finds this.
        update node n set ended_at = clock_timestamp()
        where n.boot = its_boot and n.name <> p_name and n.seen_at <= right_now - interval '5 seconds';
        continue when not found and exists (select from node n where n.boot = its_boot and n.name <> p_name);
        died := coalesce(
            (select p.seen_at from past_boot p where p.boot = its_boot),
            (select n.seen_at from node n where n.boot = its_boot), right_now);
        return query
        with dead as materialized (
            select s.session from session s
            where s.closed_at is null and s.node <> '' and s.node = its_node collate "C" and s.boot = its_boot collate "C"
            limit room
            for update of s skip locked),
        gone as (
            update session s set closed_at = greatest(s.opened_at, died), close_reason = 'node_died'
            from dead d where s.session = d.session
            returning s.*),
        left_behind as (
            update subscription u set left_at = g.closed_at
            from gone g where u.session = g.session and u.left_at is null)
        select * from gone;
        get diagnostics ended = row_count;
        room := room - ended;
    end loop;
end $$;

-- Whoever may write sessions, which bridges of the version before do, may write this, too: end_dead_sessions() does.
do $$
declare
    may record;
begin
    for may in
        select distinct a.grantee::regrole::text as role, a.privilege_type as word
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.oid = 'session'::regclass and a.grantee <> 0 and a.grantee <> c.relowner
          and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    loop
        execute format('grant %s on subscription to %s', may.word, may.role);
    end loop;
end $$;
