-- Revocations: which tokens open no session any more, and how far each node has carried that out.

create table revocation_mark (
    single boolean primary key default true check (single),
    mark   bigint not null,
    keep   double precision not null default 400 * 86400.0
);
insert into revocation_mark (mark) values (0);
comment on table revocation_mark is 'The mark of the last revocation, and how long revocations are kept.';
comment on column revocation_mark.single is 'There is one row.';
comment on column revocation_mark.mark is
    'Whoever commits a revocation holds this row meanwhile. So marks rise in the order of commits.';
comment on column revocation_mark.keep is
    'Seconds that a revocation is kept where no node is alive that says it: as the last one said.';

create table revocation (
    mark       bigint      primary key,
    user_id    text        collate "C",
    before     timestamptz,
    jti        text        collate "C",
    session    text        collate "C",
    revoked_at timestamptz not null,
    kept_until timestamptz not null,
    closed     jsonb       not null default '{}',
    check ((user_id is null) = (before is null)),
    check (num_nonnulls(user_id, coalesce(jti, session)) = 1)
);
create index revocation_user on revocation (user_id) where user_id is not null;
create index revocation_jti on revocation using hash (jti) where jti is not null;
create index revocation_session on revocation (session) where session is not null;
create index revocation_kept on revocation (kept_until);
comment on table revocation is 'Tokens that open no session any more. One that says no more than a newer one is deleted.';
comment on column revocation.mark is 'Its place in the order of commits.';
comment on column revocation.user_id is 'The user whose tokens are revoked.';
comment on column revocation.before is 'Those that were issued before this.';
comment on column revocation.jti is 'The id of the token that is revoked.';
comment on column revocation.session is 'The session that was closed, and whose token is revoked.';
comment on column revocation.revoked_at is 'When it was committed.';
comment on column revocation.kept_until is 'When no token that it means can be valid any more; then it is deleted.';
comment on column revocation.closed is 'How many sessions it closed, by the node that had them.';

create table revocation_reader (
    boot    text        primary key,
    node    text        not null,
    mark    bigint      not null,
    keep    double precision not null,
    read_at timestamptz not null
);
comment on table revocation_reader is 'How far each node has carried out revocations.';
comment on column revocation_reader.boot is 'The start of the process.';
comment on column revocation_reader.node is 'The name of its node.';
comment on column revocation_reader.mark is 'It has closed the sessions of all revocations up to this mark, and refuses their tokens.';
comment on column revocation_reader.keep is 'Its BRIDGE_TOKEN_DAYS, in seconds.';
comment on column revocation_reader.read_at is 'When it said so.';

create function revoke_tokens(p_user text, p_before double precision, p_jti text, p_session text) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    right_now timestamptz;
    since timestamptz := to_timestamp(p_before);
    its_mark bigint;
    its_keep double precision;
begin
    update revocation_mark m set mark = m.mark + 1 returning m.mark, m.keep into strict its_mark, its_keep;
    -- Some node may accept longer tokens than the others.
    its_keep := coalesce(
        (select max(r.keep) from revocation_reader r join node n on n.boot = r.boot), its_keep);
    right_now := clock_timestamp();
    delete from revocation r
    where (p_user is not null and r.user_id = p_user collate "C" and r.before <= since)
       or (p_user is null and p_jti is not null and r.jti = p_jti collate "C"
           and r.session is not distinct from p_session collate "C")
       or (p_user is null and p_jti is null and r.session = p_session collate "C" and r.jti is null);
    insert into revocation (mark, user_id, before, jti, session, revoked_at, kept_until)
    values (its_mark, p_user, since, p_jti, p_session, right_now,
            greatest(right_now, since) + make_interval(secs => its_keep));
    return its_mark;
end $$;
comment on function revoke_tokens is
    'Commits a revocation, and returns its mark.';

create function confirm_revocations(
    p_node text, p_boot text, p_keep double precision, p_mark bigint, p_marks bigint[], p_sessions integer[])
    returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    update revocation_mark m set keep = p_keep where m.keep <> p_keep;
    update revocation r set closed = r.closed || jsonb_build_object(p_node, c.sessions)
    from (select n.mark, n.sessions from unnest(p_marks, p_sessions) as n (mark, sessions) order by 1) c
    where r.mark = c.mark;
    insert into revocation_reader values (p_boot, p_node, p_mark, p_keep, clock_timestamp())
    on conflict (boot) do update set mark = excluded.mark, keep = excluded.keep, read_at = excluded.read_at
        where revocation_reader.mark < excluded.mark;
end $$;
comment on function confirm_revocations is
    'Notes that a node has carried out all revocations up to a mark, and how many sessions each of these closed there.';

create function revocation_answers(p_mark bigint)
    returns table (node text, has_read boolean, sessions integer)
    language sql stable
    set search_path to public, pg_temp
    as $$
    select n.name, coalesce(r.mark >= p_mark, false), coalesce((v.closed ->> n.name)::integer, 0)
    from node n
    left join revocation_reader r on r.boot = n.boot
    left join revocation v on v.mark = p_mark
    where n.seen_at > clock_timestamp() - interval '5 seconds'
    order by 1;
$$;
comment on function revocation_answers is
    'For each live node: whether it has carried out this revocation, and how many sessions it closed.';

create function drop_old_revocations(p_limit integer) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    dropped bigint;
begin
    delete from revocation_reader r
    where r.read_at < clock_timestamp() - interval '1 day'
      and not exists (select from node n where n.boot = r.boot);
    with old as materialized (
        select v.mark from revocation v where v.kept_until <= clock_timestamp() order by v.kept_until limit p_limit)
    delete from revocation v using old where v.mark = old.mark;
    get diagnostics dropped = row_count;
    return dropped;
end $$;
comment on function drop_old_revocations is
    'Deletes at most so many revocations that mean no token that could still be valid; returns how many.';

insert into ending (outcome, reason, final, meaning) values
    ('dropped', 'revoked', true, 'the session''s token was revoked before this push was handed to its socket'),
    ('stored', 'revoked', false, 'kept: the session''s token was revoked before it was handed to a socket');
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
        grant select on revocation, revocation_reader to bridge_reader;
    end if;
end $$;
