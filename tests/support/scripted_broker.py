"""A small AMQP 0-9-1 broker on a loopback socket that behaves as RabbitMQ's documentation says of a version.

For releases of which no package can be had here. It has quorum queues with a single active consumer, as far as the
bridge uses them: prefetch, returns and their counts, priorities, refusals, confirms. What the versions do differently
is in `rabbit_versions`. A test says what happens next: `publish`, `time_out`, `cancel`, `close_channels`, `drop`.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import pamqp.frame
from pamqp import commands
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from benchmarks.listening import listening
from tests.support.rabbit_versions import RULES, TIMED_OUT, TRANSIENT, Rules, level_of

HEAD: Final = struct.Struct(">BHL")


@dataclass
class Message:
    """A message in a queue."""

    body: bytes
    properties: commands.Basic.Properties
    key: str
    acquired: int = 0
    failed: int = 0

    def headers(self, rules: Rules) -> dict[str, Any]:
        """Those that it is delivered with."""
        counts = {"x-delivery-count": self.failed, "x-acquired-count": self.acquired}
        told = {name: n for name, n in counts.items() if n and (rules.says_acquired or name[2] == "d")}
        return {**(self.properties.headers or {}), **told}


class Published(NamedTuple):
    """What a client has published."""

    exchange: str
    key: str
    properties: commands.Basic.Properties
    body: bytes
    frames: Sequence[int]
    """Bytes of each frame of its content."""


@dataclass
class Consumer:
    """A consumer of a queue."""

    peer: Peer
    channel: int
    tag: str
    queue: Queue
    prefetch: int
    no_ack: bool
    arguments: Mapping[str, Any]


@dataclass
class Queue:
    """A queue; the first of its consumers is the active one."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = True
    owner: Peer | None = None
    returned: list[Message] = field(default_factory=list)
    ready: list[Message] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)

    def next(self, levels: int) -> Message:
        """What was returned first, then the oldest of the highest level."""
        if self.returned:
            return self.returned.pop(0)
        best = max(self.ready, key=lambda m: level_of(m.properties.priority, levels))
        self.ready.remove(best)
        return best


Verdict = Callable[[Published], str]


class ScriptedBroker:
    """Serves inside `serving`."""

    def __init__(self, version: str, *, frame_max: int = 131_072, may_configure: bool = True) -> None:
        """`may_configure`: whether the client has the right to declare anything but queues of its own."""
        self.version = version
        self.rules = RULES[version]
        self.frame_max = frame_max
        self.may_configure = may_configure
        self.url = ""
        self.queues: dict[str, Queue] = {}
        self.exchanges: set[str] = set()
        self.peers: list[Peer] = []
        self.heard: list[Frame] = []
        """Methods of all clients, in their order."""
        self.published: list[Published] = []
        self.verdict: Verdict = lambda message: "ack"
        """What becomes of a message that a client publishes: `ack`, `nack`, `return`, or `silent`, of which it hears
        nothing."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedBroker]:
        """Listen during the block."""
        async with listening(self._serve) as port:
            self.url = f"amqp://guest:guest@127.0.0.1:{port}/"
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(self, reader, writer)
        self.peers.append(peer)
        try:
            await peer.serve()
        finally:
            peer.end()

    # --- What a test has happen ---

    def of(self, method: type[Frame]) -> list[Any]:
        """The methods of this kind that clients have sent."""
        return [frame for frame in self.heard if isinstance(frame, method)]

    def publish(self, queue: str, *bodies: bytes, key: str = "user.u1", **properties: Any) -> None:
        """Put messages with these properties into a queue."""
        for body in bodies:
            made = Message(body, commands.Basic.Properties(**properties), key)
            self.queues[queue].ready.append(made)
        self.pump(queue)

    def time_out(self, queue: str) -> None:
        """What is not acked of this queue has been with its consumers for too long."""
        for peer in self.peers:
            peer.time_out(self.queues[queue])

    def cancel(self, queue: str) -> None:
        """The queue is gone: its consumers are told."""
        for consumer in self.queues.pop(queue).consumers:
            consumer.peer.send(consumer.channel, commands.Basic.Cancel(consumer.tag, True))

    def close_channels(self, queue: str, code: int, text: str) -> None:
        """Close the channels of its consumers."""
        for peer, number in {
            (id(c.peer), c.channel): (c.peer, c.channel) for c in self.queues[queue].consumers
        }.values():
            peer.close_channel(number, code, text)

    def drop(self) -> None:
        """Drop all connections."""
        for peer in self.peers:
            peer.writer.transport.abort()

    def pump(self, queue: str) -> None:
        """Deliver to the active consumer as much as it may have."""
        its = self.queues.get(queue)
        while its is not None and its.consumers and (its.ready or its.returned):
            active = its.consumers[0]
            if active.prefetch and len(active.peer.held_by(active)) >= active.prefetch:
                return
            active.peer.deliver(active, its.next(self.rules.levels))


@dataclass
class _Delivery:
    consumer: Consumer
    message: Message


class Peer:
    """The broker's end of one connection."""

    def __init__(
        self, broker: ScriptedBroker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.writer = writer
        self.frame_max = broker.frame_max
        self._broker = broker
        self._reader = reader
        self._held: dict[tuple[int, int], _Delivery] = {}
        """What is not acked, by channel and delivery tag."""
        self._tags: dict[int, itertools.count[int]] = {}
        self._prefetch: dict[int, int] = {}
        self._confirms: dict[int, itertools.count[int]] = {}
        self._incoming: dict[
            int, tuple[commands.Basic.Publish, ContentHeader | None, list[bytes], list[int]]
        ] = {}
        self._open = False

    async def serve(self) -> None:
        """Read what the client sends until it is gone."""
        assert await self._reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
        abilities = {
            "publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True, "connection.blocked": True,
        }  # fmt: skip
        properties: dict[str, Any] = {
            "product": "RabbitMQ", "version": self._broker.version, "capabilities": abilities,
        }  # fmt: skip
        self.send(0, commands.Connection.Start(0, 9, properties, "PLAIN", "en_US"))
        while True:
            head = await self._reader.readexactly(HEAD.size)
            kind, channel, size = HEAD.unpack(head)
            rest = await self._reader.readexactly(size + 1)
            if kind != 8:
                _, _, frame = pamqp.frame.unmarshal(head + rest)
                self._came(channel, frame, size + 8)

    def send(self, channel: int, *frames: Any) -> None:
        """Write frames."""
        self.writer.write(b"".join(pamqp.frame.marshal(frame, channel) for frame in frames))

    # --- Deliveries ---

    def deliver(self, consumer: Consumer, message: Message) -> None:
        """Send a message to a consumer."""
        rules, its = self._broker.rules, message.properties
        tag = next(self._tags.setdefault(consumer.channel, itertools.count(1)))
        if not consumer.no_ack:
            self._held[consumer.channel, tag] = _Delivery(consumer, message)
        given = {name: getattr(its, name) for name in its.attributes() if name != "cluster_id"}
        headers = message.headers(rules)
        given["headers"] = headers or None
        again = bool(message.acquired or message.failed)
        method = commands.Basic.Deliver(consumer.tag, tag, again, "push", message.key)
        header = ContentHeader(0, len(message.body), commands.Basic.Properties(**given))
        most = self.frame_max - 8
        pieces = [message.body[at : at + most] for at in range(0, len(message.body), most)]
        self.send(consumer.channel, method, header, *(ContentBody(piece) for piece in pieces))

    def held_by(self, consumer: Consumer) -> list[tuple[int, int]]:
        """What this consumer has not acked."""
        return [key for key, one in self._held.items() if one.consumer is consumer]

    def time_out(self, queue: Queue) -> None:
        """Cancel the consumers that hold something of this queue, and take it back. One that the client has cancelled
        itself can't be: then its channel is closed, as before 4.3 in any case."""
        late = {one.consumer.tag: one.consumer for one in self._held.values() if one.consumer.queue is queue}
        for _, consumer in sorted(late.items()):
            if not self._broker.rules.cancels or consumer not in queue.consumers:
                self.close_channel(consumer.channel, 406, TIMED_OUT.format(consumer.channel))
                return
        for _, consumer in sorted(late.items()):
            self.send(consumer.channel, commands.Basic.Cancel(consumer.tag, True))
            self.leave(consumer)
            for key in self.held_by(consumer):
                self._return(key, False)
        self._broker.pump(queue.name)

    def _give_back(self, channel: int) -> None:
        """Return what a channel holds, consumer by consumer: it counts as a failed delivery."""
        gone = sorted((one.consumer.tag, key) for key, one in self._held.items() if key[0] == channel)
        for queue in {self._return(key, True) for _, key in gone}:
            self._broker.pump(queue)

    def _return(self, key: tuple[int, int], failed: bool) -> str:
        one = self._held.pop(key)
        one.message.acquired += 1
        one.message.failed += failed
        one.consumer.queue.returned.append(one.message)
        return one.consumer.queue.name

    def leave(self, consumer: Consumer) -> None:
        """It consumes no more."""
        consumer.queue.consumers.remove(consumer)

    def close_channel(self, number: int, code: int, text: str) -> None:
        """Close a channel, and give back what it holds."""
        self.send(number, commands.Channel.Close(code, text, 0, 0))
        self._lose(number)

    def _lose(self, number: int) -> None:
        for queue in self._broker.queues.values():
            queue.consumers = [c for c in queue.consumers if (c.peer, c.channel) != (self, number)]
        self._give_back(number)
        self._confirms.pop(number, None)
        self._tags.pop(number, None)

    def end(self) -> None:
        """The connection is gone, with its queues."""
        for number in {*self._tags, *(channel for channel, _ in self._held)}:
            self._lose(number)
        queues = self._broker.queues
        for queue in list(queues.values()):
            queue.consumers = [c for c in queue.consumers if c.peer is not self]
            if queue.owner is self:
                del queues[queue.name]
        for name in queues:
            self._broker.pump(name)

    # --- What the client says ---

    def _came(self, channel: int, frame: Any, size: int) -> None:
        if isinstance(frame, ContentHeader | ContentBody):
            self._content(channel, frame, size)
            return
        self._broker.heard.append(frame)
        if isinstance(frame, commands.Basic.Publish):
            self._incoming[channel] = (frame, None, [], [])
            return
        answer = _ANSWERS.get(type(frame))
        if answer is not None:
            answer(self, channel, frame)

    def _content(self, channel: int, frame: ContentHeader | ContentBody, size: int) -> None:
        method, header, body, sizes = self._incoming[channel]
        sizes.append(size)
        if isinstance(frame, ContentHeader):
            header = frame
        else:
            body.append(frame.value)
        self._incoming[channel] = (method, header, body, sizes)
        assert header is not None
        if sum(map(len, body)) < header.body_size:
            return
        del self._incoming[channel]
        assert isinstance(header.properties, commands.Basic.Properties)
        made = Published(method.exchange, method.routing_key, header.properties, b"".join(body), sizes)
        self._broker.published.append(made)
        self._judge(channel, made, header)

    def _judge(self, channel: int, made: Published, header: ContentHeader) -> None:
        verdict = self._broker.verdict(made)
        if verdict == "return":
            back = commands.Basic.Return(312, "NO_ROUTE", made.exchange, made.key)
            self.send(channel, back, ContentHeader(0, 0, header.properties))
        elif verdict == "ack" and made.exchange == "" and made.key in self._broker.queues:
            self._broker.queues[made.key].ready.append(Message(made.body, made.properties, made.key))
            self._broker.pump(made.key)
        if channel in self._confirms:
            tag = next(self._confirms[channel])
            if verdict == "silent":
                return
            self.send(channel, commands.Basic.Nack(tag) if verdict == "nack" else commands.Basic.Ack(tag))

    def _start_ok(self, _: int, frame: commands.Connection.StartOk) -> None:
        self.send(0, commands.Connection.Tune(2047, self._broker.frame_max, 60))

    def _tune_ok(self, _: int, frame: commands.Connection.TuneOk) -> None:
        least = self._broker.rules.least_frame
        self.frame_max = frame.frame_max
        if frame.frame_max < least:
            words = (
                f"negotiated frame_max = {frame.frame_max} is lower than the minimum allowed value ({least})"
            )
            self.send(0, commands.Connection.Close(530, f"NOT_ALLOWED - {words}", 10, 31))

    def _declare(self, channel: int, frame: commands.Queue.Declare) -> None:
        broker = self._broker
        name = frame.queue or f"amq.gen-{len(broker.heard)}"
        known = broker.queues.get(name)
        if frame.passive:
            if broker.rules.looking_is_configuring and not broker.may_configure:
                self._refuse_access(channel, "queue", name)
            elif known is None:
                self.close_channel(channel, 404, f"NOT_FOUND - no queue '{name}' in vhost '/'")
            else:
                self._told(channel, known)
            return
        if not broker.may_configure and not frame.exclusive:
            self._refuse_access(channel, "queue", name)
        elif not (frame.durable or frame.exclusive or broker.rules.takes_transient):
            self.send(0, commands.Connection.Close(541, TRANSIENT, 50, 10))
        else:
            owner = self if frame.exclusive else None
            made = Queue(name, dict(frame.arguments or {}), frame.durable, owner)
            self._told(channel, broker.queues.setdefault(name, made))

    def _told(self, channel: int, queue: Queue) -> None:
        ready = len(queue.ready) + len(queue.returned)
        self.send(channel, commands.Queue.DeclareOk(queue.name, ready, len(queue.consumers[:1])))

    def _declare_exchange(self, channel: int, frame: commands.Exchange.Declare) -> None:
        broker = self._broker
        if not broker.may_configure and (not frame.passive or broker.rules.looking_is_configuring):
            self._refuse_access(channel, "exchange", frame.exchange)
        elif frame.passive and frame.exchange not in broker.exchanges:
            self.close_channel(channel, 404, f"NOT_FOUND - no exchange '{frame.exchange}' in vhost '/'")
        else:
            broker.exchanges.add(frame.exchange)
            self.send(channel, commands.Exchange.DeclareOk())

    def _refuse_access(self, channel: int, kind: str, name: str) -> None:
        words = f"configure access to {kind} '{name}' in vhost '/' refused for user 'guest'"
        self.close_channel(channel, 403, f"ACCESS_REFUSED - {words}")

    def _delete(self, channel: int, frame: commands.Queue.Delete) -> None:
        self._broker.queues.pop(frame.queue, None)
        self.send(channel, commands.Queue.DeleteOk(0))

    def _qos(self, channel: int, frame: commands.Basic.Qos) -> None:
        self._prefetch[channel] = frame.prefetch_count
        self.send(channel, commands.Basic.QosOk())

    def _consume(self, channel: int, frame: commands.Basic.Consume) -> None:
        queue = self._broker.queues[frame.queue]
        arguments = dict(frame.arguments or {})
        prefetch = 0 if frame.no_ack else self._prefetch.get(channel, 0)
        tag = frame.consumer_tag or f"ctag-{len(self._broker.heard)}"
        queue.consumers.append(Consumer(self, channel, tag, queue, prefetch, frame.no_ack, arguments))
        if not frame.nowait:
            self.send(channel, commands.Basic.ConsumeOk(tag))
        self._broker.pump(frame.queue)

    def _cancel(self, channel: int, frame: commands.Basic.Cancel) -> None:
        for queue in self._broker.queues.values():
            for consumer in list(queue.consumers):
                if (consumer.peer, consumer.channel, consumer.tag) == (self, channel, frame.consumer_tag):
                    self.leave(consumer)
        if not frame.nowait:
            self.send(channel, commands.Basic.CancelOk(frame.consumer_tag))
        for name in self._broker.queues:
            self._broker.pump(name)

    def _ack(self, channel: int, frame: commands.Basic.Ack) -> None:
        last = frame.delivery_tag
        tags = [t for c, t in self._held if c == channel and (t < last and frame.multiple)]
        for tag in (*tags, last):
            self._held.pop((channel, tag), None)
        for name in self._broker.queues:
            self._broker.pump(name)

    def _rejected(self, channel: int, frame: commands.Basic.Reject | commands.Basic.Nack) -> None:
        counted = isinstance(frame, commands.Basic.Reject) or self._broker.rules.counts_nacks
        assert frame.delivery_tag is not None
        self._broker.pump(self._return((channel, frame.delivery_tag), counted))

    def _confirm(self, channel: int, frame: commands.Confirm.Select) -> None:
        self._confirms[channel] = itertools.count(1)
        self.send(channel, commands.Confirm.SelectOk())

    def _close_channel(self, channel: int, frame: commands.Channel.Close) -> None:
        self._lose(channel)
        self.send(channel, commands.Channel.CloseOk())


def _with(answer: Any) -> Callable[[Peer, int, Any], None]:
    return lambda peer, channel, frame: peer.send(channel, answer)


_ANSWERS: Mapping[type[Any], Callable[[Peer, int, Any], None]] = {
    commands.Connection.StartOk: Peer._start_ok,
    commands.Connection.TuneOk: Peer._tune_ok,
    commands.Connection.Open: _with(commands.Connection.OpenOk()),
    commands.Connection.Close: _with(commands.Connection.CloseOk()),
    commands.Channel.Open: _with(commands.Channel.OpenOk()),
    commands.Channel.Close: Peer._close_channel,
    commands.Queue.Declare: Peer._declare,
    commands.Queue.Delete: Peer._delete,
    commands.Queue.Bind: _with(commands.Queue.BindOk()),
    commands.Exchange.Declare: Peer._declare_exchange,
    commands.Exchange.Bind: _with(commands.Exchange.BindOk()),
    commands.Basic.Qos: Peer._qos,
    commands.Basic.Consume: Peer._consume,
    commands.Basic.Cancel: Peer._cancel,
    commands.Basic.Ack: Peer._ack,
    commands.Basic.Reject: Peer._rejected,
    commands.Basic.Nack: Peer._rejected,
    commands.Confirm.Select: Peer._confirm,
}
"""What each method of a client has the broker do; it does nothing at any other."""
