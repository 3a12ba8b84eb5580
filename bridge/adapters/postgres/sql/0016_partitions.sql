-- Each node says which partitions of the requests it takes, so that all of them spread over the nodes, and its version.

alter table node add column taking smallint[];
alter table node add column version text;
comment on column node.taking is
    'The partitions of the requests that it takes (0 is the queue push.requests); null: it can take none now, or its '
    'program knows of no partitions.';
comment on column node.version is 'The version of its program; null for those that do not say it.';

create function look_around(
    p_name text, p_boot text, p_queue text, p_known_until float8, p_taking smallint[], p_version text
)
    returns table (
        its_name text, its_boot text, its_queue text, lives boolean, knows_until float8, its_taking smallint[],
        right_now float8)
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    -- Before the statement that looks: who has a name by now is seen by it.
    now_first timestamptz := clock_timestamp();
begin
    update node n set
        queue = nullif(p_queue, ''), known_until = coalesce(to_timestamp(p_known_until), n.claimed_at), taking = p_taking,
        version = p_version
    where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    return query
    select n.name, n.boot, coalesce(n.queue, ''), n.seen_at > now_first - interval '5 seconds',
        extract(epoch from n.known_until)::float8, n.taking, extract(epoch from now_first)::float8
    from node n
    where n.boot = p_boot or n.seen_at > now_first - interval '30 seconds'
       or exists (
           select from session s
           where s.node = n.name collate "C" and s.boot = n.boot collate "C" and s.closed_at is null and s.node <> '');
end $$;
comment on function look_around(text, text, text, float8, smallint[], text) is
    'Notes where a process listens, up to when it knows the others, and what it takes; returns it and those: who lives, or '
    'has sessions that nobody has ended. Without a row, another process has its name.';

create or replace function look_around(p_name text, p_boot text, p_queue text, p_known_until float8)
    returns table (its_name text, its_boot text, its_queue text, lives boolean, knows_until float8, right_now float8)
    language sql volatile
    set search_path to public, pg_temp
    as $$
    select a.its_name, a.its_boot, a.its_queue, a.lives, a.knows_until, a.right_now
    from look_around(p_name, p_boot, p_queue, p_known_until, null, null) a;
$$;
comment on function look_around(text, text, text, float8) is 'As the other one, for bridges that know of no partitions.';
