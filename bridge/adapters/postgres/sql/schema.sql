-- The whole schema as it is now, for readers. Nothing applies this file: `bridge db upgrade` applies the numbered migrations
-- beside it. A test proves that both make the same database, so whoever adds a migration changes this file too.
--
-- `comment on` says what a table, column, view or function is for; the database has these texts as well. Comments that begin
-- with two dashes say why something is made this way.
--
--   1. Rows                    one for each push and user, and what several of them share
--   2. Writing rows            compare-and-set of a batch
--   3. Known ids               finding repeats, and all rows of a push
--   4. Final rows              what is learned after the outcome is final
--   5. Debts                   receipts and fallbacks that are still to be sent
--   6. Kept pushes             the mailbox of a user: pages, limits, ends
--   7. Recalls                 taking a push back
--   8. Days and partitions     when a day begins, and when its rows are dropped
--   9. Nodes                   leases, and rows that a dead process left pending
--  10. Revocations             tokens that open no session any more
--  11. Sessions                the ledger: who was connected, where, and from when to when
--  12. Audit                   counts to compare the log with
--  13. Counts                  rows counted for each hour, in the background
--  14. Views                   for people
--  15. Roles                   for people who only read
--  16. Earlier bridges         functions that only older programs call
--  17. Versions                the migrations that were applied
--  18. Actions                 what people do by hand
--  19. Scheduled pushes        what waits for its deliver_at

-- 1. Rows ------------------------------------------------------------------------------------------------

-- Ids compare bytewise (COLLATE "C"): it is faster, and the program sorts its batches the same way, so that two writers
-- always lock rows in one order.
create table delivery_log (
    day          date        not null,
    tenant       text        collate "C" not null,
    push_id      text        collate "C" not null,
    user_id      text        collate "C" not null,
    outcome      text        not null,
    reason       text        not null,
    final        boolean     not null,
    confirm      smallint    not null,
    sessions     integer     not null,
    attempts     integer     not null,
    published_at timestamptz not null,
    taken_at     timestamptz not null,
    written_at   timestamptz,
    proven_at    timestamptz,
    finished_at  timestamptz,
    node         text        not null,
    boot         text        not null,
    event        text        not null,
    app_id       text        not null,
    detail       text        not null,
    traceparent  text        not null,
    meta         jsonb,
    payload      bytea,
    owed         jsonb,
    -- Columns of kept pushes; null for others.
    position     bigint,
    expires_at   timestamptz,
    encoding     text,
    collapse_key text        collate "C",
    excluded     jsonb,
    ack_within   double precision,
    -- A migration can only append a column: these came later.
    late_at      timestamptz,
    kept_bytes   integer,
    content      bytea,
    fingerprint  integer,
    differed_at  timestamptz,
    topic        text        collate "C",
    session      text        collate "C",
    holder       text        collate "C",
    first_device boolean,
    fallback_due timestamptz,
    fallback_key text        collate "C",
    fallback_claim text      collate "C",
    fallback_at  timestamptz,
    batch_id     text        collate "C",
    batch_position integer,
    data_bytes   integer,
    stored_at    timestamptz,
    -- The day is the same all over a partition, so it comes last: a push id alone finds its rows.
    constraint delivery_log_key primary key (push_id, user_id, tenant, day)
) partition by list (day);
comment on table delivery_log is
    'One row per push and user, in one partition per day (UTC, by the database''s clock). '
    'People read the view delivery; the bridge alone writes here.';
comment on column delivery_log.day is 'The log''s day when the row was written (log_day.day), the partition key.';
comment on column delivery_log.tenant is 'The tenant of the request; empty where it named none.';
comment on column delivery_log.push_id is 'The id of the request, unique within its tenant.';
comment on column delivery_log.user_id is 'The user it was addressed to; empty where none was known.';
comment on column delivery_log.final is 'True once outcome and reason never change again.';
comment on column delivery_log.confirm is 'The proof that was asked for: 1 written, 2 received, 3 acked.';
comment on column delivery_log.sessions is 'Sessions of the user that it was addressed to.';
comment on column delivery_log.attempts is 'How often it was handed to sockets, over all takings known here.';
comment on column delivery_log.published_at is
    'When it was published: header x-push-published-ms, else the AMQP timestamp, else its arrival.';
comment on column delivery_log.taken_at is 'When a bridge first took it from the queue.';
comment on column delivery_log.written_at is 'When it was first handed to an open socket; null: never.';
comment on column delivery_log.proven_at is
    'When the best proof came (a pong or an ack frame), also after the end; null: none came.';
comment on column delivery_log.finished_at is 'When the outcome was decided; null while it is not final.';
comment on column delivery_log.node is 'The bridge process that wrote the row.';
comment on column delivery_log.boot is 'That process''s start: every start of a node has its own.';
comment on column delivery_log.event is 'The event name that the client dispatches on.';
comment on column delivery_log.app_id is 'The publisher, as its AMQP property app_id says; empty where it does not.';
comment on column delivery_log.detail is 'A sentence for people, such as the path of the wrong field.';
comment on column delivery_log.traceparent is 'W3C trace context of the request; empty where it had none.';
comment on column delivery_log.meta is 'The object meta of the request; null where it had none.';
comment on column delivery_log.payload is
    'Of a kept push its data, and of one without a ttl until its fallback is published or cancelled; of a rejected request '
    'its body, cut where detail says so; null otherwise.';
comment on column delivery_log.owed is
    'What is still to be sent back: null nothing; otherwise the event on push.outcomes and a receipt to each '
    '{queue, correlation_id} of the list (a text that no JSON of Postgres can hold is kept as <name>_hex).';
comment on column delivery_log.position is
    'Of a kept push its place in the mailbox, in microseconds since 1970 when it was taken; null for others.';
comment on column delivery_log.expires_at is 'Of a kept push when its ttl ends; null for a push without a ttl.';
comment on column delivery_log.encoding is
    'Of a push that is kept, or has a fallback, what payload is: json, text or bytes; null for others.';
comment on column delivery_log.collapse_key is 'Of a kept push its collapse_key; null where it has none.';
comment on column delivery_log.excluded is 'Of a kept push the sessions that do not get it; null where it names none.';
comment on column delivery_log.ack_within is
    'Of a kept push the seconds that it gives the application to ack; null where it does not say.';
comment on column delivery_log.late_at is 'As in delivery.';
comment on column delivery_log.kept_bytes is
    'Of a kept push the bytes of its data and of the list of sessions that do not get it; null for others, and for '
    'rows of before there was this column.';
comment on column delivery_log.content is
    'Where payload, excluded and meta are: push_content.id of the same day; null: in the row itself.';
comment on column delivery_log.fingerprint is
    'Made of event, data, confirm, ttl, collapse_key, devices, retain and fallback, to tell a repeat from another push with the '
    'same id; null: not known.';
comment on column delivery_log.differed_at is 'As in delivery.';
comment on column delivery_log.topic is 'As in delivery.';
comment on column delivery_log.session is 'As in delivery.';
comment on column delivery_log.holder is 'The node that had that session; null: the one that wrote the row.';
comment on column delivery_log.fallback_due is 'As in delivery.';
comment on column delivery_log.fallback_key is
    'The routing key of its fallback on the exchange push.fallback; null where it has none.';
comment on column delivery_log.fallback_claim is
    'The boot that publishes its fallback; null: none does. What a dead process has claimed anyone may claim. It means nothing '
    'where none is due.';
comment on column delivery_log.fallback_at is 'As in delivery.';
comment on column delivery_log.batch_id is 'As in delivery.';
comment on column delivery_log.batch_position is 'As in delivery.';
comment on column delivery_log.data_bytes is 'As in delivery.';
comment on column delivery_log.stored_at is 'As in delivery.';
comment on column delivery_log.first_device is
    'True: the first ack took the push back from the other sessions of its user; otherwise null.';

-- There may be many kept pushes, and they stay for days; ordinary pushes are final within seconds. So most indexes are
-- partial: the indexes for ordinary pushes do not grow with kept ones, and no index holds rows that its readers skip.
--
-- Nearly empty: a row leaves it when its receipts are confirmed.
create index delivery_log_owing on delivery_log (taken_at) where final and owed is not null;
-- View delivery has the same expression, so that a search there by user finds this index.
create index delivery_log_user on delivery_log ((nullif(user_id, '')), taken_at);
-- For the newest rows and for a range of time. New rows go to its right end, which is cheap.
create index delivery_log_taken on delivery_log (taken_at);
-- Nearly empty: a row leaves it when its outcome is decided.
create index delivery_log_pending on delivery_log (node, boot) where outcome = 'pending';
-- The pushes that wait for a user, in order.
create index delivery_log_mailbox on delivery_log (user_id, position) where outcome = 'stored';
create index delivery_log_expiry on delivery_log (expires_at) where outcome = 'stored';
create index delivery_log_collapse on delivery_log (user_id, collapse_key)
    where outcome = 'stored' and collapse_key is not null;
-- For a client that resumes: the kept pushes that were delivered, and whether any was dropped.
create index delivery_log_resume on delivery_log (user_id, position)
    where outcome in ('acked', 'received', 'written') and expires_at is not null;
create index delivery_log_dropped on delivery_log (user_id, position)
    where outcome = 'dropped' and reason = 'mailbox_full';
-- To find the highest position when a bridge starts.
create index delivery_log_position on delivery_log (position) where position is not null;
-- Nearly empty: a row leaves it when its fallback is published, or cancelled.
create index delivery_log_fallback on delivery_log (fallback_due) where fallback_due is not null;
create index delivery_log_fallback_key on delivery_log (user_id, collapse_key)
    where fallback_due is not null and collapse_key is not null;
-- By when their data is not needed any more: after the ttl where a client that resumes may get it, else at the end.
create index delivery_log_data on delivery_log ((
    case when outcome in ('acked', 'received', 'written') and expires_at > finished_at then expires_at
         else finished_at end))
    where final and payload is not null and fallback_due is null;

-- A push to ten thousand users has ten thousand rows and one payload. It is stored here once, and the rows refer to it.
create table push_content (
    day      date  not null,
    id       bytea not null,
    payload  bytea,
    excluded jsonb,
    meta     jsonb,
    until    timestamptz,
    -- The day is the same all over a partition.
    constraint push_content_key primary key (id, day)
) partition by list (day);
comment on table push_content is
    'What rows of one push to many users would repeat, stored once a day. In partitions like those of delivery_log.';
comment on column push_content.day is 'The day of the rows that share it: it goes when they go.';
comment on column push_content.id is 'The first 16 bytes of the SHA-256 of the rest.';
comment on column push_content.payload is 'As delivery_log.payload.';
comment on column push_content.excluded is 'As delivery_log.excluded.';
comment on column push_content.meta is 'As delivery_log.meta.';
comment on column push_content.until is
    'When no row needs its payload any more: an hour or two after the last ttl, or fallback; null: not known, it goes with its day.';
create index push_content_until on push_content (until) where payload is not null;

create function whole(l delivery_log) returns delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    as $$
begin
    if l.content is not null then
        select coalesce(l.payload, c.payload), coalesce(l.excluded, c.excluded), coalesce(l.meta, c.meta)
        into l.payload, l.excluded, l.meta
        from push_content c where c.day = l.day and c.id = l.content;
    end if;
    return l;
end $$;
comment on function whole is 'The row with what it shares with others.';

-- The one place that says what an outcome and a reason mean. The comments of columns are made from it (section 11).
create table ending (
    outcome text    not null,
    reason  text    not null,
    final   boolean not null,
    meaning text    not null,
    party   text,
    primary key (outcome, reason)
);
comment on table ending is 'Every outcome with every reason that it may have, and what both mean.';
comment on column ending.outcome is 'As in delivery.outcome.';
comment on column ending.reason is 'As in delivery.reason.';
comment on column ending.final is 'Whether a push with this outcome has come to its end.';
comment on column ending.meaning is 'What it says about the push, in a sentence.';
comment on column ending.party is
    'Who could have made it end better: publisher (the request was wrong, was taken back or replaced, or excluded the user''s '
    'sessions), bridge (a node, or the way between two), peer (the user was not there, or their client did not read, answer or '
    'acknowledge), network (the connection to the client), policy (a limit of time, room or access). Null: the proof that was '
    'asked for has come, or nothing has gone wrong so far.';
insert into ending (outcome, reason, final, meaning) values
    ('acked', 'ack_frame', true, 'the application acknowledged the push with an ack frame'),
    ('received', 'pong', true, 'the peer answered a ping sent after the push'),
    ('received', 'not_acked', true, 'acked was wanted; at the deadline received was proven'),
    ('written', 'handed_over', true, 'handed to an open socket, and no more was asked for'),
    ('offline', 'no_session', true, 'the user had no session (or the session was not here)'),
    ('offline', 'excluded', true, 'every session of the user was named in `except`'),
    ('offline', 'nobody', true, 'sent to everyone or to a topic, and nobody was there'),
    ('offline', 'left_before_send', true, 'the user''s sessions closed before the push was handed to a socket'),
    ('expired', 'max_age', true, 'older than BRIDGE_MAX_AGE when it was taken'),
    ('expired', 'ttl', true, 'its ttl ran out before it was proven'),
    ('expired', 'queue_expiration', true, 'its AMQP expiration ran out in the queue'),
    ('superseded', 'collapsed', true, 'a newer push with its collapse_key came before this one was proven'),
    ('dropped', 'mailbox_full', true, 'the user''s mailbox was over its limit, and this was the oldest push in it'),
    ('recalled', 'withdrawn', true, 'withdrawn by a recall before it was proven'),
    ('dropped', 'slow_consumer', true, 'the peer did not read fast enough: its session was closed with 4408, or the time for a proof was over, before this push was handed to its socket'),
    ('dropped', 'revoked', true, 'the session''s token was revoked before this push was handed to its socket'),
    ('dropped', 'overflow', true, 'more came at once than the session could hold while it was being sent what is kept'),
    ('unknown', 'no_proof', true, 'handed over; no proof in BRIDGE_CONFIRM_TIMEOUT'),
    ('unknown', 'connection_lost', true, 'handed over; the connection ended before proof'),
    ('unknown', 'node_died', true, 'the bridge process died while the proof was awaited'),
    ('dropped', 'node_unreachable', true, 'the node that has the user''s session could not be reached'),
    ('unknown', 'node_silent', true, 'forwarded to the node that has the user''s session, which has not answered in time'),
    ('stored', 'node_unreachable', false, 'kept: the node that has the user''s session could not be reached'),
    ('stored', 'node_silent', false, 'kept: forwarded to the node that has the user''s session, which has not answered in time'),
    ('rejected', 'not_json', true, 'the body is not JSON (RFC 8259) in UTF-8'),
    ('rejected', 'invalid', true, 'a field or header is wrong; `detail` names it'),
    ('rejected', 'unsupported', true, 'a field whose feature this version does not have'),
    ('rejected', 'too_large', true, 'the message or its data is over the limit in bytes'),
    ('rejected', 'too_many', true, 'more requests or users in one message than allowed'),
    ('rejected', 'poison', true, 'the broker gave it out BRIDGE_MAX_ATTEMPTS times, and it was never settled'),
    ('rejected', 'delivery_limit', true, 'the broker gave it up at its delivery limit'),
    ('rejected', 'given_up', true, 'the broker gave it up for another reason; see `detail`'),
    ('pending', 'awaiting_proof', false, 'handed over; the proof is awaited'),
    ('stored', 'no_session', false, 'kept: the user had no session'),
    ('stored', 'excluded', false, 'kept: every session of the user was named in `except`'),
    ('stored', 'left_before_send', false, 'kept: the user''s sessions closed before it was handed to a socket'),
    ('stored', 'slow_consumer', false, 'kept: the peer did not read'),
    ('stored', 'revoked', false, 'kept: the session''s token was revoked before it was handed to a socket'),
    ('stored', 'overflow', false, 'kept: the session was still being sent what is older and could not hold it; it follows'),
    ('stored', 'awaiting_proof', false, 'kept: on its way to the user, the proof is awaited'),
    ('stored', 'no_proof', false, 'kept: handed over; no proof in BRIDGE_CONFIRM_TIMEOUT'),
    ('stored', 'not_acked', false, 'kept: received, but acked was wanted and has not come'),
    ('stored', 'connection_lost', false, 'kept: handed over; the connection ended before proof'),
    ('written', 'no_proof_possible', true, 'handed to an open stream of events whose client has never proven anything; more was asked for'),
    ('stored', 'no_proof_possible', false, 'kept: handed to a stream of events whose client has never proven anything');

-- The party depends on the reason alone.
update ending e set party = p.party from (values
    ('not_acked', 'peer'),
    ('no_proof_possible', 'peer'),
    ('no_session', 'peer'),
    ('nobody', 'peer'),
    ('left_before_send', 'peer'),
    ('slow_consumer', 'peer'),
    ('no_proof', 'peer'),
    ('connection_lost', 'network'),
    ('excluded', 'publisher'),
    ('collapsed', 'publisher'),
    ('withdrawn', 'publisher'),
    ('not_json', 'publisher'),
    ('invalid', 'publisher'),
    ('unsupported', 'publisher'),
    ('too_large', 'publisher'),
    ('too_many', 'publisher'),
    ('max_age', 'policy'),
    ('ttl', 'policy'),
    ('queue_expiration', 'policy'),
    ('mailbox_full', 'policy'),
    ('revoked', 'policy'),
    ('overflow', 'bridge'),
    ('node_died', 'bridge'),
    ('node_unreachable', 'bridge'),
    ('node_silent', 'bridge'),
    ('poison', 'bridge'),
    ('delivery_limit', 'bridge'),
    ('given_up', 'bridge')
) as p (reason, party) where e.reason = p.reason;

-- 2. Writing rows ----------------------------------------------------------------------------------------

-- Many functions have these settings:
--   search_path             no table of the same name in another schema is used by mistake
--   plan_cache_mode         one plan, made while a partition is still empty, must also suit the partition when it has grown
--   enable_... to off       so that this plan looks up keys in indexes and scans no table
--   jit to off              compiling takes longer than a look-up
-- Some conditions are written for the planner: `(outcome = 'stored')::int = 1`, `offset 0` and lateral joins keep it from
-- reading a whole index where it should look up keys.
--
-- Rows that are named by key are locked in the order of the arguments. All callers sort them by (push_id, user_id, tenant), so
-- two writers never deadlock. A row that another session has locked is skipped: it may stay locked for hours, and the other
-- rows must not wait for it. The caller is told, and tries again.

-- The ids are sorted, so that two writers take them in one order.
create function share_content(
    p_day date, p_ids bytea[], p_payloads bytea[], p_excluded jsonb[], p_metas jsonb[],
    p_contents bytea[], p_expires float8[], p_fallbacks float8[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set jit to off
    as $$
declare
    ids bytea[];
    payloads bytea[];
    lists jsonb[];
    metas jsonb[];
    untils timestamptz[];
    made bigint;
begin
    -- In steps of an hour: so it seldom changes where others share the same later.
    select array_agg(n.id order by n.id), array_agg(n.payload order by n.id), array_agg(n.excluded order by n.id),
           array_agg(n.meta order by n.id),
           array_agg(to_timestamp(ceil(coalesce(n.due, extract(epoch from clock_timestamp())) / 3600) * 3600 + 3600)
                     order by n.id)
    into ids, payloads, lists, metas, untils
    from (
        select x.id, (array_agg(x.payload) filter (where x.payload is not null))[1] as payload,
               (array_agg(x.excluded) filter (where x.excluded is not null))[1] as excluded,
               (array_agg(x.meta) filter (where x.meta is not null))[1] as meta, max(x.due) as due
        from (
            select c.id, c.payload, c.excluded, c.meta, null::float8 as due
            from unnest(p_ids, p_payloads, p_excluded, p_metas) as c (id, payload, excluded, meta)
            union all
            select r.content, null, null, null, greatest(r.expires, r.fallback)
            from unnest(p_contents, p_expires, p_fallbacks) as r (content, expires, fallback)
            where r.content is not null) x
        group by x.id) n;

    insert into push_content (day, id, payload, excluded, meta, until)
    select p_day, n.id, n.payload, n.excluded, n.meta, n.until
    from unnest(ids, payloads, lists, metas, untils) as n (id, payload, excluded, meta, until)
    on conflict do nothing;
    get diagnostics made = row_count;
    if made = cardinality(ids) then
        return;
    end if;
    -- What was there may be due earlier, or erased already.
    with there as materialized (
        select n.*
        from unnest(ids, payloads, untils) as n (id, payload, until)
        cross join lateral (
            select from push_content c
            where c.day = p_day and c.id = n.id
              and (c.until < n.until or (c.payload is null and n.payload is not null))
            for update) c)
    update push_content c set until = greatest(c.until, n.until), payload = coalesce(c.payload, n.payload)
    from there n
    where c.day = p_day and c.id = n.id;
end $$;
comment on function share_content is
    'Stores what rows of a day share, once, and until when they need it: p_contents has for each row the id of what it shares.';

-- New parameters come last and have defaults, so that a program of an earlier version can call it with those that it knows.
create function record_rows(
    p_tenants text[], p_push_ids text[], p_users text[],
    p_outcomes text[], p_reasons text[], p_finals boolean[], p_confirms smallint[],
    p_sessions integer[], p_attempts integer[],
    p_published float8[], p_taken float8[], p_written float8[], p_proven float8[], p_finished float8[],
    p_nodes text[], p_boots text[], p_events text[], p_app_ids text[],
    -- Mostly empty, so they may be null as a whole:
    p_details text[], p_traceparents text[], p_metas jsonb[], p_payloads bytea[], p_owed jsonb[],
    p_days date[] default null,
    p_positions bigint[] default null, p_expires float8[] default null, p_encodings text[] default null,
    p_collapse_keys text[] default null, p_excluded jsonb[] default null, p_ack_withins double precision[] default null,
    p_kept_bytes integer[] default null, p_contents bytea[] default null,
    p_content_ids bytea[] default null, p_content_payloads bytea[] default null,
    p_content_excluded jsonb[] default null, p_content_metas jsonb[] default null,
    p_fingerprints integer[] default null,
    p_topics text[] default null, p_provers text[] default null, p_holders text[] default null,
    p_first_devices boolean[] default null,
    p_fallbacks float8[] default null, p_fallback_keys text[] default null,
    p_batches text[] default null, p_batch_positions integer[] default null, p_data_bytes integer[] default null
) returns table (ord bigint, applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    -- One plan, made when a partition is still empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    wanted bigint := cardinality(p_push_ids);
    d date;
    s date;
    first date;
    days date[];
    me xid;
    done bigint;
    more bigint;
begin
    if coalesce((select l.day from log_day l) < log_today(), true) then
        perform roll_day();
    end if;
    -- While this lock is held the day stays, and every row of an earlier day is committed: roll_day() takes it
    -- exclusively. Each statement below has its own snapshot (READ COMMITTED), taken after this lock.
    perform pg_advisory_xact_lock_shared(7093848243014270977);
    select l.day, l.since into strict d, s from log_day l;
    first := s;

    if p_days is not null then
        -- Where the rows are that say their day. One that is not there any more is a row like any other.
        select array_agg(l.day order by n.ord), least(s, min(l.day)) into strict days, first
        from rows from (unnest(p_tenants, p_push_ids, p_users, p_days)) with ordinality
            as n (tenant, push_id, user_id, day, ord)
        left join lateral (
            select l.day from delivery_log l
            where l.day >= n.day and l.day <= d
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            limit 1) l on true;
    end if;

    if p_content_ids is not null then
        perform share_content(d, p_content_ids, p_content_payloads, p_content_excluded, p_content_metas,
                              p_contents, p_expires, p_fallbacks);
    end if;

    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published_at, taken_at, written_at, proven_at, finished_at,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        position, expires_at, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, session, holder, first_device, fallback_due, fallback_key,
        batch_id, batch_position, data_bytes, stored_at)
    select
        d, n.tenant, n.push_id, n.user_id, n.outcome, n.reason, n.final, n.confirm, n.sessions, n.attempts,
        to_timestamp(n.published), to_timestamp(n.taken), to_timestamp(n.written), to_timestamp(n.proven),
        to_timestamp(n.finished),
        n.node, n.boot, n.event, n.app_id, coalesce(n.detail, ''), coalesce(n.traceparent, ''),
        n.meta, n.payload, n.owed,
        n.position, to_timestamp(n.expires), n.encoding, n.collapse_key, n.excluded, n.ack_within, n.kept_bytes, n.content,
        n.fingerprint, n.topic, n.prover, n.holder, nullif(n.first_device, false),
        to_timestamp(n.fallback), n.fallback_key,
        n.batch_id, n.batch_position, n.data_bytes, case when n.outcome = 'stored' then clock_timestamp() end
    from unnest(
        p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_confirms, p_sessions, p_attempts,
        p_published, p_taken, p_written, p_proven, p_finished,
        p_nodes, p_boots, p_events, p_app_ids, p_details, p_traceparents, p_metas, p_payloads, p_owed,
        days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents,
        p_fingerprints, p_topics, p_provers, p_holders, p_first_devices, p_fallbacks, p_fallback_keys,
        p_batches, p_batch_positions, p_data_bytes
    ) as n (
        tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts,
        published, taken, written, proven, finished,
        node, boot, event, app_id, detail, traceparent, meta, payload, owed,
        its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
        fingerprint, topic, prover, holder, first_device, fallback, fallback_key,
        batch_id, batch_position, data_bytes)
    where n.its_day is null
      and not exists (
        select from delivery_log l
        where l.day >= s and l.day < d
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C")
    on conflict do nothing;
    get diagnostics done = row_count;
    if done = wanted then
        return;
    end if;

    -- What is there already, told from what was just inserted by its transaction.
    me := pg_current_xact_id()::xid;
    if p_content_ids is not null and first < d then
        -- A row of an earlier day finds its content in its own day's partition.
        perform share_content(found.day, p_content_ids, p_content_payloads, p_content_excluded, p_content_metas,
                              p_contents, p_expires, p_fallbacks)
        from (
            select distinct l.day
            from rows from (unnest(p_tenants, p_push_ids, p_users)) as n (tenant, push_id, user_id)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day < d
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C" and not l.final
                offset 0) l
            order by l.day) found;
    end if;
    -- An UPDATE locks in the order of its plan; this locks one key after the other, in the order of the batch, which
    -- is that of all writers, and changes only what it has locked. As a join the planner could turn it round, and
    -- would, while a partition is new: it then reads all rows of the day. The first pair of bounds spares the others'
    -- partitions, the second is the row's own.
    return query
    with locked as materialized (
        select l.day, l.cancels, n.*
        from rows from (unnest(
            p_tenants, p_push_ids, p_users, p_outcomes, p_reasons, p_finals, p_sessions, p_attempts,
            p_written, p_proven, p_finished, p_nodes, p_boots, p_details, p_payloads, p_owed,
            days, p_positions, p_expires, p_encodings, p_collapse_keys, p_excluded, p_ack_withins, p_kept_bytes, p_contents,
            p_provers, p_holders
        )) with ordinality as n (
            tenant, push_id, user_id, outcome, reason, final, sessions, attempts,
            written, proven, finished, node, boot, detail, payload, owed,
            its_day, position, expires, encoding, collapse_key, excluded, ack_within, kept_bytes, content,
            prover, holder, ord)
        cross join lateral (
            select l.day,
                   -- Whether its fallback is not to be published any more, if it has one.
                   l.fallback_key is not null
                   and (n.proven is not null or l.proven_at is not null or (l.confirm = 1 and n.written is not null)
                        or n.outcome in ('superseded', 'recalled', 'rejected')) as cancels
            from delivery_log l
            where l.day >= first and l.day <= d
              and l.day >= coalesce(n.its_day, s) and l.day <= coalesce(n.its_day, d)
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and not l.final and l.xmin <> me
            -- What somebody else holds is not waited for: it may be held for hours, and the others are not to wait.
            for update skip locked) l)
    update delivery_log l set
        outcome = n.outcome,
        reason = n.reason,
        final = n.final,
        sessions = greatest(l.sessions, n.sessions),
        -- The same boot counts on, another one began at nought.
        attempts = case when l.node = n.node and l.boot = n.boot then greatest(l.attempts, n.attempts)
                        else l.attempts + n.attempts end,
        written_at = coalesce(l.written_at, to_timestamp(n.written)),
        proven_at = coalesce(to_timestamp(n.proven), l.proven_at),
        finished_at = to_timestamp(n.finished),
        node = n.node,
        boot = n.boot,
        detail = coalesce(n.detail, ''),
        owed = case when n.owed is null then l.owed else merge_owed(l.owed, n.owed) end,
        -- What the row has already stands, whichever of the two places it is in.
        payload = case when l.content is null and not (n.cancels and l.expires_at is null)
                       then coalesce(l.payload, n.payload) end,
        excluded = case when l.content is null then coalesce(l.excluded, n.excluded) end,
        content = coalesce(l.content, case when l.payload is null then n.content end),
        kept_bytes = coalesce(l.kept_bytes, n.kept_bytes),
        position = coalesce(l.position, n.position),
        expires_at = coalesce(l.expires_at, to_timestamp(n.expires)),
        encoding = coalesce(l.encoding, n.encoding),
        collapse_key = coalesce(l.collapse_key, n.collapse_key),
        ack_within = coalesce(l.ack_within, n.ack_within),
        -- Who has it first stays, unless another one proves more.
        session = case when n.proven is not null then coalesce(n.prover, l.session) else coalesce(l.session, n.prover) end,
        holder = case when n.prover is not null and (n.proven is not null or l.session is null) then n.holder
                      when l.session is not null then nullif(coalesce(l.holder, l.node), n.node) end,
        fallback_due = case when not n.cancels then l.fallback_due end,
        stored_at = coalesce(l.stored_at, case when n.outcome = 'stored' then clock_timestamp() end)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning n.ord, true, l;
    get diagnostics more = row_count;
    done := done + more;

    if done < wanted then
        return query
        select n.ord, case when (l.log).final then false end, l.log
        from rows from (unnest(p_tenants, p_push_ids, p_users, days)) with ordinality
            as n (tenant, push_id, user_id, its_day, ord)
        cross join lateral (
            select l as log from delivery_log l
            where l.day >= first and l.day <= d
              and l.day >= coalesce(n.its_day, s) and l.day <= coalesce(n.its_day, d)
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.xmin <> me
            offset 0) l;
        get diagnostics more = row_count;
        done := done + more;
    end if;
    if done <> wanted then
        raise exception 'of % rows % have an answer', wanted, done using errcode = 'serialization_failure';
    end if;
end $$;
comment on function record_rows is
    'Compare-and-set of a batch with one row per key, sorted by (push_id, user_id, tenant): inserts, or updates '
    'what is not final. Rows that it inserted are not returned; of the others, what the log holds now; applied is null '
    'where somebody else holds the row. What rows share (p_contents) is stored once.';

create function try_writing() returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set jit to off
    as $$
begin
    perform pg_advisory_xact_lock_shared(7093848243014270977);
    -- As the others do: a plan that was made once locks every partition, also those that it then does not look into.
    perform from delivery_log l
    where l.day = (select d.day from log_day d) and l.push_id = '' and l.user_id = '' and l.tenant = '';
    insert into delivery_log (
        day, tenant, push_id, user_id, outcome, reason, final, confirm, sessions, attempts, published_at, taken_at,
        node, boot, event, app_id, detail, traceparent)
    select l.day, '', '', '', 'rejected', 'invalid', true, 1, 0, 0, clock_timestamp(), clock_timestamp(),
        '', '', '', '', '', ''
    from log_day l;
    raise exception 'undone' using errcode = 'P0B01';
exception
    when sqlstate 'P0B01' then
        return; -- what it wrote is rolled back
end $$;
comment on function try_writing is 'Writes a row and takes it back: fails where the log takes no rows at all.';

-- 3. Known ids -------------------------------------------------------------------------------------------

create function find_rows(p_tenants text[], p_push_ids text[], p_users text[]) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    return query
    select l.* from unnest(p_tenants, p_push_ids, p_users) as n (tenant, push_id, user_id)
    cross join lateral (
        select * from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C" and l.tenant = n.tenant collate "C"
        offset 0) l;
end $$;
comment on function find_rows(text[], text[], text[]) is 'The rows of these keys in the days in which a key is known.';

create function rows_of_push(p_tenant text, p_push_id text, p_from text, p_limit integer) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    return query
    select l.* from delivery_log l
    where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
      and l.user_id >= p_from collate "C"
    order by l.push_id, l.user_id
    fetch first (p_limit) rows with ties;
end $$;
comment on function rows_of_push is
    'A page of the rows of a push, by user, from this user on, in the days in which a key is known; all rows of the '
    'last user are on it.';

create function ids_of_day(p_day date, p_after text, p_limit integer)
    returns table (ids text, reached text, more boolean)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
begin
    return query
    select string_agg(i.push_id, E'\n'), max(i.push_id), coalesce(sum(i.rows), 0) >= p_limit
    from (
        select l.push_id, count(*) as rows
        from (
            select l.push_id from delivery_log l
            where l.day = p_day and l.push_id > p_after collate "C"
            order by l.push_id
            limit p_limit) l
        group by l.push_id) i;
end $$;
comment on function ids_of_day is
    'The push ids of a day above p_after, one a line, from at most p_limit rows; and the last of them. A push with '
    'more rows than that is on one page: the next begins behind it.';

-- 4. Final rows ------------------------------------------------------------------------------------------

-- A final row keeps its outcome for ever. What is learned later is written to other columns.
create function note_late_proofs(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[])
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    with wanted as materialized (
        select n.*, l.day
        from unnest(p_tenants, p_push_ids, p_users, p_proven) as n (tenant, push_id, user_id, proven)
        cross join lateral (
            -- An id may have come before, days ago: the newest is meant.
            select l.day, l.final and l.late_at is null as wanted from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day desc
            limit 1) l
        where l.wanted),
    locked as materialized (
        select w.*
        from wanted w
        cross join lateral (
            select from delivery_log l
            where l.day = w.day
              and l.push_id = w.push_id collate "C" and l.user_id = w.user_id collate "C"
              and l.tenant = w.tenant collate "C" and l.final and l.late_at is null
            for update skip locked) l)
    update delivery_log l set
        late_at = to_timestamp(n.proven), proven_at = coalesce(l.proven_at, to_timestamp(n.proven)),
        fallback_due = null,
        payload = case when l.fallback_key is null or l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
    cross join lateral (
        select l.final and l.late_at is null as wanted from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        order by l.day desc
        limit 1) l
    where l.wanted;
end $$;
comment on function note_late_proofs is
    'Notes proof that came after the end of these rows, for each the first; returns the places of rows that somebody '
    'else holds.';

create function note_differences(p_tenants text[], p_push_ids text[], p_users text[], p_came float8[])
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    with wanted as materialized (
        select n.*, l.day
        from unnest(p_tenants, p_push_ids, p_users, p_came) as n (tenant, push_id, user_id, came)
        cross join lateral (
            -- An id may have come before, days ago: the newest is meant.
            select l.day, l.differed_at is null as wanted from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day desc
            limit 1) l
        where l.wanted),
    locked as materialized (
        select w.*
        from wanted w
        cross join lateral (
            select from delivery_log l
            where l.day = w.day
              and l.push_id = w.push_id collate "C" and l.user_id = w.user_id collate "C"
              and l.tenant = w.tenant collate "C" and l.differed_at is null
            for update skip locked) l)
    update delivery_log l set differed_at = to_timestamp(n.came)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
    cross join lateral (
        select l.differed_at is null as wanted from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        order by l.day desc
        limit 1) l
    where l.wanted;
end $$;
comment on function note_differences is
    'Notes that a request came with the id of these rows and other content, for each the first; returns the places of rows '
    'that somebody else holds.';

-- 5. Debts -----------------------------------------------------------------------------------------------

-- While a message is unacked nothing is lost: the broker delivers it again, and it is answered from its row. If the ack does
-- not wait for the receipts, the row notes them as owed (`owed`) before the message is acked. A sweep sends what rows owe, and
-- settles the debt when the broker has confirmed it. So no receipt is lost if a process dies in between; one may come twice.
--
-- The lists may be long; `not in (select ...)` uses a hash table to look up each entry.
create function merge_owed(have jsonb, more jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select case
        when have is null then more
        when more is null or more = '[]' then have
        else have || coalesce((select jsonb_agg(r) from jsonb_array_elements(more) r
                               where r not in (select h from jsonb_array_elements(have) h)), '[]')
    end $$;
comment on function merge_owed is 'Replies of both lists, each once, in order; null owes nothing.';

create function unpaid(have jsonb, paid jsonb) returns jsonb
    language sql immutable parallel safe
    as $$
    select jsonb_agg(r order by place)
    from jsonb_array_elements(have) with ordinality h (r, place)
    where r not in (select p from jsonb_array_elements(paid) p) $$;
comment on function unpaid is 'Replies of the first list that are not in the second; null where none is left.';

create function note_debts(p_tenants text[], p_push_ids text[], p_users text[], p_owed jsonb[])
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    done bigint[];
begin
    with locked as materialized (
        select l.day, n.*
        from rows from (unnest(p_tenants, p_push_ids, p_users, p_owed)) with ordinality
            as n (tenant, push_id, user_id, owed, ord)
        cross join lateral (
            select l.day from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            for update skip locked) l),
    noted as (
        update delivery_log l set owed = merge_owed(l.owed, n.owed)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        returning n.ord)
    select array_agg(distinct n.ord) into done from noted n;
    if cardinality(done) >= cardinality(p_push_ids) then
        return;
    end if;
    return query
    select n.ord
    from rows from (unnest(p_tenants, p_push_ids, p_users)) with ordinality as n (tenant, push_id, user_id, ord)
    where n.ord <> all (coalesce(done, '{}'))
      and exists (
        select from delivery_log l
        where l.day >= first
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C");
end $$;
comment on function note_debts is
    'Adds these replies to what the rows owe, idempotent; returns the places of rows that somebody else holds.';

create function settle_debts(p_tenants text[], p_push_ids text[], p_users text[], p_paid jsonb[])
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select since from log_day);
    last date := (select day from log_day);
    done bigint := 0;
    more bigint;
begin
    -- Nearly all debts are of the newest days; only what is not found there is worth a look at every partition.
    loop
        with locked as materialized (
            select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_paid) as n (tenant, push_id, user_id, paid)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day <= last
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C"
                  and (l.owed is not null)::int = 1
                order by l.day
                for update skip locked) l)
        update delivery_log l set owed = unpaid(l.owed, n.paid)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
        get diagnostics more = row_count;
        done := done + more;
        exit when done >= cardinality(p_push_ids);
        if first = '-infinity' then
            -- Whatever owes one of these replies all the same is held by somebody else.
            return query
            select n.ord
            from rows from (unnest(p_tenants, p_push_ids, p_users, p_paid)) with ordinality
                as n (tenant, push_id, user_id, paid, ord)
            where exists (
                select from delivery_log l
                where l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C"
                  and (l.owed = n.paid or (n.paid <> '[]' and l.owed @> n.paid)));
            return;
        end if;
        last := first - 1;
        first := '-infinity';
    end loop;
end $$;
comment on function settle_debts is
    'These replies are paid; a row with no others owes nothing any more. Of whatever day, idempotent; returns the '
    'places of rows that somebody else holds.';

create function owing_rows(p_limit integer, p_bytes bigint) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
begin
    return query
    select (o.log).* from (
        select l as log,
               sum(pg_column_size(l.owed)) over (order by l.taken_at rows between unbounded preceding and 1 preceding) as before
        from (
            select * from delivery_log l
            where l.final and l.owed is not null
            order by l.taken_at
            limit p_limit
            -- What somebody else holds could be paid and not settled, and would be paid again.
            for share of l skip locked) l) o
    where coalesce(o.before, 0) < p_bytes;
end $$;
comment on function owing_rows(integer, bigint) is
    'Final rows that owe a receipt, and that nobody else holds, the oldest first: at most p_limit, and no more once they '
    'owe so many bytes.';

-- A fallback is a debt, too: of a row whose push is unproven when its time has come. Whoever sweeps claims it in the row,
-- publishes it, and notes it in the row. So none is lost if a process dies in between, and only then may one come twice.
create function cancel_fallbacks(p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
    returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.final and l.fallback_due is not null
            for update skip locked) l)
    update delivery_log l set fallback_due = null, payload = case when l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function cancel_fallbacks is
    'The fallbacks of those of these rows that are final, and that nobody else holds, are not published any more; returns them.';

create function cancel_fallbacks_of_key(
    p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select distinct l.push_id, l.user_id, l.tenant, l.day
        from unnest(p_tenants, p_users, p_collapse_keys, p_positions) as n (tenant, user_id, collapse_key, position)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
            where l.fallback_due is not null and l.final
              and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
              and l.tenant = n.tenant collate "C" and (n.position is null or l.position < n.position)
            offset 0) l
        order by 1, 2, 3, 4) k;
    if days is not null then
        perform cancel_fallbacks(days, tenants, push_ids, users);
    end if;
end $$;
comment on function cancel_fallbacks_of_key is
    'The fallbacks of final rows with these collapse keys are not published any more: of those of a lower position, or of all '
    'where that is null.';

create function claim_fallbacks(p_node text, p_boot text, p_limit integer, p_bytes bigint)
    returns table (routing_key text, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    right_now timestamptz := clock_timestamp();
    steady boolean;
begin
    -- As end_dead_rows judges: only who holds its own name, and has seen the database answer all the time. After an outage
    -- others must have time to write the proofs that have come meanwhile, and to say that they live.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_node and n.boot = p_boot;
    if not coalesce(steady, false) then
        return;
    end if;
    return query
    with due as materialized (
        select l.day, l.push_id, l.user_id, l.tenant, l.fallback_due,
               coalesce(octet_length(l.payload), (
                   select octet_length(c.payload) from push_content c where c.day = l.day and c.id = l.content), 0) as bytes
        from delivery_log l
        -- The row of a proof that came in time is written within a second.
        where l.fallback_due <= right_now - interval '1 second'
          -- Who wrote the row, and lives, may know of a proof that it does not say yet.
          and (l.boot = p_boot or l.fallback_due <= right_now - interval '10 seconds'
               or not exists (
                   select from node n where n.boot = l.boot and n.seen_at > right_now - interval '5 seconds'))
          and (l.fallback_claim is null or l.fallback_claim = p_boot
               or not exists (
                   select from node n
                   where n.boot = l.fallback_claim and n.seen_at > right_now - interval '5 seconds'))
        order by l.fallback_due
        limit p_limit
        for update of l skip locked),
    few as materialized (
        select f.day, f.push_id, f.user_id, f.tenant
        from (
            select d.*, sum(d.bytes) over (order by d.fallback_due rows between unbounded preceding and 1 preceding) as before
            from due d) f
        where coalesce(f.before, 0) < p_bytes),
    claimed as (
        update delivery_log l set fallback_claim = p_boot
        from few n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
        returning l)
    select (c.l).fallback_key, whole(c.l) from claimed c;
end $$;
comment on function claim_fallbacks is
    'Claims fallbacks that are due, the earliest first, for this boot, which holds this name and has lived for five seconds: '
    'those that no other live process has claimed, and that nobody else holds, at most p_limit, and no more once they have so many bytes of data. '
    'A row of another live process is left to that for ten seconds.';

create function note_fallbacks(p_boot text, p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.fallback_claim = p_boot
            for update skip locked) l)
    update delivery_log l set fallback_at = clock_timestamp(), fallback_due = null, fallback_claim = null,
        payload = case when l.expires_at is not null then l.payload end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_days, p_tenants, p_push_ids, p_users)) with ordinality as n (day, tenant, push_id, user_id, ord)
    cross join lateral (
        select from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and l.fallback_claim = p_boot
        offset 0) l;
end $$;
comment on function note_fallbacks is
    'The fallbacks of these rows, which this boot has claimed, are published; returns the places of rows that somebody else '
    'holds.';

create function release_fallbacks(
    p_boot text, p_days date[], p_tenants text[], p_push_ids text[], p_users text[], p_wait float8
)
    returns setof bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and l.fallback_claim = p_boot
            for update skip locked) l)
    update delivery_log l set fallback_claim = null, fallback_due = case when l.fallback_due is not null then greatest(
        l.fallback_due, clock_timestamp() + make_interval(secs => p_wait)) end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
    return query
    select n.ord
    from rows from (unnest(p_days, p_tenants, p_push_ids, p_users)) with ordinality as n (day, tenant, push_id, user_id, ord)
    cross join lateral (
        select from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and l.fallback_claim = p_boot
        offset 0) l;
end $$;
comment on function release_fallbacks is
    'This boot gives up its claim of these fallbacks, which it could not publish; returns the places of rows that somebody '
    'else holds.';

-- 6. Kept pushes -----------------------------------------------------------------------------------------

-- A kept push has a row that is `stored` until the push is proven or ends in another way. These rows are the mailbox of their
-- user; there is no other table. Every call reads and changes a bounded number of rows, however full a mailbox is.
create function mailbox_pages(
    p_users text[], p_sessions text[], p_after bigint[], p_until bigint[], p_seen bigint[], p_most integer[],
    p_bytes bigint[]
) returns table (ord bigint, place bigint, more boolean, log delivery_log)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    -- The rows come out of each partition's index in order; only those of one page are ever sorted.
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    right_now timestamptz := clock_timestamp();
begin
    return query
    select n.ord, page.position, page.looked >= n.most or page.bytes_before + page.bytes >= n.bytes, l.log
    from rows from (unnest(p_users, p_sessions, p_after, p_until, p_seen, p_most, p_bytes)) with ordinality
        as n (user_id, session, after, until, seen, most, bytes, ord)
    cross join lateral (
        select w.*,
               coalesce(sum(w.bytes) over (order by w.position groups between unbounded preceding and 1 preceding), 0)
                   as bytes_before,
               row_number() over (order by w.position desc) = 1 as is_last,
               count(*) over () as looked
        from (
            select k.*, case when k.wanted then coalesce(k.kept_bytes, 0) else 0 end as bytes
            from (
                (select l.day, l.push_id, l.user_id, l.tenant, l.position,
                        l.expires_at > right_now as wanted, coalesce(l.kept_bytes, octet_length(l.payload)) as kept_bytes
                 from delivery_log l
                 where l.day >= first
                   and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
                   and l.position > n.after and l.position <= n.until
                 order by l.position
                 -- What is looked at is bounded, wanted or not. Two nodes may have given one position to two rows: a
                 -- page never ends between them.
                 fetch first (n.most) rows with ties)
                union all
                (select l.day, l.push_id, l.user_id, l.tenant, l.position,
                        l.expires_at > right_now and (l.payload is not null or l.content is not null),
                        coalesce(l.kept_bytes, octet_length(l.payload))
                 from delivery_log l
                 where n.seen is not null
                   and l.user_id = n.user_id collate "C" and l.outcome in ('acked', 'received', 'written')
                   and l.expires_at is not null
                   and l.position > greatest(n.seen, n.after) and l.position <= n.until
                 order by l.position
                 fetch first (n.most) rows with ties)
                order by position
                fetch first (n.most) rows with ties) k) w) page
    left join lateral (
        select w as log
        from delivery_log l cross join lateral whole(l) w
        where page.wanted
          and l.day = page.day and l.push_id = page.push_id and l.user_id = page.user_id and l.tenant = page.tenant
          and not coalesce(w.excluded ? n.session, false)
        offset 0) l on true
    where page.bytes_before < n.bytes
    order by n.ord, page.position;
end $$;
comment on function mailbox_pages is
    'A page of each mailbox: stored rows with p_after < position <= p_until, where p_seen is not null also those '
    'after it that were delivered, without those that p_sessions does not get. At most p_most are looked at, and no '
    'more once they have p_bytes. `place` is how far that goes, also where `log` is null because a row is not '
    'wanted; `more` of the last one says that the page was cut.';

-- If several tenants have a push with this id, the earliest counts, so that the client misses nothing that came after it.
create function resume_points(p_users text[], p_push_ids text[])
    returns table (ord bigint, seen bigint, cut boolean)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select n.ord, last.seen, exists (
        select from delivery_log l
        where l.user_id = n.user_id collate "C" and l.position > last.seen
          and l.outcome = 'dropped' and l.reason = 'mailbox_full')
    from rows from (unnest(p_users, p_push_ids)) with ordinality as n (user_id, push_id, ord)
    cross join lateral (
        select min(of_tenant.seen) as seen from (
            select max(coalesce(l.position, (extract(epoch from l.taken_at) * 1000000)::bigint)) as seen
            from delivery_log l
            where l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
            group by l.tenant) of_tenant) last
    where last.seen is not null;
end $$;
comment on function resume_points is
    'The position of the push that a user has seen (its taken_at in microseconds where it was not kept), the earliest '
    'where several tenants have one of this id, and whether a newer one was dropped because the mailbox was full. '
    'Nothing where the log has no such row.';

create function dropped_since(p_users text[], p_positions bigint[]) returns table (ord bigint, dropped boolean)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select n.ord, exists (
        select from delivery_log l
        where l.user_id = n.user_id collate "C" and l.position > n.position
          and l.outcome = 'dropped' and l.reason = 'mailbox_full')
    from rows from (unnest(p_users, p_positions)) with ordinality as n (user_id, position, ord);
end $$;
comment on function dropped_since is
    'Whether something was dropped of these mailboxes, because they were full, that came after these positions.';

create function end_stored(
    p_days date[], p_tenants text[], p_push_ids text[], p_users text[], p_outcome text, p_reason text
) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    -- A row that another one has just ended is not stored any more. (Written so that the planner looks keys up in the
    -- primary key, not users in the index of their mailboxes.)
    with locked as materialized (
        select n.*
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
              and (l.outcome = 'stored')::int = 1
            for update skip locked) l)
    update delivery_log l set
        outcome = p_outcome, reason = p_reason, final = true, finished_at = clock_timestamp(),
        fallback_due = case when p_outcome not in ('recalled', 'superseded') then l.fallback_due end
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function end_stored is 'Ends those of these rows that are stored and that nobody else holds, and returns them.';

create function end_rows(
    p_days date[], p_tenants text[], p_push_ids text[], p_users text[], p_outcome text, p_reason text
) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    right_now timestamptz := clock_timestamp();
begin
    begin
        update delivery_log l set
            -- The best proof that is held counts: an acked push whose pong had come is received.
            outcome = case when l.proven_at is null then p_outcome else 'received' end,
            reason = case when l.proven_at is null then p_reason else 'not_acked' end,
            final = true, finished_at = right_now
        from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
    exception when others then
        -- What says something about the server, not about a row, is told.
        if sqlstate ~ '^(25|40|53|55|57|58)' then
            raise;
        end if;
        for place in 1 .. cardinality(p_days) loop
            begin
                update delivery_log l set
                    outcome = case when l.proven_at is null then p_outcome else 'received' end,
                    reason = case when l.proven_at is null then p_reason else 'not_acked' end,
                    final = true, finished_at = right_now
                where l.day = p_days[place]
                  and l.push_id = p_push_ids[place] collate "C" and l.user_id = p_users[place] collate "C"
                  and l.tenant = p_tenants[place] collate "C";
            exception when others then
                if sqlstate ~ '^(25|40|53|55|57|58)' then
                    raise;
                end if;
                raise warning 'push % for % can not be ended: % (%)', p_push_ids[place], p_users[place], sqlerrm, sqlstate;
            end;
        end loop;
    end;
    return query
    select l.* from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l.* from delivery_log l
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
          and l.final and l.finished_at = right_now
        offset 0) l;
end $$;
comment on function end_rows is
    'Ends these rows, which the caller has locked, and returns them. A row that can not be ended (a trigger of somebody''s '
    'raises an error) is left out, where it would keep all others from their end; bridge audit tells of what is left.';

create function expire_rows(p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    right_now timestamptz := clock_timestamp();
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    -- What is locked is just being ended or written by somebody else: it is left to them, and to the next sweep.
    with over as materialized (
        select l.day, l.tenant, l.push_id, l.user_id
        from delivery_log l
        where l.day >= first and l.outcome = 'stored' and l.expires_at <= right_now
        order by l.expires_at
        limit p_limit
        for update of l skip locked)
    select array_agg(o.day), array_agg(o.tenant), array_agg(o.push_id), array_agg(o.user_id)
    into days, tenants, push_ids, users from over o;
    if days is not null then
        return query select * from end_rows(days, tenants, push_ids, users, 'expired', 'ttl');
    end if;
end $$;
comment on function expire_rows is 'Ends stored rows whose ttl has ended, the earliest first; returns them.';

create function overfull(p_users text[], p_pushes bigint, p_bytes bigint) returns table (user_id text, until bigint)
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    return query
    select n.user_id, k.position
    from unnest(p_users) as n (user_id)
    cross join lateral (
        select w.position
        from (
            select l.position, row_number() over newest as pushes,
                   sum(coalesce(l.kept_bytes, octet_length(l.payload))) over newest as bytes
            from delivery_log l
            where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
            window newest as (order by l.position desc rows unbounded preceding)) w
        where w.pushes > p_pushes or w.bytes > p_bytes
        -- Read from the newest on, and no further than to the first that is too many.
        limit 1) k;
end $$;
comment on function overfull is
    'Those of these users who have more than so many stored rows, or bytes in them, and up to which position they '
    'must go.';

create function trim_stored(p_users text[], p_until bigint[], p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id
        from unnest(p_users, p_until) as n (user_id, until)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id
            from delivery_log l
            where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
              and l.position <= n.until
            order by l.position
            limit p_limit) l
        limit p_limit) k;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'dropped', 'mailbox_full');
    end if;
end $$;
comment on function trim_stored is
    'Ends stored rows of these users up to these positions, the oldest of each first, at most p_limit in all.';

create function users_with_mail(p_after text, p_limit integer) returns setof text
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    here text := p_after;
begin
    -- From one user to the next: one look into each partition's index, however much is in a mailbox.
    for i in 1 .. p_limit loop
        select l.user_id into here from delivery_log l
        where l.day >= first and l.outcome = 'stored' and l.user_id > here collate "C"
        order by l.user_id
        limit 1;
        exit when not found;
        return next here;
    end loop;
end $$;
comment on function users_with_mail is 'The next users, in the order of their ids, for whom something is stored.';

create function supersede_rows(
    p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[], p_limit integer
) returns table (held boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    perform cancel_fallbacks_of_key(p_tenants, p_users, p_collapse_keys, p_positions);
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select distinct l.* from unnest(p_tenants, p_users, p_collapse_keys, p_positions)
            as n (tenant, user_id, collapse_key, position)
        cross join lateral (
            select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
            where l.day >= first and l.outcome = 'stored'
              and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
              and l.tenant = n.tenant collate "C" and l.position < n.position
            limit p_limit) l
        limit p_limit) k;
    if days is null then
        return;
    end if;
    return query select false, e from end_stored(days, tenants, push_ids, users, 'superseded', 'collapsed') e;
    return query
    select true, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and (l.outcome = 'stored')::int = 1
        offset 0) l;
end $$;
comment on function supersede_rows(text[], text[], text[], bigint[], integer) is
    'Ends stored rows of lower positions with the same tenant, user and key, at most p_limit; of those that somebody else '
    'holds it tells.';

-- 7. Recalls ---------------------------------------------------------------------------------------------

-- The data of a recalled push is deleted even if it was delivered: a client that resumes must not get it.
create function forget_data(p_days date[], p_tenants text[], p_push_ids text[], p_users text[])
    returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    with locked as materialized (
        select n.*
        from (
            select * from unnest(p_days, p_tenants, p_push_ids, p_users) as n (day, tenant, push_id, user_id)
            order by push_id collate "C", user_id collate "C", tenant collate "C", day) n
        cross join lateral (
            select from delivery_log l
            where l.day = n.day
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            for update skip locked) l)
    update delivery_log l set
        meta = coalesce(l.meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)),
        payload = null, content = null
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C"
    returning l.*;
end $$;
comment on function forget_data is
    'Forgets the data that was kept of those of these rows that nobody else holds; returns them.';

create function erase_data(p_before timestamptz, p_limit integer) returns integer
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set jit to off
    as $$
declare
    erased integer;
    more integer;
    soon timestamptz := clock_timestamp() + interval '1 minute';
    needed bytea[];
    waiting integer;
begin
    perform set_config('bridge.erasing', 'on', true);
    with old as materialized (
        select l.day, l.push_id, l.user_id, l.tenant
        from delivery_log l
        where l.final and l.payload is not null and l.fallback_due is null
          and (case when l.outcome in ('acked', 'received', 'written') and l.expires_at > l.finished_at then l.expires_at
                    else l.finished_at end) < p_before
        order by (case when l.outcome in ('acked', 'received', 'written') and l.expires_at > l.finished_at
                       then l.expires_at else l.finished_at end)
        limit p_limit
        for update skip locked)
    update delivery_log l set payload = null
    from old o
    where l.day = o.day
      and l.push_id = o.push_id collate "C" and l.user_id = o.user_id collate "C" and l.tenant = o.tenant collate "C";
    get diagnostics erased = row_count;
    perform set_config('bridge.erasing', '', true);
    -- A fallback that can't be published is tried again every few seconds, for hours, and needs its data.
    select array_agg(f.content), count(*) into needed, waiting
    from (
        select l.content from delivery_log l where l.fallback_due < soon and l.content is not null limit 10001) f;
    if waiting > 10000 then
        return erased;
    end if;
    with old as materialized (
        select c.day, c.id from push_content c
        where c.payload is not null and c.until < p_before and (needed is null or c.id <> all (needed))
        order by c.until
        limit p_limit
        for update skip locked)
    update push_content c set payload = null from old o where c.day = o.day and c.id = o.id;
    get diagnostics more = row_count;
    return erased + more;
end $$;
comment on function erase_data is
    'Erases at most p_limit payloads of rows, and as many that rows share, that nobody has needed since then; returns how many.';

create function recall_push(p_tenant text, p_push_id text, p_from text, p_limit integer)
    returns table (reached text, more boolean, applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    days date[];
    users text[];
    stored boolean[];
    last text;
    looked bigint;
begin
    select max(l.user_id), count(*), array_agg(l.day), array_agg(l.user_id), array_agg(l.outcome = 'stored')
    into strict last, looked, days, users, stored
    from rows_of_push(p_tenant, p_push_id, p_from, p_limit) l;
    return query
    select last, looked >= p_limit, true, e from (
        select array_agg(n.day) as days, array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids,
               array_agg(n.user_id) as users
        from unnest(days, users, stored) as n (day, user_id, stored) where n.stored) s
    cross join lateral end_stored(s.days, s.tenants, s.push_ids, s.users, 'recalled', 'withdrawn') e;
    -- What was stored a moment ago may have been delivered since.
    return query
    select last, looked >= p_limit, false, f from (
        select array_agg(n.day) as days, array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids,
               array_agg(n.user_id) as users
        from unnest(days, users) as n (day, user_id)
        cross join lateral (
            select from delivery_log l
            where l.day = n.day and l.push_id = p_push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = p_tenant collate "C"
              and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null
              and (l.payload is not null or l.content is not null)
            offset 0) l) s
    cross join lateral forget_data(s.days, s.tenants, s.push_ids, s.users) f;
    return query
    select last, looked >= p_limit, false, f
    from (select array_agg(p_tenant) as tenants, array_agg(p_push_id) as push_ids from unnest(users)) s
    cross join lateral cancel_fallbacks(days, s.tenants, s.push_ids, users) f;
    return query
    select last, looked >= p_limit,
           case when (l.log).outcome <> 'stored'
                 and not ((l.log).outcome in ('acked', 'received', 'written') and (l.log).expires_at is not null
                          and ((l.log).payload is not null or (l.log).content is not null))
                 and not ((l.log).final and (l.log).fallback_due is not null) then false end,
           l.log
    from unnest(days, users) as n (day, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = p_push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = p_tenant collate "C" and l.xmin <> pg_current_xact_id()::xid
        offset 0) l;
    -- Rows that are gone by now leave no other line.
    return query select last, looked >= p_limit, null::boolean, null::delivery_log where looked > 0;
end $$;
comment on function recall_push is
    'A page of the rows of a push, by user from this one on: ends those that are stored as recalled, tells of the '
    'others, and forgets the data that was kept of those that were delivered. Applied is null for rows that somebody else '
    'holds. The last line says only how far it went.';

create function recall_stored(p_tenant text, p_user text, p_collapse_key text, p_limit integer)
    returns table (applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    perform cancel_fallbacks_of_key(array[p_tenant], array[p_user], array[p_collapse_key], null);
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(k.user_id)
    into strict days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = p_user collate "C" and l.collapse_key = p_collapse_key collate "C"
          and l.tenant = p_tenant collate "C"
        limit p_limit) k;
    if days is null then
        return;
    end if;
    return query select true, e from end_stored(days, tenants, push_ids, users, 'recalled', 'withdrawn') e;
    return query
    select null::boolean, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C" and (l.outcome = 'stored')::int = 1
        offset 0) l;
end $$;
comment on function recall_stored is
    'Ends stored rows of a user with a collapse key as recalled, at most p_limit; applied is null for those that somebody '
    'else holds.';

-- A recall by collapse key also returns delivered pushes whose data is still kept: a screen may show them.
create function recall_delivered(
    p_tenant text, p_user text, p_collapse_key text, p_after bigint, p_limit integer
) returns table (place bigint, more boolean, held boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    reached bigint;
    looked bigint;
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select count(*), max(k.position),
           array_agg(k.day) filter (where k.mine), array_agg(k.tenant) filter (where k.mine),
           array_agg(k.push_id) filter (where k.mine), array_agg(k.user_id) filter (where k.mine)
    into strict looked, reached, days, tenants, push_ids, users
    from (
        select l.day, l.tenant, l.push_id, l.user_id, l.position,
               l.collapse_key is not distinct from p_collapse_key collate "C" and l.tenant = p_tenant collate "C"
               and l.expires_at > clock_timestamp() as mine
        from delivery_log l
        where l.day >= first and l.user_id = p_user collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and l.position > p_after
        order by l.position
        fetch first (p_limit) rows with ties) k;
    if looked = 0 then
        return;
    end if;
    return query
    select reached, looked >= p_limit, false, f
    from (select) one
    left join lateral forget_data(days, tenants, push_ids, users) f on true;
    return query
    select reached, looked >= p_limit, true, l.log
    from unnest(days, tenants, push_ids, users) as n (day, tenant, push_id, user_id)
    cross join lateral (
        select l as log from delivery_log l
        where l.day = n.day and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C"
          and (l.payload is not null or l.content is not null) and l.xmin <> pg_current_xact_id()::xid
        offset 0) l;
end $$;
comment on function recall_delivered is
    'Looks at delivered rows of a user above a position, at most p_limit; of those with this collapse key whose ttl '
    'has not ended it forgets the data, and returns them, also those that somebody else holds. At least one line says how '
    'far it went.';

-- 8. Days and partitions ---------------------------------------------------------------------------------

-- A row goes to the partition of the log's day, and is dropped with it. The day is stored here and not read from a clock:
-- around midnight all writers must agree on the partitions in which a key may be, or a push could get two rows.
create table log_day (
    one        boolean primary key default true check (one),
    day        date not null,
    since      date not null check (since < day),
    kept_since date not null
);
comment on table log_day is
    'One row: the day that new rows get, and the oldest days in which a row may be known. Changed by roll_day() only.';
comment on column log_day.one is 'Always true: there is one row.';
comment on column log_day.day is 'The partition that new rows go to. Never goes back, whatever the clock does.';
comment on column log_day.since is
    'New rows are looked for from this day on: the day before, or the oldest with a pending row.';
comment on column log_day.kept_since is
    'Rows that are asked for are looked for from this day on: since, or the oldest with a stored row.';

create function log_today() returns date
    language sql stable parallel safe
    as $$ select (clock_timestamp() at time zone 'UTC')::date $$;
comment on function log_today is 'The day by the database''s clock, in UTC.';

create function roll_day(today date default log_today()) returns date
    language plpgsql
    set search_path to public, pg_temp
    -- Writers queue behind this lock while it waits for those before it: give up early, it is called again soon.
    set lock_timeout to '1s'
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    have date := (select day from log_day);
    pending date;
    stored date;
begin
    if have is null or today > have then
        perform pg_advisory_xact_lock(7093848243014270977);
        -- Another node may have rolled it while this one waited; a fresh snapshot shows that.
        have := (select day from log_day);
        if have is null then
            perform make_partition(today);
            insert into log_day (day, since, kept_since) values (today, today - 1, today - 1);
            have := today;
        elsif today > have then
            perform make_partition(today);
            -- A row is never moved to an earlier day, so no day before those known until now can have one. One
            -- look into a partial index for each day, the oldest first: a million stored rows are not counted. (The
            -- bounds on node and expires_at hold for every row: they name the index.)
            select since, kept_since into strict pending, stored from log_day;
            while pending < have
                and not exists (
                    select from delivery_log l where l.day = pending and l.outcome = 'pending' and l.node >= '') loop
                pending := pending + 1;
            end loop;
            while stored < pending
                and not exists (
                    select from delivery_log l
                    where l.day = stored and l.outcome = 'stored' and l.expires_at > '-infinity') loop
                stored := stored + 1;
            end loop;
            update log_day set day = today, since = pending, kept_since = stored;
            have := today;
        end if;
    end if;
    return have;
end $$;
comment on function roll_day is
    'Moves the log on to this day (by default the clock''s) and returns the log''s day; never moves it back.';

-- A role that only writes rows may not make or drop partitions, so these two functions run as the owner of the log. They name
-- everything with its schema, and pg_temp comes last: so the caller can't substitute a table of its own.
create function make_partition(wanted date) returns boolean
    language plpgsql
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
declare
    parent text;
    name text;
    made boolean := false;
begin
    if wanted is null or not wanted between date '2000-01-01' and date '2199-12-31' then
        raise exception 'no day to make a partition of: %', wanted using errcode = 'invalid_parameter_value';
    end if;
    perform pg_advisory_xact_lock(7093848243014270978);
    -- The content first: whoever sees the partition of the rows finds that of their content.
    foreach parent in array array['push_content', 'delivery_log'] loop
        name := parent || '_' || to_char(wanted, 'YYYYMMDD');
        continue when exists (
            select from pg_inherits
            where inhrelid = to_regclass('public.' || name) and inhparent = to_regclass('public.' || parent));
        -- CREATE ... PARTITION OF would wait for every reader of the log, with all writers behind it; ATTACH does not.
        -- The check spares ATTACH its scan. Rows are updated in place (pending, then final), hence the room.
        execute format('create table public.%I (like public.%I including defaults including constraints including comments,
                        constraint day_check check (day = %L)) with (fillfactor = %s)',
                       name, parent, wanted, case parent when 'delivery_log' then 90 else 100 end);
        execute format('alter table public.%I attach partition public.%I for values in (%L)', parent, name, wanted);
        execute format('alter table public.%I drop constraint day_check', name);
        made := parent = 'delivery_log';
    end loop;
    return made;
end $$;
comment on function make_partition is
    'Makes the partitions of a day, of the rows and of their content, and returns true; false where they are there. '
    'Safe to call from several nodes.';

create function drop_partition(wanted date, retention_days integer) returns boolean
    language plpgsql
    security definer
    set search_path to pg_catalog, public, pg_temp
    set datestyle to 'ISO, YMD'
    -- It locks the whole log, and writers queue behind it while it waits for those before it: give up early.
    set lock_timeout to '200ms'
    as $$
declare
    parent text;
    name text;
begin
    if wanted is null or retention_days is null or retention_days < 0 then
        raise exception 'a day and a number of days are needed' using errcode = 'invalid_parameter_value';
    end if;
    if wanted >= (select least(l.day - retention_days, l.since) from public.log_day l) then
        raise exception 'the day % must be kept', wanted using errcode = 'invalid_parameter_value';
    end if;
    lock table only public.push_content, only public.delivery_log in access exclusive mode;
    -- With that nobody can make one of these true again.
    if exists (select from public.delivery_log l where l.day = wanted and l.outcome = 'pending')
        or exists (select from public.delivery_log l where l.day = wanted and l.outcome = 'stored')
        or exists (select from public.delivery_log l where l.day = wanted and l.final and l.owed is not null)
        or exists (select from public.delivery_log l where l.day = wanted and l.fallback_due is not null)
    then
        return false;
    end if;
    foreach parent in array array['push_content', 'delivery_log'] loop
        name := parent || '_' || to_char(wanted, 'YYYYMMDD');
        -- A partition that has its name and holds its day, and that nobody has begun to detach; nothing else.
        if exists (
            select from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhrelid = to_regclass('public.' || name) and i.inhparent = to_regclass('public.' || parent)
              and not i.inhdetachpending
              and pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES IN (%L)', wanted::text))
        then
            execute format('drop table public.%I', name);
        end if;
    end loop;
    return to_regclass('public.' || name) is null;
end $$;
comment on function drop_partition is
    'Drops the partitions of a day that is past its retention, for a role that does not own them; false where it has rows '
    'that are not final, or owe a receipt or a fallback, or where they are not partitions any more.';

-- `bridge db grant` gives this right to the role of a bridge.
revoke execute on function make_partition(date), drop_partition(date, integer) from public;

-- 9. Nodes -----------------------------------------------------------------------------------------------

create table node (
    name         text        primary key,
    boot         text        not null,
    claimed_at   timestamptz not null,
    seen_at      timestamptz not null,
    steady_since timestamptz not null,
    begun        bigint      not null default 0,
    with_row     bigint      not null default 0,
    on_their_way bigint      not null default 0,
    queue        text,
    known_until  timestamptz,
    taking       smallint[],
    version      text,
    stopping     text        collate "C",
    stopping_since timestamptz,
    ended_at timestamptz
);
comment on table node is 'The bridge processes that are alive, by the database''s time: one row per node name.';
comment on column node.name is 'The node''s name (BRIDGE_NODE).';
comment on column node.boot is 'The start of the process that holds the name.';
comment on column node.claimed_at is 'When this boot took the name.';
comment on column node.seen_at is 'When it last said that it lives; its lease runs out 5 seconds later.';
comment on column node.steady_since is
    'Since when it has said so without a pause of more than 3 seconds. Who was away itself must not call others dead.';
comment on column node.begun is 'Pushes that this boot has taken until seen_at, each counted once per user.';
comment on column node.with_row is 'Those of them whose first row was committed by then.';
comment on column node.on_their_way is 'Those of them that had no row yet; with with_row they must be all.';
comment on column node.queue is 'The queue at the broker on which it listens to other nodes; null while it has none.';
comment on column node.known_until is
    'It knows every process that had its name by then; null: it does not look for others. A node has no sessions before '
    'all living ones know it.';
comment on column node.taking is
    'The partitions of the requests that it takes (0 is the queue push.requests); null: it can take none now, or its '
    'program knows of no partitions.';
comment on column node.version is 'The version of its program; null for those that do not say it.';
comment on column node.stopping is
    'The boot that stops, or that somebody has asked to; null, or an earlier boot of this name: the process goes on.';
comment on column node.stopping_since is 'Since when that boot stops.';
comment on column node.ended_at is 'When another process last took the one of this name for dead and ended its sessions; null: none has.';

create function claim_node(p_name text, p_boot text, p_instead_of text) returns boolean
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into node values (p_name, p_boot, clock_timestamp(), clock_timestamp(), clock_timestamp())
    on conflict (name) do update set
        boot = excluded.boot, claimed_at = excluded.claimed_at, seen_at = excluded.seen_at,
        steady_since = excluded.steady_since, begun = 0, with_row = 0, on_their_way = 0
        where node.boot = p_instead_of;
    return found;
end $$;
comment on function claim_node is
    'Gives the name to this boot where nobody has it or this other boot; the caller has made sure that it is dead.';

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

create function end_dead_rows(p_name text, p_boot text, p_limit integer) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    right_now timestamptz := clock_timestamp();
    steady boolean;
    its_node text := '';
    its_boot text := '';
    room integer := p_limit;
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    -- Only the holder of its own name may judge. Of other names only those are dead whose lease ran out while
    -- this node saw the database answer all the time: after an outage all leases are old, and the first to
    -- come back must give the others as long as a lease lasts.
    select n.steady_since <= right_now - interval '5 seconds' and n.seen_at > right_now - interval '3 seconds'
        into steady from node n where n.name = p_name and n.boot = p_boot;
    if not found then
        return;
    end if;
    -- From one process to the next: what those that live have parked is not read.
    while room > 0 loop
        select l.node, l.boot into its_node, its_boot
        from delivery_log l
        where l.outcome = 'pending' and (l.node, l.boot) > (its_node, its_boot)
        order by l.node, l.boot
        limit 1;
        exit when not found;
        continue when case
            when its_node = p_name then its_boot = p_boot
            else not steady or exists (
                select from node n
                where n.name = its_node and n.boot = its_boot and n.seen_at > right_now - interval '5 seconds')
            end;
        with dead as materialized (
            select l.day, l.push_id, l.user_id, l.tenant
            from delivery_log l
            where l.outcome = 'pending' and l.node = its_node and l.boot = its_boot
            limit room
            for update of l skip locked)
        select array_agg(d.day), array_agg(d.tenant), array_agg(d.push_id), array_agg(d.user_id)
        into days, tenants, push_ids, users from dead d;
        if days is not null then
            return query select * from end_rows(days, tenants, push_ids, users, 'unknown', 'node_died');
            room := room - cardinality(days);
        end if;
    end loop;
end $$;
comment on function end_dead_rows is
    'Ends pending rows whose boot is dead, for the boot that holds this name; returns them.';

-- 10. Revocations --------------------------------------------------------------------------------------

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
    tokens text[] := '{}';
    token text;
begin
    if p_session is not null then
        -- Its other tokens, so that nobody has to learn them from its node, and if it has closed.
        tokens := array(
            select t.jti from session s, lateral (
                select s.jti union select jsonb_array_elements_text(s.former)) t (jti)
            where s.session = p_session collate "C" and t.jti is not null and t.jti is distinct from p_jti
            order by 1);
    end if;
    -- What is asked for comes last: whoever has read up to its mark has read the others.
    foreach token in array array_append(tokens, p_jti) loop
        update revocation_mark m set mark = m.mark + 1 returning m.mark, m.keep into strict its_mark, its_keep;
        -- Some node may accept longer tokens than the others.
        its_keep := coalesce(
            (select max(r.keep) from revocation_reader r join node n on n.boot = r.boot), its_keep);
        right_now := clock_timestamp();
        delete from revocation r
        where (p_user is not null and r.user_id = p_user collate "C" and r.before <= since)
           or (p_user is null and token is not null and r.jti = token collate "C"
               and r.session is not distinct from p_session collate "C")
           or (p_user is null and token is null and r.session = p_session collate "C" and r.jti is null);
        insert into revocation (mark, user_id, before, jti, session, revoked_at, kept_until)
        values (its_mark, p_user, since, token, p_session, right_now,
                greatest(right_now, since) + make_interval(secs => its_keep));
    end loop;
    return its_mark;
end $$;
comment on function revoke_tokens is
    'Commits a revocation, and of a session a row for each token that the ledger knows of it; returns the last mark.';

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
    -- Of a session also what its node has learned of it, which that node commits before it confirms.
    with meant as materialized (
        select v.mark, v.closed from revocation v where v.mark = p_mark
        union
        select o.mark, o.closed from revocation v join revocation o on o.session = v.session
        where v.mark = p_mark)
    select n.name, coalesce(r.mark >= greatest(p_mark, (select max(m.mark) from meant m)), false),
           (select coalesce(sum((m.closed ->> n.name)::integer), 0)::integer from meant m)
    from node n
    left join revocation_reader r on r.boot = n.boot
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

-- 11. Sessions -------------------------------------------------------------------------------------

create table session (
    session      text        collate "C" primary key,
    user_id      text        not null collate "C",
    node         text        not null collate "C",
    boot         text        not null collate "C",
    opened_at    timestamptz not null,
    closed_at    timestamptz,
    close_code   integer,
    close_reason text,
    mode         text        not null,
    address      text,
    user_agent   text,
    jti          text        collate "C",
    expires_at   timestamptz not null,
    unwanted     text,
    former       jsonb
) with (fillfactor = 90);
create index session_of_user on session (user_id, opened_at);
create index session_online on session (user_id) where closed_at is null;
create index session_opened on session (opened_at);
create index session_open on session (node, boot) where closed_at is null and node <> '';
create index session_unwanted on session (boot) where closed_at is null and unwanted is not null;
create index session_died on session (boot) where close_reason = 'node_died';
create index session_closed on session (closed_at) where closed_at is not null;
comment on table session is
    'The ledger: one row per WebSocket session. It is live while closed_at is null and its boot has its lease; views '
    'who_is_online and session_history say so.';
comment on column session.session is 'The id of the session, as its client was told it in the welcome.';
comment on column session.user_id is 'The user that its token names.';
comment on column session.node is 'The node that has it.';
comment on column session.boot is 'The start of that process.';
comment on column session.opened_at is 'When its handshake was granted. It was welcomed once this row was committed.';
comment on column session.closed_at is
    'Since when it gets no pushes; null: it is open, or its process has died and nobody has noticed yet.';
comment on column session.close_code is 'The close code (RFC 6455 7.4); null while it is open, and where its process died.';
comment on column session.close_reason is
    'Why: the reason that its client was told, client where it left by itself, node_died where its process died.';
comment on column session.mode is 'How its frames look: bridge.v1.json or bridge.bare; sse: those of the former, as server-sent events.';
comment on column session.address is 'The address of its client, as the bridge saw it; null where it is not known.';
comment on column session.user_agent is 'The User-Agent of its client, its first 400 characters; null where it sent none.';
comment on column session.jti is 'The id of its token, or of the last one that it was given; sha256: and a hash where the token has none.';
comment on column session.expires_at is 'When that token expires.';
comment on column session.unwanted is 'Why its node is asked to close it; null: nobody has asked.';
comment on column session.former is
    'The ids of the tokens that it had before a refresh, and that have not expired by then: an array; null: none.';

create function note_sessions(
    p_node text, p_boot text,
    p_sessions text[], p_users text[], p_opened float8[], p_modes text[], p_addresses text[], p_agents text[],
    p_jtis text[], p_issued float8[], p_expires float8[],
    p_refreshed text[], p_new_jtis text[], p_new_expires float8[], p_former text[],
    p_closed text[], p_closed_at float8[], p_codes integer[], p_reasons text[],
    p_most integer, p_refuse boolean
) returns table (its_session text, word text)
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    limited boolean := p_most > 0 and cardinality(p_sessions) > 0;
begin
    -- Nobody gives the name to another process meanwhile.
    perform 1 from node n where n.name = p_node and n.boot = p_boot for share;
    if not found then
        return query select ''::text, 'ended'::text;
        return;
    end if;
    if limited then
        -- Two nodes must not both see room for the last session of a user.
        perform pg_advisory_xact_lock(hashtextextended('bridge session ' || u.user_id, 0))
        from (select distinct o.user_id from unnest(p_users) as o (user_id) order by 1) u;
    end if;
    if cardinality(p_sessions) > 0 then
        insert into session (
            session, user_id, node, boot, opened_at, mode, address, user_agent, jti, expires_at)
        select o.session, o.user_id, p_node, p_boot, to_timestamp(o.opened), o.mode, nullif(o.address, ''),
            nullif(o.agent, ''), nullif(o.jti, ''), to_timestamp(o.expires)
        from unnest(p_sessions, p_users, p_opened, p_modes, p_addresses, p_agents, p_jtis, p_expires)
            as o (session, user_id, opened, mode, address, agent, jti, expires)
        on conflict do nothing;
        -- Revocations that are committed by now, and that this process may not have read.
        return query
        select o.session, 'revoked'::text
        from unnest(p_sessions, p_users, p_jtis, p_issued) as o (session, user_id, jti, issued)
        where exists (
                select from revocation r
                where r.user_id = o.user_id collate "C" and (o.issued is null or to_timestamp(o.issued) < r.before))
           or exists (select from revocation r where r.jti = o.jti collate "C");
    end if;
    if cardinality(p_refreshed) > 0 then
        update session s set
            jti = nullif(f.jti, ''), expires_at = to_timestamp(f.expires), former = f.former::jsonb
        from unnest(p_refreshed, p_new_jtis, p_new_expires, p_former) as f (session, jti, expires, former)
        where s.session = f.session collate "C";
    end if;
    if cardinality(p_closed) > 0 then
        update session s set
            closed_at = greatest(s.opened_at, to_timestamp(c.closed)), close_code = c.code, close_reason = c.reason
        from unnest(p_closed, p_closed_at, p_codes, p_reasons) as c (session, closed, code, reason)
        where s.session = c.session collate "C"
          -- Others took this process for dead, and it was not: what it says itself is true.
          and (s.closed_at is null or (s.close_reason = 'node_died' and s.boot = p_boot collate "C"));
    end if;
    if limited then
        -- Who is one too many: the oldest are not wanted any more, or the newest are refused.
        return query
        with live as materialized (
            select s.session,
                row_number() over (partition by s.user_id order by s.opened_at, s.session) as nth,
                count(*) over (partition by s.user_id) as n
            from session s
            where s.user_id = any (p_users) and s.closed_at is null and s.unwanted is null
              and (s.boot = p_boot collate "C" or exists (
                  select from node n where n.boot = s.boot
                  -- Nobody is refused because of a process that may be dead; that its sessions are replaced harms nobody.
                  and (not p_refuse or n.seen_at > clock_timestamp() - interval '5 seconds')))),
        oldest as (
            update session s set unwanted = 'replaced' from live l
            where not p_refuse and s.session = l.session and l.nth <= l.n - p_most)
        select l.session, 'over'::text from live l
        where p_refuse and l.nth > p_most and l.session = any (p_sessions);
    end if;
    return query
    select s.session, s.unwanted from session s
    where s.boot = p_boot collate "C" and s.closed_at is null and s.unwanted is not null
    union all
    select s.session, 'vanished' from session s
    where s.boot = p_boot collate "C" and s.close_reason = 'node_died';
end $$;
comment on function note_sessions(
    text, text, text[], text[], float8[], text[], text[], text[], text[], float8[], float8[],
    text[], text[], float8[], text[], text[], float8[], integer[], text[], integer, boolean) is
    'Writes which sessions of a process have opened, have a new token, and have closed; says which of them must close, and '
    'why: also where a user has more than p_most (0: any number), and where others took the process for dead. The word '
    'ended, of no session: this process does not have its name any more, and nothing was written.';

create function end_dead_sessions(p_name text, p_boot text, p_limit integer) returns setof session
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
            for update of s skip locked),
        gone as (
            update session s set closed_at = greatest(s.opened_at, died), close_reason = 'node_died'
            from dead d where s.session = d.session
            returning s.*),
        left_behind as (
            update subscription u set left_at = g.closed_at
            from gone g where u.session = g.session and u.left_at is null)
        select * from gone;
        get diagnostics ended = row_count;
        room := room - ended;
    end loop;
end $$;
comment on function end_dead_sessions is
    'Closes sessions whose process is dead, for the process that holds this name, as of when it last said that it lives; '
    'returns them.';

create function unwant_sessions(p_user text, p_session text, p_word text) returns setof session
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
comment on function unwant_sessions is
    'Asks the nodes to close the live sessions of a user, or one session; returns these. Each node does so within a second.';

create function drop_old_sessions(p_before timestamptz, p_limit integer) returns bigint
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
declare
    dropped bigint;
begin
    with old as materialized (
        select s.session from session s where s.closed_at < p_before order by s.closed_at limit p_limit)
    delete from session s using old where s.session = old.session;
    get diagnostics dropped = row_count;
    return dropped;
end $$;
comment on function drop_old_sessions is 'Deletes at most so many sessions that closed before a time; returns how many.';

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

create table subscription (
    topic    text        not null collate "C",
    user_id  text        not null collate "C",
    session  text        not null collate "C",
    since    timestamptz not null default clock_timestamp(),
    left_at  timestamptz,
    primary key (topic, user_id, session)
);
create index subscription_of_session on subscription (session);
create index subscription_left on subscription (topic, user_id, left_at) where left_at is not null;
comment on table subscription is
    'Who is subscribed to which topic: one row per topic and session. Rows of sessions that have closed stay for a while, '
    'since pushes with a ttl are kept for their users.';
comment on column subscription.topic is 'The topic.';
comment on column subscription.user_id is 'The user of the session.';
comment on column subscription.session is 'The session, as in table session.';
comment on column subscription.since is 'When it was subscribed.';
comment on column subscription.left_at is 'When the session closed without ending the subscription; null: it is open.';

create function note_subscriptions(
    p_sessions text[], p_users text[], p_topics text[], p_on boolean[], p_closed text[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    if cardinality(p_topics) > 0 then
        -- Another node may write of the same users: rows are locked in one order.
        perform 1 from subscription u
        join unnest(p_users, p_topics) as n (user_id, topic)
          on u.topic = n.topic collate "C" and u.user_id = n.user_id collate "C"
        order by u.topic, u.user_id, u.session
        for update of u;
        -- What the session itself ends, and what earlier ones of its user have left behind.
        delete from subscription u using unnest(p_sessions, p_users, p_topics, p_on) as n (session, user_id, topic, subscribed)
        where u.topic = n.topic collate "C" and u.user_id = n.user_id collate "C"
          and (u.left_at is not null or (not n.subscribed and u.session = n.session collate "C"));
        insert into subscription (topic, user_id, session, left_at)
        select n.topic, n.user_id, n.session, s.closed_at
        from unnest(p_sessions, p_users, p_topics, p_on) as n (session, user_id, topic, subscribed)
        join session s on s.session = n.session collate "C"
        where n.subscribed
        on conflict do nothing;
    end if;
    update subscription u set left_at = s.closed_at
    from session s
    where u.session = any (p_closed) and u.left_at is null and s.session = u.session;
end $$;
comment on function note_subscriptions is
    'Writes which sessions are subscribed to which topics, or are not any more, and that sessions have closed: after '
    'note_sessions(), in its transaction.';

create function topic_subscribers(p_topic text, p_after text, p_boot text, p_within float8, p_limit integer)
    returns table (its_user text, its_boots text[])
    language plpgsql stable
    set search_path to public, pg_temp
    -- One plan, made while a table is empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    (select u.user_id, array_agg(distinct h.boot)
     from subscription u
     -- By its key alone: while the table is small an index of all open sessions looks as cheap.
     cross join lateral (select s.boot, s.closed_at from session s where s.session = u.session offset 0) h
     where u.topic = p_topic collate "C" and u.user_id > p_after collate "C" and u.left_at is null
       and h.closed_at is null and h.boot <> p_boot collate "C"
     group by u.user_id order by u.user_id limit p_limit)
    union all
    (select distinct u.user_id, array[]::text[]
     from subscription u
     where u.topic = p_topic collate "C" and u.user_id > p_after collate "C"
       and u.left_at > clock_timestamp() - make_interval(secs => p_within)
       and not exists (
           select from subscription v
           where v.topic = u.topic and v.user_id = u.user_id and v.left_at is null
           offset 0)
     order by u.user_id limit p_limit)
    order by 1 limit p_limit;
end $$;
comment on function topic_subscribers is
    'Users with sessions at other processes that are subscribed to a topic, and the boots of those; with no boots, users whose '
    'last subscribed session closed within so many seconds.';

create table retained (
    topic        text        not null collate "C",
    event        text        not null collate "C",
    position     bigint      not null,
    tenant       text        not null collate "C",
    push_id      text        not null collate "C",
    day          date        not null,
    published_at timestamptz not null,
    until        timestamptz not null,
    confirm      smallint    not null,
    encoding     text        not null,
    data         bytea       not null,
    ttl          float8      not null,
    ack_within   float8      not null,
    first_device boolean     not null,
    excluded     jsonb,
    meta         jsonb,
    app_id       text        not null,
    traceparent  text        not null,
    fingerprint  integer     not null,
    primary key (topic, event)
);
create index retained_order on retained (topic, position);
create index retained_push on retained (push_id, tenant);
create index retained_until on retained (until);
comment on table retained is
    'The last values of topics: for each topic and event the newest push that said retain. Who subscribes gets them first.';
comment on column retained.topic is 'The topic.';
comment on column retained.event is 'The event name of the push.';
comment on column retained.position is 'When it was taken, in microseconds since 1970: of two the higher one stays.';
comment on column retained.tenant is 'The tenant of the push; empty where it named none.';
comment on column retained.push_id is 'The id of the push.';
comment on column retained.day is 'The log''s day when it was first kept: no row of the push is older.';
comment on column retained.published_at is 'When it was published.';
comment on column retained.until is 'When it is no last value any more: its ttl is over, or without one its row would be dropped.';
comment on column retained.confirm is 'The proof that was asked for: 1 written, 2 received, 3 acked.';
comment on column retained.encoding is 'What data is: json, text or bytes.';
comment on column retained.data is 'Its data.';
comment on column retained.ttl is 'Its ttl in seconds; 0: it is not kept for users.';
comment on column retained.ack_within is 'The seconds that it gives the application to ack; 0 where it does not say.';
comment on column retained.first_device is 'Whether the first ack takes it back from the other sessions of a user.';
comment on column retained.excluded is 'The sessions that do not get it; null where it names none.';
comment on column retained.meta is 'The object meta of the request; null where it had none.';
comment on column retained.app_id is 'The publisher, as its AMQP property app_id says; empty where it does not.';
comment on column retained.traceparent is 'W3C trace context of the request; empty where it had none.';
comment on column retained.fingerprint is 'As in delivery_log; 0: not known.';

create function last_values(p_topics text[], p_users text[], p_afters bigint[], p_rows integer, p_bytes integer)
    returns table (ord bigint, value retained, known boolean, taken_back boolean, others bigint)
    language plpgsql stable
    set search_path to public, pg_temp
    -- One plan, made while a table is empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_material to off
    set jit to off
    as $$
begin
    return query
    select a.ord, t.value, u.rows > 0, u.acked, v.found - v.nth
    from rows from (unnest(p_topics, p_users, p_afters)) with ordinality as a (topic, user_id, after, ord)
    cross join lateral (
        -- Which they are, by the sizes alone: a whole value would be fetched and thrown away.
        select w.row, row_number() over (order by w.position) as nth, count(*) over () as found,
            sum(w.bytes) over (order by w.position) - w.bytes as before
        from (
            select r.ctid as row, r.position, octet_length(r.data) as bytes from retained r
            where r.topic = a.topic collate "C" and r.position > a.after and r.until > clock_timestamp()
            order by r.position limit p_rows + 1) w) v
    cross join lateral (select r as value from retained r where r.ctid = v.row offset 0) t
    cross join lateral (
        select count(*) as rows, coalesce(bool_or(l.first_device and l.outcome = 'acked'), false) as acked
        from delivery_log l
        where l.day >= (t.value).day and l.push_id = (t.value).push_id collate "C"
          and l.user_id = a.user_id collate "C" and l.tenant = (t.value).tenant collate "C") u
    where v.nth <= p_rows and (v.nth = 1 or v.before < p_bytes)
    order by a.ord, v.nth;
end $$;
comment on function last_values is
    'For each (topic, user, position): the last values of the topic after that position, a page of them; whether the user has '
    'a row of each, whether that says that its first device has acked it, and how many others after it there are at least.';

create view who_is_online as
select s.user_id, s.session, s.node, s.opened_at, s.mode, s.address, s.user_agent, s.expires_at
from session s
join node n on n.name = s.node and n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds'
where s.closed_at is null;
comment on view who_is_online is
    'The live sessions: open, and their process has said within the last 5 seconds that it lives. One row per session.';
comment on column who_is_online.user_id is 'The user; several rows where they have several sessions.';
comment on column who_is_online.session is 'As in session.';
comment on column who_is_online.node is 'As in session.';
comment on column who_is_online.opened_at is 'As in session.';
comment on column who_is_online.mode is 'As in session.';
comment on column who_is_online.address is 'As in session.';
comment on column who_is_online.user_agent is 'As in session.';
comment on column who_is_online.expires_at is 'As in session.';

create view session_history as
select
    s.user_id, s.opened_at, s.closed_at, extract(epoch from s.closed_at - s.opened_at)::float8 as seconds,
    s.close_code, s.close_reason, s.session, s.node, s.mode, s.address, s.user_agent
from session s;
comment on view session_history is
    'Every session of the retention, open ones too. Ask for one user_id, or for a range of opened_at.';
comment on column session_history.user_id is 'The user.';
comment on column session_history.opened_at is 'As in session.';
comment on column session_history.closed_at is 'As in session.';
comment on column session_history.seconds is 'How long it was open; null while it is.';
comment on column session_history.close_code is 'As in session.';
comment on column session_history.close_reason is 'As in session.';
comment on column session_history.session is 'As in session.';
comment on column session_history.node is 'As in session.';
comment on column session_history.mode is 'As in session.';
comment on column session_history.address is 'As in session.';
comment on column session_history.user_agent is 'As in session.';

-- 12. Audit ----------------------------------------------------------------------------------------------

-- A log can't show by itself that nothing is missing. So inserted rows are counted in the transaction that inserts them, and
-- each process writes to `node` how many pushes it has taken. `bridge audit` compares these counts with the log.
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
comment on function tally_rows is 'Counts the rows that a statement has inserted.';
create trigger tally_rows after insert on delivery_log referencing new table as inserted
    for each statement execute function tally_rows();

-- The counts of a process are kept when the next one takes its name. Otherwise nobody could see that a push was lost.
create table past_boot (
    boot         text        not null primary key,
    name         text        not null,
    seen_at      timestamptz not null,
    begun        bigint      not null,
    with_row     bigint      not null,
    on_their_way bigint      not null
);
comment on table past_boot is
    'Processes that have ended, with what they last said of the pushes that they had taken. For bridge audit.';
comment on column past_boot.boot is 'As in node.';
comment on column past_boot.name is 'As in node.';
comment on column past_boot.seen_at is 'When it last said so, at most a second before its end while the database answered.';
comment on column past_boot.begun is 'As in node.';
comment on column past_boot.with_row is 'As in node.';
comment on column past_boot.on_their_way is 'As in node.';

create function keep_boot() returns trigger
    language plpgsql
    set search_path to public, pg_temp
    as $$
begin
    insert into past_boot values (old.boot, old.name, old.seen_at, old.begun, old.with_row, old.on_their_way)
    on conflict do nothing;
    return null;
end $$;
comment on function keep_boot is 'Keeps what a process has said when its name goes to another, or is given back.';
create trigger keep_boot_replaced after update on node for each row when (old.boot <> new.boot) execute function keep_boot();
create trigger keep_boot_ended after delete on node for each row execute function keep_boot();

-- Which nodes are gone that had a session of a revocation. It asks past_boot, so it is here.
create function revocation_gone(p_mark bigint) returns setof text
    language sql stable
    set search_path to public, pg_temp
    as $$
    with boots as materialized (
        -- Alive perhaps, and cut off.
        select n.name as node, n.boot from node n where n.seen_at <= clock_timestamp() - interval '5 seconds'
        union
        select p.name, p.boot from past_boot p
        where p.seen_at > (select v.revoked_at from revocation v where v.mark = p_mark) - interval '1 minute')
    select distinct b.node
    from revocation v, boots b, lateral (
        select s.user_id, s.jti, s.session from session s
        where s.closed_at is null and s.node = b.node collate "C" and s.boot = b.boot collate "C"
        union all
        select s.user_id, s.jti, s.session from session s
        where s.close_reason = 'node_died' and s.boot = b.boot collate "C"
          and s.closed_at > v.revoked_at - interval '1 minute') s
    where v.mark = p_mark
      and (s.user_id = v.user_id or s.jti = v.jti or s.session = v.session)
    order by 1;
$$;
comment on function revocation_gone is
    'The nodes that are not alive, and had a session that this revocation may mean, open within the last minute before it.';

-- 13. Counts -------------------------------------------------------------------------------------------

-- Counting rows when somebody asks reads all of them. So they are counted once for each hour, in the background, and again when
-- something has changed: an outcome may come days later. What is counted:
--
--   delivery_log ──> hour_count        one day of the log, one hour: by tenant, publisher, event, outcome and reason
--                        └──> delivery_count    the same for hours and for days (UTC), with the latencies of views
--
-- An hour is counted again where rows were added (the tally then has more than were counted), or changed (a trigger notes the
-- hour). The mark of a change is deleted first, and the rows are read by a later statement, with a later snapshot: so what has
-- left no mark was seen. Everything about an hour is one transaction.
create table changed_hour (
    day  date        not null,
    hour timestamptz not null
);
comment on table changed_hour is
    'Hours in which rows were changed or deleted since they were counted, one row for each statement. Its writers do not wait for '
    'each other, since they only add rows.';
comment on column changed_hour.day is 'The day of those rows.';
comment on column changed_hour.hour is 'The hour (UTC) in which they were taken.';

create function note_changed_hours() returns trigger
    language plpgsql
    -- For a role that was granted its rights before there was this table.
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
begin
    -- No count depends on data.
    if current_setting('bridge.erasing', true) = 'on' then
        return null;
    end if;
    insert into public.changed_hour (day, hour)
    select distinct c.day, date_trunc('hour', c.taken_at, 'UTC') from changed c;
    return null;
end $$;
comment on function note_changed_hours is 'Notes the hours of rows that a statement has changed or deleted.';
create trigger note_updated_hours after update on delivery_log referencing new table as changed
    for each statement execute function note_changed_hours();
create trigger note_deleted_hours after delete on delivery_log referencing old table as changed
    for each statement execute function note_changed_hours();

create table counted_hour (
    day        date        not null,
    hour       timestamptz not null,
    rows       bigint      not null,
    counted_at timestamptz not null,
    primary key (day, hour)
);
comment on table counted_hour is 'The hours that were counted.';
comment on column counted_hour.day is 'The day of the log.';
comment on column counted_hour.hour is 'The hour (UTC) in which the pushes were taken.';
comment on column counted_hour.rows is 'The rows that the tally had for it then: where it has others now, it is counted again.';
comment on column counted_hour.counted_at is 'When it was counted last.';

create table hour_count (
    day     date        not null,
    hour    timestamptz not null,
    tenant  text        not null collate "C",
    app_id  text        not null,
    event   text        not null,
    outcome text        not null,
    reason  text        not null,
    pushes  bigint      not null,
    users   bigint      not null,
    handed  bigint      not null,
    proven  bigint      not null,
    taking  integer[],
    writing integer[],
    proving integer[],
    proof   integer[]
);
create index hour_count_hour on hour_count (hour, day);
comment on table hour_count is
    'Rows of the delivery log, counted for each hour and day of the log. Latencies are histograms: pairs of a bucket and its rows. '
    'Bucket n is from 0.1 ms * 1.05^n to 5 % above that, so that histograms of several hours can be added.';
comment on column hour_count.day is 'The day of the log: it stays when the rows of that day are dropped.';
comment on column hour_count.hour is 'The hour (UTC) in which the pushes were taken.';
comment on column hour_count.tenant is 'As in delivery.';
comment on column hour_count.app_id is 'As in delivery.';
comment on column hour_count.event is 'As in delivery.';
comment on column hour_count.outcome is 'As in delivery.';
comment on column hour_count.reason is 'As in delivery.';
comment on column hour_count.pushes is 'Rows.';
comment on column hour_count.users is 'Different users.';
comment on column hour_count.handed is 'Rows that were handed to a socket.';
comment on column hour_count.proven is 'Rows with a proof, late ones too.';
comment on column hour_count.taking is 'From published_at to taken_at; null where no row has it, as all histograms.';
comment on column hour_count.writing is 'From taken_at to written_at, of pushes without a ttl.';
comment on column hour_count.proving is 'From written_at to proven_at, where the push was handed over once, or has no ttl.';
comment on column hour_count.proof is 'As delivery.latency_ms.';

create table delivery_count (
    span        text        not null check (span in ('hour', 'day')),
    since       timestamptz not null,
    tenant      text        not null collate "C",
    app_id      text        not null,
    event       text        not null,
    outcome     text        not null,
    reason      text        not null,
    pushes      bigint      not null,
    users       bigint,
    handed      bigint      not null,
    proven      bigint      not null,
    taking_p50  float8, taking_p95  float8, taking_p99  float8,
    writing_p50 float8, writing_p95 float8, writing_p99 float8,
    proving_p50 float8, proving_p95 float8, proving_p99 float8,
    proof_p50   float8, proof_p95   float8, proof_p99   float8
);
create index delivery_count_since on delivery_count (span, since);
comment on table delivery_count is 'What views delivery_hourly and delivery_daily show, made of hour_count.';
comment on column delivery_count.span is 'hour or day.';
comment on column delivery_count.since is 'When it begins (UTC).';
comment on column delivery_count.tenant is 'As in delivery.';
comment on column delivery_count.app_id is 'As in delivery.';
comment on column delivery_count.event is 'As in delivery.';
comment on column delivery_count.outcome is 'As in delivery.';
comment on column delivery_count.reason is 'As in delivery.';
comment on column delivery_count.pushes is 'Rows.';
comment on column delivery_count.users is 'Of an hour its different users; null for a day.';
comment on column delivery_count.handed is 'As in hour_count.';
comment on column delivery_count.proven is 'As in hour_count.';
do $$
declare
    step text;
    share integer;
begin
    foreach step in array array['taking', 'writing', 'proving', 'proof'] loop
        foreach share in array array[50, 95, 99] loop
            execute format('comment on column delivery_count.%I is %L', step || '_p' || share, 'As in delivery_hourly.');
        end loop;
    end loop;
end $$;

create table counting (
    one       boolean primary key default true check (one),
    through   timestamptz not null,
    counted_at timestamptz not null
);
comment on table counting is 'One row once the log was counted: how far the counts go.';
comment on column counting.one is 'Always true: there is one row.';
comment on column counting.through is 'Everything that was committed by then was counted.';
comment on column counting.counted_at is 'When that was finished.';

create function hours_to_count(p_all boolean) returns table (at_day date, at_hour timestamptz)
    language plpgsql stable
    security definer
    set search_path to pg_catalog, public, pg_temp
    set jit to off
    as $$
declare
    oldest timestamptz := clock_timestamp() - interval '400 days';
    days date[];
begin
    -- Without to_date(), which raises an error for the name of a day that does not exist.
    days := array(
        select d.day
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        cross join lateral (
            select case when c.relname ~ '^delivery_log_(?!0000)[0-9]{8}$'
                        then (make_date(substr(c.relname, 14, 4)::int, 1, 1)
                              + make_interval(months => substr(c.relname, 18, 2)::int - 1,
                                              days => substr(c.relname, 20, 2)::int - 1))::date end as day) d
        where i.inhparent = 'public.delivery_log'::regclass and not i.inhdetachpending
          and c.relname = 'delivery_log_' || to_char(d.day, 'YYYYMMDD'));
    return query
    select m.day, m.hour from public.changed_hour m where m.hour >= oldest
    union
    -- New rows go to the log's day. Others were added by hand, or while nobody counted.
    select t.day, t.hour from (
        select t.day, date_trunc('hour', t.minute, 'UTC') as hour, sum(t.rows)::bigint as rows from public.tally t
        where p_all or t.day >= (select d.day - 1 from public.log_day d)
        group by 1, 2) t
    left join public.counted_hour c on c.day = t.day and c.hour = t.hour
    where c.rows is distinct from t.rows and t.day = any (days) and t.hour >= oldest;
    if p_all then
        -- Somebody has attached a day again that has no tally any more, and was never counted. By itself, since it locks all
        -- partitions, and waits where one of them is locked.
        return query
        select a.day, a.hour from (
            select h.day, l.hour from unnest(days) h (day)
            cross join lateral (
                select distinct date_trunc('hour', r.taken_at, 'UTC') as hour from public.delivery_log r where r.day = h.day
                offset 0) l
            where not exists (select from public.tally t where t.day = h.day)) a
        where a.hour >= oldest
          and not exists (select from public.counted_hour c where c.day = a.day and c.hour = a.hour);
    end if;
end $$;
comment on function hours_to_count is
    'The hours whose counts are not those of the log any more, in no order; one may come twice. Of the tally the newest two days '
    'are looked at, or all.';

create function count_hour(p_day date, p_hour timestamptz) returns boolean
    language plpgsql volatile
    security definer
    set search_path to pg_catalog, public, pg_temp
    set lock_timeout to '5s'
    set work_mem to '64MB'
    set plan_cache_mode to force_custom_plan
    set jit to off
    as $$
declare
    part text := 'delivery_log_' || to_char(p_day, 'YYYYMMDD');
    added bigint;
begin
    if p_day is null or p_hour is null or p_hour <> date_trunc('hour', p_hour, 'UTC') then
        raise exception 'no hour of a day: %, %', p_hour, p_day using errcode = 'invalid_parameter_value';
    end if;
    -- One at a time: two would both write the counts that they found missing.
    perform pg_advisory_xact_lock(7065640022);
    delete from public.changed_hour m where m.day = p_day and m.hour = p_hour;
    begin
        -- By its name and with a lock, so that nobody drops or detaches it while its rows are counted: of no rows there would
        -- be nothing.
        execute format('lock table public.%I in access share mode', part);
    exception when undefined_table then
        return false;
    end;
    if not exists (
        select from pg_inherits i
        where i.inhrelid = to_regclass('public.' || part) and i.inhparent = 'public.delivery_log'::regclass
          and not i.inhdetachpending)
    then
        return false;
    end if;
    added := (select sum(t.rows) from public.tally t
              where t.day = p_day and t.minute >= p_hour and t.minute < p_hour + interval '1 hour');
    delete from public.hour_count c where c.day = p_day and c.hour = p_hour;
    execute format($q$
        with rows_of_hour as (
            select l.tenant, l.app_id, l.event, l.outcome, l.reason, l.user_id,
                (l.written_at is not null)::integer as handed, (l.proven_at is not null)::integer as proven,
                date_part('epoch', l.taken_at - l.published_at) as taking,
                case when l.expires_at is null then date_part('epoch', l.written_at - l.taken_at) end as writing,
                case when l.expires_at is null or l.attempts <= 1
                     then date_part('epoch', l.proven_at - l.written_at) end as proving,
                case when l.expires_at is null then date_part('epoch', l.proven_at - l.published_at)
                     when l.attempts <= 1
                     then date_part('epoch', greatest(l.taken_at - l.published_at, '0'))
                           + date_part('epoch', l.proven_at - l.written_at) end as proof
            from public.%I l
            where l.taken_at >= $2 and l.taken_at < $2 + interval '1 hour' offset 0),
        placed as (
            select r.tenant, r.app_id, r.event, r.outcome, r.reason, r.handed, r.proven,
                case when r.taking is null then null when r.taking <= 0.0001 then 0
                     else least(floor(ln(r.taking / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as taking,
                case when r.writing is null then null when r.writing <= 0.0001 then 0
                     else least(floor(ln(r.writing / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as writing,
                case when r.proving is null then null when r.proving <= 0.0001 then 0
                     else least(floor(ln(r.proving / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as proving,
                case when r.proof is null then null when r.proof <= 0.0001 then 0
                     else least(floor(ln(r.proof / 0.0001::float8) / ln(1.05::float8)), 600) end::integer as proof
            from rows_of_hour r),
        grouped as (
            select p.tenant, p.app_id, p.event, p.outcome, p.reason, p.taking, p.writing, p.proving, p.proof,
                grouping(p.taking, p.writing, p.proving, p.proof) as which,
                count(*) as n, sum(p.handed) as handed, sum(p.proven) as proven
            from placed p
            group by p.tenant, p.app_id, p.event, p.outcome, p.reason,
                grouping sets ((), (p.taking), (p.writing), (p.proving), (p.proof))),
        people as (
            select u.tenant, u.app_id, u.event, u.outcome, u.reason, count(nullif(u.user_id, '')) as users
            from (select r.tenant, r.app_id, r.event, r.outcome, r.reason, r.user_id from rows_of_hour r
                  group by 1, 2, 3, 4, 5, 6) u
            group by 1, 2, 3, 4, 5)
        insert into public.hour_count (
            day, hour, tenant, app_id, event, outcome, reason, pushes, users, handed, proven, taking, writing, proving, proof)
        select $1, $2, g.tenant, g.app_id, g.event, g.outcome, g.reason,
            max(g.n) filter (where g.which = 15), max(u.users),
            max(g.handed) filter (where g.which = 15), max(g.proven) filter (where g.which = 15),
            array_agg(array[g.taking, g.n::integer] order by g.taking) filter (where g.which = 7 and g.taking is not null),
            array_agg(array[g.writing, g.n::integer] order by g.writing) filter (where g.which = 11 and g.writing is not null),
            array_agg(array[g.proving, g.n::integer] order by g.proving) filter (where g.which = 13 and g.proving is not null),
            array_agg(array[g.proof, g.n::integer] order by g.proof) filter (where g.which = 14 and g.proof is not null)
        from grouped g
        join people u on u.tenant = g.tenant and u.app_id = g.app_id and u.event = g.event and u.outcome = g.outcome
            and u.reason = g.reason
        group by g.tenant, g.app_id, g.event, g.outcome, g.reason
        $q$, part) using p_day, p_hour;
    insert into public.counted_hour (day, hour, rows, counted_at)
    values (p_day, p_hour, coalesce(added, 0), clock_timestamp())
    on conflict (day, hour) do update set rows = excluded.rows, counted_at = excluded.counted_at;
    perform public.add_up_counts('hour', p_hour, p_hour + interval '1 hour');
    perform public.add_up_counts('day', date_trunc('day', p_hour, 'UTC'), date_trunc('day', p_hour, 'UTC') + interval '24 hours');
    return true;
end $$;
comment on function count_hour is
    'Counts the rows of one day of the log that were taken in this hour, and adds up what it is a part of. False, and nothing '
    'changed, where the log does not have that day any more.';

create function add_up_counts(p_span text, p_since timestamptz, p_until timestamptz) returns void
    language plpgsql volatile
    set search_path to pg_catalog, public, pg_temp
    set plan_cache_mode to force_custom_plan
    set jit to off
    as $$
begin
    delete from public.delivery_count c where c.span = p_span and c.since = p_since;
    insert into public.delivery_count
    with counts as materialized (
        select * from public.hour_count c where c.hour >= p_since and c.hour < p_until),
    placed as (
        select c.tenant, c.app_id, c.event, c.outcome, c.reason, s.step, b.bucket, sum(b.n) as n
        from counts c
        cross join lateral (values
            ('taking', c.taking), ('writing', c.writing), ('proving', c.proving), ('proof', c.proof)) s (step, histogram)
        cross join lateral (
            select s.histogram[i][1] as bucket, s.histogram[i][2] as n from generate_subscripts(s.histogram, 1) i) b
        group by 1, 2, 3, 4, 5, 6, 7),
    ranked as (
        select p.tenant, p.app_id, p.event, p.outcome, p.reason, p.step,
            -- The middle of the bucket: 2.5 % from both of its ends.
            0.0001 * power(1.05::float8, p.bucket + 0.5) as seconds,
            sum(p.n) over (w order by p.bucket) / sum(p.n) over w as share
        from placed p
        window w as (partition by p.tenant, p.app_id, p.event, p.outcome, p.reason, p.step)),
    latencies as (
        select r.tenant, r.app_id, r.event, r.outcome, r.reason,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.5) as taking_p50,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.95) as taking_p95,
            min(r.seconds) filter (where r.step = 'taking' and r.share >= 0.99) as taking_p99,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.5) as writing_p50,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.95) as writing_p95,
            min(r.seconds) filter (where r.step = 'writing' and r.share >= 0.99) as writing_p99,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.5) as proving_p50,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.95) as proving_p95,
            min(r.seconds) filter (where r.step = 'proving' and r.share >= 0.99) as proving_p99,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.5) as proof_p50,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.95) as proof_p95,
            min(r.seconds) filter (where r.step = 'proof' and r.share >= 0.99) as proof_p99
        from ranked r group by 1, 2, 3, 4, 5),
    sums as (
        select c.tenant, c.app_id, c.event, c.outcome, c.reason, sum(c.pushes) as pushes,
            case when p_span = 'hour' then sum(c.users) end as users, sum(c.handed) as handed, sum(c.proven) as proven
        from counts c group by 1, 2, 3, 4, 5)
    select p_span, p_since, s.tenant, s.app_id, s.event, s.outcome, s.reason, s.pushes, s.users, s.handed, s.proven,
        t.taking_p50, t.taking_p95, t.taking_p99, t.writing_p50, t.writing_p95, t.writing_p99,
        t.proving_p50, t.proving_p95, t.proving_p99, t.proof_p50, t.proof_p95, t.proof_p99
    from sums s
    left join latencies t on t.tenant = s.tenant and t.app_id = s.app_id and t.event = s.event and t.outcome = s.outcome
        and t.reason = s.reason;
end $$;
comment on function add_up_counts is 'Makes the counts of an hour or a day of those of its hours.';

create function note_counted(p_through timestamptz) returns void
    language plpgsql volatile
    security definer
    set search_path to pg_catalog, public, pg_temp
    as $$
begin
    insert into public.counting (through, counted_at) values (p_through, clock_timestamp())
    on conflict (one) do update set
        through = greatest(counting.through, excluded.through), counted_at = excluded.counted_at;
    -- So many days are kept, whatever the retention of rows is: this year and the same weeks of the last one.
    delete from public.delivery_count c where c.since < p_through - interval '400 days';
    delete from public.hour_count c where c.hour < p_through - interval '400 days';
    delete from public.changed_hour m where m.hour < p_through - interval '400 days';
    -- The hours of a day that may be attached again are known as long as its counts.
    delete from public.counted_hour c where c.hour < p_through - interval '400 days';
end $$;
comment on function note_counted is
    'Everything that was committed by then was counted. Forgets counts that are more than 400 days old.';

-- `bridge db grant` gives these rights to the role of a bridge.
revoke execute on function hours_to_count(boolean), count_hour(date, timestamptz), note_counted(timestamptz) from public;
revoke execute on function add_up_counts(text, timestamptz, timestamptz) from public;

-- 14. Views ----------------------------------------------------------------------------------------------

create view delivery as
select
    l.push_id, nullif(l.user_id, '') as user_id, l.outcome, l.reason, l.final, l.event, l.app_id, l.tenant,
    case when l.content is null then l.meta
         else coalesce(l.meta, (select c.meta from push_content c where c.day = l.day and c.id = l.content)) end as meta,
    l.published_at, l.taken_at, l.written_at, l.proven_at, l.finished_at, l.sessions, l.attempts, l.node, l.detail,
    l.expires_at, l.late_at, l.day,
    case when l.expires_at is null then extract(epoch from l.proven_at - l.published_at)::float8 * 1000
         when l.attempts <= 1
         then (extract(epoch from greatest(l.taken_at - l.published_at, '0'))
               + extract(epoch from l.proven_at - l.written_at))::float8 * 1000
    end as latency_ms,
    case when l.expires_at is not null
         then greatest(extract(epoch from coalesce(l.written_at, l.finished_at) - l.taken_at)::float8 * 1000, 0)
    end as waited_ms,
    l.differed_at, l.topic, l.session,
    coalesce(l.holder, case when l.session is not null then l.node end) as holder,
    l.fallback_due, l.fallback_at,
    l.batch_id, l.batch_position,
    case when l.outcome <> 'rejected' then (array['written', 'received', 'acked'])[l.confirm] end as confirm,
    round(extract(epoch from l.expires_at - l.published_at)::numeric, 3)::float8 as ttl,
    l.data_bytes, nullif(l.collapse_key, '') as collapse_key, l.stored_at, e.party
from delivery_log l
left join ending e on e.outcome = l.outcome and e.reason = l.reason;
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
    'When the best proof came (a pong or an ack frame); null: none came. Where there was none at the end, as late_at.';
comment on column delivery.finished_at is 'When the outcome was decided; null while it is not final.';
comment on column delivery.sessions is 'Sessions of the user that it was addressed to.';
comment on column delivery.attempts is 'How often it was handed to sockets.';
comment on column delivery.node is 'The bridge process that wrote the row.';
comment on column delivery.detail is 'A sentence for people, such as the path of the wrong field.';
comment on column delivery.expires_at is 'When its ttl ends, until which it is kept; null for a push without a ttl.';
comment on column delivery.late_at is
    'When better proof than the outcome claims came (a pong or an ack frame), after the end, which it did not change; '
    'null: none came.';
comment on column delivery.day is
    'The day of the log (UTC) in which the row was written, rarely after that of taken_at: a range of days reads no other '
    'partitions.';
comment on column delivery.latency_ms is
    'Milliseconds from published_at to proven_at; of a kept push (with a ttl) without the time that it waited for its user, '
    'which is waited_ms. Null without proof, and for a kept push that was handed over more than once: nothing tells how much '
    'of the time between its user was away.';
comment on column delivery.waited_ms is
    'Of a kept push the milliseconds from taken_at until it was first handed to a socket, or ended without that: mostly '
    'until its user came. Null for a push without a ttl, and while it waits.';
comment on column delivery.differed_at is
    'When a request first came with the id of this push and other content: it was answered with this row, and its content '
    'was sent to nobody. Null: none came.';
comment on column delivery.topic is 'The topic that it was published to; null where it was published to users.';
comment on column delivery.session is
    'The session that gave the best proof by the end: it was handed the push, its peer has received it, or acknowledged it; '
    'null: none did. Table session tells more of it.';
comment on column delivery.holder is 'The node that had that session; null where there is none.';
comment on column delivery.fallback_due is
    'When its fallback is published if there is no proof until then; null: it has none, or it was published or cancelled.';
comment on column delivery.fallback_at is
    'When its fallback was published to the exchange push.fallback; null: it was not.';
comment on column delivery.batch_id is
    'What the pushes of one batch (one message with an array of requests) share: the message_id of the message, or an id made '
    'of its bytes; null where the push came alone, or was scheduled.';
comment on column delivery.batch_position is 'Its place in the batch, from 0; null where the push came alone.';
comment on column delivery.confirm is
    'The proof that its publisher asked for: written, received or acked. Null where the request was rejected.';
comment on column delivery.ttl is 'The seconds after published_at for which it is kept; null for a push without a ttl.';
comment on column delivery.data_bytes is
    'Bytes of its data as they came; null where the request was rejected, and in rows of before there was this column.';
comment on column delivery.collapse_key is 'Its collapse_key; null where it has none.';
comment on column delivery.stored_at is
    'When it was first kept for its user, because nobody was there or no proof came in time; null: it was not, or before there '
    'was this column.';
comment on column delivery.party is
    'Who could have made it end better: publisher, bridge, peer, network or policy. Null: the proof that was asked for has come, '
    'or nothing has gone wrong so far. See table ending.';

create view delivery_hourly as
select
    c.since as hour, c.tenant, c.app_id, c.event, c.outcome, c.reason, c.pushes, c.users, c.proof_p50, c.proof_p99,
    e.party, c.handed, c.proven, c.proof_p95, c.taking_p50, c.taking_p95, c.taking_p99,
    c.writing_p50, c.writing_p95, c.writing_p99, c.proving_p50, c.proving_p95, c.proving_p99
from delivery_count c
left join ending e on e.outcome = c.outcome and e.reason = c.reason
where c.span = 'hour'
union all
select z.since, null, null, null, null, null, 0, 0, null, null, null, 0, 0, null, null, null, null, null, null, null, null, null, null
from generate_series(
    (select min(c.since) from delivery_count c where c.span = 'hour'),
    (select date_trunc('hour', n.through, 'UTC') from counting n), interval '1 hour') as z (since)
where not exists (select from delivery_count c where c.span = 'hour' and c.since = z.since);
comment on column delivery_hourly.tenant is 'As in delivery.';
comment on column delivery_hourly.app_id is 'As in delivery.';
comment on column delivery_hourly.event is 'As in delivery.';
comment on column delivery_hourly.outcome is 'As in delivery; table ending explains it.';
comment on column delivery_hourly.reason is 'As in delivery; table ending explains it.';
comment on column delivery_hourly.pushes is 'Rows of delivery: pushes, each counted once per user.';
create view delivery_daily as
select
    (c.since at time zone 'UTC')::date as day, c.tenant, c.app_id, c.event, c.outcome, c.reason, e.party,
    c.pushes, c.handed, c.proven, c.taking_p50, c.taking_p95, c.taking_p99, c.writing_p50, c.writing_p95, c.writing_p99,
    c.proving_p50, c.proving_p95, c.proving_p99, c.proof_p50, c.proof_p95, c.proof_p99
from delivery_count c
left join ending e on e.outcome = c.outcome and e.reason = c.reason
where c.span = 'day'
union all
select (z.since at time zone 'UTC')::date, null, null, null, null, null, null, 0, 0, 0, null, null, null, null, null, null, null, null, null, null, null, null
from generate_series(
    (select min(c.since) from delivery_count c where c.span = 'day'),
    (select date_trunc('day', n.through, 'UTC') from counting n), interval '24 hours') as z (since)
where not exists (select from delivery_count c where c.span = 'day' and c.since = z.since);
create view funnel as
select
    d.day, d.tenant, d.app_id, d.event, sum(d.pushes)::bigint as pushes,
    coalesce(sum(d.pushes) filter (where d.outcome <> 'rejected'), 0)::bigint as accepted,
    sum(d.handed)::bigint as handed, sum(d.proven)::bigint as proven,
    coalesce(sum(d.pushes) filter (where d.outcome = 'acked'), 0)::bigint as acked,
    coalesce(sum(d.pushes) filter (where d.outcome in ('pending', 'stored')), 0)::bigint as waiting
from delivery_daily d
group by 1, 2, 3, 4;
create view push_summary as
select
    l.tenant, l.push_id, max(l.event) as event, max(l.app_id) as app_id,
    min(l.published_at) as published_at, max(l.finished_at) filter (where l.final) as finished_at, bool_and(l.final) as final,
    count(*) as users,
    count(*) filter (where l.outcome in ('acked', 'received', 'written')) as delivered,
    count(*) filter (where l.final and l.outcome not in ('acked', 'received', 'written')) as failed,
    count(*) filter (where not l.final) as waiting,
    count(l.written_at) as handed, count(l.proven_at) as proven,
    count(*) filter (where l.outcome = 'acked') as acked,
    nullif(percentile_disc(0.5) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_50,
    nullif(percentile_disc(0.9) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_90,
    nullif(percentile_disc(0.99) within group (
        order by coalesce(extract(epoch from l.proven_at - l.published_at)::float8, 'infinity')), 'infinity') as seconds_99
from delivery_log l
group by l.push_id, l.tenant;
create view unreached_users as
select
    nullif(l.user_id, '') as user_id, l.day, count(*) as pushes,
    count(*) filter (where l.outcome = 'stored') as waiting, max(l.taken_at) as last_taken_at,
    (array_agg(l.outcome order by l.taken_at desc))[1] as last_outcome,
    (array_agg(l.reason order by l.taken_at desc))[1] as last_reason
from delivery_log l
where nullif(l.user_id, '') is not null
group by nullif(l.user_id, ''), l.day
having count(*) filter (where l.outcome in ('acked', 'received', 'written') or l.late_at is not null) = 0
    and bool_or(l.outcome <> 'rejected');
create view top_reasons as
select
    d.day, d.tenant, d.app_id, d.event, d.outcome, d.reason, d.party, e.meaning, d.pushes,
    d.pushes::float8 / sum(d.pushes) over (partition by d.day, d.tenant) as share
from delivery_daily d
join ending e on e.outcome = d.outcome and e.reason = d.reason
where e.final and d.outcome not in ('acked', 'received', 'written');
comment on view delivery_hourly is
    'Counts and latencies per hour (UTC), publisher, event and end. They are counted in the background, once a minute where something has changed, and are then exactly those of delivery; they stay for 400 days, also when the rows are dropped. An hour without pushes is a row of zeros, whose other columns are null.';
comment on column delivery_hourly.hour is
    'The hour in which the pushes were taken; it begins with the hours of UTC.';
comment on column delivery_hourly.party is 'As in delivery.';
comment on column delivery_hourly.handed is 'Pushes that were handed to a socket.';
comment on column delivery_hourly.proven is 'Pushes with a proof, late ones too.';
comment on column delivery_hourly.users is
    'Different users among them. Around midnight, and after an outage, an hour has rows in two days of the log: who has some in '
    'both counts twice.';
comment on column delivery_hourly.proof_p50 is
    'Median of the seconds from publishing to proof, as delivery.latency_ms: without the time that a kept push waited for its user. At most 2.5 % off; null without any.';
comment on column delivery_hourly.proof_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.taking_p50 is
    'Median of the seconds from publishing to taking: the time in the queue. At most 2.5 % off; null without any.';
comment on column delivery_hourly.taking_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.taking_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.writing_p50 is
    'Median of the seconds from taking to the first socket, of pushes without a ttl (a kept push may wait for its user). At most 2.5 % off; null without any.';
comment on column delivery_hourly.writing_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.writing_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.proving_p50 is
    'Median of the seconds from the first socket to the proof; of a kept push only where it was handed over once. At most 2.5 % off; null without any.';
comment on column delivery_hourly.proving_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_hourly.proving_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_hourly.proof_p95 is 'The same for the slowest 5 in a hundred.';
comment on view delivery_daily is
    'As delivery_hourly, per day (UTC). Users are not counted: the same one may come in many hours.';
comment on column delivery_daily.day is 'The day (UTC) in which the pushes were taken.';
comment on column delivery_daily.tenant is 'As in delivery.';
comment on column delivery_daily.app_id is 'As in delivery.';
comment on column delivery_daily.event is 'As in delivery.';
comment on column delivery_daily.outcome is 'As in delivery.';
comment on column delivery_daily.reason is 'As in delivery.';
comment on column delivery_daily.party is 'As in delivery.';
comment on column delivery_daily.pushes is 'Rows of delivery: pushes, each counted once per user.';
comment on column delivery_daily.handed is 'Pushes that were handed to a socket.';
comment on column delivery_daily.proven is 'Pushes with a proof, late ones too.';
comment on column delivery_daily.taking_p50 is
    'Median of the seconds from publishing to taking: the time in the queue. At most 2.5 % off; null without any.';
comment on column delivery_daily.taking_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.taking_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.writing_p50 is
    'Median of the seconds from taking to the first socket, of pushes without a ttl (a kept push may wait for its user). At most 2.5 % off; null without any.';
comment on column delivery_daily.writing_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.writing_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.proving_p50 is
    'Median of the seconds from the first socket to the proof; of a kept push only where it was handed over once. At most 2.5 % off; null without any.';
comment on column delivery_daily.proving_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.proving_p99 is 'The same for the slowest 1 in a hundred.';
comment on column delivery_daily.proof_p50 is
    'Median of the seconds from publishing to proof, as delivery.latency_ms: without the time that a kept push waited for its user. At most 2.5 % off; null without any.';
comment on column delivery_daily.proof_p95 is 'The same for the slowest 5 in a hundred.';
comment on column delivery_daily.proof_p99 is 'The same for the slowest 1 in a hundred.';
comment on view funnel is
    'How far the pushes of a day came, per publisher and event: each step has those that came so far or farther, but waiting.';
comment on column funnel.day is 'The day (UTC) in which the pushes were taken.';
comment on column funnel.tenant is 'As in delivery.';
comment on column funnel.app_id is 'As in delivery.';
comment on column funnel.event is
    'As in delivery; null, as the two before, on a day without pushes.';
comment on column funnel.pushes is 'Rows of delivery: pushes, each counted once per user.';
comment on column funnel.accepted is 'Those whose request was not rejected.';
comment on column funnel.handed is 'Those that were handed to a socket.';
comment on column funnel.proven is 'Those that the peer has proven, late or in time.';
comment on column funnel.acked is 'Those that ended as acked.';
comment on column funnel.waiting is 'Those that have no end yet: pending or stored.';
comment on view push_summary is
    'How far a push came with all of its users. Ask for one push_id.';
comment on column push_summary.tenant is 'As in delivery.';
comment on column push_summary.push_id is 'As in delivery.';
comment on column push_summary.event is 'As in delivery.';
comment on column push_summary.app_id is 'As in delivery.';
comment on column push_summary.published_at is 'As in delivery.';
comment on column push_summary.finished_at is 'When the last outcome so far was decided; null: none is.';
comment on column push_summary.final is 'Whether all of its outcomes are.';
comment on column push_summary.users is 'Its rows: users, and one without where none was known.';
comment on column push_summary.delivered is 'Those that ended as acked, received or written.';
comment on column push_summary.failed is 'Those with any other end.';
comment on column push_summary.waiting is 'Those without an end: pending or stored.';
comment on column push_summary.handed is 'Those to whom it was handed at a socket.';
comment on column push_summary.proven is 'Those that have proven it, late or in time.';
comment on column push_summary.acked is 'Those that ended as acked.';
comment on column push_summary.seconds_50 is
    'Seconds from publishing until half of all users had proven it; null: so many have not.';
comment on column push_summary.seconds_90 is 'The same for 90 of a hundred.';
comment on column push_summary.seconds_99 is 'The same for 99 of a hundred.';
comment on view unreached_users is
    'The users to whom nothing of a day was delivered, with what was for them. Ask for a day, or for one user_id.';
comment on column unreached_users.user_id is 'The user.';
comment on column unreached_users.day is 'The day of the log (UTC), as in delivery.';
comment on column unreached_users.pushes is 'The pushes of that day for them.';
comment on column unreached_users.waiting is 'Those of them that are still kept for them.';
comment on column unreached_users.last_taken_at is 'When the last of them was taken.';
comment on column unreached_users.last_outcome is 'How that one stands or ended.';
comment on column unreached_users.last_reason is 'Why.';
comment on view top_reasons is
    'Why pushes of a day were not delivered, per publisher and event: only final outcomes that are no delivery. Order it by pushes.';
comment on column top_reasons.day is 'The day (UTC) in which the pushes were taken.';
comment on column top_reasons.tenant is 'As in delivery.';
comment on column top_reasons.app_id is 'As in delivery.';
comment on column top_reasons.event is 'As in delivery.';
comment on column top_reasons.outcome is 'As in delivery.';
comment on column top_reasons.reason is 'As in delivery.';
comment on column top_reasons.party is 'As in delivery.';
comment on column top_reasons.meaning is 'What both mean, in a sentence.';
comment on column top_reasons.pushes is 'Rows of delivery.';
comment on column top_reasons.share is
    'Their share of all pushes of the day and tenant that were not delivered.';

create view user_timeline as
select
    nullif(l.user_id, '') as user_id, step.at, step.step, l.push_id, l.tenant, l.event, l.outcome, l.reason, l.node,
    l.day, l.taken_at
from delivery_log l
cross join lateral (values
    (l.published_at, 'published', 1),
    (l.taken_at, 'taken', 2),
    (l.written_at, 'written', 3),
    (nullif(l.proven_at, l.late_at), 'proven', 4),
    (l.finished_at, 'finished', 5),
    (l.late_at, 'late', 6)
) as step (at, step, place)
where step.at is not null
order by step.at, step.place;
comment on view user_timeline is
    'What happened to the pushes of a user, step by step. Ask for one user_id, or for a range of taken_at: a step may come '
    'long after, so a range of at alone reads the whole log.';
comment on column user_timeline.user_id is 'The user; null where no user was known.';
comment on column user_timeline.at is 'When the step happened; rows come in this order.';
comment on column user_timeline.step is 'published, taken, written, proven, finished or late: the times of delivery.';
comment on column user_timeline.push_id is 'As in delivery.';
comment on column user_timeline.tenant is 'As in delivery.';
comment on column user_timeline.event is 'As in delivery.';
comment on column user_timeline.outcome is 'How the push stands now, not at the time of the step.';
comment on column user_timeline.reason is 'Why.';
comment on column user_timeline.node is 'The bridge process that wrote the row.';
comment on column user_timeline.day is 'As in delivery.';
comment on column user_timeline.taken_at is 'As in delivery.';

-- This comes after the view, because the columns of view and table get the same comments.
do $$
declare
    outcomes text := (
        select 'How it ended: ' || string_agg(distinct outcome, ', ' order by outcome) filter (where final)
            || '; not final: ' || string_agg(distinct outcome, ', ' order by outcome) filter (where not final)
            || '. See table ending.'
        from ending);
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

-- 15. Roles ----------------------------------------------------------------------------------------------

-- Roles belong to the whole server: this one may exist already, and the role that migrates may not be allowed to create it.
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
        grant select on delivery, delivery_hourly, user_timeline, ending, node, tally, past_boot, push_content,
            revocation, revocation_reader, session, who_is_online, session_history,
            delivery_daily, funnel, push_summary, unreached_users, top_reasons, counting, counted_hour to bridge_reader;
    end if;
end $$;

-- 16. Earlier bridges ------------------------------------------------------------------------------------

-- The database is upgraded first, then the bridges one by one. So the functions that an earlier program calls stay.

create function find_rows(p_tenants text[], p_push_ids text[]) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    return query
    select l.* from unnest(p_tenants, p_push_ids) as n (tenant, push_id)
    -- The offset keeps the planner from reading all rows and looking for the keys among them.
    cross join lateral (
        select * from delivery_log l
        where l.day >= first and l.push_id = n.push_id collate "C" and l.tenant = n.tenant collate "C"
        offset 0) l;
end $$;
comment on function find_rows(text[], text[]) is 'Every row of these pushes in the days in which a key is known.';

create function owe_rows(p_tenants text[], p_push_ids text[], p_users text[], p_owed jsonb[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    -- Locked as record_rows() does; and only what was locked is changed, whatever came in between.
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_owed) as n (tenant, push_id, user_id, owed)
        cross join lateral (
            select l.day from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day
            for update) l)
    update delivery_log l set owed = merge_owed(l.owed, n.owed)
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;
comment on function owe_rows is 'Adds these replies to what the rows owe. Idempotent.';

create function settle_rows(p_tenants text[], p_push_ids text[], p_users text[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select since from log_day);
    last date := (select day from log_day);
    done bigint := 0;
    more bigint;
begin
    -- Nearly all debts are of the newest days; only what is not found there is worth a look at every partition.
    loop
        with locked as materialized (
            select l.day, n.* from unnest(p_tenants, p_push_ids, p_users) as n (tenant, push_id, user_id)
            join delivery_log l
              on l.day >= first and l.day <= last
             and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
             and l.tenant = n.tenant collate "C"
            where l.owed is not null
            order by l.push_id, l.user_id, l.tenant, l.day
            for update of l)
        update delivery_log l set owed = null
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
        get diagnostics more = row_count;
        done := done + more;
        exit when done >= cardinality(p_push_ids) or first = '-infinity';
        last := first - 1;
        first := '-infinity';
    end loop;
end $$;
comment on function settle_rows(text[], text[], text[]) is
    'Nothing is owed any more by these rows, of whatever day. Idempotent.';

-- Replaces the version with three parameters, which loses a reply that was noted while the others were being sent.
create function settle_rows(p_tenants text[], p_push_ids text[], p_users text[], p_paid jsonb[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select since from log_day);
    last date := (select day from log_day);
    done bigint := 0;
    more bigint;
begin
    -- Nearly all debts are of the newest days; only what is not found there is worth a look at every partition.
    loop
        with locked as materialized (
            select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_paid) as n (tenant, push_id, user_id, paid)
            cross join lateral (
                select l.day from delivery_log l
                where l.day >= first and l.day <= last
                  and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
                  and l.tenant = n.tenant collate "C"
                  and (l.owed is not null)::int = 1
                order by l.day
                for update) l)
        update delivery_log l set owed = unpaid(l.owed, n.paid)
        from locked n
        where l.day = n.day
          and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
          and l.tenant = n.tenant collate "C";
        get diagnostics more = row_count;
        done := done + more;
        exit when done >= cardinality(p_push_ids) or first = '-infinity';
        last := first - 1;
        first := '-infinity';
    end loop;
end $$;
comment on function settle_rows(text[], text[], text[], jsonb[]) is
    'These replies are paid; a row with no others owes nothing any more. Of whatever day, idempotent.';

create function prove_rows(p_tenants text[], p_push_ids text[], p_users text[], p_proven float8[])
    returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
begin
    with locked as materialized (
        select l.day, n.* from unnest(p_tenants, p_push_ids, p_users, p_proven) as n (tenant, push_id, user_id, proven)
        cross join lateral (
            -- An id may have come before, days ago: the newest is meant.
            select l.day, l.final and l.late_at is null as wanted from delivery_log l
            where l.day >= first
              and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
              and l.tenant = n.tenant collate "C"
            order by l.day desc
            limit 1
            for update) l
        where l.wanted)
    update delivery_log l set late_at = to_timestamp(n.proven), proven_at = coalesce(l.proven_at, to_timestamp(n.proven))
    from locked n
    where l.day = n.day
      and l.push_id = n.push_id collate "C" and l.user_id = n.user_id collate "C"
      and l.tenant = n.tenant collate "C";
end $$;
comment on function prove_rows is 'Notes proof that came after the end of these rows, for each the first.';

create function owing_rows(p_limit integer) returns setof delivery_log
    language plpgsql stable
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set jit to off
    as $$
begin
    return query
    select * from delivery_log l where l.final and l.owed is not null order by l.taken_at limit p_limit;
end $$;
comment on function owing_rows(integer) is 'Final rows that owe a receipt, the oldest first.';

-- Programs that call this do not know push_content.
create function mailbox_rows(
    p_users text[], p_after bigint[], p_until bigint[], p_seen bigint[], p_most integer[], p_bytes bigint[]
) returns table (ord bigint, log delivery_log)
    language sql stable
    as $$
    select m.ord, m.log
    from mailbox_pages(
        p_users, array_fill(''::text, array[cardinality(p_users)]), p_after, p_until, p_seen, p_most, p_bytes) m
    where (m.log).push_id is not null
    $$;
comment on function mailbox_rows is
    'A page of each mailbox: stored rows with p_after < position <= p_until, where p_seen is not null also those '
    'after it that were delivered; at most p_most, and no more once they have p_bytes of payload.';

create function trim_rows(p_users text[], p_pushes bigint, p_bytes bigint) returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_sort to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(k.day), array_agg(k.tenant), array_agg(k.push_id), array_agg(n.user_id)
    into strict days, tenants, push_ids, users
    from unnest(p_users) as n (user_id)
    cross join lateral (
        select l.day, l.tenant, l.push_id,
               row_number() over newest as pushes, sum(octet_length(l.payload)) over newest as bytes
        from delivery_log l
        where l.day >= first and l.user_id = n.user_id collate "C" and l.outcome = 'stored'
        window newest as (order by l.position desc rows unbounded preceding)) k
    where k.pushes > p_pushes or k.bytes > p_bytes;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'dropped', 'mailbox_full');
    end if;
end $$;
comment on function trim_rows is
    'Ends the oldest stored rows of each of these users that are over so many, or over so many bytes of payload.';

create function supersede_rows(p_tenants text[], p_users text[], p_collapse_keys text[], p_positions bigint[])
    returns setof delivery_log
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
    into strict days, tenants, push_ids, users
    from unnest(p_tenants, p_users, p_collapse_keys, p_positions) as n (tenant, user_id, collapse_key, position)
    cross join lateral (
        select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = n.user_id collate "C" and l.collapse_key = n.collapse_key collate "C"
          and l.tenant = n.tenant collate "C" and l.position < n.position
        offset 0) l;
    if days is not null then
        return query select * from end_stored(days, tenants, push_ids, users, 'superseded', 'collapsed');
    end if;
end $$;
comment on function supersede_rows(text[], text[], text[], bigint[]) is
    'Ends stored rows of lower positions with the same tenant, user and key.';

create function recall_rows(p_tenant text, p_push_id text, p_user text, p_collapse_key text)
    returns table (applied boolean, log delivery_log)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_bitmapscan to off
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_material to off
    set jit to off
    as $$
declare
    first date := (select least(since, kept_since) from log_day);
    days date[];
    tenants text[];
    push_ids text[];
    users text[];
begin
    if p_push_id <> '' then
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and (l.outcome = 'stored')::int = 1
          and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C";
    else
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.outcome = 'stored'
          and l.user_id = p_user collate "C" and l.collapse_key = p_collapse_key collate "C"
          and l.tenant = p_tenant collate "C";
    end if;
    if days is not null then
        return query select true, l from end_stored(days, tenants, push_ids, users, 'recalled', 'withdrawn') l;
    end if;
    if p_push_id <> '' then
        return query
        select false, l from delivery_log l
        where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
          and l.outcome <> 'stored' and l.xmin <> pg_current_xact_id()::xid
          and not (l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and (l.payload is not null or l.content is not null));
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.push_id = p_push_id collate "C" and l.tenant = p_tenant collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at is not null and (l.payload is not null or l.content is not null);
    else
        select array_agg(l.day), array_agg(l.tenant), array_agg(l.push_id), array_agg(l.user_id)
        into strict days, tenants, push_ids, users
        from delivery_log l
        where l.day >= first and l.user_id = p_user collate "C"
          and l.outcome in ('acked', 'received', 'written') and l.expires_at > clock_timestamp() and l.position > 0
          and l.collapse_key = p_collapse_key collate "C" and l.tenant = p_tenant collate "C";
    end if;
    if days is null then
        return;
    end if;
    return query select false, f from forget_data(days, tenants, push_ids, users) f;
end $$;
comment on function recall_rows is
    'Ends the stored rows of a push, or of a user with a collapse key, as recalled; tells of its others too, of a key '
    'of those that were delivered and whose ttl has not ended, and forgets the data that was kept of those.';

-- As a bridge calls it that knows of no earlier tokens.
create function note_sessions(
    p_node text, p_boot text,
    p_sessions text[], p_users text[], p_opened float8[], p_modes text[], p_addresses text[], p_agents text[],
    p_jtis text[], p_issued float8[], p_expires float8[],
    p_refreshed text[], p_new_jtis text[], p_new_expires float8[],
    p_closed text[], p_closed_at float8[], p_codes integer[], p_reasons text[],
    p_most integer, p_refuse boolean
) returns table (its_session text, word text)
    language sql volatile
    set search_path to public, pg_temp
    as $$
    select n.its_session, n.word from note_sessions(
        p_node, p_boot, p_sessions, p_users, p_opened, p_modes, p_addresses, p_agents, p_jtis, p_issued, p_expires,
        p_refreshed, p_new_jtis, p_new_expires, '{}', p_closed, p_closed_at, p_codes, p_reasons, p_most, p_refuse) n;
$$;
comment on function note_sessions(
    text, text, text[], text[], float8[], text[], text[], text[], text[], float8[], float8[],
    text[], text[], float8[], text[], float8[], integer[], text[], integer, boolean) is
    'As the other one, for bridges that keep no earlier tokens of a session.';

create function look_around(p_name text, p_boot text, p_queue text, p_known_until float8)
    returns table (its_name text, its_boot text, its_queue text, lives boolean, knows_until float8, right_now float8)
    language sql volatile
    set search_path to public, pg_temp
    as $$
    select a.its_name, a.its_boot, a.its_queue, a.lives, a.knows_until, a.right_now
    from look_around(p_name, p_boot, p_queue, p_known_until, null, null) a;
$$;
comment on function look_around(text, text, text, float8) is 'As the other one, for bridges that know of no partitions.';

-- 17. Versions -------------------------------------------------------------------------------------------

-- `bridge db upgrade` writes its rows. A database made from this file has no rows here, and no bridge starts on it.
create table schema_version (
    version    integer     primary key,
    name       text        not null,
    checksum   text        not null,
    applied_at timestamptz not null default now()
);
comment on table schema_version is 'The migrations that this database has seen; written by bridge db upgrade.';
comment on column schema_version.version is 'The number that the file''s name begins with.';
comment on column schema_version.name is 'The file''s name.';
comment on column schema_version.checksum is 'SHA-256 of the file as it was applied.';
comment on column schema_version.applied_at is 'When it was applied.';

-- 18. Actions --------------------------------------------------------------------------------------------

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
comment on column ops_action.action is 'What: recall, revoke, disconnect, drain, replay, dead replay, dead purge, forget.';
comment on column ops_action.target is 'To whom or what, as it was asked for; without secrets.';
comment on column ops_action.result is
    'done, failed, or begun: it is under way, or nobody could tell its end (its process was killed, its caller left).';
comment on column ops_action.facts is 'What came of it: counts, or the error.';
comment on column ops_action.node is 'The node that carried it out; of a command the name of the machine.';

-- 19. Scheduled pushes -------------------------------------------------------------------------------------

create table scheduled (
    place        bigint      not null generated always as identity primary key,
    id           text        not null collate "C",
    tenant       text        not null collate "C",
    push_id      text        not null collate "C",
    user_id      text        not null collate "C",
    collapse_key text        not null collate "C",
    users        integer     not null,
    deliver_at   timestamptz not null,
    due_at       timestamptz not null,
    published_at timestamptz not null,
    scheduled_at timestamptz not null default clock_timestamp(),
    routing_key  bytea       not null,
    body         bytea       not null,
    properties   bytea       not null,
    bytes        integer     not null,
    claimed_by   text        collate "C",
    claimed_at   timestamptz,
    recalled_at  timestamptz
);
create unique index scheduled_id on scheduled (id);
create index scheduled_due on scheduled (due_at, place);
create index scheduled_push on scheduled (push_id, tenant);
create index scheduled_collapse on scheduled (user_id, collapse_key, tenant) where collapse_key <> '';
create index scheduled_claimed on scheduled (claimed_by) where claimed_by is not null;
comment on table scheduled is
    'Push requests whose deliver_at is ahead: one row for each. At its time a node publishes it again, and deletes the row. '
    'Its outcome is in the delivery log from then on.';
comment on column scheduled.place is 'The order in which they were scheduled; of one time the lowest goes first.';
comment on column scheduled.id is 'Chosen by the program; the message id of the message that is published at its time.';
comment on column scheduled.tenant is 'Its tenant, or empty.';
comment on column scheduled.push_id is 'Its push id, generated where the producer gave none.';
comment on column scheduled.user_id is 'The user that it names, if it names one; else empty.';
comment on column scheduled.collapse_key is 'Its collapse_key, or empty.';
comment on column scheduled.users is 'How many users it names; 1 for a session, a topic or everyone.';
comment on column scheduled.deliver_at is 'Its deliver_at.';
comment on column scheduled.due_at is 'When it is published: its deliver_at, or when it was recalled.';
comment on column scheduled.published_at is 'When its producer published it.';
comment on column scheduled.scheduled_at is 'When this row was written.';
comment on column scheduled.routing_key is 'The routing key with which it came, and is published again.';
comment on column scheduled.body is 'The body of the message, or the element of a batch.';
comment on column scheduled.properties is 'The properties and headers of the message, in MessagePack.';
comment on column scheduled.bytes is 'Bytes of body and properties.';
comment on column scheduled.claimed_by is 'The boot that publishes it now; null: none.';
comment on column scheduled.claimed_at is 'When it was claimed last; null: never, and only then it can be recalled.';
comment on column scheduled.recalled_at is 'When it was recalled; null: it was not.';

create function schedule_pushes(
    p_ids text[], p_tenants text[], p_pushes text[], p_users text[], p_keys text[], p_counts integer[],
    p_deliver float8[], p_published float8[], p_routing bytea[], p_bodies bytea[], p_properties bytea[]
) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    as $$
begin
    insert into scheduled (
        id, tenant, push_id, user_id, collapse_key, users, deliver_at, due_at, published_at, routing_key, body, properties,
        bytes)
    select n.id, n.tenant, n.push_id, n.user_id, n.collapse_key, n.users, to_timestamp(n.deliver_at),
        to_timestamp(n.deliver_at), to_timestamp(n.published_at),
        n.routing_key, n.body, n.properties, octet_length(n.body) + octet_length(n.properties)
    from unnest(
        p_ids, p_tenants, p_pushes, p_users, p_keys, p_counts, p_deliver, p_published, p_routing, p_bodies, p_properties)
        with ordinality
        as n (
            id, tenant, push_id, user_id, collapse_key, users, deliver_at, published_at, routing_key, body, properties, ord)
    order by n.ord
    on conflict (id) do nothing;
end $$;
comment on function schedule_pushes is 'Writes pushes that are scheduled; those whose id is there stay as they are.';

create function claim_scheduled(p_boot text, p_limit integer, p_bytes bigint)
    returns table (
        its_id text, its_tenant text, its_push text, its_user text, its_key text, its_users integer, delivers float8,
        published float8, its_routing bytea, its_body bytea, its_properties bytea, was_recalled boolean, next_in float8)
    language plpgsql volatile
    set search_path to public, pg_temp
    -- One plan, made while the table is empty, must be right when it has grown: index lookups only.
    set plan_cache_mode to force_generic_plan
    set enable_hashjoin to off
    set enable_mergejoin to off
    set enable_seqscan to off
    set enable_bitmapscan to off
    set jit to off
    as $$
declare
    right_now timestamptz;
    its_due timestamptz;
begin
    -- Nothing may be due: then nobody needs to wait for anybody.
    select s.due_at into its_due from scheduled s order by s.due_at, s.place limit 1;
    right_now := clock_timestamp();
    if its_due is null or its_due > right_now then
        return query select null::text, null::text, null::text, null::text, null::text, null::integer, null::float8,
            null::float8, null::bytea, null::bytea, null::bytea, null::boolean,
            extract(epoch from its_due - right_now)::float8;
        return;
    end if;
    -- One process after the other, so that what is due goes out in one order. Whoever comes meanwhile looks again later.
    if not pg_try_advisory_xact_lock(7065640021) then
        return;
    end if;
    if exists (
        select from scheduled s
        where s.claimed_by is not null and s.claimed_by <> p_boot and s.claimed_at > right_now - interval '30 seconds'
          and exists (select from node n where n.boot = s.claimed_by and n.seen_at > right_now - interval '5 seconds')
    ) then
        return;
    end if;
    return query
    with waiting as materialized (
        select s.place, s.due_at, s.bytes from scheduled s
        where s.due_at <= right_now
        order by s.due_at, s.place limit p_limit
        for update of s skip locked),
    sized as (
        select w.place, sum(w.bytes) over (order by w.due_at, w.place) - w.bytes as before from waiting w),
    claimed as (
        update scheduled s set claimed_by = p_boot, claimed_at = right_now
        from sized z where s.place = z.place and z.before < p_bytes
        returning s.*)
    select c.id, c.tenant, c.push_id, c.user_id, c.collapse_key, c.users, extract(epoch from c.deliver_at)::float8,
        extract(epoch from c.published_at)::float8, c.routing_key, c.body, c.properties, c.recalled_at is not null,
        null::float8
    from claimed c
    order by c.due_at, c.place;
    select s.due_at into its_due from scheduled s
    where s.claimed_by is null or s.claimed_by <> p_boot
    order by s.due_at, s.place limit 1;
    return query select null::text, null::text, null::text, null::text, null::text, null::integer, null::float8,
        null::float8, null::bytea, null::bytea, null::bytea, null::boolean,
        greatest(extract(epoch from its_due - right_now), 0)::float8;
end $$;
comment on function claim_scheduled is
    'Claims pushes that are due, for one process at a time. The last row has no id: it tells the seconds until the next one is '
    'due, null without any. No row at all: another process publishes what is due.';

create function forget_scheduled(p_ids text[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    delete from scheduled s using unnest(p_ids) as n (id) where s.id = n.id collate "C";
end $$;
comment on function forget_scheduled is 'Forgets scheduled pushes that were published.';

create function give_back_scheduled(p_boot text, p_ids text[]) returns void
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    update scheduled s set claimed_by = null
    from unnest(p_ids) as n (id) where s.id = n.id collate "C" and s.claimed_by = p_boot;
end $$;
comment on function give_back_scheduled is
    'Ends claims of a process on pushes that it could not publish. When they were claimed stays: they may have arrived.';

create function recall_scheduled(p_tenant text, p_push_id text, p_user text, p_key text, p_limit integer)
    returns table (its_push text, its_users integer)
    language plpgsql volatile
    set search_path to public, pg_temp
    set plan_cache_mode to force_generic_plan
    set enable_seqscan to off
    set enable_hashjoin to off
    as $$
begin
    if p_push_id <> '' then
        return query
        with named as materialized (
            select s.place from scheduled s
            where s.push_id = p_push_id collate "C" and s.tenant = p_tenant collate "C"
              and s.claimed_at is null and s.recalled_at is null
            limit p_limit
            for update of s)
        update scheduled s set recalled_at = clock_timestamp(), due_at = least(s.due_at, clock_timestamp())
        from named n where s.place = n.place
        returning s.push_id, s.users;
    else
        return query
        with named as materialized (
            select s.place from scheduled s
            where s.user_id = p_user collate "C" and s.collapse_key = p_key collate "C" and s.collapse_key <> ''
              and s.tenant = p_tenant collate "C" and s.claimed_at is null and s.recalled_at is null
            limit p_limit
            for update of s)
        update scheduled s set recalled_at = clock_timestamp(), due_at = least(s.due_at, clock_timestamp())
        from named n where s.place = n.place
        returning s.push_id, s.users;
    end if;
end $$;
comment on function recall_scheduled is
    'Withdraws scheduled pushes that no process has ever claimed: of one id, or of one user and collapse key. They are due at '
    'once, and end as recalled.';

do $$
begin
    if to_regrole('bridge_reader') is not null then
        grant select on ops_action to bridge_reader;
        grant select on subscription to bridge_reader;
    end if;
end $$;

-- Makes the partitions of today. This comes last, because a new partition copies the comments of its table.
select roll_day();
