-- Revocations name the nodes that are gone, and mean the token of a session that has closed as well.

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

-- A session that has closed is known by the ledger, and so is its token.
create or replace function revoke_tokens(p_user text, p_before double precision, p_jti text, p_session text) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    right_now timestamptz;
    since timestamptz := to_timestamp(p_before);
    its_mark bigint;
    its_keep double precision;
    its_jti text := p_jti;
begin
    update revocation_mark m set mark = m.mark + 1 returning m.mark, m.keep into strict its_mark, its_keep;
    -- Some node may accept longer tokens than the others.
    its_keep := coalesce(
        (select max(r.keep) from revocation_reader r join node n on n.boot = r.boot), its_keep);
    if p_jti is null and p_session is not null then
        -- It may have closed a moment ago, and its client may be back with the same token.
        select s.jti into its_jti from session s where s.session = p_session collate "C";
    end if;
    right_now := clock_timestamp();
    delete from revocation r
    where (p_user is not null and r.user_id = p_user collate "C" and r.before <= since)
       or (p_user is null and its_jti is not null and r.jti = its_jti collate "C"
           and r.session is not distinct from p_session collate "C")
       or (p_user is null and its_jti is null and r.session = p_session collate "C" and r.jti is null);
    insert into revocation (mark, user_id, before, jti, session, revoked_at, kept_until)
    values (its_mark, p_user, since, its_jti, p_session, right_now,
            greatest(right_now, since) + make_interval(secs => its_keep));
    return its_mark;
end $$;
