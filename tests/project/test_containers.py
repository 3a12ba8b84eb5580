"""Whatever others can make grow is listed with its bound in docs/architecture.md, and does not grow for ever."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from bridge.adapters.amqp.producer import Producer
from bridge.core.assembly import Core
from bridge.core.model.sessions import Mode
from bridge.core.ports.broker import Source
from tests.support.bridges import bridge, counted, publish, request, token
from tests.support.clients import client
from tests.support.house import BOUNDS, House, house
from tests.support.ports import arrival
from tests.support.waiting import until

ARCHITECTURE = Path(__file__).parent.parent.parent / "docs" / "architecture.md"
GROWS = (dict, list, set, deque, bytearray, asyncio.Queue)
MADE_ONCE = frozenset(
    (
        "JwtVerifier._algorithms", "OpsServer._scopes", "Recollection._channels",
        "Consumers.queues", "Consumers.sources",
        "Page._static", "Payer._logs", "Splitter._watched", "Splitter._uncut", "Hub._wheel",
        "Histogram.counts", "HistogramFamily.histograms", "_LibraryLogger.extra", "_TappedConnection.kwargs",
        "Protocol.extensions", "Runner._kwargs", "Runner._sites", "_Server._kwargs",
        "_Protocol._drain_waiters", "_Connection.channels", "_Connection.server_properties", "_Connection.write_queue",
        "_Connection._Connection__client_properties", "_Connection._Connection__create_connection_kwargs",
    )
)  # fmt: skip
"""Containers that are as large as the code, or a setting, makes them. (Those at the end are the libraries' own.)"""
LET_GO_OF_IN_THOUSANDS = frozenset(("Hub._expiries", "Appointments._heap"))
"""What is not needed any more is looked for once there is so much."""
LISTED_ALL_THE_SAME = frozenset(
    (
        "Hub._wheel", "Appointments._heap", "_Batch.failures", "KeySet._by_kid",
        "Partitions._consumers", "Partitions._leave", "Partitions._tasks", "_Owed.since", "_Owed.asked", "_Peer.unread",
        "_Unwritten.flights", "_Unwritten.unasked", "_Unwritten.unsure",
        "Neighbours._taking", "Share.waiting", "SharedInbox._ring", "SharedInbox._taken", "Shares._shares",
        "Shown._marks",
    )
)  # fmt: skip
"""Not there, or not large, at any moment that one may look. (A batch lives until the broker has answered; there are no
keys where tokens are signed with a secret, tenants take turns only where a setting says so, one partition has a
consumer of its own, who is alone is owed no answers, a node says what it takes half a second after its start, and
nobody resumes.)"""


def containers(things: Iterator[object] | list[object]) -> Iterator[tuple[str, int]]:
    """The containers that these objects hold, as `Class.attribute`, and how much is in each."""
    for thing in things:
        kind = type(thing)
        if not str(getattr(kind, "__module__", "")).startswith("bridge.") or isinstance(thing, type):
            continue
        if kind.__module__ in ("bridge.config.settings", "bridge.devservers.directory"):
            continue
        slots = itertools.chain.from_iterable(vars(base).get("__slots__", ()) for base in kind.__mro__)
        for name in {*getattr(thing, "__dict__", ()), *slots}:
            held = getattr(thing, name, None)
            if isinstance(held, GROWS):
                size = held.qsize() if isinstance(held, asyncio.Queue) else len(held)
                yield f"{kind.__name__}.{name}", size


def parts_of(core: Core) -> list[object]:
    """The objects of the core that it is made of."""
    found: dict[int, object] = {id(core): core}
    waiting: list[object] = [core]
    while waiting:
        for part in getattr(waiting.pop(), "__dict__", {}).values():
            if type(part).__module__.startswith("bridge.core.") and id(part) not in found:
                found[id(part)] = part
                waiting.append(part)
    return list(found.values())


def listed() -> set[str]:
    """What the document lists."""
    _, _, section = ARCHITECTURE.read_text().partition("## What others can make grow")
    table = section.partition("\n## ")[0]
    return set(re.findall(r"`(_?[A-Z]\w+\.\w+)`", table))


async def test_every_container_of_a_running_bridge_is_listed_and_every_listed_one_is_there(
    vhost: str, database: str
) -> None:
    gc.collect()
    before = gc.get_objects()  # of other tests; kept, so that none of their addresses is used again
    known = {id(thing) for thing in before}
    async with bridge(vhost, database, connect_url="http://127.0.0.1:1/") as made:
        path = "/ws?last=p9"
        async with client(made.ws_port, token("u1"), path=path, subprotocols=["bridge.v1.json"]) as peer:
            await peer.read()
            await publish(vhost, request("u1", "p1", confirm="acked"), request("u2", "p2", ttl=60))
            await peer.read()
            await counted(database, "push_id = 'p2' and outcome = 'stored'", 1)
            async with Producer.connect(vhost):  # the publisher's part of the table
                ours = [thing for thing in gc.get_objects() if id(thing) not in known]
                found = {name for name, _ in containers(ours)}
    assert found - MADE_ONCE <= listed(), "list them in docs/architecture.md with their bound"
    assert listed() <= found | LISTED_ALL_THE_SAME, "these are gone"


class Day:
    """Traffic of all kinds in a house whose clock runs fast."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.n = 0
        self.tags = itertools.count(1)

    async def minute(self) -> None:
        """Sixty seconds: users that nobody has seen before, sessions of all kinds, repeats, wrong input, recalls."""
        h, self.n = self.house, self.n + 1
        new = f"new{self.n}"
        reader, mute, bare = (
            h.connect(f"r{self.n % 7}"),
            h.connect(f"m{self.n % 5}"),
            h.connect(new, Mode.BARE),
        )
        resuming = h.connect(f"r{self.n % 7}", last=f"p{self.n - 1}")
        bodies: list[object] = [
            {"id": f"p{self.n}", "to": {"user": f"r{self.n % 7}"}, "data": 1, "confirm": "acked", "ttl": 120},
            {"id": f"p{self.n}", "to": {"user": f"r{self.n % 7}"}, "data": 1, "confirm": "acked", "ttl": 120},
            {"id": f"q{self.n}", "to": {"user": f"m{self.n % 5}"}, "data": 1},
            {"id": f"k{self.n}", "to": {"users": [f"a{self.n}", f"b{self.n}"]}, "data": 1, "ttl": 90},
            {"id": f"c{self.n}", "to": {"user": f"a{self.n % 3}"}, "data": 1, "ttl": 90, "collapse_key": "k"},
            {"id": f"all{self.n}", "to": {"all": True}, "data": 1},
            {"id": f"s{self.n}", "to": {"session": "nobody"}, "data": 1},
            {"to": {"user": new}, "data": 1},
            {"id": f"w{self.n}", "wrong": 1},
        ]
        await h.take(
            *(
                arrival(
                    json.dumps(body).encode(), arrived_at=h.clock.now, tag=next(self.tags), reply_to="q",
                    redelivered=self.n % 9 == 0,
                )
                for body in bodies
            )
        )  # fmt: skip
        recall = json.dumps({"type": "recall", "push_id": f"k{self.n - 1}"}).encode()
        self.house.control.arrived(
            [arrival(recall, source=Source.CONTROL, tag=next(self.tags), reply_to="q")]
        )
        for peer in (reader, resuming, bare):
            peer.answer()
        for push in reader.pushes:
            h.gateway._message(reader.client.session, json.dumps({"type": "ack", "id": push["id"]}))
        for _ in range(60):
            h.advance(1, step=0.5)
            h.core.every_second()
            h.worklist.sweep()
            await asyncio.sleep(0)
        await h.core.mailbox_sweep.sweep()
        for peer in (reader, resuming, bare, mute):
            peer.leave()
        for _ in range(30):
            await asyncio.sleep(0)

    def sizes(self) -> dict[str, int]:
        """How much is in each container now, the largest of each kind."""
        found: dict[str, int] = {}
        for name, size in containers(parts_of(self.house.core)):
            found[name] = max(size, found.get(name, 0))
        return found


async def test_after_a_day_of_traffic_everything_is_as_small_as_after_an_hour() -> None:
    bounds = BOUNDS._replace(mailbox=BOUNDS.mailbox._replace(growth_users=100))
    async with house(bounds=bounds) as h:
        running = [asyncio.create_task(h.control.run()), asyncio.create_task(h.recollection.run())]
        day = Day(h)
        for _ in range(60):
            await day.minute()
        hour = day.sizes()
        for _ in range(23 * 60):
            await day.minute()
        later = day.sizes()
        grown = {name: size for name, size in later.items() if size > 2 * hour[name] + 20}
        assert grown.keys() <= LET_GO_OF_IN_THOUSANDS, grown
        assert later["Measuring._grown"] <= 100
        # At rest nothing is left but what is there for good.
        for _ in range(200):
            h.advance(10, step=5)
            h.core.every_second()
            h.worklist.sweep()
            await h.core.mailbox_sweep.sweep()
            for _ in range(10):
                await asyncio.sleep(0)
        await until(lambda: not h.inflight.busy)
        left = {name: size for name, size in day.sizes().items() if size and name not in MADE_ONCE}
        assert left.keys() <= LET_GO_OF_IN_THOUSANDS, left
        assert sum(left.values()) <= 2000
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert h.errors.seen == []
