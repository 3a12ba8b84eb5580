-- What people read: the views, the table that explains outcomes and reasons, and a role that may only read.

create table ending (
    outcome text    not null,
    reason  text    not null,
    final   boolean not null,
    meaning text    not null,
    primary key (outcome, reason)
);
comment on table ending is 'Every outcome with every reason that it may have, and what both mean.';
comment on column ending.outcome is 'As in delivery.outcome.';
comment on column ending.reason is 'As in delivery.reason.';
comment on column ending.final is 'Whether a push with this outcome has come to its end.';
comment on column ending.meaning is 'What it says about the push, in a sentence.';

insert into ending (outcome, reason, final, meaning) values
    ('acked', 'ack_frame', true, 'the application acknowledged the push with an ack frame'),
    ('received', 'pong', true, 'the peer answered a ping sent after the push'),
    ('received', 'not_acked', true, 'acked was wanted; at the deadline received was proven'),
    ('written', 'handed_over', true, 'handed to an open socket, and no more was asked for'),
    ('offline', 'no_session', true, 'the user had no session (or the session was not here)'),
    ('offline', 'excluded', true, 'every session of the user was named in `except`'),
    ('offline', 'nobody', true, 'sent to everyone, and nobody was connected'),
    ('offline', 'left_before_send', true, 'the user''s sessions closed before the push was handed to a socket'),
    ('expired', 'max_age', true, 'older than BRIDGE_MAX_AGE when it was taken'),
    ('expired', 'queue_expiration', true, 'its AMQP expiration ran out in the queue'),
    ('dropped', 'slow_consumer', true, 'the peer did not read: the session was closed with 4408 before this push was handed to its socket'),
    ('unknown', 'no_proof', true, 'handed over; no proof in BRIDGE_CONFIRM_TIMEOUT'),
    ('unknown', 'connection_lost', true, 'handed over; the connection ended before proof'),
    ('unknown', 'node_died', true, 'the bridge process died while the proof was awaited'),
    ('rejected', 'not_json', true, 'the body is not JSON (RFC 8259) in UTF-8'),
    ('rejected', 'invalid', true, 'a field or header is wrong; `detail` names it'),
    ('rejected', 'unsupported', true, 'a field whose feature this version does not have'),
    ('rejected', 'too_large', true, 'the message or its data is over the limit in bytes'),
    ('rejected', 'too_many', true, 'more requests or users in one message than allowed'),
    ('rejected', 'poison', true, 'handling it failed BRIDGE_MAX_ATTEMPTS times'),
    ('rejected', 'delivery_limit', true, 'the broker gave it up at its delivery limit'),
    ('rejected', 'given_up', true, 'the broker gave it up for another reason; see `detail`'),
    ('pending', 'awaiting_proof', false, 'handed over; the proof is awaited');

create view delivery as
select
    push_id, nullif(user_id, '') as user_id, outcome, reason, final, event, app_id, tenant, meta,
    published_at, taken_at, written_at, proven_at, finished_at, sessions, attempts, node, detail
from delivery_log;
comment on view delivery is 'How each push ended for each user: one row per push and user.';
comment on column delivery.push_id is 'The id of the push, unique within its tenant.';
comment on column delivery.user_id is 'The user it was for; null where no user was known.';
comment on column delivery.final is 'True once outcome and reason never change again.';
comment on column delivery.event is 'The event name that the client dispatches on.';
comment on column delivery.app_id is 'The publisher, as its AMQP property app_id says; empty where it does not.';
comment on column delivery.tenant is 'The tenant of the request; empty where it named none.';
comment on column delivery.meta is 'The object meta of the request; null where it had none.';
comment on column delivery.published_at is
    'When it was published: header x-push-published-ms, else the AMQP timestamp, else its arrival.';
comment on column delivery.taken_at is 'When a bridge first took it from the queue.';
comment on column delivery.written_at is 'When it was first handed to an open socket; null: never.';
comment on column delivery.proven_at is
    'When the best proof came (a pong or an ack frame), also after the end; null: none came.';
comment on column delivery.finished_at is 'When the outcome was decided; null while it is not final.';
comment on column delivery.sessions is 'Sessions of the user that it was addressed to.';
comment on column delivery.attempts is 'How often it was handed to sockets.';
comment on column delivery.node is 'The bridge process that wrote the row.';
comment on column delivery.detail is 'A sentence for people, such as the path of the wrong field.';

create view delivery_hourly as
select
    date_trunc('hour', taken_at) as hour, tenant, app_id, event, outcome, reason,
    count(*) as pushes,
    count(distinct user_id) as users,
    percentile_cont(0.5) within group (order by extract(epoch from proven_at - published_at)) as proof_p50,
    percentile_cont(0.99) within group (order by extract(epoch from proven_at - published_at)) as proof_p99
from delivery
group by 1, 2, 3, 4, 5, 6;
comment on view delivery_hourly is 'Counts and latencies per hour, publisher, event and end. Give it a range of hours.';
comment on column delivery_hourly.hour is 'The hour in which the pushes were taken, in the time zone of your session.';
comment on column delivery_hourly.tenant is 'As in delivery.';
comment on column delivery_hourly.app_id is 'As in delivery.';
comment on column delivery_hourly.event is 'As in delivery.';
comment on column delivery_hourly.outcome is 'As in delivery; table ending explains it.';
comment on column delivery_hourly.reason is 'As in delivery; table ending explains it.';
comment on column delivery_hourly.pushes is 'Rows of delivery: pushes, each counted once per user.';
comment on column delivery_hourly.users is 'Different users among them.';
comment on column delivery_hourly.proof_p50 is 'Median of the seconds from published_at to proven_at; null without proof.';
comment on column delivery_hourly.proof_p99 is 'The same for the slowest in a hundred.';

create view user_timeline as
select
    nullif(l.user_id, '') as user_id, step.at, step.step, l.push_id, l.tenant, l.event, l.outcome, l.reason, l.node
from delivery_log l
cross join lateral (values
    (l.published_at, 'published', 1),
    (l.taken_at, 'taken', 2),
    (l.written_at, 'written', 3),
    (l.proven_at, 'proven', 4),
    (l.finished_at, 'finished', 5)
) as step (at, step, place)
where step.at is not null
order by step.at, step.place;
comment on view user_timeline is 'What happened to the pushes of a user, step by step. Ask for one user_id.';
comment on column user_timeline.user_id is 'The user; null where no user was known.';
comment on column user_timeline.at is 'When the step happened; rows come in this order.';
comment on column user_timeline.step is 'published, taken, written, proven or finished: the times of delivery.';
comment on column user_timeline.push_id is 'As in delivery.';
comment on column user_timeline.tenant is 'As in delivery.';
comment on column user_timeline.event is 'As in delivery.';
comment on column user_timeline.outcome is 'How the push stands now, not at the time of the step.';
comment on column user_timeline.reason is 'Why.';
comment on column user_timeline.node is 'The bridge process that wrote the row.';

-- What an outcome or a reason may be is said once, in table ending.
do $$
declare
    outcomes text := (
        select 'How it ended: ' || string_agg(o, ', ' order by o) || '; not final: pending. See table ending.'
        from (select distinct outcome as o from ending where final) as final);
    reasons text := (
        select 'Why: ' || string_agg(outcome || '/' || reason || ' - ' || meaning, E'\n' order by outcome, reason)
        from ending);
    place text;
begin
    foreach place in array array['delivery', 'delivery_log'] loop
        execute format('comment on column %I.outcome is %L', place, outcomes);
        execute format('comment on column %I.reason is %L', place, reasons);
    end loop;
end $$;

-- One role for all databases of a server, so it may be there, and who migrates may not be allowed to make it.
do $$
begin
    if to_regrole('bridge_reader') is null then
        create role bridge_reader nologin;
    end if;
exception
    when insufficient_privilege then
        raise notice 'role bridge_reader was not created: % may not create roles', current_user;
    when duplicate_object or unique_violation then
        null; -- made by another database's migration in the same moment
end $$;
do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant usage on schema public to bridge_reader;
        grant select on delivery, delivery_hourly, user_timeline, ending, node to bridge_reader;
    end if;
end $$;
