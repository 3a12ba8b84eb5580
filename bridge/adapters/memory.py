"""The Store and Lease ports in memory: for a log on stdout, and for tests of the core.

The promises are weaker than with a database, and only these: rows are forgotten when the process ends, and
the oldest ended ones when there are more than `max_rows`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from bridge.errors import BridgeError, NodeNameTaken, RowsRefused
from bridge.flight import merged
from bridge.model import LateProof, Outcome, PushKey, Reason, Reply, Row, RowKey
from bridge.ports import Clock, Written

LEASE_SECONDS = 5.0
"""How long a lease is good after it was renewed."""
RENEW_GAP = 3.0
"""Seconds between two renewals after which a node no longer counts as having been there all the time."""
_DAY = 86400.0
_TIME_MAX = 9e12
"""About the year 287,000, as in Postgres."""


class _Node:
    __slots__ = ("boot", "seen_at", "steady_since")

    def __init__(self, boot: str, now: float) -> None:
        self.boot = boot
        self.seen_at = now
        self.steady_since = now


class MemoryStore:
    """The rows in a dictionary, with the semantics of the database: days, compare-and-set, debts."""

    def __init__(self, clock: Clock, *, max_rows: int = 200_000) -> None:
        self._clock = clock
        self._max_rows = max_rows
        self.rows: dict[RowKey, Row] = {}
        """Every row by its key, in the order in which they were first written. Tests may add some themselves."""
        self._days: dict[RowKey, int] = {}
        self._users: dict[PushKey, dict[str, None]] = {}
        self._ended: deque[RowKey] = deque()
        """Keys in the order in which they ended; one may be in it twice, or be forgotten already."""
        self._owing: dict[RowKey, None] = {}
        self._day = int(clock.time() // _DAY)
        self._since = self._day - 1
        self.nodes: dict[str, _Node] = {}
        """Leases by node name."""
        self.fail_with: BridgeError | None = None
        """For tests: every method raises this, with nothing done, until it is None again."""

    def _begin(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with
        today = int(self._clock.time() // _DAY)
        if today > self._day:
            unfinished = [self._days.get(row.key, today) for row in self.rows.values() if not row.final]
            self._since = min([self._day, *unfinished])
            self._day = today
        if len(self._days) != len(self.rows):
            for key in self.rows.keys() - self._days.keys():
                self._days[key] = self._day
                self._index(None, self.rows[key])

    def _known(self, key: RowKey) -> Row | None:
        row = self.rows.get(key)
        return row if row is not None and self._days[key] >= self._since else None

    def _put(self, row: Row) -> None:
        before = self.rows.get(row.key)
        self.rows[row.key] = row
        self._index(before, row)

    def _index(self, before: Row | None, row: Row) -> None:
        key = row.key
        if before is None:
            self._users.setdefault(PushKey(key.tenant, key.push_id), {})[key.user] = None
        if row.final:
            if before is None or not before.final:
                self._ended.append(key)
            if row.owed is not None:
                self._owing[key] = None
            else:
                self._owing.pop(key, None)

    def _forget(self) -> None:
        while len(self.rows) > self._max_rows and self._ended:
            key = self._ended.popleft()
            row = self.rows.get(key)
            if row is None or not row.final:
                continue
            del self.rows[key], self._days[key]
            self._owing.pop(key, None)
            push = PushKey(key.tenant, key.push_id)
            del self._users[push][key.user]
            if not self._users[push]:
                del self._users[push]

    # --- the Store port ---

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """See `Store.record`."""
        self._begin()
        for row in rows:
            _check(row)
        written = []
        for row in rows:
            have = self._known(row.key)
            if have is not None and have.final:
                written.append(Written(have, applied=False))
                continue
            if have is None:
                # A row of the same key that is older than what must be known makes room for the new one.
                self.rows.pop(row.key, None)
                self._days[row.key] = self._day
            else:
                row = _updated(have, row)
            self._put(row)
            written.append(Written(row, applied=True))
        self._forget()
        return written

    async def find(self, keys: Sequence[PushKey]) -> Sequence[Row]:
        """See `Store.find`."""
        self._begin()
        found = []
        for push in dict.fromkeys(keys):
            for user in self._users.get(push, ()):
                row = self._known(RowKey(push.tenant, push.push_id, user))
                if row is not None:
                    found.append(row)
        return found

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> None:
        """See `Store.owe`."""
        self._begin()
        for key, replies in debts.items():
            row = self._known(key)
            if row is not None:
                self._put(msgspec.structs.replace(row, owed=merged(row.owed or (), replies)))

    async def settle(self, keys: Sequence[RowKey]) -> None:
        """See `Store.settle`."""
        self._begin()
        for key in keys:
            row = self.rows.get(key)
            if row is not None:
                self._put(msgspec.structs.replace(row, owed=None))

    async def owing(self, limit: int) -> Sequence[Row]:
        """See `Store.owing`."""
        self._begin()
        rows = (self.rows[key] for key in self._owing)
        return heapq.nsmallest(limit, rows, key=lambda row: row.taken_at)

    async def prove_late(self, proofs: Sequence[LateProof]) -> None:
        """See `Store.prove_late`."""
        self._begin()
        for proof in sorted(proofs, key=lambda p: p.proven_at):
            row = self._known(proof.key)
            if row is not None and row.final and row.proven_at is None:
                self._put(msgspec.structs.replace(row, proven_at=proof.proven_at))

    async def recent(self, limit: int) -> Sequence[PushKey]:
        """See `Store.recent`."""
        self._begin()
        known = (row for key, row in self.rows.items() if row.final and self._days[key] >= self._since)
        newest: dict[PushKey, None] = {}
        for row in sorted(known, key=lambda row: row.taken_at, reverse=True):
            newest[PushKey(row.key.tenant, row.key.push_id)] = None
            if len(newest) == limit:
                break
        return list(newest)[::-1]

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
            if row.final or (row.node == node and row.boot == boot):
                continue
            theirs = self.nodes.get(row.node)
            alive = theirs is not None and theirs.boot == row.boot and now - theirs.seen_at < LEASE_SECONDS
            if row.node == node or (steady and not alive):
                proven = row.proven_at is not None
                end = msgspec.structs.replace(
                    row,
                    outcome=Outcome.RECEIVED if proven else Outcome.UNKNOWN,
                    reason=Reason.NOT_ACKED if proven else Reason.NODE_DIED,
                    finished_at=now,
                )
                self._put(end)
                ended.append(end)
        self._forget()
        return ended


class MemoryLease:
    """The Lease port over a MemoryStore: other claimants are objects of the same process."""

    def __init__(self, store: MemoryStore, clock: Clock, node: str, boot: str) -> None:
        self._store = store
        self._clock = clock
        self._node = node
        self._boot = boot

    def _begin(self) -> None:
        if self._store.fail_with is not None:
            raise self._store.fail_with

    async def claim(self) -> None:
        """See `Lease.claim`; does not wait for a predecessor."""
        self._begin()
        now = self._clock.time()
        holder = self._store.nodes.get(self._node)
        if holder is not None and holder.boot != self._boot and now - holder.seen_at < LEASE_SECONDS:
            raise NodeNameTaken(self._node)
        self._store.nodes[self._node] = _Node(self._boot, now)

    async def renew(self) -> None:
        """See `Lease.renew`."""
        self._begin()
        now = self._clock.time()
        holder = self._store.nodes.setdefault(self._node, _Node(self._boot, now))
        if holder.boot != self._boot:
            raise NodeNameTaken(self._node)
        if now - holder.seen_at > RENEW_GAP:
            holder.steady_since = now
        holder.seen_at = now

    async def end_dead(self, limit: int) -> Sequence[Row]:
        """See `Lease.end_dead`."""
        return self._store.end_dead(self._node, self._boot, limit)

    async def release(self) -> None:
        """See `Lease.release`."""
        self._begin()
        holder = self._store.nodes.get(self._node)
        if holder is not None and holder.boot == self._boot:
            del self._store.nodes[self._node]


def _updated(have: Row, new: Row) -> Row:
    """What an update makes of a row that is not final; `record_rows` of `sql/0001_rows.sql` says the same."""
    same_boot = have.node == new.node and have.boot == new.boot
    owed = new.owed if have.owed is None else merged(have.owed, new.owed or ())
    return msgspec.structs.replace(
        have,
        outcome=new.outcome,
        reason=new.reason,
        sessions=max(have.sessions, new.sessions),
        attempts=max(have.attempts, new.attempts) if same_boot else have.attempts + new.attempts,
        written_at=new.written_at if have.written_at is None else have.written_at,
        proven_at=have.proven_at if new.proven_at is None else new.proven_at,
        finished_at=new.finished_at,
        node=new.node,
        boot=new.boot,
        detail=new.detail,
        payload=have.payload if new.payload is None else new.payload,
        owed=owed,
    )


def _check(row: Row) -> None:
    """Refuse what no database takes: NUL, lone surrogates, times that are none."""
    text = "".join((*row.key, row.node, row.boot, row.event, row.app_id, row.detail, row.traceparent))
    if "\0" in text:
        raise RowsRefused("22021", "text with a NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowsRefused("22021", f"text that is no UTF-8: {error.reason}") from error
    for time in (row.published_at, row.taken_at, row.written_at, row.proven_at, row.finished_at):
        if time is not None and not abs(time) <= _TIME_MAX:
            raise RowsRefused("22008", "a time that is out of range")
