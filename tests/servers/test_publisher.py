"""The publisher for Python: confirmed, in order, again after an outage, and the outcome awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from benchmarks.chaos.proxy import Proxy
from bridge.adapters.amqp.producer import Producer
from bridge.devservers import Servers
from bridge.publisher import (
    BlockingPublisher,
    BlockingSent,
    BrokerRefused,
    BrokerUnavailable,
    InvalidRequest,
    NotTaken,
    Publisher,
)
from tests.support.amqp import declare
from tests.support.bridges import bridge, final_rows, rows, token
from tests.support.broker_settings import delete_queue, permissions
from tests.support.clients import Client, client
from tests.support.queues import ENVELOPE

SECONDS = 20.0


@asynccontextmanager
async def through_a_proxy(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the broker, and its address."""
    parts = urlsplit(url)
    async with Proxy(parts.hostname or "", parts.port or 5672).listening() as proxy:
        credentials = parts.netloc.rpartition("@")[0]
        yield proxy, urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}"))


async def shown(here: Client) -> Mapping[str, Any]:
    """The next push that a client is shown."""
    while (frame := await here.read_json())["type"] != "push":
        pass
    return dict(frame)


async def test_what_is_sent_is_confirmed_and_its_outcome_can_be_awaited(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u42"), subprotocols=ENVELOPE) as here,
        Publisher(vhost, app_id="billing") as publisher,
    ):
        sent = await publisher.send({"order": 7}, user="u42", event="order.paid", receipts=True)
        frame = await shown(here)
        assert (frame["id"], frame["event"], frame["data"]) == (sent.id, "order.paid", {"order": 7})
        receipt = await sent.outcome(SECONDS)
        assert (receipt.user, receipt.outcome, receipt.reason, receipt.final) == (
            "u42",
            "received",
            "pong",
            True,
        )
        (row,) = await final_rows(database, 1)
        assert (row["push_id"], row["app_id"]) == (sent.id, "billing")


async def test_several_users_each_have_a_receipt_and_who_is_away_is_kept_for(
    vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u1"), subprotocols=ENVELOPE),
        Publisher(vhost) as publisher,
    ):
        sent = await publisher.send("hello", users=["u1", "away"], ttl=60, receipts=True)
        outcomes = await sent.outcomes(SECONDS)
        assert {user: (r.outcome, r.final) for user, r in outcomes.items()} == {
            "u1": ("received", True),
            "away": ("stored", False),
        }
        with pytest.raises(ValueError, match="several users"):
            await sent.outcome(SECONDS)
        async with client(running.ws_port, token("away"), subprotocols=ENVELOPE):
            outcomes = await sent.outcomes(SECONDS, final=True)
        assert outcomes["away"].outcome == "received"


async def test_a_rejected_request_has_an_outcome_that_says_why(vhost: str, database: str) -> None:
    async with bridge(vhost, database), Publisher(vhost) as publisher:
        # Only the bridge knows its longest ttl.
        sent = await publisher.send("x", users=["u1", "u2"], ttl=1e8, receipts=True)
        (receipt,) = (await sent.outcomes(SECONDS)).values()
        assert (receipt.outcome, receipt.user) == ("rejected", "")
        assert "ttl" in receipt.whole["detail"]


async def test_a_wrong_request_is_refused_by_its_field_before_anything_is_sent(vhost: str) -> None:
    await declare(vhost)
    async with Publisher(vhost) as publisher:
        with pytest.raises(InvalidRequest, match=r"to\.user"):
            await publisher.send("x", user="")
        with pytest.raises(InvalidRequest, match="confirm"):
            await publisher.send("x", user="u", confirm="seen")
        sent = await publisher.send("x", user="u")
        with pytest.raises(ValueError, match="receipts=True"):
            await sent.outcome(1)


async def test_many_go_out_together_in_their_order(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u1"), subprotocols=ENVELOPE) as here,
        Publisher(vhost) as publisher,
    ):
        sent = await publisher.send_all({"data": n, "user": "u1", "receipts": True} for n in range(1_200))
        seen = [(await shown(here))["data"] for _ in range(1_200)]
        assert seen == list(range(1_200))
        outcomes = [(await one.outcome(SECONDS)).outcome for one in sent]
        assert outcomes == ["received"] * 1_200


async def test_one_that_is_wrong_among_many_is_raised_and_the_others_go(vhost: str, database: str) -> None:
    async with bridge(vhost, database), Publisher(vhost) as publisher:
        with pytest.raises(InvalidRequest):
            await publisher.send_all([{"data": 1, "user": "a"}, {"data": 2}, {"data": 3, "user": "b"}])
        assert {row["user_id"] for row in await final_rows(database, 2)} == {"a", "b"}


async def test_an_outage_is_waited_out_and_nothing_is_lost_or_doubled(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u1"), subprotocols=ENVELOPE) as here,
        through_a_proxy(vhost) as (proxy, url),
        Publisher(url) as publisher,
    ):
        await publisher.send("before", user="u1")
        proxy.refuse = True
        proxy.reset()
        waiting = asyncio.create_task(
            publisher.send_all({"data": n, "user": "u1", "receipts": True} for n in range(50))
        )
        await asyncio.sleep(0)
        assert not waiting.done()
        proxy.heal()
        sent = await asyncio.wait_for(waiting, SECONDS)
        assert {(await one.outcome(SECONDS)).outcome for one in sent} == {"received"}
        assert [(await shown(here))["data"] for _ in range(51)] == ["before", *range(50)]
        assert len(await rows(database)) == 51


async def test_receipts_that_a_lost_connection_has_taken_along_come_again(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database) as running,
        through_a_proxy(vhost) as (proxy, url),
        Publisher(url) as publisher,
    ):
        kept = await publisher.send("kept", user="u1", ttl=60, receipts=True)
        assert (await kept.outcome(SECONDS)).outcome == "stored"
        waits = await publisher.send("acked", user="u2", ttl=60, confirm="acked", receipts=True)
        async with client(running.ws_port, token("u2"), subprotocols=ENVELOPE) as here:
            await shown(here)
            proxy.reset()
            await here.send_json({"type": "ack", "id": waits.id})
            await final_rows(database, 1)
        assert (await waits.outcome(SECONDS, final=True)).outcome == "acked"
        assert len(await rows(database)) == 2, "none was taken twice"


async def test_receipts_come_again_after_somebody_has_deleted_their_queue(
    servers: Servers, vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u1"), subprotocols=ENVELOPE) as here,
        Publisher(vhost) as publisher,
    ):
        waits = await publisher.send("acked", user="u1", confirm="acked", ack_within=600, receipts=True)
        kept = await publisher.send("kept", user="away", ttl=60, receipts=True)
        assert (await kept.outcome(SECONDS)).outcome == "stored"
        await shown(here)
        awaited = asyncio.create_task(waits.outcome(SECONDS))
        connection = publisher._producer
        for _ in range(2):
            before = publisher._replies
            await asyncio.to_thread(delete_queue, servers, vhost, before)
            async with asyncio.timeout(SECONDS):
                while publisher._replies in ("", before):
                    await asyncio.sleep(0.01)
        # The broker cancels the consumer on the same connection, and whatever waits for it is asked for again.
        await here.send_json({"type": "ack", "id": waits.id})
        assert (await awaited).outcome == "acked"
        async with client(running.ws_port, token("away"), subprotocols=ENVELOPE):
            assert (await kept.outcome(SECONDS, final=True)).outcome == "received"
        sent = await publisher.send("after", user="u1", receipts=True)
        assert (await sent.outcome(SECONDS)).outcome == "received"
        assert (await shown(here))["data"] == "after", "the first one was shown once"
        assert publisher._producer is connection
        assert len(await rows(database)) == 3, "none was taken twice"


async def test_receipts_come_again_after_their_channel_was_closed_or_their_queue_could_not_be_made(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = Producer.reply_queue

    async def refused_once(self: Producer, *told: Any) -> str:
        made.append("")
        if len(made) == 2:
            raise BrokerRefused("consume: NOT_FOUND - no queue")
        return await make(self, *told)

    monkeypatch.setattr(Producer, "reply_queue", refused_once)
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("u1"), subprotocols=ENVELOPE) as here,
        Publisher(vhost) as publisher,
    ):
        waits = await publisher.send("acked", user="u1", confirm="acked", ack_within=600, receipts=True)
        await shown(here)
        assert publisher._producer is not None
        replies = publisher._producer._replies
        assert replies is not None
        with pytest.raises(ChannelNotFoundEntity):
            await replies.queue_declare("no-such-queue", passive=True)
        async with asyncio.timeout(SECONDS):
            while len(made) < 3:
                await asyncio.sleep(0.01)
        await here.send_json({"type": "ack", "id": waits.id})
        assert (await waits.outcome(SECONDS)).outcome == "acked"
        assert len(await rows(database)) == 1


async def test_a_deleted_queue_that_nobody_waits_on_is_made_anew_when_somebody_does(
    servers: Servers, vhost: str, database: str
) -> None:
    async with bridge(vhost, database), Publisher(vhost) as publisher:
        sent = await publisher.send("x", user="u1", receipts=True)
        assert (await sent.outcome(SECONDS)).outcome == "offline"
        before = publisher._replies
        await asyncio.to_thread(delete_queue, servers, vhost, before)
        async with asyncio.timeout(SECONDS):
            while not publisher._deaf:
                await asyncio.sleep(0.01)
        assert publisher._replies == before, "nothing was published for it"
        sent = await publisher.send("y", user="u1", receipts=True)
        assert (await sent.outcome(SECONDS)).outcome == "offline"
        assert publisher._replies != before


async def test_an_old_request_is_not_published_again_since_its_id_may_be_forgotten(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bridge(vhost, database), Publisher(vhost) as publisher:
        kept = await publisher.send("kept", user="u1", ttl=60, receipts=True)
        assert (await kept.outcome(SECONDS)).outcome == "stored"
        assert list(publisher._open_requests()) == [kept]
        monkeypatch.setattr("bridge.publisher.sent.REPEATED", 0.0)
        assert list(publisher._open_requests()) == []


async def test_who_is_away_for_too_long_is_told(vhost: str) -> None:
    async with through_a_proxy(vhost) as (proxy, url), Publisher(url, retry_for=0.3) as publisher:
        proxy.refuse = True
        with pytest.raises(BrokerUnavailable):
            await publisher.send("x", user="u1")


async def test_what_will_not_mend_itself_is_told_at_once(servers: Servers, vhost: str) -> None:
    async with Publisher(vhost) as publisher:
        with pytest.raises(BrokerRefused, match="NOT_FOUND"):
            await publisher.send("x", user="u1")
    await declare(vhost)
    permissions(servers, vhost, "^$")
    async with Publisher(vhost) as publisher:
        with pytest.raises(BrokerRefused, match="ACCESS_REFUSED"):
            await publisher.send("x", user="u1")
    parts = urlsplit(vhost)
    wrong = urlunsplit(parts._replace(netloc=f"bridge:wrong@{parts.hostname}:{parts.port}"))
    async with Publisher(wrong) as publisher:
        with pytest.raises(BrokerRefused):
            await publisher.send("x", user="u1")


async def test_a_request_that_no_queue_takes_is_an_error(vhost: str) -> None:
    await declare(vhost)
    async with Publisher(vhost) as publisher:
        await publisher.send("x", user="u1")
    import aio_pika

    connection = await aio_pika.connect(vhost)
    async with connection, connection.channel() as channel:
        queue = await channel.get_queue("push.requests", ensure=False)
        await queue.unbind("push", "#")
    async with Publisher(vhost) as publisher:
        with pytest.raises(NotTaken):
            await publisher.send("x", user="u1")


async def test_a_closed_publisher_ends_what_waits(vhost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.publisher.publisher.CLOSE", 0.1)
    async with through_a_proxy(vhost) as (proxy, url):
        proxy.refuse = True
        async with Publisher(url) as publisher:
            sending = asyncio.create_task(publisher.send("x", user="u1"))
            await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailable, match="closed"):
            await sending


async def test_code_without_asyncio_publishes_from_any_thread(vhost: str, database: str) -> None:
    def story() -> list[str]:
        with BlockingPublisher(vhost) as publisher:
            ended: list[str] = []

            def one(user: str) -> None:
                sent = publisher.send("x", user=user, receipts=True)
                ended.append(sent.outcome(SECONDS).outcome)

            threads = [threading.Thread(target=one, args=(f"u{n}",)) for n in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            many = publisher.send_all([{"data": n, "user": "u9", "receipts": True} for n in range(3)])
            ended += [receipt.outcome for sent in many for receipt in sent.outcomes(SECONDS).values()]
            with pytest.raises(InvalidRequest):
                publisher.send("x", user="")
            assert many[0].receipts["u9"].final
            return ended

    async with bridge(vhost, database):
        assert await asyncio.to_thread(story) == ["offline"] * 8


async def test_its_end_waits_for_what_is_on_the_wire(vhost: str) -> None:
    await declare(vhost)
    for _ in range(20):
        async with Publisher(vhost) as publisher:
            sending = [asyncio.create_task(publisher.send(n, user="u1")) for n in range(20)]
            while publisher._waiting or not publisher._undone:
                await asyncio.sleep(0)
        assert len(await asyncio.gather(*sending)) == 20


@pytest.mark.parametrize(
    "url", ["", "http://localhost", "amqp://", "amqp://h:abc/", "amqp://h:99999/", "amqp://[::1/"]
)
def test_a_url_that_is_none_is_refused_when_it_is_made(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: amqp://user:password@host:port/vhost expected"):
        Publisher(url)


async def test_a_defect_is_raised_by_the_call_and_ends_nothing(vhost: str) -> None:
    await declare(vhost)
    async with Publisher(vhost, app_id=7) as publisher:  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(TypeError):
                await asyncio.wait_for(publisher.send("x", user="u1"), SECONDS)


async def test_one_that_is_not_open_says_so(vhost: str) -> None:
    publisher = Publisher(vhost)
    with pytest.raises(RuntimeError, match="not open"):
        await publisher.send("x", user="u1")
    async with publisher:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        await publisher.send("x", user="u1")


async def test_a_refused_connection_is_not_tried_without_pause(
    vhost: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0
    connect = Producer.connect

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal tried
        tried += 1
        return connect(*args, **more)

    monkeypatch.setattr(Producer, "connect", counted)
    waits: list[float] = []

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async with bridge(vhost, database), through_a_proxy(vhost) as (proxy, url), Publisher(url) as publisher:
        held = await publisher.send("x", user="u1", ttl=60, receipts=True)
        publisher._sleep = slept
        publisher._url = urlunsplit(urlsplit(url)._replace(path="/no-such-vhost"))
        proxy.reset()
        while tried < 6:
            await asyncio.sleep(0.01)
        assert held.confirmed
    assert all(wait >= 0.05 * 2**n for n, wait in enumerate(waits[:4])), waits


async def test_a_topic_has_as_many_receipts_as_come_and_is_not_published_again(
    vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("a", topics=["news"]), subprotocols=ENVELOPE) as a,
        client(running.ws_port, token("b", topics=["news"]), subprotocols=ENVELOPE) as b,
        through_a_proxy(vhost) as (proxy, url),
        Publisher(url) as publisher,
    ):
        # Who is welcomed is subscribed.
        assert {(await one.read_json())["type"] for one in (a, b)} == {"welcome"}
        sent = await publisher.send("x", topic="news", receipts=True)
        async with asyncio.timeout(SECONDS):
            while sent.receipts.keys() != {"a", "b"}:
                await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await sent.outcomes(0.05)
        async with client(running.ws_port, token("c", topics=["news"]), subprotocols=ENVELOPE) as late:
            assert (await late.read_json())["type"] == "welcome"
            proxy.reset()
            await publisher.send("after", topic="news")
            assert (await shown(late))["data"] == "after"


async def test_a_blocking_one_that_is_closed_leaves_nobody_waiting(vhost: str, database: str) -> None:
    def story() -> list[str]:
        ended: list[str] = []

        def wait(sent: BlockingSent) -> None:
            try:
                sent.outcome(60)
            except BrokerUnavailable as closed:
                ended.append(str(closed))

        publisher = BlockingPublisher(vhost)
        with pytest.raises(RuntimeError, match="not open"):
            publisher.send("x", user="u1")
        with publisher:
            # It waits for an ack that never comes.
            sent = publisher.send("x", user="here", confirm="acked", ack_within=600, receipts=True)
            waiting = threading.Thread(target=wait, args=(sent,))
            waiting.start()
        waiting.join(SECONDS)
        with pytest.raises(RuntimeError, match="not open"):
            publisher.send("x", user="u1")
        return ended

    async with (
        bridge(vhost, database) as running,
        client(running.ws_port, token("here"), subprotocols=ENVELOPE),
    ):
        assert ["closed" in text for text in await asyncio.to_thread(story)] == [True]
