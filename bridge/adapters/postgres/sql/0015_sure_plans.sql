-- Plans of the ledger that do not depend on when its table was last analyzed.

-- Only the statements that name a node may use this index. Where the last statistics saw hardly any open session, the
-- planner took it for those that name a user or a session, and read all open ones.
drop index session_open;
create index session_open on session (node, boot) where closed_at is null and node <> '';

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
        died := coalesce(
            (select p.seen_at from past_boot p where p.boot = its_boot),
            (select n.seen_at from node n where n.boot = its_boot), right_now);
        return query
        with dead as materialized (
            select s.session from session s
            where s.closed_at is null and s.node <> '' and s.node = its_node collate "C" and s.boot = its_boot collate "C"
            limit room
            for update of s skip locked)
        update session s set closed_at = greatest(s.opened_at, died), close_reason = 'node_died'
        from dead d where s.session = d.session
        returning s.*;
        get diagnostics ended = row_count;
        room := room - ended;
    end loop;
end $$;
create or replace function unwant_sessions(p_user text, p_session text, p_word text) returns setof session
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    -- First which, by the index of users or the key; then the rows, by the key. In one statement the planner may read
    -- all open sessions for each of them. (No index is for the coalesce below.)
    wanted text[] := array(
        select u.session from session u where p_user is not null and u.user_id = p_user collate "C" and u.closed_at is null
        union all
        select o.session from session o where p_user is null and o.session = p_session collate "C");
begin
    return query
    update session s set unwanted = p_word
    where s.session = any (wanted)
      and coalesce(s.closed_at, 'infinity') = 'infinity' and (p_session is null or s.session = p_session collate "C")
      and exists (select from node n where n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds')
    returning s.*;
end $$;
