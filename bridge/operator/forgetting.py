"""Forget a user: erase what was pushed to them, and give everything that names them another name.

The name is random and kept nowhere beside the id, so nobody can find the person by it; the rows of one person stay
together. Outcomes, times and counts stay as they are. Everything is done in short statements, each committed by
itself: whoever is interrupted may run it again, under the same name.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, LiteralString

import msgspec

from bridge.adapters.postgres.pool import Connection, Connections
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.core.delivery.revoking import answered
from bridge.core.errors import BridgeError, SettingsError
from bridge.core.model.revocations import Revocation
from bridge.core.ports.clock import Clock
from bridge.operator.naming import body_names, renamed

PAGE: Final = 500
"""Rows that one statement changes, or whose bodies are looked into."""
ENDED_WITHIN: Final = 10.0
"""Seconds in which running bridges should have ended what was withdrawn, and closed the sessions."""
_LOOK_EVERY: Final = 0.1
_FIRST: Final = "-infinity"
"""Before all times."""
_NAME: Final = re.compile(r"forgotten-[0-9a-f]{32}")


class StillOnline(BridgeError):
    """The user has open sessions, whose pushes would be written under the id again."""

    def __init__(self, sessions: int) -> None:
        self.sessions = sessions
        super().__init__(
            f"nothing changed: the user has {sessions} open session(s); --disconnect revokes their tokens first"
        )


class Places(msgspec.Struct):
    """How much there is of a user in each place, or was changed there."""

    rows: int = 0
    """Rows of the delivery log."""
    bodies: int = 0
    """Bodies of rejected requests that name the user."""
    sessions: int = 0
    subscriptions: int = 0
    revocations: int = 0
    actions: int = 0
    """Rows of table ops_action."""
    withdrawn: int = 0
    """Kept pushes, and scheduled ones to this user alone, that were recalled."""

    def any(self) -> bool:
        """Whether there is anything."""
        return any(msgspec.structs.astuple(self))


class Left(msgspec.Struct, frozen=True):
    """What still has the id."""

    in_flight: int
    """Rows that are not final, that owe a receipt, whose fallback is being published, or that somebody holds."""
    open_sessions: int
    """Sessions that are open, or whose process is dead and nobody has noticed yet."""
    subscriptions: int
    scheduled: int
    """Scheduled pushes to this user alone that no bridge has published yet."""
    revocations: int
    scheduled_for_more: int
    """Scheduled pushes to others as well whose message contains the id. They stay until their time."""
    names: int
    """Rows under the new name whose push id, batch id or topic contains the id: their publisher's choice."""
    topics: int
    """Last values whose topic or meta contains the id."""
    shared: int
    """Rows whose data was stored once for several users: it stays for the others, until their day is dropped."""
    actions: int
    """Rows of ops_action with the id within a longer text, such as an error."""

    def unfinished(self, *, kept_revocations: bool) -> bool:
        """Whether another run could do more."""
        revoked = 0 if kept_revocations else self.revocations
        return bool(self.in_flight or self.open_sessions or self.subscriptions or self.scheduled or revoked)


def new_name() -> str:
    """A name for somebody who is forgotten; no two are the same."""
    return f"forgotten-{secrets.token_hex(16)}"


def checked_name(name: str) -> str:
    """The name, if an earlier run may have given it; raises SettingsError."""
    if not _NAME.fullmatch(name):
        raise SettingsError("--as", "the name that an earlier run has printed is expected: forgotten-...")
    return name


# --- statements ------------------------------------------------------------------------------------------

# Each is found by an index, and rows are changed by their keys.
_PLANS: LiteralString = """
    select set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)
    """
# For a page of many rows: they are read in the order of their index, from the page before on, and not sorted.
_IN_ORDER: LiteralString = "select set_config('enable_sort', 'off', true)"
# Final, nothing owed, and no process at its fallback: no writer looks for the row by its user any more.
_AT_REST: LiteralString = """
    l.final and l.owed is null and (l.fallback_due is null or l.fallback_claim is null)
    """
_OPEN: LiteralString = """
    select count(*) from session s where s.user_id = %(user)s and s.closed_at is null
      and exists (select from node n where n.boot = s.boot and n.seen_at > clock_timestamp() - interval '5 seconds')
    """
# A push that was published again on the same day may have a row under either name: that one gets a name of its own. It
# is looked for row by row (`offset 0`): as a join it might read all rows of the name for each page.
_COLLIDES: LiteralString = """
    exists (
        select from delivery_log o
        where o.push_id = l.push_id and o.user_id = %(name)s and o.tenant = l.tenant and o.day = l.day
        offset 0)
    """
# Only the index by user has this order, since the condition names no single user.
_ROWS: LiteralString = f"""
    with mine as materialized (
        select l.day, l.tenant, l.push_id, l.taken_at, l.content is not null as shared from delivery_log l
        where nullif(l.user_id, '') between %(user)s and %(user)s and l.taken_at >= %(after)s::timestamptz
          and {_AT_REST} and not {_COLLIDES}
        order by nullif(l.user_id, ''), l.taken_at limit %(limit)s
        for update of l skip locked),
    done as (
        update delivery_log l set
            user_id = %(name)s, payload = null, content = null, meta = null, excluded = null, detail = '',
            traceparent = '', collapse_key = null, fingerprint = null,
            fallback_due = null, fallback_key = null, fallback_claim = null
        from mine m
        where l.day = m.day and l.push_id = m.push_id and l.user_id = %(user)s and l.tenant = m.tenant
        returning m.taken_at, m.shared)
    select count(*), count(*) filter (where shared), max(taken_at) from done
    """
_COLLIDING: LiteralString = f"""
    select count(*) from (
        select from delivery_log l where nullif(l.user_id, '') = %(user)s and {_AT_REST} and {_COLLIDES}
        limit 1) c
    """
_STORED: LiteralString = """
    with kept as materialized (
        select l.day, l.tenant, l.push_id, l.user_id from delivery_log l
        where l.user_id = %(user)s and l.outcome = 'stored'
        order by l.push_id, l.user_id, l.tenant limit %(limit)s)
    select count(*) from (
        select array_agg(k.day) as days, array_agg(k.tenant) as tenants, array_agg(k.push_id) as pushes,
               array_agg(k.user_id) as users from kept k) a
    cross join lateral end_stored(a.days, a.tenants, a.pushes, a.users, 'recalled', 'withdrawn') e
    """
_SCHEDULED: LiteralString = """
    with mine as materialized (
        select s.place from scheduled s
        where s.user_id = %(user)s and s.claimed_at is null and s.recalled_at is null
        limit %(limit)s for update of s skip locked),
    done as (
        update scheduled s set recalled_at = clock_timestamp(), due_at = least(s.due_at, clock_timestamp())
        from mine m where s.place = m.place returning 1)
    select count(*) from done
    """
# A scheduled push that was published is nowhere in the database until a bridge has taken it.
_TO_COME: LiteralString = "select s.tenant, s.push_id from scheduled s where s.user_id = %(user)s limit 10000"
_IN_THE_AIR: LiteralString = """
    select count(*) from unnest(%(tenants)s::text[], %(pushes)s::text[]) as n (tenant, push_id)
    where not exists (
        select from delivery_log l where l.push_id = n.push_id collate "C" and l.tenant = n.tenant collate "C")
    """
# Rows without a user: where the request was rejected before one was known, its body may name some.
_BODIES: LiteralString = """
    select l.taken_at, l.day, l.tenant, l.push_id, l.user_id, l.payload, l.detail from delivery_log l
    where nullif(l.user_id, '') is null and l.outcome = 'rejected'
      and (%(after)s::timestamptz is null or (l.taken_at, l.push_id, l.tenant) > (%(after)s, %(push)s, %(tenant)s))
    order by l.taken_at, l.push_id, l.tenant limit 50
    """
_ERASE: LiteralString = """
    update delivery_log l set
        payload = null, meta = null, content = null, excluded = null, traceparent = '', detail = ''
    where l.day = %(day)s and l.push_id = %(push_id)s and l.user_id = %(user_id)s and l.tenant = %(tenant)s
      and l.final and l.owed is null
    """
_TOKENS: LiteralString = """
    select distinct t.jti from session s, lateral (
        select s.jti where s.expires_at > clock_timestamp()
        union select jsonb_array_elements_text(s.former)) t (jti)
    where s.user_id = %(user)s and t.jti is not null
      and not exists (select from revocation r where r.jti = t.jti and r.user_id is null and r.session is null)
    limit %(limit)s
    """
_REVOKE_TOKEN: LiteralString = "select revoke_tokens(null, null, %(token)s, null)"
# Only what every living node has read: it knows them by their marks, and would never see the id otherwise.
_REVOCATIONS: LiteralString = """
    with done as (
        update revocation v set user_id = %(name)s
        where v.user_id = %(user)s
          and not exists (
              select from node n left join revocation_reader r on r.boot = n.boot
              where n.seen_at > clock_timestamp() - interval '5 seconds' and coalesce(r.mark, -1) < v.mark)
        returning 1)
    select count(*) from done
    """
_SESSIONS: LiteralString = """
    with mine as materialized (
        select s.session from session s where s.user_id = %(user)s and s.closed_at is not null
        order by s.opened_at limit %(limit)s for update of s skip locked),
    left_topics as (delete from subscription u using mine m where u.session = m.session returning 1),
    done as (
        update session s set user_id = %(name)s, address = null, user_agent = null, jti = null, former = null
        from mine m where s.session = m.session returning 1)
    select (select count(*) from done), (select count(*) from left_topics)
    """
# No index finds these: rows whose session is not in the ledger any more.
_SUBSCRIPTIONS: LiteralString = """
    with mine as materialized (
        select u.topic, u.user_id, u.session from subscription u
        where u.user_id = %(user)s
          and not exists (select from session s where s.session = u.session and s.closed_at is null)
        limit %(limit)s),
    done as (
        delete from subscription u using mine m
        where u.topic = m.topic and u.user_id = m.user_id and u.session = m.session returning 1)
    select count(*) from done
    """
_ACTIONS: LiteralString = """
    select a.begun_at, a.id, a.target, a.facts from ops_action a
    where (position(%(text)s in a.target::text) > 0 or position(%(text)s in a.facts::text) > 0)
      and (%(after)s::timestamptz is null or (a.begun_at, a.id) > (%(after)s, %(id)s))
    order by a.begun_at, a.id limit %(limit)s
    """
_RENAME_ACTION: LiteralString = """
    update ops_action set target = %(target)s, facts = %(facts)s where id = %(id)s
    """
_LEFT: LiteralString = """
    select (select count(*) from delivery_log l where nullif(l.user_id, '') = %(user)s) as in_flight,
           (select count(*) from session s where s.user_id = %(user)s) as open_sessions,
           (select count(*) from subscription u where u.user_id = %(user)s) as subscriptions,
           (select count(*) from scheduled s where s.user_id = %(user)s) as scheduled,
           (select count(*) from revocation r where r.user_id = %(user)s) as revocations,
           (select count(*) from scheduled s where s.user_id <> %(user)s
              and (position(%(bytes)s in s.body) > 0 or position(%(bytes)s in s.properties) > 0)) as scheduled_for_more,
           (select count(*) from delivery_log l where nullif(l.user_id, '') = any(%(names)s)
              and (position(%(user)s in l.push_id) > 0 or position(%(user)s in l.topic) > 0
                   or position(%(user)s in l.batch_id) > 0)) as names,
           (select count(*) from retained r
            where position(%(user)s in r.topic) > 0 or position(%(text)s in r.meta::text) > 0) as topics
    """
_COUNT: LiteralString = """
    select (select count(*) from delivery_log l where nullif(l.user_id, '') = %(user)s) as rows,
           (select count(*) from session s where s.user_id = %(user)s) as sessions,
           (select count(*) from subscription u where u.user_id = %(user)s) as subscriptions,
           (select count(*) from revocation r where r.user_id = %(user)s) as revocations,
           (select count(*) from ops_action a
            where position(%(text)s in a.target::text) > 0 or position(%(text)s in a.facts::text) > 0) as actions,
           (select count(*) from delivery_log l where l.user_id = %(user)s and l.outcome = 'stored')
           + (select count(*) from scheduled s where s.user_id = %(user)s) as withdrawn
    """
_ENDING: LiteralString = f"""
    select (select count(*) from delivery_log l where nullif(l.user_id, '') = %(user)s and not ({_AT_REST}))
           + (select count(*) from session s where s.user_id = %(user)s and s.closed_at is null)
           + (select count(*) from scheduled s where s.user_id = %(user)s),
           exists (select from node n where n.seen_at > clock_timestamp() - interval '5 seconds')
    """


class Forgetting:
    """Forgets one user; `close` it at the end. Each method raises StoreUnavailable."""

    def __init__(self, dsn: str, user: str, name: str, clock: Clock, on_progress: Callable[[], None]) -> None:
        """`name`: what stands for the user from now on. `on_progress` is called after each page that was changed."""
        self._dsn = dsn
        self._user = user
        self._names = [name]
        self._clock = clock
        self._on_progress = on_progress
        self._connections = Connections(dsn, "bridge forget", 1)
        text = json.dumps(user, ensure_ascii=False)[1:-1]
        self._params: dict[str, object] = {
            "user": user, "text": text, "bytes": user.encode("utf-8", "surrogateescape"), "limit": PAGE, "name": name,
        }  # fmt: skip
        self.done = Places()
        """What was changed so far."""
        self._shared = 0
        self._held = 0

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._connections.close()

    async def open_sessions(self) -> int:
        """The live sessions of the user."""
        return int((await self._ask(_OPEN))[0][0])

    async def count(self) -> Places:
        """What there is now, without changing anything."""
        found = dict(zip(("rows", "sessions", "subscriptions", "revocations", "actions", "withdrawn"),
                         (await self._ask(_COUNT))[0], strict=True))  # fmt: skip
        bodies = [row async for page in self._bodies() for row in page]
        return Places(**found, bodies=len(bodies))

    async def revoke(self) -> None:
        """Revoke all tokens of the user that were issued until now, which closes their sessions."""
        log = PostgresRevocations(self._dsn, "command")
        try:
            mark = await log.revoke(Revocation(user=self._user, before=self._clock.time()))
            await answered(log, mark, self._clock)
        finally:
            await log.close()

    async def run(self, *, keep_revocations: bool) -> Left:
        """Withdraw what waits for the user, wait for its end, and change every place. Returns what is left."""
        to_come = await self._ask(_TO_COME)
        while recalled := await self._changed(_SCHEDULED):
            self.done.withdrawn += recalled[0]
        while ended := await self._changed(_STORED):
            self.done.withdrawn += ended[0]
        await self._wait(to_come)
        if not keep_revocations:
            await self._revocations()
        while closed := await self._changed(_SESSIONS):
            self.done.sessions += closed[0]
            self.done.subscriptions += closed[1]
        while gone := await self._changed(_SUBSCRIPTIONS):
            self.done.subscriptions += gone[0]
        await self._rows()
        await self._erase_bodies()
        inside = await self._actions()
        (counts,) = await self._ask(_LEFT, names=self._names)
        found = [*counts, self._shared, inside]
        found[0] += self._held
        return Left(**dict(zip(Left.__struct_fields__, found, strict=True)))

    async def _wait(self, to_come: Sequence[tuple[Any, ...]]) -> None:
        """Until running bridges have ended what was withdrawn, and told of it; without one nothing is waited for."""
        tenants, pushes = [tenant for tenant, _ in to_come], [push for _, push in to_come]
        give_up = self._clock.monotonic() + ENDED_WITHIN
        while self._clock.monotonic() < give_up:
            (ending, lives) = (await self._ask(_ENDING))[0]
            if not lives:
                return
            if not ending:
                (in_the_air,) = (await self._ask(_IN_THE_AIR, tenants=tenants, pushes=pushes))[0]
                if not in_the_air:
                    # Its row may have come after the first look, and owe a receipt.
                    if not (await self._ask(_ENDING))[0][0]:
                        return
                    continue
            while ended := await self._changed(_STORED):
                # What was scheduled is a push like any other now, and may be kept.
                self.done.withdrawn += ended[0]
            await self._clock.sleep(_LOOK_EVERY)

    async def _revocations(self) -> None:
        """Rename them; the tokens that the ledger knows are revoked one by one first, so that they stay out."""
        (count,) = (await self._ask("select count(*) from revocation where user_id = %(user)s"))[0]
        if not count:
            return
        while tokens := await self._ask(_TOKENS):
            for (token,) in tokens:
                await self._ask(_REVOKE_TOKEN, token=token)
        while changed := await self._changed(_REVOCATIONS):
            self.done.revocations += changed[0]

    async def _rows(self) -> None:
        after = _FIRST
        while True:
            changed, shared, last = (await self._ask(_ROWS, in_order=True, after=after))[0]
            if changed:
                self.done.rows += changed
                self._shared += shared
                after = last
                self._on_progress()
            elif after is not _FIRST:
                after = _FIRST  # some may have come to rest meanwhile
            elif (await self._ask(_COLLIDING))[0][0]:
                self._names.append(new_name())
                self._params["name"] = self._names[-1]
            else:
                return

    async def _bodies(self) -> Any:
        """Rows of rejected requests that name the user, page by page."""
        after: dict[str, Any] = {"after": None, "push": "", "tenant": ""}
        while page := await self._ask(_BODIES, **after):
            after = {"after": page[-1][0], "push": page[-1][3], "tenant": page[-1][2]}
            yield [
                dict(zip(("day", "tenant", "push_id", "user_id"), row[1:5], strict=True))
                for row in page
                if body_names(self._user, row[5] or b"") or body_names(self._user, row[6].encode())
            ]

    async def _erase_bodies(self) -> None:
        async for page in self._bodies():
            for row in page:
                erased = await self._execute(_ERASE, row)
                self.done.bodies += erased
                self._held += 1 - erased

    async def _actions(self) -> int:
        """Rename the user in table ops_action; returns in how many rows the id is within a longer text."""
        after: dict[str, Any] = {"after": None, "id": None}
        inside = 0
        while page := await self._ask(_ACTIONS, **after):
            after = {"after": page[-1][0], "id": page[-1][1]}
            for _, row_id, target, facts in page:
                new = [renamed(value, self._user, self._names[0]) for value in (target, facts)]
                if new != [target, facts]:
                    texts = [None if value is None else json.dumps(value) for value in new]
                    self.done.actions += await self._execute(
                        _RENAME_ACTION, {"target": texts[0], "facts": texts[1], "id": row_id}
                    )
                text = json.dumps(new, ensure_ascii=False)
                inside += str(self._params["text"]) in text
        return inside

    # --- the database ---

    async def _changed(self, query: LiteralString) -> tuple[int, ...] | None:
        """Run a statement that changes a page of rows; None if there are no more."""
        counts = (await self._ask(query))[0]
        if not counts[0]:
            return None
        self._on_progress()
        return tuple(int(count) for count in counts)

    async def _ask(
        self, query: LiteralString, *, in_order: bool = False, **more: object
    ) -> Sequence[tuple[Any, ...]]:
        async def work(conn: Connection) -> Sequence[tuple[Any, ...]]:
            async with conn.transaction():
                await conn.execute(_PLANS)
                if in_order:
                    await conn.execute(_IN_ORDER)
                return await (await conn.execute(query, {**self._params, **more})).fetchall()

        return await self._connections.run(work)

    async def _execute(self, query: LiteralString, params: Mapping[str, object]) -> int:
        async def work(conn: Connection) -> int:
            return (await conn.execute(query, params)).rowcount

        return await self._connections.run(work)
