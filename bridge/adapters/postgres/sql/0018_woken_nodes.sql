-- Whoever ends the sessions of a process that it takes for dead says so in its row, where that process looks before it
-- sends anything.

alter table node add column ended_at timestamptz;
comment on column node.ended_at is 'When another process last took the one of this name for dead and ended its sessions; null: none has.';

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
            for update of s skip locked)
        update session s set closed_at = greatest(s.opened_at, died), close_reason = 'node_died'
        from dead d where s.session = d.session
        returning s.*;
        get diagnostics ended = row_count;
        room := room - ended;
    end loop;
end $$;
