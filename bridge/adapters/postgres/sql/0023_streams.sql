-- Sessions may be streams of events, whose clients need not prove anything.

insert into ending (outcome, reason, final, meaning) values
    ('written', 'no_proof_possible', true, 'handed to an open stream of events whose client has never proven anything; more was asked for'),
    ('stored', 'no_proof_possible', false, 'kept: handed to a stream of events whose client has never proven anything');
update ending set meaning = 'sent to everyone or to a topic, and nobody was there' where outcome = 'offline' and reason = 'nobody';
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

comment on column session.mode is 'How its frames look: bridge.v1.json or bridge.bare; sse: those of the former, as server-sent events.';
