-- A node that is behind with its answers is sent no more than it may owe.

insert into ending (outcome, reason, final, meaning, party) values
    ('dropped', 'node_busy', true, 'the node that has the user''s session was behind with its answers, and owed as many as it may', 'bridge'),
    ('stored', 'node_busy', false, 'kept: the node that has the user''s session was behind with its answers, and owed as many as it may', 'bridge');
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
