-- The ledger: who was connected, where, from when to when, and how each session ended.

create table session (
    session      text        collate "C" primary key,
    user_id      text        not null collate "C",
    node         text        not null collate "C",
    boot         text        not null collate "C",
    opened_at    timestamptz not null,
    closed_at    timestamptz,
    close_code   integer,
    close_reason text,
    mode         text        not null,
    address      text,
    user_agent   text,
    jti          text        collate "C",
    expires_at   timestamptz not null,
    unwanted     text
) with (fillfactor = 90);
create index session_of_user on session (user_id, opened_at);
create index session_online on session (user_id) where closed_at is null;
create index session_opened on session (opened_at);
create index session_open on session (node, boot) where closed_at is null;
create index session_unwanted on session (boot) where closed_at is null and unwanted is not null;
create index session_died on session (boot) where close_reason = 'node_died';
create index session_closed on session (closed_at) where closed_at is not null;
comment on table session is
    'The ledger: one row per WebSocket session. It is live while closed_at is null and its boot has its lease; views '
    'who_is_online and session_history say so.';
comment on column session.session is 'The id of the session, as its client was told it in the welcome.';
comment on column session.user_id is 'The user that its token names.';
comment on column session.node is 'The node that has it.';
comment on column session.boot is 'The start of that process.';
comment on column session.opened_at is 'When its handshake was granted. It was welcomed once this row was committed.';
comment on column session.closed_at is
    'Since when it gets no pushes; null: it is open, or its process has died and nobody has noticed yet.';
comment on column session.close_code is 'The close code (RFC 6455 7.4); null while it is open, and where its process died.';
comment on column session.close_reason is
    'Why: the reason that its client was told, client where it left by itself, node_died where its process died.';
comment on column session.mode is 'How its frames look: bridge.v1.json or bridge.bare.';
comment on column session.address is 'The address of its client, as the bridge saw it; null where it is not known.';
comment on column session.user_agent is 'The User-Agent of its client, its first 400 characters; null where it sent none.';
comment on column session.jti is 'The id of its token, or of the last one that it was given; sha256: and a hash where the token has none.';
comment on column session.expires_at is 'When that token expires.';
comment on column session.unwanted is 'Why its node is asked to close it; null: nobody has asked.';

create function note_sessions(
    p_node text, p_boot text,
    p_sessions text[], p_users text[], p_opened float8[], p_modes text[], p_addresses text[], p_agents text[],
    p_jtis text[], p_issued float8[], p_expires float8[],
    p_refreshed text[], p_new_jtis text[], p_new_expires float8[],
    p_closed text[], p_closed_at float8[], p_codes integer[], p_reasons text[],
    p_most integer, p_refuse boolean
) returns table (its_session text, word text)
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    limited boolean := p_most > 0 and cardinality(p_sessions) > 0;
begin
    -- Nobody gives the name to another process meanwhile.
    perform 1 from node n where n.name = p_node and n.boot = p_boot for share;
    if not found then
        return query select ''::text, 'ended'::text;
        return;
    end if;
    if limited then
        -- Two nodes must not both see room for the last session of a user.
        perform pg_advisory_xact_lock(hashtextextended('bridge session ' || u.user_id, 0))
        from (select distinct o.user_id from unnest(p_users) as o (user_id) order by 1) u;
    end if;
    if cardinality(p_sessions) > 0 then
        insert into session (
            session, user_id, node, boot, opened_at, mode, address, user_agent, jti, expires_at)
        select o.session, o.user_id, p_node, p_boot, to_timestamp(o.opened), o.mode, nullif(o.address, ''),
            nullif(o.agent, ''), nullif(o.jti, ''), to_timestamp(o.expires)
        from unnest(p_sessions, p_users, p_opened, p_modes, p_addresses, p_agents, p_jtis, p_expires)
            as o (session, user_id, opened, mode, address, agent, jti, expires)
        on conflict do nothing;
        -- Revocations that are committed by now, and that this process may not have read.
        return query
        select o.session, 'revoked'::text
        from unnest(p_sessions, p_users, p_jtis, p_issued) as o (session, user_id, jti, issued)
        where exists (
                select from revocation r
                where r.user_id = o.user_id collate "C" and (o.issued is null or to_timestamp(o.issued) < r.before))
           or exists (select from revocation r where r.jti = o.jti collate "C");
    end if;
    if cardinality(p_refreshed) > 0 then
        update session s set jti = nullif(f.jti, ''), expires_at = to_timestamp(f.expires)
        from unnest(p_refreshed, p_new_jtis, p_new_expires) as f (session, jti, expires)
        where s.session = f.session collate "C";
    end if;
    if cardinality(p_closed) > 0 then
        update session s set
            closed_at = greatest(s.opened_at, to_timestamp(c.closed)), close_code = c.code, close_reason = c.reason
        from unnest(p_closed, p_closed_at, p_codes, p_reasons) as c (session, closed, code, reason)
        where s.session = c.session collate "C"
          -- Others took this process for dead, and it was not: what it says itself is true.
          and (s.closed_at is null or (s.close_reason = 'node_died' and s.boot = p_boot collate "C"));
    end if;
    if limited then
        -- Who is one too many: the oldest are not wanted any more, or the newest are refused.
        return query
        with live as materialized (
            select s.session,
                row_number() over (partition by s.user_id order by s.opened_at, s.session) as nth,
                count(*) over (partition by s.user_id) as n
            from session s
            where s.user_id = any (p_users) and s.closed_at is null and s.unwanted is null
              and (s.boot = p_boot collate "C" or exists (
                  select from node n where n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds'))),
        oldest as (
            update session s set unwanted = 'replaced' from live l
            where not p_refuse and s.session = l.session and l.nth <= l.n - p_most)
        select l.session, 'over'::text from live l
        where p_refuse and l.nth > p_most and l.session = any (p_sessions);
    end if;
    return query
    select s.session, s.unwanted from session s
    where s.boot = p_boot collate "C" and s.closed_at is null and s.unwanted is not null
    union all
    select s.session, 'vanished' from session s
    where s.boot = p_boot collate "C" and s.close_reason = 'node_died';
end $$;
comment on function note_sessions is
    'Writes which sessions of a process have opened, have a new token, and have closed; says which of them must close, and '
    'why: also where a user has more than p_most (0: any number), and where others took the process for dead. The word '
    'ended, of no session: this process does not have its name any more, and nothing was written.';

create function end_dead_sessions(p_name text, p_boot text, p_limit integer) returns setof session
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
        where s.closed_at is null and (s.node, s.boot) > (its_node collate "C", its_boot collate "C")
        order by s.node, s.boot
        limit 1;
        exit when not found;
        continue when case
            when its_node = p_name then its_boot = p_boot
            else not steady or exists (
                select from node n
                where n.name = its_node and n.boot = its_boot and n.seen_at > right_now - interval '5 seconds')
            end;
        died := coalesce(
            (select p.seen_at from past_boot p where p.boot = its_boot),
            (select n.seen_at from node n where n.boot = its_boot), right_now);
        return query
        with dead as materialized (
            select s.session from session s
            where s.closed_at is null and s.node = its_node collate "C" and s.boot = its_boot collate "C"
            limit room
            for update of s skip locked)
        update session s set closed_at = greatest(s.opened_at, died), close_reason = 'node_died'
        from dead d where s.session = d.session
        returning s.*;
        get diagnostics ended = row_count;
        room := room - ended;
    end loop;
end $$;
comment on function end_dead_sessions is
    'Closes sessions whose process is dead, for the process that holds this name, as of when it last said that it lives; '
    'returns them.';

create function unwant_sessions(p_user text, p_session text, p_word text) returns setof session
    language sql volatile
    set search_path to public, pg_temp
    as $$
    update session s set unwanted = p_word
    where s.session in (
            select u.session from session u where u.user_id = p_user collate "C" and u.closed_at is null
            union all
            select o.session from session o where p_user is null and o.session = p_session collate "C")
      and s.closed_at is null and (p_session is null or s.session = p_session collate "C")
      and exists (select from node n where n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds')
    returning s.*;
$$;
comment on function unwant_sessions is
    'Asks the nodes to close the live sessions of a user, or one session; returns these. Each node does so within a second.';

create function drop_old_sessions(p_before timestamptz, p_limit integer) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    dropped bigint;
begin
    with old as materialized (
        select s.session from session s where s.closed_at < p_before order by s.closed_at limit p_limit)
    delete from session s using old where s.session = old.session;
    get diagnostics dropped = row_count;
    return dropped;
end $$;
comment on function drop_old_sessions is 'Deletes at most so many sessions that closed before a time; returns how many.';

create view who_is_online as
select s.user_id, s.session, s.node, s.opened_at, s.mode, s.address, s.user_agent, s.expires_at
from session s
join node n on n.name = s.node and n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds'
where s.closed_at is null;
comment on view who_is_online is
    'The live sessions: open, and their process has said within the last 5 seconds that it lives. One row per session.';
comment on column who_is_online.user_id is 'The user; several rows where they have several sessions.';
comment on column who_is_online.session is 'As in session.';
comment on column who_is_online.node is 'As in session.';
comment on column who_is_online.opened_at is 'As in session.';
comment on column who_is_online.mode is 'As in session.';
comment on column who_is_online.address is 'As in session.';
comment on column who_is_online.user_agent is 'As in session.';
comment on column who_is_online.expires_at is 'As in session.';

create view session_history as
select
    s.user_id, s.opened_at, s.closed_at, extract(epoch from s.closed_at - s.opened_at)::float8 as seconds,
    s.close_code, s.close_reason, s.session, s.node, s.mode, s.address, s.user_agent
from session s;
comment on view session_history is
    'Every session of the retention, open ones too. Ask for one user_id, or for a range of opened_at.';
comment on column session_history.user_id is 'The user.';
comment on column session_history.opened_at is 'As in session.';
comment on column session_history.closed_at is 'As in session.';
comment on column session_history.seconds is 'How long it was open; null while it is.';
comment on column session_history.close_code is 'As in session.';
comment on column session_history.close_reason is 'As in session.';
comment on column session_history.session is 'As in session.';
comment on column session_history.node is 'As in session.';
comment on column session_history.mode is 'As in session.';
comment on column session_history.address is 'As in session.';
comment on column session_history.user_agent is 'As in session.';

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on session, who_is_online, session_history to bridge_reader;
    end if;
end $$;
