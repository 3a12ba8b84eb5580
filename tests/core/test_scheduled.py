"""Scheduled pushes: written down, released by one node at their time, and recalled before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from bridge.adapters.memory import MemoryLease, MemorySchedule
from bridge.core.contract.scheduling import packed, release_of, released_as
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Properties, PushRequest, Recall, Timestamp, ToUser
from bridge.core.model.rows import Reply
from bridge.core.model.scheduled import Scheduled
from bridge.core.ports.broker import Arrival
from bridge.core.ports.scheduling import Release
from tests.support.house import House, Runs, kept, to
from tests.support.ports import GatedStore, ManualClock, arrival
from tests.support.waiting import until

HOUR = 3600.0


class Exchange:
    """Fills the Releases port: what is published comes to a queue, whose messages a house is given by the test."""

    def __init__(self) -> None:
        self.published: list[Release] = []
        self.blocked = False
        self.confirms = True
        self.hold: asyncio.Event | None = None

    async def release(self, releases: Sequence[Release]) -> Sequence[Release]:
        self.published += releases
        if self.hold is not None:
            await self.hold.wait()
        return [] if self.confirms else releases


class Town:
    """Nodes that share a store, a schedule and a broker."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = GatedStore(self.clock)
        self.schedule = MemorySchedule(self.store, self.clock)
        self.exchange = Exchange()
        self._given = 0

    @asynccontextmanager
    async def node(
        self, name: str = "n1", boot: str = "b1", *, releases: bool = True
    ) -> AsyncIterator[House]:
        built = House(
            DeliveryLimits(start_grace=0.0),
            clock=self.clock,
            store=self.store,
            boot=boot,
            node=name,
            schedule=self.schedule,
            releases=self.exchange,
        )
        lease = MemoryLease(self.store, self.clock, name, boot)
        await lease.claim()
        scheduling = built.core.scheduling
        assert scheduling.releasing is not None
        parts: tuple[Runs, ...] = (*built.parts, scheduling.later, *([scheduling.releasing] * releases))
        async with built.running(*parts):
            built.core.begin(await self.store.last_position())
            yield built

    def queued(self) -> list[Arrival]:
        """What was published since the last call, as the broker delivers it."""
        new = self.exchange.published[self._given :]
        self._given = len(self.exchange.published)
        return [
            arrival(
                r.body,
                arrived_at=self.clock.now,
                **{name: getattr(r.properties, name) for name in Properties.__struct_fields__},
            )
            for r in new
        ]

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in steps, and everybody do what is due."""
        for _ in range(round(seconds / 0.2) or 1):
            self.clock.advance(min(seconds, 0.2))
            for node in self.store.nodes.values():
                node.seen_at = self.clock.now if node.boot not in self.dead else node.seen_at
            await turns()

    dead: frozenset[str] = frozenset()


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@pytest.fixture
async def town() -> Town:
    return Town()


async def jump(town: Town, seconds: float) -> None:
    """Go to a moment, and let the sweeper look."""
    town.clock.advance(seconds)
    for node in town.store.nodes.values():
        if node.boot not in town.dead:
            node.seen_at = town.clock.now
    await town.pass_time(1.0)


def later(user: str, push_id: str, at: float, **more: object) -> dict[str, object]:
    return to(user, push_id, deliver_at=at, **more)


async def test_a_push_is_acked_once_it_is_written_down_and_delivered_at_its_time(town: Town) -> None:
    async with town.node() as house:
        peer = await house.live("u1")
        at = town.clock.now + HOUR
        made = await house.push(later("u1", "p1", at), reply_to="r", correlation_id="c")
        await until(lambda: made.token in house.acks.acked)
        assert [e.push_id for e in town.schedule.entries.values()] == ["p1"]
        assert not town.store.rows
        assert not peer.pushes
        await jump(town, HOUR - 2)
        assert not town.exchange.published
        await jump(town, 2)
        [again] = town.queued()
        assert again.properties.headers["x-push-released"] == "due"
        assert not town.schedule.entries
        await house.take(again)
        assert [p["id"] for p in peer.pushes] == ["p1"]
        peer.answer()
        await house.ends("p1", Outcome.RECEIVED, Reason.PONG)
        row = house.row("p1")
        assert row.published_at == at, "latencies count from its time"
        await until(lambda: house.publisher.replies_of("p1", Outcome.RECEIVED) == [Reply("r", "c")])


async def test_its_message_waits_while_the_entry_can_not_be_written(town: Town) -> None:
    async with town.node() as house:
        add, failures = town.schedule.add, iter([StoreUnavailable("down"), StatementFailed("57014"), None])

        async def failing(entries: Sequence[Scheduled]) -> None:
            error = next(failures, None)
            if error is not None:
                raise error
            await add(entries)

        town.schedule.add = failing  # type: ignore[method-assign]
        made = await house.push(later("u1", "p1", town.clock.now + HOUR))
        assert made.token not in house.acks.acked
        for _ in range(20):
            town.clock.advance(0.2)
            house.core.tick()
            await turns()
        assert made.token in house.acks.acked
        assert len(town.schedule.entries) == 1


async def test_what_was_released_is_never_scheduled_again_though_the_clock_steps_back(town: Town) -> None:
    async with town.node() as house:
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        await jump(town, HOUR)
        [again] = town.queued()
        town.clock.now -= 2 * HOUR
        await house.take(again)
        await house.ends("p1", Outcome.OFFLINE, Reason.NO_SESSION)
        assert not town.schedule.entries


async def test_a_clock_that_steps_forward_makes_it_due(town: Town) -> None:
    async with town.node() as house:
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        town.clock.now += HOUR
        await town.pass_time(1)
        assert len(town.queued()) == 1
        # Taken again after the step, as a repeat of the producer: its time is over.
        await house.push(later("u1", "p2", town.clock.now - 1))
        await house.ends("p2", Outcome.OFFLINE, Reason.NO_SESSION)


async def test_a_node_that_dies_between_publish_and_forgetting_leaves_one_outcome(town: Town) -> None:
    async with town.node("n2", "b2", releases=False) as taker:
        peer = await taker.live("u1")
        async with AsyncExitStack() as stack:
            dying = await stack.enter_async_context(town.node("n1", "b1"))
            await taker.push(later("u1", "p1", town.clock.now + HOUR))
            await until(lambda: len(town.schedule.entries) == 1)
            town.exchange.hold = asyncio.Event()
            await jump(town, HOUR)
            assert len(town.exchange.published) == 1
            assert dying.core.scheduling.releasing is not None
        # It has published, and never forgets its entry. Nobody gets it while its lease is alive.
        town.exchange.hold = None
        assert (await town.schedule.claim("b2", 10, 1 << 20)).entries == ()
        town.dead = frozenset(("b1",))
        await town.pass_time(6)
        due = await town.schedule.claim("b2", 10, 1 << 20)
        assert [e.push_id for e in due.entries] == ["p1"]
        await town.exchange.release([release_of(e) for e in due.entries])
        first, copy = town.queued()
        await taker.take(first)
        peer.answer()
        await taker.ends("p1", Outcome.RECEIVED, Reason.PONG)
        await taker.take(copy)
        await until(lambda: copy.token in taker.acks.acked)
        assert [p["id"] for p in peer.pushes] == ["p1"]


async def test_a_generated_id_stays_the_same_in_every_copy(town: Town) -> None:
    async with town.node() as house:
        peer = await house.live("u1")
        await house.push({"to": {"user": "u1"}, "data": 1, "deliver_at": town.clock.now + HOUR})
        town.exchange.confirms = False
        await jump(town, HOUR)
        town.exchange.confirms = True
        await jump(town, 10)
        first, *copies = town.queued()
        assert copies
        assert not town.schedule.entries
        await house.take(first)
        peer.answer()
        for copy in copies:
            await house.take(copy)
        await until(lambda: len(house.acks.acked) == 2 + len(copies))
        assert len(peer.pushes) == 1
        assert len(town.store.rows) == 1


async def test_a_repeat_with_the_same_id_is_answered_from_the_first(town: Town) -> None:
    async with town.node() as house:
        at = town.clock.now + HOUR
        for queue in ("a", "b"):
            await house.push(later("u1", "p1", at), reply_to=queue)
        await until(lambda: len(town.schedule.entries) == 2)
        await jump(town, HOUR)
        await house.take(*town.queued())
        await until(lambda: len(house.acks.acked) == 4)
        assert len(town.store.rows) == 1
        assert {r.queue for receipt in house.publisher.sent for r in receipt.replies} == {"a", "b"}


@pytest.mark.parametrize(
    ("recall", "ended"),
    [
        (Recall(push_id="p1"), 1),
        (Recall(user="u1", collapse_key="k"), 1),
        (Recall(push_id="p2"), 0),
        (Recall(tenant="t", push_id="p1"), 0),
    ],
)
async def test_a_recall_before_its_time_ends_it_at_once(town: Town, recall: Recall, ended: int) -> None:
    async with town.node() as house:
        peer = await house.live("u1")
        await house.push(kept("u1", "p1", deliver_at=town.clock.now + HOUR, collapse_key="k"), reply_to="r")
        assert await house.core.recalls.recall(recall) == Recalled(ended, 0)
        await town.pass_time(1)
        arrived = town.queued()
        assert len(arrived) == ended
        if not ended:
            return
        assert arrived[0].properties.headers["x-push-released"] == "recalled"
        assert await house.core.recalls.recall(recall) == Recalled(0, 0), "it is recalled only once"
        await house.take(*arrived)
        await house.ends("p1", Outcome.RECALLED, Reason.WITHDRAWN)
        await until(lambda: len(house.acks.acked) == 2)
        assert not peer.pushes
        assert not house.publisher.buried
        assert [r.row.outcome for r in house.publisher.sent if r.replies] == [Outcome.RECALLED]


async def test_a_recall_of_a_push_to_several_users_counts_each(town: Town) -> None:
    async with town.node() as house:
        await house.push(
            {"id": "p1", "to": {"users": ["u1", "u2"]}, "data": 1, "deliver_at": town.clock.now + 9}
        )
        assert (await house.core.recalls.recall(Recall(push_id="p1"))).ended == 2
        await town.pass_time(1)
        await house.take(*town.queued())
        for user in ("u1", "u2"):
            await house.ends("p1", Outcome.RECALLED, Reason.WITHDRAWN, user)


async def test_a_recall_waits_for_an_entry_that_is_being_written(town: Town) -> None:
    async with town.node() as house:
        gate, add = asyncio.Event(), town.schedule.add

        async def slow(entries: Sequence[Scheduled]) -> None:
            await gate.wait()
            await add(entries)

        town.schedule.add = slow  # type: ignore[method-assign]
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        recalling = asyncio.create_task(house.core.recalls.recall(Recall(push_id="p1")))
        await turns()
        assert not recalling.done()
        gate.set()
        assert (await recalling).ended == 1


async def test_a_recall_at_its_time_does_not_claim_to_have_recalled_it(town: Town) -> None:
    async with town.node() as house:
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        town.exchange.hold = asyncio.Event()
        await jump(town, HOUR)
        assert (await house.core.recalls.recall(Recall(push_id="p1"))).ended == 0
        town.exchange.hold.set()
        await town.pass_time(1)
        await house.take(*town.queued())
        await house.ends("p1", Outcome.OFFLINE, Reason.NO_SESSION)


async def test_what_the_broker_does_not_confirm_is_published_again_in_its_order(town: Town) -> None:
    async with town.node() as house:
        at = town.clock.now + HOUR
        for push_id, when in (("c", at + 2), ("a", at), ("b", at + 1)):
            await house.push(later("u1", push_id, when))
        town.exchange.confirms = False
        await jump(town, HOUR + 5)
        town.exchange.confirms = True
        town.exchange.published.clear()
        await jump(town, 5)
        assert [json.loads(r.body)["id"] for r in town.exchange.published] == ["a", "b", "c"]
        assert not town.schedule.entries


async def test_nothing_is_claimed_while_the_broker_takes_no_publishes(town: Town) -> None:
    async with town.node() as house:
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        town.exchange.blocked = True
        await jump(town, HOUR)
        assert not town.exchange.published
        assert (await house.core.recalls.recall(Recall(push_id="p1"))).ended == 1, (
            "so it can still be recalled"
        )
        town.exchange.blocked = False
        await town.pass_time(1)
        assert len(town.queued()) == 1


async def test_an_entry_that_can_not_be_forgotten_is_forgotten_before_anything_else_is_claimed(
    town: Town,
) -> None:
    async with town.node() as house:
        done, failures = town.schedule.done, iter([True, True])

        async def failing(ids: Sequence[str]) -> None:
            if next(failures, False):
                raise StoreUnavailable("down")
            await done(ids)

        town.schedule.done = failing  # type: ignore[method-assign, assignment]
        await house.push(later("u1", "p1", town.clock.now + HOUR))
        await jump(town, HOUR)
        await town.pass_time(6)
        assert not town.schedule.entries
        assert len(town.exchange.published) == 1


async def test_the_elements_of_a_batch_go_each_at_their_time(town: Town) -> None:
    async with town.node() as house:
        at = town.clock.now + HOUR
        batch = [
            to("u1", "now"),
            later(
                "u1", "p1", at, ttl=60, meta={"k": "v"}, tenant="t", event="e", confirm="acked", ack_within=9
            ),
            {"to": {"all": True, "except": ["s9"]}, "data": {"ü": [1.5]}, "deliver_at": at + 10},
        ]
        made = await house.push(batch, message_id="m1")
        await until(lambda: made.token in house.acks.acked)
        assert house.end("now") == (Outcome.OFFLINE, Reason.NO_SESSION)
        assert {e.push_id for e in town.schedule.entries.values()} == {"p1", "m1/2"}
        peer = await house.live("u1")
        await jump(town, HOUR)
        await house.take(*town.queued())
        await jump(town, 10)
        await house.take(*town.queued())
        first, second = peer.pushes
        assert (first["id"], first["event"], first["data"], first["tenant"]) == ("p1", "e", {"n": 1}, "t")
        assert (second["id"], second["data"]) == ("m1/2", {"ü": [1.5]})


async def test_a_ttl_and_the_age_count_from_its_time(town: Town) -> None:
    async with town.node() as house:
        at = town.clock.now + HOUR
        await house.push(later("u1", "old", at))
        await house.push(kept("u1", "kept", ttl=100, deliver_at=at))
        await jump(town, HOUR)
        await house.take(*town.queued())
        await house.ends("old", Outcome.OFFLINE, Reason.NO_SESSION)
        await house.ends("kept", Outcome.STORED, Reason.NO_SESSION)
        assert house.row("kept").expires_at == at + 100


async def test_a_push_that_is_recalled_replaces_nothing(town: Town) -> None:
    async with town.node() as house:
        await house.push(kept("u1", "old", collapse_key="k"))
        await house.ends("old", Outcome.STORED, Reason.NO_SESSION)
        await house.push(kept("u1", "new", collapse_key="k", deliver_at=town.clock.now + HOUR))
        assert (await house.core.recalls.recall(Recall(push_id="new"))).ended == 1
        await town.pass_time(1)
        await house.take(*town.queued())
        await house.ends("new", Outcome.RECALLED, Reason.WITHDRAWN)
        await turns()
        assert house.end("old") == (Outcome.STORED, Reason.NO_SESSION)


def test_every_property_that_a_push_needs_comes_back_and_nothing_that_the_broker_acts_on() -> None:
    headers: dict[str, Any] = {
        "x-push-user": "u1",
        "x-push-deliver-at": Timestamp(1_800_003_600),
        "x-push-ttl": 60,
        "text": "ü\udcff",
        "table": {"a": [1, 2.5, None, True, b"\xff"]},
        "none": None,
        "x-death": [{"count": 1}],
        "CC": ["elsewhere"],
        "odd": object(),
    }
    came = arrival(
        b"data",
        message_id="m",
        correlation_id="c\udcff",
        reply_to="r",
        app_id="a",
        user_id="guest",
        content_type="text/plain",
        expiration="1",
        headers=headers,
        priority=3,
    )
    request = PushRequest(id="p1", target=ToUser("u1"), data=b"data", deliver_at=1_800_003_600.0)
    entry = Scheduled(
        "e1",
        "",
        "p1",
        "u1",
        "",
        1,
        1.8e9,
        1.7e9,
        b"user.u1",
        b"data",
        packed(came, request, 1_700_000_000.25),
    )
    made = release_of(entry)
    assert made.key == b"user.u1"
    properties = made.properties
    assert properties.headers == {
        "x-push-user": "u1",
        "x-push-deliver-at": 1_800_003_600,
        "x-push-ttl": 60,
        "text": "ü\udcff",
        "table": {"a": [1, 2.5, None, True, b"\xff"]},
        "x-push-id": "p1",
        "x-push-published-ms": 1_700_000_000_250,
        "x-push-released": "due",
    }
    assert isinstance(properties.headers["x-push-deliver-at"], Timestamp)
    assert (properties.message_id, properties.correlation_id, properties.reply_to, properties.app_id) == (
        "e1",
        "c\udcff",
        "r",
        "a",
    )
    assert (properties.user_id, properties.expiration, properties.priority) == ("", "", None)
    assert released_as(properties.headers) == "due"
