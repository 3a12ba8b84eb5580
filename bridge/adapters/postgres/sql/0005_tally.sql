-- What the audit holds the log against: the rows that it was given, counted in the transaction that wrote them, and the
-- pushes that each living process has taken. And words for ends that had those of others.

create table tally (
    day    date        not null,
    minute timestamptz not null,
    boot   text        not null,
    rows   bigint      not null,
    primary key (day, minute, boot)
) with (fillfactor = 50); -- updated in place with each batch of rows
comment on table tally is
    'How many rows the log was given: kept by a trigger, in the transaction that wrote them. What the log holds must be '
    'as many; bridge audit compares.';
comment on column tally.day is 'As in delivery_log: goes when its partition goes.';
comment on column tally.minute is 'The minute in which the pushes were taken.';
comment on column tally.boot is 'The process that wrote the rows first: writers do not wait for each other here.';
comment on column tally.rows is 'Rows that were inserted, whatever has become of them.';

insert into tally (day, minute, boot, rows)
select day, date_trunc('minute', taken_at, 'UTC'), boot, count(*) from delivery_log group by 1, 2, 3;

create function tally_rows() returns trigger
    language plpgsql
    set search_path to public, pg_temp
    as $$
begin
    insert into tally as t (day, minute, boot, rows)
    select i.day, date_trunc('minute', i.taken_at, 'UTC'), i.boot, count(*) from inserted i group by 1, 2, 3 order by 1, 2, 3
    on conflict (day, minute, boot) do update set rows = t.rows + excluded.rows;
    return null;
end $$;
comment on function tally_rows() is 'Counts the rows that a statement has inserted.';
create trigger tally_rows after insert on delivery_log referencing new table as inserted
    for each statement execute function tally_rows();

alter table node
    add column begun        bigint not null default 0,
    add column with_row     bigint not null default 0,
    add column on_their_way bigint not null default 0;
comment on column node.begun is 'Pushes that this boot has taken until seen_at, each counted once per user.';
comment on column node.with_row is 'Those of them whose first row was committed by then.';
comment on column node.on_their_way is 'Those of them that had no row yet; with with_row they must be all.';

drop function renew_node(text, text);
-- A program of the version before says only who it is.
create function renew_node(
    p_name text, p_boot text, p_begun bigint default 0, p_with_row bigint default 0, p_on_their_way bigint default 0
) returns boolean
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into node values (
        p_name, p_boot, clock_timestamp(), clock_timestamp(), clock_timestamp(), p_begun, p_with_row, p_on_their_way)
    on conflict (name) do update set
        seen_at = excluded.seen_at,
        steady_since = case when excluded.seen_at - node.seen_at > interval '3 seconds'
                            then excluded.seen_at else node.steady_since end,
        begun = excluded.begun, with_row = excluded.with_row, on_their_way = excluded.on_their_way
        where node.boot = excluded.boot;
    return found;
end $$;
comment on function renew_node is
    'Says that this boot lives, and what it has taken; false where another boot has the name.';

update ending set meaning = 'the broker gave it out BRIDGE_MAX_ATTEMPTS times, and it was never settled'
where outcome = 'rejected' and reason = 'poison';
update ending set meaning =
    'the peer did not read fast enough: its session was closed with 4408, or the time for a proof was over, '
    'before this push was handed to its socket'
where outcome = 'dropped' and reason = 'slow_consumer';
insert into ending (outcome, reason, final, meaning) values
    ('dropped', 'overflow', true, 'more came at once than the session could hold while it was being sent what is kept'),
    ('stored', 'overflow', false, 'kept: the session was still being sent what is older and could not hold it; it follows');
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

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on tally to bridge_reader;
    end if;
end $$;
