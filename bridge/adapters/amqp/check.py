"""Check that the broker has what `bridge serve` needs, without changing anything.

Existing objects are declared again as the bridge needs them: that changes nothing where they are the same, and
otherwise the broker says what differs. For missing objects and for permissions, the broker is asked for something
impossible: it checks the permission first (RabbitMQ 3.10 to 4.x):

| to learn whether this user may | the broker is asked to | which it refuses with |
|---|---|---|
| configure a queue | declare it with `x-expires` 0 | 406 |
| configure an exchange | declare it with an `alternate-exchange` that is a number | 406 |
| read a queue | consume it with an `x-priority` that is a text | 406, or 404 or 405 |
| write to an exchange | bind it to a source that does not exist | 404 |
| bind a queue | unbind it from a key that it is not bound to | nothing: that is no error |
| publish an outcome or a dead letter | publish it with an `expiration` that is no number | 406 |
| publish a receipt, now | publish to a queue that does not exist, mandatory | the message comes back |

and with 403 where it may not. Nothing is consumed, and nothing reaches a queue.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

import aio_pika
import aiormq
import aiormq.abc
import msgspec
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from bridge.adapters.amqp import encoding, spread_check
from bridge.adapters.amqp import limits as amqp_limits
from bridge.adapters.amqp.announcing import outcome_key
from bridge.adapters.amqp.broker import release
from bridge.adapters.amqp.broker import version as broker_version
from bridge.adapters.amqp.connection import (
    STEP_TIMEOUT,
    Tap,
    border,
    channel,
    close_channel,
    look_at,
    opened,
)
from bridge.adapters.amqp.consume import never_called
from bridge.adapters.amqp.frames import Event
from bridge.adapters.amqp.nodes import NODE_QUEUE
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.adapters.amqp.topology import (
    DEAD,
    FALLBACK,
    INBOUND,
    INBOUND_ONLY,
    LOOKING,
    OUTCOMES,
    PUSH,
    REQUESTS,
    SESSIONS,
    Binding,
    DeclareMode,
    Exchange,
    Queue,
    Topology,
    problem_with,
    requests_queue,
    topology_of,
)
from bridge.adapters.amqp.turn import LOCK, delete_command, no_lock
from bridge.adapters.finding import Finding, Level
from bridge.core.errors import BrokerRefused, BrokerUnavailable
from bridge.core.model.outcomes import ENDINGS, Outcome

OLDEST, NEWEST = (3, 10), (4, 3)
"""The oldest and the newest release of RabbitMQ that the bridge supports."""
PUBLISH_SECONDS = 2.0
"""Seconds that the broker has to send a message back."""

_ANSWERS = (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
Low: TypeAlias = aiormq.abc.AbstractChannel


async def findings(
    url: str,
    mode: DeclareMode,
    where: str,
    *,
    partitions: int = 1,
    told: Sequence[str] = (OUTCOMES, SESSIONS, FALLBACK, INBOUND),
    runs: bool = False,
) -> list[Finding]:
    """All findings about the broker, good or bad; `where` is the URL without its password.

    `told`: the exchanges that get events. `runs`: this very node is connected, so limits are not checked.
    Raises BrokerUnavailable where it can't be reached.
    """
    needed = topology_of(partitions)
    needed = needed._replace(exchanges=(*needed.exchanges, *INBOUND_ONLY.exchanges))
    boxes: list[Outbox] = []
    refused: BrokerRefused | None = None

    def happened(events: Sequence[Event]) -> None:
        for box in boxes:
            box.happened(events)

    async with opened(url, "bridge check", happened, lambda cause: None) as (connection, tap):
        version = broker_version(connection) or "of an unknown version"
        look = _Look(connection, mode, needed)
        found = [Finding("ok", "broker", f"{where}: RabbitMQ {version}"), *_about_version(version)]
        try:
            topology = await look.topology()
            topology += await spread_check.findings(url, connection, partitions, mode)
            found += topology or [_whole(mode, needed)]
            found += await look.permissions(told)
            found += await look.others()
            now = await look.publishing(tap, boxes)
            if all(finding.what != "broker" for finding in now):
                now += await look.topics(tap, boxes, told)
            found += now
        except BrokerRefused as error:
            # One more channel may be too many while the broker still counts the one before.
            refused = error
    limits = [] if runs else await look.limits(url)
    if refused is not None and all(finding.level == "ok" for finding in limits):
        raise refused
    return found + limits


def _whole(mode: DeclareMode, needed: Topology) -> Finding:
    words = "exchanges and queues are there, as the bridge needs them"
    if mode is DeclareMode.PASSIVE:
        bindings = ", ".join(
            f"{b.queue} to exchange {b.exchange} with key {b.key!r}" for b in needed.bindings
        )
        words += f"; bindings can't be seen over AMQP, there must be {bindings}"
    return Finding("ok", "topology", words)


class _Look:
    """Checks over one connection, with a channel for each question: a refusal closes it."""

    def __init__(self, connection: aio_pika.Connection, mode: DeclareMode, needed: Topology) -> None:
        self._connection = connection
        self._needed = needed
        self._mode = mode
        assert connection.transport is not None
        low = cast(aiormq.Connection, connection.transport.connection)
        self._vhost = shlex.quote(low.vhost)
        self._user = shlex.quote(low.url.user or "guest")
        self._there: set[str] = set()

    async def _refused_for(self, what: str, ask: Callable[[Low], Awaitable[object]]) -> BaseException | None:
        """The error that the broker answers with; None where it does what is asked."""
        low = await channel(self._connection, confirms=False)
        try:
            async with border(what, STEP_TIMEOUT):
                await ask(low)
        except BrokerUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, _ANSWERS):
                return cause
            raise
        await close_channel(low)
        return None

    async def limits(self, url: str) -> list[Finding]:
        """Whether limits allow what `serve` opens and declares at once; call it when this connection is closed."""
        missing = 0
        if self._mode is DeclareMode.ACTIVE:
            missing = sum(f"queue {queue.name}" not in self._there for queue in self._needed.queues)
        return await amqp_limits.limits(url, self._vhost, self._user, missing)

    # --- exchanges and queues ---

    async def topology(self) -> list[Finding]:
        """What is missing, different or forbidden."""
        found: list[Finding] = []
        missing: list[str] = []
        things: Sequence[Queue | Exchange] = [*self._needed.queues, *self._needed.exchanges]
        for thing in things:
            kind = "queue" if isinstance(thing, Queue) else "exchange"
            named = f"{kind} {thing.name}"
            unseen = await self._refused_for(f"look at {named}", _looking(thing))
            if unseen is None:
                self._there.add(named)
                found += await self._compared(named, thing)
            elif isinstance(unseen, ChannelAccessRefused):
                found.append(self._hidden(named))
            elif self._mode is DeclareMode.PASSIVE:
                found.append(Finding("fail", "topology", f"{named} is missing: {self._declaring(thing)}"))
            else:
                missing.append(named)
                refusal = await self._refused_for(f"declare {named}", _declaring_in_vain(thing))
                if isinstance(refusal, ChannelAccessRefused):
                    found.append(self._forbidden(f"{named} is missing, and this user may not declare it"))
        if missing and not found:
            words = f"not whole yet, `bridge serve` declares what is missing: {', '.join(missing)}"
            found.append(Finding("ok", "topology", words))
        return found

    def _hidden(self, named: str) -> Finding:
        words = f"this user may not look at {named}"
        if self._mode is DeclareMode.ACTIVE:
            return self._forbidden(f"{words}, and so not declare it")
        return Finding("fail", "topology", f"{words}: {LOOKING}")

    async def _compared(self, named: str, thing: Queue | Exchange) -> list[Finding]:
        refusal = await self._refused_for(f"declare {named}", _declaring(thing))
        if refusal is None:
            return []
        if isinstance(refusal, ChannelAccessRefused):
            if self._mode is DeclareMode.ACTIVE:
                words = f"{named} is there, but this user may not declare it (or BRIDGE_DECLARE=passive)"
                return [self._forbidden(words)]
            return [Finding("warn", "topology", f"{named}: this user may not compare it with what is needed")]
        words = problem_with(named, refusal) or str(refusal)
        return [Finding("fail", "topology", f"{words}: {self._deleting(thing)}")]

    def _deleting(self, thing: Queue | Exchange) -> str:
        if isinstance(thing, Queue):
            return f"rabbitmqctl delete_queue -p {self._vhost} {thing.name}"
        return f"rabbitmqadmin -V {self._vhost} delete exchange name={thing.name}"

    def _declaring(self, thing: Queue | Exchange) -> str:
        start = f"rabbitmqadmin -V {self._vhost} declare"
        if isinstance(thing, Exchange):
            return f"{start} exchange name={thing.name} type={thing.kind} durable=true"
        arguments = msgspec.json.encode(dict(thing.arguments)).decode()
        return f"{start} queue name={thing.name} durable=true arguments='{arguments}'"

    # --- permissions ---

    async def permissions(self, told: Sequence[str]) -> list[Finding]:
        """What this user may not do with existing objects."""
        found: list[Finding] = []
        for queue in (queue.name for queue in self._needed.queues if queue.name != DEAD):
            if f"queue {queue}" in self._there and await self._forbids(
                f"read {queue}", partial(_consuming_in_vain, queue)
            ):
                found.append(self._forbidden(f"this user may not read queue {queue}"))
        for exchange in (DEAD, *told, PUSH):
            nowhere = f"push.check.{uuid.uuid4().hex}"
            refusal = await self._refused_for(
                f"write to {exchange}",
                partial(_binding_in_vain, exchange, nowhere),
            )
            if isinstance(refusal, ChannelAccessRefused) and nowhere not in str(refusal):
                words, level = _TOPICS[exchange]
                made = self._forbidden(f"this user may not write to exchange {exchange}: {words}")
                found.append(made._replace(level=level))
        if self._mode is DeclareMode.ACTIVE:
            found += await self._binding()
        if await self._forbids(f"declare {LOCK}", _declaring_in_vain(Queue(LOCK, {}))):
            words = f"this user may not configure queue {LOCK}: bridges that start at once can't say which one takes"
            found.append(self._forbidden(words)._replace(level="warn"))
        elif await self._forbids(f"read {LOCK}", partial(_consuming_in_vain, LOCK)):
            # Who holds it consumes it, to hear of its end.
            found.append(self._forbidden(f"this user may not read queue {LOCK}"))
        elif await self._refused_for(f"look at {LOCK}", _looking(Queue(LOCK, {}))) is None:
            words = f"{no_lock(LOCK)}: {delete_command(self._connection, LOCK)}"
            found.append(Finding("warn", "topology", words))
        found += await self._own_queue()
        return found

    async def _own_queue(self) -> list[Finding]:
        """Whether other nodes can reach this one: each listens on a queue of its own."""
        name = f"{NODE_QUEUE}.check.{uuid.uuid4().hex}"
        lost = "other nodes can't reach the sessions of this one"
        if await self._forbids(f"declare {name}", _declaring_in_vain(Queue(name, {}))):
            words = f"this user may not configure queues whose name begins with {NODE_QUEUE}.: {lost}"
            return [self._forbidden(words)._replace(level="warn")]
        if await self._forbids(f"read {name}", partial(_consuming_in_vain, name)):
            words = f"this user may not read queues whose name begins with {NODE_QUEUE}.: {lost}"
            return [self._forbidden(words)._replace(level="warn")]
        return []

    async def _binding(self) -> list[Finding]:
        found = []
        for binding in self._needed.bindings:
            if (
                f"queue {binding.queue}" not in self._there
                or f"exchange {binding.exchange}" not in self._there
            ):
                continue
            key = f"push.check.{uuid.uuid4().hex}"
            if await self._forbids(
                f"bind {binding.queue}",
                partial(_unbinding_in_vain, binding, key),
            ):
                found.append(self._forbidden(f"this user may not bind {binding.queue} to {binding.exchange}"))
        return found

    async def _forbids(self, what: str, ask: Callable[[Low], Awaitable[object]]) -> bool:
        return isinstance(await self._refused_for(what, ask), ChannelAccessRefused)

    def _forbidden(self, words: str) -> Finding:
        return Finding(
            "fail",
            "topology",
            f"{words}: rabbitmqctl set_permissions -p {self._vhost} {self._user} {PERMISSIONS}",
        )

    # --- who else, and does it take publishes ---

    async def others(self) -> list[Finding]:
        """Whether another consumer takes all pushes."""
        if f"queue {REQUESTS}" not in self._there or f"queue {requests_queue(1)}" in self._there:
            return []
        low = await channel(self._connection, confirms=False)
        declared = await look_at(low, REQUESTS)
        await close_channel(low)
        if not declared.consumer_count:
            return []
        return [Finding("warn", "topology", "a bridge takes the pushes already: another one stands by")]

    async def topics(self, tap: Tap, boxes: list[Outbox], told: Sequence[str]) -> list[Finding]:
        """Which routing keys this user may not publish with, where it may write to the exchange."""
        found: list[Finding] = []
        vain = await self._vain(tap, boxes)
        if vain is None:
            return found
        for exchange, keys in _keys(told).items():
            if f"exchange {exchange}" not in self._there:
                continue
            refused: list[str] = []
            for key in keys:
                failure = await self._published(Message(exchange, key.encode(), vain, b""), tap, boxes)
                if failure is not None and failure.why.endswith("(403)"):
                    if "access to exchange " in failure.why:
                        # It may not write to this exchange at all: `permissions` tells that.
                        break
                    refused.append(key)
            else:
                if refused:
                    found.append(self._untopical(exchange, refused))
        return found

    async def _vain(self, tap: Tap, boxes: list[Outbox]) -> bytes | None:
        """Properties of a message that the broker refuses in any case, but only after it has looked at the rights for
        its routing key. RabbitMQ up to 3.13 looks at the expiration after that; from 4.0 on before it, and at the user
        id after it. None where this user may name another one (tag `impersonator`): then nothing would be in vain."""
        if release(broker_version(self._connection)) < (4, 0):
            return encoding.properties(expiration="never")
        vain = encoding.properties(user_id=f"not-{self._user}")
        nowhere = f"push.check.{uuid.uuid4().hex}"
        failure = await self._published(Message("", nowhere.encode(), vain, b"", nowhere), tap, boxes)
        return None if failure is None or failure.returned else vain

    def _untopical(self, exchange: str, refused: Sequence[str]) -> Finding:
        words, level = _TOPICS[exchange]
        command = f"rabbitmqctl set_topic_permissions -p {self._vhost} {self._user} {exchange} '.*' '.*'"
        keys = ", ".join(refused)
        return Finding(
            level,
            "topology",
            f"this user may not publish to exchange {exchange} with routing key {keys}: {words}: {command}",
        )

    async def _published(self, message: Message, tap: Tap, boxes: list[Outbox]) -> Failure | None:
        """Publish a message on a channel of its own; returns its failure, or None where it is confirmed."""
        low = await channel(self._connection, confirms=True)
        box = Outbox(tap, low.number)
        boxes.append(box)
        failure = (await box.publish([message], PUBLISH_SECONDS)).get(0)
        boxes.remove(box)
        tap.unwatch(low.number)
        if failure is None or failure.returned:
            await close_channel(low)
        return failure

    async def publishing(self, tap: Tap, boxes: list[Outbox]) -> list[Finding]:
        """Whether a receipt could be published now."""
        name = f"push.check.{uuid.uuid4().hex}"
        message = Message("", name.encode(), encoding.properties(message_id=name), b"", name)
        failure = await self._published(message, tap, boxes)
        if failure is None or failure.returned:
            return []
        if "403" in failure.why:
            return [self._forbidden("this user may not publish to the default exchange, where receipts go")]
        words = f"{failure.why}: publishers wait, and receipts are owed until it takes messages again"
        return [Finding("warn", "broker", f"{words}; see rabbitmqctl status, its alarms")]


def _keys(told: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Routing keys that the bridge would use, by exchange. Publishers choose the event; `message` is the default."""
    outcomes = [
        outcome_key(outcome, "message").decode() for outcome in Outcome if outcome is not Outcome.PENDING
    ]
    rejections = {ending.reason.value for ending in ENDINGS if ending.outcome is Outcome.REJECTED}
    events = {
        OUTCOMES: outcomes,
        SESSIONS: ["opened", "closed"],
        FALLBACK: ["message"],
        INBOUND: ["message"],
    }
    return {
        **{exchange: events[exchange] for exchange in told},
        DEAD: sorted(rejections),
        PUSH: ["bridge.producer", "user.check"],
    }


_TOPICS: Mapping[str, tuple[str, Level]] = {
    OUTCOMES: ("outcome events that the broker refuses are given up", "fail"),
    SESSIONS: ("nobody hears that sessions open and close", "warn"),
    FALLBACK: ("fallbacks stay owed until it takes them", "warn"),
    INBOUND: ("what users publish is refused", "warn"),
    DEAD: ("rejected requests wait at the broker until it takes them", "fail"),
    PUSH: (
        "scheduled pushes are published there at their time, and POST /v1/push and `bridge replay` publish, too",
        "fail",
    ),
}
"""By exchange, the consequence where this user may not publish, and its level."""

PERMISSIONS = r"'^(push($|\.)|amq\.gen)' '^(push($|\.)|amq\.(default|gen))' '^(push($|\.)|amq\.gen)'"
"""Configure, write and read of the bridge's user, as rabbitmqctl takes them."""


def _looking(thing: Queue | Exchange) -> Callable[[Low], Awaitable[object]]:
    if isinstance(thing, Queue):
        return lambda low: low.queue_declare(thing.name, passive=True)
    return lambda low: low.exchange_declare(thing.name, passive=True)


def _declaring(thing: Queue | Exchange) -> Callable[[Low], Awaitable[object]]:
    if isinstance(thing, Queue):
        return lambda low: low.queue_declare(thing.name, durable=True, arguments=dict(thing.arguments))
    return lambda low: low.exchange_declare(thing.name, exchange_type=thing.kind, durable=True)


def _declaring_in_vain(thing: Queue | Exchange) -> Callable[[Low], Awaitable[object]]:
    if isinstance(thing, Queue):
        wrong: aiormq.abc.ArgumentsType = {**thing.arguments, "x-expires": 0}
        return lambda low: low.queue_declare(thing.name, durable=True, arguments=wrong)
    return lambda low: low.exchange_declare(
        thing.name, exchange_type=thing.kind, durable=True, arguments={"alternate-exchange": 1}
    )


async def _consuming_in_vain(queue: str, low: Low) -> None:
    await low.basic_consume(queue, never_called, arguments={"x-priority": "none"})


async def _binding_in_vain(exchange: str, source: str, low: Low) -> None:
    await low.exchange_bind(destination=exchange, source=source)


async def _unbinding_in_vain(binding: Binding, key: str, low: Low) -> None:
    await low.queue_unbind(binding.queue, binding.exchange, key)


def _about_version(version: str) -> list[Finding]:
    its = release(version)
    if its == (0, 0):
        return []
    if its < OLDEST:
        return [
            Finding("fail", "broker", f"RabbitMQ {version} is too old: 3.10 is the first that can be used")
        ]
    if its > NEWEST:
        return [
            Finding("warn", "broker", f"RabbitMQ {version} is newer than all that this version knows (4.3)")
        ]
    return []
