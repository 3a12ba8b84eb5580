"""What a real broker refuses alone among what is published together, and what becomes of everything else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from unittest.mock import ANY

import psycopg
import pytest

from bridge.adapters.amqp import publish as amqp_publish
from bridge.adapters.amqp.outbox import Outbox
from bridge.adapters.amqp.search import REST, TOLD_MOST, PublishRefused
from bridge.adapters.amqp.topology import DEAD, OUTCOMES
from bridge.core.model.outcomes import Reason
from bridge.core.model.rows import Receipt, Reply
from bridge.devservers import Servers
from tests.support import bridges
from tests.support.amqp import declare, publisher
from tests.support.broker_settings import permissions, topic_permissions
from tests.support.loops import nothing_left_behind
from tests.support.ports import RecordingErrors
from tests.support.queues import at_rest, drained, listening
from tests.support.rows import letter, row

__all__ = ["nothing_left_behind"]


OWED = "select count(*) from delivery_log where owed is not null or not final"


def refusals(errors: RecordingErrors) -> list[PublishRefused]:
    """All errors there were; each must be one of a refusal."""
    assert all(isinstance(error, PublishRefused) for error, _ in errors.seen), errors.seen
    return [error for error, _ in errors.seen if isinstance(error, PublishRefused)]


async def taken(queue: asyncio.Queue[Mapping[str, object]], name: str, count: int) -> list[object]:
    """This property of messages of a queue, until so many different ones have come."""
    found: list[object] = []
    async with asyncio.timeout(bridges.SECONDS):
        while len(set(found)) < count:
            found.append((await queue.get())[name])
    return found


async def metrics(port: int) -> bytes:
    """What `/metrics` shows."""
    _, page = await bridges.get(port, "/metrics")
    return page


async def test_an_event_that_is_refused_holds_up_no_reply_and_no_other_event(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^received[.]allowed")
    errors = RecordingErrors()
    given_up: list[int] = []
    receipts = [
        Receipt(
            row(f"p{n}", event="secret" if n % 10 == 3 else "allowed"),
            (Reply("answers", f"c{n}"),) if n % 2 else (),
        )
        for n in range(100)
    ]
    async with (
        listening(vhost, OUTCOMES) as events,
        listening(vhost, name="answers") as replies,
        publisher(vhost, errors, on_given_up=given_up.append) as out,
    ):
        assert not await out.send(receipts)
        answered = set(await taken(replies, "correlation_id", 50))
        announced = set(await taken(events, "message_id", 90))
        assert answered == {f"c{n}" for n in range(1, 100, 2)}
        assert announced == {f"p{n}" for n in range(100) if n % 10 != 3}
        assert given_up == [10]
        assert not out.blocked
        [refusal] = refusals(errors)
        assert "exchange push.outcomes with routing key 'received.secret'" in str(refusal)
        assert "ACCESS_REFUSED" in str(refusal)
        assert "(403)" in str(refusal)
        assert refusal.given_up


async def test_what_was_refused_is_not_tried_again_at_once_and_costs_no_channel(
    vhost: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^received[.]allowed")
    opened: list[int] = []
    init = Outbox.__init__

    def counted(box: Outbox, *arguments: object) -> None:
        init(box, *arguments)  # type: ignore[arg-type]
        opened.append(box.number)

    monkeypatch.setattr(Outbox, "__init__", counted)
    errors = RecordingErrors()
    given_up: list[int] = []
    async with publisher(vhost, errors, on_given_up=given_up.append) as out:
        for _ in range(20):
            assert not await out.send(
                [Receipt(row("p1", event="secret")), Receipt(row("p2", event="allowed"))]
            )
    assert sum(given_up) == 20
    assert len(opened) <= 5
    assert len(refusals(errors)) == 1


async def test_an_event_goes_out_again_once_its_right_is_back(
    vhost: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^nothing$")
    monkeypatch.setattr("bridge.adapters.amqp.search.REST", 0.2)
    given_up: list[int] = []
    async with listening(vhost, OUTCOMES) as events, publisher(vhost, on_given_up=given_up.append) as out:
        assert not await out.send([Receipt(row("p1"))])
        assert given_up == [1]
        topic_permissions(servers, vhost, OUTCOMES, ".*")

        async def announced() -> None:
            while events.empty():
                assert not await out.send([Receipt(row("p2"))])

        await asyncio.wait_for(announced(), bridges.SECONDS)
        assert (await events.get())["message_id"] == "p2"


NO_EVENTS = "^(push[.](dead|requests|control|fallen)|push|amq[.](default|gen.*))$"


async def test_where_no_event_may_be_published_none_is_lost_and_they_go_out_once_the_right_is_back(
    vhost: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare(vhost)
    permissions(servers, vhost, NO_EVENTS)
    monkeypatch.setattr("bridge.adapters.amqp.search.REST", 0.2)
    errors = RecordingErrors()
    given_up: list[int] = []
    causes: list[str] = []
    receipts = [Receipt(row(f"p{n}", event=f"order.{n}"), (Reply("answers", f"c{n}"),)) for n in range(200)]
    async with (
        listening(vhost, OUTCOMES) as events,
        publisher(vhost, errors, on_given_up=given_up.append, on_events_refused=causes.append) as out,
    ):
        assert await out.send(receipts) == receipts
        [refusal] = refusals(errors)
        assert "what goes to exchange push.outcomes, what is meant for it waits" in str(refusal)
        assert "ACCESS_REFUSED" in causes[0]
        permissions(servers, vhost, ".*")

        async def all_announced() -> None:
            left = await out.send(receipts)
            while left:
                left = await out.send(left)

        await asyncio.wait_for(all_announced(), bridges.SECONDS)
        assert set(await taken(events, "message_id", 200)) == {f"p{n}" for n in range(200)}
        assert causes[-1] == ""
    assert not given_up


async def test_a_bridge_that_may_publish_no_event_takes_no_pushes_until_it_may(
    vhost: str, database: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await declare(vhost)
    monkeypatch.setattr("bridge.adapters.amqp.search.REST", 0.2)
    async with bridges.bridge(vhost, database) as made:
        permissions(servers, vhost, NO_EVENTS)
        # What the broker knows of an open channel it knows for a while; a new one asks.
        servers.rabbit.evaluate('rabbit_networking:close_all_user_connections(<<"bridge">>, <<"test">>).')
        async with asyncio.timeout(bridges.SECONDS):
            await bridges.publish(vhost, bridges.request("u1", "p1"))
            while "outcome events" not in made.gate:
                await asyncio.sleep(0.05)
        status, body = await bridges.get(made.ops_port, "/readyz")
        assert status == 503
        assert b"BRIDGE_OUTCOME_EVENTS" in body
        permissions(servers, vhost, ".*")
        await asyncio.wait_for(made.ready(), bridges.SECONDS)
        await bridges.counted(database, "push_id = 'p1' and final and proven_at is null", 1)
        async with asyncio.timeout(bridges.SECONDS), await psycopg.AsyncConnection.connect(database) as conn:
            await conn.set_autocommit(True)
            while (await (await conn.execute(OWED)).fetchone()) != (0,):
                await asyncio.sleep(0.05)


async def test_many_refused_keys_are_found_in_the_time_of_a_send_or_owed(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^nothing$")
    errors = RecordingErrors()
    given_up: list[int] = []
    receipts = [Receipt(row(f"p{n}", event=f"order.{n}"), (Reply("answers", f"c{n}"),)) for n in range(100)]
    async with (
        listening(vhost, name="answers") as replies,
        publisher(vhost, errors, on_given_up=given_up.append) as out,
    ):
        left = await out.send(receipts)
        await taken(replies, "correlation_id", 100)
        assert sum(given_up) + len(left) == 100
        assert sum(given_up) > 0
        assert len(refusals(errors)) == min(TOLD_MOST, sum(given_up))


async def test_replies_that_are_refused_stay_owed_and_are_not_announced_each_time(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    permissions(servers, vhost, "^(push|amq[.]gen)")
    errors = RecordingErrors()
    given_up: list[int] = []
    receipts = [Receipt(row("p1"), (Reply("answers", "c1"),)), Receipt(row("p2"))]
    async with (
        listening(vhost, OUTCOMES) as events,
        publisher(vhost, errors, on_given_up=given_up.append) as out,
    ):
        for _ in range(5):
            assert await out.send(receipts) == receipts[:1]
        names: list[object] = []
        async with asyncio.timeout(bridges.SECONDS):
            while names.count("p2") < 5:
                names.append((await events.get())["message_id"])
        assert names.count("p1") <= 2
        [refusal] = refusals(errors)
        assert "the default exchange (reply_to), what is meant for it waits" in str(refusal)
    assert not given_up


async def test_what_is_allowed_is_sent_a_few_times_at_most_while_what_is_refused_is_looked_for(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^received[.]allowed")
    events = [f"{'secret' if n % 2 else 'allowed'}.{n}" for n in range(64)]
    receipts = [
        Receipt(row(f"p{n}", event=event), (Reply("answers", f"c{n}"),)) for n, event in enumerate(events)
    ]
    seen: Counter[object] = Counter()
    async with (
        listening(vhost, name="answers") as replies,
        listening(vhost, OUTCOMES) as announced,
        publisher(vhost) as out,
    ):
        assert not await out.send(receipts)
        seen.update(await taken(replies, "correlation_id", 64))
        seen.update(await taken(announced, "routing_key", 32))
        # Whatever else came, came before this.
        assert not await out.send([Receipt(row(event="allowed.last"), (Reply("answers", "last"),))])
        while "last" not in seen:
            seen.update(await taken(replies, "correlation_id", 1))
        while "received.allowed.last" not in seen:
            seen.update(await taken(announced, "routing_key", 1))
    assert max(seen.values()) <= 8


async def test_a_dead_letter_that_is_refused_is_kept_and_the_others_are_buried(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, DEAD, "^(too_large|not_json)$")
    errors = RecordingErrors()
    letters = [letter(f"p{n}", reason=Reason.INVALID if n == 2 else Reason.NOT_JSON) for n in range(5)]
    async with publisher(vhost, errors) as out:
        assert await out.bury(letters) == letters[2:3]
        [refusal] = refusals(errors)
        assert not refusal.given_up
    buried = await drained(vhost, DEAD)
    assert {message.headers["x-push-id"] for message in buried} == {"p0", "p1", "p3", "p4"}


async def test_a_batch_that_was_in_flight_when_the_channel_was_closed_is_not_blamed(
    vhost: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^received[.]allowed")
    errors = RecordingErrors()
    async with listening(vhost, name="answers") as replies, publisher(vhost, errors) as out:
        sent = await asyncio.gather(
            out.send([Receipt(row("p1", event="secret"))]),
            out.answer(Reply("answers", "c1"), b"{}"),
            out.send([Receipt(row("p2", event="allowed"), (Reply("answers", "c2"),))]),
        )
        assert [bool(one) for one in sent] == [False, True, False]
        assert set(await taken(replies, "correlation_id", 2)) == {"c1", "c2"}
        assert len(refusals(errors)) == 1


async def test_a_whole_bridge_pays_its_replies_and_owes_nothing_where_one_event_is_refused(
    vhost: str, database: str, servers: Servers
) -> None:
    await declare(vhost)
    topic_permissions(servers, vhost, OUTCOMES, "^offline[.]allowed$")
    async with listening(vhost, name="answers") as replies, bridges.bridge(vhost, database) as made:
        requests = [bridges.request("u1", f"p{n}", event="secret" if n % 2 else "allowed") for n in range(40)]
        await bridges.publish(vhost, *requests, reply_to="answers")
        await bridges.final_rows(database, 40)
        await taken(replies, "message_id", 40)
        async with asyncio.timeout(bridges.SECONDS), await psycopg.AsyncConnection.connect(database) as conn:
            await conn.set_autocommit(True)
            while (await (await conn.execute(OWED)).fetchone()) != (0,):
                await asyncio.sleep(0.05)
        # The replies come first: the search for what the broker refuses may still be under way.
        async with asyncio.timeout(bridges.SECONDS):
            while b'bridge_receipts_total{result="refused"} 20.0' not in await metrics(made.ops_port):
                await asyncio.sleep(0.05)
        assert await bridges.get(made.ops_port, "/readyz") == (200, ANY)
    assert await at_rest(vhost)


def test_what_rests_is_tried_again_after_more_than_a_send() -> None:
    assert REST > amqp_publish.SEND_TIMEOUT
