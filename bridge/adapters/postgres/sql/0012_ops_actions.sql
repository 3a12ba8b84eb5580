-- What people do by hand: who recalled, revoked, replayed or deleted what, and what came of it.

create table ops_action (
    id       uuid        primary key,
    begun_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz,
    actor    text        not null,
    action   text        not null,
    target   jsonb       not null,
    result   text        not null default 'begun' check (result in ('begun', 'done', 'failed')),
    facts    jsonb,
    node     text        not null,
    check ((ended_at is null) = (result = 'begun'))
);
create index ops_action_begun on ops_action (begun_at);
comment on table ops_action is
    'What people did by hand through the ops port and the command line: a row for each action, written before it begins.';
comment on column ops_action.id is 'Chosen by the program.';
comment on column ops_action.begun_at is 'When it was asked for.';
comment on column ops_action.ended_at is 'When its result was known.';
comment on column ops_action.actor is
    'Who: the name of a credential of the ops port, local where it asks for none, or cli: and the user of the machine.';
comment on column ops_action.action is 'What: recall, revoke, disconnect, replay, dead replay, dead purge.';
comment on column ops_action.target is 'To whom or what, as it was asked for; without secrets.';
comment on column ops_action.result is
    'done, failed, or begun: it is under way, or nobody could tell its end (its process was killed, its caller left).';
comment on column ops_action.facts is 'What came of it: counts, or the error.';
comment on column ops_action.node is 'The node that carried it out; of a command the name of the machine.';

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on ops_action to bridge_reader;
    end if;
end $$;
