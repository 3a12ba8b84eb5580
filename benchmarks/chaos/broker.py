"""The broker as outsiders use it: publishers that remember every confirm, collectors, and readers of queues.

They use aio-pika's ordinary high-level interface, not the bridge's own code, so that an error of that code
can't hide itself here.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aio_pika
import aio_pika.abc
import aiormq
import aiormq.abc
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError

from benchmarks.chaos.evidence import TOPIC, Evidence, Fate, Recall, Receipt, Request, RowKey, To

CONFIRM_TIMEOUT = 10.0
CONNECT_TIMEOUT = 10.0
RETRY = 0.3
PREFETCH = 5000
"""Receipts on their way to the collector."""
ACK_EVERY = 0.05
"""Seconds between two acks of the collector."""
WINDOW = 100
"""Messages of one publisher that wait for a confirm."""
LONG = 3 * 86_400.0
"""A ttl longer than every run and every step of a clock."""
UNUSABLE = "\x01"
"""A message_id that is not a valid id: the bridge makes one from body and properties."""
ANNOUNCEMENTS, REPLIES, ANSWERS = "chaos.outcomes", "chaos.replies", "chaos.answers"
FALLBACKS = "chaos.fallbacks"
GONE = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError, asyncio.InvalidStateError, RuntimeError)
"""What aio-pika raises when the broker goes down in the middle of a call."""


@asynccontextmanager
async def channel(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A confirming channel on a connection of its own."""
    connection = await aio_pika.connect(url, timeout=CONNECT_TIMEOUT, heartbeat=20)
    try:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)
    finally:
        try:
            async with asyncio.timeout(2):
                await connection.close()
        except GONE:
            pass  # it was the broker that went


@dataclass(slots=True)
class Envelope:
    """One AMQP message to be published, and the requests in it."""

    requests: Sequence[Request]
    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    message_id: str = ""
    reply_to: bool = False
    correlation_id: str = ""
    expiration: float | None = None
    insist: bool = True
    """Published again, under the same ids, until it is confirmed; else once."""
    recall: Recall | None = None
    """Set if it is not a push but a recall."""

    def __post_init__(self) -> None:
        crowd = any(request.to in (To.ALL, To.TOPIC) for request in self.requests)
        for request in self.requests:
            request.with_a_crowd = request.with_a_crowd or crowd

    def routing_key(self) -> str:
        """That of its user, if it is for one only."""
        users = set[str]().union(*(request.users for request in self.requests))
        return f"user.{min(users)}" if len(users) == 1 else "chaos"

    def message(self) -> aio_pika.Message:
        """As aio-pika wants it."""
        return aio_pika.Message(
            self.body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=self.headers or None,
            message_id=self.message_id or None,
            reply_to=ANSWERS if self.recall else REPLIES if self.reply_to else None,
            correlation_id=self.correlation_id or None,
            expiration=self.expiration,
        )


class Publisher:
    """Publishes messages at a pace, reconnects after a loss, and knows which were confirmed."""

    def __init__(
        self, url: str, make: Callable[[], Envelope], pace: Callable[[], float], *, keyed: bool
    ) -> None:
        """`keyed`: there are partitions."""
        self._url = url
        self._keyed = keyed
        self._make = make
        self._pace = pace
        self._again: deque[Envelope] = deque()
        self._flying: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.blocked = 0

    async def run(self) -> None:
        """Run until `stop`, and then until everything that must be confirmed is."""
        while not self._done:
            try:
                async with channel(self._url) as open_channel:
                    await self._publish_until_lost(open_channel)
            except GONE:
                await asyncio.sleep(RETRY)
            finally:
                await asyncio.gather(*self._flying)

    def also(self, envelopes: Iterable[Envelope]) -> None:
        """Publish these beside the load, as fast as confirms come."""
        self._again.extend(envelopes)

    def stop(self) -> None:
        """Make no more messages; `run` returns when the rest is confirmed."""
        self._stopping = True

    @property
    def _done(self) -> bool:
        return self._stopping and not self._again and not self._flying

    async def _publish_until_lost(self, open_channel: aio_pika.abc.AbstractChannel) -> None:
        pushes = await open_channel.get_exchange("push", ensure=False)
        control = await open_channel.get_exchange("push.control", ensure=False)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._done:
            if open_channel.is_closed:
                return
            if len(self._flying) >= WINDOW or (self._stopping and not self._again):
                await asyncio.sleep(0.01)
                due = loop.time()
                continue
            if self._again:
                envelope = self._again.popleft()
            else:
                due += self._pace()
                await asyncio.sleep(max(0.0, due - loop.time()))
                envelope = self._make()
            for request in envelope.requests:
                request.publishing()
                if self._keyed:
                    request.queue_key = envelope.routing_key()
            exchange = control if envelope.recall else pushes
            task = asyncio.create_task(self._publish(exchange, envelope), name="publish")
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def _publish(self, exchange: aio_pika.abc.AbstractExchange, envelope: Envelope) -> None:
        try:
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                confirmed = await exchange.publish(envelope.message(), envelope.routing_key(), mandatory=True)
        except asyncio.CancelledError:
            # When its connection is lost, aiormq cancels what waits for a confirm; we cancel nothing ourselves.
            confirmed = None
        except (DeliveryError, *GONE):
            confirmed = None
        except Exception as error:
            # When aiormq's connection is lost, what waits for its turn to write ends with a bare Exception.
            if type(error) is not Exception:
                raise
            confirmed = None
        if confirmed is None:
            if envelope.insist:
                self._again.append(envelope)
                await asyncio.sleep(RETRY)
            return
        if envelope.recall is not None:
            envelope.recall.confirmed = True
        for request in envelope.requests:
            request.confirmed_now()
            if envelope.reply_to:
                request.replies.add(envelope.correlation_id)


class Collector:
    """Takes every receipt from queues of its own, and reconnects whenever it loses the broker."""

    def __init__(self, url: str, evidence: Evidence) -> None:
        self._url = url
        self._evidence = evidence
        self.arrived = 0
        self.final_at: list[float] = []

    async def declare(self) -> None:
        """The queues, durable, so that they hold receipts while we are not connected."""
        async with channel(self._url) as c:
            quorum: dict[str, Any] = {"x-queue-type": "quorum"}
            announcements = await c.declare_queue(ANNOUNCEMENTS, durable=True, arguments=quorum)
            await announcements.bind("push.outcomes", "#")
            fallbacks = await c.declare_queue(FALLBACKS, durable=True, arguments=quorum)
            await fallbacks.bind("push.fallback", "#")
            await c.declare_queue(REPLIES, durable=True, arguments=quorum)
            await c.declare_queue(ANSWERS, durable=True, arguments=quorum)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._collect_until_lost()
            except GONE:
                self._evidence.shaken.append(time.monotonic())
            await asyncio.sleep(RETRY)

    async def _collect_until_lost(self) -> None:
        """Uses aiormq itself and one ack for many messages: receipts come faster than requests are published."""
        connection = await aiormq.connect(self._url)
        try:
            opened = await connection.channel(publisher_confirms=False)
            await opened.basic_qos(prefetch_count=PREFETCH)
            newest = 0

            def taking(note: Callable[[aiormq.abc.DeliveredMessage], None]) -> aiormq.abc.ConsumerCallback:
                async def take(message: aiormq.abc.DeliveredMessage) -> None:
                    nonlocal newest
                    note(message)
                    self.arrived += 1
                    newest = message.delivery_tag or newest

                return take

            notes = {
                ANNOUNCEMENTS: self._announced,
                FALLBACKS: self._fell_back,
                REPLIES: self._replied,
                ANSWERS: self._answered,
            }
            for name, note in notes.items():
                await opened.basic_consume(name, taking(note), timeout=CONNECT_TIMEOUT)
            acked = 0
            while not opened.is_closed:
                await asyncio.sleep(ACK_EVERY)
                if newest > acked:
                    # What is lost with the connection comes again, and counts as a duplicate.
                    acked = newest
                    await opened.basic_ack(acked, multiple=True)
        finally:
            try:
                async with asyncio.timeout(2):
                    await connection.close()
            except GONE:
                pass  # it was the broker that went

    def _announced(self, message: aiormq.abc.DeliveredMessage) -> None:
        key, receipt = _read(message.body)
        self._evidence.announced[key][receipt] += 1
        if receipt.outcome == "stored":
            self._evidence.stored.setdefault(key, time.monotonic())
        elif receipt.final:
            self._evidence.ended.setdefault(key, time.monotonic())

    def _fell_back(self, message: aiormq.abc.DeliveredMessage) -> None:
        push = json.loads(message.body)
        key = RowKey(push["tenant"] or "", push["id"], push["user"])
        self._evidence.fallbacks[key][message.header.properties.message_id or ""] += 1

    def _replied(self, message: aiormq.abc.DeliveredMessage) -> None:
        correlation = message.header.properties.correlation_id or ""
        self._evidence.replied[correlation][_read(message.body)] += 1

    def _answered(self, message: aiormq.abc.DeliveredMessage) -> None:
        answer = json.loads(message.body)
        recall = self._evidence.recalls[message.header.properties.correlation_id or ""]
        if answer["type"] == "recall":
            recall.replied = time.monotonic()
        else:
            self._evidence.troubles.append(f"a recall was refused: {answer}")


def _read(body: bytes) -> tuple[RowKey, Receipt]:
    r = json.loads(body)
    return RowKey(r["tenant"] or "", r["push_id"], r["user_id"]), Receipt(
        r["outcome"], r["reason"], r["final"]
    )


async def waiting(url: str, queue: str) -> int:
    """Messages that are ready in a queue; with no consumer connected, all that are not acked."""
    async with channel(url) as c:
        declared = await c.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def drained(url: str, queue: str) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """Take everything out of a queue that no longer changes."""
    found: list[aio_pika.abc.AbstractIncomingMessage] = []
    count = await waiting(url, queue)
    all_there = asyncio.Event()

    async def take(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        found.append(message)
        if len(found) >= count:
            all_there.set()

    async with channel(url) as c:
        if count:
            await (await c.get_queue(queue, ensure=False)).consume(take, no_ack=True)
            async with asyncio.timeout(60):
                await all_there.wait()
    return found


class Requests:
    """Makes requests of every kind, at random, and enters each into the evidence."""

    def __init__(
        self,
        evidence: Evidence,
        rng: random.Random,
        users: Sequence[str],
        absent: Sequence[str],
        session_of: Callable[[random.Random], tuple[str, str] | None],
        name: str,
    ) -> None:
        self._evidence = evidence
        self._rng = rng
        self._users = users
        self._absent = absent
        self._session_of = session_of
        self._name = name
        self._count = 0
        self._single: Request | None = None
        """The last request to one user, whose id no other tenant has used yet."""
        self._recent: list[Envelope] = []
        self.kept = 0.25
        """The share of requests that are kept for absent users."""
        self.recalls = 0.01
        """The share of messages that withdraw a push."""
        self.everyone = 0.003
        """The share of requests to everyone: each is a row for each user."""
        self.expiration: float | None = None
        """Seconds that the broker keeps each message; None means for ever."""

    def next(self) -> Envelope:
        """The next message."""
        rng = self._rng
        if self._recent and rng.random() < 0.04:
            return rng.choice(self._recent)
        if rng.random() < self.recalls and (recall := self._recall()) is not None:
            return recall
        dice = rng.random()
        if dice < 0.05:
            envelope = self._batch(rng.randint(2, 6))
        elif dice < 0.09:
            envelope = self._malformed()
        elif dice < 0.11:
            envelope = self._headers_only()
        elif dice < 0.13:
            envelope = self._without_id()
        else:
            request, document = self._request()
            envelope = Envelope([request], _bytes(document), _published_now() if request.ttl else {})
            if rng.random() < 0.1:
                del document["id"]
                envelope.body = _bytes(document)
                envelope.message_id = request.push_id
        if rng.random() < 0.25:
            envelope.reply_to = True
            envelope.correlation_id = f"c-{self._name}-{self._count}"
        envelope.insist = rng.random() < 0.7
        envelope.expiration = self.expiration
        for request in envelope.requests:
            request.expiration = request.expiration or self.expiration is not None
        if len(envelope.requests[0].users) < 50 and envelope.requests[0].push_id:
            self._recent = [*self._recent[-30:], envelope]
        return envelope

    def to(
        self, *users: str, confirm: str = "received", padding: int = 0, ttl: float = 0.0, key: str = ""
    ) -> Envelope:
        """A message with one request to these users, with this many bytes of data added."""
        request, document = self._request(users=users)
        document["data"]["pad"] += "x" * padding
        for name in ("ttl", "collapse_key", "ack_within", "devices", "fallback", "deliver_at"):
            document.pop(name, None)
        request.first_device = request.scheduled = False
        document["confirm"] = request.confirm = confirm
        request.ttl, request.collapse_key = ttl, key
        if ttl:
            document["ttl"] = ttl
        if key:
            document["collapse_key"] = key
        return Envelope([request], _bytes(document), _published_now())

    def _new(self, **known: Any) -> Request:
        self._count += 1
        mark = f"m{self._name}-{self._count}"
        request = Request(mark, known.pop("push_id", f"p-{mark}"), **known)
        self._evidence.requests[mark] = request
        return request

    def _data(self, request: Request) -> dict[str, Any]:
        return {"mark": request.mark, "pad": "x" * (self._rng.randint(0, 200))}

    def _request(self, users: Sequence[str] = ()) -> tuple[Request, dict[str, Any]]:
        rng = self._rng
        tenant = rng.choice(["", "", "", "t1"])
        dice = rng.random()
        session = self._session_of(rng) if not users and dice < 0.04 else None
        if users:
            request = self._new(tenant=tenant, users=frozenset(users))
            to: dict[str, Any] = {"users": list(users)} if len(users) > 1 else {"user": users[0]}
        elif session is not None:
            request = self._new(
                tenant=tenant, to=To.SESSION, users=frozenset([session[1]]), session=session[0]
            )
            to = {"session": session[0]}
        elif dice < 0.04 + self.everyone:
            request = self._new(tenant=tenant, to=To.ALL)
            to = {"all": True}
        elif dice < 0.04 + 2 * self.everyone:
            request = self._new(tenant=tenant, to=To.TOPIC)
            to = {"topic": TOPIC}
        elif dice < 0.14:
            several = frozenset(rng.sample([*self._users, *self._absent], rng.randint(2, 6)))
            request = self._new(tenant=tenant, users=several)
            to = {"users": sorted(several)}
        else:
            user = rng.choice(self._absent) if dice < 0.2 else rng.choice(self._users)
            twin = self._single if rng.random() < 0.2 else None
            if twin is not None and twin.push_id and twin.tenant != tenant:
                # An id is unique within its tenant: another tenant sends the same user another push with it.
                self._single = None
                (user,) = twin.users
                request = self._new(tenant=tenant, users=twin.users, push_id=twin.push_id)
            else:
                request = self._single = self._new(tenant=tenant, users=frozenset([user]))
            to = {"user": user}
        document: dict[str, Any] = {
            "id": request.push_id,
            "to": to,
            "event": rng.choice(["message", "order.paid", "note"]),
            "data": self._data(request),
        }
        if tenant:
            document["tenant"] = tenant
        confirm = rng.choices(["", "received", "acked", "written"], [50, 15, 20, 15])[0]
        if confirm:
            document["confirm"] = request.confirm = confirm
        if request.to is not To.SESSION and rng.random() < self.kept:
            request.ttl = document["ttl"] = LONG if rng.random() < 0.6 else round(rng.uniform(0.5, 3.0), 2)
            if confirm == "acked" and rng.random() < 0.5:
                document["ack_within"] = 1.0
            if rng.random() < 0.05:
                document["deliver_at"] = time.time() + rng.uniform(0.2, 3.0)
                request.scheduled = True
        if request.to is To.TOPIC and self.kept and rng.random() < 0.3:
            document["retain"] = request.retained = True
        if confirm == "acked" and rng.random() < 0.3:
            document["devices"] = "first"
            request.first_device = True
        if rng.random() < 0.05:
            after = round(rng.uniform(0.3, 3.0), 1)
            # The key says the time, so that it can be compared in the database.
            document["fallback"] = {"after": after, "routing_key": f"{after}"}
        may_collapse = request.to is To.USERS and not request.scheduled
        if may_collapse and rng.random() < (0.2 if request.ttl else 0.02):
            request.collapse_key = document["collapse_key"] = rng.choice(["balance", "weather"])
        return request, document

    def _recall(self) -> Envelope | None:
        """Recall a recent push: one that is known to wait for its user, or any other."""
        first, second = self._rng.random(), self._rng.random()
        waiting = list(self._evidence.stored)[-40:]
        recent = [r for e in self._recent for r in e.requests if r.ttl]
        if waiting and first < 0.5:
            key = waiting[int(second * len(waiting))]
            recall = Recall(key.tenant, push_id=key.push_id, stored_for=key.user or "")
        elif not recent:
            return None
        else:
            request = recent[int(second * len(recent))]
            if request.collapse_key and first < 0.8:
                recall = Recall(request.tenant, user=min(request.users), collapse_key=request.collapse_key)
            else:
                recall = Recall(request.tenant, push_id=request.push_id)
        return self.withdrawing(recall)

    def withdrawing(self, recall: Recall) -> Envelope:
        """The message of a recall."""
        document = {"type": "recall"} | {
            name: value
            for name in ("tenant", "push_id", "user", "collapse_key")
            if (value := getattr(recall, name))
        }
        correlation = f"r-{self._name}-{len(self._evidence.recalls)}"
        self._evidence.recalls[correlation] = recall
        return Envelope([], _bytes(document), correlation_id=correlation, recall=recall)

    def _batch(self, size: int) -> Envelope:
        pairs = [self._request() for _ in range(size)]
        headers = _published_now() if any(r.ttl for r, _ in pairs) else {}
        return Envelope([r for r, _ in pairs], _bytes([d for _, d in pairs]), headers)

    def _malformed(self) -> Envelope:
        rng = self._rng
        wrong = rng.choice(["not json", "two targets", "no target", "unknown", "control"])
        if wrong == "not json":
            # Never without a message_id: aiormq would make a different one for each copy.
            request = self._new(push_id="", fate=Fate.REJECTED)
            return Envelope([request], f"not json {request.mark}".encode(), message_id=UNUSABLE)
        request = self._new(fate=Fate.REJECTED)
        document: dict[str, Any] = {"id": request.push_id, "data": self._data(request)}
        if wrong == "two targets":
            document["to"] = {"user": "u1", "all": True}
        elif wrong == "unknown":
            document |= {"to": {"user": "u1"}, "colour": "red"}
        elif wrong == "control":
            document["to"] = {"user": "u\x01"}
        return Envelope([request], _bytes(document))

    def rejected_batch(self, size: int, document: Callable[[Request], object]) -> Envelope:
        """A batch of requests that are wrong, each as `document` says."""
        requests = [self._new(fate=Fate.REJECTED) for _ in range(size)]
        return Envelope(requests, _bytes([document(request) for request in requests]))

    def _headers_only(self) -> Envelope:
        user = self._rng.choice(self._users)
        request = self._new(users=frozenset([user]))
        headers = {"x-push-id": request.push_id, "x-push-user": user, "x-push-event": "plain"}
        return Envelope([request], _bytes(self._data(request)), headers)

    def _without_id(self) -> Envelope:
        """The bridge makes an id, so the mark is in `meta`. It is at-least-once, so I1 does not apply."""
        user = self._rng.choice(self._users)
        request = self._new(push_id="", users=frozenset([user]))
        document = {"to": {"user": user}, "data": self._data(request), "meta": {"mark": request.mark}}
        return Envelope([request], _bytes(document))


def _published_now() -> dict[str, Any]:
    """When a ttl begins, whatever the bridge's clock says."""
    return {"x-push-published-ms": int(time.time() * 1000)}


def _bytes(document: object) -> bytes:
    return json.dumps(document).encode()
