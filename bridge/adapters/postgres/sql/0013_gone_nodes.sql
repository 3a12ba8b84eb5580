-- Which nodes are gone that had a session of a revocation: what they had handed over by then may still be read.

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
