-- A revocation of a session means all of its tokens, also when it has closed; and the nodes that are gone are named.

alter table session add column former jsonb;
comment on column session.former is
    'The ids of the tokens that it had before a refresh, and that have not expired by then: an array; null: none.';

-- Whose process may be dead counts where the oldest sessions are replaced, and not where the newest are refused.
create function note_sessions(
    p_node text, p_boot text,
    p_sessions text[], p_users text[], p_opened float8[], p_modes text[], p_addresses text[], p_agents text[],
    p_jtis text[], p_issued float8[], p_expires float8[],
    p_refreshed text[], p_new_jtis text[], p_new_expires float8[], p_former text[],
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
        update session s set
            jti = nullif(f.jti, ''), expires_at = to_timestamp(f.expires), former = f.former::jsonb
        from unnest(p_refreshed, p_new_jtis, p_new_expires, p_former) as f (session, jti, expires, former)
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
                  select from node n where n.boot = s.boot
                  -- Nobody is refused because of a process that may be dead; that its sessions are replaced harms nobody.
                  and (not p_refuse or n.seen_at > clock_timestamp() - interval '5 seconds')))),
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
comment on function note_sessions(
    text, text, text[], text[], float8[], text[], text[], text[], text[], float8[], float8[],
    text[], text[], float8[], text[], text[], float8[], integer[], text[], integer, boolean) is
    'Writes which sessions of a process have opened, have a new token, and have closed; says which of them must close, and '
    'why: also where a user has more than p_most (0: any number), and where others took the process for dead. The word '
    'ended, of no session: this process does not have its name any more, and nothing was written.';

-- As a bridge calls it that knows of no earlier tokens.
create or replace function note_sessions(
    p_node text, p_boot text,
    p_sessions text[], p_users text[], p_opened float8[], p_modes text[], p_addresses text[], p_agents text[],
    p_jtis text[], p_issued float8[], p_expires float8[],
    p_refreshed text[], p_new_jtis text[], p_new_expires float8[],
    p_closed text[], p_closed_at float8[], p_codes integer[], p_reasons text[],
    p_most integer, p_refuse boolean
) returns table (its_session text, word text)
    language sql volatile
    set search_path to public, pg_temp
    as $$
    select n.its_session, n.word from note_sessions(
        p_node, p_boot, p_sessions, p_users, p_opened, p_modes, p_addresses, p_agents, p_jtis, p_issued, p_expires,
        p_refreshed, p_new_jtis, p_new_expires, '{}', p_closed, p_closed_at, p_codes, p_reasons, p_most, p_refuse) n;
$$;
comment on function note_sessions(
    text, text, text[], text[], float8[], text[], text[], text[], text[], float8[], float8[],
    text[], text[], float8[], text[], float8[], integer[], text[], integer, boolean) is
    'As the other one, for bridges that keep no earlier tokens of a session.';

create or replace function revoke_tokens(p_user text, p_before double precision, p_jti text, p_session text) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    right_now timestamptz;
    since timestamptz := to_timestamp(p_before);
    its_mark bigint;
    its_keep double precision;
    tokens text[] := '{}';
    token text;
begin
    if p_session is not null then
        -- Its other tokens, so that nobody has to learn them from its node, and if it has closed.
        tokens := array(
            select t.jti from session s, lateral (
                select s.jti union select jsonb_array_elements_text(s.former)) t (jti)
            where s.session = p_session collate "C" and t.jti is not null and t.jti is distinct from p_jti
            order by 1);
    end if;
    -- What is asked for comes last: whoever has read up to its mark has read the others.
    foreach token in array array_append(tokens, p_jti) loop
        update revocation_mark m set mark = m.mark + 1 returning m.mark, m.keep into strict its_mark, its_keep;
        -- Some node may accept longer tokens than the others.
        its_keep := coalesce(
            (select max(r.keep) from revocation_reader r join node n on n.boot = r.boot), its_keep);
        right_now := clock_timestamp();
        delete from revocation r
        where (p_user is not null and r.user_id = p_user collate "C" and r.before <= since)
           or (p_user is null and token is not null and r.jti = token collate "C"
               and r.session is not distinct from p_session collate "C")
           or (p_user is null and token is null and r.session = p_session collate "C" and r.jti is null);
        insert into revocation (mark, user_id, before, jti, session, revoked_at, kept_until)
        values (its_mark, p_user, since, token, p_session, right_now,
                greatest(right_now, since) + make_interval(secs => its_keep));
    end loop;
    return its_mark;
end $$;
comment on function revoke_tokens is
    'Commits a revocation, and of a session a row for each token that the ledger knows of it; returns the last mark.';

create or replace function revocation_answers(p_mark bigint)
    returns table (node text, has_read boolean, sessions integer)
    language sql stable
    set search_path to public, pg_temp
    as $$
    -- Of a session also what its node has learned of it, which that node commits before it confirms.
    with meant as materialized (
        select v.mark, v.closed from revocation v where v.mark = p_mark
        union
        select o.mark, o.closed from revocation v join revocation o on o.session = v.session
        where v.mark = p_mark)
    select n.name, coalesce(r.mark >= greatest(p_mark, (select max(m.mark) from meant m)), false),
           (select coalesce(sum((m.closed ->> n.name)::integer), 0)::integer from meant m)
    from node n
    left join revocation_reader r on r.boot = n.boot
    where n.seen_at > clock_timestamp() - interval '5 seconds'
    order by 1;
$$;

create function revocation_gone(p_mark bigint) returns setof text
    language sql stable
    set search_path to public, pg_temp
    as $$
    with boots as materialized (
        -- Alive perhaps, and cut off.
        select n.name as node, n.boot from node n where n.seen_at <= clock_timestamp() - interval '5 seconds'
        union
        select p.name, p.boot from past_boot p
        where p.seen_at > (select v.revoked_at from revocation v where v.mark = p_mark) - interval '1 minute')
    select distinct b.node
    from revocation v, boots b, lateral (
        select s.user_id, s.jti, s.session from session s
        where s.closed_at is null and s.node = b.node collate "C" and s.boot = b.boot collate "C"
        union all
        select s.user_id, s.jti, s.session from session s
        where s.close_reason = 'node_died' and s.boot = b.boot collate "C"
          and s.closed_at > v.revoked_at - interval '1 minute') s
    where v.mark = p_mark
      and (s.user_id = v.user_id or s.jti = v.jti or s.session = v.session)
    order by 1;
$$;
comment on function revocation_gone is
    'The nodes that are not alive, and had a session that this revocation may mean, open within the last minute before it.';
