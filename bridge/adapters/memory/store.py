"""The Store port in memory: for a log on stdout, and for tests of the core.

Its promises are weaker than those of a database. Rows are forgotten when the process ends, and the oldest final ones
when there are more than `max_rows`. A key has one row: a final row of days ago makes room for a new one.
"""

from __future__ import annotations

import datetime
import heapq
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import msgspec

from bridge.adapters.memory.fallbacks import FallbackClaims, due_fallbacks, later
from bridge.adapters.memory.rows import (
    NO_FALLBACK,
    cancelled,
    check,
    died,
    forgotten,
    is_kept,
    kept_bytes,
    lean,
    light,
    updated,
)
from bridge.core.errors import BridgeError
from bridge.core.model.outcomes import DELIVERED, Outcome, Reason
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Difference, DueFallback, LateProof, Reply, Row, RowKey, merged
from bridge.core.ports.clock import Clock
from bridge.core.ports.store import (
    LEASE_SECONDS,
    Collapse,
    IdPage,
    IdPlace,
    MailboxAsk,
    MailboxPage,
    OthersRows,
    RecallPage,
    RecallPlace,
    ResumeAsk,
    ResumePoint,
    RowPage,
    Superseded,
    Written,
)

RENEW_GAP = 3.0
"""Seconds between two renewals after which a node does not count as having been alive without a break."""
K = TypeVar("K")
V = TypeVar("V")


class Node:
    """A node's claim on its name."""

    __slots__ = ("boot", "known_until", "queue", "seen_at", "steady_since", "stopping", "taking")

    def __init__(self, boot: str, now: float) -> None:
        self.boot = boot
        self.seen_at = now
        self.steady_since = now
        self.queue = ""
        self.known_until: float | None = None
        self.taking: Sequence[int] | None = None
        self.stopping = False


class MemoryStore:
    """Rows in a dictionary, with the semantics of the database: days, compare-and-set, debts."""

    def __init__(self, clock: Clock, *, max_rows: int = 200_000) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self.rows: dict[RowKey, Row] = {}
        """Every row by its key, in the order of their first writing. Tests may add rows."""
        self._indexed: set[RowKey] = set()
        self._users: dict[PushKey, dict[str, None]] = {}
        self._kept: dict[str, dict[RowKey, None]] = {}
        """By user, the keys of the rows that have a ttl."""
        self._stored: dict[RowKey, None] = {}
        self._ended: deque[RowKey] = deque()
        """Keys of final rows in the order in which they ended. A key may be in it twice, or be forgotten already."""
        self._owing: dict[RowKey, None] = {}
        self.fallbacks = FallbackClaims()
        self._day = _day(clock.time())
        self._since = self._kept_since = self._day - datetime.timedelta(days=1)
        self.nodes: dict[str, Node] = {}
        """Leases by node name."""
        self.fail_with: BridgeError | None = None
        """For tests: every method raises this and does nothing, until it is None again."""

    def _begin(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        today = _day(self._clock.time())
        if today > self._day:
            self._since = min([self._day, *self._days(lambda row: row.outcome is Outcome.PENDING)])
            self._kept_since = min([self._since, *self._days(lambda row: row.outcome is Outcome.STORED)])
            self._day = today
        if len(self._indexed) != len(self.rows):
            for key in self.rows.keys() - self._indexed:
                row = self.rows[key]
                self.rows[key] = msgspec.structs.replace(row, day=row.day or self._day)
                self._index(None, self.rows[key])

    def _days(self, which: Callable[[Row], bool]) -> list[datetime.date]:
        return [row.day for row in self.rows.values() if row.day is not None and which(row)]

    def _known(self, key: RowKey, since: datetime.date) -> Row | None:
        row = self.rows.get(key)
        return row if row is not None and row.day is not None and row.day >= since else None

    def _put(self, row: Row) -> None:
        before = self.rows.get(row.key)
        self.rows[row.key] = row
        self._index(before, row)

    def _index(self, before: Row | None, row: Row) -> None:
        key = row.key
        self._indexed.add(key)
        self._users.setdefault(PushKey(key.tenant, key.push_id), {})[key.user] = None
        if row.expires_at is not None:
            self._kept.setdefault(key.user, {})[key] = None
        if row.outcome is Outcome.STORED:
            self._stored[key] = None
        else:
            self._stored.pop(key, None)
        if row.final:
            if before is None or not before.final:
                self._ended.append(key)
            if row.owed is not None:
                self._owing[key] = None
            else:
                self._owing.pop(key, None)

    def _forget(self) -> None:
        while len(self.rows) > self._max_rows and self._ended:
            row = self.rows.get(self._ended.popleft())
            if row is not None and row.final:
                self._drop(row.key)

    def _drop(self, key: RowKey) -> None:
        if self.rows.pop(key, None) is None:
            return
        self._indexed.discard(key)
        self._owing.pop(key, None)
        self._stored.pop(key, None)
        self.fallbacks.forget(key)
        _remove(self._users, PushKey(key.tenant, key.push_id), key.user)
        _remove(self._kept, key.user, key)

    # --- the Store port ---

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """See `Store.record`."""
        self._begin()
        for row in rows:
            check(row)
        written = []
        for row in rows:
            have = self.rows.get(row.key)
            if have is not None and have.final:
                have = self._known(row.key, row.day or self._since)
            if have is not None and have.final:
                written.append(Written(light(have), applied=False))
                continue
            if have is None:
                # A row of the same key that is older than what must be known makes room for the new one.
                self._drop(row.key)
                self._put(msgspec.structs.replace(row, day=self._day))
                written.append(Written(row, applied=True))
            else:
                row = updated(have, row)
                self._put(row)
                written.append(Written(light(row), applied=True))
        self._forget()
        return written

    async def try_writing(self) -> None:
        """See `Store.try_writing`."""
        self._begin()

    async def find(self, keys: Sequence[RowKey]) -> Sequence[Row]:
        """See `Store.find`."""
        self._begin()
        known = (self._known(key, self._kept_since) for key in dict.fromkeys(keys))
        return [lean(row) for row in known if row is not None]

    async def find_push(self, push: PushKey, from_user: str, limit: int) -> RowPage:
        """See `Store.find_push`."""
        self._begin()
        rows, next_user = self._of_push(push, from_user, limit)
        return RowPage([lean(row) for row in rows], next_user)

    def _of_push(self, push: PushKey, from_user: str, limit: int) -> tuple[list[Row], str | None]:
        users = sorted((u for u in self._users.get(push, ()) if u >= from_user), key=str.encode)
        keys = [RowKey(push.tenant, push.push_id, user) for user in users]
        rows = [row for key in keys if (row := self._known(key, self._kept_since)) is not None]
        return rows[:limit], rows[limit].key.user if len(rows) > limit else None

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """See `Store.owe`."""
        self._begin()
        for key, replies in debts.items():
            row = self._known(key, self._kept_since)
            if row is not None:
                self._put(msgspec.structs.replace(row, owed=merged(row.owed or (), replies)))
        return ()

    async def settle(self, paid: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """See `Store.settle`."""
        self._begin()
        for key, replies in paid.items():
            row = self.rows.get(key)
            if row is not None:
                left = tuple(reply for reply in row.owed or () if reply not in replies)
                self._put(msgspec.structs.replace(row, owed=left or None))
        return ()

    async def owing(self, limit: int) -> Sequence[Row]:
        """See `Store.owing`."""
        self._begin()
        rows = (self.rows[key] for key in self._owing)
        return [lean(row) for row in heapq.nsmallest(limit, rows, key=lambda row: row.taken_at)]

    async def prove_late(self, proofs: Sequence[LateProof]) -> Collection[RowKey]:
        """See `Store.prove_late`."""
        self._begin()
        for proof in sorted(proofs, key=lambda p: p.at):
            row = self._known(proof.key, self._kept_since)
            if row is not None and row.final and row.late_at is None:
                proven_at = proof.at if row.proven_at is None else row.proven_at
                self._put(cancelled(msgspec.structs.replace(row, late_at=proof.at, proven_at=proven_at)))
        return ()

    async def differing(self, differences: Sequence[Difference]) -> Collection[RowKey]:
        """See `Store.differing`."""
        self._begin()
        for one in sorted(differences, key=lambda d: d.at):
            row = self._known(one.key, self._kept_since)
            if row is not None and row.differed_at is None:
                self._put(msgspec.structs.replace(row, differed_at=one.at))
        return ()

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        """See `Store.ids`."""
        self._begin()
        place = after or IdPlace(self._since, "")
        known = sorted(
            {
                (row.day, key.push_id)
                for key, row in self.rows.items()
                if row.day is not None and row.day >= self._since and (row.day, key.push_id) > place
            }
        )
        more = len(known) > limit
        return IdPage([push_id for _, push_id in known[:limit]], IdPlace(*known[limit - 1]) if more else None)

    async def rows_of_others(self, boot: str) -> OthersRows:
        """See `Store.rows_of_others`."""
        self._begin()
        return OthersRows(self._since, sum(1 for row in self.rows.values() if row.boot != boot))

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        """See `Store.mailbox`."""
        self._begin()
        return [self._page(ask, self._clock.time()) for ask in asks]

    def _page(self, ask: MailboxAsk, now: float) -> MailboxPage:
        page: list[Row] = []
        looked = size = reached = 0
        for row in self._mailbox(ask.user):
            delivered = ask.seen is not None and row.position > ask.seen and row.outcome in DELIVERED
            if not (row.outcome is Outcome.STORED or delivered) or not ask.after < row.position <= ask.until:
                continue
            full = looked >= ask.rows or size >= ask.payload_bytes
            if full and row.position != reached:
                return MailboxPage(page, reached, more=True)
            looked += 1
            reached = row.position
            if row.payload is not None and (row.expires_at or 0) > now:
                size += kept_bytes(row)
                if ask.session not in row.excluded:
                    page.append(msgspec.structs.replace(row, excluded=frozenset()))
        return MailboxPage(page, ask.until, more=False)

    def _mailbox(self, user: str) -> list[Row]:
        """Every row of this user that has a ttl, lowest position first."""
        return sorted((self.rows[key] for key in self._kept.get(user, ())), key=lambda row: row.position)

    async def resume_points(self, asks: Sequence[ResumeAsk]) -> Sequence[ResumePoint | None]:
        """See `Store.resume_points`."""
        self._begin()
        return [self._resume_point(ask) for ask in asks]

    def _resume_point(self, ask: ResumeAsk) -> ResumePoint | None:
        seen = [
            row.position or round(row.taken_at * 1e6)
            for push, users in self._users.items()
            if push.push_id == ask.push_id and ask.user in users
            for row in (self.rows[RowKey(push.tenant, push.push_id, ask.user)],)
        ]
        if not seen:
            return None
        position = min(seen)  # of each tenant there is one
        return ResumePoint(position, self._dropped_since(ask.user, position))

    async def dropped_since(self, places: Sequence[tuple[str, int]]) -> Sequence[bool]:
        """See `Store.dropped_since`."""
        self._begin()
        return [self._dropped_since(user, position) for user, position in places]

    def _dropped_since(self, user: str, position: int) -> bool:
        rows = self._mailbox(user)
        return any(row.position > position and row.reason is Reason.MAILBOX_FULL for row in rows)

    async def expire(self, limit: int) -> Sequence[Row]:
        """See `Store.expire`."""
        self._begin()
        now = self._clock.time()
        stored = sorted((self.rows[key] for key in self._stored), key=lambda row: row.expires_at or 0)
        over = [row for row in stored if (row.expires_at or 0) <= now][:limit]
        return [
            *self._end([r for r in over if r.proven_at is None], Outcome.EXPIRED, Reason.TTL),
            *self._end([r for r in over if r.proven_at is not None], Outcome.RECEIVED, Reason.NOT_ACKED),
        ]

    async def overfull(
        self, users: Sequence[str], pushes: int, payload_bytes: int
    ) -> Sequence[tuple[str, int]]:
        """See `Store.overfull`."""
        self._begin()
        over = []
        for user in dict.fromkeys(users):
            size = 0
            for count, row in enumerate(self._stored_of(user)[::-1], 1):
                size += kept_bytes(row)
                if count > pushes or size > payload_bytes:
                    over.append((user, row.position))
                    break
        return over

    async def trim(self, places: Sequence[tuple[str, int]], limit: int) -> Sequence[Row]:
        """See `Store.trim`."""
        self._begin()
        over = [row for user, until in places for row in self._stored_of(user) if row.position <= until]
        return self._end(over[:limit], Outcome.DROPPED, Reason.MAILBOX_FULL)

    def _stored_of(self, user: str) -> list[Row]:
        return [row for row in self._mailbox(user) if row.outcome is Outcome.STORED]

    async def users_with_mail(self, after: str, limit: int) -> Sequence[str]:
        """See `Store.users_with_mail`."""
        self._begin()
        return sorted({key.user for key in self._stored if key.user > after}, key=str.encode)[:limit]

    async def supersede(self, newer: Sequence[Collapse], limit: int) -> Superseded:
        """See `Store.supersede`."""
        self._begin()
        older = {
            row.key: row
            for new in newer
            for row in self._stored_of(new.user)
            if (row.key.tenant, row.collapse_key) == (new.tenant, new.collapse_key)
            and row.position < new.position
        }
        for new in newer:
            self._cancel(new.tenant, new.user, new.collapse_key, new.position)
        return Superseded(self._end(list(older.values())[:limit], Outcome.SUPERSEDED, Reason.COLLAPSED), [])

    async def recall(self, recall: Recall, place: RecallPlace, limit: int) -> RecallPage:
        """See `Store.recall`."""
        self._begin()
        following: RecallPlace | None = None
        if recall.push_id:
            push = PushKey(recall.tenant, recall.push_id)
            named, next_user = self._of_push(push, place.user, limit)
            following = None if next_user is None else RecallPlace(next_user)
            named = [cancelled(row) if row.final else row for row in named]
        else:
            self._cancel(recall.tenant, recall.user, recall.collapse_key)
            mine = [
                row
                for row in self._mailbox(recall.user)
                if (row.key.tenant, row.collapse_key) == (recall.tenant, recall.collapse_key)
            ]
            if place.position < 0:
                named = [row for row in mine if row.outcome is Outcome.STORED][:limit]
                following = RecallPlace(position=-1 if named else 0)
            else:
                after = [row for row in mine if row.outcome in DELIVERED and row.position > place.position]
                named = [row for row in after[:limit] if (row.expires_at or 0) > self._clock.time()]
                if len(after) > limit:
                    following = RecallPlace(position=after[limit - 1].position)
        stored = [row for row in named if row.outcome is Outcome.STORED]
        others = [forgotten(row) for row in named if row.outcome is not Outcome.STORED]
        for row in others:
            self._put(row)
        ended = self._end(stored, Outcome.RECALLED, Reason.WITHDRAWN)
        written = [Written(row, applied=True) for row in ended]
        return RecallPage([*written, *(Written(light(row), applied=False) for row in others)], following)

    async def forget_data(self, keys: Sequence[RowKey]) -> Sequence[Written]:
        """See `Store.forget_data`."""
        rows = [self.rows[row.key] for row in await self.find(keys) if is_kept(row)]
        for row in rows:
            self._put(cancelled(forgotten(row)))
        return [Written(light(row), applied=True) for row in rows]

    async def last_position(self) -> int:
        """See `Store.last_position`."""
        self._begin()
        return max((row.position for row in self.rows.values()), default=0)

    def _end(self, rows: Sequence[Row], outcome: Outcome, reason: Reason) -> list[Row]:
        now = self._clock.time()
        ended = [
            msgspec.structs.replace(row, outcome=outcome, reason=reason, finished_at=now) for row in rows
        ]
        for row in ended:
            self._put(cancelled(row) if outcome in NO_FALLBACK else row)
        self._forget()
        return [light(row) for row in ended]

    def _cancel(self, tenant: str, user: str, collapse_key: str, below: int | None = None) -> None:
        """Nobody needs the fallbacks of final rows with this collapse key, below a position or at all."""
        for row in list(self.rows.values()):
            named = (row.key.tenant, row.key.user, row.collapse_key) == (tenant, user, collapse_key)
            if named and row.final and (below is None or row.position < below):
                self._put(cancelled(row))

    async def claim_fallbacks(
        self, node: str, boot: str, limit: int, payload_bytes: int
    ) -> Sequence[DueFallback]:
        """See `Store.claim_fallbacks`."""
        self._begin()
        now = self._clock.time()
        mine = self.nodes.get(node)
        if mine is None or mine.boot != boot:
            return []
        if now - mine.steady_since < LEASE_SECONDS or now - mine.seen_at >= RENEW_GAP:
            return []
        living = {n.boot for n in self.nodes.values() if now - n.seen_at < LEASE_SECONDS}
        due = due_fallbacks(self.rows.values(), now)
        return self.fallbacks.claim(boot, due, living, now, limit, payload_bytes)

    async def note_fallbacks(self, boot: str, rows: Sequence[Row]) -> Collection[RowKey]:
        """See `Store.note_fallbacks`."""
        self._begin()
        for key in self.fallbacks.give_up(boot, rows):
            self.fallbacks.published[key] = self._clock.time()
            self._put(cancelled(self.rows[key]))
        return ()

    async def release_fallbacks(self, boot: str, rows: Sequence[Row], wait: float) -> Collection[RowKey]:
        """See `Store.release_fallbacks`."""
        self._begin()
        for key in self.fallbacks.give_up(boot, rows):
            self._put(later(self.rows[key], self._clock.time() + wait))
        return ()

    def end_dead(self, node: str, boot: str, limit: int) -> list[Row]:
        """See `Lease.end_dead`, on behalf of this boot of this node."""
        self._begin()
        now = self._clock.time()
        mine = self.nodes.get(node)
        if mine is None or mine.boot != boot:
            return []
        steady = now - mine.steady_since >= LEASE_SECONDS and now - mine.seen_at < RENEW_GAP
        ended: list[Row] = []
        for row in list(self.rows.values()):
            if len(ended) == limit:
                break
            if row.outcome is not Outcome.PENDING or (row.node == node and row.boot == boot):
                continue
            theirs = self.nodes.get(row.node)
            alive = theirs is not None and theirs.boot == row.boot and now - theirs.seen_at < LEASE_SECONDS
            if row.node == node or (steady and not alive):
                end = died(row, now)
                self._put(end)
                ended.append(light(end))
        self._forget()
        return ended


def _day(time: float) -> datetime.date:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).date()


def _remove(index: dict[K, dict[V, None]], at: K, value: V) -> None:
    """Remove a value from an index, and the key with its last value."""
    values = index.get(at, {})
    values.pop(value, None)
    if not values:
        index.pop(at, None)
