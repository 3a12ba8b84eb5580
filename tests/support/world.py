"""A model of the world around the core: a broker that redelivers, peers that misbehave, servers that go away.

`World` runs any list of steps on the real core with its ports in memory and time in its hands, heals
everything at the end, and checks the promises: one true final row for each push and user, no proof that a
peer did not give, nothing to a stranger, no ack before its rows, nothing owed, every fallback that is due and none
after a proof, no row for what was never published, every end announced, nothing missing for a device that resumes and
was told that it is complete, and nothing left in memory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final
from unittest import mock

import msgspec

from bridge.adapters.memory import MemoryLease, MemorySchedule, MemorySessions, MemoryStore
from bridge.adapters.memory.retained import MemoryRetained
from bridge.core.bounds import Bounds, MailboxBounds, SettlementBounds, StatementBounds, TakingBounds
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.recording import Recording
from bridge.core.errors import StoreUnavailable
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.model.ledger import Entries, Noted
from bridge.core.model.outcomes import DELIVERED, Outcome, Reason
from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.retained import LastValue, LastValuesAsk, LastValuesPage
from bridge.core.model.rows import DeadLetter, DueFallback, Receipt, Row, RowKey
from bridge.core.model.scheduled import Due, Scheduled
from bridge.core.model.sessions import Claims, Grant, Mode
from bridge.core.ports.broker import AckToken
from bridge.core.ports.broker import Published as PublishedFallbacks
from bridge.core.ports.scheduling import Release
from bridge.core.ports.store import (
    Collapse,
    MailboxAsk,
    MailboxPage,
    RecallPage,
    RecallPlace,
    RowPage,
    Superseded,
    Written,
)
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.states import SessionState
from tests.support.house import BOUNDS, House, Peer, start
from tests.support.ports import ManualClock, arrival

USERS = ("a", "b", "c")
TOPICS = ("t.0", "t.1")
CONFIRMS = ("written", "received", "acked")


@dataclass
class Published:
    """One message that the broker has confirmed."""

    body: bytes
    keys: tuple[RowKey, ...]
    """The rows that it must lead to."""
    reply_to: str = ""
    headers: Mapping[str, object] | None = None
    """Those of a scheduled push that is published again."""
    token: AckToken | None = None
    acked: bool = False
    deliveries: int = 0


@dataclass
class Step:
    """One thing that happens; numbers are taken modulo whatever there is."""

    kind: str
    n: int = 0
    m: int = 0


TIGHT: Final = Bounds(
    StatementBounds(sweep_rows=2),
    SettlementBounds(batch_rows=2, replace_rows=2),
    MailboxBounds(page_rows=2, page_rows_least=2, read_sessions=2, patrol_users=1),
    TakingBounds(
        in_hand=6, turn=2, shared_batch=3, shared_window=2, lookup_rows=2, ids_rows=2, ids_at_once=1
    ),
)
"""Bounds so small that a story of a few pushes meets them."""
SHARED_WINDOW: Final = 3
"""Messages that one tenant may have in hand where tenants take turns."""
TIGHT_CONSTANTS: Mapping[str, Mapping[str, object]] = {
    "bridge.core.sessions.session": {"UNPROVEN_MAX": 3, "WRITE_CHUNK": 60},
    "bridge.core.inflight.deadlines": {"PRUNE_FROM": 4},
}
"""The same for bounds that are constants: by module and name."""
TTLS = (4, 40, 4000)
"""Seconds; the last is one that no story outlives."""
TENANTS = ("", "a", "b")
"""Of ordinary pushes, by their number."""
AFTERS = (1, 15, 4000)
"""Seconds until fallbacks; likewise. A routing key is its number."""


@dataclass
class Device:
    """A client that remembers what it has seen, and comes back with the last of it."""

    user: str
    peer: Peer | None = None
    read: int = 0
    """Frames of its connection that it has read."""
    seen: dict[str, None] = field(default_factory=dict)
    """Ids, in the order in which they came first."""
    spared: set[RowKey] | None = None
    """What it may miss: published before it first came, or before it was told that something is missing. None
    before it came."""


@dataclass
class Facts:
    """What really happened, independent of what the bridge says."""

    shown: set[tuple[str, str]] = field(default_factory=set)
    """(push, user) that a socket of that user was handed, with its connection open."""
    read: set[tuple[str, str]] = field(default_factory=set)
    """(push, user) that a peer of that user has read, as its pong proves."""
    acknowledged: set[tuple[str, str]] = field(default_factory=set)
    announced: set[RowKey] = field(default_factory=set)
    replied: set[tuple[RowKey, str]] = field(default_factory=set)
    """(row, queue) that got a final receipt."""
    fallbacks: list[tuple[RowKey, float]] = field(default_factory=list)
    """What was published elsewhere, and when."""
    strangers: list[str] = field(default_factory=list)


class SlowStore(MemoryStore):
    """Gives the core's other parts a turn before and after each write, may take long, and may lose its answer."""

    lose_answers = 0
    slow = False

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        for _ in range(3):
            await asyncio.sleep(0)
        while self.slow:
            await asyncio.sleep(0)
        written = await super().record(rows)
        for _ in range(3):
            await asyncio.sleep(0)
        self._answer()
        return written

    def _answer(self) -> None:
        """What was committed may not be heard of."""
        if self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailable("cut after COMMIT")

    async def find(self, keys: Sequence[RowKey]) -> Sequence[Row]:
        found = await super().find(keys)
        for _ in range(6):
            await asyncio.sleep(0)
        return found

    async def find_push(self, push: PushKey, from_user: str, limit: int) -> RowPage:
        page = await super().find_push(push, from_user, min(limit, 2))
        for _ in range(3):
            await asyncio.sleep(0)
        return page

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        for _ in range(2):
            await asyncio.sleep(0)
        pages = await super().mailbox(asks)
        for _ in range(5):
            await asyncio.sleep(0)
        return pages

    async def supersede(self, newer: Sequence[Collapse], limit: int) -> Superseded:
        for _ in range(2):
            await asyncio.sleep(0)
        ended = await super().supersede(newer, min(limit, 1))
        for _ in range(2):
            await asyncio.sleep(0)
        self._answer()
        return ended

    async def claim_fallbacks(
        self, node: str, boot: str, limit: int, payload_bytes: int
    ) -> Sequence[DueFallback]:
        for _ in range(2):
            await asyncio.sleep(0)
        claimed = await super().claim_fallbacks(node, boot, min(limit, 2), payload_bytes)
        await asyncio.sleep(0)
        self._answer()
        return claimed

    async def note_fallbacks(self, boot: str, rows: Sequence[Row]) -> Collection[RowKey]:
        for _ in range(2):
            await asyncio.sleep(0)
        held = await super().note_fallbacks(boot, rows)
        self._answer()
        return held

    async def expire(self, limit: int) -> Sequence[Row]:
        ended = await super().expire(limit)
        self._answer()
        return ended

    async def trim(self, places: Sequence[tuple[str, int]], limit: int) -> Sequence[Row]:
        ended = await super().trim(places, min(limit, 2))
        self._answer()
        return ended

    async def recall(self, recall: Recall, place: RecallPlace, limit: int) -> RecallPage:
        await asyncio.sleep(0)
        page = await super().recall(recall, place, min(limit, 1))
        await asyncio.sleep(0)
        self._answer()
        return page


class SlowSessions(MemorySessions):
    """A ledger in the same database as a store."""

    def __init__(self, store: SlowStore, clock: ManualClock) -> None:
        super().__init__(clock)
        self._store = store

    async def note(self, entries: Entries) -> Noted:
        for _ in range(3):
            await asyncio.sleep(0)
        while self._store.slow:
            await asyncio.sleep(0)
        if self._store.fail_with is not None:
            raise StoreUnavailable("away")
        return await super().note(entries)


class SlowRetained(MemoryRetained):
    """Last values in the same database as a store."""

    def __init__(self, store: SlowStore, clock: ManualClock) -> None:
        super().__init__(store, clock)
        self._slow = store

    async def _answers(self) -> None:
        await asyncio.sleep(0)
        while self._slow.slow:
            await asyncio.sleep(0)
        if self._slow.fail_with is not None:
            raise StoreUnavailable("away")

    async def keep(self, value: LastValue) -> None:
        await self._answers()
        await super().keep(value)

    async def find(self, asks: Sequence[LastValuesAsk]) -> Sequence[LastValuesPage]:
        await self._answers()
        found = await super().find(asks)
        await asyncio.sleep(0)
        return found


class SlowSchedule(MemorySchedule):
    """Scheduled pushes in the same database as a store."""

    def __init__(self, store: SlowStore, clock: ManualClock) -> None:
        super().__init__(store, clock)
        self._slow = store

    async def _answers(self) -> None:
        await asyncio.sleep(0)
        while self._slow.slow:
            await asyncio.sleep(0)
        if self._slow.fail_with is not None:
            raise StoreUnavailable("away")

    async def add(self, entries: Sequence[Scheduled]) -> None:
        await self._answers()
        await super().add(entries)

    async def claim(self, boot: str, limit: int, most_bytes: int) -> Due:
        await self._answers()
        return await super().claim(boot, min(limit, 2), most_bytes)

    async def done(self, ids: Collection[str]) -> None:
        await self._answers()
        await super().done(ids)


class World:
    """Everything around one core; `restart` gives it a new core on the same rows."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = SlowStore(self.clock)
        self.sessions = SlowSessions(self.store, self.clock)
        self.retained = SlowRetained(self.store, self.clock)
        self.schedule = SlowSchedule(self.store, self.clock)
        self.messages: list[Published] = []
        self.facts = Facts()
        self.incarnation = 0
        self.tag = 0
        self.boot = 0
        self.refusing = False
        self.silent = False
        self.peers: list[Peer] = []
        self.violations: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.recalls: list[asyncio.Task[None]] = []
        self.sweep: asyncio.Task[None] | None = None
        """That of fallbacks; it waits while the broker is silent."""
        self.disturbed = False
        """A process was killed, or an answer of the database was lost: a fallback may come twice."""
        self.everyone: set[str] = set()
        """Pushes that name no user."""
        self.topics: dict[str, str] = {}
        """Those of them that were published to a topic."""
        self.subscribed: set[tuple[str, str]] = set()
        """Users and topics: once, and so perhaps still."""
        self.devices = [Device("a"), Device("a"), Device("b")]
        self.ttls: dict[RowKey, int] = {}
        """Seconds for which pushes are kept, as the first message says that names them."""
        self.withdrawn: list[Recall] = []
        self.bounds = BOUNDS
        self.tenant_window = 0
        self._constants = ExitStack()

    # --- the core and its life ---

    async def start(self) -> None:
        self.boot += 1
        house = House(
            DeliveryLimits(start_grace=1.0 if self.boot % 2 else 0.0, tenant_window=self.tenant_window),
            SessionLimits(4, 1 << 20),
            clock=self.clock,
            store=self.store,
            boot=f"b{self.boot}",
            mailbox_limits=MailboxLimits(pushes=6),
            bounds=self.bounds,
            sessions=self.sessions,
            retained=self.retained,
            schedule=self.schedule,
            releases=self,
        )
        self.house = house
        house.acks.ack = self._acked  # type: ignore[method-assign]
        house.acks.requeue = self._requeued  # type: ignore[method-assign]
        house.publisher.send = self._send  # type: ignore[method-assign]
        house.publisher.bury = self._bury  # type: ignore[method-assign]
        house.publisher.publish = self._publish_fallbacks  # type: ignore[method-assign]
        self.lease = MemoryLease(self.store, self.clock, "n1", f"b{self.boot}")
        self.store.nodes.clear()
        self.sessions.opened.clear()
        self.sessions.closed.clear()
        self.sessions.subscriptions.clear()
        failing, self.store.fail_with = self.store.fail_with, None
        await self.lease.claim()
        house.core.begin(await self.store.last_position())
        self.store.fail_with = failing
        scheduling = house.core.scheduling
        assert scheduling.releasing is not None
        parts = (scheduling.later, scheduling.releasing)
        self.tasks = start(*house.parts, house.recollection, self._recording(), *parts)
        self.peers = []
        self._deliver_all()

    def _recording(self) -> Recording:
        recording = self.house.core.recording
        assert recording is not None
        return recording

    async def kill(self) -> None:
        self.disturbed = True
        sweeps = [] if self.sweep is None else [self.sweep]
        tasks = (*self.tasks, *self.recalls, *sweeps)
        for task in tasks:
            task.cancel()
        self.sweep = None
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if result is not None and not isinstance(result, asyncio.CancelledError):
                self.violations.append(f"a task of the core ended with {result!r}")

    async def end(self) -> None:
        """Kill it for good."""
        await self.kill()
        self._constants.close()

    async def tighten(self) -> None:
        """Begin again, with bounds that are small."""
        await self.kill()
        self.bounds = TIGHT
        for module, names in TIGHT_CONSTANTS.items():
            for name, value in names.items():
                self._constants.enter_context(mock.patch(f"{module}.{name}", value))
        await self.start()

    async def share(self) -> None:
        """Begin again, with tenants that take turns."""
        await self.kill()
        self.tenant_window = SHARED_WINDOW
        await self.start()

    def _deliver_all(self) -> None:
        self.incarnation += 1
        self._deliver(m for m in self.messages if not m.acked)

    def _deliver(self, messages: Iterable[Published]) -> None:
        batch = []
        for message in messages:
            self.tag += 1
            message.token = AckToken(self.incarnation, self.tag)
            batch.append(
                arrival(
                    message.body,
                    incarnation=self.incarnation,
                    tag=self.tag,
                    arrived_at=self.clock.now,
                    redelivered=message.deliveries > 0,
                    delivery_count=message.deliveries,
                    reply_to=message.reply_to,
                    headers=message.headers or {"x-push-published-ms": int(self.clock.now * 1000)},
                )
            )
            message.deliveries += 1
        if batch:
            self.house.intake.arrived(batch)

    # --- the ports that the world fills ---

    def _acked(self, tokens: Iterable[AckToken]) -> None:
        for token in tokens:
            for message in self.messages:
                if message.token == token and not message.acked:
                    message.acked = True
                    missing = [k for k in message.keys if k not in self.store.rows and not self._waits(k)]
                    if missing:
                        self.violations.append(f"acked before its rows: {missing}")

    def _waits(self, key: RowKey) -> bool:
        """Whether a push is scheduled, or was published again and is not acked."""
        scheduled = any(entry.push_id == key.push_id for entry in self.schedule.entries.values())
        return scheduled or any(m.headers and not m.acked and key in m.keys for m in self.messages)

    @property
    def blocked(self) -> bool:
        """Fills the port Releases, as the next method."""
        return self.refusing

    async def release(self, releases: Sequence[Release]) -> Sequence[Release]:
        await asyncio.sleep(0)
        for one in releases:
            push_id = str(one.properties.headers["x-push-id"])
            keys = next(m.keys for m in self.messages if any(k.push_id == push_id for k in m.keys))
            self.messages.append(Published(one.body, keys, one.properties.reply_to, one.properties.headers))
            self._deliver([self.messages[-1]])
        stuck = self.silent
        while self.silent:
            await asyncio.sleep(0)
        return releases if stuck else ()

    def _requeued(self, tokens: Iterable[AckToken]) -> None:
        self.violations.append(f"given back without a cause: {list(tokens)}")

    async def _send(self, receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        await asyncio.sleep(0)
        stuck = self.silent
        while self.silent:
            await asyncio.sleep(0)
        if self.refusing or stuck:
            return receipts
        for receipt in receipts:
            if self.store.rows.get(receipt.row.key) is None:
                self.violations.append(f"a receipt without a row: {receipt.row.key}")
            if receipt.row.final:
                self.facts.replied.update((receipt.row.key, reply.queue) for reply in receipt.replies)
                if receipt.announce:
                    self.facts.announced.add(receipt.row.key)
        return ()

    async def _bury(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        await asyncio.sleep(0)
        return letters if self.refusing else ()

    async def _publish_fallbacks(self, fallbacks: Sequence[DueFallback]) -> PublishedFallbacks:
        await asyncio.sleep(0)
        stuck = self.silent
        while self.silent:
            await asyncio.sleep(0)
        if self.refusing or stuck:
            return PublishedFallbacks(fallbacks, 0)
        now = self.clock.now
        for one in fallbacks:
            if one.row.payload is None:
                self.violations.append(f"a fallback without its data: {one.row.key}")
            if one.row.published_at + float(one.routing_key) > now:
                self.violations.append(f"a fallback before its time: {one.row.key}")
            self.facts.fallbacks.append((one.row.key, now))
        return PublishedFallbacks((), 0)

    # --- steps ---

    def publish(self, n: int, m: int) -> None:
        push_id = f"p{n % 12}"
        users = (USERS[m % 3],) if m % 4 else (USERS[0], USERS[1])
        confirm = CONFIRMS[n % 3]
        to: dict[str, object] = {"user": users[0]} if len(users) == 1 else {"users": list(users)}
        tenant = tenant_of_push(push_id)
        request = {"id": push_id, "to": to, "data": n, "confirm": confirm, **_fallback(n, m)}
        body = json.dumps(request | ({"tenant": tenant} if tenant else {})).encode()
        keys = tuple(RowKey(tenant, push_id, user) for user in users)
        message = Published(body, keys, reply_to=f"q{len(self.messages)}" if m % 2 else "")
        self.messages.append(message)
        self._deliver([message])

    def publish_kept(self, n: int, m: int) -> None:
        push_id = f"k{n % 12}"
        users = (USERS[m % 3],) if m % 4 else (USERS[0], USERS[1])
        request: dict[str, object] = {
            "id": push_id,
            "to": {"user": users[0]} if len(users) == 1 else {"users": list(users)},
            "data": n,
            "confirm": CONFIRMS[n % 3],
            "ttl": TTLS[m % 3],
            **_fallback(m, n),
        }
        if n % 12 > 7:
            request["collapse_key"] = f"c{n % 2}"
        if CONFIRMS[n % 3] == "acked" and m % 2:
            request["ack_within"] = 3
        if CONFIRMS[n % 3] == "acked" and m % 3 == 0:
            request["devices"] = "first"
        for user in users:
            self.ttls.setdefault(RowKey("", push_id, user), TTLS[m % 3])
        keys = tuple(RowKey("", push_id, user) for user in users)
        message = Published(
            json.dumps(request).encode(), keys, reply_to=f"q{len(self.messages)}" if m % 2 else ""
        )
        self.messages.append(message)
        self._deliver([message])

    def publish_many(self, n: int, m: int) -> None:
        """Some for one user, in messages of their own: pages fill, and so does the mailbox."""
        many = []
        for _ in range(1 + m % 6):
            push_id = f"m{len(self.messages)}"
            request = {
                "id": push_id,
                "to": {"user": "a"},
                "data": n,
                "confirm": CONFIRMS[n % 3],
                "ttl": TTLS[-1],
            }
            key = RowKey("", push_id, "a")
            self.ttls[key] = TTLS[-1]
            many.append(Published(json.dumps(request).encode(), (key,)))
            self.messages.append(many[-1])
        self._deliver(many)

    def publish_everyone(self, n: int, m: int) -> None:
        push_id = f"e{n % 4}"
        body = {
            "id": push_id,
            "to": {"all": True},
            "data": n,
            "confirm": CONFIRMS[n % 3],
            "ttl": 30 * (m % 2),
        }
        message = Published(json.dumps(body).encode(), ())
        self.everyone.add(push_id)
        self.messages.append(message)
        self._deliver([message])

    def publish_later(self, n: int, m: int) -> None:
        push_id = f"l{n % 6}"
        body = {
            "id": push_id,
            "to": {"user": USERS[n % 3]},
            "data": n,
            "confirm": CONFIRMS[n % 3],
            "ttl": TTLS[m % 3],
            "deliver_at": self.clock.now + 2.5 * (m % 4),
        }
        key = RowKey("", push_id, USERS[n % 3])
        reply_to = f"q{len(self.messages)}" if m % 2 else ""
        self.messages.append(Published(json.dumps(body).encode(), (key,), reply_to))
        self._deliver([self.messages[-1]])

    def publish_topic(self, n: int, m: int) -> None:
        push_id, topic = f"t{n % 4}", TOPICS[n % 2]
        body = {
            "id": push_id,
            "to": {"topic": topic},
            "data": n,
            "confirm": CONFIRMS[n % 3],
            "ttl": 30 * (m % 2),
            "retain": m % 3 == 0,
        }
        message = Published(json.dumps(body).encode(), ())
        self.everyone.add(push_id)
        self.topics[push_id] = topic
        self.messages.append(message)
        self._deliver([message])

    def subscribe(self, n: int, m: int) -> None:
        peer = self._peer(n)
        if peer is not None and peer.socket.open:
            topic = TOPICS[m % 2]
            self.subscribed.add((peer.client.session.user, topic))
            peer.client.message(json.dumps({"type": "subscribe", "topic": topic, "ref": m}))

    def unsubscribe(self, n: int, m: int) -> None:
        peer = self._peer(n)
        if peer is not None and peer.socket.open:
            peer.client.message(json.dumps({"type": "unsubscribe", "topic": TOPICS[m % 2], "ref": m}))

    def recall(self, n: int, m: int) -> None:
        what = (
            Recall(push_id=f"k{n % 12}" if m % 2 else f"l{n % 6}")
            if m % 3
            else Recall(user=USERS[n % 3], collapse_key=f"c{m % 2}")
        )
        self.withdrawn.append(what)
        self.recalls.append(asyncio.create_task(self._recall(what), name="recall"))

    async def _recall(self, what: Recall) -> None:
        try:
            await self.house.core.recalls.recall(what)
        except StoreUnavailable:
            pass  # answered with an error, and asked again by whoever wants it

    def publish_wrong(self, n: int, m: int) -> None:
        push_id = f"w{n % 3}"
        body = json.dumps({"id": push_id, "to": {}, "data": 1}).encode()
        message = Published(body, (RowKey("", push_id, ""),))
        self.messages.append(message)
        self._deliver([message])

    def connect(self, n: int, m: int) -> None:
        user = USERS[n % 3]
        seen = sorted(push_id for push_id, who in self.facts.shown if who == user)
        if len(self.peers) < 6:
            last = (seen[m % len(seen)] if seen else "never") if m % 3 == 0 else None
            named = TOPICS[:1] if n % 2 else ()
            self.subscribed.update((user, topic) for topic in named)
            mode = Mode.SSE if m % 7 == 6 else Mode.ENVELOPE
            self.peers.append(self._opens(user, last, named, mode))

    def _opens(
        self,
        user: str,
        last: str | None = None,
        topics: tuple[str, ...] = (),
        mode: Mode = Mode.ENVELOPE,
    ) -> Peer:
        """A session whose token names these topics, and permits all."""
        claims = Claims(user, 4e9, topics=topics, subscribe=("#",))
        return self.house.open(Grant(claims, mode, mode.value, last, granted_at=self.clock.now))

    def device_comes(self, n: int, m: int) -> None:
        device = self.devices[n % len(self.devices)]
        if device.peer in self.peers:
            return
        if not device.seen:
            # It names no push that it has seen: it does not resume.
            device.spared = set(self.ttls)
        device.peer = self._opens(device.user, next(reversed(device.seen), None))
        device.read = 0
        self.peers.append(device.peer)

    def _reads(self, peer: Peer, frames: int) -> None:
        """Its application has read so many frames, if there is one that remembers."""
        for device in self.devices:
            if device.peer is not peer or device.spared is None:
                continue
            for frame in peer.socket.frames[device.read : frames]:
                told = json.loads(frame.payload)
                if told["type"] == "push":
                    device.seen.setdefault(told["id"])
                elif told["type"] == "welcome" and not told["complete"]:
                    device.spared.update(self.ttls)
            device.read = max(device.read, frames)

    def _peer(self, n: int) -> Peer | None:
        return self.peers[n % len(self.peers)] if self.peers else None

    def _look(self, peer: Peer) -> None:
        user = peer.client.session.user
        if peer.pushes and peer.session_id not in self.sessions.opened:
            self.violations.append(f"{peer.session_id} got pushes and is not in the ledger")
        for push in peer.pushes:
            push_id = str(push["id"])
            self.facts.shown.add((push_id, user))
            known = any((k.push_id, k.user) == (push_id, user) for m in self.messages for k in m.keys)
            if not known and push_id not in self.everyone:
                self.facts.strangers.append(f"{push_id} was shown to {user}")
            topic = self.topics.get(push_id)
            if topic is not None and (user, topic) not in self.subscribed:
                self.facts.strangers.append(f"{push_id} of {topic} was shown to {user}, never subscribed")
            if push.get("topic") != topic:
                self.facts.strangers.append(f"{push_id} was shown as of topic {push.get('topic')}")

    def answer(self, n: int, m: int) -> None:
        if (peer := self._peer(n)) is not None:
            self._look(peer)
            while peer.socket.open:
                # The core acts within the call: what a pong makes room for is written, read and answered, too.
                self._look(peer)
                self.facts.read.update((str(p["id"]), peer.client.session.user) for p in peer.pushes)
                self._reads(peer, len(peer.socket.frames))
                if not peer.unanswered:
                    break
                peer.answer_one()

    def answer_one(self, n: int, m: int) -> None:
        peer = self._peer(n)
        if peer is not None and peer.socket.open:
            self._look(peer)
            # Read before the pong is handed in: the core acts within the call.
            unanswered = peer.next_read()
            self.facts.read.update((str(p["id"]), peer.client.session.user) for p in peer.first(unanswered))
            self._reads(peer, unanswered)
            peer.answer_one()

    def forge(self, n: int, m: int) -> None:
        if (peer := self._peer(n)) is not None:
            peer.client.pong((b"", b"????", m.to_bytes(4, "big"))[n % 3])

    def answer_lost(self, n: int, m: int) -> None:
        self.store.lose_answers = 1
        self.disturbed = True

    def acknowledge(self, n: int, m: int) -> None:
        peer = self._peer(n)
        if peer is not None and peer.socket.open and peer.pushes:
            push_id = str(peer.pushes[m % len(peer.pushes)]["id"])
            self.facts.acknowledged.add((push_id, peer.client.session.user))
            self.facts.read.add((push_id, peer.client.session.user))
            self._reads(peer, len(peer.socket.frames))
            peer.client.message(json.dumps({"type": "ack", "id": push_id}))

    def leave(self, n: int, m: int) -> None:
        if (peer := self._peer(n)) is not None:
            self._look(peer)
            self.peers.remove(peer)
            peer.leave()

    def come_back(self, n: int, m: int) -> None:
        """It loses its connection and has a new one at once."""
        if (peer := self._peer(n)) is not None:
            user = peer.client.session.user
            self.leave(n, m)
            self.connect(USERS.index(user), m)

    def stuff(self, n: int, m: int) -> None:
        if (peer := self._peer(n)) is not None:
            peer.socket.stuffed = True

    def drain(self, n: int, m: int) -> None:
        if (peer := self._peer(n)) is not None:
            peer.socket.stuffed = False
            peer.client.became_writable()

    def database_away(self, n: int, m: int) -> None:
        self.store.fail_with = StoreUnavailable("the model says so")

    def database_back(self, n: int, m: int) -> None:
        self.store.fail_with = None

    def database_slow(self, n: int, m: int) -> None:
        """What is being written is not committed for now."""
        self.store.slow = True

    def database_quick(self, n: int, m: int) -> None:
        self.store.slow = False

    def receipts_refused(self, n: int, m: int) -> None:
        self.refusing = self.house.publisher.blocked = True

    def receipts_taken(self, n: int, m: int) -> None:
        self.refusing = self.house.publisher.blocked = False

    def receipts_silent(self, n: int, m: int) -> None:
        """No confirm comes, and no error either, until the broker is found to be gone."""
        self.silent = True

    def receipts_heard(self, n: int, m: int) -> None:
        self.silent = False

    def channel_lost(self, n: int, m: int) -> None:
        self.house.intake.channel_lost(self.incarnation)
        self._deliver_all()

    async def pass_time(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.25))):
            self.clock.advance(0.25)
            self.house.core.tick()
            await self._settle_down(5)
        self.house.core.every_second()
        try:
            await self.lease.renew()
            ended = await self.lease.end_dead(100)
            await self.house.core.mailbox_sweep.sweep()
        except StoreUnavailable:
            self.house.gate.shut("database", "the model says so")
        else:
            self.house.gate.clear("database")
            if ended:
                self.house.worklist.ended_by_sweep(ended)
            self.house.worklist.sweep()
            if self.sweep is None or self.sweep.done():
                if self.sweep is not None and (failure := self.sweep.exception()) is not None:
                    self.violations.append(f"the sweep of fallbacks ended with {failure!r}")
                self.sweep = asyncio.create_task(self.house.settlement.fallbacks.sweep(), name="fallbacks")
        await self._settle_down(10)
        # A socket that the bridge closed goes away some time.
        for peer in [p for p in self.peers if p.socket.closed_with is not None]:
            self._look(peer)
            self.peers.remove(peer)
            peer.leave()

    async def _settle_down(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def step(self, step: Step) -> None:
        if step.kind == "restart":
            for peer in self.peers:
                self._look(peer)
            await self.kill()
            await self.start()
        elif step.kind == "tighten":
            await self.tighten()
        elif step.kind == "share":
            await self.share()
        elif step.kind == "pass_time":
            await self.pass_time((step.n % 16) / 4)
        else:
            handler: Callable[[int, int], None] = getattr(self, step.kind)
            handler(step.n, step.m)
        await self._settle_down(step.m % 8)
        begun, with_row, on_their_way, _ = self.house.inflight.account()
        if begun != with_row + on_their_way:
            self.violations.append(f"{begun} begun, {with_row} with a row, {on_their_way} on their way")
        shares, busy = self.house.core.shares, self.house.inflight.busy
        if shares is not None and shares.flights != busy:
            self.violations.append(f"tenants have {shares.flights} of {busy} in hand")

    # --- the end ---

    async def heal(self) -> None:
        """Everything comes back, and enough time passes: where bounds are tight, few pushes go out at once."""
        self.database_back(0, 0)
        self.database_quick(0, 0)
        self.receipts_taken(0, 0)
        self.receipts_heard(0, 0)
        for round_ in range(400):
            if round_ % 20 == 0:
                # Whose ack a session has forgotten, behind thousands of others, waits for the next session.
                for peer in list(self.peers):
                    self.leave(self.peers.index(peer), 0)
                self.peers += [self.house.connect(user, Mode.ENVELOPE) for user in USERS]
            for n, device in enumerate(self.devices):
                if device.spared is not None:
                    self.device_comes(n, 0)
            for n in range(len(self.peers)):
                self._answer_everything(n)
            for peer in list(self.peers):
                peer.socket.stuffed = False
                if peer.socket.open:
                    peer.client.became_writable()
            await self.pass_time(1.0)
            done = all(m.acked for m in self.messages) and all(row.final for row in self.store.rows.values())
            done = done and not any(self._is_due(row) for row in self.store.rows.values())
            done = done and not self.schedule.entries
            if round_ > 12 and done and not self.house.inflight.busy and self._all_live():
                break
        # What was handed over last is read, too, though others have proven it by now.
        for n in range(len(self.peers)):
            self._answer_everything(n)
        await self.pass_time(2.0)
        if self.sweep is not None:
            await self.sweep
        if self.house.core.shares:
            self.violations.append(f"{len(self.house.core.shares)} tenants have something in hand")
        for peer in self.peers:
            self._look(peer)

    def _all_live(self) -> bool:
        """Whether every session that is open has been sent all that it was offered."""
        sessions = [p.client.session for p in self.peers if p.socket.open]
        return all(session.state is SessionState.LIVE and not session.waiting for session in sessions)

    def _is_due(self, row: Row) -> bool:
        return row.fallback_due is not None and row.fallback_due <= self.clock.now - 2

    def _answer_everything(self, n: int) -> None:
        peer = self.peers[n]
        self.answer(n, 0)
        if peer.socket.open:
            pushes = {str(push["id"]): m for m, push in enumerate(peer.pushes)}
            for m in pushes.values():
                self.acknowledge(n, m)

    def check(self) -> list[str]:
        """Every promise that does not hold, in words."""
        wrong = list(self.violations)
        wrong += [f"not acked: {m.body!r}" for m in self.messages if not m.acked]
        wrong += [
            f"{message.reply_to} never heard of {key}"
            for message in self.messages
            for key in message.keys
            if message.reply_to and (key, message.reply_to) not in self.facts.replied
        ]
        published = {key for m in self.messages for key in m.keys}
        for key in published:
            row = self.store.rows.get(key)
            if row is None or not row.final:
                wrong.append(f"no final row for {key}: {row}")
            elif key not in self.facts.announced:
                wrong.append(f"never announced: {key} {row.outcome}/{row.reason}")
        for push_id in self.everyone:
            rows = [row for key, row in self.store.rows.items() if key.push_id == push_id]
            if not rows or not all(row.final for row in rows):
                wrong.append(f"{push_id} to everyone: {[(r.key.user, r.outcome) for r in rows]}")
        for key, row in self.store.rows.items():
            seen = (key.push_id, key.user)
            if key not in published and key.push_id not in self.everyone:
                wrong.append(f"a row for what was never published: {key}")
            if row.outcome is Outcome.RECEIVED and seen not in self.facts.read:
                wrong.append(f"received without proof: {key}")
            if row.outcome is Outcome.ACKED and seen not in self.facts.acknowledged:
                wrong.append(f"acked without an ack: {key}")
            if row.outcome is Outcome.WRITTEN and seen not in self.facts.shown:
                wrong.append(f"written, and never handed over: {key}")
            once = [m for m in self.messages if key in m.keys]
            undelivered = row.outcome in (Outcome.OFFLINE, Outcome.DROPPED)
            undelivered = undelivered and row.reason is not Reason.MAILBOX_FULL
            # Over several deliveries an earlier one may have been shown without a proof.
            if undelivered and seen in self.facts.shown and len(once) == 1 and once[0].deliveries == 1:
                wrong.append(f"{row.outcome}, and it was handed over: {key}")
            if row.final and row.owed is not None:
                wrong.append(f"owes a receipt at rest: {msgspec.to_builtins(row.key)}")
        for device in self.devices:
            wrong += [f"a device of {device.user} never had {key.push_id}" for key in self._missing(device)]
        wrong += self._first_devices()
        wrong += self._wrong_fallbacks()
        wrong += self._left_over()
        wrong += [f"to a stranger: {s}" for s in self.facts.strangers]
        wrong += [
            f"an error: {error!r} in {where}"
            for error, where in self.house.errors.seen
            if not isinstance(error, StoreUnavailable)  # told, and tried again
        ]
        return wrong

    def _first_devices(self) -> Iterator[str]:
        """Sessions that show a push which another session of their user was the first to ack, and were not told."""
        for key, row in self.store.rows.items():
            if not row.first_device or row.outcome is not Outcome.ACKED:
                continue
            for peer in self.peers:
                session = peer.client.session
                if session.user != key.user or session.id == row.session or not peer.socket.open:
                    continue
                said = [one for one in map(json.loads, peer.socket.texts) if one.get("id") == key.push_id]
                if said and said[-1]["type"] == "push":
                    yield f"{session.id} was not told that {row.session} was the first to ack {key}"

    def _missing(self, device: Device) -> Iterator[RowKey]:
        """What was delivered to this user, is kept, and has not come to a device that was promised everything."""
        if device.spared is None:
            return
        for key, row in self.store.rows.items():
            if key.user != device.user or row.outcome not in DELIVERED or key.push_id in device.seen:
                continue
            taken_back = self._recalled(row) or (row.first_device and row.outcome is Outcome.ACKED)
            if self.ttls.get(key) == TTLS[-1] and key not in device.spared and not taken_back:
                yield key

    def _wrong_fallbacks(self) -> Iterator[str]:
        """Fallbacks that were not published and should have been, or the other way round."""
        times = dict(reversed(self.facts.fallbacks))
        if len(times) < len(self.facts.fallbacks) and not self.disturbed:
            yield f"published twice: {self.facts.fallbacks}"
        for key, at in times.items():
            row = self.store.rows[key]
            if not row.fallback_key:
                yield f"a fallback that nobody asked for: {key}"
            if row.proven_at is not None and row.proven_at < at:
                yield f"a fallback after its push was proven: {key}"
        for key, row in self.store.rows.items():
            if self._is_due(row):
                yield f"a fallback that is due at rest: {key}"
            if not row.fallback_key or key in times or row.proven_at is not None:
                continue
            # A push that the bridge gives up, since it was handed out too often, is rejected: it has none.
            has_none = row.collapse_key or row.outcome is Outcome.REJECTED or self._recalled(row)
            over = row.published_at + float(row.fallback_key) < self.clock.now - 2
            if over and row.outcome not in DELIVERED and not has_none:
                yield f"a fallback that was forgotten: {key} {row.outcome}/{row.reason}"

    def _recalled(self, row: Row) -> bool:
        return any(
            row.key.push_id == recall.push_id
            if recall.push_id
            else (row.key.user, row.collapse_key) == (recall.user, recall.collapse_key)
            for recall in self.withdrawn
        )

    def _left_over(self) -> Iterator[str]:
        """What should be in nobody's memory at rest."""
        house = self.house
        if not self._all_live():
            yield f"sessions at rest: {[p.client.session.state for p in self.peers if p.socket.open]}"
        if house.inflight.busy or house.inflight.resting:
            yield f"in flight at rest: {house.inflight.busy} and {house.inflight.resting}"
        if house.core.ledger.ready:
            yield f"not in the ledger at rest: {len(house.core.ledger)}"
        topics = house.core.hub.topics
        if topics.count != sum(len(topics.of(p.client.session)) for p in self.peers if p.socket.open):
            yield f"subscriptions of nobody: {topics.count}"
        if any(topics.leaving(topic) for topic in TOPICS):
            yield "subscribers that leave for ever"
        if house.settlement.being_paid:
            yield f"paid, and nobody knows: {house.settlement.being_paid}"
        # A claim of what was cancelled meanwhile means nothing.
        claims = [key for key in self.store.fallbacks.claims if self.store.rows[key].fallback_due is not None]
        if claims:
            yield f"fallbacks claimed at rest: {claims}"
        if not all(recall.done() for recall in self.recalls):
            yield "a recall has no end"


def tenant_of_push(push_id: str) -> str:
    """The tenant of an ordinary push."""
    return TENANTS[int(push_id[1:]) % 3]


def _fallback(n: int, m: int) -> dict[str, object]:
    """The field of a request, for every third."""
    after = AFTERS[m % 3]
    return {"fallback": {"after": after, "routing_key": f"{after}"}} if n % 3 == 0 else {}


async def play(steps: Sequence[Step]) -> list[str]:
    """Run these steps from an empty world, heal it, and return the promises that were broken."""
    world = World()
    await world.start()
    try:
        for step in steps:
            await world.step(step)
        await world.heal()
        return world.check()
    finally:
        await world.end()
