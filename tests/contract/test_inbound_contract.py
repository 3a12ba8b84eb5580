"""What Inbound must do, run against each implementation: in memory, and a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Protocol

import pytest

from bridge.adapters.amqp.encoding import properties
from bridge.adapters.amqp.inbound import InboundPublisher
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.topology import DeclareMode
from bridge.core.ports.inbound import Inbound, InboundEnd, InboundMessage
from bridge.devservers import Servers
from tests.support.amqp import CLOCK, outbox
from tests.support.broker_settings import topic_permissions
from tests.support.ports import RecordingErrors, RecordingInbound
from tests.support.queues import channel, listening
from tests.support.waiting import until


def message(name: str, event: str = "chat.said", **more: object) -> InboundMessage:
    return InboundMessage(name, event, b'{"n": 1}', "u1", "s1", 1_800_000_000.25, **more)  # type: ignore[arg-type]


class Ends:
    """Fills InboundListener."""

    def __init__(self) -> None:
        self.told_: list[tuple[str, InboundEnd]] = []

    def told(self, message_id: str, end: InboundEnd) -> None:
        self.told_.append((message_id, end))

    async def of(self, count: int) -> dict[str, InboundEnd]:
        """The first so many, by message."""
        await until(lambda: len(self.told_) >= count)
        assert len(self.told_) == len(dict(self.told_)) == count, "each is told once"
        return dict(self.told_)


class Subject(Protocol):
    """One implementation; somebody listens for `chat.*`."""

    inbound: Inbound
    ends: Ends

    async def arrived(self, count: int) -> list[str]:
        """The ids of the next so many messages that arrive."""

    async def take(self) -> None:
        """Let what was published so far end."""


class InMemory:
    def __init__(self) -> None:
        self.inbound: Inbound
        self._inbound = self.inbound = RecordingInbound()
        self.ends = Ends()
        self.inbound.listen(self.ends)

    async def arrived(self, count: int) -> list[str]:
        return [one.id for one in self._inbound.given if one.event.startswith("chat.")][:count]

    async def take(self) -> None:
        for one in self._inbound.given:
            taken = one.event.startswith("chat.")
            self._inbound.end(InboundEnd.TAKEN if taken else InboundEnd.NOBODY, one)


class OnRabbitMQ:
    def __init__(self, publisher: InboundPublisher, seen: asyncio.Queue[Mapping[str, object]]) -> None:
        self.inbound: Inbound = publisher
        self._seen = seen
        self.ends = Ends()
        publisher.listen(self.ends)

    async def arrived(self, count: int) -> list[str]:
        async with asyncio.timeout(10):
            return [str((await self._seen.get())["message_id"]) for _ in range(count)]

    async def take(self) -> None:
        pass


@pytest.fixture(params=["memory", "rabbitmq"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "memory":
        yield InMemory()
        return
    url: str = request.getfixturevalue("vhost")
    request.getfixturevalue("servers")
    errors = RecordingErrors()
    async with AsyncExitStack() as stack:
        made = InboundPublisher(url, "n1", clock=CLOCK, errors=errors)
        await stack.enter_async_context(made)
        await until(lambda: not made.cause)
        seen = await stack.enter_async_context(listening(url, "push.inbound", key="chat.*"))
        yield OnRabbitMQ(made, seen)
    assert errors.seen == []


async def test_messages_arrive_in_the_order_in_which_they_were_given(subject: Subject) -> None:
    assert subject.inbound.cause == ""
    names = [f"m{n}" for n in range(200)]
    for name in names:
        subject.inbound.publish(message(name))
    await subject.take()
    assert await subject.ends.of(200) == dict.fromkeys(names, InboundEnd.TAKEN)
    assert await subject.arrived(200) == names


async def test_each_message_has_an_end_of_its_own(subject: Subject) -> None:
    subject.inbound.publish(message("m1"))
    subject.inbound.publish(message("m2", "nobody.hears"))
    subject.inbound.publish(message("m3"))
    await subject.take()
    assert await subject.ends.of(3) == {
        "m1": InboundEnd.TAKEN,
        "m2": InboundEnd.NOBODY,
        "m3": InboundEnd.TAKEN,
    }
    assert await subject.arrived(2) == ["m1", "m3"]


async def test_nothing_is_told_within_publish_and_nothing_of_what_was_forgotten(subject: Subject) -> None:
    subject.inbound.publish(message("m1"))
    assert subject.ends.told_ == []
    await asyncio.sleep(0)  # it leaves with this turn of the loop
    subject.inbound.forget("m1")
    subject.inbound.forget("m1")
    subject.inbound.forget("never seen")
    subject.inbound.publish(message("m2"))
    await subject.take()
    assert await subject.ends.of(1) == {"m2": InboundEnd.TAKEN}
    assert await subject.arrived(2) == ["m1", "m2"]


async def test_a_broker_that_refuses_one_event_ends_only_that_one_and_is_not_asked_again(
    servers: Servers, vhost: str
) -> None:
    errors, ends = RecordingErrors(), Ends()
    async with (
        InboundPublisher(vhost, "n1", clock=CLOCK, errors=errors) as made,
        listening(vhost, "push.inbound") as seen,
    ):
        made.listen(ends)
        await until(lambda: not made.cause)
        topic_permissions(servers, vhost, "push.inbound", "^chat")
        made.publish(message("m1", "orders.cancel"))
        assert await ends.of(1) == {"m1": InboundEnd.REFUSED}
        await until(lambda: not made.cause)
        made.publish(message("m2", "orders.cancel"))
        made.publish(message("m3"))
        assert await ends.of(3) == {
            "m1": InboundEnd.REFUSED,
            "m2": InboundEnd.REFUSED,
            "m3": InboundEnd.TAKEN,
        }
        async with asyncio.timeout(10):
            assert (await seen.get())["message_id"] == "m3"
    assert len(errors.seen) == 1


async def test_a_queue_that_is_full_is_told(vhost: str) -> None:
    errors, ends = RecordingErrors(), Ends()
    async with InboundPublisher(vhost, "n1", clock=CLOCK, errors=errors) as made, channel(vhost) as open_:
        made.listen(ends)
        await until(lambda: not made.cause)
        queue = await open_.declare_queue(
            "full", exclusive=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"}
        )
        await queue.bind("push.inbound", "#")
        made.publish(message("m1"))
        await ends.of(1)
        made.publish(message("m2"))
        assert await ends.of(2) == {"m1": InboundEnd.TAKEN, "m2": InboundEnd.FULL}
    assert errors.seen == []


async def test_where_nothing_can_be_sent_it_is_told_and_why(vhost: str) -> None:
    errors, ends = RecordingErrors(), Ends()
    made = InboundPublisher(
        vhost, "n1", clock=CLOCK, errors=errors, declare=DeclareMode.PASSIVE
    )  # the exchange is missing
    made.listen(ends)
    async with made:
        await until(lambda: "exchange push.inbound is missing" in made.cause)
        made.publish(message("m1"))
        assert await ends.of(1) == {"m1": InboundEnd.UNSENT}
        await declare_inbound(vhost)
        await until(lambda: not made.cause)


async def declare_inbound(url: str) -> None:
    """Make the exchange, as an operator does."""
    async with channel(url) as open_:
        await open_.declare_exchange("push.inbound", "topic", durable=True)


async def test_nothing_is_kept_of_messages_that_have_ended(vhost: str) -> None:
    errors, ends = RecordingErrors(), Ends()
    async with InboundPublisher(vhost, "n1", clock=CLOCK, errors=errors) as made:
        made.listen(ends)
        await until(lambda: not made.cause)
        async with listening(vhost, "push.inbound", key="chat.*"):
            for n in range(50):
                made.publish(message(f"m{n}", "chat.said" if n % 2 else "nobody"))
            await ends.of(50)
        box = made._outbox
        assert box is not None
        assert (box._open, box._mandatory, made._unwritten) == ({}, {}, [])


async def test_nothing_is_kept_of_mandatory_messages_that_were_published_together(vhost: str) -> None:
    async with outbox(vhost) as box:
        names = [f"m{n}" for n in range(10)]
        failures = await box.publish(
            [Message("", b"nobody", properties(message_id=name), b"", name) for name in names], 10.0
        )
        assert all(failures[place].returned for place in range(10))
        assert (box._open, box._mandatory) == ({}, {})
