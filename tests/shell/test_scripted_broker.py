"""Our AMQP adapter and brokers of versions that can't be had here, each behaving as its documentation says.

docs/compatibility.md lists the differences. Each has a test here that shows what the bridge does about it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pamqp import commands

from bridge.adapters.amqp import encoding, nodes
from bridge.adapters.amqp.check import _Look as Look
from bridge.adapters.amqp.connection import channel, opened
from bridge.adapters.amqp.consume import Consumer
from bridge.adapters.amqp.link import LinkState
from bridge.adapters.amqp.nodes import NodeLink
from bridge.adapters.amqp.outbox import Message
from bridge.adapters.amqp.topology import (
    CONTROL,
    FALLEN,
    PUSH,
    REQUESTS,
    DeclareMode,
    TopologyError,
    ensure,
    topology_of,
)
from bridge.core.delivery.given_up import given_up
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.ports.broker import Arrival, Source
from bridge.core.ports.nodes import Letter, Sent
from bridge.operator.lookup import Found
from bridge.operator.queues import queue_depths
from bridge.operator.story import never_seen
from tests.support.amqp import CLOCK, RecordingIntake, consumer, outbox
from tests.support.ports import RecordingErrors
from tests.support.rabbit_versions import RULES
from tests.support.scripted_broker import ScriptedBroker
from tests.support.waiting import until

FROM_4_0 = [version for version in RULES if version >= "4.0"]
STRICT = [version for version in RULES if version >= "4.3"]
OLDER = [version for version in RULES if version < "4.3"]
GUARDED = ["4.2.6", "4.3.0"]
"""Where a passive declare needs the right to configure."""


@asynccontextmanager
async def taking(
    version: str, errors: RecordingErrors | None = None, **options: Any
) -> AsyncIterator[tuple[ScriptedBroker, RecordingIntake, Consumer]]:
    """A consumer that takes from a broker of this version."""
    async with ScriptedBroker(version, **options).serving() as broker:
        intake, taker = RecordingIntake(), consumer(broker.url, errors)
        async with taker.taking(intake):
            await until(lambda: taker.state is LinkState.OPEN)
            yield broker, intake, taker


def bodies(arrivals: Sequence[Arrival]) -> list[bytes]:
    return [arrival.body for arrival in arrivals]


# --- What is the same everywhere ---


@pytest.mark.parametrize("version", RULES)
async def test_messages_come_in_their_order_and_each_is_acked_once(version: str) -> None:
    async with taking(version) as (broker, intake, taker):
        broker.publish(REQUESTS, b"1", b"2", b"3")
        await intake.has(3)
        assert bodies(intake.arrivals) == [b"1", b"2", b"3"]
        assert not any(a.reordered or a.properties.redelivered for a in intake.arrivals)
        taker.ack(intake.tokens)
        await until(lambda: broker.of(commands.Basic.Ack))
        assert taker.held == 0
        await taker.stop_consuming()
    assert not broker.queues[REQUESTS].returned


@pytest.mark.parametrize("version", RULES)
async def test_confirms_refusals_and_returns_end_the_same_way(version: str) -> None:
    verdicts = {"taken": "ack", "full": "nack", "nowhere": "return"}
    async with ScriptedBroker(version).serving() as broker, outbox(broker.url) as box:
        broker.verdict = lambda message: verdicts[message.key]
        messages = [
            Message(PUSH, key.encode(), encoding.properties(message_id=key), b"{}", key) for key in verdicts
        ]
        failures = await box.publish(messages, 5.0)
    assert (sorted(failures), failures[1].nacked, failures[2].returned) == ([1, 2], True, True)


# --- How often a message came ---


@pytest.mark.parametrize("version", RULES)
async def test_a_message_given_back_is_counted_also_where_a_nack_is_not(version: str) -> None:
    """From 4.3 on `basic.nack` leaves x-delivery-count as it was: a message that can't be handled would never end."""
    async with taking(version) as (broker, intake, taker):
        broker.publish(REQUESTS, b"bad")
        for count in range(20):
            await intake.has(count + 1)
            assert intake.arrivals[count].properties.delivery_count == count
            taker.requeue([intake.tokens[count]])
        await intake.has(21)
        assert given_up(intake.arrivals[20], 20) == (
            Outcome.REJECTED,
            Reason.POISON,
            "given out 20 times and never settled",
        )
        assert not broker.of(commands.Basic.Nack)


@pytest.mark.parametrize("version", RULES)
async def test_a_lost_connection_is_counted(version: str) -> None:
    async with taking(version) as (broker, intake, _):
        broker.publish(REQUESTS, b"1")
        await intake.has(1)
        broker.drop()
        await intake.has(2)
        assert [(a.properties.redelivered, a.properties.delivery_count) for a in intake.arrivals] == [
            (False, 0),
            (True, 1),
        ]


@pytest.mark.parametrize("version", STRICT)
async def test_a_message_that_was_acquired_and_is_not_counted_still_counts_as_redelivered(
    version: str,
) -> None:
    """`x-acquired-count` alone: the broker took it back after the consumer timeout, and no delivery failed."""
    async with taking(version) as (broker, intake, _):
        broker.publish(REQUESTS, b"1")
        await intake.has(1)
        broker.time_out(REQUESTS)
        await intake.has(2)
        again = intake.arrivals[1].properties
        assert (again.redelivered, again.delivery_count, dict(again.headers)) == (
            True,
            0,
            {"x-acquired-count": 1},
        )


# --- A consumer that acks too late ---


@pytest.mark.parametrize("acked", [0, 1], ids=["none", "the first"])
@pytest.mark.parametrize("version", RULES)
async def test_after_the_consumer_timeout_the_bridge_consumes_again_and_says_why(
    version: str, acked: int
) -> None:
    """From 4.3 on a consumer is cancelled; but the one that takes the first message is cancelled already."""
    errors = RecordingErrors()
    async with taking(version, errors) as (broker, intake, taker):
        broker.publish(REQUESTS, b"1", b"2", b"3")
        await intake.has(3)
        first, left = intake.tokens, [b"1", b"2", b"3"][acked:]
        taker.ack(first[:acked])
        await until(lambda: len(broker.of(commands.Basic.Ack)) == acked)
        broker.time_out(REQUESTS)
        await intake.has(3 + len(left))
        assert bodies(intake.arrivals[3:]) == left
        assert intake.lost == [1]
        taker.ack(first[acked:])
        assert taker.stale == len(left), "the tokens of before are worth nothing"
        taker.ack(intake.tokens[3:])
        assert taker.held == 0
    [(error, where)] = errors.seen
    cancelled = version in STRICT and acked
    words = "cancelled the consumer of push.requests" if cancelled else "delivery acknowledgement on channel"
    assert words in str(error)
    assert where.startswith("broker.")


@pytest.mark.parametrize("queue", [CONTROL, FALLEN])
async def test_a_cancelled_consumer_of_another_queue_is_begun_again(queue: str) -> None:
    async with taking("4.3.5") as (broker, intake, taker):
        broker.publish(queue, b"1")
        await intake.has(1)
        broker.time_out(queue)
        await intake.has(2)
        await until(lambda: taker.state is LinkState.OPEN)
        assert [a.source for a in intake.arrivals] == [Source(queue)] * 2


# --- frame_max ---


@pytest.mark.parametrize("version", RULES)
async def test_small_frames_carry_large_messages_both_ways(version: str) -> None:
    body = bytes(range(256)) * (MESSAGE_BYTES_MAX // 256)
    async with taking(version, frame_max=8192) as (broker, intake, _):
        broker.publish(REQUESTS, body, headers={"x-push-meta": {"a": "b" * 4000}})
        await intake.has(1)
        assert intake.arrivals[0].body == body
        async with outbox(broker.url) as box:
            assert box.properties_max == 8192 - 20
            assert not await box.publish([Message(PUSH, b"k", encoding.properties(), body)], 5.0)
    [sent] = broker.published
    assert sent.body == body
    assert max(sent.frames) == 8192


@pytest.mark.parametrize(("version", "taken"), [("3.13.7", True), ("4.0.9", True), ("4.1.8", False)])
async def test_frames_of_4_kib_are_refused_from_4_1_on_in_words_of_the_broker(
    version: str, taken: bool
) -> None:
    errors = RecordingErrors()
    async with ScriptedBroker(version, frame_max=4096).serving() as broker:
        taker = consumer(broker.url, errors)
        async with taker.taking(RecordingIntake()):
            await until(lambda: errors.seen or taker.state is LinkState.OPEN)
            assert (taker.state is LinkState.OPEN) is taken
    words = "NOT_ALLOWED - negotiated frame_max = 4096 is lower than the minimum allowed value (8192)"
    assert [str(error) for error, _ in errors.seen] == (
        [] if taken else [f"the broker refused: {words} (530)"]
    )


# --- Queues that are neither durable nor exclusive ---


@pytest.mark.parametrize("version", STRICT)
async def test_nothing_that_the_bridge_declares_is_transient(version: str) -> None:
    async with taking(version) as (broker, _, _), node_link(broker, "n1"):
        assert {name.rstrip("0123456789-") for name, q in broker.queues.items() if not q.durable} == {
            "push.taker",
            "push.node.n1.boot",
        }
        assert all(queue.durable or queue.owner is not None for queue in broker.queues.values())
        assert not any(declared.auto_delete for declared in broker.of(commands.Queue.Declare))


@pytest.mark.parametrize("version", RULES)
async def test_a_transient_queue_of_others_is_refused_from_4_3_on_and_told_in_words_of_the_broker(
    version: str,
) -> None:
    told: list[str] = []
    async with (
        ScriptedBroker(version).serving() as broker,
        opened(broker.url, "test", lambda events: None, told.append) as (connection, _),
    ):
        low = await channel(connection, confirms=False)
        declaring = asyncio.ensure_future(low.queue_declare("answers", durable=False))
        await asyncio.wait([declaring], timeout=5.0)
        assert (declaring.exception() is not None) is (version in STRICT)


# --- Limits that are arguments ---


def test_no_queue_has_the_delivery_limit_that_is_the_default_since_4_0() -> None:
    """20 by default. And without one a message that is given back goes to the end of the queue (4.0 to 4.2)."""
    for queue in topology_of(8).queues:
        limit = queue.arguments["x-delivery-limit"]
        assert isinstance(limit, int)
        assert limit >= 100


@pytest.mark.parametrize("version", FROM_4_0)
async def test_no_consumer_has_a_priority_by_which_it_would_become_the_active_one(version: str) -> None:
    async with taking(version) as (broker, _, _):
        consumes = broker.of(commands.Basic.Consume)
        assert consumes
        assert not any("x-priority" in (frame.arguments or {}) for frame in consumes)
        assert not any(frame.global_ for frame in broker.of(commands.Basic.Qos))


# --- Priorities ---


@pytest.mark.parametrize("version", RULES)
async def test_only_priorities_that_keep_the_order_are_taken(version: str) -> None:
    async with ScriptedBroker(version).serving() as broker:
        intake, taker = RecordingIntake(), consumer(broker.url)
        async with opened(broker.url, "test", lambda events: None, lambda cause: None) as (connection, _):
            await ensure(connection, DeclareMode.ACTIVE)
        for priority in (None, 1, 4, 9):
            broker.publish(REQUESTS, str(priority).encode(), priority=priority)
        async with taker.taking(intake):
            await intake.has(4)
        refused = {a.body for a in intake.arrivals if a.reordered}
        kept = [a.body for a in intake.arrivals if not a.reordered]
    expected = {b"9"} if version in FROM_4_0 else set()
    expected |= {b"1"} if version in STRICT else set()
    assert refused == expected
    assert kept == [body for body in (b"None", b"1", b"4", b"9") if body not in refused]


@pytest.mark.parametrize("version", RULES)
async def test_priority_0_beside_none_is_told_where_it_changes_the_order(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with taking(version) as (broker, intake, _):
        broker.publish(REQUESTS, b"java", b"kombu", priority=0)
        await intake.has(2)
        assert not caplog.messages
        broker.publish(REQUESTS, b"pika", b"another")
        await intake.has(4)
        assert not any(a.reordered for a in intake.arrivals)
    told = [text for text in caplog.messages if "priority 0" in text]
    assert len(told) == (version in STRICT)


# --- Messages that were dead-lettered before ---


@pytest.mark.parametrize("version", RULES)
async def test_a_republished_message_ends_by_its_newest_death(version: str) -> None:
    """3.x reads a publisher's x-death and leaves its x-first-death-reason, 4.x writes its own over both."""
    old = {"queue": "elsewhere", "reason": "rejected", "count": 3}
    new = {"queue": REQUESTS, "reason": "expired", "count": 1}
    headers: dict[str, Any] = {
        "x-death": [new],
        "x-first-death-reason": "expired",
        "x-last-death-reason": "expired",
    }
    if version < "4.0":
        headers = {"x-death": [new, old], "x-first-death-reason": "rejected"}
    async with taking(version) as (broker, intake, _):
        broker.publish(FALLEN, b"{}", headers=headers)
        await intake.has(1)
        found = given_up(intake.arrivals[0], 20)
    assert found is not None
    assert (found.outcome, found.reason) == (Outcome.EXPIRED, Reason.QUEUE_EXPIRATION)


# --- Rights ---


@pytest.mark.parametrize("version", RULES)
async def test_looking_at_a_queue_needs_more_rights_in_two_releases_which_is_said(version: str) -> None:
    async with ScriptedBroker(version).serving() as broker:
        async with opened(broker.url, "owner", lambda events: None, lambda cause: None) as (connection, _):
            await ensure(connection, DeclareMode.ACTIVE)
        broker.may_configure = False
        async with opened(broker.url, "bridge", lambda events: None, lambda cause: None) as (connection, _):
            if version not in GUARDED:
                await ensure(connection, DeclareMode.PASSIVE)
                return
            found = await Look(connection, DeclareMode.PASSIVE, topology_of(1)).topology()
            assert {finding.level for finding in found} == {"fail"}
            assert all("may not look at" in finding.words for finding in found), "and not that it is missing"
            with pytest.raises(TopologyError, match=r"RabbitMQ 4\.2\.6 and 4\.3\.0 let only those look"):
                await ensure(connection, DeclareMode.PASSIVE)


@pytest.mark.parametrize("version", RULES)
async def test_who_may_not_look_at_a_queue_is_not_told_that_it_is_missing(version: str) -> None:
    async with ScriptedBroker(version).serving() as broker:
        async with opened(broker.url, "owner", lambda events: None, lambda cause: None) as (connection, _):
            await ensure(connection, DeclareMode.ACTIVE)
        broker.may_configure = False
        found = await queue_depths(broker.url)
    assert {depth.hidden for depth in found} == {version in GUARDED}
    assert {depth.there for depth in found} == {version not in GUARDED}
    words = " ".join(never_seen("p1", Found((), (), datetime.now(UTC), None), found))
    assert ("does not let this user look at it" in words) is (version in GUARDED)


# --- Letters between nodes ---


class Heard:
    """Fills NodeListener."""

    def __init__(self) -> None:
        self.letters: list[bytes] = []
        self.queues = 0

    def came(self, body: bytes) -> None:
        self.letters.append(body)

    def listening(self) -> None:
        self.queues += 1


@asynccontextmanager
async def node_link(
    broker: ScriptedBroker, node: str, errors: RecordingErrors | None = None
) -> AsyncIterator[tuple[NodeLink, Heard]]:
    heard = Heard()
    link = NodeLink(broker.url, node, "boot", seconds=5.0, clock=CLOCK, errors=errors or RecordingErrors())
    link.listen(heard)
    async with link:
        await until(lambda: link.queue)
        yield link, heard


async def sent(link: NodeLink, letter: Letter) -> Sent:
    """Send a letter; returns what became of it."""
    told = asyncio.get_running_loop().create_future()
    link.send([letter], lambda place, end: told.set_result(end))
    return Sent(await told)


@pytest.mark.parametrize("version", RULES)
async def test_a_node_is_reached_on_a_queue_of_its_own(version: str) -> None:
    async with ScriptedBroker(version).serving() as broker, node_link(broker, "n1") as (link, heard):
        await until(lambda: heard.queues == 1)
        await until(lambda: broker.queues[link.queue].consumers)
        assert await sent(link, Letter(link.queue, b"hello")) is Sent.DELIVERED
        await until(lambda: heard.letters == [b"hello"])


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        ("ack", Sent.DELIVERED),
        ("nack", Sent.UNREACHABLE),
        ("return", Sent.UNREACHABLE),
        ("silent", Sent.UNSURE),
        ("lost", Sent.UNSURE),
    ],
)
async def test_what_became_of_a_letter_is_told_once(
    verdict: str, end: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "WRITE_TIMEOUT", 0.05 if verdict == "silent" else 60.0)
    async with ScriptedBroker("4.3.5").serving() as broker, node_link(broker, "n1") as (link, _):
        broker.verdict = lambda message: "silent" if verdict == "lost" else verdict
        letters = [Letter(link.queue, b"one"), Letter(link.queue, b"two")]
        told: list[tuple[int, Sent]] = []
        link.send(letters, lambda place, sent: told.append((place, sent)))
        await until(lambda: len(broker.published) == len(letters))
        if verdict == "lost":
            broker.drop()
        await until(lambda: len(told) == len(letters))
        assert told == [(0, end), (1, end)]
        await until(lambda: link.queue)
        broker.verdict = lambda message: "ack"
        assert await sent(link, Letter(link.queue, b"three")) is Sent.DELIVERED
        assert len(told) == len(letters)


async def test_a_letter_can_not_be_sent_without_a_connection() -> None:
    link = NodeLink("amqp://127.0.0.1:1/", "n1", "boot", seconds=5.0, clock=CLOCK, errors=RecordingErrors())
    told: list[tuple[int, Sent]] = []
    link.send([Letter("push.node.n2.boot-1", b"one")], lambda place, sent: told.append((place, sent)))
    assert told == [(0, Sent.UNREACHABLE)]


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_node_that_is_not_heard_any_more_listens_on_a_new_queue(how: str) -> None:
    errors = RecordingErrors()
    async with (
        ScriptedBroker("4.3.5").serving() as broker,
        node_link(broker, "n1", errors) as (link, heard),
    ):
        first = link.queue
        if how == "cancelled":
            broker.cancel(first)
        else:
            broker.close_channels(first, 406, "PRECONDITION_FAILED - for a reason")
        await until(lambda: link.queue not in ("", first))
        assert heard.queues == 2
        assert await sent(link, Letter(link.queue, b"hello")) is Sent.DELIVERED
        await until(lambda: heard.letters == [b"hello"])
    [(error, _)] = errors.seen
    assert ("cancelled the consumer" if how == "cancelled" else "for a reason") in str(error)
