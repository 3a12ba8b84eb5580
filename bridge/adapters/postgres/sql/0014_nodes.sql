-- Several nodes share the work: where each listens to the others, and whom it knows.

alter table node add column queue text;
alter table node add column known_until timestamptz;
comment on column node.queue is 'The queue at the broker on which it listens to other nodes; null while it has none.';
comment on column node.known_until is
    'It knows every process that had its name by then; null: it does not look for others. A node has no sessions before '
    'all living ones know it.';

create function look_around(p_name text, p_boot text, p_queue text, p_known_until float8)
    returns table (its_name text, its_boot text, its_queue text, lives boolean, knows_until float8, right_now float8)
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    -- Before the statement that looks: who has a name by now is seen by it.
    now_first timestamptz := clock_timestamp();
begin
    update node n set queue = nullif(p_queue, ''), known_until = coalesce(to_timestamp(p_known_until), n.claimed_at)
    where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    return query
    select n.name, n.boot, coalesce(n.queue, ''), n.seen_at > now_first - interval '5 seconds',
        extract(epoch from n.known_until)::float8, extract(epoch from now_first)::float8
    from node n
    where n.boot = p_boot or n.seen_at > now_first - interval '30 seconds'
       or exists (
           select from session s
           where s.node = n.name collate "C" and s.boot = n.boot collate "C" and s.closed_at is null and s.node <> '');
end $$;
comment on function look_around is
    'Notes where a process listens and up to when it knows the others; returns it and those: who lives, or has sessions that '
    'nobody has ended. Without a row, another process has its name.';

insert into ending (outcome, reason, final, meaning) values
    ('dropped', 'node_unreachable', true, 'the node that has the user''s session could not be reached'),
    ('unknown', 'node_silent', true, 'forwarded to the node that has the user''s session, which has not answered in time'),
    ('stored', 'node_unreachable', false, 'kept: the node that has the user''s session could not be reached'),
    ('stored', 'node_silent', false, 'kept: forwarded to the node that has the user''s session, which has not answered in time');
do $$
declare
    reasons text := (
        select 'Why: ' || string_agg(outcome || '/' || reason || ' - ' || meaning, E'\n' order by outcome, reason)
        from ending);
    place text;
begin
    foreach place in array array['delivery', 'delivery_log'] loop
        execute format('comment on column %I.reason is %L', place, reasons);
    end loop;
end $$;
