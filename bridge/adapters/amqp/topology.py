"""The exchanges, queues and bindings that the bridge needs, and how it ensures them."""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import aio_pika
import aiormq.abc
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ChannelPreconditionFailed

from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel
from bridge.adapters.amqp.refusals import with_code
from bridge.core.errors import BrokerUnavailable

PUSH = "push"
REQUESTS = "push.requests"
FALLEN = "push.fallen"
DEAD = "push.dead"
OUTCOMES = "push.outcomes"
CONTROL = "push.control"
SESSIONS = "push.sessions"
FALLBACK = "push.fallback"
INBOUND = "push.inbound"

DELIVERY_LIMIT = 100
"""The broker's own limit, high on purpose: on 3.10 a closed channel raises the count of all messages it held."""
NO_LIMIT = 1_000_000_000
"""For queues that must not lose messages: by default RabbitMQ 4 drops a message after 20 returns."""


LOOKING = (
    "RabbitMQ 4.2.6 and 4.3.0 let only those look at it who may configure it, 4.2.7 and 4.3.1 everybody who has any "
    "right to it"
)
"""Why a passive declare is refused, where nothing else is wrong."""


class DeclareMode(enum.StrEnum):
    """What the bridge may do about the topology at each connect."""

    ACTIVE = "active"
    """Declare everything; idempotent."""
    PASSIVE = "passive"
    """Only check that it is there, for brokers where somebody else creates it. Bindings can't be checked."""


class Queue(NamedTuple):
    """A durable queue."""

    name: str
    arguments: Mapping[str, str | int | bool]


class Exchange(NamedTuple):
    """A durable exchange."""

    name: str
    kind: str = "topic"


class Binding(NamedTuple):
    """A queue bound to an exchange."""

    queue: str
    exchange: str
    key: str


class Topology(NamedTuple):
    """What there must be at the broker. Queues are declared before exchanges, and exchanges before bindings, so that no
    message is lost."""

    queues: Sequence[Queue]
    exchanges: Sequence[Exchange]
    bindings: Sequence[Binding]


_REQUESTS: Mapping[str, str | int | bool] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": FALLEN,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-delivery-limit": DELIVERY_LIMIT,
}
_OTHER_QUEUES: Sequence[Queue] = (
    Queue(DEAD, {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}),
    Queue(
        CONTROL,
        {"x-queue-type": "quorum", "x-single-active-consumer": True, "x-delivery-limit": NO_LIMIT},
    ),
)
_EXCHANGES: Sequence[Exchange] = (
    Exchange(PUSH),
    Exchange(DEAD),
    Exchange(OUTCOMES),
    Exchange(SESSIONS),
    Exchange(FALLBACK),
    Exchange(CONTROL, "fanout"),
)
_OTHER_BINDINGS: Sequence[Binding] = (Binding(DEAD, DEAD, "#"), Binding(CONTROL, CONTROL, ""))


def requests_queue(partition: int) -> str:
    """The queue of a partition of the requests."""
    return f"{REQUESTS}.{partition}" if partition else REQUESTS


def topology_of(partitions: int) -> Topology:
    """What there must be for so many partitions, but for the exchange that spreads requests over several of them."""
    # The last one first: where there is a second one, all are there.
    requests = [Queue(requests_queue(partition), _REQUESTS) for partition in reversed(range(partitions))]
    source = [Binding(REQUESTS, PUSH, "#")] if partitions == 1 else []
    fallen = Queue(FALLEN, {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT})
    return Topology((fallen, *requests, *_OTHER_QUEUES), _EXCHANGES, (*source, *_OTHER_BINDINGS))


ONE = topology_of(1)
OUTGOING = Topology(_OTHER_QUEUES, _EXCHANGES, _OTHER_BINDINGS)
"""What is needed to publish. How requests come in is for who takes them: see `spread`."""
INBOUND_ONLY = Topology((), (Exchange(INBOUND),), ())
"""What is needed to publish what users say. Where it is missing, pushes go on."""


class TopologyError(BrokerUnavailable):
    """The broker's topology is not what the bridge needs; somebody has to change it.

    `problems`: a sentence for each queue or exchange, with its name.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))
        self.args = (f"the broker's queues and exchanges do not fit: {self.cause}",)


async def ensure(connection: aio_pika.Connection, mode: DeclareMode, topology: Topology = ONE) -> None:
    """Declare the topology, or check that it is there; idempotent. Uses channels of its own.

    Raises TopologyError where something is missing, refused or different, and BrokerUnavailable.
    """
    if mode is DeclareMode.PASSIVE:
        await _look(connection, topology)
    else:
        await _declare(connection, topology)


async def _declare(connection: aio_pika.Connection, topology: Topology) -> None:
    low = await channel(connection, confirms=False)
    for queue in topology.queues:
        async with named(f"queue {queue.name}"):
            await low.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
    for exchange in topology.exchanges:
        async with named(f"exchange {exchange.name}"):
            await low.exchange_declare(exchange.name, exchange_type=exchange.kind, durable=True)
    for binding in topology.bindings:
        async with named(f"binding of {binding.queue} to {binding.exchange}"):
            await low.queue_bind(binding.queue, binding.exchange, binding.key)
    await close_channel(low)


async def _look(connection: aio_pika.Connection, topology: Topology) -> None:
    """Check everything before raising, so that one error names all that is missing."""
    problems: list[str] = []
    low: aiormq.abc.AbstractChannel | None = None
    names = [("queue", queue.name) for queue in topology.queues]
    names += [("exchange", exchange.name) for exchange in topology.exchanges]
    for kind, name in names:
        low = low or await channel(connection, confirms=False)
        try:
            async with named(f"{kind} {name}"):
                if kind == "queue":
                    await low.queue_declare(name, passive=True)
                else:
                    await low.exchange_declare(name, passive=True)
        except TopologyError as error:
            more = f": {LOOKING}" if isinstance(error.__cause__, ChannelAccessRefused) else ""
            problems += [f"{problem}{more}" for problem in error.problems]
            low = None  # the broker closes the channel on each error
    if low is not None:
        await close_channel(low)
    if problems:
        raise TopologyError(problems)


@asynccontextmanager
async def named(thing: str) -> AsyncIterator[None]:
    """The border around one declare: errors of the channel become TopologyError and name the object."""
    try:
        async with border(f"declare {thing}", STEP_TIMEOUT):
            yield
    except BrokerUnavailable as error:
        problem = problem_with(thing, error.__cause__)
        if problem is None:
            raise
        raise TopologyError([problem]) from error.__cause__


_DIFFERS = re.compile(
    r"inequivalent arg '(?P<arg>[^']+)' for .*?: received (?P<ours>.*?) but current is (?P<theirs>.*)"
)


def problem_with(thing: str, cause: BaseException | None) -> str | None:
    """A sentence about an error of a declare; None for an error of another kind."""
    text = str(cause)
    if isinstance(cause, ChannelNotFoundEntity):
        return f"{thing} is missing"
    if isinstance(cause, ChannelAccessRefused):
        return f"{thing}: access refused: {with_code(text)}"
    if isinstance(cause, ChannelPreconditionFailed):
        differs = _DIFFERS.search(text)
        if differs is None:
            # The broker's own words: a limit of the vhost, a feature that it lacks.
            return f"{thing}: the broker does not take it: {with_code(text)}"
        return (
            f"{thing} exists with another {differs['arg']}: the bridge needs {differs['ours']}, "
            f"the broker has {differs['theirs']}; delete it when it is empty, or change its policy"
        )
    return None
