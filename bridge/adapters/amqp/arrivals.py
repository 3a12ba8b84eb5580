"""Turn what one read of the broker's socket brought into messages for the core. It decides nothing and calls nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from bridge.adapters.amqp.frames import Delivered, Event
from bridge.core.model.tuples import new_tuple
from bridge.core.ports.broker import AckToken, Arrival, Source

_REQUESTS: Final = Source.REQUESTS


def weight_of(value: object) -> int:
    """About how many bytes of memory a header's value, or a table of headers, takes."""
    if isinstance(value, str | bytes):
        return 64 + len(value)
    if isinstance(value, Mapping):
        return 64 + sum(128 + len(str(name)) + weight_of(one) for name, one in value.items())
    if isinstance(value, list | tuple):
        return 64 + sum(weight_of(one) for one in value)
    return 32


class Read:
    """What one read brought, in the order in which it came."""

    __slots__ = (
        "arrivals",
        "other_events",
        "others",
        "priorities",
        "single",
        "sizes",
        "total_bytes",
        "unreadable",
    )

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.sizes: dict[int, int] = {}
        """Bytes that each counts, by delivery tag."""
        self.total_bytes = 0
        self.others: dict[int, Source] = {}
        """The sources of those that are not from push.requests, by delivery tag."""
        self.single: int | None = None
        """Delivery tag of the newest one of the consumer `single`, if any."""
        self.unreadable: list[Arrival] = []
        """Those whose header table can't be read."""
        self.other_events: list[Event] = []
        self.priorities: set[int | None] = set()
        """Of requests, where the broker gives them out by it."""


def read_of(
    events: Sequence[Event],
    *,
    channel: int,
    incarnation: int,
    now: float,
    sources: Mapping[str, Source],
    single: str,
    usual: AbstractSet[int | None] | None,
    overhead: int = 0,
) -> Read:
    """Sort out these events.

    `sources`: by consumer tag; messages of another consumer, or of another channel, are left out. `single`: a consumer
    tag. `usual`: the priorities of messages that the broker gives out in their order; None: any. `now`: wall-clock
    seconds. `overhead`: bytes that each message counts besides body and headers; 0: only bodies count.
    """
    read = Read()
    arrivals, sizes = read.arrivals, read.sizes
    for event in events:
        if type(event) is not Delivered:
            read.other_events.append(event)
            continue
        its_channel, consumer, tag, body, body_size, properties, readable, key = event
        source = sources.get(consumer)
        if its_channel != channel or source is None:
            continue
        if consumer == single:
            read.single = tag
        size = len(body) + overhead
        if overhead and properties.headers:
            size += weight_of(properties.headers)
        sizes[tag] = size
        read.total_bytes += size
        reordered = False
        if source is not _REQUESTS:
            read.others[tag] = source
        elif usual is not None:
            read.priorities.add(properties.priority)
            reordered = properties.priority not in usual
        arrival = Arrival(
            new_tuple(AckToken, (incarnation, tag)), source, body, body_size, properties, now, reordered, key
        )
        arrivals.append(arrival)
        if not readable:
            read.unreadable.append(arrival)
    return read
